"""Steps that may run once, crashes, and how somebody resolves what a run cannot decide."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from milepost.errors import StepFailedError, StepOutcomeUnknownError, WorkflowCancelledError
from milepost.runner import Retry, Workflow
from milepost.testing import SimulatedCrash, crash_after, crash_before_save
from milepost.types import Status
from tests.integration.runner.conftest import World

State = dict[str, Any]


class Payment:
    """price, charge (at most once), ship."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = False
        self.workflow = Workflow("order", dict[str, Any])
        self.workflow.step(self.price, checkpoint=False)
        self.workflow.step(self.charge, at_most_once=True)
        self.workflow.step(self.ship)

    def price(self, state: State) -> State:
        self.calls.append("price")
        return {"total": 42}

    def charge(self, state: State) -> State:
        self.calls.append("charge")
        if self.fails:
            raise OSError("connection reset")
        return {"charged": state["total"]}

    def ship(self, state: State) -> State:
        self.calls.append("ship")
        return {"shipped": True}


def test_a_crash_before_a_save_runs_the_step_again_and_one_after_does_not(world: World) -> None:
    payment = Payment()
    workflow = Workflow("plain", dict[str, Any])
    for function in (payment.price, payment.charge, payment.ship):
        workflow.step(function)
    bound = world.bind(workflow)
    with crash_before_save("charge"), pytest.raises(SimulatedCrash):
        bound.run("o", {})
    assert world.head("o").current_step == "price"
    assert world.head("o").status is Status.RUNNING
    with crash_after("charge"), pytest.raises(SimulatedCrash):
        bound.run("o")
    assert bound.run("o").status == "completed"
    assert payment.calls == ["price", "charge", "charge", "ship"]


@pytest.mark.parametrize("durability", ["sync", "pipelined", "exit"])
def test_a_step_that_may_run_once_is_not_started_again_after_a_crash(world: World, durability: Any) -> None:
    """In every durability mode all progress before it is durable before it starts."""
    payment = Payment()
    bound = world.bind(payment.workflow, durability=durability)
    # In the mode "exit" the step is first saved with the last one.
    with crash_before_save("charge"), pytest.raises(SimulatedCrash):
        bound.run("o", {})
    assert world.head("o").state == {"total": 42}
    with pytest.raises(StepOutcomeUnknownError) as caught:
        bound.run("o")
    assert caught.value.step == "charge"
    assert payment.calls.count("charge") == 1
    bound.resolve("o", "charge", "done", {"charged": 42})
    assert bound.run("o").state == {"total": 42, "charged": 42, "shipped": True}
    assert payment.calls.count("charge") == 1


def test_what_such_a_step_raises_leaves_its_outcome_unknown(world: World) -> None:
    payment = Payment()
    payment.fails = True
    bound = world.bind(payment.workflow)
    with pytest.raises(StepFailedError) as failed:
        bound.run("o", {})
    assert isinstance(failed.value.__cause__, OSError)
    assert world.head("o").status is Status.FAILED
    with pytest.raises(StepOutcomeUnknownError):
        bound.run("o")
    bound.resolve("o", "charge", "retry")
    payment.fails = False
    assert bound.run("o").status == "completed"
    assert payment.calls == ["price", "charge", "charge", "ship"]


def test_a_step_can_be_resolved_as_failed(world: World) -> None:
    payment = Payment()
    payment.fails = True
    bound = world.bind(payment.workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    bound.resolve("o", "charge", "fail")
    with pytest.raises(StepFailedError):
        bound.run("o")
    assert payment.calls == ["price", "charge"]
    bound.resolve("o", "charge", "done")
    assert bound.run("o").state == {"total": 42, "shipped": True}


def test_resolving_the_last_step_finishes_the_workflow(world: World) -> None:
    payment = Payment()
    payment.fails = True
    workflow = Workflow("order", dict[str, Any])
    workflow.step(payment.charge, at_most_once=True)
    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {"total": 1})
    bound.resolve("o", "charge", "done", {"charged": 1})
    assert world.head("o").status is Status.COMPLETED
    assert bound.run("o").state == {"total": 1, "charged": 1}


