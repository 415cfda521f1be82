"""Who sends: a client for each half, made when it is first needed, in the process that needs it."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from milepost import AsyncClient, Client, _calls, _failures
from milepost._calls import Method
from milepost._retry import Attempts, Failure
from milepost.adapters.langgraph.gathering import AsyncGatherer, BlockingGatherer
from milepost.v1 import checkpoint_store_pb2 as pb

ResponseT = TypeVar("ResponseT")


class BlockingSender(Client):
    """A client that sends requests made elsewhere, with its own attempts and deadline."""

    def __init__(self, target: str | None, **options: Any) -> None:
        super().__init__(target, **options)
        self._gatherer = BlockingGatherer(self._attempt)

    def send(self, method: Method[ResponseT], request: Message) -> ResponseT:
        """Send one request until it is answered or given up; a Save may go with those of other threads."""
        attempts = self._attempts(None)
        if not isinstance(request, pb.SaveRequest):
            return self._call(method, request, attempts)
        outcome = self._gatherer.send(_calls.encode(_calls.SAVE, request), attempts)
        if isinstance(outcome, Failure):
            self._sleep(_pause_s(request, attempts, outcome, self.target))
            return self._call(method, request, attempts)
        return cast("ResponseT", outcome)


class AsyncSender(AsyncClient):
    """The same for asyncio: one channel for each running loop."""

    def __init__(self, target: str | None, **options: Any) -> None:
        super().__init__(target, **options)
        self._gatherers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGatherer] = (
            weakref.WeakKeyDictionary()
        )

    async def send(self, method: Method[ResponseT], request: Message) -> ResponseT:
        """Send one request until it is answered or given up; a Save may go with those of other tasks."""
        attempts = self._attempts(None)
        if not isinstance(request, pb.SaveRequest):
            return await self._call(method, request, attempts)
        loop = asyncio.get_running_loop()
        gatherer = self._gatherers.get(loop) or self._gatherers.setdefault(loop, AsyncGatherer(self._attempt))
        outcome = await gatherer.send(_calls.encode(_calls.SAVE, request), attempts)
        if isinstance(outcome, Failure):
            await self._sleep(_pause_s(request, attempts, outcome, self.target))
            return await self._call(method, request, attempts)
        return cast("ResponseT", outcome)


def _pause_s(request: pb.SaveRequest, attempts: Attempts, failure: Failure, target: str) -> float:
    """Return how long to wait before a Save whose first attempt failed is sent by itself.

    Raises:
        MilepostError: It is given up.
    """
    if failure.details.reason == "PREDECESSOR_FAILED":
        # What it follows was in the same call, which is nothing to tell its caller of.
        return 0.0
    pause_s = attempts.after(failure)
    if pause_s is None:
        unknown = attempts.outcome_unknown
        raise _failures.to_error(
            _calls.SAVE, request, failure, outcome_unknown=unknown, attempts=attempts, target=target
        )
    return pause_s


class Connections:
    """The two clients of a saver, shared by its shallow copies.

    They are kept by process, so that a saver made before a fork works in the child: it makes clients of its own there.
    Without a lock on purpose, since a fork could leave it held: a client that lost a race has opened nothing.
    """

    def __init__(self, target: str | None, options: dict[str, Any]) -> None:
        # Malformed arguments are told here, not at the first call of a graph.
        self._first = (os.getpid(), BlockingSender(target, **options), AsyncSender(target, **options))
        self._target = target
        self._options = options
        self._blocking: dict[int, BlockingSender] = {self._first[0]: self._first[1]}
        self._asyncio: dict[int, AsyncSender] = {self._first[0]: self._first[2]}

    @property
    def namespace(self) -> str:
        """Tenant boundary of every call."""
        return self._first[1].namespace

    @property
    def target(self) -> str:
        """The server's address."""
        return self._first[1].target

    @property
    def blocking(self) -> BlockingSender:
        """The blocking client of this process."""
        pid = os.getpid()
        found = self._blocking.get(pid)
        return found or self._blocking.setdefault(pid, BlockingSender(self._target, **self._options))

    @property
    def asyncio(self) -> AsyncSender:
        """The asyncio client of this process."""
        pid = os.getpid()
        found = self._asyncio.get(pid)
        return found or self._asyncio.setdefault(pid, AsyncSender(self._target, **self._options))
