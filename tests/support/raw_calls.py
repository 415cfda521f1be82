"""Calls to a server by the generated messages alone, and what their errors say: for tests of the wire itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import checkpoint_store_pb2_grpc as pb_grpc
from tests.support.documented import certain_metadata_keys, reason_comments

SERVICE = "milepost.v1.CheckpointStore"
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
"""Beyond any limit of the server, so that it is the server that refuses."""


class Refusal(NamedTuple):
    """What an error of a call says."""

    code: grpc.StatusCode
    reason: str
    metadata: Mapping[str, str]
    fields: tuple[str, ...]
    retry_after_s: float | None
    message: str


def open_channel(target: str) -> grpc.Channel:
    """Return a channel that receives and sends any size."""
    return grpc.insecure_channel(
        target,
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ],
    )


def open_stub(channel: grpc.Channel) -> Any:
    """Return the generated stub."""
    return pb_grpc.CheckpointStoreStub(channel)


def refusal(call: Any, request: object, *, timeout_s: float = 30.0) -> Refusal:
    """Make a call that must fail, and return what its error says."""
    try:
        answer = call(request, timeout=timeout_s)
    except grpc.RpcError as error:
        return read_error(error)
    raise AssertionError(f"answered: {answer}")


def read_error(error: grpc.RpcError) -> Refusal:
    """Return what the error of a call says; one that has not the details that its reason is documented with fails."""
    call = cast(grpc.Call, error)
    trailers = dict(call.trailing_metadata() or ())
    status = status_pb2.Status.FromString(cast(bytes, trailers.get("grpc-status-details-bin", b"")))
    reason = ""
    metadata: Mapping[str, str] = {}
    fields: tuple[str, ...] = ()
    retry_after_s: float | None = None
    for packed in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            assert info.domain == "milepost"
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            fields = tuple(violation.field for violation in bad.field_violations)
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    if reason:
        assert certain_metadata_keys()[reason] <= metadata.keys(), f"{reason} has {metadata}"
        assert retry_after_s or "with RetryInfo" not in reason_comments()[reason], f"{reason} has no RetryInfo"
    return Refusal(call.code(), reason, metadata, fields, retry_after_s, call.details() or "")


def save_request(workflow_id: str = "w", *, entries: Mapping[str, str] | None = None, **fields: Any) -> pb.SaveRequest:
    """Return a Save of JSON entries."""
    request = pb.SaveRequest(workflow_id=workflow_id, **fields)
    for key, text in (entries or {"x": "1"}).items():
        request.state[key].json = text
    return request
