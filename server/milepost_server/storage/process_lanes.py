"""The lanes of the storage process: commands and loads, asked and answered on the event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from milepost_server.errors import StorageFailedError, StoreError, UnavailableError
from milepost_server.model import (
    Answer,
    Command,
    EncodedLoadAnswer,
    EncodedLoadQuery,
    LongLoad,
    ProbeAnswer,
    ProbeQuery,
)
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage import frames
from milepost_server.storage.fair_queue import FairQueue
from milepost_server.storage.frame_channel import FrameChannel

GATHER_LOADS_MAX = 32
"""Loads that are awaited for one frame, at most."""
GATHER_GAP_S = 0.001
"""A gap of one to two of these without a call ends the waiting."""
ROUND_LOADS = 64
ROUND_S = 0.032
"""So many loads within this time: many callers are at work, more than the event loop can serve one by one.

They come in bursts with pauses in between, so a round must be longer than a burst.
"""

_logger = logging.getLogger(__name__)

_Waiting = tuple[EncodedLoadQuery | ProbeQuery, asyncio.Future[Any]]
_Asked = tuple[str, _Waiting]
"""With its namespace."""


class ProcessCommandLane:
    """Implements `CommandLane`: batches go to the process at once, which commits together what has come meanwhile.

    Args:
        loop: The loop it lives on.
        connect: Returns the connection for commands to the process as it runs now.
        reopen: Starts the process anew; blocks.
        ending: Says how a process ended whose connection has closed: "ended with status 1".
        on_failure: Called when the process has ended while no batch was running.
    """

    is_pipelined = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[], socket.socket],
        reopen: Callable[[], None],
        *,
        ending: Callable[[], str],
        on_failure: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._reopen = reopen
        self._ending = ending
        self._on_broken = on_failure
        self._channel = FrameChannel(
            loop, connect, owns_socket=False, on_answer=self._on_answer, on_failure=self._on_failure
        )
        self._open: deque[tuple[asyncio.Future[Sequence[Answer | StoreError]], int]] = deque()
        """Batches that were sent, and how many answers each wants, in the order they are answered."""

    def execute(self, commands: Sequence[Command]) -> asyncio.Future[Sequence[Answer | StoreError]]:
        """See `CommandLane`. No deadline: a commit takes as long as its disk, and giving up would not undo it."""
        future: asyncio.Future[Sequence[Answer | StoreError]] = self._loop.create_future()
        self._open.append((future, len(commands)))
        try:
            self._channel.ask(commands)
        except Exception as error:  # noqa: BLE001 - it is the caller's: the batch cannot be sent
            self._open.pop()
            future.set_exception(error)
        return future

    async def reopen(self) -> None:
        """See `CommandLane`."""
        self._channel.detach()
        await asyncio.to_thread(self._reopen)

    async def close(self) -> None:
        """See `CommandLane`."""
        self._channel.detach()

    def _on_answer(self, outcomes: list[Any]) -> None:
        """Give each batch its part of the outcomes: those of one commit come together."""
        start = 0
        while self._open and start < len(outcomes):
            if isinstance(outcomes[start], frames.StorageFailed):
                # What was sent after that commit is not run any more, or is of unknown outcome as well.
                self._fail_open(StorageFailedError(outcomes[start].message))
                return
            future, count = self._open.popleft()
            if not future.done():
                future.set_result(outcomes[start : start + count])
            start += count

    def _on_failure(self, error: Exception) -> None:
        is_gone = isinstance(error, EOFError | OSError)
        ending = self._ending() if is_gone else f"sent what cannot be read ({error!r})"
        _logger.error("the storage process %s", ending)
        if not self._open:
            # Nobody would notice before the next command, which would then be of unknown outcome for no reason.
            self._on_broken()
            return
        self._fail_open(frames.process_lost(ending))

    def _fail_open(self, error: StorageFailedError) -> None:
        while self._open:
            future, _ = self._open.popleft()
            if not future.done():
                future.set_exception(error)


class ProcessLoadLane:
    """Implements `LoadLane`: loads of callers that are at work at the same time go out as one frame.

    Loads that are answered together come back together, and the network side handles a burst of calls for much less
    than as many single ones. So while loads come thick, they gather until as many wait as were lately open at once, up
    to a bound. A gap without a call ends the waiting and halves what is awaited next time; a caller that is alone is
    never kept.

    Args:
        loop: The loop it lives on.
        connect: Gives away the connection for loads to the process as it runs now.
        bound: Counts the loads that wait.
        frame_loads_max: Most loads of one frame: they are answered together.
        on_failure: Called when the process turned out to have gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[], socket.socket],
        *,
        bound: SharedBound,
        frame_loads_max: int,
        on_failure: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._frame_loads_max = frame_loads_max
        self._on_broken = on_failure
        self.answered_count = 0
        self._channel = FrameChannel(
            loop, connect, owns_socket=True, on_answer=self._settle, on_failure=self._on_failure
        )
        self._waiting: FairQueue[_Waiting] = FairQueue(bound)
        self._asked: list[_Asked] = []
        self._is_flush_planned = False
        self._gathering: asyncio.TimerHandle | None = None
        self._gather_target = 1
        """Loads to gather: as many as were open at once, less after each gap."""
        self._submitted_count = 0
        self._round_start_s = 0.0
        self._is_busy = False
        """The last round of loads came thick."""
        self._is_closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, query: EncodedLoadQuery, *, namespace: str) -> asyncio.Future[EncodedLoadAnswer | LongLoad]:
        """Ask for a checkpoint. One whose future is cancelled in time is not asked for."""
        if self._is_closing:
            raise UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
        future: asyncio.Future[EncodedLoadAnswer | LongLoad] = self._loop.create_future()
        self._waiting.put(namespace, (query, future))
        self._idle.clear()
        self._note_submitted()
        self._plan_flush()
        return future

    def probe(self) -> asyncio.Future[ProbeAnswer]:
        """See `LoadLane`."""
        future: asyncio.Future[ProbeAnswer] = self._loop.create_future()
        self._waiting.add("", (ProbeQuery(), future))
        self._idle.clear()
        self._plan_flush()
        return future

    async def close(self) -> None:
        """Answer what was accepted, then let go of the connection."""
        self._is_closing = True
        if self._waiting:
            self._plan_flush()
        await self._idle.wait()
        self._channel.detach()

    def _note_submitted(self) -> None:
        self._submitted_count += 1
        open_count = len(self._waiting) + len(self._asked)
        self._gather_target = max(self._gather_target, min(open_count, GATHER_LOADS_MAX))
        if not self._submitted_count % ROUND_LOADS:
            now_s = self._loop.time()
            self._is_busy = now_s - self._round_start_s < ROUND_S
            self._round_start_s = now_s

    def _plan_flush(self) -> None:
        if self._is_flush_planned or self._asked:
            return
        if self._is_busy and len(self._waiting) < self._gather_target and not self._is_closing:
            if self._gathering is None:
                self._await_gap(is_quiet=False)
            return
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._is_flush_planned = True
        self._loop.call_soon(self._flush)

    def _await_gap(self, *, is_quiet: bool) -> None:
        count = self._submitted_count
        self._gathering = self._loop.call_later(GATHER_GAP_S, lambda: self._on_gap(count, is_quiet=is_quiet))

    def _on_gap(self, count: int, *, is_quiet: bool) -> None:
        """Look whether loads have come since. Twice: a loop that was held up runs its timers before it reads."""
        self._gathering = None
        if self._submitted_count != count or not is_quiet:
            self._await_gap(is_quiet=self._submitted_count == count)
            return
        self._gather_target = max(1, len(self._waiting), self._gather_target // 2)
        self._flush()

    def _flush(self) -> None:
        """Ask for all that waits, up to the bound, in one frame."""
        self._is_flush_planned = False
        while self._waiting and len(self._asked) < self._frame_loads_max:
            asked = self._waiting.pop()
            if not asked[1][1].cancelled():
                self._asked.append(asked)
        if not self._asked:
            self._idle.set()
            return
        try:
            self._channel.ask([query for _, (query, _) in self._asked])
        except Exception as error:  # noqa: BLE001 - the edge of a callback: it is the callers', who would wait for ever
            self._settle([error] * len(self._asked))

    def _settle(self, answers: Sequence[Any]) -> None:
        asked, self._asked = self._asked, []
        self.answered_count += len(asked)
        for (_, (_, future)), answer in zip(asked, answers, strict=True):
            if future.done() or isinstance(answer, frames.Postponed):
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        # In their order before all others, or large ones of a namespace would have those of another postponed for ever.
        for each, answer in zip(reversed(asked), reversed(answers), strict=True):
            if isinstance(answer, frames.Postponed):
                self._waiting.put_back(*each)
        if self._waiting:
            # Those that were answered just now often ask again in this turn of the loop.
            self._plan_flush()
        else:
            self._idle.set()

    def _on_failure(self, error: Exception) -> None:
        """Tell whoever was asking; the next one to ask connects to the successor."""
        _logger.error("reads failed with the storage process: %r", error)
        self._on_broken()
        failure = UnavailableError("NOT_SERVING", "the storage process ended; send the same call again")
        self._settle([failure] * len(self._asked))
