"""Leases for callers: granting, waiting in line for one, giving back what nobody is there to take.

Whether a lease is granted is decided in the commit, by `rules`; here is only the waiting. Who waits is woken by what
was committed (a release, a delete, a Save that releases), or by a timer when the lease that is in the way would expire.
Only the first in the line of a workflow tries; whoever leaves the line wakes the next.

Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final, cast

from milepost_server.errors import StoreError, UnavailableError
from milepost_server.model import (
    AcquireLeaseCommand,
    Answer,
    Command,
    DeleteWorkflowCommand,
    EncodedBatchSaveAnswer,
    EncodedSaveAnswer,
    LeaseAnswer,
    LeaseState,
    ReleaseLeaseAnswer,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
)
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage.port import Engine
from milepost_server.store_queue import StoreQueue

_logger = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 1.0
"""What a caller is told to wait when too many wait for leases already."""

_Key = tuple[str, str]
"""(namespace, workflow_id)."""


class LeaseService:
    """Grants, renews and ends leases.

    Args:
        queue: Runs commands and reads, and tells what was committed.
        engine: Is only read from here.
        waits_max: Calls that may wait for leases, over all namespaces.
    """

    def __init__(self, queue: StoreQueue, engine: Engine, *, waits_max: int) -> None:
        self._queue = queue
        self._engine = engine
        self._waits = SharedBound(
            "queue.lease_waits_max", waits_max, what="calls wait for leases", retry_after_s=RETRY_AFTER_S
        )
        self._lines: dict[_Key, deque[asyncio.Event]] = {}
        """Who waits for a workflow's lease, the longest waiting first."""
        self._is_draining = False
        self._given_up: dict[tuple[str, int], asyncio.Future[Answer]] = {}
        """Leases that are being released since their caller had gone, by namespace and token."""
        queue.listen(self)

    async def acquire(self, command: AcquireLeaseCommand, *, wait_s: float = 0.0) -> LeaseAnswer:
        """Take a lease, or wait for it.

        A grant whose caller has gone (cancelled, or past its deadline) is released again.

        Raises:
            PreconditionError: `LEASE_HELD`, when the wait is over.
            ResourceError: `QUEUE_FULL`: too many wait already.
            UnavailableError: `NOT_SERVING`: the server is draining.
        """
        if wait_s <= 0:
            return await self._grant(command)
        if self._is_draining:
            raise _draining()
        self._waits.take(command.namespace)
        key = (command.namespace, command.workflow_id)
        line = self._lines.setdefault(key, deque())
        # In line before the first try, so that no release in between goes unnoticed.
        turn = asyncio.Event()
        line.append(turn)
        try:
            return await self._wait_for_grant(command, line, turn, wait_s)
        finally:
            self._waits.give_back(command.namespace)
            line.remove(turn)
            if line:
                line[0].set()
            else:
                del self._lines[key]

    async def renew(self, command: RenewLeaseCommand) -> LeaseAnswer:
        """Let a lease run its full ttl from now."""
        return cast("LeaseAnswer", await self._queue.submit(command, namespace=command.namespace))

    async def release(self, command: ReleaseLeaseCommand) -> ReleaseLeaseAnswer:
        """Give a lease back, or take it away."""
        return cast("ReleaseLeaseAnswer", await self._queue.submit(command, namespace=command.namespace))

    async def get(self, namespace: str, workflow_id: str) -> LeaseState | None:
        """Read a lease, without its token."""
        engine = self._engine
        answer = await self._queue.scan(lambda: engine.get_lease(namespace, workflow_id), namespace=namespace)
        return answer.lease

    def end_waits(self) -> None:
        """Refuse everybody who waits, now and from now on: the server is draining."""
        self._is_draining = True
        for line in self._lines.values():
            for turn in line:
                turn.set()

    # What the queue tells.

    def on_commit(self, commands: Sequence[Command], outcomes: Sequence[Answer | StoreError]) -> None:
        """Wake the first in line wherever a lease may have ended."""
        if not self._lines:
            return
        for command, outcome in zip(commands, outcomes, strict=True):
            for key in _ended_leases(command, outcome):
                if key in self._lines:
                    self._lines[key][0].set()

    def on_failure(self) -> None:
        """Do nothing: who waits tries again when the lease in the way expires, and is then told."""

    # Steps of `acquire`.

    async def _wait_for_grant(
        self, command: AcquireLeaseCommand, line: deque[asyncio.Event], turn: asyncio.Event, wait_s: float
    ) -> LeaseAnswer:
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + wait_s
        while True:
            turn.clear()
            try:
                # Also by one who is not the first: it may have been granted to the same request before.
                return await self._grant(command)
            except StoreError as error:
                if error.reason != "LEASE_HELD" or loop.time() >= give_up_s:
                    raise
                expiry_s = loop.time() + int(error.metadata["remaining_ms"]) / 1000
            while loop.time() < give_up_s:
                is_first = line[0] is turn
                try:
                    async with asyncio.timeout_at(min(expiry_s, give_up_s) if is_first else give_up_s):
                        await turn.wait()
                except TimeoutError:
                    break
                if self._is_draining:
                    raise _draining()
                if line[0] is turn:
                    break
                turn.clear()

    async def _grant(self, command: AcquireLeaseCommand) -> LeaseAnswer:
        while True:
            future = self._queue.submit(command, namespace=command.namespace)
            try:
                answer = cast("LeaseAnswer", await asyncio.shield(future))
            except asyncio.CancelledError:
                # What has been started is not interrupted, so it may still be granted, to nobody.
                future.add_done_callback(lambda done: self._give_up(command, done))
                raise
            given_up = self._given_up.get((command.namespace, answer.lease.token))
            if given_up is None:
                return answer
            # An earlier call with the same request id had gone when this lease was granted to it.
            await asyncio.wait([given_up])

    def _give_up(self, command: AcquireLeaseCommand, granted: asyncio.Future[Answer]) -> None:
        """Release what was granted to a caller who has gone."""
        if granted.cancelled() or granted.exception() is not None:
            return
        answer = cast("LeaseAnswer", granted.result())
        if answer.is_replayed:
            return
        token = answer.lease.token
        release = ReleaseLeaseCommand(namespace=command.namespace, workflow_id=command.workflow_id, lease_token=token)
        try:
            released = self._queue.submit(release, namespace=command.namespace)
        except StoreError as error:
            _logger.warning("the lease of a caller who has gone stays until it expires: %s", error.message)
            return
        self._given_up[command.namespace, token] = released
        released.add_done_callback(lambda done: self._note_released(command.namespace, token, done))

    def _note_released(self, namespace: str, token: int, released: asyncio.Future[Answer]) -> None:
        del self._given_up[namespace, token]
        if not released.cancelled() and (error := released.exception()) is not None:
            _logger.warning("the lease of a caller who has gone stays until it expires: %s", error)


def _ended_leases(command: Command, outcome: Answer | StoreError) -> Sequence[_Key]:
    """Return whose leases a command may have ended."""
    if isinstance(outcome, StoreError):
        return ()
    if isinstance(outcome, EncodedSaveAnswer | EncodedBatchSaveAnswer):
        return [(each.namespace, each.workflow_id) for each in outcome.stored if each.release_lease]
    if isinstance(command, ReleaseLeaseCommand | DeleteWorkflowCommand):
        return ((command.namespace, command.workflow_id),)
    return ()


def _draining() -> UnavailableError:
    return UnavailableError("NOT_SERVING", "the server is draining; send the same call again")
