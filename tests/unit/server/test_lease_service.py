"""Waiting for leases: who is woken, in which order, and what becomes of a grant that nobody is there to take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from milepost_server.config import QueueConfig
from milepost_server.errors import StoreError
from milepost_server.lease_service import LeaseService
from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import (
    AcquireLeaseCommand,
    Answer,
    Command,
    DeleteWorkflowCommand,
    LeaseAnswer,
    ProbeCommand,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
)
from milepost_server.storage.committer import Committer
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.testing.builders import ManualClock, acquire_lease, release_lease, save
from tests.support.encoded_saves import SaveCodec, encoded

LONG_S = 30.0
"""Nothing here waits so long, unless it was forgotten."""
WAITS_MAX = 3
"""Of one namespace."""


class Seen:
    """Notes every command that was committed, and lets a test wait for one."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self._changed = asyncio.Event()

    def on_commit(self, commands: Sequence[Command], outcomes: Sequence[Answer | StoreError]) -> None:
        self.commands.extend(commands)
        self._changed.set()

    def on_failure(self) -> None:
        raise AssertionError("the storage failed")

    def count(self, kind: type) -> int:
        return sum(isinstance(command, kind) for command in self.commands)

    async def wait_for(self, kind: type, count: int) -> None:
        async with asyncio.timeout(LONG_S):
            while self.count(kind) < count:
                self._changed.clear()
                await self._changed.wait()


class Store:
    """A committer over an engine in memory, and the service."""

    def __init__(self, committer: Committer, engine: MemoryEngine, *, waits_max: int) -> None:
        self.committer = committer
        self.leases = LeaseService(committer, engine, waits_max=waits_max)
        self.seen = Seen()
        committer.listen(self.seen)

    async def run(self, command: Command) -> Answer:
        return await self.committer.submit(encoded(command), namespace="default")

    async def acquire(
        self, workflow_id: str = "w", *, wait_s: float = 0.0, ttl_ms: int = 60_000, request_id: str = ""
    ) -> int:
        command = acquire_lease(workflow_id, ttl_ms=ttl_ms, request_id=request_id)
        async with asyncio.timeout(LONG_S):
            return (await self.leases.acquire(command, wait_s=wait_s)).lease.token

    async def wait_in_line(self, workflow_id: str = "w", *, request_id: str = "") -> asyncio.Task[int]:
        """Return a call that waits: its first try was refused."""
        tries = self.seen.count(AcquireLeaseCommand)
        task = asyncio.create_task(self.acquire(workflow_id, wait_s=LONG_S, request_id=request_id))
        await self.seen.wait_for(AcquireLeaseCommand, tries + 1)
        # By the time that another command is answered it has its refusal.
        await self.run(ProbeCommand())
        return task

    async def release(self, token: int) -> bool:
        return (await self.leases.release(release_lease("w", token))).released


@asynccontextmanager
async def open_store(lease_clock: ManualClock | None = None, *, waits_max: int = 2 * WAITS_MAX) -> AsyncIterator[Store]:
    engine = MemoryEngine(lease_clock_ms=lease_clock) if lease_clock is not None else MemoryEngine()
    committer = Committer(engine, config=QueueConfig(), codec=SaveCodec(DEFAULT_LIMITS))
    try:
        yield Store(committer, engine, waits_max=waits_max)
    finally:
        await committer.close()


async def test_a_lease_that_is_held_is_refused_at_once_to_who_does_not_wait() -> None:
    async with open_store() as store:
        await store.acquire()
        with pytest.raises(StoreError, match="leased by 'h'") as refused:
            await store.acquire()
        assert refused.value.reason == "LEASE_HELD"


async def test_who_waits_is_woken_by_a_release() -> None:
    async with open_store() as store:
        first = await store.acquire()
        waiting = await store.wait_in_line()
        await store.release(first)
        assert await waiting > first
        assert store.seen.count(AcquireLeaseCommand) == 3, "a try at the start, one when woken: no polling"


async def test_who_waits_is_woken_by_a_release_by_force() -> None:
    async with open_store() as store:
        first = await store.acquire()
        waiting = await store.wait_in_line()
        await store.leases.release(release_lease("w", force=True))
        assert await waiting > first


async def test_who_waits_is_woken_by_a_save_that_releases_and_by_no_other() -> None:
    async with open_store() as store:
        first = await store.acquire()
        waiting = await store.wait_in_line()
        await store.run(save("w", "a", lease_token=first))
        assert store.seen.count(AcquireLeaseCommand) == 2
        await store.run(save("w", "b", lease_token=first, release_lease=True))
        assert await waiting > first


async def test_who_waits_is_woken_by_a_delete_of_the_workflow() -> None:
    async with open_store() as store:
        first = await store.acquire()
        waiting = await store.wait_in_line()
        await store.run(DeleteWorkflowCommand(namespace="default", workflow_id="w", lease_token=first))
        assert await waiting > first


async def test_who_waits_is_woken_when_the_lease_expires() -> None:
    async with open_store() as store:
        first = await store.acquire(ttl_ms=50)
        assert await store.acquire(wait_s=LONG_S) > first


async def test_a_renewal_makes_who_waits_wait_on() -> None:
    lease_clock = ManualClock()
    async with open_store(lease_clock) as store:
        first = await store.acquire(ttl_ms=20)
        waiting = await store.wait_in_line()
        for tries in (3, 4):
            lease_clock.advance(10)
            await store.leases.renew(RenewLeaseCommand(namespace="default", workflow_id="w", lease_token=first))
            await store.seen.wait_for(AcquireLeaseCommand, tries)
            assert not waiting.done()
        lease_clock.advance(20)
        assert await waiting > first


