"""Calls a second at 64 in flight: durable Save and Load against a no-op server, and BatchSave against Save."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import payloads
from benchmarks.http2 import Load, run_load
from benchmarks.options import Options
from benchmarks.processes import noop_like, real_server, scratch
from benchmarks.report import Figure, ratio

NAME = "throughput"
IN_FLIGHT = 64
WORKFLOWS = 256
BATCH_ITEMS = 100
BATCHES_IN_FLIGHT = 8


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    rounds = options.amount(7, 3)
    seconds = 2.0 if not options.is_quick else 1.0
    noop_saves: list[float] = []
    real_saves: list[float] = []
    noop_loads: list[float] = []
    real_loads: list[float] = []
    batch_saves: list[float] = []
    commits_per_save: list[float] = []
    with scratch(options.directory) as directory, real_server(directory / "data") as real, noop_like(real) as noop:

        def run(address: str, method: str, requests: Iterator[bytes], in_flight: int = IN_FLIGHT) -> Load:
            return run_load(address, method, requests, in_flight=in_flight, seconds=seconds)

        # Every workflow has a head before anything is loaded.
        run(real.address, "Save", payloads.saves(WORKFLOWS))
        for _ in range(rounds):
            noop_saves.append(run(noop.address, "Save", payloads.saves(WORKFLOWS)).rate)
            before = real.store_facts()
            load = run(real.address, "Save", payloads.saves(WORKFLOWS))
            real_saves.append(load.rate)
            commits_per_save.append((real.store_facts().commits - before.commits) / load.all_calls)
            noop_loads.append(run(noop.address, "Load", payloads.loads(WORKFLOWS)).rate)
            real_loads.append(run(real.address, "Load", payloads.loads(WORKFLOWS)).rate)
            batches = payloads.batch_saves(WORKFLOWS, BATCH_ITEMS)
            batch_saves.append(BATCH_ITEMS * run(real.address, "BatchSave", batches, BATCHES_IN_FLIGHT).rate)
    yield ratio(
        NAME,
        f"Save of 2 KB, {IN_FLIGHT} in flight, of no-op",
        real_saves,
        noop_saves,
        target=0.8,
        sense="at least",
        detail=f"{_rate(real_saves)} of {_rate(noop_saves)}, {rounds} runs of each",
    )
    yield ratio(
        NAME,
        f"Load latest of 2 KB, {IN_FLIGHT} in flight, of no-op",
        real_loads,
        noop_loads,
        target=0.8,
        sense="at least",
        detail=f"{_rate(real_loads)} of {_rate(noop_loads)}, {rounds} runs of each",
    )
    yield Figure(
        NAME,
        f"commits for a Save, {IN_FLIGHT} in flight",
        statistics.median(commits_per_save),
        "",
        1 / 6,
        "at most",
        min(commits_per_save),
        max(commits_per_save),
        f"{1 / statistics.median(commits_per_save):.1f} Saves share a commit",
    )
    yield ratio(
        NAME,
        f"BatchSave of {BATCH_ITEMS}, checkpoints against Save",
        batch_saves,
        real_saves,
        target=4,
        sense="at least",
        detail=f"{_rate(batch_saves)} checkpoints, {BATCHES_IN_FLIGHT} calls in flight",
    )


def _rate(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f}/s"
