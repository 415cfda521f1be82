"""Tracing, only where it is wanted: the instrumentation of OpenTelemetry costs about a fifth of a call."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

import grpc
from opentelemetry import propagate, trace

INSTRUMENTATION = "opentelemetry.instrumentation.grpc"


def wants_tracing(instrument: bool | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Decide whether calls are traced; asked when a channel opens.

    Args:
        instrument: True and False decide. None: yes if the extra `otel` is installed and the program has set a tracer
            provider or OTEL_TRACES_EXPORTER.
        environ: Where the setting is looked up.

    Raises:
        ImportError: Tracing was asked for and the extra is not installed.
    """
    if instrument is False or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    is_installed = _is_installed()
    if instrument and not is_installed:
        raise ImportError('instrument=True needs the extra "otel": pip install "milepost[otel]"')
    if instrument or not is_installed:
        return bool(instrument)
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != "none"
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


class StreamSpan:
    """The span of one stream, from its opening to its end: the instrumentation's own streams cannot be cancelled.

    Args:
        path: Of the method, "/package.Service/Method".
    """

    def __init__(self, path: str) -> None:
        _, service, method = path.split("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        self._span = trace.get_tracer("milepost").start_span(path, kind=trace.SpanKind.CLIENT, attributes=attributes)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what carries the trace to the server."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        return tuple(carrier.items())

    def end(self, code: grpc.StatusCode) -> None:
        """Say how the stream ended, the first time. That its reader has had enough is no error."""
        if not self._span.is_recording():
            return
        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, code.name))
        self._span.end()


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(INSTRUMENTATION) is not None
    except ModuleNotFoundError:
        return False
