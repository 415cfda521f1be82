"""A worker that runs a graph of parallel nodes and notes in a file which of them ran; killed and resumed by tests.

python -m tests.support.langgraph_worker TARGET NAMESPACE LOG DURABILITY sync|async block|finish
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import Send

from milepost.adapters.langgraph import MilepostSaver

CONFIG: Any = {"configurable": {"thread_id": "t"}}
BLOCK_S = 60.0
"""How long a node waits to be killed."""


class State(TypedDict, total=False):
    done: Annotated[list[str], operator.add]


def build(saver: MilepostSaver, log: Path, *, blocks: bool) -> Any:
    """Two quick nodes and three Sends beside one that waits to be killed; then one that needs them all."""

    def note(name: str) -> None:
        with log.open("a") as file:
            file.write(f"{name}\n")
            file.flush()
            os.fsync(file.fileno())

    def quick(name: str) -> Any:
        def run(state: State) -> State:
            note(name)
            return {"done": [name]}

        return run

    def slow(state: State) -> State:
        note("slow started")
        if blocks:
            threading.Event().wait(BLOCK_S)
            sys.exit("was not killed")
        return {"done": ["slow"]}

    def item(state: Any) -> State:
        note(f"item {state['number']}")
        return {"done": [f"item {state['number']}"]}

    builder = StateGraph(State)
    builder.add_node("first", quick("first"))
    for name in ("left", "right", "last"):
        builder.add_node(name, quick(name))
    builder.add_node("slow", slow)
    builder.add_node("item", item)
    builder.add_edge(START, "first")
    for name in ("left", "right", "slow"):
        builder.add_edge("first", name)
    builder.add_conditional_edges("first", lambda _: [Send("item", {"number": n}) for n in range(3)], ["item"])
    builder.add_edge(["left", "right", "slow", "item"], "last")
    return builder.compile(checkpointer=saver)


def main(arguments: list[str]) -> None:
    """Run the graph: from the start where it has no checkpoint, else from where it stands."""
    target, namespace, log, durability, half, mode = arguments
    with MilepostSaver(target, namespace=namespace) as saver:
        graph = build(saver, Path(log), blocks=mode == "block")
        inputs: Any = {"done": []} if saver.get_tuple(CONFIG) is None else None
        if half == "sync":
            result = graph.invoke(inputs, CONFIG, durability=durability)
        else:
            result = asyncio.run(graph.ainvoke(inputs, CONFIG, durability=durability))
        sys.stdout.write(" ".join(sorted(result["done"])) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
