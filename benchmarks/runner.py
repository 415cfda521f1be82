"""Running workflows on a server: the last steps of a long one beside the first, and beside another library.

What the runner costs beside steps and saves is measured in `workflows`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.options import Options
from benchmarks.processes import ServerError, real_server, scratch
from benchmarks.report import Figure, ratio
from milepost import AsyncClient, Client, Workflow

NAME = "runner"
ENTRIES = 10
VALUE_CHARS = 200
"""Ten entries of 200 characters: a state of 2 KB, of which a step changes one."""

MANY = 16
"""Workflows that a worker runs at once."""

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


def async_chain_of(steps: int) -> Workflow[dict[str, Any]]:
    """Return the same sequence, of async steps."""
    workflow: Workflow[dict[str, Any]] = Workflow("async-chain", dict[str, Any])
    for number in range(steps):
        workflow.step(_async_step(number), id=f"step-{number}")
    return workflow


def _step(number: int, look: Callable[[int], None] | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def execute(_: dict[str, Any]) -> dict[str, Any]:
        if look is not None:
            look(number)
        return change(number)

    return execute


def _async_step(number: int) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
    async def execute(_: dict[str, Any]) -> dict[str, Any]:
        return change(number)

    return execute


def run_s(workflow: Workflow[dict[str, Any]], store: Any, **options: Any) -> float:
    """Run a workflow once, and return how long that took, in seconds."""
    workflow_id, runner = new_id("run"), workflow.bind(store, **options)
    start = time.perf_counter()
    runner.run(workflow_id, input_state())
    return time.perf_counter() - start


def threads_s(workflow: Workflow[dict[str, Any]], store: Client, many: int) -> float:
    """Run a workflow so many times at once, in a thread each, and return how long that took, in seconds."""
    runner = workflow.bind(store)
    with ThreadPoolExecutor(many) as threads:
        start = time.perf_counter()
        runs = [threads.submit(runner.run, new_id("run"), input_state()) for _ in range(many)]
        for run in runs:
            run.result()
        return time.perf_counter() - start


def asyncio_s(workflow: Workflow[dict[str, Any]], address: str, many: int) -> float:
    """Run a workflow so many times at once on an event loop, and return how long that took, in seconds."""

    async def run_all() -> float:
        async with AsyncClient(address) as store:
            runner = workflow.bind(store)
            start = time.perf_counter()
            await asyncio.gather(*(runner.run(new_id("run"), input_state()) for _ in range(many)))
            return time.perf_counter() - start

    return asyncio.run(run_all())


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    with scratch(options.directory) as directory:
        with real_server(directory / "data") as server, Client(server.address) as client:
            yield from long_run(client, options)
        yield from beside_dbos(directory, options)


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
    with (
        real_server(directory / "beside") as server,
        Client(server.address) as client,
        contextlib.closing(Dbos(directory / "dbos.sqlite")) as other,
    ):
        yield from one_at_a_time(client, other, options)
        yield from many_at_once(client, server.address, other, options)


def one_at_a_time(client: Client, other: Dbos, options: Options) -> Iterator[Figure]:
    """Measure a workflow that has the machine to itself: a step is one flush, which both wait for."""
    steps, turns = 100, options.amount(15, 5)
    workflow = chain_of(steps)
    theirs: list[float] = []
    ours: dict[str, list[float]] = {"sync": [], "pipelined": []}
    for turn in range(turns + 1):
        times = [other.run_s("one", 1, steps), *(run_s(workflow, client, durability=mode) for mode in ours)]
        if turn:
            for series, one in zip((theirs, *ours.values()), times, strict=True):
                series.append(steps / one)
    for mode, series in ours.items():
        yield beside(f"steps a second, {mode}", series, theirs, f"{turns} turns of {steps}")


def many_at_once(client: Client, address: str, other: Dbos, options: Options) -> Iterator[Figure]:
    """Measure a worker, which runs many workflows at once. Each step is flushed before the next one of its workflow."""
    steps, turns = 50, options.amount(5, 2)
    workflow, async_workflow = chain_of(steps), async_chain_of(steps)
    ours: dict[str, Callable[[], float]] = {
        "threads": lambda: threads_s(workflow, client, MANY),
        "asyncio": lambda: asyncio_s(async_workflow, address, MANY),
    }
    for way, run_all_s in ours.items():
        mine, theirs = [], []
        for turn in range(turns + 1):
            times = other.run_s(way, MANY, steps), run_all_s()
            if turn:
                theirs.append(MANY * steps / times[0])
                mine.append(MANY * steps / times[1])
        yield beside(f"steps a second, {MANY} at once, {way}", mine, theirs, f"{turns} turns of {MANY} times {steps}")


def beside(name: str, ours: list[float], theirs: list[float], turns: str) -> Figure:
    """Return the ratio of two rates."""
    rates = f"{statistics.median(ours):,.0f} and {statistics.median(theirs):,.0f} steps a second"
    return ratio(
        NAME, f"{name}, to DBOS on SQLite", ours, theirs, target=3.0, sense="at least", detail=f"{rates}; {turns}"
    )


class Dbos:
    """The other library, in a process of its own."""

    def __init__(self, file: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.dbos_steps", str(file), str(VALUE_CHARS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if not key.startswith("DBOS_")},
        )
        self._expect("ready")

    def run_s(self, way: str, many: int, steps: int) -> float:
        """Run a workflow so many times at once, and return how long that took, in seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{way} {many} {steps}\n")
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
