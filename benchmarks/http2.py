"""A load generator that costs little: unary gRPC calls as prepared bytes on plain HTTP/2 connections.

Used instead of a gRPC client because that one costs as much for a call as the server does: on two cores it would be
the thing that is measured. It speaks as much HTTP/2 as a gRPC server asks for (flow control in both directions,
acknowledged pings and settings) and no more: no TLS, no retries. A call that does not end with status 0 is an error.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE = 1, 2, 4

WINDOW_MAX_BYTES = 2**31 - 1
WINDOW_DEFAULT_BYTES = 65_535
FRAME_BYTES_MAX = 16_384
RECEIVE_BYTES = 256 * 1024
CALL_TIMEOUT_S = 60.0
WARM_UP_S = 0.3

_FRAME_HEADER = struct.Struct(">BHBBI")
_SETTING = struct.Struct(">HI")
_STATUS_OK = b"\x0bgrpc-status\x010"


class CallFailedError(Exception):
    """A call did not end with status 0, or its connection ended."""


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return one HTTP/2 frame."""
    return _FRAME_HEADER.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream_id) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header field that neither uses nor changes a header table."""
    assert max(len(name), len(value)) < 127
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Connection:
    """One connection that calls one method, many times at once."""

    def __init__(self, address: str, method: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=CALL_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._header_block = b"".join(
            [
                _literal(b":method", b"POST"),
                _literal(b":scheme", b"http"),
                _literal(b":path", f"/milepost.v1.CheckpointStore/{method}".encode()),
                _literal(b":authority", address.encode()),
                _literal(b"te", b"trailers"),
                _literal(b"content-type", b"application/grpc"),
                _literal(b"grpc-timeout", b"60S"),
            ]
        )
        self._next_stream_id = 1
        self._received = b""
        self._window_bytes = WINDOW_DEFAULT_BYTES
        self._stream_window_bytes = WINDOW_DEFAULT_BYTES
        self._windows: dict[int, int] = {}
        """What each stream in progress may still send."""
        self._waiting: dict[int, bytes] = {}
        """What of a request waits for room in a window, by stream, oldest first."""
        self._answers: dict[int, list[bytes]] = {}
        settings = b"".join(
            # Without a table, every answer has its headers spelled out, so that nothing has to be remembered.
            [
                _SETTING.pack(HEADER_TABLE_SIZE, 0),
                _SETTING.pack(ENABLE_PUSH, 0),
                _SETTING.pack(INITIAL_WINDOW_SIZE, WINDOW_MAX_BYTES),
            ]
        )
        more_bytes = (WINDOW_MAX_BYTES - WINDOW_DEFAULT_BYTES).to_bytes(4, "big")
        self._out: list[bytes] = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(SETTINGS, 0, 0, settings),
            frame(WINDOW_UPDATE, 0, 0, more_bytes),
        ]

    def fileno(self) -> int:
        """Return the socket's number, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def call(self, request: bytes) -> bytes:
        """Call once and return the answer."""
        self.start(request)
        while True:
            self.flush()
            for answer in self.receive():
                return answer

    def start(self, request: bytes) -> None:
        """Start a call; `flush` sends it."""
        stream_id = self._next_stream_id
        self._next_stream_id += 2
        self._out.append(frame(HEADERS, END_HEADERS, stream_id, self._header_block))
        self._answers[stream_id] = []
        self._windows[stream_id] = self._stream_window_bytes
        self._send_data(stream_id, b"\0" + len(request).to_bytes(4, "big") + request)

    def _send_data(self, stream_id: int, data: bytes) -> None:
        room = min(self._window_bytes, self._windows[stream_id])
        sent = 0
        while sent < len(data) and room > 0:
            piece = data[sent : sent + min(FRAME_BYTES_MAX, room)]
            sent += len(piece)
            room -= len(piece)
            self._out.append(frame(DATA, END_STREAM if sent == len(data) else 0, stream_id, piece))
        self._window_bytes -= sent
        self._windows[stream_id] -= sent
        if sent < len(data):
            self._waiting[stream_id] = data[sent:]

    def flush(self) -> None:
        """Send what has been started. The server reads whatever the windows allow, so this does not block for long."""
        if self._out:
            self._socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self) -> list[bytes]:
        """Wait for something to arrive and return the answers of the calls that it ended."""
        chunk = self._socket.recv(RECEIVE_BYTES)
        if not chunk:
            raise CallFailedError("the server closed the connection")
        received = self._received + chunk
        finished: list[bytes] = []
        position = 0
        while len(received) - position >= _FRAME_HEADER.size:
            high, low, kind, flags, stream_id = _FRAME_HEADER.unpack_from(received, position)
            end = position + _FRAME_HEADER.size + (high << 16 | low)
            if end > len(received):
                break
            payload = received[position + _FRAME_HEADER.size : end]
            position = end
            if kind == DATA:
                self._answers[stream_id].append(payload)
            elif kind == HEADERS:
                if flags & END_STREAM:
                    finished.append(self._finish(stream_id, payload))
            else:
                self._control(kind, flags, stream_id, payload)
        self._received = received[position:]
        return finished

    def _finish(self, stream_id: int, trailers: bytes) -> bytes:
        if _STATUS_OK not in trailers:
            raise CallFailedError(f"a call failed: {trailers!r}")
        del self._windows[stream_id]
        return b"".join(self._answers.pop(stream_id))[5:]

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if stream_id == 0:
                self._window_bytes += increment
            elif stream_id in self._windows:
                self._windows[stream_id] += increment
            self._resume()
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            for name, value in _SETTING.iter_unpack(payload):
                if name == INITIAL_WINDOW_SIZE:
                    for each in self._windows:
                        self._windows[each] += value - self._stream_window_bytes
                    self._stream_window_bytes = value
            self._out.append(frame(SETTINGS, ACK, 0, b""))
            self._resume()
        elif kind in {RESET, GOAWAY}:
            raise CallFailedError(f"the server ended a call or the connection: frame {kind}, {payload!r}")

    def _resume(self) -> None:
        for stream_id in list(self._waiting):
            if self._window_bytes <= 0:
                return
            if self._windows[stream_id] > 0:
                self._send_data(stream_id, self._waiting.pop(stream_id))


