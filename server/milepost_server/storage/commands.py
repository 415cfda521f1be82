"""The commands, each as one transaction: gather what the rules need, let them decide, write what they say.

Every function takes a `WriteTransaction` and a command, and answers or raises a `StoreError`. All that can be refused
is refused before the first write; even so an engine undoes whatever a failing command wrote. Order of a Save's checks:
stub and replay, lease, expected_head, base and parent, limits and quota, write.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import msgspec

from milepost_server import rules
from milepost_server.errors import (
    NotFoundError,
    PreconditionError,
    ResourceError,
    StoreError,
)
from milepost_server.limits import Limits
from milepost_server.model import (
    AbandonForkCommand,
    AcquireLeaseCommand,
    Answer,
    AppendRecordsAnswer,
    AppendRecordsCommand,
    BatchSaveAnswer,
    BatchSaveCommand,
    BulkAnswer,
    CheckpointRow,
    Command,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowAnswer,
    DeleteWorkflowCommand,
    ForkAnswer,
    ForkCommand,
    ForkMode,
    IdRow,
    ProbeAnswer,
    ProbeCommand,
    PruneCommand,
    Record,
    RecordGroupRow,
    RecordOutcome,
    RefusedItem,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
    SaveAnswer,
    SaveCommand,
    ScopeRow,
    SendSignalCommand,
    SweepAnswer,
    SweepCommand,
    WorkflowChange,
    WorkflowRow,
    utf8_bytes,
)
from milepost_server.rules import LeaseUse
from milepost_server.storage import leases, lookups, signals
from milepost_server.storage.port import NameRow, ReadTransaction, ResolvedState, StateChange, WriteTransaction

ROOT_ORDINAL = 0
"""The number of scope "" under every name."""
ROWS_PER_CHECKPOINT = 6
"""Rows that deleting or copying one checkpoint touches, about; a slice's budget is counted in rows."""
ROWS_PER_KEPT = 2
"""Rows that passing over a checkpoint touches, about."""
NEEDS_BYTES_MAX = 4_096
"""What a prune carries of needed ancestors from slice to slice: a continue token must hold it."""
NEED_BYTES = 16
"""What a needed ancestor, or a key of one, takes in a token beside its text, at most."""

_NO_STATE = ResolvedState({}, {})
_replace = msgspec.structs.replace


def run(txn: WriteTransaction, command: Command, limits: Limits) -> Answer:
    """Run one command; a batch of Saves is run by its engine, item by item (`save_items`)."""
    return _COMMANDS[type(command)](txn, command, limits)


# Save.


def save(txn: WriteTransaction, command: SaveCommand, limits: Limits) -> SaveAnswer:
    """Store one checkpoint, once."""
    name = txn.find_name(command.namespace, command.workflow_id)
    workflow = lookups.present_workflow(txn, name)
    scope = lookups.present_scope(txn, name, workflow, command.scope)
    if name is not None and scope is not None and not command.is_id_generated:
        id_row = lookups.find_id(txn, name, scope, command.checkpoint_id)
        if id_row is not None:
            if workflow is None or not lookups.is_live(id_row, workflow):
                raise rules.refuse_deleted(command.checkpoint_id, id_row.sequence)
            existing = lookups.get_indexed(txn, workflow, id_row.sequence)
            return _save_existing(txn, command, limits, name, workflow, scope, existing)
    return _save_new(txn, command, limits, name, workflow, scope)


def save_items(command: BatchSaveCommand, run_item: Callable[[SaveCommand], Answer | StoreError]) -> BatchSaveAnswer:
    """Store the items of a batch in order, but those that build on one that failed.

    Args:
        command: What to store.
        run_item: Stores one, and returns its answer or its error.
    """
    outcomes: list[SaveAnswer | StoreError] = []
    failed = dict(command.failed)
    for number, item in enumerate(command.items, command.first_number):
        key = (item.namespace, item.workflow_id, item.scope, item.checkpoint_id)
        if isinstance(item, RefusedItem):
            outcome: Answer | StoreError = item.error
        else:
            predecessor = rules.failed_predecessor(item, failed)
            outcome = run_item(item) if predecessor is None else rules.refuse_after_failed(number, predecessor)
        if isinstance(outcome, StoreError):
            failed[key] = number
        else:
            failed.pop(key, None)
        outcomes.append(cast("SaveAnswer | StoreError", outcome))
    return BatchSaveAnswer(tuple(outcomes), failed)


