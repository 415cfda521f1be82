"""One namespace takes what it can of every bound, and others still get in: over the wire."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.killable_server import KillableServer
from tests.support.raw_calls import Refusal, open_channel, open_stub, read_error, save_request
from tests.support.stopped_process import stopped

BOUND: Final = 8
SHARE: Final = 4
SENT: Final = 12
SETTINGS: Final = {
    "CALLS_MAX": BOUND,
    # So that what waits for the storage waits in the queue.
    "BATCH_COMMANDS_MAX": 1,
    "READ_CALLS_MAX": BOUND,
    "SCAN_CALLS_MAX": BOUND,
    "SCAN_THREADS": 1,
    "LEASE_WAITS_MAX": BOUND,
    "WATCHES_MAX": BOUND,
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the children of a process are read from /proc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableServer]:
    directory = tmp_path_factory.mktemp("n")
    settings = directory / "settings.toml"
    settings.write_text("\n".join(["[queue]", *(f"{name.lower()} = {value}" for name, value in SETTINGS.items())]))
    with KillableServer(directory) as server:
        server.start("--config", str(settings))
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


@pytest.fixture
def channel(server: KillableServer) -> Iterator[grpc.Channel]:
    with open_channel(server.target) as channel:
        yield channel


def settle(channel: grpc.Channel) -> None:
    """Return when the server has taken in the calls that were sent on a channel before."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    stub.Check(health_pb2.HealthCheckRequest(), timeout=30)


def refusals(calls: list[Any], count: int) -> list[Refusal]:
    """Wait until so many calls of a list have failed, and return how."""
    found = []
    # The first ones wait for the storage, so the refused ones are those behind.
    for call in calls[-count:]:
        error = call.exception(timeout=30)
        assert isinstance(error, grpc.RpcError), error
        found.append(read_error(error))
    return found


def save(stub: Any, namespace: str) -> Any:
    return stub.Save.future(save_request("w", namespace=namespace), timeout=60)


def load(stub: Any, namespace: str) -> Any:
    return stub.Load.future(pb.LoadRequest(namespace=namespace, workflow_id="w"), timeout=60)


def list_workflows(stub: Any, namespace: str) -> Any:
    return stub.ListWorkflows.future(pb.ListWorkflowsRequest(namespace=namespace), timeout=60)


@pytest.mark.parametrize(
    "limit, send",
    [("queue.calls_max", save), ("queue.read_calls_max", load), ("queue.scan_calls_max", list_workflows)],
)
def test_a_namespace_that_floods_a_queue_leaves_room_for_another(
    server: KillableServer, channel: grpc.Channel, limit: str, send: Callable[[Any, str], Any]
) -> None:
    stub = open_stub(channel)
    for namespace in ("flood", "other"):
        save(stub, namespace).result()
    with stopped(server.storage_pid):
        # The storage has the first; the others wait.
        flood = [send(stub, "flood")]
        settle(channel)
        flood += [send(stub, "flood") for _ in range(SENT)]
        for refused in refusals(flood, SENT - SHARE):
            assert (refused.reason, refused.metadata["limit"]) == ("QUEUE_FULL", limit)
            assert (refused.metadata["namespace"], refused.metadata["allowed"]) == ("flood", str(SHARE))
            assert "'flood'" in refused.message
            assert refused.retry_after_s
        others = [send(stub, "other") for _ in range(SHARE // 2)]
        settle(channel)
    for call in flood[: 1 + SHARE] + others:
        call.result()


def test_a_namespace_that_waits_for_leases_leaves_room_for_another(channel: grpc.Channel) -> None:
    stub = open_stub(channel)

    def acquire(namespace: str, wait_ms: int) -> Any:
        request = pb.AcquireLeaseRequest(namespace=namespace, workflow_id="w", holder="h", wait_ms=wait_ms)
        return stub.AcquireLease.future(request, timeout=60)

    tokens = {namespace: acquire(namespace, 0).result().lease.token for namespace in ("flood", "other")}
    flood = [acquire("flood", 50_000) for _ in range(SHARE)]
    settle(channel)
    (refused,) = refusals([acquire("flood", 50_000)], 1)
    assert (refused.reason, refused.metadata["limit"]) == ("QUEUE_FULL", "queue.lease_waits_max")
    assert (refused.metadata["namespace"], refused.metadata["allowed"]) == ("flood", str(SHARE))
    waiting = acquire("other", 50_000)
    settle(channel)
    stub.ReleaseLease(pb.ReleaseLeaseRequest(namespace="other", workflow_id="w", lease_token=tokens["other"]))
    assert waiting.result().lease.token > tokens["other"]
    for call in flood:
        call.cancel()


def test_a_namespace_that_watches_leaves_room_for_another(channel: grpc.Channel) -> None:
    stub = open_stub(channel)

    def watch(namespace: str) -> Any:
        return stub.Watch(pb.WatchRequest(namespace=namespace, workflow_id="w"), timeout=60)

    flood = [watch("flood") for _ in range(SHARE)]
    for call in flood:
        next(call)
    with pytest.raises(grpc.RpcError) as ended:
        next(watch("flood"))
    refused = read_error(ended.value)
    assert (refused.reason, refused.metadata["limit"]) == ("QUOTA_EXCEEDED", "queue.watches_max")
    assert (refused.metadata["namespace"], refused.metadata["allowed"]) == ("flood", str(SHARE))
    other = watch("other")
    assert next(other).kind == pb.WATCH_EVENT_KIND_STARTED
    for call in [*flood, other]:
        call.cancel()
