"""A watch without the waiting: where it begins, what it has seen, how it goes on after the stream broke. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from milepost import _calls
from milepost._texts import build
from milepost.errors import InvalidRequestError
from milepost.types import WatchAfter, WatchEvent, WatchEventKind
from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb

KIND_FROM_WIRE: Final[Mapping[int, WatchEventKind]] = {
    pb.WATCH_EVENT_KIND_STARTED: WatchEventKind.STARTED,
    pb.WATCH_EVENT_KIND_SAVED: WatchEventKind.SAVED,
    pb.WATCH_EVENT_KIND_REPLACED: WatchEventKind.REPLACED,
    pb.WATCH_EVENT_KIND_RECORDS_APPENDED: WatchEventKind.RECORDS_APPENDED,
    pb.WATCH_EVENT_KIND_CHECKPOINTS_DELETED: WatchEventKind.CHECKPOINTS_DELETED,
    pb.WATCH_EVENT_KIND_WORKFLOW_DELETED: WatchEventKind.WORKFLOW_DELETED,
    pb.WATCH_EVENT_KIND_SIGNAL_SENT: WatchEventKind.SIGNAL_SENT,
    pb.WATCH_EVENT_KIND_LEASE_GRANTED: WatchEventKind.LEASE_GRANTED,
    pb.WATCH_EVENT_KIND_LEASE_RELEASED: WatchEventKind.LEASE_RELEASED,
    pb.WATCH_EVENT_KIND_CHANGED: WatchEventKind.CHANGED,
}


def watch_position(after: WatchAfter, namespace: str, workflow_id: str) -> tuple[str, int] | None:
    """Return the (incarnation, revision) that a watch goes on after; None: from now on.

    Raises:
        InvalidRequestError: It is that of a workflow that did not exist, or no workflow is named.
    """
    if after is None:
        return None
    if not workflow_id:
        raise InvalidRequestError(
            "watch: only one workflow can be watched after a revision; name it",
            reason="INVALID_FIELD",
            namespace=namespace,
            metadata={"field": "after_incarnation"},
        )
    incarnation, revision = after if isinstance(after, tuple) else (after.incarnation, after.revision)
    if not incarnation:
        raise InvalidRequestError(
            "after: names no incarnation, so there is nothing to go on after; watch from now on instead",
            reason="INVALID_FIELD",
            namespace=namespace,
            workflow_id=workflow_id,
            metadata={"field": "after_incarnation"},
        )
    return incarnation, revision


class WatchProgress:
    """What one watch asks for, and how far it came."""

    def __init__(self, namespace: str, workflow_id: str, *, after: WatchAfter, definition: str | None) -> None:
        """Begin.

        Raises:
            InvalidRequestError: `after` makes no sense here.
        """
        self._namespace = namespace
        self._workflow_id = workflow_id
        self._definition = definition
        self._position = watch_position(after, namespace, workflow_id)
        self._has_started = False
        self._is_resumed = False

    def request(self) -> pb.WatchRequest:
        """Return what opens the stream, the first time or again."""
        # A stream that goes on where another broke is that one to whoever reads it.
        self._is_resumed = self._has_started and self._position is not None
        incarnation, revision = self._position or ("", 0)
        return build(
            pb.WatchRequest,
            namespace=self._namespace,
            workflow_id=self._workflow_id,
            after_incarnation=incarnation,
            after_revision=revision,
            definition=self._definition,
        )

    def take(self, response: pb.WatchResponse) -> WatchEvent | None:
        """Read an answer; None for one that its reader need not see."""
        event = read_event(response)
        if event.kind is WatchEventKind.STARTED:
            is_first, self._has_started = not self._has_started, True
            if self._is_resumed and not is_first:
                return None
        if self._workflow_id and event.incarnation:
            self._position = event.incarnation, event.revision
        return event


def read_event(found: pb.WatchResponse) -> WatchEvent:
    """Return an event as programs see it."""
    return WatchEvent(
        # A kind that this version does not know is a change like any other: read the workflow again.
        kind=KIND_FROM_WIRE.get(found.kind, WatchEventKind.CHANGED),
        workflow_id=found.workflow_id,
        incarnation=found.incarnation,
        revision=found.revision,
        scope=found.scope,
        checkpoint_id=found.checkpoint_id,
        sequence=found.sequence,
        current_step=found.current_step,
        status=None if found.status == checkpoint_pb2.STATUS_UNSPECIFIED else _calls.read_status(found.status),
        definition=found.definition,
        signal_name=found.signal_name,
        signal_id=found.signal_id,
        holder=found.holder,
        lease_released=found.lease_released,
    )
