"""The contract of an engine, told by examples: every engine's own tests inherit it and give it an engine.

    class TestMyEngine(EngineContract, BatchSaveContract, PersistenceContract):
        @pytest.fixture
        def make_engine(self, clock, tmp_path): ...      # opens empty engines; its teardown proves them whole
        @pytest.fixture
        def restart_engine(self): ...                    # PersistenceContract alone asks for it

All tests drive `Engine` directly, without queue, service or wire. The clock stands still unless a test moves it.
"""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

from collections import Counter

from milepost_server.testing.contracts.batches import BatchContract, BatchSaveContract
from milepost_server.testing.contracts.deleting import DeletingContract
from milepost_server.testing.contracts.forking import ForkingContract
from milepost_server.testing.contracts.leases import LeasesContract
from milepost_server.testing.contracts.persistence import PersistenceContract
from milepost_server.testing.contracts.reading import ReadingContract
from milepost_server.testing.contracts.records import RecordsContract
from milepost_server.testing.contracts.saving import SavingContract
from milepost_server.testing.contracts.signals import SignalsContract
from milepost_server.testing.contracts.state import StateContract

__all__ = ["BatchSaveContract", "EngineContract", "PersistenceContract"]


class EngineContract(
    SavingContract,
    StateContract,
    RecordsContract,
    ReadingContract,
    DeletingContract,
    ForkingContract,
    LeasesContract,
    SignalsContract,
    BatchContract,
):
    """What any engine must do."""

    def test_no_test_of_the_contract_hides_another(self) -> None:
        names = Counter(name for part in type(self).__mro__ for name in vars(part) if name.startswith("test_"))
        assert [name for name, count in names.items() if count > 1] == []
