"""What the lease keeper renews with: a channel of its own, so that a busy client or event loop cannot delay it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final

from milepost._async.client import AsyncClient
from milepost._async.memory import AsyncInMemoryStore
from milepost._retry import RetryPolicy
from milepost._sync.client import Client
from milepost.runner.lease_keeper import RenewsLeases
from milepost.types import LeaseRenewal

__all__ = ["heartbeats_for"]

CALL_S: Final = 5.0


def heartbeats_for(store: Any) -> Callable[[], RenewsLeases]:
    """Return what opens the keeper's way to the store that a runner is bound to."""
    if isinstance(store, Client | AsyncClient):
        return lambda: _twin(store)
    if isinstance(store, AsyncInMemoryStore):
        core = store._core  # noqa: SLF001  the one part of it that does not belong to a loop
        return lambda: _Borrowed(core.renew_lease)
    if inspect.iscoroutinefunction(store.renew_lease):
        loop = _running_loop()
        return lambda: _OnLoop(store.renew_lease, loop)
    return lambda: _Borrowed(store.renew_lease)


def _twin(store: Client | AsyncClient) -> RenewsLeases:
    """Return a client of the same configuration, a blocking one unless interceptors need a loop."""
    endpoint, interceptors = store._endpoint, store._interceptors  # noqa: SLF001  a client's twin is made of its parts
    kind: type[Any] = AsyncClient if interceptors and isinstance(store, AsyncClient) else Client
    twin = kind(
        endpoint.target,
        namespace=endpoint.namespace,
        tls=endpoint.tls,
        timeout_s=CALL_S,
        retry=RetryPolicy(backoff_initial_s=0.1, backoff_max_s=0.5),
        interceptors=interceptors,
        instrument=False,
        insecure=True,
    )
    twin._endpoint, twin._token = endpoint, endpoint.token  # noqa: SLF001
    return _OnOwnLoop(twin) if isinstance(twin, AsyncClient) else twin


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Borrowed:
    """Somebody else's store: renewed with, never closed."""

    def __init__(self, renew: Callable[..., LeaseRenewal]) -> None:
        self.renew_lease = renew


class _OnOwnLoop:
    """An async client that runs in the keeper's thread only, on a loop of its own.

    On the loop of the program its interceptors would find what they keep there. But a step that holds up that loop
    would hold up the heartbeats, so that the lease runs out while the run goes on.
    """

    def __init__(self, twin: AsyncClient) -> None:
        self._twin = twin
        self._runner = asyncio.Runner()

    def renew_lease(self, workflow_id: str, token: int, *, timeout_s: float = CALL_S) -> LeaseRenewal:
        """Renew with the interceptors of the client that this is a twin of."""
        return self._runner.run(self._twin.renew_lease(workflow_id, token, timeout_s=timeout_s))

    def close(self) -> None:
        """Close the channel and the loop."""
        with self._runner:
            self._runner.run(self._twin.close())


class _OnLoop:
    """A store whose methods have to be awaited where its connections live."""

    def __init__(
        self, renew: Callable[[str, int], Coroutine[Any, Any, LeaseRenewal]], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self._renew = renew
        self._loop = loop

    def renew_lease(self, workflow_id: str, token: int) -> LeaseRenewal:
        """Renew on the loop, from another thread."""
        if self._loop is None:
            return asyncio.run(self._renew(workflow_id, token))
        renewal = asyncio.run_coroutine_threadsafe(self._renew(workflow_id, token), self._loop)
        try:
            return renewal.result(CALL_S)
        except TimeoutError:
            renewal.cancel()
            raise
