"""Signals and manifests over the wire."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard

from milepost.v1 import checkpoint_pb2, error_reason_pb2
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.raw_calls import open_channel, open_stub, refusal, save_request
from tests.support.server_process import ServerProcess

MANIFEST = json.dumps({"steps": ["fetch", "store"]})
FINGERPRINT = hashlib.sha256(MANIFEST.encode()).hexdigest()


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return open_stub(channel)


def send(stub: Any, workflow_id: str, signal_id: str, name: str = "approve", **value: Any) -> pb.SendSignalResponse:
    request = pb.SendSignalRequest(workflow_id=workflow_id, signal_id=signal_id, name=name)
    if value:
        request.value.MergeFrom(checkpoint_pb2.Value(**value))
    answer: pb.SendSignalResponse = stub.SendSignal(request, timeout=30)
    return answer


def pending(answer: Any) -> list[tuple[str, str]]:
    return [(each.signal_id, each.name) for each in answer.pending_signals]


def test_a_signal_from_sender_to_workflow(stub: Any) -> None:
    assert refusal(stub.SendSignal, pb.SendSignalRequest(workflow_id="s", signal_id="1", name="n")).reason == (
        "WORKFLOW_NOT_FOUND"
    )
    stub.Save(save_request("s", checkpoint_id="a"), timeout=30)
    sent = send(stub, "s", "1", json='{"by":"ann"}')
    assert (sent.replayed, sent.consumed, sent.revision) == (False, False, 2)
    assert send(stub, "s", "1", json='{"by":"ann"}').replayed is True
    taken = refusal(stub.SendSignal, pb.SendSignalRequest(workflow_id="s", signal_id="1", name="approve"))
    assert (taken.code, taken.reason, dict(taken.metadata)) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "SIGNAL_EXISTS",
        {"signal_id": "1"},
    )
    loaded = stub.Load(pb.LoadRequest(workflow_id="s"), timeout=30)
    assert (pending(loaded), loaded.pending_signal_count) == ([("1", "approve")], 1)
    (signal,) = stub.ListSignals(pb.ListSignalsRequest(workflow_id="s"), timeout=30).signals
    assert (signal.signal_id, signal.name, signal.value.json) == ("1", "approve", '{"by":"ann"}')
    assert signal.create_time.seconds > 1_700_000_000
    granted = stub.AcquireLease(pb.AcquireLeaseRequest(workflow_id="s"), timeout=30)
    token = granted.lease.token
    renewed = stub.RenewLease(pb.RenewLeaseRequest(workflow_id="s", lease_token=token), timeout=30)
    assert (pending(renewed), renewed.pending_signal_count) == ([("1", "approve")], 1)
    listed = stub.ListWorkflows(pb.ListWorkflowsRequest(workflow_id_prefix="s", has_pending_signals=True), timeout=30)
    assert [(each.workflow_id, each.pending_signal_count) for each in listed.workflows] == [("s", 1)]
    send(stub, "s", "2", "milepost.cancel")
    saved = stub.Save(save_request("s", consumed_signals=["1"], lease_token=token), timeout=30)
    assert (pending(saved), saved.pending_signal_count) == ([("2", "milepost.cancel")], 1)
    again = send(stub, "s", "1", json='{"by":"ann"}')
    assert (again.replayed, again.consumed) == (True, True)


def test_signals_are_listed_page_by_page(stub: Any) -> None:
    stub.Save(save_request("pages"), timeout=30)
    for number in range(5):
        send(stub, "pages", f"{number}", f"n{number % 2}")
    found: list[str] = []
    request = pb.ListSignalsRequest(workflow_id="pages", page_size=2)
    while True:
        page = stub.ListSignals(request, timeout=30)
        found += [each.signal_id for each in page.signals]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == ["0", "1", "2", "3", "4"]
    other = pb.ListSignalsRequest(workflow_id="pages", name="n1", page_token=request.page_token)
    assert refusal(stub.ListSignals, other).reason == "PAGE_TOKEN_MISMATCH"
    assert [
        each.signal_id for each in stub.ListSignals(pb.ListSignalsRequest(workflow_id="pages", name="n1")).signals
    ] == [
        "1",
        "3",
    ]


def test_a_compressed_value_is_answered_as_its_reader_can_take_it(stub: Any) -> None:
    stub.Save(save_request("zstd"), timeout=30)
    text = json.dumps("x" * 1_000)
    compressed = zstandard.ZstdCompressor().compress(text.encode())
    send(stub, "zstd", "1", data=compressed, codec="json", compression=checkpoint_pb2.COMPRESSION_ZSTD)
    request = pb.ListSignalsRequest(workflow_id="zstd")
    assert stub.ListSignals(request, timeout=30).signals[0].value.json == text
    request.accept_compression.append(checkpoint_pb2.COMPRESSION_ZSTD)
    assert stub.ListSignals(request, timeout=30).signals[0].value.data == compressed


def test_a_manifest_is_stored_by_a_save_and_read_by_its_fingerprint(stub: Any) -> None:
    missing = refusal(stub.GetDefinition, pb.GetDefinitionRequest(fingerprint=FINGERPRINT))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "DEFINITION_NOT_FOUND")
    stub.Save(save_request("manifest", manifest=MANIFEST, fingerprint=FINGERPRINT), timeout=30)
    assert stub.GetDefinition(pb.GetDefinitionRequest(fingerprint=FINGERPRINT), timeout=30).manifest == MANIFEST
    workflow = stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="manifest"), timeout=30).workflow
    assert workflow.fingerprint == FINGERPRINT
    listed = stub.ListWorkflows(pb.ListWorkflowsRequest(fingerprint=FINGERPRINT), timeout=30)
    assert [each.workflow_id for each in listed.workflows] == ["manifest"]


def signal(**fields: Any) -> pb.SendSignalRequest:
    return pb.SendSignalRequest(**{"workflow_id": "w", "signal_id": "1", "name": "n", **fields})


@pytest.mark.parametrize(
    "reason, field, request_",
    [
        ("INVALID_FIELD", "workflow_id", signal(workflow_id="")),
        ("INVALID_FIELD", "signal_id", signal(signal_id="")),
        ("INVALID_FIELD", "name", signal(name="")),
        ("LIMIT_EXCEEDED", "signal_id", signal(signal_id="s" * 257)),
        ("LIMIT_EXCEEDED", "name", signal(name="s" * 257)),
        ("LIMIT_EXCEEDED", "value", signal(value=checkpoint_pb2.Value(data=b"v" * 65_537))),
        ("INVALID_FIELD", "value.json", signal(value=checkpoint_pb2.Value(json="{"))),
        ("INVALID_FIELD", "value", signal(value=checkpoint_pb2.Value())),
        ("INVALID_FIELD", "consumed_signals[1]", save_request("w", consumed_signals=["a", ""])),
        ("LIMIT_EXCEEDED", "consumed_signals", save_request("w", consumed_signals=["a"] * 1_001)),
        ("INVALID_FIELD", "manifest", save_request("w", manifest="{", fingerprint=FINGERPRINT)),
        ("INVALID_FIELD", "manifest", save_request("w", manifest=MANIFEST)),
        ("INVALID_FIELD", "manifest", save_request("w", manifest=MANIFEST, fingerprint=FINGERPRINT.upper())),
        ("LIMIT_EXCEEDED", "manifest", save_request("w", manifest='"' + "m" * 1_048_576 + '"')),
        ("INVALID_FIELD", "fingerprint", pb.GetDefinitionRequest()),
    ],
)
def test_malformed_requests_name_their_field(stub: Any, reason: str, field: str, request_: Any) -> None:
    method = type(request_).__name__.removesuffix("Request")
    found = refusal(getattr(stub, method), request_)
    assert (found.reason, found.fields) == (reason, (field,))


def test_a_malformed_item_of_a_batch_names_its_field(stub: Any) -> None:
    items = [save_request("batch"), save_request("batch", manifest=MANIFEST)]
    results = stub.BatchSave(pb.BatchSaveRequest(items=items), timeout=30).results
    assert results[0].HasField("saved")
    assert results[1].error.reason == error_reason_pb2.INVALID_FIELD
    assert results[1].error.metadata["field"] == "items[1].manifest"


def test_signals_survive_a_kill(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            stub.Save(save_request("w"), timeout=30)
            send(stub, "w", "1")
            send(stub, "w", "2")
            stub.Save(save_request("w", consumed_signals=["1"]), timeout=30)
        server.kill()
        server.start()
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            assert send(stub, "w", "1").consumed is True
            assert [each.signal_id for each in stub.ListSignals(pb.ListSignalsRequest(workflow_id="w")).signals] == [
                "2"
            ]
