"""What comes over the wire, good and bad: each wrong input has its reason, and none crashes or hangs the server."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import zstandard
from google.protobuf import timestamp_pb2

from milepost.v1 import checkpoint_pb2, checkpoint_store_pb2
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.limits import DEFAULT_LIMITS
from tests.support.documented import rows_of
from tests.support.raw_calls import SERVICE, open_stub, read_error, refusal, save_request

DESCRIPTOR = checkpoint_store_pb2.DESCRIPTOR.services_by_name["CheckpointStore"]
METHODS = [method.name for method in DESCRIPTOR.methods]
MIB = 1024 * 1024


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    """The generated stub of the file's server."""
    return open_stub(channel)


def test_what_is_saved_is_loaded(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    saved = stub.Save(
        save_request(
            workflow_id,
            entries={"a": '{"n": 1.0}', "b": "[]"},
            checkpoint_id="c1",
            current_step="first",
            completed_steps_added=["zero", "first"],
            metadata='{"user":"u"}',
            labels={"team": "red"},
            definition="order",
            fingerprint="f1",
            run_id="r1",
            history_entries=["a"],
            records=[checkpoint_pb2.Record(task_id="t", index=-1, value=checkpoint_pb2.Value(data=b"\x00\xff"))],
        )
    )
    assert (saved.checkpoint_id, saved.sequence, saved.replayed) == ("c1", 1, False)
    loaded = stub.Load(pb.LoadRequest(workflow_id=workflow_id)).checkpoint
    assert {key: value.json for key, value in loaded.state.items()} == {"a": '{"n": 1.0}', "b": "[]"}
    assert list(loaded.completed_steps) == ["zero", "first"]
    assert (loaded.metadata, loaded.definition, loaded.run_id) == ('{"user":"u"}', "order", "r1")
    assert (loaded.namespace, loaded.scope, loaded.status) == ("default", "", checkpoint_pb2.STATUS_RUNNING)
    [record] = loaded.records
    assert (record.task_id, record.index, record.value.data, record.overwrite) == ("t", -1, b"\x00\xff", False)
    assert loaded.digest == saved.digest
    assert len(saved.digest) == 32
    workflow = stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id=workflow_id)).workflow
    assert dict(workflow.labels) == {"team": "red"}
    assert workflow.head_checkpoint_id == "c1"


def test_a_caller_that_cannot_decompress_gets_json_as_text_and_data_as_bytes(
    stub: Any, request: pytest.FixtureRequest
) -> None:
    workflow_id = request.node.name
    compress = zstandard.ZstdCompressor().compress
    small, large = b'{"n":1}', b'"' + b"x" * MIB + b'"'
    save = save_request(workflow_id, checkpoint_id="c1")
    for key, content, codec in (("j", small, "json"), ("large", large, "json"), ("d", b"\x00" * 999, "msgpack")):
        save.state[key].data = compress(content)
        save.state[key].codec = codec
        save.state[key].compression = checkpoint_pb2.COMPRESSION_ZSTD
    stub.Save(save)
    plain = stub.Load(pb.LoadRequest(workflow_id=workflow_id)).checkpoint.state
    assert (plain["j"].json, plain["j"].codec) == (small.decode(), "")
    assert plain["large"].json == large.decode()
    assert (plain["d"].data, plain["d"].codec) == (b"\x00" * 999, "msgpack")
    assert not any(value.compression for value in plain.values())
    accept = [checkpoint_pb2.COMPRESSION_ZSTD]
    packed = stub.Load(pb.LoadRequest(workflow_id=workflow_id, accept_compression=accept)).checkpoint.state
    assert packed["j"] == save.state["j"]
    assert packed["large"] == save.state["large"]


