"""The shapes of --json: the words of the protocol, one key for one field, always all of them.

JSON values stand as they are stored; opaque data is base64, as everywhere in JSON made from the protocol. Times are
RFC 3339 in UTC. Keys are only ever added.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from milepost.cli.diff import Change, CheckpointDiff, EntryChange
from milepost.cli.json_text import JsonText
from milepost.cli.store import StoredCheckpoint, StoredRecord, StoredValue
from milepost.types import Checkpoint, LeaseInfo, Saved, Signal, SignalSent, WatchEvent, WorkflowInfo

Document: TypeAlias = dict[str, Any]


def workflow_document(info: WorkflowInfo) -> Document:
    """Return a workflow, as `milepost workflows` and `milepost stats WORKFLOW` write it."""
    return {
        "namespace": info.namespace,
        "workflow_id": info.workflow_id,
        "status": None if info.status is None else info.status.value,
        "current_step": info.current_step,
        "definition": info.definition,
        "labels": dict(info.labels),
        "head_checkpoint_id": info.head_checkpoint_id,
        "head_sequence": info.head_sequence,
        "last_sequence": info.last_sequence,
        "checkpoint_count": info.checkpoint_count,
        "scope_count": info.scope_count,
        "stored_bytes": info.stored_bytes,
        "create_time": _time(info.create_time),
        "update_time": _time(info.update_time),
        "revision": info.revision,
        "incarnation": info.incarnation,
        "forked_from_workflow_id": info.forked_from_workflow_id,
        "lease": None if info.lease is None else lease_document(info.lease),
        "pending_signal_count": info.pending_signal_count,
        "fingerprint": info.fingerprint,
    }


def lease_document(lease: LeaseInfo) -> Document:
    """Return a lease, as `milepost lease show` writes it."""
    return {
        "namespace": lease.namespace,
        "workflow_id": lease.workflow_id,
        "holder": lease.holder,
        "ttl_s": lease.ttl_s,
        "remaining_s": lease.remaining_s,
        "grant_time": _time(lease.grant_time),
    }


def signal_document(signal: Signal) -> Document:
    """Return a pending signal, as `milepost signals` writes it; without a value it has none."""
    document: Document = {
        "signal_id": signal.signal_id,
        "name": signal.name,
        "create_time": _time(signal.create_time),
        "value": None,
    }
    if isinstance(signal.value, StoredValue):
        document["value"] = value_document(signal.value)
    return document


def sent_document(workflow_id: str, name: str, sent: SignalSent) -> Document:
    """Return what became of a signal, as `milepost signal` and `milepost cancel` write it."""
    return {
        "workflow_id": workflow_id,
        "signal_id": sent.signal_id,
        "name": name,
        "replayed": sent.replayed,
        "consumed": sent.consumed,
        "revision": sent.revision,
    }


def event_document(event: WatchEvent) -> Document:
    """Return an event, as `milepost watch` writes it."""
    return {
        "kind": event.kind.value,
        "workflow_id": event.workflow_id,
        "incarnation": event.incarnation,
        "revision": event.revision,
        "scope": event.scope,
        "checkpoint_id": event.checkpoint_id,
        "sequence": event.sequence,
        "current_step": event.current_step,
        "status": None if event.status is None else event.status.value,
        "definition": event.definition,
        "signal_name": event.signal_name,
        "signal_id": event.signal_id,
        "holder": event.holder,
        "lease_released": event.lease_released,
    }


def checkpoint_document(checkpoint: Checkpoint, *, is_head: bool) -> Document:
    """Return a checkpoint without its state, as `milepost history` writes it."""
    return {
        "namespace": checkpoint.namespace,
        "workflow_id": checkpoint.workflow_id,
        "scope": checkpoint.scope,
        "checkpoint_id": checkpoint.checkpoint_id,
        "is_head": is_head,
        "parent_id": checkpoint.parent_id,
        "parent_pruned": checkpoint.parent_pruned,
        "sequence": checkpoint.sequence,
        "current_step": checkpoint.current_step,
        "completed_step_count": checkpoint.completed_step_count,
        "status": checkpoint.status.value,
        "metadata": dict(checkpoint.metadata),
        "definition": checkpoint.definition,
        "fingerprint": checkpoint.fingerprint,
        "run_id": checkpoint.run_id,
        "history_entries": list(checkpoint.history_entries),
        "create_time": _time(checkpoint.create_time),
        "size_bytes": checkpoint.size_bytes,
        "entry_count": checkpoint.entry_count,
        "record_count": checkpoint.record_count,
        "digest": _base64(checkpoint.digest),
    }


def stored_document(stored: StoredCheckpoint) -> Document:
    """Return a checkpoint with state and records, as `milepost show` writes it."""
    header = stored.header
    document = checkpoint_document(header, is_head=header.checkpoint_id == header.head_checkpoint_id)
    if stored.metadata:
        document["metadata"] = JsonText(stored.metadata)
    return document | {
        "head_checkpoint_id": header.head_checkpoint_id,
        "completed_steps": list(header.completed_steps),
        "state_omitted": header.state_omitted,
        "state": {key: value_document(value) for key, value in stored.entries.items()},
        "records": [_record(record) for record in stored.records],
    }


def value_document(value: StoredValue) -> Document:
    """Return a value: `{"json": …}` with the value itself, or `{"data": base64, "codec": …}`."""
    if value.is_json:
        return {"json": JsonText(value.text)}
    return {"data": _base64(value.content), "codec": value.codec}


def saved_document(saved: Saved) -> Document:
    """Return what became of a save."""
    return {
        "namespace": saved.namespace,
        "workflow_id": saved.workflow_id,
        "scope": saved.scope,
        "checkpoint_id": saved.checkpoint_id,
        "parent_id": saved.parent_id,
        "sequence": saved.sequence,
        "head_checkpoint_id": saved.head_checkpoint_id,
        "replayed": saved.replayed,
        "create_time": _time(saved.create_time),
        "revision": saved.revision,
        "digest": _base64(saved.digest),
    }


def diff_document(diff: CheckpointDiff) -> Document:
    """Return what differs; a field that does not is null, a list without differences empty."""
    return {
        "equal": diff.is_equal,
        "before": _position(diff.before.header),
        "after": _position(diff.after.header),
        "current_step": _pair(diff.current_step),
        "status": _pair(diff.status),
        "completed_steps": None
        if diff.steps is None
        else {"removed": list(diff.steps.removed), "added": list(diff.steps.added)},
        "metadata": _changes(diff.metadata),
        "entries": [_entry(entry) for entry in diff.entries],
    }


def _position(header: Checkpoint) -> Document:
    return {
        "workflow_id": header.workflow_id,
        "scope": header.scope,
        "checkpoint_id": header.checkpoint_id,
        "sequence": header.sequence,
    }


def _pair(pair: tuple[str, str] | None) -> Mapping[str, str] | None:
    return None if pair is None else {"before": pair[0], "after": pair[1]}


def _entry(entry: EntryChange) -> Document:
    return {
        "entry_key": entry.entry_key,
        "change": entry.kind,
        "before": None if entry.before is None else value_document(entry.before),
        "after": None if entry.after is None else value_document(entry.after),
        "places": _changes(entry.places),
    }


def _changes(changes: Iterable[Change]) -> list[Document]:
    documents: list[Document] = []
    for change in changes:
        document: Document = {"path": change.path, "change": change.kind}
        # By presence, since null is a value like any other here.
        if change.kind != "added":
            document["before"] = change.before
        if change.kind != "removed":
            document["after"] = change.after
        documents.append(document)
    return documents


def _record(record: StoredRecord) -> Document:
    return {
        "task_id": record.task_id,
        "index": record.index,
        "path": record.path,
        "name": record.name,
        "value": value_document(record.value),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
