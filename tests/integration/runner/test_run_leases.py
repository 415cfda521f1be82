"""Who may advance a workflow: leases, heartbeats, pauses and losses."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from milepost import AsyncClient, Client, InMemoryStore
from milepost.errors import (
    DeadlineError,
    LeaseHeldError,
    LeaseLostError,
    MilepostError,
    OutcomeUnknownError,
    StepFailedError,
    UnavailableError,
)
from milepost.runner import Retry, Workflow
from milepost.testing import LocalServer, SimulatedCrash, crash_after, local_server
from milepost.types import Status
from tests.integration.runner.conftest import Bound, World

State = dict[str, Any]


class Slow:
    """A workflow whose step `slow` runs until it is let go or cancelled."""

    def __init__(self, **options: Any) -> None:
        self.started = threading.Event()
        self.go = threading.Event()
        self.cancelled = threading.Event()
        self.attempts: list[int] = []
        self.tokens: list[int] = []
        self.workflow = Workflow("order", dict[str, Any])
        self.workflow.step(self.first)
        self.workflow.step(self.slow, **options)
        self.workflow.step(self.last)

    def first(self, state: State) -> State:
        return {"first": True}

    def slow(self, state: State, ctx: Any) -> State:
        self.attempts.append(ctx.attempt)
        self.tokens.append(ctx.lease_token)
        self.started.set()
        for _ in range(4000):
            if self.go.is_set():
                break
            if ctx.cancelled:
                self.cancelled.set()
                ctx.check()
            time.sleep(0.005)
        return {"slow": True}

    def last(self, state: State) -> State:
        return {"last": True}


class InThread:
    """A run in a thread, and what became of it."""

    def __init__(self, bound: Bound, workflow_id: str, state: State | None = None, **options: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = bound.run(workflow_id, state, **options)
            except BaseException as error:  # noqa: BLE001  raised again by join
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def join(self) -> Any:
        self.thread.join(30)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def slow() -> Iterator[Slow]:
    """Let go at the end, whatever happens."""
    made = Slow()
    yield made
    made.go.set()


def test_a_workflow_that_is_run_elsewhere_is_waited_for_and_then_refused(
    world: World, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says who holds it, and for how long."""
    caplog.set_level(logging.INFO, "milepost.runner")
    first = InThread(world.bind(slow.workflow, holder="web-3:4711"), "o", {})
    assert slow.started.wait(10)
    with pytest.raises(LeaseHeldError) as caught:
        world.bind(slow.workflow, holder="web-4:1").run("o", lease_wait_s=0.1)
    assert caught.value.holder == "web-3:4711"
    assert "held by web-3:4711, expires in" in caplog.text
    slow.go.set()
    assert first.join().status == "completed"
    assert slow.attempts == [1]


def test_a_run_that_waits_goes_on_when_the_other_has_ended(world: World, slow: Slow) -> None:
    first = InThread(world.bind(slow.workflow), "o", {})
    assert slow.started.wait(10)
    second = InThread(world.bind(slow.workflow), "o", lease_wait_s=20)
    slow.go.set()
    assert first.join().checkpoint_id == second.join().checkpoint_id
    assert slow.attempts == [1]


@pytest.mark.slow
def test_heartbeats_keep_a_lease_that_is_much_shorter_than_a_step(world: World, slow: Slow) -> None:
    first = InThread(world.bind(slow.workflow, lease_ttl_s=1.0), "o", {})
    assert slow.started.wait(10)
    with pytest.raises(LeaseHeldError):
        world.bind(slow.workflow).run("o", lease_wait_s=2.5)
    slow.go.set()
    assert first.join().status == "completed"
    assert not slow.cancelled.is_set()


def test_a_run_that_lost_its_lease_saves_nothing_more(world: World, slow: Slow) -> None:
    """The step is cancelled; whoever took over finds the workflow as it was."""
    first = InThread(world.bind(slow.workflow, lease_ttl_s=1.0), "o", {})
    assert slow.started.wait(10)
    assert world.eyes.break_lease("o")
    with pytest.raises(LeaseLostError):
        first.join()
    assert slow.cancelled.is_set()
    assert world.steps("o") == [("", "running"), ("first", "running")]
    slow.go.set()
    assert world.bind(slow.workflow).run("o").status == "completed"
    assert len(set(slow.tokens)) == 2


