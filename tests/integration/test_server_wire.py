"""What comes over the wire, good and bad: each wrong input has its reason, and none crashes or hangs the server."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import zstandard

from milepost.v1 import checkpoint_pb2, checkpoint_store_pb2
from milepost.v1 import checkpoint_store_pb2 as pb
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


WRONG: list[tuple[str, Any, str]] = [
    ("Save", pb.SaveRequest(), "workflow_id"),
    ("Save", pb.SaveRequest(workflow_id="x" * 1_025), "workflow_id"),
    ("Save", pb.SaveRequest(workflow_id="é" * 513), "workflow_id"),
    ("Save", pb.SaveRequest(workflow_id="a\0b"), "workflow_id"),
    ("Save", pb.SaveRequest(workflow_id="w", namespace="n" * 129), "namespace"),
    ("Save", pb.SaveRequest(workflow_id="w", scope="s" * 1_025), "scope"),
    ("Save", pb.SaveRequest(workflow_id="w", checkpoint_id=""), "checkpoint_id"),
    ("Save", pb.SaveRequest(workflow_id="w", checkpoint_id="c" * 257), "checkpoint_id"),
    ("Save", pb.SaveRequest(workflow_id="w", parent_id="c" * 257), "parent_id"),
    ("Save", pb.SaveRequest(workflow_id="w", base_checkpoint_id=""), "base_checkpoint_id"),
    ("Save", pb.SaveRequest(workflow_id="w", current_step="\0"), "current_step"),
    ("Save", pb.SaveRequest(workflow_id="w", definition="d" * 257), "definition"),
    ("Save", pb.SaveRequest(workflow_id="w", status=99), "status"),  # type: ignore[arg-type]
    ("Save", pb.SaveRequest(workflow_id="w", on_conflict=99), "on_conflict"),  # type: ignore[arg-type]
    ("Save", pb.SaveRequest(workflow_id="w", replaces_digest=b"x" * 32), "replaces_digest"),
    (
        "Save",
        pb.SaveRequest(workflow_id="w", on_conflict=pb.ON_CONFLICT_REPLACE, replaces_digest=b"x"),
        "replaces_digest",
    ),
    ("Save", pb.SaveRequest(workflow_id="w", removed_keys=["x"]), "removed_keys"),
    ("Save", save_request(base_checkpoint_id="c", removed_keys=["x"]), "removed_keys[0]"),
    ("Save", save_request(entries={"x": "nope"}), "state['x'].json"),
    ("Save", save_request(entries={"x": "[" * 513 + "]" * 513}), "state['x'].json"),
    ("Save", save_request(entries={"": "1"}), "state['']"),
    ("Save", pb.SaveRequest(workflow_id="w", state={"x": checkpoint_pb2.Value()}), "state['x']"),
    (
        "Save",
        pb.SaveRequest(workflow_id="w", state={"x": checkpoint_pb2.Value(data=b"", compression=9)}),  # type: ignore[arg-type]
        "state['x'].compression",
    ),
    (
        "Save",
        pb.SaveRequest(
            workflow_id="w",
            state={"x": checkpoint_pb2.Value(data=b"x", compression=checkpoint_pb2.COMPRESSION_ZSTD)},
        ),
        "state['x'].data",
    ),
    ("Save", pb.SaveRequest(workflow_id="w", metadata="[]"), "metadata"),
    ("Save", pb.SaveRequest(workflow_id="w", metadata='{"a":"' + "x" * 65_536 + '"}'), "metadata"),
    ("Save", pb.SaveRequest(workflow_id="w", labels={str(number): "" for number in range(17)}), "labels"),
    ("Save", pb.SaveRequest(workflow_id="w", completed_steps_added=[""]), "completed_steps_added[0]"),
    ("Save", pb.SaveRequest(workflow_id="w", history_entries=["k"] * 1_001), "history_entries"),
    ("Save", pb.SaveRequest(workflow_id="w", records=[checkpoint_pb2.Record(task_id="t")]), "records[0].value"),
    ("Save", pb.SaveRequest(workflow_id="w", records=[checkpoint_pb2.Record()] * 10_001), "records"),
    ("BatchSave", pb.BatchSaveRequest(), "items"),
    ("BatchSave", pb.BatchSaveRequest(items=[pb.SaveRequest(workflow_id="w")] * 1_001), "items"),
    ("Load", pb.LoadRequest(), "workflow_id"),
    ("Load", pb.LoadRequest(workflow_id="w", checkpoint_id="c", sequence=1), "checkpoint_id"),
    ("Load", pb.LoadRequest(workflow_id="w", checkpoint_id=""), "checkpoint_id"),
    ("Load", pb.LoadRequest(workflow_id="w", sequence=0), "sequence"),
    ("Load", pb.LoadRequest(workflow_id="w", latest_with_status=[77]), "latest_with_status"),  # type: ignore[list-item]
    ("List", pb.ListRequest(workflow_id="w", page_size=-1), "page_size"),
    ("List", pb.ListRequest(workflow_id="w", order=9), "order"),  # type: ignore[arg-type]
    ("List", pb.ListRequest(workflow_id="w", metadata_contains="1"), "metadata_contains"),
    ("List", pb.ListRequest(workflow_id="w", before_sequence=0), "before_sequence"),
    ("AppendRecords", pb.AppendRecordsRequest(workflow_id="w", checkpoint_id="c"), "records"),
    ("AppendRecords", pb.AppendRecordsRequest(workflow_id="w"), "checkpoint_id"),
    ("GetEntryHistory", pb.GetEntryHistoryRequest(workflow_id="w"), "entry_keys"),
    (
        "GetEntryHistory",
        pb.GetEntryHistoryRequest(workflow_id="w", entry_keys=[str(n) for n in range(101)]),
        "entry_keys",
    ),
    ("ListWorkflows", pb.ListWorkflowsRequest(page_size=-5), "page_size"),
    ("ListWorkflows", pb.ListWorkflowsRequest(workflow_id_prefix="\0"), "workflow_id_prefix"),
    ("GetWorkflow", pb.GetWorkflowRequest(), "workflow_id"),
    ("ForkWorkflow", pb.ForkWorkflowRequest(workflow_id="w"), "target_workflow_id"),
    ("ForkWorkflow", pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="w"), "target_workflow_id"),
    ("ForkWorkflow", pb.ForkWorkflowRequest(workflow_id="w", target_workflow_id="v", mode=9), "mode"),  # type: ignore[arg-type]
    ("DeleteWorkflow", pb.DeleteWorkflowRequest(), "workflow_id"),
    ("DeleteCheckpoints", pb.DeleteCheckpointsRequest(workflow_id="w"), "checkpoint_ids"),
    ("DeleteCheckpoints", pb.DeleteCheckpointsRequest(checkpoint_ids=["c"]), "workflow_id"),
    ("DeleteCheckpoints", pb.DeleteCheckpointsRequest(workflow_id="w", checkpoint_ids=["c"] * 1_001), "checkpoint_ids"),
    ("PruneWorkflow", pb.PruneWorkflowRequest(workflow_id="w", keep_last=-1), "keep_last"),
]


@pytest.mark.parametrize("method,request_,field", WRONG, ids=[f"{each[0]}-{each[2]}" for each in WRONG])
def test_a_wrong_field_is_named(stub: Any, method: str, request_: Any, field: str) -> None:
    refused = refusal(getattr(stub, method), request_)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason in {"INVALID_FIELD", "LIMIT_EXCEEDED"}
    assert refused.fields == (field,)
    assert refused.metadata["field"] == field
    if refused.reason == "LIMIT_EXCEEDED":
        assert int(refused.metadata["found"]) > int(refused.metadata["allowed"])


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
