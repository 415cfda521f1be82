"""The rules of the store, as pure functions: from what was read and what was asked to what is written, or an error.

Every engine follows these, and none decides anything itself. Functions here read no clock, no randomness and no store;
`commands` gathers what they need and writes what they return. The rules are told in prose in `docs/guarantees.md`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from milepost_server.digests import blake2b
from milepost_server.errors import InvalidFieldError, LimitExceededError, PreconditionError, ResourceError, StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    ENTRY_OVERHEAD_BYTES,
    CheckpointFilter,
    CheckpointRow,
    EntryRef,
    ItemKey,
    LeaseRow,
    LeaseState,
    NewEntry,
    PendingSignal,
    Record,
    RecordGroupRow,
    SaveAnswer,
    SaveCommand,
    SignalIdRow,
    Value,
    WorkflowChange,
    WorkflowRow,
    utf8_bytes,
)

HASH_MODULUS = 1 << 256
EMPTY_ENTRIES_HASH = bytes(32)
EMPTY_STEPS_HASH = bytes(16)
CHECKPOINT_OVERHEAD_BYTES = 512
"""What a checkpoint's own rows are taken to cost, in `stored_bytes`."""

LISTED_BYTES = 256
"""What a checkpoint or a workflow takes of a page beside its texts, about."""
METADATA_BYTES_PER_ROW = 1_000
"""Metadata that one array or object of a filter is held against at the price of one row examined, about."""
TEXT_OVERHEAD_BYTES = 4
"""What the wire adds to one text of a list."""

_encode = msgspec.msgpack.Encoder().encode


# Values and digests.


def digest_value(value: Value) -> bytes:
    """Return the 32 bytes that stand for a value: kind, compression, codec and bytes as sent."""
    digest = blake2b(b"%d:%d:%b\0" % (value.kind, value.compression, value.codec.encode()), digest_size=32)
    digest.update(value.payload)
    return digest.digest()


def new_entry(key: str, value: Value) -> NewEntry:
    """Return an entry as it arrives, with its digest and its size."""
    size_bytes = utf8_bytes(key) + len(value.payload) + len(value.codec) + ENTRY_OVERHEAD_BYTES
    return NewEntry(value, digest_value(value), size_bytes)


def hash_entry(key: str, digest: bytes) -> int:
    """Return the number that an entry adds to its state's hash."""
    return int.from_bytes(blake2b(b"%b\0%b" % (key.encode(), digest), digest_size=32).digest(), "big")


def add_to_entries_hash(entries_hash: bytes, added: Iterable[int], removed: Iterable[int]) -> bytes:
    """Return the hash of a state that gained and lost entries.

    The hash of a set is the sum of its members' hashes: O(changes), and the same in whatever order and by whatever
    increments the state came about. It tells a retry from another Save; it is no proof against a client that works to
    deceive itself.
    """
    total = int.from_bytes(entries_hash, "big") + sum(added) - sum(removed)
    return (total % HASH_MODULUS).to_bytes(32, "big")


def extend_steps_hash(steps_hash: bytes, steps: Iterable[str]) -> bytes:
    """Return the hash of an ordered list that `steps` were appended to."""
    for step in steps:
        steps_hash = blake2b(steps_hash + step.encode(), digest_size=16).digest()
    return steps_hash


def digest_content(command: SaveCommand, *, parent_id: str, entries_hash: bytes, steps_hash: bytes) -> bytes:
    """Return the 32 bytes that stand for a checkpoint's content.

    Content is scope, parent, step, status, definition, metadata, completed steps and the resolved entries. How it was
    sent (base, expected head, on_conflict), what merely accompanies it (labels, records, run) is not.
    """
    return _digest(
        command.scope,
        parent_id,
        command.current_step,
        int(command.status),
        command.definition,
        command.fingerprint,
        command.metadata,
        steps_hash,
        entries_hash,
    )


