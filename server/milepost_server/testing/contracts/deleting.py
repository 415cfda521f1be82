"""Contract of deletes, prune and sweeping: what goes, what stays readable, and that nothing is left behind."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

import msgspec
import pytest

from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import Status, SweepAnswer, SweepCommand
from milepost_server.testing.builders import ManualClock, Store, delete_workflow, is_found, record, refused, save
from milepost_server.testing.contracts.base import ContractBase, OpenStore

SMALL_SLICES = msgspec.structs.replace(DEFAULT_LIMITS, slice_rows_max=20)
STORED = ("workflows", "checkpoints", "nodes", "values", "records")


class DeleteIdsContract(ContractBase):
    """Deleting checkpoints by id."""

    def test_ids_that_are_not_there_are_passed_over(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert store.delete_ids("w", "nowhere", "a", "a") == 1
        assert store.ids("w") == ["b"]

    def test_deleting_again_deletes_nothing(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        before = store.get_workflow("w").revision
        assert store.delete_ids("w", "a") == 0
        assert store.get_workflow("w").revision == before

    def test_only_the_scope_named_loses_its_checkpoint(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "a", scope="s")
        assert store.delete_ids("w", "a", scope="s") == 1
        assert store.delete_ids("w", "a", scope="nowhere") == 0
        assert store.head("w") == "a"

    def test_the_head_falls_back_to_the_one_before(self, store: Store) -> None:
        store.save("w", "a", current_step="one", status=Status.WAITING)
        store.save("w", "b", current_step="two")
        store.delete_ids("w", "b")
        shown = store.get_workflow("w")
        assert (store.head("w"), shown.head_checkpoint_id, shown.head_sequence) == ("a", "a", 1)
        assert (shown.current_step, shown.status) == ("one", Status.WAITING)

    def test_a_workflow_without_checkpoints_has_no_head(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_ids("w", "a")
        shown = store.get_workflow("w")
        assert (shown.status, shown.head_checkpoint_id, shown.checkpoint_count, shown.scope_count) == (0, "", 0, 0)
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w")

    def test_an_emptied_scope_no_longer_counts(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", scope="s")
        store.delete_ids("w", "b", scope="s")
        assert store.get_workflow("w").scope_count == 1
        store.save("w", "c", scope="s")
        assert store.get_workflow("w").scope_count == 2

    def test_a_child_keeps_its_whole_state(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1}, steps_added=("one",))
        store.save("w", "b", {"y": 2}, base_checkpoint_id="a", steps_added=("two",))
        store.delete_ids("w", "a")
        store.sweep()
        assert store.state("w") == {"x": 1, "y": 2}
        assert store.load("w").steps == ("one", "two")

    def test_ids_of_an_unknown_workflow_are_refused(self, store: Store) -> None:
        with refused("WORKFLOW_NOT_FOUND"):
            store.delete_ids("nowhere", "a")


class DeleteRunContract(ContractBase):
    """Deleting the checkpoints of an execution."""

    def test_a_run_is_deleted_in_every_scope(self, store: Store) -> None:
        for number, scope in enumerate(["", "s", "", "t"]):
            store.save("w", str(number), scope=scope, run_id="run")
        store.save("w", "kept", run_id="run2")
        store.save("w", "kept too")
        assert store.delete_run("run", workflow_id="w") == 4
        assert store.ids("w") == ["kept too", "kept"]

    def test_a_run_is_deleted_in_one_workflow_alone(self, store: Store) -> None:
        for workflow_id in "uvw":
            store.save(workflow_id, "a", run_id="run")
        assert store.delete_run("run", workflow_id="v") == 1
        assert [store.ids(workflow_id) for workflow_id in "uvw"] == [["a"], [], ["a"]]

    def test_a_run_is_deleted_in_all_workflows_of_a_namespace(self, store: Store) -> None:
        for workflow_id in "uvw":
            store.save(workflow_id, "a", run_id="run")
            store.save(workflow_id, "b", run_id="other")
        store.save("w", "c", run_id="run", namespace="other")
        assert store.delete_run("run") == 3
        assert [store.ids(workflow_id) for workflow_id in "uvw"] == [["b"]] * 3
        assert store.workflow_ids(namespace="other") == ["w"]

    def test_a_run_that_is_not_there_deletes_nothing(self, store: Store) -> None:
        store.save("w", "a", run_id="run")
        assert store.delete_run("ru") == 0
        assert store.delete_run("run2") == 0

    @pytest.mark.parametrize("clock_step_ms", [-60_000, 0, 60_000])
    def test_what_comes_after_the_first_slice_is_not_touched(
        self, open_store: OpenStore, clock: ManualClock, clock_step_ms: int
    ) -> None:
        """In whatever workflow: saved, forked, moved to the run, or saved again under an id of it."""
        store = open_store(SMALL_SLICES)
        store.save("moved", "a", {"x": 1}, run_id="other")
        for number in range(12):
            store.save("w", str(number), {"x": number}, run_id="run")
        store.save("x", "a", {"x": 1}, run_id="run")
        first = store.delete_run_slice("run")
        assert (first.deleted < 12, first.position is not None) == (True, True)

        clock.advance(clock_step_ms)
        store.save("moved", "a", {"x": 2}, run_id="run", is_replace=True)
        store.save("w", "later", run_id="run")
        store.save("new", "a", run_id="run")
        store.fork("x", "forked")
        store.delete_workflow("x")
        store.save("x", "again", run_id="run")

        assert first.deleted + store.delete_run("run", first) == 12
        found = {each: store.ids(each) for each in ("moved", "w", "new", "forked", "x")}
        assert found == {"moved": ["a"], "w": ["later"], "new": ["a"], "forked": ["a"], "x": ["again"]}

    def test_what_is_replaced_within_its_run_still_goes(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        for number in range(12):
            store.save("w", str(number), {"x": number}, run_id="run")
        first = store.delete_run_slice("run")
        store.save("w", "11", {"x": "other"}, run_id="run", is_replace=True)
        assert first.deleted + store.delete_run("run", first) == 12

    def test_a_delete_that_finds_nothing_at_first_leaves_what_comes_later(self, store: Store) -> None:
        first = store.delete_run_slice("run")
        store.save("w", "a", run_id="run")
        assert store.delete_run("run", first) == 0

    def test_a_large_run_is_deleted_in_slices(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        for workflow_id in "uvw":
            for number in range(17):
                store.save(workflow_id, str(number), run_id="run" if number % 4 else "other")
        assert store.delete_run("run") == 3 * 12
        assert [len(store.ids(workflow_id)) for workflow_id in "uvw"] == [5, 5, 5]

    def test_a_run_of_a_deleted_workflow_is_passed_over(self, store: Store) -> None:
        store.save("v", "a", run_id="run")
        store.save("w", "a", run_id="run")
        store.delete_workflow("v")
        assert store.delete_run("run") == 1
        store.sweep()
        assert (store.count("checkpoints"), store.count("workflows")) == (0, 1)

    def test_a_deleted_run_leaves_stubs(self, store: Store) -> None:
        store.save("w", "a", run_id="run")
        store.delete_run("run")
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a", run_id="run")


class DeleteWorkflowContract(ContractBase):
    """Deleting a workflow, and freeing it."""

    def test_a_delete_tells_what_there_was(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "a", scope="s")
        answer = store.delete_workflow("w")
        assert (answer.existed, answer.checkpoint_count) == (True, 3)

    def test_deleting_what_is_not_there_is_no_error(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        for workflow_id in ("w", "nowhere"):
            answer = store.delete_workflow(workflow_id)
            assert (answer.existed, answer.checkpoint_count) == (False, 0)

    def test_only_the_workflow_named_goes(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w2", "a")
        store.save("w", "a", namespace="other")
        store.delete_workflow("w")
        store.sweep()
        assert not is_found(store, "w")
        assert is_found(store, "w2")
        assert store.workflow_ids(namespace="other") == ["w"]

    def test_a_workflow_made_again_starts_from_nothing(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, labels={"l": "1"}, definition="d", steps_added=("one",))
        store.save("w", "b", scope="s")
        store.delete_workflow("w")
        answer = store.save("w", "c", {"y": 1}, definition="e", steps_added=("two",))
        shown = store.get_workflow("w")
        assert (answer.sequence, answer.parent_id) == (1, "")
        assert (shown.labels, shown.definition, shown.scope_count, shown.last_sequence) == ({}, "e", 1, 1)
        assert (store.state("w"), store.load("w").steps) == ({"y": 1}, ("two",))

    def test_sweeping_the_old_leaves_the_new_one_whole(self, store: Store) -> None:
        for number in range(30):
            store.save("w", f"old{number}", {"x": number, "same": 1}, records=(record("t"),))
        store.delete_workflow("w")
        for number in range(3):
            store.save("w", f"new{number}", {"x": number, "same": 1}, records=(record("t"),))
        store.sweep(rows_max=7)
        assert store.ids("w") == ["new2", "new1", "new0"]
        assert store.state("w") == {"x": 2, "same": 1}
        assert store.load("w").records == (record("t"),)

    def test_a_sweep_frees_everything(self, store: Store) -> None:
        for number in range(40):
            base = str(number - 1) if number else None
            store.save("w", str(number), {"x": number}, base_checkpoint_id=base, records=(record("t"),), run_id="r")
        store.append("w", "later", record("t"))
        store.save("w", "s", {"x": "s"}, scope="s")
        store.delete_workflow("w")
        store.sweep()
        assert {what: store.count(what) for what in STORED} == dict.fromkeys(STORED, 0)

    def test_ids_and_names_are_freed_after_the_replay_window(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "a", scope="s")
        store.delete_ids("w", "a")
        clock.advance(1_000)
        store.delete_workflow("w")
        store.sweep()
        assert store.count("ids") == 3
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert (store.count("ids"), store.count("names")) == (0, 0)

    def test_a_name_in_use_outlives_its_stubs(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        store.save("w", "b", scope="s")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert (store.count("ids"), store.count("names")) == (1, 1)
        assert store.head("w", "s") == "b"

    def test_a_workflow_deleted_many_times_leaves_nothing(self, store: Store, clock: ManualClock) -> None:
        for number in range(5):
            store.save("w", f"a{number}", {"x": number})
            store.save("w", f"b{number}", {"y": number}, scope=f"s{number % 2}")
            store.delete_workflow("w")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        kept = (*STORED, "ids", "names")
        assert {what: store.count(what) for what in kept} == dict.fromkeys(kept, 0)

    def test_a_sweep_of_much_ends_slice_by_slice(self, store: Store) -> None:
        store.engine.execute([save("w", str(number), {"x": number}) for number in range(300)])
        store.engine.execute([delete_workflow("w")])
        slices = 0
        while store.run(SweepCommand(rows_max=50), SweepAnswer).has_more:
            slices += 1
            assert slices < 1_000
        assert store.count("checkpoints") == 0

    def test_a_sweep_with_nothing_to_do_frees_nothing(self, store: Store) -> None:
        store.save("w", "a")
        assert store.run(SweepCommand(), SweepAnswer) == SweepAnswer(0, False)


class PruneContract(ContractBase):
    """Deleting what is old and not needed."""

    @pytest.mark.parametrize("keep_last, kept", [(1, ["e"]), (2, ["e", "d"]), (5, list("edcba")), (9, list("edcba"))])
    def test_the_newest_are_kept(self, store: Store, keep_last: int, kept: list[str]) -> None:
        store.save_line("w", *"abcde")
        assert store.prune("w", keep_last) == 5 - len(kept)
        assert store.ids("w") == kept

    def test_the_newest_of_every_scope_are_kept(self, store: Store) -> None:
        for number in range(12):
            store.save("w", str(number), scope=["", "s", "t"][number % 3])
        store.save("w", "only", scope="u")
        assert store.prune("w", 2) == 6
        assert store.ids("w") == ["only", "11", "10", "9", "8", "7", "6"]
        assert [store.head("w", scope) for scope in ["", "s", "t", "u"]] == ["9", "10", "11", "only"]

    def test_what_is_kept_loads_as_before(self, store: Store) -> None:
        store.save("w", "0", {"x": 0, "y": 0}, steps_added=("s0",))
        for number in range(1, 20):
            store.save("w", str(number), {"x": number}, base_checkpoint_id=str(number - 1), steps_added=(f"s{number}",))
        store.prune("w", 3)
        store.sweep()
        assert [store.state("w", name)["x"] for name in ("17", "18", "19")] == [17, 18, 19]
        assert store.state("w", "17")["y"] == 0
        assert len(store.load("w", "17").steps) == 18
        assert store.load("w", "17").parent_pruned

    def test_ancestors_are_kept_back_to_where_a_history_entry_is_stored(self, store: Store) -> None:
        store.save("w", "0", {"old": 1})
        store.save("w", "1", {"log": 1})
        for number in range(2, 6):
            store.save("w", str(number), {"x": number}, history_entries=("log",))
        assert store.prune("w", 1) == 1
        assert store.ids("w") == ["5", "4", "3", "2", "1"]

    def test_ancestors_that_only_one_of_two_history_entries_needs_are_kept(self, store: Store) -> None:
        store.save("w", "0", {"unneeded": 1})
        store.save("w", "1", {"far": 1})
        store.save("w", "2", {"near": 1})
        store.save("w", "3", {"x": 1}, history_entries=("near", "far"))
        store.prune("w", 1)
        assert store.ids("w") == ["3", "2", "1"]

    def test_what_one_that_is_kept_needs_is_kept_behind_others_that_are_kept(self, store: Store) -> None:
        store.save("w", "0", {"log": 1})
        store.save("w", "1", {"x": 1})
        store.save("w", "2", {"x": 2}, history_entries=("log",))
        assert store.prune("w", 2) == 0
        assert store.ids("w") == ["2", "1", "0"]

    def test_a_history_entry_that_the_checkpoint_has_itself_needs_no_ancestor(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "c", {"log": 1}, history_entries=("log",))
        store.prune("w", 1)
        assert store.ids("w") == ["c"]

    def test_a_history_entry_that_no_ancestor_has_keeps_the_whole_line(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "c", history_entries=("log",))
        assert store.prune("w", 1) == 0

    def test_checkpoints_beside_the_line_are_not_needed(self, store: Store) -> None:
        store.save("w", "0", {"log": 1})
        store.save("w", "beside", {"log": 2}, parent_id="0")
        store.save("w", "2", history_entries=("log",), parent_id="0")
        store.prune("w", 1)
        assert store.ids("w") == ["2", "0"]

    def test_kept_ancestors_keep_their_records(self, store: Store) -> None:
        store.save("w", "0", {"log": 1})
        store.save("w", "1", records=(record("t"),))
        store.save("w", "2", history_entries=("log",))
        store.prune("w", 1)
        store.sweep()
        assert store.load("w", "1").records == (record("t"),)

    def test_pruning_again_deletes_nothing(self, store: Store) -> None:
        store.save_line("w", *"abcde")
        store.prune("w", 2)
        before = store.get_workflow("w").revision
        assert store.prune("w", 2) == 0
        assert store.get_workflow("w").revision == before

    def test_a_dry_run_counts_and_deletes_nothing(self, store: Store) -> None:
        store.save_line("w", *"abcde")
        assert store.prune("w", 2, is_dry_run=True) == 3
        assert len(store.ids("w")) == 5

    @pytest.mark.parametrize("is_dry_run", [False, True])
    def test_much_is_pruned_in_slices(self, open_store: OpenStore, is_dry_run: bool) -> None:
        store = open_store(SMALL_SLICES)
        for number in range(60):
            store.save("w", str(number), {"x": number}, scope=["", "s"][number % 2])
        assert store.prune_slice("w", 3, is_dry_run=True).position is not None
        assert store.prune("w", 3, is_dry_run=is_dry_run) == 54
        assert store.ids("w")[:6] == ["59", "58", "57", "56", "55", "54"]
        assert len(store.ids("w")) == (60 if is_dry_run else 6)

    def test_ancestors_that_are_needed_stay_through_all_slices(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        store.save("w", "log", {"log": 1})
        for number in range(20):
            store.save("w", f"beside{number}", parent_id="")
        store.save("w", "head", parent_id="log", history_entries=("log",))
        assert store.prune("w", 1) == 20
        assert store.ids("w") == ["head", "log"]

    def test_checkpoints_saved_between_slices_are_not_touched(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        store.save_line("w", *(str(number) for number in range(20)))
        first = store.prune_slice("w", 2)
        assert first.position is not None
        store.save_line("w", "new0", "new1", "new2")
        store.prune_rest("w", 2, first)
        assert store.ids("w") == ["new2", "new1", "new0", "19", "18"]

    def test_checkpoints_saved_between_slices_do_not_count_among_those_kept(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        store.save_line("w", *(str(number) for number in range(20)))
        store.save_line("w", *(f"s{number}" for number in range(5)), scope="s")
        first = store.prune_slice("w", 2)
        assert first.position is not None
        store.save_line("w", "new0", "new1", "new2", scope="s")
        store.prune_rest("w", 2, first)
        assert store.ids("w", scope="s") == ["new2", "new1", "new0", "s4", "s3"]

    def test_a_prune_that_began_before_a_delete_does_not_touch_the_next_incarnation(
        self, open_store: OpenStore
    ) -> None:
        store = open_store(SMALL_SLICES)
        store.save_line("w", *(str(number) for number in range(20)))
        answer = store.prune_slice("w", 2)
        assert answer.position is not None
        store.delete_workflow("w")
        store.save_line("w", *(f"new{number}" for number in range(5)))
        later = store.prune_slice("w", 2, answer)
        assert (later.deleted, later.position, len(store.ids("w"))) == (0, None, 5)

    def test_many_that_are_kept_are_passed_over_in_slices(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        store.save_line("w", *(str(number) for number in range(40)))
        assert store.prune_slice("w", 35).deleted == 0
        assert store.prune("w", 35) == 5
        assert store.ids("w") == [str(number) for number in range(39, 4, -1)]

    def test_lines_that_meet_are_followed_through_all_slices(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        store.save("w", "unneeded")
        store.save("w", "far", {"far": 1})
        store.save("w", "near", {"near": 1}, parent_id="far")
        for number in range(20):
            store.save("w", f"beside{number}", parent_id="")
        store.save("w", "fork", parent_id="near")
        for number in range(20):
            store.save("w", f"more{number}", parent_id="")
        store.save("w", "left", parent_id="fork", history_entries=("near",))
        store.save("w", "right", parent_id="fork", history_entries=("far",))
        assert store.prune("w", 2) == 41
        assert store.ids("w") == ["right", "left", "fork", "near", "far"]

    @pytest.mark.parametrize("key_size", [1, 1_000], ids=["few to carry", "more than is carried"])
    def test_many_lines_are_followed_through_all_slices(self, open_store: OpenStore, key_size: int) -> None:
        store = open_store(SMALL_SLICES)
        keys = [str(number) * key_size for number in range(8)]
        for number, key in enumerate(keys):
            store.save("w", f"log{number}", {key: 1}, parent_id="")
        for number in range(20):
            store.save("w", f"beside{number}", parent_id="")
        for number, key in enumerate(keys):
            store.save("w", f"head{number}", parent_id=f"log{number}", history_entries=(key,))
        assert store.prune("w", 8, is_dry_run=True) == 20
        assert store.prune("w", 8) == 20
        assert len(store.ids("w")) == 16

    def test_a_prune_looks_through_many_scopes(self, open_store: OpenStore) -> None:
        store = open_store(SMALL_SLICES)
        for number in range(50):
            store.save("w", "only", scope=f"s{number}")
        store.save_line("w", "a", "b", scope="last")
        assert store.prune("w", 1) == 1
        assert store.get_workflow("w").scope_count == 51

    @pytest.mark.parametrize("new_count", [1, 30], ids=["few came", "many came"])
    @pytest.mark.parametrize("parent_id", ["log", "middle", "29"], ids=["old", "between", "newest"])
    def test_what_is_saved_between_slices_keeps_the_ancestors_it_needs(
        self, open_store: OpenStore, parent_id: str, new_count: int
    ) -> None:
        store = open_store(SMALL_SLICES)
        store.save("w", "log", {"log": 1})
        store.save("w", "middle")
        store.save_line("w", *(str(number) for number in range(30)))
        first = store.prune_slice("w", 2)
        assert first.position is not None
        for number in range(new_count):
            store.save("w", f"new{number}", parent_id="" if number else parent_id, history_entries=("log",))
        store.prune_rest("w", 2, first)
        kept = store.ids("w")[new_count:]
        needed = {"log": ["log"], "middle": ["middle", "log"], "29": []}[parent_id]
        assert kept == ["29", "28", *needed]

    def test_an_unknown_workflow_cannot_be_pruned(self, store: Store) -> None:
        with refused("WORKFLOW_NOT_FOUND"):
            store.prune("nowhere", 1)

    def test_a_pruned_store_frees_what_it_pruned(self, store: Store) -> None:
        for number in range(50):
            store.save("w", str(number), {"x": number}, parent_id="", records=(record("t"),))
        store.prune("w", 1)
        store.sweep()
        assert (store.count("checkpoints"), store.count("values"), store.count("records")) == (1, 1, 1)


class DeletingContract(DeleteIdsContract, DeleteRunContract, DeleteWorkflowContract, PruneContract):
    """All of deleting."""