def _save_new(
    txn: WriteTransaction,
    command: SaveCommand,
    limits: Limits,
    name: NameRow | None,
    workflow: WorkflowRow | None,
    scope: ScopeRow | None,
) -> SaveAnswer:
    fence = leases.check(txn, name, command.workflow_id, command.lease_token)
    head_id, head_sequence = lookups.head_of(workflow, scope)
    rules.check_expected_head(command.expected_head, head_id, head_sequence)
    parent_id = head_id if command.parent_id is None else command.parent_id
    base, parent = _find_base_and_parent(txn, command, parent_id, name, workflow, scope)
    _check_parent(txn, command, parent_id, parent, name, scope)
    rules.check_definition(workflow, command.definition)
    content = _resolve(txn, command, parent_id, base, parent, workflow)
    rules.check_content_limits(command, content, limits)
    is_manifest_new = _is_manifest_new(txn, command, limits)
    if workflow is None or name is None:
        name, workflow = _create_workflow(txn, command.namespace, command.workflow_id, name, limits)
    if scope is None:
        scope = _create_scope(txn, name, command.scope)
    sequence = workflow.last_sequence + 1
    node_id = _put_state(txn, workflow.family_id, content)
    row = rules.build_row(
        command,
        content,
        sequence=sequence,
        scope_ordinal=scope.ordinal,
        node_id=node_id,
        create_time_ms=txn.now_ms,
        sent_digest=rules.digest_sent(command),
    )
    had_checkpoints = scope.internal_id == workflow.internal_id and scope.checkpoint_count > 0
    txn.put_checkpoint(workflow, row)
    txn.put_id(
        name.name_id, scope.ordinal, row.checkpoint_id, IdRow(workflow.internal_id, sequence, step_count=row.step_count)
    )
    txn.put_scope(
        name.name_id,
        ScopeRow(
            scope.ordinal,
            scope.scope,
            workflow.internal_id,
            sequence,
            row.checkpoint_id,
            scope.checkpoint_count + 1 if had_checkpoints else 1,
        ),
    )
    waiting_count = _adopt_records(txn, workflow, row, command, limits)
    is_root = command.scope == ""
    workflow = _replace(
        workflow,
        revision=workflow.revision + 1,
        last_sequence=sequence,
        checkpoint_count=workflow.checkpoint_count + 1,
        scope_count=workflow.scope_count + (0 if had_checkpoints else 1),
        stored_bytes=workflow.stored_bytes + row.stored_bytes,
        waiting_record_count=workflow.waiting_record_count - waiting_count,
        definition=workflow.definition or command.definition,
        labels=workflow.labels if command.labels is None else command.labels,
        update_time_ms=txn.now_ms if is_root else workflow.update_time_ms,
        status=row.status if is_root else workflow.status,
        current_step=row.current_step if is_root else workflow.current_step,
        head_checkpoint_id=row.checkpoint_id if is_root else workflow.head_checkpoint_id,
        head_sequence=sequence if is_root else workflow.head_sequence,
        fingerprint=row.fingerprint if is_root else workflow.fingerprint,
        pending_signal_count=signals.consume(txn, workflow, command.consumed_signals),
    )
    txn.put_workflow(workflow)
    if is_manifest_new:
        txn.put_manifest(command.namespace, command.fingerprint, command.manifest)
    return SaveAnswer(
        row.checkpoint_id,
        sequence,
        parent_id,
        row.checkpoint_id,
        False,
        row.create_time_ms,
        workflow.revision,
        row.digest,
        workflow.incarnation,
        workflow.definition,
        _settle_lease(txn, command, name, fence),
        workflow.pending_signal_count,
        signals.pending(txn, workflow, limits),
    )


def _is_manifest_new(txn: ReadTransaction, command: SaveCommand, limits: Limits) -> bool:
    """Tell whether a Save brings a manifest that is to be stored; refuse one more than a namespace may have."""
    if not command.manifest or txn.has_manifest(command.namespace, command.fingerprint):
        return False
    count = txn.manifest_count(command.namespace) + 1
    if count > limits.manifests_max:
        raise ResourceError(
            "QUOTA_EXCEEDED",
            f"manifest: it would be number {count} of namespace {command.namespace!r}, at most "
            f"{limits.manifests_max} are allowed (manifests_max)",
            {"limit": "manifests_max", "allowed": limits.manifests_max, "found": count, "unit": "manifests"},
        )
    return True


def _settle_lease(txn: WriteTransaction, command: SaveCommand, name: NameRow, fence: leases.Fence) -> int:
    """Renew, release or end the lease as a Save that was made does; return how long it still runs."""
    if command.release_lease or fence.use is LeaseUse.OUTLIVED:
        leases.end(txn, name)
        return 0
    return leases.renew(txn, name, fence)


