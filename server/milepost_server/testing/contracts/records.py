"""Contract of records: first wins, order, waiting for a checkpoint, and limits."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

import pytest

from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.model import Record, RecordOutcome, Selection, SweepCommand
from milepost_server.testing.builders import ManualClock, Store, data_value, is_found, record, refused
from milepost_server.testing.contracts.base import ContractBase, OpenStore

CREATED, EXISTING, OVERWRITTEN = RecordOutcome.CREATED, RecordOutcome.EXISTING, RecordOutcome.OVERWRITTEN


class RecordContract(ContractBase):
    """Small append-only items beside a checkpoint."""

    def test_a_record_is_loaded_as_it_was_sent(self, store: Store) -> None:
        sent = Record("t\U0001f600", -7, "path/é", "name é", data_value(b"\0\xff", "codec", 1))
        store.save("w", "a")
        store.append("w", "a", sent)
        assert store.load("w").records == (sent,)

    def test_the_first_record_of_a_key_wins(self, store: Store) -> None:
        store.save("w", "a")
        assert store.append("w", "a", record("t", 0, "first")).outcomes == (CREATED,)
        assert store.append("w", "a", record("t", 0, "second")).outcomes == (EXISTING,)
        assert store.load("w").records == (record("t", 0, "first"),)

    def test_a_record_may_overwrite(self, store: Store) -> None:
        store.save("w", "a", records=(record("t", 0, "first", path="p", name="n"),))
        answer = store.append("w", "a", record("t", 0, "second", path="q", overwrite=True))
        assert answer.outcomes == (OVERWRITTEN,)
        assert store.load("w").records == (record("t", 0, "second", path="q"),)

    def test_a_record_that_may_overwrite_but_need_not_is_created(self, store: Store) -> None:
        store.save("w", "a")
        assert store.append("w", "a", record("t", overwrite=True)).outcomes == (CREATED,)
        assert store.load("w").records == (record("t"),)

    def test_each_record_of_a_call_has_its_own_outcome(self, store: Store) -> None:
        store.save("w", "a", records=(record("t", 1), record("t", 2)))
        answer = store.append("w", "a", record("t", 1), record("t", 2, 2, overwrite=True), record("t", 3))
        assert answer.outcomes == (EXISTING, OVERWRITTEN, CREATED)

    def test_records_of_one_key_in_one_call_follow_the_same_rule(self, store: Store) -> None:
        store.save("w", "a")
        answer = store.append("w", "a", record("t", 0, 1), record("t", 0, 2), record("t", 0, 3, overwrite=True))
        assert answer.outcomes == (CREATED, EXISTING, OVERWRITTEN)
        loaded = store.load("w")
        assert (loaded.records, loaded.record_count) == ((record("t", 0, 3),), 1)

    def test_records_are_answered_by_path_task_and_index(self, store: Store) -> None:
        ordered = [
            record("z", 0, path=""),
            record("B", 0, path="p"),
            record("a", -2, path="p"),
            record("a", -1, path="p"),
            record("a", 0, path="p"),
            record("a", 10, path="p"),
            record("a!", 0, path="p"),
            record("é", 0, path="p"),
            record("\U0001f600", 0, path="p"),
            record("a", 3, path="pp"),
        ]
        store.save("w", "a")
        store.append("w", "a", *reversed(ordered))
        assert list(store.load("w").records) == ordered

    def test_the_key_is_task_and_index_whatever_the_path(self, store: Store) -> None:
        store.save("w", "a", records=(record("t", 0, path="p"),))
        assert store.append("w", "a", record("t", 0, path="q")).outcomes == (EXISTING,)

    def test_indexes_of_both_signs_are_apart(self, store: Store) -> None:
        store.save("w", "a")
        indexes = [-(2**31), -256, -1, 0, 1, 255, 2**31 - 1]
        store.append("w", "a", *(record("", index, index) for index in indexes))
        assert [found.index for found in store.load("w").records] == indexes

    def test_records_of_a_save_are_stored_with_it(self, store: Store) -> None:
        store.save("w", "a", records=(record("t", 1), record("t", 0)))
        loaded = store.load("w")
        assert (loaded.records, loaded.record_count) == ((record("t", 0), record("t", 1)), 2)

    def test_records_belong_to_one_checkpoint(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.append("w", "a", record("t"))
        assert store.load("w", "b").records == ()

    def test_records_belong_to_one_scope(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "a", scope="s")
        store.append("w", "a", record("t"), scope="s")
        assert (store.load("w", "a").records, store.load("w", "a", scope="s").records) == ((), (record("t"),))

    def test_appending_nothing_new_leaves_the_revision(self, store: Store) -> None:
        before = store.save("w", "a", records=(record("t"),)).revision
        assert store.append("w", "a", record("t")).revision == before
        assert store.append("w", "a", record("u")).revision == before + 1

    def test_records_go_with_their_checkpoint(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.append("w", "a", record("t"), record("u"))
        store.delete_ids("w", "a")
        store.sweep()
        assert store.count("records") == 0

    def test_records_go_with_their_workflow(self, store: Store) -> None:
        store.save("w", "a", records=(record("t"),))
        store.append("w", "later", record("t"))
        store.delete_workflow("w")
        store.sweep()
        assert store.count("records") == 0

    def test_records_are_counted_where_they_are_left_out(self, store: Store) -> None:
        store.save("w", "a", records=(record("t"),))
        loaded = store.load("w", selection=Selection(with_records=False))
        assert (loaded.records, loaded.record_count) == ((), 1)


class WaitingRecordContract(ContractBase):
    """Records may come before their checkpoint, and wait for it for a while."""

    def test_records_wait_for_their_checkpoint(self, store: Store) -> None:
        store.save("w", "a")
        assert store.append("w", "b", record("t")).outcomes == (CREATED,)
        assert store.ids("w") == ["a"]
        store.save("w", "b")
        assert store.load("w", "b").records == (record("t"),)

    def test_records_may_come_before_their_workflow(self, store: Store) -> None:
        store.append("w", "a", record("t"))
        assert store.save("w", "a", expected_head="").sequence == 1
        assert store.load("w").records == (record("t"),)

    def test_records_may_come_before_their_scope(self, store: Store) -> None:
        store.save("w", "a")
        store.append("w", "b", record("t"), scope="s")
        store.save("w", "b", scope="s")
        assert store.load("w", scope="s").records == (record("t"),)

    def test_a_workflow_that_has_only_waiting_records_is_not_seen(self, store: Store) -> None:
        store.append("w", "a", record("t"))
        assert not is_found(store, "w")
        assert store.workflow_ids() == []
        with refused("WORKFLOW_NOT_FOUND"):
            store.load("w")
        with refused("WORKFLOW_NOT_FOUND"):
            store.ids("w")

    def test_deleting_a_workflow_that_has_only_waiting_records_drops_them(self, store: Store) -> None:
        store.append("w", "a", record("t"))
        assert not store.delete_workflow("w").existed
        store.sweep()
        assert store.count("records") == 0
        store.save("w", "a")
        assert store.load("w").records == ()

    def test_a_waiting_record_wins_over_one_of_the_save(self, store: Store) -> None:
        store.append("w", "a", record("t", 0, "waiting"))
        store.save("w", "a", records=(record("t", 0, "late"), record("t", 1, "new")))
        assert store.load("w").records == (record("t", 0, "waiting"), record("t", 1, "new"))

    def test_records_without_checkpoint_are_refused_where_one_is_required(self, store: Store) -> None:
        store.save("w", "a")
        with refused("RECORD_CHECKPOINT_MISSING") as refusal:
            store.append("w", "b", record("t"), require_checkpoint=True)
        assert refusal.error.metadata == {"checkpoint_id": "b"}
        assert store.count("records") == 0

    def test_records_without_workflow_are_refused_where_a_checkpoint_is_required(self, store: Store) -> None:
        with refused("RECORD_CHECKPOINT_MISSING"):
            store.append("w", "a", record("t"), require_checkpoint=True)
        assert store.count("workflows") == 0

    def test_records_are_accepted_where_the_required_checkpoint_is(self, store: Store) -> None:
        store.save("w", "a")
        assert store.append("w", "a", record("t"), require_checkpoint=True).outcomes == (CREATED,)

    def test_a_checkpoint_of_another_scope_is_not_the_required_one(self, store: Store) -> None:
        store.save("w", "a", scope="s")
        with refused("RECORD_CHECKPOINT_MISSING"):
            store.append("w", "a", record("t"), require_checkpoint=True)

    def test_waiting_records_are_bounded(self, open_store: OpenStore) -> None:
        store = open_store(Limits(waiting_records_max=3))
        store.append("w", "a", record("t"), record("u"))
        with refused("QUOTA_EXCEEDED") as refusal:
            store.append("w", "b", record("t"), record("u"))
        assert refusal.error.metadata == {
            "limit": "waiting_records_max",
            "allowed": "3",
            "found": "4",
            "unit": "records",
        }
        assert store.count("records") == 2
        store.append("w", "b", record("t"))

    def test_waiting_records_are_bounded_for_each_workflow(self, open_store: OpenStore) -> None:
        store = open_store(Limits(waiting_records_max=1))
        store.append("w", "a", record("t"))
        assert store.append("v", "a", record("t")).outcomes == (CREATED,)

    def test_records_of_live_checkpoints_do_not_count_as_waiting(self, open_store: OpenStore) -> None:
        store = open_store(Limits(waiting_records_max=1))
        store.save("w", "a")
        store.append("w", "a", record("t"), record("u"), record("v"))
        assert store.append("w", "b", record("t")).outcomes == (CREATED,)

    def test_a_record_that_exists_already_does_not_count(self, open_store: OpenStore) -> None:
        store = open_store(Limits(waiting_records_max=1))
        store.append("w", "a", record("t"))
        answer = store.append("w", "a", record("t", 0, 2), record("t", 0, 3, overwrite=True))
        assert answer.outcomes == (EXISTING, OVERWRITTEN)

    def test_a_checkpoint_that_comes_makes_room(self, open_store: OpenStore) -> None:
        store = open_store(Limits(waiting_records_max=1))
        store.append("w", "a", record("t"))
        store.save("w", "a")
        assert store.append("w", "b", record("t")).outcomes == (CREATED,)

    def test_records_whose_checkpoint_never_comes_are_dropped(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        store.append("w", "b", record("t"), record("u"))
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
        store.sweep()
        assert store.count("records") == 0
        store.save("w", "b")
        assert store.load("w", "b").records == ()

    def test_records_wait_their_whole_time(self, store: Store, clock: ManualClock) -> None:
        store.append("w", "a", record("t"))
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms - 1)
        store.sweep()
        store.save("w", "a")
        assert store.load("w").records == (record("t"),)

    def test_dropped_records_make_room(self, open_store: OpenStore, clock: ManualClock) -> None:
        store = open_store(Limits(waiting_records_max=1))
        store.save("w", "a")
        store.append("w", "b", record("t"))
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
        store.sweep()
        assert store.append("w", "c", record("t")).outcomes == (CREATED,)

    def test_a_workflow_that_had_only_waiting_records_goes_with_them(self, store: Store, clock: ManualClock) -> None:
        store.append("w", "a", record("t"))
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
        store.sweep()
        assert (store.count("workflows"), store.count("records")) == (0, 0)
        assert store.append("w", "a", record("t")).outcomes == (CREATED,)

    def test_records_appended_between_slices_of_a_drop_stay(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        for number in range(30):
            store.append("w", "b", record("old", number))
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
        store.engine.execute([SweepCommand(rows_max=5)])
        assert store.append("w", "b", record("new"), record("old", 29)).outcomes == (CREATED, CREATED)
        store.sweep()
        store.save("w", "b")
        assert store.load("w", "b").records == (record("new"), record("old", 29))

    def test_records_that_found_their_checkpoint_are_not_dropped(self, store: Store, clock: ManualClock) -> None:
        store.append("w", "a", record("t"))
        store.save("w", "a")
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
        store.sweep()
        assert store.load("w").records == (record("t"),)

    def test_records_appended_again_after_a_drop_wait_anew(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        store.append("w", "b", record("t", 0, 1))
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
        store.sweep()
        store.append("w", "b", record("t", 0, 2))
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms - 1)
        store.sweep()
        store.save("w", "b")
        assert store.load("w", "b").records == (record("t", 0, 2),)


class RecordLimitsContract(ContractBase):
    """How many records, and how many bytes of them, one checkpoint may have."""

    def test_records_of_a_checkpoint_are_bounded(self, open_store: OpenStore) -> None:
        store = open_store(Limits(records_max=2))
        store.save("w", "a", records=(record("t"),))
        with refused("LIMIT_EXCEEDED") as refusal:
            store.append("w", "a", record("u"), record("v"))
        assert (refusal.error.metadata["limit"], refusal.error.metadata["found"]) == ("records_max", "3")
        assert store.load("w").records == (record("t"),)

    def test_record_bytes_of_a_checkpoint_are_bounded(self, open_store: OpenStore) -> None:
        store = open_store(Limits(records_bytes_max=1_000))
        store.save("w", "a", records=(record("t", 0, "x" * 600),))
        with refused("LIMIT_EXCEEDED") as refusal:
            store.append("w", "a", record("u", 0, "x" * 600))
        assert refusal.error.metadata["limit"] == "records_bytes_max"

    def test_an_overwrite_counts_for_the_difference(self, open_store: OpenStore) -> None:
        store = open_store(Limits(records_bytes_max=1_000, records_max=1))
        store.save("w", "a", records=(record("t", 0, "x" * 600),))
        answer = store.append("w", "a", record("t", 0, "y" * 700, overwrite=True))
        assert answer.outcomes == (OVERWRITTEN,)

    def test_a_record_that_exists_already_is_accepted_at_the_limit(self, open_store: OpenStore) -> None:
        store = open_store(Limits(records_max=1))
        store.save("w", "a", records=(record("t"),))
        assert store.append("w", "a", record("t", 0, "again")).outcomes == (EXISTING,)

    def test_each_checkpoint_has_bounds_of_its_own(self, open_store: OpenStore) -> None:
        store = open_store(Limits(records_max=1))
        store.save("w", "a", records=(record("t"),))
        store.save("w", "b", records=(record("t"),))
        assert store.load("w", "b").record_count == 1

    @pytest.mark.parametrize("is_new", [True, False])
    def test_a_save_with_too_many_records_stores_nothing(self, open_store: OpenStore, is_new: bool) -> None:
        store = open_store(Limits(records_max=2))
        if not is_new:
            store.save("w", "0")
        with refused("LIMIT_EXCEEDED"):
            store.save("w", "a", {"x": 1}, records=(record("t"), record("u"), record("v")))
        assert is_found(store, "w") == (not is_new)
        assert (store.count("values"), store.count("records")) == (0, 0)


class RecordsContract(RecordContract, WaitingRecordContract, RecordLimitsContract):
    """All of records."""
