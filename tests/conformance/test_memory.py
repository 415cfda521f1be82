"""The memory engine keeps the contract; it is also the model that the others are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from milepost_server.limits import Limits
from milepost_server.storage.memory_check import check
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import ManualClock
from milepost_server.testing.contracts.base import MakeEngine
from milepost_server.testing.engine_contract import BatchSaveContract, EngineContract
from milepost_server.testing.engine_machine import DEFAULT_PROFILE, LIMITS, LONG_PROFILE, EngineMachine


class TestMemoryEngine(EngineContract, BatchSaveContract):
    @pytest.fixture
    def make_engine(self, clock: ManualClock, lease_clock: ManualClock) -> Iterator[MakeEngine]:
        engines: list[MemoryEngine] = []

        def make(limits: Limits) -> MemoryEngine:
            engines.append(MemoryEngine(limits=limits, clock_ms=clock, lease_clock_ms=lease_clock))
            return engines[-1]

        yield make
        for engine in engines:
            assert check(engine) == []
            engine.close()


class MemoryMachine(EngineMachine):
    def open_engine(self) -> MemoryEngine:
        return MemoryEngine(limits=LIMITS, clock_ms=self.clock, lease_clock_ms=self.lease_clock)

    def verify(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        assert check(engine) == []


def test_random_histories_are_those_of_the_model() -> None:
    run_state_machine_as_test(MemoryMachine, settings=DEFAULT_PROFILE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_random_histories_are_those_of_the_model() -> None:
    run_state_machine_as_test(MemoryMachine, settings=LONG_PROFILE)
