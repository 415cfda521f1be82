"""What every part of the contract stands on: a store, its clock, and a way to get another store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import CountRows, ManualClock, Store

MakeEngine = Callable[[Limits], Engine]
OpenStore = Callable[[Limits], Store]


class ContractBase:
    """The fixtures. An engine's own test class gives `make_engine`."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        """Return the clock of every engine that the test makes."""
        return ManualClock()

    @pytest.fixture
    def lease_clock(self) -> ManualClock:
        """Return the clock in which the leases of every engine run."""
        return ManualClock(now_ms=1_000)

    @pytest.fixture
    def make_engine(self, clock: ManualClock, lease_clock: ManualClock) -> MakeEngine:
        """Return a function that makes an empty engine with given limits; its teardown proves the store whole."""
        raise NotImplementedError

    @pytest.fixture
    def count_rows(self) -> CountRows:
        """Return a function that counts an engine's values, nodes, checkpoints, records, workflows, names or ids."""
        return lambda engine, what: engine.statistics()[what]

    @pytest.fixture
    def open_store(self, make_engine: MakeEngine, count_rows: CountRows) -> OpenStore:
        """Return a function that makes an empty store with given limits."""
        return lambda limits: Store(make_engine(limits), count_rows)

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Store:
        """Return an empty store with default limits."""
        return open_store(DEFAULT_LIMITS)
