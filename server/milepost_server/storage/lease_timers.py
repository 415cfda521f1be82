"""When leases expire: in the memory of the engine, on a clock that only grows.

A lease's row is written when it is granted and when it ends; renewals only move the time here, so that a heartbeat
costs no flush. The clock counts from boot and through suspend, and is never set. What is not known here was granted
before the engine started: such a lease gets its full ttl from that start, so a restart never shortens one.

Nothing here changes before the commit that the change belongs to is done. Written by the engine's writer alone, read by
any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from milepost_server.model import LeaseRow

FORGET_COUNT_MIN = 1_000
"""So many timers are not worth a look for those that have run out."""


class Timer(NamedTuple):
    """When the lease of a token expires."""

    token: int
    expiry_ms: int


TimerChanges = Mapping[int, Timer | None]
"""By name id; `None`: the lease has ended."""


def boot_clock_ms() -> int:
    """Return milliseconds since boot, time suspended included; where no such clock exists, of one that only grows."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    return time.monotonic_ns() // 1_000_000


class LeaseTimers:
    """The timers of one engine.

    Args:
        clock_ms: Milliseconds that only grow.
    """

    def __init__(self, clock_ms: Callable[[], int] = boot_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._start_ms = clock_ms()
        self._timers: dict[int, Timer] = {}
        self._forget_count = FORGET_COUNT_MIN

    def restart(self) -> None:
        """Give every lease its full ttl from now: whatever the last commit was, nobody loses a lease by it."""
        self._timers = {}
        self._start_ms = self._clock_ms()

    def now_ms(self) -> int:
        """Return the time in which leases run."""
        return self._clock_ms()

    def remaining_ms(self, name_id: int, lease: LeaseRow, now_ms: int, changes: TimerChanges | None = None) -> int:
        """Return how long a lease still runs; 0 if it has expired.

        Args:
            name_id: Whose lease it is.
            lease: Its row.
            now_ms: The time.
            changes: What a transaction has changed that is not committed yet.
        """
        timer = self._timers.get(name_id)
        if changes is not None and name_id in changes:
            timer = changes[name_id]
        if timer is None:
            expiry_ms = self._start_ms + lease.ttl_ms
        elif timer.token != lease.token:
            # Granted by a commit that is on disk and whose timers follow in a moment.
            expiry_ms = now_ms + lease.ttl_ms
        else:
            expiry_ms = timer.expiry_ms
        return max(0, expiry_ms - now_ms)

    def apply(self, changes: TimerChanges) -> None:
        """Take over the changes of a commit that is done."""
        for name_id, timer in changes.items():
            if timer is None:
                self._timers.pop(name_id, None)
            else:
                self._timers[name_id] = timer
        if len(self._timers) >= self._forget_count:
            self._forget_expired()

    def _forget_expired(self) -> None:
        """Drop timers that have run out: by the time of the start those leases have expired too."""
        now_ms = self._clock_ms()
        self._timers = {name_id: timer for name_id, timer in self._timers.items() if timer.expiry_ms > now_ms}
        self._forget_count = max(FORGET_COUNT_MIN, 2 * len(self._timers))
