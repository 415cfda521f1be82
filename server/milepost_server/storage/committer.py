"""The front of an engine for asyncio: commands are queued, committed in groups, and answered together.

Called by the service, on the event loop, and itself only ever runs there. Where the engine runs is a lane's matter. A
thread of this process runs one batch at a time, and what queues meanwhile is the next one. Another process is handed
a few commands ahead, at once, so that it is never idle; what comes while it has these goes over together, with its next
answer. Either way that is the group commit, and no call ever waits for company. No more is under way than one commit
may take; the rest waits here, where namespaces take turns and whoever gives up in time is dropped. Nothing here knows
gRPC or what a command means.

When the storage fails, what is under way is answered as of unknown outcome, everything else as not serving, and a task
tries to reopen the engine until a commit has been flushed again. When it hangs, health says so and calls go on waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from milepost_server.config import QueueConfig
from milepost_server.errors import (
    OutcomeUnknownError,
    StorageFailedError,
    StoreError,
    UnavailableError,
    internal_error,
)
from milepost_server.model import (
    AbandonForkCommand,
    Answer,
    Command,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowCommand,
    EncodedBatchSaveAnswer,
    EncodedBatchSaveCommand,
    EncodedLoadAnswer,
    EncodedLoadQuery,
    EncodedSaveAnswer,
    LongLoad,
    ProbeCommand,
    ProbeQuery,
    PruneCommand,
    SaveAnswer,
    SweepAnswer,
    SweepCommand,
)
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage import encoded
from milepost_server.storage.encoded import CallCodec
from milepost_server.storage.port import CommandLane, Engine, LoadLane
from milepost_server.storage.read_lanes import ReadLane, run_each
from milepost_server.storage.reopen_backoff import ReopenBackoff
from milepost_server.storage.storage_health import CommitWatch, ReadWatch, StorageHealth, Trouble
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
LOADS_TAKEN_MAX: Final = 32
"""Point reads that are run together: they are answered together, so the first waits for the last."""
AHEAD_COMMANDS_MAX: Final = 8
"""Commands under way with which the storage has enough to do. What comes then could not be in the commit that runs, and
to hand it over by itself costs the event loop about as much as to read the call."""
RETRY_AFTER_S: Final = 0.2
"""What a caller is told to wait when the queue of commands is full: a few commits."""
READ_RETRY_AFTER_S: Final = 0.1
"""What a caller is told to wait when too many reads wait already."""

_LEAVES_TRASH = (AbandonForkCommand, DeleteIdsCommand, DeleteRunCommand, DeleteWorkflowCommand, PruneCommand)


class CommitObserver(Protocol):
    """What tracing wants to know of commits. Absent unless tracing is on, so that it costs nothing."""

    def capture(self) -> object | None:
        """Return what stands for the caller's span; called on the event loop, once for a call."""

    def committing(self, captured: Sequence[object], command_count: int) -> AbstractContextManager[object]:
        """Return a context that encloses a batch, from when it is handed over until it is on disk."""


class _State(enum.Enum):
    SERVING = "serving"
    FAILED = "waiting for its storage to come back"
    CLOSING = "draining"


