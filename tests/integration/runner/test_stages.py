"""Steps and items side by side, loops, and children."""

from __future__ import annotations

import random
import string
import threading
from typing import Any

import pytest

from milepost.errors import (
    InputMismatchError,
    LimitExceededError,
    StateConflictError,
    StepFailedError,
    StepOutcomeUnknownError,
)
from milepost.runner import Workflow, add, append
from milepost.testing import SimulatedCrash, crash_after, crash_before_save
from milepost.types import Status
from tests.integration.runner.conftest import World

State = dict[str, Any]


def test_steps_that_are_ready_together_run_side_by_side_on_one_snapshot(world: World) -> None:
    """Both are in progress at once, neither sees what the other did, and one checkpoint has the effects of both."""
    meeting = threading.Barrier(2, timeout=10)
    workflow = Workflow("order", dict[str, Any], reducers={"log": append, "sum": add})

    @workflow.step
    def first(state: State) -> State:
        return {"log": ["first"], "sum": 1}

    @workflow.step(depends_on=["first"])
    def left(state: State) -> None:
        assert state["log"] == ["first"]
        meeting.wait()
        state["log"].append("left")
        state["sum"] += 10
        state["left"] = True

    @workflow.step(depends_on=["first"])
    def right(state: State) -> None:
        assert state["log"] == ["first"]
        meeting.wait()
        state["log"].append("right")
        state["sum"] += 100
        state["right"] = True

    @workflow.step(depends_on=["left", "right"])
    def last(state: State) -> State:
        return {"seen": list(state["log"])}

    run = world.bind(workflow).run("o", {})
    assert run.state == {
        "log": ["first", "left", "right"],
        "sum": 111,
        "left": True,
        "right": True,
        "seen": ["first", "left", "right"],
    }
    assert [step for step, _ in world.steps("o")] == ["", "first", "right", "last"]
    assert world.head("o").completed_steps == ("first", "left", "right", "last")


def test_branches_that_disagree_fail_the_stage_and_run_once(world: World) -> None:
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    def branch(name: str) -> Any:
        def run(state: State) -> State:
            calls.append(name)
            return {"winner": name}

        return run

    workflow.step(branch("a"), id="a", depends_on=[])
    workflow.step(branch("b"), id="b", depends_on=[])
    bound = world.bind(workflow)
    for _ in range(2):
        with pytest.raises(StepFailedError) as caught:
            bound.run("o", {})
        cause = caught.value.__cause__
        assert isinstance(cause, StateConflictError)
        assert (cause.entry, cause.steps) == ("winner", ("a", "b"))
    assert sorted(calls) == ["a", "b"]


@pytest.mark.parametrize("siblings", ["finish", "cancel"])
def test_a_finished_branch_is_not_repeated_when_its_sibling_failed(world: World, siblings: Any) -> None:
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any], siblings=siblings)
    is_done = threading.Event()
    fails = [True]

    @workflow.step(depends_on=[])
    def good(state: State) -> State:
        calls.append("good")
        is_done.set()
        return {"good": 1}

    @workflow.step(depends_on=[])
    def bad(state: State) -> State:
        assert is_done.wait(10)
        calls.append("bad")
        if fails[0]:
            raise ValueError("no")
        return {"bad": 1}

    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    head = world.head("o")
    assert (head.status, head.state, head.completed_steps) == (Status.FAILED, {}, ())
    assert [record.name for record in world.records("o", "branch:")] == ["good"]
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    assert [record.name for record in world.records("o", "branch:")] == ["good"]
    fails[0] = False
    assert bound.run("o").state == {"good": 1, "bad": 1}
    assert calls == ["good", "bad", "bad", "bad"]


def test_siblings_of_a_failed_branch_are_cancelled_where_asked(world: World) -> None:
    """The sibling sees it in its context, ends, and nothing of it is kept."""
    seen: list[bool] = []
    workflow = Workflow("order", dict[str, Any], siblings="cancel")
    runs = threading.Event()

    @workflow.step(depends_on=[])
    def slow(state: State, ctx: Any) -> State:
        runs.set()
        for _ in range(1000):
            if ctx.cancelled:
                seen.append(True)
                ctx.check()
            threading.Event().wait(0.01)
        return {"slow": 1}

    @workflow.step(depends_on=[])
    def bad(state: State) -> None:
        assert runs.wait(10)
        raise ValueError("no")

    with pytest.raises(StepFailedError) as caught:
        world.bind(workflow).run("o", {})
    assert (caught.value.step, seen) == ("bad", [True])
    assert world.records("o", "branch:") == []