def test_a_value_too_large_to_answer_decompressed_says_to_accept_compression(
    stub: Any, request: pytest.FixtureRequest
) -> None:
    workflow_id = request.node.name
    save = save_request(workflow_id)
    save.state["big"].data = zstandard.ZstdCompressor().compress(bytes(60 * MIB))
    save.state["big"].compression = checkpoint_pb2.COMPRESSION_ZSTD
    stub.Save(save)
    refused = refusal(stub.Load, pb.LoadRequest(workflow_id=workflow_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_EXCEEDED")
    assert "COMPRESSION_ZSTD" in refused.message
    accept = [checkpoint_pb2.COMPRESSION_ZSTD]
    assert stub.Load(pb.LoadRequest(workflow_id=workflow_id, accept_compression=accept)).checkpoint.entry_count == 2


def test_values_too_large_to_answer_decompressed_together_say_to_accept_compression(
    stub: Any, request: pytest.FixtureRequest
) -> None:
    """Saved one after the other, each far below what one value may be."""
    workflow_id = request.node.name
    value = checkpoint_pb2.Value(
        data=zstandard.ZstdCompressor().compress(bytes(6 * MIB)), compression=checkpoint_pb2.COMPRESSION_ZSTD
    )
    base = ""
    for number in range(3):
        save = pb.SaveRequest(workflow_id=workflow_id, checkpoint_id=f"c{number}", parent_id=base)
        if base:
            save.base_checkpoint_id = base
        save.state[f"k{number}"].CopyFrom(value)
        save.records.add(task_id="t", value=value)
        stub.Save(save)
        base = save.checkpoint_id
    assert len(stub.Load(pb.LoadRequest(workflow_id=workflow_id, checkpoint_id="c0")).checkpoint.state) == 1
    for refused in (
        refusal(stub.Load, pb.LoadRequest(workflow_id=workflow_id)),
        refusal(stub.Load, pb.LoadRequest(workflow_id=workflow_id, checkpoint_id="c1")),
        refusal(stub.List, pb.ListRequest(workflow_id=workflow_id, include_state=True)),
    ):
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_EXCEEDED")
        assert "COMPRESSION_ZSTD" in refused.message
    accept = [checkpoint_pb2.COMPRESSION_ZSTD]
    assert stub.Load(pb.LoadRequest(workflow_id=workflow_id, accept_compression=accept)).checkpoint.entry_count == 3


COMPRESSED = checkpoint_pb2.COMPRESSION_ZSTD


def method_of(request: Any) -> str:
    """Return the name of the method that takes a request."""
    return type(request).__name__.removesuffix("Request")


def value(data: bytes = b"", *, codec: str = "", compression: Any = 0) -> checkpoint_pb2.Value:
    """Return an opaque value."""
    return checkpoint_pb2.Value(data=data, codec=codec, compression=compression)


def record(**fields: Any) -> checkpoint_pb2.Record:
    """Return a record with a value."""
    return checkpoint_pb2.Record(value=value(), **fields)


def with_text(field: str, text: str) -> pb.SaveRequest:
    """Return a Save that has a text in a field."""
    request = save_request()
    setattr(request, field, text)
    return request


def time_of(**fields: int) -> Any:
    """Return a protocol time, also one that no clock shows."""
    return timestamp_pb2.Timestamp(**fields)


WRONG: list[tuple[Any, str]] = [
    (pb.SaveRequest(), "workflow_id"),
    (pb.SaveRequest(workflow_id="a\0b"), "workflow_id"),
    (pb.SaveRequest(workflow_id="w", namespace="\0"), "namespace"),
    (pb.SaveRequest(workflow_id="w", scope="\0"), "scope"),
    (pb.SaveRequest(workflow_id="w", checkpoint_id=""), "checkpoint_id"),
    (pb.SaveRequest(workflow_id="w", checkpoint_id="\0"), "checkpoint_id"),
    (pb.SaveRequest(workflow_id="w", parent_id="\0"), "parent_id"),
    (pb.SaveRequest(workflow_id="w", base_checkpoint_id=""), "base_checkpoint_id"),
    (pb.SaveRequest(workflow_id="w", expected_head="\0"), "expected_head"),
    (pb.SaveRequest(workflow_id="w", current_step="\0"), "current_step"),
    (pb.SaveRequest(workflow_id="w", definition="\0"), "definition"),
    (pb.SaveRequest(workflow_id="w", fingerprint="\0"), "fingerprint"),
    (pb.SaveRequest(workflow_id="w", run_id="\0"), "run_id"),
    (pb.SaveRequest(workflow_id="w", status=99), "status"),  # type: ignore[arg-type]
    (pb.SaveRequest(workflow_id="w", on_conflict=99), "on_conflict"),  # type: ignore[arg-type]
    (pb.SaveRequest(workflow_id="w", replaces_digest=b"x" * 32), "replaces_digest"),
    (pb.SaveRequest(workflow_id="w", on_conflict=pb.ON_CONFLICT_REPLACE, replaces_digest=b"x"), "replaces_digest"),
    (pb.SaveRequest(workflow_id="w", base_digest=b"x" * 32), "base_digest"),
    (pb.SaveRequest(workflow_id="w", base_checkpoint_id="c", base_digest=b"x"), "base_digest"),
    (pb.SaveRequest(workflow_id="w", removed_keys=["x"]), "removed_keys"),
    (save_request(base_checkpoint_id="c", removed_keys=["x"]), "removed_keys[0]"),
    (save_request(base_checkpoint_id="c", removed_keys=["y", ""]), "removed_keys[1]"),
    (save_request(entries={"x": "nope"}), "state['x'].json"),
    (save_request(entries={"x": "NaN"}), "state['x'].json"),
    (save_request(entries={"": "1"}), "state['']"),
    (save_request(entries={"\0": "1"}), r"state['\x00']"),
    (pb.SaveRequest(workflow_id="w", state={"x": checkpoint_pb2.Value()}), "state['x']"),
    (pb.SaveRequest(workflow_id="w", state={"x": value(codec="a b")}), "state['x'].codec"),
    (pb.SaveRequest(workflow_id="w", state={"x": value(compression=9)}), "state['x'].compression"),
    (pb.SaveRequest(workflow_id="w", state={"x": value(b"x", compression=COMPRESSED)}), "state['x'].data"),
    (pb.SaveRequest(workflow_id="w", metadata="[]"), "metadata"),
    (pb.SaveRequest(workflow_id="w", labels={"": "x"}), "labels key"),
    (pb.SaveRequest(workflow_id="w", completed_steps_added=[""]), "completed_steps_added[0]"),
    (pb.SaveRequest(workflow_id="w", history_entries=["x", ""]), "history_entries[1]"),
    (pb.SaveRequest(workflow_id="w", records=[checkpoint_pb2.Record(task_id="t")]), "records[0].value"),
    (pb.SaveRequest(workflow_id="w", records=[record(), record()]), "records[1]"),
    (pb.BatchSaveRequest(), "items"),
    (pb.LoadRequest(), "workflow_id"),
    (pb.LoadRequest(workflow_id="w", checkpoint_id="c", sequence=1), "checkpoint_id"),
    (pb.LoadRequest(workflow_id="w", checkpoint_id=""), "checkpoint_id"),
    (pb.LoadRequest(workflow_id="w", sequence=0), "sequence"),
    (pb.LoadRequest(workflow_id="w", latest_with_status=[77]), "latest_with_status"),  # type: ignore[list-item]
    (pb.LoadRequest(workflow_id="w", entry_keys=[""]), "entry_keys[0]"),
    (pb.ListRequest(workflow_id="w", page_size=-1), "page_size"),
    (pb.ListRequest(workflow_id="w", order=9), "order"),  # type: ignore[arg-type]
    (pb.ListRequest(workflow_id="w", statuses=[77]), "statuses"),  # type: ignore[list-item]
    (pb.ListRequest(workflow_id="w", metadata_contains="1"), "metadata_contains"),
    (pb.ListRequest(workflow_id="w", before_sequence=0), "before_sequence"),
    (pb.AppendRecordsRequest(workflow_id="w", checkpoint_id="c"), "records"),
    (pb.AppendRecordsRequest(workflow_id="w"), "checkpoint_id"),
    (pb.GetEntryHistoryRequest(workflow_id="w"), "entry_keys"),
    (pb.GetEntryHistoryRequest(workflow_id="w", checkpoint_id="", entry_keys=["x"]), "checkpoint_id"),
    (pb.ListWorkflowsRequest(page_size=-5), "page_size"),
    (pb.ListWorkflowsRequest(workflow_id_prefix="\0"), "workflow_id_prefix"),
    (pb.ListWorkflowsRequest(updated_from=time_of(nanos=-1)), "updated_from"),
    (pb.ListWorkflowsRequest(updated_before=time_of(seconds=1 << 60)), "updated_before"),
    (pb.GetWorkflowRequest(), "workflow_id"),
    (pb.GetDefinitionRequest(), "fingerprint"),
    (pb.ForkWorkflowRequest(workflow_id="w"), "target_workflow_id"),
    (pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="w"), "target_workflow_id"),
    (pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="v", mode=9), "mode"),  # type: ignore[arg-type]
    (pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="v", checkpoint_id=""), "checkpoint_id"),
    (pb.DeleteWorkflowRequest(), "workflow_id"),
    (pb.DeleteCheckpointsRequest(workflow_id="w"), "checkpoint_ids"),
    (pb.DeleteCheckpointsRequest(workflow_id="w", checkpoint_ids=["c"], run_ids=["r"]), "checkpoint_ids"),
    (pb.DeleteCheckpointsRequest(workflow_id="w", checkpoint_ids=[""]), "checkpoint_ids[0]"),
    (pb.DeleteCheckpointsRequest(run_ids=[""]), "run_ids[0]"),
    (pb.DeleteCheckpointsRequest(checkpoint_ids=["c"]), "workflow_id"),
    (pb.PruneWorkflowRequest(workflow_id="w", keep_last=-1), "keep_last"),
]