def _save_existing(
    txn: WriteTransaction,
    command: SaveCommand,
    limits: Limits,
    name: NameRow,
    workflow: WorkflowRow,
    scope: ScopeRow,
    existing: CheckpointRow,
) -> SaveAnswer:
    """Answer a replay, refuse other content, or put it in the place of the old where that was asked for."""
    head_id, head_sequence = lookups.head_of(workflow, scope)
    sent_digest = rules.digest_sent(command)
    if sent_digest == existing.sent_digest:
        return _replay(txn, command, limits, name, workflow, existing, head_id)
    parent_id = existing.parent_id if command.parent_id is None else command.parent_id
    base, parent = _find_base_and_parent(txn, command, parent_id, name, workflow, scope)
    content = _resolve_again(txn, command, parent_id, base, parent, workflow, existing)
    if content.digest == existing.digest:
        return _replay(txn, command, limits, name, workflow, existing, head_id)
    rules.check_replace(command, existing)
    fence = leases.check(txn, name, command.workflow_id, command.lease_token)
    rules.check_expected_head(command.expected_head, head_id, head_sequence)
    if parent_id != existing.parent_id:
        _check_parent(txn, command, parent_id, parent, name, scope)
    if parent is not None:
        rules.check_parent_is_older(parent_id, parent.sequence, existing.sequence)
    rules.check_definition(workflow, command.definition)
    rules.check_content_limits(command, content, limits)
    is_manifest_new = _is_manifest_new(txn, command, limits)
    node_id = _put_state(txn, workflow.family_id, content)
    row = rules.build_row(
        command,
        content,
        sequence=existing.sequence,
        scope_ordinal=existing.scope_ordinal,
        node_id=node_id,
        create_time_ms=existing.create_time_ms,
        sent_digest=sent_digest,
    )
    if existing.run_id != row.run_id:
        txn.delete_checkpoint(workflow, existing)
    txn.put_checkpoint(workflow, row)
    txn.release_state(workflow.family_id, existing.node_id)
    if row.step_count != existing.step_count:
        id_row = IdRow(workflow.internal_id, row.sequence, step_count=row.step_count)
        txn.put_id(name.name_id, row.scope_ordinal, row.checkpoint_id, id_row)
    _adopt_records(txn, workflow, row, command, limits)
    workflow = _replace(
        workflow,
        revision=workflow.revision + 1,
        stored_bytes=workflow.stored_bytes + row.stored_bytes - existing.stored_bytes,
        definition=workflow.definition or command.definition,
        labels=workflow.labels if command.labels is None else command.labels,
        pending_signal_count=signals.consume(txn, workflow, command.consumed_signals),
    )
    if is_manifest_new:
        txn.put_manifest(command.namespace, command.fingerprint, command.manifest)
    if row.checkpoint_id == workflow.head_checkpoint_id and command.scope == "":
        workflow = _replace(rules.with_head(workflow, row), update_time_ms=txn.now_ms)
    txn.put_workflow(workflow)
    return SaveAnswer(
        row.checkpoint_id,
        row.sequence,
        parent_id,
        head_id,
        False,
        row.create_time_ms,
        workflow.revision,
        row.digest,
        workflow.incarnation,
        workflow.definition,
        _settle_lease(txn, command, name, fence),
        workflow.pending_signal_count,
        signals.pending(txn, workflow, limits),
        True,
    )


def _replay(
    txn: ReadTransaction,
    command: SaveCommand,
    limits: Limits,
    name: NameRow,
    workflow: WorkflowRow,
    existing: CheckpointRow,
    head_id: str,
) -> SaveAnswer:
    """Answer a Save that had been stored before, whoever holds the lease by now. It renews and consumes nothing."""
    left_ms = leases.remaining_ms(txn, name, command.lease_token)
    return rules.replay_answer(existing, head_id, workflow, left_ms, signals.pending(txn, workflow, limits))


def _find_base_and_parent(
    txn: WriteTransaction,
    command: SaveCommand,
    parent_id: str,
    name: NameRow | None,
    workflow: WorkflowRow | None,
    scope: ScopeRow | None,
) -> tuple[CheckpointRow | None, CheckpointRow | None]:
    """Read the base, which must be live and as the Save knows it, and the parent, where it is."""
    base_id = command.base_checkpoint_id
    base = lookups.find_checkpoint(txn, name, workflow, scope, base_id) if base_id is not None else None
    if base_id is not None and base is None:
        raise PreconditionError(
            "BASE_NOT_FOUND",
            f"base_checkpoint_id: there is no checkpoint {base_id!r} in this scope; send the state in full",
            {"base_checkpoint_id": base_id},
        )
    if base is not None:
        rules.check_base(command, base)
    if parent_id and parent_id == base_id:
        return base, base
    return base, lookups.find_checkpoint(txn, name, workflow, scope, parent_id) if parent_id else None


def _check_parent(
    txn: WriteTransaction,
    command: SaveCommand,
    parent_id: str,
    parent: CheckpointRow | None,
    name: NameRow | None,
    scope: ScopeRow | None,
) -> None:
    """Refuse a parent that is neither live nor remembered, or is needed for what it had finished and is gone."""
    if not parent_id or parent is not None:
        return
    stub = lookups.find_id(txn, name, scope, parent_id)
    if stub is None:
        raise PreconditionError(
            "PARENT_NOT_FOUND",
            f"parent_id: checkpoint {parent_id!r} was never saved in this scope",
            {"parent_id": parent_id},
        )
    if stub.step_count and command.base_checkpoint_id is None:
        raise PreconditionError(
            "PARENT_NOT_FOUND",
            f"parent_id: checkpoint {parent_id!r} has been deleted with its {stub.step_count} completed steps, which "
            "this Save would go on from; name a parent that is there",
            {"parent_id": parent_id},
        )


