"""What goes between the server and its storage process: lists of model values over a socket.

A frame is its length (4 bytes, big-endian) and a MessagePack list; each item is the name of its class and the value.
Both ends are the same version of the same program, started together, so there is nothing to negotiate.
"""

from __future__ import annotations

import socket
import struct
import typing
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from milepost_server import model
from milepost_server.errors import (
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    OutcomeUnknownError,
    PreconditionError,
    RecordDamagedError,
    ResourceError,
    StorageFailedError,
    StoreError,
    UnavailableError,
)

_LENGTH = struct.Struct(">I")
RECEIVE_BYTES: Final = 256 * 1024
_encode_into = msgspec.msgpack.Encoder().encode_into
_encode_json = msgspec.json.Encoder().encode


class ErrorText(msgspec.Struct, frozen=True, array_like=True):
    """A `StoreError` on its way between the processes."""

    kind: str
    reason: str
    message: str
    metadata: dict[str, str]
    retry_after_s: float | None
    field: str


class StorageFailed(msgspec.Struct, frozen=True, array_like=True):
    """The engine cannot go on until it is reopened."""

    message: str


class StartFailed(msgspec.Struct, frozen=True, array_like=True):
    """The store of the data directory cannot be served."""

    message: str


class Postponed(msgspec.Struct, frozen=True, array_like=True):
    """A load that was not answered, since the answers before it in the frame are large; to be asked for again."""


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """The store is open."""


class WorkflowQuery(msgspec.Struct, frozen=True, array_like=True):
    """Read one workflow."""

    namespace: str
    workflow_id: str


class LeaseQuery(msgspec.Struct, frozen=True, array_like=True):
    """Read a workflow's lease."""

    namespace: str
    workflow_id: str


class DefinitionQuery(msgspec.Struct, frozen=True, array_like=True):
    """Read a definition's manifest."""

    namespace: str
    fingerprint: str


class FilteredList(msgspec.Struct, frozen=True, array_like=True):
    """A list with a filter for metadata, as JSON: MessagePack ends at 64 bits, JSON's integers do not."""

    query: model.ListQuery
    metadata_contains: bytes


class StatisticsQuery(msgspec.Struct, frozen=True, array_like=True):
    """Read sizes and counts."""


class StatisticsAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Sizes and counts."""

    counts: dict[str, int]


KINDS: Final[tuple[type, ...]] = (
    # A batch of Saves crosses encoded; decoded it is only where it is run.
    *(kind for kind in typing.get_args(model.Command) if kind is not model.BatchSaveCommand),
    *(kind for kind in typing.get_args(model.Answer) if kind is not model.BatchSaveAnswer),
    model.LoadQuery,
    model.LoadAnswer,
    model.EncodedLoadQuery,
    model.EncodedLoadAnswer,
    model.LongLoad,
    model.ListQuery,
    model.ListAnswer,
    model.ListWorkflowsQuery,
    model.ListWorkflowsAnswer,
    model.EntryHistoryQuery,
    model.EntryHistoryAnswer,
    model.WorkflowAnswer,
    model.LeaseQueryAnswer,
    model.ListSignalsQuery,
    model.ListSignalsAnswer,
    model.DefinitionAnswer,
    WorkflowQuery,
    LeaseQuery,
    DefinitionQuery,
    FilteredList,
    StatisticsQuery,
    StatisticsAnswer,
    ErrorText,
    StorageFailed,
    StartFailed,
    Ready,
    Postponed,
)
_error_classes: dict[str, type[StoreError]] = {
    kind.__name__: kind
    for kind in (
        StoreError,
        InvalidFieldError,
        LimitExceededError,
        NotFoundError,
        PreconditionError,
        ResourceError,
        UnavailableError,
        OutcomeUnknownError,
        RecordDamagedError,
    )
}
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in KINDS}
_list_decoder = msgspec.msgpack.Decoder(list[tuple[str, msgspec.Raw]])


def pack(items: Sequence[Any]) -> bytearray:
    """Return the frame of a list; `StoreError`s go as their texts."""
    frame = bytearray(_LENGTH.size)
    _encode_into([(type(item).__name__, item) for item in map(_sendable, items)], frame, _LENGTH.size)
    _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
    return frame


def take_whole(received: bytearray) -> tuple[list[Any], bytearray]:
    """Return the items of all whole frames that were received, in order, and what is left of the bytes."""
    items: list[Any] = []
    start = 0
    while len(received) - start >= _LENGTH.size:
        end = start + _LENGTH.size + _LENGTH.unpack_from(received, start)[0]
        if len(received) < end:
            break
        items += _decode(memoryview(received)[start + _LENGTH.size : end])
        start = end
    return items, received[start:] if start else received


class FrameReader:
    """Reads the frames of one connection, in a thread: as many at once as have come.

    Args:
        connection: Read by nobody else.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()

    def take(self) -> list[Any]:
        """Wait for a frame, and return its items with those of all others that are there.

        Raises:
            EOFError: The other end has gone.
        """
        items: list[Any] = []
        flags = 0
        while True:
            try:
                chunk = self._connection.recv(RECEIVE_BYTES, flags)
            except BlockingIOError:
                if items:
                    return items
                flags = 0
                continue
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise EOFError("the other process has gone")
            flags = socket.MSG_DONTWAIT
            self._received += chunk
            whole, self._received = take_whole(self._received)
            items += whole


