"""Threads for reads: off the event loop, off the writer, bounded.

A lane has its own queue and threads. A thread takes all that is queued (up to a bound) at a wake-up and answers it
with one wake-up of the event loop, so that under load a read does not pay for a change of threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from milepost_server.errors import UnavailableError
from milepost_server.model import ProbeQuery
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage.fair_queue import FairQueue

_logger = logging.getLogger(__name__)

# A lane carries reads of any kind; `submit` gives each caller its own answer back.
_Job = tuple[Any, asyncio.Future[Any]]


class ReadLane:
    """A bounded queue of reads and the threads that run them.

    Args:
        name: Of its threads.
        loop: Where answers are delivered.
        run: Runs what one thread took and returns an answer or an error for each; raises nothing.
        threads: How many reads run at once.
        bound: Counts the reads that wait.
        take_max: Most reads that one thread takes, and answers, at once.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        run: Callable[[list[Any]], Sequence[object]],
        *,
        threads: int,
        bound: SharedBound,
        take_max: int,
    ) -> None:
        self._loop = loop
        self._run_jobs = run
        self._take_max = take_max
        self._wake = threading.Condition(threading.Lock())
        self._jobs: FairQueue[_Job] = FairQueue(bound)
        self._waiting_count = 0
        self.answered_count = 0
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def probe(self) -> asyncio.Future[Any]:
        """Queue a `ProbeQuery`, which is never refused for want of room, and return its answer."""
        return self._queue(ProbeQuery(), "", self._jobs.add)

    def submit(self, job: object, *, namespace: str) -> asyncio.Future[Any]:
        """Queue a read in a namespace's line and return its answer. One whose future was cancelled is not run."""
        return self._queue(job, namespace, self._jobs.put)

    def _queue(self, job: object, namespace: str, put: Callable[[str, _Job], None]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        with self._wake:
            if self._is_closing:
                raise UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
            put(namespace, (job, future))
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
                jobs = [self._jobs.pop()[1] for _ in range(min(len(self._jobs), self._take_max))]
            wanted = [(job, future) for job, future in jobs if not future.cancelled()]
            if not wanted:
                continue
            answers = self._run_jobs([job for job, _ in wanted])
            self.answered_count += len(answers)
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
