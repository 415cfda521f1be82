"""One call of a step: a state of its own in, the effect out. Runs in whatever thread or task a driver chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from typing import Any, Final, cast

from typing_extensions import override

from milepost.runner import tracing
from milepost.runner.context import (
    AsyncContext,
    BaseContext,
    ChildOutageError,
    ChildWaitsError,
    Context,
    RunFrame,
    StepCancelledError,
)
from milepost.runner.items import state_and_item
from milepost.runner.patches import Entries, effect_of, item_result
from milepost.runner.state_type import StateType
from milepost.runner.step import Step

__all__ = ["STEP_ENDS", "Attempt"]

STEP_ENDS: Final = (Exception, StepCancelledError, ChildWaitsError, ChildOutageError, asyncio.CancelledError)
"""What a step may raise and the run goes on by its rules. Anything else ends the program, not the step."""


class Attempt:
    """What a driver calls, once: `run` for a sync step, `run_async` for an async one.

    Both return what the step left: a `Patch`, or for an item its result as the codec reads it back. Whatever the step
    raises passes through, as does the error about a state that cannot be stored.
    """

    __slots__ = ("_entries", "_item", "_state_type", "context", "item_key", "number", "step")

    def __init__(
        self,
        step: Step[Any],
        entries: Entries,
        state_type: StateType[Any],
        frame: RunFrame,
        *,
        number: int,
        item_key: str | None = None,
        item_index: int = -1,
        iteration: int | None = None,
        signal: Any = None,
    ) -> None:
        self.step = step
        self.number = number
        self.item_key = item_key
        self._entries = entries
        self._state_type = state_type
        self._item = item_index
        kind = AsyncContext if step.is_async else Context
        self.context: BaseContext = kind(
            frame, step.id, attempt=number, item_key=item_key, iteration=iteration, signal=signal
        )

    def run(self) -> Any:
        """Call a sync step."""
        state, arguments = self._arguments()
        with self._traced():
            answer = self.step.execute(*arguments)
        return self._left(state, answer)

    async def run_async(self) -> Any:
        """Call an async step."""
        state, arguments = self._arguments()
        with self._traced():
            answer = await cast("Awaitable[object]", self.step.execute(*arguments))
        return self._left(state, answer)

    def _arguments(self) -> tuple[Any, list[Any]]:
        # Made for this call: nothing that another step holds is in it.
        if self.step.for_each is None:
            state = self._entries.state_as(self._state_type)
            arguments = [state]
        else:
            state, item = state_and_item(self._entries, self._state_type, self.step.for_each, self._item)
            arguments = [state, item]
        if self.step.takes_context:
            arguments.append(self.context)
        return state, arguments

    def _traced(self) -> AbstractContextManager[Any]:
        context = self.context
        return tracing.attempt_span(context.workflow_id, context.scope, self.step.id, self.number)

    def _left(self, state: Any, answer: object) -> Any:
        if self.item_key is not None:
            return item_result(answer, self._state_type, self._entries.codec, self.step.id, self.item_key)
        return effect_of(self._entries, state, answer, self._state_type, self.step.id)

    @override
    def __repr__(self) -> str:
        return f"Attempt(step={self.step.id!r}, item_key={self.item_key!r}, number={self.number})"
