"""Who sends: a client for each half, made when it is first needed, in the process that needs it."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from google.protobuf.message import Message

from milepost import AsyncClient, Client
from milepost._calls import Method

ResponseT = TypeVar("ResponseT")


class BlockingSender(Client):
    """A client that sends requests made elsewhere, with its own attempts and deadline."""

    def send(self, method: Method[ResponseT], request: Message) -> ResponseT:
        """Send one request until it is answered or given up."""
        return self._call(method, request, self._attempts(None))


class AsyncSender(AsyncClient):
    """The same for asyncio: one channel for each running loop."""

    async def send(self, method: Method[ResponseT], request: Message) -> ResponseT:
        """Send one request until it is answered or given up."""
        return await self._call(method, request, self._attempts(None))


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
