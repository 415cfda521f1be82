"""One Save at a time: what it takes longer than a call that does nothing, measured in bare commits of LMDB."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb

from benchmarks import payloads
from benchmarks.http2 import Connection, call_times
from benchmarks.options import Options
from benchmarks.processes import noop_like, real_server, scratch
from benchmarks.report import Figure

NAME = "latency"
WORKFLOWS = 64
TURN_CALLS = 40


class BareStore:
    """An LMDB environment as the server opens it, without anything around it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._env = lmdb.open(
            str(directory), map_size=payloads.MIB * 4096, readahead=False, meminit=False, sync=True, metasync=True
        )
        self._number = 0

    def put_times(self, count: int) -> list[float]:
        """Put rows of 2 KB, each in a durable transaction of its own; return how long each took, in seconds."""
        times: list[float] = []
        value = payloads.incompressible(payloads.VALUE_BYTES, seed=self._number)
        for _ in range(count):
            self._number += 1
            start = time.perf_counter()
            with self._env.begin(write=True) as txn:
                txn.put(self._number.to_bytes(8, "big"), value)
            times.append(time.perf_counter() - start)
        return times

    def close(self) -> None:
        """Close it."""
        self._env.close()


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figure."""
    turns = options.amount(40, 10)
    noop_medians: list[float] = []
    real_medians: list[float] = []
    bare_medians: list[float] = []
    with scratch(options.directory) as directory, contextlib.ExitStack() as stack:
        real = stack.enter_context(real_server(directory / "data"))
        noop = stack.enter_context(noop_like(real))
        bare = stack.enter_context(contextlib.closing(BareStore(directory / "bare")))
        clients = [
            stack.enter_context(contextlib.closing(Connection(server.address, "Save"))) for server in (noop, real)
        ]
        requests = payloads.saves(WORKFLOWS)
        for client in clients:
            call_times(client, list(itertools.islice(requests, TURN_CALLS)))
        for _ in range(turns):
            for client, medians in zip(clients, (noop_medians, real_medians), strict=True):
                medians.append(statistics.median(call_times(client, list(itertools.islice(requests, TURN_CALLS)))))
            bare_medians.append(statistics.median(bare.put_times(TURN_CALLS)))
    noop_s, real_s, bare_s = (statistics.median(each) for each in (noop_medians, real_medians, bare_medians))
    single = [
        (real_turn - noop_turn) / bare_turn
        for real_turn, noop_turn, bare_turn in zip(real_medians, noop_medians, bare_medians, strict=True)
    ]
    low, *_, high = statistics.quantiles(single, n=10)
    yield Figure(
        NAME,
        "Save above a no-op call, in bare commits",
        (real_s - noop_s) / bare_s,
        "x",
        1.5,
        "at most",
        low,
        high,
        f"Save {_ms(real_s)}, no-op {_ms(noop_s)}, bare commit of 2 KB {_ms(bare_s)}; "
        f"{turns} turns of {TURN_CALLS}, spread from p10 to p90",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
