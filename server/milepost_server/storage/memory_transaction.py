"""The port's transactions on plain dicts of immutable rows.

What another engine keeps cleverly is kept here plainly: a node is its whole state, an order is a sort, discarded things
go at once. A command is made atomic by an undo log: every change first notes how to take it back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from milepost_server import rules
from milepost_server.limits import Limits
from milepost_server.model import (
    CheckpointRow,
    EntryRef,
    IdRow,
    LeaseRow,
    NewEntry,
    PendingSignal,
    Record,
    RecordGroupRow,
    ScopeRow,
    Signal,
    SignalIdRow,
    SweepAnswer,
    Value,
    WorkflowChange,
    WorkflowRow,
)
from milepost_server.storage.lease_timers import LeaseTimers, Timer
from milepost_server.storage.port import NameRow, ResolvedState, StateChange

_replace = msgspec.structs.replace

_K = TypeVar("_K")
_L = TypeVar("_L")
_V = TypeVar("_V")


class Node(NamedTuple):
    """A whole state, and how many checkpoints have it."""

    entries: Mapping[str, EntryRef]
    steps: tuple[str, ...]
    holder_count: int


class StoredValue(NamedTuple):
    """A value, and how many nodes have it."""

    value: Value
    holder_count: int


_NO_STATE = Node({}, (), 0)


class Tables:
    """All that is stored. Rows are immutable, so a dict's old item is all that an undo needs."""

    def __init__(self) -> None:
        self.last_id: dict[None, int] = {None: 0}
        self.namespaces: dict[str, int] = {}
        self.names: dict[tuple[int, str], NameRow] = {}
        self.workflows: dict[int, WorkflowRow] = {}
        self.scopes: dict[int, dict[str, ScopeRow]] = {}
        """By name id, then scope."""
        self.ids: dict[int, dict[tuple[int, str], IdRow]] = {}
        """By name id, then (scope ordinal, checkpoint_id)."""
        self.checkpoints: dict[int, dict[int, CheckpointRow]] = {}
        """By internal id, then sequence."""
        self.checkpoint_row_ids: dict[tuple[int, int], int] = {}
        """By (internal id, sequence)."""
        self.nodes: dict[tuple[int, int], Node] = {}
        """By (family id, node id)."""
        self.values: dict[tuple[int, int], StoredValue] = {}
        """By (family id, value id)."""
        self.record_groups: dict[int, dict[tuple[int, str], RecordGroupRow]] = {}
        """By internal id, then (scope ordinal, checkpoint_id)."""
        self.records: dict[int, dict[tuple[int, str], dict[tuple[str, int], Record]]] = {}
        """By internal id, then (scope ordinal, checkpoint_id), then (task_id, index)."""
        self.waiting_due_ms: dict[tuple[int, int, str], int] = {}
        """By (internal id, scope ordinal, checkpoint_id)."""
        self.leases: dict[int, LeaseRow] = {}
        """By name id."""
        self.timers: dict[int, Timer | None] = {}
        """By name id: when a lease expires."""
        self.lease_counts: dict[str, int] = {}
        """By namespace: leases that were ever granted."""
        self.lease_due_ms: dict[int, int] = {}
        """By name id: when the lease of a workflow that has not come is looked at."""
        self.signals: dict[int, dict[int, Signal]] = {}
        """Pending ones, by internal id, then number."""
        self.signal_ids: dict[int, dict[str, SignalIdRow]] = {}
        """By internal id, then signal_id."""
        self.manifests: dict[str, dict[str, str]] = {}
        """By namespace, then fingerprint."""
        self.building: dict[int, None] = {}
        """Internal ids of the incarnations that forks are making."""


