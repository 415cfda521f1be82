"""Boundaries at which a worker process can be killed: counted as it passes them, the n-th ends it by SIGKILL.

Before and after each effect of a step, and around each call that changes the store: before it is sent, while it is on
its way, and when it is stored but its answer has not come back to the runner. What the runner does after an answer is
the boundary before the next effect.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from typing_extensions import override

from milepost import AsyncClient, Client
from tests.support.effects_journal import EffectsJournal

T = TypeVar("T")
CALLS = ("acquire_lease", "save", "save_all", "append_records")
"""What changes the store in the course of a run."""


class Boundaries:
    """Counts boundaries; kills this process at one of them.

    Args:
        fatal: The number of the one, from 1, or its name; 0: none.
    """

    def __init__(self, journal: EffectsJournal, workflow_id: str, fatal: int | str) -> None:
        self._journal = journal
        self._workflow_id = workflow_id
        self._fatal = fatal
        self._count = 0
        self._lock = threading.Lock()

    def passes(self, name: str) -> bool:
        """Count a boundary, and tell whether it is survived."""
        with self._lock:
            self._count += 1
            if self._fatal not in {self._count, name}:
                return True
        self._journal.write("killed", workflow_id=self._workflow_id, note=name)
        return False

    def reach(self, name: str) -> None:
        """Count a boundary and die if it is the one."""
        if not self.passes(name):
            die()

    @property
    def flight_s(self) -> float:
        """How long a fatal call may be on its way: different from boundary to boundary, up to 3 ms."""
        return self._count % 7 * 0.0005


def die() -> NoReturn:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    while True:
        signal.pause()


class BoundedClient(Client):
    """A client whose changing calls are boundaries."""

    def __init__(self, target: str, boundaries: Boundaries) -> None:
        super().__init__(target)
        self._boundaries = boundaries

    @override
    def acquire_lease(self, *args: Any, **options: Any) -> Any:
        return self._around("acquire_lease", lambda: super(BoundedClient, self).acquire_lease(*args, **options))

    @override
    def save(self, *args: Any, **options: Any) -> Any:
        return self._around("save", lambda: super(BoundedClient, self).save(*args, **options))

    @override
    def save_all(self, *args: Any, **options: Any) -> Any:
        return self._around("save_all", lambda: super(BoundedClient, self).save_all(*args, **options))

    @override
    def append_records(self, *args: Any, **options: Any) -> Any:
        return self._around("append_records", lambda: super(BoundedClient, self).append_records(*args, **options))

    def _around(self, name: str, call: Callable[[], T]) -> T:
        self._boundaries.reach(f"before {name}")
        if not self._boundaries.passes(f"{name} on its way"):
            threading.Thread(target=call, daemon=True).start()
            time.sleep(self._boundaries.flight_s)
            die()
        answer = call()
        self._boundaries.reach(f"{name} stored, answer not seen")
        return answer


class AsyncBoundedClient(AsyncClient):
    """An async client whose changing calls are boundaries."""

    def __init__(self, target: str, boundaries: Boundaries) -> None:
        super().__init__(target)
        self._boundaries = boundaries

    @override
    async def acquire_lease(self, *args: Any, **options: Any) -> Any:
        return await self._around("acquire_lease", super().acquire_lease(*args, **options))

    @override
    async def save(self, *args: Any, **options: Any) -> Any:
        return await self._around("save", super().save(*args, **options))

    @override
    async def save_all(self, *args: Any, **options: Any) -> Any:
        return await self._around("save_all", super().save_all(*args, **options))

    @override
    async def append_records(self, *args: Any, **options: Any) -> Any:
        return await self._around("append_records", super().append_records(*args, **options))

    async def _around(self, name: str, call: Coroutine[Any, Any, T]) -> T:
        self._boundaries.reach(f"before {name}")
        if not self._boundaries.passes(f"{name} on its way"):
            task = asyncio.ensure_future(call)
            await asyncio.sleep(self._boundaries.flight_s)
            assert task is not None
            die()
        answer = await call
        self._boundaries.reach(f"{name} stored, answer not seen")
        return answer
