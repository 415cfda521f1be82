"""Reading `grpc-status-details-bin`, compared with the messages Google publishes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from milepost._status import NOTHING, STATUS_KEY, Details, read_details
from tests.support.scripted_server import pack


def trailers(*details: AnyMessage) -> list[tuple[str, str | bytes]]:
    status = status_pb2.Status(code=9, message="m", details=details)
    return [("other", "x"), (STATUS_KEY, status.SerializeToString())]


def test_every_detail_is_read() -> None:
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="milepost", metadata={"a": "1", "b": "ü"})
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="state.x", description="is too long")
    assert read_details(trailers(pack(info), pack(retry), pack(bad))) == Details(
        "QUEUE_FULL", {"a": "1", "b": "ü"}, 2.5, (("state.x", "is too long"),)
    )


def test_a_reason_of_another_domain_is_none_of_ours() -> None:
    info = error_details_pb2.ErrorInfo(reason="WORKFLOW_NOT_FOUND", domain="googleapis.com", metadata={"a": "1"})
    assert read_details(trailers(pack(info))) == NOTHING


@pytest.mark.parametrize(
    "found",
    [None, [], [("other", "x")], [(STATUS_KEY, b"\xff\xff")], [(STATUS_KEY, b"")], [(STATUS_KEY, "text")]],
)
def test_what_cannot_be_read_counts_as_absent(found: list[tuple[str, str | bytes]] | None) -> None:
    assert read_details(found) == NOTHING


def test_a_damaged_detail_counts_as_absent() -> None:
    broken = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    assert read_details(trailers(broken)) == NOTHING


def test_nothing_is_registered_in_the_pool_that_the_process_shares() -> None:
    program = (
        "from milepost import _status\n"
        "_status.read_details([(_status.STATUS_KEY, b'')])\n"
        "from google.protobuf import descriptor_pool\n"
        "try:\n"
        "    descriptor_pool.Default().FindMessageTypeByName('google.rpc.Status')\n"
        "except KeyError:\n"
        "    print('absent')\n"
        "import google.rpc.error_details_pb2\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "absent\n"
