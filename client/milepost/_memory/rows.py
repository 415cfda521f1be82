"""What the in-memory store keeps: rows of checkpoints and records, and what is looked up along them.

Rows are frozen and hold encoded values; only `Workflow` changes, under the core's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Final

from milepost._memory.signals import SignalBox
from milepost.types import RecordOutcome, Status
from milepost.v1 import checkpoint_pb2 as pb

WAITING_RECORDS_TTL: Final = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Steps:
    """An ordered set of steps that shares its beginning with the checkpoint before."""

    before: Steps | None
    added: tuple[str, ...]
    count: int
    size_bytes: int
    digest: bytes

    def all(self) -> tuple[str, ...]:
        parts: list[tuple[str, ...]] = []
        node: Steps | None = self
        while node is not None:
            parts.append(node.added)
            node = node.before
        return tuple(step for part in reversed(parts) for step in part)


NO_STEPS: Final = Steps(None, (), 0, 0, b"")
_STEP_OVERHEAD_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One stored checkpoint."""

    scope: str
    checkpoint_id: str
    parent_id: str
    sequence: int
    current_step: str
    steps: Steps
    sent: tuple[str | None, tuple[str, ...]]
    """Parent and steps as they were sent: a replay is known by them when the parent is gone."""
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
class RecordGroup:
    """The records of one checkpoint id, whether or not it exists yet."""

    create_time: datetime
    records: Mapping[tuple[str, int], pb.Record] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Stub:
    """What is left of a deleted checkpoint."""

    sequence: int
    expires: datetime


@dataclass(slots=True)
class Workflow:
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
    rows: dict[int, Row] = field(default_factory=dict, repr=False)
    """By sequence, ascending: a new row is always the highest."""
    sequences: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    """By (scope, checkpoint id)."""
    heads: dict[str, int] = field(default_factory=dict, repr=False)
    """Highest sequence by scope; scopes without a checkpoint are absent."""
    records: dict[tuple[str, str], RecordGroup] = field(default_factory=dict, repr=False)
    signals: SignalBox = field(default_factory=SignalBox, repr=False)
    waiting: set[tuple[str, str]] = field(default_factory=set, repr=False)
    """Keys of records whose checkpoint does not exist yet."""
    known_steps: tuple[Steps, set[str]] = field(default_factory=lambda: (NO_STEPS, set()), repr=False)
    """The steps saved last, as a set: a chain of saves looks each step up once."""

    @property
    def is_visible(self) -> bool:
        """Readers see it: it has or had a checkpoint, not only records that wait for one."""
        return self.last_sequence > 0

    def find(self, scope: str, checkpoint_id: str) -> Row | None:
        sequence = self.sequences.get((scope, checkpoint_id))
        return None if sequence is None else self.rows[sequence]

    def head(self, scope: str) -> Row | None:
        sequence = self.heads.get(scope)
        return None if sequence is None else self.rows[sequence]

    def ancestors(self, row: Row | None) -> Iterator[Row]:
        """Yield a checkpoint and those it came from, until the line ends or was cut."""
        while row is not None:
            yield row
            row = self.find(row.scope, row.parent_id) if row.parent_id else None


def record_order(record: pb.Record) -> tuple[bytes, bytes, int]:
    return record.path.encode(), record.task_id.encode(), record.index


def add_steps(workflow: Workflow | None, parent: Row | None, added: Iterable[str]) -> tuple[Steps, set[str]]:
    """Append the steps that are new; return them, and the set of those before.

    A chain of saves uses one set, which `_save` lets grow; only another line of checkpoints makes it anew.
    """
    before = parent.steps if parent is not None else NO_STEPS
    is_last_line = workflow is not None and workflow.known_steps[0] is before
    known = workflow.known_steps[1] if workflow is not None and is_last_line else set(before.all())
    new = tuple(step for step in dict.fromkeys(added) if step not in known)
    if not new:
        return before, known
    return _append(before, new), known


def _append(before: Steps, new: tuple[str, ...]) -> Steps:
    digest = before.digest
    for step in new:
        digest = blake2b(digest + step.encode(), digest_size=16).digest()
    added_bytes = sum(len(step.encode()) + _STEP_OVERHEAD_BYTES for step in new)
    return Steps(before, new, before.count + len(new), before.size_bytes + added_bytes, digest)


def steps_without_parent(existing: Row, sent: tuple[str | None, tuple[str, ...]], steps: Steps) -> Steps:
    """Tell the steps of a save whose id is taken and whose parent is gone.

    They are the stored ones if it is what was sent before, or if these end with the steps that are sent.
    """
    stored, added = existing.steps.all(), sent[1]
    is_same = sent == existing.sent or stored[len(stored) - len(added) :] == added
    return existing.steps if is_same else steps


def digest_parts(*parts: str | bytes) -> bytes:
    digest = blake2b(digest_size=32)
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.digest()


def digest_content(row: Row, entries_digest: bytes) -> bytes:
    return digest_parts(
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


def pick(
    workflow: Workflow,
    scope: str,
    checkpoint_id: str | None,
    sequence: int | None,
    statuses: frozenset[Status],
) -> Row | None:
    if checkpoint_id is not None:
        return workflow.find(scope, checkpoint_id)
    if sequence is not None:
        row = workflow.rows.get(sequence)
        return row if row is not None and row.scope == scope else None
    if statuses:
        rows = reversed(workflow.rows.values())
        return next((row for row in rows if row.scope == scope and row.status in statuses), None)
    return workflow.head(scope)


def needed_ancestors(workflow: Workflow, kept: Iterable[Row]) -> set[int]:
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


def merge_records(
    group: RecordGroup | None, records: Iterable[tuple[pb.Record, bool]]
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


def drop_waiting(workflow: Workflow, now: datetime) -> None:
    for key in [*workflow.waiting]:
        if workflow.records[key].create_time + WAITING_RECORDS_TTL <= now:
            del workflow.records[key]
            workflow.waiting.discard(key)
