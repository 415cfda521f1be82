"""Whether the storage serves: it may be down, or hang in a commit or in a read.

Called by the committer on the event loop, and told to health there, each time that it changes. Nothing is given up for
it: what hangs may still be stored, and giving it up would not take it back.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Collection
from typing import Protocol

from milepost_server.storage.port import LoadLane

_logger = logging.getLogger(__name__)


class Trouble(enum.Enum):
    """Why the storage does not serve."""

    DOWN = enum.auto()
    """It has failed and is not back."""
    COMMIT_HANGS = enum.auto()
    READ_HANGS = enum.auto()


class StorageHealth:
    """What troubles the storage.

    Args:
        on_health: Told whether it serves, each time that changes; it does at first.
    """

    def __init__(self, on_health: Callable[[bool], None]) -> None:
        self._on_health = on_health
        self._troubles: set[Trouble] = set()

    def begin(self, trouble: Trouble) -> None:
        """Note a trouble."""
        was_good = not self._troubles
        self._troubles.add(trouble)
        if was_good:
            self._on_health(False)

    def end(self, trouble: Trouble) -> None:
        """Note that a trouble has gone, if it was there."""
        if trouble in self._troubles:
            self._troubles.remove(trouble)
            if not self._troubles:
                self._on_health(True)


class HandedOver(Protocol):
    """Commands that were handed over together."""

    command_count: int


class CommitWatch:
    """Sees whether the storage answers what was handed over.

    Args:
        loop: Where it is called, and its timer runs.
        health: Is told.
        under_way: What was handed over and not answered.
        wait_max_s: What goes without an answer for longer hangs.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        health: StorageHealth,
        *,
        under_way: Collection[HandedOver],
        wait_max_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._health = health
        self._under_way = under_way
        self._wait_max_s = wait_max_s
        self._clock = clock
        self._awaited_since_s = 0.0
        """When something was handed over with nothing under way, or was last answered."""
        self._is_hanging = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Watch from now on: something is about to be handed over, with nothing under way."""
        self._awaited_since_s = self._clock()
        self._set_timer()

    def note_answer(self) -> None:
        """Note that the oldest of what is under way was answered."""
        self._awaited_since_s = self._clock()
        if self._is_hanging:
            _logger.warning("the storage answers again")
            self.forget()
            self._set_timer()

    def forget(self) -> None:
        """Nothing hangs any more: it was answered, or given up."""
        self._is_hanging = False
        self._health.end(Trouble.COMMIT_HANGS)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        """Have it looked at whether the storage hangs. One timer at a time: setting one for each batch would cost."""
        if self._timer is None:
            due_s = self._awaited_since_s + self._wait_max_s
            self._timer = self._loop.call_later(due_s - self._clock(), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._under_way:
            return
        awaited_s = self._clock() - self._awaited_since_s
        if awaited_s < self._wait_max_s:
            self._set_timer()
            return
        command_count = sum(batch.command_count for batch in self._under_way)
        _logger.error("the storage has not answered for %.1f s, %d commands are under way", awaited_s, command_count)
        self._is_hanging = True
        self._health.begin(Trouble.COMMIT_HANGS)


class ReadWatch:
    """Sees whether the storage answers reads; so it shows that the storage of an idle server hangs, too.

    Args:
        loads: The reads that are looked at, and asked for a probe.
        health: Is told.
        is_serving: Tells whether reads are to be answered at all.
        interval_s: For so long no read is answered before a probe is asked for. Nothing is written for it.
        wait_max_s: A probe without an answer for longer hangs.
    """

    def __init__(
        self,
        loads: LoadLane,
        health: StorageHealth,
        *,
        is_serving: Callable[[], bool],
        interval_s: float,
        wait_max_s: float,
    ) -> None:
        self._loads = loads
        self._health = health
        self._is_serving = is_serving
        self._interval_s = interval_s
        self._wait_max_s = wait_max_s

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await self._watch_once()
        except Exception:
            _logger.exception("a defect: health tells no more of reads that hang")

    async def _watch_once(self) -> None:
        """Once there was no answer to a read for a while, see whether there is one; tell health while there is none."""
        answered_count = self._loads.answered_count
        await asyncio.sleep(self._interval_s)
        if not self._is_serving() or self._loads.answered_count != answered_count:
            return
        probe = self._loads.probe()
        done, _ = await asyncio.wait([probe], timeout=self._wait_max_s)
        if not done:
            _logger.error("the storage has not answered a read for %.1f s", self._wait_max_s)
            self._health.begin(Trouble.READ_HANGS)
            await asyncio.wait([probe])
            _logger.warning("the storage answers reads again")
            self._health.end(Trouble.READ_HANGS)
        # An error is an answer: whatever it means is told elsewhere.
        probe.exception()
