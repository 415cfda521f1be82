"""What watchers of the in-memory store are told: the newest events, once, and a place in them for each watcher.

A watcher that does not read holds nothing up and costs nothing: it falls out of the log and is told so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from milepost._memory.checks import CLASS_BY_REASON
from milepost.errors import WatchTooSlowError
from milepost.types import WatchEvent, WatchEventKind

EVENTS_MAX: Final = 10_000
"""Newest events that are kept, over all workflows."""


class EventLog:
    """The newest events of the store, each with its position since the store was made. The core's lock guards it."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._events: deque[WatchEvent] = deque(maxlen=EVENTS_MAX)
        self._bells: set[Callable[[], None]] = set()
        self.end = 0
        """Position that the next event gets."""

    def append(self, event: WatchEvent) -> None:
        """Add an event and wake whoever waits for one."""
        self._events.append(event)
        self.end += 1
        for ring in [*self._bells]:
            ring()

    def subscribe(self, ring: Callable[[], None]) -> None:
        """Call this after each event. It must not wait, and must not call back."""
        self._bells.add(ring)

    def unsubscribe(self, ring: Callable[[], None]) -> None:
        """Call it no more."""
        self._bells.discard(ring)

    def read(self, position: int) -> list[WatchEvent]:
        """Return the events from a position on.

        Raises:
            WatchTooSlowError: Some of them are not kept any more.
        """
        first = self.end - len(self._events)
        if position < first:
            raise WatchTooSlowError(
                f"{first - position} events were dropped before the watcher read them; at most {EVENTS_MAX} are kept",
                reason="WATCH_TOO_SLOW",
                namespace=self._namespace,
                metadata={"limit": "events_max", "allowed": str(EVENTS_MAX)},
            )
        return [*islice(self._events, position - first, None)]

    def since(self, workflow_id: str, incarnation: str, revision: int, *, newest: int | None) -> list[WatchEvent]:
        """Return the events of a workflow after a revision, without a gap.

        Args:
            workflow_id: The run.
            incarnation: The one that the revision belongs to.
            revision: The last that was seen.
            newest: The revision it has now; None where that incarnation was deleted.

        Raises:
            WatchCompactedError: Some of them are not kept any more.
        """
        events = [event for event in self._events if event.workflow_id == workflow_id]
        mine = [event for event in events if event.incarnation == incarnation and event.revision > revision]
        last = revision if not mine else mine[-1].revision
        # Every change raises the revision by one and is one event.
        if [event.revision for event in mine] == [*range(revision + 1, last + 1)]:
            if newest is not None and last == newest:
                return mine
            if newest is None and mine and mine[-1].kind is WatchEventKind.WORKFLOW_DELETED:
                # Whatever came after it under the same name is newer, so it is kept too.
                return mine + events[events.index(mine[-1]) + 1 :]
        raise CLASS_BY_REASON["WATCH_COMPACTED"](
            f"what happened to workflow {workflow_id!r} since revision {revision} is not kept any more: read it again",
            reason="WATCH_COMPACTED",
            namespace=self._namespace,
            workflow_id=workflow_id,
            metadata={"workflow_id": workflow_id, "revision": str(revision)},
        )


class WatchedStore(Protocol):
    """What a cursor asks of the core."""

    def subscribe(self, ring: Callable[[], None]) -> None:
        """Call this after each event."""
        ...

    def unsubscribe(self, ring: Callable[[], None]) -> None:
        """Call it no more."""
        ...

    def start_watch(
        self, workflow_id: str, after: tuple[str, int] | None, definition: str | None
    ) -> tuple[WatchEvent, list[WatchEvent], int]:
        """Return the first event, those since `after`, and where to read on."""
        ...

    def read_events(self, position: int) -> tuple[list[WatchEvent], int]:
        """Return the events from a position on, and where to read on."""
        ...


class WatchCursor:
    """One watcher's place in the log, and what it wants to see of it."""

    def __init__(
        self, core: WatchedStore, workflow_id: str, after: tuple[str, int] | None, definition: str | None
    ) -> None:
        self._core = core
        self._workflow_id = workflow_id
        self._after = after
        self._definition = definition
        self._position: int | None = None
        self._waiting: deque[WatchEvent] = deque()

    def subscribe(self, ring: Callable[[], None]) -> None:
        """Call this after each event of the store."""
        self._core.subscribe(ring)

    def unsubscribe(self, ring: Callable[[], None]) -> None:
        """Call it no more."""
        self._core.unsubscribe(ring)

    def next_event(self) -> WatchEvent | None:
        """Return the next event; None where there is none yet. The first call begins the watch.

        Raises:
            WatchCompactedError: What came since `after` is not kept any more.
            WatchTooSlowError: Events were dropped before they were read.
        """
        if self._position is None:
            started, events, self._position = self._core.start_watch(self._workflow_id, self._after, self._definition)
            self._waiting.append(started)
            self._waiting.extend(event for event in events if self._wants(event))
        elif not self._waiting:
            events, self._position = self._core.read_events(self._position)
            self._waiting.extend(event for event in events if self._wants(event))
        return self._waiting.popleft() if self._waiting else None

    def _wants(self, event: WatchEvent) -> bool:
        return self._workflow_id in {"", event.workflow_id} and self._definition in {None, event.definition}
