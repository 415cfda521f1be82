"""A server that does as it is told: what it was asked is kept, what it answers comes from a script.

A real gRPC server in this process, so that codes, trailers, deadlines and broken connections are real; only the store
behind it is missing. Serves both halves of the client.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import checkpoint_store_pb2_grpc as pb_grpc

DEADLINE_S_MAX = 3_600.0
"""What has more time left came without a deadline."""

Answer = Any
"""A response message, an `Abort`, or a function from (request, context) to either."""


class Abort:
    """An error in the shape the real server gives it."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        message: str = "scripted",
        *,
        retry_after_s: float | None = None,
        domain: str = "milepost",
        **metadata: str,
    ) -> None:
        self.code = code
        self.message = message
        self.trailers: tuple[tuple[str, bytes], ...] = ()
        details: list[AnyMessage] = []
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
            details.append(pack(info))
        if retry_after_s is not None:
            delay = Duration()
            delay.FromNanoseconds(int(retry_after_s * 1e9))
            details.append(pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        if details:
            status = status_pb2.Status(code=code.value[0], message=message, details=details)
            self.trailers = (("grpc-status-details-bin", status.SerializeToString()),)


def pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


class ScriptedServicer(pb_grpc.CheckpointStoreServicer):
    """Answers from `script[method]`, in order; keeps what it was asked in `asked[method]`."""

    def __init__(self) -> None:
        self.script: dict[str, deque[Answer]] = defaultdict(deque)
        self.asked: dict[str, list[Any]] = defaultdict(list)
        self.metadata: list[dict[str, str | bytes]] = []
        self.lock = threading.Lock()

    def answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        with self.lock:
            self.asked[method].append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            if method != "Watch" and not context.time_remaining() < DEADLINE_S_MAX:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{method} came without a deadline")
            if not self.script[method]:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the script has no further answer for {method}")
            answer = self.script[method].popleft()
        if callable(answer):
            answer = answer(request, context)
        if isinstance(answer, Abort):
            context.set_trailing_metadata(answer.trailers)
            context.abort(answer.code, answer.message)
        return answer


def _method(name: str) -> Callable[..., Any]:
    def call(self: ScriptedServicer, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer(name, request, context)

    return call


# All methods of the service do the same; a type checker sees an abstract class, which this is not any more.
_METHODS = {name: _method(name) for name in pb.DESCRIPTOR.services_by_name["CheckpointStore"].methods_by_name}
_SERVICER: Any = type("_Servicer", (ScriptedServicer,), _METHODS)


class ScriptedServer:
    """The server and its script."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.servicer: ScriptedServicer = _SERVICER()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        pb_grpc.add_CheckpointStoreServicer_to_server(self.servicer, self._server)
        # Raw bytes both ways, as the client speaks it: grpcio-health-checking is the real server's affair.
        check: Any = grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.servicer.answer("Check", request, context)
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),)
        )
        self.port = self._server.add_insecure_port(address)
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def on(self, method: str, *answers: Answer) -> ScriptedServer:
        """Add answers for a method."""
        self.servicer.script[method].extend(answers)
        return self

    def asked(self, method: str) -> list[Any]:
        """Return the requests that came for a method."""
        return self.servicer.asked[method]

    def stop(self) -> None:
        """Break every connection, and wait until the port is free."""
        self._server.stop(grace=None).wait()


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run a server without answers for as long as the block lasts."""
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.stop()
