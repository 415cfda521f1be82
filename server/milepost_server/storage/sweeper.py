"""Freeing what nobody reaches any more, in slices small enough that saves get through between them.

Everything here can stop after any slice and go on after a restart: what is left to do is in the trash and due tables,
and each slice takes what it freed out of them in the same commit.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from milepost_server import rules
from milepost_server.errors import RecordDamagedError
from milepost_server.limits import Limits
from milepost_server.model import (
    CheckpointRow,
    IdRow,
    LeaseRow,
    RecordGroupRow,
    SignalIdRow,
    SweepAnswer,
    WorkflowChange,
    WorkflowRow,
)
from milepost_server.storage import keys, long_keys, records
from milepost_server.storage.lmdb_rows import (
    DueKind,
    DueRow,
    RecordHead,
    TrashKind,
    TrashRow,
)
from milepost_server.storage.port import NameRow

if TYPE_CHECKING:
    from milepost_server.storage.lmdb_write_transaction import LmdbWriteTransaction

_replace = msgspec.structs.replace


def sweep(txn: LmdbWriteTransaction, rows_max: int, passed_over: Collection[str], limits: Limits) -> SweepAnswer:
    """Free up to about `rows_max` rows.

    Raises:
        RecordDamagedError: Its metadata names the `place`, the row of the trash or due table that led to the damage:
            the next call may pass it over, so that the rest is freed all the same.
    """
    freed = 0
    changes: list[WorkflowChange] = []
    while freed < rows_max:
        place = _first_trash(txn, passed_over) or _first_due(txn, passed_over)
        if place is None:
            return SweepAnswer(freed, False, tuple(changes))
        key, row = place
        try:
            if keys.table_of(key) == keys.TRASH:
                freed += _free(txn, key, records.decode(key, row, TrashRow), rows_max - freed)
            else:
                count, change = _look_at(txn, key, records.decode(key, row, DueRow), rows_max - freed, limits)
                freed += count
                if change is not None:
                    changes.append(change)
        except RecordDamagedError as error:
            error.metadata["place"] = key.hex()
            raise
    return SweepAnswer(freed, True, tuple(changes))


def _first_trash(txn: LmdbWriteTransaction, passed_over: Collection[str]) -> tuple[bytes, bytes] | None:
    prefix = keys.prefix(keys.STORE, keys.TRASH)
    return next((found for found in txn.scan(prefix, prefix) if found[0].hex() not in passed_over), None)


def _first_due(txn: LmdbWriteTransaction, passed_over: Collection[str]) -> tuple[bytes, bytes] | None:
    prefix = keys.prefix(keys.STORE, keys.DUE)
    first = next((found for found in txn.scan(prefix, prefix) if found[0].hex() not in passed_over), None)
    return None if first is None or next(keys.numbers_of(first[0], 1)) > txn.now_ms else first


# Trash.


def _free(txn: LmdbWriteTransaction, key: bytes, trash: TrashRow, rows_max: int) -> int:
    if trash.kind == TrashKind.NODE:
        return _free_node(txn, key, trash, rows_max)
    if trash.kind == TrashKind.RECORDS:
        return _free_records(txn, key, trash, rows_max)
    return _free_workflow(txn, key, trash, rows_max)


def _free_node(txn: LmdbWriteTransaction, key: bytes, trash: TrashRow, rows_max: int) -> int:
    """Let go of a node's values, a slice at a time, then of the node before it, then drop the node."""
    node_id = trash.owner_id
    head, body = txn.read_node(node_id)
    refs = list(body.entries.values())
    freed = 0
    position = trash.position
    while position < len(refs):
        if freed >= rows_max:
            txn.write(key, _replace(trash, position=position))
            return freed
        freed += txn.release_value(refs[position].value_id)
        position += 1
    if head.prior_id:
        txn.release_state(head.family_id, head.prior_id)
    node_key = keys.prefix(node_id, keys.NODE)
    freed += 1 + txn.delete_pieces(node_key, keys.NODE_PIECE, head.size_bytes)
    txn.delete(node_key)
    txn.delete(key)
    return freed


def _free_records(txn: LmdbWriteTransaction, key: bytes, trash: TrashRow, rows_max: int) -> int:
    prefix = keys.records_prefix(trash.owner_id, keys.RECORD, trash.number, trash.digest)
    freed, is_done = _free_record_rows(txn, prefix, rows_max)
    if is_done:
        txn.delete(key)
    return freed + 1


