"""What the async half needs and the blocking half has another way; `_sync/_compat.py` is its twin, name by name."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from milepost._config import ChannelOptions
from milepost._telemetry import StreamSpan
from milepost.errors import ClientForkedError

ResponseT = TypeVar("ResponseT")

Home: TypeAlias = asyncio.AbstractEventLoop
"""What a channel belongs to."""
Interceptor: TypeAlias = grpc.aio.ClientInterceptor

home = asyncio.get_running_loop

_used_in_pid: int | None = None


async def sleep(pause_s: float) -> None:
    """Wait."""
    await asyncio.sleep(pause_s)


class Bell:
    """Wakes one waiter, from any thread. A ring that nobody waits for is kept for the next wait."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Guards the loop: who rings must either find it, or have rung before the waiter looks.
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Wake the waiter, or the next one."""
        with self._lock:
            if self._loop is None:
                self._event.set()
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a ring; tell whether one came in time."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


async def answer(call: Awaitable[ResponseT]) -> ResponseT:
    """Wait for the answer to a call.

    Raises:
        grpc.RpcError: It failed; or it was cancelled, but not its waiter.
    """
    try:
        return await call
    except asyncio.CancelledError:
        _require_cancelled()
        raise


def _require_cancelled() -> None:
    """Tell apart a waiter that is cancelled from one whose call is: the end of a channel cancels the calls on it.

    gRPC ends both alike, and whoever is not cancelled must not be told so: a task group would take it for its end.

    Raises:
        grpc.aio.AioRpcError: It was the call.
    """
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, "the channel was closed") from None


def is_cut_off(error: BaseException) -> bool:
    """Tell whether an error is no failure, but the end of the wait for an answer."""
    return isinstance(error, asyncio.CancelledError)


async def to_its_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do something to its end, however often the caller is cancelled meanwhile. It bounds its own time.

    Raises:
        asyncio.CancelledError: The caller was; the work is done.
    """
    task = asyncio.get_running_loop().create_task(work())
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


class Stream(Generic[ResponseT]):
    """The answers to one request, one at a time."""

    def __init__(self, call: grpc.aio.UnaryStreamCall[bytes, ResponseT], span: StreamSpan | None) -> None:
        self._call = call
        self._span = span
        self._answers = aiter(call)
        self._is_cancelled = False

    async def next(self) -> ResponseT | None:
        """Wait for the next answer; None: there is none any more.

        Raises:
            grpc.RpcError: The stream broke, or was cancelled by the other side.
        """
        try:
            answer = await anext(self._answers, None)
        except grpc.aio.AioRpcError as error:
            self._end_span(error.code())
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_cancelled and not (task is not None and task.cancelling()):
                return None
            _require_cancelled()
            raise
        if answer is None:
            self._end_span(grpc.StatusCode.OK)
        return answer

    def cancel(self) -> None:
        """End it: who waits for an answer is woken."""
        self._is_cancelled = True
        self._call.cancel()
        self._end_span(grpc.StatusCode.CANCELLED)

    def _end_span(self, code: grpc.StatusCode) -> None:
        if self._span is not None:
            self._span.end(code)


class Heartbeat:
    """Calls something again and again beside the caller, until it is stopped.

    Args:
        beat: Returns the seconds until it is called again; None ends it. Must not raise.
        name: Of the task, for people.
    """

    def __init__(self, beat: Callable[[], Awaitable[float | None]], name: str) -> None:
        self._beat = beat
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self, pause_s: float) -> None:
        """Call it the first time after this pause."""
        self._task = asyncio.get_running_loop().create_task(self._run(pause_s), name=self._name)

    async def stop(self) -> None:
        """Call it no more; a call under way is cancelled."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        # Waits for its end without taking its cancellation for ours.
        await asyncio.wait([task])

    async def _run(self, pause_s: float | None) -> None:
        while pause_s is not None:
            await asyncio.sleep(pause_s)
            pause_s = await self._beat()


def is_gone(loop: Home) -> bool:
    """Tell whether a channel of this loop can never be used again."""
    return loop.is_closed()


def require_usable(pid: int) -> None:
    """Refuse to open a channel where gRPC could not serve it.

    `grpc.aio` has one poller thread for the process. After a fork the child lacks it, and every call there would hang,
    on a new channel as well.

    Raises:
        ClientForkedError: The process that this one was forked from has used `grpc.aio` through a client.
    """
    global _used_in_pid  # noqa: PLW0603 - one fact about the whole process
    if _used_in_pid is None:
        _used_in_pid = pid
    elif _used_in_pid != pid:
        raise ClientForkedError(
            f"an AsyncClient was used in process {_used_in_pid} before it forked this one, {pid}. gRPC for asyncio "
            "does not work in such a child: start it with spawn or forkserver instead.",
            owner_pid=_used_in_pid,
            pid=pid,
        )


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: ChannelOptions,
    interceptors: Sequence[Interceptor],
    *,
    traced: bool,
) -> tuple[grpc.aio.Channel, grpc.aio.Channel]:
    """Make a channel, which connects at the first call: one face for calls, and one for streams; here they are one."""
    chain = list(interceptors)
    if traced:
        # An extra, and not typed.
        instrumentation: Any = importlib.import_module("opentelemetry.instrumentation.grpc")
        chain += [
            each
            for each in instrumentation.aio_client_interceptors()
            # Streams have a `StreamSpan`.
            if isinstance(each, grpc.aio.UnaryUnaryClientInterceptor)
        ]
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options=options, interceptors=chain)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options=options, interceptors=chain)
    return channel, channel
