"""Real graphs, run through LangGraph's own API on our saver and on its own in-memory one, with equal results."""

from __future__ import annotations

import asyncio
import operator
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import grpc
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, StateSnapshot

from milepost import Client, LimitExceededError
from milepost.adapters.langgraph import MilepostSaver
from milepost.testing import LocalServer
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1.checkpoint_store_pb2_grpc import CheckpointStoreStub
from tests.support.langgraph_checkpoints import make_checkpoint, metadata_of
from tests.support.langgraph_graphs import (
    Basic,
    Graph,
    asking_side_by_side,
    asking_twice,
    delta,
    fan_out,
    linear,
    nested,
    tool_loop,
)

DURABILITIES = ("sync", "async", "exit")


def thread(name: str = "t", **more: Any) -> Any:
    return {"configurable": {"thread_id": name, **more}}


# What is compared.


def snapshot(found: StateSnapshot) -> dict[str, Any]:
    """Return what a snapshot says, without ids and times."""
    return {
        "values": found.values,
        "next": found.next,
        "metadata": {
            key: value for key, value in (found.metadata or {}).items() if key not in {"parents", "run_id", "thread_id"}
        },
        "has_parent": found.parent_config is not None,
        "tasks": [(task.name, [each.value for each in task.interrupts]) for task in found.tasks],
    }


def history(graph: Graph, config: Any) -> list[dict[str, Any]]:
    return [snapshot(found) for found in graph.get_state_history(config)]


@pytest.fixture
def savers(server: LocalServer, namespace: str) -> Iterator[tuple[BaseCheckpointSaver[Any], ...]]:
    with MilepostSaver(server.target, namespace=namespace) as ours:
        yield ours, InMemorySaver()


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("build", [linear, fan_out, tool_loop, delta])
def test_a_graph_runs_as_it_does_in_memory(
    build: Callable[[BaseCheckpointSaver[Any]], Graph], durability: Any, savers: tuple[Any, ...]
) -> None:
    inputs: Any = {"messages": [HumanMessage("hi", id="hi")]} if build is tool_loop else {"words": ["in"], "turn": 7}
    seen = []
    for saver in savers:
        graph = build(saver)
        first = list(graph.stream(inputs, thread(), stream_mode=["values", "updates"], durability=durability))
        second = graph.invoke(inputs, thread(), durability=durability)
        seen.append((sorted(map(repr, first)), second, history(graph, thread()), snapshot(graph.get_state(thread()))))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("build", [linear, fan_out, tool_loop, delta])
