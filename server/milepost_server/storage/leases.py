"""Leases: the commands that grant, renew and end them, and the fence that every other change passes through.

A lease belongs to a workflow's name, so it can be taken before there is a workflow. Its row is written by a grant and
removed by whatever ends it, in the same commit as what that does; renewals move nothing but its time.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from milepost_server import rules
from milepost_server.errors import StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    AcquireLeaseCommand,
    LeaseAnswer,
    LeaseRow,
    LeaseState,
    ReleaseLeaseAnswer,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
    WorkflowChange,
    WorkflowRow,
)
from milepost_server.rules import LeaseUse
from milepost_server.storage import creation, lookups, signals
from milepost_server.storage.port import NameRow, ReadTransaction, WriteTransaction

_replace = msgspec.structs.replace


class Fence(NamedTuple):
    """What a change that was let through has to do with its workflow's lease."""

    lease: LeaseRow | None
    use: LeaseUse


_NO_LEASE = Fence(None, LeaseUse.NONE)


def find_lease(txn: ReadTransaction, name: NameRow | None) -> LeaseRow | None:
    """Return the lease of a name: that its row is missing is damage, never 'no lease'."""
    if name is None or not name.has_lease:
        return None
    lease = txn.find_lease(name.name_id)
    if lease is None:
        raise StoreError(
            "RECORD_DAMAGED",
            f"the lease of workflow {name.workflow_id!r} is missing though its name has one",
            {"table": "leases", "key": f"{name.name_id:016x}"},
        )
    return lease


def check(txn: ReadTransaction, name: NameRow | None, workflow_id: str, token: int) -> Fence:
    """Let a change pass, or refuse it with `LEASE_HELD` or `LEASE_LOST`."""
    if not token and (name is None or not name.has_lease):
        return _NO_LEASE
    lease = find_lease(txn, name)
    return Fence(lease, rules.check_lease(lease, _remaining_ms(txn, name, lease), token, workflow_id))


def remaining_ms(txn: ReadTransaction, name: NameRow | None, token: int) -> int:
    """Return how long the lease of a token still runs; 0 if it is not the newest, or has expired."""
    lease = find_lease(txn, name) if token else None
    return _remaining_ms(txn, name, lease) if lease is not None and lease.token == token else 0


def renew(txn: WriteTransaction, name: NameRow, fence: Fence) -> int:
    """Let the lease of a change that was made run its full ttl from now; return how long it runs."""
    if fence.lease is None or fence.use is not LeaseUse.HELD:
        return 0
    txn.renew_lease(name.name_id, fence.lease)
    return fence.lease.ttl_ms


def end(txn: WriteTransaction, name: NameRow) -> NameRow:
    """End the lease of a name."""
    txn.delete_lease(name.name_id)
    name = _replace(name, has_lease=False)
    txn.put_name(name)
    return name


def end_outlived(txn: WriteTransaction, name: NameRow, fence: Fence) -> NameRow:
    """End a lease that had expired when someone without it made a change."""
    return end(txn, name) if fence.use is LeaseUse.OUTLIVED else name


def acquire(txn: WriteTransaction, command: AcquireLeaseCommand, limits: Limits) -> LeaseAnswer:
    """Grant a lease, if nobody has it."""
    name = txn.find_name(command.namespace, command.workflow_id)
    lease = find_lease(txn, name)
    left_ms = _remaining_ms(txn, name, lease)
    granted = rules.decide_grant(lease, left_ms, command.request_id, command.workflow_id)
    if granted is not None:
        return LeaseAnswer(rules.lease_state(granted, left_ms, with_token=True), True)
    namespace_id = creation.intern_namespace(txn, command.namespace, limits)
    if name is None:
        name = NameRow(txn.new_id(), namespace_id, command.workflow_id)
    lease = LeaseRow(
        txn.next_lease_token(command.namespace), command.holder, command.ttl_ms, command.request_id, txn.now_ms
    )
    txn.put_lease(name.name_id, lease)
    if not name.has_lease:
        name = _replace(name, has_lease=True)
        txn.put_name(name)
    if not name.internal_id:
        txn.schedule_lease_expiry(name)
    return LeaseAnswer(rules.lease_state(lease, lease.ttl_ms, with_token=True), False, _raise_revision(txn, name))


def renew_lease(txn: WriteTransaction, command: RenewLeaseCommand, limits: Limits) -> LeaseAnswer:
    """Let a lease run its full ttl from now. Writes nothing."""
    name = txn.find_name(command.namespace, command.workflow_id)
    lease, _ = check(txn, name, command.workflow_id, command.lease_token)
    assert name is not None
    assert lease is not None
    txn.renew_lease(name.name_id, lease)
    state = rules.lease_state(lease, lease.ttl_ms, with_token=True)
    workflow = lookups.present_workflow(txn, name)
    if workflow is None:
        return LeaseAnswer(state, False)
    return LeaseAnswer(state, False, None, workflow.pending_signal_count, signals.pending(txn, workflow, limits))


def release(txn: WriteTransaction, command: ReleaseLeaseCommand, limits: Limits) -> ReleaseLeaseAnswer:
    """End the lease of a token, or by force whichever there is. A lease that has gone is no error."""
    name = txn.find_name(command.namespace, command.workflow_id)
    lease = find_lease(txn, name)
    if name is None or not rules.may_end_lease(lease, command.lease_token, force=command.force):
        return ReleaseLeaseAnswer(False)
    name = end(txn, name)
    change = _raise_revision(txn, name)
    txn.forget_name_if_unused(name)
    return ReleaseLeaseAnswer(True, change)


def state_of(txn: ReadTransaction, name: NameRow | None, *, live_only: bool) -> LeaseState | None:
    """Return a name's lease as anybody is told it: without its token."""
    lease = find_lease(txn, name)
    if lease is None:
        return None
    left_ms = _remaining_ms(txn, name, lease)
    return rules.lease_state(lease, left_ms, with_token=False) if left_ms or not live_only else None


def _remaining_ms(txn: ReadTransaction, name: NameRow | None, lease: LeaseRow | None) -> int:
    return txn.lease_remaining_ms(name.name_id, lease) if name is not None and lease is not None else 0


def _raise_revision(txn: WriteTransaction, name: NameRow) -> WorkflowChange | None:
    workflow: WorkflowRow | None = lookups.present_workflow(txn, name)
    if workflow is None:
        return None
    workflow = _replace(workflow, revision=workflow.revision + 1)
    txn.put_workflow(workflow)
    return rules.change_of(workflow)
