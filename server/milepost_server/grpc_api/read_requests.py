"""Requests as commands and queries: translation and the checks that need only the message.

Each function gives a command or a query, or raises the error of the first field at fault. `SaveRequest` is the hot
path: each of its fields is read once, since reading a field of a message makes a new object every time.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from milepost.v1 import checkpoint_pb2 as pb
from milepost.v1 import checkpoint_store_pb2 as store_pb
from milepost_server import rules
from milepost_server.errors import InvalidFieldError, StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    AcquireLeaseCommand,
    AppendRecordsCommand,
    CheckpointFilter,
    DeleteIdsCommand,
    DeleteWorkflowCommand,
    EntryHistoryQuery,
    ForkCommand,
    ForkMode,
    ListQuery,
    ListSignalsQuery,
    ListWorkflowsQuery,
    LoadQuery,
    NewEntry,
    PruneCommand,
    Record,
    RefusedItem,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
    SaveCommand,
    Selection,
    SendSignalCommand,
    Status,
    Value,
    ValueKind,
)
from milepost_server.validation import (
    check_count,
    check_labels,
    check_manifest,
    check_metadata,
    check_name,
    check_records,
    check_steps,
    check_text,
    check_values,
    page_size,
    shown,
)
from milepost_server.watch_events import WatchQuery

DEFAULT_NAMESPACE = "default"
DIGEST_BYTES = 32

_STATUSES = {int(status): status for status in Status}


def save_from_pb(request: store_pb.SaveRequest, limits: Limits, field: str = "", *, size_bytes: int) -> SaveCommand:
    """Translate and check a Save.

    Args:
        request: As it came.
        limits: Bounds of its fields.
        field: Path of the message within the request, with a final dot, for errors.
        size_bytes: Its size, encoded. The message would encode itself once more to tell.
    """
    id_bytes_max = limits.checkpoint_id_bytes_max
    namespace, workflow_id, scope = _address(request, limits, field)
    checkpoint_id = request.checkpoint_id
    is_id_generated = False
    if checkpoint_id:
        check_text(f"{field}checkpoint_id", checkpoint_id, limit="checkpoint_id_bytes_max", bytes_max=id_bytes_max)
    elif request.HasField("checkpoint_id"):
        raise InvalidFieldError(f"{field}checkpoint_id", f"must be absent or 1 to {id_bytes_max} bytes", '""')
    else:
        checkpoint_id, is_id_generated = str(uuid.uuid4()), True
    parent_id = _optional_id(request, "parent_id", limits, field)
    base_id = _optional_id(request, "base_checkpoint_id", limits, field)
    if base_id == "":
        raise InvalidFieldError(f"{field}base_checkpoint_id", f"must be absent or 1 to {id_bytes_max} bytes", '""')
    expected_head = _optional_id(request, "expected_head", limits, field)
    current_step = request.current_step
    if current_step:
        check_text(f"{field}current_step", current_step, limit="checkpoint_id_bytes_max", bytes_max=id_bytes_max)
    definition = request.definition
    if definition:
        check_text(f"{field}definition", definition, limit="checkpoint_id_bytes_max", bytes_max=id_bytes_max)
    fingerprint = request.fingerprint
    if fingerprint:
        check_text(f"{field}fingerprint", fingerprint, limit="checkpoint_id_bytes_max", bytes_max=id_bytes_max)
    run_id = request.run_id
    if run_id:
        check_text(f"{field}run_id", run_id, limit="checkpoint_id_bytes_max", bytes_max=id_bytes_max)

    status = request.status
    if status and status not in _STATUSES:
        raise InvalidFieldError(f"{field}status", "must be a known status", status)
    on_conflict = request.on_conflict
    if on_conflict not in {store_pb.ON_CONFLICT_UNSPECIFIED, store_pb.ON_CONFLICT_REPLACE}:
        raise InvalidFieldError(f"{field}on_conflict", "must be a known value", on_conflict)
    is_replace = on_conflict == store_pb.ON_CONFLICT_REPLACE
    lease_token = request.lease_token
    release_lease = request.release_lease
    if lease_token or release_lease:
        _check_lease_token(lease_token, is_needed=release_lease, field=field)
    consumed_signals = _texts(request.consumed_signals)
    if consumed_signals:
        _check_consumed_signals(consumed_signals, limits, field)
    manifest = request.manifest
    if manifest:
        check_manifest(f"{field}manifest", manifest, fingerprint, limits)
    replaces_digest = _optional_digest(request, "replaces_digest", field)
    if replaces_digest is not None and not is_replace:
        raise InvalidFieldError(f"{field}replaces_digest", "must be absent without ON_CONFLICT_REPLACE", "a digest")
    base_digest = _optional_digest(request, "base_digest", field)
    if base_digest is not None and base_id is None:
        raise InvalidFieldError(f"{field}base_digest", "must be absent without base_checkpoint_id", "a digest")

    entries = _entries_from_pb(request.state, limits, field)
    removed_keys = _texts(request.removed_keys)
    if removed_keys:
        _check_removed_keys(removed_keys, entries, base_id, limits, field)
    steps = _texts(request.completed_steps_added)
    if steps:
        check_steps(f"{field}completed_steps_added", steps, limits)
    metadata = request.metadata
    check_metadata(f"{field}metadata", metadata, limits)
    labels: dict[str, str] | None = None
    if sent_labels := request.labels:
        labels = dict(sent_labels)
        check_labels(f"{field}labels", labels, limits)
    records: tuple[Record, ...] = ()
    if sent_records := request.records:
        records = _records_from_pb(sent_records, f"{field}records", limits)
    history_entries = _texts(request.history_entries)
    if history_entries:
        _check_history_entries(history_entries, limits, field)
    return SaveCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        is_id_generated=is_id_generated,
        parent_id=parent_id,
        base_checkpoint_id=base_id,
        base_digest=base_digest,
        current_step=current_step,
        steps_added=steps,
        status=_STATUSES[status] if status else Status.RUNNING,
        entries=entries,
        removed_keys=removed_keys,
        metadata=metadata,
        labels=labels,
        definition=definition,
        fingerprint=fingerprint,
        run_id=run_id,
        records=records,
        history_entries=history_entries,
        expected_head=expected_head,
        is_replace=is_replace,
        replaces_digest=replaces_digest,
        lease_token=lease_token,
        release_lease=release_lease,
        consumed_signals=consumed_signals,
        manifest=manifest,
        size_bytes=size_bytes,
    )


def _check_lease_token(token: int, *, is_needed: bool, field: str = "") -> int:
    if token < 0 or (is_needed and not token):
        raise InvalidFieldError(f"{field}lease_token", "must be a token that was granted", token)
    return token


def _optional_digest(
    request: store_pb.SaveRequest, name: Literal["replaces_digest", "base_digest"], field: str
) -> bytes | None:
    """Return a digest, or `None` where the field is absent."""
    if not request.HasField(name):
        return None
    digest: bytes = getattr(request, name)
    if len(digest) != DIGEST_BYTES:
        raise InvalidFieldError(f"{field}{name}", f"must be {DIGEST_BYTES} bytes", f"{len(digest)} bytes")
    return digest


def check_item_count(count: int, limits: Limits) -> None:
    """Check how many items a batch has."""
    if not count:
        raise InvalidFieldError("items", f"must be 1 to {limits.batch_items_max} items", "none")
    check_count("items", count, limit="batch_items_max", allowed=limits.batch_items_max)


def batch_item_from_pb(
    item: store_pb.SaveRequest, number: int, limits: Limits, *, size_bytes: int
) -> SaveCommand | RefusedItem:
    """Translate an item of a batch; one that is malformed becomes its error."""
    try:
        return save_from_pb(item, limits, f"items[{number}].", size_bytes=size_bytes)
    except StoreError as error:
        # What is too long is named by nobody, so a part of it will do.
        return RefusedItem(
            # Without its traceback, whose frames hold the request.
            error.with_traceback(None),
            item.namespace[: limits.namespace_bytes_max + 1] or DEFAULT_NAMESPACE,
            item.workflow_id[: limits.workflow_id_bytes_max + 1],
            item.scope[: limits.workflow_id_bytes_max + 1],
            item.checkpoint_id[: limits.checkpoint_id_bytes_max + 1],
        )


def load_from_pb(request: store_pb.LoadRequest, limits: Limits) -> tuple[LoadQuery, frozenset[int]]:
    """Translate a Load, and say which compressions its caller accepts."""
    namespace, workflow_id, scope = _address(request, limits)
    checkpoint_id = _optional_id(request, "checkpoint_id", limits)
    sequence = request.sequence if request.HasField("sequence") else None
    statuses = _statuses("latest_with_status", request.latest_with_status)
    if (checkpoint_id is not None) + (sequence is not None) + bool(statuses) > 1:
        raise InvalidFieldError(
            "checkpoint_id",
            "must be the only one of checkpoint_id, sequence and latest_with_status",
            "several of them",
        )
    if checkpoint_id == "":
        raise InvalidFieldError("checkpoint_id", f"must be absent or 1 to {limits.checkpoint_id_bytes_max} bytes", '""')
    if sequence is not None and sequence < 1:
        raise InvalidFieldError("sequence", "must be at least 1", sequence)
    entry_keys = tuple(dict.fromkeys(request.entry_keys))
    _check_keys("entry_keys", entry_keys, limits.entries_max, "entries_max", limits)
    query = LoadQuery(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        sequence=sequence,
        statuses=statuses,
        selection=Selection(
            with_state=not request.omit_state,
            with_records=not request.omit_records,
            entry_keys=entry_keys or None,
        ),
    )
    return query, _accepted(request.accept_compression)


def list_from_pb(request: store_pb.ListRequest, limits: Limits) -> tuple[ListQuery, frozenset[int]]:
    """Translate a List, and say which compressions its caller accepts."""
    namespace, workflow_id, _ = _address(request, limits)
    order = request.order
    if order not in {store_pb.ORDER_UNSPECIFIED, store_pb.ORDER_NEWEST_FIRST, store_pb.ORDER_OLDEST_FIRST}:
        raise InvalidFieldError("order", "must be a known order", order)
    sequence_max = None
    if request.HasField("before_sequence"):
        before = request.before_sequence
        if before < 1:
            raise InvalidFieldError("before_sequence", "must be at least 1", before)
        sequence_max = before - 1
    query = ListQuery(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=request.scope if request.HasField("scope") else None,
        newest_first=order != store_pb.ORDER_OLDEST_FIRST,
        filter=CheckpointFilter(
            statuses=_statuses("statuses", request.statuses),
            current_step=_optional_id(request, "current_step", limits),
            before_checkpoint_id=_optional_id(request, "before_checkpoint_id", limits),
            metadata_contains=_metadata_filter(request.metadata_contains, limits),
            run_id=_optional_id(request, "run_id", limits),
        ),
        selection=Selection(with_state=request.include_state, with_steps=False, with_records=request.include_records),
        page_size=page_size("page_size", request.page_size, limits),
        bytes_max=limits.page_bytes_max,
        rows_examined_max=limits.page_rows_examined_max,
        sequence_max=sequence_max,
    )
    return query, _accepted(request.accept_compression)


def append_records_from_pb(request: store_pb.AppendRecordsRequest, limits: Limits) -> AppendRecordsCommand:
    """Translate and check records to append."""
    namespace, workflow_id, scope = _address(request, limits)
    checkpoint_id = _required_id("checkpoint_id", request.checkpoint_id, limits)
    if not request.records:
        raise InvalidFieldError("records", f"must be 1 to {limits.records_max} records", "none")
    return AppendRecordsCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        records=_records_from_pb(request.records, "records", limits),
        require_checkpoint=request.require_checkpoint,
        lease_token=_check_lease_token(request.lease_token, is_needed=False),
        size_bytes=request.ByteSize(),
    )


def entry_history_from_pb(
    request: store_pb.GetEntryHistoryRequest, limits: Limits
) -> tuple[EntryHistoryQuery, frozenset[int]]:
    """Translate a question for what entries were, and say which compressions its caller accepts."""
    namespace, workflow_id, scope = _address(request, limits)
    checkpoint_id = _optional_id(request, "checkpoint_id", limits)
    if checkpoint_id == "":
        raise InvalidFieldError("checkpoint_id", f"must be absent or 1 to {limits.checkpoint_id_bytes_max} bytes", '""')
    entry_keys = tuple(dict.fromkeys(request.entry_keys))
    if not entry_keys:
        raise InvalidFieldError("entry_keys", f"must be 1 to {limits.history_keys_max} keys", "none")
    _check_keys("entry_keys", entry_keys, limits.history_keys_max, "history_keys_max", limits)
    query = EntryHistoryQuery(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        entry_keys=entry_keys,
        page_size=page_size("page_size", request.page_size, limits),
        bytes_max=limits.page_bytes_max,
        rows_examined_max=limits.page_rows_examined_max,
    )
    return query, _accepted(request.accept_compression)


def list_workflows_from_pb(request: store_pb.ListWorkflowsRequest, limits: Limits) -> ListWorkflowsQuery:
    """Translate a list of workflows."""
    prefix = request.workflow_id_prefix
    check_text("workflow_id_prefix", prefix, limit="workflow_id_bytes_max", bytes_max=limits.workflow_id_bytes_max)
    labels = dict(request.labels)
    check_labels("labels", labels, limits)
    return ListWorkflowsQuery(
        namespace=_namespace(request.namespace, limits),
        prefix=prefix,
        statuses=_statuses("statuses", request.statuses),
        labels=labels,
        definition=_optional_id(request, "definition", limits),
        updated_from_ms=_milliseconds(request, "updated_from"),
        updated_before_ms=_milliseconds(request, "updated_before"),
        is_leased=request.is_leased if request.HasField("is_leased") else None,
        has_pending_signals=request.has_pending_signals if request.HasField("has_pending_signals") else None,
        fingerprint=_optional_id(request, "fingerprint", limits),
        page_size=page_size("page_size", request.page_size, limits),
        bytes_max=limits.page_bytes_max,
        rows_examined_max=limits.page_rows_examined_max,
    )


def acquire_lease_from_pb(request: store_pb.AcquireLeaseRequest, limits: Limits) -> tuple[AcquireLeaseCommand, int]:
    """Translate and check a request for a lease, and say how long it would wait for one, in milliseconds."""
    namespace, workflow_id, _ = _address(request, limits)
    bytes_max = limits.lease_holder_bytes_max
    holder, request_id = request.holder, request.request_id
    check_text("holder", holder, limit="lease_holder_bytes_max", bytes_max=bytes_max)
    check_text("request_id", request_id, limit="lease_holder_bytes_max", bytes_max=bytes_max)
    ttl_ms = request.ttl_ms or limits.lease_ttl_default_ms
    if not limits.lease_ttl_min_ms <= ttl_ms <= limits.lease_ttl_max_ms:
        rule = f"must be 0 or {limits.lease_ttl_min_ms} to {limits.lease_ttl_max_ms}"
        raise InvalidFieldError("ttl_ms", rule, ttl_ms)
    wait_ms = request.wait_ms
    if not 0 <= wait_ms <= limits.lease_wait_max_ms:
        raise InvalidFieldError("wait_ms", f"must be 0 to {limits.lease_wait_max_ms}", wait_ms)
    command = AcquireLeaseCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        holder=holder,
        ttl_ms=ttl_ms,
        request_id=request_id,
        size_bytes=request.ByteSize(),
    )
    return command, wait_ms


def renew_lease_from_pb(request: store_pb.RenewLeaseRequest, limits: Limits) -> RenewLeaseCommand:
    """Translate and check a renewal."""
    namespace, workflow_id, _ = _address(request, limits)
    token = _check_lease_token(request.lease_token, is_needed=True)
    return RenewLeaseCommand(
        namespace=namespace, workflow_id=workflow_id, lease_token=token, size_bytes=request.ByteSize()
    )


def release_lease_from_pb(request: store_pb.ReleaseLeaseRequest, limits: Limits) -> ReleaseLeaseCommand:
    """Translate and check a release: of a token's lease, or by force of any."""
    namespace, workflow_id, _ = _address(request, limits)
    token = _check_lease_token(request.lease_token, is_needed=not request.force)
    if token and request.force:
        raise InvalidFieldError("lease_token", "must be 0 with force", token)
    return ReleaseLeaseCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        lease_token=token,
        force=request.force,
        size_bytes=request.ByteSize(),
    )


