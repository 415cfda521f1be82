"""Rows of the LMDB engine: a version byte, a checksum bound to the key, and a body.

    byte 0      version of the row's layout (1)
    bytes 1-4   CRC-32 over key, version and body, big-endian
    bytes 5-    body: a MessagePack array, or the raw bytes of a piece

A row that was copied, moved, cut or flipped anywhere does not pass: what LMDB itself would hand out as good (it has no
checksums) is told as damage. A body may gain fields at its end; an older row then reads with their defaults.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar
from zlib import crc32

import msgspec

from milepost_server.errors import RecordDamagedError
from milepost_server.storage import keys

ROW_VERSION = 1
HEADER_BYTES = 5
_VERSION = bytes([ROW_VERSION])
_pack_header = struct.Struct(">BI").pack

T = TypeVar("T")

_encode_body = msgspec.msgpack.Encoder().encode
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def seal(key: bytes, body: bytes) -> bytes:
    """Return the row of a body."""
    return _pack_header(ROW_VERSION, crc32(body, crc32(key + _VERSION))) + body


def unseal(key: bytes, row: bytes) -> bytes:
    """Return the body of a row.

    Raises:
        RecordDamagedError: The row is not what was written under this key.
    """
    if len(row) < HEADER_BYTES:
        raise damaged(key, f"{len(row)} bytes long")
    body = row[HEADER_BYTES:]
    if crc32(body, crc32(key + row[:1])) != int.from_bytes(row[1:HEADER_BYTES], "big"):
        raise damaged(key, "its checksum does not match")
    if row[0] != ROW_VERSION:
        raise damaged(key, f"its layout has version {row[0]}, this server knows {ROW_VERSION}")
    return body


def encode(key: bytes, value: object) -> bytes:
    """Return the row of a value."""
    return seal(key, _encode_body(value))


def decode(key: bytes, row: bytes, kind: type[T]) -> T:
    """Return the value of a row.

    Raises:
        RecordDamagedError: The row is not what was written under this key.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    body = unseal(key, row)
    try:
        value: T = decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise damaged(key, f"its body does not decode: {error}") from error
    return value


def damaged(key: bytes, what: str) -> RecordDamagedError:
    """Return the error for a row that is not what was written."""
    return RecordDamagedError(keys.TABLE_NAMES.get(keys.table_of(key), "unknown"), key, what)


def missing(key: bytes) -> RecordDamagedError:
    """Return the error for a row that another leads to and that is not there."""
    return damaged(key, "it is missing")
