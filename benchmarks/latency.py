"""One Save at a time: what it takes longer than a call that does nothing, measured in bare commits of LMDB."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Iterator, Mapping

from benchmarks import payloads
from benchmarks.bare_store import BareStore
from benchmarks.http2 import Connection, call_times
from benchmarks.options import Options
from benchmarks.processes import noop_like, real_server, scratch
from benchmarks.report import Figure

NAME = "latency"
WORKFLOWS = 64
TURN_CALLS = 40


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figure."""
    turns = options.amount(40, 10)
    with scratch(options.directory) as directory, contextlib.ExitStack() as stack:
        real = stack.enter_context(real_server(directory / "data"))
        noop = stack.enter_context(noop_like(real))
        putting = stack.enter_context(noop_like(real, store=directory / "putting"))
        bare = stack.enter_context(BareStore(directory / "bare"))
        servers = {"no-op": noop, "put": putting, "Save": real}
        clients = {
            name: stack.enter_context(contextlib.closing(Connection(server.address, "Save")))
            for name, server in servers.items()
        }
        medians: dict[str, list[float]] = {name: [] for name in (*clients, "bare")}
        requests = payloads.saves(WORKFLOWS)
        for client in clients.values():
            call_times(client, list(itertools.islice(requests, TURN_CALLS)))
        for _ in range(turns):
            for name, client in clients.items():
                turn = list(itertools.islice(requests, TURN_CALLS))
                medians[name].append(statistics.median(call_times(client, turn)))
            medians["bare"].append(statistics.median(bare.put_times(TURN_CALLS)))
    spread = f"{turns} turns of {TURN_CALLS}, spread from p10 to p90"
    yield _above_noop("Save", medians, 1.5, spread)
    yield _above_noop("put", medians, None, "one row put and committed in the no-op server's handler: the floor")


def _above_noop(name: str, medians: Mapping[str, list[float]], target: float | None, detail: str) -> Figure:
    noop_s, call_s, bare_s = (statistics.median(medians[each]) for each in ("no-op", name, "bare"))
    single = [
        (call_turn - noop_turn) / bare_turn
        for call_turn, noop_turn, bare_turn in zip(medians[name], medians["no-op"], medians["bare"], strict=True)
    ]
    low, *_, high = statistics.quantiles(single, n=10)
    return Figure(
        NAME,
        f"{name} above a no-op call, in bare commits",
        (call_s - noop_s) / bare_s,
        "x",
        target,
        "at most",
        low,
        high,
        f"{name} {_ms(call_s)}, no-op {_ms(noop_s)}, bare commit of 2 KB {_ms(bare_s)}; {detail}",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
