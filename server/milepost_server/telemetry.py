"""Logs and traces: how they are set up, and that neither carries state.

Logs go to stderr (`log_setup` has their form). Traces are off unless the standard OpenTelemetry variables ask for them
and the extra `otel` is installed; then a call costs about a fifth more, and otherwise nothing. What is recorded are
ids, sizes, codes and reasons, never a value, a metadata text or a label.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import grpc
from opentelemetry import propagate, trace

from milepost_server import log_setup

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_logger = logging.getLogger(__name__)

SERVICE_NAME: Final = "milepost-server"
WATCH_METHOD: Final = "/milepost.v1.CheckpointStore/Watch"
_WATCH_ATTRIBUTES: Final = {
    "rpc.system": "grpc",
    "rpc.service": WATCH_METHOD.split("/")[1],
    "rpc.method": WATCH_METHOD.split("/")[2],
}
COMMIT_SPAN: Final = "milepost.commit"
COMMAND_COUNT_ATTRIBUTE: Final = "milepost.commit.command_count"
REASON_ATTRIBUTE: Final = "milepost.reason"
COMMIT_LINKS_MAX: Final = 128
"""Links of one commit's span: exporters drop what is beyond."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up_logging(level: str, log_format: str) -> None:
    """Send logs of this process to stderr, as text or one JSON object a line."""
    log_setup.set_up_logging(_LEVELS[level], log_format)


class Tracing:
    """What the server uses while tracing is on: an interceptor, the correction of its spans, and spans of commits.

    Args:
        provider: Where spans go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        # Only here, since the extra may not be installed.
        from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("milepost_server")
        # Not health checks: they come every few seconds and say nothing.
        make: Callable[..., grpc.aio.ServerInterceptor] = aio_server_interceptor
        self.interceptors: Sequence[grpc.aio.ServerInterceptor] = (
            make(
                tracer_provider=provider,
                filter_=filters.negate(filters.any_of(filters.health_check(), filters.full_method_name(WATCH_METHOD))),
            ),
            _WatchInterceptor(self._tracer),
        )

    def mark_span(self, code: grpc.StatusCode, reason: str) -> None:
        """Say on the call's span how it ended: OpenTelemetry's interceptor takes a cancelled call for a good one."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if reason:
            span.set_attribute(REASON_ATTRIBUTE, reason)
        # A watch goes on until its caller cancels it.
        if code in _SERVER_FAULTS and (code is not grpc.StatusCode.CANCELLED or not _is_watch(span)):
            span.set_status(trace.Status(trace.StatusCode.ERROR, reason or code.name))

    def capture(self) -> object | None:
        """Return the context of the current span, for a link."""
        context = trace.get_current_span().get_span_context()
        return context if context.is_valid and context.trace_flags.sampled else None

    def committing(self, captured: Sequence[object], command_count: int) -> AbstractContextManager[object]:
        """Enclose one commit in a span that links to the calls it answers; a commit has many, so none is its parent."""
        links = [
            trace.Link(context) for context in captured[:COMMIT_LINKS_MAX] if isinstance(context, trace.SpanContext)
        ]
        if not links:
            return contextlib.nullcontext()
        return self._commit_span(links, command_count)

    @contextlib.contextmanager
    def _commit_span(self, links: Sequence[trace.Link], command_count: int) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            COMMIT_SPAN, links=links, attributes={COMMAND_COUNT_ATTRIBUTE: command_count}
        ):
            yield

    def close(self) -> None:
        """Send what has not been sent yet."""
        shutdown: Callable[[], None] | None = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


class _WatchInterceptor(grpc.aio.ServerInterceptor):
    """Makes one span of each watch, from its call to its end.

    OpenTelemetry's interceptor takes a method with a stream of answers for a generator. Ours writes to its context.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    # Any: the stubs have a handler of types that only the method knows.
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        if handler_call_details.method != WATCH_METHOD:
            return handler
        parent = propagate.extract(dict(handler_call_details.invocation_metadata or ()))

        async def watch(request: object, context: object) -> None:
            with self._tracer.start_as_current_span(
                WATCH_METHOD,
                context=parent,
                kind=trace.SpanKind.SERVER,
                attributes=_WATCH_ATTRIBUTES,
                # How it ended is told by `mark_span`; what ends the call is not an error of its own.
                record_exception=False,
                set_status_on_exception=False,
            ):
                await handler.unary_stream(request, context)

        return grpc.unary_stream_rpc_method_handler(
            watch,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _is_watch(span: trace.Span) -> bool:
    return getattr(span, "name", "") == WATCH_METHOD


_SERVER_FAULTS = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""Codes that mean the server's span has failed; the others are the caller's doing."""


def make_tracing(environment: Mapping[str, str] | None = None) -> Tracing | None:
    """Return tracing as the standard variables of OpenTelemetry ask for it; `None` where they do not."""
    environment = os.environ if environment is None else environment
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    has_endpoint = any(
        environment.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return None
    if not (exporter or has_endpoint):
        return None
    try:
        return Tracing(_make_provider(exporter))
    except ImportError as error:
        _logger.warning("tracing is asked for, but %s is not installed: pip install 'milepost[otel]'", error.name)
        return None


def _make_provider(exporter: str) -> TracerProvider:
    # Only here, since the extra may not be installed.
    from opentelemetry.sdk.resources import SERVICE_NAME as SERVICE_NAME_KEY  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SimpleSpanProcessor,
    )

    # The resource reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES itself, and these win.
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME_KEY: SERVICE_NAME}
    provider = SdkTracerProvider(resource=Resource.create(named))
    if exporter == "console":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
    else:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
