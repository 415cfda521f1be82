"""The front of an engine for asyncio: commands are queued, committed in groups by one thread, and answered together.

Called by the service, on the event loop. One writer thread owns every write of the engine: it takes all that is
queued (up to a bound), runs it as one durable transaction, and answers the whole batch with one wake-up of the
loop. While it commits, the next batch queues; no waiting is ever put in. Reads run in threads of their own
(`storage.read_lanes`). Nothing here knows gRPC or what a command means.

When the storage fails, the batch at hand is answered as of unknown outcome, everything else as not serving, and the
writer thread tries to reopen the engine until a commit has been flushed again.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from milepost_server.storage.port import Engine, LoadLane
from milepost_server.storage.read_lanes import ReadLane, run_each

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

COMMAND_OVERHEAD_BYTES: Final = 1024
"""What a queued command counts beside its request, so that the bytes bound the number of small ones too."""
SWEEP_UNDER_LOAD_S: Final = 1.0
"""While saves never pause, one slice of sweeping is run this often, so that the trash cannot grow for ever."""
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

        self._wake = threading.Condition(threading.Lock())
        # All of the following is guarded by `_wake`.
        self._state = _State.SERVING
        self._is_read_broken = False
        self._lanes: dict[str, deque[_Pending]] = {}
        self._turns: deque[str] = deque()
        """Namespaces that have something queued, each once; the first is served next."""
        self._queued_calls = 0
        self._queued_bytes = 0
        self._is_writer_waiting = False

        # Only the writer thread touches these.
        self._is_sweep_wanted = True
        self._sweep_timer_due_s = clock() + config.sweep_interval_s
        self._sweep_forced_due_s = clock() + SWEEP_UNDER_LOAD_S
        self._commit_count = 0
        self._command_count = 0

        self._loads: LoadLane = engine.load_lane(
            self._loop, calls_max=config.read_calls_max, on_failure=self._note_broken_read
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
        self._thread = threading.Thread(target=self._run, name="milepost-writer", daemon=True)
        self._thread.start()

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

    async def close(self) -> None:
        """Commit what was accepted, answer it, and end the threads. The engine stays open."""
        with self._wake:
            self._state = _State.CLOSING
            self._wake.notify_all()
        await asyncio.to_thread(self._thread.join)
        await self._loads.close()
        await self._scans.close()

    def _admit(self, namespace: str, pending: Sequence[_Pending], size_bytes: int) -> None:
        config = self._config
        with self._wake:
            if self._state is not _State.SERVING:
                raise _not_serving(self._state)
            if self._queued_calls >= config.calls_max:
                raise _queue_full("queue.calls_max", config.calls_max, self._queued_calls + 1, "calls")
            # A call that is alone always fits, whatever its overhead adds to a request of the largest size.
            if self._queued_bytes + size_bytes > config.bytes_max and self._queued_calls:
                raise _queue_full("queue.bytes_max", config.bytes_max, self._queued_bytes + size_bytes, "bytes")
            lane = self._lanes.get(namespace)
            if lane is None:
                lane = self._lanes[namespace] = deque()
                self._turns.append(namespace)
            lane.extend(pending)
            self._queued_calls += 1
            self._queued_bytes += size_bytes
            if self._is_writer_waiting:
                self._is_writer_waiting = False
                self._wake.notify()

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
            self._note_broken_read()
            raise _not_serving(_State.FAILED) from error

    def _check_readable(self) -> None:
        if self._state is _State.FAILED:
            raise _not_serving(self._state)

    def _note_broken_read(self) -> None:
        """Have the writer reopen the storage: it could not be read from."""
        with self._wake:
            self._is_read_broken = True
            self._wake.notify_all()

    # The writer thread.

    def _run(self) -> None:
        for batch in self._batches():
            try:
                outcomes = self._execute([pending.command for pending in batch], batch)
            except StorageFailedError as error:
                _logger.error("the storage failed in a commit of %d commands: %s", len(batch), error)
                self._fail(batch)
                self._recover()
                continue
            self._post(self._settle, batch, outcomes)
            if any(_leaves_trash(pending.command) for pending in batch):
                self._is_sweep_wanted = True

    def _batches(self) -> Iterator[list[_Pending]]:
        """Yield what to commit next, until the queue is drained after `close`. Sweeps and recovers in between."""
        while True:
            is_sweep_turn = False
            with self._wake:
                while not self._turns:
                    if self._is_read_broken or self._state is _State.CLOSING:
                        break
                    now_s = self._clock()
                    if now_s >= self._sweep_timer_due_s:
                        self._is_sweep_wanted = True
                    if self._is_sweep_wanted:
                        is_sweep_turn = True
                        break
                    self._is_writer_waiting = True
                    self._wake.wait(timeout=self._sweep_timer_due_s - now_s)
                    self._is_writer_waiting = False
                is_broken, self._is_read_broken = self._is_read_broken, False
                is_closing = self._state is _State.CLOSING
                if self._is_sweep_wanted and not is_closing and self._clock() >= self._sweep_forced_due_s:
                    is_sweep_turn = True
                batch = [] if is_sweep_turn or is_broken else self._take()
            if is_broken:
                self._fail([])
                self._recover()
            elif is_sweep_turn:
                self._sweep()
            elif batch:
                yield batch
            elif is_closing and not self._turns:
                return

    def _take(self) -> list[_Pending]:
        """Return the next batch: namespaces in turn, within each the oldest first. Called with `_wake` held."""
        config = self._config
        batch: list[_Pending] = []
        batch_bytes = 0
        while self._turns and len(batch) < config.batch_commands_max:
            namespace = self._turns[0]
            lane = self._lanes[namespace]
            pending = lane[0]
            is_alone = pending.size_bytes > config.alone_bytes
            if batch and (is_alone or batch_bytes + pending.size_bytes > config.batch_bytes_max):
                break
            lane.popleft()
            self._queued_bytes -= pending.size_bytes
            if pending.is_last:
                self._queued_calls -= 1
            self._turns.popleft()
            if lane:
                self._turns.append(namespace)
            else:
                del self._lanes[namespace]
            if pending.is_abandoned:
                continue
            batch.append(pending)
            batch_bytes += pending.size_bytes
            if is_alone:
                break
        return batch

    def _execute(self, commands: Sequence[Command], batch: Sequence[_Pending]) -> Sequence[Answer | StoreError]:
        """Run commands as one commit. Only `StorageFailedError` comes out."""
        observed: AbstractContextManager[object] = NO_OBSERVER
        if self._observer is not None:
            # The items of one call share what was captured; a link to it is wanted once.
            captured = {id(each.captured): each.captured for each in batch if each.captured is not None}
            observed = self._observer.committing(list(captured.values()), len(commands))
        try:
            with observed:
                outcomes = self._engine.execute(commands)
            if len(outcomes) != len(commands):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(commands)} commands")
        except StorageFailedError:
            raise
        except Exception:
            # The edge of the writer thread: whatever a defect raises, the other callers must be served.
            _logger.exception("a commit of %d commands ended in an unexpected error", len(commands))
            error = StoreError("INTERNAL_ERROR", "the server failed at this call; its log has the traceback")
            return [error] * len(commands)
        self._commit_count += 1
        self._command_count += len(commands)
        return outcomes

    def _sweep(self) -> None:
        try:
            outcome = self._execute([SweepCommand(rows_max=self._config.sweep_rows_max)], ())[0]
        except StorageFailedError as error:
            _logger.error("the storage failed while sweeping: %s", error)
            self._fail([])
            self._recover()
            return
        now_s = self._clock()
        self._sweep_forced_due_s = now_s + SWEEP_UNDER_LOAD_S
        # After an error the timer tries again: the trash can wait.
        self._is_sweep_wanted = isinstance(outcome, SweepAnswer) and outcome.has_more
        if not self._is_sweep_wanted:
            self._sweep_timer_due_s = now_s + self._config.sweep_interval_s
        if isinstance(outcome, StoreError):
            _logger.warning("sweeping failed, to be tried again: %s", outcome.message)

    def _fail(self, batch: Sequence[_Pending]) -> None:
        """Stop serving: the batch at hand has an unknown outcome, all that is queued has not been started."""
        with self._wake:
            if self._state is _State.SERVING:
                self._state = _State.FAILED
            queued = [pending for lane in self._lanes.values() for pending in lane]
            self._lanes.clear()
            self._turns.clear()
            self._queued_calls = 0
            self._queued_bytes = 0
        unknown: list[Answer | StoreError] = [_outcome_unknown() for _ in batch]
        refused: list[Answer | StoreError] = [_not_serving(_State.FAILED) for _ in queued]
        self._post(self._settle, batch, unknown)
        self._post(self._settle, queued, refused)
        self._post(self._on_health, False)

    def _recover(self) -> None:
        """Reopen the engine, however often it takes, and serve again; or return because of `close`."""
        delay_s = 0.0
        while True:
            with self._wake:
                if self._wake.wait_for(lambda: self._state is _State.CLOSING, timeout=delay_s):
                    return
            try:
                self._engine.reopen()
                probed = self._engine.execute([ProbeCommand()])[0]
                if isinstance(probed, StoreError):
                    raise probed
            except Exception as error:  # noqa: BLE001  (the edge of the thread: nothing else is left to do)
                delay_s = min(max(delay_s * 2, self._config.reopen_wait_min_s), self._config.reopen_wait_max_s)
                _logger.error("the storage is not back (%r); next try in %.1f s", error, delay_s)
                continue
            with self._wake:
                # Reads that failed meanwhile were those of the engine as it was.
                self._is_read_broken = False
                if self._state is _State.FAILED:
                    self._state = _State.SERVING
            _logger.warning("the storage is back: commits are flushed again")
            self._post(self._on_health, True)
            return

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed, so nobody is left to be told.
            _logger.debug("an answer came after the event loop had ended")

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
    return ResourceError(
        "QUEUE_FULL",
        f"the queue of commands is full: {found} {unit}, at most {allowed} are allowed ({limit}); try again shortly",
        {"limit": limit, "allowed": allowed, "found": found, "unit": unit},
        retry_after_s=RETRY_AFTER_S,
    )
