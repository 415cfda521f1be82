# Generated from client/milepost/_async/memory.py by tools/unasync.py. Do not edit.
"""The in-memory store's face: the methods of `AsyncClient`, answered by `MemoryCore` at once.

For tests and for programs that need no durability. Nothing here waits.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from typing_extensions import override

from milepost._memory_core import MemoryCore
from milepost.codecs import JSON, Codec
from milepost.errors import MilepostError
from milepost.types import (
    After,
    Checkpoint,
    EntryVersion,
    Record,
    RecordOutcome,
    Saved,
    SaveItem,
    Status,
    WorkflowInfo,
    new_checkpoint_id,
)


def _now() -> datetime:
    return datetime.now(UTC)


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
        timeout_s: float | None = None,
    ) -> builtins.list[RecordOutcome]:
        """Append records to a checkpoint, also before that checkpoint exists."""
        return self._core.append_records(
            workflow_id, checkpoint_id, records, scope=scope, require_checkpoint=require_checkpoint
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

    def delete(self, workflow_id: str, *, timeout_s: float | None = None) -> bool:
        """Delete a workflow with all its scopes; tell whether there was one."""
        return self._core.delete(workflow_id)

    def delete_checkpoints(
        self,
        workflow_id: str,
        checkpoint_ids: Iterable[str] = (),
        *,
        run_ids: Iterable[str] = (),
        scope: str = "",
        timeout_s: float | None = None,
    ) -> int:
        """Delete checkpoints by id (of one scope) or by run (of all scopes); return how many there were."""
        return self._core.delete_checkpoints(workflow_id, checkpoint_ids, run_ids=run_ids, scope=scope)

    def prune(
        self, workflow_id: str, *, keep_last: int = 1, dry_run: bool = False, timeout_s: float | None = None
    ) -> int:
        """Delete all but the newest of every scope and what these need; return how many."""
        return self._core.prune(workflow_id, keep_last=keep_last, dry_run=dry_run)

    def ping(self, *, timeout_s: float | None = None) -> None:
        """Return at once: it serves."""