@pytest.mark.parametrize("request_,field", WRONG, ids=[f"{method_of(each[0])}-{each[1]}" for each in WRONG])
def test_a_wrong_field_is_named(stub: Any, request_: Any, field: str) -> None:
    refused = refusal(getattr(stub, method_of(request_)), request_)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused.fields == (field,)
    assert refused.metadata["field"] == field
    assert refused.message == f"{field}: {refused.metadata['rule']}; found {refused.metadata['found']}"


DEEP_JSON = "[" * 10_000 + "]" * 10_000
BOMB = zstandard.ZstdCompressor().compress(bytes(64 * MIB + 1))
TOO_MUCH: list[tuple[Any, str, str, int]] = [
    (pb.SaveRequest(workflow_id="w", namespace="n" * 129), "namespace", "namespace_bytes_max", 129),
    (pb.SaveRequest(workflow_id="x" * 1_025), "workflow_id", "workflow_id_bytes_max", 1_025),
    (pb.SaveRequest(workflow_id="é" * 513), "workflow_id", "workflow_id_bytes_max", 1_026),
    (pb.SaveRequest(workflow_id="w", scope="s" * 1_025), "scope", "workflow_id_bytes_max", 1_025),
    (save_request(entries={"k" * 1_025: "1"}), f"state['{'k' * 79}…]", "workflow_id_bytes_max", 1_025),
    (
        save_request(base_checkpoint_id="c", removed_keys=["k" * 1_025]),
        "removed_keys[0]",
        "workflow_id_bytes_max",
        1_025,
    ),
    *(
        (with_text(field, "c" * 257), field, "checkpoint_id_bytes_max", 257)
        for field in (
            "checkpoint_id",
            "parent_id",
            "base_checkpoint_id",
            "expected_head",
            "current_step",
            "definition",
            "fingerprint",
            "run_id",
        )
    ),
    (save_request(entries={f"{n}": "1" for n in range(10_001)}), "state", "entries_max", 10_001),
    (save_request(base_checkpoint_id="c", removed_keys=["k"] * 10_001), "removed_keys", "entries_max", 10_001),
    (save_request(entries={"x": DEEP_JSON}), "state['x'].json", "json_depth_max", 10_000),
    (
        pb.SaveRequest(workflow_id="w", state={"x": value(BOMB, compression=COMPRESSED)}),
        "state['x'].data",
        "value_decompressed_bytes_max",
        64 * MIB + 1,
    ),
    (pb.SaveRequest(workflow_id="w", state={"x": value(codec="c" * 65)}), "state['x'].codec", "codec_bytes_max", 65),
    (
        pb.SaveRequest(workflow_id="w", metadata='{"a":"' + "x" * 65_536 + '"}'),
        "metadata",
        "metadata_bytes_max",
        65_544,
    ),
    (pb.SaveRequest(workflow_id="w", metadata=DEEP_JSON), "metadata", "metadata_depth_max", 10_000),
    (pb.SaveRequest(workflow_id="w", labels={f"{n}": "" for n in range(17)}), "labels", "labels_max", 17),
    (pb.SaveRequest(workflow_id="w", labels={"k" * 65: ""}), "labels key", "label_key_bytes_max", 65),
    (pb.SaveRequest(workflow_id="w", labels={"k": "v" * 257}), "labels['k']", "label_value_bytes_max", 257),
    (
        pb.SaveRequest(workflow_id="w", completed_steps_added=["s"] * 100_001),
        "completed_steps_added",
        "completed_steps_max",
        100_001,
    ),
    (
        pb.SaveRequest(workflow_id="w", completed_steps_added=["s" * 256] * 16_385),
        "completed_steps_added",
        "completed_steps_bytes_max",
        16_385 * 256,
    ),
    (pb.SaveRequest(workflow_id="w", history_entries=["k"] * 1_001), "history_entries", "history_entries_max", 1_001),
    (
        pb.SaveRequest(workflow_id="w", history_entries=["k" * 1_024] * 65),
        "history_entries",
        "history_entries_bytes_max",
        65 * 1_024,
    ),
    (pb.SaveRequest(workflow_id="w", records=[checkpoint_pb2.Record()] * 10_001), "records", "records_max", 10_001),
    (
        pb.SaveRequest(workflow_id="w", records=[checkpoint_pb2.Record(value=value(bytes(16 * MIB - 64 * 1_024)))]),
        "records",
        "records_bytes_max",
        16 * MIB - 64 * 1_024 + 32,
    ),
    *(
        (
            pb.SaveRequest(workflow_id="w", records=[record(**{name: "t" * 1_025})]),
            f"records[0].{name}",
            "record_key_bytes_max",
            1_025,
        )
        for name in ("task_id", "path", "name")
    ),
    (
        pb.SaveRequest(workflow_id="w", consumed_signals=["s"] * 1_001),
        "consumed_signals",
        "consumed_signals_max",
        1_001,
    ),
    (pb.SaveRequest(workflow_id="w", manifest=" " * (MIB + 1)), "manifest", "manifest_bytes_max", MIB + 1),
    (pb.BatchSaveRequest(items=[pb.SaveRequest(workflow_id="w")] * 1_001), "items", "batch_items_max", 1_001),
    (pb.LoadRequest(workflow_id="w", entry_keys=[f"{n}" for n in range(10_001)]), "entry_keys", "entries_max", 10_001),
    (
        pb.ListRequest(workflow_id="w", metadata_contains='{"a":"' + "x" * 65_536 + '"}'),
        "metadata_contains",
        "metadata_bytes_max",
        65_544,
    ),
    (
        pb.ListRequest(workflow_id="w", metadata_contains=f'{{"a":[{",".join(["{}", "[[]]"] * 34)}]}}'),
        "metadata_contains",
        "metadata_filter_items_max",
        102,
    ),
    (
        pb.GetEntryHistoryRequest(workflow_id="w", entry_keys=[f"{n}" for n in range(101)]),
        "entry_keys",
        "history_keys_max",
        101,
    ),
    (pb.ListWorkflowsRequest(workflow_id_prefix="p" * 1_025), "workflow_id_prefix", "workflow_id_bytes_max", 1_025),
    (
        pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="v" * 1_025),
        "target_workflow_id",
        "workflow_id_bytes_max",
        1_025,
    ),
    (
        pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="v", fork_id="f" * 257),
        "fork_id",
        "checkpoint_id_bytes_max",
        257,
    ),
    (
        pb.DeleteCheckpointsRequest(workflow_id="w", checkpoint_ids=["c"] * 1_001),
        "checkpoint_ids",
        "delete_ids_max",
        1_001,
    ),
    (pb.DeleteCheckpointsRequest(run_ids=["r"] * 101), "run_ids", "delete_runs_max", 101),
    (pb.AcquireLeaseRequest(workflow_id="w", holder="h" * 257), "holder", "lease_holder_bytes_max", 257),
    (
        pb.SendSignalRequest(workflow_id="w", signal_id="s", name="n", value=value(bytes(65_537))),
        "value",
        "signal_value_bytes_max",
        65_537,
    ),
]