def test_a_zombie_cannot_save_over_the_host_that_took_over(world: World) -> None:
    """Its save is refused by the token, though it never heard that the lease is lost."""
    zombie = Slow()

    def last(state: State) -> State:
        world.eyes.break_lease("o")
        taken = world.eyes.acquire_lease("o", holder="other")
        assert taken.token
        return {"zombie": True}

    workflow = Workflow("order", dict[str, Any])
    workflow.step(zombie.first)
    workflow.step(last)
    with pytest.raises(LeaseLostError):
        world.bind(workflow).run("o", {})
    assert world.head("o").state == {"first": True}


@pytest.mark.slow
def test_the_lease_of_a_host_that_died_is_waited_out(world: World) -> None:
    slow = Slow()
    slow.go.set()
    with crash_after("first", keeps_lease=True), pytest.raises(SimulatedCrash):
        world.bind(slow.workflow, lease_ttl_s=1.0).run("o", {})
    assert world.eyes.workflow("o").lease is not None
    started = time.monotonic()
    assert world.bind(slow.workflow, lease_ttl_s=1.0).run("o").status == "completed"
    assert 0.3 < time.monotonic() - started < 5


class Outage:
    """A store in memory that cannot be reached."""

    def __init__(self, world: World) -> None:
        self._core = world.eyes._core
        self.is_on = False
        for name in ("save", "renew_lease", "append_records", "release_lease"):
            setattr(self._core, name, self._guarded(getattr(self._core, name)))

    def _guarded(self, call: Any) -> Any:
        def guarded(*args: Any, **options: Any) -> Any:
            if self.is_on:
                raise UnavailableError("nobody is there")
            return call(*args, **options)

        return guarded


@pytest.mark.slow
def test_a_run_pauses_while_its_lease_may_run_out_and_then_goes_on(memory_world: World, slow: Slow) -> None:
    """The step is cancelled, begins again as the same attempt, and nobody is told of a failure."""
    outage = Outage(memory_world)
    run = InThread(memory_world.bind(slow.workflow, lease_ttl_s=1.0), "o", {})
    assert slow.started.wait(10)
    outage.is_on = True
    assert slow.cancelled.wait(10)
    time.sleep(0.3)
    assert slow.attempts == [1]
    slow.go.set()
    outage.is_on = False
    assert run.join().status == "completed"
    assert slow.attempts == [1, 1]
    assert memory_world.steps("o")[-1] == ("last", "completed")


@pytest.mark.slow
def test_a_step_that_may_run_once_is_not_cut_off_by_a_pause(memory_world: World) -> None:
    """Nobody else may start it, so its result is waited for and saved when the lease is renewed."""
    slow = Slow(at_most_once=True)
    outage = Outage(memory_world)
    run = InThread(memory_world.bind(slow.workflow, lease_ttl_s=1.0), "o", {})
    assert slow.started.wait(10)
    outage.is_on = True
    time.sleep(1.3)
    slow.go.set()
    time.sleep(0.1)
    assert memory_world.head("o").current_step == "first"
    outage.is_on = False
    assert run.join().status == "completed"
    assert (slow.attempts, slow.cancelled.is_set()) == ([1], False)


@pytest.mark.slow
def test_a_run_gives_up_when_the_outage_lasts(memory_world: World, slow: Slow) -> None:
    outage = Outage(memory_world)
    run = InThread(memory_world.bind(slow.workflow, lease_ttl_s=1.0, outage_limit_s=2.0), "o", {})
    assert slow.started.wait(10)
    outage.is_on = True
    with pytest.raises(UnavailableError):
        run.join()
    assert slow.cancelled.is_set()


def test_a_save_is_repeated_until_the_store_answers(memory_world: World) -> None:
    """With the same id: what was stored before its answer was lost is not stored twice."""
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])
    outage = Outage(memory_world)

    @workflow.step
    def one(state: State) -> State:
        calls.append("one")
        outage.is_on = True
        threading.Timer(0.5, lambda: setattr(outage, "is_on", False)).start()
        return {"one": 1}

    assert memory_world.bind(workflow).run("o", {}).state == {"one": 1}
    assert (calls, memory_world.steps("o")) == (["one"], [("", "running"), ("one", "completed")])


def test_a_save_whose_answer_was_lost_is_stored_once(memory_world: World) -> None:
    core = memory_world.eyes._core
    real = core.save
    lost = [2]

    def save(item: Any) -> Any:
        saved = real(item)
        if item.completed_steps and lost[0]:
            lost[0] -= 1
            raise OutcomeUnknownError("the answer was lost", checkpoint_id=item.checkpoint_id)
        return saved

    core.save = save
    slow = Slow()
    slow.go.set()
    assert memory_world.bind(slow.workflow).run("o", {}).status == "completed"
    assert lost == [0]
    assert [step for step, _ in memory_world.steps("o")] == ["", "first", "slow", "last"]


