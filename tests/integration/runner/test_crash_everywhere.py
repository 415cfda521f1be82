"""A run that dies at any of its calls to the store ends, resumed, as one that was never interrupted.

The process is killed before and after every single call in turn. Whatever the moment: the result is the same, a step
whose checkpoint was acknowledged never runs again, and a step that may run once never runs twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.errors import StepOutcomeUnknownError
from milepost.runner import Workflow, add, append
from milepost.testing import SimulatedCrash
from tests.integration.runner.conftest import World

State = dict[str, Any]
Durability = Literal["sync", "pipelined", "exit"]

CALLS = ("acquire_lease", "load", "save", "append_records")


class Killer:
    """Ends the process, as it were, before or after one call to the store."""

    def __init__(self, world: World) -> None:
        self.count = 0
        self.dies_at: int | None = None
        self.dies = "before"
        self.log: list[tuple[str, Any]] = []
        core = world.eyes._core
        for name in CALLS:
            setattr(core, name, self._wrapped(name, getattr(core, name)))

    def arm(self, at: int | None, when: str) -> None:
        self.count, self.dies_at, self.dies = 0, at, when

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.count += 1
            number = self.count
            if number == self.dies_at and self.dies == "before":
                raise SimulatedCrash(f"before {name}")
            answer = call(*args, **options)
            if number == self.dies_at:
                raise SimulatedCrash(f"after {name}")
            return answer

        return wrapped


class Everything:
    """A workflow with a bit of everything, whose steps count how often they run."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.workflow = Workflow("order", dict[str, Any], reducers={"log": append, "sum": add})
        child = Workflow("child", dict[str, Any])
        child.step(self._step("child-a"), id="a")
        child.step(self._step("child-b"), id="b")
        add_step = self.workflow.step
        add_step(self._step("plan"), id="plan", checkpoint=False)
        add_step(self._step("left"), id="left", depends_on=["plan"])
        add_step(self._step("right"), id="right", depends_on=["plan"])
        add_step(self._step("join"), id="join", depends_on=["left", "right"], checkpoint=False)
        add_step(self._item, id="items", for_each="items", into="found")
        add_step(self._loop, id="loop", repeat_while=lambda state: state["turns"] < 3)
        add_step(self._step("charge"), id="charge", at_most_once=True)

        @add_step(id="nested")
        def nested(state: State, ctx: Any) -> State:
            self.calls["nested"] += 1
            return {"nested": ctx.run(child, {"log": [], "sum": 0}).state["log"]}

        add_step(self._step("last"), id="last", checkpoint=False)

    def _step(self, name: str) -> Callable[[State], None]:
        def run(state: State) -> None:
            self.calls[name] += 1
            state.setdefault("log", []).append(name)
            state["sum"] = state.get("sum", 0) + 1

        return run

    def _item(self, state: State, item: int) -> int:
        self.calls[f"item-{item}"] += 1
        return item * int(state["sum"])

    def _loop(self, state: State) -> None:
        self.calls["loop"] += 1
        state["turns"] += 1


def finish(world: World, everything: Everything, durability: Durability) -> Any:
    """Resume until it is finished, resolving what has to be resolved."""
    for _ in range(10):
        bound = world.bind(everything.workflow, durability=durability, max_concurrency=2)
        unknown = ""
        try:
            return bound.run("o", {"items": [1, 2, 3], "turns": 0})
        except StepOutcomeUnknownError as error:
            unknown = error.step
        assert unknown == "charge"
        charged = everything.calls["charge"]
        assert charged <= 1
        state = world.head("o").state
        left = {"log": [*state["log"], "charge"], "sum": state["sum"] + 1}
        if charged:
            bound.resolve("o", "charge", "done", left)
        else:
            bound.resolve("o", "charge", "retry")
    raise AssertionError("it does not end")


