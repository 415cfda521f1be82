"""The LMDB engine keeps the contract in both file formats; after each test the offline check proves its files whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from milepost_server.storage.port import Engine
from milepost_server.testing.builders import CountRows, ManualClock
from milepost_server.testing.contracts.base import MakeEngine
from milepost_server.testing.contracts.persistence import Restart
from milepost_server.testing.engine_contract import BatchSaveContract, EngineContract, PersistenceContract
from milepost_server.testing.engine_machine import DEFAULT_PROFILE, LIMITS, LONG_PROFILE, EngineMachine
from tests.support.lmdb_stores import LmdbStores, count_table, lmdb_opener


class TestLmdbEngine(EngineContract, BatchSaveContract, PersistenceContract):
    @pytest.fixture(params=[0, 1], ids=["format0.9", "format1.0"])
    def stores(
        self, request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, lease_clock: ManualClock
    ) -> Iterator[LmdbStores]:
        stores = LmdbStores(tmp_path, lmdb_opener(clock, lease_clock, lmdb_format=request.param))
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

    def open_engine(self) -> Engine:
        self._folder = tempfile.TemporaryDirectory()
        open_engine = lmdb_opener(self.clock, self.lease_clock, lmdb_format=self.lmdb_format)
        self._stores = LmdbStores(Path(self._folder.name), open_engine)
        return self._stores.make(LIMITS)

    def restart_engine(self, engine: Engine) -> Engine:
        return self._stores.restart(engine)

    def count_rows(self, engine: Engine, what: str) -> int:
        return count_table(engine, what)

    def verify(self, engine: Engine) -> None:
        self._stores.close_and_verify()
        self._folder.cleanup()


class LmdbMachineOfFormat1(LmdbMachine):
    lmdb_format = 1


@pytest.mark.parametrize("machine", [LmdbMachine, LmdbMachineOfFormat1])
@pytest.mark.timeout(900)  # thousands of commits, each flushed: on a busy disk they take minutes
def test_random_histories_are_those_of_the_model(machine: type[LmdbMachine]) -> None:
    run_state_machine_as_test(machine, settings=DEFAULT_PROFILE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", [LmdbMachine, LmdbMachineOfFormat1])
def test_many_random_histories_are_those_of_the_model(machine: type[LmdbMachine]) -> None:
    run_state_machine_as_test(machine, settings=LONG_PROFILE)
