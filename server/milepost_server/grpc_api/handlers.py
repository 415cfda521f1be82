"""What every call of ours passes through: decoding, the mapping of errors, the marking of spans.

The methods of a servicer are wrapped once, when they are registered, so a call pays for no interceptor. Outermost
first: the tracing interceptor (if there is one), this wrapper, the method. Nothing that goes wrong inside reaches a
client as it is: a `StoreError` becomes its status, anything else `INTERNAL_ERROR` with an id that the log has too.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from milepost_server.errors import InvalidFieldError, LimitExceededError, StoreError, UnavailableError
from milepost_server.grpc_api import status
from milepost_server.limits import Limits

_logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Context], Awaitable[Message]]
MarkSpan = Callable[[grpc.StatusCode, str], None]
"""Told the code and the reason of a call that failed, while its span is the current one."""


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


def generic_handler(
    service: ServiceDescriptor,
    servicer: object,
    *,
    limits: Limits,
    gate: CallGate,
    mark_span: MarkSpan | None = None,
) -> grpc.GenericRpcHandler:
    """Return the handlers of a service whose methods are all unary.

    Args:
        service: Names the methods and their messages.
        servicer: Has a coroutine method for each.
        limits: Bounds the size of a request.
        gate: Lets calls in.
        mark_span: Corrects the span that the tracing interceptor made, where there is one.
    """
    handlers = {}
    for method in service.methods:
        assert not method.client_streaming, method.full_name
        assert not method.server_streaming, method.full_name
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            _wrap(getattr(servicer, method.name), gate, mark_span),
            request_deserializer=_deserializer(GetMessageClass(method.input_type), limits),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(service.full_name, handlers)
    return handler


def _deserializer(message_class: type[Message], limits: Limits) -> Callable[[bytes], Message | StoreError]:
    """Return a deserializer that never raises: gRPC would answer that as INTERNAL and log a traceback."""
    parse = message_class.FromString

    def deserialize(data: bytes) -> Message | StoreError:
        if len(data) > limits.request_bytes_max:
            return LimitExceededError(
                "request",
                limit="request_bytes_max",
                allowed=limits.request_bytes_max,
                found=len(data),
                unit="bytes",
            )
        try:
            return parse(data)
        except DecodeError:
            return InvalidFieldError(
                "request", f"must be a {message_class.DESCRIPTOR.full_name}", f"{len(data)} bytes that are not"
            )

    return deserialize


def _wrap(method: Method, gate: CallGate, mark_span: MarkSpan | None) -> Method:
    async def call(request: Message | StoreError, context: Context) -> Message:
        try:
            gate.enter()
            try:
                if not isinstance(request, StoreError):
                    return await method(request, context)
                refusal = request
            finally:
                gate.leave()
        except StoreError as error:
            refusal = error
        except asyncio.CancelledError:
            # Cancelled by the caller, past its deadline, or the server stops. The span would say OK.
            if mark_span is not None:
                mark_span(grpc.StatusCode.CANCELLED, "")
            raise
        except grpc.aio.AbortError:
            # It is how gRPC ends a call, and must reach it as it is.
            raise
        except Exception:
            # The edge of a call: its caller learns an id, the operator the rest.
            error_id = uuid.uuid4().hex
            _logger.exception("a call ended in an unexpected error, error_id %s", error_id)
            refusal = _internal_error(error_id)
        # Not while an exception is handled: what ends the call would be chained to it, and tracing records chains.
        if mark_span is not None:
            mark_span(status.status_code(refusal), refusal.reason)
        return await status.abort(context, refusal)

    return call


def _internal_error(error_id: str) -> StoreError:
    return StoreError(
        "INTERNAL_ERROR",
        f"the server failed at this call; its log has the traceback under {error_id}",
        {"error_id": error_id},
    )
