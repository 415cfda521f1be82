"""More calls than a server takes: each bound of a queue is told with its name, and nothing that was taken is lost."""

from __future__ import annotations

import queue
import sys
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.raw_calls import open_channel, open_stub, read_error, save_request
from tests.support.server_process import ServerProcess
from tests.support.stopped_process import stopped

MIB = 1024 * 1024
CALLS = 20
DEADLINE_S = 20.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the storage process is told from others by /proc")


@pytest.mark.parametrize(
    "setting,allowed,request_",
    [
        ("queue.calls_max", 1, save_request("w")),
        ("queue.large_bytes_max", 3 * MIB, save_request("w", entries={"x": f'"{"x" * 2 * MIB}"'})),
        ("queue.read_calls_max", 1, pb.LoadRequest(workflow_id="w")),
        ("queue.scan_calls_max", 1, pb.ListRequest(workflow_id="w")),
        ("concurrent_calls_max", 2, save_request("w")),
    ],
)
def test_a_call_too_many_is_refused_with_the_bound_and_those_that_were_taken_are_answered(
    setting: str, allowed: int, request_: Any, tmp_path: Path
) -> None:
    environment = {
        f"MILEPOST_SERVER__{setting.upper().replace('.', '__')}": str(allowed),
        # As many as one commit takes are under way and do not wait.
        "MILEPOST_SERVER__QUEUE__BATCH_COMMANDS_MAX": "1",
    }
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ServerProcess(tmp_path / "data", environment=environment) as server, open_channel(server.target) as channel:
        stub = open_stub(channel)
        stub.Save(save_request("w"), timeout=DEADLINE_S)
        call = getattr(stub, type(request_).__name__.removesuffix("Request"))
        (storage,) = psutil.Process(server.pid).children()
        with stopped(storage.pid):
            futures = [call.future(request_, timeout=DEADLINE_S) for _ in range(CALLS)]
            for future in futures:
                future.add_done_callback(ended.put)
            first = ended.get(timeout=DEADLINE_S)
            refused = read_error(first.exception())
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            if setting.startswith("queue."):
                assert (refused.reason, refused.metadata["limit"]) == ("QUEUE_FULL", setting)
                assert int(refused.metadata["found"]) > int(refused.metadata["allowed"]) == allowed
            else:
                # gRPC itself refuses these.
                assert refused.reason == ""
        errors = [error for future in futures if (error := future.exception()) is not None]
        assert {read_error(error).code for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(errors) < CALLS
        stored = CALLS - len(errors) if isinstance(request_, pb.SaveRequest) else 0
        listed = stub.List(pb.ListRequest(workflow_id="w"), timeout=DEADLINE_S)
        assert len(listed.checkpoints) == 1 + stored
