"""Steps one after another: what is saved, what a resume does, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import pytest

from milepost.errors import (
    CodecError,
    DefinitionChangedError,
    InputMismatchError,
    InvalidRequestError,
    StateSchemaError,
    StepFailedError,
    UnavailableError,
    WorkflowExistsError,
    WorkflowNotFoundError,
)
from milepost.runner import Replace, Workflow
from milepost.runner.keys import idempotency_key
from milepost.types import Status
from tests.integration.runner.conftest import World

State = dict[str, Any]


def made(*functions: Callable[..., Any], name: str = "order", **options: Any) -> Workflow[State]:
    workflow = Workflow(name, dict[str, Any], **options)
    for function in functions:
        workflow.step(function)
    return workflow


class Calls:
    """Three steps that note that they were called, and raise where they are told to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.failing = ""

    def workflow(self) -> Workflow[State]:
        return made(self.price, self.charge, self.ship)

    def _called(self, name: str) -> None:
        self.names.append(name)
        if name == self.failing:
            raise ValueError(f"{name} says no to card 4111")

    def price(self, state: State) -> State:
        self._called("price")
        return {"total": state["items"] * 14}

    def charge(self, state: State) -> None:
        state["half"] = "written"
        self._called("charge")
        state["charged"] = state.pop("half") and state["total"]

    def ship(self, state: State) -> State:
        self._called("ship")
        return {"shipped": True}


def test_each_step_runs_once_and_is_saved(world: World) -> None:
    """Sequence 1 is the input, then a checkpoint a step; the last one is the result."""
    calls = Calls()
    run = world.bind(calls.workflow()).run("o", {"items": 3})
    assert (run.status, run.resumed, calls.names) == ("completed", False, ["price", "charge", "ship"])
    assert run.state == {"items": 3, "total": 42, "charged": 42, "shipped": True}
    assert world.steps("o") == [
        ("", "running"),
        ("price", "running"),
        ("charge", "running"),
        ("ship", "completed"),
    ]
    head = world.head("o")
    assert (head.state, head.checkpoint_id, head.completed_steps) == (
        run.state,
        run.checkpoint_id,
        ("price", "charge", "ship"),
    )
    assert world.eyes.load("o", sequence=1).state == {"items": 3}


def test_a_failed_step_leaves_no_trace_in_the_state_and_its_failure_is_saved(world: World) -> None:
    """The state of the FAILED checkpoint is the one before the step; the step runs again when resumed."""
    calls = Calls()
    calls.failing = "charge"
    bound = world.bind(calls.workflow())
    with pytest.raises(StepFailedError) as caught:
        bound.run("o", {"items": 3})
    assert (caught.value.step, caught.value.attempts, caught.value.workflow_id) == ("charge", 1, "o")
    assert isinstance(caught.value.__cause__, ValueError)
    assert "4111" not in str(caught.value)
    head = world.head("o")
    assert (head.status, head.current_step, head.state) == (Status.FAILED, "price", {"items": 3, "total": 42})
    assert [record.name for record in world.records("o", "failure:")] == ["charge"]
    calls.failing = ""
    run = world.bind(calls.workflow()).run("o")
    assert (run.resumed, run.status) == (True, "completed")
    assert calls.names == ["price", "charge", "charge", "ship"]


def test_a_finished_workflow_returns_its_stored_result_and_runs_nothing(world: World) -> None:
    """Also where the definition has changed since."""
    calls = Calls()
    first = world.bind(calls.workflow()).run("o", {"items": 3})
    calls.names.clear()
    other = made(calls.ship)
    again = world.bind(other).run("o", {"items": 3})
    assert (again.state, again.checkpoint_id, again.status, calls.names) == (
        first.state,
        first.checkpoint_id,
        "completed",
        [],
    )


def test_another_input_is_refused(world: World) -> None:
    calls = Calls()
    bound = world.bind(calls.workflow())
    bound.run("o", {"items": 3})
    with pytest.raises(InputMismatchError):
        bound.run("o", {"items": 4})


def test_start_and_resume_are_different_calls(world: World) -> None:
    bound = world.bind(Calls().workflow())
    with pytest.raises(WorkflowNotFoundError):
        bound.resume("o")
    with pytest.raises(WorkflowNotFoundError) as caught:
        bound.run("o")
    assert caught.value.__notes__ == ["A run without a state resumes; give it one to start the workflow."]
    bound.start("o", {"items": 1})
    with pytest.raises(WorkflowExistsError):
        bound.start("o", {"items": 1})


