"""The branches of a stage: made of its steps and items, and finished where records say that they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from milepost.codecs import Codec
from milepost.runner.keys import item_keys, task_name
from milepost.runner.patches import Entries, from_record, to_record
from milepost.runner.run_state import HeadRecords, branch_record, started_record
from milepost.runner.stage import Branch
from milepost.runner.state_type import StateType
from milepost.runner.step import Step
from milepost.types import Record

__all__ = ["BRANCHES_MAX", "KnownProgress", "branch_records", "make_branches", "recall"]

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
        if step.for_each not in entries:
            raise TypeError(f"step {step.id!r} runs for each of {step.for_each!r}, which the state does not have")
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


class KnownProgress:
    """What records say of steps that are not finished: their finished branches, and those that may run once and began.

    Each new checkpoint takes it along until the step is finished, or somebody has resolved it: otherwise a finished
    branch would run again, and so would a step that may run once.

    Args:
        records: Those of the head that was loaded.
        unfinished: The steps that are still to be finished; records of others are not taken along.
    """

    def __init__(self, records: HeadRecords | None = None, unfinished: Iterable[Step[Any]] = ()) -> None:
        self.branches: dict[str, Any] = {}
        """By task: what a finished branch left, as it was recorded."""
        self.started: dict[str, str] = {}
        """By task: the attempt of a step that may run once and is not known to have ended."""
        if records is None:
            return
        ids = {name: step.id for step in unfinished for name in (step.id, *step.aliases)}
        for task, left in records.branches.items():
            if (name := _step_of(task)) in ids:
                self.branches[ids[name] + task[len(name) :]] = left
        begun = dict(records.started)
        begun |= {task_name(one.step, one.item_key): "" for one in records.failures if one.kind == "unknown"}
        for task, attempt_id in begun.items():
            if (name := _step_of(task)) in ids:
                self.started[ids[name] + task[len(name) :]] = attempt_id

    def forget(self, step_ids: Iterable[str]) -> None:
        """Note that steps are finished, or begin a new turn."""
        if self.branches or self.started:
            ended = set(step_ids)
            self.branches = {task: left for task, left in self.branches.items() if _step_of(task) not in ended}
            self.started = {task: attempt for task, attempt in self.started.items() if _step_of(task) not in ended}

    def forget_started(self, step_id: str, item_key: str | None = None) -> None:
        """Note that a step, or one item of it, may run again."""
        if item_key is not None:
            self.started.pop(task_name(step_id, item_key), None)
            return
        self.started = {task: attempt for task, attempt in self.started.items() if _step_of(task) != step_id}

    def to_records(self, workflow_id: str) -> list[Record]:
        """Return the records for a new checkpoint."""
        kept = [branch_record(workflow_id, task, _step_of(task), left) for task, left in self.branches.items()]
        kept += [
            started_record(workflow_id, task, _step_of(task), attempt_id)
            for task, attempt_id in self.started.items()
            if task not in self.branches
        ]
        return kept


def recall(branches: Sequence[Branch], known: KnownProgress, codec: Codec) -> list[tuple[Branch, str]]:
    """Finish those branches that an earlier run has finished.

    Returns:
        Branches that may run once, were started and are not finished, each with the id of its attempt.
    """
    if not known.branches and not known.started:
        return []
    unknown: list[tuple[Branch, str]] = []
    for branch in branches:
        if branch.task in known.branches:
            left = known.branches[branch.task]
            branch.finish(from_record(left, codec) if branch.item_key is None else left)
        elif branch.step.at_most_once and branch.task in known.started:
            unknown.append((branch, known.started[branch.task]))
    return unknown


def branch_records(branches: Sequence[Branch], workflow_id: str) -> list[Record]:
    """Return the records of those branches that are finished."""
    return [
        branch_record(
            workflow_id,
            branch.task,
            branch.step.id,
            to_record(branch.left) if branch.item_key is None else branch.left,
        )
        for branch in branches
        if branch.status == "finished"
    ]


def _step_of(task: str) -> str:
    """Return the step that a record is about."""
    return task.partition("[")[0]
