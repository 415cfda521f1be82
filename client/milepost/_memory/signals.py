"""The signals of one workflow in the in-memory store: those that wait, and what is left of those that were consumed.

The caller holds the core's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from milepost.types import PendingSignal
from milepost.v1 import checkpoint_pb2 as pb

REPLAY_WINDOW: Final = timedelta(days=7)
"""How long what was deleted or consumed is known, so that a late retry cannot bring it back."""
PENDING_SIGNALS_MAX: Final = 1_000
"""Most signals of one workflow that wait to be consumed."""
SIGNAL_BYTES_MAX: Final = 64 * 1024
"""Most bytes of a signal's value, as it is stored."""
_SHOWN_MAX: Final = 100
"""Most pending signals that an answer to another call carries."""


@dataclass(frozen=True, slots=True)
class StoredSignal:
    """One signal that waits."""

    signal_id: str
    name: str
    value: pb.Value | None = field(repr=False)
    create_time: datetime


class SignalBox:
    """Signals by id, in the order they came."""

    def __init__(self) -> None:
        self._pending: dict[str, StoredSignal] = {}
        # What was consumed, and until when a late retry is still told so. The oldest come first.
        self._consumed: dict[str, tuple[StoredSignal, datetime]] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._pending)

    def find(self, signal_id: str, now: datetime) -> tuple[StoredSignal | None, bool]:
        """Return the signal of this id, and whether it was consumed."""
        for key, (_, expires) in [*islice(self._consumed.items(), 2)]:
            if expires <= now:
                del self._consumed[key]
        signal, expires = self._consumed.get(signal_id, (None, now))
        if signal is not None and expires > now:
            return signal, True
        return self._pending.get(signal_id), False

    def put(self, signal: StoredSignal) -> None:
        """Let a signal wait."""
        self._pending[signal.signal_id] = signal

    def consume(self, signal_ids: Iterable[str], now: datetime) -> None:
        """End the wait of these; those that do not wait are passed over."""
        for signal_id in signal_ids:
            signal = self._pending.pop(signal_id, None)
            if signal is not None:
                self._consumed[signal_id] = signal, now + REPLAY_WINDOW

    def pending(self, name: str | None = None) -> list[StoredSignal]:
        """Return those that wait, in the order they came."""
        return [signal for signal in self._pending.values() if name is None or signal.name == name]

    def shown(self) -> tuple[PendingSignal, ...]:
        """Return what answers to other calls say of those that wait."""
        return tuple(
            PendingSignal(signal_id=signal.signal_id, name=signal.name)
            for signal in islice(self._pending.values(), _SHOWN_MAX)
        )
