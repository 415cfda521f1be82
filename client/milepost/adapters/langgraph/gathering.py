"""Saves of many threads or tasks in one call: what comes while calls are under way is sent together as the next.

In Python a call costs gRPC several times what a Save costs the store, at both ends. So two calls at a time carry what
many callers want stored. A lone caller waits for nobody: its Save is sent as it comes. And nobody waits long for
company, so that a distant server answers about as soon as it would have.

What is shared is the first attempt alone. A Save that fails for a passing reason goes on by itself in its own time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from google.protobuf.wrappers_pb2 import BytesValue

from milepost import _calls, _failures
from milepost._calls import Method
from milepost._retry import Attempts, Failure
from milepost.errors import Code
from milepost.v1 import checkpoint_store_pb2 as pb

CALLS_MAX: Final = 2
"""Calls under way before others gather."""
WAIT_MAX_S: Final = 0.002
"""How long a Save waits for one of these to end; then it is sent beside them, with what has gathered."""
GATHERED_BYTES_MAX: Final = 1024 * 1024
"""Most bytes of Saves that share a call. A larger one takes no part: it is sent by itself, and at once."""

Outcome: TypeAlias = pb.SaveResponse | Failure
Answer: TypeAlias = pb.SaveResponse | pb.BatchSaveResponse | Failure

UNANSWERED: Final = Failure(Code.UNKNOWN, "the call that it was sent in ended without an answer to it")

WakeT = TypeVar("WakeT")


class Gathered(Generic[WakeT]):
    """One Save on its way."""

    __slots__ = ("attempts", "group", "is_waiting", "outcome", "payload", "wake")

    def __init__(self, payload: bytes, attempts: Attempts, wake: WakeT) -> None:
        self.payload = payload
        self.attempts = attempts
        self.wake = wake
        self.is_waiting = False
        self.outcome: Outcome = UNANSWERED
        self.group: Group[WakeT] = ()
        """What its caller is to send, where it was woken to do that."""


Group: TypeAlias = Sequence[Gathered[WakeT]]


class Gathering(Generic[WakeT]):
    """Which Saves share a call. Sans-IO, and not safe for threads by itself."""

    def __init__(self) -> None:
        self._waiting: deque[Gathered[WakeT]] = deque()
        self._under_way = 0

    def enter(self, save: Gathered[WakeT]) -> Group[WakeT]:
        """Take a Save; return it if it is sent now. Otherwise it waits."""
        if self._under_way < CALLS_MAX:
            self._under_way += 1
            return (save,)
        save.is_waiting = True
        self._waiting.append(save)
        return ()

    def go(self, save: Gathered[WakeT]) -> Group[WakeT]:
        """Return a Save that has waited long enough, with what goes along."""
        self._under_way += 1
        return self._group_of(save)

    def leave(self, save: Gathered[WakeT]) -> None:
        """Forget a Save that nobody waits for any more, if it waits."""
        if save.is_waiting:
            save.is_waiting = False
            self._waiting.remove(save)

    def end(self) -> Group[WakeT]:
        """Take note of the end of a call; return what is sent next, if anything waits."""
        if self._waiting:
            return self._group_of(self._waiting[0])
        self._under_way -= 1
        return ()

    def _group_of(self, first: Gathered[WakeT]) -> Group[WakeT]:
        self._waiting.remove(first)
        group, size_bytes = [first], len(first.payload)
        while self._waiting and len(group) < _calls.ITEMS_MAX:
            size_bytes += len(self._waiting[0].payload)
            if size_bytes > GATHERED_BYTES_MAX:
                break
            group.append(self._waiting.popleft())
        for save in group:
            save.is_waiting = False
        return group


class BlockingGatherer:
    """Sends the Saves of all threads. Whoever is woken to it sends what has gathered, its own Save among it."""

    def __init__(self, attempt: Callable[[Method[Any], bytes, float], Any]) -> None:
        """Make one.

        Args:
            attempt: Sends bytes once, with a timeout; returns the response or the failure.
        """
        self._attempt = attempt
        self._gathering: Gathering[threading.Lock] = Gathering()
        self._lock = threading.Lock()

    def send(self, payload: bytes, attempts: Attempts) -> Outcome:
        """Send a Save once, alone or with others, and return what became of it."""
        # The cheapest thing that a thread can wait for: locked until somebody unlocks it.
        wake = threading.Lock()
        wake.acquire()
        save = Gathered(payload, attempts, wake)
        if len(payload) > GATHERED_BYTES_MAX:
            _settle((save,), self._attempt(*_call_of((save,))))
            return save.outcome
        with self._lock:
            group = self._gathering.enter(save)
        try:
            group = group or self._wait(save)
        except BaseException:
            # Ctrl-C, in the main thread. The others must not wait for it.
            with self._lock:
                self._gathering.leave(save)
                group = save.group
            if group:
                self._lead(group)
            raise
        if group:
            self._lead(group)
        return save.outcome

    def _wait(self, save: Gathered[threading.Lock]) -> Group[threading.Lock]:
        """Wait until a Save has its outcome, or is to be sent from here with the group that is returned."""
        if not save.wake.acquire(timeout=WAIT_MAX_S):
            with self._lock:
                if save.is_waiting:
                    return self._gathering.go(save)
            # The call it is in ends in the Save's own time.
            save.wake.acquire(timeout=max(save.attempts.remaining_s, 0.0) + 1.0)
        return save.group

    def _lead(self, group: Group[threading.Lock]) -> None:
        try:
            _settle(group, self._attempt(*_call_of(group)))
        finally:
            with self._lock:
                following = self._gathering.end()
                if following:
                    following[0].group = following
            if following:
                following[0].wake.release()
            for save in group[1:]:
                save.wake.release()


class AsyncGatherer:
    """Sends the Saves of all tasks of one event loop."""

    def __init__(self, attempt: Callable[[Method[Any], bytes, float], Awaitable[Any]]) -> None:
        """Make one.

        Args:
            attempt: Sends bytes once, with a timeout; returns the response or the failure.
        """
        self._attempt = attempt
        self._gathering: Gathering[asyncio.Future[None]] = Gathering()
        self._sending: set[asyncio.Task[None]] = set()

    async def send(self, payload: bytes, attempts: Attempts) -> Outcome:
        """Send a Save once, alone or with others, and return what became of it."""
        loop = asyncio.get_running_loop()
        save = Gathered(payload, attempts, loop.create_future())
        if len(payload) > GATHERED_BYTES_MAX:
            _settle((save,), await self._attempt(*_call_of((save,))))
        elif group := self._gathering.enter(save):
            await self._lead(group)
        else:
            waited = loop.call_later(WAIT_MAX_S, self._go, save)
            try:
                await save.wake
            finally:
                waited.cancel()
                self._gathering.leave(save)
        return save.outcome

    def _go(self, save: Gathered[asyncio.Future[None]]) -> None:
        if save.is_waiting:
            self._start(self._gathering.go(save))

    def _start(self, group: Group[asyncio.Future[None]]) -> None:
        # In a task of its own: a caller that is cancelled must not take along the others.
        task = asyncio.get_running_loop().create_task(self._lead(group))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _lead(self, group: Group[asyncio.Future[None]]) -> None:
        try:
            _settle(group, await self._attempt(*_call_of(group)))
        finally:
            if following := self._gathering.end():
                self._start(following)
            for save in group:
                if not save.wake.done():
                    save.wake.set_result(None)


def _call_of(group: Group[Any]) -> tuple[Method[Any], bytes, float]:
    # They came within moments of each other.
    timeout_s = max(save.attempts.remaining_s for save in group)
    if len(group) == 1:
        return _calls.SAVE, group[0].payload, timeout_s
    # On the wire its items, field 1, are no different from bytes in a field 1, one message behind the other.
    items = [BytesValue(value=save.payload).SerializeToString() for save in group]
    return _calls.BATCH_SAVE, b"".join(items), timeout_s


def _settle(group: Group[Any], answer: Answer) -> None:
    if isinstance(answer, pb.BatchSaveResponse):
        # Where it has too few results, the rest stays unanswered.
        for save, result in zip(group, answer.results, strict=False):
            save.outcome = result.saved if result.HasField("saved") else _failures.read_item_error(result.error)
    else:
        for save in group:
            save.outcome = answer
