"""Threads for reads: off the event loop, off the writer, bounded.

A lane has its own queue and threads. A thread takes all that is queued (up to a bound) at a wake-up and answers it
with one wake-up of the event loop, so that under load a read does not pay for a change of threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from milepost_server.errors import UnavailableError, queue_full

_logger = logging.getLogger(__name__)

RETRY_AFTER_S = 0.1
"""What a caller is told to wait when a lane is full."""

# A lane carries reads of any kind; `submit` gives each caller its own answer back.
_Job = tuple[Any, asyncio.Future[Any]]


class ReadLane:
    """A bounded queue of reads and the threads that run them.

    Args:
        name: Of its threads.
        loop: Where answers are delivered.
        run: Runs what one thread took and returns an answer or an error for each; raises nothing.
        threads: How many reads run at once.
        queue_max: Reads that may wait; one more is refused with `QUEUE_FULL`.
        take_max: Most reads that one thread takes, and answers, at once.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        run: Callable[[list[Any]], Sequence[object]],
        *,
        threads: int,
        queue_max: int,
        take_max: int,
    ) -> None:
        self._name = name
        self._loop = loop
        self._run_jobs = run
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

    def submit(self, job: object) -> asyncio.Future[Any]:
        """Queue a read and return its answer to come. A read whose future was cancelled is not run."""
        future: asyncio.Future[Any] = self._loop.create_future()
        with self._wake:
            if self._is_closing:
                raise UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
            if len(self._jobs) >= self._queue_max:
                raise queue_full(
                    f"the queue of reads is full: at most {self._queue_max} calls may wait; try again shortly",
                    limit=self._name,
                    allowed=self._queue_max,
                    found=len(self._jobs) + 1,
                    unit="calls",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._jobs.append((job, future))
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
            wanted = [(job, future) for job, future in jobs if not future.cancelled()]
            if not wanted:
                continue
            answers = self._run_jobs([job for job, _ in wanted])
            done = [(future, answer) for (_, future), answer in zip(wanted, answers, strict=True)]
            try:
                self._loop.call_soon_threadsafe(_settle, done)
            except RuntimeError:
                # The loop is closed, so nobody is left to be told.
                _logger.debug("a read ended after the event loop had")


def run_each(functions: list[Callable[[], object]]) -> list[object]:
    """Run functions one after the other; an error is the answer of its own alone."""
    answers: list[object] = []
    for function in functions:
        try:
            answers.append(function())
        except Exception as error:  # noqa: BLE001 - the edge of the thread: it is the caller's
            answers.append(error)
    return answers


def _settle(done: list[tuple[asyncio.Future[Any], object]]) -> None:
    for future, answer in done:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
