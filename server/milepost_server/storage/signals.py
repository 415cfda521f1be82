"""Signals: sending one, and taking in those that a Save has consumed.

A signal belongs to one incarnation of a workflow and needs no lease. It is pending, whatever happens to heads and
checkpoints, until a Save names it; then its id stays behind for the replay window, so that a late retry of the sender
is known.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from milepost_server import rules
from milepost_server.errors import ResourceError
from milepost_server.limits import Limits
from milepost_server.model import (
    PendingSignal,
    SendSignalAnswer,
    SendSignalCommand,
    Signal,
    SignalIdRow,
    WorkflowRow,
)
from milepost_server.storage import lookups
from milepost_server.storage.port import ReadTransaction, WriteTransaction

_replace = msgspec.structs.replace


def send(txn: WriteTransaction, command: SendSignalCommand, limits: Limits) -> SendSignalAnswer:
    """Store a signal, once."""
    _, workflow = lookups.require_workflow(txn, command.namespace, command.workflow_id)
    digest = rules.digest_signal(command.name, command.value)
    known = txn.find_signal_id(workflow.internal_id, command.signal_id)
    if known is not None:
        rules.check_same_signal(command.signal_id, digest, known)
        is_consumed = known.consumed_time_ms > 0
        return SendSignalAnswer(True, is_consumed, workflow.revision, workflow.incarnation, workflow.definition)
    count = workflow.pending_signal_count + 1
    if count > limits.pending_signals_max:
        raise ResourceError(
            "QUOTA_EXCEEDED",
            f"{count} signals of workflow {command.workflow_id!r} would be pending, at most "
            f"{limits.pending_signals_max} may be (pending_signals_max)",
            {
                "limit": "pending_signals_max",
                "allowed": limits.pending_signals_max,
                "found": count,
                "unit": "signals",
            },
        )
    number = workflow.last_signal_number + 1
    signal = Signal(number, command.signal_id, command.name, command.value, txn.now_ms)
    txn.put_signal(workflow.internal_id, signal, SignalIdRow(number, digest))
    workflow = _replace(workflow, revision=workflow.revision + 1, pending_signal_count=count, last_signal_number=number)
    txn.put_workflow(workflow)
    return SendSignalAnswer(False, False, workflow.revision, workflow.incarnation, workflow.definition)


def consume(txn: WriteTransaction, workflow: WorkflowRow, signal_ids: tuple[str, ...]) -> int:
    """Take signals off those that are pending, passing over ids that are not; return how many are left."""
    left_count = workflow.pending_signal_count
    for signal_id in dict.fromkeys(signal_ids):
        if not left_count:
            break
        row = txn.find_signal_id(workflow.internal_id, signal_id)
        if row is not None and not row.consumed_time_ms:
            txn.consume_signal(workflow.internal_id, signal_id, _replace(row, consumed_time_ms=txn.now_ms))
            left_count -= 1
    return left_count


def pending(txn: ReadTransaction, workflow: WorkflowRow, limits: Limits) -> tuple[PendingSignal, ...]:
    """Return the oldest pending signals, up to a bound."""
    if not workflow.pending_signal_count:
        return ()
    found = tuple(islice(txn.pending_signals(workflow.internal_id, 0), limits.pending_signals_shown_max))
    lookups.check_signal_count(
        workflow, len(found), min(workflow.pending_signal_count, limits.pending_signals_shown_max)
    )
    return found
