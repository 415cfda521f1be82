"""Tracing, only where it is wanted: the instrumentation of OpenTelemetry costs about a fifth of a call."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

from opentelemetry import trace

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


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(INSTRUMENTATION) is not None
    except ModuleNotFoundError:
        return False
