"""Calls that come as bytes: run among others, each refused by itself; and what is read off their front."""

from __future__ import annotations

import pytest

from milepost.v1 import checkpoint_pb2 as checkpoint_pb
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.errors import InvalidFieldError
from milepost_server.grpc_api.call_codec import PbCallCodec, peek_namespace
from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import (
    EncodedLoadAnswer,
    EncodedLoadQuery,
    EncodedSaveAnswer,
    EncodedSaveCommand,
    LongLoad,
    SaveAnswer,
)
from milepost_server.storage import encoded
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.testing.builders import save

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
    assert (last.namespace, last.workflow_id, last.sequence, last.current_step) == ("default", "w", 3, "s")
    assert last.incarnation == first.incarnation


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
