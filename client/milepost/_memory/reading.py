"""What the in-memory store answers of workflows and checkpoints, without changing any."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final

from milepost._calls import read_before, read_record
from milepost._failures import locating
from milepost._memory.base import MemoryBase, names_call
from milepost._memory.checks import (
    HISTORY_KEYS_MAX,
    check_count,
    check_limit,
    check_sequence,
    check_texts,
    contains_metadata,
    metadata_filter,
    status_set,
)
from milepost._memory.rows import Row, Workflow, pick, record_order
from milepost._state import decode_state, decode_value
from milepost._texts import list_of_texts
from milepost.errors import CheckpointNotFoundError, InvalidRequestError
from milepost.types import Checkpoint, EntryVersion, PendingSignal, Saved, Status, WorkflowInfo
from milepost.v1 import checkpoint_pb2 as pb

_NEVER: Final = datetime.fromisoformat("0001-01-01T00:00:00+00:00")


class Reading(MemoryBase):
    """Reads of one namespace."""

    @names_call
    def load(
        self,
        workflow_id: str,
        *,
        checkpoint_id: str | None,
        sequence: int | None,
        latest_with_status: Status | Iterable[Status] | None,
        scope: str,
        entries: Iterable[str] | None,
        with_state: bool,
    ) -> Checkpoint:
        """Read one checkpoint."""
        if (checkpoint_id is not None) + (sequence is not None) + (latest_with_status is not None) > 1:
            raise InvalidRequestError(
                f"load of workflow {workflow_id!r}: give at most one of checkpoint_id, sequence and latest_with_status",
                workflow_id=workflow_id,
            )
        entry_keys = None if entries is None else list_of_texts(entries, "entries")
        check_sequence("sequence", sequence)
        check_texts(workflow_id=workflow_id, scope=scope, checkpoint_id=checkpoint_id, entry_keys=entry_keys)
        with self._lock:
            workflow = self._require(workflow_id)
            row = pick(workflow, scope, checkpoint_id, sequence, status_set(latest_with_status))
            if row is None:
                raise self._no_checkpoint(workflow_id, scope, checkpoint_id, sequence)
            stored = self._read(workflow, row)
        with_state = with_state and entry_keys != []
        return stored.decode(self, with_state=with_state, with_records=True, is_loaded=True, entry_keys=entry_keys)

    @names_call
    def list(
        self,
        workflow_id: str,
        *,
        scope: str | None,
        newest_first: bool,
        limit: int | None,
        with_state: bool,
        with_records: bool,
        status: Status | Iterable[Status] | None,
        current_step: str | None,
        before: Checkpoint | Saved | int | str | None,
        metadata_contains: Mapping[str, Any] | None,
        run_id: str | None,
    ) -> Iterator[Checkpoint]:
        """Return what there is now."""
        check_limit(limit)
        if limit == 0:
            return iter(())
        before_sequence, before_checkpoint_id = read_before(before)
        check_sequence("before_sequence", before_sequence)
        check_texts(
            workflow_id=workflow_id,
            scope=scope,
            current_step=current_step,
            before_checkpoint_id=before_checkpoint_id,
            run_id=run_id,
        )
        contained = None if metadata_contains is None else metadata_filter(metadata_contains)
        with self._lock:
            workflow = self._require(workflow_id)
            rows = [row for row in workflow.rows.values() if scope is None or row.scope == scope]
            if newest_first:
                rows.reverse()
            wanted_statuses = status_set(status)
            stored = [
                self._read(workflow, row)
                for row in islice(
                    (
                        row
                        for row in rows
                        if (not wanted_statuses or row.status in wanted_statuses)
                        and (current_step is None or row.current_step == current_step)
                        and (run_id is None or row.run_id == run_id)
                        and (before_sequence is None or row.sequence < before_sequence)
                        and (before_checkpoint_id is None or row.checkpoint_id.encode() < before_checkpoint_id.encode())
                        and (metadata_contains is None or contains_metadata(row.metadata, contained))
                    ),
                    limit,
                )
            ]
        return (one.decode(self, with_state=with_state, with_records=with_records, is_loaded=False) for one in stored)

    @names_call
    def entry_history(
        self,
        workflow_id: str,
        entries: str | Iterable[str],
        *,
        scope: str,
        checkpoint_id: str | None,
        limit: int | None,
    ) -> Iterator[EntryVersion]:
        """Return the values that entries had, newest first."""
        check_limit(limit)
        if limit == 0:
            return iter(())
        entry_keys = list(dict.fromkeys([entries] if isinstance(entries, str) else entries))
        check_texts(workflow_id=workflow_id, scope=scope, checkpoint_id=checkpoint_id, entry_keys=entry_keys)
        check_count("entry_keys", len(entry_keys), limit="history_keys_max", allowed=HISTORY_KEYS_MAX)
        if not entry_keys:
            raise InvalidRequestError(
                f"entry_keys: must be 1 to {HISTORY_KEYS_MAX} keys",
                reason="INVALID_FIELD",
                metadata={"field": "entry_keys"},
            )
        found: builtins.list[tuple[str, Row, pb.Value | None]] = []
        with self._lock:
            workflow = self._require(workflow_id)
            start = pick(workflow, scope, checkpoint_id, None, frozenset())
            if start is None:
                raise self._no_checkpoint(workflow_id, scope, checkpoint_id, None)
            line = [*workflow.ancestors(start)]
        for position, row in enumerate(line):
            before = line[position + 1].values if position + 1 < len(line) else {}
            for key in entry_keys:
                mine, theirs = row.values.get(key), before.get(key)
                if mine != theirs:
                    found.append((key, row, mine))
        return (self._version(workflow_id, *each) for each in found[:limit])

    def _version(self, workflow_id: str, key: str, row: Row, value: pb.Value | None) -> EntryVersion:
        # It is read when it is taken, outside of the call.
        with locating(self.namespace, workflow_id, row.scope, row.checkpoint_id):
            return EntryVersion(
                entry_key=key,
                checkpoint_id=row.checkpoint_id,
                sequence=row.sequence,
                value=None if value is None else decode_value(value, self.codec, key),
                removed=value is None,
            )

    @names_call
    def workflows(
        self,
        *,
        prefix: str,
        status: Status | Iterable[Status] | None,
        labels: Mapping[str, str] | None,
        definition: str | None,
        updated_from: datetime | None,
        updated_before: datetime | None,
        is_leased: bool | None,
        has_pending_signals: bool | None,
        fingerprint: str | None,
        limit: int | None,
    ) -> builtins.list[WorkflowInfo]:
        """Return the workflows that match, by id, bytewise."""
        check_limit(limit)
        for name, moment in (("updated_from", updated_from), ("updated_before", updated_before)):
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} has no time zone; give datetime.now(UTC), for example")
        check_texts(workflow_id_prefix=prefix, labels=labels, definition=definition, fingerprint=fingerprint)
        with self._lock:
            infos = [
                self._info(workflow)
                for key, workflow in sorted(self._workflows.items(), key=lambda pair: pair[0].encode())
                if workflow.is_visible and key.startswith(prefix)
            ]
        wanted, statuses = labels or {}, status_set(status)
        return [
            *islice(
                (
                    info
                    for info in infos
                    if (not statuses or info.status in statuses)
                    and all(info.labels.get(key) == value for key, value in wanted.items())
                    and (definition is None or info.definition == definition)
                    and (updated_from is None or (info.update_time or _NEVER) >= updated_from)
                    and (updated_before is None or (info.update_time or _NEVER) < updated_before)
                    and is_leased in {None, info.lease is not None}
                    and has_pending_signals in {None, info.pending_signal_count > 0}
                    and fingerprint in {None, info.fingerprint}
                ),
                limit,
            )
        ]

    @names_call
    def workflow(self, workflow_id: str) -> WorkflowInfo:
        """Return what is known of one workflow."""
        check_texts(workflow_id=workflow_id)
        with self._lock:
            return self._info(self._require(workflow_id))

    # Shared steps; the lock is held.

    def _no_checkpoint(
        self, workflow_id: str, scope: str, checkpoint_id: str | None, sequence: int | None
    ) -> CheckpointNotFoundError:
        what, metadata = "no such checkpoint", {"workflow_id": workflow_id, "scope": scope}
        if checkpoint_id is not None:
            what, metadata["checkpoint_id"] = f"no checkpoint {checkpoint_id!r}", checkpoint_id
        elif sequence is not None:
            what, metadata["sequence"] = f"no checkpoint with sequence {sequence}", str(sequence)
        return CheckpointNotFoundError(
            f"workflow {workflow_id!r} has {what} in scope {scope!r}",
            reason="CHECKPOINT_NOT_FOUND",
            metadata=metadata,
        )

    def _info(self, workflow: Workflow) -> WorkflowInfo:
        head = workflow.head("")
        return WorkflowInfo(
            namespace=self.namespace,
            workflow_id=workflow.workflow_id,
            status=head.status if head is not None else None,
            current_step=head.current_step if head is not None else "",
            definition=workflow.definition,
            labels=dict(workflow.labels),
            head_checkpoint_id=head.checkpoint_id if head is not None else "",
            head_sequence=head.sequence if head is not None else 0,
            last_sequence=workflow.last_sequence,
            checkpoint_count=len(workflow.rows),
            scope_count=len(workflow.heads),
            stored_bytes=sum(row.size_bytes for row in workflow.rows.values()),
            create_time=workflow.create_time,
            update_time=workflow.update_time,
            revision=workflow.revision,
            incarnation=workflow.incarnation,
            forked_from_workflow_id=workflow.forked_from,
            lease=self._leases.find_live(workflow.workflow_id),
            pending_signal_count=len(workflow.signals),
            fingerprint=head.fingerprint if head is not None else "",
        )

    def _read(self, workflow: Workflow, row: Row) -> _Read:
        group = workflow.records.get((row.scope, row.checkpoint_id))
        return _Read(
            workflow_id=workflow.workflow_id,
            row=row,
            parent_pruned=bool(row.parent_id) and workflow.find(row.scope, row.parent_id) is None,
            head_checkpoint_id=workflow.rows[workflow.heads[row.scope]].checkpoint_id,
            records=() if group is None else tuple(group.records.values()),
            revision=workflow.revision,
            pending_signals=workflow.signals.shown(),
            pending_signal_count=len(workflow.signals),
        )


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of one checkpoint under the lock, to be decoded without it."""

    workflow_id: str
    row: Row
    parent_pruned: bool
    head_checkpoint_id: str
    records: tuple[pb.Record, ...] = field(repr=False)
    revision: int
    pending_signals: tuple[PendingSignal, ...]
    pending_signal_count: int

    def decode(
        self,
        store: Reading,
        *,
        with_state: bool,
        with_records: bool,
        is_loaded: bool,
        entry_keys: Sequence[str] | None = None,
    ) -> Checkpoint:
        row = self.row
        values: Mapping[str, pb.Value] = row.values
        if entry_keys is not None:
            values = {key: row.values[key] for key in dict.fromkeys(entry_keys) if key in row.values}
        # Where it is read when it is taken, that is outside of the call.
        with locating(store.namespace, self.workflow_id, row.scope, row.checkpoint_id):
            state = decode_state(values, store.codec) if with_state else None
            found = sorted(self.records if with_records else (), key=record_order)
            records = tuple(read_record(one, store.codec) for one in found)
        return Checkpoint(
            namespace=store.namespace,
            workflow_id=self.workflow_id,
            scope=row.scope,
            checkpoint_id=row.checkpoint_id,
            parent_id=row.parent_id,
            parent_pruned=self.parent_pruned,
            sequence=row.sequence,
            current_step=row.current_step,
            completed_steps=row.steps.all() if is_loaded else (),
            completed_step_count=row.steps.count,
            status=row.status,
            create_time=row.create_time,
            metadata=json.loads(row.metadata) if row.metadata else {},
            definition=row.definition,
            fingerprint=row.fingerprint,
            run_id=row.run_id,
            history_entries=row.history_entries,
            entry_count=len(row.values),
            size_bytes=row.size_bytes,
            digest=row.digest,
            records=records,
            record_count=len(self.records),
            head_checkpoint_id=self.head_checkpoint_id if is_loaded else "",
            revision=self.revision if is_loaded else 0,
            pending_signals=self.pending_signals if is_loaded else (),
            pending_signal_count=self.pending_signal_count if is_loaded else 0,
            state_omitted=not with_state or entry_keys is not None,
            state_values=state,
        )
