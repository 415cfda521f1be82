"""The branches of a stage: made of its steps and items, and finished where records say that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from milepost.codecs import Codec
from milepost.runner.keys import item_keys, task_name
from milepost.runner.patches import Entries, from_record, to_record
from milepost.runner.run_state import HeadRecords, branch_record
from milepost.runner.stage import Branch
from milepost.runner.state_type import StateType
from milepost.runner.step import Step
from milepost.types import Record

__all__ = ["BRANCHES_MAX", "branch_records", "make_branches", "recall", "step_of"]

BRANCHES_MAX: Final = 9_000
"""Most branches of a stage that keeps its finished ones: each is a record on one checkpoint, which holds 10,000."""


def make_branches(
    steps: Sequence[Step[Any]],
    entries: Entries,
    state_type: StateType[Any],
    turns: Mapping[str, int],
    *,
    is_kept: bool,
) -> list[Branch]:
    """Return the branches of a stage, in the order of declaration and of the items.

    Args:
        steps: The steps of the stage.
        entries: The state it starts from.
        state_type: Its declared type.
        turns: How often each loop has run.
        is_kept: Finished branches are kept beside one checkpoint.

    Raises:
        TypeError: The items are no list, or a key is no str or int.
        ValueError: Two items have one key, or there are too many to keep. Nothing has run.
        Exception: Whatever the user's `key` raises.
    """
    branches: list[Branch] = []
    for step in steps:
        if step.for_each is None:
            iteration = None if step.repeat_while is None else turns.get(step.id, 0) + 1
            branches.append(Branch(step, step.id, iteration=iteration))
            continue
        if step.key is None:
            items = entries.value(step.for_each)
        else:
            # The key reads the items as the step gets them.
            items = state_type.value_in(entries.state_as(state_type), step.for_each)
        if not isinstance(items, list | tuple):
            raise TypeError(
                f"step {step.id!r} runs for each of {step.for_each!r}, which is {type(items).__name__}, no list"
            )
        branches += [
            Branch(step, task_name(step.id, key), item_key=key, item_index=index)
            for index, key in enumerate(item_keys(step, items))
        ]
    if is_kept and len(branches) > BRANCHES_MAX:
        raise ValueError(
            f"{len(branches)} branches would run side by side; a stage has at most {BRANCHES_MAX}: run the step for "
            "lists of items, or for parts of them in a loop"
        )
    return branches


def recall(branches: Sequence[Branch], records: HeadRecords, codec: Codec) -> list[tuple[Branch, str]]:
    """Finish those branches that an earlier run has finished.

    Returns:
        Branches that may run once, were started and are not finished, each with the id of its attempt.
    """
    if not records.branches and not records.started:
        return []
    unknown: list[tuple[Branch, str]] = []
    for branch in branches:
        names = [branch.task, *(task_name(alias, branch.item_key) for alias in branch.step.aliases)]
        found = [name for name in names if name in records.branches]
        if found:
            left = records.branches[found[0]]
            branch.finish(from_record(left, codec) if branch.item_key is None else left)
        elif branch.step.at_most_once:
            unknown += [(branch, records.started[name]) for name in names if name in records.started]
    return unknown


def branch_records(branches: Sequence[Branch], workflow_id: str, codec: Codec) -> list[Record]:
    """Return the records of those branches that are finished."""
    return [
        branch_record(
            workflow_id,
            branch.task,
            branch.step.id,
            to_record(branch.left, codec) if branch.item_key is None else branch.left,
        )
        for branch in branches
        if branch.status == "finished"
    ]


def step_of(task: str) -> str:
    """Return the step that a record is about."""
    return task.partition("[")[0]
