"""The calls that cross to the engine as bytes: their messages, read and written where the engine is.

Imported by the storage process too, so nothing here may need gRPC or asyncio.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.errors import InvalidFieldError, StoreError
from milepost_server.grpc_api import convert
from milepost_server.limits import Limits
from milepost_server.model import LoadAnswer, LoadQuery, SaveAnswer, SaveCommand

_NAMESPACE_TAG: Final = 0x0A
"""Of the first field, a text, which every writer of messages puts first."""


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
        return convert.save_from_pb(request, self._limits)

    def encode_saved(self, answer: SaveAnswer) -> bytes:
        """See `CallCodec`."""
        return convert.save_to_pb(answer).SerializeToString()

    def decode_load(self, body: bytes) -> tuple[LoadQuery, frozenset[int]]:
        """See `CallCodec`."""
        try:
            request = pb.LoadRequest.FromString(body)
        except DecodeError:
            raise not_a_message(pb.LoadRequest.DESCRIPTOR.full_name, body) from None
        return convert.load_from_pb(request, self._limits)

    def encode_loaded(self, answer: LoadAnswer, query: LoadQuery, accepted: frozenset[int]) -> bytes:
        """See `CallCodec`."""
        return convert.load_to_pb(answer, query, convert.ValueWriter(accepted, self._limits)).SerializeToString()


def peek_namespace(body: bytes) -> str:
    """Return the namespace of a request, read off the front of its bytes, for its turn in the queue.

    Not checked: a message that is malformed, or written in an unusual order, takes its turn with the default namespace.
    """
    if len(body) < 2 or body[0] != _NAMESPACE_TAG or body[1] & 0x80:
        return convert.DEFAULT_NAMESPACE
    return body[2 : 2 + body[1]].decode("utf-8", "replace") or convert.DEFAULT_NAMESPACE


def not_a_message(name: str, body: bytes) -> StoreError:
    """Return the refusal of bytes that are not the message of that name."""
    return InvalidFieldError("request", f"must be a {name}", f"{len(body)} bytes that are not")
