"""The front of an engine for asyncio: commands are queued, committed in groups, and answered together.

Called by the service, on the event loop, and itself only ever runs there. A task takes all that is queued (up to a
bound), has the engine run it as one durable transaction, and answers the whole batch. While that is committed the next
batch queues: that is the group commit, and a lone call never waits for company. Where the engine runs is a lane's
matter: a thread of this process or another process. Nothing here knows gRPC or what a command means.

When the storage fails, the batch at hand is answered as of unknown outcome, everything else as not serving, and the
task tries to reopen the engine until a commit has been flushed again.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final, Protocol, TypeVar

from milepost_server.config import QueueConfig
from milepost_server.errors import (
    OutcomeUnknownError,
    ResourceError,
    StorageFailedError,
    StoreError,
    UnavailableError,
    queue_full,
)
from milepost_server.model import (
    AbandonForkCommand,
    Answer,
    Command,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowCommand,
    LoadAnswer,
    LoadQuery,
    ProbeCommand,
    PruneCommand,
    SaveCommand,
    SweepAnswer,
    SweepCommand,
)
from milepost_server.storage.port import CommandLane, Engine, LoadLane
from milepost_server.storage.read_lanes import ReadLane, run_each
from milepost_server.storage.thread_lane import ThreadLane
from milepost_server.store_queue import CommitListener

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

COMMAND_OVERHEAD_BYTES: Final = 1024
"""What a queued command counts beside its request, so that the bytes bound the number of small ones too."""
DAMAGED_PLACES_MAX: Final = 1_000
"""Places that the sweeper passes over at once; with more damage than that it waits for the store to be mended."""
SWEEP_UNDER_LOAD_S: Final = 1.0
"""While saves never pause, one slice of sweeping is run this often, so that the trash cannot grow for ever."""
BUSY_COMMANDS_MIN: Final = 4
"""A commit of so many commands says that many callers are at work."""
LOADS_TAKEN_MAX: Final = 32
"""Point reads that are run together: they are answered together, so the first waits for the last."""
RETRY_AFTER_S: Final = 0.2
"""What a caller is told to wait when a queue is full: a few commits."""
NO_OBSERVER: Final = nullcontext()

_LEAVES_TRASH = (AbandonForkCommand, DeleteIdsCommand, DeleteRunCommand, DeleteWorkflowCommand, PruneCommand)


class CommitObserver(Protocol):
    """What tracing wants to know of commits. Absent unless tracing is on, so that it costs nothing."""

    def capture(self) -> object | None:
        """Return what stands for the caller's span; called on the event loop, once for a call."""

    def committing(self, captured: Sequence[object], command_count: int) -> AbstractContextManager[object]:
        """Return a context that encloses one commit; called in the writer thread."""


class _State(enum.Enum):
    SERVING = "serving"
    FAILED = "waiting for its storage to come back"
    CLOSING = "draining"


class _Group:
    """The commands of one call: how many are not answered yet, and what the others were."""

    __slots__ = ("future", "open_count", "outcomes")

    def __init__(self, future: asyncio.Future[list[Answer | StoreError]], count: int) -> None:
        self.future = future
        self.open_count = count
        self.outcomes: list[Answer | StoreError | None] = [None] * count


class _Pending:
    """A queued command. It has either a future of its own, or a place in a group."""

    __slots__ = ("captured", "command", "future", "group", "index", "is_last", "size_bytes")

    def __init__(
        self,
        command: Command,
        size_bytes: int,
        captured: object | None,
        *,
        future: asyncio.Future[Answer] | None = None,
        group: _Group | None = None,
        index: int = 0,
        is_last: bool = True,
    ) -> None:
        self.command = command
        self.size_bytes = size_bytes
        self.captured = captured
        self.future = future
        self.group = group
        self.index = index
        self.is_last = is_last

    @property
    def is_abandoned(self) -> bool:
        """Nobody waits for it any more (cancelled, or past the deadline), so it need not be started.

        Items of a batch are never dropped: one that another builds on must not be left out.
        """
        return self.future is not None and self.future.cancelled()

    def settle(self, outcome: Answer | StoreError) -> None:
        """Tell the caller. On the event loop only."""
        if self.future is not None:
            if self.future.done():
                return
            if isinstance(outcome, StoreError):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        elif self.group is not None:
            group = self.group
            group.outcomes[self.index] = outcome
            group.open_count -= 1
            if group.open_count == 0 and not group.future.done():
                group.future.set_result([each for each in group.outcomes if each is not None])


