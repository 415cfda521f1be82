"""The table of reasons, and how errors look on the wire."""

from __future__ import annotations

import re
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from milepost.v1 import error_reason_pb2
from milepost_server.errors import (
    InvalidFieldError,
    LimitExceededError,
    OutcomeUnknownError,
    PreconditionError,
    RecordDamagedError,
    StoreError,
    UnavailableError,
)
from milepost_server.grpc_api.handlers import abort
from milepost_server.grpc_api.status import (
    DETAILS_BYTES_MAX,
    STATUS_CODES,
    TEXT_BYTES_MAX,
    clip,
    to_item_error,
    to_status,
)


def test_every_reason_of_the_protocol_has_a_code_and_every_code_a_reason() -> None:
    assert set(STATUS_CODES) == set(error_reason_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


def details(status: status_pb2.Status) -> dict[type, Any]:
    found: dict[type, Any] = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if packed.Unpack(message):
                found[kind] = message
    assert len(found) == len(status.details)
    return found


def test_every_error_carries_its_reason_domain_and_metadata() -> None:
    status = to_status(PreconditionError("HEAD_MOVED", "moved", {"expected_head": "a", "head_sequence": 7}))
    assert status.code == grpc.StatusCode.ABORTED.value[0]
    info = details(status)[error_details_pb2.ErrorInfo]
    assert (info.reason, info.domain) == ("HEAD_MOVED", "milepost")
    assert dict(info.metadata) == {"expected_head": "a", "head_sequence": "7"}
    assert len(status.details) == 1


def test_a_field_error_names_the_field_in_a_bad_request() -> None:
    error = LimitExceededError("state['x']", limit="entries_max", allowed=1, found=2, unit="items")
    found = details(to_status(error))
    [violation] = found[error_details_pb2.BadRequest].field_violations
    assert violation.field == "state['x']"
    assert found[error_details_pb2.ErrorInfo].reason == "LIMIT_EXCEEDED"


def test_what_can_be_retried_says_when() -> None:
    found = details(to_status(UnavailableError("NOT_SERVING", "later", retry_after_s=1.25)))
    delay = found[error_details_pb2.RetryInfo].retry_delay
    assert (delay.seconds, delay.nanos) == (1, 250_000_000)
    assert error_details_pb2.RetryInfo not in details(to_status(OutcomeUnknownError("?")))


def test_details_stay_small_whatever_the_error_holds() -> None:
    error = InvalidFieldError("f" * 5_000, "r" * 5_000, "é" * 5_000)
    status = to_status(error)
    assert details(status)[error_details_pb2.ErrorInfo].reason == "INVALID_FIELD"
    assert status.ByteSize() <= DETAILS_BYTES_MAX + 2 * TEXT_BYTES_MAX
    assert len(status.message.encode()) <= TEXT_BYTES_MAX


@pytest.mark.parametrize("text", ["x" * 1_024, "é" * 512, ""])
def test_short_texts_stay_as_they_are(text: str) -> None:
    assert clip(text) == text


def test_a_long_text_is_cut_between_characters() -> None:
    cut = clip("é" * 600)
    assert cut.endswith("…")
    assert len(cut.encode()) <= TEXT_BYTES_MAX


def test_an_item_of_a_batch_says_the_same_as_a_call() -> None:
    error = RecordDamagedError("values", b"\x01\xff", "checksum")
    item = to_item_error(error)
    assert item.code == grpc.StatusCode.DATA_LOSS.value[0]
    assert item.reason == error_reason_pb2.RECORD_DAMAGED
    assert dict(item.metadata) == {"table": "values", "key": "01ff"}


class EndedError(Exception):
    """What a context raises when it ends a call."""


class NotingContext:
    """Notes how it was ended."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self.ended = (code, details, dict(trailing_metadata))
        raise EndedError


async def test_abort_sends_code_message_and_details() -> None:
    context = NotingContext()
    error = StoreError("WORKFLOW_EXISTS", "taken", {"workflow_id": "w"})
    with pytest.raises(EndedError):
        await abort(cast(Any, context), error)
    code, message, trailers = context.ended
    assert (code, message) == (grpc.StatusCode.ALREADY_EXISTS, "taken")
    assert status_pb2.Status.FromString(trailers["grpc-status-details-bin"]) == to_status(error)


def test_reasons_are_upper_snake_case_of_at_most_63_characters() -> None:
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{1,62}", reason) for reason in STATUS_CODES)
