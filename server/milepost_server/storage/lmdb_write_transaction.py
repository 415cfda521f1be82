"""The port's write transaction on LMDB: domain values to rows and their bodies, one method each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from milepost_server.limits import Limits
from milepost_server.model import (
    CheckpointRow,
    EntryRef,
    IdRow,
    LeaseRow,
    Record,
    RecordGroupRow,
    ScopeRow,
    Signal,
    SignalIdRow,
    SweepAnswer,
    Value,
    WorkflowRow,
)
from milepost_server.storage import keys, long_keys, pieces, records, status_index, sweeper
from milepost_server.storage.lease_timers import LeaseTimers, Timer, TimerChanges
from milepost_server.storage.lmdb_read_transaction import LmdbReadTransaction, apply_node
from milepost_server.storage.lmdb_rows import (
    DueKind,
    DueRow,
    ManifestHead,
    NamespaceRow,
    NodeBody,
    NodeHead,
    RecordHead,
    SignalHead,
    TrashKind,
    TrashRow,
    ValueHead,
)
from milepost_server.storage.port import NameRow, ResolvedState, StateChange
from milepost_server.storage.resolved_states import ResolvedStates
from milepost_server.storage.row_cache import RowCache

if TYPE_CHECKING:
    from milepost_server.storage.lmdb_env import Transaction

LEASE_EPOCH_SHIFT = 32
"""A token is the store's epoch, shifted by so many bits, and the number of the lease in its namespace."""

T = TypeVar("T")

_encode_body = msgspec.msgpack.Encoder().encode
_replace = msgspec.structs.replace