def digest_row(row: CheckpointRow) -> bytes:
    """Return the 32 bytes that stand for the content of a stored checkpoint."""
    return _digest(
        row.scope,
        row.parent_id,
        row.current_step,
        row.status,
        row.definition,
        row.fingerprint,
        row.metadata,
        row.steps_hash,
        row.entries_hash,
    )


def _digest(*content: str | int | bytes) -> bytes:
    return blake2b(_encode(content), digest_size=32).digest()


def digest_sent(command: SaveCommand) -> bytes:
    """Return the 16 bytes that stand for a Save as it was sent.

    A retry that repeats the request exactly is known by them without its base, which may have been deleted since.
    """
    sent = (
        command.scope,
        command.parent_id,
        command.base_checkpoint_id,
        command.base_digest,
        command.current_step,
        command.steps_added,
        int(command.status),
        command.removed_keys,
        command.metadata,
        command.definition,
        command.fingerprint,
        sorted((key, entry.digest) for key, entry in command.entries.items()),
    )
    return blake2b(_encode(sent), digest_size=16).digest()


# What a Save changes.


class Basis(msgspec.Struct, frozen=True):
    """What a Save's state is told against: the base of an incremental one, the parent of a full one, or nothing."""

    node_id: int = 0
    entry_count: int = 0
    entries_bytes: int = 0
    entries_hash: bytes = EMPTY_ENTRIES_HASH
    step_count: int = 0
    steps_bytes: int = 0
    steps_hash: bytes = EMPTY_STEPS_HASH

    @classmethod
    def of(cls, row: CheckpointRow | None) -> Basis:
        """Take a checkpoint as the basis; `None` for nothing."""
        if row is None:
            return NO_BASIS
        return cls(
            row.node_id,
            row.entry_count,
            row.entries_bytes,
            row.entries_hash,
            row.step_count,
            row.steps_bytes,
            row.steps_hash,
        )


