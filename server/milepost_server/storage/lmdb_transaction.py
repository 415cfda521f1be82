"""The port's transactions on LMDB: domain rows to keys and bodies, one method each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from milepost_server.errors import ResourceError
from milepost_server.limits import Limits
from milepost_server.model import (
    CheckpointRow,
    EntryRef,
    IdRow,
    LeaseRow,
    PendingSignal,
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
from milepost_server.storage.row_cache import RowCache

if TYPE_CHECKING:
    from milepost_server.storage.lmdb_env import Cursor, Transaction

SCAN_ROWS = 256
"""Rows that a scan takes at a time; between two times the transaction may change."""
RESOLVED_ITEMS_MAX = 100_000
"""Entries and steps that the writer keeps resolved, over all states."""

LEASE_EPOCH_SHIFT = 32
"""A token is the store's epoch, shifted by so many bits, and the number of the lease in its namespace."""

T = TypeVar("T")

_encode_body = msgspec.msgpack.Encoder().encode
_node_body_decoder = msgspec.msgpack.Decoder(NodeBody)
_replace = msgspec.structs.replace


class ResolvedStates:
    """The states that the writer resolved last, by node.

    A node never changes and its number is never given again, so what is kept here is right for as long as it is kept; a
    state moves on from a node to the one built on it, which costs the change and not the state.
    """

    def __init__(self, items_max: int = RESOLVED_ITEMS_MAX) -> None:
        self._items_max = items_max
        self._item_count = 0
        self._states: OrderedDict[int, ResolvedState] = OrderedDict()

    def get(self, node_id: int) -> ResolvedState | None:
        """Return a state that is kept."""
        state = self._states.get(node_id)
        if state is not None:
            self._states.move_to_end(node_id)
        return state

    def take(self, node_id: int) -> ResolvedState | None:
        """Return a state and keep it no longer, so that it may be changed."""
        state = self._states.pop(node_id, None)
        if state is not None:
            self._item_count -= _weight(state)
        return state

    def keep(self, node_id: int, state: ResolvedState) -> None:
        """Keep a state, and let go of the longest unused ones beyond the bound."""
        self.take(node_id)
        self._states[node_id] = state
        self._item_count += _weight(state)
        while self._item_count > self._items_max and len(self._states) > 1:
            _, oldest = self._states.popitem(last=False)
            self._item_count -= _weight(oldest)


def _weight(state: ResolvedState) -> int:
    return len(state.entries) + len(state.steps) + 1


