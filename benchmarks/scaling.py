"""Whether what a store holds makes calls slower: one long workflow, and many workflows, against a store with little;
and whether ended workflows make a poll for live ones slower.

The stores are made by the engine itself, in large batches; the calls go through the server, one at a time, in turns.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks import payloads
from benchmarks.http2 import Connection, call_times
from benchmarks.options import Options
from benchmarks.processes import real_server, scratch
from benchmarks.report import Figure, ratio
from milepost.v1 import checkpoint_pb2, checkpoint_store_pb2
from milepost_server.errors import StoreError
from milepost_server.grpc_api.call_codec import PbCallCodec
from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.storage.lmdb_engine import LmdbEngine

NAME = "scaling"
BUILD_BATCH = 1_000
VALUE_BYTES = 200
SMALL_WORKFLOWS = 100
SMALL_CHECKPOINTS = 10
TURN_CALLS = 25
LIVE_WORKFLOWS = 10
FEW_ENDED = 10
LONG_WORKFLOW = 0
"""Its number; the many workflows follow it."""


def _saves(workflows: int, first: int) -> Iterator[bytes]:
    return payloads.saves(workflows, first=first, value_bytes=VALUE_BYTES)


_REQUESTS: dict[str, Callable[[int, int], Iterator[bytes]]] = {
    "Save": _saves,
    "Load": payloads.loads,
    "List": payloads.lists,
}


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    many = options.amount(100_000, 10_000)
    turns = options.amount(24, 8)
    with scratch(options.directory) as directory, contextlib.ExitStack() as stack:
        small_dir, large_dir = directory / "small", directory / "large"
        _build(small_dir, payloads.saves(SMALL_WORKFLOWS, value_bytes=VALUE_BYTES), SMALL_WORKFLOWS * SMALL_CHECKPOINTS)
        _build(large_dir, payloads.saves(1, first=LONG_WORKFLOW, value_bytes=VALUE_BYTES), many)
        _build(large_dir, payloads.saves(many, first=LONG_WORKFLOW + 1, value_bytes=VALUE_BYTES), many)
        small = stack.enter_context(real_server(small_dir)).address
        large = stack.enter_context(real_server(large_dir)).address
        for method, requests in _REQUESTS.items():
            cases = [
                (small, requests(SMALL_WORKFLOWS, 0)),
                (large, requests(1, LONG_WORKFLOW)),
                # A stride that has no factor in common with their number: neighbours in time are none in the store.
                (large, itertools.islice(requests(many, LONG_WORKFLOW + 1), 0, None, 7_919)),
            ]
            little, long, among = _in_turns(stack, method, cases, turns)
            detail = f"{statistics.median(little) * 1000:.2f} ms with little"
            for name, runs in ((f"a workflow with {many:,} checkpoints", long), (f"{many:,} workflows", among)):
                yield ratio(NAME, f"{method}, {name}", runs, little, target=1.2, sense="at most", detail=detail)
        yield _measure_poll(directory, stack, many, turns)


def _measure_poll(directory: Path, stack: contextlib.ExitStack, many: int, turns: int) -> Figure:
    """Compare what a worker asks now and then, which workflows run, among many ended ones and among few."""
    poll = checkpoint_store_pb2.ListWorkflowsRequest(statuses=[checkpoint_pb2.STATUS_RUNNING]).SerializeToString()
    addresses = []
    for name, ended in (("few-ended", FEW_ENDED), ("many-ended", many)):
        _build(directory / name, _saves_of_status(0, ended, checkpoint_pb2.STATUS_COMPLETED), ended)
        running = _saves_of_status(ended, LIVE_WORKFLOWS, checkpoint_pb2.STATUS_RUNNING)
        _build(directory / name, running, LIVE_WORKFLOWS)
        addresses.append(stack.enter_context(real_server(directory / name)).address)
    cases = [(address, itertools.repeat(poll)) for address in addresses]
    few, among = _in_turns(stack, "ListWorkflows", cases, turns)
    return ratio(
        NAME,
        f"ListWorkflows of {LIVE_WORKFLOWS} running ones, {many:,} ended workflows",
        among,
        few,
        target=1.2,
        sense="at most",
        detail=f"{statistics.median(few) * 1000:.2f} ms with {FEW_ENDED}",
    )


def _saves_of_status(first: int, count: int, status: checkpoint_pb2.Status.ValueType) -> Iterator[bytes]:
    for number in range(first, first + count):
        yield checkpoint_store_pb2.SaveRequest(
            workflow_id=payloads.workflow_name(number), checkpoint_id=payloads.new_checkpoint_id(), status=status
        ).SerializeToString()


def _in_turns(
    stack: contextlib.ExitStack, method: str, cases: Iterable[tuple[str, Iterator[bytes]]], turns: int
) -> list[list[float]]:
    """Return the medians of each case's turns, in seconds."""
    clients = [
        (stack.enter_context(contextlib.closing(Connection(address, method))), requests, list[float]())
        for address, requests in cases
    ]
    for turn in range(turns + 1):
        for client, requests, medians in clients:
            median = statistics.median(call_times(client, list(itertools.islice(requests, TURN_CALLS))))
            if turn:  # The first one warms up.
                medians.append(median)
    return [medians for _, _, medians in clients]


def _build(data_dir: Path, requests: Iterator[bytes], count: int) -> None:
    engine = LmdbEngine.open(data_dir)
    codec = PbCallCodec(DEFAULT_LIMITS)
    try:
        for start in range(0, count, BUILD_BATCH):
            commands = [
                codec.decode_save(request) for request in itertools.islice(requests, min(BUILD_BATCH, count - start))
            ]
            for answer in engine.execute(commands):
                if isinstance(answer, StoreError):
                    raise answer
    finally:
        engine.close()
