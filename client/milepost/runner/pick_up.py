"""Which workflows a serving runner takes up, and when: sans-IO, with a clock and chance that are passed in.

Candidates come from a query of the store, made now and then, and from what a watch tells meanwhile. They are tried
after a short random wait, so that many hosts that heard of one do not all reach for it at once, and the lease decides.
A workflow that made no progress is left alone for longer and longer; a signal for it ends that at once.
"""

from __future__ import annotations

import enum
import random as random_module
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from milepost.types import Status, WatchEvent, WatchEventKind, WorkflowInfo

__all__ = ["Outcome", "PickUp", "is_news", "is_ready"]

CANDIDATES_MAX: Final = 1_024
"""Candidates that are remembered; the next query finds what was dropped."""
DELAYS_MAX: Final = 10_000
"""Workflows whose delay is remembered; the one that was delayed longest ago is forgotten first."""
EXAMINED_MAX: Final = 10_000
"""Workflows that one query looks at."""
WAKE_JITTER_S: Final = 0.2
"""Longest wait before a candidate is tried."""
DELAY_S: Final = (1.0, 300.0)
"""First and longest wait after a try without progress; each is twice the one before."""
QUERY_PAUSE_S: Final = (0.2, 30.0)
"""Shortest pause between two queries, and the longest after queries that failed."""
JITTER: Final = 0.2
"""Part by which longer waits differ from each other."""


class Outcome(enum.Enum):
    """What came of a try."""

    PROGRESS = "progress"
    """It went on: finished, or to where it waits."""
    STUCK = "stuck"
    """It is no further than it was."""
    SKIPPED = "skipped"
    """There was nothing to do: somebody else has it, or it is no candidate any more."""


def is_ready(info: WorkflowInfo, definition: str) -> bool:
    """Tell whether a workflow is there to be taken up: unfinished, held by nobody, and not waiting."""
    if info.definition != definition or info.lease is not None:
        return False
    return info.status is Status.RUNNING or (info.status is Status.WAITING and info.pending_signal_count > 0)


def is_news(event: WatchEvent) -> bool:
    """Tell whether an event may make a workflow a candidate, or says that events may have been missed."""
    match event.kind:
        case WatchEventKind.STARTED | WatchEventKind.SIGNAL_SENT | WatchEventKind.LEASE_RELEASED:
            return True
        case WatchEventKind.SAVED:
            # The first one may be an input that was submitted; a look at the workflow tells whether somebody runs it.
            return (event.lease_released or event.sequence == 1) and not event.scope and event.status is Status.RUNNING
        case _:
            return False


@dataclass(slots=True)
class _Delay:
    tries: int
    until: float


