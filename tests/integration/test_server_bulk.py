"""Calls that span several commits: forks, pruning, deletes, and reading page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.raw_calls import open_channel, open_stub, refusal, save_request
from tests.support.server_process import ServerProcess

STEPS = 600
"""More checkpoints than one transaction deletes or copies."""


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    """The generated stub of the file's server."""
    return open_stub(channel)


def fill(stub: Any, workflow_id: str, count: int = STEPS, **fields: Any) -> None:
    items = [
        save_request(workflow_id, checkpoint_id=f"c{number}", entries={"x": str(number)}, **fields)
        for number in range(count)
    ]
    for start in range(0, count, 1_000):
        answer = stub.BatchSave(pb.BatchSaveRequest(items=items[start : start + 1_000]))
        assert all(each.WhichOneof("outcome") == "saved" for each in answer.results)


def sequences(stub: Any, **fields: Any) -> list[int]:
    found: list[int] = []
    token = ""
    while True:
        page = stub.List(pb.ListRequest(page_token=token, **fields))
        found += [each.sequence for each in page.checkpoints]
        token = page.next_page_token
        if not token:
            return found


def test_a_list_read_page_by_page_is_complete_in_both_orders(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    fill(stub, workflow_id)
    newest = sequences(stub, workflow_id=workflow_id, page_size=97)
    assert newest == list(range(STEPS, 0, -1))
    oldest = sequences(stub, workflow_id=workflow_id, page_size=1_000, order=pb.ORDER_OLDEST_FIRST)
    assert oldest == newest[::-1]
    assert sequences(stub, workflow_id=workflow_id, before_sequence=5) == [4, 3, 2, 1]


def test_a_fork_has_the_history_and_is_made_once(stub: Any, request: pytest.FixtureRequest) -> None:
    source, target = request.node.name, f"{request.node.name}-fork"
    fill(stub, source)
    fork = pb.ForkWorkflowRequest(workflow_id=source, target_workflow_id=target, checkpoint_id="c499", fork_id="f")
    made = stub.ForkWorkflow(fork)
    assert (made.replayed, made.workflow.checkpoint_count, made.workflow.head_checkpoint_id) == (False, 500, "c499")
    assert stub.ForkWorkflow(fork).replayed
    fork.fork_id = "other"
    refused = refusal(stub.ForkWorkflow, fork)
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "WORKFLOW_EXISTS")
    assert stub.Load(pb.LoadRequest(workflow_id=target)).checkpoint.state["x"].json == "499"