class _Pending:
    """A call that waits for its turn, with the command that it comes to."""

    __slots__ = ("call_bytes", "captured", "command", "command_count", "future", "namespace", "series", "size_bytes")

    def __init__(
        self,
        command: Command,
        namespace: str,
        captured: object | None,
        *,
        future: asyncio.Future[Any],
        series: Generator[Command, Answer | StoreError, Any] | None,
        call_bytes: int,
    ) -> None:
        self.namespace = namespace
        self.call_bytes = call_bytes
        """What the whole call counts, one command or many."""
        self.captured = captured
        self.future = future
        self.series = series
        """Makes its further commands of the outcomes of those before; `None` where it has but one."""
        self._set_command(command)

    def _set_command(self, command: Command) -> None:
        self.command = command
        self.command_count = len(command.items) if isinstance(command, EncodedBatchSaveCommand) else 1
        """How many commands it counts as."""
        self.size_bytes = command.size_bytes + self.command_count * COMMAND_OVERHEAD_BYTES

    @property
    def is_abandoned(self) -> bool:
        """Nobody waits for it any more (cancelled, or past the deadline), so it need not be started.

        A series is never dropped: its callers were promised that a batch is run to its end.
        """
        return self.series is None and self.future.cancelled()

    def settle(self, outcome: Answer | StoreError) -> bool:
        """Tell the caller, or return true: there is another command to run. On the event loop only."""
        if self.series is None:
            self._tell(outcome)
            return False
        try:
            self._set_command(self.series.send(outcome))
        except StopIteration as end:
            self._tell(end.value)
            return False
        except Exception as error:  # noqa: BLE001 - it is the caller's, who would wait for ever
            self._tell(error)
            return False
        return True

    def fail(self, outcome: StoreError) -> None:
        """Tell the caller of a command's outcome, after which no other is run."""
        while self.settle(outcome):
            outcome = _not_serving(_State.FAILED)

    def _tell(self, outcome: Any) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class _Batch:
    """Commands that were handed over together."""

    __slots__ = (
        "_context",
        "_observed",
        "command_count",
        "commands",
        "is_alone",
        "is_given_up",
        "pending",
        "size_bytes",
    )

    def __init__(
        self,
        pending: Sequence[_Pending],
        commands: Sequence[Command],
        *,
        command_count: int,
        size_bytes: int,
        is_alone: bool,
    ) -> None:
        self.pending = pending
        self.commands = commands
        self.command_count = command_count
        self.size_bytes = size_bytes
        self.is_alone = is_alone
        self.is_given_up = False
        """Its callers have been told that its outcome is unknown."""
        self._observed: AbstractContextManager[object] | None = None
        self._context: contextvars.Context | None = None

    def observe(self, observed: AbstractContextManager[object]) -> None:
        # Batches overlap, so what an observer makes current must be so for this one alone.
        self._observed = observed
        self._context = contextvars.copy_context()
        self._context.run(observed.__enter__)

    def end_observing(self, error: BaseException | None) -> None:
        observed, self._observed = self._observed, None
        if observed is None or self._context is None:
            return
        if error is None:
            self._context.run(observed.__exit__, None, None, None)
            return
        # It lets the error pass, if it is a generator by raising it again.
        with contextlib.suppress(type(error)):
            self._context.run(observed.__exit__, type(error), error, error.__traceback__)