NO_BASIS = Basis()


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a Save, resolved: what it changes against its basis, and what the whole then is."""

    parent_id: str
    basis: Basis
    changed: dict[str, NewEntry]
    removed: tuple[str, ...]
    steps_added: tuple[str, ...]
    entry_count: int
    entries_bytes: int
    entries_hash: bytes
    step_count: int
    steps_bytes: int
    steps_hash: bytes
    digest: bytes


def resolve_content(
    command: SaveCommand,
    parent_id: str,
    basis: Basis,
    entries: Mapping[str, EntryRef],
    steps: Mapping[str, None],
) -> Content:
    """Work out what a Save changes against its basis, whose entries and steps are given.

    An incremental Save costs O(what it sends), a full one O(the larger of both states), of which only differences are
    hashed.
    """
    changed: dict[str, NewEntry] = {}
    added_hashes: list[int] = []
    lost_hashes: list[int] = []
    entry_count, entries_bytes = basis.entry_count, basis.entries_bytes
    for key, entry in command.entries.items():
        old = entries.get(key)
        if old is None:
            entry_count += 1
            entries_bytes += entry.size_bytes
        elif old.digest == entry.digest:
            continue
        else:
            entries_bytes += entry.size_bytes - old.size_bytes
            lost_hashes.append(hash_entry(key, old.digest))
        changed[key] = entry
        added_hashes.append(hash_entry(key, entry.digest))
    removed: tuple[str, ...] = ()
    if command.base_checkpoint_id is None:
        # Those that were there and those that are new make more than were sent: some have gone.
        if len(entries) + entry_count - basis.entry_count > len(command.entries):
            removed = tuple(key for key in entries if key not in command.entries)
    elif command.removed_keys:
        removed = tuple(key for key in dict.fromkeys(command.removed_keys) if key in entries)
    for key in removed:
        old = entries[key]
        entry_count -= 1
        entries_bytes -= old.size_bytes
        lost_hashes.append(hash_entry(key, old.digest))
    steps_added = command.steps_added
    if steps_added:
        steps_added = tuple(step for step in dict.fromkeys(steps_added) if step not in steps)
    entries_hash = add_to_entries_hash(basis.entries_hash, added_hashes, lost_hashes)
    steps_hash = extend_steps_hash(basis.steps_hash, steps_added)
    return Content(
        parent_id=parent_id,
        basis=basis,
        changed=changed,
        removed=removed,
        steps_added=steps_added,
        entry_count=entry_count,
        entries_bytes=entries_bytes,
        entries_hash=entries_hash,
        step_count=basis.step_count + len(steps_added),
        steps_bytes=basis.steps_bytes + steps_bytes(steps_added),
        steps_hash=steps_hash,
        digest=digest_content(command, parent_id=parent_id, entries_hash=entries_hash, steps_hash=steps_hash),
    )


def check_content_limits(command: SaveCommand, content: Content, limits: Limits) -> None:
    """Refuse content that is more than one checkpoint may have, or than one Load can answer."""
    if content.entry_count > limits.entries_max:
        raise LimitExceededError(
            "state", limit="entries_max", allowed=limits.entries_max, found=content.entry_count, unit="entries"
        )
    if content.step_count > limits.completed_steps_max:
        raise LimitExceededError(
            "completed_steps_added",
            limit="completed_steps_max",
            allowed=limits.completed_steps_max,
            found=content.step_count,
            unit="steps",
        )
    if content.steps_bytes > limits.completed_steps_bytes_max:
        raise LimitExceededError(
            "completed_steps_added",
            limit="completed_steps_bytes_max",
            allowed=limits.completed_steps_bytes_max,
            found=content.steps_bytes,
            unit="bytes",
        )
    size_bytes = content.entries_bytes + content.steps_bytes + utf8_bytes(command.metadata)
    if size_bytes > limits.state_bytes_max:
        raise LimitExceededError(
            "state",
            limit="state_bytes_max",
            allowed=limits.state_bytes_max,
            found=size_bytes,
            unit="bytes",
            reason="STATE_TOO_LARGE",
        )


def stored_bytes(command: SaveCommand, content: Content) -> int:
    """Return what a Save adds to the store: its rows and the values that it is the first to store."""
    return (
        CHECKPOINT_OVERHEAD_BYTES
        + utf8_bytes(command.metadata)
        + sum([entry.size_bytes for entry in content.changed.values()])
        + steps_bytes(content.steps_added)
    )


def steps_bytes(steps: Sequence[str]) -> int:
    """Return what completed steps cost, with 4 bytes for each on the wire."""
    return sum([utf8_bytes(step) + 4 for step in steps])


def build_row(
    command: SaveCommand,
    content: Content,
    *,
    sequence: int,
    scope_ordinal: int,
    node_id: int,
    create_time_ms: int,
    sent_digest: bytes,
) -> CheckpointRow:
    """Make the row of a new or replaced checkpoint."""
    return CheckpointRow(
        sequence,
        command.checkpoint_id,
        command.scope,
        scope_ordinal,
        content.parent_id,
        command.current_step,
        int(command.status),
        create_time_ms,
        node_id,
        content.entry_count,
        content.entries_bytes,
        content.entries_hash,
        content.step_count,
        content.steps_bytes,
        content.steps_hash,
        content.digest,
        sent_digest,
        stored_bytes(command, content),
        command.metadata,
        command.definition,
        command.fingerprint,
        command.run_id,
        command.history_entries,
    )


# Refusals.


def refuse_deleted(checkpoint_id: str, sequence: int) -> StoreError:
    """The id was saved once and has been deleted since: a late retry must not bring it back."""
    return PreconditionError(
        "CHECKPOINT_DELETED",
        f"checkpoint {checkpoint_id!r} was saved as sequence {sequence} and has been deleted since; nothing was "
        "written. Use a new checkpoint_id to save again",
        {"checkpoint_id": checkpoint_id, "sequence": sequence},
    )


def check_expected_head(expected: str | None, head_id: str, head_sequence: int) -> None:
    """Refuse a Save that did not know the present head; "" expects that there is none."""
    if expected is None or expected == head_id:
        return
    found = f"{head_id!r} at sequence {head_sequence}" if head_id else "none"
    raise PreconditionError(
        "HEAD_MOVED",
        f"expected_head: the head is {found}, not {repr(expected) if expected else 'none'}; load it and decide again",
        {"expected_head": expected, "head_checkpoint_id": head_id, "head_sequence": head_sequence},
    )


def check_definition(workflow: WorkflowRow | None, definition: str) -> None:
    """Refuse a Save under another definition than the workflow's own."""
    if workflow is None or not definition or not workflow.definition or workflow.definition == definition:
        return
    raise PreconditionError(
        "DEFINITION_MISMATCH",
        f"workflow {workflow.workflow_id!r} belongs to definition {workflow.definition!r}, not to {definition!r}",
        {"definition": workflow.definition, "found": definition},
    )


