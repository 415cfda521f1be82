"""Forks: a target that nobody sees is built slice by slice, and published by the last one or thrown away."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from milepost_server import rules
from milepost_server.errors import NotFoundError, PreconditionError, StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    AbandonForkCommand,
    BulkAnswer,
    CheckpointRow,
    ForkAnswer,
    ForkCommand,
    ForkMode,
    IdRow,
    ScopeRow,
    WorkflowRow,
)
from milepost_server.storage import creation, leases, lookups
from milepost_server.storage.port import NameRow, ReadTransaction, WriteTransaction

_replace = msgspec.structs.replace


def fork(txn: WriteTransaction, command: ForkCommand, limits: Limits) -> ForkAnswer:
    """Copy one slice of a fork into a target that nobody sees until the last slice publishes it."""
    source_text = msgspec.json.encode(
        (command.workflow_id, command.scope, command.checkpoint_id, int(command.mode))
    ).decode()
    target_name = txn.find_name(command.namespace, command.target_workflow_id)
    if target_name is not None and target_name.internal_id:
        target = txn.get_workflow(target_name.internal_id)
        is_retry = bool(command.fork_id) and not command.position
        if target is not None and is_retry and (target.fork_id, target.fork_source) == (command.fork_id, source_text):
            return ForkAnswer(target, True, None)
        raise StoreError(
            "WORKFLOW_EXISTS",
            f"target_workflow_id: workflow {command.target_workflow_id!r} exists already",
            {"workflow_id": command.target_workflow_id},
        )
    # Whoever has taken the lease of the target before it exists is the one to make it.
    fence = leases.check(txn, target_name, command.target_workflow_id, 0)
    source_name, source = lookups.require_workflow(txn, command.namespace, command.workflow_id)
    if command.position:
        target_id, source_id, next_sequence = command.position
        building = txn.get_workflow(target_id)
        if source.internal_id != source_id or target_name is None or building is None:
            raise NotFoundError(
                "WORKFLOW_NOT_FOUND",
                f"workflow {command.workflow_id!r} was deleted while it was being forked",
                {"namespace": command.namespace, "workflow_id": command.workflow_id},
            )
        if target_name.building_id != target_id:
            raise PreconditionError(
                "WORKFLOW_EXISTS",
                f"target_workflow_id: another fork to {command.target_workflow_id!r} is under way",
                {"workflow_id": command.target_workflow_id},
            )
        target = building
    else:
        first = lookups.require_checkpoint(txn, source_name, source, command.scope, command.checkpoint_id)
        next_sequence = first.sequence
        target_name, target = _create_building(txn, command, source, source_text, target_name, first)
    target_name = leases.end_outlived(txn, target_name, fence)
    return _copy_slice(txn, command, limits, source_name, source, target_name, target, next_sequence)


def _create_building(
    txn: WriteTransaction,
    command: ForkCommand,
    source: WorkflowRow,
    source_text: str,
    target_name: NameRow | None,
    first: CheckpointRow,
) -> tuple[NameRow, WorkflowRow]:
    if target_name is None:
        name_id = txn.new_id()
        target_name = NameRow(name_id, source.namespace_id, command.target_workflow_id)
    internal_id = txn.new_id()
    target_name = _replace(target_name, building_id=internal_id)
    target = WorkflowRow(
        internal_id=internal_id,
        name_id=target_name.name_id,
        namespace_id=source.namespace_id,
        namespace=command.namespace,
        workflow_id=command.target_workflow_id,
        family_id=source.family_id,
        incarnation=creation.new_incarnation(txn, internal_id),
        create_time_ms=txn.now_ms,
        last_sequence=first.sequence,
        definition=source.definition,
        labels=source.labels,
        forked_from=command.workflow_id,
        fork_id=command.fork_id,
        fork_source=source_text,
    )
    txn.put_name(target_name)
    txn.put_workflow(target)
    txn.note_building(internal_id, is_building=True)
    return target_name, target


def _copy_slice(
    txn: WriteTransaction,
    command: ForkCommand,
    limits: Limits,
    source_name: NameRow,
    source: WorkflowRow,
    target_name: NameRow,
    target: WorkflowRow,
    next_sequence: int,
) -> ForkAnswer:
    """Copy checkpoints from `next_sequence` towards older ones until the budget is spent or there are no more."""
    spent = 0
    position: tuple[int, ...] | None = None
    scopes: dict[str, ScopeRow] = {}
    for row in _fork_line(txn, command, source_name, source, next_sequence):
        if spent >= limits.slice_rows_max:
            position = (target.internal_id, source.internal_id, row.sequence)
            break
        scope = scopes.get(row.scope) or _fork_scope(txn, target_name, target, row)
        if scope.checkpoint_count == 0:
            target = _replace(target, scope_count=target.scope_count + 1)
        scopes[row.scope] = _replace(scope, checkpoint_count=scope.checkpoint_count + 1)
        spent += lookups.ROWS_PER_CHECKPOINT + _copy_checkpoint(txn, source, target_name, target, scope, row)
        target = _replace(target, checkpoint_count=target.checkpoint_count + 1)
        if row.scope == "" and not target.head_checkpoint_id:
            target = _replace(rules.with_head(target, row), update_time_ms=txn.now_ms)
    for scope in scopes.values():
        txn.put_scope(target_name.name_id, scope)
    if position is not None:
        txn.put_workflow(target)
        return ForkAnswer(None, False, position)
    target = _replace(target, revision=1)
    txn.put_workflow(target)
    txn.put_name(_replace(target_name, internal_id=target.internal_id, building_id=0))
    txn.note_building(target.internal_id, is_building=False)
    return ForkAnswer(target, False, None)


def _fork_line(
    txn: ReadTransaction, command: ForkCommand, name: NameRow, source: WorkflowRow, next_sequence: int
) -> Iterator[CheckpointRow]:
    """Yield what a fork copies, from `next_sequence` on: the line of ancestors, or everything that is older."""
    if command.mode is ForkMode.ALL_UP_TO:
        for sequence in txn.sequences(source.internal_id, None, newest_first=True, start=next_sequence):
            yield lookups.get_indexed(txn, source, sequence)
        return
    scope = txn.find_scope(name.name_id, command.scope)
    row = txn.get_checkpoint(source.internal_id, next_sequence)
    while row is not None:
        yield row
        row = lookups.find_ancestor(txn, name, source, scope, row)


def _fork_scope(txn: WriteTransaction, target_name: NameRow, target: WorkflowRow, row: CheckpointRow) -> ScopeRow:
    """Return the target's scope for a row. Copying goes from newest to oldest: the first row of a scope is its head."""
    scope = txn.find_scope(target_name.name_id, row.scope) or creation.create_scope(txn, target_name, row.scope)
    if scope.internal_id == target.internal_id and scope.checkpoint_count:
        return scope
    return ScopeRow(scope.ordinal, scope.scope, target.internal_id, row.sequence, row.checkpoint_id, 0)


