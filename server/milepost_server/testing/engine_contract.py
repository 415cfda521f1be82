"""The contract of an engine, told by examples."""

from __future__ import annotations

from milepost_server.testing.contracts.saving import SavingContract


class EngineContract(SavingContract):
    """What any engine must do."""
