"""The commands, each as one transaction: gather what the rules need, let them decide, write what they say.

Every function takes a `WriteTransaction` and a command, and answers or raises a `StoreError`. All that can be refused
is refused before the first write; even so an engine undoes whatever a failing command wrote. Order of a Save's checks:
stub and replay, lease, expected_head, base and parent, limits and quota, write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec

from milepost_server import rules
from milepost_server.errors import PreconditionError, ResourceError, StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    AbandonForkCommand,
    AcquireLeaseCommand,
    Answer,
    AppendRecordsAnswer,
    AppendRecordsCommand,
    BatchSaveAnswer,
    BatchSaveCommand,
    CheckpointRow,
    Command,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowCommand,
    ForkCommand,
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
    WorkflowRow,
)
from milepost_server.rules import LeaseUse
from milepost_server.storage import creation, deletes, forks, leases, lookups, signals
from milepost_server.storage.port import NameRow, ReadTransaction, ResolvedState, StateChange, WriteTransaction

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
        name, workflow = creation.create_workflow(txn, command.namespace, command.workflow_id, name, limits)
    if scope is None:
        scope = creation.create_scope(txn, name, command.scope)
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
    left_ms = _settle_lease(txn, command, name, fence)
    return rules.save_answer(row, row.checkpoint_id, workflow, left_ms, signals.pending(txn, workflow, limits))


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
    left_ms = _settle_lease(txn, command, name, fence)
    pending = signals.pending(txn, workflow, limits)
    return rules.save_answer(row, head_id, workflow, left_ms, pending, is_replaced=True)


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
    pending = signals.pending(txn, workflow, limits)
    return rules.save_answer(existing, head_id, workflow, left_ms, pending, is_replayed=True)


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
        name, workflow = creation.create_workflow(txn, command.namespace, command.workflow_id, name, limits)
    if scope is None:
        scope = creation.create_scope(txn, name, command.scope)
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


# Background.


def sweep(txn: WriteTransaction, command: SweepCommand, limits: Limits) -> SweepAnswer:
    """Free one slice of what was deleted."""
    return txn.sweep(min(command.rows_max, limits.slice_rows_max), command.passed_over, limits)


def probe(txn: WriteTransaction, command: ProbeCommand, limits: Limits) -> ProbeAnswer:
    """Use up a number, so that there is something to flush."""
    txn.new_id()
    return ProbeAnswer()


_COMMANDS: dict[type, Callable[[Any, Any, Limits], Answer]] = {
    SaveCommand: save,
    AppendRecordsCommand: append_records,
    DeleteWorkflowCommand: deletes.delete_workflow,
    DeleteIdsCommand: deletes.delete_ids,
    DeleteRunCommand: deletes.delete_run,
    PruneCommand: deletes.prune,
    ForkCommand: forks.fork,
    AbandonForkCommand: forks.abandon_fork,
    AcquireLeaseCommand: leases.acquire,
    RenewLeaseCommand: leases.renew_lease,
    ReleaseLeaseCommand: leases.release,
    SendSignalCommand: signals.send,
    SweepCommand: sweep,
    ProbeCommand: probe,
}
