"""The calls that cross to the engine as bytes: their messages, read and written where the engine is.

What the event loop needs of them is read off their outside: a namespace, where the items of a batch begin and end.

Imported by the storage process too, so nothing here may need gRPC or asyncio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.errors import InvalidFieldError, StoreError
from milepost_server.grpc_api import read_requests, write_answers
from milepost_server.grpc_api.status import to_item_error
from milepost_server.limits import Limits
from milepost_server.model import LoadAnswer, LoadQuery, RefusedItem, SaveAnswer, SaveCommand

_NAMESPACE_TAG: Final = 0x0A
"""Of the first field, a text, which every writer of messages puts first."""
_ITEM_TAG: Final = 0x0A
"""Of the items of a batch."""
_SIZE_GROUPS_MAX: Final = 4
"""256 MiB are more than any request has."""


class PbCallCodec:
    """Reads and writes protobuf messages. Implements `CallCodec`.

    Args:
        limits: Bounds of requests.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def decode_save(self, body: bytes) -> SaveCommand:
        """See `CallCodec`."""
        try:
            request = pb.SaveRequest.FromString(body)
        except DecodeError:
            raise not_a_message(pb.SaveRequest.DESCRIPTOR.full_name, body) from None
        return read_requests.save_from_pb(request, self._limits, size_bytes=len(body))

    def encode_saved(self, answer: SaveAnswer) -> bytes:
        """See `CallCodec`."""
        response = pb.SaveResponse()
        write_answers.write_saved(response, answer)
        return response.SerializeToString()

    def decode_items(self, bodies: Sequence[bytes], first_number: int) -> tuple[SaveCommand | RefusedItem, ...]:
        """See `CallCodec`."""
        return tuple(self._decode_item(body, number) for number, body in enumerate(bodies, first_number))

    def _decode_item(self, body: bytes, number: int) -> SaveCommand | RefusedItem:
        try:
            item = pb.SaveRequest.FromString(body)
        except DecodeError:
            raise not_a_message(pb.BatchSaveRequest.DESCRIPTOR.full_name, body) from None
        return read_requests.batch_item_from_pb(item, number, self._limits, size_bytes=len(body))

    def encode_results(self, outcomes: Sequence[SaveAnswer | StoreError]) -> bytes:
        """See `CallCodec`."""
        response = pb.BatchSaveResponse()
        for outcome in outcomes:
            result = response.results.add()
            if isinstance(outcome, StoreError):
                result.error.CopyFrom(to_item_error(outcome))
            else:
                write_answers.write_saved(result.saved, outcome)
        return response.SerializeToString()

    def decode_load(self, body: bytes) -> tuple[LoadQuery, frozenset[int]]:
        """See `CallCodec`."""
        try:
            request = pb.LoadRequest.FromString(body)
        except DecodeError:
            raise not_a_message(pb.LoadRequest.DESCRIPTOR.full_name, body) from None
        return read_requests.load_from_pb(request, self._limits)

    def encode_loaded(self, answer: LoadAnswer, query: LoadQuery, accepted: frozenset[int]) -> bytes:
        """See `CallCodec`."""
        return write_answers.load_to_pb(
            answer, query, write_answers.ValueWriter(accepted, self._limits)
        ).SerializeToString()


def split_batch(body: bytes, limits: Limits) -> list[memoryview]:
    """Return the encoded items of a BatchSave, without looking into them.

    Raises:
        InvalidFieldError: It has none, or is not such a message.
        LimitExceededError: It has too many. They are not counted to their end: 16 MiB can hold millions.
    """
    view = memoryview(body)
    items: list[memoryview] = []
    position = 0
    while position < len(body) and len(items) <= limits.batch_items_max:
        start, size_bytes = _item_at(body, position)
        position = start + size_bytes
        if not start or position > len(body):
            items = _split_any(body)
            break
        items.append(view[start:position])
    read_requests.check_item_count(len(items), limits)
    return items


def _item_at(body: bytes, position: int) -> tuple[int, int]:
    """Return where the content of the item at a position starts, and its size; (0, 0) where there is none.

    An item is its tag, its size in groups of seven bits, the lowest first, and its content.
    """
    if body[position] != _ITEM_TAG:
        return 0, 0
    size_bytes = 0
    for number, byte in enumerate(body[position + 1 : position + 1 + _SIZE_GROUPS_MAX]):
        size_bytes |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return position + 2 + number, size_bytes
    return 0, 0


def _split_any(body: bytes) -> list[memoryview]:
    """Return the encoded items of a BatchSave that has something else beside them, or is none."""
    try:
        request = pb.BatchSaveRequest.FromString(body)
    except DecodeError:
        raise not_a_message(pb.BatchSaveRequest.DESCRIPTOR.full_name, body) from None
    return [memoryview(item.SerializeToString()) for item in request.items]


def peek_namespace(body: bytes | memoryview) -> str:
    """Return the namespace of a request, read off the front of its bytes, for its turn in the queue.

    Not checked: a message that is malformed, or written in an unusual order, takes its turn with the default namespace.
    """
    if len(body) < 2 or body[0] != _NAMESPACE_TAG or body[1] & 0x80:
        return read_requests.DEFAULT_NAMESPACE
    return str(body[2 : 2 + body[1]], "utf-8", "replace") or read_requests.DEFAULT_NAMESPACE


def not_a_message(name: str, body: bytes) -> StoreError:
    """Return the refusal of bytes that are not the message of that name."""
    return InvalidFieldError("request", f"must be a {name}", f"{len(body)} bytes that are not")
