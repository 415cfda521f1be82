"""The rules that are plain functions: digests, hashes, content, limits, filters. The contract shows them at work."""

from __future__ import annotations

import dataclasses
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost_server import rules
from milepost_server.errors import StoreError
from milepost_server.grpc_api import write_answers
from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.model import (
    CheckpointFilter,
    CheckpointRow,
    EntryRef,
    LeaseRow,
    LeaseState,
    LoadedCheckpoint,
    RecordGroupRow,
    SaveCommand,
    Selection,
    Status,
    Value,
    ValueKind,
    WorkflowRow,
)
from milepost_server.testing.builders import data_value, entries, json_value, record, save

keys = st.sampled_from(["a", "b", "c", "ab", ""])
states = st.dictionaries(keys, st.integers(0, 3))
step_lists = st.lists(st.sampled_from(["s", "t", "st", ""])).map(tuple)

SAVE = save(
    "w",
    "c",
    {"x": 1, "y": data_value(b"v")},
    scope="s",
    parent_id="p",
    base_checkpoint_id="b",
    current_step="step",
    steps_added=("one", "two"),
    status=Status.WAITING,
    removed_keys=("z",),
    metadata='{"m": 1}',
    definition="d",
    fingerprint="f",
)


@dataclasses.dataclass
class Stored:
    """A state as a store has it."""

    basis: rules.Basis
    entries: dict[str, EntryRef]
    steps: dict[str, None]


NOTHING = Stored(rules.NO_BASIS, {}, {})


def resolve(command: SaveCommand, stored: Stored = NOTHING) -> tuple[rules.Content, Stored]:
    """Resolve a Save against a stored state; return its content, and the state as it is stored then."""
    content = rules.resolve_content(command, command.parent_id or "", stored.basis, stored.entries, stored.steps)
    kept = {key: ref for key, ref in stored.entries.items() if key not in content.removed}
    changed = {key: EntryRef(1, entry.digest, entry.size_bytes) for key, entry in content.changed.items()}
    basis = rules.Basis(
        1,
        content.entry_count,
        content.entries_bytes,
        content.entries_hash,
        content.step_count,
        content.steps_bytes,
        content.steps_hash,
    )
    return content, Stored(basis, {**kept, **changed}, {**stored.steps, **dict.fromkeys(content.steps_added)})


def row(**fields: object) -> CheckpointRow:
    """Return the row of a checkpoint, with some fields as given."""
    content, _ = resolve(SAVE)
    built = rules.build_row(
        SAVE, content, sequence=1, scope_ordinal=0, node_id=1, create_time_ms=1, sent_digest=bytes(16)
    )
    return msgspec.structs.replace(built, **fields)


# Golden values: stores on disk have them, so they can change only together with the store's format.


@pytest.mark.parametrize(
    "value, digest",
    [
        (json_value({"a": 1}), "6a07f2e4ff16d788a77be64dfb79c9f4c76022fa6d3bd18f1adb18f4ed118b59"),
        (data_value(b"\0\xff", "msgpack", 1), "956e0f58e7eba6125a1d492ca04bdb6a5f35219ac78079e6f24ecbc75054e61f"),
    ],
)
def test_the_digest_of_a_value_is_for_ever(value: Value, digest: str) -> None:
    assert rules.digest_value(value).hex() == digest


def test_the_hash_of_entries_is_for_ever() -> None:
    hashes = [rules.hash_entry("key", bytes(32)), rules.hash_entry("é", b"\1" * 32)]
    assert hashes[0] == 0xEA3876EDB3ABEDCE71F16494336F1B4D272D4922AB44B815C3EC820CB6B82680
    total = rules.add_to_entries_hash(rules.EMPTY_ENTRIES_HASH, hashes, [])
    assert total.hex() == "3483d47a235e1c3f5ed68f58665ba4b46ca3423d85b7610bd62ee2175257bcb7"


def test_the_hash_of_steps_is_for_ever() -> None:
    hashed = rules.extend_steps_hash(rules.EMPTY_STEPS_HASH, ["one", "two é"])
    assert hashed.hex() == "c0f45ea4e2da229dc5ab34b2a758e10e"


def test_the_digest_of_content_is_for_ever() -> None:
    digest = rules.digest_content(SAVE, parent_id="p", entries_hash=bytes(range(32)), steps_hash=bytes(range(16)))
    assert digest.hex() == "3fa3c295663f911d1da32da990e6e8ce9a8ee99be6601147a17e6f2270eb8418"