def send_signal_from_pb(request: store_pb.SendSignalRequest, limits: Limits) -> SendSignalCommand:
    """Translate and check a signal."""
    namespace, workflow_id, _ = _address(request, limits)
    signal_id = _required_id("signal_id", request.signal_id, limits)
    name = _required_id("name", request.name, limits)
    value: Value | None = None
    if request.HasField("value"):
        value = _value_from_pb(request.value, "value")
        size_bytes, allowed = len(value.payload), limits.signal_value_bytes_max
        check_count("value", size_bytes, limit="signal_value_bytes_max", allowed=allowed, unit="bytes")
        check_values({"value": value}, limits)
    return SendSignalCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        signal_id=signal_id,
        name=name,
        value=value,
        size_bytes=request.ByteSize(),
    )


def list_signals_from_pb(
    request: store_pb.ListSignalsRequest, limits: Limits
) -> tuple[ListSignalsQuery, frozenset[int]]:
    """Translate a list of signals, and say which compressions its caller accepts."""
    namespace, workflow_id, _ = _address(request, limits)
    query = ListSignalsQuery(
        namespace=namespace,
        workflow_id=workflow_id,
        name=_optional_id(request, "name", limits),
        page_size=page_size("page_size", request.page_size, limits),
        bytes_max=limits.page_bytes_max,
    )
    return query, _accepted(request.accept_compression)


