"""Carries out an engine's effects in the caller's thread, and steps that must not block it in daemon threads."""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

from milepost._leases import RELEASE_S
from milepost._sync.client import Client
from milepost.errors import DefinitionNotFoundError, MilepostError
from milepost.runner import crash_points, tracing
from milepost.runner.attempt import STEP_ENDS, Attempt
from milepost.runner.context import BaseContext
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
    LeasePaused,
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
    cancels_steps,
)
from milepost.runner.lease_keeper import Hold, LeaseKeeper
from milepost.runner.save_queue import SaveQueue
from milepost.runner.settings import MOVED_CLOCK_CHECK_S, Environment, Settings
from milepost.runner.threads import DaemonThreads
from milepost.types import Checkpoint, LeaseInfo, Saved, Signal

__all__ = ["SyncDriver"]

T = TypeVar("T")


class SyncDriver:
    """Runs one engine, once.

    Args:
        store: What a `CheckpointStore` and, where it has them, records, leases, signals and definitions do.
        keeper: Keeps the lease; None: this run takes none.
        parent: The driver of the run that this one is a child of.
    """

    def __init__(
        self,
        engine: Engine[Any],
        store: Any,
        *,
        settings: Settings,
        environment: Environment,
        threads: DaemonThreads,
        keeper: LeaseKeeper | None,
        parent: SyncDriver | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._environment = environment
        self._threads = threads
        self._keeper = keeper
        self._parent = parent
        self._workflow_id = engine.frame.workflow_id
        self._hold: Hold | None = parent._hold if parent is not None else None  # noqa: SLF001  of one run
        self._events: deque[Event] = deque()
        self._signals: SignalsPending | None = None
        self._bell = threading.Event()
        self._in_flight: dict[Attempt, None] = {}
        self._here: Attempt | None = None
        self._queue: SaveQueue | None = None
        self._children: set[SyncDriver] = set()
        self._suspended: SuspendRequested | None = None
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            NextEvent: self._next_event,
            StartAttempt: self._start_attempt,
            SaveCheckpoint: self._save,
            AppendRecords: self._append_records,
            Enqueue: self._enqueue,
            Drain: self._drain,
            CancelAttempt: self._cancel_attempt,
            Sleep: self._sleep,
            AcquireLease: self._acquire_lease,
            LoadHead: self._load_head,
            LoadAncestor: self._load_ancestor,
            LoadManifest: self._load_manifest,
            ReadSignals: self._read_signals,
        }

    def post(self, event: Event) -> None:
        """Tell the run of something. May be called from any thread."""
        if isinstance(event, SignalsPending):
            # The newest says it all: those of a step that runs for days do not pile up.
            self._signals = event
        else:
            self._events.append(event)
        self._bell.set()
        # A step in the run's own thread keeps the engine from hearing of it.
        here = self._here
        if here is not None:
            _cancel_here(here, event)
        if isinstance(event, SuspendRequested):
            self._suspended = event
            for child in [*self._children]:
                child.post(event)

    def begin_with(self, event: SuspendRequested) -> None:
        """Tell the run of something before it begins."""
        self.post(event)

    def adopt(self, child: SyncDriver) -> None:
        """Pass on to a nested run what the whole run is told, from now on and of what it was told."""
        self._children.add(child)
        if self._suspended is not None:
            child.begin_with(self._suspended)

    def disown(self, child: SyncDriver) -> None:
        """Note that a nested run has ended."""
        self._children.discard(child)

    def stop(self) -> None:
        """Have a nested run end, because the step it belongs to was asked to. May be called from any thread."""
        self.post(StopRequested())

    def run(self, flow: Flow[T]) -> T:
        """Run a flow of the engine to its end, and give back what it holds, however it ends."""
        failure: BaseException | None = None
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._handlers[type(effect)](effect)
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
            self._leave(failure)

    def _leave(self, failure: BaseException | None) -> None:
        for attempt in self._in_flight:
            attempt.context._cancel()  # noqa: SLF001  the driver's side of a context
        if isinstance(failure, Exception):
            self._await_attempts()
        if self._queue is not None:
            self._queue.close()
        if self._parent is not None:
            return
        if self._hold is not None and self._keeper is not None:
            self._keeper.drop(self._hold)
        leave = self._engine.leaving(failure)
        if leave is not None:
            try:
                if leave.parting is not None:
                    self._append_records(leave.parting)
                self._release_lease(self._engine.lease_token)
            except MilepostError as error:
                self._engine.lease_stays(error)

    def _await_attempts(self) -> None:
        """Give steps that still run the time to end: whoever calls next may start them again."""
        give_up_at = time.monotonic() + self._settings.grace_s
        while self._in_flight and (left_s := give_up_at - time.monotonic()) > 0:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, AttemptEnded):
                    self._in_flight.pop(event.attempt, None)
            self._bell.clear()
            if self._in_flight and not self._events:
                self._bell.wait(left_s)

    # Waiting.

    def _next_event(self, effect: NextEvent) -> Event | None:
        until = effect.until
        while True:
            if self._events:
                return self._taken(self._events.popleft())
            if self._signals is not None:
                signals, self._signals = self._signals, None
                return signals
            if until is None or until == float("inf"):
                wait_s = None
            else:
                wait_s = until - self._environment.clock()
                if wait_s <= 0:
                    return None
            self._bell.clear()
            if self._events or self._signals is not None:
                continue
            self._wait(wait_s)

    def _taken(self, event: Event) -> Event:
        if isinstance(event, AttemptEnded):
            self._in_flight.pop(event.attempt, None)
            if self._hold is not None:
                self._hold.ended(event.attempt)
            if event.error is not None and not isinstance(event.error, STEP_ENDS):
                raise event.error
        return event

    def _wait(self, wait_s: float | None) -> None:
        sleep = self._environment.sleep
        if sleep is None or wait_s is None:
            self._bell.wait(wait_s)
        elif self._in_flight:
            self._bell.wait(MOVED_CLOCK_CHECK_S)
        else:
            sleep(wait_s)

    def _sleep(self, effect: Sleep) -> None:
        (self._environment.sleep or time.sleep)(effect.seconds)

    # Steps.

    def _start_attempt(self, effect: StartAttempt) -> None:
        attempt = effect.attempt
        if self._hold is not None:
            self._hold.began(attempt)
        self._in_flight[attempt] = None
        if effect.may_block:
            self._run_here(attempt)
        else:
            surroundings = contextvars.copy_context()
            self._threads.run(lambda: self._report(attempt, surroundings))

    def _run_here(self, attempt: Attempt) -> None:
        self._here = attempt
        try:
            for event in [*self._events, *([self._signals] if self._signals is not None else [])]:
                _cancel_here(attempt, event)
            ended = AttemptEnded(attempt, attempt.run())
        except STEP_ENDS as error:
            ended = AttemptEnded(attempt, error=error)
        finally:
            self._here = None
        self._events.append(ended)

    def _report(self, attempt: Attempt, surroundings: contextvars.Context) -> None:
        try:
            ended = AttemptEnded(attempt, surroundings.run(attempt.run))
        except BaseException as error:  # noqa: BLE001  raised again in the run's own thread, if it is no step's end
            ended = AttemptEnded(attempt, error=error)
        self.post(ended)

    def _cancel_attempt(self, effect: CancelAttempt) -> None:
        effect.attempt.context._cancel()  # noqa: SLF001  the driver's side of a context

    # The store.

    def _acquire_lease(self, effect: AcquireLease) -> LeaseInfo:
        asked_at = self._environment.clock()
        lease: LeaseInfo = self._store.acquire_lease(
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

    def _load_head(self, effect: LoadHead) -> Checkpoint:
        with tracing.load_span(self._workflow_id, effect.scope):
            head: Checkpoint = self._store.load(self._workflow_id, scope=effect.scope)
        return head

    def _load_ancestor(self, effect: LoadAncestor) -> Checkpoint:
        found: Checkpoint = self._store.load(
            self._workflow_id, scope=effect.scope, checkpoint_id=effect.checkpoint_id, with_state=effect.with_state
        )
        return found

    def _load_manifest(self, effect: LoadManifest) -> str:
        read = getattr(self._store, "definition_manifest", None)
        if read is None:
            raise DefinitionNotFoundError("this store keeps no definitions", workflow_id=self._workflow_id)
        text: str = read(effect.fingerprint)
        return text

    def _read_signals(self, effect: ReadSignals) -> list[Signal]:
        return [*islice(self._store.signals(self._workflow_id, name=effect.name), SIGNALS_MAX)]

    def _save(self, effect: SaveCheckpoint) -> Saved:
        if crash_points.armed:
            crash_points.check("before", effect.arguments)
        asked_at = self._environment.clock()
        with tracing.save_span(self._workflow_id, effect.arguments):
            saved: Saved = self._store.save(self._workflow_id, **effect.arguments)
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

    def _release_lease(self, token: int) -> None:
        # Not the whole timeout of a client whose server may be gone: the lease runs out by itself.
        options: dict[str, Any] = {"timeout_s": RELEASE_S} if isinstance(self._store, Client) else {}
        self._store.release_lease(self._workflow_id, token, **options)

    def _append_records(self, effect: AppendRecords) -> Any:
        arguments: dict[str, Any] = {"scope": effect.scope, "require_checkpoint": True}
        if self._engine.lease_token:
            arguments["lease_token"] = self._engine.lease_token
        return self._store.append_records(self._workflow_id, effect.checkpoint_id, effect.records, **arguments)

    def _enqueue(self, effect: Enqueue) -> bool:
        if self._queue is None:
            self._queue = SaveQueue(self._store, self._settings, self._environment, self._queue_said)
        if crash_points.armed:
            crash_points.check("before", {"completed_steps": effect.item.completed_steps})
        is_queued = self._queue.put(effect.item, is_optional=effect.is_optional)
        if crash_points.armed:
            self._queue.drain()
            crash_points.check("after", {"completed_steps": effect.item.completed_steps})
        return is_queued

    def _queue_said(self, said: Saved | BaseException, asked_at: float) -> None:
        if isinstance(said, BaseException):
            self.post(QueueFailed(said))
            return
        if self._hold is not None and not said.replayed:
            self._hold.renewed(asked_at)
        if said.pending_signal_count:
            event = SignalsPending(said.pending_signals, said.pending_signal_count)
            if self._parent is None:
                self.post(event)
            else:
                self._tell_root(event)

    def _drain(self, _: Drain) -> Saved | None:
        return None if self._queue is None else self._queue.drain()

    def _tell_root(self, event: Event) -> None:
        root = self
        while root._parent is not None:
            root = root._parent
        root.post(event)


def _cancel_here(attempt: Attempt, event: Event) -> None:
    if cancels_steps(event) and not (isinstance(event, LeasePaused) and attempt.step.at_most_once):
        context: BaseContext = attempt.context
        context._cancel()  # noqa: SLF001  the driver's side of a context