@pytest.mark.parametrize(
    "request_,field,limit,found", TOO_MUCH, ids=[f"{method_of(each[0])}-{each[1][:24]}-{each[2]}" for each in TOO_MUCH]
)
def test_what_is_past_a_limit_is_refused_with_the_limit_what_is_allowed_and_what_was_found(
    stub: Any, request_: Any, field: str, limit: str, found: int
) -> None:
    refused = refusal(getattr(stub, method_of(request_)), request_)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_EXCEEDED")
    assert refused.fields == (field,)
    allowed = getattr(DEFAULT_LIMITS, limit)
    assert refused.metadata == {
        "field": field,
        "limit": limit,
        "allowed": str(allowed),
        "found": str(found),
        "unit": refused.metadata["unit"],
    }
    unit = refused.metadata["unit"]
    assert refused.message == f"{field}: {found} {unit}, at most {allowed} are allowed ({limit})"


def test_every_limit_of_a_request_is_met_by_one_that_is_past_it() -> None:
    documented = rows_of("docs/limits.md", "limit", "default", "unit", "error", "what it bounds")
    limits = {row[0] for row in documented if row[3] == "LIMIT_EXCEEDED"}
    # A message that is too large has a test of its own, below.
    assert {each[2] for each in TOO_MUCH} == limits - {"request_bytes_max"}


