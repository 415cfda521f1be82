"""Point reads of a storage process, asked and answered on the event loop itself.

A thread between the loop and the socket would cost each read two changes of threads, more than the read. Here all reads that are asked in one
turn of the loop go out as one frame; while that is answered the next ones gather, so under load a frame carries many.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from milepost_server.errors import ResourceError, UnavailableError
from milepost_server.model import LoadAnswer, LoadQuery
from milepost_server.storage import frames

RECEIVE_BYTES = 256 * 1024
RETRY_AFTER_S = 0.1
"""What a caller is told to wait when too many reads wait already."""

_logger = logging.getLogger(__name__)

_Waiting = tuple[LoadQuery, asyncio.Future[LoadAnswer]]


class LoadChannel:
    """Loads of many callers over one socket. Lives on one event loop.

    Args:
        loop: The loop.
        connect: Returns the socket to the process as it runs now; asked for again when that process has been replaced.
        calls_max: Loads that may wait; one more is refused with `QUEUE_FULL`.
        frame_loads_max: Most loads of one frame: they are answered together.
        on_failure: Called when the process turned out to have gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[], socket.socket],
        *,
        calls_max: int,
        frame_loads_max: int,
        on_failure: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._connect = connect
        self._calls_max = calls_max
        self._frame_loads_max = frame_loads_max
        self._on_failure = on_failure
        self._waiting: deque[_Waiting] = deque()
        self._asked: list[_Waiting] = []
        self._socket: socket.socket | None = None
        self._unsent = b""
        self._received = bytearray()
        self._is_flush_planned = False
        self._gathered_count = 0
        """Loads that waited at the last turn of the loop, while a frame is being put off."""
        self._is_closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, query: LoadQuery) -> asyncio.Future[LoadAnswer]:
        """Ask for a checkpoint. One whose future is cancelled in time is not asked for."""
        if self._is_closing:
            raise UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
        if len(self._waiting) >= self._calls_max:
            raise ResourceError(
                "QUEUE_FULL",
                f"the queue of reads is full: at most {self._calls_max} calls may wait (queue.read_calls_max); "
                "try again shortly",
                {
                    "limit": "queue.read_calls_max",
                    "allowed": self._calls_max,
                    "found": len(self._waiting) + 1,
                    "unit": "calls",
                },
                retry_after_s=RETRY_AFTER_S,
            )
        future: asyncio.Future[LoadAnswer] = self._loop.create_future()
        self._waiting.append((query, future))
        self._idle.clear()
        self._plan_flush()
        return future

    async def close(self) -> None:
        """Answer what was accepted, then let go of the socket."""
        self._is_closing = True
        await self._idle.wait()
        self._disconnect()

    def _plan_flush(self) -> None:
        if not self._is_flush_planned and not self._asked:
            self._is_flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Ask for all that waits, up to the bound, in one frame.

        As long as each turn of the loop brings more, there is nothing to be gained by asking yet: a frame costs the same for one load as
        for many. A load that is alone waits for one empty turn, which takes no time.
        """
        if self._gathered_count < len(self._waiting) < self._frame_loads_max:
            self._gathered_count = len(self._waiting)
            self._loop.call_soon(self._flush)
            return
        self._gathered_count = 0
        self._is_flush_planned = False
        while self._waiting and len(self._asked) < self._frame_loads_max:
            query, future = self._waiting.popleft()
            if not future.cancelled():
                self._asked.append((query, future))
        if not self._asked:
            self._idle.set()
            return
        try:
            if self._socket is None:
                self._socket = self._connect()
                self._socket.setblocking(False)
                self._loop.add_reader(self._socket, self._on_readable)
            self._send(frames.pack([query for query, _ in self._asked]))
        except OSError as error:
            self._fail(error)

    def _send(self, data: bytes) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        assert self._socket is not None
        self._loop.remove_writer(self._socket)
        try:
            self._send(self._unsent)
        except OSError as error:
            self._fail(error)

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            chunk = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not chunk:
            self._fail(EOFError("the storage process ended"))
            return
        self._received += chunk
        answers = frames.unpack(self._received)
        if answers is not None:
            self._received = bytearray()
            self._settle(answers)

    def _settle(self, answers: list[Any]) -> None:
        asked, self._asked = self._asked, []
        for (_, future), answer in zip(asked, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        if self._waiting:
            # Those that were answered just now often ask again in this turn of the loop.
            self._plan_flush()
        else:
            self._idle.set()

    def _fail(self, error: Exception) -> None:
        """The process has gone: whoever was asking is told so, and the next one to ask connects to its successor."""
        _logger.error("reads failed with the storage process: %r", error)
        self._disconnect()
        self._on_failure()
        failure = UnavailableError("NOT_SERVING", "the storage process ended; send the same call again")
        self._settle([failure] * len(self._asked))

    def _disconnect(self) -> None:
        self._unsent = b""
        self._received = bytearray()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
