"""The in-memory store's rules and rows, without any input or output: what both faces in `memory` share.

Follows the server's rules (docs/guarantees.md): replay by id and content, expected head, stubs of what was
deleted, a sequence for each workflow. Rows hold encoded values, so nothing that a caller changes later
changes what is stored. One lock guards all_scopes; values are encoded and decoded outside of it.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice
from typing import Any, Final

from typing_extensions import override

from milepost._calls import encode_metadata, read_record, record_to_wire
from milepost._state import decode_state, decode_value, encode_state
from milepost.codecs import Codec
from milepost.errors import (
    ERROR_CLASSES,
    CheckpointDeletedError,
    CheckpointNotFoundError,
    InvalidRequestError,
    LimitExceededError,
    MilepostError,
    QuotaExceededError,
    WorkflowExistsError,
    WorkflowNotFoundError,
)
from milepost.types import (
    Checkpoint,
    EntryVersion,
    Record,
    RecordOutcome,
    Saved,
    SaveItem,
    Status,
    WorkflowInfo,
)
from milepost.v1 import checkpoint_pb2 as pb

WORKFLOW_ID_BYTES_MAX: Final = 1_024
SHORT_ID_BYTES_MAX: Final = 256
NAMESPACE_BYTES_MAX: Final = 128
ENTRIES_MAX: Final = 10_000
STATE_BYTES_MAX: Final = 16 * 1024 * 1024 - 64 * 1024
METADATA_BYTES_MAX: Final = 64 * 1024
LABELS_MAX: Final = 16
WAITING_RECORDS_MAX: Final = 1_000
RECORDS_MAX: Final = 10_000
RECORDS_BYTES_MAX: Final = 4 * 1024 * 1024
WAITING_RECORDS_TTL: Final = timedelta(hours=24)
REPLAY_WINDOW: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class _Steps:
    """An ordered set of steps that shares its beginning with the checkpoint before."""

    before: _Steps | None
    added: tuple[str, ...]
    count: int
    digest: bytes

    def all(self) -> tuple[str, ...]:
        parts: list[tuple[str, ...]] = []
        node: _Steps | None = self
        while node is not None:
            parts.append(node.added)
            node = node.before
        return tuple(step for part in reversed(parts) for step in part)


_NO_STEPS: Final = _Steps(None, (), 0, b"")


@dataclass(frozen=True, slots=True)
class _Row:
    """One stored checkpoint."""

    scope: str
    checkpoint_id: str
    parent_id: str
    sequence: int
    current_step: str
    steps: _Steps
    status: Status
    values: Mapping[str, pb.Value] = field(repr=False)
    metadata: str = field(repr=False)
    definition: str
    fingerprint: str
    run_id: str
    history_entries: tuple[str, ...]
    create_time: datetime
    size_bytes: int
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _RecordGroup:
    """The records of one checkpoint id, whether or not it exists yet."""

    create_time: datetime
    records: Mapping[tuple[str, int], pb.Record] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Stub:
    """What is left of a deleted checkpoint."""

    sequence: int
    expires: datetime


@dataclass(slots=True)
class _Workflow:
    workflow_id: str
    incarnation: str
    create_time: datetime
    update_time: datetime | None = None
    revision: int = 0
    last_sequence: int = 0
    definition: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    forked_from: str = ""
    fork_id: str = ""
    fork_source: tuple[object, ...] = ()
    rows: dict[int, _Row] = field(default_factory=dict, repr=False)
    """By sequence, ascending: a new row is always the highest."""
    sequences: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    """By (scope, checkpoint id)."""
    heads: dict[str, int] = field(default_factory=dict, repr=False)
    """Highest sequence by scope; scopes without a checkpoint are absent."""
    records: dict[tuple[str, str], _RecordGroup] = field(default_factory=dict, repr=False)
    waiting: set[tuple[str, str]] = field(default_factory=set, repr=False)
    """Keys of records whose checkpoint does not exist yet."""
    known_steps: tuple[_Steps, set[str]] = field(default_factory=lambda: (_NO_STEPS, set()), repr=False)
    """The steps saved last, as a set: a chain of saves looks each step up once."""

    @property
    def is_visible(self) -> bool:
        """Readers see it: it has or had a checkpoint, not only records that wait for one."""
        return self.last_sequence > 0

    def find(self, scope: str, checkpoint_id: str) -> _Row | None:
        sequence = self.sequences.get((scope, checkpoint_id))
        return None if sequence is None else self.rows[sequence]

    def head(self, scope: str) -> _Row | None:
        sequence = self.heads.get(scope)
        return None if sequence is None else self.rows[sequence]

    def ancestors(self, row: _Row | None) -> Iterator[_Row]:
        """Yield a checkpoint and those it came from, until the line ends or was cut."""
        while row is not None:
            yield row
            row = self.find(row.scope, row.parent_id) if row.parent_id else None


class MemoryCore:
    """Every operation of the store, for one namespace."""

    def __init__(
        self,
        *,
        namespace: str,
        codec: Codec,
        clock: Callable[[], datetime],
    ) -> None:
        _check_id("namespace", namespace, NAMESPACE_BYTES_MAX)
        self.namespace = namespace
        self.codec = codec
        self._clock = clock
        self._lock = threading.RLock()
        self._workflows: dict[str, _Workflow] = {}
        self._stubs: dict[tuple[str, str, str], _Stub] = {}
        self._incarnations = 0

    @override
    def __str__(self) -> str:
        return f"namespace={self.namespace!r}, workflows={len(self._workflows)}, codec={self.codec.name!r}"

    # Saving.

    def save(self, item: SaveItem) -> Saved:
        """Store one checkpoint, once."""
        _check_item(item)
        parent_id, expected_head = _line(item)
        encoded = encode_state(item.state, self.codec, compress_over_bytes=None)
        metadata = "" if item.metadata is None else encode_metadata(item.metadata)
        metadata_bytes = len(metadata.encode())
        for name, limit, allowed, found, unit in (
            ("state", "entries_max", ENTRIES_MAX, len(encoded.digests), "entries"),
            ("metadata", "metadata_bytes_max", METADATA_BYTES_MAX, metadata_bytes, "bytes"),
            ("state", "state_bytes_max", STATE_BYTES_MAX, encoded.size_bytes + metadata_bytes, "bytes"),
        ):
            if found > allowed:
                raise _limit(item, name, limit=limit, allowed=allowed, found=found, unit=unit)
        records = self._encode_records(item.records)
        draft = _Row(
            scope=item.scope,
            checkpoint_id=item.checkpoint_id,
            parent_id="",
            sequence=0,
            current_step=item.current_step,
            steps=_NO_STEPS,
            status=Status(item.status),
            values=encoded.values,
            metadata=metadata,
            definition=item.definition,
            fingerprint=item.fingerprint,
            run_id=item.run_id,
            history_entries=tuple(item.history_entries),
            create_time=self._clock(),
            size_bytes=encoded.size_bytes + metadata_bytes,
            digest=_digest_parts(*(part for pair in sorted(encoded.digests.items()) for part in pair)),
        )
        with self._lock:
            return self._save(item, draft, records, parent_id, expected_head)

    def _save(
        self,
        item: SaveItem,
        draft: _Row,
        records: Sequence[tuple[pb.Record, bool]],
        parent_id: str | None,
        expected_head: str | None,
    ) -> Saved:
        workflow = self._workflows.get(item.workflow_id)
        existing = workflow.find(item.scope, item.checkpoint_id) if workflow is not None else None
        if existing is None:
            self._refuse_deleted(item.workflow_id, item.scope, item.checkpoint_id)
        if existing is not None and parent_id is None:
            parent_id = existing.parent_id
        head = workflow.head(item.scope) if workflow is not None else None
        parent = self._find_parent(item, workflow, head, parent_id, existing)
        parent_id = parent_id if parent_id is not None else head.checkpoint_id if head is not None else ""
        steps, known = _add_steps(workflow, parent, item.completed_steps)
        if parent is None and parent_id and existing is not None and item.completed_steps:
            steps = _resolve_again(existing, steps)
        row = dataclasses.replace(draft, parent_id=parent_id, steps=steps)
        row = dataclasses.replace(row, digest=_digest_content(row, entries_digest=draft.digest))
        if existing is not None and workflow is not None:
            if row.digest == existing.digest:
                return self._saved(workflow, existing, replayed=True)
            if not item.replace:
                raise self._error(
                    "CHECKPOINT_EXISTS",
                    f"checkpoint {item.checkpoint_id!r} exists with other content, at sequence {existing.sequence}",
                    item,
                    checkpoint_id=item.checkpoint_id,
                    sequence=existing.sequence,
                    digest=existing.digest.hex(),
                )
        self._check_head(item, expected_head, head)
        if workflow is not None and item.definition and workflow.definition not in {"", item.definition}:
            raise self._error(
                "DEFINITION_MISMATCH",
                f"workflow {item.workflow_id!r} belongs to definition {workflow.definition!r}, "
                f"not to {item.definition!r}",
                item,
                definition=workflow.definition,
                found=item.definition,
            )
        if existing is not None and parent is not None and parent.sequence >= existing.sequence:
            raise self._error(
                "INVALID_FIELD",
                "parent_id must name a checkpoint older than the one it replaces",
                item,
                field="parent_id",
            )
        group = workflow.records.get((item.scope, item.checkpoint_id)) if workflow is not None else None
        merged = _merge_records(group, records)
        _check_records(merged[0], item.workflow_id)
        # Nothing was changed so far, and nothing fails from here on.
        workflow = workflow or self._create(item.workflow_id)
        if existing is None:
            sequence, create_time = workflow.last_sequence + 1, row.create_time
            workflow.last_sequence = sequence
            workflow.heads[item.scope] = sequence
        else:
            sequence, create_time = existing.sequence, existing.create_time
        row = dataclasses.replace(row, sequence=sequence, create_time=create_time)
        workflow.rows[sequence] = row
        workflow.sequences[item.scope, item.checkpoint_id] = sequence
        if existing is None:
            known.update(row.steps.added)
            workflow.known_steps = (row.steps, known)
        workflow.definition = workflow.definition or item.definition
        if item.labels:
            workflow.labels = dict(item.labels)
        if item.scope == "" and workflow.heads[""] == sequence:
            workflow.update_time = draft.create_time
        workflow.revision += 1
        if group is not None or records:
            key = (item.scope, item.checkpoint_id)
            workflow.records[key] = _RecordGroup(draft.create_time, merged[0])
            workflow.waiting.discard(key)
        return self._saved(workflow, row, replayed=False)

    def _find_parent(
        self,
        item: SaveItem,
        workflow: _Workflow | None,
        head: _Row | None,
        parent_id: str | None,
        existing: _Row | None,
    ) -> _Row | None:
        if parent_id is None:
            return head
        if not parent_id:
            return None
        parent = workflow.find(item.scope, parent_id) if workflow is not None else None
        known = parent is not None or self._stub(item.workflow_id, item.scope, parent_id) is not None
        if known or (existing is not None and existing.parent_id == parent_id):
            return parent
        # On the server the expected head is looked at first; `after` sets both to the same checkpoint.
        self._check_head(item, _line(item)[1], head)
        raise self._error(
            "PARENT_NOT_FOUND",
            f"parent_id: checkpoint {parent_id!r} was never saved in this scope",
            item,
            parent_id=parent_id,
        )

    def _check_head(self, item: SaveItem, expected: str | None, head: _Row | None) -> None:
        found_id, found_sequence = (head.checkpoint_id, head.sequence) if head is not None else ("", 0)
        if expected is None or expected == found_id:
            return
        found = f"{found_id!r} at sequence {found_sequence}" if head is not None else "none"
        raise self._error(
            "HEAD_MOVED",
            f"expected_head: the head is {found}, not {expected!r}; load it and decide again",
            item,
            expected_head=expected,
            head_checkpoint_id=found_id,
            head_sequence=found_sequence,
        )

    def _saved(self, workflow: _Workflow, row: _Row, *, replayed: bool) -> Saved:
        return Saved(
            namespace=self.namespace,
            workflow_id=workflow.workflow_id,
            scope=row.scope,
            checkpoint_id=row.checkpoint_id,
            parent_id=row.parent_id,
            sequence=row.sequence,
            head_checkpoint_id=workflow.rows[workflow.heads[row.scope]].checkpoint_id,
            replayed=replayed,
            create_time=row.create_time,
            digest=row.digest,
            revision=workflow.revision,
        )

    def save_all(self, items: Iterable[SaveItem]) -> builtins.list[Saved | MilepostError]:
        """Store many checkpoints, in order; an item that builds on a failed one fails with it."""
        results: builtins.list[Saved | MilepostError] = []
        failed: dict[tuple[str, str, str], int] = {}
        for index, item in enumerate(items):
            key = (item.workflow_id, item.scope, item.checkpoint_id)
            try:
                self._check_predecessor(item, index, failed)
                results.append(self.save(item))
                failed.pop(key, None)
            except MilepostError as error:
                failed[key] = index
                results.append(error)
        return results

    def _check_predecessor(self, item: SaveItem, index: int, failed: Mapping[tuple[str, str, str], int]) -> None:
        after = item.after
        if after is None or isinstance(after, str):
            return
        predecessor = failed.get((after.workflow_id, after.scope, after.checkpoint_id))
        if predecessor is not None:
            raise self._error(
                "PREDECESSOR_FAILED",
                f"item {index} builds on item {predecessor}, which failed",
                item,
                index=index,
                predecessor_index=predecessor,
            )

    # Reading.

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
        entry_keys = None if entries is None else _texts(entries, "entries")
        with self._lock:
            workflow = self._require(workflow_id, scope)
            row = _pick(workflow, scope, checkpoint_id, sequence, _statuses(latest_with_status))
            if row is None:
                raise self._no_checkpoint(workflow_id, scope, checkpoint_id, sequence)
            stored = self._read(workflow, row)
        with_state = with_state and entry_keys != []
        return stored.decode(self, with_state=with_state, with_records=True, with_steps=True, entry_keys=entry_keys)

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
        _check_limit(limit)
        before_checkpoint_id = before if isinstance(before, str) else None
        before_sequence = before if isinstance(before, int) else None
        if isinstance(before, Checkpoint | Saved):
            before_sequence = before.sequence
        with self._lock:
            workflow = self._require(workflow_id, scope or "")
            rows = [row for row in workflow.rows.values() if scope is None or row.scope == scope]
            if newest_first:
                rows.reverse()
            wanted_statuses = _statuses(status)
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
                        and (metadata_contains is None or _metadata_contains(row.metadata, metadata_contains))
                    ),
                    limit,
                )
            ]
        return (one.decode(self, with_state=with_state, with_records=with_records, with_steps=False) for one in stored)

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
        _check_limit(limit)
        entry_keys = dict.fromkeys([entries] if isinstance(entries, str) else entries)
        found: builtins.list[tuple[str, _Row, pb.Value | None]] = []
        with self._lock:
            workflow = self._require(workflow_id, scope)
            start = _pick(workflow, scope, checkpoint_id, None, frozenset())
            if start is None:
                raise self._no_checkpoint(workflow_id, scope, checkpoint_id, None)
            line = [*workflow.ancestors(start)]
        for position, row in enumerate(line):
            before = line[position + 1].values if position + 1 < len(line) else {}
            for key in entry_keys:
                mine, theirs = row.values.get(key), before.get(key)
                if mine != theirs:
                    found.append((key, row, mine))
        return (
            EntryVersion(
                entry_key=key,
                checkpoint_id=row.checkpoint_id,
                sequence=row.sequence,
                value=None if value is None else decode_value(value, self.codec, key),
                removed=value is None,
            )
            for key, row, value in found[:limit]
        )

    def workflows(
        self,
        *,
        prefix: str,
        status: Status | Iterable[Status] | None,
        labels: Mapping[str, str] | None,
        definition: str | None,
        updated_from: datetime | None,
        updated_before: datetime | None,
        limit: int | None,
    ) -> builtins.list[WorkflowInfo]:
        """Return the workflows that match, by id, bytewise."""
        _check_limit(limit)
        for name, moment in (("updated_from", updated_from), ("updated_before", updated_before)):
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} has no time zone; give datetime.now(UTC), for example")
        with self._lock:
            infos = [
                self._info(workflow)
                for key, workflow in sorted(self._workflows.items(), key=lambda pair: pair[0].encode())
                if workflow.is_visible and key.startswith(prefix)
            ]
        wanted, statuses = labels or {}, _statuses(status)
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
                ),
                limit,
            )
        ]

    def workflow(self, workflow_id: str) -> WorkflowInfo:
        """Return what is known of one workflow."""
        with self._lock:
            return self._info(self._require(workflow_id, ""))

    # Records.

    def append_records(
        self,
        workflow_id: str,
        checkpoint_id: str,
        records: Iterable[Record],
        *,
        scope: str,
        require_checkpoint: bool,
    ) -> builtins.list[RecordOutcome]:
        """Append records to a checkpoint id, also before that checkpoint exists."""
        _check_id("workflow_id", workflow_id, WORKFLOW_ID_BYTES_MAX)
        _check_id("checkpoint_id", checkpoint_id, SHORT_ID_BYTES_MAX)
        _check_id("scope", scope, WORKFLOW_ID_BYTES_MAX, may_be_empty=True)
        encoded = self._encode_records(records)
        if not encoded:
            return []
        now = self._clock()
        with self._lock:
            workflow = self._workflows.get(workflow_id)
            is_live = workflow is not None and workflow.find(scope, checkpoint_id) is not None
            if not is_live:
                self._refuse_deleted(workflow_id, scope, checkpoint_id)
                if require_checkpoint:
                    raise CheckpointNotFoundError(
                        f"checkpoint_id: there is no checkpoint {checkpoint_id!r} in this scope, "
                        "and require_checkpoint was set",
                        reason="RECORD_CHECKPOINT_MISSING",
                        **self._ids(workflow_id, scope, checkpoint_id),
                        metadata={"checkpoint_id": checkpoint_id},
                    )
            waiting = 0
            if workflow is not None:
                _drop_waiting(workflow, now)
                waiting = sum(len(workflow.records[key].records) for key in workflow.waiting)
            group = workflow.records.get((scope, checkpoint_id)) if workflow is not None else None
            merged, outcomes = _merge_records(group, encoded)
            _check_records(merged, workflow_id)
            waiting += 0 if is_live else outcomes.count(RecordOutcome.CREATED)
            if waiting > WAITING_RECORDS_MAX:
                raise QuotaExceededError(
                    f"records: {waiting} records of workflow {workflow_id!r} would wait for checkpoints that do not "
                    f"exist; at most {WAITING_RECORDS_MAX} may",
                    reason="QUOTA_EXCEEDED",
                    **self._ids(workflow_id, scope, checkpoint_id),
                    metadata=_limits("waiting_records_max", WAITING_RECORDS_MAX, waiting, "records"),
                )
            workflow = workflow or self._create(workflow_id)
            key = (scope, checkpoint_id)
            workflow.records[key] = _RecordGroup(now if group is None else group.create_time, merged)
            if not is_live:
                workflow.waiting.add(key)
            if any(outcome is not RecordOutcome.EXISTING for outcome in outcomes):
                workflow.revision += 1
        return outcomes

    def _encode_records(self, records: Iterable[Record]) -> builtins.list[tuple[pb.Record, bool]]:
        return [(record_to_wire(record, self.codec, None), record.overwrite) for record in records]

    # Forking and deleting.

    def fork(
        self,
        workflow_id: str,
        target_workflow_id: str,
        *,
        checkpoint_id: str | None,
        scope: str,
        all_scopes: bool,
        fork_id: str,
    ) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint."""
        _check_id("target_workflow_id", target_workflow_id, WORKFLOW_ID_BYTES_MAX)
        origin = (workflow_id, scope, checkpoint_id, all_scopes)
        now = self._clock()
        with self._lock:
            target = self._workflows.get(target_workflow_id)
            if target is not None:
                if fork_id and (target.fork_id, target.fork_source) == (fork_id, origin):
                    return self._info(target)
                raise WorkflowExistsError(
                    f"target_workflow_id: workflow {target_workflow_id!r} exists already",
                    reason="WORKFLOW_EXISTS",
                    **self._ids(workflow_id, scope, checkpoint_id or ""),
                    metadata={"workflow_id": target_workflow_id},
                )
            source = self._require(workflow_id, scope)
            first = _pick(source, scope, checkpoint_id, None, frozenset())
            if first is None:
                raise self._no_checkpoint(workflow_id, scope, checkpoint_id, None)
            if all_scopes:
                taken = [row for row in source.rows.values() if row.sequence <= first.sequence]
            else:
                taken = [*source.ancestors(first)][::-1]
            target = self._create(target_workflow_id)
            target.last_sequence = first.sequence
            target.definition, target.labels = source.definition, source.labels
            target.forked_from, target.fork_id, target.fork_source = workflow_id, fork_id, origin
            target.revision = 1
            for row in taken:
                key = (row.scope, row.checkpoint_id)
                target.rows[row.sequence] = row
                target.sequences[key] = row.sequence
                target.heads[row.scope] = row.sequence
                group = source.records.get(key)
                if group is not None:
                    target.records[key] = group
            target.update_time = now if "" in target.heads else None
            return self._info(target)

    def delete(self, workflow_id: str) -> bool:
        """Delete a workflow with all its scopes; tell whether there was one."""
        with self._lock:
            workflow = self._workflows.pop(workflow_id, None)
            if workflow is None:
                return False
            for row in workflow.rows.values():
                self._leave_stub(workflow_id, row)
            return workflow.is_visible

    def delete_checkpoints(
        self,
        workflow_id: str,
        checkpoint_ids: Iterable[str],
        *,
        run_ids: Iterable[str],
        scope: str,
    ) -> int:
        """Delete checkpoints of one scope by id, and those of executions in every scope; return how many."""
        ids = dict.fromkeys(_texts(checkpoint_ids, "checkpoint_ids"))
        runs = frozenset(_texts(run_ids, "run_ids"))
        if not ids and not runs:
            return 0
        deleted = 0
        with self._lock:
            # Without a workflow, the runs of all of them.
            is_one = bool(workflow_id or ids)
            workflows = [self._require(workflow_id, scope)] if is_one else [*self._workflows.values()]
            for workflow in workflows:
                named = [workflow.find(scope, one) for one in ids]
                rows = {row.sequence: row for row in named if row is not None}
                rows |= {row.sequence: row for row in workflow.rows.values() if row.run_id in runs}
                self._delete_rows(workflow, [*rows.values()])
                deleted += len(rows)
        return deleted

    def prune(self, workflow_id: str, *, keep_last: int, dry_run: bool) -> int:
        """Delete all but the newest N of every scope and what these need; return how many."""
        if keep_last < 1:
            raise ValueError(f"keep_last is at least 1, not {keep_last}; delete() removes a whole workflow")
        with self._lock:
            workflow = self._require(workflow_id, "")
            by_scope: dict[str, builtins.list[_Row]] = {}
            for row in workflow.rows.values():
                by_scope.setdefault(row.scope, []).append(row)
            doomed: builtins.list[_Row] = []
            for rows in by_scope.values():
                kept = rows[-keep_last:]
                needed = _needed_ancestors(workflow, kept)
                doomed += [row for row in rows[: -len(kept)] if row.sequence not in needed]
            if not dry_run:
                self._delete_rows(workflow, doomed)
        return len(doomed)

    # Shared steps; the lock is held.

    def _create(self, workflow_id: str) -> _Workflow:
        self._incarnations += 1
        workflow = _Workflow(workflow_id, f"memory-{self._incarnations}", self._clock())
        self._workflows[workflow_id] = workflow
        return workflow

    def _require(self, workflow_id: str, scope: str) -> _Workflow:
        _check_id("workflow_id", workflow_id, WORKFLOW_ID_BYTES_MAX)
        workflow = self._workflows.get(workflow_id)
        if workflow is None or not workflow.is_visible:
            raise WorkflowNotFoundError(
                f"there is no workflow {workflow_id!r} in namespace {self.namespace!r}",
                reason="WORKFLOW_NOT_FOUND",
                **self._ids(workflow_id, scope, ""),
                metadata={"namespace": self.namespace, "workflow_id": workflow_id},
            )
        return workflow

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
            **self._ids(workflow_id, scope, checkpoint_id or ""),
            metadata=metadata,
        )

    def _stub(self, workflow_id: str, scope: str, checkpoint_id: str) -> _Stub | None:
        key = (workflow_id, scope, checkpoint_id)
        stub = self._stubs.get(key)
        if stub is not None and stub.expires <= self._clock():
            del self._stubs[key]
            return None
        return stub

    def _refuse_deleted(self, workflow_id: str, scope: str, checkpoint_id: str) -> None:
        stub = self._stub(workflow_id, scope, checkpoint_id)
        if stub is not None:
            raise CheckpointDeletedError(
                f"checkpoint {checkpoint_id!r} was saved as sequence {stub.sequence} and has been deleted since; "
                "nothing was written. Use a new checkpoint_id to save again",
                reason="CHECKPOINT_DELETED",
                **self._ids(workflow_id, scope, checkpoint_id),
                metadata={"checkpoint_id": checkpoint_id, "sequence": str(stub.sequence)},
            )

    def _leave_stub(self, workflow_id: str, row: _Row) -> None:
        now = self._clock()
        # The oldest come first, as dicts keep their order: only expired ones are looked at.
        for key, stub in [*islice(self._stubs.items(), 2)]:
            if stub.expires <= now:
                del self._stubs[key]
        key = (workflow_id, row.scope, row.checkpoint_id)
        self._stubs.pop(key, None)
        self._stubs[key] = _Stub(row.sequence, now + REPLAY_WINDOW)

    def _delete_rows(self, workflow: _Workflow, rows: Sequence[_Row]) -> None:
        if not rows:
            return
        for row in rows:
            key = (row.scope, row.checkpoint_id)
            del workflow.rows[row.sequence]
            del workflow.sequences[key]
            workflow.records.pop(key, None)
            self._leave_stub(workflow.workflow_id, row)
        workflow.heads = {row.scope: row.sequence for row in workflow.rows.values()}
        workflow.revision += 1

    def _info(self, workflow: _Workflow) -> WorkflowInfo:
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
        )

    def _read(self, workflow: _Workflow, row: _Row) -> _Read:
        group = workflow.records.get((row.scope, row.checkpoint_id))
        return _Read(
            workflow_id=workflow.workflow_id,
            row=row,
            parent_pruned=bool(row.parent_id) and workflow.find(row.scope, row.parent_id) is None,
            head_checkpoint_id=workflow.rows[workflow.heads[row.scope]].checkpoint_id,
            records=() if group is None else tuple(group.records.values()),
        )

    def _ids(self, workflow_id: str, scope: str, checkpoint_id: str) -> Any:
        return {
            "namespace": self.namespace,
            "workflow_id": workflow_id,
            "scope": scope,
            "checkpoint_id": checkpoint_id,
        }

    def _error(self, reason: str, message: str, item: SaveItem, **metadata: object) -> MilepostError:
        said = {key: str(value) for key, value in metadata.items()}
        ids = self._ids(item.workflow_id, item.scope, item.checkpoint_id)
        return _CLASS_BY_REASON[reason](message, reason=reason, metadata=said, **ids)


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of one checkpoint under the lock, to be decoded without it."""

    workflow_id: str
    row: _Row
    parent_pruned: bool
    head_checkpoint_id: str
    records: tuple[pb.Record, ...] = field(repr=False)

    def decode(
        self,
        core: MemoryCore,
        *,
        with_state: bool,
        with_records: bool,
        with_steps: bool,
        entry_keys: Sequence[str] | None = None,
    ) -> Checkpoint:
        row = self.row
        values: Mapping[str, pb.Value] = row.values
        if entry_keys is not None:
            values = {key: row.values[key] for key in dict.fromkeys(entry_keys) if key in row.values}
        records = sorted(self.records if with_records else (), key=_record_order)
        return Checkpoint(
            namespace=core.namespace,
            workflow_id=self.workflow_id,
            scope=row.scope,
            checkpoint_id=row.checkpoint_id,
            parent_id=row.parent_id,
            parent_pruned=self.parent_pruned,
            sequence=row.sequence,
            current_step=row.current_step,
            completed_steps=row.steps.all() if with_steps else (),
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
            records=tuple(read_record(one, core.codec) for one in records),
            record_count=len(self.records),
            head_checkpoint_id=self.head_checkpoint_id if with_steps else "",
            state_omitted=not with_state or entry_keys is not None,
            state_values=decode_state(values, core.codec) if with_state else None,
        )


# A reason comes with one code only.
_CLASS_BY_REASON: Final = {reason: kind for (_, reason), kind in ERROR_CLASSES.items() if reason}
_NEVER: Final = datetime.fromisoformat("0001-01-01T00:00:00+00:00")


def _record_order(record: pb.Record) -> tuple[bytes, bytes, int]:
    return record.path.encode(), record.task_id.encode(), record.index


def _check_id(name: str, value: object, bytes_max: int, *, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be text", metadata={"field": name})
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{name} has a lone surrogate", metadata={"field": name}) from None
    if not size and not may_be_empty:
        raise InvalidRequestError(f"{name} is empty", reason="INVALID_FIELD", metadata={"field": name})
    if "\0" in value:
        raise InvalidRequestError(f"{name} has a NUL", reason="INVALID_FIELD", metadata={"field": name})
    if size > bytes_max:
        raise LimitExceededError(
            f"{name} has {size} bytes; at most {bytes_max} are allowed",
            reason="LIMIT_EXCEEDED",
            metadata={"field": name, **_limits(f"{name}_bytes_max", bytes_max, size, "bytes")},
        )


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 0:
        raise ValueError(f"limit is at least 0, not {limit}")


def _texts(texts: Iterable[str], name: str) -> list[str]:
    if isinstance(texts, str):
        # Each of its letters would be taken for one.
        raise TypeError(f"{name} is a list of strings, not one string")
    return list(texts)


def _statuses(status: Status | Iterable[Status] | None) -> frozenset[Status]:
    if status is None:
        return frozenset()
    return frozenset([status] if isinstance(status, Status) else status)


def _check_item(item: SaveItem) -> None:
    _check_id("workflow_id", item.workflow_id, WORKFLOW_ID_BYTES_MAX)
    _check_id("scope", item.scope, WORKFLOW_ID_BYTES_MAX, may_be_empty=True)
    _check_id("checkpoint_id", item.checkpoint_id, SHORT_ID_BYTES_MAX)
    for name in ("current_step", "definition", "fingerprint", "run_id"):
        _check_id(name, getattr(item, name), SHORT_ID_BYTES_MAX, may_be_empty=True)
    for step in item.completed_steps:
        _check_id("completed_steps_added", step, SHORT_ID_BYTES_MAX)
    if len(item.labels or {}) > LABELS_MAX:
        found = len(item.labels or {})
        raise _limit(item, "labels", limit="labels_max", allowed=LABELS_MAX, found=found, unit="labels")


def _limits(limit: str, allowed: int, found: int, unit: str) -> dict[str, str]:
    return {"limit": limit, "allowed": str(allowed), "found": str(found), "unit": unit}


def _limit(
    item: SaveItem,
    name: str,
    *,
    limit: str,
    allowed: int,
    found: int,
    unit: str,
) -> LimitExceededError:
    return LimitExceededError(
        f"{name}: {found} {unit}; at most {allowed} are allowed ({limit})",
        reason="STATE_TOO_LARGE" if limit == "state_bytes_max" else "LIMIT_EXCEEDED",
        workflow_id=item.workflow_id,
        scope=item.scope,
        checkpoint_id=item.checkpoint_id,
        metadata={"field": name, **_limits(limit, allowed, found, unit)},
    )


def _line(item: SaveItem) -> tuple[str | None, str | None]:
    """Return parent and expected head; `None` where they are not fixed."""
    if item.after is None:
        return None, None
    if item.after == "start":
        return "", ""
    if (item.after.workflow_id, item.after.scope) != (item.workflow_id, item.scope):
        raise InvalidRequestError(
            f"after names a checkpoint of workflow {item.after.workflow_id!r}, scope {item.after.scope!r}",
            workflow_id=item.workflow_id,
            scope=item.scope,
            checkpoint_id=item.checkpoint_id,
            metadata={"field": "after"},
        )
    return item.after.checkpoint_id, item.after.checkpoint_id


def _add_steps(workflow: _Workflow | None, parent: _Row | None, added: Iterable[str]) -> tuple[_Steps, set[str]]:
    """Append the steps that are new; return them, and the set of those before.

    A chain of saves uses one set, which `_save` lets grow; only another line of checkpoints makes it anew.
    """
    before = parent.steps if parent is not None else _NO_STEPS
    is_last_line = workflow is not None and workflow.known_steps[0] is before
    known = workflow.known_steps[1] if workflow is not None and is_last_line else set(before.all())
    new = tuple(step for step in dict.fromkeys(added) if step not in known)
    if not new:
        return before, known
    return _append(before, new), known


def _append(before: _Steps, new: tuple[str, ...]) -> _Steps:
    digest = before.digest
    for step in new:
        digest = blake2b(digest + step.encode(), digest_size=16).digest()
    return _Steps(before, new, before.count + len(new), digest)


def _resolve_again(existing: _Row, steps: _Steps) -> _Steps:
    """Tell the steps of a replay whose parent is gone: the stored ones, if these end with what was sent."""
    sent, stored = steps.all(), existing.steps.all()
    return existing.steps if stored[-len(sent) :] == sent else steps


def _digest_parts(*parts: str | bytes) -> bytes:
    digest = blake2b(digest_size=32)
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.digest()


def _digest_content(row: _Row, entries_digest: bytes) -> bytes:
    return _digest_parts(
        row.scope,
        row.parent_id,
        row.current_step,
        row.status,
        row.definition,
        row.fingerprint,
        row.metadata,
        row.steps.digest,
        entries_digest,
    )


def _pick(
    workflow: _Workflow,
    scope: str,
    checkpoint_id: str | None,
    sequence: int | None,
    statuses: frozenset[Status],
) -> _Row | None:
    if checkpoint_id is not None:
        return workflow.find(scope, checkpoint_id)
    if sequence is not None:
        row = workflow.rows.get(sequence)
        return row if row is not None and row.scope == scope else None
    if statuses:
        rows = reversed(workflow.rows.values())
        return next((row for row in rows if row.scope == scope and row.status in statuses), None)
    return workflow.head(scope)


def _needed_ancestors(workflow: _Workflow, kept: Iterable[_Row]) -> set[int]:
    """Return the ancestors back to the nearest one that brought each of the history entries of what is kept."""
    needed: set[int] = set()
    for row in kept:
        open_keys = set(row.history_entries)
        for ancestor in workflow.ancestors(row):
            needed.add(ancestor.sequence)
            open_keys -= ancestor.values.keys()
            if not open_keys:
                break
    return needed


def _merge_records(
    group: _RecordGroup | None, records: Iterable[tuple[pb.Record, bool]]
) -> tuple[dict[tuple[str, int], pb.Record], list[RecordOutcome]]:
    merged = {} if group is None else dict(group.records)
    outcomes: list[RecordOutcome] = []
    for record, overwrite in records:
        key = (record.task_id, record.index)
        if key not in merged:
            outcomes.append(RecordOutcome.CREATED)
        elif overwrite:
            outcomes.append(RecordOutcome.OVERWRITTEN)
        else:
            outcomes.append(RecordOutcome.EXISTING)
            continue
        merged[key] = record
    return merged, outcomes


def _check_records(records: Mapping[tuple[str, int], pb.Record], workflow_id: str) -> None:
    size_bytes = sum(record.ByteSize() for record in records.values())
    for limit, allowed, found, unit in (
        ("records_max", RECORDS_MAX, len(records), "records"),
        ("records_bytes_max", RECORDS_BYTES_MAX, size_bytes, "bytes"),
    ):
        if found > allowed:
            raise LimitExceededError(
                f"records: {found} {unit}; at most {allowed} are allowed ({limit})",
                reason="LIMIT_EXCEEDED",
                workflow_id=workflow_id,
                metadata={"field": "records", **_limits(limit, allowed, found, unit)},
            )


def _drop_waiting(workflow: _Workflow, now: datetime) -> None:
    for key in [*workflow.waiting]:
        if workflow.records[key].create_time + WAITING_RECORDS_TTL <= now:
            del workflow.records[key]
            workflow.waiting.discard(key)


def _metadata_contains(text: str, wanted: Mapping[str, Any]) -> bool:
    return _contains(json.loads(text) if text else {}, json.loads(encode_metadata(wanted)))


def _contains(container: object, contained: object) -> bool:
    """Tell whether one JSON value contains another, as PostgreSQL's `jsonb @>` has it."""
    if isinstance(contained, dict):
        return isinstance(container, dict) and all(
            key in container and _contains(container[key], value) for key, value in contained.items()
        )
    if isinstance(contained, list):
        return isinstance(container, list) and all(
            any(_contains(mine, theirs) for mine in container) for theirs in contained
        )
    if isinstance(container, bool) or isinstance(contained, bool):
        return container is contained
    return not isinstance(container, list | dict) and container == contained