def test_the_digest_of_a_save_as_sent_is_for_ever() -> None:
    assert rules.digest_sent(SAVE).hex() == "23db12a3b49ed8b5a55e5239e28011c0"


# Digests and hashes.


@pytest.mark.parametrize(
    "other",
    [
        Value(ValueKind.DATA, b"v", "c", 1),
        Value(ValueKind.JSON, b"w", "c", 1),
        Value(ValueKind.JSON, b"v", "d", 1),
        Value(ValueKind.JSON, b"v", "c", 0),
        Value(ValueKind.JSON, b"v", "", 1),
        Value(ValueKind.JSON, b"", "cv", 1),
    ],
)
def test_values_that_differ_in_anything_have_different_digests(other: Value) -> None:
    assert rules.digest_value(other) != rules.digest_value(Value(ValueKind.JSON, b"v", "c", 1))


def test_an_entry_counts_key_and_value_in_bytes() -> None:
    short, long = rules.new_entry("a", data_value(b"")), rules.new_entry("aé", data_value(b"12345", "codec"))
    assert long.size_bytes - short.size_bytes == 2 + 5 + 5


@given(st.lists(st.tuples(keys, st.binary(max_size=3)), unique=True), st.randoms())
def test_the_hash_of_entries_does_not_depend_on_their_order(found: list[tuple[str, bytes]], random: Random) -> None:
    hashes = [rules.hash_entry(key, digest) for key, digest in found]
    shuffled = list(hashes)
    random.shuffle(shuffled)
    assert rules.add_to_entries_hash(rules.EMPTY_ENTRIES_HASH, shuffled, []) == rules.add_to_entries_hash(
        rules.EMPTY_ENTRIES_HASH, hashes, []
    )


@given(st.lists(st.integers(0, 2**256 - 1)), st.lists(st.integers(0, 2**256 - 1)))
def test_what_is_taken_from_a_hash_of_entries_leaves_no_trace(first: list[int], second: list[int]) -> None:
    before = rules.add_to_entries_hash(rules.EMPTY_ENTRIES_HASH, first, [])
    between = rules.add_to_entries_hash(before, second, [])
    assert rules.add_to_entries_hash(between, [], second) == before


def test_a_value_under_another_key_has_another_hash() -> None:
    assert len({rules.hash_entry(key, bytes(32)) for key in ["", "a", "b", "a\x01", "é"]}) == 5


def test_the_hash_of_steps_depends_on_their_order_and_their_bounds() -> None:
    lists = [(), ("",), ("a",), ("a", "b"), ("b", "a"), ("ab",), ("a", "b", "")]
    assert len({rules.extend_steps_hash(rules.EMPTY_STEPS_HASH, steps) for steps in lists}) == len(lists)


@given(step_lists, step_lists)
def test_steps_hashed_in_two_parts_have_the_hash_of_the_whole(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    parts = rules.extend_steps_hash(rules.extend_steps_hash(rules.EMPTY_STEPS_HASH, first), second)
    assert parts == rules.extend_steps_hash(rules.EMPTY_STEPS_HASH, first + second)


# Content.


@given(states, states, step_lists, step_lists)
def test_an_increment_and_a_full_save_of_one_state_are_the_same_content(
    before: dict[str, int], after: dict[str, int], first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    _, stored = resolve(save("w", "b", before, steps_added=first))
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    removed = tuple(key for key in before if key not in after)
    increment, _ = resolve(
        save("w", "c", changed, base_checkpoint_id="b", removed_keys=removed, steps_added=second), stored
    )
    full, _ = resolve(save("w", "c", after, steps_added=second), stored)
    fresh, _ = resolve(save("w", "c", after, steps_added=first + second))
    assert increment == full
    for name in ("digest", "entry_count", "entries_bytes", "entries_hash", "step_count", "steps_bytes", "steps_hash"):
        assert getattr(fresh, name) == getattr(full, name)


@given(states, states)
def test_only_what_differs_is_written(before: dict[str, int], after: dict[str, int]) -> None:
    _, stored = resolve(save("w", "b", before))
    content, _ = resolve(save("w", "c", after), stored)
    assert set(content.changed) == {key for key, value in after.items() if before.get(key) != value}
    assert set(content.removed) == before.keys() - after.keys()


def test_content_is_counted_whole() -> None:
    _, stored = resolve(save("w", "b", {"kept": 1, "changed": 1, "removed": 1}, steps_added=("one",)))
    content, _ = resolve(
        save("w", "c", {"changed": 22, "new": 1}, base_checkpoint_id="b", removed_keys=("removed",)), stored
    )
    whole = entries({"kept": 1, "changed": 22, "new": 1})
    assert (content.entry_count, content.step_count) == (3, 1)
    assert content.entries_bytes == sum(entry.size_bytes for entry in whole.values())


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "other"},
        {"current_step": "other"},
        {"status": Status.FAILED},
        {"definition": "other"},
        {"fingerprint": "other"},
        {"metadata": '{"m": 2}'},
    ],
)
def test_every_part_of_the_content_changes_its_digest(change: dict[str, object]) -> None:
    def digest(command: SaveCommand) -> bytes:
        return rules.digest_content(command, parent_id="p", entries_hash=bytes(32), steps_hash=bytes(16))

    assert digest(msgspec.structs.replace(SAVE, **change)) != digest(SAVE)


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "r"},
        {"labels": {"l": "1"}},
        {"records": (record("t"),)},
        {"history_entries": ("x",)},
        {"expected_head": "h"},
        {"is_replace": True},
        {"replaces_digest": bytes(32)},
        {"workflow_id": "other"},
        {"checkpoint_id": "other"},
    ],
)
def test_what_is_not_content_changes_neither_digest(change: dict[str, object]) -> None:
    other = msgspec.structs.replace(SAVE, **change)
    assert rules.digest_sent(other) == rules.digest_sent(SAVE)
    assert resolve(other)[0].digest == resolve(SAVE)[0].digest


