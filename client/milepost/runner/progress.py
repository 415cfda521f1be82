"""`run(progress=True)`: how far a run has come, on stderr, for the person in front of it.

Looks on at what passes between the engine and its driver, and changes nothing of it. Shows ids, counts and times; of an
error its type.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TextIO, TypeVar

from milepost.errors import LeaseHeldError
from milepost.runner.definition import Definition
from milepost.runner.events import (
    AcquireLease,
    AttemptEnded,
    Effect,
    Enqueue,
    Flow,
    LoadHead,
    SaveCheckpoint,
    StartAttempt,
)
from milepost.types import Checkpoint

__all__ = ["Lines", "View", "shown", "view_for"]

T = TypeVar("T")

_NAME_WIDTH_MAX: Final = 40
_RESUMED_MAX: Final = 20
"""Finished steps that a resumed run tells by name, the last ones."""


class View(Protocol):
    """Where progress is shown."""

    def waits(self, holder: str, left_s: float | None) -> None:
        """Somebody else has the lease, for so many seconds unless it is renewed; None: for how long is not known."""
        ...

    def resumed(self, finished: Sequence[str]) -> None:
        """These steps are finished already, in the order of the definition."""
        ...

    def started(self, step: str, attempt: int) -> None:
        """An attempt of a step begins."""
        ...

    def ended(self, step: str, finished: int, problem: str) -> None:
        """An attempt has ended; `problem` names the type of its error. So many steps are finished now."""
        ...

    def saved(self, finished: int) -> None:
        """A checkpoint says that so many steps are finished."""
        ...

    def close(self, outcome: str) -> None:
        """The run has ended."""
        ...


def view_for(workflow_id: str, definition: Definition, stream: TextIO | None = None) -> View:
    """Return a bar where a person looks on and `rich` is installed, else lines."""
    stream = stream or sys.stderr
    if stream is None or stream.closed:
        return _Nowhere()
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        return _Bar(workflow_id, len(definition.steps))
    return Lines(workflow_id, len(definition.steps), stream)


def shown(flow: Flow[T], view: View, definition: Definition) -> Flow[T]:
    """Pass a flow on as it is, and show what it does."""
    look = _Look(view, definition)
    outcome = "stopped"
    try:
        effect = next(flow)
        while True:
            look.at_effect(effect)
            try:
                answer = yield effect
            except GeneratorExit:
                flow.close()
                raise
            except BaseException as error:  # noqa: BLE001  handed on to the flow
                look.at_error(error)
                effect = flow.throw(error)
            else:
                look.at_answer(effect, answer)
                effect = flow.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        outcome = str(getattr(result, "status", "done"))
        return result
    except Exception as error:
        outcome = type(error).__name__
        raise
    finally:
        look.close(outcome)


class _Look:
    """Follows a run by its effects and events."""

    def __init__(self, view: View, definition: Definition) -> None:
        self._view = view
        self._definition = definition
        self._finished: set[str] = set()
        self._items_left: dict[str, int] = {}
        self._held: LeaseHeldError | None = None

    def at_effect(self, effect: Effect) -> None:
        if isinstance(effect, AcquireLease):
            held = self._held
            if held is not None:
                self._show(lambda: self._view.waits(held.holder, held.remaining_s))
        elif isinstance(effect, StartAttempt):
            step = effect.attempt.step.id
            self._items_left[step] = self._items_left.get(step, 0) + 1
            self._show(lambda: self._view.started(step, effect.attempt.number))
        elif isinstance(effect, SaveCheckpoint):
            self._count(effect.arguments["completed_steps"])
        elif isinstance(effect, Enqueue):
            self._count(effect.item.completed_steps)

    def at_error(self, error: BaseException) -> None:
        if isinstance(error, LeaseHeldError):
            self._held = error

    def _count(self, completed_steps: Iterable[str]) -> None:
        # Also steps that had nothing to do, for lack of items.
        self._finished.update(completed_steps)
        self._finished &= self._definition.steps.keys()
        self._show(lambda: self._view.saved(len(self._finished)))

    def at_answer(self, effect: Effect, answer: Any) -> None:
        if isinstance(answer, AttemptEnded):
            step = answer.attempt.step.id
            self._items_left[step] -= 1
            problem = "" if answer.error is None else type(answer.error).__name__
            if not problem and not self._items_left[step]:
                self._finished.add(step)
            self._show(lambda: self._view.ended(step, len(self._finished), problem))
        elif isinstance(effect, LoadHead) and isinstance(answer, Checkpoint):
            self._finished = set(answer.completed_steps) & self._definition.steps.keys()
            self._show(lambda: self._view.resumed([step for step in self._definition.steps if step in self._finished]))

    def close(self, outcome: str) -> None:
        self._show(lambda: self._view.close(outcome))

    def _show(self, show: Callable[[], None]) -> None:
        try:
            show()
        except (OSError, ValueError):
            # Nobody is looking any more: that must not keep the run from going on.
            self._view = _Nowhere()


class Lines:
    """One line for each thing that happened."""

    def __init__(
        self, workflow_id: str, steps: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = workflow_id
        self._steps = steps
        self._stream = stream
        self._clock = clock
        self._finished = 0
        self._holder: str | None = None
        self._started_at = clock()

    def waits(self, holder: str, left_s: float | None) -> None:
        """Say for whom, once."""
        if holder != self._holder:
            self._holder = holder
            self._write(_wait(holder, left_s))

    def resumed(self, finished: Sequence[str]) -> None:
        """Say how far it had come."""
        self._finished = len(finished)
        for step in finished[-_RESUMED_MAX:]:
            self._write(f"{step}: already done")

    def started(self, step: str, attempt: int) -> None:
        """Say what begins."""
        self._write(f"{step} …" if attempt == 1 else f"{step} … (attempt {attempt})")

    def ended(self, step: str, finished: int, problem: str) -> None:
        """Say what came of it."""
        self._finished = finished
        self._write(f"{step} failed ({problem})" if problem else f"{step} finished")

    def saved(self, finished: int) -> None:
        """Count on."""
        self._finished = finished

    def close(self, outcome: str) -> None:
        """Say how it ended."""
        self._write(f"{outcome} after {self._clock() - self._started_at:.1f} s")

    def _write(self, text: str) -> None:
        count = f"{self._finished}/{self._steps}"
        self._stream.write(_printable(f"{self._name}  {count}  {text}") + "\n")
        self._stream.flush()


class _Bar:
    """A bar that moves, by `rich`."""

    def __init__(self, workflow_id: str, steps: int) -> None:
        from rich.console import Console  # noqa: PLC0415  an extra
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._running: list[str] = []
        name = workflow_id[:_NAME_WIDTH_MAX]
        self._progress = Progress(
            TextColumn("{task.fields[workflow]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=steps, workflow=name)
        self._progress.start()

    def waits(self, holder: str, left_s: float | None) -> None:
        self._progress.update(self._task, description=_printable(_wait(holder, left_s)))

    def resumed(self, finished: Sequence[str]) -> None:
        self._progress.update(self._task, completed=len(finished))

    def started(self, step: str, attempt: int) -> None:
        self._running.append(step)
        self._describe(f" (attempt {attempt})" if attempt > 1 else "")

    def ended(self, step: str, finished: int, problem: str) -> None:
        self._running.remove(step)
        self._progress.update(self._task, completed=finished)
        self._describe(f" {step} failed ({problem})" if problem else "")

    def saved(self, finished: int) -> None:
        self._progress.update(self._task, completed=finished)

    def close(self, outcome: str) -> None:
        self._progress.update(self._task, description=outcome)
        self._progress.stop()

    def _describe(self, more: str) -> None:
        names = ", ".join(dict.fromkeys(self._running))
        self._progress.update(self._task, description=f"{names}{more}")


class _Nowhere:
    """Shows nothing."""

    def waits(self, holder: str, left_s: float | None) -> None: ...

    def resumed(self, finished: Sequence[str]) -> None: ...

    def started(self, step: str, attempt: int) -> None: ...

    def ended(self, step: str, finished: int, problem: str) -> None: ...

    def saved(self, finished: int) -> None: ...

    def close(self, outcome: str) -> None: ...


def _wait(holder: str, left_s: float | None) -> str:
    left = "" if left_s is None else f", {left_s:.0f} s left"
    return f"waiting for lease held by {holder or '?'}{left}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
