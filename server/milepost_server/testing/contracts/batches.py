"""Contract of batches: commands in order, each whole or not at all, and readers that see whole batches."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from milepost_server.errors import InvalidFieldError, RecordDamagedError, StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    Answer,
    AppendRecordsAnswer,
    BatchSaveAnswer,
    BatchSaveCommand,
    Command,
    ForkMode,
    ItemKey,
    ProbeAnswer,
    ProbeCommand,
    RefusedItem,
    SaveAnswer,
    SaveCommand,
)
from milepost_server.storage import commands
from milepost_server.storage.port import WriteTransaction
from milepost_server.testing.builders import (
    Store,
    append,
    delete_ids,
    delete_workflow,
    fork,
    is_found,
    list_query,
    record,
    save,
)
from milepost_server.testing.contracts.base import ContractBase

COUNTED = ("workflows", "checkpoints", "nodes", "values", "records", "ids", "names")


def reasons(outcomes: object) -> list[str]:
    """Return the reason of each refusal, "" for each answer."""
    assert isinstance(outcomes, list | tuple)
    return [outcome.reason if isinstance(outcome, StoreError) else "" for outcome in outcomes]


class BatchContract(ContractBase):
    """Several commands, one transaction."""

    def test_answers_come_in_the_order_of_the_commands(self, store: Store) -> None:
        answers = store.engine.execute([save("w", "a"), append("w", "a", record("t")), save("v", "b"), ProbeCommand()])
        assert [type(answer) for answer in answers] == [SaveAnswer, AppendRecordsAnswer, SaveAnswer, ProbeAnswer]

    def test_an_empty_batch_answers_nothing(self, store: Store) -> None:
        assert list(store.engine.execute([])) == []

    def test_commands_see_those_before_them(self, store: Store) -> None:
        answers = store.engine.execute(
            [
                save("w", "a", {"x": 1}),
                save("w", "b", {"y": 1}, base_checkpoint_id="a", expected_head="a"),
                append("w", "b", record("t"), require_checkpoint=True),
                save("w", "a", {"x": 1}),
                fork("w", "v", mode=ForkMode.ANCESTORS),
                delete_ids("w", "a"),
                save("w", "a", {"x": 1}),
            ]
        )
        assert reasons(answers) == ["", "", "", "", "", "", "CHECKPOINT_DELETED"]
        assert (store.state("w"), store.ids("v")) == ({"x": 1, "y": 1}, ["b", "a"])

    def test_a_workflow_may_be_made_deleted_and_made_again_in_one_batch(self, store: Store) -> None:
        answers = store.engine.execute([save("w", "a"), delete_workflow("w"), save("w", "b"), save("w", "a")])
        assert reasons(answers) == ["", "", "", "CHECKPOINT_DELETED"]
        assert store.ids("w") == ["b"]

    def test_a_refused_command_leaves_the_others(self, store: Store) -> None:
        answers = store.engine.execute(
            [
                save("w", "a", {"x": 1}),
                save("w", "a", {"x": 2}),
                save("w", "b", {"x": 3}, base_checkpoint_id="nowhere"),
                save("w", "c", {"x": 4}, expected_head="a"),
            ]
        )
        assert reasons(answers) == ["", "CHECKPOINT_EXISTS", "BASE_NOT_FOUND", ""]
        assert store.ids("w") == ["c", "a"]

    def test_a_sequence_is_not_spent_by_a_refused_command(self, store: Store) -> None:
        store.engine.execute([save("w", "a"), save("w", "b", expected_head=""), save("w", "c")])
        assert [loaded.row.sequence for loaded in store.page("w").checkpoints] == [2, 1]

    @pytest.mark.parametrize(
        "primitive", ["put_state", "put_checkpoint", "put_id", "put_scope", "put_record", "put_workflow"]
    )
    def test_a_save_that_fails_halfway_leaves_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, primitive: str
    ) -> None:
        store.save("w", "a", {"x": 1, "same": 1})
        before = {what: store.count(what) for what in COUNTED}, store.get_workflow("w")
        self._break(monkeypatch, primitive, after="broken")
        broken = save("w", "broken", {"x": 2, "same": 1}, records=(record("t"),), scope="s", run_id="r")
        (outcome,) = store.engine.execute([broken])
        assert reasons([outcome]) == ["RECORD_DAMAGED"]
        monkeypatch.undo()
        assert ({what: store.count(what) for what in COUNTED}, store.get_workflow("w")) == before
        assert not store.run(broken, SaveAnswer).is_replayed

    @pytest.mark.parametrize("primitive", ["put_checkpoint", "put_id", "put_scope", "put_workflow"])
    def test_a_first_save_that_fails_halfway_leaves_the_rest_of_its_batch(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, primitive: str
    ) -> None:
        self._break(monkeypatch, primitive, after="broken")
        answers = store.engine.execute(
            [
                save("w", "a", {"x": 1}),
                save("v", "broken", {"x": 1}),
                save("w", "b", {"x": 2}),
                save("v", "fine", {"x": 3}),
            ]
        )
        monkeypatch.undo()
        assert reasons(answers) == ["", "RECORD_DAMAGED", "", ""]
        assert (store.ids("w"), store.ids("v")) == (["b", "a"], ["fine"])
        assert [store.state("w"), store.state("v")] == [{"x": 2}, {"x": 3}]
        assert store.count("values") == 3

    def test_an_increment_that_fails_halfway_leaves_its_base_as_it_was(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.save("w", "a", {"x": 1, "y": 1}, steps_added=("one",))
        self._break(monkeypatch, "put_workflow", after="broken")
        answers = store.engine.execute(
            [
                save("w", "broken", {"x": 2}, base_checkpoint_id="a", removed_keys=("y",), steps_added=("two",)),
                save("w", "b", {"z": 3}, base_checkpoint_id="a", steps_added=("three",)),
            ]
        )
        monkeypatch.undo()
        assert reasons(answers) == ["RECORD_DAMAGED", ""]
        assert (store.state("w"), store.load("w").steps) == ({"x": 1, "y": 1, "z": 3}, ("one", "three"))
        assert (store.state("w", "a"), store.load("w", "a").steps) == ({"x": 1, "y": 1}, ("one",))

    def test_a_delete_that_fails_halfway_leaves_everything(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in "abc":
            store.save("w", name, {"x": name}, records=(record("t"),))
        self._break(monkeypatch, "put_workflow", after="")
        outcomes = store.engine.execute([delete_ids("w", "a", "c")])
        monkeypatch.undo()
        assert reasons(outcomes) == ["RECORD_DAMAGED"]
        assert [store.state("w", name) for name in "abc"] == [{"x": name} for name in "abc"]
        assert store.load("w").records == (record("t"),)
        assert store.save("w", "a", {"x": "a"}, records=(record("t"),)).is_replayed

    def test_a_command_that_meets_a_defect_fails_alone(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        self._break(monkeypatch, "put_workflow", after="broken", error=RuntimeError("broken on purpose"))
        answers = store.engine.execute([save("w", "a"), save("w", "broken", {"x": 1}), save("w", "b")])
        monkeypatch.undo()
        assert reasons(answers) == ["", "INTERNAL_ERROR", ""]
        assert (store.ids("w"), store.count("values")) == (["b", "a"], 0)
        assert "broken on purpose" in caplog.text

    def _break(
        self, monkeypatch: pytest.MonkeyPatch, primitive: str, *, after: str, error: Exception | None = None
    ) -> None:
        """Let a primitive do its work and then fail, for commands whose checkpoint_id is `after`, or for all."""
        run = commands.run

        def run_broken(txn: WriteTransaction, command: Command, limits: Limits) -> Answer:
            if after and getattr(command, "checkpoint_id", None) != after:
                return run(txn, command, limits)
            work: Callable[..., object] = getattr(txn, primitive)

            def fail(*args: object, **kwargs: object) -> object:
                work(*args, **kwargs)
                raise error or RecordDamagedError("test", b"key", "broken on purpose")

            setattr(txn, primitive, fail)
            try:
                return run(txn, command, limits)
            finally:
                delattr(txn, primitive)

        monkeypatch.setattr(commands, "run", run_broken)

    def test_a_reader_never_sees_half_a_batch(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        store.save("w", "0")
        seen: list[int] = []
        readers: list[threading.Thread] = []

        def read() -> None:
            seen.append(len(store.engine.list_checkpoints(list_query("w")).checkpoints))

        run = commands.run

        def run_watched(txn: WriteTransaction, command: Command, limits: Limits) -> Answer:
            readers.append(threading.Thread(target=read))
            readers[-1].start()
            return run(txn, command, limits)

        monkeypatch.setattr(commands, "run", run_watched)
        store.engine.execute([save("w", name) for name in "abc"])
        for reader in readers:
            reader.join()
        assert len(seen) == 3
        assert set(seen) <= {1, 4}

    def test_a_batch_that_was_answered_is_seen_by_other_threads(self, store: Store) -> None:
        store.save("w", "a")
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(store.head("w")))
        reader.start()
        reader.join()
        assert seen == ["a"]

    def test_a_probe_is_answered_and_changes_nothing(self, store: Store) -> None:
        store.run(ProbeCommand(), ProbeAnswer)
        assert not is_found(store, "w")
        assert {what: store.count(what) for what in COUNTED} == dict.fromkeys(COUNTED, 0)


class BatchSaveContract(ContractBase):
    """The items of one BatchSave. Not for an engine in another process, to which they cross encoded."""

    def batch_save(
        self,
        store: Store,
        *items: SaveCommand | RefusedItem,
        first_number: int = 0,
        failed: dict[ItemKey, int] | None = None,
    ) -> BatchSaveAnswer:
        command = BatchSaveCommand(items=items, first_number=first_number, failed=failed or {})
        return store.run(command, BatchSaveAnswer)

    def test_items_are_stored_in_order_and_see_those_before_them(self, store: Store) -> None:
        answer = self.batch_save(
            store,
            save("w", "a", {"x": 1}),
            save("w", "b", {"y": 1}, base_checkpoint_id="a", expected_head="a"),
            save("v", "a"),
        )
        assert reasons(answer.outcomes) == ["", "", ""]
        assert answer.failed == {}
        assert (store.state("w"), store.ids("w"), store.ids("v")) == ({"x": 1, "y": 1}, ["b", "a"], ["a"])

    def test_what_builds_on_a_failed_item_is_refused_and_the_rest_is_stored(self, store: Store) -> None:
        answer = self.batch_save(
            store,
            save("w", "a", expected_head="nobody"),
            save("w", "b", parent_id="a"),
            save("w", "c", base_checkpoint_id="b"),
            save("w", "d", expected_head="c"),
            save("w", "e"),
            save("w", "f", parent_id="e"),
        )
        assert reasons(answer.outcomes) == ["HEAD_MOVED", *["PREDECESSOR_FAILED"] * 3, "", ""]
        assert store.ids("w") == ["f", "e"]
        assert answer.failed == {("default", "w", "", name): number for number, name in enumerate("abcd")}

    def test_an_item_never_lands_on_what_another_writer_has_under_the_id_of_a_failed_one(self, store: Store) -> None:
        store.save("w", "a", {"x": "of another writer"})
        answer = self.batch_save(store, save("w", "a", {"x": 1}), save("w", "b", {"y": 1}, base_checkpoint_id="a"))
        assert reasons(answer.outcomes) == ["CHECKPOINT_EXISTS", "PREDECESSOR_FAILED"]
        assert store.ids("w") == ["a"]

    def test_a_malformed_item_counts_as_failed(self, store: Store) -> None:
        store.save("w", "a")
        malformed = RefusedItem(InvalidFieldError("items[0].metadata", "must be JSON", "{"), "default", "w", "", "a")
        answer = self.batch_save(store, malformed, save("w", "b", parent_id="a"))
        assert reasons(answer.outcomes) == ["INVALID_FIELD", "PREDECESSOR_FAILED"]

    def test_an_id_that_is_stored_after_all_is_no_failed_one_any_more(self, store: Store) -> None:
        answer = self.batch_save(
            store, save("w", "a", expected_head="nobody"), save("w", "a"), save("w", "b", parent_id="a")
        )
        assert reasons(answer.outcomes) == ["HEAD_MOVED", "", ""]
        assert answer.failed == {}

    def test_an_id_that_was_stored_and_then_fails_is_a_failed_one(self, store: Store) -> None:
        """The newest item of an id is the one that later items were made for."""
        answer = self.batch_save(
            store,
            save("w", "a"),
            save("w", "b", parent_id="a"),
            save("w", "a", {"x": 2}),
            save("w", "c", parent_id="a"),
        )
        assert reasons(answer.outcomes) == ["", "", "CHECKPOINT_EXISTS", "PREDECESSOR_FAILED"]
        assert answer.failed == {("default", "w", "", "a"): 2, ("default", "w", "", "c"): 3}
        assert store.ids("w") == ["b", "a"]

    def test_a_slice_goes_on_from_the_failures_of_those_before_it(self, store: Store) -> None:
        store.save("w", "a")
        answer = self.batch_save(
            store,
            save("w", "b", parent_id="a"),
            save("v", "b", parent_id="a", scope="s"),
            save("w", "c"),
            first_number=7,
            failed={("default", "w", "", "a"): 3},
        )
        assert reasons(answer.outcomes) == ["PREDECESSOR_FAILED", "PARENT_NOT_FOUND", ""]
        refused = answer.outcomes[0]
        assert isinstance(refused, StoreError)
        assert refused.metadata == {"index": "7", "predecessor_index": "3"}
        assert answer.failed == {
            ("default", "w", "", "a"): 3,
            ("default", "w", "", "b"): 7,
            ("default", "v", "s", "b"): 8,
        }

    def test_the_same_id_elsewhere_is_no_failed_one(self, store: Store) -> None:
        store.save("w", "p", scope="b")
        store.save("v", "p")
        store.save("w", "p", namespace="other")
        answer = self.batch_save(
            store,
            save("w", "p", scope="a", expected_head="nobody"),
            save("w", "q", scope="b", parent_id="p"),
            save("v", "q", parent_id="p"),
            save("w", "q", namespace="other", parent_id="p"),
        )
        assert reasons(answer.outcomes) == ["HEAD_MOVED", "", "", ""]

    def test_a_batch_whose_items_all_fail_leaves_nothing(self, store: Store) -> None:
        answer = self.batch_save(store, save("w", "a", parent_id="nobody"), save("w", "b", parent_id="a"))
        assert reasons(answer.outcomes) == ["PARENT_NOT_FOUND", "PREDECESSOR_FAILED"]
        assert {what: store.count(what) for what in COUNTED} == dict.fromkeys(COUNTED, 0)