class PickUp:
    """What to try next. Not safe for threads: one loop owns it.

    Args:
        max_concurrency: Most workflows at once.
        poll_s: Time between queries while nothing else asks for one, in seconds.
        clock: Seconds of a clock that never steps.
        random: Draws from 0 up to 1.
    """

    def __init__(
        self,
        *,
        max_concurrency: int,
        poll_s: float,
        clock: Callable[[], float],
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._max_concurrency = max_concurrency
        self._poll_s = poll_s
        self._clock = clock
        self._random = random
        # By workflow: when it is tried.
        self._candidates: dict[str, float] = {}
        self._running: set[str] = set()
        self._delays: OrderedDict[str, _Delay] = OrderedDict()
        self._query_at = clock()
        self._queried_at = float("-inf")
        self._failed_queries = 0
        self._has_more = False

    @property
    def running(self) -> frozenset[str]:
        """Workflows that are being tried."""
        return frozenset(self._running)

    @property
    def wanted(self) -> int:
        """How many candidates a query should bring: more than are run at once, since others take some of them."""
        return min(4 * self._max_concurrency + 16, CANDIDATES_MAX - len(self._candidates))

    def is_query_due(self) -> bool:
        """Tell whether the store should be asked now."""
        return self._clock() >= self._next_query_at() and len(self._running) < self._max_concurrency

    def is_wanted(self, workflow_id: str) -> bool:
        """Tell whether a workflow that a query found is worth remembering."""
        if workflow_id in self._running or workflow_id in self._candidates:
            return False
        delay = self._delays.get(workflow_id)
        return delay is None or delay.until <= self._clock()

    def queried(self, workflow_ids: Iterable[str], *, has_more: bool) -> None:
        """Take in what a query found.

        Args:
            workflow_ids: Workflows that `is_wanted`.
            has_more: The query was not read to its end.
        """
        for workflow_id in workflow_ids:
            self._add(workflow_id)
        self._failed_queries = 0
        self._has_more = has_more
        self._queried_at = self._clock()
        self._query_at = self._queried_at + self._poll_s * self._spread()

    def query_failed(self) -> None:
        """Note that the store did not answer: it is asked again after a while."""
        least, most = QUERY_PAUSE_S
        self._failed_queries += 1
        self._queried_at = self._clock()
        pause_s = min(least * 2**self._failed_queries, most, max(self._poll_s, least))
        self._query_at = self._queried_at + pause_s * self._spread()
        self._has_more = False

    def query_soon(self) -> None:
        """Have the next query made as soon as may be: something may have been missed."""
        self._query_at = min(self._query_at, self._clock())

    def heard(self, event: WatchEvent) -> None:
        """Take in an event that `is_news`."""
        match event.kind:
            case WatchEventKind.STARTED:
                # The watch has begun, or begun again: what happened before is not told.
                self.query_soon()
            case WatchEventKind.SIGNAL_SENT:
                self._delays.pop(event.workflow_id, None)
                self._add(event.workflow_id)
            case _:
                if self.is_wanted(event.workflow_id):
                    self._add(event.workflow_id)

    def take(self) -> list[str]:
        """Return the workflows to try now; each is running until it has `ended`."""
        free = self._max_concurrency - len(self._running)
        if free <= 0 or not self._candidates:
            return []
        now = self._clock()
        due = [
            workflow_id
            for workflow_id, at in self._candidates.items()
            if at <= now and workflow_id not in self._running
        ][:free]
        for workflow_id in due:
            del self._candidates[workflow_id]
            self._running.add(workflow_id)
        return due

    def ended(self, workflow_id: str, outcome: Outcome) -> float:
        """Take in what came of a try. Returns the seconds until it may be tried again; 0 where it need not wait."""
        self._running.discard(workflow_id)
        if outcome is not Outcome.STUCK:
            if outcome is Outcome.PROGRESS:
                self._delays.pop(workflow_id, None)
            return 0.0
        delay = self._delays.pop(workflow_id, None)
        tries = 0 if delay is None else delay.tries
        least, most = DELAY_S
        delay_s = min(least * 2.0 ** min(tries, 64), most) * self._spread()
        self._delays[workflow_id] = _Delay(tries + 1, self._clock() + delay_s)
        if len(self._delays) > DELAYS_MAX:
            self._delays.popitem(last=False)
        return delay_s

    def wait_s(self) -> float | None:
        """Return how long nothing is due; None: until a workflow has ended or an event comes."""
        if len(self._running) >= self._max_concurrency:
            return None
        moments = [at for workflow_id, at in self._candidates.items() if workflow_id not in self._running]
        return max(0.0, min([self._next_query_at(), *moments]) - self._clock())

    def _add(self, workflow_id: str) -> None:
        if workflow_id in self._candidates:
            return
        if len(self._candidates) >= CANDIDATES_MAX:
            self._has_more = True
            return
        self._candidates[workflow_id] = self._clock() + WAKE_JITTER_S * self._random()

    def _next_query_at(self) -> float:
        earliest = self._queried_at + QUERY_PAUSE_S[0]
        if self._has_more and not self._candidates:
            return earliest
        return max(self._query_at, earliest)

    def _spread(self) -> float:
        return 1.0 + JITTER * (2.0 * self._random() - 1.0)
