"""Async steps: tasks that run side by side, are timed out and cancelled, and what a blocking runner says of them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from milepost import AsyncInMemoryStore, InMemoryStore
from milepost.errors import StepFailedError, StepTimeoutError
from milepost.runner import Retry, Workflow
from tests.integration.runner.conftest import World

State = dict[str, Any]


@pytest.fixture(params=["memory", "server"])
def async_world(request: pytest.FixtureRequest) -> World:
    """A store with an async face."""
    server = request.getfixturevalue("runner_server") if request.param == "server" else None
    return World("async", server)


def test_async_and_sync_steps_take_turns(async_world: World) -> None:
    """Async steps on the loop, sync ones in threads with the context of the run."""
    name = contextvars.ContextVar[str]("name")
    threads: list[int] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    async def one(state: State) -> State:
        await asyncio.sleep(0)
        threads.append(threading.get_ident())
        return {"one": name.get()}

    @workflow.step
    def two(state: State) -> State:
        threads.append(threading.get_ident())
        return {"two": name.get()}

    @workflow.step
    async def three(state: State, ctx: Any) -> State:
        return {"three": [ctx.step, ctx.attempt]}

    async def main() -> Any:
        name.set("ann")
        runner: Any = workflow.bind(async_world.store)
        return await runner.run("o", {})

    assert asyncio.run(main()).state == {"one": "ann", "two": "ann", "three": ["three", 1]}
    assert threads[0] == threading.get_ident() != threads[1]


def test_async_items_run_side_by_side(async_world: World) -> None:
    workflow = Workflow("order", dict[str, Any])
    waiting: list[asyncio.Event] = []

    @workflow.step(for_each="items", into="found")
    async def item(state: State, item: int) -> int:
        # All of them have to be in progress before any goes on.
        if not waiting:
            waiting.append(asyncio.Event())
        counts.append(item)
        if len(counts) == 5:
            waiting[0].set()
        await asyncio.wait_for(waiting[0].wait(), 10)
        return item * 2

    counts: list[int] = []
    assert async_world.bind(workflow).run("o", {"items": [1, 2, 3, 4, 5]}).state["found"] == [2, 4, 6, 8, 10]


def test_an_async_step_is_cancelled_at_its_timeout(async_world: World) -> None:
    ended: list[str] = []
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(timeout_s=0.05, retry=Retry(attempts=2, initial_s=0.0))
    async def slow(state: State) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    with pytest.raises(StepTimeoutError) as caught:
        async_world.bind(workflow).run("o", {})
    assert (caught.value.abandoned, caught.value.attempts, ended) == (False, 2, ["cancelled"] * 2)


def test_an_async_step_that_swallows_its_cancellation_is_abandoned(async_world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(timeout_s=0.05)
    async def stubborn(state: State) -> None:
        for _ in range(6):
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                continue

    with pytest.raises(StepTimeoutError) as caught:
        async_world.bind(workflow, grace_s=0.1).run("o", {})
    assert caught.value.abandoned


def test_a_step_that_cancels_itself_has_failed(async_world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    async def cancels(state: State) -> None:
        raise asyncio.CancelledError

    with pytest.raises(StepFailedError) as caught:
        async_world.bind(workflow).run("o", {})
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


def test_async_children(async_world: World) -> None:
    child = Workflow("leg", dict[str, Any])

    @child.step
    async def double(state: State) -> State:
        await asyncio.sleep(0)
        return {"n": state["n"] * 2}

    parent = Workflow("trip", dict[str, Any])

    @parent.step(for_each="items", into="found")
    async def legs(state: State, item: int, ctx: Any) -> int:
        run = await ctx.run(child, {"n": item})
        return int(run.state["n"])

    assert async_world.bind(parent).run("t", {"items": [1, 2, 3]}).state["found"] == [2, 4, 6]


def test_many_runs_share_one_runner(async_world: World) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    async def one(state: State) -> State:
        await asyncio.sleep(0.001)
        return {"square": state["n"] ** 2}

    async def main() -> list[int]:
        runner: Any = workflow.bind(async_world.store)
        runs = await asyncio.gather(*(runner.run(f"o{number}", {"n": number}) for number in range(30)))
        return [run.state["square"] for run in runs]

    assert asyncio.run(main()) == [number**2 for number in range(30)]


def test_a_blocking_runner_names_the_async_steps_it_refuses() -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def fine(state: State) -> None:
        return None

    @workflow.step
    async def awaited(state: State) -> None:
        return None

    with pytest.raises(TypeError, match="awaited"):
        workflow.bind(InMemoryStore()).run("o", {})


async def test_a_sync_step_does_not_block_the_loop() -> None:
    workflow = Workflow("order", dict[str, Any])
    ticked = threading.Event()

    @workflow.step
    def waits(state: State) -> State:
        return {"ticked": ticked.wait(10)}

    runner: Any = workflow.bind(AsyncInMemoryStore())
    task = asyncio.get_running_loop().create_task(runner.run("o", {}))
    await asyncio.sleep(0.01)
    ticked.set()
    assert (await task).state == {"ticked": True}
