"""Frames to and from the storage process on the event loop: no thread in between."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from milepost_server.storage import frames


class FrameChannel:
    """One connection on one event loop.

    A thread between the loop and the socket would cost two changes of threads a frame.

    Args:
        loop: The loop.
        connect: Returns the socket to the process as it runs now; asked for again after a failure.
        owns_socket: The channel closes the socket when it lets go of it.
        on_answer: Called with items that answer what was asked, in order; one call may answer several questions.
        on_failure: Called when the process turned out to have gone; what was asked has no answer then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[], socket.socket],
        *,
        owns_socket: bool,
        on_answer: Callable[[list[Any]], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._loop = loop
        self._connect = connect
        self._owns_socket = owns_socket
        self._on_answer = on_answer
        self._on_failure = on_failure
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes | bytearray | memoryview] = deque()
        self._received = frames.FrameBuffer()

    def ask(self, items: Sequence[Any]) -> None:
        """Send items, after those that were sent before; how many may wait for answers is bounded by who asks."""
        try:
            if self._socket is None:
                connection = self._connect()
                connection.setblocking(False)
                self._loop.add_reader(connection, self._on_readable)
                self._socket = connection
            is_sending = bool(self._unsent)
            self._unsent += frames.pack(items)
            if not is_sending and not self._send():
                self._loop.add_writer(self._socket, self._on_writable)
        except OSError as error:
            self._fail(error)

    def detach(self) -> None:
        """Let go of the socket."""
        self._unsent.clear()
        self._received = frames.FrameBuffer()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            if self._owns_socket:
                self._socket.close()
            self._socket = None

    def _send(self) -> bool:
        """Send what the socket takes; tell whether that was the rest."""
        assert self._socket is not None
        while self._unsent:
            part = self._unsent[0]
            try:
                sent = self._socket.send(part)
            except BlockingIOError:
                return False
            if sent < len(part):
                self._unsent[0] = memoryview(part)[sent:]
            else:
                self._unsent.popleft()
        return True

    def _on_writable(self) -> None:
        assert self._socket is not None
        try:
            if self._send():
                self._loop.remove_writer(self._socket)
        except OSError as error:
            self._fail(error)

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            answers = self._received.receive(self._socket)
        except BlockingIOError:
            return
        except Exception as error:  # noqa: BLE001 - whatever cannot be read: who asked must not wait for ever
            self._fail(error)
            return
        if answers:
            self._on_answer(answers)

    def _fail(self, error: Exception) -> None:
        self.detach()
        self._on_failure(error)
