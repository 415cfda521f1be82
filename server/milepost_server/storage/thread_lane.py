"""Commands for an engine in the server's own process: run by one thread, which owns every write of the engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence

from milepost_server.errors import StoreError
from milepost_server.model import Answer, Command


class ThreadLane:
    """Implements `CommandLane`: the thread runs one batch, and the next one gathers meanwhile.

    Args:
        loop: The loop of its callers.
        execute: Runs a batch.
        reopen: Starts the engine again.
    """

    is_pipelined = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        execute: Callable[[Sequence[Command]], Sequence[Answer | StoreError]],
        reopen: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._execute = execute
        self._reopen = reopen
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="milepost-writer")

    def execute(self, commands: Sequence[Command]) -> asyncio.Future[Sequence[Answer | StoreError]]:
        """See `CommandLane`."""
        return self._loop.run_in_executor(self._executor, self._execute, commands)

    async def reopen(self) -> None:
        """See `CommandLane`."""
        await self._loop.run_in_executor(self._executor, self._reopen)

    async def close(self) -> None:
        """See `CommandLane`."""
        await asyncio.to_thread(self._executor.shutdown)
