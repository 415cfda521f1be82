"""The port's read transaction on LMDB: rows and their bodies to domain values, one method each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import msgspec

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
    Value,
    WorkflowRow,
)
from milepost_server.storage import keys, long_keys, pieces, records, status_index
from milepost_server.storage.lease_timers import LeaseTimers
from milepost_server.storage.lmdb_rows import (
    ManifestHead,
    NamespaceRow,
    NodeBody,
    NodeHead,
    RecordHead,
    SignalHead,
    ValueHead,
)
from milepost_server.storage.port import NameRow, ResolvedState

if TYPE_CHECKING:
    from milepost_server.storage.lmdb_env import Cursor, Transaction

SCAN_ROWS = 256
"""Rows that a scan takes at a time; between two times the transaction may change."""
LINE_NODES = 1_000
"""Nodes that lookups of the same entries read in one snapshot before what they pass on the way is kept."""
LINE_ENTRIES_MAX = 100_000
"""Entries that are kept of what was passed, over all nodes."""

T = TypeVar("T")

_node_body_decoder = msgspec.msgpack.Decoder(NodeBody)


class LmdbReadTransaction:
    """One snapshot of the store."""

    def __init__(self, txn: Transaction, timers: LeaseTimers) -> None:
        self._txn = txn
        self._timers = timers
        self._line_keys: frozenset[str] = frozenset()
        self._line_nodes = 0
        self._line: dict[int, dict[str, EntryRef]] = {}
        """What was found of `_line_keys`, by node. Nodes that differ in none of these share it.

        A node never changes what it says, and its number is not given again even if the command that put it is undone:
        so in a write transaction too, what was found stays true.
        """

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

    def namespace_count(self) -> int:
        """See `ReadTransaction`."""
        prefix = keys.prefix(keys.STORE, keys.NAMESPACE)
        return sum(1 for _ in self.scan(prefix, prefix))

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
        row_id = self.checkpoint_row_id(internal_id, sequence)
        return None if row_id is None else self.read_required(keys.prefix(row_id, keys.CHECKPOINT), CheckpointRow)

    def checkpoint_row_id(self, internal_id: int, sequence: int) -> int | None:
        """See `ReadTransaction`."""
        return self.read(keys.numbered(internal_id, keys.SEQUENCE, sequence), int)

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
        keys = frozenset(wanted)
        if keys != self._line_keys:
            self._line_keys, self._line_nodes, self._line = keys, 0, {}
        if self._line_nodes >= LINE_NODES:
            return self._lookup_on_line(node_id)
        found, node_count = self._lookup(node_id, keys)
        self._line_nodes += node_count
        return found

    def _lookup(self, node_id: int, wanted: Iterable[str]) -> tuple[dict[str, EntryRef], int]:
        """Return some entries of a state, and how many nodes were read to find them or that they are not there."""
        found: dict[str, EntryRef] = {}
        open_keys = set(wanted)
        node_count = 0
        while node_id and open_keys:
            head, body = self.read_node(node_id)
            node_count += 1
            for key in [key for key in open_keys if key in body.entries]:
                found[key] = body.entries[key]
                open_keys.discard(key)
            open_keys.difference_update(body.removed)
            node_id = head.prior_id
        return found, node_count

    def _lookup_on_line(self, node_id: int) -> dict[str, EntryRef]:
        """Look up the same entries in state after state: each node is read once, though each state has a long chain."""
        passed: list[tuple[int, dict[str, EntryRef], frozenset[str]]] = []
        while node_id and node_id not in self._line:
            head, body = self.read_node(node_id)
            changed = {key: body.entries[key] for key in self._line_keys & body.entries.keys()}
            passed.append((node_id, changed, self._line_keys.intersection(body.removed)))
            node_id = head.prior_id
        found = dict(self._line.get(node_id, {}))
        # Of a long line the newest nodes are kept, since it is walked from there.
        room = max(1, LINE_ENTRIES_MAX // max(1, len(self._line_keys)))
        for _, changed, removed in reversed(passed[room:]):
            for key in removed:
                found.pop(key, None)
            found.update(changed)
        if len(self._line) + len(passed[:room]) > room:
            self._line.clear()
        for passed_id, changed, removed in reversed(passed[:room]):
            if changed or removed:
                found = {key: ref for key, ref in found.items() if key not in removed} | changed
            self._line[passed_id] = found
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


def apply_node(state: ResolvedState, body: NodeBody) -> None:
    """Lay a node's body on the state before it."""
    state.entries.update(body.entries)
    for key in body.removed:
        state.entries.pop(key, None)
    for step in body.steps:
        state.steps[step] = None


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