async def test_a_graph_runs_on_asyncio_as_it_does_in_memory(
    build: Callable[[BaseCheckpointSaver[Any]], Graph], durability: Any, savers: tuple[Any, ...]
) -> None:
    inputs: Any = {"messages": [HumanMessage("hi", id="hi")]} if build is tool_loop else {"words": ["in"], "turn": 7}
    seen = []
    for saver in savers:
        graph = build(saver)
        first = [each async for each in graph.astream(inputs, thread(), stream_mode="values", durability=durability)]
        second = await graph.ainvoke(inputs, thread(), durability=durability)
        found = [snapshot(each) async for each in graph.aget_state_history(thread())]
        seen.append((first, second, found, snapshot(await graph.aget_state(thread()))))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_an_interrupt_in_a_subgraph_is_resumed(durability: Any, savers: tuple[Any, ...]) -> None:
    seen = []
    for saver in savers:
        graph = nested(saver)
        stopped = graph.invoke({"words": ["in"]}, thread(), durability=durability)
        assert [each.value for each in stopped["__interrupt__"]] == ["name?"]
        inside = snapshot(graph.get_state(thread(), subgraphs=True).tasks[0].state)
        waiting = snapshot(graph.get_state(thread()))
        result = graph.invoke(Command(resume="ada"), thread(), durability=durability)
        seen.append((waiting, inside, result, history(graph, thread())))
    assert seen[0] == seen[1]
    assert seen[0][2]["words"] == ["in", "before", "in", "before", "asked:ada", "after", "end"]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_node_asks_twice(durability: Any, savers: tuple[Any, ...]) -> None:
    """The second answer is written with the first, in one list of writes."""
    seen = []
    for saver in savers:
        graph = asking_twice(saver)
        stops = [
            graph.invoke({"words": []}, thread(), durability=durability),
            graph.invoke(Command(resume=1), thread(), durability=durability),
        ]
        waiting = snapshot(graph.get_state(thread()))
        result = graph.invoke(Command(resume=2), thread(), durability=durability)
        asked = [[each.value for each in stop["__interrupt__"]] for stop in stops]
        seen.append((asked, waiting, result, history(graph, thread())))
    assert seen[0] == seen[1]
    assert seen[0][2]["words"] == ["1", "2"]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_interrupts_in_parallel_branches_are_answered_one_after_the_other(
    durability: Any, savers: tuple[Any, ...]
) -> None:
    seen = []
    for saver in savers:
        graph = asking_side_by_side(saver)
        graph.invoke({"words": ["in"]}, thread(), durability=durability)
        states = [snapshot(graph.get_state(thread()))]
        ids = {each.value: each.id for each in graph.get_state(thread()).interrupts}
        graph.invoke(Command(resume={ids["a?"]: "A"}), thread(), durability=durability)
        states.append(snapshot(graph.get_state(thread())))
        result = graph.invoke(Command(resume={ids["b?"]: "B", ids["c?"]: "C"}), thread(), durability=durability)
        seen.append((states, result, history(graph, thread())))
    assert seen[0] == seen[1]
    assert sorted(seen[0][1]["words"]) == ["a:A", "b:B", "c:C", "in", "plain"]


def test_time_travel_and_a_fork_leave_the_first_line_as_it_is(savers: tuple[Any, ...]) -> None:
    seen = []
    for saver in savers:
        graph = linear(saver)
        graph.invoke({"words": ["in"]}, thread())
        before = list(graph.get_state_history(thread()))
        middle = next(found for found in before if found.next == ("two",))
        again = graph.invoke(None, middle.config)
        changed = graph.update_state(middle.config, {"words": ["edited"], "note": "fork"}, as_node="one")
        forked = graph.invoke(None, changed)
        old = snapshot(graph.get_state(before[0].config))
        seen.append((again, forked, old, history(graph, thread()), snapshot(graph.get_state(thread()))))
    assert seen[0] == seen[1]
    assert seen[0][1]["words"] == ["in", "one", "edited", "two", "three"]


