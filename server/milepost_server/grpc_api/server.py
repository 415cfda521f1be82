"""The gRPC server: assembled, bound, drained.

Made by the command line around a `CheckpointService`. Standard health (for the whole server and per service) and
reflection (v1 and v1alpha) stand beside our own service. `make_grpc_server` is the only place that knows which
implementation of `grpc.aio.Server` it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from milepost.v1 import checkpoint_store_pb2
from milepost_server.grpc_api import handlers
from milepost_server.grpc_api.addresses import Address, ListenError, check_free, is_private, private_files
from milepost_server.grpc_api.servicer import CheckpointStoreServicer
from milepost_server.limits import MIB, Limits
from milepost_server.service import CheckpointService

_logger = logging.getLogger(__name__)

RECEIVE_SLACK_BYTES: Final = MIB
"""A request that is a little too large is received, so that it can be refused with a reason."""
SEND_BYTES_MAX: Final = 21 * MIB
"""A Load of the largest state with the largest records, and what the wire adds."""
REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"

_SERVICE = checkpoint_store_pb2.DESCRIPTOR.services_by_name["CheckpointStore"]


def make_grpc_server(
    *, limits: Limits, interceptors: Sequence[grpc.aio.ServerInterceptor], concurrent_calls_max: int
) -> grpc.aio.Server:
    """Return a server without services and addresses."""
    options = [
        # Otherwise a second server could share the port and take half of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.request_bytes_max + RECEIVE_SLACK_BYTES),
        ("grpc.max_send_message_length", SEND_BYTES_MAX),
        # Workers keep idle connections alive through NATs and proxies; pinging is no offence.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        # And a peer that vanished without a word is noticed.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    return grpc.aio.server(interceptors=interceptors, options=options, maximum_concurrent_rpcs=concurrent_calls_max)


class GrpcFront:
    """A bound server with its health.

    Args:
        service: What calls are carried to.
        limits: Bounds of messages.
        concurrent_calls_max: Calls in progress; one more is refused at once with RESOURCE_EXHAUSTED.
        interceptors: Tracing, where it is on.
        mark_span: Corrects the spans of that, see `handlers`.
    """

    def __init__(
        self,
        service: CheckpointService,
        *,
        limits: Limits,
        concurrent_calls_max: int,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        mark_span: handlers.MarkSpan | None = None,
    ) -> None:
        self._server = make_grpc_server(
            limits=limits, interceptors=interceptors, concurrent_calls_max=concurrent_calls_max
        )
        self._calls = handlers.CallCounter()
        handler = handlers.generic_handler(
            _SERVICE, CheckpointStoreServicer(service), limits=limits, calls=self._calls, mark_span=mark_span
        )
        self._server.add_generic_rpc_handlers((handler,))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_reflection()
        self._health_changes: set[asyncio.Task[None]] = set()

    def listen(self, address: Address, *, insecure: bool) -> Address:
        """Bind an address and return it, with the port that it really has.

        Args:
            address: Where to listen.
            insecure: Allow an address that others can reach: there is no encryption and no authentication.

        Raises:
            ListenError: It cannot be had.
        """
        if not insecure and not is_private(address):
            raise ListenError(
                f"--listen {address}: others could read and write everything, without TLS and tokens; "
                "use a loopback address or unix:PATH, or say --insecure"
            )
        check_free(address)
        try:
            with private_files():
                port = self._server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise ListenError(f"--listen {address}: {error}") from None
        return address if address.path else Address(host=address.host, port=port)

    async def start(self) -> None:
        """Begin to serve."""
        await self._set_health(is_serving=True)
        await self._server.start()

    def set_serving(self, is_serving: bool) -> None:
        """Tell by the health service whether the storage serves. Without effect once draining has begun."""
        change = asyncio.get_running_loop().create_task(self._set_health(is_serving=is_serving))
        self._health_changes.add(change)
        change.add_done_callback(self._health_changes.discard)

    async def drain(self, *, delay_s: float, grace_s: float) -> None:
        """Say NOT_SERVING, then refuse new calls, and return when those in progress have ended.

        Args:
            delay_s: How long calls are still accepted, for load balancers to notice.
            grace_s: How long calls in progress may take; what is left then is cancelled.
        """
        await self._health.enter_graceful_shutdown()
        if delay_s:
            await asyncio.sleep(delay_s)
        stopped = asyncio.create_task(self._server.stop(grace_s))
        # Watchers of health never end by themselves; they are not what the grace is for.
        idle = asyncio.create_task(self._calls.wait_idle())
        await asyncio.wait({stopped, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await self._server.stop(None)
        await stopped

    async def _set_health(self, *, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", _SERVICE.full_name):
            await self._health.set(service, status)

    def _add_reflection(self) -> None:
        names = (_SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        servicer = reflection.aio.ReflectionServicer(service_names=names)
        # The package knows v1alpha alone. The messages of v1 are the same but for their names, which are not on the
        # wire.
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
                for name in (reflection.SERVICE_NAME, REFLECTION_V1)
            )
        )
