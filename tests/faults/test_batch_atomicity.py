"""G2: a command that fails after its first write leaves nothing, and its neighbours in the batch are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milepost_server.errors import NotFoundError, PreconditionError, StoreError
from milepost_server.model import Answer, SaveAnswer
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.lmdb_write_transaction import LmdbWriteTransaction
from milepost_server.testing.builders import is_found, load_query, record, save
from tests.support.fault_engines import OpenEngine, store_on

PRIMITIVES = ("put_state", "put_checkpoint", "put_id", "put_scope", "put_record", "put_record_group", "put_workflow")
"""What a Save writes with, in about this order; before the last of them all the others have written."""

FailAt = Callable[[str, int, Callable[[], BaseException]], None]


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> FailAt:
    """Return a function that lets the n-th call of a primitive write first and raise then."""

    def arm(primitive: str, number: int, make_error: Callable[[], BaseException]) -> None:
        original = getattr(LmdbWriteTransaction, primitive)
        call_count = 0

        def write_then_fail(*arguments: Any, **options: Any) -> Any:
            nonlocal call_count
            call_count += 1
            result = original(*arguments, **options)
            if call_count == number:
                raise make_error()
            return result

        monkeypatch.setattr(LmdbWriteTransaction, primitive, write_then_fail)

    return arm


def refuse() -> BaseException:
    return PreconditionError("BASE_NOT_FOUND", "made up by the test")


def run_three(engine: LmdbEngine) -> list[Answer | StoreError]:
    """Save to three workflows in one batch, each new, with two records."""
    return list(
        engine.execute(
            [
                save(f"w{number}", "c1", {"a": number, "b": "x" * 5_000}, records=(record("t", 1), record("t", 2)))
                for number in range(3)
            ]
        )
    )


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_refusal_half_way_leaves_nothing_and_its_neighbours_are_stored(
    primitive: str, open_engine: OpenEngine, fail_at: FailAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    calls_per_save = calls_of_one_save(engine, primitive, monkeypatch)
    fail_at(primitive, calls_per_save + 1, refuse)

    answers = run_three(engine)

    assert [type(answer) for answer in answers] == [SaveAnswer, PreconditionError, SaveAnswer]
    store = store_on(engine)
    assert [is_found(store, f"w{number}") for number in range(3)] == [True, False, True]
    assert store.state("w2") == {"a": 2, "b": "x" * 5_000}
    monkeypatch.undo()
    # The same call again is a first one, in every respect.
    again = store.save("w1", "c1", {"a": 1, "b": "x" * 5_000}, records=(record("t", 1), record("t", 2)))
    assert (again.sequence, again.is_replayed) == (1, False)


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_defect_half_way_leaves_nothing_and_its_neighbours_are_stored(
    primitive: str,
    open_engine: OpenEngine,
    fail_at: FailAt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = open_engine()
    calls_per_save = calls_of_one_save(engine, primitive, monkeypatch)
    fail_at(primitive, calls_per_save + 1, lambda: ZeroDivisionError("made up by the test"))

    answers = run_three(engine)

    assert [getattr(answer, "reason", "stored") for answer in answers] == ["stored", "INTERNAL_ERROR", "stored"]
    # Its caller is told what to look for in the log.
    failed = answers[1]
    assert isinstance(failed, StoreError)
    assert failed.metadata["error_id"] in caplog.text
    store = store_on(engine)
    assert [is_found(store, f"w{number}") for number in range(3)] == [True, False, True]


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_batch_that_is_broken_off_leaves_nothing_at_all(
    primitive: str, open_engine: OpenEngine, fail_at: FailAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no `Exception`, as at the end of the process, undoes the whole batch."""
    engine = open_engine()
    calls_per_save = calls_of_one_save(engine, primitive, monkeypatch)
    fail_at(primitive, 2 * calls_per_save + 1, KeyboardInterrupt)

    with pytest.raises(KeyboardInterrupt):
        run_three(engine)

    store = store_on(engine)
    assert not any(is_found(store, f"w{number}") for number in range(3))
    monkeypatch.undo()
    assert all(isinstance(answer, SaveAnswer) for answer in run_three(engine))


def test_a_failed_command_does_not_change_what_later_ones_build_on(open_engine: OpenEngine, fail_at: FailAt) -> None:
    """The writer keeps resolved states; one that a failed command had begun to change must not be built on."""
    engine = open_engine()
    store = store_on(engine)
    store.save("w", "c1", {f"e{number}": number for number in range(10)})
    fail_at("put_workflow", 1, refuse)
    changed = save("w", "c2", {"e0": "changed"}, base_checkpoint_id="c1", removed_keys=("e1",))
    after = save("w", "c3", {"e2": "also"}, base_checkpoint_id="c1")

    answers = engine.execute([changed, after])

    assert [isinstance(answer, StoreError) for answer in answers] == [True, False]
    assert store.state("w", "c3") == {**{f"e{number}": number for number in range(10)}, "e2": "also"}
    with pytest.raises(NotFoundError):
        engine.load(load_query("w", "c2"))


def calls_of_one_save(engine: LmdbEngine, primitive: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Count how often the first Save of a workflow like those of `run_three` calls a primitive."""
    call_count = 0
    original = getattr(LmdbWriteTransaction, primitive)

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal call_count
        call_count += 1
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LmdbWriteTransaction, primitive, count)
        store_on(engine).save("counted", "c1", {"a": 9, "b": "x" * 5_000}, records=(record("t", 1), record("t", 2)))
    assert call_count > 0
    return call_count
