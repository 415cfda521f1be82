"""The contract of an engine, told by examples."""

from __future__ import annotations

from milepost_server.testing.contracts.reading import ReadingContract
from milepost_server.testing.contracts.records import RecordsContract
from milepost_server.testing.contracts.saving import SavingContract
from milepost_server.testing.contracts.state import StateContract


class EngineContract(SavingContract, StateContract, RecordsContract, ReadingContract):
    """What any engine must do."""
