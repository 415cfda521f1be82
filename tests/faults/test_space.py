"""G8: a full disk and a full map refuse what does not fit, lose nothing, and let deletes through."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milepost_server.errors import StorageFailedError, StoreError
from milepost_server.limits import KIB, MIB
from milepost_server.model import ProbeAnswer, ProbeCommand, SaveAnswer
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.verify import verify_store
from milepost_server.testing.builders import data_value, delete_workflow, record, refused, save
from tests.support.fault_engines import OpenEngine, open_on, store_on
from tests.support.small_disk import SmallDisk, mounted_tmpfs, require_mounts

DISK_MIB = 8
SAVES_MAX = 10_000
READER_DEADLINE_S = 60.0
BLOCK = random.Random(5).randbytes(60 * KIB)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    require_mounts()
    with mounted_tmpfs(tmp_path / "disk", size_mib=DISK_MIB) as disk:
        yield disk
        data_dir = disk.path / "data"
        if data_dir.exists():
            (disk.path / "ballast").unlink(missing_ok=True)
            assert verify_store(data_dir).problems == []


def save_until_refused(engine: LmdbEngine, workflow_id: str, block: bytes = BLOCK) -> tuple[list[str], StoreError]:
    """Save new content one by one until the store refuses; return what was acknowledged, and the refusal."""
    acknowledged: list[str] = []
    for number in range(SAVES_MAX):
        checkpoint_id = f"c{number}"
        state = {"block": data_value(block + checkpoint_id.encode())}
        (answer,) = engine.execute([save(workflow_id, checkpoint_id, state)])
        if isinstance(answer, StoreError):
            return acknowledged, answer
        acknowledged.append(checkpoint_id)
    raise AssertionError("the store never got full")


def assert_all_there(engine: LmdbEngine, workflow_id: str, acknowledged: list[str], block: bytes = BLOCK) -> None:
    store = store_on(engine)
    assert store.ids(workflow_id, newest_first=False) == acknowledged
    for checkpoint_id in acknowledged:
        loaded = store.load(workflow_id, checkpoint_id)
        assert loaded.entries is not None
        assert loaded.entries["block"].payload == block + checkpoint_id.encode()


def pass_a_commit(engine: LmdbEngine) -> None:
    """Commit once: LMDB uses pages that a commit freed from the second commit after it on."""
    assert isinstance(engine.execute([ProbeCommand()])[0], ProbeAnswer)


@pytest.mark.parametrize("lmdb_format", [0, 1], ids=["format0.9", "format1.0"])
def test_a_full_disk_loses_nothing_and_saves_go_on_with_room(disk: SmallDisk, lmdb_format: int) -> None:
    engine = open_on(disk.path / "data", lmdb_format=lmdb_format)
    store = store_on(engine)
    store.save("small", "c1", {"a": 1})
    ballast = disk.fill(leave_bytes=1 * MIB)

    acknowledged, error = save_until_refused(engine, "w")

    assert error.reason == "NOT_COMMITTED"
    assert error.retry_after_s is not None
    assert len(acknowledged) > 3
    assert_all_there(engine, "w", acknowledged)
    # A delete is small enough for pages that are free inside the file.
    assert store.delete_workflow("small").existed
    ballast.unlink()
    assert store.save("w", "more", {"block": data_value(BLOCK)}).sequence == len(acknowledged) + 1
    engine.close()
    engine = open_on(disk.path / "data")
    assert store_on(engine).ids("w", newest_first=False) == [*acknowledged, "more"]
    engine.close()


def test_low_disk_refuses_what_grows_and_lets_deletes_through(disk: SmallDisk) -> None:
    engine = open_on(disk.path / "data", low_disk_bytes=2 * MIB)
    store = store_on(engine)
    store.save_line("w", "c-2", "c-1", "c0")
    store.save("w", "c1", {"block": data_value(BLOCK)})
    store.save("other", "c1", {"a": 1})
    token = store.acquire("w").lease.token
    ballast = disk.fill(leave_bytes=2 * MIB - 64 * KIB)

    with refused("DISK_LOW") as refusal:
        store.save("w", "c2", {"a": 1})
    growing: list[Callable[[], object]] = [
        lambda: store.fork("w", "copy"),
        lambda: store.append("w", "c1", record("t")),
        lambda: store.send("w", "s1"),
        lambda: store.acquire("other"),
    ]
    for grow in growing:
        with refused("DISK_LOW"):
            grow()
    answers = engine.execute([save("w", "c3", {}), delete_workflow("other"), save("w", "c4", {})])

    told = refusal.error.metadata
    assert told == {"limit": "low_disk_bytes", "allowed": str(2 * MIB), "found": told["found"], "unit": "bytes"}
    assert int(told["found"]) < 2 * MIB
    assert all(text in str(refusal.error) for text in (told["found"], told["allowed"], "low_disk_bytes"))
    assert [getattr(answer, "reason", "done") for answer in answers] == ["DISK_LOW", "done", "DISK_LOW"]
    assert store.renew("w", token).lease.token == token
    assert store.release("w", token)
    assert store.delete_ids("w", "c-2") == 1
    assert store.prune("w", 1) == 2
    assert store.sweep() > 0
    assert store.ids("w") == ["c1"]
    ballast.unlink()
    store.save("w", "c2", {"a": 1})
    engine.close()


def test_the_low_mark_is_met_before_the_disk_is_full(disk: SmallDisk) -> None:
    engine = open_on(disk.path / "data", low_disk_bytes=1 * MIB)

    acknowledged, error = save_until_refused(engine, "w")

    assert error.reason == "DISK_LOW"
    assert disk.free_bytes > 0
    assert_all_there(engine, "w", acknowledged)
    store_on(engine).delete_workflow("w")
    store_on(engine).sweep()
    engine.close()


def test_the_map_grows_unseen_by_callers_and_readers(open_engine: OpenEngine) -> None:
    """The map doubles five times under readers in other threads, and nobody sees an error or other bytes."""
    engine = open_engine(map_size_bytes=1 * MIB, map_size_max_bytes=64 * MIB)
    store_on(engine).save("read", "c1", {"block": data_value(BLOCK)})
    is_over = threading.Event()
    failures: list[BaseException] = []
    read_counts = [0, 0, 0]

    def read_on(number: int) -> None:
        try:
            while not is_over.is_set():
                loaded = store_on(engine).load("read")
                assert loaded.entries is not None
                assert loaded.entries["block"].payload == BLOCK
                read_counts[number] += 1
        except BaseException as error:  # noqa: BLE001  (the edge of the thread: the test raises it)
            failures.append(error)

    readers = [threading.Thread(target=read_on, args=(number,)) for number in range(len(read_counts))]
    for reader in readers:
        reader.start()
    try:
        # Several commands a batch, so that the map also fills in the middle of one.
        for batch in range(100):
            answers = engine.execute(
                [
                    save("w", f"c{batch}-{item}", {"block": data_value(BLOCK + bytes([batch, item]))})
                    for item in range(3)
                ]
            )
            assert all(isinstance(answer, SaveAnswer) for answer in answers)
    finally:
        is_over.set()
        for reader in readers:
            reader.join(READER_DEADLINE_S)

    assert failures == []
    assert min(read_counts) > 0
    assert engine.statistics()["map_bytes"] == 32 * MIB
    assert [loaded.row.sequence for loaded in store_on(engine).page("w").checkpoints] == list(range(300, 0, -1))


@pytest.mark.parametrize("lmdb_format", [0, 1], ids=["format0.9", "format1.0"])
def test_at_its_largest_size_the_store_refuses_only_what_does_not_fit(
    open_engine: OpenEngine, lmdb_format: int
) -> None:
    engine = open_engine(map_size_bytes=1 * MIB, map_size_max_bytes=2 * MIB, lmdb_format=lmdb_format)
    store = store_on(engine)
    acknowledged, error = save_until_refused(engine, "w")
    assert error.reason == "STORE_FULL"
    assert error.metadata == {"limit": "map_size_max_bytes", "allowed": str(2 * MIB), "unit": "bytes"}
    assert_all_there(engine, "w", acknowledged)

    answers = engine.execute(
        [save("x", "small-1", {"a": 1}), save("x", "large", {"b": data_value(BLOCK)}), save("x", "small-2", {"a": 2})]
    )

    assert [getattr(answer, "reason", "stored") for answer in answers] == ["stored", "STORE_FULL", "stored"]
    assert store.ids("x", newest_first=False) == ["small-1", "small-2"]
    assert store.delete_workflow("w").checkpoint_count == len(acknowledged)
    store.sweep()
    pass_a_commit(engine)
    again, _ = save_until_refused(engine, "again")
    assert len(again) > len(acknowledged) // 2


def test_a_store_filled_by_small_saves_can_still_be_emptied(open_engine: OpenEngine) -> None:
    """Freeing needs pages too: they must be there when everything else is used up."""
    engine = open_engine(map_size_bytes=1 * MIB, map_size_max_bytes=1 * MIB)
    acknowledged, error = save_until_refused(engine, "w", block=b"x" * 400)
    assert error.reason == "STORE_FULL"

    store = store_on(engine)
    try:
        deleted = store.delete_workflow("w")
        store.sweep()
    except StorageFailedError as failure:
        raise AssertionError("the storage failed on a delete") from failure

    assert deleted.checkpoint_count == len(acknowledged)
    pass_a_commit(engine)
    store.save("w2", "c1", {"a": "x" * 10_000})