def _resolve(
    txn: WriteTransaction,
    command: SaveCommand,
    parent_id: str,
    base: CheckpointRow | None,
    parent: CheckpointRow | None,
    workflow: WorkflowRow | None,
) -> rules.Content:
    row = base or parent
    state = txn.resolve_state(workflow.family_id, row.node_id) if row and workflow else _NO_STATE
    return rules.resolve_content(command, parent_id, rules.Basis.of(row), state.entries, state.steps)


def _resolve_again(
    txn: WriteTransaction,
    command: SaveCommand,
    parent_id: str,
    base: CheckpointRow | None,
    parent: CheckpointRow | None,
    workflow: WorkflowRow,
    existing: CheckpointRow,
) -> rules.Content:
    """Resolve the content of a Save whose id is taken.

    A full one told its steps against a parent that may have been pruned since. What the parent had finished can then
    only be known from the stored checkpoint itself: the steps before those that were sent, if the stored ones end with
    just these.
    """
    if base is None and parent is None and parent_id and parent_id == existing.parent_id:
        stored = tuple(txn.resolve_state(workflow.family_id, existing.node_id).steps)
        if stored[len(stored) - len(command.steps_added) :] == command.steps_added:
            command = _replace(command, steps_added=stored)
    return _resolve(txn, command, parent_id, base, parent, workflow)


def _put_state(txn: WriteTransaction, family_id: int, content: rules.Content) -> int:
    change = StateChange(
        prior_node_id=content.basis.node_id,
        changed=content.changed,
        removed=content.removed,
        steps_added=content.steps_added,
    )
    if change.is_empty and change.prior_node_id:
        txn.retain_state(family_id, change.prior_node_id)
        return change.prior_node_id
    return txn.put_state(family_id, change)


# Records.


def append_records(txn: WriteTransaction, command: AppendRecordsCommand, limits: Limits) -> AppendRecordsAnswer:
    """Append records to a checkpoint id, also before that checkpoint exists."""
    name = txn.find_name(command.namespace, command.workflow_id)
    workflow = lookups.present_workflow(txn, name)
    scope = lookups.present_scope(txn, name, workflow, command.scope)
    id_row = lookups.find_id(txn, name, scope, command.checkpoint_id)
    is_live = id_row is not None and workflow is not None and lookups.is_live(id_row, workflow)
    if id_row is not None and not is_live:
        raise rules.refuse_deleted(command.checkpoint_id, id_row.sequence)
    fence = leases.check(txn, name, command.workflow_id, command.lease_token)
    if not is_live and command.require_checkpoint:
        raise PreconditionError(
            "RECORD_CHECKPOINT_MISSING",
            f"checkpoint_id: there is no checkpoint {command.checkpoint_id!r} in this scope, and require_checkpoint "
            "was set",
            {"checkpoint_id": command.checkpoint_id},
        )
    if workflow is None or name is None:
        name, workflow = _create_workflow(txn, command.namespace, command.workflow_id, name, limits)
    if scope is None:
        scope = _create_scope(txn, name, command.scope)
    outcomes, created_count = _put_records(
        txn, workflow, scope.ordinal, command.checkpoint_id, command.records, limits, is_waiting=not is_live
    )
    sequence = id_row.sequence if id_row is not None else 0
    if all(outcome is RecordOutcome.EXISTING for outcome in outcomes):
        return AppendRecordsAnswer(
            outcomes, workflow.revision, workflow.incarnation, workflow.definition, sequence, is_replayed=True
        )
    waiting_count = workflow.waiting_record_count + (0 if is_live else created_count)
    if waiting_count > limits.waiting_records_max:
        raise ResourceError(
            "QUOTA_EXCEEDED",
            f"records: {waiting_count} records of workflow {command.workflow_id!r} would wait for checkpoints that do "
            f"not exist; at most {limits.waiting_records_max} may (waiting_records_max)",
            {
                "limit": "waiting_records_max",
                "allowed": limits.waiting_records_max,
                "found": waiting_count,
                "unit": "records",
            },
        )
    workflow = _replace(workflow, revision=workflow.revision + 1, waiting_record_count=waiting_count)
    txn.put_workflow(workflow)
    leases.end_outlived(txn, name, fence)
    leases.renew(txn, name, fence)
    return AppendRecordsAnswer(outcomes, workflow.revision, workflow.incarnation, workflow.definition, sequence)


