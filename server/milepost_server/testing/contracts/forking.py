"""Contract of forks: what they take along, what they share, and that nobody sees half of one."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

import msgspec
import pytest

from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import ForkMode, Status
from milepost_server.testing.builders import ManualClock, Store, is_found, record, refused
from milepost_server.testing.contracts.base import ContractBase, OpenStore

SMALL_SLICES = msgspec.structs.replace(DEFAULT_LIMITS, slice_rows_max=20)


class ForkContract(ContractBase):
    """A new workflow whose history is another's up to a checkpoint."""

    def test_a_fork_has_the_line_of_ancestors(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "beside", parent_id="a")
        store.save("w", "sub", scope="s")
        store.save("w", "c", parent_id="b")
        store.save("w", "later")
        answer = store.fork("w", "v", checkpoint_id="c")
        assert not answer.is_replayed
        assert store.ids("v") == ["c", "b", "a"]

    def test_a_fork_of_everything_has_all_scopes_up_to_the_checkpoint(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "beside", parent_id="a")
        store.save("w", "sub", scope="s")
        store.save("w", "c", parent_id="b")
        store.save("w", "sub later", scope="s")
        store.fork("w", "v", checkpoint_id="c", mode=ForkMode.ALL_UP_TO)
        assert store.ids("v") == ["c", "sub", "beside", "b", "a"]
        assert (store.head("v"), store.head("v", "s")) == ("c", "sub")

    def test_the_head_is_forked_where_nothing_is_named(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.fork("w", "v")
        assert store.head("v") == "b"

    def test_a_sub_scope_can_be_forked(self, store: Store) -> None:
        store.save("w", "root")
        store.save_line("w", "a", "b", scope="s")
        store.fork("w", "v", scope="s")
        shown = store.get_workflow("v")
        assert store.ids("v") == ["b", "a"]
        assert (shown.head_checkpoint_id, shown.scope_count, store.head("v", "s")) == ("", 1, "b")

    def test_a_fork_keeps_what_a_checkpoint_is(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "gap", scope="s")
        store.save("w", "a", {"x": 1}, steps_added=("one",), metadata='{"m": 1}', run_id="r", records=(record("t"),))
        store.save("w", "b", {"y": 2}, base_checkpoint_id="a", current_step="two", status=Status.WAITING)
        clock.advance(1_000)
        store.fork("w", "v")
        for checkpoint_id in "ab":
            source, copy = store.load("w", checkpoint_id), store.load("v", checkpoint_id)
            assert (copy.entries, copy.steps, copy.records) == (source.entries, source.steps, source.records)
            kept = ("sequence", "parent_id", "create_time_ms", "metadata", "current_step", "status", "digest", "run_id")
            assert [getattr(copy.row, name) for name in kept] == [getattr(source.row, name) for name in kept]

    def test_a_fork_is_a_workflow_of_its_own(self, store: Store) -> None:
        store.save("w", "a", labels={"l": "1"}, definition="d", current_step="one", status=Status.WAITING)
        store.fork("w", "v")
        source, target = store.get_workflow("w"), store.get_workflow("v")
        assert target.incarnation != source.incarnation
        assert (target.forked_from, target.labels, target.definition) == ("w", {"l": "1"}, "d")
        assert (target.current_step, target.status, target.checkpoint_count) == ("one", Status.WAITING, 1)
        assert store.workflow_ids() == ["v", "w"]

    def test_a_fork_goes_on_after_the_checkpoints_sequence(self, store: Store) -> None:
        store.save_line("w", "a", "b", "c")
        store.fork("w", "v", checkpoint_id="b")
        answer = store.save("v", "mine")
        assert (answer.sequence, answer.parent_id) == (3, "b")

    def test_source_and_fork_do_not_see_each_others_saves(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.fork("w", "v")
        store.save("w", "b", {"x": "source"}, base_checkpoint_id="a")
        store.save("v", "b", {"x": "fork"}, base_checkpoint_id="a")
        assert (store.state("w"), store.state("v")) == ({"x": "source"}, {"x": "fork"})
        assert (store.ids("w"), store.ids("v")) == (["b", "a"], ["b", "a"])

    def test_a_save_that_the_source_had_is_a_replay_in_the_fork(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.fork("w", "v")
        assert store.save("v", "a", {"x": 1}).is_replayed

    def test_a_fork_shares_what_is_stored(self, store: Store) -> None:
        for number in range(5):
            store.save("w", str(number), {"x": number, "y": "same"})
        before = store.count("nodes"), store.count("values")
        store.fork("w", "v")
        assert (store.count("nodes"), store.count("values")) == before
        assert store.get_workflow("v").stored_bytes == 0

    def test_an_id_that_is_used_again_after_its_time_makes_no_circle(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "b", {"x": 2}, parent_id="a")
        store.delete_ids("w", "a")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        store.save("w", "a", {"x": 3}, parent_id="b")
        assert store.load("w", "b").parent_pruned
        assert [version.checkpoint_id for version in store.history("w", "x").versions] == ["a", "b"]
        store.fork("w", "v")
        assert store.ids("v") == ["a", "b"]

    def test_a_fork_survives_its_source(self, store: Store, clock: ManualClock) -> None:
        for number in range(10):
            base = str(number - 1) if number else None
            store.save("w", str(number), {f"k{number % 3}": number}, base_checkpoint_id=base, records=(record("t"),))
        store.fork("w", "v", checkpoint_id="7")
        expected = {str(number): store.state("w", str(number)) for number in range(8)}
        store.delete_workflow("w")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert {checkpoint_id: store.state("v", checkpoint_id) for checkpoint_id in expected} == expected
        assert store.load("v").records == (record("t"),)

    def test_a_source_survives_its_fork(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.fork("w", "v")
        store.delete_workflow("v")
        store.sweep()
        assert store.state("w", "a") == {"at": "a"}

    def test_source_and_fork_together_leave_nothing(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b", records=(record("t"),))
        store.fork("w", "v")
        store.fork("v", "u", mode=ForkMode.ALL_UP_TO)
        store.save("u", "c", {"x": 1}, base_checkpoint_id="a")
        for workflow_id in "wvu":
            store.delete_workflow(workflow_id)
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        kept = ("workflows", "checkpoints", "nodes", "values", "records", "ids", "names")
        assert {what: store.count(what) for what in kept} == dict.fromkeys(kept, 0)

    def test_a_fork_of_a_pruned_line_shows_where_it_ends(self, store: Store) -> None:
        store.save_line("w", "a", "b", "c")
        store.delete_ids("w", "a")
        store.fork("w", "v")
        assert store.ids("v") == ["c", "b"]
        assert store.load("v", "b").parent_pruned

    def test_stubs_and_waiting_records_are_not_taken_along(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        store.append("w", "later", record("t"))
        store.fork("w", "v")
        assert store.get_workflow("v").waiting_record_count == 0
        assert store.save("v", "a", {"at": "a"}, parent_id="").sequence == 3


class ForkTargetContract(ContractBase):
    """Where a fork may go, and what a retry is told."""

    def test_a_target_that_exists_is_refused(self, store: Store) -> None:
        store.save("w", "a")
        store.save("v", "a")
        with refused("WORKFLOW_EXISTS") as refusal:
            store.fork("w", "v")
        assert refusal.error.metadata == {"workflow_id": "v"}

    def test_a_workflow_cannot_be_forked_onto_itself(self, store: Store) -> None:
        store.save("w", "a")
        with refused("WORKFLOW_EXISTS"):
            store.fork("w", "w")

    def test_an_unknown_workflow_cannot_be_forked(self, store: Store) -> None:
        with refused("WORKFLOW_NOT_FOUND"):
            store.fork("nowhere", "v")

    @pytest.mark.parametrize("scope, checkpoint_id", [("", "nowhere"), ("s", None), ("s", "a")])
    def test_an_unknown_checkpoint_cannot_be_forked(self, store: Store, scope: str, checkpoint_id: str | None) -> None:
        store.save("w", "a")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.fork("w", "v", scope=scope, checkpoint_id=checkpoint_id)
        assert not is_found(store, "v")

    def test_the_same_fork_again_is_answered_as_the_first_time(self, store: Store) -> None:
        store.save("w", "a")
        first = store.fork("w", "v", fork_id="f").workflow
        store.save("w", "b")
        again = store.fork("w", "v", fork_id="f")
        assert again.is_replayed
        assert again.workflow == first
        assert store.ids("v") == ["a"]

    def test_a_fork_without_id_is_never_a_replay(self, store: Store) -> None:
        store.save("w", "a")
        store.fork("w", "v")
        with refused("WORKFLOW_EXISTS"):
            store.fork("w", "v")

    def test_another_fork_under_the_same_id_is_no_replay(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.fork("w", "v", fork_id="f", checkpoint_id="b")
        with refused("WORKFLOW_EXISTS"):
            store.fork("w", "v", fork_id="f", checkpoint_id="a")
        with refused("WORKFLOW_EXISTS"):
            store.fork("w", "v", fork_id="f", checkpoint_id="b", mode=ForkMode.ALL_UP_TO)

    def test_a_deleted_workflows_name_can_be_forked_to_with_the_same_ids(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("v", "a", {"x": "old"})
        store.delete_workflow("v")
        store.fork("w", "v")
        store.sweep()
        assert (store.ids("v"), store.state("v", "a")) == (["b", "a"], {"at": "a"})

    def test_stubs_of_the_targets_name_stay(self, store: Store) -> None:
        store.save("w", "a")
        store.save("v", "b")
        store.delete_workflow("v")
        store.fork("w", "v")
        with refused("CHECKPOINT_DELETED"):
            store.save("v", "b")

    def test_a_forks_ids_outlive_the_stubs_that_they_replaced(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a", {"x": 1})
        store.save("v", "a", {"x": "old"})
        store.delete_workflow("v")
        clock.advance(10)
        store.fork("w", "v")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert store.state("v", "a") == {"x": 1}
        assert store.save("v", "a", {"x": 1}).is_replayed


class ForkSlicesContract(ContractBase):
    """A long fork is copied in slices and published by the last one."""

    @pytest.fixture
    def long(self, open_store: OpenStore) -> Store:
        store = open_store(SMALL_SLICES)
        for number in range(20):
            store.save("w", str(number), {"x": number}, scope="s" if number % 4 == 3 else "")
        return store

    @pytest.mark.parametrize("mode, count", [(ForkMode.ANCESTORS, 15), (ForkMode.ALL_UP_TO, 19)])
    def test_slices_copy_what_one_would(self, long: Store, mode: ForkMode, count: int) -> None:
        slices = 1
        answer = long.fork_slice("w", "v", mode=mode)
        while answer.position is not None:
            answer = long.fork_slice("w", "v", mode=mode, position=answer.position)
            slices += 1
        shown = long.get_workflow("v")
        assert slices > 2
        assert long.ids("v") == [
            name for name in long.ids("w") if int(name) < 19 and (count == 19 or int(name) % 4 != 3)
        ]
        assert (shown.checkpoint_count, shown.head_checkpoint_id) == (count, "18")
        assert shown.scope_count == (2 if mode is ForkMode.ALL_UP_TO else 1)

    def test_nobody_sees_a_fork_that_is_being_made(self, long: Store) -> None:
        answer = long.fork_slice("w", "v")
        assert answer.workflow is None
        assert not is_found(long, "v")
        assert long.workflow_ids() == ["w"]
        with refused("WORKFLOW_NOT_FOUND"):
            long.load("v", "18")
        with refused("WORKFLOW_NOT_FOUND"):
            long.prune("v", 1)
        assert not long.delete_workflow("v").existed

    def test_saves_to_the_source_between_slices_are_not_copied(self, long: Store) -> None:
        answer = long.fork_slice("w", "v", mode=ForkMode.ALL_UP_TO)
        long.save("w", "new")
        while answer.position is not None:
            answer = long.fork_slice("w", "v", mode=ForkMode.ALL_UP_TO, position=answer.position)
        assert "new" not in long.ids("v")
        assert long.save("v", "mine").sequence == 20

    def test_a_source_deleted_between_slices_ends_the_fork(self, long: Store) -> None:
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        long.delete_workflow("w")
        with refused("WORKFLOW_NOT_FOUND"):
            long.fork_slice("w", "v", position=answer.position)
        long.abandon_fork(answer.position[0])
        long.sweep()
        assert long.count("checkpoints") == 0

    def test_a_target_saved_to_between_slices_ends_the_fork(self, long: Store) -> None:
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        long.save("v", "18", {"mine": 1})
        with refused("WORKFLOW_EXISTS"):
            long.fork_slice("w", "v", position=answer.position)
        long.abandon_fork(answer.position[0])
        long.sweep()
        assert (long.ids("v"), long.state("v")) == (["18"], {"mine": 1})
        assert long.save("v", "17", {"mine": 2}).sequence == 2

    def test_a_target_saved_to_and_deleted_between_slices_ends_the_fork(self, long: Store) -> None:
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        long.save("v", "mine")
        long.delete_workflow("v")
        with refused("WORKFLOW_EXISTS"):
            long.fork_slice("w", "v", position=answer.position)
        long.abandon_fork(answer.position[0])

    def test_records_for_the_target_between_slices_end_the_fork(self, long: Store) -> None:
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        long.append("v", "18", record("t"))
        with refused("WORKFLOW_EXISTS"):
            long.fork_slice("w", "v", position=answer.position)
        long.abandon_fork(answer.position[0])
        long.save("v", "18")
        assert long.load("v").records == (record("t"),)

    def test_of_two_forks_to_one_target_the_later_one_wins(self, long: Store) -> None:
        first = long.fork_slice("w", "v")
        assert first.position is not None
        second = long.fork("w", "v", checkpoint_id="2")
        assert second.workflow is not None
        with refused("WORKFLOW_EXISTS"):
            long.fork_slice("w", "v", position=first.position)
        long.abandon_fork(first.position[0])
        long.sweep()
        assert long.ids("v") == ["2", "1", "0"]

    def test_an_abandoned_fork_leaves_nothing(self, long: Store, clock: ManualClock) -> None:
        counted = ("workflows", "checkpoints", "nodes", "values", "records", "ids", "names")
        before = {what: long.count(what) for what in counted}
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        long.abandon_fork(answer.position[0])
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        long.sweep()
        assert {what: long.count(what) for what in counted} == before

    def test_ids_of_an_abandoned_fork_are_free(self, long: Store) -> None:
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        long.abandon_fork(answer.position[0])
        long.sweep()
        assert long.save("v", "18").sequence == 1

    @pytest.mark.parametrize("is_deleted_whole", [True, False])
    def test_an_abandoned_fork_leaves_stubs_as_they_were(self, long: Store, *, is_deleted_whole: bool) -> None:
        """An id that a fork copied over a stub is refused while the fork is made, and after it was given up."""
        long.save("v", "18", {"late": 1})
        if is_deleted_whole:
            long.delete_workflow("v")
        else:
            long.save("v", "17")
            long.delete_ids("v", "18")
            long.delete_workflow("v")
        first = long.fork_slice("w", "v")
        second = long.fork_slice("w", "v")
        assert first.position is not None
        assert second.position is not None
        with refused("CHECKPOINT_DELETED"):
            long.save("v", "18", {"late": 1})
        for position in (first.position, second.position):
            long.abandon_fork(position[0])
            with refused("CHECKPOINT_DELETED"):
                long.save("v", "18", {"late": 1})
            long.sweep()
            with refused("CHECKPOINT_DELETED"):
                long.save("v", "18", {"late": 1})
        assert long.save("v", "16").sequence == 1

    def test_stubs_that_an_abandoned_fork_left_are_forgotten_in_their_time(
        self, long: Store, clock: ManualClock
    ) -> None:
        long.save("v", "18")
        long.delete_workflow("v")
        clock.advance(DEFAULT_LIMITS.replay_window_ms - 1)
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        clock.advance(1)
        long.sweep()
        long.abandon_fork(answer.position[0])
        long.sweep()
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        long.sweep()
        assert long.count("names") == 1
        assert long.save("v", "18").sequence == 1

    def test_a_published_fork_that_is_deleted_is_forgotten_with_what_was_there_before(
        self, store: Store, clock: ManualClock
    ) -> None:
        store.save("v", "a")
        store.delete_workflow("v")
        store.save("w", "a")
        store.fork("w", "v")
        store.delete_workflow("v")
        store.delete_workflow("w")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert {what: store.count(what) for what in ("ids", "names")} == {"ids": 0, "names": 0}

    def test_a_published_fork_cannot_be_abandoned(self, store: Store) -> None:
        store.save("w", "a")
        workflow = store.fork("w", "v").workflow
        assert workflow is not None
        store.abandon_fork(workflow.internal_id)
        assert store.ids("v") == ["a"]

    def test_checkpoints_pruned_from_the_source_between_slices_end_the_line(self, long: Store) -> None:
        answer = long.fork_slice("w", "v")
        assert answer.position is not None
        long.prune("w", 1)
        long.fork("w", "v", position=answer.position)
        copied = long.ids("v")
        assert copied == [name for name in ["18", "17", "16", "14", "13"] if name in copied]
        assert long.load("v", copied[-1]).parent_pruned
        assert [long.state("v", name) for name in copied] == [{"x": int(name)} for name in copied]


class ForkingContract(ForkContract, ForkTargetContract, ForkSlicesContract):
    """All of forks."""
