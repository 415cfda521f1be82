"""What was written before is still read: the store of each format, and the bytes of the wire."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf.message import Message

from milepost import Client
from milepost.types import Status
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.storage.verify import verify_store
from tests.compat.golden_content import FORMATS, LARGE, SAVE_REQUEST, SAVE_RESPONSE, wire_path
from tests.support.raw_calls import open_channel, open_stub, refusal, save_request
from tests.support.server_process import ServerProcess

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_golden_store_is_served_whole_and_goes_on(format_name: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(GOLDEN / format_name / "data", data_dir)
    assert verify_store(data_dir).problems == []
    with ServerProcess(data_dir) as server:
        with Client(server.target) as client:
            assert [each.checkpoint_id for each in client.list("chain")] == ["b", "a"]
            assert client.load("chain").state == {"x": 1, "large": LARGE, "y": [2]}
            assert client.load("chain", checkpoint_id="a").state == {"x": 1, "large": LARGE}
            assert len(client.load("chain").records) == 1
            assert client.load("chain", scope="child").state == {"z": None}
            assert client.load("n" * 1_000).state == {}
            assert client.load("forked").state == client.load("chain").state
            running = [each.workflow_id for each in client.workflows(status=Status.RUNNING)]
            assert running == ["chain", "forked", "n" * 1_000]
            saved = client.save("chain", state={"x": 2}, current_step="third", after=client.load("chain"))
            assert client.load("chain").state == {"x": 2}
            assert saved.sequence > 3
            client.save("gone", state={"again": True})
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            # What was written before there were leases and signals takes both.
            token = stub.AcquireLease(pb.AcquireLeaseRequest(workflow_id="chain"), timeout=30).lease.token
            assert refusal(stub.Save, save_request("chain")).reason == "LEASE_HELD"
            request = pb.SendSignalRequest(workflow_id="chain", signal_id="s", name="approve")
            stub.SendSignal(request, timeout=30)
            saved = stub.Save(save_request("chain", lease_token=token), timeout=30)
            assert (token, saved.pending_signal_count) == (1, 1)
        assert server.stop() == 0
    assert verify_store(data_dir).problems == []


def assert_same(format_name: str, name: str, message: Message) -> None:
    sent = wire_path(format_name, name).read_bytes()
    assert type(message).FromString(sent) == message
    assert message.SerializeToString(deterministic=True) == sent


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_save_is_sent_in_the_same_bytes(format_name: str) -> None:
    assert_same(format_name, "save_request", SAVE_REQUEST)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_save_is_answered_in_the_same_bytes(format_name: str) -> None:
    assert_same(format_name, "save_response", SAVE_RESPONSE)
    assert isinstance(SAVE_RESPONSE, pb.SaveResponse)