def test_several_failures_are_a_group_in_order_of_declaration(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(depends_on=[])
    def a(state: State) -> None:
        raise ValueError("a")

    @workflow.step(depends_on=[])
    def b(state: State) -> None:
        raise KeyError("b")

    with pytest.raises(StepFailedError) as caught:
        world.bind(workflow).run("o", {})
    cause = caught.value.__cause__
    assert isinstance(cause, BaseExceptionGroup)
    assert [type(one) for one in cause.exceptions] == [ValueError, KeyError]
    assert caught.value.step == "a"
    assert str(caught.value).endswith("failed, tried once: ValueError, and 1 beside it")


def test_a_step_runs_for_each_item_and_its_results_keep_the_order(world: World) -> None:
    """Bounded by max_concurrency; only what failed runs again."""
    running, most = [0], [0]
    lock = threading.Lock()
    fails = {"c"}
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(for_each="items", into="quotes", key=lambda item: item["id"])
    def quote(state: State, item: State, ctx: Any) -> Any:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            calls.append(item["id"])
        threading.Event().wait(0.005)
        with lock:
            running[0] -= 1
        if item["id"] in fails:
            raise ValueError("no")
        return {"id": ctx.item_key, "price": (item["n"], 1)}

    items = [{"id": one, "n": number} for number, one in enumerate("abcdef")]
    bound = world.bind(workflow, max_concurrency=2)
    with pytest.raises(StepFailedError):
        bound.run("o", {"items": items})
    assert len(world.records("o", "branch:")) == 5
    fails.clear()
    run = bound.run("o")
    assert run.state["quotes"] == [{"id": one, "price": (number, 1)} for number, one in enumerate("abcdef")]
    assert (sorted(calls), most[0]) == (["a", "b", "c", "c", "d", "e", "f"], 2)


def test_no_items_make_an_empty_list(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(for_each="items", into="quotes")
    def quote(state: State, item: Any) -> Any:
        raise AssertionError("there is no item")

    assert world.bind(workflow).run("o", {"items": []}).state == {"items": [], "quotes": []}


def test_items_that_are_no_list_fail_the_step(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(for_each="items", into="quotes")
    def quote(state: State, item: Any) -> Any:
        return item

    with pytest.raises(StepFailedError) as caught:
        world.bind(workflow).run("o", {"items": "abc"})
    assert isinstance(caught.value.__cause__, TypeError)
    assert world.head("o").status is Status.FAILED


def test_a_step_repeats_while_its_predicate_holds_and_resumes_in_its_turn(world: World) -> None:
    """Each turn is a checkpoint, with an idempotency key of its own."""
    keys: list[str] = []
    fails = [3]
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(repeat_while=lambda state: state["n"] < 5)
    def count(state: State, ctx: Any) -> None:
        keys.append(ctx.idempotency_key)
        if state["n"] + 1 == fails[0]:
            fails[0] = 0
            raise ValueError("no")
        state["n"] += 1
        state["turn"] = ctx.iteration

    @workflow.step
    def after(state: State) -> State:
        return {"after": state["n"]}

    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {"n": 0})
    assert world.head("o").metadata["milepost"]["iterations"] == {"count": 2}
    assert bound.run("o").state == {"n": 5, "turn": 5, "after": 5}
    assert len(keys) == 6
    assert len(set(keys)) == 5
    assert world.head("o").completed_steps == ("count", "after")
    assert "iterations" not in world.head("o").metadata["milepost"]


def test_a_loop_has_an_end(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(repeat_while=lambda state: True, max_iterations=3)
    def spin(state: State) -> None:
        state["n"] += 1

    with pytest.raises(StepFailedError):
        world.bind(workflow).run("o", {"n": 0})
    assert world.head("o").state == {"n": 2}


def test_a_child_runs_in_a_scope_of_its_own_and_is_resumed_there(world: World) -> None:
    calls: list[str] = []
    fails = [True]
    child = Workflow("leg", dict[str, Any])

    @child.step
    def book(state: State) -> State:
        calls.append("book")
        return {"booked": state["to"]}

    @child.step
    def pay(state: State) -> State:
        calls.append("pay")
        if fails[0]:
            raise ValueError("no")
        return {"paid": True}

    parent = Workflow("trip", dict[str, Any])

    @parent.step(children=[child])
    def legs(state: State, ctx: Any) -> State:
        found = ctx.run(child, {"to": "Rome"})
        return {"leg": found.state}

    bound = world.bind(parent)
    with pytest.raises(StepFailedError) as caught:
        bound.run("t", {})
    assert isinstance(caught.value.__cause__, StepFailedError)
    assert caught.value.__cause__.scope == "legs"
    fails[0] = False
    assert bound.run("t").state == {"leg": {"to": "Rome", "booked": "Rome", "paid": True}}
    assert calls == ["book", "pay", "pay"]
    assert world.head("t", scope="legs").status is Status.COMPLETED
    assert bound.status("t").status is Status.COMPLETED
    steps = [checkpoint.current_step for checkpoint in bound.history("t", scope="legs", newest_first=False)]
    assert steps == ["", "book", "book", "pay"]


def test_a_finished_child_returns_its_stored_result(world: World) -> None:
    """When the step that ran it runs again; with another input that would be wrong, and is refused."""
    calls: list[str] = []
    inputs = [{"n": 1}, {"n": 1}, {"n": 2}]
    child = Workflow("leg", dict[str, Any])

    @child.step
    def book(state: State) -> State:
        calls.append("book")
        return {"done": True}

    parent = Workflow("trip", dict[str, Any])

    @parent.step
    def legs(state: State, ctx: Any) -> State:
        ctx.run(child, inputs.pop(0))
        raise ValueError("after the child")

    bound = world.bind(parent)
    for cause in (ValueError, ValueError, InputMismatchError):
        with pytest.raises(StepFailedError) as caught:
            bound.run("t", {})
        assert isinstance(caught.value.__cause__, cause)
    assert calls == ["book"]


def test_children_of_items_and_second_children_have_scopes_of_their_own(world: World) -> None:
    child = Workflow("leg", dict[str, Any])

    @child.step
    def double(state: State) -> None:
        state["n"] *= 2

    parent = Workflow("trip", dict[str, Any])

    @parent.step(for_each="items", into="found")
    def legs(state: State, item: int, ctx: Any) -> Any:
        once = ctx.run(child, {"n": item}).state
        return ctx.run(child, once).state["n"]

    assert world.bind(parent).run("t", {"items": [1, 2, 3]}).state["found"] == [4, 8, 12]
    scopes = {checkpoint.scope for checkpoint in world.eyes.list("t", scope=None)}
    assert scopes == {"", "legs[0]", "legs[1]", "legs[2]", "legs[0]:2", "legs[1]:2", "legs[2]:2"}


def test_more_items_than_can_be_kept_are_refused_before_any_runs(memory_world: World) -> None:
    workflow = Workflow("order", dict[str, Any])
    calls: list[int] = []

    @workflow.step(for_each="items", into="found")
    def item(state: State, item: int) -> int:
        calls.append(item)
        return item

    with pytest.raises(StepFailedError) as caught:
        memory_world.bind(workflow).run("o", {"items": [*range(9_001)]})
    assert isinstance(caught.value.__cause__, ValueError)
    assert calls == []
    assert memory_world.head("o").status is Status.FAILED


def test_what_a_changed_definition_has_begun_belongs_to_it(world: World) -> None:
    """A branch kept beside a checkpoint of the definition before would look as if that one had begun it."""
    calls: list[str] = []

    def deployed(version: int) -> Workflow[Any]:
        workflow = Workflow("order", dict[str, Any])
        for step_id, depends_on in (("first", []), ("left", ["first"]), ("right", ["first"])):

            def step(state: State, *, step_id: str = step_id) -> State:
                calls.append(step_id)
                return {step_id: version}

            workflow.step(step, id=step_id, depends_on=depends_on, version=version if step_id == "left" else 1)
        return workflow

    with crash_after("first"), pytest.raises(SimulatedCrash):
        world.bind(deployed(1), on_change="compatible").run("o", {})
    with crash_before_save("right"), pytest.raises(SimulatedCrash):
        world.bind(deployed(2), on_change="compatible", max_concurrency=1).run("o")
    assert [record.name for record in world.records("o", "branch:")] == ["left"]
    assert world.bind(deployed(2)).run("o").state == {"first": 1, "left": 2, "right": 2}
    assert calls == ["first", "left", "right", "right"]


@pytest.mark.slow
def test_results_that_cannot_be_kept_do_not_run_again_unasked(world: World) -> None:
    """Beside one checkpoint there is room for 16 MiB of records; what ran and found none is said so."""
    workflow = Workflow("order", dict[str, Any])
    calls: list[int] = []
    size = [3_500_000]

    @workflow.step(for_each="items", into="found")
    def item(state: State, item: int) -> str:
        calls.append(item)
        return "".join(random.Random(item).choices(string.ascii_letters, k=size[0]))

    bound = world.bind(workflow, max_concurrency=1)
    with pytest.raises(StepFailedError) as caught:
        bound.run("o", {"items": [*range(9)]})
    # The one after it had been started already.
    causes = getattr(caught.value.__cause__, "exceptions", [caught.value.__cause__])
    assert {type(cause) for cause in causes} == {LimitExceededError}
    assert len(calls) < 9
    assert world.head("o").status is Status.FAILED
    before = [*calls]
    with pytest.raises(StepFailedError, match="resolve"):
        bound.run("o")
    assert calls == before
    size[0] = 10
    bound.resolve("o", "item", "retry")
    assert len(bound.run("o").state["found"]) == 9


def test_many_items_finish_in_reasonable_time(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(for_each="items", into="found")
    def item(state: State, item: int) -> int:
        return item * 2

    run = world.bind(workflow, max_concurrency=16).run("o", {"items": [*range(300)]})
    assert run.state["found"] == [*range(0, 600, 2)]


def test_a_fork_takes_along_nothing_that_happened_after_its_checkpoint(world: World) -> None:
    """Finished branches and marks of steps that may run once belong to the workflow that made them."""
    calls: list[str] = []
    fails = [True]
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(depends_on=[])
    def good(state: State) -> State:
        calls.append("good")
        return {"good": 1}

    @workflow.step(depends_on=[], at_most_once=True)
    def bad(state: State) -> State:
        calls.append("bad")
        if fails[0]:
            raise ValueError("no")
        return {"bad": 1}

    bound = world.bind(workflow)
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    fails[0] = False
    bound.fork("o", "o2")
    assert bound.resume("o2").state == {"good": 1, "bad": 1}
    assert sorted(calls) == ["bad", "bad", "good", "good"]


def test_a_fork_of_a_workflow_in_the_middle_of_a_stage_keeps_marks_of_its_own(world: World) -> None:
    """In place of those of its origin: its finished branches do not run again, and no mark of another stands."""
    calls: list[str] = []
    fails: list[bool] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(for_each="items", into="found")
    def item(state: State, item: int, ctx: Any) -> int:
        calls.append(f"{ctx.workflow_id} {item}")
        if item == 2 and fails:
            raise SimulatedCrash("the host dies")
        return item

    @workflow.step(at_most_once=True)
    def charge(state: State) -> State:
        return {"paid": True}

    bound = world.bind(workflow, max_concurrency=1)
    fails.append(True)
    with pytest.raises(SimulatedCrash):
        bound.run("o", {"items": [0, 1, 2]})
    bound.fork("o", "o2")
    with pytest.raises(SimulatedCrash):
        bound.run("o2")
    fails.clear()
    with pytest.raises(SimulatedCrash), crash_before_save("charge"):
        bound.run("o2")
    assert calls.count("o2 0") == calls.count("o2 1") == 1
    with pytest.raises(StepOutcomeUnknownError):
        bound.run("o2")
    bound.fork("o2", "o3")
    assert bound.run("o3").state["paid"] is True
    assert "o3 0" not in calls


@pytest.mark.parametrize("key", [None, str])
@pytest.mark.parametrize(
    "state, problem", [({}, "which the state does not have"), ({"items": 3}, "which is int, no list")]
)
def test_items_that_are_no_list_fail_their_step(memory_world: World, key: Any, state: State, problem: str) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(for_each="items", into="found", key=key)
    def item(state: State, item: Any) -> None: ...

    with pytest.raises(StepFailedError) as caught:
        memory_world.bind(workflow).run("o", state)
    assert problem in str(caught.value.__cause__)
    assert memory_world.head("o").status is Status.FAILED
