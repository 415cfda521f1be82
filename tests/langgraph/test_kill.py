"""Workers and servers that end in the middle: what was finished does not run again."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph

from milepost.adapters.langgraph import MilepostSaver
from milepost.testing import LocalServer, local_server
from tests.support.langgraph_worker import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

QUICK = {"left", "right", "item 0", "item 1", "item 2"}
WAIT_S = 30.0


def wait_until(is_true: Callable[[], bool]) -> None:
    """Ask again until it is so; fail after `WAIT_S`."""
    again = threading.Event()
    for _ in range(int(WAIT_S / 0.02)):
        if is_true():
            return
        again.wait(0.02)
    pytest.fail(f"not within {WAIT_S} s")


@pytest.mark.parametrize("half", ["sync", "async"])
@pytest.mark.parametrize("durability", ["sync", "async"])
def test_finished_nodes_of_a_killed_superstep_do_not_run_again(
    half: str, durability: str, server: LocalServer, saver: MilepostSaver, tmp_path: Path
) -> None:
    log = tmp_path / "ran"
    module = "tests.support.langgraph_worker"
    command = [sys.executable, "-m", module, server.target, saver.namespace, str(log), durability, half]
    root = Path(__file__).parents[2]
    with subprocess.Popen([*command, "block"], cwd=root) as worker:
        try:
            wait_until(lambda: _flat(saver) == QUICK and "slow started" in log.read_text())
        finally:
            worker.kill()
    ran = Counter(log.read_text().split("\n"))
    assert {name for name in QUICK if ran[name] == 1} == QUICK

    finished = subprocess.run([*command, "finish"], cwd=root, check=True, capture_output=True, text=True, timeout=60)

    assert finished.stdout.split("\n")[0] == "first item 0 item 1 item 2 last left right slow"
    ran = Counter(line for line in log.read_text().split("\n") if line)
    assert ran == Counter({**dict.fromkeys(QUICK, 1), "first": 1, "last": 1, "slow started": 2})


def _flat(saver: MilepostSaver) -> set[str]:
    """Return what tasks of the step under way have stored as done."""
    found = saver.get_tuple(CONFIG)
    writes = [] if found is None else found.pending_writes or []
    return {name for _, channel, value in writes if channel == "done" for name in value}


class Count(TypedDict, total=False):
    count: int


@pytest.mark.parametrize("durability", ["sync", "async"])
def test_a_run_goes_on_over_a_server_that_is_killed_and_comes_back(durability: Any, tmp_path: Path) -> None:
    with local_server(data_dir=tmp_path / "data") as server, MilepostSaver(server.target) as saver:
        starts: list[threading.Thread] = []

        def step(state: Count) -> Count:
            if state["count"] in {3, 6}:
                for start in starts:
                    start.join(WAIT_S)
                server.kill()
                # It listens on the same address again while the saver is asking for it.
                starts.append(threading.Thread(target=server.start))
                starts[-1].start()
            return {"count": state["count"] + 1}

        builder = StateGraph(Count)
        builder.add_node("step", step)
        builder.add_edge(START, "step")
        builder.add_conditional_edges("step", lambda state: "step" if state["count"] < 9 else "__end__")
        graph = builder.compile(checkpointer=saver)
        assert graph.invoke({"count": 0}, CONFIG, durability=durability) == {"count": 9}
        counts = [found.values.get("count") for found in graph.get_state_history(CONFIG)]
        assert counts == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, None]
