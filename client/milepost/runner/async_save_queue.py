"""Checkpoints of a pipelined run on an event loop on their way. See `save_queue`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from milepost.errors import InvalidRequestError, MilepostError
from milepost.runner import tracing
from milepost.runner.events import SaveRefusedError
from milepost.runner.journal import PASSING, PAUSE_INITIAL_S, PAUSE_MAX_S
from milepost.runner.save_queue import gives_up, settled
from milepost.runner.settings import Environment, Settings
from milepost.types import Saved, SaveItem

__all__ = ["AsyncSaveQueue"]


class AsyncSaveQueue:
    """A bounded queue in front of the store's `save_all`. See `SaveQueue`."""

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
        self._condition = asyncio.Condition()
        self._items: deque[SaveItem] = deque()
        self._unanswered = 0
        self._is_failing = False
        self._drained_since: float | None = None
        self._failure: BaseException | None = None
        self._newest: Saved | None = None
        self._task: asyncio.Task[None] | None = None

    async def put(self, item: SaveItem, *, is_optional: bool = False) -> bool:
        """Queue a checkpoint; waits while the queue is full. See `SaveQueue.put`."""
        async with self._condition:
            while self._unanswered >= self._settings.queue_items_max and self._failure is None:
                if is_optional and self._is_failing:
                    return False
                await self._condition.wait()
            if self._failure is not None:
                raise self._failure
            self._items.append(item)
            self._unanswered += 1
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._work(), name="milepost save queue")
            self._condition.notify_all()
            return True

    async def drain(self) -> Saved | None:
        """Wait until all is stored; return the newest answer."""
        async with self._condition:
            self._drained_since = self._environment.clock()
            while self._unanswered and self._failure is None:
                await self._condition.wait()
            self._drained_since = None
            if self._failure is not None:
                raise self._failure
            return self._newest

    def close(self) -> None:
        """Store nothing more than what is on its way."""
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        while True:
            async with self._condition:
                while not self._items:
                    await self._condition.wait()
                batch = [*self._items]
                self._items.clear()
            asked_at = self._environment.clock()
            try:
                answers = await self._send(batch)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001  handed to the run, which raises it
                async with self._condition:
                    self._failure = error
                    self._condition.notify_all()
                self._said(error, asked_at)
                return
            for answer in answers:
                self._said(answer, asked_at)
            async with self._condition:
                self._newest = answers[-1]
                self._unanswered -= len(answers)
                self._condition.notify_all()

    async def _send(self, batch: list[SaveItem]) -> list[Saved]:
        begun_at = self._environment.clock()
        pause_s = PAUSE_INITIAL_S
        answers: list[Saved] = []
        while True:
            try:
                rest = batch[len(answers) :]
                with tracing.queue_span(rest[0].workflow_id, [item.current_step for item in rest]):
                    results = await self._store.save_all(rest)
                stored = settled(results)
                answers += stored
                if len(answers) == len(batch):
                    if self._is_failing:
                        await self._note_failing(is_failing=False)
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
            await self._note_failing(is_failing=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _note_failing(self, *, is_failing: bool) -> None:
        async with self._condition:
            self._is_failing = is_failing
            self._condition.notify_all()
