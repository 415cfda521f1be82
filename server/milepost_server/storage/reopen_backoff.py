"""How long to wait before failed storage is reopened: not at all at first, then twice as long each time.

Without it a process that is killed each time it has grown would be started again without end and pause.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

from milepost_server.config import QueueConfig

SOUND_AFTER_S: Final = 60.0
"""Storage that fails sooner than this after it came back goes on failing: the waits between the tries grow on."""

_logger = logging.getLogger(__name__)


class ReopenBackoff:
    """Counts failures of the storage, those to reopen it included, until it has been sound for a while.

    Args:
        config: The shortest wait, and the longest.
        clock: Seconds that only grow.
    """

    def __init__(self, config: QueueConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._failure_count = 0
        self._failing_since_s = 0.0
        self._back_s = -math.inf
        """When the storage came back last."""
        self.delay_s = 0.0
        """How long to wait before the next try."""

    def note_failure(self) -> None:
        """Note that the storage failed while it served."""
        if self._clock() - self._back_s >= SOUND_AFTER_S:
            self._failure_count = 0
        self._count_failure("the storage failed again")

    def note_failed_try(self, error: Exception) -> None:
        """Note that it could not be reopened."""
        self._count_failure(f"the storage is not back ({error!r})")

    def note_back(self) -> None:
        """Note that it serves again."""
        self._back_s = self._clock()

    def _count_failure(self, what: str) -> None:
        now_s = self._clock()
        self._failure_count += 1
        if self._failure_count == 1:
            self._failing_since_s = now_s
            self.delay_s = 0.0
            return
        config = self._config
        self.delay_s = min(max(self.delay_s * 2, config.reopen_wait_min_s), config.reopen_wait_max_s)
        _logger.error(
            "%s; failed %d times in %.0f s, next try in %.1f s",
            what,
            self._failure_count,
            now_s - self._failing_since_s,
            self.delay_s,
        )