class LmdbReadTransaction:
    """One snapshot of the store."""

    def __init__(self, txn: Transaction, timers: LeaseTimers) -> None:
        self._txn = txn
        self._timers = timers

    # Rows.

    def get(self, key: bytes) -> bytes | None:
        """Return a row as it is stored."""
        return self._txn.get(key)

    def read(self, key: bytes, kind: type[T]) -> T | None:
        """Return the value of a row."""
        row = self._txn.get(key)
        return None if row is None else records.decode(key, row, kind)

    def read_required(self, key: bytes, kind: type[T]) -> T:
        """Return the value of a row that another leads to."""
        row = self._txn.get(key)
        if row is None:
            raise records.missing(key)
        return records.decode(key, row, kind)

    def scan(self, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows from `start` on, in order, as long as their keys start with `prefix`."""
        while True:
            rows = _take(self._txn.cursor(), start, prefix)
            yield from rows
            if len(rows) < SCAN_ROWS:
                return
            start = rows[-1][0] + b"\0"

    def _scan_numbers(self, prefix: bytes, start: int | None, *, newest_first: bool) -> Iterator[int]:
        """Yield the last numbers of keys, from `start` (inclusive) on, in either direction."""
        if newest_first:
            yield from self._scan_numbers_down(prefix, start)
            return
        for key, _ in self.scan(prefix + (start or 0).to_bytes(8, "big"), prefix):
            yield int.from_bytes(key[-8:], "big")

    def _scan_numbers_down(self, prefix: bytes, start: int | None) -> Iterator[int]:
        end = keys.following(prefix) if start is None else prefix + (start + 1).to_bytes(8, "big")
        take_count = 1
        while True:
            found = _take_down(self._txn.cursor(), end, prefix, take_count)
            for key in found:
                yield int.from_bytes(key[-8:], "big")
            if len(found) < take_count:
                return
            end = found[-1]
            # The first one is often all that is wanted: a head.
            take_count = min(SCAN_ROWS, take_count * 8)

    def _read_body(self, head_key: bytes, table: bytes, size_bytes: int, tail: bytes) -> bytes:
        lengths = pieces.plan(size_bytes)
        if not lengths:
            body = tail
        else:
            parts: list[bytes] = []
            for key in keys.pieces(head_key, table, len(lengths)):
                row = self._txn.get(key)
                if row is None:
                    raise records.missing(key)
                parts.append(records.unseal(key, row))
            parts.append(tail)
            body = b"".join(parts)
        if len(body) != size_bytes:
            raise records.damaged(head_key, f"{len(body)} bytes of {size_bytes}")
        return body

    # Names, workflows, scopes, ids.

    def find_namespace(self, namespace: str) -> int | None:
        """See `ReadTransaction`."""
        row = self._find_namespace(namespace)
        return None if row is None else row.namespace_id

    def _find_namespace(self, namespace: str) -> NamespaceRow | None:
        return self.read(keys.namespace(namespace), NamespaceRow)

    def find_name(self, namespace: str, workflow_id: str) -> NameRow | None:
        """See `ReadTransaction`."""
        namespace_id = self.find_namespace(namespace)
        return None if namespace_id is None else self.find_name_in(namespace_id, workflow_id)

    def find_name_in(self, namespace_id: int, workflow_id: str) -> NameRow | None:
        """Return what stands behind a workflow's name, by the namespace's number."""
        key = long_keys.find(self, namespace_id, workflow_id.encode())
        return None if key is None else self.read(key, NameRow)

    def get_workflow(self, internal_id: int) -> WorkflowRow | None:
        """See `ReadTransaction`."""
        return self.read(keys.workflow(internal_id), WorkflowRow)

    def workflow_names(
        self,
        namespace_id: int,
        prefix: str,
        after: str | None,
        *,
        statuses: Collection[int],
        has_pending_signals: bool | None,
    ) -> Iterator[NameRow]:
        """See `ReadTransaction`."""
        wanted, after_bytes = prefix.encode(), None if after is None else after.encode()
        if not statuses and not has_pending_signals:
            for _, key, row in long_keys.walk(self, namespace_id, wanted, after_bytes):
                yield records.decode(key, row, NameRow)
            return
        found = status_index.walk(
            self, namespace_id, wanted, after_bytes, statuses=statuses, has_pending_signals=has_pending_signals
        )
        for workflow_id in found:
            name = self.find_name_in(namespace_id, workflow_id.decode())
            if name is None:
                raise records.missing(keys.prefix(namespace_id, keys.NAME) + workflow_id)
            yield name

    def find_lease(self, name_id: int) -> LeaseRow | None:
        """See `ReadTransaction`."""
        return self.read(keys.prefix(name_id, keys.LEASE), LeaseRow)

    def lease_remaining_ms(self, name_id: int, lease: LeaseRow) -> int:
        """See `ReadTransaction`."""
        return self._timers.remaining_ms(name_id, lease, self._timers.now_ms())

    def find_signal_id(self, internal_id: int, signal_id: str) -> SignalIdRow | None:
        """See `ReadTransaction`."""
        return self.read(keys.signal_id(internal_id, signal_id), SignalIdRow)

    def pending_signals(self, internal_id: int, after_number: int) -> Iterator[PendingSignal]:
        """See `ReadTransaction`."""
        start = keys.numbered(internal_id, keys.SIGNAL, after_number + 1)
        for key, row in self.scan(start, keys.prefix(internal_id, keys.SIGNAL)):
            head = records.decode(key, row, SignalHead)
            yield PendingSignal(next(keys.numbers_of(key, 1)), head.signal_id, head.name)

    def get_signal(self, internal_id: int, number: int) -> Signal:
        """See `ReadTransaction`."""
        key = keys.numbered(internal_id, keys.SIGNAL, number)
        head = self.read_required(key, SignalHead)
        payload = self._read_body(key, keys.SIGNAL_PIECE, head.size_bytes, head.tail)
        value = Value(head.kind, payload, head.codec, head.compression) if head.kind else None
        return Signal(number, head.signal_id, head.name, value, head.create_time_ms)

    def find_manifest(self, namespace: str, fingerprint: str) -> str | None:
        """See `ReadTransaction`."""
        namespace_id = self.find_namespace(namespace)
        return None if namespace_id is None else self.find_manifest_in(namespace_id, fingerprint)

    def find_manifest_in(self, namespace_id: int, fingerprint: str) -> str | None:
        """Return the manifest of a fingerprint, by the namespace's number."""
        key = keys.manifest(namespace_id, fingerprint)
        head = self.read(key, ManifestHead)
        if head is None:
            return None
        return self._read_body(key, keys.MANIFEST_PIECE, head.size_bytes, head.tail).decode()

    def has_manifest(self, namespace: str, fingerprint: str) -> bool:
        """See `ReadTransaction`."""
        namespace_id = self.find_namespace(namespace)
        return namespace_id is not None and self._txn.get(keys.manifest(namespace_id, fingerprint)) is not None

    def manifest_count(self, namespace: str) -> int:
        """See `ReadTransaction`."""
        row = self._find_namespace(namespace)
        return 0 if row is None else row.manifest_count

    def find_scope(self, name_id: int, scope: str) -> ScopeRow | None:
        """See `ReadTransaction`."""
        key = keys.scope(name_id, scope)
        row = self.read(key, ScopeRow)
        if row is not None and row.scope != scope:
            raise records.damaged(key, "it belongs to another scope")
        return row

    def scopes(self, name_id: int, from_ordinal: int) -> Iterator[ScopeRow]:
        """See `ReadTransaction`."""
        start = keys.numbered(name_id, keys.SCOPE_NUMBER, from_ordinal)
        for key, row in self.scan(start, keys.prefix(name_id, keys.SCOPE_NUMBER)):
            yield self.read_required(keys.scope(name_id, records.decode(key, row, str)), ScopeRow)

    def find_id(self, name_id: int, scope_ordinal: int, checkpoint_id: str) -> IdRow | None:
        """See `ReadTransaction`."""
        return self.read(keys.checkpoint_id(name_id, scope_ordinal, checkpoint_id), IdRow)

    # Checkpoints.

    def get_checkpoint(self, internal_id: int, sequence: int) -> CheckpointRow | None:
        """See `ReadTransaction`."""
        row_id = self.read(keys.numbered(internal_id, keys.SEQUENCE, sequence), int)
        return None if row_id is None else self.read_required(keys.prefix(row_id, keys.CHECKPOINT), CheckpointRow)

    def sequences(
        self, internal_id: int, scope_ordinal: int | None, *, newest_first: bool, start: int | None
    ) -> Iterator[int]:
        """See `ReadTransaction`."""
        if scope_ordinal is None:
            prefix = keys.prefix(internal_id, keys.SEQUENCE)
        else:
            prefix = keys.numbered(internal_id, keys.ORDER, scope_ordinal)
        return self._scan_numbers(prefix, start, newest_first=newest_first)

    def run_checkpoints(self, namespace_id: int, run_id: str, after: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """See `ReadTransaction`."""
        internal_id, sequence = after
        start = keys.run(namespace_id, run_id, internal_id, sequence + 1)
        for key, _ in self.scan(start, keys.run_prefix(namespace_id, run_id)):
            yield int.from_bytes(key[-16:-8], "big"), int.from_bytes(key[-8:], "big")

    # States and values.

    def resolve_state(self, family_id: int, node_id: int) -> ResolvedState:
        """See `ReadTransaction`."""
        bodies: list[NodeBody] = []
        while node_id:
            head, body = self.read_node(node_id)
            bodies.append(body)
            node_id = head.prior_id
        state = ResolvedState({}, {})
        for body in reversed(bodies):
            apply_node(state, body)
        return state

    def lookup_entries(self, family_id: int, node_id: int, wanted: Iterable[str]) -> dict[str, EntryRef]:
        """See `ReadTransaction`."""
        found: dict[str, EntryRef] = {}
        open_keys = set(wanted)
        while node_id and open_keys:
            head, body = self.read_node(node_id)
            for key in [key for key in open_keys if key in body.entries]:
                found[key] = body.entries[key]
                open_keys.discard(key)
            open_keys.difference_update(body.removed)
            node_id = head.prior_id
        return found

    def read_node(self, node_id: int) -> tuple[NodeHead, NodeBody]:
        """Return a node."""
        key = keys.prefix(node_id, keys.NODE)
        head = self.read_required(key, NodeHead)
        raw = self._read_body(key, keys.NODE_PIECE, head.size_bytes, head.tail)
        try:
            return head, _node_body_decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise records.damaged(key, f"its body does not decode: {error}") from error

    def read_value(self, family_id: int, ref: EntryRef) -> Value:
        """See `ReadTransaction`."""
        key = keys.prefix(ref.value_id, keys.VALUE)
        head = self.read_required(key, ValueHead)
        payload = self._read_body(key, keys.VALUE_PIECE, head.size_bytes, head.tail)
        return Value(head.kind, payload, head.codec, head.compression)

    # Records.

    def find_record_group(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> RecordGroupRow | None:
        """See `ReadTransaction`."""
        key = keys.group(internal_id, scope_ordinal, keys.digest_text(checkpoint_id))
        group = self.read(key, RecordGroupRow)
        if group is not None and group.checkpoint_id != checkpoint_id:
            raise records.damaged(key, "it belongs to another checkpoint")
        return group

    def find_record(
        self, internal_id: int, scope_ordinal: int, checkpoint_id: str, task_id: str, index: int
    ) -> Record | None:
        """See `ReadTransaction`."""
        digest = keys.digest_text(checkpoint_id)
        key = keys.record(internal_id, scope_ordinal, digest, task_id, index)
        row = self._txn.get(key)
        return None if row is None else self._read_record(key, row)

    def records(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> Iterator[Record]:
        """See `ReadTransaction`."""
        digest = keys.digest_text(checkpoint_id)
        return self.records_at(keys.records_prefix(internal_id, keys.RECORD, scope_ordinal, digest))

    def records_at(self, prefix: bytes) -> Iterator[Record]:
        """Yield the records whose keys start with `prefix`."""
        for key, row in self.scan(prefix, prefix):
            yield self._read_record(key, row)

    def _read_record(self, key: bytes, row: bytes) -> Record:
        head = records.decode(key, row, RecordHead)
        payload = self._read_body(key, keys.RECORD_PIECE, head.size_bytes, head.tail)
        value = Value(head.kind, payload, head.codec, head.compression)
        return Record(head.task_id, head.index, head.path, head.name, value)


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

    def intern_namespace(self, namespace: str, count_max: int) -> int:
        """See `WriteTransaction`."""
        known_id = self.find_namespace(namespace)
        if known_id is not None:
            return known_id
        prefix = keys.prefix(keys.STORE, keys.NAMESPACE)
        count = sum(1 for _ in self.scan(prefix, prefix))
        if count >= count_max:
            raise ResourceError(
                "QUOTA_EXCEEDED",
                f"namespace: there are {count} namespaces, at most {count_max} are allowed (namespaces_max)",
                {"limit": "namespaces_max", "allowed": count_max, "found": count + 1, "unit": "namespaces"},
            )
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
        tail = payload[pieces.covered(len(payload)) :]
        head = SignalHead(
            signal.signal_id,
            signal.name,
            signal.create_time_ms,
            value.kind,
            value.codec,
            value.compression,
            len(payload),
            tail,
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
        self.write(key, ManifestHead(len(body), body[pieces.covered(len(body)) :]))
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
        tail = raw[pieces.covered(len(raw)) :]
        self.append(key, NodeHead(1, prior_id, weight, chain_weight, len(raw), tail, family_id))
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
        tail = payload[pieces.covered(len(payload)) :]
        head = ValueHead(1, value.kind, value.codec, value.compression, len(payload), tail, family_id)
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
                value.payload[pieces.covered(len(value.payload)) :],
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


def apply_node(state: ResolvedState, body: NodeBody) -> None:
    """Lay a node's body on the state before it."""
    state.entries.update(body.entries)
    for key in body.removed:
        state.entries.pop(key, None)
    for step in body.steps:
        state.steps[step] = None


def _body_weight(body: NodeBody) -> int:
    return len(body.entries) + len(body.removed) + len(body.steps)


def _take(cursor: Cursor, start: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
    rows: list[tuple[bytes, bytes]] = []
    with cursor:
        if not cursor.set_range(start):
            return rows
        for key, row in cursor.iternext(keys=True, values=True):
            if not key.startswith(prefix):
                break
            rows.append((key, row))
            if len(rows) == SCAN_ROWS:
                break
    return rows


def _take_down(cursor: Cursor, end: bytes, prefix: bytes, count: int) -> list[bytes]:
    """Return up to `count` keys below `end`, highest first."""
    found: list[bytes] = []
    with cursor:
        has_row = cursor.prev() if cursor.set_range(end) else cursor.last()
        while has_row and len(found) < count:
            key = cursor.key()
            if not key.startswith(prefix):
                break
            found.append(key)
            has_row = cursor.prev()
    return found
