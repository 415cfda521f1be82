"""The LMDB engine keeps the contract in both file formats; after each test the offline check proves its files whole."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from milepost_server.limits import Limits
from milepost_server.storage import keys
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.port import Engine
from milepost_server.storage.verify import verify_store
from milepost_server.testing.builders import CountRows, ManualClock
from milepost_server.testing.contracts.base import MakeEngine
from milepost_server.testing.contracts.persistence import Restart
from milepost_server.testing.engine_contract import EngineContract, PersistenceContract
from milepost_server.testing.engine_machine import DEFAULT_PROFILE, LIMITS, LONG_PROFILE, EngineMachine

MAP_SIZE_BYTES = 64 * 1024 * 1024


class LmdbStores:
    """The stores of one test: where each lies, and the engine that has it open."""

    def __init__(self, folder: Path, clock: ManualClock, lmdb_format: int) -> None:
        self._folder = folder
        self._clock = clock
        self._lmdb_format = lmdb_format
        self._open: dict[Path, LmdbEngine] = {}
        self._limits: dict[Path, Limits] = {}

    def make(self, limits: Limits) -> LmdbEngine:
        data_dir = self._folder / f"store{len(self._limits)}"
        self._limits[data_dir] = limits
        return self._open_dir(data_dir)

    def restart(self, engine: Engine) -> LmdbEngine:
        data_dir = next(path for path, opened in self._open.items() if opened is engine)
        engine.close()
        return self._open_dir(data_dir)

    def _open_dir(self, data_dir: Path) -> LmdbEngine:
        self._open[data_dir] = LmdbEngine.open(
            data_dir,
            limits=self._limits[data_dir],
            clock_ms=self._clock,
            map_size_bytes=MAP_SIZE_BYTES,
            lmdb_format=self._lmdb_format,
        )
        return self._open[data_dir]

    def close_and_verify(self) -> None:
        for data_dir, engine in self._open.items():
            engine.close()
            assert verify_store(data_dir).problems == []


def count_table(engine: Engine, what: str) -> int:
    """Count the rows of one table, read behind the engine's back."""
    assert isinstance(engine, LmdbEngine)
    with engine._reading() as txn:
        counts = Counter(keys.TABLE_NAMES[keys.table_of(key)] for key, _ in txn.scan(b"", b""))
    return counts[what]


class TestLmdbEngine(EngineContract, PersistenceContract):
    @pytest.fixture(params=[0, 1], ids=["format0.9", "format1.0"])
    def stores(self, request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LmdbStores]:
        stores = LmdbStores(tmp_path, clock, request.param)
        yield stores
        stores.close_and_verify()

    @pytest.fixture
    def make_engine(self, stores: LmdbStores) -> MakeEngine:
        return stores.make

    @pytest.fixture
    def restart_engine(self, stores: LmdbStores) -> Restart:
        return stores.restart

    @pytest.fixture
    def count_rows(self) -> CountRows:
        return count_table


class LmdbMachine(EngineMachine):
    persists = True
    lmdb_format = 0

    def open_engine(self) -> LmdbEngine:
        self._folder = tempfile.TemporaryDirectory()
        self._stores = LmdbStores(Path(self._folder.name), self.clock, self.lmdb_format)
        return self._stores.make(LIMITS)

    def restart_engine(self, engine: Engine) -> LmdbEngine:
        return self._stores.restart(engine)

    def count_rows(self, engine: Engine, what: str) -> int:
        return count_table(engine, what)

    def verify(self, engine: Engine) -> None:
        self._stores.close_and_verify()
        self._folder.cleanup()


class LmdbMachineOfFormat1(LmdbMachine):
    lmdb_format = 1


@pytest.mark.parametrize("machine", [LmdbMachine, LmdbMachineOfFormat1])
def test_random_histories_are_those_of_the_model(machine: type[LmdbMachine]) -> None:
    run_state_machine_as_test(machine, settings=DEFAULT_PROFILE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", [LmdbMachine, LmdbMachineOfFormat1])
def test_many_random_histories_are_those_of_the_model(machine: type[LmdbMachine]) -> None:
    run_state_machine_as_test(machine, settings=LONG_PROFILE)
