"""The rows that the writer keeps decoded: what is kept, how much, and that nothing undone is ever believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from milepost_server.errors import StoreError
from milepost_server.limits import Limits
from milepost_server.model import Answer, Command, ScopeRow
from milepost_server.storage import commands, lmdb_env
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.port import WriteTransaction
from milepost_server.storage.row_cache import ROW_BYTES_MAX, RowCache
from milepost_server.testing.builders import Store, save
from tests.support.fault_engines import open_on


def test_rows_are_kept_up_to_a_number_and_the_oldest_go_first() -> None:
    rows = RowCache(rows_max=8)
    for number in range(9):
        rows.keep(b"%d" % number, number + 100, 10)
    assert [rows.get(b"%d" % number) for number in range(9)] == [None, None, *range(102, 109)]


def test_a_row_that_is_written_again_is_a_new_one() -> None:
    rows = RowCache(rows_max=4)
    for key in (b"a", b"b", b"c", b"a", b"d", b"e"):
        rows.keep(key, 7, 10)
    assert [rows.get(key) for key in (b"a", b"b")] == [7, None]


@pytest.mark.parametrize("value, size_bytes", [(ScopeRow(0, "s"), ROW_BYTES_MAX + 1), (b"a piece", 10)])
def test_what_is_large_or_of_no_use_is_not_kept_and_what_was_there_is_forgotten(value: object, size_bytes: int) -> None:
    rows = RowCache()
    rows.keep(b"k", ScopeRow(0, ""), 10)
    rows.keep(b"k", value, size_bytes)
    assert rows.get(b"k") is None


@pytest.fixture
def engine(tmp_path: Path) -> LmdbEngine:
    return open_on(tmp_path / "data")


def store_of(engine: LmdbEngine) -> Store:
    return Store(engine, lambda engine, what: engine.statistics()[what])


def fail_after(text: str) -> Callable[[WriteTransaction, Command, Limits], Answer]:
    """Return a `commands.run` that fails once a command of that step has written everything."""
    run = commands.run

    def run_and_fail(txn: WriteTransaction, command: Command, limits: Limits) -> Answer:
        answer = run(txn, command, limits)
        if getattr(command, "current_step", "") == text:
            raise ZeroDivisionError("as the test says")
        return answer

    return run_and_fail


def test_what_a_failed_command_wrote_is_not_believed_by_the_next(
    engine: LmdbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(engine)
    store.save("w", "a", {"x": 1})
    monkeypatch.setattr(commands, "run", fail_after("fail"))
    failed, stored = engine.execute(
        [save("w", "b", {"x": 2}, current_step="fail"), save("w", "c", {"x": 3}, expected_head="a")]
    )
    assert isinstance(failed, StoreError)
    assert not isinstance(stored, StoreError)
    assert store.load("w", "c").row.parent_id == "a"
    assert store.load("w", "c").row.sequence == 2
    engine.close()


def test_what_a_commit_that_failed_wrote_is_not_believed_by_the_next(
    engine: LmdbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(engine)
    store.save("w", "a", {"x": 1})

    class Failing:
        """A transaction whose commit fails, with nothing stored."""

        def __init__(self, txn: lmdb_env.Transaction) -> None:
            self._txn = txn

        def commit(self) -> None:
            self._txn.abort()
            raise lmdb_env.EngineError("as the test says")

    commit = engine._commit
    monkeypatch.setattr(engine, "_commit", lambda parent: commit(Failing(parent)))  # type: ignore[arg-type]
    [failed] = engine.execute([save("w", "b", {"x": 2})])
    assert isinstance(failed, StoreError)
    assert failed.reason == "NOT_COMMITTED"
    monkeypatch.undo()
    store.save("w", "c", {"x": 3}, expected_head="a")
    assert store.load("w", "c").row.sequence == 2
    engine.close()


def test_what_a_batch_wrote_that_is_run_again_is_not_believed(
    engine: LmdbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(engine)
    store.save("w", "a", {"x": 1})
    run = commands.run
    is_full = iter([False, True])

    def run_on_a_full_map(txn: WriteTransaction, command: Command, limits: Limits) -> Answer:
        if next(is_full, False):
            raise lmdb_env.MapFullError("as the test says")
        return run(txn, command, limits)

    monkeypatch.setattr(commands, "run", run_on_a_full_map)
    answers = engine.execute([save("w", "b", {"x": 2}, expected_head="a"), save("w", "c", expected_head="b")])
    assert not any(isinstance(each, StoreError) for each in answers)
    assert store.ids("w") == ["c", "b", "a"]
    engine.close()
