"""Logs and traces: how they are set up, and that neither carries state.

Logs go to stderr. Traces are off unless the standard OpenTelemetry variables ask for them and the extra `otel` is
installed; then a call costs about a fifth more, and otherwise nothing. What is recorded are ids, sizes, codes and
reasons, never a value, a metadata text or a label.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import grpc
from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_logger = logging.getLogger(__name__)

SERVICE_NAME: Final = "milepost-server"
COMMIT_SPAN: Final = "milepost.commit"
COMMAND_COUNT_ATTRIBUTE: Final = "milepost.commit.command_count"
REASON_ATTRIBUTE: Final = "milepost.reason"
COMMIT_LINKS_MAX: Final = 128
"""Links of one commit's span: exporters drop what is beyond."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


# Logs.


def set_up_logging(level: str, log_format: str) -> None:
    """Send logs of this process to stderr, as text or one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    handler.addFilter(_is_worth_logging)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_LEVELS[level])


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Tell whether to log a record: all but what gRPC says when a caller goes away while it is being answered.

    That is no fault of anybody's, and would put a traceback into the log of a healthy server.
    """
    is_vanished_peer = bool(
        record.name.startswith("grpc.")
        and record.exc_info
        and record.exc_info[0] is not None
        and record.exc_info[0].__name__ == "ExecuteBatchError"
    )
    return not is_vanished_peer


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  (its base's name)
        return _time(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Traces.


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
            make(tracer_provider=provider, filter_=filters.negate(filters.health_check())),
        )

    def mark_span(self, code: grpc.StatusCode, reason: str) -> None:
        """Say on the call's span how it ended: OpenTelemetry's interceptor takes a cancelled call for a good one."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if reason:
            span.set_attribute(REASON_ATTRIBUTE, reason)
        if code in _SERVER_FAULTS:
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
