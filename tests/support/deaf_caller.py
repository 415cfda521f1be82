"""A caller that asks and does not read: HTTP/2 by hand, which never says that it has room for more than a window."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.raw_calls import SERVICE

WINDOW_BYTES = 65_535
"""What a server may send before it is told that some of it was read."""
DEADLINE_S = 30.0
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@contextlib.contextmanager
def unread_load(target: str, request: pb.LoadRequest) -> Iterator[None]:
    """Begin a Load whose answer is larger than a window; in the block the server has begun to send it."""
    host, _, port = target.rpartition(":")
    message = request.SerializeToString()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/Load",
        ":authority": target,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(
            PREFACE
            + _frame(SETTINGS, 0, 0, b"")
            + _frame(HEADERS, END_HEADERS, 1, b"".join(_header(*each) for each in headers.items()))
            + _frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message)
        )
        received = 0
        while received < WINDOW_BYTES:
            received += len(connection.recv(WINDOW_BYTES))
        yield


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: str, value: str) -> bytes:
    """Return a header as HPACK's literal without indexing; name and value are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
