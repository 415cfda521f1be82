"""Defining a workflow: a name, a state type, and steps. No store, no id and no I/O until it is bound."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    overload,
)

from typing_extensions import Unpack, override

from milepost.protocols import AsyncCheckpointStore, CheckpointStore
from milepost.runner.definition import Definition, define
from milepost.runner.migrations import Migration, Migrations
from milepost.runner.options import BindOptions
from milepost.runner.reducers import checked
from milepost.runner.settings import Settings
from milepost.runner.state_type import StateType
from milepost.runner.step import Step, StepOptions

if TYPE_CHECKING:
    from milepost.runner.runner import AsyncRunner, Runner

__all__ = ["Siblings", "StepDecorator", "Workflow"]

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")

Siblings = Literal["finish", "cancel"]

_NAME_BYTES_MAX: Final = 256


class StepDecorator(Protocol[S]):
    """What `Workflow.step(…)` with options answers: takes a function and returns that very function."""

    def __call__(self, fn: Callable[Concatenate[S, P], R], /) -> Callable[Concatenate[S, P], R]:
        """Add the function as a step."""
        ...


class Workflow(Generic[S]):
    """A definition: module level, the same on every host.

        order = Workflow("order", Order)

        @order.step
        def price(state: Order) -> dict[str, object]:
            return {"total": 42}

        order.bind(store).run("order-7", Order(items=3))

    Args:
        name: What the store knows it by, 1 to 256 bytes: a workflow belongs to one definition for ever.
        state: `dict[str, Any]`, a TypedDict, a dataclass or a pydantic model: one top-level field is one entry.
        schema_version: Raise it when stored states need a migration.
        migrations: `{1: fn}` brings the entries of version 1 to version 2, once, when a run is resumed.
        reducers: By entry: how different values of steps that ran side by side become one. Over those that
            `Annotated[list[str], append]` names.
        siblings: What becomes of steps that run beside one that failed: they `finish`, or they are asked to `cancel`.

    Raises:
        TypeError: The state type is none of these.
        ValueError: A name or version is out of range, or a reducer is for no entry.
    """

    def __init__(
        self,
        name: str,
        state: type[S],
        *,
        schema_version: int = 1,
        migrations: Mapping[int, Migration] | Sequence[tuple[int, Migration]] = (),
        reducers: Mapping[str, Callable[[Any, Any, Any], Any]] | None = None,
        siblings: Siblings = "finish",
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a workflow's name is str, not {type(name).__name__}")
        if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= _NAME_BYTES_MAX or not name.isprintable():
            raise ValueError(f"a workflow's name has 1 to {_NAME_BYTES_MAX} printable bytes, not {name[:64]!r}")
        if siblings not in get_args(Siblings):
            raise ValueError(f"workflow {name!r}: siblings is {siblings!r}; choose 'finish' or 'cancel'")
        self._name = name
        self._state_type = StateType(state)
        self._migrations = Migrations(schema_version, migrations, workflow=name)
        self._siblings: Siblings = siblings
        self._reducers: dict[str, Callable[[Any, Any, Any], Any]] = dict(self._state_type.reducers())
        self._reducers.update(checked(reducers or {}, name))
        for entry in self._reducers:
            self._require_field(entry, "reducers")
        self._steps: dict[str, Step[S]] = {}
        self._names: dict[str, str] = {}
        self._definition: Definition | None = None
        self._lock = threading.RLock()
        self._is_defining = False

    @property
    def name(self) -> str:
        """What the store knows it by."""
        return self._name

    @property
    def state_type(self) -> StateType[S]:
        """The declared type of its state."""
        return self._state_type

    @property
    def steps(self) -> Mapping[str, Step[S]]:
        """Its steps by id, in the order of declaration."""
        return MappingProxyType(self._steps)

    @property
    def reducers(self) -> Mapping[str, Callable[[Any, Any, Any], Any]]:
        """By entry: how effects of steps that ran side by side are merged."""
        return MappingProxyType(self._reducers)

    @property
    def schema_version(self) -> int:
        """Version of its state."""
        return self._migrations.schema_version

    @property
    def migrations(self) -> Migrations:
        """The way from earlier versions of its state."""
        return self._migrations

    @property
    def siblings(self) -> Siblings:
        """What becomes of steps that run beside one that failed."""
        return self._siblings

    @property
    def definition(self) -> Definition:
        """The whole definition, checked at the first access. No step can be added from then on.

        Raises:
            ValueError: There are no steps, or a dependency is unknown or leads in a circle.
        """
        if self._definition is None:
            with self._lock:
                if self._is_defining:
                    raise ValueError(f"workflow {self._name!r} is, through children=, a child of its own")
                self._is_defining = True
                try:
                    self._definition = define(self._name, self._steps.values())
                finally:
                    self._is_defining = False
        return self._definition

    @overload
    def step(
        self, fn: Callable[Concatenate[S, P], R], /, **options: Unpack[StepOptions[S]]
    ) -> Callable[Concatenate[S, P], R]: ...

    @overload
    def step(self, /, **options: Unpack[StepOptions[S]]) -> StepDecorator[S]: ...

    def step(self, fn: Any = None, /, **options: Any) -> Any:
        """Add a function as a step, as a decorator, with or without options. Returns the function unchanged.

        Args:
            fn: Called with (state) or (state, context); with `for_each` with (state, item) or (state, item, context).
            options: Those of `Step`, by name:

        id: Its name in the store; default: the function's name.
        checkpoint: Save when it is finished (True); else it is saved with the next step.
        version: Raise it when its results mean something else; 1.
        depends_on: Ids of the steps before it; default: the one declared before. Steps that are ready together run side
            by side.
        retry: A `Retry`; default: one attempt.
        timeout_s: Longest time for one attempt, in seconds; None: no end.
        at_most_once: Never start it twice, even if nobody then knows whether it happened.
        for_each: Run once for each item of this entry, side by side.
        into: With `for_each`: the entry that the list of results goes to.
        key: With `for_each`: names an item; default: its position.
        repeat_while: Run again for as long as this holds of the state after it.
        max_iterations: Turns of `repeat_while` after which it fails; 10,000.
        waits_for: Run only once a signal of this name has come.
        aliases: Ids that it had before it was renamed.
        children: Workflows that it runs by `ctx.run`.

        Raises:
            TypeError: The function takes another number of arguments, or an option is none or has another type.
            ValueError: The id is taken, or options contradict each other.
        """

        def add(function: Any) -> Any:
            if not callable(function):
                raise TypeError(
                    f"workflow {self._name!r}: a step is a function, not {type(function).__name__}; "
                    "options are named: step(id=…)"
                )
            named = dict(options)
            step_id = named.pop("id", None)
            if step_id is None:
                step_id = getattr(function, "__name__", None)
                if step_id is None or step_id == "<lambda>":
                    raise TypeError(f"workflow {self._name!r}: a step of this kind needs id=…, for it has no name")
            if unknown := named.keys() - StepOptions.__annotations__.keys():
                names = ", ".join(sorted(map(repr, unknown)))
                there_are = f"there are {', '.join(StepOptions.__annotations__)}"
                raise TypeError(f"workflow {self._name!r}, step {step_id!r}: there is no option {names}; {there_are}")
            self.add_step(Step(step_id, function, **named))
            return function

        return add if fn is None else add(fn)

    def add_step(self, step: Step[S]) -> None:
        """Add a step that was made by itself.

        Raises:
            ValueError: Its id or an alias is taken, or it names an entry that the state type does not have.
            RuntimeError: The definition is in use already.
        """
        if not isinstance(step, Step):
            raise TypeError(f"workflow {self._name!r}: add_step takes a Step, not {type(step).__name__}")
        with self._lock:
            if self._definition is not None or self._is_defining:
                raise RuntimeError(
                    f"workflow {self._name!r} is in use: step {step.id!r} must be added before it is bound"
                )
            for name in (step.id, *step.aliases):
                if (owner := self._names.get(name)) is not None:
                    raise ValueError(f"workflow {self._name!r}: {name!r} is an id or alias of step {owner!r} already")
            if len({step.id, *step.aliases}) <= len(step.aliases):
                raise ValueError(
                    f"workflow {self._name!r}, step {step.id!r}: aliases holds a name twice, or its own id"
                )
            for option in ("for_each", "into"):
                if (entry := getattr(step, option)) is not None:
                    self._require_field(entry, f"step {step.id!r}: {option}")
            self._names.update(dict.fromkeys((step.id, *step.aliases), step.id))
            self._steps[step.id] = step

    @overload
    def bind(self, store: CheckpointStore, **options: Unpack[BindOptions]) -> Runner[S]: ...

    @overload
    def bind(self, store: AsyncCheckpointStore, **options: Unpack[BindOptions]) -> AsyncRunner[S]: ...

    def bind(
        self, store: CheckpointStore | AsyncCheckpointStore, **options: Unpack[BindOptions]
    ) -> Runner[S] | AsyncRunner[S]:
        """Return a runner that keeps its checkpoints in `store`. Opens nothing.

        Args:
            store: A `Client` or `InMemoryStore` makes a `Runner`; their async twins make an `AsyncRunner`.
            options: How it runs, by name:

        lease_ttl_s: How long a lease lives without a renewal, which is what others wait for a dead host; 30.
        on_change: What to do with a workflow of another definition: "fail" (the default), "compatible", "force".
        durability: "sync": a step is durable before the next starts (the default); "pipelined"; "exit".
        max_concurrency: Most steps and items of one run at once; 8.
        grace_s: How long a step that was asked to end may take, in seconds; 10.
        outage_limit_s: How long to wait for a store that does not answer, in seconds; 300.
        crash_limit: Resumes without progress after which the workflow is failed; 5.
        on_save_error: "fail" (the default), or "continue": a step whose save failed goes with the next.
        record_error_text: Let logs and errors quote what a step's exception said; False.
        redact: Takes secrets out of that text before it is stored.
        unfenced: Run without a lease; False.
        queue_items_max: Checkpoints on their way while a pipelined run goes on; 16.
        holder: What others see as the holder of the lease; host:pid.

        Raises:
            ValueError: The definition has a fault, or an option is out of range.
            TypeError: That is no store, or it lacks leases or records, which `unfenced=True` would accept.
        """
        if unknown := options.keys() - BindOptions.__annotations__.keys():
            names = ", ".join(sorted(map(repr, unknown)))
            there_are = f"there are {', '.join(BindOptions.__annotations__)}"
            raise TypeError(f"workflow {self._name!r}: bind has no option {names}; {there_are}")
        settings = Settings(**options)
        _ = self.definition
        save = getattr(store, "save", None)
        if not callable(save):
            raise TypeError(f"workflow {self._name!r}: bind takes a store, not {type(store).__name__}")
        from milepost.runner.runner import AsyncRunner, Runner  # noqa: PLC0415  the runner knows the workflow

        if inspect.iscoroutinefunction(save):
            return AsyncRunner(self, store, settings)
        return Runner(self, store, settings)

    def _require_field(self, entry: str, option: str) -> None:
        fields = self._state_type.fields
        if fields is not None and entry not in fields:
            raise ValueError(f"workflow {self._name!r}, {option}: {entry!r} is no field of {self._state_type.name}")

    @override
    def __repr__(self) -> str:
        return f"Workflow({self._name!r}, {self._state_type.name}, steps={list(self._steps)})"
