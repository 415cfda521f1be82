"""BatchSave: in order, one outcome an item, and an item never lands on what it was not made for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import error_reason_pb2
from tests.support.raw_calls import open_stub, save_request
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module", params=[(), ("--no-engine-process",)], ids=["process", "no process"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for the tests of the file, with its engine in either place."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data", arguments=request.param) as process:
        yield process
        assert process.stop() == 0, process.stderr
        assert "Traceback" not in process.stderr, process.stderr


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


def test_a_failure_is_known_to_items_of_later_commits(stub: Any, request: pytest.FixtureRequest) -> None:
    """One commit takes no more than 256 items."""
    items = chain(request.node.name, 400)
    items[5].expected_head = "somebody-else"
    items += [
        save_request(request.node.name, checkpoint_id="free"),
        save_request(request.node.name, checkpoint_id="c5"),
    ]
    items.append(save_request(request.node.name, checkpoint_id="last", parent_id="c5"))
    answer = stub.BatchSave(pb.BatchSaveRequest(items=items))
    assert outcomes(answer) == [*["saved"] * 5, "HEAD_MOVED", *["PREDECESSOR_FAILED"] * 394, *["saved"] * 3]
    assert dict(answer.results[399].error.metadata) == {"index": "399", "predecessor_index": "398"}


def test_an_item_of_megabytes_is_stored_between_small_ones(stub: Any, request: pytest.FixtureRequest) -> None:
    large = json.dumps("x" * 3_000_000)
    items = [
        save_request(request.node.name, checkpoint_id=f"c{number}", entries={"x": large if number == 2 else "1"})
        for number in range(5)
    ]
    answer = stub.BatchSave(pb.BatchSaveRequest(items=items))
    assert [each.saved.sequence for each in answer.results] == [1, 2, 3, 4, 5]
    loaded = stub.Load(pb.LoadRequest(workflow_id=request.node.name, checkpoint_id="c2"))
    assert loaded.checkpoint.state["x"].json == large


def test_items_of_several_workflows_and_namespaces_are_told_to_who_watches(
    stub: Any, request: pytest.FixtureRequest
) -> None:
    """In order, what was stored and nothing else."""
    names = [f"{request.node.name}-{number}" for number in range(2)]
    stub.Save(save_request(names[1], checkpoint_id="old", namespace="watched"))
    watch = stub.Watch(pb.WatchRequest(namespace="watched"), timeout=30)
    assert next(watch).kind == pb.WATCH_EVENT_KIND_STARTED
    items = [
        save_request(names[0], checkpoint_id="a", namespace="watched"),
        save_request(names[0], checkpoint_id="a"),
        save_request(names[1], checkpoint_id="old", namespace="watched"),
        save_request(names[1], checkpoint_id="b", namespace="watched", expected_head="nobody"),
        save_request(names[1], checkpoint_id="c", namespace="watched", current_step="s"),
    ]
    assert outcomes(stub.BatchSave(pb.BatchSaveRequest(items=items))) == [
        "saved", "saved", "replayed", "HEAD_MOVED", "saved"
    ]  # fmt: skip
    told = [next(watch) for _ in range(2)]
    watch.cancel()
    assert [(each.workflow_id, each.checkpoint_id, each.current_step) for each in told] == [
        (names[0], "a", ""),
        (names[1], "c", "s"),
    ]


def test_an_item_that_releases_a_lease_wakes_who_waits_for_it(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    token = stub.AcquireLease(pb.AcquireLeaseRequest(workflow_id=workflow_id, holder="first")).lease.token
    waiting = stub.AcquireLease.future(
        pb.AcquireLeaseRequest(workflow_id=workflow_id, holder="second", wait_ms=30_000), timeout=60
    )
    # Answered after the one that waits has come.
    stub.GetLease(pb.GetLeaseRequest(workflow_id=workflow_id), timeout=30)
    items = [
        save_request(workflow_id, checkpoint_id="a", lease_token=token),
        save_request(workflow_id, checkpoint_id="b", lease_token=token, release_lease=True),
    ]
    assert outcomes(stub.BatchSave(pb.BatchSaveRequest(items=items))) == ["saved", "saved"]
    # The lease would have run for 30 s from its last renewal.
    assert waiting.result(timeout=15).lease.holder == "second"
