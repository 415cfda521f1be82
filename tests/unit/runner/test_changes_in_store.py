"""Changed definitions over a store: what a resume does, and what `milepost check` says before anybody tries."""

from __future__ import annotations

from typing import Any

import pytest

from milepost import Context, DefinitionChangedError, InMemoryStore, StateSchemaError, StepFailedError, Workflow

State = dict[str, Any]


class FaultError(Exception):
    """What a step of these tests fails with."""


def fails(state: State) -> None:
    raise FaultError


def order(*steps: str, ends: bool = True, **versions: int) -> Workflow[State]:
    """Return a sequence of steps that each note that they ran; without `ends` the last one fails."""
    wf = Workflow("order", State)

    def noting(step_id: str) -> Any:
        def note(state: State) -> None:
            state.setdefault("ran", []).append(step_id)

        return note

    for step_id in steps:
        is_failing = step_id == steps[-1] and not ends
        wf.step(id=step_id, version=versions.get(step_id, 1))(fails if is_failing else noting(step_id))
    return wf


def begun(store: InMemoryStore, wf: Workflow[State]) -> None:
    with pytest.raises(StepFailedError):
        wf.bind(store).run("order-7", {})


def test_a_changed_definition_is_not_resumed_unless_somebody_says_so() -> None:
    store = InMemoryStore()
    begun(store, order("a", "b", ends=False))
    changed = order("a", "b", "c")
    with pytest.raises(DefinitionChangedError, match="added 'c'"):
        changed.bind(store).run("order-7")
    run = changed.bind(store, on_change="compatible").run("order-7")
    assert run.state == {"ran": ["a", "b", "c"]}


def test_a_finished_step_of_another_version_needs_force() -> None:
    """What was forced is written down in the next checkpoint, and what was finished stays finished."""
    store = InMemoryStore()
    begun(store, order("a", "b", ends=False))
    changed = order("a", "b", a=2)
    with pytest.raises(DefinitionChangedError, match="step 'a' is finished in version 1, and is version 2 now"):
        changed.bind(store, on_change="compatible").run("order-7")
    assert changed.bind(store, on_change="force").run("order-7").state == {"ran": ["a", "b"]}
    assert store.load("order-7").metadata["milepost"]["changed"]["changed"] == ["a"]


def test_a_renamed_step_is_not_run_again() -> None:
    """And from the next checkpoint on the alias is not needed any more."""
    store = InMemoryStore()
    begun(store, order("a", "b", ends=False))
    renamed = Workflow("order", State)
    renamed.step(id="first", aliases=["a"])(fails)
    renamed.step(id="b")(fails)
    with pytest.raises(StepFailedError):
        renamed.bind(store, on_change="compatible").run("order-7")
    assert set(store.load("order-7").completed_steps) == {"a", "first"}
    assert order("first", "b").bind(store).run("order-7").state == {"ran": ["a", "b"]}


def test_a_child_in_progress_is_compared_too() -> None:
    """The parent's steps are the same, but one that a finished step of the child names has changed."""
    store = InMemoryStore()

    def parent(child: Workflow[State]) -> Workflow[State]:
        wf = Workflow("parent", State)

        @wf.step(children=[child])
        def ship(state: State, ctx: Context) -> State:
            return ctx.run(child, {}).state

        return wf

    before, after = parent(order("a", "b", ends=False)), parent(order("a", "b", a=2))
    with pytest.raises(StepFailedError):
        before.bind(store).run("order-7", {})
    with pytest.raises(StepFailedError) as caught:
        after.bind(store, on_change="compatible").run("order-7")
    assert isinstance(caught.value.__cause__, DefinitionChangedError)
    assert "step 'a' is finished in version 1" in str(caught.value.__cause__)


def test_a_state_is_migrated_once() -> None:
    store = InMemoryStore()
    begun(store, order("a", "b", ends=False))
    calls: list[int] = []

    def to_second(entries: State) -> None:
        calls.append(2)
        entries["steps"] = entries.pop("ran")

    migrated = Workflow("order", State, schema_version=2, migrations={1: to_second})
    migrated.step(id="a")(fails)
    migrated.step(id="b")(lambda state: {"seen": list(state["steps"])})
    assert migrated.bind(store).run("order-7").state == {"steps": ["a"], "seen": ["a"]}
    assert migrated.bind(store).run("order-7").state == {"steps": ["a"], "seen": ["a"]}
    assert calls == [2]


def test_a_state_without_a_way_is_not_resumed() -> None:
    store = InMemoryStore()
    begun(store, order("a", "b", ends=False))
    later = Workflow("order", State, schema_version=3, migrations={2: lambda entries: None})
    later.step(id="a")(fails)
    later.step(id="b")(fails)
    with pytest.raises(StateSchemaError, match="no migration from schema version 1 to 3"):
        later.bind(store, on_change="force").run("order-7")
