"""Kill a LangGraph agent in the middle of a step, start it again, and watch it go on: no model, no network.

A scripted model asks for two weather reports at once and then for a booking. The process that runs the agent is killed
with SIGKILL while one report is finished and the other is not. A second process goes on: it fetches the unfinished
report alone, and stops at the booking, which a person has to approve. A third process brings the approval.

Every tool call is also noted in a journal, a plain file that neither LangGraph nor milepost knows of. The exit status
is 0 only if it says that each tool did its work once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt

from milepost.adapters.langgraph import MilepostSaver
from milepost.testing import local_server

CONFIG: Any = {"configurable": {"thread_id": "trip-1"}}
SLOW_CITY = "Oslo"
DEADLINE_S = 30.0


class State(TypedDict):
    """What the agent knows."""

    messages: Annotated[list[AnyMessage], add_messages]


def model(state: State) -> dict[str, Any]:
    """Say what a language model would say: fetch two reports, book, be done."""
    answers = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    if not answers:
        calls = [{"name": "weather", "args": {"city": city}, "id": city} for city in ("Lima", SLOW_CITY)]
        return {"messages": [AIMessage("I look at both.", tool_calls=calls)]}
    if len(answers) == 2:
        return {"messages": [AIMessage("Lima.", tool_calls=[{"name": "book", "args": {"city": "Lima"}, "id": "b"}])]}
    return {"messages": [AIMessage(f"Done: {answers[-1].content}.")]}


def build(saver: MilepostSaver, journal: Path, *, is_to_be_killed: bool) -> Any:
    """Return the agent: the model, and a task for each tool call it makes."""

    def note(what: str) -> None:
        with journal.open("a", encoding="utf-8") as file:
            print(what, file=file)

    def tool(state: ToolCall) -> dict[str, Any]:
        city = state["args"]["city"]
        if state["name"] == "book":
            # Stops the run here. It comes back with the answer, and only then goes on.
            answer = interrupt(f"Book {city}?")
            note(f"book {city}")
            result = f"booked {city}" if answer == "yes" else "not booked"
        else:
            if city == SLOW_CITY and is_to_be_killed:
                threading.Event().wait(DEADLINE_S)
            note(f"weather {city}")
            result = f"sunny in {city}"
        return {"messages": [ToolMessage(result, tool_call_id=state["id"])]}

    def route(state: State) -> list[Send] | str:
        last = state["messages"][-1]
        calls = last.tool_calls if isinstance(last, AIMessage) else []
        return [Send("tool", call) for call in calls] or "__end__"

    builder = StateGraph(State)
    builder.add_node("model", model)
    builder.add_node("tool", tool)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", route, ["tool", "__end__"])
    builder.add_edge("tool", "model")
    return builder.compile(checkpointer=saver)


def work(target: str, journal: Path, mode: str) -> None:
    """Run the agent from wherever it stands: what each of the processes does."""
    with MilepostSaver(target) as saver:
        agent = build(saver, journal, is_to_be_killed=mode == "start")
        inputs: dict[str, Any] = {
            "start": {"messages": [HumanMessage("Lima or Oslo?")]},
            "resume": None,
            "approve": Command(resume="yes"),
        }
        result = agent.invoke(inputs[mode], CONFIG)
        for stop in result.get("__interrupt__", []):
            print(f"  waits: {stop.value}")
            return
        print(f"  {result['messages'][-1].content}")


def finished_tools(saver: MilepostSaver) -> int:
    """Return how many tools of the step under way have stored their result."""
    found = saver.get_tuple(CONFIG)
    writes = (found.pending_writes or []) if found else []
    # What the model wrote is pending too, for a moment, beside the checkpoint before.
    return sum(channel == "messages" and isinstance(left[0], ToolMessage) for _, channel, left in writes)


def main() -> int:
    """Tell the story; return the exit status."""
    with tempfile.TemporaryDirectory() as scratch, local_server() as server, MilepostSaver(server.target) as saver:
        journal = Path(scratch) / "journal"
        command = [sys.executable, __file__, server.target, str(journal)]
        worker = subprocess.Popen([*command, "start"])
        print(f"worker {worker.pid} begins")
        deadline = time.monotonic() + DEADLINE_S
        while not finished_tools(saver) and time.monotonic() < deadline:
            time.sleep(0.02)
        worker.kill()
        worker.wait()
        print(f"  one report is stored, the other is not: kill -9 {worker.pid}")
        for mode in ("resume", "approve"):
            print(f"another process: {mode}", flush=True)
            subprocess.run([*command, mode], check=True, timeout=DEADLINE_S)
        did = journal.read_text(encoding="utf-8").split("\n")[:-1]
        print(f"the tools did: {', '.join(did)}")
        return 0 if did == ["weather Lima", f"weather {SLOW_CITY}", "book Lima"] else 1


if __name__ == "__main__":
    if len(sys.argv) == 4:
        work(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main())