async def test_a_wait_ends_with_a_refusal() -> None:
    async with open_store() as store:
        await store.acquire()
        with pytest.raises(StoreError) as refused:
            await store.acquire(wait_s=0.05)
        assert refused.value.reason == "LEASE_HELD"
        assert int(refused.value.metadata["remaining_ms"]) > 50_000


async def test_the_longest_waiting_is_granted_first() -> None:
    async with open_store() as store:
        token = await store.acquire()
        waiting = [await store.wait_in_line() for _ in range(WAITS_MAX)]
        tokens = []
        for task in waiting:
            await store.release(token)
            token = await task
            tokens.append(token)
            assert not any(later.done() for later in waiting[len(tokens) :])
        assert tokens == sorted(tokens)


async def test_who_gives_up_waiting_leaves_the_line_to_the_next() -> None:
    async with open_store() as store:
        token = await store.acquire()
        first, second = await store.wait_in_line(), await store.wait_in_line()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await store.release(token)
        assert await second > token


async def test_the_next_in_line_waits_for_the_expiry_in_the_place_of_who_gave_up() -> None:
    async with open_store() as store:
        token = await store.acquire(ttl_ms=300)
        first, second = await store.wait_in_line(), await store.wait_in_line()
        first.cancel()
        assert await second > token


async def test_a_line_of_one_workflow_does_not_hold_up_another() -> None:
    async with open_store() as store:
        token = await store.acquire("w")
        other = await store.acquire("v")
        waiting = await store.wait_in_line(workflow_id="w")
        await store.leases.release(ReleaseLeaseCommand(namespace="default", workflow_id="v", lease_token=other))
        assert await store.acquire("v", wait_s=LONG_S) > other
        assert not waiting.done()
        await store.release(token)
        await waiting


async def test_a_grant_whose_caller_has_gone_is_released() -> None:
    async with open_store() as store:
        gone = asyncio.create_task(store.acquire())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await store.seen.wait_for(ReleaseLeaseCommand, 1)
        assert await store.leases.get("default", "w") is None
        await store.acquire()


async def test_a_grant_whose_caller_went_while_it_waited_is_released() -> None:
    async with open_store() as store:
        token = await store.acquire()
        gone = await store.wait_in_line()
        released = asyncio.create_task(store.release(token))
        # The waiter is woken in the turn in which the release is told, and submits its try in the next.
        await store.seen.wait_for(ReleaseLeaseCommand, 1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await released
        assert await store.acquire(wait_s=LONG_S) > token


async def test_a_retry_of_a_call_that_has_gone_gets_a_lease_that_is_good() -> None:
    async with open_store() as store:
        for number in range(20):
            gone = asyncio.create_task(store.acquire(request_id=f"r{number}"))
            await asyncio.sleep(0)
            retry = asyncio.create_task(store.acquire(request_id=f"r{number}"))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            gone.cancel()
            token = await retry
            await asyncio.wait([gone])
            await store.run(RenewLeaseCommand(namespace="default", workflow_id="w", lease_token=token))
            await store.run(save("w", str(number), lease_token=token, release_lease=True))


async def test_a_request_is_answered_in_line_if_it_was_granted_before() -> None:
    async with open_store() as store:
        token = await store.acquire(request_id="r")
        waiting = await store.wait_in_line(request_id="other")
        assert await store.acquire(wait_s=LONG_S, request_id="r") == token
        await store.release(token)
        assert await waiting > token


async def test_no_more_than_so_many_wait() -> None:
    async with open_store() as store:
        token = await store.acquire()
        waiting = [await store.wait_in_line() for _ in range(WAITS_MAX)]
        with pytest.raises(StoreError) as refused:
            await store.acquire(wait_s=LONG_S)
        assert (refused.value.reason, refused.value.metadata["limit"]) == ("QUEUE_FULL", "queue.lease_waits_max")
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        last = await store.wait_in_line()
        for task in [*waiting[1:], last]:
            await store.release(token)
            token = await task


async def test_a_drain_ends_every_wait() -> None:
    async with open_store() as store:
        await store.acquire()
        waiting = [await store.wait_in_line() for _ in range(2)]
        store.leases.end_waits()
        for task in waiting:
            with pytest.raises(StoreError) as refused:
                await task
            assert refused.value.reason == "NOT_SERVING"
        with pytest.raises(StoreError) as late:
            await store.acquire(wait_s=LONG_S)
        assert late.value.reason == "NOT_SERVING"


async def test_many_who_race_are_granted_one_after_the_other() -> None:
    """Each adds one to a count in the workflow; none is lost, since only the holder may save."""
    async with open_store(waits_max=100) as store:
        holding = 0

        async def take_turn(number: int) -> int:
            nonlocal holding
            answer: LeaseAnswer = await store.leases.acquire(acquire_lease("w", request_id=str(number)), wait_s=LONG_S)
            holding += 1
            assert holding == 1
            await store.run(save("w", str(number), lease_token=answer.lease.token))
            holding -= 1
            await store.run(save("w", f"{number}.", lease_token=answer.lease.token, release_lease=True))
            return answer.lease.token

        tokens = await asyncio.gather(*(take_turn(number) for number in range(20)))
        assert len(set(tokens)) == 20