def _put_records(
    txn: WriteTransaction,
    workflow: WorkflowRow,
    scope_ordinal: int,
    checkpoint_id: str,
    records: tuple[Record, ...],
    limits: Limits,
    *,
    is_waiting: bool,
) -> tuple[tuple[RecordOutcome, ...], int]:
    """Store records under first-wins or overwrite; return what became of each, and how many are new."""
    internal_id = workflow.internal_id
    group = txn.find_record_group(internal_id, scope_ordinal, checkpoint_id)
    if group is None:
        group = RecordGroupRow(checkpoint_id, 0, 0, is_waiting, txn.now_ms)
        if is_waiting:
            due_ms = txn.now_ms + limits.waiting_records_ttl_ms
            txn.schedule_waiting_expiry(internal_id, scope_ordinal, checkpoint_id, due_ms)
    outcomes: list[RecordOutcome] = []
    written: dict[tuple[str, int], Record] = {}
    record_count, record_bytes = group.record_count, group.record_bytes
    for record in records:
        key = (record.task_id, record.index)
        stored = written.get(key) or txn.find_record(internal_id, scope_ordinal, checkpoint_id, *key)
        if stored is not None and not record.overwrite:
            outcomes.append(RecordOutcome.EXISTING)
            continue
        if stored is None:
            outcomes.append(RecordOutcome.CREATED)
            record_count += 1
        else:
            outcomes.append(RecordOutcome.OVERWRITTEN)
            record_bytes -= stored.size_bytes
        record_bytes += record.size_bytes
        written[key] = record
    created_count = record_count - group.record_count
    group = RecordGroupRow(checkpoint_id, record_count, record_bytes, is_waiting, group.create_time_ms)
    if written:
        rules.check_record_limits(group, limits)
        for record in written.values():
            txn.put_record(internal_id, scope_ordinal, checkpoint_id, _replace(record, overwrite=False))
        txn.put_record_group(internal_id, scope_ordinal, group)
    return tuple(outcomes), created_count


def _adopt_records(
    txn: WriteTransaction, workflow: WorkflowRow, row: CheckpointRow, command: SaveCommand, limits: Limits
) -> int:
    """Store a Save's own records beside those that waited for it; return how many waited."""
    if not workflow.waiting_record_count and not command.records:
        return 0
    group = txn.find_record_group(workflow.internal_id, row.scope_ordinal, row.checkpoint_id)
    waiting_count = group.record_count if group is not None and group.is_waiting else 0
    if group is not None and group.is_waiting:
        txn.put_record_group(workflow.internal_id, row.scope_ordinal, _replace(group, is_waiting=False))
    if command.records:
        _put_records(txn, workflow, row.scope_ordinal, row.checkpoint_id, command.records, limits, is_waiting=False)
    return waiting_count


# Deleting.


def delete_workflow(txn: WriteTransaction, command: DeleteWorkflowCommand, limits: Limits) -> DeleteWorkflowAnswer:
    """Unlink a workflow: one small commit, whatever its size."""
    name = txn.find_name(command.namespace, command.workflow_id)
    workflow = lookups.present_workflow(txn, name)
    if name is None or (workflow is None and not name.has_lease):
        # Nothing is there to be guarded, so a repeated delete is none whose lease was lost.
        return DeleteWorkflowAnswer(False, 0)
    leases.check(txn, name, command.workflow_id, command.lease_token)
    if name.has_lease:
        name = leases.end(txn, name)
    if workflow is None:
        txn.forget_name_if_unused(name)
        return DeleteWorkflowAnswer(False, 0)
    # A fork that is being made under this name began before the workflow was saved: it must not be published now.
    txn.put_name(_replace(name, internal_id=0, building_id=0))
    txn.discard_workflow(workflow, forget_ids=False)
    gone = _replace(workflow, revision=workflow.revision + 1)
    return DeleteWorkflowAnswer(rules.is_visible(workflow), workflow.checkpoint_count, rules.change_of(gone))


def delete_ids(txn: WriteTransaction, command: DeleteIdsCommand, limits: Limits) -> BulkAnswer:
    """Delete checkpoints of one scope by id, passing over those that are not there."""
    name, workflow = lookups.require_workflow(txn, command.namespace, command.workflow_id)
    fence = leases.check(txn, name, command.workflow_id, command.lease_token)
    scope = txn.find_scope(name.name_id, command.scope)
    if scope is None:
        return BulkAnswer(0, None)
    rows = []
    for checkpoint_id in dict.fromkeys(command.checkpoint_ids):
        row = lookups.find_checkpoint(txn, name, workflow, scope, checkpoint_id)
        if row is not None:
            rows.append(row)
    if not rows:
        return BulkAnswer(0, None)
    name = leases.end_outlived(txn, name, fence)
    return BulkAnswer(len(rows), None, (_delete_rows(txn, name, workflow, rows),))