def check_replace(command: SaveCommand, existing: CheckpointRow) -> None:
    """Refuse other content under a taken id, unless it was asked to take the place of just that content."""
    if not command.is_replace:
        raise StoreError(
            "CHECKPOINT_EXISTS",
            f"checkpoint {command.checkpoint_id!r} exists with other content, at sequence {existing.sequence}",
            {
                "checkpoint_id": command.checkpoint_id,
                "sequence": existing.sequence,
                "digest": existing.digest.hex(),
            },
        )
    if command.replaces_digest is not None and command.replaces_digest != existing.digest:
        raise PreconditionError(
            "DIGEST_MISMATCH",
            f"checkpoint {command.checkpoint_id!r} has not the digest that was to be replaced; load it and decide "
            "again",
            {"checkpoint_id": command.checkpoint_id, "digest": existing.digest.hex()},
        )


def check_base(command: SaveCommand, base: CheckpointRow) -> None:
    """Refuse an increment on a base that was replaced: it was made against other content."""
    if command.base_digest is not None and command.base_digest != base.digest:
        raise PreconditionError(
            "BASE_NOT_FOUND",
            f"base_checkpoint_id: checkpoint {base.checkpoint_id!r} has other content than base_digest says; "
            "send the state in full",
            {"base_checkpoint_id": base.checkpoint_id},
        )


def failed_predecessor(command: SaveCommand, failed: Mapping[ItemKey, int]) -> int | None:
    """Return the number of the failed item of the same batch that a Save says it builds on, if there is one."""
    if not failed:
        return None
    for checkpoint_id in (command.parent_id, command.base_checkpoint_id, command.expected_head):
        key = (command.namespace, command.workflow_id, command.scope, checkpoint_id or "")
        if checkpoint_id and key in failed:
            return failed[key]
    return None


def refuse_after_failed(number: int, predecessor: int) -> StoreError:
    """An item of a batch must not land on what another writer has under the id of the item it was made for."""
    return PreconditionError(
        "PREDECESSOR_FAILED",
        f"item {number} builds on item {predecessor}, which failed; nothing of it was stored",
        {"index": number, "predecessor_index": predecessor},
    )


def check_parent_is_older(parent_id: str, parent_sequence: int, sequence: int) -> None:
    """Keep every line of ancestors free of circles: a replaced checkpoint may not hang on a later one."""
    if parent_sequence >= sequence:
        raise InvalidFieldError(
            "parent_id", "must name a checkpoint older than the one it replaces", f"{parent_id!r} at {parent_sequence}"
        )


def is_ancestor(parent_sequence: int, row: CheckpointRow) -> bool:
    """Tell whether the checkpoint that now has a parent's id can be that parent.

    An id is forgotten some time after its checkpoint was deleted, and may then be given to a later one.
    """
    return parent_sequence < row.sequence


# Signals and manifests.


def digest_signal(name: str, value: Value | None) -> bytes:
    """Return the 16 bytes that stand for a signal's name and content."""
    content = (name, digest_value(value) if value is not None else None)
    return blake2b(_encode(content), digest_size=16).digest()