class Committer:
    """Runs commands of many callers on one engine, grouped into commits.

    Cancelling a returned future takes nothing back: it only stops waiting. A command that nobody waits for any more
    is dropped if it has not been started; the items of a batch run all the same.

    Args:
        engine: Its writes belong to this object from now on.
        config: Bounds of queues and batches, and the times of the sweeper.
        codec: Reads and writes the calls that come encoded, where the engine runs in this process.
        on_health: Told on the event loop whether the storage serves, each time that changes.
        observer: Sees commits, for tracing.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        config: QueueConfig,
        codec: CallCodec | None = None,
        on_health: Callable[[bool], None] = lambda is_serving: None,
        observer: CommitObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._config = config
        self._codec = codec
        self._observer = observer
        self._clock = clock
        self._loop = asyncio.get_running_loop()

        self._listeners: list[CommitListener] = []
        self._state = _State.SERVING
        self._health = StorageHealth(on_health)
        self._is_read_broken = False
        self._queues: dict[str, deque[_Pending]] = {}
        self._turns: deque[str] = deque()
        """Namespaces that have something queued, each once; the first is served next."""
        self._turns_owed: dict[str, int] = {}
        """Turns that such a namespace lets pass while others wait, since a slice of a batch took them at once."""
        self._queued_calls = SharedBound(
            "queue.calls_max", config.calls_max, what="calls wait for a commit", retry_after_s=RETRY_AFTER_S
        )
        self._queued_bytes = SharedBound(
            "queue.bytes_max",
            config.bytes_max,
            what="bytes wait for a commit",
            unit="bytes",
            retry_after_s=RETRY_AFTER_S,
        )
        self._is_planned = False
        self._context = contextvars.copy_context()
        """Of the callbacks: without it they would run in that of whichever call came first, and its span."""
        self._under_way: deque[_Batch] = deque()
        """Batches that were handed over and not answered, the oldest first."""
        self._under_way_commands = 0
        self._under_way_bytes = 0
        self._commit_watch = CommitWatch(
            self._loop, self._health, under_way=self._under_way, wait_max_s=config.commit_wait_max_s, clock=clock
        )
        self._recovery: asyncio.Task[None] | None = None
        self._backoff = ReopenBackoff(config, clock)
        self._closing = asyncio.Event()
        self._settled = asyncio.Event()
        """Nothing is queued or under way. Only waited for by `close`."""

        self._is_sweep_wanted = True
        self._damaged_places: dict[str, None] = {}
        self._is_sweeping = False
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_timer_due_s = clock() + config.sweep_interval_s
        self._sweep_forced_due_s = clock() + SWEEP_UNDER_LOAD_S

        self._commands: CommandLane = engine.command_lane(self._loop) or ThreadLane(
            self._loop, self._execute_here, engine.reopen
        )
        load_bound = SharedBound(
            "queue.read_calls_max", config.read_calls_max, what="Loads wait", retry_after_s=READ_RETRY_AFTER_S
        )
        self._loads: LoadLane = engine.load_lane(
            self._loop, bound=load_bound, on_failure=self._note_broken_read
        ) or ReadLane(
            "milepost-load", self._loop, self._load_each, threads=1, bound=load_bound, take_max=LOADS_TAKEN_MAX
        )
        self._scans = ReadLane(
            "milepost-scan",
            self._loop,
            run_each,
            threads=config.scan_threads,
            bound=SharedBound(
                "queue.scan_calls_max", config.scan_calls_max, what="long reads wait", retry_after_s=READ_RETRY_AFTER_S
            ),
            take_max=1,
        )
        read_watch = ReadWatch(
            self._loads,
            self._health,
            is_serving=lambda: self.is_serving,
            interval_s=config.probe_interval_s,
            wait_max_s=config.commit_wait_max_s,
        )
        self._watching_reads = self._loop.create_task(read_watch.run(), name="milepost-probe")
        self._plan()

    # For callers, on the event loop.

    @property
    def is_serving(self) -> bool:
        """Commands and reads are accepted."""
        return self._state is _State.SERVING

    def submit(self, command: Command, *, namespace: str) -> asyncio.Future[Answer]:
        """Queue a command and return its answer to come.

        Args:
            command: What to run.
            namespace: Whose turn it takes. Commands of one namespace run in the order they were submitted.

        Raises:
            ResourceError: `QUEUE_FULL`; nothing was queued.
            UnavailableError: `NOT_SERVING`; nothing was queued.
        """
        return self._admit(command, namespace, None, command.size_bytes + COMMAND_OVERHEAD_BYTES)

    def submit_series(
        self,
        series: Generator[Command, Answer | StoreError, _T],
        *,
        namespace: str,
        command_count: int,
        size_bytes: int,
    ) -> asyncio.Future[_T]:
        """Queue a call of several commands, and return its result to come.

        It is one call, and counts with all its bytes until it has ended: once accepted it never waits for room. Other
        calls come between its commands. All of them are run, also if the returned future is cancelled.

        Args:
            series: Yields the commands, at least one, each after the outcome of the one before; returns the result.
            namespace: Whose turns they take.
            command_count: How many commands the whole call counts as.
            size_bytes: Size of the whole call.

        Raises:
            ResourceError: `QUEUE_FULL`; nothing was queued.
            UnavailableError: `NOT_SERVING`; nothing was queued.
        """
        return self._admit(next(series), namespace, series, size_bytes + command_count * COMMAND_OVERHEAD_BYTES)

    def load(self, query: EncodedLoadQuery, *, namespace: str) -> asyncio.Future[EncodedLoadAnswer | LongLoad]:
        """Read one checkpoint off the event loop and off the writer, together with the others that wait.

        Raises:
            ResourceError: `QUEUE_FULL`.
            UnavailableError: `NOT_SERVING`.
        """
        self._check_readable()
        return self._loads.submit(query, namespace=namespace)

    def load_long(
        self, query: EncodedLoadQuery, position: tuple[int, int] | None, *, namespace: str
    ) -> asyncio.Future[EncodedLoadAnswer | LongLoad]:
        """Read one checkpoint that may take long to find, as `scan` does, from where `LongLoad` said that it goes on.

        Raises:
            ResourceError: `QUEUE_FULL`.
            UnavailableError: `NOT_SERVING`.
        """
        return self.scan(
            lambda: encoded.load(self._engine, self._known_codec(), query, is_long=True, position=position),
            namespace=namespace,
        )

    def scan(self, function: Callable[[], _T], *, namespace: str) -> asyncio.Future[_T]:
        """Run a read that may take long, apart from the short ones.

        Raises:
            ResourceError: `QUEUE_FULL`.
            UnavailableError: `NOT_SERVING`.
        """
        self._check_readable()
        return self._scans.submit(partial(self._read_guarded, function), namespace=namespace)

    def listen(self, listener: CommitListener) -> None:
        """Tell a listener of commits from now on."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """Commit what was accepted, answer it, and end the threads. The engine stays open."""
        self._state = _State.CLOSING
        self._closing.set()
        self._settled.clear()
        self._plan()
        if self._recovery is not None:
            await self._recovery
        await self._settled.wait()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._commit_watch.close()
        self._watching_reads.cancel()
        await asyncio.wait([self._watching_reads])
        await self._commands.close()
        await self._loads.close()
        await self._scans.close()

    def _admit(
        self,
        command: Command,
        namespace: str,
        series: Generator[Command, Answer | StoreError, Any] | None,
        call_bytes: int,
    ) -> asyncio.Future[Any]:
        if self._state is not _State.SERVING:
            raise _not_serving(self._state)
        self._queued_calls.take(namespace)
        try:
            self._queued_bytes.take(namespace, call_bytes)
        except StoreError:
            self._queued_calls.give_back(namespace)
            raise
        future: asyncio.Future[Any] = self._loop.create_future()
        captured = self._observer.capture() if self._observer is not None else None
        pending = _Pending(command, namespace, captured, future=future, series=series, call_bytes=call_bytes)
        self._queue(pending)
        self._plan()
        return future

    def _queue(self, pending: _Pending) -> None:
        """Have a call wait for its turn."""
        waiting = self._queues.get(pending.namespace)
        if waiting is None:
            waiting = self._queues[pending.namespace] = deque()
            self._turns.append(pending.namespace)
        waiting.append(pending)

    def _forget(self, pending: _Pending) -> None:
        """Count a call no more."""
        self._queued_calls.give_back(pending.namespace)
        self._queued_bytes.give_back(pending.namespace, pending.call_bytes)

    def _execute_here(self, commands: Sequence[Command]) -> Sequence[Answer | StoreError]:
        """Run a batch in the writer thread."""
        if self._codec is None:
            return self._engine.execute(commands)
        return encoded.execute(self._engine, self._codec, list(commands))

    def _load_each(self, queries: list[EncodedLoadQuery | ProbeQuery]) -> Sequence[object]:
        """Run what the thread of the loads took."""
        load = partial(encoded.load, self._engine, self._known_codec(), is_long=False)
        return run_each(
            [
                partial(
                    self._read_guarded,
                    self._engine.probe if isinstance(query, ProbeQuery) else partial(load, query),
                )
                for query in queries
            ]
        )

    def _known_codec(self) -> CallCodec:
        assert self._codec is not None
        return self._codec

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
        self._plan()

    # Handing over and answering, in callbacks of the event loop.

    def _plan(self) -> None:
        """Look at what is to be done in the next turn of the loop: calls that come in one turn go out as one batch."""
        if not self._is_planned:
            self._is_planned = True
            self._loop.call_soon(self._go_on, context=self._context)

    def _go_on(self) -> None:
        self._is_planned = False
        try:
            self._hand_over_all()
        except Exception as error:  # noqa: BLE001 - the edge of the callback
            self._note_defect(error)

    def _hand_over_all(self) -> None:
        """Hand over whatever the bounds allow. Does nothing while the storage is being reopened."""
        if self._recovery is not None:
            return
        if self._is_read_broken:
            # What is under way is answered first, or fails and starts the recovery itself.
            if not self._under_way:
                self._fail_and_recover()
            return
        while self._may_hand_over():
            if self._is_sweep_due():
                command = SweepCommand(rows_max=self._config.sweep_rows_max, passed_over=tuple(self._damaged_places))
                self._hand_over([], (command,))
                continue
            batch = self._take()
            if not batch:
                break
            self._hand_over(batch, [pending.command for pending in batch])
        if not self._under_way and not self._turns:
            self._settled.set()
            self._set_sweep_timer()

    def _may_hand_over(self) -> bool:
        if not self._under_way:
            return True
        return (
            self._commands.is_pipelined
            and not self._under_way[-1].is_alone
            and self._under_way_commands < min(AHEAD_COMMANDS_MAX, self._config.batch_commands_max)
        )

    def _take(self) -> list[_Pending]:
        """Return the next batch: namespaces in turn, within each the oldest first.

        What is under way counts against its bounds, since it may become one commit with it. A slice of a batch takes as
        many turns as it has commands.
        """
        config = self._config
        batch: list[_Pending] = []
        commands_left = config.batch_commands_max - self._under_way_commands
        bytes_left = config.batch_bytes_max - self._under_way_bytes
        is_first = not self._under_way
        while self._turns and commands_left > 0:
            namespace = self._turns[0]
            if self._turns_owed.get(namespace) and len(self._turns) > 1:
                self._turns_owed[namespace] -= 1
                self._turns.rotate(-1)
                continue
            waiting = self._queues[namespace]
            pending = waiting[0]
            is_alone = pending.size_bytes > config.alone_bytes
            if not is_first and (is_alone or pending.size_bytes > bytes_left or pending.command_count > commands_left):
                break
            waiting.popleft()
            if pending.series is None:
                self._forget(pending)
            self._turns.popleft()
            if waiting:
                self._turns.append(namespace)
                self._turns_owed[namespace] = pending.command_count - 1
            else:
                del self._queues[namespace]
                self._turns_owed.pop(namespace, None)
            if pending.is_abandoned:
                continue
            batch.append(pending)
            commands_left -= pending.command_count
            bytes_left -= pending.size_bytes
            is_first = False
            if is_alone:
                break
        return batch

    def _hand_over(self, pending: Sequence[_Pending], commands: Sequence[Command]) -> None:
        """Have commands run; those without anybody who waits are the sweeper's."""
        command_count = sum(each.command_count for each in pending) or len(commands)
        size_bytes = sum(each.size_bytes for each in pending)
        batch = _Batch(
            pending,
            commands,
            command_count=command_count,
            size_bytes=size_bytes,
            is_alone=size_bytes > self._config.alone_bytes,
        )
        if self._observer is not None:
            captured = [each.captured for each in pending if each.captured is not None]
            batch.observe(self._observer.committing(captured, command_count))
        if not pending:
            self._is_sweeping = True
        if not self._under_way:
            self._commit_watch.begin()
        self._under_way.append(batch)
        self._under_way_commands += command_count
        self._under_way_bytes += size_bytes
        self._commands.execute(commands).add_done_callback(partial(self._on_done, batch))

    def _on_done(self, batch: _Batch, future: asyncio.Future[Sequence[Answer | StoreError]]) -> None:
        try:
            error = None if future.cancelled() else future.exception()
            batch.end_observing(error)
            if batch.is_given_up:
                return
            if isinstance(error, StorageFailedError):
                _logger.error("the storage failed in a commit of %d commands: %s", len(batch.commands), error)
                self._fail_and_recover()
                return
            # Batches are answered in the order in which they were handed over.
            oldest = self._under_way.popleft()
            assert oldest is batch
            self._under_way_commands -= batch.command_count
            self._under_way_bytes -= batch.size_bytes
            self._commit_watch.note_answer()
            self._answer(batch, self._outcomes(batch, future, error))
            self._hand_over_all()
        except Exception as defect:  # noqa: BLE001 - the edge of the callback
            self._note_defect(defect)

    def _outcomes(
        self,
        batch: _Batch,
        future: asyncio.Future[Sequence[Answer | StoreError]],
        error: BaseException | None,
    ) -> Sequence[Answer | StoreError]:
        count = len(batch.commands)
        if error is not None:
            # Whatever a defect raises, the other callers must be served.
            told = internal_error(_logger, f"a commit of {count} commands ended in an unexpected error", error)
            self._tell_failure()
            return [told] * count
        outcomes = future.result()
        if len(outcomes) != count:
            _logger.error("%d outcomes for %d commands", len(outcomes), count)
            self._tell_failure()
            return [_outcome_unknown() for _ in batch.commands]
        return outcomes

    def _answer(self, batch: _Batch, outcomes: Sequence[Answer | StoreError]) -> None:
        self._tell(batch.commands, outcomes)
        if not batch.pending:
            self._note_swept(outcomes[0])
            return
        for pending, outcome in zip(batch.pending, outcomes, strict=True):
            command = pending.command
            if pending.settle(outcome):
                self._queue(pending)
            elif pending.series is not None:
                self._forget(pending)
            if not self._is_sweep_wanted and _leaves_trash(command, outcome):
                self._is_sweep_wanted = True

    # The sweeper's turns.

    def _is_sweep_due(self) -> bool:
        """Tell whether the sweeper's turn has come: with nothing to do, now and then under load, never at the end."""
        if self._state is _State.CLOSING or self._is_sweeping:
            return False
        is_idle = not self._turns and not self._under_way
        if is_idle and self._clock() >= self._sweep_timer_due_s:
            self._is_sweep_wanted = True
        return self._is_sweep_wanted and (is_idle or self._clock() >= self._sweep_forced_due_s)

    def _set_sweep_timer(self) -> None:
        if self._sweep_timer is None and self._state is not _State.CLOSING:
            timeout_s = max(0.0, self._sweep_timer_due_s - self._clock())
            self._sweep_timer = self._loop.call_later(timeout_s, self._on_sweep_timer)

    def _on_sweep_timer(self) -> None:
        self._sweep_timer = None
        self._is_sweep_wanted = True
        self._plan()

    def _note_swept(self, outcome: Answer | StoreError) -> None:
        self._is_sweeping = False
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

    # Failures.

    def _note_defect(self, error: Exception) -> None:
        """Refuse everything from now on: a defect of this class must not end in calls that wait for ever."""
        _logger.error("the committer ended in an unexpected error; the server must be started again", exc_info=error)
        self._fail()
        self._settled.set()

    def _fail_and_recover(self) -> None:
        self._fail()
        self._recovery = self._loop.create_task(self._recover_guarded(), name="milepost-recovery")

    def _fail(self) -> None:
        """Stop serving: what is under way has an unknown outcome, all that is queued has not been started."""
        if self._state is _State.SERVING:
            self._state = _State.FAILED
        under_way = list(self._under_way)
        queued = [pending for waiting in self._queues.values() for pending in waiting]
        self._queues.clear()
        self._turns.clear()
        self._turns_owed.clear()
        self._queued_calls.clear()
        self._queued_bytes.clear()
        self._under_way.clear()
        self._under_way_commands = 0
        self._under_way_bytes = 0
        self._is_sweeping = False
        for batch in under_way:
            batch.is_given_up = True
            for pending in batch.pending:
                pending.fail(_outcome_unknown())
        for pending in queued:
            pending.fail(_not_serving(_State.FAILED))
        self._tell_failure()
        self._health.begin(Trouble.DOWN)
        self._commit_watch.forget()

    async def _recover_guarded(self) -> None:
        try:
            await self._recover()
        except Exception as error:  # noqa: BLE001 - the edge of the task
            self._note_defect(error)
        finally:
            self._recovery = None
            self._plan()

    async def _recover(self) -> None:
        """Reopen the engine, however often it takes, and serve again; or return because of `close`."""
        self._backoff.note_failure()
        while True:
            await self._pause(self._backoff.delay_s)
            if self._state is _State.CLOSING:
                break
            try:
                await self._commands.reopen()
                probed = (await self._commands.execute([ProbeCommand()]))[0]
                if isinstance(probed, StoreError):
                    raise probed
            except Exception as error:  # noqa: BLE001 - the edge of the task: nothing else is left to do
                self._backoff.note_failed_try(error)
                continue
            self._backoff.note_back()
            # Reads that failed meanwhile were those of the engine as it was.
            self._is_read_broken = False
            _logger.warning("the storage is back: commits are flushed again")
            if self._state is _State.FAILED:
                self._state = _State.SERVING
                self._health.end(Trouble.DOWN)
            return
        self._is_read_broken = False

    async def _pause(self, delay_s: float) -> None:
        """Wait, but no longer than until `close`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._closing.wait()

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


def _leaves_trash(command: Command, outcome: Answer | StoreError) -> bool:
    return isinstance(command, _LEAVES_TRASH) or (
        any(each.is_replaced for each in outcome.stored)
        if isinstance(outcome, EncodedSaveAnswer | EncodedBatchSaveAnswer)
        else isinstance(outcome, SaveAnswer) and outcome.is_replaced
    )


def _not_serving(state: _State) -> UnavailableError:
    return UnavailableError("NOT_SERVING", f"the server is {state.value}; send the same call again")


def _outcome_unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError(
        "the storage failed during the commit: it may or may not be on disk; "
        "the same call with the same ids tells which, once the server serves again"
    )
