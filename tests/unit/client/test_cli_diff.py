"""What differs between two checkpoints."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.cli.diff import Change, EntryChange, StepChange, compare, compare_json
from milepost.cli.json_text import Number, parse
from milepost.cli.store import StoredCheckpoint, StoredValue
from milepost.types import Checkpoint, Status

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=15,
)


def stored(metadata: str = "", steps: tuple[str, ...] = (), **entries: str | StoredValue) -> StoredCheckpoint:
    header = Checkpoint(
        workflow_id="w",
        checkpoint_id="c",
        sequence=1,
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
        completed_steps=steps,
    )
    values = {k: v if isinstance(v, StoredValue) else StoredValue(v.encode()) for k, v in entries.items()}
    return StoredCheckpoint(header=header, metadata=metadata, entries=values)


def changes(before: str, after: str) -> list[tuple[str, str]]:
    return [(change.kind, change.path) for change in compare_json(parse(before), parse(after))]


@given(values)
def test_a_value_does_not_differ_from_itself(value: Any) -> None:
    text = json.dumps(value)
    assert compare_json(parse(text), parse(json.dumps(value, indent=2))) == ()


@given(values, values)
def test_two_values_differ_exactly_when_their_json_does(one: Any, other: Any) -> None:
    before, after = parse(json.dumps(one)), parse(json.dumps(other))
    assert bool(compare_json(before, after)) == (before != after)


@pytest.mark.parametrize(
    "before, after, expected",
    [
        ("1", "2", [("changed", "$")]),
        ("1", '"1"', [("changed", "$")]),
        ("1", "1.0", [("changed", "$")]),
        ("1", "true", [("changed", "$")]),
        ('{"a":1}', '{"a":1,"b":null}', [("added", "$.b")]),
        ('{"a":{"b c":1}}', '{"a":{}}', [("removed", '$.a["b c"]')]),
        ("[1,2,3]", "[0,1,2,3]", [("added", "$[0]")]),
        ("[1,2,3]", "[1,3]", [("removed", "$[1]")]),
        ('[{"p":1},{"p":2}]', '[{"p":1},{"p":3},{"p":4}]', [("changed", "$[1].p"), ("added", "$[2]")]),
        ('{"a":[]}', '{"a":{}}', [("changed", "$.a")]),
        ('{"a":1,"b":2}', '{"b":2,"a":1}', []),
    ],
)
def test_places_are_named_by_json_path(before: str, after: str, expected: list[tuple[str, str]]) -> None:
    assert changes(before, after) == expected


def test_a_deep_difference_is_found_without_looking_at_everything_again_and_again() -> None:
    started = time.perf_counter()
    found = changes("[" * 500 + "1" + "]" * 500, "[" * 500 + "2" + "]" * 500)
    assert found == [("changed", "$" + "[0]" * 500)]
    assert time.perf_counter() - started < 5


def test_entries_are_added_removed_and_changed() -> None:
    found = compare(stored(a="1", b="[1]", c="3"), stored(b="[2]", c=" 3", d="4"))
    assert [(entry.kind, entry.entry_key) for entry in found.entries] == [
        ("removed", "a"),
        ("changed", "b"),
        ("added", "d"),
    ]
    assert found.entries[1].places == (Change("changed", "$[0]", Number("1"), Number("2")),)


def test_opaque_values_are_compared_by_bytes_and_codec() -> None:
    one, same, other = (StoredValue(b"\0", codec, is_json=False) for codec in ("p", "p", "q"))
    assert compare(stored(x=one), stored(x=same)).is_equal
    assert compare(stored(x=one), stored(x=other)).entries == (EntryChange("changed", "x", one, other),)
    assert compare(stored(x=one), stored(x="0")).entries[0].places == ()


def test_steps_differ_after_those_in_common() -> None:
    found = compare(stored(steps=("a", "b", "c")), stored(steps=("a", "x")))
    assert found.steps == StepChange(removed=("b", "c"), added=("x",))


def test_no_metadata_is_as_good_as_empty_metadata() -> None:
    assert compare(stored(metadata="{}"), stored()).is_equal
    assert compare(stored(metadata='{"a":1}'), stored()).metadata == (Change("removed", "$.a", before=Number("1")),)


def test_step_and_status_are_compared() -> None:
    before = stored()
    header = Checkpoint(
        workflow_id="w",
        checkpoint_id="d",
        sequence=2,
        create_time=datetime(2026, 1, 2, tzinfo=UTC),
        current_step="s",
        status=Status.FAILED,
    )
    found = compare(before, StoredCheckpoint(header=header))
    assert (found.current_step, found.status) == (("", "s"), ("running", "failed"))
    assert not found.is_equal
