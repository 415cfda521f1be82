"""Locks by key: shared with shared, exclusive with none, in the order they were asked for."""

from __future__ import annotations

import asyncio

import pytest

from milepost_server.locks import Key, KeyedLocks

A: Key = ("n", "a")
B: Key = ("n", "b")


class Holder:
    """Asks for locks in a task of its own, and holds them until told."""

    def __init__(
        self, locks: KeyedLocks, *, shared: list[Key] | None = None, exclusive: list[Key] | None = None
    ) -> None:
        self._let_go = asyncio.Event()
        self._is_holding = False
        self._locks, self._shared, self._exclusive = locks, shared or [], exclusive or []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._locks.hold(shared=self._shared, exclusive=self._exclusive):
            self._is_holding = True
            await self._let_go.wait()
        self._is_holding = False

    def holds(self) -> bool:
        """It has its locks now."""
        return self._is_holding

    async def let_go(self) -> None:
        self._let_go.set()
        await self.task


async def settle() -> None:
    """Let every task run as far as it can; nothing here waits for anything but other tasks."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_shared_holders_hold_together_and_an_exclusive_one_alone() -> None:
    locks = KeyedLocks()
    one, two = Holder(locks, shared=[A]), Holder(locks, shared=[A])
    alone = Holder(locks, exclusive=[A])
    await settle()
    assert (one.holds(), two.holds(), alone.holds()) == (True, True, False)
    await one.let_go()
    await settle()
    assert not alone.holds()
    await two.let_go()
    await settle()
    assert alone.holds()
    await alone.let_go()


async def test_whoever_came_later_does_not_overtake() -> None:
    locks = KeyedLocks()
    first = Holder(locks, shared=[A])
    exclusive = Holder(locks, exclusive=[A])
    await settle()
    late = Holder(locks, shared=[A])
    await settle()
    assert not late.holds()
    await first.let_go()
    await settle()
    assert (exclusive.holds(), late.holds()) == (True, False)
    await exclusive.let_go()
    await settle()
    assert late.holds()
    await late.let_go()


async def test_other_keys_are_free() -> None:
    locks = KeyedLocks()
    one, other = Holder(locks, exclusive=[A]), Holder(locks, exclusive=[B])
    await settle()
    assert one.holds()
    assert other.holds()
    await one.let_go()
    await other.let_go()


async def test_two_that_want_both_keys_never_wait_for_each_other() -> None:
    locks = KeyedLocks()
    holders = [Holder(locks, exclusive=keys) for keys in ([A, B], [B, A], [A, B])]
    for _ in holders:
        await settle()
        [holding] = [each for each in holders if each.holds()]
        await holding.let_go()


@pytest.mark.parametrize("is_shared", [True, False])
async def test_a_waiter_that_is_cancelled_holds_nobody_up(is_shared: bool) -> None:
    locks = KeyedLocks()
    first = Holder(locks, exclusive=[A])
    waiting = Holder(locks, shared=[A] if is_shared else [], exclusive=[] if is_shared else [A])
    await settle()
    last = Holder(locks, exclusive=[A])
    await settle()
    waiting.task.cancel()
    await first.let_go()
    await settle()
    assert last.holds()
    await last.let_go()


async def test_a_waiter_cancelled_at_the_moment_of_its_turn_passes_it_on() -> None:
    locks = KeyedLocks()
    first, waiting = Holder(locks, exclusive=[A]), Holder(locks, exclusive=[A])
    await settle()
    last = Holder(locks, exclusive=[A])
    await settle()
    first._let_go.set()
    await first.task
    # The lock has been handed to `waiting`, which has not run since.
    waiting.task.cancel()
    await settle()
    assert last.holds()
    await last.let_go()


async def test_locks_that_nobody_has_are_forgotten() -> None:
    locks = KeyedLocks()
    async with locks.hold(shared=[A], exclusive=[B]):
        pass
    assert not locks._locks
