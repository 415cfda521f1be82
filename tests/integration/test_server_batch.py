"""BatchSave: in order, one outcome an item, and an item never lands on what it was not made for."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import error_reason_pb2
from tests.support.raw_calls import open_stub, save_request


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    """The generated stub of the file's server."""
    return open_stub(channel)


def chain(workflow_id: str, count: int) -> list[pb.SaveRequest]:
    return [
        save_request(
            workflow_id,
            checkpoint_id=f"c{number}",
            entries={"x": str(number)},
            **({"parent_id": f"c{number - 1}", "expected_head": f"c{number - 1}"} if number else {"expected_head": ""}),
        )
        for number in range(count)
    ]


def outcomes(answer: pb.BatchSaveResponse) -> list[str]:
    return [
        "replayed" if each.saved.replayed else "saved"
        if each.WhichOneof("outcome") == "saved"
        else error_reason_pb2.ErrorReason.Name(each.error.reason)
        for each in answer.results
    ]  # fmt: skip


def test_a_chain_of_a_thousand_is_stored_in_order_and_replayed_whole(stub: Any, request: pytest.FixtureRequest) -> None:
    items = chain(request.node.name, 1_000)
    first = stub.BatchSave(pb.BatchSaveRequest(items=items))
    assert outcomes(first) == ["saved"] * 1_000
    assert [each.saved.sequence for each in first.results] == list(range(1, 1_001))
    assert outcomes(stub.BatchSave(pb.BatchSaveRequest(items=items))) == ["replayed"] * 1_000


def test_what_builds_on_a_failed_item_fails_for_that_reason(stub: Any, request: pytest.FixtureRequest) -> None:
    items = chain(request.node.name, 5)
    items[1].expected_head = "somebody-else"
    items.append(save_request(request.node.name, checkpoint_id="free"))
    answer = stub.BatchSave(pb.BatchSaveRequest(items=items))
    assert outcomes(answer) == ["saved", "HEAD_MOVED", *["PREDECESSOR_FAILED"] * 3, "saved"]
    assert dict(answer.results[3].error.metadata) == {"index": "3", "predecessor_index": "2"}


def test_what_builds_on_a_malformed_item_fails_too(stub: Any, request: pytest.FixtureRequest) -> None:
    items = chain(request.node.name, 3)
    items[0].state["x"].json = "{"
    answer = stub.BatchSave(pb.BatchSaveRequest(items=items))
    assert outcomes(answer) == ["INVALID_FIELD", "PREDECESSOR_FAILED", "PREDECESSOR_FAILED"]


def test_an_item_does_not_land_on_other_content_that_has_the_id_of_its_failed_predecessor(
    stub: Any, request: pytest.FixtureRequest
) -> None:
    workflow_id = request.node.name
    stub.Save(save_request(workflow_id, checkpoint_id="c0", entries={"x": '"of another writer"'}))
    items = [
        save_request(workflow_id, checkpoint_id="c0", entries={"x": "0"}),
        save_request(workflow_id, checkpoint_id="c1", parent_id="c0", base_checkpoint_id="c0", entries={"y": "1"}),
        save_request(workflow_id, checkpoint_id="c2", parent_id="c1"),
    ]
    answer = stub.BatchSave(pb.BatchSaveRequest(items=items))
    assert outcomes(answer) == ["CHECKPOINT_EXISTS", "PREDECESSOR_FAILED", "PREDECESSOR_FAILED"]
    assert stub.Load(pb.LoadRequest(workflow_id=workflow_id)).checkpoint.checkpoint_id == "c0"


def test_the_same_id_in_another_scope_is_no_predecessor(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    stub.Save(save_request(workflow_id, checkpoint_id="p", scope="b"))
    items = [
        save_request(workflow_id, checkpoint_id="p", scope="a", expected_head="none"),
        save_request(workflow_id, checkpoint_id="q", scope="b", parent_id="p"),
    ]
    assert outcomes(stub.BatchSave(pb.BatchSaveRequest(items=items))) == ["HEAD_MOVED", "saved"]