@pytest.mark.parametrize("wrong", ["ship", "price", "other"])
def test_only_an_unfinished_step_can_be_resolved(world: World, wrong: str) -> None:
    payment = Payment()
    payment.fails = True
    bound = world.bind(payment.workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    with pytest.raises(ValueError, match=wrong):
        bound.resolve("o", wrong, "done")


def test_resolving_one_branch_keeps_what_is_known_of_the_others(world: World) -> None:
    """A finished branch stays finished, and another with an unknown outcome stays unknown."""
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])
    meeting = threading.Barrier(2, timeout=10)

    def once(name: str) -> Any:
        def run(state: State) -> State:
            calls.append(name)
            meeting.wait()
            raise OSError("no")

        return run

    @workflow.step(depends_on=[])
    def fine(state: State) -> State:
        calls.append("fine")
        return {"fine": 1}

    workflow.step(once("a"), id="a", depends_on=[], at_most_once=True)
    workflow.step(once("b"), id="b", depends_on=[], at_most_once=True)
    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    bound.resolve("o", "a", "done", {"a": 1})
    with pytest.raises(StepOutcomeUnknownError) as caught:
        bound.run("o")
    assert caught.value.step == "b"
    bound.resolve("o", "b", "done", {"b": 2})
    assert bound.run("o").state == {"fine": 1, "a": 1, "b": 2}
    assert sorted(calls) == ["a", "b", "fine"]


def test_resumes_without_progress_are_counted_and_end(world: World) -> None:
    """A workflow that kills its host is not picked up for ever."""
    payment = Payment()
    workflow = Workflow("plain", dict[str, Any])
    for function in (payment.price, payment.charge, payment.ship):
        workflow.step(function)
    with crash_before_save("charge", times=99):
        with pytest.raises(SimulatedCrash):
            world.bind(workflow, crash_limit=3).run("o", {})
        for _ in range(3):
            with pytest.raises(SimulatedCrash):
                world.bind(workflow, crash_limit=3).run("o")
        for _ in range(2):
            with pytest.raises(StepFailedError) as caught:
                world.bind(workflow, crash_limit=3).run("o")
            assert caught.value.step == "charge"
    assert payment.calls.count("charge") == 4
    head = world.head("o")
    assert (head.status, head.current_step) == (Status.FAILED, "price")
    bound = world.bind(workflow, crash_limit=3)
    bound.resolve("o", "charge", "retry")
    assert bound.run("o").status == "completed"


def test_progress_starts_the_count_anew(world: World) -> None:
    payment = Payment()
    workflow = Workflow("plain", dict[str, Any])
    for function in (payment.price, payment.charge, payment.ship):
        workflow.step(function)
    bound = world.bind(workflow, crash_limit=1)
    for step in ("price", "charge"):
        with crash_after(step), pytest.raises(SimulatedCrash):
            bound.run("o", {})
    with crash_before_save("ship"), pytest.raises(SimulatedCrash):
        bound.run("o")
    with pytest.raises(StepFailedError):
        bound.run("o")


def test_a_run_that_stops_on_purpose_is_no_crash(world: World) -> None:
    workflow = Workflow("plain", dict[str, Any])
    bounds: list[Any] = []
    is_last = [False]

    @workflow.step
    def long(state: State, ctx: Any) -> None:
        if is_last[0]:
            return
        bounds[-1].runner.suspend(grace_s=0.0)
        for _ in range(2000):
            ctx.check()
            threading.Event().wait(0.005)

    for _ in range(4):
        bounds.append(world.bind(workflow, crash_limit=1))
        assert bounds[-1].run("o", {}).status == "suspended"
    is_last[0] = True
    assert world.bind(workflow, crash_limit=1).run("o").status == "completed"


