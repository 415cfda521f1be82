"""Leases over the wire: grants, fences, waits, and that no token outlives its lease, whatever is killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import error_reason_pb2
from tests.support.raw_calls import open_channel, open_stub, refusal, save_request
from tests.support.server_process import ServerProcess

WAIT_MS = 30_000


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return open_stub(channel)


def acquire(stub: Any, workflow_id: str, **fields: Any) -> pb.AcquireLeaseResponse:
    request = pb.AcquireLeaseRequest(workflow_id=workflow_id, **{"holder": "web-1", **fields})
    answer: pb.AcquireLeaseResponse = stub.AcquireLease(request, timeout=60)
    return answer


def test_a_lease_from_grant_to_release(stub: Any) -> None:
    granted = acquire(stub, "whole", ttl_ms=20_000)
    token = granted.lease.token
    assert token > 0
    assert (granted.lease.holder, granted.lease.ttl_ms, granted.replayed) == ("web-1", 20_000, False)
    assert 15_000 < granted.lease.remaining_ms <= 20_000
    assert granted.lease.grant_time.seconds > 1_700_000_000
    saved = stub.Save(save_request("whole", lease_token=token), timeout=30)
    assert 15_000 < saved.lease_remaining_ms <= 20_000
    renewed = stub.RenewLease(pb.RenewLeaseRequest(workflow_id="whole", lease_token=token), timeout=30)
    assert (renewed.lease.token, renewed.lease.ttl_ms) == (token, 20_000)
    shown = stub.GetLease(pb.GetLeaseRequest(workflow_id="whole"), timeout=30).lease
    assert (shown.token, shown.holder) == (0, "web-1")
    workflow = stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="whole"), timeout=30).workflow
    assert (workflow.lease.holder, workflow.lease.token) == ("web-1", 0)
    listed = stub.ListWorkflows(pb.ListWorkflowsRequest(workflow_id_prefix="whole", is_leased=True), timeout=30)
    assert [each.lease.holder for each in listed.workflows] == ["web-1"]
    release = pb.ReleaseLeaseRequest(workflow_id="whole", lease_token=token)
    assert stub.ReleaseLease(release, timeout=30).released is True
    assert stub.ReleaseLease(release, timeout=30).released is False
    assert not stub.GetLease(pb.GetLeaseRequest(workflow_id="whole"), timeout=30).HasField("lease")
    listed = stub.ListWorkflows(pb.ListWorkflowsRequest(workflow_id_prefix="whole", is_leased=True), timeout=30)
    assert not listed.workflows


def test_the_refusals_say_who_and_how_long(stub: Any) -> None:
    acquire(stub, "held", holder="web-2:4711")
    found = refusal(stub.Save, save_request("held"))
    assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "LEASE_HELD")
    assert (found.metadata["holder"], found.metadata["workflow_id"]) == ("web-2:4711", "held")
    assert 0 < int(found.metadata["remaining_ms"]) <= 30_000
    lost = refusal(stub.RenewLease, pb.RenewLeaseRequest(workflow_id="held", lease_token=2**62))
    assert (lost.code, lost.reason, dict(lost.metadata)) == (
        grpc.StatusCode.ABORTED,
        "LEASE_LOST",
        {"workflow_id": "held"},
    )


def call_append(stub: Any, workflow_id: str, token: int) -> object:
    record = pb.AppendRecordsRequest(workflow_id=workflow_id, checkpoint_id="c", lease_token=token)
    record.records.add(task_id="t").value.json = "1"
    return stub.AppendRecords(record, timeout=30)


def call_delete_ids(stub: Any, workflow_id: str, token: int) -> object:
    request = pb.DeleteCheckpointsRequest(workflow_id=workflow_id, checkpoint_ids=["c"], lease_token=token)
    return stub.DeleteCheckpoints(request, timeout=30)


def call_delete_runs(stub: Any, workflow_id: str, token: int) -> object:
    request = pb.DeleteCheckpointsRequest(workflow_id=workflow_id, run_ids=["r"], lease_token=token)
    return stub.DeleteCheckpoints(request, timeout=30)


def call_delete_workflow(stub: Any, workflow_id: str, token: int) -> object:
    return stub.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id=workflow_id, lease_token=token), timeout=30)


@pytest.mark.parametrize("call", [call_append, call_delete_ids, call_delete_runs, call_delete_workflow])
def test_every_guarded_call_carries_the_token(stub: Any, call: Callable[[Any, str, int], object]) -> None:
    workflow_id = f"guarded-{call.__name__}"
    stub.Save(save_request(workflow_id, checkpoint_id="c", run_id="r"), timeout=30)
    token = acquire(stub, workflow_id).lease.token
    reasons = [
        refusal(lambda _, timeout, wrong=wrong: call(stub, workflow_id, wrong), None).reason for wrong in (0, token + 1)
    ]
    assert reasons == ["LEASE_HELD", "LEASE_LOST"]
    call(stub, workflow_id, token)


def test_a_batch_is_fenced_item_by_item(stub: Any) -> None:
    token = acquire(stub, "batch-a").lease.token
    request = pb.BatchSaveRequest(
        items=[
            save_request("batch-a", checkpoint_id="1"),
            save_request("batch-a", checkpoint_id="2", lease_token=token),
            save_request("batch-b", checkpoint_id="1"),
        ]
    )
    results = stub.BatchSave(request, timeout=30).results
    assert [result.error.reason for result in results] == [error_reason_pb2.LEASE_HELD, 0, 0]
    assert [result.HasField("saved") for result in results] == [False, True, True]


@pytest.mark.parametrize(
    "field, request_",
    [
        ("ttl_ms", pb.AcquireLeaseRequest(workflow_id="w", ttl_ms=999)),
        ("ttl_ms", pb.AcquireLeaseRequest(workflow_id="w", ttl_ms=3_600_001)),
        ("ttl_ms", pb.AcquireLeaseRequest(workflow_id="w", ttl_ms=-1)),
        ("wait_ms", pb.AcquireLeaseRequest(workflow_id="w", wait_ms=60_001)),
        ("wait_ms", pb.AcquireLeaseRequest(workflow_id="w", wait_ms=-1)),
        ("holder", pb.AcquireLeaseRequest(workflow_id="w", holder="h" * 257)),
        ("request_id", pb.AcquireLeaseRequest(workflow_id="w", request_id="h" * 257)),
        ("workflow_id", pb.AcquireLeaseRequest()),
        ("lease_token", pb.RenewLeaseRequest(workflow_id="w")),
        ("lease_token", pb.ReleaseLeaseRequest(workflow_id="w")),
        ("lease_token", pb.ReleaseLeaseRequest(workflow_id="w", lease_token=1, force=True)),
        ("lease_token", save_request("w", lease_token=-1)),
        ("lease_token", save_request("w", release_lease=True)),
        ("lease_token", pb.DeleteWorkflowRequest(workflow_id="w", lease_token=-1)),
        ("lease_token", pb.DeleteCheckpointsRequest(run_ids=["r"], lease_token=1)),
    ],
)
def test_malformed_requests_name_their_field(stub: Any, field: str, request_: Any) -> None:
    method = type(request_).__name__.removesuffix("Request")
    assert refusal(getattr(stub, method), request_).fields == (field,)


def test_who_waits_gets_the_lease_as_soon_as_it_is_released(stub: Any) -> None:
    token = acquire(stub, "wait").lease.token
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(acquire, stub, "wait", holder="second", wait_ms=WAIT_MS)
        # It is in line once the lease has been asked for; a release before that would be as good.
        stub.ReleaseLease(pb.ReleaseLeaseRequest(workflow_id="wait", lease_token=token), timeout=30)
        assert waiting.result(timeout=20).lease.holder == "second"


def test_who_waits_gets_the_lease_when_it_expires(stub: Any) -> None:
    token = acquire(stub, "expire", ttl_ms=1_000).lease.token
    assert acquire(stub, "expire", wait_ms=WAIT_MS).lease.token > token
    assert refusal(stub.Save, save_request("expire", lease_token=token)).reason == "LEASE_LOST"


def test_a_wait_is_over_before_the_deadline_so_that_the_refusal_arrives(stub: Any) -> None:
    acquire(stub, "deadline")
    request = pb.AcquireLeaseRequest(workflow_id="deadline", wait_ms=WAIT_MS)
    assert refusal(stub.AcquireLease, request, timeout_s=1.0).reason == "LEASE_HELD"


def test_the_lease_of_a_caller_who_went_away_while_it_waited_is_free(stub: Any) -> None:
    token = acquire(stub, "gone").lease.token
    waiting = stub.AcquireLease.future(pb.AcquireLeaseRequest(workflow_id="gone", wait_ms=WAIT_MS), timeout=60)
    waiting.cancel()
    stub.ReleaseLease(pb.ReleaseLeaseRequest(workflow_id="gone", lease_token=token), timeout=30)
    assert acquire(stub, "gone", wait_ms=10_000).lease.token > token


def test_racers_hold_the_lease_one_at_a_time(stub: Any) -> None:
    """Each reads a count and saves it plus one under its lease: no increment is lost."""
    start = threading.Barrier(6)

    def race(name: str) -> None:
        start.wait()
        for number in range(5):
            token = acquire(stub, "race", holder=name, wait_ms=WAIT_MS, request_id=f"{name}.{number}").lease.token
            try:
                count = int(stub.Load(pb.LoadRequest(workflow_id="race"), timeout=30).checkpoint.state["n"].json)
            except grpc.RpcError:
                count = 0
            request = save_request("race", entries={"n": str(count + 1)}, lease_token=token, release_lease=True)
            stub.Save(request, timeout=30)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(race, [f"racer-{number}" for number in range(6)]))
    assert stub.Load(pb.LoadRequest(workflow_id="race"), timeout=30).checkpoint.state["n"].json == "30"


def test_a_drain_does_not_wait_for_who_waits(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", arguments=["--drain-grace-s", "3600"]) as server:
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            acquire(stub, "w")
            waiting = stub.AcquireLease.future(pb.AcquireLeaseRequest(workflow_id="w", wait_ms=60_000), timeout=60)
            stub.GetLease(pb.GetLeaseRequest(workflow_id="w"), timeout=30)
            assert server.stop() == 0
            assert waiting.exception(timeout=30).code() is grpc.StatusCode.UNAVAILABLE
        assert "Traceback" not in server.stderr


@pytest.fixture(params=[(), ("--no-engine-process",)], ids=["process", "no process"])
def restartable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", arguments=request.param) as server:
        yield server


def test_a_kill_and_a_restart_take_no_lease_away_and_make_no_old_token_good(restartable: ServerProcess) -> None:
    server = restartable
    with open_channel(server.target) as channel:
        stub = open_stub(channel)
        old = acquire(stub, "w").lease.token
        stub.ReleaseLease(pb.ReleaseLeaseRequest(workflow_id="w", force=True), timeout=30)
        new = acquire(stub, "w", request_id="r").lease.token
        gone = acquire(stub, "deleted").lease.token
        stub.Save(save_request("deleted", lease_token=gone), timeout=30)
        stub.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id="deleted", lease_token=gone), timeout=30)
    server.kill()
    server.start()
    with open_channel(server.target) as channel:
        stub = open_stub(channel)
        assert refusal(stub.Save, save_request("w", lease_token=old)).reason == "LEASE_LOST"
        assert refusal(stub.Save, save_request("w")).reason == "LEASE_HELD"
        assert refusal(stub.Save, save_request("deleted", lease_token=gone)).reason == "LEASE_LOST"
        again = acquire(stub, "w", request_id="r")
        assert (again.lease.token, again.replayed) == (new, True)
        stub.Save(save_request("w", lease_token=new, release_lease=True), timeout=30)
        latest = [acquire(stub, workflow_id).lease.token for workflow_id in ("w", "deleted", "new")]
        assert min(latest) > max(old, new, gone)
        assert len(set(latest)) == 3
