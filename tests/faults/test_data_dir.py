"""What is wrong with a data directory is told at start, in one line that says what to do; nothing is made or changed.

A store that is gone, cut or foreign is never replaced by an empty one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pytest

from milepost_server.errors import RecordDamagedError
from milepost_server.storage import lmdb_env
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.lmdb_env import DataDirError
from milepost_server.testing.builders import ManualClock
from tests.support.fault_engines import OpenEngine, open_on, store_on
from tests.support.killable_server import SERVER, KillableServer
from tests.support.small_disk import mounted_tmpfs, require_mounts

PAGE_BYTES = 4096


def make_store(path: Path, *, lmdb_format: int = 0) -> None:
    engine = open_on(path, lmdb_format=lmdb_format)
    for number in range(20):
        store_on(engine).save("w", f"c{number}", {"a": "x" * 5_000})
    engine.close()


def contents(path: Path) -> dict[str, bytes]:
    """Return every file below a directory; LMDB's lock file aside, whose bytes change with every look."""
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in sorted(path.rglob("*"))
        if each.is_file() and each.name not in {"lock.mdb", "LOCK"}
    }


def refusal(data_dir: Path) -> str:
    """Return what is said at start; a store that opens fails the test."""
    with pytest.raises(DataDirError) as refused:
        open_on(data_dir).close()
    message = str(refused.value)
    assert "\n" not in message
    assert str(data_dir) in message
    return message


def test_a_second_engine_is_refused_and_told_who_has_the_directory(data_dir: Path, open_engine: OpenEngine) -> None:
    open_engine()

    message = refusal(data_dir)

    assert f"in use by process {os.getpid()}" in message
    assert "stop that server or name another --data-dir" in message


def test_a_directory_is_free_again_after_close(data_dir: Path, open_engine: OpenEngine) -> None:
    open_on(data_dir).close()

    open_engine()


@pytest.mark.slow
def test_a_second_server_exits_with_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("d")
    with KillableServer(directory) as server:
        server.start()
        second = subprocess.run(
            [sys.executable, *SERVER, "serve", "--data-dir", str(server.data_dir), "--listen", "127.0.0.1:0"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode not in {0, 1}
        assert second.stdout == ""
        (line,) = second.stderr.splitlines()
        assert "in use by process" in line
        assert server.stop() == 0


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    require_mounts()
    with mounted_tmpfs(tmp_path / "disk", size_mib=8) as disk:
        disk.remount_read_only()

        message = refusal(disk.path / "data")

        assert "cannot be written" in message
        assert "check its owner and its file system" in message


def test_a_store_on_a_read_only_disk_is_refused_and_not_changed(tmp_path: Path) -> None:
    require_mounts()
    with mounted_tmpfs(tmp_path / "disk", size_mib=8) as disk:
        make_store(disk.path / "data")
        before = contents(disk.path)
        disk.remount_read_only()

        message = refusal(disk.path / "data")

        assert "cannot be written" in message
        assert contents(disk.path) == before


def test_a_directory_with_other_files_is_refused_and_nothing_is_made_in_it(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "photo.jpg").write_bytes(b"mine")

    message = refusal(data_dir)

    assert "photo.jpg" in message
    assert "name an empty one" in message
    assert [path.name for path in data_dir.iterdir()] == ["photo.jpg"]


def test_a_file_in_the_place_of_the_directory_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"mine")

    assert "is not a directory; name another --data-dir" in refusal(path)
    assert path.read_bytes() == b"mine"


def test_a_file_above_the_directory_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")

    assert "cannot be written" in refusal(tmp_path / "file" / "data")


def test_leftovers_of_a_creation_that_was_cut_short_are_cleaned_away(data_dir: Path, open_engine: OpenEngine) -> None:
    leftover = data_dir / "creating-0123"
    leftover.mkdir(parents=True)
    (leftover / "data.mdb").write_bytes(b"half a page")

    store_on(open_engine()).save("w", "c1", {"a": 1})

    assert sorted(path.name for path in data_dir.iterdir()) == ["LOCK", "store"]


def remove_database(store: Path) -> None:
    (store / "data.mdb").unlink()


def remove_identity(store: Path) -> None:
    (store / "IDENTITY").unlink()


def empty_database(store: Path) -> None:
    os.truncate(store / "data.mdb", 0)


def cut_database_in_half(store: Path) -> None:
    os.truncate(store / "data.mdb", (store / "data.mdb").stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def cut_last_page(store: Path) -> None:
    os.truncate(store / "data.mdb", (store / "data.mdb").stat().st_size - PAGE_BYTES)


def cut_to_one_page(store: Path) -> None:
    os.truncate(store / "data.mdb", PAGE_BYTES)


def overwrite_database(store: Path) -> None:
    (store / "data.mdb").write_bytes(b"not a database " * 10_000)


def zero_all_rows(store: Path) -> None:
    with (store / "data.mdb").open("r+b") as file:
        file.seek(2 * PAGE_BYTES)
        file.write(bytes((store / "data.mdb").stat().st_size - 2 * PAGE_BYTES))


def replace_by_empty_database(store: Path) -> None:
    (store / "data.mdb").unlink()
    (store / "lock.mdb").unlink()
    env = lmdb.open(str(store))
    with env.begin(write=True) as txn:
        txn.put(b"other", b"row")
    env.close()


def make_identity_a_directory(store: Path) -> None:
    (store / "IDENTITY").unlink()
    (store / "IDENTITY").mkdir()


def scribble_identity(store: Path) -> None:
    (store / "IDENTITY").write_bytes(b"{")


def change_identity(store: Path, **fields: object) -> None:
    path = store / "IDENTITY"
    identity = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**identity, **fields}))


