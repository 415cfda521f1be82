"""Calls that come as bytes: run among others, each refused by itself; and what is read off their front."""

from __future__ import annotations

import msgspec
import pytest

from milepost.v1 import checkpoint_pb2 as checkpoint_pb
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import error_reason_pb2
from milepost_server.errors import InvalidFieldError
from milepost_server.grpc_api.call_codec import PbCallCodec, peek_namespace, split_batch
from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import (
    EncodedBatchSaveAnswer,
    EncodedBatchSaveCommand,
    EncodedLoadAnswer,
    EncodedLoadQuery,
    EncodedSaveAnswer,
    EncodedSaveCommand,
    LongLoad,
    SaveAnswer,
    Status,
)
from milepost_server.storage import encoded
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.testing.builders import Store, delete_workflow, is_found, save

CODEC = PbCallCodec(DEFAULT_LIMITS)


def encoded_save(request: pb.SaveRequest) -> EncodedSaveCommand:
    body = request.SerializeToString()
    return EncodedSaveCommand(body, len(body))


def test_encoded_saves_run_in_order_among_others_and_a_malformed_one_fails_alone() -> None:
    engine = MemoryEngine(limits=DEFAULT_LIMITS)
    outcomes = encoded.execute(
        engine,
        CODEC,
        [
            encoded_save(pb.SaveRequest(workflow_id="w", checkpoint_id="a")),
            EncodedSaveCommand(b"\xff\xff", 2),
            encoded_save(pb.SaveRequest(checkpoint_id="no workflow")),
            save("w", "b"),
            encoded_save(pb.SaveRequest(workflow_id="w", checkpoint_id="c", release_lease=False, current_step="s")),
        ],
    )
    first, not_a_message, invalid, plain, last = outcomes
    assert isinstance(first, EncodedSaveAnswer)
    assert pb.SaveResponse.FromString(first.body).sequence == 1
    assert isinstance(not_a_message, InvalidFieldError)
    assert "must be a milepost.v1.SaveRequest" in not_a_message.message
    assert isinstance(invalid, InvalidFieldError)
    assert invalid.field == "workflow_id"
    assert isinstance(plain, SaveAnswer)
    assert isinstance(last, EncodedSaveAnswer)
    [stored] = last.stored
    assert (stored.namespace, stored.workflow_id, stored.sequence, stored.current_step) == ("default", "w", 3, "s")
    assert stored.incarnation == first.stored[0].incarnation


def batch_of(*requests: pb.SaveRequest, first_number: int = 0) -> EncodedBatchSaveCommand:
    items = tuple(request.SerializeToString() for request in requests)
    return EncodedBatchSaveCommand(items, sum(map(len, items)), first_number)


def test_the_items_of_a_batch_are_read_where_they_run_and_answered_in_order() -> None:
    engine = MemoryEngine(limits=DEFAULT_LIMITS)
    slice_ = batch_of(
        pb.SaveRequest(workflow_id="w", checkpoint_id="a", current_step="s", release_lease=False),
        pb.SaveRequest(workflow_id="w", checkpoint_id="b", metadata="{"),
        pb.SaveRequest(workflow_id="w", checkpoint_id="c", parent_id="b"),
        pb.SaveRequest(workflow_id="w", checkpoint_id="a", current_step="s"),
        pb.SaveRequest(workflow_id="w", checkpoint_id="a", current_step="t", on_conflict=pb.ON_CONFLICT_REPLACE),
        first_number=10,
    )
    [answer] = encoded.execute(engine, CODEC, [slice_])
    assert isinstance(answer, EncodedBatchSaveAnswer)
    results = pb.BatchSaveResponse.FromString(answer.body).results
    assert [each.saved.checkpoint_id for each in results] == ["a", "", "", "a", "a"]
    assert [error_reason_pb2.ErrorReason.Name(each.error.reason) for each in results[1:3]] == [
        "INVALID_FIELD",
        "PREDECESSOR_FAILED",
    ]
    assert "items[11].metadata" in results[1].error.message
    assert dict(results[2].error.metadata) == {"index": "12", "predecessor_index": "11"}
    assert results[3].saved.replayed
    # The replay changed nothing, so nobody is told of it.
    assert [(each.checkpoint_id, each.current_step, each.is_replaced) for each in answer.stored] == [
        ("a", "s", False),
        ("a", "t", True),
    ]
    assert answer.failed == {("default", "w", "", "b"): 11, ("default", "w", "", "c"): 12}


def test_a_slice_with_an_item_that_is_no_save_at_all_is_refused_whole_and_alone() -> None:
    engine = MemoryEngine(limits=DEFAULT_LIMITS)
    malformed = EncodedBatchSaveCommand((pb.SaveRequest(workflow_id="w").SerializeToString(), b"\xff\xff"), 2)
    refused, other = encoded.execute(engine, CODEC, [malformed, batch_of(pb.SaveRequest(workflow_id="v"))])
    assert isinstance(refused, InvalidFieldError)
    assert "must be a milepost.v1.BatchSaveRequest" in refused.message
    assert isinstance(other, EncodedBatchSaveAnswer)
    assert not is_found(Store(engine, lambda engine, what: 0), "w")


