"""What the clients say and hear, without saying or hearing it: requests are built here, and answers read.

Nothing here waits, opens or retries; both halves of the client share it. An encoded request is plain bytes, so that
each is encoded once, whatever it takes to get it through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar, cast

from google.protobuf import empty_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from milepost import _compression, _state
from milepost._config import MESSAGE_BYTES_MAX
from milepost._failures import asked, ids_of, located, locating
from milepost._texts import build, build_part, list_of_texts
from milepost.codecs import Codec
from milepost.errors import CodecError, InvalidRequestError, LimitExceededError, MilepostError
from milepost.types import (
    Checkpoint,
    EntryVersion,
    LeaseInfo,
    PendingSignal,
    Record,
    RecordOutcome,
    Saved,
    Status,
    WorkflowInfo,
)
from milepost.v1 import checkpoint_pb2, lease_pb2
from milepost.v1 import checkpoint_store_pb2 as pb

SERVICE: Final = "milepost.v1.CheckpointStore"
ITEMS_MAX: Final = 1_000
"""Most items of one BatchSave, and most ids of one DeleteCheckpoints."""
RUNS_MAX: Final = 100
"""Most runs of one DeleteCheckpoints."""
BATCH_BYTES: Final = 8 * 1024 * 1024
"""A batch is sent when it has this much: well below the limit of a message, well above what makes a batch pay."""

T = TypeVar("T")
ResponseT = TypeVar("ResponseT")


@dataclass(frozen=True, slots=True)
class Method(Generic[ResponseT]):
    """One call of the service."""

    name: str
    path: str
    read: Callable[[bytes], ResponseT]
    mutates: bool
    """It changes something, so that a lost answer leaves it open whether it did."""
    finds_twin: bool = True
    """A refusal because of the lease says that no earlier attempt was stored: what was is looked for before."""


def _method(
    name: str, response: type[ResponseT], *, mutates: bool = False, finds_twin: bool = True
) -> Method[ResponseT]:
    return Method(name, f"/{SERVICE}/{name}", cast("Any", response).FromString, mutates, finds_twin)


SAVE: Final = _method("Save", pb.SaveResponse, mutates=True)
BATCH_SAVE: Final = _method("BatchSave", pb.BatchSaveResponse, mutates=True)
LOAD: Final = _method("Load", pb.LoadResponse)
LIST: Final = _method("List", pb.ListResponse)
APPEND_RECORDS: Final = _method("AppendRecords", pb.AppendRecordsResponse, mutates=True, finds_twin=False)
GET_ENTRY_HISTORY: Final = _method("GetEntryHistory", pb.GetEntryHistoryResponse)
LIST_WORKFLOWS: Final = _method("ListWorkflows", pb.ListWorkflowsResponse)
GET_WORKFLOW: Final = _method("GetWorkflow", pb.GetWorkflowResponse)
FORK_WORKFLOW: Final = _method("ForkWorkflow", pb.ForkWorkflowResponse, mutates=True)
DELETE_WORKFLOW: Final = _method("DeleteWorkflow", pb.DeleteWorkflowResponse, mutates=True, finds_twin=False)
DELETE_CHECKPOINTS: Final = _method("DeleteCheckpoints", pb.DeleteCheckpointsResponse, mutates=True, finds_twin=False)
PRUNE_WORKFLOW: Final = _method("PruneWorkflow", pb.PruneWorkflowResponse, mutates=True)
ACQUIRE_LEASE: Final = _method("AcquireLease", pb.AcquireLeaseResponse, mutates=True)
RENEW_LEASE: Final = _method("RenewLease", pb.RenewLeaseResponse, mutates=True)
RELEASE_LEASE: Final = _method("ReleaseLease", pb.ReleaseLeaseResponse, mutates=True)
GET_LEASE: Final = _method("GetLease", pb.GetLeaseResponse)
SEND_SIGNAL: Final = _method("SendSignal", pb.SendSignalResponse, mutates=True)
LIST_SIGNALS: Final = _method("ListSignals", pb.ListSignalsResponse)
WATCH: Final = _method("Watch", pb.WatchResponse)
GET_DEFINITION: Final = _method("GetDefinition", pb.GetDefinitionResponse)
# grpc.health.v1.Health/Check of the whole server: an empty request, an answer of one enum field, 1 for SERVING.
CHECK_HEALTH: Final[Method[bytes]] = Method("Check", "/grpc.health.v1.Health/Check", bytes, mutates=False)
HEALTH_REQUEST: Final = empty_pb2.Empty()
HEALTH_SERVING: Final = b"\x08\x01"

STATUS_TO_WIRE: Final[Mapping[Status, checkpoint_pb2.Status.ValueType]] = {
    Status.RUNNING: checkpoint_pb2.STATUS_RUNNING,
    Status.WAITING: checkpoint_pb2.STATUS_WAITING,
    Status.SUSPENDED: checkpoint_pb2.STATUS_SUSPENDED,
    Status.COMPLETED: checkpoint_pb2.STATUS_COMPLETED,
    Status.FAILED: checkpoint_pb2.STATUS_FAILED,
    Status.CANCELLED: checkpoint_pb2.STATUS_CANCELLED,
}
STATUS_FROM_WIRE: Final[Mapping[int, Status]] = {wire: status for status, wire in STATUS_TO_WIRE.items()}
OUTCOME_FROM_WIRE: Final[Mapping[int, RecordOutcome]] = {
    pb.RECORD_OUTCOME_CREATED: RecordOutcome.CREATED,
    pb.RECORD_OUTCOME_EXISTING: RecordOutcome.EXISTING,
    pb.RECORD_OUTCOME_OVERWRITTEN: RecordOutcome.OVERWRITTEN,
}


def encode(method: Method[Any], request: Message) -> bytes:
    """Return the bytes of a request.

    Raises:
        LimitExceededError: The server would not take a message of this size; names the largest entry.
    """
    payload = request.SerializeToString()
    if len(payload) > MESSAGE_BYTES_MAX:
        raise _too_large(method, request, len(payload))
    return payload


def _too_large(method: Method[Any], request: Message, size_bytes: int) -> LimitExceededError:
    where, advice = "", "Send it in parts."
    state: Mapping[str, Message] = getattr(request, "state", {})
    if state:
        key = max(state, key=lambda k: state[k].ByteSize())
        where = f" Its largest entry is {key!r} with {state[key].ByteSize()} bytes."
        advice = "Keep large content elsewhere and save its address, or split it over several entries and saves."
    return LimitExceededError(
        f"{asked(method, request)}: the request has {size_bytes} bytes, at most {MESSAGE_BYTES_MAX} are allowed."
        f"{where} {advice}",
        reason="LIMIT_EXCEEDED",
        metadata={
            "field": "state" if state else "",
            "limit": "message_bytes",
            "allowed": str(MESSAGE_BYTES_MAX),
            "found": str(size_bytes),
            "unit": "bytes",
        },
        **ids_of(request),
    )


def records_to_wire(
    records: Iterable[Record], codec: Codec, compress_over_bytes: int | None
) -> list[checkpoint_pb2.Record]:
    """Return records as they are sent.

    Raises:
        CodecError: The value of one cannot be encoded.
        InvalidRequestError: A text of one has a lone surrogate.
    """
    return [
        build_part(
            f"records[{number}].",
            checkpoint_pb2.Record,
            task_id=record.task_id,
            index=record.index,
            path=record.path,
            name=record.name,
            value=_state.encode_value(
                record.value,
                codec,
                compress_over_bytes=compress_over_bytes,
                path=f"record({record.task_id!r}, {record.index})",
            ),
            overwrite=record.overwrite,
        )
        for number, record in enumerate(records)
    ]


def encode_metadata(metadata: Mapping[str, Any]) -> str:
    """Return metadata as JSON text: the same mapping is the same text, in whatever order it was made.

    Raises:
        CodecError: It holds something that JSON has no word for.
    """
    try:
        text = _write_metadata(dict(metadata))
        # Half a surrogate pair is a str, and no text.
        text.encode()
        return text
    except (TypeError, ValueError, RecursionError) as error:
        # The text of json's own errors names types and at most the float nan, never other values.
        raise CodecError(
            f"metadata is plain JSON (str, int, float, bool, None, list, and dict with str keys): {error}",
            path="metadata",
        ) from None


def _refuse_metadata(value: object) -> Any:
    raise TypeError(f"a {type(value).__name__} is not")


_write_metadata = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True, default=_refuse_metadata
).encode


def load_request(
    namespace: str,
    workflow_id: str,
    *,
    checkpoint_id: str | None,
    sequence: int | None,
    latest_with_status: Status | Iterable[Status] | None,
    scope: str,
    entries: Iterable[str] | None,
    with_state: bool,
) -> pb.LoadRequest:
    """Return a Load request."""
    if (checkpoint_id is not None) + (sequence is not None) + (latest_with_status is not None) > 1:
        raise InvalidRequestError(
            f"load of workflow {workflow_id!r}: give at most one of checkpoint_id, sequence and latest_with_status",
            workflow_id=workflow_id,
        )
    keys = None if entries is None else list_of_texts(entries, "entries")
    return build(
        pb.LoadRequest,
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        sequence=sequence,
        latest_with_status=statuses_to_wire(latest_with_status),
        entry_keys=keys,
        # On the wire no keys mean all of them; from a caller an empty choice means none.
        omit_state=not with_state or keys == [],
        accept_compression=_compression.accepted(),
    )


def list_request(
    namespace: str,
    workflow_id: str,
    *,
    scope: str | None,
    newest_first: bool,
    limit: int | None,
    with_state: bool,
    with_records: bool,
    status: Status | Iterable[Status] | None,
    current_step: str | None,
    before: Checkpoint | Saved | int | str | None,
    metadata_contains: Mapping[str, Any] | None,
    run_id: str | None,
    page_size: int | None,
) -> pb.ListRequest:
    """Return the request of the first page.

    Raises:
        CodecError: `metadata_contains` has no form in JSON.
    """
    before_sequence, before_checkpoint_id = read_before(before)
    try:
        contained = "" if metadata_contains is None else encode_metadata(metadata_contains)
    except CodecError as error:
        raise located(error, namespace, workflow_id, scope or "") from None
    return build(
        pb.ListRequest,
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        page_size=page_size_of(page_size, limit),
        order=pb.ORDER_NEWEST_FIRST if newest_first else pb.ORDER_OLDEST_FIRST,
        statuses=statuses_to_wire(status),
        current_step=current_step,
        before_checkpoint_id=before_checkpoint_id,
        before_sequence=before_sequence,
        metadata_contains=contained,
        include_state=with_state,
        include_records=with_records,
        accept_compression=_compression.accepted(),
        run_id=run_id,
    )


def read_before(before: Checkpoint | Saved | int | str | None) -> tuple[int | None, str | None]:
    """Return the sequence that a list ends before, or the checkpoint id."""
    if isinstance(before, Checkpoint | Saved):
        return before.sequence, None
    return (before if isinstance(before, int) else None), (before if isinstance(before, str) else None)


def append_records_request(
    namespace: str,
    workflow_id: str,
    checkpoint_id: str,
    records: Iterable[Record],
    *,
    codec: Codec,
    compress_over_bytes: int | None,
    scope: str,
    require_checkpoint: bool,
    lease_token: int,
) -> pb.AppendRecordsRequest:
    """Return an AppendRecords request.

    Raises:
        CodecError: The value of a record cannot be encoded.
    """
    try:
        encoded = records_to_wire(records, codec, compress_over_bytes)
    except (CodecError, InvalidRequestError) as error:
        raise located(error, namespace, workflow_id, scope, checkpoint_id) from error.__cause__
    return build(
        pb.AppendRecordsRequest,
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        records=encoded,
        require_checkpoint=require_checkpoint,
        lease_token=lease_token,
    )


def entry_history_request(
    namespace: str,
    workflow_id: str,
    entries: str | Iterable[str],
    *,
    scope: str,
    checkpoint_id: str | None,
    limit: int | None,
    page_size: int | None,
) -> pb.GetEntryHistoryRequest:
    """Return the request of the first page."""
    return build(
        pb.GetEntryHistoryRequest,
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        entry_keys=(entries,) if isinstance(entries, str) else list(entries),
        page_size=page_size_of(page_size, limit),
        accept_compression=_compression.accepted(),
    )


def list_workflows_request(
    namespace: str,
    *,
    prefix: str,
    status: Status | Iterable[Status] | None,
    labels: Mapping[str, str] | None,
    definition: str | None,
    updated_from: datetime | None,
    updated_before: datetime | None,
    is_leased: bool | None,
    has_pending_signals: bool | None,
    fingerprint: str | None,
    limit: int | None,
    page_size: int | None,
) -> pb.ListWorkflowsRequest:
    """Return the request of the first page."""
    return build(
        pb.ListWorkflowsRequest,
        namespace=namespace,
        workflow_id_prefix=prefix,
        statuses=statuses_to_wire(status),
        labels=labels,
        definition=definition,
        updated_from=_timestamp(updated_from, "updated_from"),
        updated_before=_timestamp(updated_before, "updated_before"),
        is_leased=is_leased,
        has_pending_signals=has_pending_signals,
        fingerprint=fingerprint,
        page_size=page_size_of(page_size, limit),
    )


def delete_requests(
    namespace: str,
    workflow_id: str,
    checkpoint_ids: Iterable[str],
    run_ids: Iterable[str],
    *,
    scope: str,
    lease_token: int,
) -> list[pb.DeleteCheckpointsRequest]:
    """Return the requests that delete these checkpoints and these runs, each within the limits of one call."""
    ids, runs = list_of_texts(checkpoint_ids, "checkpoint_ids"), list_of_texts(run_ids, "run_ids")
    requests = [
        build(
            pb.DeleteCheckpointsRequest,
            namespace=namespace,
            workflow_id=workflow_id,
            scope=scope,
            checkpoint_ids=ids[i : i + ITEMS_MAX],
            lease_token=lease_token,
        )
        for i in range(0, len(ids), ITEMS_MAX)
    ]
    return requests + [
        build(
            pb.DeleteCheckpointsRequest,
            namespace=namespace,
            workflow_id=workflow_id,
            run_ids=runs[i : i + RUNS_MAX],
            lease_token=lease_token,
        )
        for i in range(0, len(runs), RUNS_MAX)
    ]


def statuses_to_wire(status: Status | Iterable[Status] | None) -> list[checkpoint_pb2.Status.ValueType]:
    """Return one status or several as the wire has them."""
    if status is None:
        return []
    # A Status is a str, and its text alone is as good.
    return [STATUS_TO_WIRE[Status(s)] for s in ([status] if isinstance(status, str) else status)]


def page_size_of(page_size: int | None, limit: int | None) -> int:
    """Return the size of every page: no larger than what the caller wants in all. 0: the server decides."""
    if limit is not None and limit < 0:
        raise ValueError(f"limit is at least 0, not {limit}")
    if page_size is not None and page_size < 1:
        raise ValueError(f"page_size is at least 1, not {page_size}")
    if limit is None:
        return page_size or 0
    return min(limit, page_size or 50)


def _timestamp(moment: datetime | None, name: str) -> Timestamp | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValueError(f"{name} has no time zone; give datetime.now(UTC), for example")
    timestamp = Timestamp()
    timestamp.FromDatetime(moment.astimezone(UTC))
    return timestamp


def read_checkpoint(
    found: checkpoint_pb2.Checkpoint, codec: Codec, *, with_state: bool, loaded: pb.LoadResponse | None = None
) -> Checkpoint:
    """Return a checkpoint as programs see it.

    Args:
        found: The checkpoint.
        codec: Decodes its values.
        with_state: They were asked for.
        loaded: The answer it came in, where it was loaded and not listed.

    Raises:
        CodecError: A value was stored by another codec, or is damaged; or all are too large decompressed.
    """
    with locating(found.namespace, found.workflow_id, found.scope, found.checkpoint_id):
        _compression.require_bounded(found)
        state = _state.decode_state(found.state, codec) if with_state else None
        records = tuple(read_record(record, codec) for record in found.records)
    return Checkpoint(
        namespace=found.namespace,
        workflow_id=found.workflow_id,
        scope=found.scope,
        checkpoint_id=found.checkpoint_id,
        parent_id=found.parent_id,
        parent_pruned=found.parent_pruned,
        sequence=found.sequence,
        current_step=found.current_step,
        completed_steps=tuple(found.completed_steps),
        completed_step_count=found.completed_step_count,
        status=read_status(found.status),
        create_time=read_time(found.create_time),
        metadata=json.loads(found.metadata) if found.metadata else {},
        definition=found.definition,
        fingerprint=found.fingerprint,
        run_id=found.run_id,
        history_entries=tuple(found.history_entries),
        entry_count=found.entry_count,
        size_bytes=found.size_bytes,
        digest=found.digest,
        records=records,
        record_count=found.record_count,
        head_checkpoint_id="" if loaded is None else loaded.head_checkpoint_id,
        revision=0 if loaded is None else loaded.revision,
        pending_signals=() if loaded is None else read_pending(loaded),
        pending_signal_count=0 if loaded is None else loaded.pending_signal_count,
        state_omitted=found.state_omitted,
        state_values=state,
    )


def read_record(found: checkpoint_pb2.Record, codec: Codec) -> Record:
    """Return a record as programs see it."""
    return Record(
        task_id=found.task_id,
        index=found.index,
        path=found.path,
        name=found.name,
        value=_state.decode_value(found.value, codec, f"record({found.task_id!r}, {found.index})"),
    )


def read_entry_version(found: pb.EntryVersion, codec: Codec, request: pb.GetEntryHistoryRequest) -> EntryVersion:
    """Return one version of an entry as programs see it.

    Raises:
        CodecError: It was stored by another codec, or is damaged.
    """
    removed = not found.HasField("value")
    with locating(request.namespace, request.workflow_id, request.scope, found.checkpoint_id):
        value = None if removed else _state.decode_value(found.value, codec, found.entry_key)
    return EntryVersion(
        entry_key=found.entry_key,
        checkpoint_id=found.checkpoint_id,
        sequence=found.sequence,
        value=value,
        removed=removed,
    )


def read_workflow(found: checkpoint_pb2.Workflow) -> WorkflowInfo:
    """Return what is known of a workflow as programs see it."""
    return WorkflowInfo(
        namespace=found.namespace,
        workflow_id=found.workflow_id,
        status=None if found.status == checkpoint_pb2.STATUS_UNSPECIFIED else read_status(found.status),
        current_step=found.current_step,
        definition=found.definition,
        labels=dict(found.labels),
        head_checkpoint_id=found.head_checkpoint_id,
        head_sequence=found.head_sequence,
        last_sequence=found.last_sequence,
        checkpoint_count=found.checkpoint_count,
        scope_count=found.scope_count,
        stored_bytes=found.stored_bytes,
        create_time=read_time(found.create_time) if found.HasField("create_time") else None,
        update_time=read_time(found.update_time) if found.HasField("update_time") else None,
        revision=found.revision,
        incarnation=found.incarnation,
        forked_from_workflow_id=found.forked_from_workflow_id,
        lease=read_lease(found.lease, found.namespace, found.workflow_id) if found.HasField("lease") else None,
        pending_signal_count=found.pending_signal_count,
        fingerprint=found.fingerprint,
    )


def read_lease(found: lease_pb2.Lease, namespace: str, workflow_id: str) -> LeaseInfo:
    """Return a lease as programs see it."""
    return LeaseInfo(
        namespace=namespace,
        workflow_id=workflow_id,
        token=found.token,
        holder=found.holder,
        ttl_s=found.ttl_ms / 1_000,
        remaining_s=found.remaining_ms / 1_000,
        grant_time=read_time(found.grant_time),
    )


def read_pending(found: pb.SaveResponse | pb.LoadResponse | pb.RenewLeaseResponse) -> tuple[PendingSignal, ...]:
    """Return the pending signals that an answer names."""
    if not found.pending_signal_count:
        return ()
    return tuple(PendingSignal(signal_id=one.signal_id, name=one.name) for one in found.pending_signals)


def read_outcomes(found: Iterable[int]) -> list[RecordOutcome]:
    """Return what became of appended records."""
    return [OUTCOME_FROM_WIRE[outcome] for outcome in found]


def read_status(wire: int) -> Status:
    """Return a status as programs see it."""
    status = STATUS_FROM_WIRE.get(wire)
    if status is None:
        # Guessing would tell a program that a finished workflow runs, or the other way round.
        raise MilepostError(
            f"the server answered status {wire}, which this version of milepost does not know: upgrade it"
        )
    return status


def read_time(stamp: Timestamp) -> datetime:
    """Return a moment, in UTC."""
    return datetime.fromtimestamp(stamp.seconds, UTC).replace(microsecond=stamp.nanos // 1_000)
