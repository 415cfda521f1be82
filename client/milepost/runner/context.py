"""What a step is told beside the state, and how it hears that it should end.

A context belongs to one attempt. It is made by the engine, read in the step's thread or task, and cancelled from
whichever thread learns first that the attempt is no longer wanted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from milepost.runner.keys import child_scope, idempotency_key

if TYPE_CHECKING:
    from milepost.runner.run import Run
    from milepost.runner.workflow import Workflow

__all__ = ["AsyncContext", "Context", "StepCancelledError"]

T = TypeVar("T")

logger = logging.getLogger("milepost.runner")
logger.addHandler(logging.NullHandler())


class StepCancelledError(BaseException):
    """Raised by `ctx.check()` in a step that should end. No `Exception`, so that a step's own handlers let it pass."""


class ChildWaitsError(BaseException):
    """A child workflow waits for a signal: so does its parent."""

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name


class ChildOutageError(BaseException):
    """The store did not answer a child workflow for too long: that ends the run, and fails no step."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@dataclass(slots=True, kw_only=True)
class RunFrame:
    """What the attempts of one run in one scope have in common."""

    namespace: str
    workflow_id: str
    scope: str = ""
    first_checkpoint_id: str = ""
    lease_token: int = field(default=0, repr=False)
    deadline: float | None = None
    wall_clock: Callable[[], float]
    run_child: Callable[[BaseContext, Workflow[Any], Any, str], Any] | None = None
    """Set by the driver: runs a child workflow in a scope, or returns what is to be awaited for it."""


class BaseContext:
    """What both kinds of context have."""

    __slots__ = (
        "_callbacks",
        "_cancelled",
        "_children",
        "_frame",
        "_lock",
        "attempt",
        "item_key",
        "iteration",
        "signal",
        "step",
    )

    attempt: int
    """Number of this attempt in this run, from 1."""
    item_key: str | None
    """The item's key, where the step runs for each; else None."""
    iteration: int | None
    """The turn of the step's loop, from 1; None where it has none."""
    signal: Any
    """Value of the signal the step waited for; None where it waits for none."""
    step: str
    """The step's id."""

    def __init__(
        self,
        frame: RunFrame,
        step: str,
        *,
        attempt: int = 1,
        item_key: str | None = None,
        iteration: int | None = None,
        signal: Any = None,
    ) -> None:
        self._frame = frame
        self.step = step
        self.attempt = attempt
        self.item_key = item_key
        self.iteration = iteration
        self.signal = signal
        self._cancelled = False
        self._children = 0
        # Made when first needed: few steps register anything.
        self._callbacks: list[Callable[[], None]] | None = None
        self._lock: threading.Lock | None = None

    @property
    def workflow_id(self) -> str:
        """The workflow."""
        return self._frame.workflow_id

    @property
    def scope(self) -> str:
        """The nested run this step belongs to; "" is the root."""
        return self._frame.scope

    @property
    def deadline(self) -> float | None:
        """When the workflow has to be finished, in seconds since 1970; None: no limit."""
        return self._frame.deadline

    @property
    def lease_token(self) -> int:
        """The fencing token of the workflow's lease, for stores that can check it; 0 without a lease."""
        return self._frame.lease_token

    @property
    def idempotency_key(self) -> str:
        """64 characters that stand for this effect: the same in every attempt on every host, another in a fork."""
        frame = self._frame
        return idempotency_key(
            frame.namespace,
            frame.workflow_id,
            frame.first_checkpoint_id,
            frame.scope,
            self.step,
            item_key=self.item_key,
            iteration=self.iteration,
        )

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs as `milepost.runner`, with the ids of this attempt in front and as fields of the record."""
        return _StepLogger(
            logger, {"workflow_id": self.workflow_id, "scope": self.scope, "step": self.step, "attempt": self.attempt}
        )

    @property
    def cancelled(self) -> bool:
        """The step should end soon: its result may not be wanted any more, or the time is over."""
        deadline = self._frame.deadline
        return self._cancelled or (deadline is not None and self._frame.wall_clock() >= deadline)

    def check(self) -> None:
        """Return if the step should go on.

        Raises:
            StepCancelledError: It should end. Let it pass.
        """
        if self.cancelled:
            raise StepCancelledError(f"step {self.step!r} of workflow {self.workflow_id!r} was asked to end")

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}(workflow_id={self.workflow_id!r}, step={self.step!r}, attempt={self.attempt})"

    def _cancel(self) -> None:
        """Ask the step to end. May be called from any thread, and again."""
        self._cancelled = True
        # A callback that is being added meanwhile sees the flag after it was added.
        callbacks = self._callbacks
        if callbacks is not None:
            for callback in [*callbacks]:
                callback()

    def _on_cancel(self, callback: Callable[[], None]) -> None:
        """Have a callback called when the step is asked to end, from any thread, at least once."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)
        if self._cancelled:
            callback()

    def _next_child_scope(self) -> str:
        self._children += 1
        return child_scope(
            self.scope, self.step, item_key=self.item_key, iteration=self.iteration, number=self._children
        )

    def _run_child(self, child: Workflow[Any], state: Any) -> Any:
        if self._frame.run_child is None:
            raise RuntimeError("this context belongs to no run")
        return self._frame.run_child(self, child, state, self._next_child_scope())


class Context(BaseContext):
    """What a step is told beside the state: who it is, and whether it should go on."""

    __slots__ = ()

    def run(self, child: Workflow[T], state: T) -> Run[T]:
        """Run a child workflow to its end, in a scope of its own under this workflow's lease.

        It is resumed where it stood, or its stored result returned, when this step runs again. Where it waits for a
        signal, this workflow waits too, and the step runs again from its beginning when the signal has come.

        Raises:
            StepFailedError: A step of the child failed.
            InputMismatchError: An earlier attempt of this step gave it another state.
        """
        found: Run[T] = self._run_child(child, state)
        return found


class AsyncContext(BaseContext):
    """What an async step is told beside the state: who it is, and whether it should go on."""

    __slots__ = ()

    async def run(self, child: Workflow[T], state: T) -> Run[T]:
        """Run a child workflow to its end. See `Context.run`."""
        running: Awaitable[Run[T]] = self._run_child(child, state)
        return await running


class _StepLogger(logging.LoggerAdapter[logging.Logger]):
    @override
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = self.extra or {}
        return f"{extra['workflow_id']}/{extra['step']}: {msg}", {
            **kwargs,
            "extra": {**extra, **kwargs.get("extra", {})},
        }