def watch_from_pb(request: store_pb.WatchRequest, limits: Limits) -> WatchQuery:
    """Translate and check what is to be followed."""
    workflow_id, incarnation = request.workflow_id, request.after_incarnation
    check_text("workflow_id", workflow_id, limit="workflow_id_bytes_max", bytes_max=limits.workflow_id_bytes_max)
    check_text(
        "after_incarnation", incarnation, limit="checkpoint_id_bytes_max", bytes_max=limits.checkpoint_id_bytes_max
    )
    revision = request.after_revision
    if incarnation and not workflow_id:
        raise InvalidFieldError("after_incarnation", "must be empty without workflow_id", shown(incarnation))
    if revision < 0 or (revision and not incarnation):
        raise InvalidFieldError("after_revision", "must be 0 without after_incarnation, else not negative", revision)
    return WatchQuery(
        namespace=_namespace(request.namespace, limits),
        workflow_id=workflow_id,
        after=(incarnation, revision) if incarnation else None,
        definition=_optional_id(request, "definition", limits),
    )


def get_definition_from_pb(request: store_pb.GetDefinitionRequest, limits: Limits) -> tuple[str, str]:
    """Return the namespace and the fingerprint asked for."""
    return _namespace(request.namespace, limits), _required_id("fingerprint", request.fingerprint, limits)