@dataclass(frozen=True)
class Load:
    """What a server did under load."""

    calls: int
    """Calls that ended in the time that counts."""
    seconds: float
    all_calls: int
    """Also those that ended before and after it."""

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


def run_load(
    address: str, method: str, requests: Iterable[bytes], *, in_flight: int, seconds: float, connections: int = 8
) -> Load:
    """Keep calls in flight for some seconds, after a short warm-up, and return how many ended in that time.

    Args:
        address: `host:port` of the server.
        method: Of `milepost.v1.CheckpointStore`.
        requests: Encoded request messages; endless.
        in_flight: Calls in progress at any moment, spread over the connections.
        seconds: How long to count.
        connections: How many clients there seem to be.
    """
    bodies = iter(requests)
    clients = [Connection(address, method) for _ in range(min(connections, in_flight))]
    try:
        with selectors.DefaultSelector() as selector:
            for number, client in enumerate(clients):
                selector.register(client, selectors.EVENT_READ, client)
                for _ in range(in_flight // len(clients) + (number < in_flight % len(clients))):
                    client.start(next(bodies))
                client.flush()
            return _keep_in_flight(selector, bodies, in_flight, seconds)
    finally:
        for client in clients:
            client.close()


def _keep_in_flight(selector: selectors.BaseSelector, bodies: Iterator[bytes], in_flight: int, seconds: float) -> Load:
    start = time.perf_counter() + WARM_UP_S
    end = start + seconds
    counted = ended = 0
    open_count = in_flight
    while open_count:
        for key, _ in selector.select(CALL_TIMEOUT_S):
            client: Connection = key.fileobj  # type: ignore[assignment]  # only connections were registered
            finished = len(client.receive())
            ended += finished
            now = time.perf_counter()
            if start <= now < end:
                counted += finished
            if now < end:
                for _ in range(finished):
                    client.start(next(bodies))
            else:
                open_count -= finished
            client.flush()
    return Load(counted, seconds, ended)


def call_times(client: Connection, requests: Sequence[bytes]) -> list[float]:
    """Call with one request after the other and return how long each took, in seconds."""
    times: list[float] = []
    for request in requests:
        start = time.perf_counter()
        client.call(request)
        times.append(time.perf_counter() - start)
    return times