DIGEST = b"x" * 32
REFUSED: list[tuple[list[Any], str, grpc.StatusCode, dict[str, str]]] = [
    (
        [save_request(checkpoint_id="c"), save_request(checkpoint_id="c", entries={"x": "2"})],
        "CHECKPOINT_EXISTS",
        grpc.StatusCode.ALREADY_EXISTS,
        {"checkpoint_id": "c", "sequence": "1"},
    ),
    (
        [
            save_request(checkpoint_id="c"),
            save_request(
                checkpoint_id="c", on_conflict=pb.ON_CONFLICT_REPLACE, replaces_digest=DIGEST, current_step="other"
            ),
        ],
        "DIGEST_MISMATCH",
        grpc.StatusCode.ABORTED,
        {"checkpoint_id": "c"},
    ),
    (
        [save_request(checkpoint_id="c"), save_request(expected_head="d")],
        "HEAD_MOVED",
        grpc.StatusCode.ABORTED,
        {"expected_head": "d", "head_checkpoint_id": "c", "head_sequence": "1"},
    ),
    (
        [save_request(), save_request(base_checkpoint_id="gone")],
        "BASE_NOT_FOUND",
        grpc.StatusCode.FAILED_PRECONDITION,
        {"base_checkpoint_id": "gone"},
    ),
    (
        [save_request(checkpoint_id="c"), save_request(base_checkpoint_id="c", base_digest=DIGEST)],
        "BASE_NOT_FOUND",
        grpc.StatusCode.FAILED_PRECONDITION,
        {"base_checkpoint_id": "c"},
    ),
    (
        [save_request(), save_request(parent_id="nowhere")],
        "PARENT_NOT_FOUND",
        grpc.StatusCode.FAILED_PRECONDITION,
        {"parent_id": "nowhere"},
    ),
    (
        [
            save_request(checkpoint_id="c"),
            pb.DeleteCheckpointsRequest(workflow_id="w", checkpoint_ids=["c"]),
            save_request(checkpoint_id="c"),
        ],
        "CHECKPOINT_DELETED",
        grpc.StatusCode.FAILED_PRECONDITION,
        {"checkpoint_id": "c", "sequence": "1"},
    ),
    (
        [
            save_request(checkpoint_id="pruned"),
            save_request(),
            pb.PruneWorkflowRequest(workflow_id="w"),
            save_request(checkpoint_id="pruned"),
        ],
        "CHECKPOINT_DELETED",
        grpc.StatusCode.FAILED_PRECONDITION,
        {"checkpoint_id": "pruned", "sequence": "1"},
    ),
    (
        [save_request(definition="d"), save_request(definition="e")],
        "DEFINITION_MISMATCH",
        grpc.StatusCode.FAILED_PRECONDITION,
        {"definition": "d", "found": "e"},
    ),
    (
        [
            save_request(),
            pb.AppendRecordsRequest(workflow_id="w", checkpoint_id="c", records=[record()], require_checkpoint=True),
        ],
        "RECORD_CHECKPOINT_MISSING",
        grpc.StatusCode.FAILED_PRECONDITION,
        {"checkpoint_id": "c"},
    ),
    (
        [
            pb.AppendRecordsRequest(
                workflow_id="w", checkpoint_id="c", records=[record(index=number) for number in range(1_001)]
            )
        ],
        "QUOTA_EXCEEDED",
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        {"limit": "waiting_records_max", "allowed": "1000", "found": "1001", "unit": "records"},
    ),
    (
        [
            save_request(checkpoint_id="c", entries={"x": f'"{"x" * 9 * MIB}"'}),
            save_request(base_checkpoint_id="c", entries={"y": f'"{"y" * 9 * MIB}"'}),
        ],
        "STATE_TOO_LARGE",
        grpc.StatusCode.INVALID_ARGUMENT,
        {"limit": "state_bytes_max", "allowed": "16711680", "found": "18874422", "unit": "bytes"},
    ),
    (
        [save_request(), save_request("v"), pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="v")],
        "WORKFLOW_EXISTS",
        grpc.StatusCode.ALREADY_EXISTS,
        {"workflow_id": "v"},
    ),
    (
        [save_request(), pb.LoadRequest(workflow_id="w", sequence=7)],
        "CHECKPOINT_NOT_FOUND",
        grpc.StatusCode.NOT_FOUND,
        {"workflow_id": "w", "scope": "", "sequence": "7"},
    ),
]