def check_namespace_count(count: int, limits: Limits) -> None:
    """Refuse one more namespace than a store may have."""
    if count > limits.namespaces_max:
        raise ResourceError(
            "QUOTA_EXCEEDED",
            f"namespace: it would be number {count} of the store, at most {limits.namespaces_max} are allowed "
            "(namespaces_max)",
            {"limit": "namespaces_max", "allowed": limits.namespaces_max, "found": count, "unit": "namespaces"},
        )


def check_same_signal(signal_id: str, digest: bytes, known: SignalIdRow) -> None:
    """Refuse a signal whose id is taken by another, pending or consumed."""
    if known.digest != digest:
        raise StoreError(
            "SIGNAL_EXISTS",
            f"signal {signal_id!r} was sent before with another name or value",
            {"signal_id": signal_id},
        )


def digest_manifest(manifest: str) -> str:
    """Return the fingerprint of a manifest."""
    from hashlib import sha256  # noqa: PLC0415 - see digests: manifests are seldom sent

    return sha256(manifest.encode()).hexdigest()


# Leases.


class LeaseUse(enum.Enum):
    """What a change that was let through does with the workflow's lease."""

    NONE = "there is none"
    HELD = "the caller has it"
    OUTLIVED = "it has expired, and goes with the change"


def check_lease(lease: LeaseRow | None, remaining_ms: int, token: int, workflow_id: str) -> LeaseUse:
    """Refuse a change by anyone but the holder of a live lease, and every token that is not that of the newest one.

    The newest token is good also after its lease has expired, until someone else acts; any other never again.
    """
    if token:
        if lease is None or lease.token != token:
            raise _lease_lost(workflow_id)
        return LeaseUse.HELD
    if lease is None:
        return LeaseUse.NONE
    if remaining_ms > 0:
        raise _lease_held(lease, remaining_ms, workflow_id)
    return LeaseUse.OUTLIVED


def decide_grant(lease: LeaseRow | None, remaining_ms: int, request_id: str, workflow_id: str) -> LeaseRow | None:
    """Return the lease that the same request was granted before, or `None`: a new one is to be granted.

    Raises:
        PreconditionError: `LEASE_HELD`.
    """
    if lease is None:
        return None
    if request_id and lease.request_id == request_id:
        return lease
    if remaining_ms > 0:
        raise _lease_held(lease, remaining_ms, workflow_id)
    return None


def may_end_lease(lease: LeaseRow | None, token: int, *, force: bool) -> bool:
    """Tell whether a release ends the lease: its holder's, or one by force. A late one ends nobody else's."""
    return lease is not None and (force or lease.token == token)


def lease_state(lease: LeaseRow, remaining_ms: int, *, with_token: bool) -> LeaseState:
    """Return a lease as it is told; its token only to its holder."""
    return LeaseState(lease.token if with_token else 0, lease.holder, lease.ttl_ms, remaining_ms, lease.grant_time_ms)


def _lease_held(lease: LeaseRow, remaining_ms: int, workflow_id: str) -> PreconditionError:
    by = f" by {lease.holder!r}" if lease.holder else ""
    return PreconditionError(
        "LEASE_HELD",
        f"workflow {workflow_id!r} is leased{by} for another {remaining_ms} ms, unless it is renewed",
        {"workflow_id": workflow_id, "holder": lease.holder, "remaining_ms": remaining_ms},
    )


def _lease_lost(workflow_id: str) -> PreconditionError:
    return PreconditionError(
        "LEASE_LOST",
        f"lease_token: it is not that of the newest lease of workflow {workflow_id!r}: someone else has acted "
        "since, or it was released or broken; nothing was written",
        {"workflow_id": workflow_id},
    )


# Answers.