def test_a_failed_save_may_be_passed_over_where_that_was_asked_for(memory_world: World) -> None:
    """The step goes with the next checkpoint; without being asked, the run fails."""
    core = memory_world.eyes._core
    real = core.save
    fails = ["first"]

    def save(item: Any) -> Any:
        if fails and fails[0] in item.completed_steps:
            fails.pop()
            raise UnavailableError("nobody is there")
        return real(item)

    core.save = save
    slow = Slow()
    slow.go.set()
    run = memory_world.bind(slow.workflow, on_save_error="continue").run("o", {})
    assert run.state == {"first": True, "slow": True, "last": True}
    assert [step for step, _ in memory_world.steps("o")] == ["", "slow", "last"]
    assert memory_world.head("o").completed_steps == ("first", "slow", "last")


def test_a_store_without_leases_is_refused_unless_that_is_accepted() -> None:
    class Plain:
        """Save, load, list."""

        def __init__(self) -> None:
            self._store = InMemoryStore()
            self.save, self.load, self.list = self._store.save, self._store.load, self._store.list

    slow = Slow()
    slow.go.set()
    plain: Any = Plain()
    with pytest.raises(TypeError, match="unfenced"):
        slow.workflow.bind(plain)
    assert slow.workflow.bind(plain, unfenced=True).run("o", {}).status == "completed"
    once = Workflow("once", dict[str, Any])
    once.step(slow.first, at_most_once=True)
    with pytest.raises(TypeError, match="records"):
        once.bind(plain, unfenced=True)
    failing = Workflow("failing", dict[str, Any])

    @failing.step
    def fails(state: State) -> None:
        raise ValueError("no")

    with pytest.raises(StepFailedError):
        failing.bind(plain, unfenced=True).run("f", {})
    assert plain.load("f").status is Status.FAILED


def test_what_a_store_lacks_is_named() -> None:
    """Of a store that only saves and loads, where a runner is asked for more."""

    class Plain:
        def __init__(self) -> None:
            self._store = InMemoryStore()
            self.save, self.load = self._store.save, self._store.load

    plain: Any = Plain()
    runner = Slow().workflow.bind(plain, unfenced=True)
    with pytest.raises(TypeError, match=r"Plain has no status of workflows: it lacks workflow\(\)"):
        runner.status("o")
    with pytest.raises(TypeError, match="Plain has no signals"):
        runner.signal("o", "go")
    with pytest.raises(TypeError, match="Plain has no history"):
        runner.history("o")
    with pytest.raises(TypeError, match="Plain has no forks"):
        runner.fork("o", "p")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_outlives_a_restart_of_its_server(kind: Any) -> None:
    """It pauses, and goes on under the same lease when the server is back."""
    slow = Slow()
    with local_server() as server:
        world = World(kind, server)
        run = InThread(world.bind(slow.workflow, lease_ttl_s=2.0), "o", {})
        try:
            assert slow.started.wait(10)
            server.kill()
            assert slow.cancelled.wait(20)
            server.restart()
        finally:
            slow.go.set()
        assert run.join().status == "completed"
        assert slow.attempts == [1, 1]
        with Client(server.target, namespace=world.namespace) as eyes:
            assert eyes.load("o").status is Status.COMPLETED
        world.close()


def test_an_error_is_raised_when_steps_beside_it_have_ended(memory_world: World) -> None:
    """Whoever calls again must not find an attempt of the run before still alive."""
    ended: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(depends_on=[])
    def quick(state: State) -> State:
        memory_world.eyes.break_lease("o")
        return {"quick": 1}

    @workflow.step(depends_on=[])
    def slow(state: State, ctx: Any) -> None:
        for _ in range(4000):
            if ctx.cancelled:
                break
            time.sleep(0.005)
        time.sleep(0.1)
        ended.append("slow")

    with pytest.raises(LeaseLostError):
        memory_world.bind(workflow).run("o", {})
    assert ended == ["slow"]


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("kind", [OutcomeUnknownError, DeadlineError])
def test_a_save_with_an_unknown_outcome_that_was_passed_over_is_settled_first(
    memory_world: World, kind: type[MilepostError], is_stored: bool
) -> None:
    """It is sent again under its id before the next one, whether or not it had been stored."""
    core = memory_world.eyes._core
    real = core.save
    lost = [True]

    def save(item: Any) -> Any:
        if item.completed_steps == ("first",) and lost:
            lost.pop()
            if is_stored:
                real(item)
            raise kind("the answer was lost", checkpoint_id=item.checkpoint_id)
        return real(item)

    core.save = save
    slow = Slow()
    slow.go.set()
    run = memory_world.bind(slow.workflow, on_save_error="continue").run("o", {})
    assert run.state == {"first": True, "slow": True, "last": True}
    assert [step for step, _ in memory_world.steps("o")] == ["", "first", "slow", "last"]
    assert memory_world.head("o").completed_steps == ("first", "slow", "last")


