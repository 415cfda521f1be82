"""Serving: workflows of one definition that nobody runs are found and run, until the runner is told to stop.

What is taken up when is decided in `pick_up`; here is what waits, once for threads and once for a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from milepost.errors import (
    CapacityError,
    DeadlineError,
    InternalError,
    LeaseHeldError,
    MilepostError,
    NotFoundError,
    OutcomeUnknownError,
    StepFailedError,
    UnavailableError,
    WatchTooSlowError,
    WorkflowError,
)
from milepost.runner.pick_up import EXAMINED_MAX, Outcome, PickUp, is_news, is_ready
from milepost.runner.run import Run
from milepost.types import Status, WatchEvent, WorkflowInfo

__all__ = ["ServeOptions", "serve", "serve_async"]

logger = logging.getLogger("milepost.runner")

INBOX_MAX: Final = 1_024
"""Events that wait to be looked at; of what comes beyond them the next query tells."""
WATCH_PAUSE_S: Final = 5.0
"""Wait before a watch that failed is begun again."""
STOP_MARGIN_S: Final = 5.0
"""What runs are given to save and to give back their leases, after the grace time of their steps."""
_PASSING: Final = (
    UnavailableError,
    DeadlineError,
    CapacityError,
    OutcomeUnknownError,
    InternalError,
    WatchTooSlowError,
)
"""What a store may answer now and not later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How a runner serves.

    Raises:
        ValueError: A number is out of range.
    """

    max_concurrency: int = 4
    poll_s: float = 30.0
    handle_signals: bool = False

    def __post_init__(self) -> None:
        if self.max_concurrency < 1:
            raise ValueError(f"max_concurrency is {self.max_concurrency!r}; it must be at least 1")
        if not 0.1 <= self.poll_s <= 3_600:
            raise ValueError(f"poll_s is {self.poll_s!r}; it must be 0.1 to 3,600")


@dataclass(frozen=True, slots=True)
class _Ended:
    workflow_id: str
    outcome: Outcome
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Stop:
    """The runner was told to stop."""


@dataclass(frozen=True, slots=True)
class _Missed:
    """Events were dropped, or the watch broke."""


_Message: TypeAlias = WatchEvent | _Ended | _Stop | _Missed


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What serving needs of a runner, so that both kinds look alike from here."""

    definition: str
    store: Any
    resume: Callable[[str], Any]
    """Resumes a workflow without waiting for its lease."""
    spawn: Callable[[Callable[[], None]], None]
    """Runs a function in a thread of its own."""
    on_stop: Callable[[Callable[[], None]], contextlib.AbstractContextManager[None]]
    """Has a function called when the runner is told to stop, or at once where it was."""
    suspend: Callable[[], None]
    grace_s: float
    clock: Callable[[], float]
    random: Callable[[], float]


def serve(served: Served, options: ServeOptions) -> None:
    """Serve in the caller's thread until the runner is told to stop. See `Runner.serve`."""
    inbox: SimpleQueue[_Message] = SimpleQueue()
    pick_up = _pick_up(served, options)
    stopped: BaseException | bool = False
    # The order of the contexts counts: from the first line on, a stop is heard.
    with (
        served.on_stop(lambda: inbox.put(_Stop())),
        _stops_on_signals(served.suspend) if options.handle_signals else contextlib.nullcontext(),
        _watching(served, inbox),
    ):
        try:
            while not stopped:
                if pick_up.is_query_due():
                    _query(served, pick_up)
                for workflow_id in pick_up.take():
                    served.spawn(_trying(served, workflow_id, inbox))
                try:
                    message = inbox.get(timeout=pick_up.wait_s())
                except Empty:
                    continue
                stopped = _take_in(message, pick_up)
        except BaseException as error:
            stopped = error
            raise
        finally:
            if isinstance(stopped, BaseException):
                served.suspend()
            _finish(served, pick_up, inbox)
    if isinstance(stopped, BaseException):
        raise stopped


