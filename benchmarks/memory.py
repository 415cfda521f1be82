"""What the server holds in memory: idle, and while many large Saves arrive at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from benchmarks import payloads
from benchmarks.options import Options
from benchmarks.payloads import MIB
from benchmarks.processes import ServerProcess, noop_like, real_server, scratch
from benchmarks.report import Figure, ratio

NAME = "memory"
SAVES = 32
SAVE_BYTES = 8 * MIB
SETTLE_S = 2.0
GIVE_UP_S = 60.0


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    idle: list[float] = []
    real_peaks: list[float] = []
    noop_peaks: list[float] = []
    attempts: list[int] = []
    for _ in range(options.amount(3, 1)):
        with scratch(options.directory) as directory, real_server(directory / "data") as real, noop_like(real) as noop:
            time.sleep(SETTLE_S)
            idle.append(real.memory_bytes("VmRSS"))
            _save_at_once(noop)
            attempts.append(_save_at_once(real))
            noop_peaks.append(noop.memory_bytes("VmHWM"))
            real_peaks.append(real.memory_bytes("VmHWM"))
    yield Figure(
        NAME,
        "idle server after a Save",
        statistics.median(idle) / MIB,
        "MiB",
        80.0,
        "at most",
        min(idle) / MIB,
        max(idle) / MIB,
        "resident",
    )
    yield ratio(
        NAME,
        f"peak under {SAVES} Saves of {SAVE_BYTES // MIB} MiB at once, of no-op",
        real_peaks,
        noop_peaks,
        target=1.5,
        sense="at most",
        detail=f"{statistics.median(real_peaks) / MIB:,.0f} MiB of {statistics.median(noop_peaks) / MIB:,.0f} MiB; "
        f"all acknowledged, {statistics.median(attempts):.0f} attempts for {SAVES} Saves",
    )


def _save_at_once(server: ServerProcess) -> int:
    """Send all Saves at once, each on a connection of its own; return how many attempts that took.

    A Save that is refused because too much is queued is sent again after the time that the answer names.
    """
    with ThreadPoolExecutor(SAVES) as pool:
        return sum(pool.map(lambda number: _save_until_acknowledged(server.address, number), range(SAVES)))


def _save_until_acknowledged(address: str, number: int) -> int:
    request = next(payloads.saves(1, first=number, value_bytes=SAVE_BYTES))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    deadline = time.monotonic() + GIVE_UP_S
    with grpc.insecure_channel(address, options=options) as channel:
        save: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/milepost.v1.CheckpointStore/Save")
        attempts = 0
        while True:
            attempts += 1
            try:
                save(request, timeout=GIVE_UP_S)
                return attempts
            except grpc.RpcError as error:
                wait_s = _retry_after_s(error)
                if wait_s is None or time.monotonic() > deadline:
                    raise
                time.sleep(wait_s)


def _retry_after_s(error: grpc.RpcError) -> float | None:
    """Return how long a refused call should wait, or `None` if it should not be sent again."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    status = status_pb2.Status()
    for item in error.trailing_metadata() or ():
        key, value = cast("tuple[str, bytes]", item)
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            delay: Duration = info.retry_delay
            return delay.ToNanoseconds() / 1e9
    return None
