"""The standard health service, `grpc.health.v1.Health`, for the server and for each of its services.

Like the one of the package `grpc_health`, but its watches end when the server drains, so that stopping does not
have to wait for them, and they are generators, which tracing interceptors can follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Tells whether the server, and each of its services, can be called.

    Args:
        services: Their full names; "" stands for the whole server and is always known.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._is_serving = False
        self._is_draining = False
        self._is_ending = False
        self._changed = asyncio.Event()

    def generic_handler(self) -> grpc.GenericRpcHandler:
        """Return the handlers of its methods.

        By name only, and not registered as generated code does it: for every method that is registered, gRPC waits on
        one more future at each call of any service.
        """
        request, response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self.Check, request_deserializer=request.FromString, response_serializer=response.SerializeToString
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self.Watch, request_deserializer=request.FromString, response_serializer=response.SerializeToString
                ),
            },
        )
        return handler

    def set_serving(self, is_serving: bool) -> None:
        """Say whether calls can be served. Without effect once draining has begun."""
        if not self._is_draining:
            self._is_serving = is_serving
            self._tell()

    def begin_drain(self) -> None:
        """Say NOT_SERVING for good."""
        self.set_serving(False)
        self._is_draining = True

    def end_watches(self) -> None:
        """Let every watch end, once it has told the last change."""
        self._is_ending = True
        self._tell()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Tell the state once."""
        if request.service not in self._services:
            await self._abort_unknown(context, request.service)
        return health_pb2.HealthCheckResponse(status=self._status())

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Tell the state, and each change of it."""
        told = None
        while True:
            changed = self._changed
            status = (
                self._status() if request.service in self._services else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            )
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
                continue
            if self._is_ending:
                return
            await changed.wait()

    def _status(self) -> Any:
        # The stubs give its enum no type that could be named.
        return (
            health_pb2.HealthCheckResponse.SERVING if self._is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @staticmethod
    async def _abort_unknown(context: Context, service: str) -> NoReturn:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service: {service[:100]}")
        raise AssertionError("unreachable: abort raises")
