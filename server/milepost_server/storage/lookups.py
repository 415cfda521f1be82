"""What commands and queries look up alike: workflows, scopes, checkpoints, and the ids that lead to them.

A row that another leads to and that is not there is damage, and is told as that: never as 'not found', which would let
a caller begin anew over what is there.
"""

from __future__ import annotations

from milepost_server import rules
from milepost_server.errors import NotFoundError, StoreError
from milepost_server.model import CheckpointRow, IdRow, ScopeRow, WorkflowRow
from milepost_server.storage.port import NameRow, ReadTransaction

ROWS_PER_CHECKPOINT = 6
"""Rows that deleting or copying one checkpoint touches, about; a slice's budget is counted in rows."""


def present_workflow(txn: ReadTransaction, name: NameRow | None) -> WorkflowRow | None:
    """Return the present incarnation of a name: that its row is missing is damage, never 'not found'."""
    if name is None or not name.internal_id:
        return None
    workflow = txn.get_workflow(name.internal_id)
    if workflow is None:
        raise StoreError(
            "RECORD_DAMAGED",
            f"workflow {name.workflow_id!r} is missing though its name leads to it",
            {"table": "workflows", "key": f"{name.internal_id:016x}"},
        )
    return workflow


def present_scope(
    txn: ReadTransaction, name: NameRow | None, workflow: WorkflowRow | None, scope: str
) -> ScopeRow | None:
    """Return a scope of a name: that the root scope of a workflow with a head is missing is damage, never 'no head'."""
    row = txn.find_scope(name.name_id, scope) if name is not None else None
    if row is None and scope == "" and workflow is not None and workflow.head_checkpoint_id:
        raise StoreError(
            "RECORD_DAMAGED",
            f"the root scope of workflow {workflow.workflow_id!r} is missing though it has a head",
            {"table": "scopes", "key": f"{workflow.name_id:016x}"},
        )
    return row


def require_workflow(txn: ReadTransaction, namespace: str, workflow_id: str) -> tuple[NameRow, WorkflowRow]:
    """Return a workflow that readers see."""
    name = txn.find_name(namespace, workflow_id)
    workflow = present_workflow(txn, name)
    if name is None or workflow is None or not rules.is_visible(workflow):
        raise NotFoundError(
            "WORKFLOW_NOT_FOUND",
            f"there is no workflow {workflow_id!r} in namespace {namespace!r}",
            {"namespace": namespace, "workflow_id": workflow_id},
        )
    return name, workflow


def get_indexed(txn: ReadTransaction, workflow: WorkflowRow, sequence: int) -> CheckpointRow:
    """Return a checkpoint that an index leads to: that it is missing is damage, never 'not found'."""
    row = txn.get_checkpoint(workflow.internal_id, sequence)
    if row is None:
        raise StoreError(
            "RECORD_DAMAGED",
            f"checkpoint {sequence} of workflow {workflow.workflow_id!r} is missing though it is indexed",
            {"table": "checkpoints", "key": f"{workflow.internal_id:016x}{sequence:016x}"},
        )
    return row


def head_of(workflow: WorkflowRow | None, scope: ScopeRow | None) -> tuple[str, int]:
    """Return id and sequence of a scope's head; "" and 0 where there is none."""
    if workflow is None or scope is None or scope.internal_id != workflow.internal_id:
        return "", 0
    return scope.head_checkpoint_id, scope.head_sequence


def is_live(id_row: IdRow, workflow: WorkflowRow) -> bool:
    """Tell whether an id leads to a checkpoint that is there."""
    return id_row.internal_id == workflow.internal_id and id_row.deleted_time_ms == 0


def find_id(txn: ReadTransaction, name: NameRow | None, scope: ScopeRow | None, checkpoint_id: str) -> IdRow | None:
    """Return what became of an id; of one that a fork has taken which is not published, what was known before."""
    if name is None or scope is None:
        return None
    id_row = txn.find_id(name.name_id, scope.ordinal, checkpoint_id)
    if id_row is None or id_row.internal_id == name.internal_id:
        return id_row
    incarnation = txn.get_workflow(id_row.internal_id)
    return id_row if incarnation is None or incarnation.revision > 0 else id_row.prior


def find_checkpoint(
    txn: ReadTransaction,
    name: NameRow | None,
    workflow: WorkflowRow | None,
    scope: ScopeRow | None,
    checkpoint_id: str,
) -> CheckpointRow | None:
    """Return a live checkpoint by id."""
    if name is None or workflow is None or scope is None:
        return None
    if scope.head_checkpoint_id == checkpoint_id and scope.internal_id == workflow.internal_id:
        sequence = scope.head_sequence
    else:
        id_row = txn.find_id(name.name_id, scope.ordinal, checkpoint_id)
        if id_row is None or not is_live(id_row, workflow):
            return None
        sequence = id_row.sequence
    return get_indexed(txn, workflow, sequence)


def find_ancestor(
    txn: ReadTransaction, name: NameRow, workflow: WorkflowRow, scope: ScopeRow | None, row: CheckpointRow
) -> CheckpointRow | None:
    """Return a checkpoint's parent, if it is live and the one that was meant."""
    parent = find_checkpoint(txn, name, workflow, scope, row.parent_id) if row.parent_id else None
    return parent if parent is not None and rules.is_ancestor(parent.sequence, row) else None


def require_checkpoint(
    txn: ReadTransaction, name: NameRow, workflow: WorkflowRow, scope_name: str, checkpoint_id: str | None
) -> CheckpointRow:
    """Return a checkpoint by id, or the scope's head."""
    scope = txn.find_scope(name.name_id, scope_name)
    wanted = head_of(workflow, scope)[0] if checkpoint_id is None else checkpoint_id
    row = find_checkpoint(txn, name, workflow, scope, wanted) if wanted else None
    if row is None:
        what = f"checkpoint {checkpoint_id!r}" if checkpoint_id is not None else "checkpoint at all"
        raise NotFoundError(
            "CHECKPOINT_NOT_FOUND",
            f"workflow {workflow.workflow_id!r} has no {what} in scope {scope_name!r}",
            {
                "workflow_id": workflow.workflow_id,
                "scope": scope_name,
                "checkpoint_id": checkpoint_id or "",
            },
        )
    return row


def leads_to_parent(workflow: WorkflowRow, row: CheckpointRow, id_row: IdRow | None) -> bool:
    """Tell whether the id of a checkpoint's parent leads to the one that was meant, and that one is there."""
    return id_row is not None and is_live(id_row, workflow) and rules.is_ancestor(id_row.sequence, row)


def check_signal_count(workflow: WorkflowRow, found: int, expected: int) -> None:
    """Refuse to answer fewer pending signals than there are: that one is missing is damage."""
    if found != expected:
        raise StoreError(
            "RECORD_DAMAGED",
            f"workflow {workflow.workflow_id!r} has {found} pending signals stored, not {expected}",
            {"table": "signals", "key": f"{workflow.internal_id:016x}"},
        )
