"""What every call of ours passes through: reading and decoding, the mapping of errors, the marking of spans.

The methods of a servicer are wrapped once, when they are registered, so a call pays for no interceptor. Outermost
first: the tracing interceptor (if there is one), this wrapper, the method. Nothing that goes wrong inside reaches a
client as it is: a `StoreError` becomes its status, anything else `INTERNAL_ERROR` with an id that the log has too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from milepost_server.errors import LimitExceededError, StoreError, UnavailableError, internal_error, queue_full
from milepost_server.grpc_api import status
from milepost_server.grpc_api.call_codec import not_a_message
from milepost_server.limits import MIB, Limits

_logger = logging.getLogger(__name__)

LARGE_BYTES = MIB
"""Requests and answers over this size count against `queue.large_bytes_max` and `queue.large_answers_bytes_max`."""
LARGE_BYTES_PER_S = 80 * MIB
"""How fast large messages are taken to go through, for what their callers are told to wait."""

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Context], Awaitable[Message | bytes | None]]
Request = Message | bytes
MarkSpan = Callable[[grpc.StatusCode, str], None]
"""Told the code and the reason of a call that failed, while its span is the current one."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class CallGate:
    """Counts calls in progress, and refuses new ones once it is closed. Lives on one event loop."""

    def __init__(self) -> None:
        self._is_closed = False
        self._count = 0
        self._arrived = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def arrived(self) -> int:
        """Calls so far, those refused included."""
        return self._arrived

    def close(self) -> None:
        """Refuse calls from now on."""
        self._is_closed = True

    def enter(self) -> None:
        """Let a call in, or raise `NOT_SERVING`."""
        self._arrived += 1
        if self._is_closed:
            raise UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
        if not self._count:
            self._idle.clear()
        self._count += 1

    def leave(self) -> None:
        """Note the end of a call that was let in."""
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no call is in progress."""
        await self._idle.wait()


class LargeRequest:
    """A request that takes much memory, on its way to its method: whoever takes it is the only one to hold it."""

    __slots__ = ("_message", "size_bytes")

    def __init__(self, message: Request, size_bytes: int) -> None:
        self._message: Request | None = message
        self.size_bytes = size_bytes

    def take(self) -> Request:
        """Return the message, once."""
        message, self._message = self._message, None
        assert message is not None
        return message


class LargeMessageGate:
    """Bounds the memory that large messages take.

    Requests count while they are decoded and stored, where each is there several times over; answers until their
    callers, who may read slowly or not at all, have received them.

    Lives on one event loop, where messages are decoded too.

    Args:
        what: "requests" or "answers", for the refusal.
        limit: Name of the setting that `bytes_max` is.
        bytes_max: Bytes of such messages in progress.
        clock: Seconds that only grow.
    """

    def __init__(self, what: str, limit: str, bytes_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._limit = limit
        self._bytes_max = bytes_max
        self._clock = clock
        self._bytes = 0
        self._next_turn_s = 0.0
        """When the one who is refused next is to come again: each has a turn of its own, or all would come at once."""

    def refuse(self, size_bytes: int) -> StoreError | None:
        """Let a message in and return `None`, or return why not. One that is alone always fits.

        Returned and not raised: a traceback would keep the bytes of the message until the next garbage collection.
        """
        found = self._bytes + size_bytes
        if self._bytes and found > self._bytes_max:
            now_s = self._clock()
            self._next_turn_s = max(self._next_turn_s, now_s) + size_bytes / LARGE_BYTES_PER_S
            return queue_full(
                f"large {self._what} of {found} bytes would be in progress, at most {self._bytes_max} may be "
                f"({self._limit}); try again shortly",
                limit=self._limit,
                allowed=self._bytes_max,
                found=found,
                unit="bytes",
                retry_after_s=self._next_turn_s - now_s,
            )
        self._bytes = found
        return None

    def leave(self, size_bytes: int) -> None:
        """Note the end of a message that was let in."""
        self._bytes -= size_bytes


def generic_handler(
    service: ServiceDescriptor,
    servicer: object,
    *,
    limits: Limits,
    gate: CallGate,
    large_gate: LargeMessageGate,
    answer_gate: LargeMessageGate,
    mark_span: MarkSpan | None = None,
    encoded_methods: Collection[str] = (),
) -> grpc.GenericRpcHandler:
    """Return the handlers of a service whose requests are all unary.

    Args:
        service: Names the methods and their messages.
        servicer: Has a coroutine method for each; one with a stream of answers writes them to its context.
        limits: Bounds the size of a request.
        gate: Lets calls in.
        large_gate: Lets large requests in.
        answer_gate: Lets large answers out, and knows them until they have gone.
        mark_span: Corrects the span that the tracing interceptor made, where there is one.
        encoded_methods: Methods that take their requests, and return their answers, as bytes.
    """
    handlers = {}
    for method in service.methods:
        assert not method.client_streaming, method.full_name
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        is_encoded = method.name in encoded_methods
        handlers[method.name] = make(
            _wrap(getattr(servicer, method.name), gate, large_gate, answer_gate, mark_span),
            request_deserializer=_deserializer(
                None if is_encoded else GetMessageClass(method.input_type), limits, large_gate
            ),
            # A single answer is serialized before, so that its size is known.
            response_serializer=(
                GetMessageClass(method.output_type).SerializeToString if method.server_streaming else None
            ),
        )
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(service.full_name, handlers)
    return handler


def _deserializer(
    message_class: type[Message] | None, limits: Limits, large_gate: LargeMessageGate
) -> Callable[[bytes], Request | LargeRequest | StoreError]:
    """Return a deserializer that never raises: gRPC would answer that as INTERNAL and log a traceback.

    Without a class the bytes are left as they are.
    """

    def deserialize(data: bytes) -> Request | LargeRequest | StoreError:
        if len(data) > limits.request_bytes_max:
            return LimitExceededError(
                "request",
                limit="request_bytes_max",
                allowed=limits.request_bytes_max,
                found=len(data),
                unit="bytes",
            )
        is_large = len(data) > LARGE_BYTES
        refusal = large_gate.refuse(len(data)) if is_large else None
        if refusal is not None:
            return refusal
        request: Request = data
        if message_class is not None:
            try:
                request = message_class.FromString(data)
            except DecodeError:
                if is_large:
                    large_gate.leave(len(data))
                return not_a_message(message_class.DESCRIPTOR.full_name, data)
        return LargeRequest(request, len(data)) if is_large else request

    return deserialize


def _leave(gate: LargeMessageGate, size_bytes: int, _: Context) -> None:
    gate.leave(size_bytes)


def _wrap(
    method: Method,
    gate: CallGate,
    large_gate: LargeMessageGate,
    answer_gate: LargeMessageGate,
    mark_span: MarkSpan | None,
) -> Method:
    async def answered(request: Request, context: Context) -> bytes | StoreError | None:
        answer = await method(request, context)
        encoded = answer.SerializeToString() if isinstance(answer, Message) else answer
        if encoded is not None and len(encoded) > LARGE_BYTES:
            size_bytes = len(encoded)
            refusal = answer_gate.refuse(size_bytes)
            if refusal is not None:
                return refusal
            # Any: the stubs want a class of their own here.
            on_done: Any = partial(_leave, answer_gate, size_bytes)
            context.add_done_callback(on_done)
        return encoded

    async def call(request: Request | LargeRequest | StoreError, context: Context) -> bytes | None:
        try:
            try:
                gate.enter()
                try:
                    answer: bytes | StoreError | None
                    if isinstance(request, LargeRequest):
                        answer = await answered(request.take(), context)
                    elif isinstance(request, StoreError):
                        answer = request
                    else:
                        answer = await answered(request, context)
                    if not isinstance(answer, StoreError):
                        return answer
                    refusal = answer
                finally:
                    gate.leave()
            finally:
                if isinstance(request, LargeRequest):
                    large_gate.leave(request.size_bytes)
        except StoreError as error:
            # Without its traceback, whose frames hold the request.
            refusal = error.with_traceback(None)
        except asyncio.CancelledError:
            # Cancelled by the caller, past its deadline, or the server stops. The span would say OK.
            if mark_span is not None:
                mark_span(grpc.StatusCode.CANCELLED, "")
            raise
        except grpc.aio.AbortError:
            # It is how gRPC ends a call, and must reach it as it is.
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a call: its caller learns an id, the operator the rest
            refusal = internal_error(_logger, "a call ended in an unexpected error", error)
        # Not while an exception is handled: what ends the call would be chained to it, and tracing records chains.
        if mark_span is not None:
            mark_span(status_code(refusal), refusal.reason)
        return await abort(context, refusal)

    return call


def status_code(error: StoreError) -> grpc.StatusCode:
    """Return the gRPC code of an error."""
    return _CODES[status.STATUS_CODES[error.reason]]


async def abort(context: Context, error: StoreError) -> NoReturn:
    """End a call with an error."""
    details = status.to_status(error).SerializeToString()
    # Not `abort_with_status`: OpenTelemetry's interceptor does not see that one.
    await context.abort(status_code(error), status.clip(error.message), ((status.DETAILS_KEY, details),))
