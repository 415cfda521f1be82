"""A worker in a process of its own: runs a workflow against a server, tells a test where it stands, and obeys it.

    with Worker("gated", "w1", target=server.target, journal=journal.path) as worker:
        worker.wait_for("at", "b")     # the step has begun, and holds
        worker.open_gate()             # it goes on
        outcome = worker.outcome()

It tells a line of JSON for each thing that happens. `definitions` below are what it can run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from milepost import AsyncClient, Client, MilepostError, Retry, Workflow
from tests.support.effects_journal import EffectsJournal

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 60.0


class Worker:
    """The process, as a test sees it.

    Args:
        definition: Name of one of `DEFINITIONS`.
        options: Of `Workflow.bind`.
        call: What is called: `run`, or `resume`.
        state: The input.
        is_async: On an event loop.
    """

    def __init__(
        self,
        definition: str,
        workflow_id: str,
        *,
        target: str,
        journal: Path,
        call: str = "run",
        state: dict[str, Any] | None = None,
        is_async: bool = False,
        lease_wait_s: float | None = None,
        **options: Any,
    ) -> None:
        order = {
            "definition": definition,
            "workflow_id": workflow_id,
            "target": target,
            "journal": str(journal),
            "call": call,
            "state": {} if state is None and call == "run" else state,
            "is_async": is_async,
            "lease_wait_s": lease_wait_s,
            "options": options,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.runner_worker", json.dumps(order)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
        self.pid = self._process.pid
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, key: str, value: object = None) -> dict[str, Any]:
        """Return the next line that has a key (with that value); other lines are passed over."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, f"the worker ended before it told {key}={value!r}"
            if key in line and (value is None or line[key] == value):
                return line

    def open_gate(self) -> None:
        """Let the step that holds go on, or the next one that will."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def outcome(self) -> dict[str, Any]:
        """Wait for its end and return its last line: `outcome` and `state`, or `error` and `text`."""
        line = self.wait_for("outcome")
        assert self._process.wait(DEADLINE_S) == 0
        return line

    def freeze(self) -> None:
        """Stop it where it stands; its connections stay."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it by SIGKILL, and return when it is gone."""
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Return its exit status when it has ended."""
        return self._process.wait(DEADLINE_S)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *details: object) -> None:
        if self._process.poll() is None:
            self.kill()
        self._reader.join(DEADLINE_S)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._lines.put(json.loads(line))
        self._lines.put(None)


# What follows is the worker's own side.

Definition = Callable[[EffectsJournal], Workflow[dict[str, Any]]]


def tell(**line: object) -> None:
    """Tell the test something."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def wait_at_gate() -> None:
    """Hold until the test opens the gate."""
    sys.stdin.readline()


def note(journal: EffectsJournal, context: Any, what: str = "effect") -> None:
    """Write an effect of a step."""
    journal.write(
        what,
        context.step,
        workflow_id=context.workflow_id,
        key=context.idempotency_key,
        attempt=context.attempt,
    )


