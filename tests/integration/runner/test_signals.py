"""Waiting for signals, cancelling, suspending."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from milepost.errors import WorkflowCancelledError, WorkflowNotFoundError
from milepost.runner import Workflow
from milepost.types import Status
from tests.integration.runner.conftest import Bound, World

State = dict[str, Any]


class Approval:
    """A workflow that waits for a signal in its middle."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.workflow = Workflow("order", dict[str, Any])
        self.workflow.step(self.ask)
        self.workflow.step(self.decide, waits_for="approval")
        self.workflow.step(self.ship)

    def ask(self, state: State) -> State:
        self.calls.append("ask")
        return {"asked": True}

    def decide(self, state: State, ctx: Any) -> State:
        self.calls.append("decide")
        return {"approved": ctx.signal}

    def ship(self, state: State) -> State:
        self.calls.append("ship")
        return {"shipped": True}


def test_a_workflow_waits_for_a_signal_and_goes_on_with_its_value(world: World) -> None:
    """Nothing runs again, the lease is free meanwhile, and the signal is consumed once."""
    approval = Approval()
    bound = world.bind(approval.workflow)
    run = bound.run("o", {})
    assert (run.status, run.waiting_for, run.state) == ("waiting", "approval", {"asked": True})
    info = bound.status("o")
    assert (info.status, info.lease) == (Status.WAITING, None)
    before = world.head("o").sequence
    assert bound.run("o").status == "waiting"
    assert world.head("o").sequence == before
    bound.signal("o", "approval", {"by": "ann"})
    run = bound.run("o")
    assert (run.status, run.state["approved"]) == ("completed", {"by": "ann"})
    assert approval.calls == ["ask", "decide", "ship"]
    assert bound.status("o").pending_signal_count == 0


def test_a_signal_that_came_early_is_waited_for_no_more(world: World) -> None:
    approval = Approval()
    bound = world.bind(approval.workflow)

    def ask(state: State) -> None:
        world.eyes.send_signal("o", "approval", "early")

    early = Workflow("order", dict[str, Any])
    early.step(ask)
    early.step(approval.decide, waits_for="approval")
    bound = world.bind(early)
    assert bound.run("o", {}).state == {"approved": "early"}


def test_everything_else_that_can_run_runs_before_a_wait(world: World) -> None:
    """So what the waiting step is given never depends on when the signal came."""
    approval = Approval()
    workflow = Workflow("order", dict[str, Any])
    workflow.step(approval.decide, waits_for="approval", depends_on=[])
    workflow.step(approval.ask, depends_on=[])
    workflow.step(approval.ship, depends_on=["ask"])
    bound = world.bind(workflow)
    bound.run("o", {})
    assert approval.calls == ["ask", "ship"]
    bound.signal("o", "approval", 1)
    assert bound.run("o").state == {"asked": True, "shipped": True, "approved": 1}


def test_a_child_that_waits_makes_its_parent_wait(world: World) -> None:
    approval = Approval()
    calls: list[str] = []
    parent = Workflow("trip", dict[str, Any])

    @parent.step
    def leg(state: State, ctx: Any) -> State:
        calls.append("leg")
        return {"leg": ctx.run(approval.workflow, {}).state}

    bound = world.bind(parent)
    run = bound.run("t", {})
    assert (run.status, run.waiting_for) == ("waiting", "approval")
    assert bound.run("t").status == "waiting"
    assert calls == ["leg"]
    bound.signal("t", "approval", True)
    assert bound.run("t").state["leg"]["approved"] is True
    assert approval.calls == ["ask", "decide", "ship"]


def test_a_workflow_that_nobody_runs_is_cancelled_at_once(world: World) -> None:
    approval = Approval()
    bound = world.bind(approval.workflow)
    with pytest.raises(WorkflowNotFoundError):
        bound.cancel("o")
    bound.run("o", {})
    bound.cancel("o")
    assert world.head("o").status is Status.CANCELLED
    assert bound.status("o").pending_signal_count == 0
    with pytest.raises(WorkflowCancelledError):
        bound.run("o")


@pytest.mark.parametrize("how", ["completed", "cancelled"])
def test_cancelling_a_workflow_that_has_ended_leaves_no_signal(world: World, how: str) -> None:
    approval = Approval()
    bound = world.bind(approval.workflow)
    bound.run("o", {})
    if how == "cancelled":
        bound.cancel("o")
    else:
        bound.signal("o", "approval", True)
        bound.run("o")
    before = bound.status("o")
    bound.cancel("o")
    after = bound.status("o")
    assert (after.status, after.head_checkpoint_id) == (Status(how), before.head_checkpoint_id)
    assert after.pending_signal_count == 0