def outcomes_of(items: list[Any]) -> list[Any]:
    """Return the outcomes of a batch as they came back.

    Raises:
        StorageFailedError: The process says that its storage has failed.
    """
    if items and isinstance(items[0], StorageFailed):
        raise StorageFailedError(items[0].message)
    return items


def process_lost() -> StorageFailedError:
    """Return the error for a batch whose process ended before it answered."""
    return StorageFailedError("the storage process ended; what it had been sent may or may not be stored")


def send(connection: socket.socket, items: Sequence[Any]) -> None:
    """Send a list."""
    connection.sendall(pack(items))


def receive(connection: socket.socket) -> list[Any]:
    """Receive a list; texts of errors become `StoreError`s.

    Raises:
        EOFError: The other end has gone.
    """
    size_bytes = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))[0]
    return _decode(_receive_exactly(connection, size_bytes))


def _decode(body: bytearray | memoryview) -> list[Any]:
    return [_received(_decoders[name].decode(raw)) for name, raw in _list_decoder.decode(body)]


def _receive_exactly(connection: socket.socket, size_bytes: int) -> bytearray:
    buffer = bytearray(size_bytes)
    view = memoryview(buffer)
    while view:
        try:
            count = connection.recv_into(view)
        except ConnectionError:
            count = 0
        if not count:
            raise EOFError("the other process has gone")
        view = view[count:]
    return buffer


def _sendable(item: Any) -> Any:
    if isinstance(item, model.ListQuery) and item.filter.metadata_contains is not None:
        return FilteredList(_with_metadata(item, None), _encode_json(item.filter.metadata_contains))
    if not isinstance(item, StoreError):
        return item
    return ErrorText(type(item).__name__, item.reason, item.message, item.metadata, item.retry_after_s, item.field)


def _received(item: Any) -> Any:
    if isinstance(item, FilteredList):
        return _with_metadata(item.query, msgspec.json.decode(item.metadata_contains))
    if not isinstance(item, ErrorText):
        return item
    # Subclasses take fields of their own, of which the parts of this one were made.
    error_class = _error_classes[item.kind]
    error = error_class.__new__(error_class)
    StoreError.__init__(
        error, item.reason, item.message, item.metadata, retry_after_s=item.retry_after_s, field=item.field
    )
    return error


def _with_metadata(query: model.ListQuery, contains: dict[str, object] | None) -> model.ListQuery:
    replace = msgspec.structs.replace
    return replace(query, filter=replace(query.filter, metadata_contains=contains))
