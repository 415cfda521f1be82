"""The values that programs see."""

from __future__ import annotations

import copy
import pickle
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from milepost.errors import StateNotLoadedError
from milepost.types import Checkpoint, EntryVersion, Record, Saved, SaveItem, Status, WorkflowInfo, new_checkpoint_id

MOMENT = datetime(2024, 5, 1, tzinfo=UTC)


def checkpoint(**more: Any) -> Checkpoint:
    return Checkpoint(workflow_id="w", checkpoint_id="c", sequence=1, create_time=MOMENT, **more)


def test_a_state_that_was_not_loaded_is_no_empty_state() -> None:
    with pytest.raises(StateNotLoadedError) as caught:
        _ = checkpoint(entry_count=2).state
    assert caught.value.checkpoint_id == "c"
    assert checkpoint(state_values={}).state == {}


def test_adding_to_the_state_changes_no_checkpoint() -> None:
    loaded = checkpoint(state_values={"x": 1})
    loaded.state["y"] = 2
    assert loaded.state == {"x": 1}


def test_values_can_be_hashed_pickled_and_copied() -> None:
    values = [
        checkpoint(state_values={"x": []}, metadata={"m": []}, records=(Record(value=[]),)),
        Saved(workflow_id="w", checkpoint_id="c", sequence=1, create_time=MOMENT),
        WorkflowInfo(workflow_id="w", status=None, labels={"a": "b"}),
        EntryVersion(entry_key="x", checkpoint_id="c", sequence=1, value=[]),
        SaveItem(workflow_id="w", state={"x": []}, metadata={}),
    ]
    for value in values:
        assert pickle.loads(pickle.dumps(value)) == value == copy.copy(value)
        assert isinstance(hash(value), int)


def test_no_repr_shows_a_value() -> None:
    canary = "canary-4711"
    shown = [
        checkpoint(state_values={"x": canary}, metadata={"m": canary}, records=(Record(task_id="t", value=canary),)),
        Record(task_id="t", value=canary),
        EntryVersion(entry_key="x", checkpoint_id="c", sequence=1, value=canary),
        SaveItem(workflow_id="w", state={"x": canary}, metadata={"m": canary}, labels={"l": canary}),
        WorkflowInfo(workflow_id="w", status=None, labels={"l": canary}),
    ]
    assert [value for value in shown if canary in repr(value)] == []


def test_an_id_is_a_uuid_of_version_7() -> None:
    made = new_checkpoint_id(time_ns=lambda: 0x0123_4567_89AB * 1_000_000 + 500_000, random_bytes=lambda n: b"\xff" * n)
    assert made == "01234567-89ab-7800-bfff-ffffffffffff"
    parsed = uuid.UUID(new_checkpoint_id())
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_later_ids_sort_later_and_none_comes_twice() -> None:
    moments = [1_000_000_000_000 + step * 250 for step in range(10_000)]
    made = [new_checkpoint_id(time_ns=lambda m=moment: m) for moment in moments]  # type: ignore[misc]
    assert made == sorted(made)
    assert len({new_checkpoint_id(time_ns=lambda: 1) for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize(
    "arguments, kind, said",
    [
        ({"after": "c1"}, TypeError, "after is what save, load or list returned, or \"start\", or None; not 'c1'"),
        ({"after": {"secret": 4711}}, TypeError, "or None; not dict$"),
        ({"state": [1]}, TypeError, "state is a mapping of entries, not list"),
        ({"workflow_id": 7}, TypeError, "workflow_id is a str, not int"),
        ({"status": "done"}, ValueError, "a status is one of running, waiting, .*, not 'done'"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_told_by_its_name(
    arguments: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        SaveItem(**{"workflow_id": "w", "state": {}, **arguments})


def test_a_status_may_be_given_as_text() -> None:
    assert SaveItem(workflow_id="w", state={}, status="completed").status == Status.COMPLETED  # type: ignore[arg-type]  # as those without a type checker write it