def test_a_run_is_cancelled_between_two_steps(world: World) -> None:
    """The run sees it in the answer of its next save."""
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def one(state: State) -> State:
        calls.append("one")
        world.eyes.send_signal("o", "milepost.cancel")
        return {"one": 1}

    @workflow.step
    def two(state: State) -> None:
        calls.append("two")

    with pytest.raises(WorkflowCancelledError):
        world.bind(workflow).run("o", {})
    assert calls == ["one"]
    head = world.head("o")
    assert (head.status, head.state, head.completed_steps) == (Status.CANCELLED, {"one": 1}, ("one",))


def test_a_step_that_runs_hears_of_a_cancel_by_the_heartbeat(world: World) -> None:
    started = threading.Event()
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(timeout_s=60)
    def slow(state: State, ctx: Any) -> None:
        started.set()
        for _ in range(2000):
            ctx.check()
            time.sleep(0.005)

    def cancel() -> None:
        assert started.wait(10)
        world.eyes.send_signal("o", "milepost.cancel")

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(WorkflowCancelledError):
        world.bind(workflow, lease_ttl_s=1.0).run("o", {})
    other.join()
    assert world.head("o").status is Status.CANCELLED


def test_runs_of_a_suspended_runner_stop_at_the_next_boundary(world: World) -> None:
    """What is finished is saved, the lease is given back, the workflow stays RUNNING for somebody else."""
    calls: list[str] = []
    bounds: list[Bound] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def one(state: State) -> State:
        calls.append("one")
        bounds[0].runner.suspend()
        return {"one": 1}

    @workflow.step
    def two(state: State) -> None:
        calls.append("two")

    bounds.append(world.bind(workflow))
    run = bounds[0].run("o", {})
    assert (run.status, run.state, calls) == ("suspended", {"one": 1}, ["one"])
    info = bounds[0].status("o")
    assert (info.status, info.lease) == (Status.RUNNING, None)
    assert world.bind(workflow).run("o").status == "completed"
    assert calls == ["one", "two"]


def test_a_run_of_a_runner_that_was_suspended_begins_no_step(world: World) -> None:
    """It stores its input, and somebody else may go on from there."""
    workflow = Workflow("order", dict[str, Any])
    calls: list[str] = []

    @workflow.step
    def only(state: State) -> None:
        calls.append("only")

    bound = world.bind(workflow)
    bound.runner.suspend()
    assert (bound.run("o", {}).status, calls) == ("suspended", [])
    assert world.bind(workflow).run("o").status == "completed"


def test_steps_that_take_too_long_to_suspend_are_cancelled(world: World) -> None:
    started = threading.Event()
    attempts: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def slow(state: State, ctx: Any) -> None:
        attempts.append(ctx.idempotency_key)
        if len(attempts) > 1:
            return
        started.set()
        for _ in range(2000):
            ctx.check()
            time.sleep(0.005)

    bound = world.bind(workflow)

    def suspend() -> None:
        assert started.wait(10)
        bound.runner.suspend(grace_s=0.05)

    other = threading.Thread(target=suspend)
    other.start()
    assert bound.run("o", {}).status == "suspended"
    other.join()
    assert world.bind(workflow).run("o").status == "completed"
    assert len(set(attempts)) == 1


async def test_cancelling_the_task_of_a_run_gives_its_lease_back() -> None:
    """Nothing more is saved, the step is cancelled, and the workflow stays RUNNING."""
    world = World("async", None)
    started = asyncio.Event()
    ended: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    async def slow(state: State) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    task = asyncio.get_running_loop().create_task(world.bind(workflow).runner.run("o", {}))  # type: ignore[arg-type]
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cancelled"]
    assert world.eyes.workflow("o").lease is None
    assert world.head("o").status is Status.RUNNING


def test_an_interrupt_gives_the_lease_back() -> None:
    world = World("sync", None)
    workflow = Workflow("order", dict[str, Any])
    is_first = [True]

    @workflow.step
    def slow(state: State) -> State:
        if is_first.pop() if is_first else False:
            raise KeyboardInterrupt
        return {"done": True}

    bound = world.bind(workflow)
    with pytest.raises(KeyboardInterrupt):
        bound.run("o", {})
    assert world.eyes.workflow("o").lease is None
    assert world.steps("o") == [("", "running")]
    assert bound.run("o").state == {"done": True}