def test_branches_that_finished_before_a_crash_do_not_run_again(world: World) -> None:
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])
    kept = threading.Event()
    dies = [True]

    @workflow.step(for_each="items", into="found")
    def quote(state: State, item: int) -> int:
        calls.append(str(item))
        if item == 2 and dies[0]:
            for _ in range(2000):
                if len(world.records("o", "branch:")) == 2:
                    break
                threading.Event().wait(0.005)
            dies[0] = False
            raise SimulatedCrash("killed")
        return item * 10

    bound = world.bind(workflow)
    with pytest.raises(SimulatedCrash):
        bound.run("o", {"items": [0, 1, 2]})
    assert bound.run("o").state["found"] == [0, 10, 20]
    assert sorted(calls) == ["0", "1", "2", "2"]
    assert not kept.is_set()


def test_a_cancelled_workflow_cannot_be_resolved(world: World) -> None:
    payment = Payment()
    payment.fails = True
    bound = world.bind(payment.workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    bound.cancel("o")
    with pytest.raises(ValueError, match="ended"):
        bound.resolve("o", "charge", "retry")
    with pytest.raises(WorkflowCancelledError):
        bound.run("o")


def test_a_migration_forgets_nothing_of_a_stage_in_progress(world: World) -> None:
    """Finished branches and the marks of steps that may run once go along to the checkpoint with the new state."""
    calls: list[str] = []
    fails = [True]

    def made(**options: Any) -> Workflow[State]:
        workflow = Workflow("order", dict[str, Any], **options)

        @workflow.step(depends_on=[])
        def good(state: State) -> State:
            calls.append("good")
            return {"good": 1}

        @workflow.step(depends_on=[])
        def flaky(state: State) -> State:
            calls.append("flaky")
            if fails[0]:
                raise ValueError("no")
            return {"flaky": state["version"]}

        @workflow.step(depends_on=[], at_most_once=True)
        def once(state: State) -> State:
            calls.append("once")
            raise ValueError("no")

        return workflow

    with pytest.raises(StepFailedError):
        world.bind(made()).run("o", {"version": 1})
    fails[0] = False
    newer = made(schema_version=2, migrations={1: lambda entries: entries.update(version=2)})
    for _ in range(7):
        with pytest.raises(StepOutcomeUnknownError):
            world.bind(newer, crash_limit=2).run("o")
    world.bind(newer).resolve("o", "once", "done", {"once": 1})
    assert world.bind(newer).run("o").state == {"version": 2, "good": 1, "flaky": 2, "once": 1}
    assert sorted(calls) == ["flaky", "flaky", "good", "once"]


def test_a_renamed_step_that_may_run_once_is_known_by_its_alias(world: World) -> None:
    payment = Payment()
    payment.fails = True
    with pytest.raises(StepFailedError):
        world.bind(payment.workflow).run("o", {})
    renamed = Workflow("order", dict[str, Any])
    renamed.step(payment.price, checkpoint=False)
    renamed.step(payment.charge, id="bill", aliases=["charge"], at_most_once=True)
    renamed.step(payment.ship)
    bound = world.bind(renamed, on_change="compatible")
    with pytest.raises(StepOutcomeUnknownError) as caught:
        bound.run("o")
    assert caught.value.step in {"bill", "charge"}
    bound.resolve("o", "bill", "done", {"charged": 42})
    assert bound.run("o").state == {"total": 42, "charged": 42, "shipped": True}
    assert payment.calls.count("charge") == 1


def test_a_step_of_a_child_is_resolved_in_its_scope(world: World) -> None:
    payment = Payment()
    payment.fails = True
    parent = Workflow("trip", dict[str, Any])
    attempts: list[int] = []

    @parent.step(retry=Retry(attempts=5, initial_s=0.001))
    def pay(state: State, ctx: Any) -> State:
        attempts.append(ctx.attempt)
        return {"paid": ctx.run(payment.workflow, {}).state}

    bound = world.bind(parent)
    with pytest.raises(StepFailedError):
        bound.run("t", {})
    with pytest.raises(StepFailedError) as caught:
        bound.run("t")
    unknown = caught.value.__cause__
    assert isinstance(unknown, StepOutcomeUnknownError)
    assert (unknown.step, unknown.scope) == ("charge", "pay")
    assert "resolve('t', 'charge', 'done' or 'retry' or 'fail', scope='pay')" in str(unknown)
    # Another attempt of the parent's step would find nothing else.
    assert attempts == [1, 2, 1]
    world.bind(payment.workflow).resolve("t", "charge", "done", {"charged": 42}, scope=unknown.scope)
    assert bound.run("t").state == {"paid": {"total": 42, "charged": 42, "shipped": True}}
    assert payment.calls.count("charge") == 1


def test_a_step_that_may_run_once_has_no_child_that_waits(world: World) -> None:
    child = Workflow("leg", dict[str, Any])

    @child.step(waits_for="go")
    def waits(state: State) -> None:
        return None

    parent = Workflow("trip", dict[str, Any])

    @parent.step(at_most_once=True)
    def once(state: State, ctx: Any) -> None:
        ctx.run(child, {})

    with pytest.raises(StepFailedError) as caught:
        world.bind(parent).run("t", {})
    assert "waits for a signal" in str(caught.value.__cause__)


@pytest.mark.parametrize("last", ["d", ""])
def test_items_are_resolved_one_by_one(world: World, last: str) -> None:
    """What is said of one item is not said of its neighbours, and a finished one stays finished."""
    calls: list[str] = []
    fails = [True]
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(for_each="items", into="paid", at_most_once=True, key=str)
    def pay(state: State, item: str) -> str:
        calls.append(item)
        if fails[0] and item != "a":
            raise OSError("connection reset")
        return f"paid {item}"

    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {"items": ["a", "b", "c", last]})
    for item_key, problem in (("a", "finished"), ("e", "no item 'e'")):
        with pytest.raises(ValueError, match=problem):
            bound.resolve("o", "pay", "retry", item_key=item_key)
    with pytest.raises(ValueError, match="which one"):
        bound.resolve("o", "pay", "done")
    bound.resolve("o", "pay", "done", "by hand", item_key="b")
    bound.resolve("o", "pay", "retry", item_key="c")
    fails[0] = False
    with pytest.raises(StepOutcomeUnknownError) as caught:
        bound.run("o")
    assert caught.value.item_key == last
    bound.resolve("o", "pay", "fail", item_key=last)
    bound.resolve("o", "pay", "retry", item_key="c")
    with pytest.raises(StepFailedError):
        bound.run("o")
    bound.resolve("o", "pay", "done", item_key=last)
    assert bound.run("o").state["paid"] == ["paid a", "by hand", "paid c", None]
    assert sorted(calls) == sorted(["a", "b", "c", "c", last])


def test_a_step_that_was_resolved_as_failed_is_not_run_because_another_was_resolved(world: World) -> None:
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    def raises(name: str) -> Any:
        def run(state: State) -> None:
            calls.append(name)
            raise OSError("no")

        return run

    workflow.step(raises("a"), id="a", depends_on=[])
    workflow.step(raises("b"), id="b", depends_on=[])
    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    bound.resolve("o", "a", "fail")
    bound.resolve("o", "b", "done")
    assert world.head("o").status is Status.FAILED
    with pytest.raises(StepFailedError):
        bound.run("o")
    assert sorted(calls) == ["a", "b"]
    bound.resolve("o", "a", "done")
    assert bound.run("o").status == "completed"


def test_a_resolution_that_makes_no_sense_changes_nothing(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(at_most_once=True)
    def charge(state: State) -> State:
        raise OSError("no")

    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    with pytest.raises(ValueError, match="'retry', 'done', 'fail', not as 'skip'"):
        bound.resolve("o", "charge", "skip")
    with pytest.raises(TypeError, match="what step 'charge' left is a mapping"):
        bound.resolve("o", "charge", "done", "paid")
    with pytest.raises(StepOutcomeUnknownError):
        bound.run("o")