def _free_record_rows(txn: LmdbWriteTransaction, prefix: bytes, rows_max: int) -> tuple[int, bool]:
    freed = 0
    for key, row in txn.scan(prefix, prefix):
        if freed >= rows_max:
            return freed, False
        head = records.decode(key, row, RecordHead)
        freed += 1 + txn.delete_pieces(key, keys.RECORD_PIECE, head.size_bytes)
        txn.delete(key)
    return freed, True


def _free_workflow(txn: LmdbWriteTransaction, key: bytes, trash: TrashRow, rows_max: int) -> int:
    """Free an incarnation: its checkpoints with their states, its records, its signals, its own row last."""
    internal_id = trash.owner_id
    workflow = txn.read_required(keys.workflow(internal_id), WorkflowRow)
    freed = 0
    prefix = keys.prefix(internal_id, keys.SEQUENCE)
    for sequence_key, raw in txn.scan(prefix, prefix):
        if freed >= rows_max:
            return freed
        row_key = keys.prefix(records.decode(sequence_key, raw, int), keys.CHECKPOINT)
        row = txn.read_required(row_key, CheckpointRow)
        if trash.forget_ids:
            _forget_id(txn, workflow, row)
        txn.delete_checkpoint(workflow, row)
        txn.release_state(workflow.family_id, row.node_id)
        freed += 5
    group_prefix = keys.prefix(internal_id, keys.GROUP)
    for row_key, _ in txn.scan(group_prefix, group_prefix):
        if freed >= rows_max:
            return freed
        txn.delete(row_key)
        freed += 1
    record_freed, is_done = _free_record_rows(txn, keys.prefix(internal_id, keys.RECORD), rows_max - freed)
    freed += record_freed
    if not is_done:
        return freed
    for table in (keys.SIGNAL, keys.SIGNAL_ID):
        table_prefix = keys.prefix(internal_id, table)
        for row_key, _ in txn.scan(table_prefix, table_prefix):
            if freed >= rows_max:
                return freed
            freed += txn.delete_signal(row_key) if table == keys.SIGNAL else int(txn.delete(row_key))
    txn.delete(keys.workflow(internal_id))
    txn.delete(key)
    return freed + 1


def _forget_id(txn: LmdbWriteTransaction, workflow: WorkflowRow, row: CheckpointRow) -> None:
    id_key = keys.checkpoint_id(workflow.name_id, row.scope_ordinal, row.checkpoint_id)
    id_row = txn.read(id_key, IdRow)
    if id_row is None or id_row.internal_id != workflow.internal_id:
        return
    name = txn.find_name_in(workflow.namespace_id, workflow.workflow_id)
    if id_row.prior is None or name is None or name.name_id != workflow.name_id:
        txn.delete(id_key)
        return
    # The time at which stubs of its incarnation are forgotten may have passed: it is looked at anew, on its own.
    deleted_time_ms = id_row.prior.deleted_time_ms or txn.now_ms
    txn.write(id_key, _replace(id_row.prior, deleted_time_ms=deleted_time_ms))
    txn.schedule_stub_expiry(name)


# What is due.


def _look_at(
    txn: LmdbWriteTransaction, key: bytes, due: DueRow, rows_max: int, limits: Limits
) -> tuple[int, WorkflowChange | None]:
    """Return how many rows were freed, and which workflow that readers see was changed by it."""
    if due.kind == DueKind.WAITING_RECORDS:
        return _drop_waiting_records(txn, key, due)
    if due.kind == DueKind.SIGNAL_STUB:
        return _forget_signal(txn, key, due, limits), None
    if due.kind == DueKind.LEASE:
        return _forget_lease(txn, key, due), None
    return _expire_stubs(txn, key, due, rows_max, limits), None


def _forget_signal(txn: LmdbWriteTransaction, key: bytes, due: DueRow, limits: Limits) -> int:
    """Forget the id of a signal that was consumed a replay window ago."""
    txn.delete(key)
    row = txn.read(due.position, SignalIdRow)
    if row is None or not row.consumed_time_ms:
        return 1
    due_ms = row.consumed_time_ms + limits.replay_window_ms
    if due_ms > txn.now_ms:
        # The window is longer than it was when the signal was consumed.
        txn.put_due(due_ms, due)
        return 1
    txn.delete(due.position)
    return 2


def _forget_lease(txn: LmdbWriteTransaction, key: bytes, due: DueRow) -> int:
    """Forget an expired lease whose workflow never came, and the name with it."""
    txn.delete(key)
    name = txn.find_name_in(due.namespace_id, due.workflow_id)
    if name is None or name.name_id != due.name_id or name.internal_id or not name.has_lease:
        return 1
    lease = txn.read_required(keys.prefix(name.name_id, keys.LEASE), LeaseRow)
    if lease.token != due.lease_token:
        return 1
    if name.building_id or txn.lease_remaining_ms(name.name_id, lease):
        txn.schedule_lease_expiry(name)
        return 1
    txn.delete_lease(name.name_id)
    name = _replace(name, has_lease=False)
    txn.put_name(name)
    txn.forget_name_if_unused(name)
    return 3


