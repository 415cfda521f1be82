"""New namespaces, workflows and scopes."""

from __future__ import annotations

import msgspec

from milepost_server import rules
from milepost_server.limits import Limits
from milepost_server.model import ScopeRow, WorkflowRow
from milepost_server.storage.port import NameRow, WriteTransaction

ROOT_ORDINAL = 0
"""The number of scope "" under every name."""

_replace = msgspec.structs.replace


def intern_namespace(txn: WriteTransaction, namespace: str, limits: Limits) -> int:
    """Return the number of a namespace, giving it one if need be."""
    namespace_id = txn.find_namespace(namespace)
    if namespace_id is None:
        rules.check_namespace_count(txn.namespace_count() + 1, limits)
        namespace_id = txn.add_namespace(namespace)
    return namespace_id


def create_workflow(
    txn: WriteTransaction, namespace: str, workflow_id: str, name: NameRow | None, limits: Limits
) -> tuple[NameRow, WorkflowRow]:
    """Begin a workflow, under its name as it stands or under a new one; the workflow is stored by the caller."""
    namespace_id = intern_namespace(txn, namespace, limits)
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
        incarnation=new_incarnation(txn, internal_id),
        create_time_ms=txn.now_ms,
    )
    txn.put_name(name)
    return name, workflow


def create_scope(txn: WriteTransaction, name: NameRow, scope: str) -> ScopeRow:
    """Begin a scope of a name."""
    row = ScopeRow(ROOT_ORDINAL if scope == "" else txn.new_id(), scope)
    txn.put_scope(name.name_id, row)
    return row


def new_incarnation(txn: WriteTransaction, internal_id: int) -> str:
    """Name an incarnation: internal ids are never given twice in a store, chance tells its copies and backups apart.

    A time would not: clocks are set back, and copies of a store may be at work at once.
    """
    return f"{internal_id:x}-{txn.random_bytes().hex()}"