def workflow_address_from_pb(
    request: store_pb.GetWorkflowRequest | store_pb.GetLeaseRequest, limits: Limits
) -> tuple[str, str]:
    """Return the namespace and id of the workflow asked for."""
    namespace, workflow_id, _ = _address(request, limits)
    return namespace, workflow_id


def fork_from_pb(request: store_pb.ForkWorkflowRequest, limits: Limits) -> ForkCommand:
    """Translate and check a fork."""
    namespace, workflow_id, scope = _address(request, limits)
    target = request.target_workflow_id
    check_name("target_workflow_id", target, limit="workflow_id_bytes_max", bytes_max=limits.workflow_id_bytes_max)
    if target == workflow_id:
        raise InvalidFieldError("target_workflow_id", "must not be the source", shown(target))
    mode = request.mode
    if mode not in {
        store_pb.FORK_MODE_UNSPECIFIED,
        store_pb.FORK_MODE_ANCESTORS,
        store_pb.FORK_MODE_ALL_UP_TO,
    }:
        raise InvalidFieldError("mode", "must be a known mode", mode)
    fork_id = request.fork_id
    check_text("fork_id", fork_id, limit="checkpoint_id_bytes_max", bytes_max=limits.checkpoint_id_bytes_max)
    checkpoint_id = _optional_id(request, "checkpoint_id", limits)
    if checkpoint_id == "":
        raise InvalidFieldError("checkpoint_id", f"must be absent or 1 to {limits.checkpoint_id_bytes_max} bytes", '""')
    return ForkCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        target_workflow_id=target,
        mode=ForkMode(mode) if mode else ForkMode.ANCESTORS,
        fork_id=fork_id,
        size_bytes=request.ByteSize(),
    )


