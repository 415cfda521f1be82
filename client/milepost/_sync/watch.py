# Generated from client/milepost/_async/watch.py by tools/unasync.py. Do not edit.
"""A watch as its reader has it: an iterator that opens the stream, opens it again when it breaks, and can be closed."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from milepost import _calls, _failures
from milepost._sync import _compat
from milepost._retry import Attempts, Failure
from milepost._watch import WatchProgress
from milepost.errors import Code
from milepost.types import WatchEvent
from milepost.v1 import checkpoint_store_pb2 as pb

if TYPE_CHECKING:
    from milepost._sync.client import Client

logger = logging.getLogger("milepost.client")
_ENDED = Failure(Code.UNAVAILABLE, "the server ended the stream")


class Watch:
    """Events as they come. One reader at a time; anybody may close it."""

    def __init__(self, client: Client, progress: WatchProgress) -> None:
        self._client = client
        self._progress = progress
        self._stream: _compat.Stream[pb.WatchResponse] | None = None
        # Those since the stream broke; None while it works.
        self._attempts: Attempts | None = None
        self._is_closed = False
        self._closing = _compat.Bell()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        while not self._is_closed:
            try:
                response = self._next_response()
            except grpc.RpcError as error:
                self._pause(_failures.read_failure(error))
                continue
            if response is None:
                self._pause(_ENDED)
                continue
            self._attempts = None
            event = self._progress.take(response)
            if event is not None:
                return event
        raise StopIteration

    def close(self) -> None:
        """End it: who waits for the next event gets the end of the iteration."""
        self._is_closed = True
        self._closing.ring()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _next_response(self) -> pb.WatchResponse | None:
        """Wait for an answer of the stream, which is opened where there is none."""
        if self._stream is None:
            self._attempts = self._attempts or self._client._attempts(None)  # noqa: SLF001 - a part of the client
            payload = _calls.encode(_calls.WATCH, self._progress.request())
            self._stream = self._client._open_stream(_calls.WATCH, payload)  # noqa: SLF001
            if self._is_closed:
                # It was closed meanwhile, by somebody who did not see this stream.
                self._stream.cancel()
        try:
            return self._stream.next()
        except grpc.RpcError:
            raise
        except BaseException:
            # Its reader was interrupted, and the stream went with that: whoever reads on gets a new one.
            self._stream.cancel()
            self._stream = None
            raise

    def _pause(self, failure: Failure) -> None:
        """Wait before the stream is opened again, or give up. Nothing of it where the watch was closed."""
        if self._is_closed:
            return
        self._stream = None
        attempts = self._attempts = self._attempts or self._client._attempts(None)  # noqa: SLF001
        pause_s = attempts.after(failure)
        if pause_s is None:
            self._is_closed = True
            raise _failures.to_error(
                _calls.WATCH,
                self._progress.request(),
                failure,
                outcome_unknown=False,
                attempts=attempts,
                target=self._client.target,
            )
        logger.debug("Watch: the stream broke (%s), it is opened again in %.3f s", failure.text, pause_s)
        self._closing.wait(pause_s)