@pytest.mark.parametrize("at", ["first", "middle", "last"])
@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh process"])
def test_a_copied_checkpoint_has_the_values_it_was_copied_with(
    at: str, fresh: bool, savers: tuple[Any, ...], server: LocalServer, namespace: str
) -> None:
    """`__copy__` puts full values without new versions behind the grandparent."""
    graph = linear(savers[0])
    graph.invoke({"words": ["in"], "note": "n" * 5_000}, thread())
    found = list(graph.get_state_history(thread()))
    source = {"first": found[-1], "middle": found[len(found) // 2], "last": found[0]}[at]
    if fresh:
        graph = linear(MilepostSaver(server.target, namespace=namespace))
    copied = graph.update_state(source.config, None, as_node="__copy__")
    now = graph.get_state(copied)
    assert now.values == source.values
    assert now.next == source.next
    assert now.metadata["source"] == "fork"
    assert graph.invoke(None, copied)["words"][-1] == "three"
    if fresh:
        graph.checkpointer.close()


def test_update_state_and_a_stateful_subgraph(savers: tuple[Any, ...]) -> None:
    seen = []
    for saver in savers:
        inner = StateGraph(Basic)
        inner.add_node("add", lambda state: {"words": [str(len(state["words"]))]})
        inner.add_edge(START, "add")
        outer = StateGraph(Basic)
        outer.add_node("inner", inner.compile(checkpointer=True))
        outer.add_edge(START, "inner")
        graph = outer.compile(checkpointer=saver)
        results = [graph.invoke({"words": [word]}, thread()) for word in ("a", "b")]
        graph.update_state(thread(), {"words": ["late"]})
        seen.append((results, history(graph, thread()), [len(list(saver.list(thread(checkpoint_ns="inner"))))]))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_pruned_thread_with_a_delta_channel_goes_on_as_if_it_were_whole(
    durability: Any, savers: tuple[Any, ...]
) -> None:
    seen = []
    for saver in savers:
        graph = delta(saver)
        for turn in range(4):
            graph.invoke({"log": [f"in {turn}"]}, thread(), durability=durability)
            if isinstance(saver, MilepostSaver):
                saver.prune(["t"])
        seen.append((snapshot(graph.get_state(thread()))["values"], graph.invoke({"log": ["x"]}, thread())))
    assert seen[0] == seen[1]
    assert len(seen[0][1]["log"]) == 5 * 4


def test_an_encrypted_thread_shows_nothing_to_the_server(server: LocalServer, namespace: str) -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    with MilepostSaver(server.target, namespace=namespace, serde=serde) as saver:
        graph = tool_loop(saver)
        result = graph.invoke({"messages": [HumanMessage("secret-7f3a", id="hi")]}, thread())
        assert graph.get_state(thread()).values == result
        assert len(list(graph.get_state_history(thread()))) == 7
    with grpc.insecure_channel(server.target) as channel:
        stub = CheckpointStoreStub(channel)
        page = stub.List(pb.ListRequest(namespace=namespace, workflow_id="t", include_state=True, include_records=True))
    values = [value for found in page.checkpoints for value in found.state.values()]
    assert values
    assert {value.codec for value in values} <= {"msgpack+aes", "null+aes"}
    assert b"secret-7f3a" not in page.SerializeToString()


def test_unchanged_channels_are_neither_sent_nor_stored_again(server: LocalServer, namespace: str) -> None:
    class Wide(TypedDict, total=False):
        big: bytes
        turn: int

    builder = StateGraph(Wide)
    builder.add_node("step", lambda state: {"turn": state["turn"] + 1})
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: END if state["turn"] > 20 else "step", ["step", END])
    with (
        MilepostSaver(server.target, namespace=namespace) as saver,
        Client(server.target, namespace=namespace) as client,
    ):
        builder.compile(checkpointer=saver).invoke({"big": os.urandom(100_000), "turn": 0}, thread())
        stored = client.workflow("t")
        assert stored.checkpoint_count == 23
        # Twice: the input is a channel of its own before it is the state's.
        assert stored.stored_bytes < 2 * 100_000 + 23 * 2_000


async def test_one_saver_serves_many_threads_and_an_event_loop_at_once(saver: MilepostSaver) -> None:
    graph = fan_out(saver)

    def run_blocking(number: int) -> Any:
        return graph.invoke({}, thread(f"blocking-{number}"))

    runs = [asyncio.to_thread(run_blocking, number) for number in range(8)]
    runs += [graph.ainvoke({}, thread(f"asyncio-{number}")) for number in range(8)]
    assert [sorted(result["results"]) for result in await asyncio.gather(*runs)] == [[10, 20, 30, 40]] * 16
    assert len({each.config["configurable"]["thread_id"] async for each in saver.alist(None)}) == 16
    await saver.aclose()


class NotingSerializer(JsonPlusSerializer):
    """Notes the thread in which it works."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: dict[str, set[str]] = {}

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self._note("dumps", obj)
        return super().dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        found = super().loads_typed(data)
        self._note("loads", found)
        return found

    def _note(self, what: str, value: Any) -> None:
        if isinstance(value, str) and value:
            self.threads.setdefault(f"{what} {value[0]}", set()).add(threading.current_thread().name)


async def test_large_values_are_turned_into_bytes_and_back_beside_the_event_loop(
    server: LocalServer, namespace: str
) -> None:
    serde = NotingSerializer()
    here = {threading.current_thread().name}
    async with MilepostSaver(server.target, namespace=namespace, serde=serde, compress_over_bytes=None) as saver:
        large, small = "L" * 200_000, "s" * 200
        for value in (small, large):
            made = make_checkpoint({"x": value}, {"x": f"{value[0]}.1"})
            config = await saver.aput(thread(), made, metadata_of(), {"x": f"{value[0]}.1"})
            await saver.aput_writes(config, [("x", value)], "task")
            found = await saver.aget_tuple(config)
            assert found is not None
            assert (found.checkpoint["channel_values"], found.pending_writes) == ({"x": value}, [("task", "x", value)])
    assert serde.threads["dumps s"] == serde.threads["loads s"] == here
    assert not serde.threads["dumps L"] & here
    assert not serde.threads["loads L"] & here


def test_the_history_names_the_nodes_that_ran(savers: tuple[Any, ...], server: LocalServer, namespace: str) -> None:
    fan_out(savers[0]).invoke({}, thread())
    with Client(server.target, namespace=namespace) as client:
        found = list(client.list("t"))
    assert [each.current_step for each in found] == ["sum", "work", "split", "__start__", "__input__"]
    assert [each.metadata["source"] for each in found] == ["loop"] * 4 + ["input"]
    assert all(each.definition == "langgraph" for each in found)
    # Also of a run that goes on from what it loaded.
    graph = nested(savers[0])
    graph.invoke({"words": []}, thread("u"))
    graph.invoke(Command(resume="ada"), thread("u"))
    with Client(server.target, namespace=namespace) as client:
        steps = [each.current_step for each in client.list("u", scope=None)]
    before = ["__input__", "__start__", "before"]
    assert sorted(steps) == sorted([*before, "__input__", "__start__", "ask", "after", "inner", "end"])


def test_a_strict_allowlist_makes_a_copy_that_shares_the_connection(server: LocalServer, namespace: str) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    with MilepostSaver(server.target, namespace=namespace, serde=strict) as saver:
        clone = saver.with_allowlist({("some.module", "Thing")})
        assert clone is not saver
        assert linear(clone).invoke({"words": []}, thread())["words"] == ["one", "two", "three"]
        assert saver.get_tuple(thread()) is not None
        del clone
        assert saver.get_tuple(thread()) is not None


@pytest.mark.slow
def test_a_saver_made_before_a_fork_works_in_the_child(server: LocalServer, namespace: str) -> None:
    """As in a server that loads the application and then forks its workers."""
    program = """
import os, sys
from milepost.adapters.langgraph import MilepostSaver
saver = MilepostSaver(sys.argv[1], namespace=sys.argv[2])
config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
checkpoint = {"v": 4, "id": "1", "ts": "", "channel_values": {"x": 1}, "channel_versions": {"x": "1.1"},
              "versions_seen": {}, "updated_channels": None}
if sys.argv[3] == "used":
    assert saver.get_tuple(config) is None
pid = os.fork()
if not pid:
    saver.put(config, checkpoint, {}, {})
    os._exit(0 if saver.get_tuple(config).checkpoint == checkpoint else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert saver.get_tuple(config).checkpoint == checkpoint
saver.close()
"""
    for use in ("unused", "used"):
        command = [sys.executable, "-c", program, server.target, f"{namespace}-{use}", use]
        subprocess.run(command, check=True, timeout=60)


@pytest.mark.slow
def test_a_superstep_may_leave_as_much_beside_a_checkpoint_as_a_state_holds(saver: MilepostSaver) -> None:
    class Parts(TypedDict, total=False):
        parts: Annotated[list[bytes], operator.add]

    builder = StateGraph(Parts)
    builder.add_node("split", lambda state: {})
    builder.add_node("work", lambda state: {"parts": [os.urandom(200_000)]})
    builder.add_edge(START, "split")
    builder.add_conditional_edges("split", lambda state: [Send("work", {}) for _ in range(70)], ["work"])
    graph = builder.compile(checkpointer=saver)
    result = graph.invoke({"parts": []}, thread())
    assert graph.get_state(thread()).values == result
    records = [len(found.pending_writes or ()) for found in saver.list(thread())]
    assert records == [0, 70, 70, 2]
    with pytest.raises(LimitExceededError, match="'parts'"):
        graph.invoke({"parts": []}, thread())
