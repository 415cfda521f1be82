"""Threads for reads: off the event loop, off the writer, bounded.

A lane has its own queue and threads. A thread takes all that is queued (up to a bound) at a wake-up and answers it
with one wake-up of the event loop, so that under load a read does not pay for a change of threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from milepost_server.errors import ResourceError, UnavailableError

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

RETRY_AFTER_S = 0.1
"""What a caller is told to wait when a lane is full."""

# A lane carries reads of any type; `submit` gives each caller its own back.
_Job = tuple[Callable[[], Any], asyncio.Future[Any]]


class ReadLane:
    """A bounded queue of reads and the threads that run them.

    Args:
        name: Of its threads.
        loop: Where answers are delivered.
        threads: How many reads run at once.
        queue_max: Reads that may wait; one more is refused with `QUEUE_FULL`.
        take_max: Most reads that one thread takes, and answers, at once.
    """

    def __init__(
        self, name: str, loop: asyncio.AbstractEventLoop, *, threads: int, queue_max: int, take_max: int
    ) -> None:
        self._name = name
        self._loop = loop
        self._queue_max = queue_max
        self._take_max = take_max
        self._wake = threading.Condition(threading.Lock())
        self._jobs: deque[_Job] = deque()
        self._waiting_count = 0
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[[], _T]) -> asyncio.Future[_T]:
        """Queue a read and return its answer to come. A read whose future was cancelled is not run."""
        future: asyncio.Future[_T] = self._loop.create_future()
        with self._wake:
            if self._is_closing:
                raise UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
            if len(self._jobs) >= self._queue_max:
                raise ResourceError(
                    "QUEUE_FULL",
                    f"the queue of reads is full: at most {self._queue_max} calls may wait; try again shortly",
                    {
                        "limit": self._name,
                        "allowed": self._queue_max,
                        "found": len(self._jobs) + 1,
                        "unit": "calls",
                    },
                    retry_after_s=RETRY_AFTER_S,
                )
            self._jobs.append((function, future))
            if self._waiting_count:
                self._wake.notify()
        return future

    async def close(self) -> None:
        """Run what was accepted, then end the threads."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._jobs:
                    if self._is_closing:
                        return
                    self._waiting_count += 1
                    self._wake.wait()
                    self._waiting_count -= 1
                jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._take_max))]
            done = [(future, *_run_one(function)) for function, future in jobs if not future.cancelled()]
            try:
                self._loop.call_soon_threadsafe(_settle, done)
            except RuntimeError:
                # The loop is closed, so nobody is left to be told.
                _logger.debug("a read ended after the event loop had")


def _run_one(function: Callable[[], object]) -> tuple[object, Exception | None]:
    try:
        return function(), None
    except Exception as error:  # noqa: BLE001  (the edge of the thread: it is the caller's)
        return None, error


def _settle(done: list[tuple[asyncio.Future[Any], object, Exception | None]]) -> None:
    for future, value, error in done:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