def delete_workflow_from_pb(request: store_pb.DeleteWorkflowRequest, limits: Limits) -> DeleteWorkflowCommand:
    """Translate and check the delete of a workflow."""
    namespace, workflow_id, _ = _address(request, limits)
    return DeleteWorkflowCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        lease_token=_check_lease_token(request.lease_token, is_needed=False),
        size_bytes=request.ByteSize(),
    )


class RunsToDelete(msgspec.Struct, frozen=True):
    """A delete of all that executions saved."""

    namespace: str
    workflow_id: str
    run_ids: tuple[str, ...]
    continue_token: str
    lease_token: int
    size_bytes: int


def delete_checkpoints_from_pb(
    request: store_pb.DeleteCheckpointsRequest, limits: Limits
) -> DeleteIdsCommand | RunsToDelete:
    """Translate and check a delete of checkpoints: by id, or by execution."""
    checkpoint_ids, run_ids = tuple(request.checkpoint_ids), tuple(request.run_ids)
    if bool(checkpoint_ids) == bool(run_ids):
        raise InvalidFieldError(
            "checkpoint_ids", "exactly one of checkpoint_ids and run_ids must be given",
            "both" if run_ids else "neither",
        )  # fmt: skip
    lease_token = _check_lease_token(request.lease_token, is_needed=False)
    if run_ids:
        check_count("run_ids", len(run_ids), limit="delete_runs_max", allowed=limits.delete_runs_max)
        for number, run_id in enumerate(run_ids):
            _required_id(f"run_ids[{number}]", run_id, limits)
        workflow_id = request.workflow_id
        check_text("workflow_id", workflow_id, limit="workflow_id_bytes_max", bytes_max=limits.workflow_id_bytes_max)
        if lease_token and not workflow_id:
            raise InvalidFieldError("lease_token", "must be 0 without workflow_id", lease_token)
        return RunsToDelete(
            _namespace(request.namespace, limits),
            workflow_id,
            run_ids,
            request.continue_token,
            lease_token,
            request.ByteSize(),
        )
    namespace, workflow_id, scope = _address(request, limits)
    check_count("checkpoint_ids", len(checkpoint_ids), limit="delete_ids_max", allowed=limits.delete_ids_max)
    for number, checkpoint_id in enumerate(checkpoint_ids):
        _required_id(f"checkpoint_ids[{number}]", checkpoint_id, limits)
    if request.continue_token:
        # Ids are all deleted by one call, so no token for them is ever given.
        raise InvalidFieldError(
            "continue_token", "must be empty with checkpoint_ids", "a token", reason="PAGE_TOKEN_MISMATCH"
        )
    return DeleteIdsCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_ids=checkpoint_ids,
        lease_token=lease_token,
        size_bytes=request.ByteSize(),
    )