def delete_run(txn: WriteTransaction, command: DeleteRunCommand, limits: Limits) -> BulkAnswer:
    """Delete one slice of an execution's checkpoints, in one workflow or in all of a namespace."""
    only_id = 0
    if command.workflow_id:
        only_name, only = lookups.require_workflow(txn, command.namespace, command.workflow_id)
        leases.check(txn, only_name, command.workflow_id, command.lease_token)
        only_id = only.internal_id
    namespace_id = txn.find_namespace(command.namespace)
    if namespace_id is None:
        return BulkAnswer(0, None)
    after = (command.position[0], command.position[1]) if command.position else (only_id, 0)
    rows_by_workflow: dict[int, list[CheckpointRow]] = {}
    position: tuple[int, ...] | None = None
    found = txn.run_checkpoints(namespace_id, command.run_id, after)
    for examined, (internal_id, sequence) in enumerate(found, start=1):
        if only_id and internal_id != only_id:
            break
        row = txn.get_checkpoint(internal_id, sequence)
        if row is not None and row.create_time_ms <= command.time_ms_max:
            rows_by_workflow.setdefault(internal_id, []).append(row)
        if examined * ROWS_PER_CHECKPOINT >= limits.slice_rows_max:
            position = (internal_id, sequence)
            break
    deleted = 0
    changes: list[WorkflowChange] = []
    for internal_id, rows in rows_by_workflow.items():
        workflow = txn.get_workflow(internal_id)
        name = txn.find_name(workflow.namespace, workflow.workflow_id) if workflow is not None else None
        if workflow is None or name is None or name.internal_id != internal_id:
            continue
        if not only_id and leases.state_of(txn, name, live_only=True) is not None:
            continue
        fence = leases.check(txn, name, workflow.workflow_id, command.lease_token)
        changes.append(_delete_rows(txn, leases.end_outlived(txn, name, fence), workflow, rows))
        deleted += len(rows)
    return BulkAnswer(deleted, position, tuple(changes))


def prune(txn: WriteTransaction, command: PruneCommand, limits: Limits) -> BulkAnswer:
    """Delete one slice of what is older than the newest N of every scope and is not needed by these.

    Every scope is walked once, from its newest checkpoint to its oldest, over all slices: those that are kept are
    counted on the way, and what they need of their ancestors is taken along.
    """
    name, workflow = lookups.require_workflow(txn, command.namespace, command.workflow_id)
    if command.position and command.position[0] != workflow.internal_id:
        # Deleted and made again since the first slice: all that is there was saved later.
        return BulkAnswer(0, None)
    internal_id = workflow.internal_id
    sequence_max, from_ordinal = command.position[1:3] or (workflow.last_sequence, 0)
    rows: list[CheckpointRow] = []
    spent = 0
    position: tuple[int, ...] | None = None
    needs: _Needs = {}
    for scope in list(itertools.islice(txn.scopes(name.name_id, from_ordinal), limits.slice_rows_max)):
        if spent >= limits.slice_rows_max:
            position = (internal_id, sequence_max, scope.ordinal, 0)
            break
        spent += 1
        from_ordinal = scope.ordinal + 1
        if scope.internal_id != internal_id or scope.checkpoint_count <= command.keep_last:
            continue
        walk = _PruneWalk(txn, name, workflow, scope, command.keep_last, sequence_max)
        if command.position and scope.ordinal == command.position[2]:
            spent += walk.go_on(command.position, command.needs, limits.slice_rows_max)
        spent = walk.run(rows, spent, limits.slice_rows_max)
        if walk.next_sequence is not None:
            position, needs = walk.position()
            break
    else:
        if spent >= limits.slice_rows_max:
            # As many scopes as a slice may look at: there may be more.
            position = (internal_id, sequence_max, from_ordinal, 0)
    changes: tuple[WorkflowChange, ...] = ()
    if rows and not command.is_dry_run:
        changes = (_delete_rows(txn, name, workflow, rows),)
    return BulkAnswer(len(rows), position, changes, tuple((at, tuple(sorted(keys))) for at, keys in needs.items()))


_Needs = dict[int, set[str]]
"""What is needed of older checkpoints: their sequences, with the entries wanted of them or their ancestors."""


