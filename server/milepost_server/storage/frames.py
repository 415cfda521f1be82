"""What goes between the server and its storage process: lists of model values over a socket.

A frame is its length (4 bytes, big-endian) and its items, one after the other: the number of the kind (1 byte), the
length (4 bytes) and the value as MessagePack, or as it is where it consists of bytes alone. Both ends are the same
version of the same program, started together, so there is nothing to negotiate.
"""

from __future__ import annotations

import socket
import struct
import typing
from collections.abc import Callable, Sequence
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
_ITEM = struct.Struct(">BI")
_ITEM_SPACE = bytes(_ITEM.size)
RECEIVE_BYTES: Final = 64 * 1024
"""What a buffer for frames holds; a larger frame has one of its own, as large as it is."""
COPY_BYTES_MAX: Final = 64 * 1024
"""A larger body is sent from where it lies, and not copied into a frame first."""
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
    """A list with its filter for metadata as JSON: MessagePack ends at 64 bits, JSON's integers do not."""

    query: model.ListQuery
    metadata_contains: bytes
    """Empty where there is no such filter."""


class StatisticsQuery(msgspec.Struct, frozen=True, array_like=True):
    """Read sizes and counts."""


class StatisticsAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Sizes and counts."""

    counts: dict[str, int]


KINDS: Final[tuple[type, ...]] = (
    # A batch of Saves crosses encoded; decoded it is only where it is run.
    *(kind for kind in typing.get_args(model.Command) if kind is not model.BatchSaveCommand),
    *(kind for kind in typing.get_args(model.Answer) if kind is not model.BatchSaveAnswer),
    model.ProbeQuery,
    model.LoadQuery,
    model.LoadAnswer,
    model.EncodedLoadQuery,
    model.EncodedLoadAnswer,
    model.LongLoad,
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
_numbers: dict[type, int] = {kind: number for number, kind in enumerate(KINDS)}
_of_bytes: dict[type, Callable[[bytes], Any]] = {
    model.EncodedSaveCommand: lambda body: model.EncodedSaveCommand(body, len(body)),
    model.EncodedLoadQuery: model.EncodedLoadQuery,
    model.EncodedLoadAnswer: model.EncodedLoadAnswer,
}
"""Kinds that are nothing but a `body`."""


def pack(items: Sequence[Any]) -> list[bytes | bytearray]:
    """Return the frame of a list, in parts to be sent one after the other; `StoreError`s go as their texts."""
    part = bytearray(_LENGTH.size)
    parts: list[bytes | bytearray] = [part]
    for each in items:
        item = each
        number = _numbers.get(type(item))
        if number is None:
            item = _carrier(item)
            number = _numbers[type(item)]
        if type(item) in _of_bytes:
            body = item.body
            part += _ITEM.pack(number, len(body))
            if len(body) <= COPY_BYTES_MAX:
                part += body
            else:
                part = bytearray()
                parts += (body, part)
        else:
            start = len(part)
            part += _ITEM_SPACE
            _encode_into(item, part, -1)
            _ITEM.pack_into(part, start, number, len(part) - start - _ITEM.size)
    _LENGTH.pack_into(parts[0], 0, sum(map(len, parts)) - _LENGTH.size)
    return parts


class FrameBuffer:
    """Puts frames together from what one connection brings."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(RECEIVE_BYTES))
        self._filled = 0
        """How much of it has come and not been read."""
        self.may_have_more = False
        """The last receiving filled the buffer, so the connection may have more."""

    def receive(self, connection: socket.socket, flags: int = 0) -> list[Any]:
        """Receive once, and return the items of all frames that are whole now, in order.

        Raises:
            BlockingIOError: Nothing has come, and the connection, or `flags`, says not to wait.
            EOFError: The other end has gone.
        """
        try:
            count = connection.recv_into(self._view[self._filled :], 0, flags)
        except ConnectionError:
            count = 0
        if not count:
            raise EOFError("the other process has gone")
        filled = self._filled + count
        self.may_have_more = filled == len(self._view)
        items: list[Any] = []
        start = size_bytes = 0
        while filled - start >= _LENGTH.size:
            size_bytes = _LENGTH.size + _LENGTH.unpack_from(self._view, start)[0]
            if filled - start < size_bytes:
                break
            _read_items(self._view[start + _LENGTH.size : start + size_bytes], items)
            start += size_bytes
            size_bytes = 0
        self._keep(start, filled, size_bytes)
        return items

    def _keep(self, start: int, filled: int, size_bytes: int) -> None:
        """Move what is left to the front of a buffer that the unfinished frame, of that size if it is known, fits."""
        left = self._view[start:filled]
        if size_bytes > len(self._view) or (start and len(self._view) > RECEIVE_BYTES):
            self._view = memoryview(bytearray(max(size_bytes, RECEIVE_BYTES)))
            self._view[: len(left)] = left
        elif start and left:
            self._view[: len(left)] = bytes(left)
        self._filled = len(left)


