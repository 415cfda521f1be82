"""Answers as the wire's messages, their values decompressed where the caller cannot do that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from milepost.v1 import checkpoint_pb2 as pb
from milepost.v1 import checkpoint_store_pb2 as store_pb
from milepost.v1 import lease_pb2 as lease_pb
from milepost.v1 import signal_pb2 as signal_pb
from milepost_server.limits import KIB, Limits
from milepost_server.model import (
    AppendRecordsAnswer,
    Compression,
    EntryHistoryAnswer,
    LeaseState,
    ListAnswer,
    ListQuery,
    ListSignalsAnswer,
    LoadAnswer,
    LoadedCheckpoint,
    LoadQuery,
    PendingSignal,
    Record,
    SaveAnswer,
    Selection,
    Value,
    ValueKind,
    WorkflowRow,
)
from milepost_server.validation import (
    check_count,
    decompress_zstd,
    zstd_content_size,
)
from milepost_server.watch_events import WatchEvent

INLINE_BYTES_MAX = 256 * KIB
"""Messages up to this size are translated on the event loop; larger ones in a thread."""


def write_saved(message: store_pb.SaveResponse, answer: SaveAnswer) -> None:
    """Fill an empty message with what became of a Save. By assignment, which takes half as long as a constructor."""
    message.checkpoint_id = answer.checkpoint_id
    message.sequence = answer.sequence
    message.head_checkpoint_id = answer.head_checkpoint_id
    if answer.is_replayed:
        message.replayed = True
    create_time = message.create_time
    create_time.seconds = answer.create_time_ms // 1000
    create_time.nanos = answer.create_time_ms % 1000 * 1_000_000
    message.revision = answer.revision
    message.digest = answer.digest
    message.parent_id = answer.parent_id
    if answer.lease_remaining_ms:
        message.lease_remaining_ms = answer.lease_remaining_ms
    if answer.pending_signal_count:
        message.pending_signals.extend(pending_signals_to_pb(answer.pending_signals))
        message.pending_signal_count = answer.pending_signal_count


def pending_signals_to_pb(pending: Iterable[PendingSignal]) -> list[signal_pb.PendingSignal]:
    """Translate pending signals, without their content."""
    return [signal_pb.PendingSignal(signal_id=each.signal_id, name=each.name) for each in pending]


def watch_event_to_pb(event: WatchEvent) -> store_pb.WatchResponse:
    """Translate what one who watches is told."""
    kind: Any = int(event.kind)
    status: Any = event.status
    return store_pb.WatchResponse(
        kind=kind,
        workflow_id=event.workflow_id,
        incarnation=event.incarnation,
        revision=event.revision,
        scope=event.scope,
        checkpoint_id=event.checkpoint_id,
        sequence=event.sequence,
        current_step=event.current_step,
        status=status,
        definition=event.definition,
        signal_name=event.signal_name,
        signal_id=event.signal_id,
        holder=event.holder,
        lease_released=event.lease_released,
    )


def list_signals_to_pb(
    answer: ListSignalsAnswer, next_page_token: str, values: ValueWriter
) -> store_pb.ListSignalsResponse:
    """Translate a page of signals."""
    response = store_pb.ListSignalsResponse(next_page_token=next_page_token)
    for signal in answer.signals:
        message = response.signals.add(
            signal_id=signal.signal_id, name=signal.name, create_time=timestamp(signal.create_time_ms)
        )
        if signal.value is not None:
            values.write(message.value, signal.value)
    return response


def lease_to_pb(lease: LeaseState) -> lease_pb.Lease:
    """Translate a lease."""
    return lease_pb.Lease(
        token=lease.token,
        holder=lease.holder,
        ttl_ms=lease.ttl_ms,
        remaining_ms=lease.remaining_ms,
        grant_time=timestamp(lease.grant_time_ms),
    )


def append_records_to_pb(answer: AppendRecordsAnswer) -> store_pb.AppendRecordsResponse:
    """Translate what became of records."""
    outcomes: Any = [int(outcome) for outcome in answer.outcomes]
    return store_pb.AppendRecordsResponse(outcomes=outcomes, revision=answer.revision)


def load_to_pb(answer: LoadAnswer, query: LoadQuery, values: ValueWriter) -> store_pb.LoadResponse:
    """Translate a loaded checkpoint."""
    return store_pb.LoadResponse(
        checkpoint=checkpoint_to_pb(answer.workflow, answer.checkpoint, query.selection, values),
        head_checkpoint_id=answer.head_checkpoint_id,
        revision=answer.workflow.revision,
        pending_signals=pending_signals_to_pb(answer.pending_signals),
        pending_signal_count=answer.workflow.pending_signal_count,
    )


def list_to_pb(
    answer: ListAnswer, query: ListQuery, next_page_token: str, values: ValueWriter
) -> store_pb.ListResponse:
    """Translate a page of checkpoints."""
    return store_pb.ListResponse(
        checkpoints=[checkpoint_to_pb(answer.workflow, each, query.selection, values) for each in answer.checkpoints],
        next_page_token=next_page_token,
    )


def checkpoint_to_pb(
    workflow: WorkflowRow,
    loaded: LoadedCheckpoint,
    selection: Selection,
    values: ValueWriter,
) -> pb.Checkpoint:
    """Translate one checkpoint, as far as it was read."""
    row = loaded.row
    status: Any = row.status
    checkpoint = pb.Checkpoint(
        namespace=workflow.namespace,
        workflow_id=workflow.workflow_id,
        scope=row.scope,
        checkpoint_id=row.checkpoint_id,
        parent_id=row.parent_id,
        parent_pruned=loaded.parent_pruned,
        sequence=row.sequence,
        current_step=row.current_step,
        completed_steps=loaded.steps,
        completed_step_count=row.step_count,
        status=status,
        state_omitted=loaded.entries is None or selection.entry_keys is not None,
        entry_count=row.entry_count,
        metadata=row.metadata,
        definition=row.definition,
        fingerprint=row.fingerprint,
        run_id=row.run_id,
        history_entries=row.history_entries,
        create_time=timestamp(row.create_time_ms),
        size_bytes=row.size_bytes,
        digest=row.digest,
        record_count=loaded.record_count,
    )
    if loaded.entries:
        state = checkpoint.state
        for key, value in loaded.entries.items():
            values.write(state[key], value)
    if loaded.records:
        checkpoint.records.extend(record_to_pb(record, values) for record in loaded.records)
    return checkpoint


def record_to_pb(record: Record, values: ValueWriter) -> pb.Record:
    """Translate a record as it is answered."""
    message = pb.Record(task_id=record.task_id, index=record.index, path=record.path, name=record.name)
    values.write(message.value, record.value)
    return message


def entry_history_to_pb(
    answer: EntryHistoryAnswer, next_page_token: str, values: ValueWriter
) -> store_pb.GetEntryHistoryResponse:
    """Translate a page of what entries were."""
    response = store_pb.GetEntryHistoryResponse(
        next_page_token=next_page_token, ancestors_pruned=answer.ancestors_pruned
    )
    for version in answer.versions:
        message = response.versions.add(
            entry_key=version.entry_key, checkpoint_id=version.checkpoint_id, sequence=version.sequence
        )
        if version.value is not None:
            values.write(message.value, version.value)
    return response


def workflow_to_pb(row: WorkflowRow, lease: LeaseState | None = None) -> pb.Workflow:
    """Translate a workflow, and the lease that is live."""
    status: Any = row.status
    return pb.Workflow(
        namespace=row.namespace,
        workflow_id=row.workflow_id,
        status=status,
        current_step=row.current_step,
        definition=row.definition,
        labels=row.labels,
        head_checkpoint_id=row.head_checkpoint_id,
        head_sequence=row.head_sequence,
        last_sequence=row.last_sequence,
        checkpoint_count=row.checkpoint_count,
        scope_count=row.scope_count,
        stored_bytes=row.stored_bytes,
        create_time=timestamp(row.create_time_ms),
        update_time=timestamp(row.update_time_ms) if row.update_time_ms else None,
        revision=row.revision,
        incarnation=row.incarnation,
        forked_from_workflow_id=row.forked_from,
        lease=lease_to_pb(lease) if lease is not None else None,
        pending_signal_count=row.pending_signal_count,
        fingerprint=row.fingerprint,
    )


def timestamp(time_ms: int) -> Timestamp:
    """Translate milliseconds since the epoch."""
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)


def is_large(loaded: Iterable[LoadedCheckpoint]) -> bool:
    """Tell whether translating an answer would hold up the event loop, so that it is worth a thread."""
    total = 0
    for each in loaded:
        if each.entries is not None:
            total += each.row.entries_bytes
        for record in each.records:
            total += record.size_bytes
    return total > INLINE_BYTES_MAX


class ValueWriter:
    """Puts the values of one answer into messages, decompressed where the caller cannot do that.

    Args:
        accepted: Compressions that the caller can undo.
        limits: What is decompressed for one answer is bounded by the size of a message.
    """

    def __init__(self, accepted: frozenset[int], limits: Limits) -> None:
        self._accepted = accepted
        self._limits = limits
        self._decompressed_bytes = 0

    def growth(self, value: Value) -> int:
        """Return by how many bytes a value is larger in the answer than it is stored."""
        if not value.compression or value.compression in self._accepted:
            return 0
        return zstd_content_size("value", value.payload, self._limits) - len(value.payload)

    def write(self, message: pb.Value, value: Value) -> None:
        """Fill a message with a value."""
        payload, kind, compression = value.payload, value.kind, value.compression
        if compression and compression not in self._accepted:
            payload, compression = self._decompress(value), 0
            if value.codec == "json":
                # It was JSON to the client that compressed it, and its caller's tools can read it so.
                message.json = payload.decode()
                return
        if kind == ValueKind.JSON:
            message.json = payload.decode()
        else:
            message.data = payload
        if value.codec:
            message.codec = value.codec
        if compression:
            message.compression = pb.COMPRESSION_ZSTD

    def _decompress(self, value: Value) -> bytes:
        assert value.compression == Compression.ZSTD
        self._decompressed_bytes += zstd_content_size("value", value.payload, self._limits)
        check_count(
            "accept_compression",
            self._decompressed_bytes,
            limit="request_bytes_max",
            allowed=self._limits.request_bytes_max,
            unit="bytes decompressed in one answer; accept COMPRESSION_ZSTD",
        )
        return decompress_zstd("value", value.payload, self._limits)