def prune_from_pb(request: store_pb.PruneWorkflowRequest, limits: Limits) -> PruneCommand:
    """Translate and check a pruning."""
    namespace, workflow_id, _ = _address(request, limits)
    keep_last = request.keep_last
    if keep_last < 0:
        raise InvalidFieldError("keep_last", "must not be negative", keep_last)
    return PruneCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        keep_last=keep_last or 1,
        position=(),
        is_dry_run=request.dry_run,
        size_bytes=request.ByteSize(),
    )


# Parts of requests.


def _namespace(namespace: str, limits: Limits, field: str = "") -> str:
    if not namespace:
        return DEFAULT_NAMESPACE
    check_text(f"{field}namespace", namespace, limit="namespace_bytes_max", bytes_max=limits.namespace_bytes_max)
    return namespace


def _address(request: Any, limits: Limits, field: str = "") -> tuple[str, str, str]:
    """Return a request's namespace, workflow_id and scope ("" where it has none).

    Every request that addresses a workflow has these fields by these names.
    """
    bytes_max = limits.workflow_id_bytes_max
    workflow_id: str = request.workflow_id
    check_name(f"{field}workflow_id", workflow_id, limit="workflow_id_bytes_max", bytes_max=bytes_max)
    scope: str = getattr(request, "scope", "")
    if scope:
        check_text(f"{field}scope", scope, limit="workflow_id_bytes_max", bytes_max=bytes_max)
    return _namespace(request.namespace, limits, field), workflow_id, scope


