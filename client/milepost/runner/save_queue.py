"""Checkpoints of a pipelined run on their way: stored in order by one thread, whatever has come meanwhile in one call.

Each names the one before it as `after`, so nothing is stored behind a hole: where one fails, so do those after it.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from milepost.errors import InvalidRequestError, MilepostError
from milepost.runner import tracing
from milepost.runner.events import SaveRefusedError
from milepost.runner.journal import PASSING, PAUSE_INITIAL_S, PAUSE_MAX_S
from milepost.runner.settings import Environment, Settings
from milepost.types import Saved, SaveItem

__all__ = ["SaveQueue", "gives_up", "settled"]


class SaveQueue:
    """A bounded queue in front of the store's `save_all`.

    Args:
        said: Told of each item's answer, or of the error that ended the queue, with the clock's reading from before it
            was sent. Called from the queue's thread.
    """

    def __init__(
        self,
        store: Any,
        settings: Settings,
        environment: Environment,
        said: Callable[[Saved | BaseException, float], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._environment = environment
        self._said = said
        self._condition = threading.Condition()
        self._items: deque[SaveItem] = deque()
        self._unanswered = 0
        self._is_closed = False
        self._is_failing = False
        self._drained_since: float | None = None
        self._failure: BaseException | None = None
        self._newest: Saved | None = None
        self._thread: threading.Thread | None = None

    def put(self, item: SaveItem, *, is_optional: bool = False) -> bool:
        """Queue a checkpoint; waits while the queue is full. After a failure nothing is queued: `drain` raises it.

        Returns:
            Whether it is queued: not where it is optional, the queue is full, and the store takes nothing now.
        """
        with self._condition:
            while self._unanswered >= self._settings.queue_items_max and self._failure is None:
                if is_optional and self._is_failing:
                    return False
                self._condition.wait(self._settings.outage_limit_s)
            if self._failure is not None:
                raise self._failure
            self._items.append(item)
            self._unanswered += 1
            if self._thread is None:
                # In the surroundings of the run, so that its spans belong to the run's.
                work = partial(contextvars.copy_context().run, self._work)
                self._thread = threading.Thread(target=work, name="milepost-save-queue", daemon=True)
                self._thread.start()
            self._condition.notify_all()
            return True

    def drain(self) -> Saved | None:
        """Wait until all is stored; return the newest answer.

        Raises:
            Exception: What kept one from being stored.
        """
        with self._condition:
            self._drained_since = self._environment.clock()
            while self._unanswered and self._failure is None:
                # Bounded by the sender, which gives up after the outage limit.
                self._condition.wait()
            self._drained_since = None
            if self._failure is not None:
                raise self._failure
            return self._newest

    def close(self) -> None:
        """Store nothing more than what is on its way."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._items and not self._is_closed:
                    self._condition.wait()
                if self._is_closed:
                    return
                batch = [*self._items]
                self._items.clear()
            asked_at = self._environment.clock()
            try:
                answers = self._send(batch)
            except BaseException as error:  # noqa: BLE001  handed to the run, which raises it
                self._fail(error, asked_at)
                return
            for answer in answers:
                self._said(answer, asked_at)
            with self._condition:
                self._newest = answers[-1]
                self._unanswered -= len(answers)
                self._condition.notify_all()

    def _send(self, batch: list[SaveItem]) -> list[Saved]:
        begun_at = self._environment.clock()
        pause_s = PAUSE_INITIAL_S
        answers: list[Saved] = []
        while True:
            rest = batch[len(answers) :]
            try:
                with tracing.queue_span(rest[0].workflow_id, [item.current_step for item in rest]):
                    results = self._store.save_all(rest)
                stored = settled(results)
                answers += stored
                if len(answers) == len(batch):
                    if self._is_failing:
                        self._note_failing(is_failing=False)
                    return answers
                failure: MilepostError = results[len(stored)]
            except PASSING as error:
                failure = error
            if isinstance(failure, InvalidRequestError):
                refused = batch[len(answers)]
                raise SaveRefusedError((*refused.completed_steps, refused.current_step), failure)
            until = self._environment.clock() + pause_s
            if not isinstance(failure, PASSING) or gives_up(self._settings, begun_at, self._drained_since, until):
                raise failure
            self._note_failing(is_failing=True)
            (self._environment.sleep or threading.Event().wait)(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def _note_failing(self, *, is_failing: bool) -> None:
        with self._condition:
            self._is_failing = is_failing
            self._condition.notify_all()

    def _fail(self, error: BaseException, asked_at: float) -> None:
        with self._condition:
            self._failure = error
            self._condition.notify_all()
        self._said(error, asked_at)


def gives_up(settings: Settings, begun_at: float, drained_since: float | None, until: float) -> bool:
    """Tell whether a queue has tried long enough at that time.

    A run whose steps may go with the next save goes on without them: for it the time counts from where it waits.
    """
    since = drained_since if settings.on_save_error == "continue" else begun_at
    return since is not None and until > since + settings.outage_limit_s


def settled(results: list[Saved | MilepostError]) -> list[Saved]:
    """Return the answers before the first failure."""
    found: list[Saved] = []
    for result in results:
        if not isinstance(result, Saved):
            break
        found.append(result)
    return found
