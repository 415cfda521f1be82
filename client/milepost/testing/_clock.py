"""A clock that moves only when it is told to."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from typing_extensions import override


class FakeClock:
    """Time for tests. Calling it gives the time of day, so it serves as `InMemoryStore(clock=…)`.

    Args:
        start: The first time of day; has a time zone.
    """

    def __init__(self, start: datetime = datetime(2024, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("start has no time zone; give datetime(2024, 1, 1, tzinfo=UTC), for example")
        self._start = start
        self._elapsed_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        """Return the time of day."""
        return self.now()

    def now(self) -> datetime:
        """Return the time of day."""
        return self._start + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Return the seconds since the clock was made."""
        with self._lock:
            return self._elapsed_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if seconds < 0:
            raise ValueError("time does not run backwards here; a clock that does is a test of its own")
        with self._lock:
            self._elapsed_s += seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass, in place of `time.sleep`. Returns at once."""
        self.advance(max(0.0, seconds))

    async def async_sleep(self, seconds: float) -> None:
        """Let time pass, in place of `asyncio.sleep`. Returns at once."""
        self.advance(max(0.0, seconds))

    @override
    def __repr__(self) -> str:
        return f"FakeClock({self.now().isoformat()})"