def test_of_many_hosts_that_run_one_workflow_each_step_is_run_by_one(world: World) -> None:
    """All of them return its result."""
    calls: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    def step(name: str) -> Any:
        def run(state: State) -> State:
            calls.append(name)
            return {name: len(calls)}

        return run

    for number in range(4):
        workflow.step(step(f"s{number}"), id=f"s{number}")
    hosts = [InThread(world.bind(workflow, holder=f"host-{number}"), "o", {}, lease_wait_s=30) for number in range(6)]
    results = [host.join() for host in hosts]
    assert calls == ["s0", "s1", "s2", "s3"]
    assert len({run.checkpoint_id for run in results}) == 1


def test_a_suspended_run_does_not_wait_for_a_store_that_is_gone(memory_world: World, slow: Slow) -> None:
    """Its time is over: it ends, says so, and leaves the lease to run out."""
    outage = Outage(memory_world)
    bound = memory_world.bind(slow.workflow)
    run = InThread(bound, "o", {})
    assert slow.started.wait(10)
    outage.is_on = True
    bound.runner.suspend(grace_s=0.1)
    slow.go.set()
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        run.join()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("call", ["load", "save"])
def test_an_outage_in_a_child_is_no_failure_of_its_step(memory_world: World, call: str) -> None:
    """The workflow is running, as after any outage, so that it is taken up again and no step was tried in vain."""
    calls: list[str] = []
    child = Workflow("leg", dict[str, Any])

    @child.step
    def walk(state: State) -> State:
        calls.append("walk")
        return {"walked": True}

    parent = Workflow("trip", dict[str, Any])

    @parent.step(retry=Retry(attempts=3, initial_s=0.0))
    def go(state: State, ctx: Any) -> State:
        calls.append("go")
        return {**ctx.run(child, {}).state}

    core = memory_world.eyes._core
    real = getattr(core, call)
    is_out = [True]

    def guarded(*args: Any, **options: Any) -> Any:
        scope = options["scope"] if call == "load" else args[0].scope
        if is_out and scope == "go":
            raise UnavailableError("nobody is there")
        return real(*args, **options)

    setattr(core, call, guarded)
    bound = memory_world.bind(parent, outage_limit_s=0.05)
    with pytest.raises(UnavailableError):
        bound.run("t", {})
    assert memory_world.head("t").status is Status.RUNNING
    is_out.clear()
    assert bound.run("t").state == {"walked": True}
    assert calls == ["go", "go", "walk"]


def test_the_lost_lease_of_another_workflow_is_a_failure_like_any(memory_world: World) -> None:
    """A step may use leases of its own."""
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def elsewhere(state: State) -> None:
        raise LeaseLostError("taken", workflow_id="other")

    with pytest.raises(StepFailedError):
        memory_world.bind(workflow).run("o", {})
    assert memory_world.head("o").status is Status.FAILED
    assert memory_world.eyes.get_lease("o") is None


def test_threads_of_runners_that_are_done_end_soon() -> None:
    """A program may bind a workflow for each run."""
    store = InMemoryStore()
    workflow = Workflow("order", dict[str, Any])
    for name in ("left", "right"):
        workflow.step(lambda state: None, id=name, depends_on=[])
    before = threading.active_count()
    for number in range(20):
        workflow.bind(store).run(f"o-{number}", {})
    give_up_at = time.monotonic() + 8
    while threading.active_count() > before and time.monotonic() < give_up_at:
        threading.Event().wait(0.05)
    assert threading.active_count() <= before


