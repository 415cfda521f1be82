"""What the blocking half needs and the async half has another way; `_async/_compat.py` is its twin, name by name."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

from milepost._config import ChannelOptions

Home: TypeAlias = str
"""What a channel belongs to."""
Interceptor: TypeAlias = (
    grpc.UnaryUnaryClientInterceptor
    | grpc.UnaryStreamClientInterceptor
    | grpc.StreamUnaryClientInterceptor
    | grpc.StreamStreamClientInterceptor
)


def home() -> Home:
    """Return the process: one channel serves all its threads."""
    return "process"


def sleep(pause_s: float) -> None:
    """Wait."""
    time.sleep(pause_s)


def is_gone(place: Home) -> bool:
    """Tell whether a channel of this place can never be used again."""
    return False


def require_usable(pid: int) -> None:
    """Do nothing: a new channel works in every process."""


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: ChannelOptions,
    interceptors: Sequence[Interceptor],
    *,
    traced: bool,
) -> grpc.Channel:
    """Make a channel; it connects at the first call."""
    if credentials is None:
        channel = grpc.insecure_channel(target, options=options)
    else:
        channel = grpc.secure_channel(target, credentials, options=options)
    if traced:
        # An extra, and not typed.
        instrumentation: Any = importlib.import_module("opentelemetry.instrumentation.grpc")
        channel = instrumentation.intercept_channel(channel, instrumentation.client_interceptor())
    return grpc.intercept_channel(channel, *interceptors) if interceptors else channel