def _copy_checkpoint(
    txn: WriteTransaction,
    source: WorkflowRow,
    target_name: NameRow,
    target: WorkflowRow,
    scope: ScopeRow,
    row: CheckpointRow,
) -> int:
    """Copy one checkpoint's rows, sharing its state; return how many records went along."""
    copy = _replace(row, scope_ordinal=scope.ordinal, stored_bytes=0)
    stub = lookups.find_id(txn, target_name, scope, row.checkpoint_id)
    txn.retain_state(target.family_id, row.node_id)
    txn.put_checkpoint(target, copy)
    txn.put_id(
        target_name.name_id,
        scope.ordinal,
        row.checkpoint_id,
        IdRow(
            target.internal_id,
            row.sequence,
            step_count=row.step_count,
            prior=None if stub is None else _replace(stub, prior=None),
        ),
    )
    group = txn.find_record_group(source.internal_id, row.scope_ordinal, row.checkpoint_id)
    if group is None:
        return 0
    for record in txn.records(source.internal_id, row.scope_ordinal, row.checkpoint_id):
        txn.put_record(target.internal_id, scope.ordinal, row.checkpoint_id, record)
    txn.put_record_group(target.internal_id, scope.ordinal, group)
    return group.record_count


def abandon_fork(txn: WriteTransaction, command: AbandonForkCommand, limits: Limits) -> BulkAnswer:
    """Throw away an unpublished target, with the ids it took: those that were stubs are stubs again."""
    target = txn.get_workflow(command.target_internal_id)
    name = txn.find_name(target.namespace, target.workflow_id) if target is not None else None
    if target is None or name is None or name.internal_id == target.internal_id:
        return BulkAnswer(0, None)
    if name.building_id == target.internal_id:
        txn.put_name(_replace(name, building_id=0))
    txn.note_building(target.internal_id, is_building=False)
    txn.discard_workflow(target, forget_ids=True)
    return BulkAnswer(target.checkpoint_count, None)
