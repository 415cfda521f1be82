"""One step of a workflow: what it runs, and the promises that come with it. Everything is checked when it is made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, TypedDict, TypeVar

from typing_extensions import override

from milepost.runner.retry import NO_RETRY, Retry
from milepost.runner.settings import require_number
from milepost.types import CANCEL_SIGNAL

if TYPE_CHECKING:
    from milepost.runner.workflow import Workflow

__all__ = ["ITERATIONS_MAX", "Step", "StepOptions"]

S_contra = TypeVar("S_contra", contravariant=True)

NAME_BYTES_MAX: Final = 256
"""Most bytes of a step's id, as the store has it, and of a signal's name."""
ITERATIONS_MAX: Final = 10_000
"""Default of `max_iterations`."""

# They part an id from what follows it in the names of scopes and records.
_RESERVED: Final = "/[]#:"


class StepOptions(TypedDict, Generic[S_contra], total=False):
    """The options of a step, as `Workflow.step` takes them; `Step` says what each means."""

    id: str
    checkpoint: bool
    version: int
    depends_on: Sequence[str] | None
    retry: Retry
    timeout_s: float | None
    at_most_once: bool
    for_each: str | None
    into: str | None
    key: Callable[[Any], str | int] | None
    repeat_while: Callable[[S_contra], bool] | None
    max_iterations: int
    waits_for: str | None
    aliases: Sequence[str]
    children: Sequence[Workflow[Any]]


@dataclass(frozen=True, slots=True)
class Step(Generic[S_contra]):
    """One step. `Workflow.step` makes it of a function; make it yourself for `Workflow.add_step`.

    Raises:
        TypeError: `execute` takes another number of arguments than a step is given, or has a default other than None
            where it would get the context, or an option has another type.
        ValueError: Options contradict each other, or one is out of range. Both name the step and the option.
    """

    id: str
    """Its name in the store, unique in the workflow: 1 to 256 bytes without `/ [ ] # :` and control characters. What
    was finished is recognised by it, so a step that is renamed keeps its old one in `aliases`."""
    execute: Callable[Concatenate[S_contra, ...], object] = field(repr=False)
    """Called with the state, or the state and a context; with `for_each` with the state and an item, or those and a
    context. Its parameters decide which. Sync or async. Answers None, a mapping of entries to change, a whole state of
    the declared type, or `Replace`; with `for_each` the item's result."""
    checkpoint: bool = True
    """Save when it is finished. Without, it is saved with the next step that is; after a crash it may run again."""
    _: KW_ONLY
    version: int = 1
    """Raise it when what the step does no longer fits what its earlier version left; see `on_change`."""
    depends_on: Sequence[str] | None = None
    """Ids of the steps that must be finished first. None: the step declared before this one; []: none. Steps that are
    ready at the same time run side by side."""
    retry: Retry = NO_RETRY
    """Whether it is tried again after a failure."""
    timeout_s: float | None = None
    """Longest time for one attempt, in seconds."""
    at_most_once: bool = False
    """Never start it twice: after a crash in the middle the outcome is unknown, and you say how it goes on."""
    for_each: str | None = None
    """Run once for each item of this entry, side by side."""
    into: str | None = None
    """The entry that the items' results go to, a list in the order of the items. Needed with `for_each`."""
    key: Callable[[Any], str | int] | None = field(default=None, repr=False)
    """Names an item, so that its result is found again though its place has changed. Default: its position."""
    repeat_while: Callable[[S_contra], bool] | None = field(default=None, repr=False)
    """After the step: does it run again? Must depend on the state alone. Each turn is a checkpoint of its own."""
    max_iterations: int = ITERATIONS_MAX
    """Turns of `repeat_while` after which the step fails."""
    waits_for: str | None = None
    """Run only once a signal of this name has come; `ctx.signal` is its value."""
    aliases: Sequence[str] = ()
    """Ids this step had in earlier definitions."""
    children: Sequence[Workflow[Any]] = field(default=(), repr=False)
    """Workflows that it runs by `ctx.run`. Naming them here makes a change of theirs a change of this definition."""
    is_async: bool = field(init=False, repr=False)
    """`execute` is awaited."""
    takes_context: bool = field(init=False, repr=False)
    """`execute` is called with a context."""

    def __post_init__(self) -> None:
        _check_id(self.id, "id", self.id)
        object.__setattr__(self, "is_async", _is_async(self.execute, self.id))
        object.__setattr__(self, "takes_context", self._reads_context())
        for name in ("depends_on", "aliases", "children"):
            self._keep_tuple(name)
        for alias in self.aliases:
            _check_id(alias, "aliases", self.id)
        for one in self.depends_on or ():
            _check_id(one, "depends_on", self.id)
        self._check_numbers()
        self._check_combinations()

    @override
    def __hash__(self) -> int:
        return hash(self.id)

    def _reads_context(self) -> bool:
        given = 1 if self.for_each is None else 2
        positional = _positional_parameters(self.execute, self.id)
        for one in positional[given:]:
            # `i=i` keeps the value of a loop's variable: a context in its place would be a silent mistake.
            if one.default is not one.empty and one.default is not None:
                raise TypeError(
                    f"step {self.id!r}: its function would be given a context as {one.name!r}, which has a default of "
                    f"its own; make it keyword-only: `*, {one.name}=...`"
                )
        taken = len(positional)
        if taken not in {given, given + 1}:
            arguments = "state" if given == 1 else "state, item"
            raise TypeError(
                f"step {self.id!r}: its function takes {taken} positional arguments; "
                f"it must take ({arguments}) or ({arguments}, context)"
            )
        return taken == given + 1

    def _keep_tuple(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, str) or not (value is None or isinstance(value, Sequence)):
            raise TypeError(f"step {self.id!r}: {name} must be a list, not {type(value).__name__}")
        if value is not None:
            object.__setattr__(self, name, tuple(value))

    def _check_numbers(self) -> None:
        for name in ("version", "max_iterations"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"step {self.id!r}: {name} is {value!r}; it must be an int of at least 1")
        if not isinstance(self.retry, Retry):
            raise TypeError(f"step {self.id!r}: retry must be a Retry, not {type(self.retry).__name__}")
        if self.timeout_s is not None:
            require_number(f"step {self.id!r}: timeout_s", self.timeout_s)
        if self.timeout_s is not None and not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"step {self.id!r}: timeout_s is {self.timeout_s!r}; it must be above 0 and finite")
        for name in ("checkpoint", "at_most_once"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"step {self.id!r}: {name} must be True or False, not {getattr(self, name)!r}")
        for name in ("key", "repeat_while"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise TypeError(f"step {self.id!r}: {name} must be a function, not {getattr(self, name)!r}")
        for name in ("for_each", "into", "waits_for"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"step {self.id!r}: {name} must be a name, not {value!r}")

    def _check_combinations(self) -> None:
        def refuse(option: str, other: str, why: str) -> ValueError:
            return ValueError(f"step {self.id!r}: {option} does not go with {other}: {why}")

        if self.for_each is None:
            for name in ("into", "key"):
                if getattr(self, name) is not None:
                    raise ValueError(f"step {self.id!r}: {name} is for steps with for_each")
        else:
            if self.into is None:
                raise ValueError(f"step {self.id!r}: for_each needs into, the entry that the results go to")
            if self.repeat_while is not None:
                raise refuse("repeat_while", "for_each", "make the loop a child workflow, or a step of its own")
            if self.waits_for is not None:
                raise refuse("waits_for", "for_each", "let a step before this one wait")
        if self.waits_for is not None:
            if self.repeat_while is not None:
                raise refuse("waits_for", "repeat_while", "let a step before this one wait")
            if self.waits_for == CANCEL_SIGNAL:
                raise ValueError(f"step {self.id!r}: waits_for cannot be {CANCEL_SIGNAL!r}, which cancels the workflow")
            if len(self.waits_for.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX or "\0" in self.waits_for:
                raise ValueError(f"step {self.id!r}: waits_for must have at most {NAME_BYTES_MAX} bytes and no NUL")
        if self.at_most_once and self.retry.attempts > 1:
            raise refuse("retry", "at_most_once", "a second attempt could be the second time")
        if not self.checkpoint:
            for name, is_set in (
                ("at_most_once", self.at_most_once),
                ("waits_for", self.waits_for is not None),
                ("repeat_while", self.repeat_while is not None),
            ):
                if is_set:
                    raise refuse("checkpoint=False", name, "its outcome must be stored as soon as it is known")


def _check_id(value: object, option: str, step_id: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"step {step_id!r}: {option} must be str, not {type(value).__name__}")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise ValueError(f"step {step_id!a}: {option} {value!a} has a lone surrogate") from None
    if not 1 <= size <= NAME_BYTES_MAX:
        raise ValueError(f"step {value[:32]!r}: {option} has {size} bytes; it must have 1 to {NAME_BYTES_MAX}")
    if not value.isprintable() or any(char in _RESERVED for char in value):
        raise ValueError(
            f"step {step_id!r}: {option} {value!r} must be printable and have none of {' '.join(_RESERVED)}"
        )


def _is_async(execute: object, step_id: str) -> bool:
    if not callable(execute):
        raise TypeError(f"step {step_id!r}: execute must be a function, not {type(execute).__name__}")
    function: Any = execute
    while isinstance(function, functools.partial):
        function = function.func
    candidates = (function, getattr(type(function), "__call__", None))  # noqa: B004  an object with an async call
    for candidate in candidates:
        if inspect.isgeneratorfunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise TypeError(f"step {step_id!r}: its function is a generator; a step returns its result")
    return any(inspect.iscoroutinefunction(candidate) for candidate in candidates)


def _positional_parameters(execute: Callable[..., object], step_id: str) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(execute).parameters.values()
    except (TypeError, ValueError):
        raise TypeError(f"step {step_id!r}: its function does not tell its parameters; wrap it in a def") from None
    found: list[inspect.Parameter] = []
    for one in parameters:
        match one.kind:
            case one.POSITIONAL_ONLY | one.POSITIONAL_OR_KEYWORD:
                found.append(one)
            case one.VAR_POSITIONAL:
                raise TypeError(f"step {step_id!r}: its function takes *{one.name}; name its parameters")
            case one.KEYWORD_ONLY if one.default is one.empty:
                raise TypeError(
                    f"step {step_id!r}: its function needs the keyword {one.name!r}, which no step is given"
                )
            case _:
                pass
    return found