class MemoryTransaction:
    """A view of the tables that can be changed, and changed back."""

    def __init__(self, tables: Tables, limits: Limits, now_ms: int, timers: LeaseTimers) -> None:
        self._tables = tables
        self._limits = limits
        self._now_ms = now_ms
        self._timers = timers
        self._lease_now_ms = timers.now_ms()
        self._undo: list[Callable[[], object]] = []

    def mark(self) -> int:
        """Return a point in time that `rollback` can go back to."""
        return len(self._undo)

    def rollback(self, mark: int) -> None:
        """Take back what was changed since a point in time, the latest change first."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def _put(self, table: dict[_K, _V], key: _K, value: _V) -> None:
        self._note_undo(table, key)
        table[key] = value

    def _remove(self, table: dict[_K, _V], key: _K) -> None:
        """Remove an item, if there is one."""
        if key in table:
            self._note_undo(table, key)
            del table[key]

    def _branch(self, table: dict[_K, dict[_L, _V]], key: _K) -> dict[_L, _V]:
        """Return the table within a table, making it if need be."""
        if key not in table:
            self._put(table, key, {})
        return table[key]

    def _note_undo(self, table: dict[_K, _V], key: _K) -> None:
        if key in table:
            self._undo.append(partial(table.__setitem__, key, table[key]))
        else:
            self._undo.append(partial(table.pop, key))

    # Reads.

    def find_namespace(self, namespace: str) -> int | None:
        """Return the number of a namespace."""
        return self._tables.namespaces.get(namespace)

    def namespace_count(self) -> int:
        """Return how many namespaces there are."""
        return len(self._tables.namespaces)

    def find_name(self, namespace: str, workflow_id: str) -> NameRow | None:
        """Return what stands behind a workflow's name."""
        namespace_id = self.find_namespace(namespace)
        return None if namespace_id is None else self._tables.names.get((namespace_id, workflow_id))

    def get_workflow(self, internal_id: int) -> WorkflowRow | None:
        """Return one incarnation."""
        return self._tables.workflows.get(internal_id)

    def workflow_names(
        self,
        namespace_id: int,
        prefix: str,
        after: str | None,
        *,
        statuses: Collection[int],
        has_pending_signals: bool | None,
    ) -> Iterator[NameRow]:
        """Yield the names that start with `prefix`, bytewise by workflow_id, from the first one after `after`."""
        found = [
            row
            for row in self._tables.names.values()
            if row.namespace_id == namespace_id
            and row.workflow_id.startswith(prefix)
            and (after is None or row.workflow_id.encode() > after.encode())
        ]
        if statuses or has_pending_signals:
            found = [row for row in found if self._is_listed(row, statuses, has_pending_signals)]
        return iter(sorted(found, key=lambda row: row.workflow_id.encode()))

    def _is_listed(self, name: NameRow, statuses: Collection[int], has_pending_signals: bool | None) -> bool:
        workflow = self.get_workflow(name.internal_id)
        if workflow is None or not rules.is_visible(workflow):
            return False
        has_signals = workflow.pending_signal_count > 0
        return (not statuses or workflow.status in statuses) and has_pending_signals in (None, has_signals)

    def find_lease(self, name_id: int) -> LeaseRow | None:
        """Return the newest lease of a name that has not ended."""
        return self._tables.leases.get(name_id)

    def lease_remaining_ms(self, name_id: int, lease: LeaseRow) -> int:
        """Return how long a lease still runs; 0 if it has expired."""
        return self._timers.remaining_ms(name_id, lease, self._lease_now_ms, self._tables.timers)

    def find_signal_id(self, internal_id: int, signal_id: str) -> SignalIdRow | None:
        """Return what became of a signal_id."""
        return self._tables.signal_ids.get(internal_id, {}).get(signal_id)

    def pending_signals(self, internal_id: int, after_number: int) -> Iterator[PendingSignal]:
        """Yield pending signals in the order they came, from the first one after `after_number`."""
        found = self._tables.signals.get(internal_id, {})
        for number in sorted(found):
            if number > after_number:
                yield PendingSignal(number, found[number].signal_id, found[number].name)

    def get_signal(self, internal_id: int, number: int) -> Signal:
        """Return a pending signal whole."""
        return self._tables.signals[internal_id][number]

    def find_manifest(self, namespace: str, fingerprint: str) -> str | None:
        """Return the manifest of a fingerprint."""
        return self._tables.manifests.get(namespace, {}).get(fingerprint)

    def has_manifest(self, namespace: str, fingerprint: str) -> bool:
        """Tell whether a fingerprint's manifest is stored."""
        return fingerprint in self._tables.manifests.get(namespace, {})

    def manifest_count(self, namespace: str) -> int:
        """Return how many manifests a namespace has."""
        return len(self._tables.manifests.get(namespace, {}))

    def find_scope(self, name_id: int, scope: str) -> ScopeRow | None:
        """Return a scope of a name, as it was last put."""
        return self._tables.scopes.get(name_id, {}).get(scope)

    def scopes(self, name_id: int, from_ordinal: int) -> Iterator[ScopeRow]:
        """Yield the scopes of a name by ordinal, from `from_ordinal` on."""
        found = [row for row in self._tables.scopes.get(name_id, {}).values() if row.ordinal >= from_ordinal]
        return iter(sorted(found, key=lambda row: row.ordinal))

    def find_id(self, name_id: int, scope_ordinal: int, checkpoint_id: str) -> IdRow | None:
        """Return what became of a checkpoint_id."""
        return self._tables.ids.get(name_id, {}).get((scope_ordinal, checkpoint_id))

    def get_checkpoint(self, internal_id: int, sequence: int) -> CheckpointRow | None:
        """Return one checkpoint."""
        return self._tables.checkpoints.get(internal_id, {}).get(sequence)

    def checkpoint_row_id(self, internal_id: int, sequence: int) -> int | None:
        """Return the number that a checkpoint's row was given when it came to its run."""
        return self._tables.checkpoint_row_ids.get((internal_id, sequence))

    def sequences(
        self, internal_id: int, scope_ordinal: int | None, *, newest_first: bool, start: int | None
    ) -> Iterator[int]:
        """Yield sequences of a scope (`None`: of all scopes), from `start` (inclusive; `None`: the end) on."""
        found = [
            row.sequence
            for row in self._tables.checkpoints.get(internal_id, {}).values()
            if scope_ordinal is None or row.scope_ordinal == scope_ordinal
        ]
        if start is not None:
            found = [sequence for sequence in found if (sequence <= start if newest_first else sequence >= start)]
        return iter(sorted(found, reverse=newest_first))

    def run_checkpoints(self, namespace_id: int, run_id: str, after: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yield (internal_id, sequence) of a run's checkpoints in that order, from the first one after `after`."""
        found = [
            (internal_id, row.sequence)
            for internal_id, rows in self._tables.checkpoints.items()
            if self._tables.workflows[internal_id].namespace_id == namespace_id
            for row in rows.values()
            if row.run_id == run_id and (internal_id, row.sequence) > after
        ]
        return iter(sorted(found))

    def resolve_state(self, family_id: int, node_id: int) -> ResolvedState:
        """Return the whole state behind a node."""
        node = self._node(family_id, node_id)
        return ResolvedState(dict(node.entries), dict.fromkeys(node.steps))

    def lookup_entries(self, family_id: int, node_id: int, keys: Iterable[str]) -> dict[str, EntryRef]:
        """Return some entries of the state behind a node; keys that it lacks are left out."""
        entries = self._node(family_id, node_id).entries
        return {key: entries[key] for key in keys if key in entries}

    def _node(self, family_id: int, node_id: int) -> Node:
        return self._tables.nodes[family_id, node_id] if node_id else _NO_STATE

    def read_value(self, family_id: int, ref: EntryRef) -> Value:
        """Return a stored value."""
        return self._tables.values[family_id, ref.value_id].value

    def find_record_group(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> RecordGroupRow | None:
        """Return the count of a checkpoint id's records."""
        return self._tables.record_groups.get(internal_id, {}).get((scope_ordinal, checkpoint_id))

    def find_record(
        self, internal_id: int, scope_ordinal: int, checkpoint_id: str, task_id: str, index: int
    ) -> Record | None:
        """Return one record."""
        return self._records(internal_id, scope_ordinal, checkpoint_id).get((task_id, index))

    def records(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> Iterator[Record]:
        """Yield a checkpoint id's records, in no order that means anything."""
        return iter(list(self._records(internal_id, scope_ordinal, checkpoint_id).values()))

    def _records(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> Mapping[tuple[str, int], Record]:
        return self._tables.records.get(internal_id, {}).get((scope_ordinal, checkpoint_id), {})

    # Writes.

    @property
    def now_ms(self) -> int:
        """The time of the commit, for people."""
        return self._now_ms

    def new_id(self) -> int:
        """Return a number that is larger than all that were given before, from 1."""
        number = self._tables.last_id[None] + 1
        self._put(self._tables.last_id, None, number)
        return number

    def random_bytes(self) -> bytes:
        """Return 8 random bytes."""
        return os.urandom(8)

    def add_namespace(self, namespace: str) -> int:
        """Store a namespace that is not there, and return its number."""
        number = self.new_id()
        self._put(self._tables.namespaces, namespace, number)
        return number

    def put_name(self, row: NameRow) -> None:
        """Store a name."""
        self._put(self._tables.names, (row.namespace_id, row.workflow_id), row)

    def forget_name_if_unused(self, row: NameRow) -> None:
        """Remove a name that stands for nothing: no incarnation, no checkpoint id, no lease."""
        if row.internal_id or row.building_id or row.has_lease or self._tables.ids.get(row.name_id):
            return
        self._remove(self._tables.names, (row.namespace_id, row.workflow_id))
        self._remove(self._tables.scopes, row.name_id)
        self._remove(self._tables.ids, row.name_id)

    def next_lease_token(self, namespace: str) -> int:
        """Return a number larger than every token given in the namespace before."""
        count = self._tables.lease_counts.get(namespace, 0) + 1
        self._put(self._tables.lease_counts, namespace, count)
        return count

    def put_lease(self, name_id: int, row: LeaseRow) -> None:
        """Store a lease, and let it run its full ttl from now."""
        self._put(self._tables.leases, name_id, row)
        self.renew_lease(name_id, row)

    def renew_lease(self, name_id: int, row: LeaseRow) -> None:
        """Let a lease run its full ttl from now."""
        self._put(self._tables.timers, name_id, Timer(row.token, self._lease_now_ms + row.ttl_ms))

    def delete_lease(self, name_id: int) -> None:
        """End a lease."""
        self._remove(self._tables.leases, name_id)
        self._remove(self._tables.timers, name_id)
        self._remove(self._tables.lease_due_ms, name_id)

    def schedule_lease_expiry(self, name: NameRow) -> None:
        """See to it that the lease of a workflow that never comes is forgotten some time after it has expired."""
        self._put(self._tables.lease_due_ms, name.name_id, self._now_ms + self._limits.unused_lease_ttl_ms)

    def put_workflow(self, row: WorkflowRow) -> None:
        """Store an incarnation."""
        self._put(self._tables.workflows, row.internal_id, row)

    def put_signal(self, internal_id: int, signal: Signal, id_row: SignalIdRow) -> None:
        """Store a pending signal, and what is known of its id."""
        self._put(self._branch(self._tables.signals, internal_id), signal.number, signal)
        self._put(self._branch(self._tables.signal_ids, internal_id), signal.signal_id, id_row)

    def consume_signal(self, internal_id: int, signal_id: str, stub: SignalIdRow) -> None:
        """Remove a pending signal; its id stays for the replay window."""
        self._remove(self._tables.signals[internal_id], stub.number)
        self._put(self._tables.signal_ids[internal_id], signal_id, stub)

    def put_manifest(self, namespace: str, fingerprint: str, manifest: str) -> None:
        """Store the manifest of a fingerprint that has none."""
        self._put(self._branch(self._tables.manifests, namespace), fingerprint, manifest)

    def put_scope(self, name_id: int, row: ScopeRow) -> None:
        """Store a scope."""
        self._put(self._branch(self._tables.scopes, name_id), row.scope, row)

    def put_id(self, name_id: int, scope_ordinal: int, checkpoint_id: str, row: IdRow) -> None:
        """Store what became of a checkpoint_id."""
        self._put(self._branch(self._tables.ids, name_id), (scope_ordinal, checkpoint_id), row)

    def put_checkpoint(self, workflow: WorkflowRow, row: CheckpointRow) -> None:
        """Store a checkpoint; its places in orders are found by looking."""
        place = (workflow.internal_id, row.sequence)
        if place not in self._tables.checkpoint_row_ids:
            self._put(self._tables.checkpoint_row_ids, place, self.new_id())
        self._put(self._branch(self._tables.checkpoints, workflow.internal_id), row.sequence, row)

    def delete_checkpoint(self, workflow: WorkflowRow, row: CheckpointRow) -> None:
        """Remove a checkpoint's row, not its id, its state or its records."""
        self._remove(self._tables.checkpoint_row_ids, (workflow.internal_id, row.sequence))
        self._remove(self._tables.checkpoints[workflow.internal_id], row.sequence)

    def put_state(self, family_id: int, change: StateChange) -> int:
        """Store a changed state and return its node, which the caller holds."""
        prior = self._node(family_id, change.prior_node_id)
        entries = {key: ref for key, ref in prior.entries.items() if key not in change.removed}
        entries |= {key: self._put_value(family_id, entry) for key, entry in change.changed.items()}
        for ref in entries.values():
            self._hold_value(family_id, ref.value_id, 1)
        steps = tuple(dict.fromkeys((*prior.steps, *change.steps_added)))
        node_id = self.new_id()
        self._put(self._tables.nodes, (family_id, node_id), Node(entries, steps, holder_count=1))
        return node_id

    def _put_value(self, family_id: int, entry: NewEntry) -> EntryRef:
        value_id = self.new_id()
        self._put(self._tables.values, (family_id, value_id), StoredValue(entry.value, holder_count=0))
        return EntryRef(value_id, entry.digest, entry.size_bytes)

    def _hold_value(self, family_id: int, value_id: int, change: int) -> None:
        stored = self._tables.values[family_id, value_id]
        held = stored._replace(holder_count=stored.holder_count + change)
        if held.holder_count:
            self._put(self._tables.values, (family_id, value_id), held)
        else:
            self._remove(self._tables.values, (family_id, value_id))

    def retain_state(self, family_id: int, node_id: int) -> None:
        """Hold a node once more."""
        if node_id:
            node = self._node(family_id, node_id)
            held = node._replace(holder_count=node.holder_count + 1)
            self._put(self._tables.nodes, (family_id, node_id), held)

    def release_state(self, family_id: int, node_id: int) -> None:
        """Let go of a node; it is freed with the values that nothing else has, once nobody holds it."""
        if not node_id:
            return
        node = self._node(family_id, node_id)
        if node.holder_count > 1:
            held = node._replace(holder_count=node.holder_count - 1)
            self._put(self._tables.nodes, (family_id, node_id), held)
            return
        self._remove(self._tables.nodes, (family_id, node_id))
        for ref in node.entries.values():
            self._hold_value(family_id, ref.value_id, -1)

    def put_record_group(self, internal_id: int, scope_ordinal: int, row: RecordGroupRow) -> None:
        """Store the count of a checkpoint id's records."""
        groups = self._branch(self._tables.record_groups, internal_id)
        self._put(groups, (scope_ordinal, row.checkpoint_id), row)

    def put_record(self, internal_id: int, scope_ordinal: int, checkpoint_id: str, record: Record) -> None:
        """Store a record, in the place of one of the same key."""
        of_workflow = self._branch(self._tables.records, internal_id)
        of_checkpoint = self._branch(of_workflow, (scope_ordinal, checkpoint_id))
        self._put(of_checkpoint, (record.task_id, record.index), record)

    def discard_records(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> None:
        """Remove the group of a checkpoint id's records, and the records."""
        self._remove(self._tables.record_groups.get(internal_id, {}), (scope_ordinal, checkpoint_id))
        self._remove(self._tables.records.get(internal_id, {}), (scope_ordinal, checkpoint_id))
        self._remove(self._tables.waiting_due_ms, (internal_id, scope_ordinal, checkpoint_id))

    def discard_workflow(self, row: WorkflowRow, *, forget_ids: bool) -> None:
        """Free an incarnation. Its checkpoint ids stay as stubs, unless they are to be forgotten."""
        for checkpoint in self._tables.checkpoints.get(row.internal_id, {}).values():
            self.release_state(row.family_id, checkpoint.node_id)
            self._remove(self._tables.checkpoint_row_ids, (row.internal_id, checkpoint.sequence))
        self._remove(self._tables.checkpoints, row.internal_id)
        self._remove(self._tables.record_groups, row.internal_id)
        self._remove(self._tables.records, row.internal_id)
        self._remove(self._tables.signals, row.internal_id)
        self._remove(self._tables.signal_ids, row.internal_id)
        for key in [key for key in self._tables.waiting_due_ms if key[0] == row.internal_id]:
            self._remove(self._tables.waiting_due_ms, key)
        ids = self._tables.ids.get(row.name_id, {})
        for id_key, id_row in list(ids.items()):
            if id_row.internal_id != row.internal_id:
                continue
            if forget_ids and id_row.prior is not None:
                self._put(ids, id_key, id_row.prior)
            elif forget_ids:
                self._remove(ids, id_key)
            elif not id_row.deleted_time_ms:
                self._put(ids, id_key, IdRow(id_row.internal_id, id_row.sequence, self._now_ms, id_row.step_count))
        self._remove(self._tables.workflows, row.internal_id)
        name = self._tables.names.get((row.namespace_id, row.workflow_id))
        if name is not None:
            self.schedule_stub_expiry(name)

    def schedule_stub_expiry(self, name: NameRow) -> NameRow:
        """See to it that stubs in this name are looked through when the first may have outlived the replay window."""
        if not name.stub_due_ms:
            name = _replace(name, stub_due_ms=self._now_ms + self._limits.replay_window_ms)
            self.put_name(name)
        return name

    def schedule_waiting_expiry(self, internal_id: int, scope_ordinal: int, checkpoint_id: str, due_ms: int) -> None:
        """See to it that records are dropped at `due_ms` if their checkpoint has not come."""
        self._put(self._tables.waiting_due_ms, (internal_id, scope_ordinal, checkpoint_id), due_ms)

    def note_building(self, internal_id: int, *, is_building: bool) -> None:
        """Remember (or forget) that an incarnation is being made."""
        if is_building:
            self._put(self._tables.building, internal_id, None)
        else:
            self._remove(self._tables.building, internal_id)

    # Time.

    def sweep(self, rows_max: int, passed_over: Collection[str], limits: Limits) -> SweepAnswer:
        """Drop what is past its time, all of it at once: what was discarded has gone already."""
        freed = 0
        changes: list[WorkflowChange] = []
        for name in list(self._tables.names.values()):
            if 0 < name.stub_due_ms <= self._now_ms:
                freed += self._expire_stubs(name, limits)
        for name in list(self._tables.names.values()):
            if self._tables.lease_due_ms.get(name.name_id, self._now_ms + 1) <= self._now_ms:
                freed += self._expire_lease(name)
        for key, due_ms in list(self._tables.waiting_due_ms.items()):
            if due_ms <= self._now_ms:
                freed += self._expire_waiting(*key, changes)
        for ids in self._tables.signal_ids.values():
            for signal_id, row in list(ids.items()):
                if row.consumed_time_ms and row.consumed_time_ms + limits.replay_window_ms <= self._now_ms:
                    self._remove(ids, signal_id)
                    freed += 1
        return SweepAnswer(freed, False, tuple(changes))

    def _expire_lease(self, name: NameRow) -> int:
        """Forget an expired lease whose workflow never came."""
        lease = self._tables.leases[name.name_id]
        self._remove(self._tables.lease_due_ms, name.name_id)
        if name.internal_id:
            return 0
        if name.building_id or self.lease_remaining_ms(name.name_id, lease):
            self.schedule_lease_expiry(name)
            return 0
        self.delete_lease(name.name_id)
        name = _replace(name, has_lease=False)
        self.put_name(name)
        self.forget_name_if_unused(name)
        return 1

    def _expire_stubs(self, name: NameRow, limits: Limits) -> int:
        """Forget outlived stubs; forget the name too, once nothing is left that it stands for."""
        ids = self._tables.ids.get(name.name_id, {})
        stubs = {key: row.deleted_time_ms + limits.replay_window_ms for key, row in ids.items() if row.deleted_time_ms}
        outlived = [key for key, due_ms in stubs.items() if due_ms <= self._now_ms]
        for key in outlived:
            self._remove(ids, key)
            del stubs[key]
        name = _replace(name, stub_due_ms=min(stubs.values(), default=0))
        self.put_name(name)
        self.forget_name_if_unused(name)
        return len(outlived)

    def _expire_waiting(
        self, internal_id: int, scope_ordinal: int, checkpoint_id: str, changes: list[WorkflowChange]
    ) -> int:
        """Drop records whose checkpoint has not come, and a workflow that had nothing else."""
        group = self.find_record_group(internal_id, scope_ordinal, checkpoint_id)
        if group is None or not group.is_waiting:
            self._remove(self._tables.waiting_due_ms, (internal_id, scope_ordinal, checkpoint_id))
            return 0
        self.discard_records(internal_id, scope_ordinal, checkpoint_id)
        workflow = self._tables.workflows[internal_id]
        left_count = workflow.waiting_record_count - group.record_count
        workflow = _replace(workflow, waiting_record_count=left_count, revision=workflow.revision + 1)
        changes.append(rules.change_of(workflow))
        if rules.is_visible(workflow) or workflow.waiting_record_count:
            self.put_workflow(workflow)
        else:
            name = _replace(self._tables.names[workflow.namespace_id, workflow.workflow_id], internal_id=0)
            self.put_name(name)
            if name.has_lease:
                self.schedule_lease_expiry(name)
            self.discard_workflow(workflow, forget_ids=False)
        return group.record_count