class _PruneWalk:
    """The walk of a prune through one scope, from the newest checkpoint to the oldest.

    Checkpoints saved since the prune began count as kept beyond the N, so that every slice of one prune means the same
    checkpoints.
    """

    def __init__(
        self,
        txn: ReadTransaction,
        name: NameRow,
        workflow: WorkflowRow,
        scope: ScopeRow,
        keep_last: int,
        sequence_max: int,
    ) -> None:
        self.next_sequence: int | None = None
        self._txn = txn
        self._name = name
        self._workflow = workflow
        self._scope = scope
        self._keep_last = keep_last
        self._sequence_max = sequence_max
        self._start: int | None = None
        self._walked_to: int | None = None
        """Down to it nothing is deleted, and nothing counts as work: it was walked before."""
        self._counted = 0
        self._kept_from = 0
        self._seen_max = workflow.last_sequence
        self._needs: _Needs = {}

    def go_on(self, position: tuple[int, ...], needs: Iterable[tuple[int, Iterable[str]]], rows_max: int) -> int:
        """Take up where the slice before ended; return how many rows that took."""
        next_sequence = position[3]
        if len(position) == 4:
            self._walked_to = next_sequence or None
            return 0
        self._start = next_sequence
        self._counted, self._kept_from, seen_max = position[4:]
        # What is newer was met already; only a token that somebody made up could name it.
        self._needs = {at: set(keys) for at, keys in needs if at <= next_sequence}
        spent = self._walk_newer(seen_max, next_sequence, rows_max)
        if spent >= rows_max:
            # Too much has come since: the scope is walked anew, in slices.
            self._start, self._counted, self._kept_from, self._needs = None, 0, 0, {}
            return 0
        return spent

    def _walk_newer(self, seen_max: int, next_sequence: int, rows_max: int) -> int:
        """Find what checkpoints need that were saved since the slice before."""
        spent = 0
        newer = itertools.takewhile(lambda sequence: sequence > seen_max, self._sequences(None))
        for sequence in itertools.islice(newer, rows_max // ROWS_PER_KEPT + 1):
            row = lookups.get_indexed(self._txn, self._workflow, sequence)
            if row.history_entries:
                self._needs[sequence] = set(row.history_entries)
            spent += ROWS_PER_KEPT
        while spent < rows_max and (above := [sequence for sequence in self._needs if sequence > next_sequence]):
            sequence = max(above)
            wanted = self._needs.pop(sequence)
            row = lookups.get_indexed(self._txn, self._workflow, sequence)
            if self._kept_from <= sequence <= seen_max:
                # What this one needs itself was taken along when it was walked.
                wanted -= set(row.history_entries)
            if wanted:
                self._pass_on(row, wanted)
                spent += ROWS_PER_CHECKPOINT
        return spent

    def run(self, rows: list[CheckpointRow], spent: int, rows_max: int) -> int:
        """Walk until as many rows are spent as a slice may, or to the end; add what is to be deleted to `rows`."""
        for sequence in self._sequences(self._start):
            is_walked = self._walked_to is not None and sequence > self._walked_to
            if spent >= rows_max and not is_walked:
                self.next_sequence = sequence
                break
            wanted = self._needs.pop(sequence, None)
            is_kept = sequence > self._sequence_max or self._counted < self._keep_last
            if is_kept and sequence <= self._sequence_max:
                self._counted += 1
            if is_walked and not is_kept and wanted is None:
                continue
            row = lookups.get_indexed(self._txn, self._workflow, sequence)
            if is_kept:
                self._kept_from = sequence
                wanted = (wanted or set()) | set(row.history_entries)
            if wanted is None:
                rows.append(row)
            elif wanted:
                self._pass_on(row, wanted)
            if not is_walked:
                spent += ROWS_PER_CHECKPOINT if wanted or wanted is None else ROWS_PER_KEPT
        return spent

    def _pass_on(self, row: CheckpointRow, wanted: set[str]) -> None:
        """Leave to a checkpoint's parent what is wanted of it and it has not stored."""
        wanted = wanted - self._txn.lookup_entries(self._workflow.family_id, row.node_id, wanted).keys()
        if not wanted:
            return
        parent = lookups.find_ancestor(self._txn, self._name, self._workflow, self._scope, row)
        if parent is not None:
            self._needs.setdefault(parent.sequence, set()).update(wanted)

    def _sequences(self, start: int | None) -> Iterator[int]:
        return self._txn.sequences(self._workflow.internal_id, self._scope.ordinal, newest_first=True, start=start)

    def position(self) -> tuple[tuple[int, ...], _Needs]:
        """Return where the next slice goes on; only what must be walked again where its needs are too many to carry."""
        assert self.next_sequence is not None
        place = (self._workflow.internal_id, self._sequence_max, self._scope.ordinal, self.next_sequence)
        keys = [key for wanted in self._needs.values() for key in wanted]
        size_bytes = NEED_BYTES * (len(self._needs) + len(keys)) + sum(map(utf8_bytes, keys))
        if size_bytes > NEEDS_BYTES_MAX:
            return place, {}
        return (*place, self._counted, self._kept_from, self._seen_max), self._needs


def _delete_rows(
    txn: WriteTransaction, name: NameRow, workflow: WorkflowRow, rows: list[CheckpointRow]
) -> WorkflowChange:
    """Delete checkpoints of one workflow: leave stubs, let go of their states, and find the heads anew."""
    counts: dict[str, int] = {}
    for row in rows:
        txn.delete_checkpoint(workflow, row)
        stub = IdRow(workflow.internal_id, row.sequence, txn.now_ms, row.step_count)
        txn.put_id(name.name_id, row.scope_ordinal, row.checkpoint_id, stub)
        txn.release_state(workflow.family_id, row.node_id)
        if txn.find_record_group(workflow.internal_id, row.scope_ordinal, row.checkpoint_id) is not None:
            txn.discard_records(workflow.internal_id, row.scope_ordinal, row.checkpoint_id)
        counts[row.scope] = counts.get(row.scope, 0) + 1
    name = txn.schedule_stub_expiry(name)
    workflow = _replace(
        workflow,
        revision=workflow.revision + 1,
        checkpoint_count=workflow.checkpoint_count - len(rows),
        stored_bytes=workflow.stored_bytes - sum(row.stored_bytes for row in rows),
    )
    for scope_name, count in counts.items():
        scope = txn.find_scope(name.name_id, scope_name)
        if scope is None:
            raise StoreError(
                "RECORD_DAMAGED",
                f"scope {scope_name!r} of workflow {workflow.workflow_id!r} is missing though it has checkpoints",
                {"table": "scopes", "key": f"{workflow.name_id:016x}"},
            )
        head = _newest(txn, workflow, scope.ordinal)
        txn.put_scope(
            name.name_id,
            ScopeRow(
                scope.ordinal,
                scope.scope,
                workflow.internal_id,
                head.sequence if head is not None else 0,
                head.checkpoint_id if head is not None else "",
                scope.checkpoint_count - count,
            ),
        )
        if head is None:
            workflow = _replace(workflow, scope_count=workflow.scope_count - 1)
        if scope_name == "":
            workflow = rules.with_head(workflow, head)
    txn.put_workflow(workflow)
    return rules.change_of(workflow)


def _newest(txn: ReadTransaction, workflow: WorkflowRow, scope_ordinal: int) -> CheckpointRow | None:
    for sequence in txn.sequences(workflow.internal_id, scope_ordinal, newest_first=True, start=None):
        return lookups.get_indexed(txn, workflow, sequence)
    return None


# Fork.


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
        target_name, target = _create_building(txn, command, source, source_text, target_name, limits, first)
    target_name = leases.end_outlived(txn, target_name, fence)
    return _copy_slice(txn, command, limits, source_name, source, target_name, target, next_sequence)


def _create_building(
    txn: WriteTransaction,
    command: ForkCommand,
    source: WorkflowRow,
    source_text: str,
    target_name: NameRow | None,
    limits: Limits,
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
        incarnation=_incarnation(txn, internal_id),
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
        spent += ROWS_PER_CHECKPOINT + _copy_checkpoint(txn, source, target_name, target, scope, row)
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
    scope = txn.find_scope(target_name.name_id, row.scope) or _create_scope(txn, target_name, row.scope)
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


# Background.


def sweep(txn: WriteTransaction, command: SweepCommand, limits: Limits) -> SweepAnswer:
    """Free one slice of what was deleted."""
    return txn.sweep(min(command.rows_max, limits.slice_rows_max), command.passed_over, limits)


def probe(txn: WriteTransaction, command: ProbeCommand, limits: Limits) -> ProbeAnswer:
    """Use up a number, so that there is something to flush."""
    txn.new_id()
    return ProbeAnswer()


# Shared steps.


def _create_workflow(
    txn: WriteTransaction, namespace: str, workflow_id: str, name: NameRow | None, limits: Limits
) -> tuple[NameRow, WorkflowRow]:
    namespace_id = txn.intern_namespace(namespace, limits.namespaces_max)
    if name is None:
        name = NameRow(txn.new_id(), namespace_id, workflow_id)
    internal_id = txn.new_id()
    name = _replace(name, internal_id=internal_id)
    workflow = WorkflowRow(
        internal_id=internal_id,
        name_id=name.name_id,
        namespace_id=namespace_id,
        namespace=namespace,
        workflow_id=workflow_id,
        family_id=internal_id,
        incarnation=_incarnation(txn, internal_id),
        create_time_ms=txn.now_ms,
    )
    txn.put_name(name)
    return name, workflow


def _create_scope(txn: WriteTransaction, name: NameRow, scope: str) -> ScopeRow:
    row = ScopeRow(ROOT_ORDINAL if scope == "" else txn.new_id(), scope)
    txn.put_scope(name.name_id, row)
    return row


def _incarnation(txn: WriteTransaction, internal_id: int) -> str:
    """Name an incarnation: internal ids are never given twice in a store, chance tells its copies and backups apart.

    A time would not: clocks are set back, and copies of a store may be at work at once.
    """
    return f"{internal_id:x}-{txn.random_bytes().hex()}"


_COMMANDS: dict[type, Callable[[Any, Any, Limits], Answer]] = {
    SaveCommand: save,
    AppendRecordsCommand: append_records,
    DeleteWorkflowCommand: delete_workflow,
    DeleteIdsCommand: delete_ids,
    DeleteRunCommand: delete_run,
    PruneCommand: prune,
    ForkCommand: fork,
    AbandonForkCommand: abandon_fork,
    AcquireLeaseCommand: leases.acquire,
    RenewLeaseCommand: leases.renew_lease,
    ReleaseLeaseCommand: leases.release,
    SendSignalCommand: signals.send,
    SweepCommand: sweep,
    ProbeCommand: probe,
}