@pytest.mark.parametrize(
    "change",
    [
        {"parent_id": None},
        {"parent_id": ""},
        {"base_checkpoint_id": None},
        {"base_digest": bytes(32)},
        {"steps_added": ("one",)},
        {"steps_added": ("onetwo",)},
        {"removed_keys": ()},
        {"entries": {}},
        {"entries": entries({"x": 1})},
        {"entries": entries({"x": 2, "y": data_value(b"v")})},
    ],
)
def test_how_a_save_was_sent_changes_its_other_digest(change: dict[str, object]) -> None:
    assert rules.digest_sent(msgspec.structs.replace(SAVE, **change)) != rules.digest_sent(SAVE)


def test_a_stored_row_has_the_digest_of_its_content() -> None:
    built = row()
    assert rules.digest_row(built) == built.digest


def test_what_a_save_adds_to_the_store_is_what_it_changes() -> None:
    _, stored = resolve(save("w", "b", {"big": "x" * 10_000}))
    command = save("w", "c", {"big": "x" * 10_000, "small": 1})
    content, _ = resolve(command, stored)
    assert rules.stored_bytes(command, content) < 1_000


# Limits.


@pytest.mark.parametrize(
    "limits, reason, limit",
    [
        (Limits(entries_max=1), "LIMIT_EXCEEDED", "entries_max"),
        (Limits(completed_steps_max=1), "LIMIT_EXCEEDED", "completed_steps_max"),
        (Limits(completed_steps_bytes_max=1), "LIMIT_EXCEEDED", "completed_steps_bytes_max"),
        (Limits(state_bytes_max=40), "STATE_TOO_LARGE", "state_bytes_max"),
    ],
)
def test_content_past_a_limit_is_refused_naming_it(limits: Limits, reason: str, limit: str) -> None:
    content, _ = resolve(SAVE)
    with pytest.raises(StoreError) as refused:
        rules.check_content_limits(SAVE, content, limits)
    assert (refused.value.reason, refused.value.metadata["limit"]) == (reason, limit)
    assert int(refused.value.metadata["found"]) > int(refused.value.metadata["allowed"])
    rules.check_content_limits(SAVE, content, DEFAULT_LIMITS)


@pytest.mark.parametrize("limits", [Limits(records_max=1), Limits(records_bytes_max=10)])
def test_records_past_a_limit_are_refused(limits: Limits) -> None:
    group = RecordGroupRow("c", 2, 11, False, 0)
    with pytest.raises(StoreError) as refused:
        rules.check_record_limits(group, limits)
    assert refused.value.reason == "LIMIT_EXCEEDED"
    rules.check_record_limits(group, DEFAULT_LIMITS)


def test_records_are_sorted_bytewise() -> None:
    ordered = [
        record("b"),
        record("a", -1, path="p"),
        record("a", 1, path="p"),
        record("é", path="p"),
        record("a", path="é"),
    ]
    assert rules.sort_records(reversed(ordered)) == tuple(ordered)


# Filters.


