"""What those who watch are told of a commit: pure, from a command and its answer to events."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from milepost_server.errors import StoreError
from milepost_server.model import (
    AcquireLeaseCommand,
    Answer,
    AppendRecordsAnswer,
    AppendRecordsCommand,
    BulkAnswer,
    Command,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowAnswer,
    DeleteWorkflowCommand,
    EncodedBatchSaveAnswer,
    EncodedBatchSaveCommand,
    EncodedSaveAnswer,
    EncodedSaveCommand,
    ForkAnswer,
    ForkCommand,
    LeaseAnswer,
    PruneCommand,
    ReleaseLeaseAnswer,
    ReleaseLeaseCommand,
    SendSignalAnswer,
    SendSignalCommand,
    SweepAnswer,
    SweepCommand,
    WorkflowChange,
    WorkflowRow,
)


class WatchKind(enum.IntEnum):
    """What changed; numbers are those of the protocol."""

    STARTED = 1
    SAVED = 2
    REPLACED = 3
    RECORDS_APPENDED = 4
    CHECKPOINTS_DELETED = 5
    WORKFLOW_DELETED = 6
    SIGNAL_SENT = 7
    LEASE_GRANTED = 8
    LEASE_RELEASED = 9
    CHANGED = 10


class WatchQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to follow."""

    namespace: str
    workflow_id: str
    """"" for every workflow of the namespace."""
    after: tuple[str, int] | None = None
    """The incarnation and revision to go on after; `None`: from now on."""
    definition: str | None = None


class WatchEvent(msgspec.Struct, frozen=True, gc=False):
    """One change of one workflow. Small: many are kept."""

    kind: WatchKind
    namespace: str
    workflow_id: str
    incarnation: str = ""
    """"" while the workflow does not exist."""
    revision: int = 0
    definition: str = ""
    scope: str = ""
    checkpoint_id: str = ""
    sequence: int = 0
    current_step: str = ""
    status: int = 0
    signal_name: str = ""
    signal_id: str = ""
    holder: str = ""
    lease_released: bool = False


def events_of(command: Command, outcome: Answer | StoreError) -> Iterator[WatchEvent]:
    """Yield what a command changed; nothing for refusals, replays and what readers do not see."""
    tell = _TELLERS.get(type(command))
    if tell is not None and not isinstance(outcome, StoreError):
        yield from tell(command, outcome)


def standing(kind: WatchKind, workflow: WorkflowRow) -> WatchEvent:
    """Return an event that tells where a workflow stands."""
    return WatchEvent(
        kind,
        workflow.namespace,
        workflow.workflow_id,
        workflow.incarnation,
        workflow.revision,
        workflow.definition,
        checkpoint_id=workflow.head_checkpoint_id,
        sequence=workflow.head_sequence,
        current_step=workflow.current_step,
        status=workflow.status,
    )


def _saved(command: Command, answer: EncodedSaveAnswer | EncodedBatchSaveAnswer) -> Iterator[WatchEvent]:
    for stored in answer.stored:
        yield WatchEvent(
            WatchKind.REPLACED if stored.is_replaced else WatchKind.SAVED,
            stored.namespace,
            stored.workflow_id,
            stored.incarnation,
            stored.revision,
            stored.definition,
            stored.scope,
            stored.checkpoint_id,
            stored.sequence,
            stored.current_step,
            stored.status,
            lease_released=stored.release_lease,
        )


def _appended(command: AppendRecordsCommand, answer: AppendRecordsAnswer) -> Iterator[WatchEvent]:
    if answer.is_replayed:
        return
    yield WatchEvent(
        WatchKind.RECORDS_APPENDED,
        command.namespace,
        command.workflow_id,
        answer.incarnation,
        answer.revision,
        answer.definition,
        command.scope,
        command.checkpoint_id,
        answer.sequence,
    )


def _signal_sent(command: SendSignalCommand, answer: SendSignalAnswer) -> Iterator[WatchEvent]:
    if answer.is_replayed:
        return
    yield WatchEvent(
        WatchKind.SIGNAL_SENT,
        command.namespace,
        command.workflow_id,
        answer.incarnation,
        answer.revision,
        answer.definition,
        signal_name=command.name,
        signal_id=command.signal_id,
    )


def _lease_granted(command: AcquireLeaseCommand, answer: LeaseAnswer) -> Iterator[WatchEvent]:
    if not answer.is_replayed:
        yield _lease_event(WatchKind.LEASE_GRANTED, command, answer.change, holder=command.holder)


def _lease_released(command: ReleaseLeaseCommand, answer: ReleaseLeaseAnswer) -> Iterator[WatchEvent]:
    if answer.released:
        yield _lease_event(WatchKind.LEASE_RELEASED, command, answer.change)


def _lease_event(
    kind: WatchKind,
    command: AcquireLeaseCommand | ReleaseLeaseCommand,
    change: WorkflowChange | None,
    *,
    holder: str = "",
) -> WatchEvent:
    if change is None:
        return WatchEvent(kind, command.namespace, command.workflow_id, holder=holder)
    return _event(kind, change, holder=holder)


def _deleted(command: DeleteWorkflowCommand, answer: DeleteWorkflowAnswer) -> Iterator[WatchEvent]:
    if answer.change is not None:
        yield _event(WatchKind.WORKFLOW_DELETED, answer.change)


def _checkpoints_deleted(command: Command, answer: BulkAnswer) -> Iterator[WatchEvent]:
    return (_event(WatchKind.CHECKPOINTS_DELETED, change) for change in answer.changes)


def _changed(command: Command, answer: BulkAnswer | SweepAnswer) -> Iterator[WatchEvent]:
    return (_event(WatchKind.CHANGED, change) for change in answer.changes)


def _forked(command: ForkCommand, answer: ForkAnswer) -> Iterator[WatchEvent]:
    if answer.workflow is not None and not answer.is_replayed:
        yield standing(WatchKind.CHANGED, answer.workflow)


def _event(kind: WatchKind, change: WorkflowChange, *, holder: str = "") -> WatchEvent:
    return WatchEvent(
        kind,
        change.namespace,
        change.workflow_id,
        change.incarnation,
        change.revision,
        change.definition,
        holder=holder,
    )


_TELLERS: dict[type, Callable[[Any, Any], Iterator[WatchEvent]]] = {
    EncodedSaveCommand: _saved,
    EncodedBatchSaveCommand: _saved,
    AppendRecordsCommand: _appended,
    SendSignalCommand: _signal_sent,
    AcquireLeaseCommand: _lease_granted,
    ReleaseLeaseCommand: _lease_released,
    DeleteWorkflowCommand: _deleted,
    DeleteIdsCommand: _checkpoints_deleted,
    DeleteRunCommand: _checkpoints_deleted,
    PruneCommand: _changed,
    SweepCommand: _changed,
    ForkCommand: _forked,
}