def save_answer(
    row: CheckpointRow,
    head_checkpoint_id: str,
    workflow: WorkflowRow,
    lease_remaining_ms: int,
    pending_signals: tuple[PendingSignal, ...],
    *,
    is_replayed: bool = False,
    is_replaced: bool = False,
) -> SaveAnswer:
    """Answer a Save by the row that it made, or that had been made by an earlier try."""
    return SaveAnswer(
        row.checkpoint_id,
        row.sequence,
        row.parent_id,
        head_checkpoint_id,
        is_replayed,
        row.create_time_ms,
        workflow.revision,
        row.digest,
        workflow.incarnation,
        workflow.definition,
        lease_remaining_ms,
        workflow.pending_signal_count,
        pending_signals,
        is_replaced,
    )


def change_of(workflow: WorkflowRow) -> WorkflowChange:
    """Return what those who watch are told of a changed workflow."""
    return WorkflowChange(
        workflow.namespace, workflow.workflow_id, workflow.incarnation, workflow.revision, workflow.definition
    )


def listed_bytes(workflow: WorkflowRow, row: CheckpointRow) -> int:
    """Return what a checkpoint takes of a page, beside its state and records: its texts, and the rest about."""
    texts = (
        workflow.namespace,
        workflow.workflow_id,
        row.scope,
        row.checkpoint_id,
        row.parent_id,
        row.current_step,
        row.metadata,
        row.definition,
        row.fingerprint,
        row.run_id,
        *row.history_entries,
    )
    return LISTED_BYTES + len(row.history_entries) * TEXT_OVERHEAD_BYTES + sum(map(utf8_bytes, texts))


def listed_workflow_bytes(workflow: WorkflowRow, lease: LeaseState | None) -> int:
    """Return what a workflow takes of a page: its texts, and the rest about."""
    texts = (
        workflow.namespace,
        workflow.workflow_id,
        workflow.current_step,
        workflow.definition,
        workflow.fingerprint,
        workflow.head_checkpoint_id,
        workflow.forked_from,
        lease.holder if lease is not None else "",
        *workflow.labels.keys(),
        *workflow.labels.values(),
    )
    return LISTED_BYTES + len(workflow.labels) * 2 * TEXT_OVERHEAD_BYTES + sum(map(utf8_bytes, texts))


# Records.


def check_record_limits(group: RecordGroupRow, limits: Limits) -> None:
    """Refuse more records than one checkpoint may have."""
    if group.record_count > limits.records_max:
        raise LimitExceededError(
            "records", limit="records_max", allowed=limits.records_max, found=group.record_count, unit="records"
        )
    if group.record_bytes > limits.records_bytes_max:
        raise LimitExceededError(
            "records",
            limit="records_bytes_max",
            allowed=limits.records_bytes_max,
            found=group.record_bytes,
            unit="bytes",
        )


def sort_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """Put records in the order in which they are answered."""
    return tuple(sorted(records, key=lambda record: record.sort_key))


# Filters.


def contains_json(container: object, contained: object) -> bool:
    """Tell whether one JSON value contains another, with the meaning of PostgreSQL's `jsonb @>`.

    An object contains an object whose every key it has with a value that contains the other's. An array contains an
    array each of whose elements is contained in one of its own, whatever the order; at the top it also contains a bare
    scalar that is one of its elements. Scalars contain their equals; numbers compare by value, and true is not 1.
    Source: PostgreSQL documentation, "jsonb Containment and Existence".
    """
    if isinstance(container, list) and not isinstance(contained, list | dict):
        return any(_same_scalar(element, contained) for element in container)
    return _contains(container, contained)


def _contains(container: object, contained: object) -> bool:
    if isinstance(contained, dict):
        return isinstance(container, dict) and all(
            key in container and _contains(container[key], value) for key, value in contained.items()
        )
    if isinstance(contained, list):
        return isinstance(container, list) and _contains_elements(container, contained)
    return _same_scalar(container, contained)


