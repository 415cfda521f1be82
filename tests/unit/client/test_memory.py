"""What of the in-memory stores the contract cannot show: time, threads, limits, what is kept."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from datetime import UTC, datetime
from typing import Any

import pytest

from milepost._memory import events
from milepost.codecs import MSGPACK
from milepost.errors import (
    CheckpointDeletedError,
    HeadMovedError,
    LeaseHeldError,
    LeaseLostError,
    LimitExceededError,
    MilepostError,
    QuotaExceededError,
    WatchCompactedError,
    WatchTooSlowError,
)
from milepost.memory import AsyncInMemoryStore, InMemoryStore
from milepost.protocols import AsyncCheckpointStore, AsyncSupportsRecords, CheckpointStore, SupportsRecords
from milepost.testing import FakeClock
from milepost.types import Record, Saved, WatchEventKind

DAY_S = 86_400.0


def test_both_are_what_the_protocols_ask_for() -> None:
    store: CheckpointStore = InMemoryStore()
    records: SupportsRecords = InMemoryStore()
    async_store: AsyncCheckpointStore = AsyncInMemoryStore()
    async_records: AsyncSupportsRecords = AsyncInMemoryStore()
    assert isinstance(store, CheckpointStore)
    assert isinstance(records, SupportsRecords)
    assert isinstance(async_store, AsyncCheckpointStore)
    assert isinstance(async_records, AsyncSupportsRecords)


def test_time_and_ids_are_passed_in() -> None:
    clock = FakeClock(datetime(2024, 5, 1, tzinfo=UTC))
    numbers = itertools.count(1)
    store = InMemoryStore(clock=clock, new_id=lambda: f"id-{next(numbers)}", namespace="tests", codec=MSGPACK)
    clock.advance(60)
    saved = store.save("w", state={"a": (1,)})
    assert (saved.checkpoint_id, saved.create_time) == ("id-1", datetime(2024, 5, 1, 0, 1, tzinfo=UTC))
    assert (saved.namespace, store.load("w").namespace, store.workflow("w").namespace) == ("tests",) * 3
    assert store.load("w").state == {"a": (1,)}


async def test_the_async_store_is_used_with_await() -> None:
    async with AsyncInMemoryStore() as store:
        first = await store.save("w", state={"n": 1}, after="start")
        await store.save("w", state={"n": 2}, after=first)
        assert (await store.load("w")).state == {"n": 2}
        assert [one.sequence async for one in store.list("w")] == [2, 1]
        assert [info.workflow_id async for info in store.workflows()] == ["w"]
        assert [one.value async for one in store.entry_history("w", "n")] == [2, 1]
        await store.ping()


def test_a_store_stays_usable_after_its_with_block() -> None:
    with InMemoryStore() as store:
        store.save("w", state={})
    assert store.load("w").state == {}
    store.ping()


def test_only_one_of_many_threads_goes_on_from_a_checkpoint() -> None:
    store = InMemoryStore()
    first = store.save("w", state={"n": 0}, after="start")
    barrier = threading.Barrier(8)
    results: list[Saved | MilepostError] = []

    def work(number: int) -> None:
        barrier.wait()
        try:
            results.append(store.save("w", state={"n": number}, after=first))
        except HeadMovedError as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [result for result in results if isinstance(result, Saved)]
    assert winner.sequence == 2
    assert len(results) == 8


def test_unconditional_saves_of_many_threads_all_have_a_place() -> None:
    store = InMemoryStore()

    def work(number: int) -> None:
        for step in range(50):
            store.save("w", state={"n": step}, completed_steps=[f"{number}-{step}"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    line = list(store.list("w", newest_first=False))
    assert [one.sequence for one in line] == [*range(1, 201)]
    assert [one.parent_id for one in line[1:]] == [one.checkpoint_id for one in line[:-1]]
    assert len(set(store.load("w").completed_steps)) == 200


def test_no_live_object_is_kept() -> None:
    store = InMemoryStore()
    state: dict[str, Any] = {"set": {1}, "list": [1]}

    class Listed(dict[str, Any]):
        pass

    holder = Listed(state)
    seen = weakref.ref(holder)
    store.save("w", state=holder)
    del holder
    gc.collect()
    assert seen() is None


def test_a_retry_is_known_for_seven_days_after_a_delete() -> None:
    clock = FakeClock()
    store = InMemoryStore(clock=clock)
    store.save("w", state={}, checkpoint_id="c1", after="start")
    store.delete("w")
    clock.advance(7 * DAY_S - 1)
    with pytest.raises(CheckpointDeletedError):
        store.save("w", state={}, checkpoint_id="c1", after="start")
    clock.advance(1)
    assert store.save("w", state={}, checkpoint_id="c1", after="start").sequence == 1


def test_stubs_do_not_pile_up_for_ever() -> None:
    clock = FakeClock()
    store = InMemoryStore(clock=clock)
    for number in range(100):
        store.save("w", state={}, checkpoint_id=f"c{number}")
        store.delete("w")
        clock.advance(DAY_S)
    assert len(store._core._stubs) <= 8


def test_waiting_records_are_bounded_and_expire() -> None:
    clock = FakeClock()
    store = InMemoryStore(clock=clock)
    store.append_records("w", "c1", [Record(index=number) for number in range(1_000)])
    with pytest.raises(QuotaExceededError) as caught:
        store.append_records("w", "c2", [Record()])
    assert (caught.value.limit, caught.value.allowed) == ("waiting_records_max", 1_000)
    clock.advance(DAY_S)
    store.append_records("w", "c2", [Record()])
    store.save("w", state={}, checkpoint_id="c1")
    assert store.load("w").record_count == 0


@pytest.mark.parametrize(
    "arguments,limit",
    [
        ({"state": {f"k{number}": 0 for number in range(10_001)}}, "entries_max"),
        ({"state": {"a": "x" * 9_000_000, "b": "x" * 9_000_000}}, "state_bytes_max"),
        ({"state": {}, "metadata": {"m": "x" * 65_536}}, "metadata_bytes_max"),
        ({"state": {}, "labels": {str(number): "" for number in range(17)}}, "labels_max"),
        ({"state": {}, "records": [Record(value="x" * 17_000_000)]}, "records_bytes_max"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_limits_are_those_of_a_server(arguments: dict[str, Any], limit: str) -> None:
    store = InMemoryStore()
    with pytest.raises(LimitExceededError) as caught:
        store.save("w", **arguments)
    assert caught.value.limit == limit
    assert caught.value.found is not None
    assert caught.value.allowed is not None
    assert caught.value.found > caught.value.allowed
    assert list(store.workflows()) == []


def test_a_long_chain_of_steps_costs_its_length() -> None:
    store = InMemoryStore()
    after: Any = "start"
    for number in range(2_000):
        after = store.save("w", state={}, after=after, completed_steps=[f"s{number}"])
    rows = store._core._workflows["w"].rows.values()
    assert {len(row.steps.added) for row in rows} == {1}
    assert store.load("w").completed_steps == tuple(f"s{number}" for number in range(2_000))


def test_an_incremental_line_after_a_branch_has_its_own_steps() -> None:
    store = InMemoryStore()
    store.save("w", state={}, checkpoint_id="c1", completed_steps=["a"])
    store.save("w", state={}, checkpoint_id="c2", completed_steps=["b"])
    store.delete_checkpoints("w", ["c2"])
    store.save("w", state={}, checkpoint_id="c3", completed_steps=["b", "c"])
    assert store.load("w").completed_steps == ("a", "b", "c")


def test_a_replay_whose_parent_was_pruned_is_still_one() -> None:
    store = InMemoryStore()
    first = store.save("w", state={}, checkpoint_id="c1", after="start", completed_steps=["a"])
    store.save("w", state={}, checkpoint_id="c2", after=first, completed_steps=["b"])
    store.prune("w")
    assert store.save("w", state={}, checkpoint_id="c2", after=first, completed_steps=["b"]).replayed


def test_lists_check_their_limit() -> None:
    store = InMemoryStore()
    store.save("w", state={})
    for call in (
        lambda: list(store.list("w", limit=-1)),
        lambda: list(store.workflows(limit=-1)),
        lambda: list(store.entry_history("w", "a", limit=-1)),
        lambda: list(store.workflows(updated_from=datetime(2024, 1, 1))),  # noqa: DTZ001
    ):
        with pytest.raises(ValueError, match=r"limit|time zone"):
            call()
    with pytest.raises(TypeError):
        store.load("w", entries="abc")


# Leases, signals, watching.


def test_a_lease_runs_out_by_the_clock_of_the_store() -> None:
    clock = FakeClock()
    store = InMemoryStore(clock=clock)
    token = store.acquire_lease("w", ttl_s=10).token
    clock.advance(11)
    store.save("w", state={"n": 1}, lease_token=token)
    with pytest.raises(LeaseHeldError):
        store.save("w", state={"n": 2})
    clock.advance(11)
    store.save("w", state={"n": 2})
    with pytest.raises(LeaseLostError):
        store.renew_lease("w", token)


def test_a_block_knows_that_its_lease_has_run_out() -> None:
    clock = FakeClock()
    with InMemoryStore(clock=clock).lease("w", ttl_s=3_600) as lease:
        known = [lease.is_valid]
        clock.advance(3_601)
        known.append(lease.is_valid)
        assert known == [True, False]
        assert not lease.lost


def test_who_waits_for_a_lease_is_woken_by_its_release() -> None:
    store = InMemoryStore()
    mine = store.acquire_lease("w", ttl_s=3_600)
    granted: list[int] = []
    waiting = threading.Thread(target=lambda: granted.append(store.acquire_lease("w", wait_s=60).token))
    waiting.start()
    store.release_lease("w", mine.token)
    waiting.join(30)
    assert granted == [mine.token + 1]


async def test_an_async_waiter_leaves_the_loop_to_others() -> None:
    store = AsyncInMemoryStore()
    mine = await store.acquire_lease("w", ttl_s=3_600)
    waiting = asyncio.create_task(store.acquire_lease("w", wait_s=60))
    await asyncio.sleep(0)
    assert await store.release_lease("w", mine.token)
    async with asyncio.timeout(30):
        assert (await waiting).token > mine.token
    with pytest.raises(LeaseHeldError):
        await store.acquire_lease("w", wait_s=0.01)


def test_a_consumed_signal_is_known_for_the_replay_window() -> None:
    clock = FakeClock()
    store = InMemoryStore(clock=clock)
    store.save("w", state={})
    store.send_signal("w", "go", signal_id="s1")
    store.save("w", state={}, consumed_signals=["s1"])
    clock.advance(7 * DAY_S - 1)
    assert store.send_signal("w", "go", signal_id="s1").consumed
    clock.advance(2)
    assert not store.send_signal("w", "go", signal_id="s1").replayed


def test_signals_that_nobody_consumes_have_a_bound() -> None:
    store = InMemoryStore()
    store.save("w", state={})
    for number in range(1_000):
        store.send_signal("w", "go", signal_id=f"s{number}")
    with pytest.raises(QuotaExceededError) as caught:
        store.send_signal("w", "go")
    assert (caught.value.limit, caught.value.allowed) == ("pending_signals_max", 1_000)
    assert store.send_signal("w", "go", signal_id="s0").replayed
    store.save("w", state={}, consumed_signals=["s0"])
    store.send_signal("w", "go")


def test_a_watcher_that_does_not_read_is_told_that_it_missed_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENTS_MAX", 5)
    store = InMemoryStore()
    store.save("w", state={})
    before = store.workflow("w")
    with store.watch("w") as slow, store.watch("other") as other:
        next(slow)
        next(other)
        for _ in range(6):
            store.save("w", state={})
        for watch in (slow, other):
            with pytest.raises(WatchTooSlowError):
                next(watch)
    with store.watch("w", after=before) as late, pytest.raises(WatchCompactedError):
        next(late)
    with store.watch("w", after=(before.incarnation, before.revision + 1)) as late:
        assert [next(late).revision for _ in range(6)] == [2, 3, 4, 5, 6, 7]


def test_a_watcher_in_another_thread_is_woken_by_events_and_by_the_close() -> None:
    store = InMemoryStore()
    watch = store.watch()
    started, told = threading.Event(), threading.Event()
    seen: list[WatchEventKind] = []

    def read() -> None:
        for event in watch:
            seen.append(event.kind)
            (started if event.kind is WatchEventKind.STARTED else told).set()

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(30)
    store.save("w", state={})
    assert told.wait(30)
    watch.close()
    reader.join(30)
    assert not reader.is_alive()
    assert seen == [WatchEventKind.STARTED, WatchEventKind.SAVED]
    assert not store._core._log._bells, "a closed watch leaves nothing behind"


async def test_an_async_watcher_is_woken_from_another_thread() -> None:
    store = AsyncInMemoryStore()
    async with store.watch() as watch, asyncio.timeout(30):
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await asyncio.to_thread(asyncio.run, store.save("w", state={}))
        assert (await waiting).kind is WatchEventKind.SAVED