ITEM = pb.SaveRequest(workflow_id="w", metadata="x" * 300)


@pytest.mark.parametrize("count", [1, 2, DEFAULT_LIMITS.batch_items_max])
def test_a_batch_is_split_into_its_items(count: int) -> None:
    body = pb.BatchSaveRequest(items=[ITEM] * count).SerializeToString()
    assert [pb.SaveRequest.FromString(bytes(each)) for each in split_batch(body, DEFAULT_LIMITS)] == [ITEM] * count


@pytest.mark.parametrize(
    "rest", [b"\x10\x07", b"\x12\x02ab", b"\x0a\x80\x80\x80\x80\x00"], ids=["number", "text", "long size"]
)
def test_what_a_batch_has_beside_its_items_is_passed_over(rest: bytes) -> None:
    body = rest + pb.BatchSaveRequest(items=[ITEM]).SerializeToString() + rest
    items = [pb.SaveRequest.FromString(bytes(each)) for each in split_batch(body, DEFAULT_LIMITS)]
    assert items == list(pb.BatchSaveRequest.FromString(body).items)
    assert ITEM in items


@pytest.mark.parametrize(
    "body, what",
    [
        (b"", "must be 1 to 1000 items"),
        (b"\xff\xff", "must be a milepost.v1.BatchSaveRequest"),
        (b"\x0a", "must be a milepost.v1.BatchSaveRequest"),
        (b"\x0a\x00\x0a\x05abcd", "must be a milepost.v1.BatchSaveRequest"),
        (b"\x0a\x00" * 1_001, "1001 items"),
        (b"\x0a\x00" * 2_000_000, "1001 items"),
    ],
    ids=["nothing", "no message", "no size", "cut off", "one too many", "millions"],
)
def test_what_is_no_batch_is_refused_before_anything_is_run(body: bytes, what: str) -> None:
    with pytest.raises(InvalidFieldError, match=what):
        split_batch(body, DEFAULT_LIMITS)


def test_a_load_that_may_look_at_many_rows_is_run_only_where_it_may() -> None:
    engine = MemoryEngine(limits=DEFAULT_LIMITS)
    engine.execute([save("w", "a")])
    for request, is_long in ((pb.LoadRequest(workflow_id="w"), False), (status_load(), True)):
        query = EncodedLoadQuery(request.SerializeToString())
        short = encoded.load(engine, CODEC, query, is_long=False)
        assert isinstance(short, LongLoad) is is_long
        answer = encoded.load(engine, CODEC, query, is_long=True)
        assert isinstance(answer, EncodedLoadAnswer)
        assert pb.LoadResponse.FromString(answer.body).head_checkpoint_id == "a"


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_look_for_a_status_goes_on_where_it_was(is_made_again: bool) -> None:
    """A turn ends after so many rows; a workflow that was made again since is looked at from its newest."""
    engine = MemoryEngine(limits=msgspec.structs.replace(DEFAULT_LIMITS, page_rows_examined_max=1_000))
    engine.execute([save("w", "wanted"), *[save("w", f"c{number}", status=Status.WAITING) for number in range(2_500)]])
    query = EncodedLoadQuery(status_load().SerializeToString())
    turn = encoded.load(engine, CODEC, query, is_long=True)
    assert isinstance(turn, LongLoad)
    if is_made_again:
        engine.execute([delete_workflow("w"), save("w", "again")])
    turns = 1
    while isinstance(turn, LongLoad):
        turn = encoded.load(engine, CODEC, query, is_long=True, position=turn.position)
        turns += 1
    found = pb.LoadResponse.FromString(turn.body).checkpoint.checkpoint_id
    assert (found, turns) == (("again", 2) if is_made_again else ("wanted", 3))


def status_load() -> pb.LoadRequest:
    return pb.LoadRequest(workflow_id="w", latest_with_status=[checkpoint_pb.STATUS_RUNNING])


@pytest.mark.parametrize(
    "body, namespace",
    [
        (pb.SaveRequest(namespace="tenant-é", workflow_id="w").SerializeToString(), "tenant-é"),
        (pb.SaveRequest(workflow_id="w").SerializeToString(), "default"),
        (b"", "default"),
        (b"\x0a", "default"),
        (b"\x0a\x05ab", "ab"),
        (b"\x0a\x80\x01", "default"),
        (b"\x0a\x01\xff", "\ufffd"),
    ],
    ids=["named", "unnamed", "empty", "no length", "cut off", "long", "not text"],
)
def test_the_namespace_is_read_off_the_front_of_whatever_comes(body: bytes, namespace: str) -> None:
    assert peek_namespace(body) == namespace