@pytest.mark.parametrize("requests,reason,code,told", REFUSED)
def test_a_refusal_by_the_rules_says_what_was_found_in_its_message_too(
    stub: Any, requests: list[Any], reason: str, code: grpc.StatusCode, told: dict[str, str]
) -> None:
    for request in requests:
        # One of its own for each case.
        request.namespace = f"{reason} {told}"
    *before, last = requests
    for request in before:
        getattr(stub, method_of(request))(request, timeout=30)
    refused = refusal(getattr(stub, method_of(last)), last)
    assert (refused.code, refused.reason) == (code, reason)
    assert told.items() <= refused.metadata.items()
    for key, text in told.items():
        assert text in refused.message or key in {"workflow_id", "scope", "unit"}, key


@pytest.mark.parametrize("text", ["x" * 1_024, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 512, "\N{GRINNING FACE}" * 256])
def test_ids_of_1024_bytes_are_ids_like_any_other(stub: Any, text: str) -> None:
    stub.Save(save_request(text, entries={text: "1"}))
    stub.Save(save_request(text, entries={text: "2"}, scope=text))
    assert stub.Load(pb.LoadRequest(workflow_id=text)).checkpoint.state[text].json == "1"
    nested = stub.Load(pb.LoadRequest(workflow_id=text, scope=text, entry_keys=[text])).checkpoint
    assert (nested.workflow_id, nested.scope, nested.state[text].json) == (text, text, "2")
    listed = stub.ListWorkflows(pb.ListWorkflowsRequest(workflow_id_prefix=text[:-1])).workflows
    assert [each.workflow_id for each in listed] == [text]


