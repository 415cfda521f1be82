"""What every part of the contract stands on: a store, its clock, and a way to get another store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import ManualClock, Store

MakeEngine = Callable[[Limits], Engine]


class ContractBase:
    """The fixtures. An engine's own test class gives `make_engine`."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        """Return the clock of every engine that the test makes."""
        return ManualClock()

    @pytest.fixture
    def make_engine(self, clock: ManualClock) -> MakeEngine:
        """Return a function that makes an empty engine with given limits; its teardown proves the store whole."""
        raise NotImplementedError

    @pytest.fixture
    def open_store(self, make_engine: MakeEngine) -> Callable[[Limits], Store]:
        """Return a function that makes an empty store with given limits."""
        return lambda limits: Store(make_engine(limits))

    @pytest.fixture
    def store(self, open_store: Callable[[Limits], Store]) -> Store:
        """Return an empty store with default limits."""
        return open_store(DEFAULT_LIMITS)


OpenStore = Callable[[Limits], Store]
