"""What running a workflow costs on top of storing it, step by step, and beside another library that runs workflows."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.options import Options
from benchmarks.processes import ServerError, real_server, scratch
from benchmarks.report import Figure, ratio
from milepost import Checkpoint, Client, InMemoryStore, Saved, Workflow
from milepost.protocols import CheckpointStore

NAME = "runner"
ENTRIES = 10
VALUE_CHARS = 200
"""Ten entries of 200 characters: a state of 2 KB, of which a step changes one."""
OWN_COST_TARGET_US = 60.0
MICRO = 1e6

_ids = itertools.count(1)


def input_state() -> dict[str, Any]:
    """Return a state of 2 KB."""
    return {f"entry-{number}": value_of(number) for number in range(ENTRIES)}


def value_of(number: int) -> str:
    """Return a value that differs from its neighbours."""
    return f"{number:05d}" * (VALUE_CHARS // 5)


def new_id(kind: str) -> str:
    """Return a workflow id that was not used before."""
    return f"{kind}-{next(_ids)}"


def change(number: int) -> dict[str, Any]:
    """Return what the step of that number leaves."""
    return {f"entry-{number % ENTRIES}": value_of(number)}


def chain_of(steps: int, look: Callable[[int], None] | None = None) -> Workflow[dict[str, Any]]:
    """Return a sequence of steps, each of which changes one entry."""
    workflow: Workflow[dict[str, Any]] = Workflow("chain", dict[str, Any])
    for number in range(steps):
        workflow.step(_step(number, look), id=f"step-{number}")
    return workflow


def _step(number: int, look: Callable[[int], None] | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def execute(_: dict[str, Any]) -> dict[str, Any]:
        if look is not None:
            look(number)
        return change(number)

    return execute


def run_s(workflow: Workflow[dict[str, Any]], store: Any, **options: Any) -> float:
    """Run a workflow once, and return how long that took, in seconds."""
    workflow_id, runner = new_id("run"), workflow.bind(store, **options)
    start = time.perf_counter()
    runner.run(workflow_id, input_state())
    return time.perf_counter() - start


def saves_s(store: CheckpointStore, steps: int) -> float:
    """Save what such a workflow saves, call by call, and return how long that took, in seconds."""
    workflow_id, state = new_id("saves"), input_state()
    start = time.perf_counter()
    after: Checkpoint | Saved = store.save(workflow_id, state=state, after="start")
    for number in range(steps):
        state.update(change(number))
        name = f"step-{number}"
        after = store.save(workflow_id, state=state, current_step=name, completed_steps=(name,), after=after)
    return time.perf_counter() - start


def hops_s(count: int) -> float:
    """Hand something to another thread and back, so many times, and return how long that took, in seconds."""
    there: SimpleQueue[int] = SimpleQueue()
    back: SimpleQueue[int] = SimpleQueue()

    def serve() -> None:
        for _ in range(count):
            back.put(there.get())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    start = time.perf_counter()
    for number in range(count):
        there.put(number)
        back.get()
    elapsed_s = time.perf_counter() - start
    thread.join()
    return elapsed_s


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    yield own_cost(options)
    with scratch(options.directory) as directory:
        with real_server(directory / "data") as server, Client(server.address) as client:
            yield from beside_bare_saves(client, options)
            yield from long_run(client, options)
        yield from beside_dbos(directory, options)


def own_cost(options: Options) -> Figure:
    """Measure a step on the store in memory, less what the store takes."""
    steps, turns = 500, options.amount(15, 5)
    workflow = chain_of(steps)
    own: list[float] = []
    hops: list[float] = []
    for _ in range(turns + 1):
        bare_s, ran_s = saves_s(InMemoryStore(), steps), run_s(workflow, InMemoryStore())
        own.append((ran_s - bare_s) / steps * MICRO)
        hops.append(hops_s(steps) / steps * MICRO)
    own, hops = own[1:], hops[1:]
    return Figure(
        NAME,
        "own cost of a step, on the store in memory",
        statistics.median(own),
        "us",
        OWN_COST_TARGET_US,
        "at most",
        min(own),
        max(own),
        f"run less bare saves, {turns} turns of {steps} steps; a hop to a thread and back takes "
        f"{statistics.median(hops):.0f} us",
    )


def beside_bare_saves(client: Client, options: Options) -> Iterator[Figure]:
    """Measure a step on a server beside one bare save of the same."""
    steps, turns = 100, options.amount(15, 5)
    workflow = chain_of(steps)
    bare: list[float] = []
    ran: dict[str, list[float]] = {"sync": [], "pipelined": []}
    for turn in range(turns + 1):
        times = [saves_s(client, steps), *(run_s(workflow, client, durability=mode) for mode in ran)]
        if turn:
            for series, one in zip((bare, *ran.values()), times, strict=True):
                series.append(one / steps)
    for (mode, series), target in zip(ran.items(), (1.25, 0.5), strict=True):
        yield ratio(
            NAME,
            f"a step, {mode}, to a bare save",
            series,
            bare,
            target=target,
            sense="at most",
            detail=f"step {statistics.median(series) * 1000:.2f} ms, save {statistics.median(bare) * 1000:.2f} ms; "
            f"{turns} turns of {steps}",
        )


def long_run(client: Client, options: Options) -> Iterator[Figure]:
    """Measure the last steps of a long run beside the first ones."""
    steps, part = options.amount(10_000, 2_000), 200
    marks = [0, part, steps - part - 1, steps - 1]
    workflow_id = new_id("long")
    seen: list[tuple[float, int]] = []

    def look(number: int) -> None:
        if number in marks:
            before = time.perf_counter()
            stored_bytes = client.workflow(workflow_id).stored_bytes
            # The look itself belongs to no part.
            seen.append((before if len(seen) % 2 else time.perf_counter(), stored_bytes))

    chain_of(steps, look).bind(client).run(workflow_id, input_state())
    (first_start, first_end, last_start, last_end) = seen
    for index, what, unit in ((0, "time", "s"), (1, "bytes", "B")):
        first, last = first_end[index] - first_start[index], last_end[index] - last_start[index]
        yield Figure(
            NAME,
            f"the last of {steps:,} steps to the first, {what}",
            last / first,
            "x",
            1.2,
            "at most",
            detail=f"{part} steps each: {last:.4g} {unit} and {first:.4g} {unit}",
        )


def beside_dbos(directory: Path, options: Options) -> Iterator[Figure]:
    """Measure a step beside one of DBOS on SQLite, where that is installed."""
    if importlib.util.find_spec("dbos") is None:
        sys.stderr.write("runner: the package dbos is not installed, so there is nothing to compare with\n")
        return
    steps, turns = 100, options.amount(15, 5)
    workflow = chain_of(steps)
    theirs: list[float] = []
    ours: dict[str, list[float]] = {"sync": [], "pipelined": []}
    with (
        real_server(directory / "beside") as server,
        Client(server.address) as client,
        contextlib.closing(Dbos(directory / "dbos.sqlite", steps)) as other,
    ):
        for turn in range(turns + 1):
            times = [other.run_s(), *(run_s(workflow, client, durability=mode) for mode in ours)]
            if turn:
                for series, one in zip((theirs, *ours.values()), times, strict=True):
                    series.append(steps / one)
    for mode, series in ours.items():
        yield ratio(
            NAME,
            f"steps a second, {mode}, to DBOS on SQLite",
            series,
            theirs,
            target=3.0,
            sense="at least",
            detail=f"{statistics.median(series):,.0f} and {statistics.median(theirs):,.0f} steps a second; "
            f"{turns} turns of {steps}",
        )


class Dbos:
    """The other library, in a process of its own."""

    def __init__(self, file: Path, steps: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.dbos_steps", str(file), str(steps), str(VALUE_CHARS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if not key.startswith("DBOS_")},
        )
        self._expect("ready")

    def run_s(self) -> float:
        """Run a workflow once, and return how long that took, in seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._expect(""))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _expect(self, prefix: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line or not line.startswith(prefix):
            self._process.kill()
            self._process.wait()
            raise ServerError(f"the process that runs DBOS said {line!r}")
        return line