def test_steps_without_a_checkpoint_go_with_the_next_save(world: World) -> None:
    """And the run does not end without saving its last step."""
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(checkpoint=False)
    def one(state: State) -> State:
        return {"one": (1, 2)}

    @workflow.step
    def two(state: State) -> State:
        assert state["one"] == (1, 2)
        return {"two": 2}

    @workflow.step(checkpoint=False)
    def three(state: State) -> State:
        return {"three": 3}

    world.bind(workflow).run("o", {})
    assert world.steps("o") == [("", "running"), ("two", "running"), ("three", "completed")]
    assert world.head("o").completed_steps == ("one", "two", "three")


def test_progress_without_a_checkpoint_is_saved_with_a_failure(world: World) -> None:
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(checkpoint=False)
    def one(state: State) -> State:
        calls.append("one")
        return {"one": 1}

    @workflow.step
    def two(state: State) -> None:
        raise ValueError("no")

    bound = world.bind(workflow)
    for _ in range(2):
        with pytest.raises(StepFailedError):
            bound.run("o", {})
    assert calls == ["one"]
    assert world.head("o").completed_steps == ("one",)


def test_no_live_object_crosses_a_step_boundary(world: World) -> None:
    """What a step keeps of its state, and changes later, is not in the next step's."""
    kept: list[Any] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(checkpoint=False)
    def one(state: State) -> None:
        state["list"] = [1]
        kept.append(state["list"])

    @workflow.step
    def two(state: State) -> None:
        kept[0].append("from outside")
        assert state["list"] == [1]

    assert world.bind(workflow).run("o", {}).state == {"list": [1]}


