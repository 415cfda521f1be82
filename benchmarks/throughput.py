"""Calls a second at 64 in flight: durable Save and Load against a no-op server, and BatchSave against Save."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks import payloads
from benchmarks.http2 import run_load
from benchmarks.options import Options
from benchmarks.processes import ServerProcess, noop_like, real_server, scratch
from benchmarks.report import Figure, ratio

NAME = "throughput"
IN_FLIGHT = 64
WORKFLOWS = 256
BATCH_ITEMS = 100
BATCHES_IN_FLIGHT = 8


@dataclass(frozen=True)
class Series:
    """Runs of one load on one server, which take turns with those of others."""

    server: ServerProcess
    method: str
    requests: Callable[[], Iterator[bytes]]
    in_flight: int = IN_FLIGHT
    items: int = 1
    """Checkpoints of a call."""
    rates: list[float] = field(default_factory=list)
    """Checkpoints a second."""
    cpu_us: list[float] = field(default_factory=list)
    """Processor time for a checkpoint, in microseconds: that hardly depends on who else is busy."""
    commits: list[float] = field(default_factory=list)
    """Commits for a checkpoint."""

    def run(self, seconds: float) -> None:
        """Run once more."""
        commits_before = self.server.commit_count()
        cpu_before = self.server.cpu_s()
        load = run_load(self.server.address, self.method, self.requests(), in_flight=self.in_flight, seconds=seconds)
        checkpoints = load.all_calls * self.items
        self.rates.append(load.rate * self.items)
        self.cpu_us.append((self.server.cpu_s() - cpu_before) / checkpoints * 1e6)
        self.commits.append((self.server.commit_count() - commits_before) / checkpoints)

    def shown(self) -> str:
        """Return the medians, for people."""
        return f"{statistics.median(self.rates):,.0f}/s at {statistics.median(self.cpu_us):,.0f} us"


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    rounds = options.amount(7, 3)
    seconds = 1.0 if options.is_quick else 2.0
    with (
        scratch(options.directory) as directory,
        real_server(directory / "data") as real,
        noop_like(real) as noop,
    ):

        def saves() -> Iterator[bytes]:
            return payloads.saves(WORKFLOWS)

        def loads() -> Iterator[bytes]:
            return payloads.loads(WORKFLOWS)

        def batches() -> Iterator[bytes]:
            return payloads.batch_saves(WORKFLOWS, BATCH_ITEMS)

        # Every workflow has a head before anything is loaded.
        Series(real, "Save", saves).run(seconds)
        noop_saves, real_saves = Series(noop, "Save", saves), Series(real, "Save", saves)
        noop_loads, real_loads = Series(noop, "Load", loads), Series(real, "Load", loads)
        batch_saves = Series(real, "BatchSave", batches, BATCHES_IN_FLIGHT, BATCH_ITEMS)
        for _ in range(rounds):
            for series in (noop_saves, real_saves, noop_loads, real_loads, batch_saves):
                series.run(seconds)
    for name, runs, yardstick in (("Save", real_saves, noop_saves), ("Load latest", real_loads, noop_loads)):
        yield ratio(
            NAME,
            f"{name} of 2 KB, {IN_FLIGHT} in flight, of no-op",
            runs.rates,
            yardstick.rates,
            target=0.8,
            sense="at least",
            detail=f"{runs.shown()} of processor, no-op {yardstick.shown()}; {rounds} runs of each",
        )
    yield Figure(
        NAME,
        f"commits for a Save, {IN_FLIGHT} in flight",
        statistics.median(real_saves.commits),
        "",
        1 / 6,
        "at most",
        min(real_saves.commits),
        max(real_saves.commits),
        real_saves.shown(),
    )
    yield ratio(
        NAME,
        f"BatchSave of {BATCH_ITEMS}, checkpoints against Save",
        batch_saves.rates,
        real_saves.rates,
        target=4,
        sense="at least",
        detail=f"{batch_saves.shown()} of processor for a checkpoint, {BATCHES_IN_FLIGHT} calls in flight",
    )