@pytest.mark.parametrize(
    "container, contained, is_contained",
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1, "b": 2}, {}, True),
        ({}, {"a": 1}, False),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": {"b": 1}}, {"a": {}}, True),
        ({"a": {"b": 1}}, {"b": 1}, False),
        ({"a": 1}, {"a": {}}, False),
        ({"a": {}}, {"a": None}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {}, True),
        ({}, {"a": None}, False),
        ({"a": None}, {"a": False}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": 0}, {"a": False}, False),
        ({"a": True}, {"a": True}, True),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": "x"}, {"a": "X"}, False),
        ({"a": [1, 2, 3]}, {"a": [3, 1]}, True),
        ({"a": [1, 2, 3]}, {"a": [1, 1, 1]}, True),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, False),
        ({"a": [1, 2]}, {"a": []}, True),
        ({"a": []}, {"a": [1]}, False),
        ({"a": [1, 2]}, {"a": 1}, False),
        ({"a": 1}, {"a": [1]}, False),
        ({"a": [[1, 2]]}, {"a": [[1]]}, True),
        ({"a": [1, [2, 3]]}, {"a": [2]}, False),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, True),
        ({"a": [{"b": 1}, {"c": 2}]}, {"a": [{"b": 1, "c": 2}]}, False),
        ({"a": [True]}, {"a": [1]}, False),
        ([1, 2, 3], [1, 3], True),
        ([1, 2, [1, 3]], [1, 3], False),
        ([1, 2, [1, 3]], [[1, 3]], True),
        (["foo", "bar"], "bar", True),
        ("bar", ["bar"], False),
        ([1, [2]], 2, False),
        ([True], 1, False),
        ("foo", "foo", True),
        ([], {}, False),
        ({}, [], False),
        ([{"a": 1}], {"a": 1}, False),
    ],
)
def test_containment_is_that_of_postgresql(container: object, contained: object, is_contained: bool) -> None:
    assert rules.contains_json(container, contained) is is_contained


@pytest.mark.parametrize(
    "contained, items",
    [({}, 0), ({"a": {"b": [1, "x", None]}}, 0), ({"a": [{}, 1, [2]]}, 2), ({"a": [[[1]], {"b": [{}]}]}, 4)],
)
def test_arrays_and_objects_in_arrays_of_a_filter_are_counted(contained: object, items: int) -> None:
    assert rules.filter_items(contained) == items


def test_a_row_counts_by_what_its_metadata_is_held_against() -> None:
    large = row(metadata="x" * 64_000)
    assert [rules.rows_worth(large, items) for items in (0, 1, 100)] == [1, 65, 6_401]
    assert rules.rows_worth(row(metadata="{}"), 100) == 1


def test_arrays_of_thousands_are_compared_at_once() -> None:
    """Element by element this would be hundreds of millions of comparisons."""
    numbers = list(range(30_000))
    assert rules.contains_json({"a": numbers}, {"a": numbers[::-1]})
    assert not rules.contains_json({"a": numbers}, {"a": [*numbers, -1]})


json_objects = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(json_objects)
def test_everything_contains_itself(found: object) -> None:
    assert rules.contains_json(found, found)


@pytest.mark.parametrize(
    "wanted, is_match",
    [
        (CheckpointFilter(), True),
        (CheckpointFilter(statuses=frozenset({2, 5})), True),
        (CheckpointFilter(statuses=frozenset({1})), False),
        (CheckpointFilter(current_step="step"), True),
        (CheckpointFilter(current_step=""), False),
        (CheckpointFilter(run_id="r"), True),
        (CheckpointFilter(run_id=""), False),
        (CheckpointFilter(before_checkpoint_id="d"), True),
        (CheckpointFilter(before_checkpoint_id="c"), False),
        (CheckpointFilter(before_checkpoint_id="b"), False),
        (CheckpointFilter(before_checkpoint_id="c\0"), True),
        (CheckpointFilter(metadata_contains={"m": 1}), True),
        (CheckpointFilter(metadata_contains={"m": 2}), False),
        (CheckpointFilter(statuses=frozenset({2}), current_step="step", metadata_contains={"m": 2}), False),
    ],
)
def test_a_checkpoint_matches_a_filter(wanted: CheckpointFilter, is_match: bool) -> None:
    assert rules.matches(row(run_id="r"), wanted) is is_match


def test_absent_metadata_contains_only_the_empty_object() -> None:
    without = row(metadata="")
    assert rules.matches(without, CheckpointFilter(metadata_contains={}))
    assert not rules.matches(without, CheckpointFilter(metadata_contains={"m": 1}))


