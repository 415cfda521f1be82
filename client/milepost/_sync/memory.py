# Generated from client/milepost/_async/memory.py by tools/unasync.py. Do not edit.
"""The in-memory store's face: the methods of `AsyncClient`, answered by `MemoryCore` at once.

For tests and for programs that need no durability. Nothing here waits, but for a lease that is held and for the next
event of a watch.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from typing_extensions import override

from milepost._sync import _compat
from milepost._sync.lease import Lease
from milepost._leases import TTL_S, default_holder
from milepost._memory.core import MemoryCore
from milepost._memory.events import WatchCursor
from milepost._watch import watch_position
from milepost.codecs import JSON, Codec
from milepost.errors import LeaseHeldError, MilepostError
from milepost.types import (
    After,
    Checkpoint,
    EntryVersion,
    LeaseInfo,
    LeaseRenewal,
    Record,
    RecordOutcome,
    Saved,
    SaveItem,
    Signal,
    SignalSent,
    Status,
    WatchAfter,
    WatchEvent,
    WorkflowInfo,
    new_checkpoint_id,
)

_EXPIRY_CHECK_S: Final = 0.05
"""How often a waiter looks whether the lease it waits for has run out, in seconds."""


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryWatch:
    """Events of an in-memory store as they come."""

    def __init__(self, cursor: WatchCursor) -> None:
        self._cursor = cursor
        self._bell = _compat.Bell()
        self._is_closed = False
        cursor.subscribe(self._bell.ring)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        while not self._is_closed:
            event = self._cursor.next_event()
            if event is not None:
                return event
            self._bell.wait()
        raise StopIteration

    def close(self) -> None:
        """End it: who waits for the next event gets the end of the iteration."""
        self._is_closed = True
        self._cursor.unsubscribe(self._bell.ring)
        self._bell.ring()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class InMemoryStore:
    """A store with the rules and errors of a server, that is gone with the process. Safe for threads.

    It holds encoded values: what is loaded is a copy, as it would be from a server, and what cannot be
    encoded is refused as there.

    Args:
        namespace: What answers and errors name; one store is one namespace.
        codec: Encodes the values of states and records.
        clock: Tells the time (with a time zone): for `create_time`, and for what expires.
        new_id: Makes the checkpoint id of a save that names none.
    """

    def __init__(
        self,
        *,
        namespace: str = "default",
        codec: Codec = JSON,
        clock: Callable[[], datetime] = _now,
        new_id: Callable[[], str] = new_checkpoint_id,
    ) -> None:
        self._core = MemoryCore(namespace=namespace, codec=codec, clock=clock)
        self._new_id = new_id

    @property
    def namespace(self) -> str:
        """What answers and errors name."""
        return self._core.namespace

    @property
    def codec(self) -> Codec:
        """Encodes the values of states and records."""
        return self._core.codec

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: the store stays usable, so that a second program part can open "the same server"."""

    def save(
        self,
        workflow_id: str,
        *,
        state: Mapping[str, Any],
        current_step: str = "",
        after: After = None,
        checkpoint_id: str | None = None,
        status: Status = Status.RUNNING,
        metadata: Mapping[str, Any] | None = None,
        scope: str = "",
        completed_steps: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        definition: str = "",
        fingerprint: str = "",
        run_id: str = "",
        records: Sequence[Record] = (),
        history_entries: Sequence[str] = (),
        replace: bool = False,
        lease_token: int = 0,
        release_lease: bool = False,
        consumed_signals: Sequence[str] = (),
        manifest: str = "",
        timeout_s: float | None = None,
    ) -> Saved:
        """Store one checkpoint, once. See the client's `save`."""
        return self._core.save(
            SaveItem(
                workflow_id=workflow_id,
                state=state,
                current_step=current_step,
                after=after,
                checkpoint_id=self._new_id() if checkpoint_id is None else checkpoint_id,
                status=status,
                metadata=metadata,
                scope=scope,
                completed_steps=completed_steps,
                labels=labels,
                definition=definition,
                fingerprint=fingerprint,
                run_id=run_id,
                records=records,
                history_entries=history_entries,
                replace=replace,
                lease_token=lease_token,
                release_lease=release_lease,
                consumed_signals=consumed_signals,
                manifest=manifest,
            )
        )

    def save_all(
        self, items: Iterable[SaveItem], *, timeout_s: float | None = None
    ) -> builtins.list[Saved | MilepostError]:
        """Store many checkpoints, in order; one result or error for each. Not atomic."""
        return self._core.save_all(items)

    def load(
        self,
        workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        sequence: int | None = None,
        latest_with_status: Status | Iterable[Status] | None = None,
        scope: str = "",
        entries: Iterable[str] | None = None,
        with_state: bool = True,
        timeout_s: float | None = None,
    ) -> Checkpoint:
        """Read one checkpoint, the head unless told otherwise."""
        return self._core.load(
            workflow_id,
            checkpoint_id=checkpoint_id,
            sequence=sequence,
            latest_with_status=latest_with_status,
            scope=scope,
            entries=entries,
            with_state=with_state,
        )

    def list(
        self,
        workflow_id: str,
        *,
        scope: str | None = "",
        newest_first: bool = True,
        limit: int | None = None,
        with_state: bool = False,
        with_records: bool = False,
        status: Status | Iterable[Status] | None = None,
        current_step: str | None = None,
        before: Checkpoint | Saved | int | str | None = None,
        metadata_contains: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Checkpoint]:
        """Read checkpoints in the order of their sequence, as they are when the first one is asked for."""
        found = self._core.list(
            workflow_id,
            scope=scope,
            newest_first=newest_first,
            limit=limit,
            with_state=with_state,
            with_records=with_records,
            status=status,
            current_step=current_step,
            before=before,
            metadata_contains=metadata_contains,
            run_id=run_id,
        )
        for checkpoint in found:
            yield checkpoint

    def append_records(
        self,
        workflow_id: str,
        checkpoint_id: str,
        records: Sequence[Record],
        *,
        scope: str = "",
        require_checkpoint: bool = False,
        lease_token: int = 0,
        timeout_s: float | None = None,
    ) -> builtins.list[RecordOutcome]:
        """Append records to a checkpoint, also before that checkpoint exists."""
        return self._core.append_records(
            workflow_id,
            checkpoint_id,
            records,
            scope=scope,
            require_checkpoint=require_checkpoint,
            lease_token=lease_token,
        )

    def entry_history(
        self,
        workflow_id: str,
        entries: str | Iterable[str],
        *,
        scope: str = "",
        checkpoint_id: str | None = None,
        limit: int | None = None,
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[EntryVersion]:
        """Read the values that entries had along a checkpoint's line of ancestors, newest first."""
        found = self._core.entry_history(workflow_id, entries, scope=scope, checkpoint_id=checkpoint_id, limit=limit)
        for version in found:
            yield version

    def workflows(
        self,
        *,
        prefix: str = "",
        status: Status | Iterable[Status] | None = None,
        labels: Mapping[str, str] | None = None,
        definition: str | None = None,
        updated_from: datetime | None = None,
        updated_before: datetime | None = None,
        is_leased: bool | None = None,
        has_pending_signals: bool | None = None,
        fingerprint: str | None = None,
        limit: int | None = None,
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[WorkflowInfo]:
        """Read the workflows that match, by id."""
        found = self._core.workflows(
            prefix=prefix,
            status=status,
            labels=labels,
            definition=definition,
            updated_from=updated_from,
            updated_before=updated_before,
            is_leased=is_leased,
            has_pending_signals=has_pending_signals,
            fingerprint=fingerprint,
            limit=limit,
        )
        for info in found:
            yield info

    def workflow(self, workflow_id: str, *, timeout_s: float | None = None) -> WorkflowInfo:
        """Read what is known of one workflow without reading its state."""
        return self._core.workflow(workflow_id)

    def fork(
        self,
        workflow_id: str,
        new_workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        scope: str = "",
        all_scopes: bool = False,
        fork_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint."""
        return self._core.fork(
            workflow_id,
            new_workflow_id,
            checkpoint_id=checkpoint_id,
            scope=scope,
            all_scopes=all_scopes,
            fork_id=fork_id or "",
        )

    def delete(self, workflow_id: str, *, lease_token: int = 0, timeout_s: float | None = None) -> bool:
        """Delete a workflow with all its scopes; tell whether there was one."""
        return self._core.delete(workflow_id, lease_token=lease_token)

    def delete_checkpoints(
        self,
        workflow_id: str,
        checkpoint_ids: Iterable[str] = (),
        *,
        run_ids: Iterable[str] = (),
        scope: str = "",
        lease_token: int = 0,
        timeout_s: float | None = None,
    ) -> int:
        """Delete checkpoints by id (of one scope) or by run (of all scopes); return how many there were."""
        return self._core.delete_checkpoints(
            workflow_id, checkpoint_ids, run_ids=run_ids, scope=scope, lease_token=lease_token
        )

    def prune(
        self, workflow_id: str, *, keep_last: int = 1, dry_run: bool = False, timeout_s: float | None = None
    ) -> int:
        """Delete all but the newest of every scope and what these need; return how many."""
        return self._core.prune(workflow_id, keep_last=keep_last, dry_run=dry_run)

    def acquire_lease(
        self,
        workflow_id: str,
        *,
        ttl_s: float = TTL_S,
        wait_s: float = 0.0,
        holder: str | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> LeaseInfo:
        """Take the lease of a workflow, which need not exist yet, or wait for it. See the client's `acquire_lease`."""
        holder = default_holder() if holder is None else holder
        request_id = new_checkpoint_id() if request_id is None else request_id
        bell, give_up_at = _compat.Bell(), time.monotonic() + wait_s
        last_moment = self._core.time_s() + wait_s
        self._core.subscribe(bell.ring)
        try:
            while True:
                try:
                    return self._core.acquire_lease(workflow_id, holder=holder, ttl_s=ttl_s, request_id=request_id)
                except LeaseHeldError:
                    left_s = min(give_up_at - time.monotonic(), last_moment - self._core.time_s())
                    if left_s <= 0:
                        raise
                # An expiry rings no bell, and the store's clock may be one that only a test moves.
                bell.wait(min(left_s, _EXPIRY_CHECK_S))
        finally:
            self._core.unsubscribe(bell.ring)

    def renew_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> LeaseRenewal:
        """Keep a lease for another ttl, also after it has run out, until anyone else acts."""
        return self._core.renew_lease(workflow_id, token)

    def release_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> bool:
        """Give a lease back; tell whether the token still held it."""
        return self._core.release_lease(workflow_id, token)

    def break_lease(self, workflow_id: str, *, timeout_s: float | None = None) -> bool:
        """Take the lease away from whoever holds it; tell whether there was one."""
        return self._core.break_lease(workflow_id)

    def get_lease(self, workflow_id: str, *, timeout_s: float | None = None) -> LeaseInfo | None:
        """Read who holds the lease, without its token; None where there is none."""
        return self._core.get_lease(workflow_id)

    def lease(self, workflow_id: str, *, ttl_s: float = TTL_S, wait_s: float = 0.0, holder: str | None = None) -> Lease:
        """Return a block's lease, which renews itself. It is renewed by real time and runs out by the store's clock."""
        return Lease(self, workflow_id, ttl_s=ttl_s, wait_s=wait_s, holder=holder, clock=self._core.time_s)

    def send_signal(
        self,
        workflow_id: str,
        name: str,
        value: object = None,
        *,
        signal_id: str | None = None,
        timeout_s: float | None = None,
    ) -> SignalSent:
        """Send a signal to a workflow, once."""
        signal_id = new_checkpoint_id() if signal_id is None else signal_id
        return self._core.send_signal(workflow_id, name, value, signal_id=signal_id)

    def signals(
        self,
        workflow_id: str,
        *,
        name: str | None = None,
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Signal]:
        """Read the signals that no save has consumed yet, in the order they came."""
        for signal in self._core.signals(workflow_id, name=name):
            yield signal

    def watch(self, workflow_id: str = "", *, after: WatchAfter = None, definition: str | None = None) -> MemoryWatch:
        """Follow one workflow, or all of them. See the client's `watch`."""
        position = watch_position(after, self.namespace, workflow_id)
        return MemoryWatch(WatchCursor(self._core, workflow_id, after=position, definition=definition))

    def definition_manifest(self, fingerprint: str, *, timeout_s: float | None = None) -> str:
        """Read a definition's manifest: JSON text as it was first sent."""
        return self._core.definition_manifest(fingerprint)

    def ping(self, *, timeout_s: float | None = None) -> None:
        """Return at once: it serves."""
