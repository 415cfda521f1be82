"""Serving: what nobody runs is found and run, by one of those who look, until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from milepost import AsyncInMemoryStore, InMemoryStore, Workflow
from milepost.testing import LocalServer, SimulatedCrash, crash_after, local_server
from milepost.types import Status
from tests.integration.runner.conftest import Bound, World

State = dict[str, Any]
DEADLINE_S = 20.0


class Orders:
    """A workflow of two steps that notes who ran them, and can be told to fail, to wait, or to hold on."""

    def __init__(self, *, waits_for: str | None = None) -> None:
        self.ran: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.fails: set[str] = set()
        self.finished = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()
        self._lock = threading.Lock()
        self.workflow = Workflow("order", dict[str, Any])
        self.workflow.step(self.price)
        self.workflow.step(self.charge, waits_for=waits_for)

    def price(self, state: State) -> None:
        return None

    def charge(self, state: State, ctx: Any) -> None:
        with self._lock:
            self.ran.append(ctx.workflow_id)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.started.release()
        try:
            assert self.may_end.wait(DEADLINE_S)
            if ctx.workflow_id in self.fails:
                raise ValueError(ctx.workflow_id)
        finally:
            with self._lock:
                self.at_once -= 1
            self.finished.release()

    def wait_for(self, count: int, what: str = "finished") -> None:
        for _ in range(count):
            assert getattr(self, what).acquire(timeout=DEADLINE_S), self.ran


@contextlib.contextmanager
def serving(bound: Bound, **options: Any) -> Iterator[threading.Thread]:
    """Serve in a thread until the block ends; what serving raises is raised here."""
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            answer = bound.runner.serve(**options)
            if answer is not None:
                asyncio.run(answer)
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        bound.runner.suspend()
        thread.join(DEADLINE_S)
    assert not thread.is_alive(), "serving ends when the runner is suspended"
    for error in errors:
        raise error


@contextlib.contextmanager
def logged(text: str) -> Iterator[threading.Event]:
    """Have an event set when a line with this text is logged."""
    is_logged = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                is_logged.set()

    listener = Listener()
    logger = logging.getLogger("milepost.runner")
    logger.addHandler(listener)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield is_logged
    finally:
        logger.setLevel(level)
        logger.removeHandler(listener)


def left_behind(world: World, orders: Orders, *workflow_ids: str, keeps_lease: bool = False, **options: Any) -> None:
    """Have a host begin workflows and die after their first step."""
    for workflow_id in workflow_ids:
        with pytest.raises(SimulatedCrash), crash_after("price", keeps_lease=keeps_lease):
            world.bind(orders.workflow, **options).run(workflow_id, {})


def statuses(world: World) -> dict[str, Status | None]:
    return {info.workflow_id: info.status for info in world.eyes.workflows()}


def test_what_a_host_left_behind_is_finished(world: World) -> None:
    """Its finished step is not run again; its neighbours of another definition are left alone."""
    orders = Orders()
    left_behind(world, orders, "o-1", "o-2")
    other = Workflow("other", State)
    other.step(id="price")(lambda state: None)
    other.step(id="last")(lambda state: None)
    with pytest.raises(SimulatedCrash), crash_after("price"):
        world.bind(other).run("x-1", {})
    with serving(world.bind(orders.workflow)):
        orders.wait_for(2)
    assert sorted(orders.ran) == ["o-1", "o-2"]
    assert statuses(world) == {"o-1": Status.COMPLETED, "o-2": Status.COMPLETED, "x-1": Status.RUNNING}
    assert world.steps("o-1") == [("", "running"), ("price", "running"), ("charge", "completed")]


def test_a_signal_wakes_a_workflow_at_once(world: World) -> None:
    """By the watch: the next query would be an hour away."""
    orders = Orders(waits_for="approval")
    host = world.bind(orders.workflow)
    assert host.run("o-1", {}).status == "waiting"
    with serving(world.bind(orders.workflow), poll_s=3_600):
        host.signal("o-1", "approval", 1)
        orders.wait_for(1)
    assert statuses(world) == {"o-1": Status.COMPLETED}


def test_a_signal_that_came_before_is_found(world: World) -> None:
    orders = Orders(waits_for="approval")
    host = world.bind(orders.workflow)
    host.run("o-1", {})
    host.run("o-2", {})
    host.signal("o-2", "approval", 1)
    with serving(world.bind(orders.workflow), poll_s=3_600):
        orders.wait_for(1)
    assert statuses(world) == {"o-1": Status.WAITING, "o-2": Status.COMPLETED}


def test_a_lease_that_runs_out_is_noticed(world: World) -> None:
    """An expiry is no event: the query finds it."""
    orders = Orders()
    left_behind(world, orders, "o-1", keeps_lease=True, lease_ttl_s=1.0)
    with serving(world.bind(orders.workflow, lease_ttl_s=1.0), poll_s=0.2):
        orders.wait_for(1)
    assert statuses(world) == {"o-1": Status.COMPLETED}


def test_no_more_run_at_once_than_allowed(world: World) -> None:
    orders = Orders()
    orders.may_end.clear()
    left_behind(world, orders, *(f"o-{number}" for number in range(7)))
    with serving(world.bind(orders.workflow), max_concurrency=2):
        orders.wait_for(2, "started")
        orders.may_end.set()
        orders.wait_for(7)
    assert orders.most_at_once == 2
    assert sorted(orders.ran) == [f"o-{number}" for number in range(7)]


def test_several_hosts_share_the_work(world: World) -> None:
    """Each workflow is run by one of them."""
    orders = Orders()
    left_behind(world, orders, *(f"o-{number}" for number in range(8)))
    with serving(world.bind(orders.workflow), max_concurrency=2), serving(world.bind(orders.workflow)):
        orders.wait_for(8)
    assert sorted(orders.ran) == [f"o-{number}" for number in range(8)]
    assert set(statuses(world).values()) == {Status.COMPLETED}


def test_what_fails_is_not_taken_up_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is stored as failed, and the others go on. What the error says is in no log."""
    caplog.set_level(logging.DEBUG, "milepost.runner")
    orders = Orders()
    orders.fails = {"o-1"}
    left_behind(world, orders, "o-1", "o-2")
    with serving(world.bind(orders.workflow), poll_s=0.1):
        orders.wait_for(2)
        left_behind(world, orders, "o-3")
        orders.wait_for(1)
    assert sorted(orders.ran) == ["o-1", "o-2", "o-3"]
    assert statuses(world) == {"o-1": Status.FAILED, "o-2": Status.COMPLETED, "o-3": Status.COMPLETED}
    assert "workflow 'o-1' failed in step 'charge'" in caplog.text
    assert "ValueError: o-1" not in caplog.text


