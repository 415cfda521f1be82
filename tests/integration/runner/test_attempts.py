"""Retries, timeouts, deadlines: how often a step is called, and that no two of its attempts live at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from milepost.errors import StepFailedError, StepTimeoutError, WorkflowDeadlineError
from milepost.runner import Retry, Workflow
from milepost.runner.settings import Environment
from milepost.testing import FakeClock, bind_to_clock
from milepost.types import Status
from tests.integration.runner.conftest import Bound, World

State = dict[str, Any]


def test_a_failed_step_is_tried_again_after_its_pauses(memory_world: World) -> None:
    clock = FakeClock()
    times: list[float] = []
    keys: set[str] = set()
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(retry=Retry(attempts=4, initial_s=10, factor=3, max_s=60))
    def flaky(state: State, ctx: Any) -> State:
        times.append(clock.monotonic())
        keys.add(ctx.idempotency_key)
        state["trace"] = "of a failed attempt"
        if ctx.attempt < 4:
            raise OSError("no")
        return {"attempt": ctx.attempt}

    run = Bound(bind_to_clock(workflow, memory_world.store, clock, lease_ttl_s=3600)).run("o", {})
    assert run.state == {"attempt": 4, "trace": "of a failed attempt"}
    assert times == [0, 10, 40, 100]
    assert len(keys) == 1


def test_what_is_not_worth_it_is_not_tried_again(memory_world: World) -> None:
    calls: list[int] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(retry=Retry(attempts=3, on=(OSError,), give_up_on=(PermissionError,)))
    def fails(state: State) -> None:
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(StepFailedError):
        memory_world.bind(workflow).run("o", {})
    assert len(calls) == 1


def test_the_attempts_that_failed_are_counted_in_the_error(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(retry=Retry(attempts=3, initial_s=0.001))
    def fails(state: State) -> None:
        raise OSError("no")

    with pytest.raises(StepFailedError) as caught:
        world.bind(workflow).run("o", {})
    assert caught.value.attempts == 3
    (record,) = world.records("o", "failure:")
    assert (record.value["type"], record.value["attempts"]) == ("OSError", 3)


def test_no_attempt_starts_while_the_one_before_it_lives(memory_world: World) -> None:
    """A thread cannot be stopped: after a timeout the next attempt waits until it has ended."""
    alive, most = [0], [0]
    lock = threading.Lock()
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(timeout_s=0.05, retry=Retry(attempts=3, initial_s=0.0))
    def slow(state: State, ctx: Any) -> State:
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        if ctx.attempt < 3:
            time.sleep(0.2)
            assert ctx.cancelled
        with lock:
            alive[0] -= 1
        return {"attempt": ctx.attempt}

    assert memory_world.bind(workflow).run("o", {}).state == {"attempt": 3}
    assert most[0] == 1


def test_a_step_that_times_out_fails_though_it_returns_later(world: World) -> None:
    """Its result is discarded."""
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(timeout_s=0.05)
    def slow(state: State) -> State:
        time.sleep(0.15)
        return {"late": True}

    with pytest.raises(StepTimeoutError) as caught:
        world.bind(workflow).run("o", {})
    assert (caught.value.abandoned, caught.value.timeout_s, caught.value.step) == (False, 0.05, "slow")
    assert world.head("o").state == {}


def test_a_step_that_does_not_end_is_abandoned(world: World) -> None:
    """The run ends without it, and says that it may still be running."""
    release = threading.Event()
    calls: list[int] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(timeout_s=0.05, retry=Retry(attempts=3, initial_s=0.0))
    def hangs(state: State) -> None:
        calls.append(1)
        release.wait(20)

    try:
        with pytest.raises(StepTimeoutError) as caught:
            world.bind(workflow, grace_s=0.1).run("o", {})
    finally:
        release.set()
    assert (caught.value.abandoned, len(calls)) == (True, 1)
    assert world.head("o").status is Status.FAILED
    assert world.records("o", "failure:")[0].value["kind"] == "abandoned"


def test_a_workflow_has_a_deadline_that_outlives_a_resume(memory_world: World) -> None:
    clock = FakeClock()
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def one(state: State, ctx: Any) -> None:
        calls.append("one")
        assert ctx.deadline == clock.now().timestamp() + 100
        clock.advance(60)

    @workflow.step
    def two(state: State, ctx: Any) -> None:
        calls.append("two")
        clock.advance(60)
        assert ctx.cancelled

    @workflow.step
    def three(state: State) -> None:
        calls.append("three")

    bound = Bound(bind_to_clock(workflow, memory_world.store, clock, lease_ttl_s=3600))
    with pytest.raises(WorkflowDeadlineError) as caught:
        bound.run("o", {}, deadline_s=100)
    assert (caught.value.step, calls) == ("three", ["one", "two"])
    assert memory_world.head("o").status is Status.FAILED
    with pytest.raises(WorkflowDeadlineError):
        bound.run("o")
    assert calls == ["one", "two"]
    assert bound.run("o", deadline_s=100).status == "completed"
    assert calls == ["one", "two", "three"]


def test_a_deadline_ends_a_step_that_runs(world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(timeout_s=60)
    def slow(state: State, ctx: Any) -> None:
        for _ in range(1000):
            ctx.check()
            time.sleep(0.01)

    started = time.monotonic()
    with pytest.raises(WorkflowDeadlineError):
        world.bind(workflow).run("o", {}, deadline_s=0.2)
    assert time.monotonic() - started < 5


def test_steps_without_a_timeout_run_in_the_callers_thread() -> None:
    """So that thread-locals, sqlite3 and debuggers work."""
    world = World("sync", None)
    threads: list[int] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def plain(state: State) -> None:
        threads.append(threading.get_ident())

    @workflow.step(timeout_s=60)
    def timed(state: State) -> None:
        threads.append(threading.get_ident())

    world.bind(workflow).run("o", {})
    assert threads[0] == threading.get_ident() != threads[1]


@pytest.mark.parametrize(
    "options",
    [
        {"deadline_s": float("nan")},
        {"deadline_s": float("inf")},
        {"deadline_s": "60"},
        {"lease_wait_s": float("nan")},
        {"lease_wait_s": "60"},
    ],
)
def test_times_are_numbers_and_a_deadline_is_finite(memory_world: World, options: dict[str, Any]) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def never(state: State) -> None:
        raise AssertionError

    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        memory_world.bind(workflow).run("o", {}, **options)


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_deadline_given_or_passed_while_a_workflow_waits_counts(memory_world: World, is_nested: bool) -> None:
    """It is stored with the wait, and whoever resumes after it has passed hears of it."""
    now = [1_000_000.0]
    workflow = Workflow("order", dict[str, Any])

    def decide(state: State) -> None:
        raise AssertionError

    if is_nested:
        child = Workflow("child", dict[str, Any])
        child.step(decide, waits_for="go")

        @workflow.step(id="decide")
        def nested(state: State, ctx: Any) -> None:
            ctx.run(child, {})

    else:
        workflow.step(decide, waits_for="go")

    def run(**options: Any) -> Any:
        environment = Environment(clock=lambda: now[0], wall_clock=lambda: now[0])
        return memory_world.bind(workflow, environment).run("o", **options)

    assert run(state={}).status == "waiting"
    assert run(deadline_s=60.0).status == "waiting"
    now[0] += 59
    assert run().status == "waiting"
    now[0] += 2
    with pytest.raises(WorkflowDeadlineError):
        run()
    assert memory_world.head("o").status is Status.FAILED
