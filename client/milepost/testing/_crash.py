"""Make a run die at a chosen step, as a kill would, without killing the process of the test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from milepost.runner import crash_points
from milepost.runner.crash_points import CrashPoint, SimulatedCrash

__all__ = ["SimulatedCrash", "crash_after", "crash_before_save"]


@contextlib.contextmanager
def crash_after(step: str, *, times: int = 1, keeps_lease: bool = False) -> Iterator[CrashPoint]:
    """Have runs die right after a step was saved: the step is finished, and nobody has heard of it.

        with crash_after("charge"), pytest.raises(SimulatedCrash):
            runner.run("order-7", order)
        runner.run("order-7")   # goes on behind charge

    Args:
        step: The step's id, in whichever workflow of this process.
        times: How often; after that runs pass.
        keeps_lease: Leave the lease to run out by itself, as a kill would. Otherwise it is given back, so that a test
            need not wait for it.
    """
    with _armed(step, "after", times, keeps_lease) as point:
        yield point


@contextlib.contextmanager
def crash_before_save(step: str, *, times: int = 1, keeps_lease: bool = False) -> Iterator[CrashPoint]:
    """Have runs die right before a step is saved: its effects have happened, and nothing says so. See `crash_after`."""
    with _armed(step, "before", times, keeps_lease) as point:
        yield point


@contextlib.contextmanager
def _armed(step: str, when: Literal["before", "after"], times: int, keeps_lease: bool) -> Iterator[CrashPoint]:
    point = CrashPoint(step, when, keeps_lease, times)
    crash_points.armed.append(point)
    try:
        yield point
    finally:
        crash_points.armed.remove(point)
