"""Where a test makes a run die: looked at by the drivers around each save, armed by `milepost.testing`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CrashPoint", "SimulatedCrash", "armed", "check"]


class SimulatedCrash(BaseException):
    """The process is as good as dead: nothing more is saved. No `Exception`, so that nothing handles it."""

    def __init__(self, message: str, *, keeps_lease: bool = False) -> None:
        super().__init__(message)
        self.keeps_lease = keeps_lease


@dataclass(eq=False, slots=True)
class CrashPoint:
    """One place to die at."""

    step: str
    when: Literal["before", "after"]
    keeps_lease: bool
    times: int
    """How often; then it is passed."""
    hits: int = 0


armed: list[CrashPoint] = []
"""What is armed now, in the whole process. Empty outside of tests, which is all a driver looks at."""


def check(when: Literal["before", "after"], arguments: Mapping[str, Any]) -> None:
    """Raise `SimulatedCrash` where a save of a finished step is armed."""
    for point in armed:
        if point.when == when and point.hits < point.times and point.step in arguments["completed_steps"]:
            point.hits += 1
            raise SimulatedCrash(f"crash {when} the save of step {point.step!r}", keeps_lease=point.keeps_lease)