class FrameReader:
    """Reads the frames of one connection, in a thread: as many at once as have come.

    Args:
        connection: Read by nobody else.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = FrameBuffer()

    def take(self) -> list[Any]:
        """Wait for a frame, and return its items with those of all others that are there.

        Raises:
            EOFError: The other end has gone.
        """
        items: list[Any] = []
        while not items:
            items = self._buffer.receive(self._connection)
        while self._buffer.may_have_more:
            try:
                items += self._buffer.receive(self._connection, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        return items


def outcomes_of(items: list[Any]) -> list[Any]:
    """Return the outcomes of a batch as they came back.

    Raises:
        StorageFailedError: The process says that its storage has failed.
    """
    if items and isinstance(items[0], StorageFailed):
        raise StorageFailedError(items[0].message)
    return items


def process_lost(ending: str) -> StorageFailedError:
    """Return the error for a batch whose process ended before it answered: "ended with status 1", say."""
    return StorageFailedError(f"the storage process {ending}; what it had been sent may or may not be stored")


def send(connection: socket.socket, items: Sequence[Any]) -> None:
    """Send a list."""
    for part in pack(items):
        connection.sendall(part)


def receive(connection: socket.socket) -> list[Any]:
    """Receive a list; texts of errors become `StoreError`s.

    Raises:
        EOFError: The other end has gone.
    """
    size_bytes = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))[0]
    items: list[Any] = []
    _read_items(memoryview(_receive_exactly(connection, size_bytes)), items)
    return items


def _read_items(frame: memoryview, items: list[Any]) -> None:
    start = 0
    while start < len(frame):
        number, size_bytes = _ITEM.unpack_from(frame, start)
        start += _ITEM.size
        items.append(_readers[number](frame[start : start + size_bytes]))
        start += size_bytes


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


def _carrier(item: Any) -> Any:
    """Return what stands for an item that has another form on its way."""
    if isinstance(item, model.ListQuery):
        contains = item.filter.metadata_contains
        return FilteredList(_with_metadata(item, None), b"" if contains is None else _encode_json(contains))
    if not isinstance(item, StoreError):
        raise TypeError(f"{type(item).__name__} is none of KINDS")
    return ErrorText(type(item).__name__, item.reason, item.message, item.metadata, item.retry_after_s, item.field)


def _filtered_list(item: FilteredList) -> model.ListQuery:
    contains = item.metadata_contains
    return _with_metadata(item.query, msgspec.json.decode(contains)) if contains else item.query


def _error(item: ErrorText) -> StoreError:
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


def _reader(kind: type) -> Callable[[memoryview], Any]:
    """Return what makes an item of the bytes of its kind."""
    of_bytes = _of_bytes.get(kind)
    if of_bytes is not None:
        return lambda body: of_bytes(bytes(body))
    decode: Callable[[memoryview], Any] = msgspec.msgpack.Decoder(kind).decode
    if kind is ErrorText:
        return lambda body: _error(decode(body))
    if kind is FilteredList:
        return lambda body: _filtered_list(decode(body))
    return decode


_readers: list[Callable[[memoryview], Any]] = [_reader(kind) for kind in KINDS]
