"""What a stage leaves: the branches' effects as one state, and whether a loop turns again. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from milepost.errors import CodecError, StateConflictError, StateSchemaError
from milepost.runner.patches import Entries, Patch, apply, collect, merge
from milepost.runner.stage import Branch
from milepost.runner.step import Step
from milepost.runner.workflow import Workflow

__all__ = ["StageProblemError", "repeated_steps", "state_after"]

S = TypeVar("S")


class StageProblemError(Exception):
    """What a stage left cannot be taken over. The cause is its step's failure."""

    def __init__(self, step: Step[Any], error: Exception) -> None:
        super().__init__(step.id)
        self.step = step
        self.error = error


def state_after(
    steps: Sequence[Step[Any]], branches: Sequence[Branch], before: Entries, workflow: Workflow[Any]
) -> Entries:
    """Return the state after a stage whose branches are all finished.

    Raises:
        StageProblemError: Their effects contradict each other, or the results of items cannot be stored.
    """
    if len(steps) == len(branches) == 1 and branches[0].item_key is None:
        return apply(before, branches[0].left)
    patches: list[tuple[str, Patch]] = []
    left: dict[str, list[Any]] = {step.id: [] for step in steps}
    for branch in branches:
        left[branch.step.id].append(branch.left)
    for step in steps:
        if step.for_each is None or step.into is None:
            patches.append((step.id, left[step.id][0]))
            continue
        try:
            patches.append((step.id, collect(before, step.into, left[step.id], workflow.state_type, step.id)))
        except (CodecError, StateSchemaError) as error:
            raise StageProblemError(step, error) from None
    try:
        after = apply(before, merge(before, patches, workflow.reducers))
        workflow.state_type.from_entries(after.values())
    except (StateConflictError, CodecError, StateSchemaError) as error:
        raise StageProblemError(steps[-1], error) from None
    return after


def repeated_steps(
    steps: Sequence[Step[Any]], after: Entries, turns: Mapping[str, int], workflow: Workflow[Any]
) -> set[str]:
    """Return the ids of those steps that run again.

    Args:
        steps: The steps of a stage.
        after: The state after it.
        turns: How often each loop had run before the stage.
        workflow: The definition.

    Raises:
        StageProblemError: A predicate raised, or a loop has had all its turns.
    """
    repeated: set[str] = set()
    for step in steps:
        if step.repeat_while is None:
            continue
        try:
            repeats = step.repeat_while(workflow.state_type.from_entries(after.values()))
        except Exception as error:  # noqa: BLE001  the user's predicate may raise anything, and fails its step
            raise StageProblemError(step, error) from None
        count = turns.get(step.id, 0) + 1
        if repeats and count >= step.max_iterations:
            problem = RuntimeError(f"step {step.id!r} would run again after {count} turns, its max_iterations")
            raise StageProblemError(step, problem)
        if repeats:
            repeated.add(step.id)
    return repeated
