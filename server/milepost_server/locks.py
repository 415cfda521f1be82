"""Locks by key, shared or exclusive, for calls that span several commits.

A fork copies in slices and needs its source to stay what it was; pruning and deleting would take it away. Waiters
are served in the order they came. Lives on one event loop; nothing here survives the process, and nothing has to:
an unfinished fork is thrown away at start.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

Key = tuple[str, ...]


class _Lock:
    __slots__ = ("holder_count", "is_exclusive", "waiters")

    def __init__(self) -> None:
        self.holder_count = 0
        self.is_exclusive = False
        self.waiters: deque[tuple[bool, asyncio.Future[None]]] = deque()

    def admits(self, exclusive: bool) -> bool:
        return self.holder_count == 0 or not (exclusive or self.is_exclusive)

    def take(self, exclusive: bool) -> None:
        self.holder_count += 1
        self.is_exclusive = exclusive


class KeyedLocks:
    """Shared and exclusive locks, made when first asked for and forgotten when nobody has or wants them."""

    def __init__(self) -> None:
        self._locks: dict[Key, _Lock] = {}

    @asynccontextmanager
    async def hold(self, *, shared: Collection[Key] = (), exclusive: Collection[Key] = ()) -> AsyncIterator[None]:
        """Hold locks for the length of a `with` block; a key in both is held exclusively."""
        wanted = dict.fromkeys(shared, False) | dict.fromkeys(exclusive, True)
        held: list[Key] = []
        try:
            # One order for all callers, so that no two wait for each other.
            for key in sorted(wanted):
                await self._acquire(key, wanted[key])
                held.append(key)
            yield
        finally:
            for key in held:
                self._release(key)

    async def _acquire(self, key: Key, exclusive: bool) -> None:
        lock = self._locks.setdefault(key, _Lock())
        if not lock.waiters and lock.admits(exclusive):
            lock.take(exclusive)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (exclusive, turn)
        lock.waiters.append(waiter)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The lock was handed over at the moment of the cancellation.
                self._release(key)
            elif waiter in lock.waiters:
                lock.waiters.remove(waiter)
                self._hand_over(key, lock)
            raise

    def _release(self, key: Key) -> None:
        lock = self._locks[key]
        lock.holder_count -= 1
        self._hand_over(key, lock)

    def _hand_over(self, key: Key, lock: _Lock) -> None:
        while lock.waiters:
            exclusive, turn = lock.waiters[0]
            if not turn.cancelled():
                if not lock.admits(exclusive):
                    break
                lock.take(exclusive)
                turn.set_result(None)
            lock.waiters.popleft()
        if not lock.holder_count and not lock.waiters and self._locks.get(key) is lock:
            del self._locks[key]