def give_identity_of_another_store(store: Path) -> None:
    change_identity(store, store_id="00000000-0000-0000-0000-000000000000")


def give_identity_of_a_newer_format(store: Path) -> None:
    change_identity(store, format=lmdb_env.STORE_FORMAT + 1)


def give_other_lmdb_format(store: Path) -> None:
    identity = msgspec.json.decode((store / "IDENTITY").read_bytes())
    change_identity(store, lmdb_format=1 - identity["lmdb_format"])


def remove_all(store: Path) -> None:
    for path in store.iterdir():
        path.unlink()


RESTORE = "restore it from a backup"


@pytest.mark.parametrize("lmdb_format", [0, 1], ids=["format0.9", "format1.0"])
@pytest.mark.parametrize(
    "damage,told",
    [
        (remove_database, f"is gone though IDENTITY is there; {RESTORE}"),
        (remove_identity, "has no IDENTITY"),
        (remove_all, "has no IDENTITY"),
        (make_identity_a_directory, "IDENTITY cannot be read: Is a directory"),
        (empty_database, RESTORE),
        (cut_database_in_half, RESTORE),
        (cut_to_one_page, RESTORE),
        (overwrite_database, RESTORE),
        (zero_all_rows, f"is damaged: mdb_get: MDB_CORRUPTED: Located page was wrong type; {RESTORE}"),
        (replace_by_empty_database, RESTORE),
        (scribble_identity, "IDENTITY cannot be read"),
        (give_identity_of_another_store, "restore both from one backup"),
        (give_identity_of_a_newer_format, "use the version that wrote it"),
        (give_other_lmdb_format, RESTORE),
    ],
)
def test_a_damaged_store_is_refused_and_not_changed(
    damage: Callable[[Path], None], told: str, lmdb_format: int, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    make_store(data_dir, lmdb_format=lmdb_format)
    damage(data_dir / "store")
    before = contents(data_dir)

    message = refusal(data_dir)

    assert told in message
    assert contents(data_dir) == before


@pytest.mark.parametrize("lmdb_format", [0, 1], ids=["format0.9", "format1.0"])
def test_a_store_without_its_last_page_is_refused_or_whole(lmdb_format: int, tmp_path: Path) -> None:
    """The last page may be one that nothing reaches; otherwise the start must notice."""
    data_dir = tmp_path / "data"
    make_store(data_dir, lmdb_format=lmdb_format)
    cut_last_page(data_dir / "store")

    try:
        engine = open_on(data_dir)
    except DataDirError:
        assert RESTORE in refusal(data_dir)
        return
    states = [store_on(engine).state("w", f"c{number}") for number in range(20)]
    engine.close()
    assert states == [{"a": "x" * 5_000}] * 20


@pytest.fixture
def two_stores(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    make_store(first)
    make_store(second)
    return first, second


def test_a_row_that_is_damaged_and_read_at_start_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    make_store(data_dir)

    def meet_damage(engine: LmdbEngine) -> None:
        raise RecordDamagedError("building", b"\0" * 8, "checksum")

    with monkeypatch.context() as patched:
        patched.setattr(LmdbEngine, "_abandon_forks", meet_damage)
        message = refusal(data_dir)
    assert "a stored record of table building is damaged" in message
    assert RESTORE in message
    # It has let go of the directory.
    open_on(data_dir).close()


def test_the_database_of_another_store_is_refused(two_stores: tuple[Path, Path]) -> None:
    first, second = two_stores
    shutil.copyfile(first / "store" / "data.mdb", second / "store" / "data.mdb")

    assert "is not the one that its IDENTITY names" in refusal(second)


def test_a_refused_start_leaves_the_lock_free(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    make_store(data_dir)
    hidden = tmp_path / "hidden"
    (data_dir / "store" / "data.mdb").rename(hidden)
    refusal(data_dir)
    hidden.rename(data_dir / "store" / "data.mdb")

    engine = LmdbEngine.open(data_dir)

    assert store_on(engine).load("w").row.checkpoint_id == "c19"
    engine.close()


def test_copies_of_a_store_give_no_incarnation_twice(tmp_path: Path) -> None:
    """Also where clocks say the same: a copy works beside its origin, or a backup after a clock was set back."""
    clock = ManualClock()
    engine = open_on(tmp_path / "origin", clock_ms=clock)
    store_on(engine).save("before", "a")
    engine.close()
    shutil.copytree(tmp_path / "origin", tmp_path / "copy")
    incarnations = []
    for name in ("origin", "copy"):
        engine = open_on(tmp_path / name, clock_ms=clock)
        store = store_on(engine)
        store.save("w", "a")
        store.fork("w", "v")
        incarnations += [store.get_workflow("w").incarnation, store.get_workflow("v").incarnation]
        engine.close()
    assert len(set(incarnations)) == 4