def _drop_waiting_records(txn: LmdbWriteTransaction, key: bytes, due: DueRow) -> tuple[int, WorkflowChange | None]:
    """Drop records whose checkpoint has not come, and their workflow if it has nothing else."""
    txn.delete(key)
    group_key = keys.group(due.internal_id, due.scope_ordinal, due.digest)
    group = txn.read(group_key, RecordGroupRow)
    workflow = txn.get_workflow(due.internal_id)
    if group is None or workflow is None or not group.is_waiting:
        return 1, None
    # At once, and not at leisure: the id is not a stub, so records of the same keys may be appended again at any time.
    # It is bounded all the same, by `waiting_records_max` and `records_bytes_max`.
    prefix = keys.records_prefix(due.internal_id, keys.RECORD, due.scope_ordinal, due.digest)
    freed, _ = _free_record_rows(txn, prefix, sys.maxsize)
    txn.delete(group_key)
    left_count = workflow.waiting_record_count - group.record_count
    workflow = _replace(workflow, waiting_record_count=left_count, revision=workflow.revision + 1)
    txn.put_workflow(workflow)
    name = txn.find_name_in(workflow.namespace_id, workflow.workflow_id)
    is_unused = left_count == 0 and workflow.last_sequence == 0
    if name is not None and is_unused and name.internal_id == workflow.internal_id:
        name = _replace(name, internal_id=0)
        txn.put_name(name)
        if name.has_lease:
            txn.schedule_lease_expiry(name)
        txn.discard_workflow(workflow, forget_ids=True)
    return freed + 3, rules.change_of(workflow)


def _expire_stubs(txn: LmdbWriteTransaction, key: bytes, due: DueRow, rows_max: int, limits: Limits) -> int:
    """Forget the checkpoint ids of a deleted incarnation, or of single checkpoints deleted a replay window ago."""
    prefix = keys.prefix(due.name_id, keys.ID)
    freed = 0
    next_due_ms = due.next_due_ms
    if not due.internal_id and not due.position:
        # What is deleted from now on may lie before the place that this look has come to: it asks for one of its own.
        _set_stub_due(txn, due, 0)
    for id_key, raw in txn.scan(due.position or prefix, prefix):
        if freed >= rows_max:
            txn.write(key, _replace(due, position=id_key, next_due_ms=next_due_ms))
            return freed
        row = records.decode(id_key, raw, IdRow)
        due_ms = _stub_due_ms(row, due, limits)
        if due_ms is not None and due_ms <= txn.now_ms:
            txn.delete(id_key)
        elif due_ms is not None:
            next_due_ms = min(next_due_ms or due_ms, due_ms)
        freed += 1
    txn.delete(key)
    name = txn.find_name_in(due.namespace_id, due.workflow_id)
    if name is None or name.name_id != due.name_id:
        return freed
    is_empty = next(txn.scan(prefix, prefix), None) is None
    if is_empty and not name.internal_id and not name.building_id and not name.has_lease:
        return freed + forget_name(txn, name)
    if next_due_ms and not due.internal_id and not name.stub_due_ms:
        txn.put_name(_replace(name, stub_due_ms=next_due_ms))
        txn.put_due(next_due_ms, _replace(due, position=b"", next_due_ms=0))
    return freed


def _set_stub_due(txn: LmdbWriteTransaction, due: DueRow, stub_due_ms: int) -> None:
    name = txn.find_name_in(due.namespace_id, due.workflow_id)
    if name is not None and name.name_id == due.name_id:
        txn.put_name(_replace(name, stub_due_ms=stub_due_ms))


def _stub_due_ms(row: IdRow, due: DueRow, limits: Limits) -> int | None:
    """Return when an id is to be forgotten; `None` if that is not for this look to say."""
    if row.deleted_time_ms:
        return row.deleted_time_ms + limits.replay_window_ms
    return 0 if due.internal_id and row.internal_id == due.internal_id else None


def forget_name(txn: LmdbWriteTransaction, name: NameRow) -> int:
    """Drop a name that stands for nothing any more, with its scopes."""
    freed = 1
    for table in (keys.SCOPE, keys.SCOPE_NUMBER):
        prefix = keys.prefix(name.name_id, table)
        for scope_key, _ in txn.scan(prefix, prefix):
            txn.delete(scope_key)
            freed += 1
    long_keys.remove(txn, name.namespace_id, name.workflow_id.encode())
    return freed
