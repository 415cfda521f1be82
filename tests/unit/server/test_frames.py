"""Frames between the server and its storage process: everything that goes over comes out as it went in."""

from __future__ import annotations

import socket
import threading
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from milepost_server import model
from milepost_server.errors import (
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    OutcomeUnknownError,
    RecordDamagedError,
    StoreError,
    UnavailableError,
)
from milepost_server.limits import MIB
from milepost_server.model import CheckpointFilter
from milepost_server.storage import frames
from milepost_server.testing.builders import list_query

PARTS = ("reason", "message", "metadata", "retry_after_s", "field")
ERRORS = (
    StoreError("WORKFLOW_EXISTS", "workflow 'w' exists already", {"workflow_id": "w", "count": 3}),
    InvalidFieldError("state", "must be JSON", "['"),
    LimitExceededError("state", limit="state_entries_max", allowed=1, found=2, unit="entries"),
    NotFoundError("WORKFLOW_NOT_FOUND", "there is no workflow 'é'"),
    UnavailableError("NOT_SERVING", "later", retry_after_s=0.0),
    OutcomeUnknownError("it may or may not be on disk"),
    RecordDamagedError("nodes", b"\x00\xff", "checksum"),
)


def all_kinds(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        yield kind
        yield from all_kinds(kind)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def parts(error: StoreError) -> list[Any]:
    return [getattr(error, name) for name in PARTS]


def sample(kind: msgspec.inspect.Type, *, is_full: bool) -> Any:
    """Make a value of a type: with every part set, or with as few as there may be."""
    match kind:
        case msgspec.inspect.StructType():
            fields = [field for field in kind.fields if is_full or field.required]
            values = {field.name: sample(field.type, is_full=is_full) for field in fields}
            return kind.cls(**values)
        case msgspec.inspect.UnionType():
            return sample(kind.types[0], is_full=True) if is_full else None
        case msgspec.inspect.DictType():
            return {sample(kind.key_type, is_full=True): sample(kind.value_type, is_full=True)} if is_full else {}
        case msgspec.inspect.VarTupleType():
            return (sample(kind.item_type, is_full=False), sample(kind.item_type, is_full=True)) if is_full else ()
        case msgspec.inspect.TupleType():
            return tuple(sample(each, is_full=is_full) for each in kind.item_types)
        case msgspec.inspect.FrozenSetType():
            return frozenset([sample(kind.item_type, is_full=True)] if is_full else [])
        case msgspec.inspect.EnumType():
            return list(kind.cls)[-1 if is_full else 0]
        case msgspec.inspect.IntType():
            return 2**63 - 1 if is_full else -1
        case msgspec.inspect.BoolType():
            return is_full
        case msgspec.inspect.StrType():
            return "é\0\U0001f600" if is_full else ""
        case msgspec.inspect.BytesType():
            return b"\xff\x00" if is_full else b""
        case msgspec.inspect.CustomType():
            return [1.5, {"a": None}] if is_full else None
        case _:
            raise NotImplementedError(kind)


# The texts of what has another form in the program.
TEXTS = (frames.ErrorText, frames.FilteredList)


@pytest.mark.parametrize("is_full", [False, True], ids=["least", "full"])
@pytest.mark.parametrize("kind", [kind for kind in frames.KINDS if kind not in TEXTS], ids=lambda kind: kind.__name__)
def test_every_kind_goes_over_and_back(kind: type[Any], is_full: bool) -> None:
    item = sample(msgspec.inspect.type_info(kind), is_full=is_full)
    assert frames.take_whole(bytearray(frames.pack([item, item])))[0] == [item, item]


def test_every_command_and_answer_is_known() -> None:
    kinds = {*typing.get_args(model.Command), *typing.get_args(model.Answer)}
    # These cross encoded.
    assert kinds - {model.BatchSaveCommand, model.BatchSaveAnswer} <= set(frames.KINDS)


def test_a_filter_keeps_integers_of_any_size() -> None:
    query = list_query("w", filter=CheckpointFilter(metadata_contains={"n": [10**30, -(10**30), 0.1, True, None]}))
    assert frames.take_whole(bytearray(frames.pack([query])))[0] == [query]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_goes_over_with_its_class_and_its_parts(error: StoreError) -> None:
    received = frames.take_whole(bytearray(frames.pack([error, error])))[0]
    assert [type(each) for each in received] == [type(error)] * 2
    assert [parts(each) for each in received] == [parts(error)] * 2
    assert [str(each) for each in received] == [str(error)] * 2


@pytest.mark.parametrize("kind", [StoreError, *all_kinds(StoreError)], ids=lambda kind: kind.__name__)
def test_every_class_of_error_goes_over(kind: type[StoreError]) -> None:
    error = kind.__new__(kind)
    StoreError.__init__(error, "INTERNAL_ERROR", "text")
    received = frames.take_whole(bytearray(frames.pack([error])))[0]
    assert type(received[0]) is kind


def test_a_frame_is_whole_only_with_its_last_byte() -> None:
    frame = frames.pack([model.ProbeCommand(), frames.Ready()])
    for size in range(len(frame)):
        items, rest = frames.take_whole(bytearray(frame[:size]))
        assert not items
        assert rest == frame[:size]
    items, rest = frames.take_whole(bytearray(frame))
    assert items == [model.ProbeCommand(), frames.Ready()]
    assert not rest


def test_frames_that_have_come_are_taken_together_and_a_part_is_left() -> None:
    """What is left of the bytes is the start of the next frame."""
    first, second = frames.pack([model.ProbeCommand()]), frames.pack([frames.Ready(), frames.Postponed()])
    items, rest = frames.take_whole(first + second + first[:5])
    assert items == [model.ProbeCommand(), frames.Ready(), frames.Postponed()]
    assert rest == first[:5]


def test_a_reader_takes_all_frames_that_are_there_and_keeps_the_part_of_the_next(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """So that what came while a commit ran becomes the next one."""
    reader = frames.FrameReader(pair[1])
    ready, probe = frames.pack([frames.Ready()]), frames.pack([model.ProbeCommand()])
    pair[0].sendall(ready + probe + ready[:5])
    assert reader.take() == [frames.Ready(), model.ProbeCommand()]
    pair[0].sendall(ready[5:])
    assert reader.take() == [frames.Ready()]
    pair[0].close()
    with pytest.raises(EOFError):
        reader.take()


def test_an_empty_list_is_a_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    frames.send(pair[0], [])
    assert frames.receive(pair[1]) == []


def test_frames_come_one_by_one(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(frames.pack([frames.Ready()]) + frames.pack([frames.StorageFailed("disk")]))
    assert [frames.receive(pair[1]), frames.receive(pair[1])] == [[frames.Ready()], [frames.StorageFailed("disk")]]


def test_a_frame_larger_than_the_buffers_of_a_socket_comes_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    large = frames.StorageFailed("x" * 4 * MIB)
    sender = threading.Thread(target=frames.send, args=(pair[0], [large]))
    sender.start()
    assert frames.receive(pair[1]) == [large]
    sender.join()


@pytest.mark.parametrize("sent_count", [0, 1, 4, 5])
def test_an_end_within_a_frame_is_the_end(pair: tuple[socket.socket, socket.socket], sent_count: int) -> None:
    pair[0].sendall(frames.pack([frames.Ready()])[:sent_count])
    pair[0].close()
    with pytest.raises(EOFError):
        frames.receive(pair[1])