def _required_id(field: str, text: str, limits: Limits) -> str:
    check_name(field, text, limit="checkpoint_id_bytes_max", bytes_max=limits.checkpoint_id_bytes_max)
    return text


def _optional_id(request: Any, name: str, limits: Limits, field: str = "") -> str | None:
    """Return an optional text of id length; `None` where it is absent."""
    text: str = getattr(request, name)
    if text:
        check_text(f"{field}{name}", text, limit="checkpoint_id_bytes_max", bytes_max=limits.checkpoint_id_bytes_max)
        return text
    return "" if request.HasField(name) else None


def _texts(repeated: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of a field that mostly has none: to ask for that is cheaper than to make a tuple of it."""
    return tuple(repeated) if repeated else ()


def _entries_from_pb(state: Mapping[str, pb.Value], limits: Limits, field: str) -> dict[str, NewEntry]:
    entries: dict[str, NewEntry] = {}
    if not state:
        return entries
    check_count(f"{field}state", len(state), limit="entries_max", allowed=limits.entries_max)
    values: dict[str, Value] = {}
    for key in state:
        message = state[key]
        path = f"{field}state[{shown(key)}]"
        check_name(path, key, limit="workflow_id_bytes_max", bytes_max=limits.workflow_id_bytes_max)
        value = _value_from_pb(message, path)
        values[path] = value
        entries[key] = rules.new_entry(key, value)
    check_values(values, limits)
    return entries


def _value_from_pb(message: pb.Value, field: str) -> Value:
    content = message.WhichOneof("content")
    if content == "json":
        return Value(ValueKind.JSON, message.json.encode(), message.codec, message.compression)
    if content == "data":
        return Value(ValueKind.DATA, message.data, message.codec, message.compression)
    raise InvalidFieldError(field, "must have `json` or `data`", "neither")


def _records_from_pb(messages: Sequence[pb.Record], field: str, limits: Limits) -> tuple[Record, ...]:
    # Before anything is made of them: a message of nothing but records can hold millions.
    check_count(field, len(messages), limit="records_max", allowed=limits.records_max)
    values: dict[str, Value] = {}
    records: list[Record] = []
    for number, message in enumerate(messages):
        path = f"{field}[{number}].value"
        if not message.HasField("value"):
            raise InvalidFieldError(path, "must be given", "nothing")
        value = values[path] = _value_from_pb(message.value, path)
        records.append(Record(message.task_id, message.index, message.path, message.name, value, message.overwrite))
    check_records(field, records, limits)
    check_values(values, limits)
    return tuple(records)


def _check_removed_keys(
    removed_keys: Sequence[str],
    entries: Mapping[str, NewEntry],
    base_id: str | None,
    limits: Limits,
    field: str,
) -> None:
    if base_id is None:
        raise InvalidFieldError(
            f"{field}removed_keys", "must be empty without base_checkpoint_id", f"{len(removed_keys)} keys"
        )
    _check_keys(f"{field}removed_keys", removed_keys, limits.entries_max, "entries_max", limits)
    for number, key in enumerate(removed_keys):
        if key in entries:
            raise InvalidFieldError(f"{field}removed_keys[{number}]", "must not be a key of `state` too", shown(key))


def _check_history_entries(keys: Sequence[str], limits: Limits, field: str) -> None:
    _check_keys(f"{field}history_entries", keys, limits.history_entries_max, "history_entries_max", limits)
    check_count(
        f"{field}history_entries",
        sum(len(key.encode()) for key in keys),
        limit="history_entries_bytes_max",
        allowed=limits.history_entries_bytes_max,
        unit="bytes",
    )


def _check_consumed_signals(signal_ids: Sequence[str], limits: Limits, field: str) -> None:
    name = f"{field}consumed_signals"
    check_count(name, len(signal_ids), limit="consumed_signals_max", allowed=limits.consumed_signals_max)
    for number, signal_id in enumerate(signal_ids):
        _required_id(f"{name}[{number}]", signal_id, limits)


def _check_keys(field: str, keys: Sequence[str], count_max: int, limit: str, limits: Limits) -> None:
    check_count(field, len(keys), limit=limit, allowed=count_max)
    for number, key in enumerate(keys):
        check_name(f"{field}[{number}]", key, limit="workflow_id_bytes_max", bytes_max=limits.workflow_id_bytes_max)


def _statuses(field: str, numbers: Iterable[int]) -> frozenset[int]:
    statuses = frozenset(numbers)
    for number in statuses:
        if number not in _STATUSES:
            raise InvalidFieldError(field, "must be known statuses", number)
    return statuses


def _accepted(numbers: Iterable[int]) -> frozenset[int]:
    # A compression that this server does not know is one that it never answers.
    return frozenset(numbers)


def _metadata_filter(text: str, limits: Limits) -> dict[str, object] | None:
    if not text:
        return None
    check_metadata("metadata_contains", text, limits)
    decoded: dict[str, object] = msgspec.json.decode(text)
    check_count(
        "metadata_contains",
        rules.filter_items(decoded),
        limit="metadata_filter_items_max",
        allowed=limits.metadata_filter_items_max,
    )
    return decoded


def _milliseconds(request: Any, name: str) -> int | None:
    """Return a time in milliseconds, rounded up, so that a bound compares with stored times as it would in full."""
    if not request.HasField(name):
        return None
    time: Timestamp = getattr(request, name)
    if not (0 <= time.nanos < 1_000_000_000 and -62_135_596_800 <= time.seconds <= 253_402_300_799):
        raise InvalidFieldError(name, "must be a time between the years 1 and 9999", shown(str(time)))
    return time.seconds * 1000 + -(-time.nanos // 1_000_000)