# A workflow's own row.


def workflow(**fields: object) -> WorkflowRow:
    """Return the row of a workflow, with some fields as given."""
    made = WorkflowRow(1, 1, 1, "default", "w", 1, "1-1", 0, last_sequence=1)
    return msgspec.structs.replace(made, **fields)


def test_a_workflow_shows_its_head_and_nothing_without_one() -> None:
    shown = rules.with_head(workflow(), row(sequence=7))
    assert (shown.head_checkpoint_id, shown.head_sequence, shown.current_step, shown.status) == ("c", 7, "step", 2)
    assert rules.with_head(shown, None) == workflow()


def test_a_workflow_is_seen_from_its_first_checkpoint_on() -> None:
    assert not rules.is_visible(None)
    assert not rules.is_visible(workflow(last_sequence=0))
    assert rules.is_visible(workflow(last_sequence=1, checkpoint_count=0))


@pytest.mark.parametrize("expected, head", [(None, "h"), (None, ""), ("", ""), ("h", "h")])
def test_an_expected_head_that_is_the_head_is_accepted(expected: str | None, head: str) -> None:
    rules.check_expected_head(expected, head, 1)


@pytest.mark.parametrize("expected, head", [("", "h"), ("g", "h"), ("h", "")])
def test_an_expected_head_that_is_not_the_head_is_refused(expected: str, head: str) -> None:
    with pytest.raises(StoreError) as refused:
        rules.check_expected_head(expected, head, 3)
    assert refused.value.reason == "HEAD_MOVED"
    assert refused.value.metadata == {"expected_head": expected, "head_checkpoint_id": head, "head_sequence": "3"}


@pytest.mark.parametrize(
    "bound, named, is_accepted", [("", "d", True), ("d", "", True), ("d", "d", True), ("d", "e", False)]
)
def test_a_definition_binds_once_it_is_named(bound: str, named: str, is_accepted: bool) -> None:
    rules.check_definition(None, named)
    if is_accepted:
        rules.check_definition(workflow(definition=bound), named)
    else:
        with pytest.raises(StoreError) as refused:
            rules.check_definition(workflow(definition=bound), named)
        assert refused.value.reason == "DEFINITION_MISMATCH"


@pytest.mark.parametrize("text", ["", "x" * 256, "\N{EURO SIGN}" * 85])
def test_a_page_counts_no_less_than_it_sends(text: str) -> None:
    """Otherwise a page could be larger than its caller receives."""
    workflow = WorkflowRow(
        2**62,
        1,
        1,
        text[:42],
        text,
        2**62,
        "1a2094cc55f-7fffffffffffffff",
        2**42,
        update_time_ms=2**42,
        revision=2**62,
        last_sequence=2**62,
        status=6,
        current_step=text,
        head_checkpoint_id=text,
        head_sequence=2**62,
        checkpoint_count=2**62,
        scope_count=2**62,
        stored_bytes=2**62,
        definition=text,
        labels={f"{number}{text}": text for number in range(16)},
        forked_from=text,
        fingerprint=text,
        pending_signal_count=1_000,
    )
    lease = LeaseState(0, text, 3_600_000, 3_600_000, 2**42)
    assert write_answers.workflow_to_pb(workflow, lease).ByteSize() <= rules.listed_workflow_bytes(workflow, lease)
    row = CheckpointRow(
        2**62,
        text,
        text,
        1,
        text,
        text,
        6,
        2**42,
        2**62,
        10_000,
        2**24,
        bytes(32),
        100_000,
        2**22,
        bytes(16),
        bytes(32),
        bytes(16),
        2**24,
        text,
        text,
        text,
        text,
        tuple(f"{number}{text}" for number in range(100)),
    )
    listed = write_answers.checkpoint_to_pb(
        workflow,
        LoadedCheckpoint(row=row, parent_pruned=True, record_count=10_000, entries=None, steps=(), records=()),
        Selection(with_state=False, with_steps=False, with_records=False),
        write_answers.ValueWriter(frozenset(), DEFAULT_LIMITS),
    )
    assert listed.ByteSize() <= rules.listed_bytes(workflow, row)


@pytest.mark.parametrize("holder,said", [("web-1", "is leased by 'web-1' for"), ("", "is leased for")])
def test_a_lease_without_a_holders_name_is_told_without_one(holder: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        rules.check_lease(LeaseRow(1, holder, 30_000, "", 0), 500, 0, "w")