class Committer:
    """Runs commands of many callers on one engine, grouped into commits.

    Cancelling a returned future takes nothing back: it only stops waiting. A command that nobody waits for any more
    is dropped if it has not been started; the items of a batch run all the same.

    Args:
        engine: Its writes belong to this object from now on.
        config: Bounds of queues and batches, and the times of the sweeper.
        on_health: Told on the event loop whether the storage serves, each time that changes.
        observer: Sees commits, for tracing.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        config: QueueConfig,
        on_health: Callable[[bool], None] = lambda is_serving: None,
        observer: CommitObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._config = config
        self._on_health = on_health
        self._observer = observer
        self._clock = clock
        self._loop = asyncio.get_running_loop()

        self._listeners: list[CommitListener] = []
        self._state = _State.SERVING
        self._is_read_broken = False
        self._queues: dict[str, deque[_Pending]] = {}
        self._turns: deque[str] = deque()
        """Namespaces that have something queued, each once; the first is served next."""
        self._queued_calls = 0
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        """Something was queued, the state has changed, or a read has failed."""

        self._is_sweep_wanted = True
        self._damaged_places: dict[str, None] = {}
        self._sweep_timer_due_s = clock() + config.sweep_interval_s
        self._sweep_forced_due_s = clock() + SWEEP_UNDER_LOAD_S
        self._commit_count = 0
        self._last_commit_size = 0
        self._command_count = 0

        self._commands: CommandLane = engine.command_lane(self._loop) or ThreadLane(engine)
        self._loads: LoadLane = engine.load_lane(
            self._loop, calls_max=config.read_calls_max, gather_s=config.gather_s, on_failure=self._note_broken_read
        ) or ReadLane(
            "milepost-load",
            self._loop,
            self._load_each,
            threads=1,
            queue_max=config.read_calls_max,
            take_max=LOADS_TAKEN_MAX,
        )
        self._scans = ReadLane(
            "milepost-scan",
            self._loop,
            run_each,
            threads=config.scan_threads,
            queue_max=config.scan_calls_max,
            take_max=1,
        )
        self._task = self._loop.create_task(self._run_guarded(), name="milepost-committer")

    # For callers, on the event loop.

    @property
    def is_serving(self) -> bool:
        """Commands and reads are accepted."""
        return self._state is _State.SERVING

    def statistics(self) -> dict[str, int]:
        """Return counts since the start and what is queued now."""
        return {
            "commits": self._commit_count,
            "commands": self._command_count,
            "queued_calls": self._queued_calls,
            "queued_bytes": self._queued_bytes,
        }

    def submit(self, command: Command, *, namespace: str) -> asyncio.Future[Answer]:
        """Queue a command and return its answer to come.

        Args:
            command: What to run.
            namespace: Whose turn it takes. Commands of one namespace run in the order they were submitted.

        Raises:
            ResourceError: `QUEUE_FULL`; nothing was queued.
            UnavailableError: `NOT_SERVING`; nothing was queued.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        captured = self._observer.capture() if self._observer is not None else None
        size_bytes = command.size_bytes + COMMAND_OVERHEAD_BYTES
        self._admit(namespace, (_Pending(command, size_bytes, captured, future=future),), size_bytes)
        return future

    def submit_many(self, commands: Sequence[Command], *, namespace: str) -> asyncio.Future[list[Answer | StoreError]]:
        """Queue commands in order, all or none, and return their outcomes to come.

        They count as one call, and with all their bytes: a batch that is accepted never waits for room half-way.

        Raises:
            ResourceError: `QUEUE_FULL`; nothing was queued.
            UnavailableError: `NOT_SERVING`; nothing was queued.
        """
        future: asyncio.Future[list[Answer | StoreError]] = self._loop.create_future()
        if not commands:
            future.set_result([])
            return future
        captured = self._observer.capture() if self._observer is not None else None
        group = _Group(future, len(commands))
        last = len(commands) - 1
        pending = [
            _Pending(
                command,
                command.size_bytes + COMMAND_OVERHEAD_BYTES,
                captured,
                group=group,
                index=index,
                is_last=index == last,
            )
            for index, command in enumerate(commands)
        ]
        self._admit(namespace, pending, sum(each.size_bytes for each in pending))
        return future

    def load(self, query: LoadQuery) -> asyncio.Future[LoadAnswer]:
        """Read one checkpoint off the event loop and off the writer, together with the others that wait.

        Raises:
            ResourceError: `QUEUE_FULL`.
            UnavailableError: `NOT_SERVING`.
        """
        self._check_readable()
        return self._loads.submit(query)

    def scan(self, function: Callable[[], _T]) -> asyncio.Future[_T]:
        """Run a read that may take long, apart from the short ones.

        Raises:
            ResourceError: `QUEUE_FULL`.
            UnavailableError: `NOT_SERVING`.
        """
        self._check_readable()
        return self._scans.submit(partial(self._read_guarded, function))

    def listen(self, listener: CommitListener) -> None:
        """Tell a listener of commits from now on."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """Commit what was accepted, answer it, and end the threads. The engine stays open."""
        self._state = _State.CLOSING
        self._wake.set()
        await self._task
        await self._commands.close()
        await self._loads.close()
        await self._scans.close()

    def _admit(self, namespace: str, pending: Sequence[_Pending], size_bytes: int) -> None:
        config = self._config
        if self._state is not _State.SERVING:
            raise _not_serving(self._state)
        if self._queued_calls >= config.calls_max:
            raise _queue_full("queue.calls_max", config.calls_max, self._queued_calls + 1, "calls")
        # A call that is alone always fits, whatever its overhead adds to a request of the largest size.
        if self._queued_bytes + size_bytes > config.bytes_max and self._queued_calls:
            raise _queue_full("queue.bytes_max", config.bytes_max, self._queued_bytes + size_bytes, "bytes")
        waiting = self._queues.get(namespace)
        if waiting is None:
            waiting = self._queues[namespace] = deque()
            self._turns.append(namespace)
        waiting.extend(pending)
        self._queued_calls += 1
        self._queued_bytes += size_bytes
        self._wake.set()

    def _load_each(self, queries: list[LoadQuery]) -> Sequence[object]:
        """Run what the thread of the loads took."""
        return run_each([partial(self._read_guarded, partial(self._engine.load, query)) for query in queries])

    def _read_guarded(self, function: Callable[[], _T]) -> _T:
        """Run a read, unless the storage has gone down since it was asked for."""
        self._check_readable()
        try:
            return function()
        except StorageFailedError as error:
            _logger.error("a read failed with the storage: %s", error)
            self._loop.call_soon_threadsafe(self._note_broken_read)
            raise _not_serving(_State.FAILED) from error

    def _check_readable(self) -> None:
        if self._state is _State.FAILED:
            raise _not_serving(self._state)

    def _note_broken_read(self) -> None:
        """Have the storage reopened: it could not be read from."""
        self._is_read_broken = True
        self._wake.set()

    # The task.

    async def _run_guarded(self) -> None:
        """Run until `close`. A defect of this class ends in refusals, and not in calls that wait for ever."""
        try:
            await self._run()
        except Exception:
            _logger.exception("the committer ended in an unexpected error; the server must be started again")
            self._fail([])

    async def _run(self) -> None:
        while True:
            if self._is_read_broken:
                self._fail([])
                await self._recover()
            elif self._is_sweep_due():
                await self._sweep()
            elif self._turns:
                await self._gather()
                await self._commit(self._take())
            elif self._state is _State.CLOSING:
                return
            else:
                await self._wait()

    async def _gather(self) -> None:
        """After a commit that served several callers, let their next calls arrive, for they come together.

        Commits are grouped well without this pause. But calls that are answered together come back together, and the
        network side handles a burst of calls for much less than as many single ones. A lone caller never waits.
        """
        if self._last_commit_size < BUSY_COMMANDS_MIN or not self._config.gather_s:
            return
        await asyncio.sleep(self._config.gather_s)

    async def _wait(self) -> None:
        """Return when something was queued, or the timer of the sweeper has run out."""
        self._wake.clear()
        if self._turns or self._is_read_broken or self._state is _State.CLOSING:
            return
        timeout_s = max(0.0, self._sweep_timer_due_s - self._clock())
        timer = self._loop.call_later(timeout_s, self._on_sweep_timer)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _on_sweep_timer(self) -> None:
        self._is_sweep_wanted = True
        self._wake.set()

    def _is_sweep_due(self) -> bool:
        """Tell whether the sweeper's turn has come: with nothing queued, now and then under load, never at the end."""
        if self._state is _State.CLOSING:
            return False
        if not self._turns and self._clock() >= self._sweep_timer_due_s:
            self._is_sweep_wanted = True
        return self._is_sweep_wanted and (not self._turns or self._clock() >= self._sweep_forced_due_s)

    def _take(self) -> list[_Pending]:
        """Return the next batch: namespaces in turn, within each the oldest first."""
        config = self._config
        batch: list[_Pending] = []
        batch_bytes = 0
        while self._turns and len(batch) < config.batch_commands_max:
            namespace = self._turns[0]
            waiting = self._queues[namespace]
            pending = waiting[0]
            is_alone = pending.size_bytes > config.alone_bytes
            if batch and (is_alone or batch_bytes + pending.size_bytes > config.batch_bytes_max):
                break
            waiting.popleft()
            self._queued_bytes -= pending.size_bytes
            if pending.is_last:
                self._queued_calls -= 1
            self._turns.popleft()
            if waiting:
                self._turns.append(namespace)
            else:
                del self._queues[namespace]
            if pending.is_abandoned:
                continue
            batch.append(pending)
            batch_bytes += pending.size_bytes
            if is_alone:
                break
        return batch

    async def _commit(self, batch: list[_Pending]) -> None:
        if not batch:
            # All that was queued has been given up by its callers.
            return
        commands = [pending.command for pending in batch]
        try:
            outcomes = await self._execute(commands, batch)
        except StorageFailedError as error:
            _logger.error("the storage failed in a commit of %d commands: %s", len(batch), error)
            self._fail(batch)
            await self._recover()
            return
        self._tell(commands, outcomes)
        self._settle(batch, outcomes)
        if not self._is_sweep_wanted and any(_leaves_trash(pending.command) for pending in batch):
            self._is_sweep_wanted = True

    async def _execute(self, commands: Sequence[Command], batch: Sequence[_Pending]) -> Sequence[Answer | StoreError]:
        """Run commands as one commit. Only `StorageFailedError` comes out."""
        observed: AbstractContextManager[object] = NO_OBSERVER
        if self._observer is not None:
            # The items of one call share what was captured; a link to it is wanted once.
            captured = {id(each.captured): each.captured for each in batch if each.captured is not None}
            observed = self._observer.committing(list(captured.values()), len(commands))
        outcomes: Sequence[Answer | StoreError] | None = None
        try:
            with observed:
                outcomes = await self._commands.execute(commands)
            if len(outcomes) != len(commands):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(commands)} commands")
        except StorageFailedError:
            raise
        except Exception:
            # The edge of the task: whatever a defect raises, the other callers must be served.
            _logger.exception("a commit of %d commands ended in an unexpected error", len(commands))
            self._tell_failure()
            if outcomes is not None:
                return [_outcome_unknown() for _ in commands]
            error = StoreError("INTERNAL_ERROR", "the server failed at this call; its log has the traceback")
            return [error] * len(commands)
        self._commit_count += 1
        self._last_commit_size = len(commands)
        self._command_count += len(commands)
        return outcomes

    async def _sweep(self) -> None:
        command = SweepCommand(rows_max=self._config.sweep_rows_max, passed_over=tuple(self._damaged_places))
        try:
            outcome = (await self._execute([command], ()))[0]
        except StorageFailedError as error:
            _logger.error("the storage failed while sweeping: %s", error)
            self._fail([])
            await self._recover()
            return
        self._tell([command], [outcome])
        now_s = self._clock()
        self._sweep_forced_due_s = now_s + SWEEP_UNDER_LOAD_S
        place = outcome.metadata.get("place") if isinstance(outcome, StoreError) else None
        if place is not None and len(self._damaged_places) < DAMAGED_PLACES_MAX:
            # What lies there takes space until the store is mended; the rest is freed.
            self._damaged_places[str(place)] = None
            self._is_sweep_wanted = True
        else:
            # After any other error the timer tries again: the trash can wait.
            self._is_sweep_wanted = isinstance(outcome, SweepAnswer) and outcome.has_more
        if not self._is_sweep_wanted:
            self._sweep_timer_due_s = now_s + self._config.sweep_interval_s
        if isinstance(outcome, StoreError):
            then = "to be tried again" if place is None else "passed over until the next start"
            _logger.warning("sweeping failed, %s: %s", then, outcome.message)

    def _fail(self, batch: Sequence[_Pending]) -> None:
        """Stop serving: the batch at hand has an unknown outcome, all that is queued has not been started."""
        if self._state is _State.SERVING:
            self._state = _State.FAILED
        queued = [pending for waiting in self._queues.values() for pending in waiting]
        self._queues.clear()
        self._turns.clear()
        self._queued_calls = 0
        self._queued_bytes = 0
        self._settle(batch, [_outcome_unknown() for _ in batch])
        self._settle(queued, [_not_serving(_State.FAILED) for _ in queued])
        self._tell_failure()
        self._on_health(False)

    async def _recover(self) -> None:
        """Reopen the engine, however often it takes, and serve again; or return because of `close`."""
        delay_s = 0.0
        while self._state is not _State.CLOSING:
            try:
                await self._commands.reopen()
                probed = (await self._commands.execute([ProbeCommand()]))[0]
                if isinstance(probed, StoreError):
                    raise probed
            except Exception as error:  # noqa: BLE001 - the edge of the task: nothing else is left to do
                delay_s = min(max(delay_s * 2, self._config.reopen_wait_min_s), self._config.reopen_wait_max_s)
                _logger.error("the storage is not back (%r); next try in %.1f s", error, delay_s)
                await self._pause(delay_s)
                continue
            # Reads that failed meanwhile were those of the engine as it was.
            self._is_read_broken = False
            _logger.warning("the storage is back: commits are flushed again")
            if self._state is _State.FAILED:
                self._state = _State.SERVING
                self._on_health(True)
            return
        self._is_read_broken = False

    async def _pause(self, delay_s: float) -> None:
        """Wait, but no longer than until `close`."""
        give_up_s = self._loop.time() + delay_s
        while self._state is not _State.CLOSING and (left_s := give_up_s - self._loop.time()) > 0:
            self._wake.clear()
            timer = self._loop.call_later(left_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def _tell(self, commands: Sequence[Command], outcomes: Sequence[Answer | StoreError]) -> None:
        for listener in self._listeners:
            try:
                listener.on_commit(commands, outcomes)
            except Exception:
                # A defect: whoever waits for the commit must be answered all the same.
                _logger.exception("a listener of commits failed")

    def _tell_failure(self) -> None:
        for listener in self._listeners:
            listener.on_failure()

    @staticmethod
    def _settle(batch: Sequence[_Pending], outcomes: Sequence[Answer | StoreError]) -> None:
        for pending, outcome in zip(batch, outcomes, strict=True):
            pending.settle(outcome)


def _leaves_trash(command: Command) -> bool:
    return isinstance(command, _LEAVES_TRASH) or (isinstance(command, SaveCommand) and command.is_replace)


def _not_serving(state: _State) -> UnavailableError:
    return UnavailableError("NOT_SERVING", f"the server is {state.value}; send the same call again")


def _outcome_unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError(
        "the storage failed during the commit: it may or may not be on disk; "
        "the same call with the same ids tells which, once the server serves again"
    )


def _queue_full(limit: str, allowed: int, found: int, unit: str) -> ResourceError:
    return queue_full(
        f"the queue of commands is full: {found} {unit}, at most {allowed} are allowed ({limit}); try again shortly",
        limit=limit,
        allowed=allowed,
        found=found,
        unit=unit,
        retry_after_s=RETRY_AFTER_S,
    )