def gated(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """Four steps; the second holds at the gate before its effect."""
    workflow: Workflow[dict[str, Any]] = Workflow("gated", dict[str, Any])

    def a(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"a": 1}

    def b(_: dict[str, Any], context: Any) -> dict[str, Any]:
        tell(at="b")
        wait_at_gate()
        note(journal, context)
        return {"b": os.getpid()}

    def c(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"c": 3}

    for step in (a, b, c):
        workflow.step(step)
    return workflow


def gated_async(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """The same, but the step that holds is async, and is cancelled as a task."""
    workflow: Workflow[dict[str, Any]] = Workflow("gated", dict[str, Any])

    async def a(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"a": 1}

    async def b(_: dict[str, Any], context: Any) -> dict[str, Any]:
        tell(at="b")
        await asyncio.get_running_loop().run_in_executor(None, wait_at_gate)
        note(journal, context)
        return {"b": os.getpid()}

    async def c(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"c": 3}

    for step in (a, b, c):
        workflow.step(step)
    return workflow


def paced(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """Thirty steps of 50 ms that tell when they are done."""
    workflow: Workflow[dict[str, Any]] = Workflow("paced", dict[str, Any])

    def work(state: dict[str, Any], context: Any) -> dict[str, Any]:
        time.sleep(0.05)
        note(journal, context)
        tell(done=context.step)
        return {"trail": [*state.get("trail", []), context.step]}

    for number in range(30):
        workflow.step(work, id=f"step-{number}")
    return workflow


def slow(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """A step that heeds nothing and takes a second, with a timeout of 0.2 s and three attempts."""
    workflow: Workflow[dict[str, Any]] = Workflow("slow", dict[str, Any])

    def deaf(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context, "begin")
        time.sleep(1.0)
        note(journal, context, "end")
        return {"attempt": context.attempt}

    workflow.step(deaf, timeout_s=0.2, retry=Retry(attempts=3, initial_s=0.01))
    return workflow


def deadly(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """A step that kills its process, behind one that does not."""
    workflow: Workflow[dict[str, Any]] = Workflow("deadly", dict[str, Any])

    def good(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"good": True}

    def bad(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    workflow.step(good)
    workflow.step(bad)
    return workflow


def approval(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """Asks, waits for a decision, and acts on it."""
    workflow: Workflow[dict[str, Any]] = Workflow("approval", dict[str, Any])

    def ask(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"asked": True}

    def decide(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"by": context.signal["by"]}

    def act(state: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {"acted": f"as {state['by']} said"}

    workflow.step(ask)
    workflow.step(decide, waits_for="approval")
    workflow.step(act)
    return workflow


def heedful(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """A step that works until it is asked to end, and one behind it."""
    workflow: Workflow[dict[str, Any]] = Workflow("heedful", dict[str, Any])

    def work(_: dict[str, Any], context: Any) -> dict[str, Any]:
        tell(at="work")
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            context.check()
            time.sleep(0.01)
        return {}

    def behind(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {}

    workflow.step(work)
    workflow.step(behind)
    return workflow


def heedful_async(journal: EffectsJournal) -> Workflow[dict[str, Any]]:
    """The same with an async step, which is cancelled as a task."""
    workflow: Workflow[dict[str, Any]] = Workflow("heedful", dict[str, Any])

    async def work(_: dict[str, Any]) -> dict[str, Any]:
        tell(at="work")
        await asyncio.sleep(DEADLINE_S)
        return {}

    def behind(_: dict[str, Any], context: Any) -> dict[str, Any]:
        note(journal, context)
        return {}

    workflow.step(work)
    workflow.step(behind)
    return workflow


DEFINITIONS: Final[dict[str, Definition]] = {
    function.__name__: function
    for function in (gated, gated_async, paced, slow, deadly, approval, heedful, heedful_async)
}


def main() -> None:
    """Carry out the order of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("order", type=json.loads)
    order: dict[str, Any] = parser.parse_args().order
    workflow = DEFINITIONS[order["definition"]](EffectsJournal(Path(order["journal"])))
    arguments = [order["workflow_id"], *([order["state"]] if order["call"] != "resume" else [])]

    async def run_async() -> Any:
        async with AsyncClient(order["target"]) as client:
            runner = workflow.bind(client, **order["options"])
            return await getattr(runner, order["call"])(*arguments, lease_wait_s=order["lease_wait_s"])

    try:
        if order["is_async"]:
            run = asyncio.run(run_async())
        else:
            with Client(order["target"]) as client:
                runner = workflow.bind(client, **order["options"])
                run = getattr(runner, order["call"])(*arguments, lease_wait_s=order["lease_wait_s"])
    except MilepostError as error:
        tell(outcome=type(error).__name__, text=str(error))
    else:
        tell(outcome=run.status, state=run.state, waiting_for=run.waiting_for, resumed=run.resumed)


if __name__ == "__main__":
    main()
