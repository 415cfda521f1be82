"""Commands for an engine in the server's own process: run by one thread, which owns every write of the engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import TypeVar

from milepost_server.errors import StoreError
from milepost_server.model import Answer, Command
from milepost_server.storage.port import Engine

_T = TypeVar("_T")


class ThreadLane:
    """Implements `CommandLane`; the batch at hand is in the thread, so there is never more than one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="milepost-writer")

    async def execute(self, commands: Sequence[Command]) -> Sequence[Answer | StoreError]:
        """See `CommandLane`."""
        return await self._run(lambda: self._engine.execute(commands))

    async def reopen(self) -> None:
        """See `CommandLane`."""
        await self._run(self._engine.reopen)

    async def close(self) -> None:
        """See `CommandLane`."""
        await asyncio.to_thread(self._executor.shutdown)

    async def _run(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)
