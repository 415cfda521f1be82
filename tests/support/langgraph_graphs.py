"""Small graphs that use what a saver has to carry: fan-out, subgraphs, interrupts, a tool loop, a DeltaChannel."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Send, interrupt

Graph = Any


class Basic(TypedDict, total=False):
    words: Annotated[list[str], operator.add]
    count: int
    note: str


def linear(saver: BaseCheckpointSaver[Any]) -> Graph:
    builder = StateGraph(Basic)
    builder.add_node("one", lambda state: {"words": ["one"], "count": state.get("count", 0) + 1})
    builder.add_node("two", lambda state: {"words": ["two"], "count": state["count"] + 1})
    builder.add_node("three", lambda state: {"words": ["three"]})
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    builder.add_edge("two", "three")
    return builder.compile(checkpointer=saver)


def asking_twice(saver: BaseCheckpointSaver[Any]) -> Graph:
    """One node with two interrupts, one after the other."""

    def ask(state: Basic) -> Any:
        return {"words": [str(interrupt("first?")), str(interrupt("second?"))]}

    builder = StateGraph(Basic)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    return builder.compile(checkpointer=saver)


def asking_side_by_side(saver: BaseCheckpointSaver[Any]) -> Graph:
    """Three nodes of one superstep with an interrupt each, and one without."""

    def asking(name: str) -> Any:
        return lambda state: {"words": [f"{name}:{interrupt(f'{name}?')}"]}

    builder = StateGraph(Basic)
    builder.add_node("plain", lambda state: {"words": ["plain"]})
    builder.add_edge(START, "plain")
    for name in "abc":
        builder.add_node(name, asking(name))
        builder.add_edge(START, name)
    return builder.compile(checkpointer=saver)


class Item(TypedDict):
    item: int


class Fan(TypedDict, total=False):
    items: list[int]
    results: Annotated[list[int], operator.add]
    total: int


def fan_out(saver: BaseCheckpointSaver[Any]) -> Graph:
    builder = StateGraph(Fan)
    builder.add_node("split", lambda state: {"items": [1, 2, 3, 4]})

    def work(state: Item) -> Any:
        return {"results": [state["item"] * 10]}

    builder.add_node("work", work)
    builder.add_node("sum", lambda state: {"total": sum(state["results"])})
    builder.add_edge(START, "split")
    builder.add_conditional_edges("split", lambda state: [Send("work", {"item": i}) for i in state["items"]], ["work"])
    builder.add_edge("work", "sum")
    return builder.compile(checkpointer=saver)


def nested(saver: BaseCheckpointSaver[Any]) -> Graph:
    inner = StateGraph(Basic)
    inner.add_node("ask", lambda state: {"words": [f"asked:{interrupt('name?')}"]})
    inner.add_node("after", lambda state: {"words": ["after"]})
    inner.add_edge(START, "ask")
    inner.add_edge("ask", "after")
    outer = StateGraph(Basic)
    outer.add_node("before", lambda state: {"words": ["before"]})
    outer.add_node("inner", inner.compile())
    outer.add_node("end", lambda state: {"words": ["end"]})
    outer.add_edge(START, "before")
    outer.add_edge("before", "inner")
    outer.add_edge("inner", "end")
    return outer.compile(checkpointer=saver)


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def tool_loop(saver: BaseCheckpointSaver[Any]) -> Graph:
    def model(state: Chat) -> Any:
        used = sum(isinstance(message, ToolMessage) for message in state["messages"])
        if used == 2:
            return {"messages": [AIMessage("done", id="done")]}
        call = {"name": "search", "args": {"q": used}, "id": f"call-{used}"}
        return {"messages": [AIMessage("", id=f"ai-{used}", tool_calls=[call])]}

    def tool(state: Chat) -> Any:
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        call = last.tool_calls[0]
        return {"messages": [ToolMessage(f"found {call['args']['q']}", tool_call_id=call["id"], id=call["id"] or "")]}

    builder = StateGraph(Chat)
    builder.add_node("model", model)
    builder.add_node("tool", tool)
    builder.add_edge(START, "model")
    builder.add_conditional_edges(
        "model", lambda state: "tool" if state["messages"][-1].tool_calls else END, ["tool", END]
    )
    builder.add_edge("tool", "model")
    return builder.compile(checkpointer=saver)


def extend(state: list[str] | None, writes: list[list[str]]) -> list[str]:
    return (state or []) + [word for write in writes for word in write]


class Log(TypedDict, total=False):
    log: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=3)]
    turn: int


def delta(saver: BaseCheckpointSaver[Any]) -> Graph:
    builder = StateGraph(Log)
    builder.add_node("left", lambda state: {"log": [f"left {state.get('turn')}"]})
    builder.add_node("right", lambda state: {"log": [f"right {state.get('turn')}"]})
    builder.add_node("join", lambda state: {"log": [f"joined {len(state['log'])}"], "turn": state.get("turn", 0) + 1})
    builder.add_edge(START, "left")
    builder.add_edge(START, "right")
    builder.add_edge("left", "join")
    builder.add_edge("right", "join")
    return builder.compile(checkpointer=saver)