def _contains_elements(container: list[object], contained: list[object]) -> bool:
    """Scalars are looked up, or two arrays of thousands would take minutes."""
    scalars: set[tuple[bool, object]] | None = None
    for theirs in contained:
        if isinstance(theirs, list | dict):
            if not any(_contains(mine, theirs) for mine in container):
                return False
        else:
            if scalars is None:
                scalars = {_scalar_key(mine) for mine in container if not isinstance(mine, list | dict)}
            if _scalar_key(theirs) not in scalars:
                return False
    return True


def _scalar_key(scalar: object) -> tuple[bool, object]:
    """Return what is equal for equal scalars: true is not 1."""
    return isinstance(scalar, bool), scalar


def _same_scalar(mine: object, theirs: object) -> bool:
    if isinstance(mine, bool) or isinstance(theirs, bool):
        return mine is theirs
    if isinstance(mine, list | dict) or isinstance(theirs, list | dict):
        return False
    return mine == theirs


def filter_items(contained: object) -> int:
    """Return how many arrays and objects are elements of arrays: each is held against every element of a metadata."""
    if isinstance(contained, dict):
        return sum(map(filter_items, contained.values()))
    if isinstance(contained, list):
        return sum(isinstance(each, list | dict) + filter_items(each) for each in contained)
    return 0


def rows_worth(row: CheckpointRow, items: int) -> int:
    """Return as how many rows one counts that a list with so many `filter_items` examines."""
    return 1 + items * len(row.metadata) // METADATA_BYTES_PER_ROW


def matches(row: CheckpointRow, wanted: CheckpointFilter) -> bool:
    """Tell whether a list answers a checkpoint. Cheap tests come first; metadata is parsed only for what passed."""
    if wanted.statuses and row.status not in wanted.statuses:
        return False
    if wanted.current_step is not None and row.current_step != wanted.current_step:
        return False
    if wanted.run_id is not None and row.run_id != wanted.run_id:
        return False
    if wanted.before_checkpoint_id is not None and row.checkpoint_id.encode() >= wanted.before_checkpoint_id.encode():
        return False
    if wanted.metadata_contains is None:
        return True
    metadata = msgspec.json.decode(row.metadata) if row.metadata else {}
    return contains_json(metadata, wanted.metadata_contains)


def matches_workflow(
    workflow: WorkflowRow,
    *,
    statuses: frozenset[int],
    labels: Mapping[str, str],
    definition: str | None,
    updated_from_ms: int | None,
    updated_before_ms: int | None,
    has_pending_signals: bool | None,
    fingerprint: str | None,
) -> bool:
    """Tell whether a list answers a workflow. One that never had a checkpoint is never listed."""
    if not is_visible(workflow):
        return False
    if statuses and workflow.status not in statuses:
        return False
    if definition is not None and workflow.definition != definition:
        return False
    if updated_from_ms is not None and workflow.update_time_ms < updated_from_ms:
        return False
    if updated_before_ms is not None and workflow.update_time_ms >= updated_before_ms:
        return False
    if has_pending_signals is not None and (workflow.pending_signal_count > 0) is not has_pending_signals:
        return False
    if fingerprint is not None and workflow.fingerprint != fingerprint:
        return False
    return all(workflow.labels.get(key) == value for key, value in labels.items())


def is_visible(workflow: WorkflowRow | None) -> bool:
    """Tell whether readers see a workflow: not while it has only records that wait for its first checkpoint."""
    return workflow is not None and workflow.last_sequence > 0


# A workflow's own row.


def with_head(workflow: WorkflowRow, head: CheckpointRow | None) -> WorkflowRow:
    """Let a workflow show its root scope's head."""
    if head is None:
        return msgspec.structs.replace(
            workflow, status=0, current_step="", head_checkpoint_id="", head_sequence=0, fingerprint=""
        )
    return msgspec.structs.replace(
        workflow,
        status=head.status,
        current_step=head.current_step,
        head_checkpoint_id=head.checkpoint_id,
        head_sequence=head.sequence,
        fingerprint=head.fingerprint,
    )
