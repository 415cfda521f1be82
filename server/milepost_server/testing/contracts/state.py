"""Contract of states: full and incremental Saves, completed steps, sharing of values, and limits on content."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.model import Compression, Selection, Value, ValueKind
from milepost_server.testing.builders import Store, data_value, is_found, record, refused
from milepost_server.testing.contracts.base import ContractBase, OpenStore

CHAIN_LENGTH = 400
CHAIN_KEYS = 20
STEP_COUNT = 2_000


class ValueContract(ContractBase):
    """What is loaded is what was saved."""

    def test_json_is_kept_byte_for_byte(self, store: Store) -> None:
        value = Value(ValueKind.JSON, b' { "b" : 1.0e2,"a":"\\u00e9\xc3\xa9" } ')
        store.save("w", "a", {"x": value})
        assert store.load("w").entries == {"x": value}

    def test_data_keeps_its_codec_and_compression(self, store: Store) -> None:
        value = data_value(bytes(range(256)), "msgpack", Compression.ZSTD)
        store.save("w", "a", {"x": value})
        assert store.load("w").entries == {"x": value}

    def test_an_empty_value_is_a_value(self, store: Store) -> None:
        store.save("w", "a", {"x": data_value(b"")})
        assert store.load("w").entries == {"x": data_value(b"")}

    def test_a_value_of_many_chunks_is_whole(self, store: Store) -> None:
        value = data_value(bytes(range(251)) * 4_000)
        store.save("w", "a", {"x": value, "y": data_value(value.payload[:-1])})
        assert store.load("w").entries == {"x": value, "y": data_value(value.payload[:-1])}

    def test_bytes_that_differ_in_codec_alone_are_two_values(self, store: Store) -> None:
        store.save("w", "a", {"x": data_value(b"v", "one"), "y": data_value(b"v", "two")})
        assert store.load("w").entries == {"x": data_value(b"v", "one"), "y": data_value(b"v", "two")}

    def test_an_empty_state_is_a_state(self, store: Store) -> None:
        store.save("w", "a")
        assert store.load("w").entries == {}

    def test_every_key_is_kept_apart(self, store: Store) -> None:
        keys = ["", "a", "A", "a ", "é", "e\u0301", "\U0001f600", "a/b", "k" * 1_024, "k" * 1_023]
        state: Mapping[str, object] = {key: number for number, key in enumerate(keys)}
        store.save("w", "a", state)
        assert store.state("w") == state

    def test_texts_of_a_checkpoint_are_kept(self, store: Store) -> None:
        store.save(
            "w\U0001f600",
            "é" * 128,
            scope="s/é",
            current_step="step é",
            metadata='{"é": "\U0001f600"}',
            fingerprint="f",
            run_id="r",
            definition="d",
            history_entries=("x", "é"),
        )
        row = store.load("w\U0001f600", scope="s/é").row
        assert (row.checkpoint_id, row.current_step, row.metadata) == ("é" * 128, "step é", '{"é": "\U0001f600"}')
        assert (row.fingerprint, row.run_id, row.definition) == ("f", "r", "d")
        assert row.history_entries == ("x", "é")

    def test_only_the_entries_asked_for_are_read(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 2, "z": 3})
        selection = Selection(entry_keys=("z", "x", "nowhere"))
        assert set(store.load("w", selection=selection).entries or ()) == {"x", "z"}

    def test_only_the_entries_asked_for_are_read_without_steps(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 2, "z": 3}, steps_added=("s",))
        loaded = store.load("w", selection=Selection(entry_keys=("z", "nowhere"), with_steps=False))
        assert (set(loaded.entries or ()), loaded.steps) == ({"z"}, ())

    def test_state_steps_and_records_can_be_left_out(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, steps_added=("s",), records=(record("t"),))
        loaded = store.load("w", selection=Selection(with_state=False, with_steps=False, with_records=False))
        assert (loaded.entries, loaded.steps, loaded.records) == (None, (), ())
        assert (loaded.row.entry_count, loaded.row.step_count, loaded.record_count) == (1, 1, 1)

    def test_a_checkpoint_knows_the_size_of_its_whole_state(self, store: Store) -> None:
        store.save("w", "a", {"x": data_value(bytes(1_000)), "y": 1})
        store.save("w", "b", {"z": data_value(bytes(500))}, base_checkpoint_id="a", removed_keys=("y",))
        full = store.save("v", "b", {"x": data_value(bytes(1_000)), "z": data_value(bytes(500))})
        assert full.sequence == 1
        assert 1_500 <= store.load("w", "b").row.size_bytes == store.load("v", "b").row.size_bytes < 1_700


class IncrementalContract(ContractBase):
    """A Save that tells its state against another checkpoint's."""

    def test_an_increment_changes_adds_and_removes(self, store: Store) -> None:
        store.save("w", "a", {"kept": 1, "changed": 1, "removed": 1})
        store.save("w", "b", {"changed": 2, "added": 2}, base_checkpoint_id="a", removed_keys=("removed",))
        assert store.state("w", "b") == {"kept": 1, "changed": 2, "added": 2}

    def test_the_base_stays_as_it_was(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1})
        store.save("w", "b", {"x": 2}, base_checkpoint_id="a", removed_keys=("y",))
        assert store.state("w", "a") == {"x": 1, "y": 1}

    def test_an_empty_increment_is_its_base(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "b", base_checkpoint_id="a")
        assert store.state("w", "b") == {"x": 1}

    def test_removing_what_is_not_there_changes_nothing(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "b", base_checkpoint_id="a", removed_keys=("nowhere", "nowhere"))
        assert store.state("w", "b") == {"x": 1}

    def test_a_removed_key_can_come_back(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1})
        store.save("w", "b", base_checkpoint_id="a", removed_keys=("x",))
        store.save("w", "c", {"x": 3}, base_checkpoint_id="b")
        assert store.state("w", "c") == {"x": 3, "y": 1}

    def test_a_full_save_has_nothing_of_its_parent(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 1})
        store.save("w", "b", {"z": 1})
        assert store.state("w", "b") == {"z": 1}

    def test_the_base_need_not_be_the_parent(self, store: Store) -> None:
        store.save("w", "a", {"x": "a"})
        store.save("w", "b", {"x": "b", "y": "b"})
        store.save("w", "c", {"z": "c"}, base_checkpoint_id="a", parent_id="b")
        assert store.load("w", "c").row.parent_id == "b"
        assert store.state("w", "c") == {"x": "a", "z": "c"}

    def test_a_base_that_never_was_is_refused(self, store: Store) -> None:
        store.save("w", "a")
        with refused("BASE_NOT_FOUND") as refusal:
            store.save("w", "b", base_checkpoint_id="nowhere")
        assert refusal.error.metadata == {"base_checkpoint_id": "nowhere"}

    def test_a_first_save_has_no_base(self, store: Store) -> None:
        with refused("BASE_NOT_FOUND"):
            store.save("w", "a", base_checkpoint_id="nowhere")
        assert not is_found(store, "w")

    def test_a_base_that_was_deleted_is_refused(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        with refused("BASE_NOT_FOUND"):
            store.save("w", "c", base_checkpoint_id="a")

    def test_a_base_of_another_scope_is_refused(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        with refused("BASE_NOT_FOUND"):
            store.save("w", "b", scope="s", base_checkpoint_id="a")

    def test_a_base_of_a_deleted_incarnation_is_refused(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        store.save("w", "b")
        with refused("BASE_NOT_FOUND"):
            store.save("w", "c", base_checkpoint_id="a")

    def test_a_base_may_be_named_by_its_content_too(self, store: Store) -> None:
        first = store.save("w", "a", {"x": 1})
        store.save("w", "b", {"y": 1}, base_checkpoint_id="a", base_digest=first.digest)
        assert store.state("w", "b") == {"x": 1, "y": 1}

    def test_an_increment_on_a_base_that_was_replaced_is_refused(self, store: Store) -> None:
        first = store.save("w", "a", {"x": 1})
        store.save("w", "a", {"x": 2}, is_replace=True)
        with refused("BASE_NOT_FOUND") as refusal:
            store.save("w", "b", {"y": 1}, base_checkpoint_id="a", base_digest=first.digest)
        assert refusal.error.metadata == {"base_checkpoint_id": "a"}
        assert store.ids("w") == ["a"]

    def test_an_increment_retried_after_its_base_was_replaced_is_a_replay(self, store: Store) -> None:
        first = store.save("w", "a", {"x": 1})
        store.save("w", "b", {"y": 1}, base_checkpoint_id="a", base_digest=first.digest)
        store.save("w", "a", {"x": 2}, is_replace=True)
        assert store.save("w", "b", {"y": 1}, base_checkpoint_id="a", base_digest=first.digest).is_replayed
        assert store.save("w", "b", {"x": 1, "y": 1}).is_replayed

    def test_the_same_increment_on_another_content_of_its_base_is_no_replay(self, store: Store) -> None:
        first = store.save("w", "a", {"x": 1})
        store.save("w", "b", {"y": 1}, base_checkpoint_id="a", base_digest=first.digest)
        second = store.save("w", "a", {"x": 2}, is_replace=True)
        with refused("CHECKPOINT_EXISTS"):
            store.save("w", "b", {"y": 1}, base_checkpoint_id="a", base_digest=second.digest)

    def test_after_a_vanished_base_the_full_state_is_saved_under_the_same_id(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "b")
        with refused("BASE_NOT_FOUND"):
            store.save("w", "c", {"x": 1}, base_checkpoint_id="b", parent_id="b")
        answer = store.save("w", "c", {"at": "b", "x": 1}, parent_id="b")
        assert (answer.is_replayed, answer.sequence) == (False, 3)

    def test_every_checkpoint_of_a_long_chain_resolves_to_its_own_state(self, store: Store) -> None:
        states: list[dict[str, object]] = [{f"k{number}": 0 for number in range(CHAIN_KEYS)}]
        store.save("w", "0", states[0])
        for number in range(1, CHAIN_LENGTH):
            changed = {f"k{number * 7 % CHAIN_KEYS}": number}
            removed = (f"k{number * 3 % CHAIN_KEYS}",) if number % 5 == 0 else ()
            changed = {key: value for key, value in changed.items() if key not in removed}
            store.save("w", str(number), changed, base_checkpoint_id=str(number - 1), removed_keys=removed)
            kept = {key: value for key, value in states[-1].items() if key not in removed}
            states.append({**kept, **changed})
        assert [store.state("w", str(number)) for number in range(CHAIN_LENGTH)] == states

    def test_branches_of_a_chain_do_not_see_each_other(self, store: Store) -> None:
        store.save("w", "root", {"x": 0, "y": 0})
        for number in range(50):
            base = "root" if number < 10 else f"b{number - 10}"
            store.save("w", f"b{number}", {f"n{number}": number}, base_checkpoint_id=base)
        for number in range(50):
            line = range(number % 10, number + 1, 10)
            assert store.state("w", f"b{number}") == {"x": 0, "y": 0, **{f"n{step}": step for step in line}}

    def test_a_chain_resolves_after_all_but_its_end_were_deleted(self, store: Store) -> None:
        store.save("w", "0", {"x": 0, "y": 0})
        for number in range(1, 60):
            store.save("w", str(number), {"x": number}, base_checkpoint_id=str(number - 1))
        store.delete_ids("w", *(str(number) for number in range(59)))
        store.sweep()
        assert store.state("w") == {"x": 59, "y": 0}

    def test_a_chain_resolves_after_its_middle_was_deleted(self, store: Store) -> None:
        store.save("w", "0", {"x": 0, "y": 0})
        for number in range(1, 60):
            store.save("w", str(number), {f"n{number % 4}": number}, base_checkpoint_id=str(number - 1))
        expected = {str(number): store.state("w", str(number)) for number in range(60) if number % 3 == 0}
        store.delete_ids("w", *(str(number) for number in range(60) if number % 3))
        store.sweep()
        assert {name: store.state("w", name) for name in expected} == expected


class SharingContract(ContractBase):
    """A value is stored once for a line of checkpoints, never shared beyond a family, and freed with its last state."""

    def test_a_full_save_stores_only_what_changed(self, store: Store) -> None:
        state: dict[str, object] = {f"k{number}": f"value {number}" for number in range(100)}
        store.save("w", "a", state)
        store.save("w", "b", {**state, "k7": "new"})
        assert store.count("values") == 101

    def test_an_increment_stores_only_what_changed(self, store: Store) -> None:
        store.save("w", "a", {f"k{number}": f"value {number}" for number in range(100)})
        store.save("w", "b", {"k7": "new"}, base_checkpoint_id="a")
        assert store.count("values") == 101

    def test_a_save_that_changes_one_entry_of_many_stores_few_bytes(self, store: Store) -> None:
        state: dict[str, object] = {f"k{number}": data_value(bytes([number % 256]) * 1_000) for number in range(200)}
        store.save("w", "a", state)
        first = store.get_workflow("w").stored_bytes
        store.save("w", "b", {**state, "k7": "new"})
        assert store.get_workflow("w").stored_bytes - first < first / 100

    def test_equal_values_of_two_workflows_are_stored_twice(self, store: Store) -> None:
        store.save("w", "a", {"x": "same"})
        store.save("v", "a", {"x": "same"})
        assert store.count("values") == 2

    def test_a_value_stays_while_any_checkpoint_has_it(self, store: Store) -> None:
        store.save_line("w", "a")
        store.save("w", "b", {"x": 1}, base_checkpoint_id="a")
        store.save("w", "c", {"x": 2}, base_checkpoint_id="b")
        store.delete_ids("w", "a", "c")
        store.sweep()
        assert store.state("w", "b") == {"at": "a", "x": 1}

    def test_values_go_with_the_last_checkpoint_that_has_them(self, store: Store) -> None:
        store.save("w", "a", {"x": 1, "y": 2})
        store.save("w", "b", {"x": 3}, parent_id="")
        store.delete_ids("w", "a")
        store.sweep()
        assert store.count("values") == 1

    def test_a_chain_keeps_little_that_it_no_longer_needs(self, store: Store) -> None:
        store.save("w", "0", {"x": 0, "y": "kept"})
        for number in range(1, 300):
            store.save("w", str(number), {"x": number}, base_checkpoint_id=str(number - 1))
            store.delete_ids("w", str(number - 1))
        store.sweep()
        assert store.count("nodes") < 30
        assert store.count("values") < 30

    def test_a_chain_that_was_deleted_leaves_nothing(self, store: Store) -> None:
        store.save("w", "0", {"x": 0, "y": "kept"})
        for number in range(1, 50):
            store.save("w", str(number), {"x": number}, base_checkpoint_id=str(number - 1))
        store.delete_ids("w", *(str(number) for number in range(50)))
        store.sweep()
        assert (store.count("nodes"), store.count("values")) == (0, 0)


class StepsContract(ContractBase):
    """Completed steps are an ordered set that grows along a line."""

    def test_steps_are_kept_in_the_order_they_finished(self, store: Store) -> None:
        store.save("w", "a", steps_added=("z", "a", "m"))
        assert store.load("w").steps == ("z", "a", "m")

    def test_a_full_save_adds_to_its_parents_steps(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, steps_added=("one",))
        store.save("w", "b", {"x": 2}, steps_added=("two",))
        assert store.load("w").steps == ("one", "two")

    def test_an_increment_adds_to_its_bases_steps(self, store: Store) -> None:
        store.save("w", "a", steps_added=("one",))
        store.save("w", "b", steps_added=("two",))
        store.save("w", "c", base_checkpoint_id="a", parent_id="b", steps_added=("three",))
        assert store.load("w").steps == ("one", "three")

    def test_a_checkpoint_without_parent_starts_without_steps(self, store: Store) -> None:
        store.save("w", "a", steps_added=("one",))
        store.save("w", "b", parent_id="", steps_added=("two",))
        assert store.load("w").steps == ("two",)

    def test_branches_have_steps_of_their_own(self, store: Store) -> None:
        store.save("w", "a", steps_added=("one",))
        store.save("w", "b", parent_id="a", steps_added=("left",))
        store.save("w", "c", parent_id="a", steps_added=("right",))
        assert (store.load("w", "b").steps, store.load("w", "c").steps) == (("one", "left"), ("one", "right"))

    def test_a_step_counts_once_and_keeps_its_first_place(self, store: Store) -> None:
        store.save("w", "a", steps_added=("one", "two", "one"))
        store.save("w", "b", steps_added=("two", "three", "one"))
        loaded = store.load("w")
        assert (loaded.steps, loaded.row.step_count) == (("one", "two", "three"), 3)

    def test_steps_alone_make_a_new_state(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, steps_added=("one",))
        store.save("w", "b", base_checkpoint_id="a", steps_added=("two",))
        assert (store.load("w", "a").steps, store.load("w", "b").steps) == (("one",), ("one", "two"))

    def test_steps_stay_when_the_parent_goes(self, store: Store) -> None:
        store.save("w", "a", steps_added=("one",))
        store.save("w", "b", steps_added=("two",))
        store.delete_ids("w", "a")
        store.sweep()
        assert store.load("w").steps == ("one", "two")

    def test_a_line_of_thousands_of_steps_loads_in_order(self, store: Store) -> None:
        for number in range(STEP_COUNT):
            store.save("w", str(number), {"x": number}, steps_added=(f"s{number}",))
        assert store.load("w").steps == tuple(f"s{number}" for number in range(STEP_COUNT))
        middle = store.load("w", str(STEP_COUNT // 2))
        assert middle.steps == tuple(f"s{number}" for number in range(STEP_COUNT // 2 + 1))

    def test_each_step_of_a_long_line_adds_about_the_same(self, store: Store) -> None:
        added = []
        for number in range(300):
            before = store.get_workflow("w").stored_bytes if number else 0
            store.save("w", str(number), {"x": number}, steps_added=(f"step {number:06}",))
            added.append(store.get_workflow("w").stored_bytes - before)
        assert max(added) <= added[0] + 16


class ContentLimitsContract(ContractBase):
    """What one checkpoint may have, counted after the base is applied; a refusal leaves nothing."""

    def test_a_state_that_grows_past_one_message_is_refused(self, open_store: OpenStore) -> None:
        store = open_store(msgspec.structs.replace(DEFAULT_LIMITS, state_bytes_max=10_000))
        store.save("w", "0", {"k0": data_value(bytes(3_000))})
        store.save("w", "1", {"k1": data_value(bytes(3_001))}, base_checkpoint_id="0")
        store.save("w", "2", {"k2": data_value(bytes(3_002))}, base_checkpoint_id="1")
        with refused("STATE_TOO_LARGE") as refusal:
            store.save("w", "3", {"k3": data_value(bytes(3_003))}, base_checkpoint_id="2")
        assert refusal.error.metadata["allowed"] == "10000"
        assert int(refusal.error.metadata["found"]) > 12_006
        assert store.ids("w") == ["2", "1", "0"]
        assert store.count("values") == 3

    def test_a_state_that_stays_as_large_by_replacing_is_accepted(self, open_store: OpenStore) -> None:
        store = open_store(msgspec.structs.replace(DEFAULT_LIMITS, state_bytes_max=10_000))
        store.save("w", "0", {"k": data_value(bytes(9_000))})
        for number in range(1, 5):
            store.save("w", str(number), {"k": data_value(bytes(9_000 + number))}, base_checkpoint_id=str(number - 1))
        assert store.get_workflow("w").checkpoint_count == 5

    def test_metadata_and_steps_count_against_one_message(self, open_store: OpenStore) -> None:
        store = open_store(msgspec.structs.replace(DEFAULT_LIMITS, state_bytes_max=10_000))
        store.save("w", "0", {"k": data_value(bytes(4_000))}, steps_added=("s" * 4_000,))
        with refused("STATE_TOO_LARGE"):
            store.save("w", "1", metadata='{"m": "' + "x" * 4_000 + '"}', base_checkpoint_id="0")

    @pytest.mark.parametrize(
        "limits, field",
        [
            (Limits(entries_max=2), "state"),
            (Limits(completed_steps_max=2), "completed_steps_added"),
            (Limits(completed_steps_bytes_max=20), "completed_steps_added"),
        ],
        ids=["entries", "steps", "step bytes"],
    )
    def test_a_limit_counts_what_the_base_has(self, open_store: OpenStore, limits: Limits, field: str) -> None:
        store = open_store(limits)
        store.save("w", "a", {"x": 1, "y": 1}, steps_added=("one", "two"))
        with refused("LIMIT_EXCEEDED") as refusal:
            store.save("w", "b", {"z": 1}, base_checkpoint_id="a", steps_added=("three", "four four"))
        assert refusal.error.metadata["field"] == field
        assert store.ids("w") == ["a"]

    def test_at_the_limit_is_accepted(self, open_store: OpenStore) -> None:
        store = open_store(Limits(entries_max=2, completed_steps_max=2))
        store.save("w", "a", {"x": 1, "y": 1}, steps_added=("one", "two"))
        store.save("w", "b", {"z": 1}, base_checkpoint_id="a", removed_keys=("x",), steps_added=("two",))
        assert store.load("w").row.entry_count == 2

    def test_a_refused_first_save_makes_no_workflow(self, open_store: OpenStore) -> None:
        store = open_store(Limits(entries_max=2))
        with refused("LIMIT_EXCEEDED"):
            store.save("w", "a", {"x": 1, "y": 1, "z": 1})
        assert not is_found(store, "w")

    def test_a_full_save_behind_a_deleted_parent_does_not_lose_its_steps_silently(self, store: Store) -> None:
        store.save("w", "a", steps_added=("one",))
        store.save("w", "b", steps_added=("two",))
        store.delete_ids("w", "b")
        with refused("PARENT_NOT_FOUND"):
            store.save("w", "c", {"x": 1}, parent_id="b", steps_added=("three",))
        store.save("w", "c", {"x": 1}, parent_id="a", steps_added=("three",))
        assert store.load("w", "c").steps == ("one", "three")

    def test_an_increment_behind_a_deleted_parent_has_its_steps_from_its_base(self, store: Store) -> None:
        store.save("w", "a", steps_added=("one",))
        store.save("w", "b", steps_added=("two",))
        store.delete_ids("w", "b")
        store.save("w", "c", base_checkpoint_id="a", parent_id="b", steps_added=("three",))
        assert store.load("w", "c").steps == ("one", "three")

    def test_steps_that_a_replace_brought_are_not_lost_silently_either(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "a", steps_added=("one",), is_replace=True)
        store.delete_ids("w", "a")
        with refused("PARENT_NOT_FOUND"):
            store.save("w", "c", {"x": 1}, parent_id="a")

    def test_namespaces_are_bounded(self, open_store: OpenStore) -> None:
        store = open_store(Limits(namespaces_max=2))
        store.save("w", "a", namespace="one")
        store.save("w", "a", namespace="two")
        with refused("QUOTA_EXCEEDED") as refusal:
            store.save("w", "a", namespace="three")
        limit = {"limit": "namespaces_max", "allowed": "2", "found": "3", "unit": "namespaces"}
        assert refusal.error.metadata == limit
        assert refusal.error.message == (
            "namespace: it would be number 3 of the store, at most 2 are allowed (namespaces_max)"
        )
        assert store.save("w", "b", namespace="two").sequence == 2


class StateContract(ValueContract, IncrementalContract, SharingContract, StepsContract, ContentLimitsContract):
    """All of states."""