def interrupted(kind: Any, durability: Durability, at: int | None, when: str) -> tuple[Any, Everything, int]:
    world = World(kind, None)
    killer = Killer(world)
    everything = Everything()
    killer.arm(at, when)
    calls = 0
    try:
        run = world.bind(everything.workflow, durability=durability, max_concurrency=2, lease_ttl_s=1.0).run(
            "o", {"items": [1, 2, 3], "turns": 0}
        )
        calls = killer.count
    except SimulatedCrash:
        killer.arm(None, "before")
        world.eyes.break_lease("o")  # Nobody waits here until the lease of the dead has run out.
        run = finish(world, everything, durability)
    assert run.status == "completed"
    return run.state, everything, calls


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("durability", ["sync", "pipelined", "exit"])
def test_a_crash_at_any_call_changes_nothing_of_the_result(kind: Any, durability: Durability) -> None:
    whole, everything, calls = interrupted(kind, durability, None, "before")
    assert set(everything.calls.values()) == {1, 3}
    assert calls > 8
    for at in range(1, calls + 1):
        for when in ("before", "after"):
            state, again, _ = interrupted(kind, durability, at, when)
            assert state == whole, (at, when)
            assert again.calls["charge"] == 1, (at, when)
            if durability == "sync":
                # One checkpoint at most is lost, and the steps before it that asked for none.
                assert sum(again.calls.values()) - sum(everything.calls.values()) <= 3, (at, when)


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[list[int], bool]]:
    """Steps as (numbers of the steps they depend on, whether they are saved)."""
    count = draw(st.integers(1, 7))
    return [
        (
            draw(st.lists(st.integers(0, number - 1), unique=True, max_size=3)) if number else [],
            draw(st.booleans()),
        )
        for number in range(count)
    ]


@given(graphs(), st.sampled_from(["sync", "pipelined", "exit"]), st.data())
@settings(max_examples=60)
def test_any_graph_of_steps_survives_any_crashes(
    graph: list[tuple[list[int], bool]], durability: Durability, data: st.DataObject
) -> None:
    """Also several, one after the other; and each step sees exactly what its dependencies left."""

    def made() -> Workflow[State]:
        workflow = Workflow("order", dict[str, Any], reducers={"log": append})

        def step(number: int, dependencies: list[int]) -> Callable[[State], None]:
            def run(state: State) -> None:
                for one in dependencies:
                    assert state[f"s{one}"] == one
                state[f"s{number}"] = number
                state["log"].append(number)

            return run

        for number, (dependencies, is_saved) in enumerate(graph):
            names = [f"s{one}" for one in dependencies]
            workflow.step(step(number, dependencies), id=f"s{number}", depends_on=names, checkpoint=is_saved)
        return workflow

    plain = World("sync", None).bind(made(), durability=durability).run("o", {"log": []}).state
    world = World("sync", None)
    killer = Killer(world)
    for _ in range(data.draw(st.integers(1, 4))):
        killer.arm(data.draw(st.integers(1, 20)), data.draw(st.sampled_from(["before", "after"])))
        try:
            world.bind(made(), durability=durability).run("o", {"log": []})
        except SimulatedCrash:
            killer.arm(None, "before")
            world.eyes.break_lease("o")
    killer.arm(None, "before")
    run = world.bind(made(), durability=durability).run("o", {"log": []})
    assert run.state == plain
    assert len(world.head("o").completed_steps) == len(graph)


def test_a_kill_of_the_loop_is_a_kill(memory_world: World) -> None:
    """Nothing that a run had in flight is left behind in the next one's loop."""
    everything = Everything()
    killer = Killer(memory_world)
    killer.arm(6, "before")
    bound = memory_world.bind(everything.workflow)
    with pytest.raises(SimulatedCrash):
        bound.run("o", {"items": [1, 2, 3], "turns": 0})
    killer.arm(None, "before")
    assert finish(memory_world, everything, "sync").status == "completed"
    assert asyncio.run(_tasks()) == 1


async def _tasks() -> int:
    return len(asyncio.all_tasks())
