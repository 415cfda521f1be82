"""Contract of Save: identity and order, parents, replay, conflict, replace, stubs and preconditions."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.model import Status
from milepost_server.testing.builders import (
    ManualClock,
    SaveOptions,
    Store,
    data_value,
    is_found,
    json_value,
    manifest_of,
    record,
    refused,
    save,
)
from milepost_server.testing.contracts.base import ContractBase, OpenStore

OTHER_CONTENT: dict[str, SaveOptions] = {
    "step": {"current_step": "other"},
    "status": {"status": Status.COMPLETED},
    "metadata": {"metadata": '{"a": 2}'},
    "steps": {"steps_added": ("other",)},
    "no steps": {"steps_added": ()},
    "more steps": {"steps_added": ("step", "other")},
    "parent": {"parent_id": ""},
    "definition": {"definition": "other"},
    "fingerprint": {"fingerprint": "other"},
}
OTHER_STATE: dict[str, dict[str, object]] = {
    "a changed value": {"x": 2, "d": data_value(b"d", "c")},
    "one entry more": {"x": 1, "d": data_value(b"d", "c"), "y": 1},
    "one entry less": {"x": 1},
    "another key": {"z": 1, "d": data_value(b"d", "c")},
    "another codec": {"x": 1, "d": data_value(b"d", "other")},
    "another compression": {"x": 1, "d": data_value(b"d", "c", 1)},
    "another kind": {"x": data_value(b"1"), "d": data_value(b"d", "c")},
    "other json text of equal meaning": {"x": json_value(1.0), "d": data_value(b"d", "c")},
}
CONTENT: SaveOptions = {
    "parent_id": "a",
    "current_step": "step",
    "status": Status.WAITING,
    "metadata": '{"a": 1}',
    "steps_added": ("step",),
    "definition": "d",
    "fingerprint": "f",
}
THREE_ENTRIES: dict[str, object] = {"x": 3, "y": 3, "z": 3}
CONTENT_STATE: dict[str, object] = {"x": 1, "d": data_value(b"d", "c")}


class OrderContract(ContractBase):
    """Sequences, heads, revisions, scopes, and what a workflow shows of them."""

    def test_sequences_are_given_from_one_without_gaps(self, store: Store) -> None:
        assert [store.save("w", name).sequence for name in "abc"] == [1, 2, 3]

    def test_all_scopes_of_a_workflow_share_one_counter(self, store: Store) -> None:
        scopes = ["", "s", "", "t", "s"]
        sequences = [store.save("w", str(number), scope=scope).sequence for number, scope in enumerate(scopes)]
        assert sequences == [1, 2, 3, 4, 5]

    def test_every_workflow_counts_for_itself(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert store.save("v", "a").sequence == 1

    def test_a_deleted_head_leaves_a_hole(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "b")
        assert store.save("w", "c").sequence == 3

    def test_a_save_answers_itself_as_the_head(self, store: Store) -> None:
        store.save("w", "b")
        assert store.save("w", "a").head_checkpoint_id == "a"

    def test_order_is_sequence_and_not_id_or_clock(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "b")
        clock.advance(-5_000)
        store.save("w", "a")
        assert store.ids("w") == ["a", "b"]

    def test_a_checkpoint_tells_the_time_of_its_commit(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        first_ms = clock.now_ms
        clock.advance(10)
        store.save("w", "b")
        assert [store.load("w", name).row.create_time_ms for name in "ab"] == [first_ms, first_ms + 10]

    @pytest.mark.parametrize("change", ["save", "records", "replace", "delete", "prune", "sub-scope"])
    def test_every_change_raises_the_revision(self, store: Store, change: str) -> None:
        store.save_line("w", "a", "b")
        before = store.get_workflow("w").revision
        if change == "save":
            store.save("w", "c")
        elif change == "records":
            store.append("w", "b", record("t"))
        elif change == "replace":
            store.save("w", "b", {"x": 2}, is_replace=True)
        elif change == "delete":
            store.delete_ids("w", "a")
        elif change == "prune":
            store.prune("w", 1)
        else:
            store.save("w", "c", scope="s")
        assert store.get_workflow("w").revision > before

    def test_a_replay_leaves_the_revision(self, store: Store) -> None:
        first = store.save("w", "a")
        assert store.save("w", "a").revision == first.revision
        assert store.get_workflow("w").revision == first.revision

    def test_a_workflow_that_is_made_again_is_another_incarnation(self, store: Store) -> None:
        store.save("w", "a")
        first = store.get_workflow("w")
        store.delete_workflow("w")
        store.save("w", "b")
        again = store.get_workflow("w")
        assert again.incarnation != first.incarnation
        assert (again.last_sequence, again.checkpoint_count) == (1, 1)

    def test_the_same_id_in_two_scopes_is_two_checkpoints(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        assert not store.save("w", "a", {"x": 2}, scope="s").is_replayed
        assert (store.state("w", "a"), store.state("w", "a", scope="s")) == ({"x": 1}, {"x": 2})

    def test_the_same_ids_in_two_namespaces_are_two_workflows(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        assert store.save("w", "a", {"x": 2}, namespace="other").sequence == 1
        assert store.state("w") == {"x": 1}

    def test_every_scope_has_its_own_head(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", scope="s")
        assert (store.head("w"), store.head("w", "s")) == ("a", "b")

    def test_a_workflow_shows_the_head_of_its_root_scope(self, store: Store) -> None:
        store.save("w", "a", current_step="one")
        store.save("w", "b", current_step="two", status=Status.WAITING)
        shown = store.get_workflow("w")
        assert (shown.head_checkpoint_id, shown.head_sequence) == ("b", 2)
        assert (shown.current_step, shown.status) == ("two", Status.WAITING)

    def test_a_finished_sub_scope_does_not_finish_the_workflow(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a", current_step="one")
        before = store.get_workflow("w")
        clock.advance(1_000)
        store.save("w", "b", scope="s", current_step="end", status=Status.COMPLETED)
        after = store.get_workflow("w")
        assert (after.status, after.current_step, after.update_time_ms) == (
            Status.RUNNING,
            "one",
            before.update_time_ms,
        )

    def test_a_workflow_with_sub_scopes_alone_has_no_status(self, store: Store) -> None:
        store.save("w", "a", scope="s")
        shown = store.get_workflow("w")
        assert (shown.status, shown.head_checkpoint_id, shown.scope_count) == (0, "", 1)

    def test_a_save_in_the_root_scope_is_an_update(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        clock.advance(1_000)
        store.save("w", "b")
        shown = store.get_workflow("w")
        assert (shown.create_time_ms, shown.update_time_ms) == (clock.now_ms - 1_000, clock.now_ms)

    def test_a_workflow_counts_checkpoints_and_scopes(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "a", scope="s")
        shown = store.get_workflow("w")
        assert (shown.checkpoint_count, shown.scope_count, shown.last_sequence) == (3, 2, 3)

    def test_labels_stay_until_a_save_carries_others(self, store: Store) -> None:
        store.save("w", "a", labels={"team": "x", "old": "y"})
        store.save("w", "b")
        assert store.get_workflow("w").labels == {"team": "x", "old": "y"}
        store.save("w", "c", labels={"team": "z"})
        assert store.get_workflow("w").labels == {"team": "z"}

    def test_the_first_definition_named_binds_the_workflow(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", definition="d")
        with refused("DEFINITION_MISMATCH") as refusal:
            store.save("w", "c", definition="e")
        assert refusal.error.metadata == {"definition": "d", "found": "e"}

    def test_a_save_that_names_no_definition_is_no_mismatch(self, store: Store) -> None:
        store.save("w", "a", definition="d")
        store.save("w", "b")
        assert store.get_workflow("w").definition == "d"

    def test_a_new_fingerprint_is_no_mismatch(self, store: Store) -> None:
        store.save("w", "a", definition="d", fingerprint="one")
        store.save("w", "b", definition="d", fingerprint="two")
        assert store.load("w").row.fingerprint == "two"


class ParentContract(ContractBase):
    """Which checkpoint a new one hangs on."""

    def test_the_first_checkpoint_has_no_parent(self, store: Store) -> None:
        assert store.save("w", "a").parent_id == ""

    def test_the_parent_is_the_head_where_none_is_named(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert store.save("w", "c").parent_id == "b"
        assert store.load("w", "c").row.parent_id == "b"

    def test_the_head_of_another_scope_is_never_the_parent(self, store: Store) -> None:
        store.save("w", "a")
        assert store.save("w", "b", scope="s").parent_id == ""

    def test_an_empty_parent_starts_a_line_of_its_own(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", parent_id="")
        loaded = store.load("w", "b")
        assert (loaded.row.parent_id, loaded.parent_pruned) == ("", False)

    def test_an_older_checkpoint_may_be_the_parent(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert store.save("w", "c", parent_id="a").parent_id == "a"

    def test_a_parent_that_was_never_saved_is_refused(self, store: Store) -> None:
        store.save("w", "a")
        with refused("PARENT_NOT_FOUND") as refusal:
            store.save("w", "b", parent_id="nowhere")
        assert refusal.error.metadata == {"parent_id": "nowhere"}

    def test_a_first_save_cannot_have_a_parent(self, store: Store) -> None:
        with refused("PARENT_NOT_FOUND"):
            store.save("w", "a", parent_id="nowhere")
        assert not is_found(store, "w")

    def test_a_checkpoint_cannot_be_its_own_parent(self, store: Store) -> None:
        store.save("w", "a")
        with refused("PARENT_NOT_FOUND"):
            store.save("w", "b", parent_id="b")

    def test_a_checkpoint_of_another_scope_is_no_parent(self, store: Store) -> None:
        store.save("w", "a")
        with refused("PARENT_NOT_FOUND"):
            store.save("w", "b", scope="s", parent_id="a")

    def test_a_deleted_parent_is_accepted_and_shown_as_pruned(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        store.save("w", "c", {"x": 1}, parent_id="a")
        loaded = store.load("w", "c")
        assert (loaded.row.parent_id, loaded.parent_pruned) == ("a", True)

    def test_a_parent_of_a_deleted_incarnation_is_accepted_and_shown_as_pruned(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        store.save("w", "b", parent_id="a")
        assert store.load("w", "b").parent_pruned

    def test_a_live_parent_is_not_shown_as_pruned(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert not store.load("w", "b").parent_pruned

    def test_a_parent_deleted_later_stays_named(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        loaded = store.load("w", "b")
        assert (loaded.row.parent_id, loaded.parent_pruned) == ("a", True)

    def test_a_parent_whose_stub_has_gone_stays_named(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        loaded = store.load("w", "b")
        assert (loaded.row.parent_id, loaded.parent_pruned) == ("a", True)


class ReplayContract(ContractBase):
    """The same content again is answered as the first time; other content is a conflict."""

    def test_the_same_save_again_is_answered_as_the_first_time(self, store: Store, clock: ManualClock) -> None:
        first = store.save("w", "a", {"x": 1})
        clock.advance(1_000)
        again = store.save("w", "a", {"x": 1})
        assert again.is_replayed
        assert (again.sequence, again.create_time_ms, again.digest) == (
            first.sequence,
            first.create_time_ms,
            first.digest,
        )

    def test_a_replay_writes_nothing(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        counted = ("checkpoints", "ids", "nodes", "values")
        before = store.get_workflow("w"), [store.count(what) for what in counted]
        store.save("w", "a", {"x": 1})
        assert (store.get_workflow("w"), [store.count(what) for what in counted]) == before

    def test_a_replay_answers_the_present_head(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "b")
        again = store.save("w", "a", {"x": 1})
        assert (again.is_replayed, again.head_checkpoint_id, again.parent_id) == (True, "b", "")

    def test_a_replay_whose_parent_was_the_head_keeps_that_parent(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", {"x": 1})
        store.save("w", "c")
        again = store.save("w", "b", {"x": 1})
        assert (again.is_replayed, again.parent_id) == (True, "a")

    def test_a_replay_may_name_the_parent_that_the_store_chose(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", {"x": 1})
        assert store.save("w", "b", {"x": 1}, parent_id="a").is_replayed

    def test_a_replay_comes_before_expected_head(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, expected_head="")
        store.save("w", "b", expected_head="a")
        assert store.save("w", "a", {"x": 1}, expected_head="").is_replayed

    @pytest.mark.parametrize(
        "option",
        [
            SaveOptions(labels={"l": "2"}),
            SaveOptions(records=(record("t"),)),
            SaveOptions(run_id="other"),
            SaveOptions(history_entries=("x",)),
            SaveOptions(expected_head="nowhere"),
            SaveOptions(is_replace=True),
            SaveOptions(is_replace=True, replaces_digest=bytes(32)),
        ],
        ids=lambda option: ",".join(option),
    )
    def test_what_is_not_content_does_not_matter_to_a_replay(self, store: Store, option: SaveOptions) -> None:
        store.save("w", "a", {"x": 1}, run_id="run", labels={"l": "1"})
        options: SaveOptions = {"run_id": "run", "labels": {"l": "1"}, **option}
        assert store.save("w", "a", {"x": 1}, **options).is_replayed
        assert store.get_workflow("w").labels == {"l": "1"}
        assert store.load("w", "a").records == ()

    def test_an_incremental_save_retried_in_full_is_a_replay(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1, "z": 1}, steps_added=("s",))
        store.save("w", "b", {"x": 2}, base_checkpoint_id="a", removed_keys=("z",), steps_added=("t",))
        assert store.save("w", "b", {"x": 2, "y": 1}, steps_added=("t",)).is_replayed

    def test_a_full_save_retried_as_an_increment_is_a_replay(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1})
        store.save("w", "b", {"x": 2, "y": 1})
        assert store.save("w", "b", {"x": 2}, base_checkpoint_id="a").is_replayed

    def test_an_incremental_save_retried_after_its_base_has_gone_is_a_replay(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "c", {"x": 2}, base_checkpoint_id="a", steps_added=("s",))
        store.delete_ids("w", "a")
        assert store.save("w", "c", {"x": 2}, base_checkpoint_id="a", steps_added=("s",)).is_replayed

    @pytest.mark.parametrize("steps", [(), ("t",), ("t", "u")])
    def test_an_increment_retried_in_full_after_base_and_parent_have_gone_is_a_replay(
        self, store: Store, steps: tuple[str, ...]
    ) -> None:
        store.save("w", "a", {"x": 1}, steps_added=("s",))
        store.save("w", "b", {"y": 2}, base_checkpoint_id="a", parent_id="a", steps_added=steps)
        store.delete_ids("w", "a")
        assert store.save("w", "b", {"x": 1, "y": 2}, parent_id="a", steps_added=steps).is_replayed

    def test_other_steps_are_no_replay_after_base_and_parent_have_gone(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, steps_added=("s",))
        store.save("w", "b", {"y": 2}, base_checkpoint_id="a", parent_id="a", steps_added=("t",))
        store.delete_ids("w", "a")
        with refused("CHECKPOINT_EXISTS"):
            store.save("w", "b", {"x": 1, "y": 2}, parent_id="a", steps_added=("u",))

    def test_a_full_retry_is_a_replay_after_its_parent_has_been_forgotten(
        self, store: Store, clock: ManualClock
    ) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "b", {"x": 2}, parent_id="a", base_checkpoint_id="a")
        store.delete_ids("w", "a")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert store.save("w", "b", {"x": 2}, parent_id="a").is_replayed

    def test_a_retry_of_an_increment_in_another_form_needs_its_base(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "c", {"x": 1}, base_checkpoint_id="b")
        store.delete_ids("w", "a")
        with refused("BASE_NOT_FOUND"):
            store.save("w", "c", {"x": 1, "at": "b"}, base_checkpoint_id="a")

    def test_equal_content_has_an_equal_digest_however_it_was_sent(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1})
        store.save("w", "b", {"y": 2}, base_checkpoint_id="a", parent_id="")
        full = store.save("v", "b", {"y": 2, "x": 1}, parent_id="")
        assert store.load("w", "b").row.digest == full.digest

    @pytest.mark.parametrize("changed", OTHER_CONTENT)
    def test_other_content_under_a_taken_id_is_refused(self, store: Store, changed: str) -> None:
        store.save("w", "a")
        first = store.save("w", "b", CONTENT_STATE, **CONTENT)
        other: SaveOptions = {**CONTENT, **OTHER_CONTENT[changed]}
        with refused("CHECKPOINT_EXISTS") as refusal:
            store.save("w", "b", CONTENT_STATE, **other)
        assert refusal.error.metadata == {"checkpoint_id": "b", "sequence": "2", "digest": first.digest.hex()}

    @pytest.mark.parametrize("changed", OTHER_STATE)
    def test_another_state_under_a_taken_id_is_refused(self, store: Store, changed: str) -> None:
        store.save("w", "a")
        store.save("w", "b", CONTENT_STATE, **CONTENT)
        with refused("CHECKPOINT_EXISTS"):
            store.save("w", "b", OTHER_STATE[changed], **CONTENT)

    def test_another_parent_that_was_never_saved_is_a_conflict_too(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        with refused("CHECKPOINT_EXISTS"):
            store.save("w", "b", {"at": "b"}, parent_id="nowhere")

    def test_a_conflict_leaves_what_was_there(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        before = store.load("w", "a")
        with refused("CHECKPOINT_EXISTS"):
            store.save("w", "a", {"x": 2}, records=(record("t"),))
        assert store.load("w", "a") == before


class ReplaceContract(ContractBase):
    """Other content in the place of what is there, where that is asked for."""

    def test_a_replace_keeps_place_and_time(self, store: Store, clock: ManualClock) -> None:
        first = store.save("w", "a", {"x": 1})
        store.save("w", "b")
        clock.advance(1_000)
        replaced = store.save("w", "a", {"x": 2}, is_replace=True)
        assert not replaced.is_replayed
        assert (replaced.sequence, replaced.create_time_ms) == (first.sequence, first.create_time_ms)
        assert (replaced.head_checkpoint_id, store.head("w")) == ("b", "b")

    def test_a_replace_is_seen(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1}, current_step="one", steps_added=("s",))
        store.save("w", "a", {"x": 2}, current_step="two", metadata='{"m": 1}', is_replace=True, steps_added=("t",))
        loaded = store.load("w", "a")
        assert store.state("w", "a") == {"x": 2}
        assert (loaded.row.current_step, loaded.row.metadata, loaded.steps) == ("two", '{"m": 1}', ("t",))

    def test_a_replace_is_no_new_checkpoint(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "a", {"x": 2}, is_replace=True)
        shown = store.get_workflow("w")
        assert (shown.checkpoint_count, shown.last_sequence, store.ids("w")) == (2, 2, ["b", "a"])

    def test_a_replace_does_not_alter_descendants(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1})
        store.save("w", "b", {"z": 1}, base_checkpoint_id="a")
        store.save("w", "a", {"x": 2}, is_replace=True)
        assert store.state("w", "b") == {"x": 1, "y": 1, "z": 1}

    def test_a_replace_of_the_root_head_shows_in_the_workflow(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "a", current_step="end", status=Status.COMPLETED, is_replace=True)
        shown = store.get_workflow("w")
        assert (shown.status, shown.current_step) == (Status.COMPLETED, "end")

    def test_a_replace_of_the_root_head_is_an_update(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b")
        updated_ms = store.get_workflow("w").update_time_ms
        clock.advance(1_000)
        store.save("w", "a", {"x": 2}, is_replace=True)
        assert store.get_workflow("w").update_time_ms == updated_ms
        store.save("w", "b", {"x": 2}, is_replace=True)
        assert store.get_workflow("w").update_time_ms == clock.now_ms

    def test_a_replace_in_a_sub_scope_does_not_show_in_the_workflow(self, store: Store) -> None:
        store.save("w", "a", scope="s")
        store.save("w", "a", {"x": 1})
        store.save("w", "a", scope="s", current_step="end", status=Status.COMPLETED, is_replace=True)
        shown = store.get_workflow("w")
        assert (shown.status, shown.current_step) == (Status.RUNNING, "")

    def test_a_replace_brings_labels_and_a_first_definition(self, store: Store) -> None:
        store.save("w", "a", labels={"l": "1"})
        store.save("w", "a", {"x": 2}, is_replace=True, labels={"l": "2"}, definition="d")
        shown = store.get_workflow("w")
        assert (shown.labels, shown.definition) == ({"l": "2"}, "d")
        store.save("w", "a", {"x": 3}, is_replace=True)
        assert store.get_workflow("w") == msgspec.structs.replace(shown, revision=shown.revision + 1)

    def test_a_replace_of_an_older_checkpoint_does_not_show_in_the_workflow(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "a", current_step="end", status=Status.COMPLETED, is_replace=True)
        shown = store.get_workflow("w")
        assert (shown.status, shown.current_step) == (Status.RUNNING, "")

    def test_a_replace_of_the_digest_that_is_there_goes_through(self, store: Store) -> None:
        first = store.save("w", "a", {"x": 1})
        store.save("w", "a", {"x": 2}, is_replace=True, replaces_digest=first.digest)
        assert store.state("w", "a") == {"x": 2}

    def test_a_replace_of_another_digest_is_refused(self, store: Store) -> None:
        first = store.save("w", "a", {"x": 1})
        second = store.save("w", "a", {"x": 2}, is_replace=True)
        with refused("DIGEST_MISMATCH") as refusal:
            store.save("w", "a", {"x": 3}, is_replace=True, replaces_digest=first.digest)
        assert refusal.error.metadata == {"checkpoint_id": "a", "digest": second.digest.hex()}
        assert store.state("w", "a") == {"x": 2}

    def test_a_replace_where_nothing_is_saves(self, store: Store) -> None:
        answer = store.save("w", "a", {"x": 1}, is_replace=True)
        assert (answer.sequence, answer.is_replayed) == (1, False)

    def test_the_same_replace_again_is_a_replay(self, store: Store) -> None:
        first = store.save("w", "a", {"x": 1})
        store.save("w", "a", {"x": 2}, is_replace=True, replaces_digest=first.digest)
        assert store.save("w", "a", {"x": 2}, is_replace=True, replaces_digest=first.digest).is_replayed

    def test_the_save_that_was_replaced_is_no_replay(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "a", {"x": 2}, is_replace=True)
        with refused("CHECKPOINT_EXISTS"):
            store.save("w", "a", {"x": 1})

    def test_a_replace_can_be_replaced_back(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "a", {"x": 2}, is_replace=True)
        assert not store.save("w", "a", {"x": 1}, is_replace=True).is_replayed
        assert store.state("w", "a") == {"x": 1}

    def test_a_replace_may_be_told_against_what_it_replaces(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1})
        store.save("w", "a", {"x": 2}, base_checkpoint_id="a", is_replace=True)
        assert store.state("w", "a") == {"x": 2, "y": 1}

    def test_a_replace_lets_go_of_the_old_values(self, store: Store) -> None:
        store.save("w", "a", {"x": "old"})
        store.save("w", "a", {"x": "new"}, is_replace=True)
        store.sweep()
        assert store.count("values") == 1

    def test_a_replace_may_hang_the_checkpoint_on_an_older_one(self, store: Store) -> None:
        store.save_line("w", "a", "b", "c")
        store.save("w", "c", {"x": 1}, parent_id="a", is_replace=True)
        assert store.load("w", "c").row.parent_id == "a"

    @pytest.mark.parametrize("parent_id", ["a", "b"])
    def test_a_replace_cannot_make_a_circle(self, store: Store, parent_id: str) -> None:
        store.save_line("w", "a", "b")
        with refused("INVALID_FIELD") as refusal:
            store.save("w", "a", {"x": 1}, parent_id=parent_id, is_replace=True)
        assert refusal.error.field == "parent_id"

    def test_a_replace_checks_its_parent(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        with refused("PARENT_NOT_FOUND"):
            store.save("w", "b", {"x": 1}, parent_id="nowhere", is_replace=True)

    def test_a_replace_checks_expected_head(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        with refused("HEAD_MOVED"):
            store.save("w", "a", {"x": 2}, is_replace=True, expected_head="a")

    def test_a_replace_checks_the_definition(self, store: Store) -> None:
        store.save("w", "a", definition="d")
        with refused("DEFINITION_MISMATCH"):
            store.save("w", "a", {"x": 2}, is_replace=True, definition="e")

    def test_a_replace_under_another_run_belongs_to_that_run(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, run_id="one")
        store.save("w", "a", {"x": 2}, run_id="two", is_replace=True)
        assert store.delete_run("one") == 0
        assert store.delete_run("two") == 1

    def test_a_replace_keeps_the_records(self, store: Store) -> None:
        store.save("w", "a", records=(record("t", 0, 1),))
        store.save("w", "a", {"x": 1}, is_replace=True, records=(record("t", 0, 2), record("t", 1, 3)))
        assert store.load("w", "a").records == (record("t", 0, 1), record("t", 1, 3))


class StubContract(ContractBase):
    """What was deleted is not brought back by a late retry."""

    def test_an_id_deleted_by_name_is_refused(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        with refused("CHECKPOINT_DELETED") as refusal:
            store.save("w", "a", {"at": "a"})
        assert refusal.error.metadata == {"checkpoint_id": "a", "sequence": "1"}

    def test_an_id_that_was_pruned_is_refused(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.prune("w", 1)
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a", {"at": "a"})

    def test_an_id_deleted_with_its_workflow_is_refused(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a")
        assert not is_found(store, "w")

    def test_an_id_of_a_deleted_incarnation_is_refused_in_the_next(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        store.save("w", "b")
        store.sweep()
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a")
        assert store.ids("w") == ["b"]

    def test_an_id_deleted_before_its_workflow_was_is_refused(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        store.delete_workflow("w")
        store.sweep()
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a", {"at": "a"})

    def test_a_replace_does_not_bring_back_either(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a", {"x": 2}, is_replace=True)

    def test_records_do_not_bring_back_either(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        with refused("CHECKPOINT_DELETED"):
            store.append("w", "a", record("t"))

    def test_records_are_refused_after_the_workflow_was_deleted(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        with refused("CHECKPOINT_DELETED"):
            store.append("w", "a", record("t"))

    def test_a_stub_comes_before_expected_head(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a", {"at": "a"}, expected_head="nowhere")

    def test_a_stub_is_of_its_scope_alone(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        assert store.save("w", "a", scope="s").sequence == 3

    def test_a_stub_is_of_its_workflow_alone(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        assert store.save("v", "a").sequence == 1

    def test_a_stub_stays_for_the_replay_window(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        clock.advance(DEFAULT_LIMITS.replay_window_ms - 1)
        store.sweep()
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a", {"at": "a"})

    def test_an_id_is_free_after_the_replay_window(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert store.save("w", "a", {"at": "a"}).sequence == 3

    def test_every_stub_has_its_own_window(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b", "c")
        store.delete_ids("w", "a")
        clock.advance(1_000)
        store.delete_ids("w", "b")
        clock.advance(DEFAULT_LIMITS.replay_window_ms - 1_000)
        store.sweep()
        assert store.save("w", "a").sequence == 4
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "b", {"at": "b"})
        clock.advance(1_000)
        store.sweep()
        assert store.save("w", "b").sequence == 5

    @pytest.mark.parametrize("is_made_again", [False, True])
    def test_ids_of_a_deleted_workflow_are_free_after_the_replay_window(
        self, store: Store, clock: ManualClock, is_made_again: bool
    ) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        store.sweep()
        if is_made_again:
            store.save("w", "b")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        store.save("w", "a")
        assert store.head("w") == "a"

    def test_a_live_id_outlives_the_replay_window(self, store: Store, clock: ManualClock) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "b")
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert store.save("w", "a", {"at": "a"}).is_replayed


class ExpectedHeadContract(ContractBase):
    """A Save that knew another head than the present one is refused in the commit."""

    def test_no_head_can_be_expected(self, store: Store) -> None:
        store.save("w", "a", expected_head="")
        with refused("HEAD_MOVED") as refusal:
            store.save("w", "b", expected_head="")
        assert refusal.error.metadata == {
            "expected_head": "",
            "head_checkpoint_id": "a",
            "head_sequence": "1",
        }

    def test_the_head_can_be_expected(self, store: Store) -> None:
        store.save("w", "a")
        assert store.save("w", "b", expected_head="a").sequence == 2

    def test_an_older_checkpoint_is_not_the_head(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        with refused("HEAD_MOVED") as refusal:
            store.save("w", "c", expected_head="a")
        assert refusal.error.metadata["head_checkpoint_id"] == "b"

    def test_a_head_expected_where_there_is_none_is_refused(self, store: Store) -> None:
        with refused("HEAD_MOVED") as refusal:
            store.save("w", "a", expected_head="nowhere")
        assert refusal.error.metadata["head_checkpoint_id"] == ""
        assert not is_found(store, "w")

    def test_a_head_is_expected_of_the_own_scope(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", scope="s", expected_head="")
        assert store.save("w", "c", scope="s", expected_head="b").sequence == 3

    def test_the_head_after_a_delete_is_the_one_before(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "b")
        assert store.save("w", "c", expected_head="a").parent_id == "a"

    def test_a_scope_that_was_emptied_has_no_head(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_ids("w", "a")
        assert store.save("w", "b", expected_head="").sequence == 2

    def test_a_workflow_that_is_made_again_has_no_head(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        assert store.save("w", "b", expected_head="").sequence == 1

    def test_expected_head_comes_before_base_and_parent(self, store: Store) -> None:
        store.save("w", "a")
        with refused("HEAD_MOVED"):
            store.save("w", "b", expected_head="", base_checkpoint_id="nowhere", parent_id="nowhere")

    def test_of_two_saves_that_expect_the_same_head_one_wins(self, store: Store) -> None:
        store.save("w", "a")
        first, second = store.engine.execute([save("w", "b", expected_head="a"), save("w", "c", expected_head="a")])
        assert not isinstance(first, Exception)
        assert isinstance(second, Exception)
        assert store.ids("w") == ["b", "a"]


class ChecksContract(ContractBase):
    """Which check a Save that fails several is answered by, and that none of them leaves anything."""

    def test_the_first_check_that_fails_is_the_answer(self, open_store: OpenStore) -> None:
        store, options = self._with_all_faults(open_store)
        store.save("w", "gone")
        store.delete_ids("w", "gone")
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "gone", THREE_ENTRIES, **options)
        token = store.acquire("w").lease.token
        mended: list[tuple[str, SaveOptions]] = [
            ("LEASE_HELD", {"lease_token": token}),
            ("HEAD_MOVED", {"expected_head": "b"}),
            ("BASE_NOT_FOUND", {"base_checkpoint_id": "a"}),
            ("PARENT_NOT_FOUND", {"parent_id": "a"}),
            ("DEFINITION_MISMATCH", {"definition": "d"}),
        ]
        options = self._mend(store, "c", options, mended)
        assert store.save("w", "c", {"x": 3}, **options).sequence == 4

    def test_the_first_check_of_a_replace_that_fails_is_the_answer(self, open_store: OpenStore) -> None:
        store, options = self._with_all_faults(open_store)
        digest = store.load("w", "b").row.digest
        token = store.acquire("w").lease.token
        mended: list[tuple[str, SaveOptions]] = [
            ("BASE_NOT_FOUND", {"base_checkpoint_id": "a"}),
            ("CHECKPOINT_EXISTS", {"is_replace": True, "replaces_digest": bytes(32)}),
            ("DIGEST_MISMATCH", {"replaces_digest": digest}),
            ("LEASE_HELD", {"lease_token": token}),
            ("HEAD_MOVED", {"expected_head": "b"}),
            ("PARENT_NOT_FOUND", {"parent_id": "a"}),
            ("DEFINITION_MISMATCH", {"definition": "d"}),
        ]
        options = self._mend(store, "b", options, mended)
        assert store.save("w", "b", {"x": 3}, **options).sequence == 2

    @staticmethod
    def _with_all_faults(open_store: OpenStore) -> tuple[Store, SaveOptions]:
        store = open_store(Limits(entries_max=2, manifests_max=1))
        manifest, fingerprint = manifest_of("first")
        store.save("w", "a", {"x": 1}, definition="d", manifest=manifest, fingerprint=fingerprint)
        store.save("w", "b", {"x": 2})
        manifest, fingerprint = manifest_of("second")
        options: SaveOptions = {
            "expected_head": "nowhere",
            "base_checkpoint_id": "nowhere",
            "parent_id": "nowhere",
            "definition": "other",
            "manifest": manifest,
            "fingerprint": fingerprint,
        }
        return store, options

    @staticmethod
    def _mend(
        store: Store, checkpoint_id: str, options: SaveOptions, mended: Sequence[tuple[str, SaveOptions]]
    ) -> SaveOptions:
        """Meet each refusal and mend what it tells of, then the limit; return what is left of the faults: none."""
        before = store.get_workflow("w")
        for reason, mend in mended:
            with refused(reason):
                store.save("w", checkpoint_id, THREE_ENTRIES, **options)
            options = {**options, **mend}
        with refused("LIMIT_EXCEEDED"):
            store.save("w", checkpoint_id, THREE_ENTRIES, **options)
        with refused("QUOTA_EXCEEDED") as refusal:
            store.save("w", checkpoint_id, {"x": 3}, **options)
        assert refusal.error.metadata["limit"] == "manifests_max"
        assert store.get_workflow("w") == before
        return {**options, "manifest": ""}


class SavingContract(
    OrderContract,
    ParentContract,
    ReplayContract,
    ReplaceContract,
    StubContract,
    ExpectedHeadContract,
    ChecksContract,
):
    """All of Save but its state."""