class LmdbWriteTransaction(LmdbReadTransaction):
    """The writer's view. `enter` points it at the child transaction of the command that runs."""

    def __init__(
        self,
        txn: Transaction,
        *,
        next_id: int,
        now_ms: int,
        limits: Limits,
        resolved: ResolvedStates,
        rows: RowCache,
        timers: LeaseTimers,
        lease_epoch: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        super().__init__(txn, timers)
        self._rows = rows
        self._has_written = False
        self.next_id = next_id
        self._lease_epoch = lease_epoch
        self._random_bytes = random_bytes
        self._lease_now_ms = timers.now_ms()
        self._timer_changes: dict[int, Timer | None] = {}
        """Of the commands that were made."""
        self._command_timers: dict[int, Timer | None] = {}
        """The same, and of the command that runs."""
        self._now_ms = now_ms
        self._limits = limits
        self._resolved = resolved

    def enter(self, txn: Transaction) -> None:
        """Let what follows happen in `txn`."""
        self._txn = txn
        self._has_written = False
        if self._command_timers != self._timer_changes:
            self._command_timers = dict(self._timer_changes)

    def undo(self) -> None:
        """Forget what is known of rows that the command wrote, which was undone."""
        if self._has_written:
            self._rows.clear()

    def keep_timers(self) -> None:
        """Take what the command did to timers for made."""
        if self._command_timers:
            self._timer_changes = dict(self._command_timers)

    @property
    def timer_changes(self) -> TimerChanges:
        """What the commands that were made did to timers."""
        return self._timer_changes

    @property
    def now_ms(self) -> int:
        """See `WriteTransaction`."""
        return self._now_ms

    def new_id(self) -> int:
        """See `WriteTransaction`."""
        number = self.next_id
        self.next_id += 1
        return number

    def random_bytes(self) -> bytes:
        """See `WriteTransaction`."""
        return self._random_bytes(8)

    def read(self, key: bytes, kind: type[T]) -> T | None:
        """Return the value of a row, the same for as long as nothing else is written there."""
        kept = self._rows.get(key)
        if kept is not None:
            return cast("T", kept)
        row = self._txn.get(key)
        if row is None:
            return None
        value = records.decode(key, row, kind)
        self._rows.keep(key, value, len(row))
        return value

    def read_required(self, key: bytes, kind: type[T]) -> T:
        """Return the value of a row that another leads to."""
        value = self.read(key, kind)
        if value is None:
            raise records.missing(key)
        return value

    def put(self, key: bytes, row: bytes) -> None:
        """Store a row as it is."""
        self._has_written = True
        self._rows.forget(key)
        self._txn.put(key, row)

    def put_mark(self, key: bytes) -> None:
        """Store a row that says all by its key."""
        self.put(key, records.seal(key, b""))

    def write(self, key: bytes, value: object) -> None:
        """Store the row of a value."""
        self._has_written = True
        row = records.encode(key, value)
        self._txn.put(key, row)
        self._rows.keep(key, value, len(row))

    def append(self, key: bytes, value: object) -> None:
        """Store the row of a value that owns itself: its key comes after all others.

        Told so, LMDB leaves full pages behind; otherwise it takes the last row of a full page along to the next one.
        """
        row = records.encode(key, value)
        self._append(key, row)
        self._rows.keep(key, value, len(row))

    def _append(self, key: bytes, row: bytes) -> None:
        self._has_written = True
        if not self._txn.put(key, row, append=True):
            self._txn.put(key, row)

    def delete(self, key: bytes) -> bool:
        """Remove a row; tell whether there was one."""
        self._has_written = True
        self._rows.forget(key)
        return bool(self._txn.delete(key))

    def _append_pieces(self, head_key: bytes, table: bytes, body: bytes) -> None:
        """Store what of a body does not fit its head. To be called after the head is written: its key comes first."""
        lengths = pieces.plan(len(body))
        if not lengths:
            return
        self._has_written = True
        rows: list[tuple[bytes, bytes]] = []
        position = 0
        for key, length in zip(keys.pieces(head_key, table, len(lengths)), lengths, strict=True):
            end = position + length
            rows.append((key, records.seal(key, body[position:end])))
            position = end
        with self._txn.cursor() as cursor:
            _, added_count = cursor.putmulti(rows, append=True)
        if added_count < len(rows):
            # Another row comes after them: those of records are kept with their workflow.
            for key, row in rows:
                self._txn.put(key, row)

    def delete_pieces(self, head_key: bytes, table: bytes, size_bytes: int) -> int:
        """Remove the pieces of a body; return how many there were."""
        count = len(pieces.plan(size_bytes))
        for key in keys.pieces(head_key, table, count):
            self.delete(key)
        return count

    # Names, workflows, scopes, ids.

    def add_namespace(self, namespace: str) -> int:
        """See `WriteTransaction`."""
        row = NamespaceRow(self.new_id(), namespace)
        self.write(keys.namespace(namespace), row)
        return row.namespace_id

    def put_name(self, row: NameRow) -> None:
        """See `WriteTransaction`."""
        key = long_keys.make(self, row.namespace_id, row.workflow_id.encode(), self.new_id)
        self.write(key, row)

    def forget_name_if_unused(self, row: NameRow) -> None:
        """See `WriteTransaction`."""
        prefix = keys.prefix(row.name_id, keys.ID)
        if row.internal_id or row.building_id or row.has_lease or next(self.scan(prefix, prefix), None) is not None:
            return
        sweeper.forget_name(self, row)

    def lease_remaining_ms(self, name_id: int, lease: LeaseRow) -> int:
        """See `ReadTransaction`."""
        return self._timers.remaining_ms(name_id, lease, self._lease_now_ms, self._command_timers)

    def next_lease_token(self, namespace: str) -> int:
        """See `WriteTransaction`."""
        key = keys.namespace(namespace)
        row = self.read_required(key, NamespaceRow)
        count = row.lease_count + 1
        self.write(key, _replace(row, lease_count=count))
        return (self._lease_epoch << LEASE_EPOCH_SHIFT) + count

    def put_lease(self, name_id: int, row: LeaseRow) -> None:
        """See `WriteTransaction`."""
        self.write(keys.prefix(name_id, keys.LEASE), row)
        self.renew_lease(name_id, row)

    def renew_lease(self, name_id: int, row: LeaseRow) -> None:
        """See `WriteTransaction`."""
        self._command_timers[name_id] = Timer(row.token, self._lease_now_ms + row.ttl_ms)

    def delete_lease(self, name_id: int) -> None:
        """See `WriteTransaction`."""
        self.delete(keys.prefix(name_id, keys.LEASE))
        self._command_timers[name_id] = None

    def schedule_lease_expiry(self, name: NameRow) -> None:
        """See `WriteTransaction`."""
        lease = self.read_required(keys.prefix(name.name_id, keys.LEASE), LeaseRow)
        due_ms = self._now_ms + self._limits.unused_lease_ttl_ms
        due = DueRow(DueKind.LEASE, name.name_id, name.namespace_id, name.workflow_id, lease_token=lease.token)
        self.put_due(due_ms, due)

    def put_signal(self, internal_id: int, signal: Signal, id_row: SignalIdRow) -> None:
        """See `WriteTransaction`."""
        key = keys.numbered(internal_id, keys.SIGNAL, signal.number)
        value = signal.value or Value(0, b"")
        payload = value.payload
        head = SignalHead(
            signal.signal_id,
            signal.name,
            signal.create_time_ms,
            value.kind,
            value.codec,
            value.compression,
            len(payload),
            pieces.tail(payload),
        )
        self.write(key, head)
        self._append_pieces(key, keys.SIGNAL_PIECE, payload)
        self.write(keys.signal_id(internal_id, signal.signal_id), id_row)

    def consume_signal(self, internal_id: int, signal_id: str, stub: SignalIdRow) -> None:
        """See `WriteTransaction`."""
        self.delete_signal(keys.numbered(internal_id, keys.SIGNAL, stub.number))
        id_key = keys.signal_id(internal_id, signal_id)
        self.write(id_key, stub)
        due_ms = self._now_ms + self._limits.replay_window_ms
        self.put_due(due_ms, DueRow(DueKind.SIGNAL_STUB, 0, 0, "", internal_id, position=id_key))

    def delete_signal(self, key: bytes) -> int:
        """Remove a pending signal with its pieces; return the rows freed."""
        head = self.read_required(key, SignalHead)
        self.delete(key)
        return 1 + self.delete_pieces(key, keys.SIGNAL_PIECE, head.size_bytes)

    def put_manifest(self, namespace: str, fingerprint: str, manifest: str) -> None:
        """See `WriteTransaction`."""
        namespace_key = keys.namespace(namespace)
        row = self.read_required(namespace_key, NamespaceRow)
        key = keys.manifest(row.namespace_id, fingerprint)
        body = manifest.encode()
        self.write(key, ManifestHead(len(body), pieces.tail(body)))
        self._append_pieces(key, keys.MANIFEST_PIECE, body)
        self.write(namespace_key, _replace(row, manifest_count=row.manifest_count + 1))

    def put_workflow(self, row: WorkflowRow) -> None:
        """See `WriteTransaction`."""
        self._list_in(status_index.group_of(row), row)
        self.write(keys.workflow(row.internal_id), row)

    def _list_in(self, group: int | None, row: WorkflowRow) -> None:
        """Have the status index show a workflow in a group, or in none."""
        before = status_index.group_of(self.get_workflow(row.internal_id))
        if group != before:
            status_index.move(self, row, before, group)

    def put_scope(self, name_id: int, row: ScopeRow) -> None:
        """See `WriteTransaction`."""
        if not row.internal_id:
            number_key = keys.numbered(name_id, keys.SCOPE_NUMBER, row.ordinal)
            self.write(number_key, row.scope)
        self.write(keys.scope(name_id, row.scope), row)

    def put_id(self, name_id: int, scope_ordinal: int, checkpoint_id: str, row: IdRow) -> None:
        """See `WriteTransaction`."""
        self.write(keys.checkpoint_id(name_id, scope_ordinal, checkpoint_id), row)

    # Checkpoints.

    def put_checkpoint(self, workflow: WorkflowRow, row: CheckpointRow) -> None:
        """See `WriteTransaction`."""
        internal_id = workflow.internal_id
        sequence_key = keys.numbered(internal_id, keys.SEQUENCE, row.sequence)
        # A sequence beyond the workflow's last one is new.
        row_id = self.read(sequence_key, int) if row.sequence <= workflow.last_sequence else None
        if row_id is None:
            row_id = self.new_id()
            order_key = keys.ordered(internal_id, keys.ORDER, row.scope_ordinal, row.sequence)
            row_key = keys.prefix(row_id, keys.CHECKPOINT)
            self.append(row_key, row)
            self.write(sequence_key, row_id)
            self.put_mark(order_key)
        else:
            self.write(keys.prefix(row_id, keys.CHECKPOINT), row)
        if row.run_id:
            run_key = keys.run(workflow.namespace_id, row.run_id, internal_id, row.sequence)
            self.put_mark(run_key)

    def delete_checkpoint(self, workflow: WorkflowRow, row: CheckpointRow) -> None:
        """See `WriteTransaction`."""
        internal_id = workflow.internal_id
        sequence_key = keys.numbered(internal_id, keys.SEQUENCE, row.sequence)
        self.delete(keys.prefix(self.read_required(sequence_key, int), keys.CHECKPOINT))
        self.delete(sequence_key)
        self.delete(keys.ordered(internal_id, keys.ORDER, row.scope_ordinal, row.sequence))
        if row.run_id:
            self.delete(keys.run(workflow.namespace_id, row.run_id, internal_id, row.sequence))

    # States and values.

    def resolve_state(self, family_id: int, node_id: int) -> ResolvedState:
        """See `ReadTransaction`."""
        state = self._resolved.get(node_id)
        if state is None:
            state = super().resolve_state(family_id, node_id)
            self._resolved.keep(node_id, state)
        return state

    def put_state(self, family_id: int, change: StateChange) -> int:
        """See `WriteTransaction`."""
        prior_id = change.prior_node_id
        state = self._take_state(family_id, prior_id)
        refs = {
            key: EntryRef(self._put_value(family_id, entry.value), entry.digest, entry.size_bytes)
            for key, entry in change.changed.items()
        }
        node_id = self.new_id()
        body = NodeBody(refs, change.removed, change.steps_added)
        weight = _body_weight(body)
        prior = self._read_head(prior_id) if prior_id else None
        if prior is None or prior.chain_weight + weight >= prior.weight:
            lost = {*refs, *change.removed}
            for entry_key, ref in state.entries.items():
                if entry_key not in lost:
                    self._hold_value(ref.value_id)
            apply_node(state, body)
            body = NodeBody(state.entries, (), tuple(state.steps))
            self._write_node(family_id, node_id, body, prior_id=0, weight=_body_weight(body), chain_weight=0)
        else:
            apply_node(state, body)
            self._write_head(prior_id, _replace(prior, holder_count=prior.holder_count + 1))
            self._write_node(
                family_id,
                node_id,
                body,
                prior_id=prior_id,
                weight=prior.weight,
                chain_weight=prior.chain_weight + weight,
            )
        self._resolved.keep(node_id, state)
        return node_id

    def _take_state(self, family_id: int, node_id: int) -> ResolvedState:
        if not node_id:
            return ResolvedState({}, {})
        return self._resolved.take(node_id) or super().resolve_state(family_id, node_id)

    def _write_node(
        self, family_id: int, node_id: int, body: NodeBody, *, prior_id: int, weight: int, chain_weight: int
    ) -> None:
        raw = _encode_body(body)
        key = keys.prefix(node_id, keys.NODE)
        self.append(key, NodeHead(1, prior_id, weight, chain_weight, len(raw), pieces.tail(raw), family_id))
        self._append_pieces(key, keys.NODE_PIECE, raw)

    def _read_head(self, node_id: int) -> NodeHead:
        return self.read_required(keys.prefix(node_id, keys.NODE), NodeHead)

    def _write_head(self, node_id: int, head: NodeHead) -> None:
        self.write(keys.prefix(node_id, keys.NODE), head)

    def retain_state(self, family_id: int, node_id: int) -> None:
        """See `WriteTransaction`."""
        head = self._read_head(node_id)
        self._write_head(node_id, _replace(head, holder_count=head.holder_count + 1))

    def release_state(self, family_id: int, node_id: int) -> None:
        """See `WriteTransaction`."""
        head = self._read_head(node_id)
        self._write_head(node_id, _replace(head, holder_count=head.holder_count - 1))
        if head.holder_count == 1:
            self.put_trash(TrashRow(TrashKind.NODE, node_id))

    def _put_value(self, family_id: int, value: Value) -> int:
        value_id = self.new_id()
        key = keys.prefix(value_id, keys.VALUE)
        payload = value.payload
        head = ValueHead(1, value.kind, value.codec, value.compression, len(payload), pieces.tail(payload), family_id)
        self.append(key, head)
        self._append_pieces(key, keys.VALUE_PIECE, payload)
        return value_id

    def _hold_value(self, value_id: int) -> None:
        key = keys.prefix(value_id, keys.VALUE)
        head = self.read_required(key, ValueHead)
        self.write(key, _replace(head, holder_count=head.holder_count + 1))

    def release_value(self, value_id: int) -> int:
        """Let go of a value; free it if nothing else has it. Return the rows touched."""
        key = keys.prefix(value_id, keys.VALUE)
        head = self.read_required(key, ValueHead)
        if head.holder_count > 1:
            self.write(key, _replace(head, holder_count=head.holder_count - 1))
            return 1
        self.delete(key)
        return 1 + self.delete_pieces(key, keys.VALUE_PIECE, head.size_bytes)

    # Records.

    def put_record_group(self, internal_id: int, scope_ordinal: int, row: RecordGroupRow) -> None:
        """See `WriteTransaction`."""
        self.write(keys.group(internal_id, scope_ordinal, keys.digest_text(row.checkpoint_id)), row)

    def put_record(self, internal_id: int, scope_ordinal: int, checkpoint_id: str, record: Record) -> None:
        """See `WriteTransaction`."""
        digest = keys.digest_text(checkpoint_id)
        key = keys.record(internal_id, scope_ordinal, digest, record.task_id, record.index)
        self._delete_record_pieces(key)
        value = record.value
        self.write(
            key,
            RecordHead(
                checkpoint_id,
                record.task_id,
                record.index,
                record.path,
                record.name,
                value.kind,
                value.codec,
                value.compression,
                len(value.payload),
                pieces.tail(value.payload),
            ),
        )
        self._append_pieces(key, keys.RECORD_PIECE, value.payload)

    def _delete_record_pieces(self, key: bytes) -> None:
        stored = self.read(key, RecordHead)
        if stored is not None:
            self.delete_pieces(key, keys.RECORD_PIECE, stored.size_bytes)

    def discard_records(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> None:
        """See `WriteTransaction`."""
        digest = keys.digest_text(checkpoint_id)
        self.delete(keys.group(internal_id, scope_ordinal, digest))
        self.put_trash(TrashRow(TrashKind.RECORDS, internal_id, scope_ordinal, digest))

    # What is done at leisure.

    def discard_workflow(self, row: WorkflowRow, *, forget_ids: bool) -> None:
        """See `WriteTransaction`."""
        self._list_in(None, row)
        self.put_trash(TrashRow(TrashKind.WORKFLOW, row.internal_id, forget_ids=forget_ids))
        due_ms = self._now_ms if forget_ids else self._now_ms + self._limits.replay_window_ms
        self.put_due(due_ms, DueRow(DueKind.STUBS, row.name_id, row.namespace_id, row.workflow_id, row.internal_id))

    def schedule_stub_expiry(self, name: NameRow) -> NameRow:
        """See `WriteTransaction`."""
        if name.stub_due_ms:
            return name
        name = _replace(name, stub_due_ms=self._now_ms + self._limits.replay_window_ms)
        self.put_name(name)
        self.put_due(name.stub_due_ms, DueRow(DueKind.STUBS, name.name_id, name.namespace_id, name.workflow_id))
        return name

    def schedule_waiting_expiry(self, internal_id: int, scope_ordinal: int, checkpoint_id: str, due_ms: int) -> None:
        """See `WriteTransaction`."""
        digest = keys.digest_text(checkpoint_id)
        self.put_due(due_ms, DueRow(DueKind.WAITING_RECORDS, 0, 0, "", internal_id, scope_ordinal, digest))

    def note_building(self, internal_id: int, *, is_building: bool) -> None:
        """See `WriteTransaction`."""
        key = keys.numbered(keys.STORE, keys.BUILDING, internal_id)
        if is_building:
            self.put_mark(key)
        else:
            self.delete(key)

    def put_trash(self, row: TrashRow) -> None:
        """Put something on the trash."""
        self.write(keys.numbered(keys.STORE, keys.TRASH, self.new_id()), row)

    def put_due(self, due_ms: int, row: DueRow) -> None:
        """Have something looked at when its time has come."""
        self.write(keys.ordered(keys.STORE, keys.DUE, due_ms, self.new_id()), row)

    def sweep(self, rows_max: int, passed_over: Collection[str], limits: Limits) -> SweepAnswer:
        """See `WriteTransaction`."""
        return sweeper.sweep(self, rows_max, passed_over, limits)


def _body_weight(body: NodeBody) -> int:
    return len(body.entries) + len(body.removed) + len(body.steps)
