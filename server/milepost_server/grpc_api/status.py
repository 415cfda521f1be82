"""THE table from reasons to gRPC status codes, and how an error is put on the wire.

Every error carries a `google.rpc.Status` (AIP-193) with `ErrorInfo`, for a field at fault `BadRequest`, where
waiting helps `RetryInfo`. The client has the counterpart of this table; the reasons are documented in
`error_reason.proto`. Imported by the storage process too, so nothing here may need gRPC itself.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from milepost.v1 import checkpoint_store_pb2 as store_pb
from milepost.v1 import error_reason_pb2
from milepost_server.errors import StoreError

ERROR_DOMAIN: Final = "milepost"
DETAILS_KEY: Final = "grpc-status-details-bin"
TEXT_BYTES_MAX: Final = 1024
"""Of a message, and of each metadata value: trailers are cut off by peers at 8 KiB, and then the whole call fails."""
DETAILS_BYTES_MAX: Final = 4096
"""Of the encoded details."""

STATUS_CODES: Final[dict[str, int]] = {
    "INVALID_FIELD": code_pb2.INVALID_ARGUMENT,
    "LIMIT_EXCEEDED": code_pb2.INVALID_ARGUMENT,
    "STATE_TOO_LARGE": code_pb2.INVALID_ARGUMENT,
    "PAGE_TOKEN_INVALID": code_pb2.INVALID_ARGUMENT,
    "PAGE_TOKEN_MISMATCH": code_pb2.INVALID_ARGUMENT,
    "WORKFLOW_NOT_FOUND": code_pb2.NOT_FOUND,
    "CHECKPOINT_NOT_FOUND": code_pb2.NOT_FOUND,
    "DEFINITION_NOT_FOUND": code_pb2.NOT_FOUND,
    "CHECKPOINT_EXISTS": code_pb2.ALREADY_EXISTS,
    "WORKFLOW_EXISTS": code_pb2.ALREADY_EXISTS,
    "SIGNAL_EXISTS": code_pb2.ALREADY_EXISTS,
    "HEAD_MOVED": code_pb2.ABORTED,
    "PAGE_EXPIRED": code_pb2.ABORTED,
    "DIGEST_MISMATCH": code_pb2.ABORTED,
    "LEASE_HELD": code_pb2.ABORTED,
    "LEASE_LOST": code_pb2.ABORTED,
    "BASE_NOT_FOUND": code_pb2.FAILED_PRECONDITION,
    "PARENT_NOT_FOUND": code_pb2.FAILED_PRECONDITION,
    "CHECKPOINT_DELETED": code_pb2.FAILED_PRECONDITION,
    "DEFINITION_MISMATCH": code_pb2.FAILED_PRECONDITION,
    "PREDECESSOR_FAILED": code_pb2.FAILED_PRECONDITION,
    "RECORD_CHECKPOINT_MISSING": code_pb2.FAILED_PRECONDITION,
    "QUEUE_FULL": code_pb2.RESOURCE_EXHAUSTED,
    "DISK_LOW": code_pb2.RESOURCE_EXHAUSTED,
    "STORE_FULL": code_pb2.RESOURCE_EXHAUSTED,
    "QUOTA_EXCEEDED": code_pb2.RESOURCE_EXHAUSTED,
    "WATCH_TOO_SLOW": code_pb2.RESOURCE_EXHAUSTED,
    "WATCH_COMPACTED": code_pb2.OUT_OF_RANGE,
    "NOT_COMMITTED": code_pb2.UNAVAILABLE,
    "NOT_SERVING": code_pb2.UNAVAILABLE,
    "OUTCOME_UNKNOWN": code_pb2.UNKNOWN,
    "RECORD_DAMAGED": code_pb2.DATA_LOSS,
    "INTERNAL_ERROR": code_pb2.INTERNAL,
}


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
    status = status_pb2.Status(code=STATUS_CODES[error.reason], message=message)
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
        code=STATUS_CODES[error.reason],
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
