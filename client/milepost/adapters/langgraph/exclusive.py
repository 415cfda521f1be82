"""One writer for a thread, if somebody asks for that: a lease that every put in a block presents.

The lease travels by context variable. LangGraph hands its context on to the threads and tasks that save in the
background, in every durability mode; another request has a context of its own, so it cannot save under a lease that
it did not take.

With one exception: what nodes that ran side by side in threads have written is stored from the end of their threads,
where there is no context any more. But LangGraph takes hold of the method that stores it, `saver.put_writes`, when a
run begins, in the run's context. `carries_lease` makes the method it gets then bring along what was presented there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from typing_extensions import override

from milepost._async.lease import AsyncLease
from milepost._sync.lease import Lease
from milepost.adapters.langgraph.connections import Connections
from milepost.adapters.langgraph.put import NO_FENCE, Fence

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


class Exclusive:
    """The exclusive right to advance a thread, for the length of a `with` or an `async with` block.

    Made by `MilepostSaver.exclusive`; for one block. Nothing here stops a node that is running when the lease is lost:
    what it would save is refused, and `check()` tells a long node before that.
    """

    def __init__(
        self,
        connections: Connections,
        thread_id: str,
        *,
        ttl_s: float,
        wait_s: float,
        holder: str | None,
        allow_forks: bool,
    ) -> None:
        self._connections = connections
        self._thread_id = thread_id
        self._ttl_s = ttl_s
        self._wait_s = wait_s
        self._holder = holder
        self._allow_forks = allow_forks
        self._lease: Lease | AsyncLease | None = None

    @property
    def thread_id(self) -> str:
        """The thread."""
        return self._thread_id

    @property
    def token(self) -> int:
        """The fencing token: larger than that of every earlier holder. For other systems that can check it too.

        Raises:
            RuntimeError: The block has not begun.
        """
        return self._held.token

    @property
    def lost(self) -> bool:
        """Somebody else may be advancing the thread."""
        return self._lease is not None and self._lease.lost

    def check(self) -> None:
        """Raise if the lease was lost. Asks nobody.

        Raises:
            LeaseLostError: Another holder was granted the lease, or it was taken away.
            RuntimeError: The block has not begun.
        """
        self._held.check()

    def __enter__(self) -> Self:
        lease = self._connections.blocking.lease(
            self._thread_id, ttl_s=self._ttl_s, wait_s=self._wait_s, holder=self._holder
        )
        self._begin(lease)
        lease.__enter__()
        self._present()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._withdraw()
        lease = self._held
        assert isinstance(lease, Lease)
        lease.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Self:
        lease = self._connections.asyncio.lease(
            self._thread_id, ttl_s=self._ttl_s, wait_s=self._wait_s, holder=self._holder
        )
        self._begin(lease)
        await lease.__aenter__()
        self._present()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._withdraw()
        lease = self._held
        assert isinstance(lease, AsyncLease)
        await lease.__aexit__(kind, error, traceback)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._thread_id!r})"

    @property
    def _held(self) -> Lease | AsyncLease:
        if self._lease is None:
            raise RuntimeError(f"{self!r}: the lease is taken when its with block begins")
        return self._lease

    def _begin(self, lease: Lease | AsyncLease) -> None:
        if self._lease is not None:
            raise RuntimeError(f"{self!r} was used already: make a new one with exclusive()")
        self._lease = lease

    def _present(self) -> None:
        fence = Fence(self._held.token, is_linear=not self._allow_forks)
        _presented.set({**_presented.get(), (self._connections, self._thread_id): fence})

    def _withdraw(self) -> None:
        # Not by the variable's own reset, which the block's end may not use: frameworks end what they began in another
        # context. Whoever still presents the lease after the block has ended is refused by the server.
        key = (self._connections, self._thread_id)
        _presented.set({each: fence for each, fence in _presented.get().items() if each != key})


def presented(connections: Connections, thread_id: str) -> Fence:
    """Return what a put of a thread presents here: the lease of the block it is in, or nothing."""
    return _presented.get().get((connections, thread_id), NO_FENCE)


def carries_lease(method: MethodT) -> MethodT:
    """Make a blocking method present, wherever it is called, what was presented where it was taken from its object."""
    return cast("MethodT", _LeaseCarrier(method))


class _LeaseCarrier:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, owner: object, kind: type | None = None) -> Callable[..., Any]:
        if owner is None:
            return self._method
        bound = self._method.__get__(owner, kind)
        carried = _presented.get()
        if not carried:
            return cast("Callable[..., Any]", bound)

        @functools.wraps(bound)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = _presented.set({**carried, **_presented.get()})
            try:
                return bound(*args, **kwargs)
            finally:
                _presented.reset(before)

        return call


_presented: ContextVar[Mapping[tuple[Connections, str], Fence]] = ContextVar("milepost_langgraph_leases", default={})  # noqa: B039 - never changed, only replaced
