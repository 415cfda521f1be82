"""What the command line decides for every benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How much to measure, and where."""

    is_quick: bool
    directory: Path | None
    """Where stores are made; `None`: in the system's directory for temporary files."""

    def amount(self, full: int, quick: int) -> int:
        """Return how much of something a run has."""
        return quick if self.is_quick else full
