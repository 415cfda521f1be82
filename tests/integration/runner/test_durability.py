"""When a step is durable: before the next one starts, meanwhile, or at the end."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from milepost.errors import (
    HeadMovedError,
    InvalidRequestError,
    LeaseLostError,
    StepFailedError,
    StoreFullError,
    UnavailableError,
    WorkflowDeadlineError,
)
from milepost.runner import Workflow
from milepost.testing import SimulatedCrash, crash_before_save
from milepost.types import Status
from tests.integration.runner.conftest import World

State = dict[str, Any]


def counting(steps: int = 20, *, failing: int | None = None) -> Workflow[State]:
    workflow = Workflow("order", dict[str, Any])

    def step(number: int) -> Any:
        def run(state: State) -> State:
            if number == failing:
                raise ValueError("no")
            return {f"s{number}": number, "sum": state.get("sum", 0) + number}

        return run

    for number in range(steps):
        workflow.step(step(number), id=f"s{number}")
    return workflow


@pytest.mark.parametrize("durability", ["sync", "pipelined", "exit"])
def test_the_result_is_durable_in_every_mode(world: World, durability: Any) -> None:
    run = world.bind(counting(), durability=durability).run("o", {})
    head = world.head("o")
    assert (head.checkpoint_id, head.state, head.status) == (run.checkpoint_id, run.state, Status.COMPLETED)
    assert run.state["sum"] == 190
    assert len(head.completed_steps) == 20
    count = {"sync": 21, "pipelined": 21, "exit": 2}[durability]
    assert [checkpoint.sequence for checkpoint in world.eyes.list("o", newest_first=False)] == [*range(1, count + 1)]


@pytest.mark.parametrize("durability", ["pipelined", "exit"])
def test_a_failure_is_saved_behind_all_that_was_finished(world: World, durability: Any) -> None:
    bound = world.bind(counting(failing=13), durability=durability)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    head = world.head("o")
    assert (head.status, len(head.completed_steps), head.state["sum"]) == (Status.FAILED, 13, 78)
    assert world.bind(counting(), durability=durability).run("o").state["sum"] == 190


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("left", [{"": 1}, {f"k{number}": 0 for number in range(11_000)}], ids=["name", "count"])
def test_a_queued_checkpoint_that_is_refused_for_good_fails_the_step_that_left_it(
    world: World, left: State, is_last: bool
) -> None:
    """Behind the last one that was taken, though others ran meanwhile; and it can be mended."""
    runs: list[int] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def first(state: State) -> State:
        return {"first": True}

    @workflow.step
    def broken(state: State) -> State:
        runs.append(1)
        return left if len(runs) == 1 else {"fine": 1}

    for number in range(0 if is_last else 20):

        @workflow.step(id=f"s{number}")
        def more(state: State) -> None:
            pass

    bound = world.bind(workflow, durability="pipelined")
    with pytest.raises(StepFailedError) as caught:
        bound.run("o", {}, deadline_s=1000.0)
    assert caught.value.step == "broken"
    assert isinstance(caught.value.__cause__, InvalidRequestError)
    assert not getattr(caught.value, "__notes__", ())
    head = world.head("o")
    assert (head.status, head.current_step, head.state) == (Status.FAILED, "first", {"first": True})
    assert head.completed_steps == ("first",)
    begun = next(iter(world.eyes.list("o", newest_first=False)))
    assert head.metadata["milepost"]["deadline"] == begun.metadata["milepost"]["deadline"]
    run = bound.run("o")
    assert (run.state, run.status, len(runs)) == ({"first": True, "fine": 1}, "completed", 2)


@pytest.mark.parametrize("durability", ["sync", "pipelined", "exit"])
def test_a_refused_checkpoint_names_the_steps_it_was_for(world: World, durability: Any) -> None:
    """Also where the one at fault had no checkpoint of its own; that it failed is stored, and it can be mended."""
    is_mended: list[bool] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def first(state: State) -> State:
        return {"first": True}

    @workflow.step(checkpoint=False)
    def broken(state: State) -> State:
        return {"fine": 1} if is_mended else {"": 1}

    @workflow.step
    def innocent(state: State) -> State:
        return {"innocent": True}

    @workflow.step
    def last(state: State) -> None: ...

    bound = world.bind(workflow, durability=durability)
    with pytest.raises(StepFailedError, match="'broken'") as caught:
        bound.run("o", {})
    assert isinstance(caught.value.__cause__, InvalidRequestError)
    assert caught.value.save_error is None
    # Where the state before the step that was to be saved is at hand, and is refused too, that step is not to blame.
    named = {step for step in workflow.steps if repr(step) in str(caught.value)}
    assert (
        named
        == {
            "sync": {"broken"},
            "pipelined": {"broken", "innocent"},
            "exit": {"first", "broken", "innocent"},
        }[durability]
    )
    head = world.head("o")
    assert (head.status, head.current_step) == (Status.FAILED, "" if durability == "exit" else "first")
    is_mended.append(True)
    assert bound.run("o").state == {"first": True, "fine": 1, "innocent": True}


def test_the_last_step_is_named_where_only_what_it_left_is_refused(world: World) -> None:
    """What steps before it left, without a checkpoint of their own, is stored with its failure."""
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(checkpoint=False)
    def innocent(state: State) -> State:
        return {"innocent": True}

    @workflow.step
    def broken(state: State) -> State:
        return {"": 1}

    with pytest.raises(StepFailedError, match="'broken'") as caught:
        world.bind(workflow).run("o", {})
    assert "'innocent'" not in str(caught.value)
    head = world.head("o")
    assert (head.status, head.completed_steps, head.state) == (Status.FAILED, ("innocent",), {"innocent": True})


def failing_saves(world: World, error: Exception, status: Status) -> None:
    core = world.eyes._core
    real = core.save

    def save(item: Any) -> Any:
        if item.status is status:
            raise error
        return real(item)

    core.save = save


def test_a_failure_that_cannot_be_stored_says_so(memory_world: World) -> None:
    """What the step raised is the cause as ever, and why it is not stored is beside it: the workflow may go on."""
    failing_saves(memory_world, UnavailableError("nobody is there"), Status.FAILED)
    bound = memory_world.bind(counting(failing=3), outage_limit_s=0.2)
    with pytest.raises(StepFailedError) as caught:
        bound.run("o", {})
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value.save_error, UnavailableError)
    assert "still counts as running" in caught.value.__notes__[0]
    assert isinstance(pickle.loads(pickle.dumps(caught.value)).save_error, UnavailableError)
    assert memory_world.head("o").status is Status.RUNNING
    with pytest.raises(WorkflowDeadlineError) as late:
        bound.run("p", {}, deadline_s=-1.0)
    assert isinstance(late.value.save_error, UnavailableError)


def test_a_failure_that_is_stored_by_nobody_because_the_lease_is_lost_is_no_failure(memory_world: World) -> None:
    """Whoever took over decides what becomes of the workflow."""
    failing_saves(memory_world, LeaseLostError("somebody else", workflow_id="o"), Status.FAILED)
    with pytest.raises(LeaseLostError) as caught:
        memory_world.bind(counting(failing=3)).run("o", {})
    assert isinstance(caught.value.__cause__, StepFailedError)


def test_a_step_starts_while_the_one_before_it_is_being_saved() -> None:
    """In the mode "pipelined", and `run` returns only when all are durable."""
    world = World("sync", None)
    core = world.eyes._core
    real = core.save
    started = threading.Event()
    held: list[bool] = []

    def save(item: Any) -> Any:
        if "first" in item.completed_steps:
            held.append(started.wait(10))
        return real(item)

    core.save = save
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def first(state: State) -> None:
        return None

    @workflow.step
    def second(state: State) -> None:
        started.set()

    world.bind(workflow, durability="pipelined").run("o", {})
    assert held == [True]
    assert world.head("o").status is Status.COMPLETED


def test_only_so_many_checkpoints_are_on_their_way() -> None:
    world = World("sync", None)
    core = world.eyes._core
    real = core.save
    release = threading.Event()
    ran: list[int] = []

    def save(item: Any) -> Any:
        if item.completed_steps:
            release.wait(10)
        return real(item)

    core.save = save
    workflow = Workflow("order", dict[str, Any])

    def step(number: int) -> Any:
        def run(state: State) -> None:
            ran.append(number)

        return run

    for number in range(30):
        workflow.step(step(number), id=f"s{number}")
    bound = world.bind(workflow, durability="pipelined", queue_items_max=4)
    run = threading.Thread(target=bound.run, args=("o", {}))
    run.start()
    run.join(0.3)
    assert len(ran) == 5
    release.set()
    run.join(20)
    assert len(ran) == 30


def test_nothing_is_stored_behind_a_hole(memory_world: World) -> None:
    """A queued save that fails stops the run, and what was queued behind it is not stored."""
    core = memory_world.eyes._core
    real = core.save

    def save(item: Any) -> Any:
        if "s3" in item.completed_steps:
            raise HeadMovedError("somebody else")
        return real(item)

    core.save = save
    with pytest.raises(HeadMovedError):
        memory_world.bind(counting(), durability="pipelined").run("o", {})
    assert memory_world.head("o").completed_steps == ("s0", "s1", "s2")


def test_a_queued_save_is_repeated_until_the_store_answers(memory_world: World) -> None:
    core = memory_world.eyes._core
    real = core.save
    fails = [3]

    def save(item: Any) -> Any:
        if "s3" in item.completed_steps and fails[0]:
            fails[0] -= 1
            raise UnavailableError("nobody is there")
        return real(item)

    core.save = save
    run = memory_world.bind(counting(), durability="pipelined").run("o", {})
    assert (run.state["sum"], fails) == (190, [0])
    assert memory_world.head("o").sequence == 21


@pytest.mark.parametrize("ends", ["well", "failed", "in time"])
def test_a_pipelined_run_may_go_on_while_the_store_takes_nothing(memory_world: World, ends: str) -> None:
    """With on_save_error="continue", what finds no place in the queue goes with a later one; the outcome is saved."""
    core = memory_world.eyes._core
    real = core.save
    is_full = [True]
    workflow = Workflow("order", dict[str, Any])

    def save(item: Any) -> Any:
        if item.completed_steps and is_full[0]:
            raise StoreFullError("no space left")
        return real(item)

    def step(number: int) -> Any:
        def run(state: State) -> State:
            if number == 18 and ends != "in time":
                is_full[0] = False
            if number == 19 and ends == "failed":
                raise ValueError("no")
            return {"sum": state.get("sum", 0) + number}

        return run

    core.save = save
    for number in range(20):
        workflow.step(step(number), id=f"s{number}")
    bound = memory_world.bind(
        workflow, durability="pipelined", on_save_error="continue", queue_items_max=3, outage_limit_s=0.4
    )
    if ends == "in time":
        with pytest.raises(StoreFullError):
            bound.run("o", {})
        assert memory_world.head("o").sequence == 1
        return
    if ends == "failed":
        with pytest.raises(StepFailedError):
            bound.run("o", {})
    else:
        assert bound.run("o", {}).state["sum"] == 190
    head = memory_world.head("o")
    assert head.completed_steps == tuple(f"s{number}" for number in range(20 if ends == "well" else 19))
    assert head.status is (Status.COMPLETED if ends == "well" else Status.FAILED)
    assert head.sequence < 10


def test_a_crash_in_the_middle_loses_only_what_was_not_durable(world: World) -> None:
    with crash_before_save("s7"), pytest.raises(SimulatedCrash):
        world.bind(counting(), durability="pipelined").run("o", {})
    done = world.head("o").completed_steps
    assert done == tuple(f"s{number}" for number in range(len(done)))
    assert world.bind(counting(), durability="pipelined").run("o").state["sum"] == 190
    with crash_before_save("s7"), pytest.raises(SimulatedCrash):
        world.bind(counting(), durability="exit").run("p", {})
    assert world.head("p").completed_steps == ()
    assert world.bind(counting(), durability="exit").run("p").state["sum"] == 190


def test_items_are_kept_in_a_pipelined_run_on_the_checkpoint_before_them(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])
    fails = [True]
    calls: list[int] = []

    @workflow.step
    def first(state: State) -> State:
        return {"items": [1, 2, 3]}

    @workflow.step(for_each="items", into="found")
    def item(state: State, item: int) -> int:
        calls.append(item)
        if item == 3 and fails[0]:
            raise ValueError("no")
        return item * 10

    bound = world.bind(workflow, durability="pipelined")
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    fails[0] = False
    assert bound.run("o").state["found"] == [10, 20, 30]
    assert sorted(calls) == [1, 2, 3, 3]
