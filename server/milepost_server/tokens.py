"""Opaque tokens that say where a listing or a long deletion goes on.

A token holds a position and what ties it to the call that it came from; never a namespace or a right, which always
come from the request. It is not secret and not signed: the checksum finds damage, the query's hash finds a token of
another call, and a position made up by a caller leads only to rows that the caller may read anyway.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Annotated, Final

import msgspec

from milepost_server.digests import blake2b
from milepost_server.errors import InvalidFieldError

TOKEN_VERSION: Final = 1
TOKEN_CHARACTERS_MAX: Final = 8192
"""Longer than any token that is ever made; what is longer is not even decoded."""

_CHECKSUM_BYTES: Final = 8
_CHECKSUM_PERSON: Final = b"milepost token"
_encoder = msgspec.msgpack.Encoder()


_Position = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Token(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Where a call goes on."""

    version: int = TOKEN_VERSION
    kind: str
    """Which call it belongs to."""
    query_hash: bytes
    """Stands for the arguments of that call."""
    position: tuple[_Position, ...] = ()
    after: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    """The position where it is a name."""
    incarnation: Annotated[str, msgspec.Meta(max_length=64)] = ""
    bound: _Position | None = None
    """What the first page fixed: the highest sequence to look at."""
    needs: tuple[tuple[_Position, tuple[Annotated[str, msgspec.Meta(max_length=1024)], ...]], ...] = ()
    """Of a prune: what is older than its position and yet needed, and for which entries."""


_decoder = msgspec.msgpack.Decoder(Token)


def hash_query(*arguments: object) -> bytes:
    """Return 16 bytes that stand for a call's arguments. Sets must be passed sorted."""
    return blake2b(_encoder.encode(arguments), digest_size=16).digest()


def encode_token(token: Token) -> str:
    """Return a token as text."""
    payload = _encoder.encode(token)
    return base64.urlsafe_b64encode(payload + _checksum(payload)).rstrip(b"=").decode()


def decode_token(
    field: str, text: str, *, kind: str, query_hash: bytes, position_lengths: Collection[int] = (1,)
) -> Token:
    """Return what a token says.

    Args:
        field: Where it was found, for errors.
        text: The token.
        kind: The call that it must belong to.
        query_hash: What must be the arguments of that call.
        position_lengths: How many numbers its position may have.

    Raises:
        InvalidFieldError: `PAGE_TOKEN_INVALID` for what was never a token of this server, `PAGE_TOKEN_MISMATCH` for
        one of another call.
    """
    try:
        if len(text) > TOKEN_CHARACTERS_MAX:
            raise ValueError("too long")
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        if _checksum(payload) != checksum:
            raise ValueError("damaged")
        token = _decoder.decode(payload)
        if token.version != TOKEN_VERSION:
            raise ValueError("of another version")
        if token.kind == kind and len(token.position) not in position_lengths:
            raise ValueError("of another shape")
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise InvalidFieldError(
            field,
            "must be a token that this server gave, unchanged",
            f"{len(text)} characters that are not",
            reason="PAGE_TOKEN_INVALID",
        ) from None
    if token.kind != kind or token.query_hash != query_hash:
        raise InvalidFieldError(
            field,
            "must be used with the arguments of the call it came from",
            "other arguments",
            reason="PAGE_TOKEN_MISMATCH",
        )
    return token


def _checksum(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_CHECKSUM_BYTES, person=_CHECKSUM_PERSON).digest()
