"""Frames between the server and its storage process: everything that goes over comes out as it went in."""

from __future__ import annotations

import contextlib
import socket
import threading
import tracemalloc
import typing
from collections.abc import Iterator, Sequence
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


def packed(items: Sequence[Any]) -> bytes:
    return b"".join(frames.pack(items))


def over(items: Sequence[Any]) -> list[Any]:
    """Return items as they come out at the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, items)
        return frames.receive(theirs)


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
    if isinstance(item, model.EncodedSaveCommand):
        item = msgspec.structs.replace(item, size_bytes=len(item.body))
    assert over([item, item]) == [item, item]


def test_every_command_and_answer_is_known() -> None:
    kinds = {*typing.get_args(model.Command), *typing.get_args(model.Answer)}
    # These cross encoded.
    assert kinds - {model.BatchSaveCommand, model.BatchSaveAnswer} <= set(frames.KINDS)


def test_what_is_of_no_kind_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TypeError, match="str is none of KINDS"):
        frames.pack(["text"])


def test_a_filter_keeps_integers_of_any_size() -> None:
    query = list_query("w", filter=CheckpointFilter(metadata_contains={"n": [10**30, -(10**30), 0.1, True, None]}))
    assert over([query]) == [query]


@pytest.mark.parametrize("contains", [None, {}])
def test_a_filter_for_nothing_is_not_the_same_as_none(contains: dict[str, object] | None) -> None:
    query = list_query("w", filter=CheckpointFilter(metadata_contains=contains))
    assert over([query]) == [query]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_goes_over_with_its_class_and_its_parts(error: StoreError) -> None:
    received = over([error, error])
    assert [type(each) for each in received] == [type(error)] * 2
    assert [parts(each) for each in received] == [parts(error)] * 2
    assert [str(each) for each in received] == [str(error)] * 2


@pytest.mark.parametrize("kind", [StoreError, *all_kinds(StoreError)], ids=lambda kind: kind.__name__)
def test_every_class_of_error_goes_over(kind: type[StoreError]) -> None:
    error = kind.__new__(kind)
    StoreError.__init__(error, "INTERNAL_ERROR", "text")
    received = over([error])
    assert type(received[0]) is kind


def received(pair: tuple[socket.socket, socket.socket], buffer: frames.FrameBuffer, sent: bytes) -> list[Any]:
    """Return the items that are whole with these bytes, all of which are received before it returns."""
    sender = threading.Thread(target=pair[0].sendall, args=(sent,))
    sender.start()
    items: list[Any] = []
    while sender.is_alive():
        with contextlib.suppress(BlockingIOError):
            items += buffer.receive(pair[1], socket.MSG_DONTWAIT)
    with contextlib.suppress(BlockingIOError):
        while True:
            items += buffer.receive(pair[1], socket.MSG_DONTWAIT)
    return items


def test_a_frame_is_whole_only_with_its_last_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    buffer = frames.FrameBuffer()
    frame = packed([model.ProbeCommand(), frames.Ready()])
    for byte in frame[:-1]:
        assert not received(pair, buffer, bytes([byte]))
    assert received(pair, buffer, frame[-1:]) == [model.ProbeCommand(), frames.Ready()]


def test_frames_that_have_come_are_taken_together_and_a_part_is_left(pair: tuple[socket.socket, socket.socket]) -> None:
    """What is left of the bytes is the start of the next frame."""
    buffer = frames.FrameBuffer()
    first, second = packed([model.ProbeCommand()]), packed([frames.Ready(), frames.Postponed()])
    assert received(pair, buffer, first + second + first[:5]) == [
        model.ProbeCommand(),
        frames.Ready(),
        frames.Postponed(),
    ]
    assert received(pair, buffer, first[5:]) == [model.ProbeCommand()]


SIZES = (0, 1, frames.COPY_BYTES_MAX, frames.COPY_BYTES_MAX + 1, frames.RECEIVE_BYTES, 3 * MIB)


@pytest.mark.parametrize("after_bytes", [0, 3, 4, 10])
@pytest.mark.parametrize("size_bytes", SIZES)
def test_frames_around_the_sizes_of_buffers_come_whole(
    pair: tuple[socket.socket, socket.socket], size_bytes: int, after_bytes: int
) -> None:
    """Frames of bodies alone, bodies beside others, and texts of that size, and the beginning of what comes next."""
    buffer = frames.FrameBuffer()
    body = bytes(range(256)) * (size_bytes // 256 + 1)
    items: list[Any] = [
        model.ProbeCommand(),
        model.EncodedSaveCommand(body[:size_bytes], size_bytes),
        model.EncodedLoadQuery(body[:size_bytes]),
        frames.StorageFailed("x" * size_bytes),
        model.EncodedLoadAnswer(body[:size_bytes]),
    ]
    one_by_one = b"".join(packed([each]) for each in items)
    next_one = packed([frames.StorageFailed("y" * size_bytes), frames.Ready()])
    assert received(pair, buffer, packed(items) + next_one[:after_bytes]) == items
    assert received(pair, buffer, next_one[after_bytes:]) == [frames.StorageFailed("y" * size_bytes), frames.Ready()]
    assert received(pair, buffer, one_by_one) == items


def test_a_large_body_is_not_copied_into_its_frame() -> None:
    body = bytes(frames.COPY_BYTES_MAX + 1)
    assert any(part is body for part in frames.pack([model.EncodedSaveCommand(body, len(body))]))


def test_a_buffer_lets_go_of_a_large_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    """What it keeps is no larger than it was, also when the next frame has begun."""
    buffer = frames.FrameBuffer()
    body = bytes(3 * MIB)
    tracemalloc.start()
    try:
        before_bytes = tracemalloc.get_traced_memory()[0]
        next_one = packed([frames.Ready()])
        assert len(received(pair, buffer, packed([model.EncodedSaveCommand(body, len(body))]) + next_one[:2])) == 1
        kept_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    finally:
        tracemalloc.stop()
    assert kept_bytes < frames.RECEIVE_BYTES + 64 * 1024
    assert received(pair, buffer, next_one[2:]) == [frames.Ready()]


def test_a_reader_takes_all_frames_that_are_there_and_keeps_the_part_of_the_next(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """So that what came while a commit ran becomes the next one."""
    reader = frames.FrameReader(pair[1])
    ready, probe = packed([frames.Ready()]), packed([model.ProbeCommand()])
    pair[0].sendall(ready + probe + ready[:5])
    assert reader.take() == [frames.Ready(), model.ProbeCommand()]
    pair[0].sendall(ready[5:])
    assert reader.take() == [frames.Ready()]
    pair[0].close()
    with pytest.raises(EOFError):
        reader.take()


def test_a_reader_takes_all_frames_that_are_there_if_they_are_more_than_its_buffer_holds(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * frames.RECEIVE_BYTES)
    pair[0].setblocking(False)
    texts = [frames.StorageFailed("x" * (frames.RECEIVE_BYTES // 3)) for _ in range(7)]
    for each in texts:
        frames.send(pair[0], [each])
    assert frames.FrameReader(pair[1]).take() == texts


def test_an_empty_list_is_a_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    frames.send(pair[0], [])
    assert frames.receive(pair[1]) == []


def test_frames_come_one_by_one(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(packed([frames.Ready()]) + packed([frames.StorageFailed("disk")]))
    assert [frames.receive(pair[1]), frames.receive(pair[1])] == [[frames.Ready()], [frames.StorageFailed("disk")]]


def test_a_frame_larger_than_the_buffers_of_a_socket_comes_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    large = frames.StorageFailed("x" * 4 * MIB)
    sender = threading.Thread(target=frames.send, args=(pair[0], [large]))
    sender.start()
    assert frames.receive(pair[1]) == [large]
    sender.join()


@pytest.mark.parametrize("sent_count", [0, 1, 4, 5])
def test_an_end_within_a_frame_is_the_end(pair: tuple[socket.socket, socket.socket], sent_count: int) -> None:
    pair[0].sendall(packed([frames.Ready()])[:sent_count])
    pair[0].close()
    with pytest.raises(EOFError):
        frames.receive(pair[1])
