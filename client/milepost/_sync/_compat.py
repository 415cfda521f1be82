"""What the blocking half needs and the async half has another way; `_async/_compat.py` is its twin, name by name."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, cast

import grpc

from milepost._config import ChannelOptions
from milepost._telemetry import StreamSpan

ResponseT = TypeVar("ResponseT")
AnswerT = TypeVar("AnswerT", covariant=True)

Home: TypeAlias = str
"""What a channel belongs to."""
Interceptor: TypeAlias = (
    grpc.UnaryUnaryClientInterceptor
    | grpc.UnaryStreamClientInterceptor
    | grpc.StreamUnaryClientInterceptor
    | grpc.StreamStreamClientInterceptor
)

STOP_WAIT_S: Final = 1.0
"""How long to wait for a heartbeat that is under way."""


def home() -> Home:
    """Return the process: one channel serves all its threads."""
    return "process"


def sleep(pause_s: float) -> None:
    """Wait."""
    time.sleep(pause_s)


class Bell:
    """Wakes one waiter, from any thread. A ring that nobody waits for is kept for the next wait."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        """Wake the waiter, or the next one."""
        self._event.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a ring; tell whether one came in time."""
        rung = self._event.wait(timeout_s)
        if rung:
            self._event.clear()
        return rung


def answer(answered: ResponseT) -> ResponseT:
    """Return the answer to a call, which has come already."""
    return answered


def is_cut_off(error: BaseException) -> bool:
    """Tell whether an error is no failure, but the end of the wait for an answer: Ctrl-C, or what a handler raised."""
    return not isinstance(error, Exception)


def to_its_end(work: Callable[[], None]) -> None:
    """Do something that bounds its own time. Only a second Ctrl-C ends it before."""
    work()


class _StreamCall(Protocol[AnswerT]):
    def __iter__(self) -> Iterator[AnswerT]: ...

    def cancel(self) -> object: ...


class Stream(Generic[ResponseT]):
    """The answers to one request, one at a time."""

    def __init__(self, call: _StreamCall[ResponseT], span: StreamSpan | None) -> None:
        self._call = call
        self._span = span
        self._answers = iter(call)

    def next(self) -> ResponseT | None:
        """Wait for the next answer; None: there is none any more.

        Raises:
            grpc.RpcError: The stream broke, or was cancelled.
        """
        try:
            answer = next(self._answers, None)
        except grpc.RpcError as error:
            self._end_span(cast("grpc.Call", error).code())
            raise
        if answer is None:
            self._end_span(grpc.StatusCode.OK)
        return answer

    def cancel(self) -> None:
        """End it: who waits for an answer is woken."""
        self._call.cancel()
        self._end_span(grpc.StatusCode.CANCELLED)

    def _end_span(self, code: grpc.StatusCode) -> None:
        if self._span is not None:
            self._span.end(code)


class Heartbeat:
    """Calls something again and again beside the caller, until it is stopped.

    Args:
        beat: Returns the seconds until it is called again; None ends it. Must not raise.
        name: Of the thread, for people.
    """

    def __init__(self, beat: Callable[[], float | None], name: str) -> None:
        self._beat = beat
        self._name = name
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pause_s: float) -> None:
        """Call it the first time after this pause."""
        # A daemon: a program that ends with an unhandled error must not hang on a lease it should give up.
        self._thread = threading.Thread(target=self._run, args=(pause_s,), name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Call it no more; a call under way gets a moment to end, and ends by its own timeout if that is not enough."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_WAIT_S)

    def _run(self, pause_s: float | None) -> None:
        while pause_s is not None and not self._stopped.wait(pause_s):
            pause_s = self._beat()


def is_gone(place: Home) -> bool:
    """Tell whether a channel of this place can never be used again."""
    return False


def require_usable(pid: int) -> None:
    """Do nothing: a new channel works in every process."""


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: ChannelOptions,
    interceptors: Sequence[Interceptor],
    *,
    traced: bool,
) -> tuple[grpc.Channel, grpc.Channel]:
    """Make a channel, which connects at the first call: one face for calls, and one for streams.

    Streams have a `StreamSpan`: the instrumentation's own cannot be cancelled.
    """
    if credentials is None:
        channel = grpc.insecure_channel(target, options=options)
    else:
        channel = grpc.secure_channel(target, credentials, options=options)
    streams = channel
    if traced:
        # An extra, and not typed.
        instrumentation: Any = importlib.import_module("opentelemetry.instrumentation.grpc")
        channel = instrumentation.intercept_channel(channel, instrumentation.client_interceptor())
    if not interceptors:
        return channel, streams
    return grpc.intercept_channel(channel, *interceptors), grpc.intercept_channel(streams, *interceptors)
