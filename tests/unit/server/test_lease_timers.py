"""When leases expire: full times after a start, nothing before its commit, and no memory of what has run out."""

from __future__ import annotations

from pathlib import Path

import pytest

from milepost_server.errors import StorageFailedError, StoreError, UnavailableError
from milepost_server.model import LeaseRow
from milepost_server.storage import keys, lease_timers, lmdb_env, records
from milepost_server.storage.lease_timers import LeaseTimers, Timer, boot_clock_ms
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.testing.builders import (
    LEASE_TTL_MS,
    ManualClock,
    Store,
    acquire_lease,
    refused,
    renew_lease,
)

LEASE = LeaseRow(7, "h", 1_000, "", 0)


def test_a_lease_from_before_the_start_runs_its_full_time_from_it() -> None:
    clock = ManualClock(5_000)
    timers = LeaseTimers(clock)
    assert timers.remaining_ms(1, LEASE, clock()) == 1_000
    clock.advance(999)
    assert timers.remaining_ms(1, LEASE, clock()) == 1
    clock.advance(1_000)
    assert timers.remaining_ms(1, LEASE, clock()) == 0
    timers.restart()
    assert timers.remaining_ms(1, LEASE, clock()) == 1_000


def test_changes_that_are_not_committed_are_seen_by_who_made_them_alone() -> None:
    clock = ManualClock(0)
    timers = LeaseTimers(clock)
    clock.advance(10_000)
    changes = {1: Timer(LEASE.token, clock() + 500)}
    assert timers.remaining_ms(1, LEASE, clock(), changes) == 500
    assert timers.remaining_ms(1, LEASE, clock()) == 0
    timers.apply(changes)
    assert timers.remaining_ms(1, LEASE, clock()) == 500
    timers.apply({1: None})
    assert timers.remaining_ms(1, LEASE, clock()) == 0


def test_timers_that_have_run_out_are_forgotten_and_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_timers, "FORGET_COUNT_MIN", 10)
    clock = ManualClock(0)
    timers = LeaseTimers(clock)
    for name_id in range(1_000):
        timers.apply({name_id: Timer(LEASE.token, clock() + 1_000)})
        clock.advance(500)
    assert len(timers._timers) <= 20
    assert [timers.remaining_ms(name_id, LEASE, clock()) for name_id in (0, 998, 999)] == [0, 0, 500]


def test_the_clock_counts_on_and_is_not_that_of_the_wall() -> None:
    first, second = boot_clock_ms(), boot_clock_ms()
    assert 0 < first <= second < 1_000_000_000_000


@pytest.fixture
def lease_clock() -> ManualClock:
    return ManualClock(1_000)


def open_engine(folder: Path, lease_clock: ManualClock) -> LmdbEngine:
    return LmdbEngine.open(folder / "data", low_disk_bytes=0, lease_clock_ms=lease_clock, map_size_bytes=1 << 26)


def test_a_batch_that_is_not_stored_moves_no_time(
    tmp_path: Path, lease_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(tmp_path, lease_clock)
    store = Store(engine, lambda engine, what: engine.statistics()[what])
    token = store.acquire("w").lease.token
    lease_clock.advance(LEASE_TTL_MS - 1)

    def fail(engine: LmdbEngine, parent: lmdb_env.Transaction) -> None:
        parent.abort()
        raise UnavailableError("NOT_COMMITTED", "as the test says")

    with monkeypatch.context() as patched:
        patched.setattr(LmdbEngine, "_commit", fail)
        failed = engine.execute([renew_lease("w", token), acquire_lease("v")])
    assert [getattr(each, "reason", "") for each in failed] == ["NOT_COMMITTED"] * 2
    lease = store.get_lease("w")
    assert lease is not None
    assert lease.remaining_ms == 1
    assert store.get_lease("v") is None
    lease_clock.advance(1)
    assert store.acquire("w").lease.token > token
    engine.close()


def test_a_reopened_engine_gives_every_lease_its_full_time(tmp_path: Path, lease_clock: ManualClock) -> None:
    engine = open_engine(tmp_path, lease_clock)
    store = Store(engine, lambda engine, what: engine.statistics()[what])
    token = store.acquire("w").lease.token
    lease_clock.advance(LEASE_TTL_MS)
    engine.reopen()
    with refused("LEASE_HELD"):
        store.acquire("w")
    store.renew("w", token)
    engine.close()


def test_a_higher_epoch_makes_every_token_higher(tmp_path: Path, lease_clock: ManualClock) -> None:
    """What a restore will do, so that it grants none of the tokens that were granted after its backup."""
    engine = open_engine(tmp_path, lease_clock)
    store = Store(engine, lambda engine, what: engine.statistics()[what])
    old = store.acquire("w").lease.token
    meta = engine._read_meta()
    txn = engine._begin()
    raised = lmdb_env.MetaRow(meta.format, meta.store_id, meta.next_id, lease_epoch=3)
    txn.put(lmdb_env.META_KEY, records.encode(lmdb_env.META_KEY, raised))
    txn.commit()
    engine.close()

    engine = open_engine(tmp_path, lease_clock)
    store = Store(engine, lambda engine, what: engine.statistics()[what])
    new = store.acquire("v").lease.token
    assert (old, new) == (1, (3 << 32) + 2)
    store.save("v", "a", lease_token=new)
    engine.close()
    engine = open_engine(tmp_path, lease_clock)
    assert engine._read_meta().lease_epoch == 3, "commits keep it"
    engine.close()


def test_a_defect_in_the_fence_is_no_failure_of_the_storage(tmp_path: Path, lease_clock: ManualClock) -> None:
    """A lease whose row is gone is told as damage to whoever comes to it, and to nobody else."""
    engine = open_engine(tmp_path, lease_clock)
    store = Store(engine, lambda engine, what: engine.statistics()[what])
    store.acquire("w")
    txn = engine._begin()
    with engine._reading() as reading:
        name = reading.find_name("default", "w")
    assert name is not None
    assert txn.delete(keys.prefix(name.name_id, keys.LEASE))
    txn.commit()
    for call in (lambda: store.save("w", "a"), lambda: store.acquire("w"), lambda: store.get_lease("w")):
        with pytest.raises(StoreError) as caught:
            call()
        assert caught.value.reason == "RECORD_DAMAGED"
        assert not isinstance(caught.value, StorageFailedError)
    store.save("v", "a")
    engine.close()
