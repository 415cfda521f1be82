"""What the async half needs and the blocking half has another way; `_sync/_compat.py` is its twin, name by name."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

from milepost._config import ChannelOptions
from milepost.errors import ClientForkedError

Home: TypeAlias = asyncio.AbstractEventLoop
"""What a channel belongs to."""
Interceptor: TypeAlias = grpc.aio.ClientInterceptor

home = asyncio.get_running_loop

_used_in_pid: int | None = None


async def sleep(pause_s: float) -> None:
    """Wait."""
    await asyncio.sleep(pause_s)


def is_gone(loop: Home) -> bool:
    """Tell whether a channel of this loop can never be used again."""
    return loop.is_closed()


def require_usable(pid: int) -> None:
    """Refuse to open a channel where gRPC could not serve it.

    `grpc.aio` has one poller thread for the process. After a fork the child lacks it, and every call there would hang,
    on a new channel as well.

    Raises:
        ClientForkedError: The process that this one was forked from has used `grpc.aio` through a client.
    """
    global _used_in_pid  # noqa: PLW0603 - one fact about the whole process
    if _used_in_pid is None:
        _used_in_pid = pid
    elif _used_in_pid != pid:
        raise ClientForkedError(
            f"an AsyncClient was used in process {_used_in_pid} before it forked this one, {pid}. gRPC for asyncio "
            "does not work in such a child: start it with spawn or forkserver instead.",
            owner_pid=_used_in_pid,
            pid=pid,
        )


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: ChannelOptions,
    interceptors: Sequence[Interceptor],
    *,
    traced: bool,
) -> grpc.aio.Channel:
    """Make a channel; it connects at the first call."""
    chain = list(interceptors)
    if traced:
        # An extra, and not typed.
        instrumentation: Any = importlib.import_module("opentelemetry.instrumentation.grpc")
        chain += instrumentation.aio_client_interceptors()
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=chain)
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=chain)