def test_a_state_that_cannot_be_stored_fails_the_step_that_made_it(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def one(state: State) -> State:
        return {"bad": {1: "an int key"}}

    with pytest.raises(StepFailedError) as caught:
        world.bind(workflow).run("o", {})
    assert isinstance(caught.value.__cause__, CodecError)
    assert "bad" in caught.value.__cause__.path


def test_a_changed_definition_is_refused_until_it_is_allowed(world: World) -> None:
    calls = Calls()
    calls.failing = "charge"
    with pytest.raises(StepFailedError):
        world.bind(calls.workflow()).run("o", {"items": 3})
    calls.failing = ""
    calls.names.clear()
    changed = made(calls.price, calls.charge)
    with pytest.raises(DefinitionChangedError) as caught:
        world.bind(changed).run("o")
    assert caught.value.removed == ("ship",)
    assert world.bind(changed, on_change="compatible").run("o").status == "completed"
    assert calls.names == ["charge"]


def test_a_renamed_step_is_known_by_its_alias(world: World) -> None:
    calls = Calls()
    calls.failing = "charge"
    with pytest.raises(StepFailedError):
        world.bind(calls.workflow()).run("o", {"items": 3})
    calls.failing = ""
    calls.names.clear()
    renamed = Workflow("order", dict[str, Any])
    renamed.step(calls.price, id="compute", aliases=["price"])
    renamed.step(calls.charge)
    renamed.step(calls.ship)
    assert world.bind(renamed, on_change="compatible").run("o").status == "completed"
    assert calls.names == ["charge", "ship"]
    assert set(world.head("o").completed_steps) == {"price", "compute", "charge", "ship"}


def test_a_state_of_an_earlier_schema_is_migrated_once(world: World) -> None:
    calls = Calls()
    calls.failing = "charge"
    with pytest.raises(StepFailedError):
        world.bind(calls.workflow()).run("o", {"items": 3})
    calls.failing = ""
    seen: list[State] = []

    def migrate(entries: State) -> None:
        seen.append(dict(entries))
        entries["total"] += 1

    second = made(calls.price, calls.charge, calls.ship, schema_version=2, migrations={1: migrate})
    run = world.bind(second).run("o")
    assert (run.state["charged"], len(seen)) == (43, 1)
    assert world.bind(second).run("o").state["charged"] == 43
    assert len(seen) == 1


def test_a_stored_state_that_does_not_fit_the_type_is_the_runs_failure(world: World) -> None:
    calls = Calls()
    calls.failing = "charge"
    with pytest.raises(StepFailedError):
        world.bind(calls.workflow()).run("o", {"items": 3})
    before = world.head("o").sequence

    class Order(TypedDict):
        items: int

    typed: Workflow[Any] = Workflow("order", Order)
    for function in (calls.price, calls.charge, calls.ship):
        typed.step(function, id=function.__name__)
    with pytest.raises(StateSchemaError):
        world.bind(typed).run("o")
    assert world.head("o").sequence == before


def test_a_whole_dict_state_can_be_replaced(world: World) -> None:
    def shrink(state: State) -> Replace:
        return Replace({"only": 1})

    assert world.bind(made(shrink)).run("o", {"a": 1, "b": 2}).state == {"only": 1}


def test_a_store_that_cannot_be_reached_is_never_an_empty_one(memory_world: World) -> None:
    """A failure to load is the run's failure; nothing is started or overwritten."""
    calls = Calls()
    calls.failing = "charge"
    bound = memory_world.bind(calls.workflow())
    with pytest.raises(StepFailedError):
        bound.run("o", {"items": 3})
    calls.names.clear()
    calls.failing = ""
    core = memory_world.eyes._core
    real = core.load

    def unreachable(*args: Any, **options: Any) -> Any:
        raise UnavailableError("nobody is there")

    core.load = unreachable
    with pytest.raises(UnavailableError):
        bound.run("o", {"items": 3})
    core.load = real
    assert calls.names == []
    assert bound.run("o", {"items": 3}).status == "completed"
    assert calls.names == ["charge", "ship"]


def test_a_fork_begins_at_its_checkpoint_with_other_idempotency_keys(world: World) -> None:
    keys: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def one(state: State) -> State:
        return {"one": 1}

    @workflow.step
    def two(state: State, ctx: Any) -> State:
        keys.append(ctx.idempotency_key)
        return {"two": 2}

    bound = world.bind(workflow)
    bound.run("o", {})
    middle = world.eyes.load("o", sequence=2)
    bound.fork("o", "o2", checkpoint_id=middle.checkpoint_id)
    run = bound.resume("o2")
    assert (run.state, run.resumed) == ({"one": 1, "two": 2}, True)
    assert len(keys) == len(set(keys)) == 2


def test_a_save_by_somebody_else_changes_no_keys_and_no_deadline(world: World) -> None:
    """What a run keeps beside the state is found behind checkpoints that no runner saved."""
    keys: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def one(state: State, ctx: Any) -> State:
        keys.append(ctx.idempotency_key)
        return {"one": 1}

    @workflow.step(waits_for="go")
    def two(state: State, ctx: Any) -> State:
        keys.append(ctx.idempotency_key)
        return {"two": state["by_hand"]}

    bound = world.bind(workflow)
    bound.run("o", {}, deadline_s=3_600)
    kept = world.head("o").metadata["milepost"]
    for number in range(3):
        head = world.head("o")
        world.eyes.save("o", state={**head.state, "by_hand": number}, after=head, current_step=head.current_step)
    world.eyes.send_signal("o", "go")
    assert bound.run("o", {}).state == {"one": 1, "by_hand": 2, "two": 2}
    after = world.head("o").metadata["milepost"]
    assert {name: after[name] for name in ("first", "input", "deadline")} == {
        name: kept[name] for name in ("first", "input", "deadline")
    }
    assert keys == [idempotency_key(world.namespace, "o", kept["first"], "", step) for step in ("one", "two")]


@pytest.mark.parametrize("durability, is_last", [("sync", True), ("sync", False), ("exit", True)])
def test_what_the_store_refuses_for_good_fails_the_step_that_left_it(
    world: World, durability: Any, is_last: bool
) -> None:
    """It is stored as failed, without what it left; nobody runs it again unasked, and it can be mended."""
    calls: list[str] = []
    left: list[State] = [{"": 1}]
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def first(state: State) -> State:
        calls.append("first")
        return {"first": True}

    @workflow.step
    def names(state: State) -> State:
        calls.append("names")
        return left[0]

    if not is_last:

        @workflow.step
        def last(state: State) -> None:
            calls.append("last")

    bound = world.bind(workflow, durability=durability)
    with pytest.raises(StepFailedError) as caught:
        bound.run("o", {})
    assert caught.value.step == "names"
    assert isinstance(caught.value.__cause__, InvalidRequestError)
    head = world.head("o")
    assert (head.status, head.current_step, head.state) == (Status.FAILED, "first", {"first": True})
    left[0] = {"fine": 1}
    assert bound.run("o").state == {"first": True, "fine": 1}
    assert calls == ["first", "names", "names"] + ([] if is_last else ["last"])
