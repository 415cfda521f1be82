"""Watching: who follows a workflow or a namespace is told of every commit, in order, and can go on without a gap.

The committer tells of each batch when it is on disk. The last events are kept in a ring, so that a watch that was cut
off can go on where it was: by (incarnation, revision), which name one moment of one workflow. A watch begins to listen
first and looks at the workflow then, so that nothing falls in between; what it has seen already it skips.

Everything is bounded: the ring, the watches, and what waits for one that reads too slowly; such a one is ended, and
goes on by watching again. Nothing here survives the process. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from milepost_server.errors import NotFoundError, ResourceError, StoreError, UnavailableError
from milepost_server.model import Answer, Command, WorkflowRow
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage.port import Engine
from milepost_server.store_queue import StoreQueue
from milepost_server.watch_events import WatchEvent, WatchKind, WatchQuery, events_of, standing

_Key = tuple[str, str]
"""(namespace, workflow_id); "" for all of a namespace."""


class _Watch:
    """One who watches: what waits for it, and why it was ended."""

    __slots__ = ("_limit", "_wake", "error", "key", "waiting")

    def __init__(self, key: _Key, limit: int) -> None:
        self.key = key
        self.waiting: deque[WatchEvent] = deque()
        self.error: StoreError | None = None
        self._limit = limit
        self._wake = asyncio.Event()

    def tell(self, event: WatchEvent) -> None:
        if self.error is None and len(self.waiting) >= self._limit:
            self.end(_too_slow(self._limit))
        elif self.error is None:
            self.waiting.append(event)
            self._wake.set()

    def end(self, error: StoreError) -> None:
        """Let it read what waits, then the error."""
        if self.error is None:
            self.error = error
            self._wake.set()

    async def next(self) -> WatchEvent:
        while not self.waiting:
            if self.error is not None:
                raise self.error
            self._wake.clear()
            await self._wake.wait()
        return self.waiting.popleft()


class WatchService:
    """Tells those who watch.

    Args:
        queue: Tells what was committed, and runs reads.
        engine: Is only read from here.
        watches_max: Calls that may watch at the same time.
        events_kept_max: Events that are kept for those who go on after an earlier watch.
        events_waiting_max: Events that may wait for one watch.
    """

    def __init__(
        self, queue: StoreQueue, engine: Engine, *, watches_max: int, events_kept_max: int, events_waiting_max: int
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._open = SharedBound(
            "queue.watches_max", watches_max, what="calls watch", unit="watches", reason="QUOTA_EXCEEDED"
        )
        self._events_waiting_max = events_waiting_max
        self._ring: deque[WatchEvent] = deque(maxlen=events_kept_max)
        self._watches: dict[_Key, set[_Watch]] = {}
        self._is_draining = False
        queue.listen(self)

    @property
    def watch_count(self) -> int:
        """How many watch now."""
        return self._open.total

    def end_watches(self) -> None:
        """End every watch, now and from now on: the server is draining."""
        self._is_draining = True
        self._end_all(UnavailableError("NOT_SERVING", "the server is draining; watch again from the last revision"))

    # What the queue tells.

    def on_commit(self, commands: Sequence[Command], outcomes: Sequence[Answer | StoreError]) -> None:
        """Keep and tell what a commit has changed."""
        try:
            for command, outcome in zip(commands, outcomes, strict=True):
                for event in events_of(command, outcome):
                    self._ring.append(event)
                    if self._watches:
                        self._tell(event)
        except Exception:
            # A defect, which the queue logs. Nobody is to go on as if the rest of the commit had not been.
            self._lose("the server failed to tell of a change")
            raise

    def on_failure(self) -> None:
        """End every watch: what the last batch changed may be stored, and is told to nobody."""
        self._lose("the storage has failed")

    def _lose(self, why: str) -> None:
        """Let nobody pass over what is not told: end every watch, and let none go on from before."""
        self._ring.clear()
        self._end_all(UnavailableError("NOT_SERVING", f"{why}; watch again from the last revision"))

    def _tell(self, event: WatchEvent) -> None:
        for key in ((event.namespace, event.workflow_id), (event.namespace, "")):
            for watch in self._watches.get(key, ()):
                watch.tell(event)

    def _end_all(self, error: StoreError) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.end(error)

    # For callers.

    async def watch(self, query: WatchQuery) -> AsyncGenerator[WatchEvent, None]:
        """Yield events: `STARTED` first, then every change in the order of its commit. To be closed by its reader.

        Raises:
            ResourceError: `QUOTA_EXCEEDED`: too many watch already; `WATCH_TOO_SLOW`: events were not read as fast as
                they came.
            StoreError: `WATCH_COMPACTED`: what came since is not kept any more.
            UnavailableError: `NOT_SERVING`: the server drains, or its storage has failed.
        """
        watch = self._begin(query)
        try:
            # The ring as it is while the watch begins to listen: what comes later waits for it.
            kept = [event for event in self._ring if (event.namespace, event.workflow_id) == watch.key]
            if not query.workflow_id:
                yield WatchEvent(WatchKind.STARTED, query.namespace, "")
                missed: Sequence[WatchEvent] = ()
                seen = ("", 0)
            else:
                workflow = await self._find_workflow(query)
                started, missed = _place(query, workflow, kept, watch.waiting)
                yield started
                seen = (started.incarnation, started.revision)
            position = _Position(seen, is_single=bool(query.workflow_id))
            for event in missed:
                for told in position.advance(event):
                    if query.definition in (None, told.definition):
                        yield told
            while True:
                for told in position.advance(await watch.next()):
                    if query.definition in (None, told.definition):
                        yield told
        finally:
            self._forget(watch)

    def _begin(self, query: WatchQuery) -> _Watch:
        if self._is_draining:
            raise UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
        self._open.take(query.namespace)
        watch = _Watch((query.namespace, query.workflow_id), self._events_waiting_max)
        self._watches.setdefault(watch.key, set()).add(watch)
        return watch

    def _forget(self, watch: _Watch) -> None:
        watches = self._watches[watch.key]
        watches.remove(watch)
        if not watches:
            del self._watches[watch.key]
        self._open.give_back(watch.key[0])

    async def _find_workflow(self, query: WatchQuery) -> WorkflowRow | None:
        engine = self._engine
        try:
            answer = await self._queue.scan(
                lambda: engine.get_workflow(query.namespace, query.workflow_id), namespace=query.namespace
            )
        except NotFoundError:
            return None
        return answer.workflow


class _Position:
    """What one watch has seen of its workflow, so that it is told nothing twice and misses nothing."""

    def __init__(self, seen: tuple[str, int], *, is_single: bool) -> None:
        self._incarnation, self._revision = seen
        self._is_single = is_single

    def advance(self, event: WatchEvent) -> Sequence[WatchEvent]:
        """Return what is to be told of an event: nothing if it was seen, a `CHANGED` before it if one is missing."""
        if not self._is_single or not event.incarnation:
            return (event,)
        told: Sequence[WatchEvent] = (event,)
        if event.incarnation == self._incarnation:
            if event.revision <= self._revision:
                return ()
            if event.revision > self._revision + 1:
                told = (_changed_before(event), event)
        self._incarnation, self._revision = event.incarnation, event.revision
        return told


def _place(
    query: WatchQuery, workflow: WorkflowRow | None, kept: Sequence[WatchEvent], waiting: Sequence[WatchEvent]
) -> tuple[WatchEvent, Sequence[WatchEvent]]:
    """Return the first event of a watch, and the kept events that follow it."""
    now = (workflow.incarnation, workflow.revision) if workflow is not None else None
    if query.after is None or query.after == now:
        if workflow is None:
            return WatchEvent(WatchKind.STARTED, query.namespace, query.workflow_id), ()
        return standing(WatchKind.STARTED, workflow), ()
    incarnation, revision = query.after
    # Where it goes on after an earlier watch the first event names that place: whoever is cut off again before the
    # next event must not have skipped what is still to be told.
    started = WatchEvent(WatchKind.STARTED, query.namespace, query.workflow_id, incarnation, revision)
    for number, event in enumerate(kept):
        if event.incarnation == incarnation and event.revision in (revision, revision + 1):
            return started, kept[number:]
    # What was committed since the watch began waits for it.
    if any(event.incarnation == incarnation and event.revision == revision + 1 for event in waiting):
        return started, ()
    raise StoreError(
        "WATCH_COMPACTED",
        f"what came after revision {revision} of workflow {query.workflow_id!r} is not kept any more; read the "
        "workflow again, and watch from there",
        {"workflow_id": query.workflow_id, "revision": revision},
    )


def _changed_before(event: WatchEvent) -> WatchEvent:
    return WatchEvent(
        WatchKind.CHANGED,
        event.namespace,
        event.workflow_id,
        event.incarnation,
        event.revision - 1,
        event.definition,
    )


def _too_slow(allowed: int) -> ResourceError:
    return ResourceError(
        "WATCH_TOO_SLOW",
        f"more than {allowed} events waited to be read (queue.watch_events_waiting_max); watch again from the last "
        "revision seen",
        {"limit": "queue.watch_events_waiting_max", "allowed": allowed},
    )