async def serve_async(served: Served, options: ServeOptions) -> None:
    """Serve in the running loop until the runner is told to stop. See `AsyncRunner.serve`."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[_Message] = asyncio.Queue()
    pick_up = _pick_up(served, options)
    tries: dict[str, asyncio.Task[None]] = {}
    stopped: BaseException | bool = False

    def stop() -> None:
        # From any thread, and possibly after the loop has ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(inbox.put_nowait, _Stop())

    with (
        served.on_stop(stop),
        _stops_loop_on_signals(loop, served.suspend) if options.handle_signals else contextlib.nullcontext(),
    ):
        watcher = asyncio.create_task(_watch_async(served, inbox))
        try:
            while not stopped:
                if pick_up.is_query_due():
                    await _query_async(served, pick_up)
                for workflow_id in pick_up.take():
                    tries[workflow_id] = asyncio.create_task(_try_async(served, workflow_id, inbox))
                try:
                    async with asyncio.timeout(pick_up.wait_s()):
                        message = await inbox.get()
                except TimeoutError:
                    continue
                if isinstance(message, _Ended):
                    tries.pop(message.workflow_id, None)
                stopped = _take_in(message, pick_up)
            # They stop at their next step boundary; after the grace time the runner cancels their steps.
            if tries:
                await asyncio.wait(tries.values(), timeout=served.grace_s + STOP_MARGIN_S)
        finally:
            # Cancelled from outside, or what is left: each run gives back its lease.
            for task in (watcher, *tries.values()):
                task.cancel()
            await asyncio.gather(watcher, *tries.values(), return_exceptions=True)
    if isinstance(stopped, BaseException):
        raise stopped


def _pick_up(served: Served, options: ServeOptions) -> PickUp:
    return PickUp(
        max_concurrency=options.max_concurrency, poll_s=options.poll_s, clock=served.clock, random=served.random
    )


def _take_in(message: _Message, pick_up: PickUp) -> BaseException | bool:
    """Return whether it is over, and why where that is an error."""
    match message:
        case _Stop():
            return True
        case _Missed():
            pick_up.query_soon()
        case _Ended(workflow_id, outcome, error):
            if error is not None and not isinstance(error, Exception):
                return error
            delay_s = pick_up.ended(workflow_id, outcome)
            if error is not None:
                _report(workflow_id, error, delay_s)
        case WatchEvent():
            pick_up.heard(message)
    return False


def _report(workflow_id: str, error: Exception, delay_s: float) -> None:
    """Log why a run ended: ids and types, never what an error says, which may quote the state."""
    if isinstance(error, StepFailedError):
        logger.warning("workflow %r failed in step %r (%s)", workflow_id, error.step, type(error).__name__)
    elif isinstance(error, MilepostError):
        level = logging.WARNING if isinstance(error, WorkflowError) else logging.INFO
        logger.log(
            level,
            "workflow %r did not go on (%s); it is tried again in %.0f s",
            workflow_id,
            type(error).__name__,
            delay_s,
        )
    else:
        logger.error("workflow %r: a defect: %s", workflow_id, type(error).__name__, exc_info=error)


# One try.


def _trying(served: Served, workflow_id: str, inbox: SimpleQueue[_Message]) -> Callable[[], None]:
    def attempt() -> None:
        ended = _Ended(workflow_id, Outcome.SKIPPED)
        try:
            info: WorkflowInfo = served.store.workflow(workflow_id)
            if is_ready(info, served.definition):
                ended = _Ended(workflow_id, _outcome(info, served.resume(workflow_id)))
        except BaseException as error:  # noqa: BLE001  raised again in the serving thread, if it is no run's end
            ended = _failed(workflow_id, error)
        inbox.put(ended)

    return attempt


async def _try_async(served: Served, workflow_id: str, inbox: asyncio.Queue[_Message]) -> None:
    ended = _Ended(workflow_id, Outcome.SKIPPED)
    try:
        info: WorkflowInfo = await served.store.workflow(workflow_id)
        if is_ready(info, served.definition):
            running: Awaitable[Run[Any]] = served.resume(workflow_id)
            ended = _Ended(workflow_id, _outcome(info, await running))
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  as above
        ended = _failed(workflow_id, error)
    inbox.put_nowait(ended)


def _outcome(before: WorkflowInfo, run: Run[Any]) -> Outcome:
    is_further = run.status == "completed" or run.sequence > before.head_sequence
    return Outcome.PROGRESS if is_further else Outcome.STUCK


def _failed(workflow_id: str, error: BaseException) -> _Ended:
    # Somebody else was faster, or it was deleted: nothing is wrong with it.
    if isinstance(error, LeaseHeldError | NotFoundError):
        return _Ended(workflow_id, Outcome.SKIPPED)
    return _Ended(workflow_id, Outcome.STUCK, error)


# The query.


def _queries(served: Served) -> list[dict[str, Any]]:
    """Return the arguments of the queries for what nobody runs: unfinished, or waiting with a signal there."""
    common: dict[str, Any] = {"definition": served.definition, "is_leased": False}
    return [
        {**common, "status": Status.RUNNING},
        {**common, "status": Status.WAITING, "has_pending_signals": True},
    ]


def _query(served: Served, pick_up: PickUp) -> None:
    found: list[str] = []
    examined = 0
    try:
        for arguments in _queries(served):
            for info in served.store.workflows(**arguments):
                examined += 1
                if pick_up.is_wanted(info.workflow_id):
                    found.append(info.workflow_id)
                if len(found) >= pick_up.wanted or examined >= EXAMINED_MAX:
                    break
    except _PASSING as error:
        _query_failed(pick_up, error)
    else:
        pick_up.queried(found, has_more=len(found) >= pick_up.wanted)


async def _query_async(served: Served, pick_up: PickUp) -> None:
    found: list[str] = []
    examined = 0
    try:
        for arguments in _queries(served):
            async for info in served.store.workflows(**arguments):
                examined += 1
                if pick_up.is_wanted(info.workflow_id):
                    found.append(info.workflow_id)
                if len(found) >= pick_up.wanted or examined >= EXAMINED_MAX:
                    break
    except _PASSING as error:
        _query_failed(pick_up, error)
    else:
        pick_up.queried(found, has_more=len(found) >= pick_up.wanted)


def _query_failed(pick_up: PickUp, error: MilepostError) -> None:
    pick_up.query_failed()
    logger.warning(
        "the store does not tell which workflows to run (%s); asked again in %.1f s",
        type(error).__name__,
        pick_up.wait_s() or 0.0,
    )


# The watch.


@contextlib.contextmanager
def _watching(served: Served, inbox: SimpleQueue[_Message]) -> Iterator[None]:
    """Have a thread put what is news in the inbox for as long as the block lasts."""
    if not hasattr(served.store, "watch"):
        yield
        return
    watcher = _Watcher(served, inbox)
    served.spawn(watcher.run)
    try:
        yield
    finally:
        watcher.close()


class _Watcher:
    def __init__(self, served: Served, inbox: SimpleQueue[_Message]) -> None:
        self._served = served
        self._inbox = inbox
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None

    def run(self) -> None:
        while not self._closed.is_set():
            try:
                stream = self._served.store.watch(definition=self._served.definition)
                with self._lock:
                    self._stream = stream
                    is_closed = self._closed.is_set()
                if is_closed:
                    stream.close()
                    return
                for event in stream:
                    if is_news(event):
                        self._put(event)
            except MilepostError as error:
                if not _may_pass(error):
                    return
            self._closed.wait(WATCH_PAUSE_S)

    def _put(self, event: WatchEvent) -> None:
        if self._inbox.qsize() < INBOX_MAX:
            self._inbox.put(event)
        elif self._inbox.qsize() == INBOX_MAX:
            self._inbox.put(_Missed())

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()


def _may_pass(error: MilepostError) -> bool:
    """Tell whether a watch that failed is worth beginning again."""
    kind = type(error).__name__
    if isinstance(error, _PASSING):
        logger.info("the watch broke (%s); it is begun again in %.0f s", kind, WATCH_PAUSE_S)
        return True
    logger.info("there is no watch (%s): queries tell of changes, though later", kind)
    return False


async def _watch_async(served: Served, inbox: asyncio.Queue[_Message]) -> None:
    if not hasattr(served.store, "watch"):
        return
    while True:
        try:
            async with served.store.watch(definition=served.definition) as stream:
                async for event in stream:
                    if is_news(event) and inbox.qsize() < INBOX_MAX:
                        inbox.put_nowait(event)
                    elif is_news(event) and inbox.qsize() == INBOX_MAX:
                        inbox.put_nowait(_Missed())
        except MilepostError as error:
            if not _may_pass(error):
                return
        await asyncio.sleep(WATCH_PAUSE_S)


# The end.


def _finish(served: Served, pick_up: PickUp, inbox: SimpleQueue[_Message]) -> None:
    """Wait for the runs, which have been told to stop, to give back their leases."""
    left = set(pick_up.running)
    until = served.clock() + served.grace_s + STOP_MARGIN_S
    while left and (wait_s := until - served.clock()) > 0:
        try:
            message = inbox.get(timeout=wait_s)
        except Empty:
            break
        if isinstance(message, _Ended):
            left.discard(message.workflow_id)
    if left:
        logger.warning("%d runs did not stop in time; their leases run out by themselves", len(left))


@contextlib.contextmanager
def _stops_on_signals(suspend: Callable[[], None]) -> Iterator[None]:
    """Have the first SIGINT or SIGTERM stop the runner; the second one does what it did before.

    Raises:
        ValueError: This is not the main thread, which alone gets signals.
    """
    _require_main_thread()
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        # In a thread of its own: this one may hold whatever lock it was interrupted under.
        threading.Thread(target=suspend, name="milepost-suspend", daemon=True).start()

    for wanted in (signal.SIGINT, signal.SIGTERM):
        before[wanted] = signal.signal(wanted, handle)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _stops_loop_on_signals(loop: asyncio.AbstractEventLoop, suspend: Callable[[], None]) -> Iterator[None]:
    """The same for a running loop."""
    _require_main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def handle() -> None:
        remove()
        suspend()

    def remove() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    try:
        for number in numbers:
            loop.add_signal_handler(number, handle)
    except NotImplementedError:
        # Windows: its loops know no signals.
        with _stops_on_signals(suspend):
            yield
        return
    try:
        yield
    finally:
        remove()


def _require_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("handle_signals=True needs the main thread; elsewhere call suspend() from a hook")
