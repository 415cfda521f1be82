"""Stores on disk for the tests of one contract, each proven whole at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from milepost_server.limits import Limits
from milepost_server.storage import keys
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.port import Engine
from milepost_server.storage.verify import verify_store
from milepost_server.testing.builders import ManualClock

MAP_SIZE_BYTES = 64 * 1024 * 1024

OpenEngine = Callable[[Path, Limits], Engine]


class LmdbStores:
    """The stores of one test: where each lies, and the engine that has it open."""

    def __init__(self, folder: Path, open_engine: OpenEngine) -> None:
        self._folder = folder
        self._open_engine = open_engine
        self._open: dict[Path, Engine] = {}
        self._limits: dict[Path, Limits] = {}

    def make(self, limits: Limits) -> Engine:
        data_dir = self._folder / f"store{len(self._limits)}"
        self._limits[data_dir] = limits
        return self._open_dir(data_dir)

    def restart(self, engine: Engine) -> Engine:
        data_dir = next(path for path, opened in self._open.items() if opened is engine)
        engine.close()
        return self._open_dir(data_dir)

    def _open_dir(self, data_dir: Path) -> Engine:
        self._open[data_dir] = self._open_engine(data_dir, self._limits[data_dir])
        return self._open[data_dir]

    def close_and_verify(self) -> None:
        for data_dir, engine in self._open.items():
            engine.close()
            assert verify_store(data_dir).problems == []


def lmdb_opener(clock: ManualClock, lease_clock: ManualClock, *, lmdb_format: int = 0) -> OpenEngine:
    """Return what opens an LMDB engine with clocks in the test's hand."""
    return lambda data_dir, limits: LmdbEngine.open(
        data_dir,
        limits=limits,
        clock_ms=clock,
        lease_clock_ms=lease_clock,
        map_size_bytes=MAP_SIZE_BYTES,
        lmdb_format=lmdb_format,
    )


def count_table(engine: Engine, what: str) -> int:
    """Count the rows of one table, read behind the engine's back."""
    assert isinstance(engine, LmdbEngine)
    with engine._reading() as txn:
        counts = Counter(keys.TABLE_NAMES[keys.table_of(key)] for key, _ in txn.scan(b"", b""))
    return counts[what]