def test_pruning_goes_on_with_its_token_until_done(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    count = 3_000
    fill(stub, workflow_id, count, parent_id="")
    for is_dry in (True, False):
        deleted, token, calls = 0, "", 0
        while True:
            answer = stub.PruneWorkflow(
                pb.PruneWorkflowRequest(workflow_id=workflow_id, keep_last=2, dry_run=is_dry, continue_token=token)
            )
            deleted, token, calls = deleted + answer.deleted, answer.continue_token, calls + 1
            assert answer.done == (not token)
            if answer.done:
                break
        assert deleted == count - 2
        assert calls > 1
    assert sequences(stub, workflow_id=workflow_id) == [count, count - 1]


def test_checkpoints_are_deleted_by_id_and_by_run(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    fill(stub, workflow_id, run_id="run-1", parent_id="")
    ids = [f"c{number}" for number in range(300)]
    by_id = pb.DeleteCheckpointsRequest(workflow_id=workflow_id, checkpoint_ids=[*ids, "unknown"])
    assert stub.DeleteCheckpoints(by_id).deleted == 300
    again = stub.DeleteCheckpoints(by_id)
    assert (again.deleted, again.done) == (0, True)
    deleted, token = 0, ""
    while True:
        by_run = pb.DeleteCheckpointsRequest(workflow_id=workflow_id, run_ids=["run-0", "run-1"], continue_token=token)
        answer = stub.DeleteCheckpoints(by_run)
        deleted, token = deleted + answer.deleted, answer.continue_token
        if answer.done:
            break
    assert deleted == 300
    refused = refusal(stub.Save, save_request(workflow_id, checkpoint_id="c1"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_DELETED")


def test_a_run_is_deleted_in_every_workflow_of_its_namespace_and_no_other(
    stub: Any, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    for namespace in ("one", "two"):
        for workflow_id in ("a", "b"):
            stub.Save(save_request(f"{name}-{workflow_id}", namespace=namespace, run_id="r", checkpoint_id="c"))
    assert stub.DeleteCheckpoints(pb.DeleteCheckpointsRequest(namespace="one", run_ids=["r"])).deleted == 2
    assert stub.Load(pb.LoadRequest(namespace="two", workflow_id=f"{name}-a")).checkpoint.checkpoint_id == "c"


def test_a_deleted_workflow_is_gone_and_can_be_made_again(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    fill(stub, workflow_id)
    deleted = stub.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id=workflow_id))
    assert (deleted.existed, deleted.checkpoint_count) == (True, STEPS)
    assert not stub.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id=workflow_id)).existed
    assert refusal(stub.Load, pb.LoadRequest(workflow_id=workflow_id)).reason == "WORKFLOW_NOT_FOUND"
    assert stub.Save(save_request(workflow_id, checkpoint_id="new")).sequence == 1


def test_workflows_are_listed_page_by_page(stub: Any, request: pytest.FixtureRequest) -> None:
    prefix = request.node.name
    for number in range(7):
        stub.Save(save_request(f"{prefix}-{number}", labels={"parity": str(number % 2)}))
    found: list[str] = []
    token = ""
    while True:
        page = stub.ListWorkflows(pb.ListWorkflowsRequest(workflow_id_prefix=prefix, page_size=3, page_token=token))
        found += [each.workflow_id for each in page.workflows]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"{prefix}-{number}" for number in range(7)]
    odd = stub.ListWorkflows(pb.ListWorkflowsRequest(workflow_id_prefix=prefix, labels={"parity": "1"}))
    assert len(odd.workflows) == 3


def test_the_history_of_an_entry_is_read_page_by_page(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    fill(stub, workflow_id, 30)
    found: list[str] = []
    token = ""
    while True:
        page = stub.GetEntryHistory(
            pb.GetEntryHistoryRequest(workflow_id=workflow_id, entry_keys=["x"], page_size=7, page_token=token)
        )
        found += [each.value.json for each in page.versions]
        token = page.next_page_token
        if not token:
            break
    assert found == [str(number) for number in range(29, -1, -1)]


@pytest.fixture(scope="module")
def small_slices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The stub of a server that deletes few checkpoints in a call, with 100 of each kind of thing to go through."""
    environment = {"MILEPOST_SERVER__LIMITS__SLICE_ROWS_MAX": "12"}
    with (
        ServerProcess(tmp_path_factory.mktemp("small") / "data", environment=environment) as server,
        open_channel(server.target) as channel,
    ):
        stub = open_stub(channel)
        fill(stub, "w", 100, run_id="r", parent_id="")
        fill(stub, "line", 100)
        for number in range(2):
            stub.SendSignal(pb.SendSignalRequest(workflow_id="w", signal_id=str(number), name="n"))
        yield stub


OTHER: dict[str, Any] = {
    "namespace": "other",
    "workflow_id": "other",
    "scope": "s",
    "order": pb.ORDER_OLDEST_FIRST,
    "statuses": [1],
    "current_step": "s",
    "before_checkpoint_id": "z",
    "before_sequence": 9,
    "metadata_contains": '{"a":1}',
    "include_state": True,
    "include_records": True,
    "run_id": "r",
    "workflow_id_prefix": "w",
    "labels": {"l": "1"},
    "definition": "d",
    "updated_from": Timestamp(seconds=1),
    "updated_before": Timestamp(seconds=1),
    "is_leased": False,
    "has_pending_signals": False,
    "fingerprint": "f",
    "checkpoint_id": "c50",
    "entry_keys": ["x", "y"],
    "name": "n",
    "keep_last": 2,
    "dry_run": False,
    "run_ids": ["r", "q"],
}
"""For each argument of a call with a token, one that it was not made with."""
NOT_ARGUMENTS = {"page_size", "accept_compression", "lease_token", "checkpoint_ids"}
"""May change from page to page; or (the ids of a delete) go with no token."""


@pytest.mark.parametrize(
    "kind,arguments",
    [
        (pb.ListRequest, {"workflow_id": "w", "page_size": 1}),
        (pb.ListWorkflowsRequest, {"page_size": 1}),
        (pb.GetEntryHistoryRequest, {"workflow_id": "line", "entry_keys": ["x"], "page_size": 1}),
        (pb.ListSignalsRequest, {"workflow_id": "w", "page_size": 1}),
        (pb.PruneWorkflowRequest, {"workflow_id": "w", "keep_last": 1, "dry_run": True}),
        (pb.DeleteCheckpointsRequest, {"workflow_id": "w", "run_ids": ["r"]}),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_a_token_goes_with_the_arguments_it_was_made_with_and_no_others(
    small_slices: Any, kind: Any, arguments: dict[str, Any]
) -> None:
    call = getattr(small_slices, kind.__name__.removesuffix("Request"))
    field = "page_token" if "page_token" in kind.DESCRIPTOR.fields_by_name else "continue_token"
    token = getattr(call(kind(**arguments)), field.replace("page", "next_page"))
    names = {each.name for each in kind.DESCRIPTOR.fields} - {field} - NOT_ARGUMENTS
    if kind is pb.DeleteCheckpointsRequest:
        # A run is deleted in every scope.
        names.remove("scope")
    for name in sorted(names):
        refused = refusal(call, kind(**{**arguments, field: token, name: OTHER[name]}))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_MISMATCH"), name
        assert refused.fields == (field,)
    refused = refusal(call, kind(**{**arguments, field: token[:-2]}))
    assert (refused.reason, refused.fields) == ("PAGE_TOKEN_INVALID", (field,))
    call(kind(**{**arguments, field: token}))


def test_a_delete_of_a_run_goes_on_with_its_token_and_leaves_what_is_saved_meanwhile(small_slices: Any) -> None:
    fill(small_slices, "runs", 100, run_id="run", parent_id="")
    arguments: dict[str, Any] = {"workflow_id": "runs", "run_ids": ["none", "run"]}
    first = small_slices.DeleteCheckpoints(pb.DeleteCheckpointsRequest(**arguments))
    assert (first.done, 0 < first.deleted < 100) == (False, True)
    small_slices.Save(save_request("runs", checkpoint_id="meanwhile", run_id="run"))
    deleted, token = first.deleted, first.continue_token
    while token:
        answer = small_slices.DeleteCheckpoints(pb.DeleteCheckpointsRequest(**arguments, continue_token=token))
        deleted, token = deleted + answer.deleted, answer.continue_token
        assert answer.done == (not token)
    assert deleted == 100
    assert sequences(small_slices, workflow_id="runs") == [101]
