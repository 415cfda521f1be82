"""Carries out an engine's effects on an event loop: async steps as tasks, sync steps in daemon threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from milepost._async import _compat
from milepost._leases import RELEASE_S
from milepost.errors import DefinitionNotFoundError, MilepostError
from milepost.runner import crash_points, tracing
from milepost.runner.async_save_queue import AsyncSaveQueue
from milepost.runner.attempt import STEP_ENDS, Attempt
from milepost.runner.engine import Engine
from milepost.runner.events import (
    SIGNALS_MAX,
    AcquireLease,
    AppendRecords,
    AttemptEnded,
    CancelAttempt,
    Drain,
    Enqueue,
    Event,
    Flow,
    Leave,
    LoadAncestor,
    LoadHead,
    LoadManifest,
    NextEvent,
    QueueFailed,
    ReadSignals,
    SaveCheckpoint,
    SignalsPending,
    Sleep,
    StartAttempt,
    StopRequested,
    SuspendRequested,
)
from milepost.runner.lease_keeper import Hold, LeaseKeeper
from milepost.runner.settings import MOVED_CLOCK_CHECK_S, Environment, Settings
from milepost.runner.threads import DaemonThreads
from milepost.types import Checkpoint, LeaseInfo, Saved, Signal

__all__ = ["AsyncDriver"]

T = TypeVar("T")


class AsyncDriver:
    """Runs one engine, once, on the loop it was made in. See `SyncDriver`."""

    def __init__(
        self,
        engine: Engine[Any],
        store: Any,
        *,
        settings: Settings,
        environment: Environment,
        threads: DaemonThreads,
        keeper: LeaseKeeper | None,
        parent: AsyncDriver | None = None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._environment = environment
        self._threads = threads
        self._keeper = keeper
        self._parent = parent
        self._loop = loop
        self._workflow_id = engine.frame.workflow_id
        self._hold: Hold | None = parent._hold if parent is not None else None  # noqa: SLF001  of one run
        self._events: deque[Event] = deque()
        self._signals: SignalsPending | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._tasks: dict[Attempt, asyncio.Task[Any] | None] = {}
        self._queue: AsyncSaveQueue | None = None
        self._children: set[AsyncDriver] = set()
        self._suspended: SuspendRequested | None = None
        # Those that never wait are called, the others awaited.
        self._orders: dict[type[Any], Callable[[Any], None]] = {
            StartAttempt: self._start_attempt,
            CancelAttempt: self._cancel_attempt,
        }
        self._requests: dict[type[Any], Callable[[Any], Awaitable[Any]]] = {
            NextEvent: self._next_event,
            SaveCheckpoint: self._save,
            AppendRecords: self._append_records,
            Enqueue: self._enqueue,
            Drain: self._drain,
            Sleep: self._sleep,
            AcquireLease: self._acquire_lease,
            LoadHead: self._load_head,
            LoadAncestor: self._load_ancestor,
            LoadManifest: self._load_manifest,
            ReadSignals: self._read_signals,
        }

    def post(self, event: Event) -> None:
        """Tell the run of something. May be called from any thread."""
        # A loop that is closed has no run to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, event)
        if isinstance(event, SuspendRequested):
            self._suspended = event
            for child in [*self._children]:
                child.post(event)

    def begin_with(self, event: SuspendRequested) -> None:
        """Tell the run of something before it begins, on its loop: a store that never waits lets it begin first."""
        self._deliver(event)
        self._suspended = event

    def adopt(self, child: AsyncDriver) -> None:
        """Pass on to a nested run what the whole run is told, from now on and of what it was told."""
        self._children.add(child)
        if self._suspended is not None:
            child.begin_with(self._suspended)

    def disown(self, child: AsyncDriver) -> None:
        """Note that a nested run has ended."""
        self._children.discard(child)

    def stop(self) -> None:
        """Have a nested run end, because the step it belongs to was asked to. May be called from any thread."""
        self.post(StopRequested())

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow of the engine to its end, and give back what it holds, however it ends."""
        failure: BaseException | None = None
        try:
            effect = next(flow)
            while True:
                kind = type(effect)
                try:
                    order = self._orders.get(kind)
                    if order is not None:
                        answer = order(effect)
                    else:
                        answer = await self._requests[kind](effect)
                except Exception as error:  # noqa: BLE001  the engine decides what a failed effect means
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except BaseException as error:
            failure = error
            raise
        finally:
            await self._leave(failure)

    async def _leave(self, failure: BaseException | None) -> None:
        await self._end_attempts(failure)
        if self._queue is not None:
            self._queue.close()
        if self._parent is not None:
            return
        if self._hold is not None and self._keeper is not None:
            self._keeper.drop(self._hold)
        leave = self._engine.leaving(failure)
        if leave is not None:
            await _compat.to_its_end(lambda: self._give_back(leave))

    async def _give_back(self, leave: Leave) -> None:
        try:
            async with asyncio.timeout(RELEASE_S):
                if leave.parting is not None:
                    await self._append_records(leave.parting)
                await self._store.release_lease(self._workflow_id, self._engine.lease_token)
        except (MilepostError, TimeoutError) as problem:
            self._engine.lease_stays(problem)

    async def _end_attempts(self, failure: BaseException | None) -> None:
        """Cancel what still runs, and after an error give it the time to end: whoever calls next may start it again."""
        for attempt, task in self._tasks.items():
            attempt.context._cancel()  # noqa: SLF001  the driver's side of a context
            if task is not None:
                task.cancel()
        if failure is None:
            return
        if not isinstance(failure, Exception):
            # The run itself was cancelled: threads, which may not listen, do not hold that up.
            self._tasks = {attempt: task for attempt, task in self._tasks.items() if task is not None}
        give_up_at = self._loop.time() + self._settings.grace_s
        while self._tasks and (left_s := give_up_at - self._loop.time()) > 0:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, AttemptEnded):
                    self._tasks.pop(event.attempt, None)
            if self._tasks:
                await self._wait_for_bell(left_s)

    # Waiting.

    def _deliver(self, event: Event) -> None:
        if isinstance(event, SignalsPending):
            # The newest says it all: those of a step that runs for days do not pile up.
            self._signals = event
        else:
            self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next_event(self, effect: NextEvent) -> Event | None:
        until = effect.until
        while True:
            if self._events:
                return self._taken(self._events.popleft())
            if self._signals is not None:
                signals, self._signals = self._signals, None
                return signals
            wait_s: float | None = None
            if until is not None and until != float("inf"):
                wait_s = until - self._environment.clock()
                if wait_s <= 0:
                    return None
            await self._wait(wait_s)

    def _taken(self, event: Event) -> Event:
        if isinstance(event, AttemptEnded):
            self._tasks.pop(event.attempt, None)
            if self._hold is not None:
                self._hold.ended(event.attempt)
            if event.error is not None and not isinstance(event.error, STEP_ENDS):
                raise event.error
        return event

    async def _wait(self, wait_s: float | None) -> None:
        sleep = self._environment.sleep
        if sleep is not None and wait_s is not None:
            if not self._tasks:
                sleep(wait_s)
                await asyncio.sleep(0)
                return
            wait_s = MOVED_CLOCK_CHECK_S
        await self._wait_for_bell(wait_s)

    async def _wait_for_bell(self, wait_s: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = None if wait_s is None else self._loop.call_later(wait_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    async def _sleep(self, effect: Sleep) -> None:
        if self._environment.sleep is None:
            await asyncio.sleep(effect.seconds)
        else:
            self._environment.sleep(effect.seconds)

    # Steps.

    def _start_attempt(self, effect: StartAttempt) -> None:
        attempt = effect.attempt
        if self._hold is not None:
            self._hold.began(attempt)
        if attempt.step.is_async:
            task = self._loop.create_task(attempt.run_async(), name=f"milepost step {attempt.step.id}")
            self._tasks[attempt] = task
            task.add_done_callback(lambda done: self._deliver(_ended(attempt, done)))
            return
        self._tasks[attempt] = None
        surroundings = contextvars.copy_context()
        self._threads.run(lambda: self._report(attempt, surroundings))

    def _report(self, attempt: Attempt, surroundings: contextvars.Context) -> None:
        try:
            ended = AttemptEnded(attempt, surroundings.run(attempt.run))
        except BaseException as error:  # noqa: BLE001  raised again in the run's own task, if it is no step's end
            ended = AttemptEnded(attempt, error=error)
        self.post(ended)

    def _cancel_attempt(self, effect: CancelAttempt) -> None:
        effect.attempt.context._cancel()  # noqa: SLF001  the driver's side of a context
        task = self._tasks.get(effect.attempt)
        if task is not None:
            task.cancel()

    # The store.

    async def _acquire_lease(self, effect: AcquireLease) -> LeaseInfo:
        asked_at = self._environment.clock()
        lease: LeaseInfo = await self._store.acquire_lease(
            self._workflow_id,
            ttl_s=effect.ttl_s,
            wait_s=effect.wait_s,
            holder=self._settings.holder,
            request_id=effect.request_id,
        )
        if self._keeper is not None:
            if self._hold is not None:
                self._keeper.drop(self._hold)
            self._hold = self._keeper.hold(self._workflow_id, lease.token, asked_at, self.post)
        return lease

    async def _load_head(self, effect: LoadHead) -> Checkpoint:
        with tracing.load_span(self._workflow_id, effect.scope):
            head: Checkpoint = await self._store.load(self._workflow_id, scope=effect.scope)
        return head

    async def _load_ancestor(self, effect: LoadAncestor) -> Checkpoint:
        found: Checkpoint = await self._store.load(
            self._workflow_id, scope=effect.scope, checkpoint_id=effect.checkpoint_id, with_state=effect.with_state
        )
        return found

    async def _load_manifest(self, effect: LoadManifest) -> str:
        read = getattr(self._store, "definition_manifest", None)
        if read is None:
            raise DefinitionNotFoundError("this store keeps no definitions", workflow_id=self._workflow_id)
        text: str = await read(effect.fingerprint)
        return text

    async def _read_signals(self, effect: ReadSignals) -> list[Signal]:
        found: list[Signal] = []
        async for signal in self._store.signals(self._workflow_id, name=effect.name):
            found.append(signal)
            if len(found) == SIGNALS_MAX:
                break
        return found

    async def _save(self, effect: SaveCheckpoint) -> Saved:
        if crash_points.armed:
            crash_points.check("before", effect.arguments)
        asked_at = self._environment.clock()
        with tracing.save_span(self._workflow_id, effect.arguments):
            saved: Saved = await self._store.save(self._workflow_id, **effect.arguments)
        if self._hold is not None:
            if effect.arguments.get("release_lease") and self._keeper is not None:
                self._keeper.drop(self._hold)
            elif not saved.replayed:
                self._hold.renewed(asked_at)
        if self._parent is not None and saved.pending_signal_count:
            self._tell_root(SignalsPending(saved.pending_signals, saved.pending_signal_count))
        if crash_points.armed:
            crash_points.check("after", effect.arguments)
        return saved

    async def _append_records(self, effect: AppendRecords) -> Any:
        arguments: dict[str, Any] = {"scope": effect.scope, "require_checkpoint": True}
        if self._engine.lease_token:
            arguments["lease_token"] = self._engine.lease_token
        return await self._store.append_records(self._workflow_id, effect.checkpoint_id, effect.records, **arguments)

    async def _enqueue(self, effect: Enqueue) -> bool:
        if self._queue is None:
            self._queue = AsyncSaveQueue(self._store, self._settings, self._environment, self._queue_said)
        if crash_points.armed:
            crash_points.check("before", {"completed_steps": effect.item.completed_steps})
        is_queued = await self._queue.put(effect.item, is_optional=effect.is_optional)
        if crash_points.armed:
            await self._queue.drain()
            crash_points.check("after", {"completed_steps": effect.item.completed_steps})
        return is_queued

    def _queue_said(self, said: Saved | BaseException, asked_at: float) -> None:
        if isinstance(said, BaseException):
            self._deliver(QueueFailed(said))
            return
        if self._hold is not None and not said.replayed:
            self._hold.renewed(asked_at)
        if said.pending_signal_count:
            self._tell_root(SignalsPending(said.pending_signals, said.pending_signal_count))

    async def _drain(self, _: Drain) -> Saved | None:
        return None if self._queue is None else await self._queue.drain()

    def _tell_root(self, event: Event) -> None:
        root = self
        while root._parent is not None:
            root = root._parent
        root.post(event)


def _ended(attempt: Attempt, task: asyncio.Task[Any]) -> AttemptEnded:
    if task.cancelled():
        return AttemptEnded(attempt, error=asyncio.CancelledError())
    error = task.exception()
    return AttemptEnded(attempt, error=error) if error is not None else AttemptEnded(attempt, task.result())
