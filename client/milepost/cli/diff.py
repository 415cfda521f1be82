"""What differs between two checkpoints. Pure: two checkpoints in, a value out.

JSON is compared by structure, so spacing and the order of keys are no difference; numbers are compared as they are
written, because 1 and 1.0 are not the same value to the program that reads them. Anything else is compared by bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from milepost.cli import json_text
from milepost.cli.store import StoredCheckpoint, StoredValue
from milepost.codecs import child_path

Kind: TypeAlias = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class Change:
    """One place inside a JSON value."""

    kind: Kind
    path: str
    """Where, for example `$.items[2].price`; of what was removed the place that it had."""
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True)
class EntryChange:
    """One entry."""

    kind: Kind
    entry_key: str
    before: StoredValue | None
    after: StoredValue | None
    places: tuple[Change, ...] = ()
    """Where a changed JSON value differs; empty where one side is no JSON."""


@dataclass(frozen=True, slots=True)
class StepChange:
    """Steps finished on one side only, after those that both have in common."""

    removed: tuple[str, ...]
    added: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointDiff:
    """What it takes to get from one checkpoint to another."""

    before: StoredCheckpoint
    after: StoredCheckpoint
    current_step: tuple[str, str] | None
    status: tuple[str, str] | None
    steps: StepChange | None
    metadata: tuple[Change, ...]
    entries: tuple[EntryChange, ...]

    @property
    def is_equal(self) -> bool:
        """Nothing differs but ids, times and positions."""
        return not (self.current_step or self.status or self.steps or self.metadata or self.entries)


def compare(before: StoredCheckpoint, after: StoredCheckpoint) -> CheckpointDiff:
    """Return what differs between two checkpoints, which may be of different workflows."""
    one, other = before.header, after.header
    return CheckpointDiff(
        before,
        after,
        current_step=_pair(one.current_step, other.current_step),
        status=_pair(one.status.value, other.status.value),
        steps=_compare_steps(one.completed_steps, other.completed_steps),
        metadata=_compare_metadata(before.metadata, after.metadata),
        entries=_compare_entries(before.entries, after.entries),
    )


def compare_json(before: object, after: object, path: str = "$") -> tuple[Change, ...]:
    """Return the places where two values, read by `json_text.parse`, differ."""
    changes: list[Change] = []
    _compare(before, after, path, changes)
    return tuple(changes)


def _compare(before: object, after: object, path: str, changes: list[Change]) -> None:
    # One frame a level: values of the store are nested up to 512 deep.
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            where = child_path(path, key)
            if key not in after:
                changes.append(Change("removed", where, before=before[key]))
            elif key not in before:
                changes.append(Change("added", where, after=after[key]))
            else:
                _compare(before[key], after[key], where, changes)
    elif isinstance(before, list) and isinstance(after, list):
        # Equal beginnings and ends are passed over, so that an inserted item is one addition.
        start = _common(before, after)
        end = _common(before[start:][::-1], after[start:][::-1])
        old, new = before[start : len(before) - end], after[start : len(after) - end]
        both = min(len(old), len(new))
        for index in range(both):
            _compare(old[index], new[index], child_path(path, start + index), changes)
        for index, item in enumerate(old[both:], start + both):
            changes.append(Change("removed", child_path(path, index), before=item))
        for index, item in enumerate(new[both:], start + both):
            changes.append(Change("added", child_path(path, index), after=item))
    elif before != after:
        changes.append(Change("changed", path, before, after))


def _common(before: Sequence[object], after: Sequence[object]) -> int:
    """Return how many items at the beginning are the same."""
    count = 0
    for one, other in zip(before, after, strict=False):
        # Exact, since a parsed number is a `Number` and never equals a text or a bool.
        if one != other:
            break
        count += 1
    return count


def _pair(before: str, after: str) -> tuple[str, str] | None:
    return None if before == after else (before, after)


def _compare_steps(before: Sequence[str], after: Sequence[str]) -> StepChange | None:
    if tuple(before) == tuple(after):
        return None
    common = _common(before, after)
    return StepChange(tuple(before[common:]), tuple(after[common:]))


def _compare_metadata(before: str, after: str) -> tuple[Change, ...]:
    if before == after:
        return ()
    return compare_json(json_text.parse(before or "{}"), json_text.parse(after or "{}"))


def _compare_entries(before: Mapping[str, StoredValue], after: Mapping[str, StoredValue]) -> tuple[EntryChange, ...]:
    changes: list[EntryChange] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if old is None:
            changes.append(EntryChange("added", key, old, new))
        elif new is None:
            changes.append(EntryChange("removed", key, old, new))
        elif old.is_json and new.is_json:
            places = compare_json(json_text.parse(old.text), json_text.parse(new.text))
            if places:
                changes.append(EntryChange("changed", key, old, new, places))
        else:
            changes.append(EntryChange("changed", key, old, new))
    return tuple(changes)