def test_a_page_size_beyond_the_largest_means_the_largest(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    for count in (1_000, 1):
        stub.BatchSave(pb.BatchSaveRequest(items=[save_request(workflow_id)] * count))
    page = stub.List(pb.ListRequest(workflow_id=workflow_id, page_size=2**31 - 1))
    assert len(page.checkpoints) == 1_000
    rest = stub.List(pb.ListRequest(workflow_id=workflow_id, page_size=2**31 - 1, page_token=page.next_page_token))
    assert ([each.sequence for each in rest.checkpoints], rest.next_page_token) == ([1], "")


def test_a_wrong_item_of_a_batch_fails_alone(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    answer = stub.BatchSave(
        pb.BatchSaveRequest(
            items=[save_request(workflow_id), save_request(workflow_id, entries={"x": "{"}), save_request(workflow_id)]
        )
    )
    assert [each.WhichOneof("outcome") for each in answer.results] == ["saved", "error", "saved"]
    assert answer.results[1].error.metadata["field"] == "items[1].state['x'].json"


def test_what_is_not_there_is_not_found_and_nothing_else(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    missing = refusal(stub.Load, pb.LoadRequest(workflow_id=workflow_id))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")
    stub.Save(save_request(workflow_id))
    missing = refusal(stub.Load, pb.LoadRequest(workflow_id=workflow_id, checkpoint_id="c"))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND")


def test_page_tokens_are_bound_to_their_call(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    stub.BatchSave(pb.BatchSaveRequest(items=[save_request(workflow_id)] * 5))
    page = stub.List(pb.ListRequest(workflow_id=workflow_id, page_size=2))
    token = page.next_page_token
    assert [each.sequence for each in page.checkpoints] == [5, 4]
    rest = stub.List(pb.ListRequest(workflow_id=workflow_id, page_size=9, page_token=token))
    assert [each.sequence for each in rest.checkpoints] == [3, 2, 1]
    assert rest.next_page_token == ""
    for other in (
        pb.ListRequest(workflow_id=workflow_id, page_token=token, order=pb.ORDER_OLDEST_FIRST),
        pb.ListRequest(workflow_id=workflow_id, page_token=token, include_state=True),
        pb.ListRequest(workflow_id="other", page_token=token),
        pb.ListRequest(workflow_id=workflow_id, namespace="other", page_token=token),
    ):
        assert refusal(stub.List, other).reason == "PAGE_TOKEN_MISMATCH"
    assert refusal(stub.ListWorkflows, pb.ListWorkflowsRequest(page_token=token)).reason == "PAGE_TOKEN_MISMATCH"
    refused = refusal(stub.List, pb.ListRequest(workflow_id=workflow_id, page_token=token[:-3]))
    assert (refused.reason, refused.fields) == ("PAGE_TOKEN_INVALID", ("page_token",))
    stub.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id=workflow_id))
    stub.Save(save_request(workflow_id))
    refused = refusal(stub.List, pb.ListRequest(workflow_id=workflow_id, page_size=2, page_token=token))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "PAGE_EXPIRED")


def test_pages_stay_small_whatever_their_texts(server: Any, stub: Any, request: pytest.FixtureRequest) -> None:
    """Every text that an answer has counts, or a page could be larger than its caller receives."""
    namespace = request.node.name
    long = "\N{EURO SIGN}" * 80
    for number in range(70):
        save = save_request("w", namespace=namespace, checkpoint_id=f"{number}", run_id=long)
        save.history_entries.extend(f"{'x' * 1_000}{entry}" for entry in range(60))
        stub.Save(save)
    found: list[str] = []
    with grpc.insecure_channel(server.target) as small:
        stub = open_stub(small)
        token, is_last = "", False
        while not is_last:
            page = stub.List(pb.ListRequest(namespace=namespace, workflow_id="w", page_size=1_000, page_token=token))
            found += [each.checkpoint_id for each in page.checkpoints]
            token = page.next_page_token
            is_last = not token
    assert found == [f"{number}" for number in reversed(range(70))]


@pytest.mark.parametrize("call", ["List", "List of records", "GetEntryHistory", "ListSignals"])
def test_pages_stay_small_for_a_caller_that_cannot_decompress(
    server: Any, stub: Any, call: str, request: pytest.FixtureRequest
) -> None:
    """Values are answered decompressed then, and other clients than ours receive 4 MiB at most."""
    workflow_id = request.node.name
    count = 30
    for number in range(count):
        value = checkpoint_pb2.Value(
            data=zstandard.compress(bytes([number]) * MIB), compression=checkpoint_pb2.COMPRESSION_ZSTD
        )
        save = pb.SaveRequest(workflow_id=workflow_id, checkpoint_id=f"c{number}")
        if call == "List of records":
            save.records.add(task_id="t", value=value)
        else:
            save.state["x"].CopyFrom(value)
        stub.Save(save)
        stub.SendSignal(pb.SendSignalRequest(workflow_id=workflow_id, signal_id=f"{number}", name="n", value=value))

    def page(stub: Any, token: str) -> Any:
        if call == "GetEntryHistory":
            history = pb.GetEntryHistoryRequest(
                workflow_id=workflow_id, entry_keys=["x"], page_size=1_000, page_token=token
            )
            return stub.GetEntryHistory(history)
        if call == "ListSignals":
            return stub.ListSignals(pb.ListSignalsRequest(workflow_id=workflow_id, page_size=1_000, page_token=token))
        return stub.List(
            pb.ListRequest(
                workflow_id=workflow_id,
                page_size=1_000,
                include_state=True,
                include_records=True,
                order=pb.ORDER_OLDEST_FIRST,
                page_token=token,
            )
        )

    found: list[bytes] = []
    token, is_last = "", False
    with grpc.insecure_channel(server.target) as small:
        while not is_last:
            answer = page(open_stub(small), token)
            match answer:
                case pb.GetEntryHistoryResponse():
                    found += [each.value.data for each in answer.versions]
                case pb.ListSignalsResponse():
                    found += [each.value.data for each in answer.signals]
                case _ if call == "List":
                    found += [each.state["x"].data for each in answer.checkpoints]
                case _:
                    found += [each.records[0].value.data for each in answer.checkpoints]
            token = answer.next_page_token
            is_last = not token
    assert sorted(found) == [bytes([number]) * MIB for number in range(count)]


def test_a_request_over_the_limit_is_refused_with_the_limit_and_the_connection_goes_on(
    stub: Any, request: pytest.FixtureRequest
) -> None:
    workflow_id = request.node.name
    a_little = refusal(stub.Save, save_request(workflow_id, entries={"x": '"' + "x" * 16 * MIB + '"'}))
    assert (a_little.code, a_little.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_EXCEEDED")
    assert a_little.metadata["limit"] == "request_bytes_max"
    far = refusal(stub.Save, save_request(workflow_id, entries={"x": '"' + "x" * 20 * MIB + '"'}))
    # gRPC itself refuses this before it is read; there is nobody who could give a reason.
    assert (far.code, far.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    stub.Save(save_request(workflow_id))


@pytest.mark.parametrize("method", ["Save", "BatchSave", "AppendRecords"])
def test_large_requests_that_are_refused_hold_no_room(
    channel: grpc.Channel, stub: Any, request: pytest.FixtureRequest, method: str
) -> None:
    """One after the other they are more than may be in progress at once."""
    call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
    for _ in range(10):
        assert refusal(call, b"\xff" * 2 * MIB).reason == "INVALID_FIELD"
    stub.Save(save_request(request.node.name, entries={"x": f'"{"x" * 2 * MIB}"'}))


@pytest.mark.parametrize("method", ["Save", "Watch"])
def test_a_call_that_ends_without_a_request_reaches_no_method(
    channel: grpc.Channel, stub: Any, request: pytest.FixtureRequest, method: str
) -> None:
    """Nobody answers it, as for any server of gRPC; the connection goes on."""
    call: Any = channel.stream_stream(f"/{SERVICE}/{method}")
    with pytest.raises(grpc.RpcError) as ended:
        next(call(iter(()), timeout=0.2))
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    stub.Save(save_request(request.node.name))


@pytest.mark.slow
def test_the_largest_state_comes_back_whole_and_a_small_receiver_is_told(
    server: Any, stub: Any, request: pytest.FixtureRequest
) -> None:
    workflow_id = request.node.name
    text = '"' + "x" * (15 * MIB) + '"'
    stub.Save(save_request(workflow_id, entries={"x": text}))
    assert stub.Load(pb.LoadRequest(workflow_id=workflow_id)).checkpoint.state["x"].json == text
    with grpc.insecure_channel(server.target) as small:
        refused = refusal(open_stub(small).Load, pb.LoadRequest(workflow_id=workflow_id))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def first_answer(channel: grpc.Channel, method: str) -> Callable[..., object]:
    """Return what makes a call in bare bytes and returns its answer; of a stream, the first one."""
    if not DESCRIPTOR.methods_by_name[method].server_streaming:
        unary: Callable[..., object] = channel.unary_unary(f"/{SERVICE}/{method}")
        return unary

    def call(payload: bytes, *, timeout: float) -> object:
        open_stream: Any = channel.unary_stream(f"/{SERVICE}/{method}")
        stream = open_stream(payload, timeout=timeout)
        try:
            return next(stream)
        finally:
            stream.cancel()

    return call


@pytest.mark.parametrize("method", METHODS)
def test_random_bytes_as_a_request_get_an_error_or_an_answer(channel: grpc.Channel, method: str) -> None:
    call = first_answer(channel, method)
    chooser = random.Random(method)
    valid = save_request("random", checkpoint_id="c", metadata="{}").SerializeToString()
    for number in range(60):
        if number % 2:
            payload = chooser.randbytes(chooser.randrange(200))
        else:
            damaged = bytearray(valid)
            for _ in range(3):
                damaged[chooser.randrange(len(damaged))] = chooser.randrange(256)
            payload = bytes(damaged)
        try:
            call(payload, timeout=30)
        except grpc.RpcError as error:
            refused = read_error(error)
            assert refused.reason, refused
            assert refused.reason != "INTERNAL_ERROR", refused


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary(f"/{SERVICE}/Nope")
    assert refusal(call, b"").code is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_that_has_passed_is_told_and_harms_nothing(stub: Any, request: pytest.FixtureRequest) -> None:
    workflow_id = request.node.name
    refused = refusal(stub.Save, save_request(workflow_id, checkpoint_id="c"), timeout_s=-1.0)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert stub.Save(save_request(workflow_id, checkpoint_id="c")).sequence == 1
