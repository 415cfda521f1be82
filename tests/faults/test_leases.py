"""G6: of hosts that race for leases, one at a time advances a workflow, whatever is killed and whenever.

A server with a seeded defect, which asks nobody for a token, must be caught by the same check.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.storage.verify import verify_store
from tests.support.killable_server import NO_FENCE_SERVER, KillableServer
from tests.support.racing_hosts import RacingHosts, fence_breaches
from tests.support.raw_calls import open_channel, open_stub, read_error, refusal, save_request

SEED = 20_261_125
HOST_COUNT = 6
KILL_COUNT = 12
LIFE_S = (0.05, 0.6)
"""Between these, how long a server lives after it has said that it serves."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="the children of a process are read from /proc"),
]


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILEPOST_SERVER__LIMITS__LEASE_TTL_MIN_MS", "1")
    return tmp_path_factory.mktemp("l")


def test_no_token_is_good_twice_whenever_the_server_is_killed(directory: Path) -> None:
    """The server is killed whole, without its storage process, and the storage process alone, in turn."""
    rng = random.Random(SEED)
    with KillableServer(directory) as server:
        server.start()
        with RacingHosts(server.target, HOST_COUNT, SEED) as hosts:
            for number in range(KILL_COUNT):
                # Not a wait for an effect: the moment of the fault, drawn from the seed.
                hosts.wait(rng.uniform(*LIFE_S))
                if number % 3 == 2:
                    os.kill(server.storage_pid, signal.SIGKILL)
                    continue
                if number % 3 == 1:
                    server.kill_front()
                else:
                    server.kill()
                server.start()
            # It serves again, and some have come back with a token that was lost.
            hosts.wait_for({"saved": hosts.outcomes["saved"] + 50, "save: LEASE_LOST": 1})
        with open_channel(server.target) as channel:
            assert fence_breaches(open_stub(channel)) == []
        assert server.stop() == 0
    assert verify_store(server.data_dir).problems == []
    tokens = [token for _, token in hosts.grants]
    assert len(tokens) == len(set(tokens)), "a token was given twice"


def test_the_check_catches_a_server_that_does_not_fence(directory: Path) -> None:
    with KillableServer(directory, program=NO_FENCE_SERVER) as server:
        server.start()
        with RacingHosts(server.target, HOST_COUNT, SEED) as hosts:
            hosts.wait_for({"saved": 300})
        with open_channel(server.target) as channel:
            assert fence_breaches(open_stub(channel)) != []


def test_a_lease_outlives_its_storage_process(directory: Path) -> None:
    """Its holder keeps it, whoever waits for it gets it in the end, and who watches is told to watch again."""
    with KillableServer(directory) as server, ThreadPoolExecutor() as pool:
        server.start()
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            held = pb.AcquireLeaseRequest(workflow_id="w", holder="first", ttl_ms=600_000)
            token = stub.AcquireLease(held, timeout=30).lease.token
            watch = stub.Watch(pb.WatchRequest(workflow_id="w"), timeout=60)
            next(watch)
            wanted = pb.AcquireLeaseRequest(workflow_id="w", holder="second", wait_ms=60_000, request_id="second")
            waiting = pool.submit(call_until_answered, stub.AcquireLease, wanted)

            os.kill(server.storage_pid, signal.SIGKILL)

            assert end_of(watch) == (grpc.StatusCode.UNAVAILABLE, "NOT_SERVING")
            call_until_answered(stub.Save, save_request("w", checkpoint_id="c", lease_token=token))
            assert refusal(stub.Save, save_request("w")).reason == "LEASE_HELD"
            lease = stub.GetLease(pb.GetLeaseRequest(workflow_id="w"), timeout=30).lease
            assert lease.remaining_ms > 590_000
            stub.ReleaseLease(pb.ReleaseLeaseRequest(workflow_id="w", lease_token=token), timeout=30)
            assert waiting.result(timeout=60).lease.token > token
        assert server.stop() == 0


def end_of(stream: Any) -> tuple[grpc.StatusCode, str]:
    try:
        for _ in stream:
            pass
    except grpc.RpcError as error:
        found = read_error(error)
        return found.code, found.reason
    raise AssertionError("the stream ended without an error")


def call_until_answered(call: Any, request: Any) -> Any:
    """Call, again while the storage is not back; the server answers each try."""
    for _ in range(10_000):
        try:
            return call(request, timeout=60)
        except grpc.RpcError as error:
            if read_error(error).code not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN}:
                raise
    raise AssertionError("the storage never came back")
