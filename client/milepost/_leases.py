"""What a held lease knows about itself, without asking anybody: sans-IO, shared by `Lease` and `AsyncLease`.

Time is counted from before a request was sent: the store counts from later, so what is thought valid here is valid
there. Being past that time is not losing the lease: the newest token may renew after it too, and only an answer that it
may not is a loss.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Final

from milepost.errors import LeaseLostError
from milepost.types import LeaseInfo

TTL_S: Final = 30.0
"""How long a lease runs without a renewal, unless the caller says otherwise."""
_RENEWALS_PER_TTL: Final = 3
"""Two renewals in a row may fail before the time is over."""
RELEASE_S: Final = 5.0
"""How long giving a lease back may hold up whoever gives it: what is not released runs out by itself."""
_RETRY_S: Final = 1.0
"""Longest pause after a renewal that failed."""


def default_holder() -> str:
    """Return how this process calls itself: `host:pid`, within the limit of 256 bytes."""
    return f"{socket.gethostname()[:200]}:{os.getpid()}"


class LeaseState:
    """What is known of a held lease: its newest answer, how long it surely runs, and whether it was lost."""

    def __init__(self, info: LeaseInfo, *, asked_at: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        # The heartbeat writes, the holder reads.
        self._lock = threading.Lock()
        self._info = info
        self._valid_until = asked_at + info.remaining_s
        self._loss: LeaseLostError | None = None

    @property
    def info(self) -> LeaseInfo:
        """The newest answer."""
        with self._lock:
            return self._info

    @property
    def loss(self) -> LeaseLostError | None:
        """Why it was lost; None while it was not."""
        with self._lock:
            return self._loss

    @property
    def valid_for_s(self) -> float:
        """How long it surely still runs, in seconds; 0 when that is over, or it was lost."""
        with self._lock:
            return 0.0 if self._loss is not None else max(0.0, self._valid_until - self._clock())

    @property
    def renew_in_s(self) -> float:
        """How long to wait before the next renewal, in seconds."""
        interval_s = self.info.ttl_s / _RENEWALS_PER_TTL
        # Where the grant was waited for, or much time has passed since, it is due earlier.
        return max(0.0, min(interval_s, self.valid_for_s - 2 * interval_s))

    @property
    def retry_in_s(self) -> float:
        """How long to wait after a renewal that failed, in seconds."""
        return min(_RETRY_S, self.info.ttl_s / _RENEWALS_PER_TTL / 3)

    @property
    def renewal_timeout_s(self) -> float:
        """How long one renewal may take, its attempts included."""
        return self.info.ttl_s / _RENEWALS_PER_TTL

    @property
    def release_timeout_s(self) -> float:
        """How long the release at the end may take: what is not released runs out by itself."""
        return min(RELEASE_S, self.info.ttl_s)

    def renewed(self, info: LeaseInfo, *, asked_at: float) -> None:
        """Take note of a renewal, or of a save that was one."""
        with self._lock:
            self._info = info
            self._valid_until = max(self._valid_until, asked_at + info.remaining_s)

    def lost(self, error: LeaseLostError) -> None:
        """Take note that the token is refused."""
        with self._lock:
            self._loss = self._loss or error