def test_a_child_in_progress_is_suspended_with_its_parent(world: World) -> None:
    """The parent's step does not take half a child for a whole one."""
    calls: list[str] = []
    bounds: list[Bound] = []
    child = Workflow("leg", dict[str, Any])

    @child.step
    def book(state: State) -> State:
        calls.append("book")
        if len(calls) == 2:
            bounds[0].runner.suspend()
        return {"booked": True}

    @child.step
    def pay(state: State) -> State:
        calls.append("pay")
        return {"paid": True}

    parent = Workflow("trip", dict[str, Any])

    @parent.step
    def leg(state: State, ctx: Any) -> State:
        calls.append("leg")
        return {"leg": ctx.run(child, {}).state}

    bounds.append(world.bind(parent))
    assert bounds[0].run("t", {}).status == "suspended"
    assert (calls, world.head("t").state) == (["leg", "book"], {})
    assert world.bind(parent).run("t").state == {"leg": {"booked": True, "paid": True}}
    assert calls == ["leg", "book", "leg", "pay"]


def test_a_workflow_is_cancelled_by_a_host_with_another_definition(world: World) -> None:
    """Its state and the definition it was started under stay as they are."""
    approval = Approval()
    bound = world.bind(approval.workflow)
    bound.run("o", {})
    before = world.head("o")
    newer = Workflow("order", dict[str, Any], schema_version=2, migrations={1: lambda entries: {"other": 1}})
    newer.step(approval.ship)
    world.bind(newer).cancel("o")
    head = world.head("o")
    assert (head.status, head.state, head.fingerprint) == (Status.CANCELLED, before.state, before.fingerprint)


def test_a_cancel_is_found_behind_many_other_signals(world: World) -> None:
    approval = Approval()
    bound = world.bind(approval.workflow)
    bound.run("o", {})
    for number in range(101):
        bound.signal("o", "noise", number)
    world.eyes.send_signal("o", "milepost.cancel")
    with pytest.raises(WorkflowCancelledError):
        bound.run("o")
    assert world.head("o").status is Status.CANCELLED


def test_two_steps_that_wait_for_one_name_take_a_signal_each(world: World) -> None:
    taken: list[tuple[str, object]] = []
    workflow = Workflow("order", dict[str, Any])

    def waits(name: str) -> Any:
        def run(state: State, ctx: Any) -> None:
            taken.append((name, ctx.signal))

        return run

    workflow.step(waits("a"), id="a", depends_on=[], waits_for="go")
    workflow.step(waits("b"), id="b", depends_on=[], waits_for="go")
    bound = world.bind(workflow)
    bound.run("o", {})
    bound.signal("o", "go", 1)
    assert bound.run("o").status == "waiting"
    bound.signal("o", "go", 2)
    assert bound.run("o").status == "completed"
    assert taken == [("a", 1), ("b", 2)]


def test_a_signal_that_comes_while_waiting_is_saved_is_not_missed(memory_world: World) -> None:
    """WAITING and the release of the lease are one commit; what is pending in its answer is looked at."""
    approval = Approval()
    core = memory_world.eyes._core
    real = core.save

    def save(item: Any) -> Any:
        if item.status is Status.WAITING:
            core.save = real
            core.send_signal("o", "approval", "just now", signal_id="s1")
        return real(item)

    core.save = save
    run = memory_world.bind(approval.workflow).run("o", {})
    assert (run.status, run.state["approved"]) == ("completed", "just now")


def test_a_step_in_the_callers_thread_hears_of_a_cancel(world: World) -> None:
    """It keeps the engine from hearing anything, so its context is told by the heartbeat itself."""
    workflow = Workflow("order", dict[str, Any])
    started = threading.Event()

    @workflow.step
    def slow(state: State, ctx: Any) -> None:
        started.set()
        for _ in range(2000):
            ctx.check()
            time.sleep(0.005)

    def cancel() -> None:
        assert started.wait(10)
        world.eyes.send_signal("o", "milepost.cancel")

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(WorkflowCancelledError):
        world.bind(workflow, lease_ttl_s=1.0).run("o", {})
    other.join()