def test_what_cannot_go_on_does_not_keep_others_from_it(world: World) -> None:
    """A workflow of an earlier definition is tried now and then, less and less often."""
    earlier = Workflow("order", State)
    earlier.step(id="price", version=7)(lambda state: None)
    earlier.step(id="last")(lambda state: None)
    with pytest.raises(SimulatedCrash), crash_after("price"):
        world.bind(earlier).run("o-0", {})
    orders = Orders()
    left_behind(world, orders, "o-1")
    with (
        logged("workflow 'o-0' did not go on (DefinitionChangedError)") as is_logged,
        serving(world.bind(orders.workflow), poll_s=0.1, max_concurrency=1),
    ):
        orders.wait_for(1)
        assert is_logged.wait(DEADLINE_S)
    assert statuses(world) == {"o-0": Status.RUNNING, "o-1": Status.COMPLETED}


def test_suspending_ends_it_and_gives_back_the_leases(world: World) -> None:
    """The step that runs is finished and saved, and the next one is for somebody else."""
    orders = Orders()
    orders.workflow.step(id="last")(lambda state: None)
    orders.may_end.clear()
    left_behind(world, orders, "o-1")
    host = world.bind(orders.workflow)
    with serving(host) as thread:
        orders.wait_for(1, "started")
        host.runner.suspend()
        orders.may_end.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    info = world.eyes.workflow("o-1")
    assert (info.status, info.lease, info.current_step) == (Status.RUNNING, None, "charge")
    with serving(host) as thread:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "a runner that was suspended does not serve"


def test_cancelling_the_task_gives_back_the_leases() -> None:
    """As a server does with its background tasks when it ends."""
    store = AsyncInMemoryStore()
    begun = asyncio.Event()
    wf = Workflow("order", State)
    wf.step(id="price")(lambda state: None)

    @wf.step
    async def hangs(state: State) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(SimulatedCrash), crash_after("price"):
            await wf.bind(store).run("o-1", {})
        task = asyncio.create_task(wf.bind(store).serve())
        async with asyncio.timeout(DEADLINE_S):
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        info = await store.workflow("o-1")
        assert (info.status, info.lease) == (Status.RUNNING, None)

    asyncio.run(main())


def test_a_store_without_leases_cannot_be_served() -> None:
    orders = Orders()
    with pytest.raises(TypeError, match="has no leases, which serving needs"):
        orders.workflow.bind(InMemoryStore(), unfenced=True).serve()


@pytest.mark.parametrize("options", [{"max_concurrency": 0}, {"poll_s": 0}, {"poll_s": 1e9}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Orders().workflow.bind(InMemoryStore()).serve(**options)


def test_signals_are_for_the_main_thread(memory_world: World) -> None:
    with (
        pytest.raises(ValueError, match="needs the main thread"),
        serving(memory_world.bind(Orders().workflow), handle_signals=True) as thread,
    ):
        thread.join(DEADLINE_S)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_serving_outlives_a_server_that_is_killed(kind: Any) -> None:
    """While it is away the host asks less and less; when it is back, what is there is run, woken by a new watch too."""
    with local_server() as server:
        world = World(kind, server)
        orders = Orders(waits_for="approval")
        host = world.bind(orders.workflow)
        with serving(world.bind(orders.workflow), poll_s=0.5):
            host.run("o-1", {})
            host.signal("o-1", "approval", 1)
            orders.wait_for(1)
            server.kill()
            server.restart()
            host.run("o-2", {})
            host.signal("o-2", "approval", 1)
            orders.wait_for(1)
        assert statuses(world) == {"o-1": Status.COMPLETED, "o-2": Status.COMPLETED}
        world.close()


PROGRAM = """
import asyncio, sys
from milepost import AsyncClient, AsyncContext, Client, Context, Workflow

order = Workflow("order", dict)

@order.step
def price(state): ...

@order.step
def charge(state, ctx):
    print("charging", flush=True)
    while True:
        ctx.check()

if sys.argv[1] == "sync":
    order.bind(Client(sys.argv[2], namespace=sys.argv[3]), grace_s=0.2).serve(handle_signals=True)
else:
    asyncio.run(order.bind(AsyncClient(sys.argv[2], namespace=sys.argv[3]), grace_s=0.2).serve(handle_signals=True))
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order(kind: Any, number: signal.Signals, runner_server: LocalServer) -> None:
    """A step that notices that it should end does; the lease is free at once, for the next host."""
    world = World("sync", runner_server)
    orders = Orders()
    left_behind(world, orders, "o-1")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), kind, runner_server.target, world.namespace],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "charging\n"
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert (output, process.returncode) == ("done\n", 0)
    info = world.eyes.workflow("o-1")
    assert (info.status, info.lease) == (Status.RUNNING, None)
    world.close()
