"""One writer for a thread: the lease reaches every save of a block, in the background too, and nobody else's."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command

from milepost import HeadMovedError, LeaseHeldError, LeaseLostError
from milepost.adapters.langgraph import MilepostSaver
from milepost.adapters.langgraph.exclusive import Exclusive
from milepost.testing import LocalServer
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1.checkpoint_store_pb2_grpc import CheckpointStoreStub
from tests.support.langgraph_checkpoints import config_of, put
from tests.support.langgraph_graphs import delta, fan_out, linear, nested

CONFIG: Any = {"configurable": {"thread_id": "t"}}
DURABILITIES = ("sync", "async", "exit")
BUILDERS: list[Callable[[BaseCheckpointSaver[Any]], Any]] = [linear, fan_out, delta]


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("build", BUILDERS)
def test_every_save_of_a_run_presents_the_lease(build: Any, durability: Any, saver: MilepostSaver) -> None:
    graph = build(saver)
    with saver.exclusive("t") as held:
        for _ in range(2):
            graph.invoke({"words": ["in"]}, CONFIG, durability=durability)
        list(graph.stream({"words": ["in"]}, CONFIG, durability=durability))
        held.check()
        assert held.token > 0
    # Given back: anybody may go on.
    graph.invoke({"words": ["in"]}, CONFIG, durability=durability)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("build", BUILDERS)
async def test_every_save_of_a_run_on_asyncio_presents_the_lease(
    build: Any, durability: Any, saver: MilepostSaver
) -> None:
    graph = build(saver)
    async with saver.exclusive("t"):
        for _ in range(2):
            await graph.ainvoke({"words": ["in"]}, CONFIG, durability=durability)
        _ = [each async for each in graph.astream({"words": ["in"]}, CONFIG, durability=durability)]
    await graph.ainvoke({"words": ["in"]}, CONFIG, durability=durability)
    await saver.aclose()


@pytest.mark.parametrize("durability", DURABILITIES)
def test_an_interrupted_subgraph_goes_on_under_another_lease(durability: Any, saver: MilepostSaver) -> None:
    graph = nested(saver)
    with saver.exclusive("t") as first:
        graph.invoke({"words": ["in"]}, CONFIG, durability=durability)
    with saver.exclusive("t") as second:
        result = graph.invoke(Command(resume="ada"), CONFIG, durability=durability)
    assert result["words"][-1] == "end"
    assert second.token > first.token


async def test_another_request_of_the_process_can_neither_save_nor_borrow(saver: MilepostSaver) -> None:
    graph = linear(saver)
    begun, end = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with saver.exclusive("t", holder="request 1"):
            await graph.ainvoke({"words": []}, CONFIG)
            begun.set()
            await end.wait()
            await graph.ainvoke({"words": []}, CONFIG)

    # A context of its own, as a server gives to each request.
    task = asyncio.create_task(holder(), context=contextvars.Context())
    await begun.wait()
    with pytest.raises(LeaseHeldError, match="request 1"):
        await graph.ainvoke({"words": []}, CONFIG)
    with pytest.raises(LeaseHeldError):
        await asyncio.to_thread(graph.invoke, {"words": []}, CONFIG)
    with pytest.raises(LeaseHeldError):
        await asyncio.to_thread(fan_out(saver).invoke, {"words": []}, CONFIG)
    with pytest.raises(LeaseHeldError):
        await saver.adelete_thread("t")
    with pytest.raises(LeaseHeldError):
        async with saver.exclusive("t"):
            pytest.fail("it is held")
    # Other threads, and whoever only reads, are not concerned.
    await graph.ainvoke({"words": []}, {"configurable": {"thread_id": "u"}})
    assert (await graph.aget_state(CONFIG)).values["words"]
    end.set()
    await task
    async with saver.exclusive("t"):
        await saver.adelete_thread("t")
    await saver.aclose()


def test_a_writer_that_was_overtaken_stores_nothing_more(
    saver: MilepostSaver, server: LocalServer, namespace: str
) -> None:
    graph = linear(saver)
    with MilepostSaver(server.target, namespace=namespace) as other:
        held = saver.exclusive("t", ttl_s=2)
        with pytest.raises(LeaseLostError), held:  # noqa: PT012 - the block's end tells of the loss
            graph.invoke({"words": ["mine"]}, CONFIG)
            # As if this process had been frozen until somebody else took over.
            break_lease(server, namespace, "t")
            with other.exclusive("t"):
                linear(other).invoke({"words": ["theirs"]}, CONFIG)
            before = graph.get_state(CONFIG)
            with pytest.raises(LeaseLostError):
                graph.invoke({"words": ["late"]}, CONFIG)
            with pytest.raises(LeaseLostError):
                saver.put_writes(before.config, [("words", ["late"])], "task")
            assert graph.get_state(CONFIG) == before
            wait_until_lost(held)
        assert held.lost


def wait_until_lost(held: Exclusive) -> None:
    """Return when the heartbeat has noticed."""
    again = threading.Event()
    for _ in range(1_500):
        if held.lost:
            return
        again.wait(0.02)
    pytest.fail("the loss was not noticed")


def break_lease(server: LocalServer, namespace: str, thread_id: str) -> None:
    """Take a lease away from its holder, as an operator does."""
    with grpc.insecure_channel(server.target) as channel:
        request = pb.ReleaseLeaseRequest(namespace=namespace, workflow_id=thread_id, force=True)
        assert CheckpointStoreStub(channel).ReleaseLease(request).released


def test_a_stale_parent_is_refused_unless_forks_are_allowed(saver: MilepostSaver) -> None:
    graph = linear(saver)
    graph.invoke({"words": ["in"]}, CONFIG)
    old = list(graph.get_state_history(CONFIG))[2]
    with saver.exclusive("t"), pytest.raises(HeadMovedError):
        graph.invoke(None, old.config)
    with saver.exclusive("t", allow_forks=True):
        assert graph.invoke(None, old.config)["words"] == ["in", "one", "two", "three"]


async def test_the_second_of_two_that_wait_gets_it_when_the_first_is_done(saver: MilepostSaver) -> None:
    tokens = []

    async def run() -> None:
        async with saver.exclusive("t", wait_s=20) as held:
            tokens.append(held.token)
            config = config_of("t") if len(tokens) == 1 else (await found()).config
            await put(saver, config, {"x": len(tokens)})

    async def found() -> Any:
        return await saver.aget_tuple(config_of("t"))

    await asyncio.gather(run(), run(), run())
    assert tokens == sorted(set(tokens))
    assert (await found()).checkpoint["channel_values"] == {"x": 3}
    await saver.aclose()


def test_a_block_is_used_once(saver: MilepostSaver) -> None:
    held = saver.exclusive("t")
    with pytest.raises(RuntimeError, match="when its with block begins"):
        held.check()
    with held:
        pass
    with pytest.raises(RuntimeError, match="was used already"), held:
        pass
