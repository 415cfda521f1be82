"""LMDB engines for fault tests, and a store that has a row in every table."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypedDict, Unpack

from milepost_server.limits import HOUR_MS, Limits
from milepost_server.model import Status
from milepost_server.storage import keys
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import ManualClock, Store, data_value, manifest_of, record

START_MS = 1_700_000_000_000


class EngineOptions(TypedDict, total=False):
    """How an engine may differ from one on an endless disk."""

    limits: Limits
    clock_ms: ManualClock
    lease_clock_ms: ManualClock
    map_size_bytes: int
    map_size_max_bytes: int
    low_disk_bytes: int
    lmdb_format: int


class OpenEngine(Protocol):
    """Opens an engine on the test's data directory."""

    def __call__(self, **options: Unpack[EngineOptions]) -> LmdbEngine:
        """Open an engine, or make a new one."""


def opener(data_dir: Path, engines: list[LmdbEngine]) -> OpenEngine:
    """Return a function that opens engines on a directory and notes them."""

    def open_engine(**options: Unpack[EngineOptions]) -> LmdbEngine:
        engine = open_on(data_dir, **options)
        engines.append(engine)
        return engine

    return open_engine


def open_on(data_dir: Path, **options: Unpack[EngineOptions]) -> LmdbEngine:
    """Open an engine that takes no notice of how full the disk is, unless told otherwise."""
    filled: EngineOptions = {"low_disk_bytes": 0, **options}
    return LmdbEngine.open(data_dir, **filled)


def count_rows(engine: Engine, table_name: str) -> int:
    """Count the rows of one table, behind the engine's back."""
    assert isinstance(engine, LmdbEngine)
    with engine._reading() as txn:
        return sum(keys.TABLE_NAMES[keys.table_of(key)] == table_name for key, _ in txn.scan(b"", b""))


def store_on(engine: Engine) -> Store:
    """Return a store that drives an LMDB engine one command at a time."""
    return Store(engine, count_rows)


LONG_WORKFLOW = "long-" + "w" * 1_000
PAYLOAD_CHUNKED = bytes(range(256)) * 300
"""Stored in a chunk of pages, small pieces and a tail."""
PAYLOAD_SMALL_PIECES = b"0123456789abcdef" * 150


def fill_every_table(data_dir: Path, *, lmdb_format: int = 0) -> None:
    """Make a store that has at least two rows in every table that can have two, and close it."""
    limits = Limits(slice_rows_max=20)
    clock = ManualClock(START_MS)
    engine = open_on(data_dir, limits=limits, clock_ms=clock, lmdb_format=lmdb_format)
    store = store_on(engine)
    for number, workflow_id in enumerate(("w1", "w2", LONG_WORKFLOW)):
        state: dict[str, object] = {f"entry-{index}": index for index in range(40)}
        state["chunked"] = data_value(PAYLOAD_CHUNKED + workflow_id.encode(), "bytes")
        state["pieces"] = data_value(PAYLOAD_SMALL_PIECES + workflow_id.encode())
        for step in range(1, 7):
            state[f"entry-{step}"] = f"changed by {step}"
            store.save(
                workflow_id,
                f"c{step}",
                state,
                current_step=f"step-{step}",
                steps_added=(f"step-{step}",),
                status=Status.WAITING if step == 3 else Status.RUNNING,
                metadata=f'{{"step":{step}}}',
                run_id=f"run-{step % 2}",
                records=(record("task", step, step), record("other", step, "x" * 3_000 + workflow_id)),
                labels={"kind": f"label-{number}"},
            )
        store.save(workflow_id, "n1", {"nested": number}, scope="nested")
        store.save(workflow_id, "n2", {"nested": number, "more": "m" * 2_000}, scope="nested")
        clock.advance(HOUR_MS)
    # Many entries make a node whose body does not fit its head.
    for number in range(2):
        wide: dict[str, object] = {f"wide-entry-{number}-{index:04d}": index for index in range(600)}
        store.save("wide", f"wide-{number}", wide)
    # What waits: records without a checkpoint, stubs, the trash, a fork half-way.
    for number in range(2):
        store.append("w1", f"later-{number}", record("early", number, "waits"))
    store.delete_ids("w2", "c2", "c4")
    store.save("gone", "g1", {"a": 1})
    store.delete_workflow("gone")
    store.save("w1", "c1", {"a": 1}, namespace="other")
    for number in range(2):
        assert store.fork_slice("w1", f"fork-{number}").position is not None
    for number, workflow_id in enumerate(("w1", "w2")):
        for sent in range(3):
            store.send(workflow_id, f"signal-{sent}", "approve", data_value(PAYLOAD_CHUNKED + workflow_id.encode()))
        manifest, fingerprint = manifest_of("m" * 5_000 + workflow_id)
        store.save(workflow_id, "last", {}, consumed_signals=("signal-1",), manifest=manifest, fingerprint=fingerprint)
        store.acquire(workflow_id, holder=f"holder-{number}")
    store.acquire("to come")
    engine.close()
