"""The gRPC server: assembled, bound, drained.

Made by the command line around a `CheckpointService`. Standard health (for the whole server and per service) and
reflection (v1 and v1alpha) stand beside our own service. `make_grpc_server` is the only place that knows which
implementation of `grpc.aio.Server` it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from milepost.v1 import checkpoint_store_pb2
from milepost_server.grpc_api import handlers
from milepost_server.grpc_api.addresses import Address, ListenError, check_free, is_private, private_files
from milepost_server.grpc_api.health import SERVICE_NAME as HEALTH_NAME
from milepost_server.grpc_api.health import HealthServicer
from milepost_server.grpc_api.servicer import ENCODED_METHODS, CheckpointStoreServicer
from milepost_server.limits import KIB, MIB, Limits
from milepost_server.service import CheckpointService

_logger = logging.getLogger(__name__)

RECEIVE_SLACK_BYTES: Final = MIB
"""A request that is a little too large is received, so that it can be refused with a reason."""
SEND_SLACK_BYTES: Final = MIB + 64 * KIB
"""What the wire adds to a Load of the largest state with the largest records; by default 33 MiB in all."""
PENDING_CALLS_MAX: Final = 32_768
"""Calls that have come and that nobody has looked at yet; past it gRPC drops them."""
REFUSING_ROUND_S: Final = 0.05
"""When no call came for this long while draining, none is on its way."""
REFUSING_ROUNDS_MAX: Final = 20
STOP_GRACE_S: Final = 0.5
"""For streams of others, such as reflection, to end; our calls have ended before."""
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
        # No probing for how much a connection can have on its way: it costs pings, and lets each of many connections
        # fill a window of megabytes. Room for the rest of a large message is made once it is read.
        ("grpc.http2.bdp_probe", 0),
        (
            "grpc.max_send_message_length",
            limits.request_bytes_max + limits.records_bytes_max + SEND_SLACK_BYTES,
        ),
        # By default gRPC drops calls at random, without a word of why, when more than 1,000 come at once. We take them
        # and say what is full.
        ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
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
        large_bytes_max: Bytes of large requests in progress.
        large_answers_bytes_max: Bytes of large answers that have not been received.
        interceptors: Tracing, where it is on.
        mark_span: Corrects the spans of that, see `handlers`.
    """

    def __init__(
        self,
        service: CheckpointService,
        *,
        limits: Limits,
        concurrent_calls_max: int,
        large_bytes_max: int,
        large_answers_bytes_max: int,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        mark_span: handlers.MarkSpan | None = None,
    ) -> None:
        self._server = make_grpc_server(
            limits=limits, interceptors=interceptors, concurrent_calls_max=concurrent_calls_max
        )
        self._service = service
        self._gate = handlers.CallGate()
        handler = handlers.generic_handler(
            _SERVICE,
            CheckpointStoreServicer(service),
            limits=limits,
            gate=self._gate,
            large_gate=handlers.LargeMessageGate("requests", "queue.large_bytes_max", large_bytes_max),
            answer_gate=handlers.LargeMessageGate("answers", "queue.large_answers_bytes_max", large_answers_bytes_max),
            mark_span=mark_span,
            encoded_methods=ENCODED_METHODS,
        )
        self._server.add_generic_rpc_handlers((handler,))
        self._health = HealthServicer([_SERVICE.full_name])
        self._server.add_generic_rpc_handlers((self._health.generic_handler(),))
        self._add_reflection()

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
        self._health.set_serving(True)
        await self._server.start()

    def set_serving(self, is_serving: bool) -> None:
        """Tell by the health service whether the storage serves. Without effect once draining has begun."""
        self._health.set_serving(is_serving)

    async def drain(self, *, delay_s: float, grace_s: float) -> None:
        """Say NOT_SERVING, then refuse new calls, and return when those in progress have ended.

        Args:
            delay_s: How long calls are still accepted, for load balancers to notice.
            grace_s: How long calls in progress may take; what is left then is cancelled.
        """
        self._health.begin_drain()
        if delay_s:
            await asyncio.sleep(delay_s)
        # We refuse new calls ourselves, with a reason: gRPC would end those that it has received and not begun as
        # CANCELLED, which says nothing of a retry. It is stopped when no more come, or after a second at most.
        self._gate.close()
        self._service.begin_drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gate.wait_idle(), grace_s)
        for _ in range(REFUSING_ROUNDS_MAX):
            arrived = self._gate.arrived
            await asyncio.sleep(REFUSING_ROUND_S)
            if self._gate.arrived == arrived:
                break
        self._health.end_watches()
        # What is left had its time; a moment is for watches and refusals to be sent.
        await self._server.stop(STOP_GRACE_S)

    def _add_reflection(self) -> None:
        _describe_reflection_v1()
        names = (_SERVICE.full_name, HEALTH_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
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


def _describe_reflection_v1() -> None:
    """Have a description of v1 where reflection looks for one: who finds a service listed asks for it."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(REFLECTION_V1)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.ClearField("options")
        as_v1 = text_format.MessageToString(file).replace("v1alpha", "v1")
        pool.Add(text_format.Parse(as_v1, descriptor_pb2.FileDescriptorProto()))