def test_a_run_that_is_cancelled_while_its_lease_is_granted_gives_it_back(runner_server: LocalServer) -> None:
    """Between the grant and its answer, and again while it is given back: nobody waits for it to run out."""

    asked: list[str] = []

    class CancelsOnAnswer(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            call = await continuation(details, request)
            await call
            asked.append(details.method.rpartition(b"/")[2].decode())
            running.cancel()
            return call

    workflow = Workflow("order", dict[str, Any])
    workflow.step(lambda state: None, id="only")
    running: asyncio.Task[Any]

    async def program() -> None:
        nonlocal running
        async with AsyncClient(
            runner_server.target, namespace="cancelled-grant", interceptors=[CancelsOnAnswer()]
        ) as client:
            running = asyncio.ensure_future(workflow.bind(client).run("o", {}))
            with pytest.raises(asyncio.CancelledError):
                await running
            assert asked == ["AcquireLease", "AcquireLease", "ReleaseLease"]
            assert await client.get_lease("o") is None

    asyncio.run(program())


def test_ctrl_c_while_a_lease_is_granted_gives_it_back(runner_server: LocalServer) -> None:
    asked: list[str] = []

    class InterruptsOnAnswer(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            call = continuation(details, request)
            call.result()
            asked.append(details.method.rpartition("/")[2])
            if len(asked) == 1:
                raise KeyboardInterrupt
            return call

    workflow = Workflow("order", dict[str, Any])
    workflow.step(lambda state: None, id="only")
    with Client(runner_server.target, namespace="interrupted-grant", interceptors=[InterruptsOnAnswer()]) as client:
        with pytest.raises(KeyboardInterrupt):
            workflow.bind(client).run("o", {})
        assert asked == ["AcquireLease", "AcquireLease", "ReleaseLease"]
        assert client.get_lease("o") is None


def test_interceptors_of_an_async_client_see_heartbeats_on_a_loop_of_their_own(runner_server: LocalServer) -> None:
    """Every other call is on the program's loop; an interceptor that fails on the other is an outage, not a loss."""
    seen: dict[str, set[tuple[int, asyncio.AbstractEventLoop]]] = {}
    renewals = itertools.count()
    went_on = threading.Event()

    class BoundToALoop(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            method = details.method if isinstance(details.method, str) else details.method.decode()
            place = threading.get_ident(), asyncio.get_running_loop()
            seen.setdefault(method.rpartition("/")[2], set()).add(place)
            if method.endswith("/RenewLease"):
                if next(renewals) == 0:
                    raise RuntimeError("is bound to a different event loop")
                went_on.set()
            return await continuation(details, request)

    async def blocks_its_loop(state: State) -> State:
        return {"went_on": went_on.wait(10)}

    workflow = Workflow("order", dict[str, Any])
    workflow.step(blocks_its_loop, id="only")

    async def program() -> Any:
        here = threading.get_ident(), asyncio.get_running_loop()
        async with AsyncClient(runner_server.target, namespace="bound", interceptors=[BoundToALoop()]) as client:
            run = await workflow.bind(client, lease_ttl_s=1.0).run("bound", {})
        assert run.state == {"went_on": True}
        return here

    here = asyncio.run(program())
    renewed = seen.pop("RenewLease")
    assert all(places == {here} for places in seen.values())
    assert len(renewed) == 1
    assert not {one for place in renewed for one in place} & set(here)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_heartbeats_pass_the_interceptors_of_the_client(kind: str, runner_server: LocalServer) -> None:
    """They may carry what lets a call through."""
    renewed = threading.Event()

    class Seen(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            if details.method.endswith("/RenewLease"):
                renewed.set()
            return continuation(details, request)

    class AsyncSeen(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            method = details.method if isinstance(details.method, str) else details.method.decode()
            if method.endswith("/RenewLease"):
                renewed.set()
            return await continuation(details, request)

    workflow = Workflow("order", dict[str, Any])

    def waits(state: State) -> State:
        return {"renewed": renewed.wait(10)}

    async def blocks_its_loop(state: State) -> State:
        return waits(state)

    workflow.step(waits if kind == "sync" else blocks_its_loop, id="only")
    if kind == "sync":
        with Client(runner_server.target, namespace="intercepted", interceptors=[Seen()]) as client:
            run = workflow.bind(client, lease_ttl_s=1.0).run("sync", {})
    else:

        async def program() -> Any:
            async with AsyncClient(runner_server.target, namespace="intercepted", interceptors=[AsyncSeen()]) as client:
                return await workflow.bind(client, lease_ttl_s=1.0).run("async", {})

        run = asyncio.run(program())
    assert run.state == {"renewed": True}
