"""THE table from reasons to gRPC status codes, and how an error is put on the wire.

Every error carries a `google.rpc.Status` (AIP-193) with `ErrorInfo`, for a field at fault `BadRequest`, where
waiting helps `RetryInfo`. The client has the counterpart of this table; the reasons are documented in
`error_reason.proto`.
"""

from __future__ import annotations

from typing import Final, NoReturn, Protocol

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from milepost.v1 import checkpoint_store_pb2 as store_pb
from milepost.v1 import error_reason_pb2
from milepost_server.errors import StoreError

ERROR_DOMAIN: Final = "milepost"
DETAILS_KEY: Final = "grpc-status-details-bin"
TEXT_BYTES_MAX: Final = 1024
"""Of a message, and of each metadata value: trailers are cut off by peers at 8 KiB, and then the whole call fails."""
DETAILS_BYTES_MAX: Final = 4096
"""Of the encoded details."""

STATUS_CODES: Final[dict[str, grpc.StatusCode]] = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "LIMIT_EXCEEDED": grpc.StatusCode.INVALID_ARGUMENT,
    "STATE_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "PAGE_TOKEN_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "PAGE_TOKEN_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "WORKFLOW_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "CHECKPOINT_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "DEFINITION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "CHECKPOINT_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "WORKFLOW_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "SIGNAL_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "HEAD_MOVED": grpc.StatusCode.ABORTED,
    "PAGE_EXPIRED": grpc.StatusCode.ABORTED,
    "DIGEST_MISMATCH": grpc.StatusCode.ABORTED,
    "LEASE_HELD": grpc.StatusCode.ABORTED,
    "LEASE_LOST": grpc.StatusCode.ABORTED,
    "BASE_NOT_FOUND": grpc.StatusCode.FAILED_PRECONDITION,
    "PARENT_NOT_FOUND": grpc.StatusCode.FAILED_PRECONDITION,
    "CHECKPOINT_DELETED": grpc.StatusCode.FAILED_PRECONDITION,
    "DEFINITION_MISMATCH": grpc.StatusCode.FAILED_PRECONDITION,
    "PREDECESSOR_FAILED": grpc.StatusCode.FAILED_PRECONDITION,
    "RECORD_CHECKPOINT_MISSING": grpc.StatusCode.FAILED_PRECONDITION,
    "QUEUE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "DISK_LOW": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STORE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "WATCH_TOO_SLOW": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "WATCH_COMPACTED": grpc.StatusCode.OUT_OF_RANGE,
    "NOT_COMMITTED": grpc.StatusCode.UNAVAILABLE,
    "NOT_SERVING": grpc.StatusCode.UNAVAILABLE,
    "OUTCOME_UNKNOWN": grpc.StatusCode.UNKNOWN,
    "RECORD_DAMAGED": grpc.StatusCode.DATA_LOSS,
    "INTERNAL_ERROR": grpc.StatusCode.INTERNAL,
}


class Aborts(Protocol):
    """The part of a call's context that ends it with an error."""

    async def abort(
        self, code: grpc.StatusCode, details: str = ..., trailing_metadata: tuple[tuple[str, bytes], ...] = ...
    ) -> NoReturn:
        """End the call."""


def status_code(error: StoreError) -> grpc.StatusCode:
    """Return the gRPC code of an error."""
    return STATUS_CODES[error.reason]


async def abort(context: Aborts, error: StoreError) -> NoReturn:
    """End a call with an error."""
    # Not `abort_with_status`: OpenTelemetry's interceptor does not see that one.
    await context.abort(status_code(error), clip(error.message), ((DETAILS_KEY, to_status(error).SerializeToString()),))


def to_status(error: StoreError) -> status_pb2.Status:
    """Return an error as it goes on the wire, within the size that trailers can have."""
    message = clip(error.message)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=ERROR_DOMAIN,
        metadata={key: clip(value) for key, value in error.metadata.items()},
    )
    details: list[Message] = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=clip(error.field), description=clip(error.metadata.get("rule", message))
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=status_code(error).value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        # The reason comes first and is never left out; what follows only repeats or adds.
        if detail is info or status.ByteSize() + packed.ByteSize() <= DETAILS_BYTES_MAX:
            status.details.append(packed)
    return status


def to_item_error(error: StoreError) -> store_pb.ItemError:
    """Return the error of one item of a batch."""
    return store_pb.ItemError(
        code=status_code(error).value[0],
        reason=error_reason_pb2.ErrorReason.Value(error.reason),
        message=clip(error.message),
        metadata={key: clip(value) for key, value in error.metadata.items()},
    )


def clip(text: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Return a text, cut where it is longer than trailers should carry."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return text
    return encoded[: bytes_max - 3].decode("utf-8", "ignore") + "…"
