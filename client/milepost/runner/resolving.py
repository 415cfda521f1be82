"""Saying how a step goes on that a resume refuses to run. Sans-IO: what `Runner.resolve` changes of a run at rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from milepost.codecs import Codec
from milepost.runner.branches import KnownProgress, make_branches
from milepost.runner.failures import Failures
from milepost.runner.journal import Journal
from milepost.runner.keys import task_name
from milepost.runner.patches import Entries, item_result
from milepost.runner.plan import Frontier
from milepost.runner.run_state import FINAL, HeadRecords
from milepost.runner.step import Step
from milepost.runner.workflow import Workflow
from milepost.types import Record, Status

__all__ = ["Resolution", "Resolver"]

Resolution: TypeAlias = Literal["retry", "done", "fail"]


class Resolver:
    """Resolves one step of a workflow that was loaded.

    Args:
        workflow_id: The workflow.
        workflow: Its definition.
        codec: Encodes the entries, as the store does.
        records: Those of the head.
        known: What they say of unfinished steps. It, the frontier and the journal take in what is resolved.
    """

    def __init__(
        self,
        workflow_id: str,
        workflow: Workflow[Any],
        *,
        codec: Codec,
        records: HeadRecords,
        known: KnownProgress,
        frontier: Frontier,
        journal: Journal,
        failures: Failures,
    ) -> None:
        self._workflow_id = workflow_id
        self._workflow = workflow
        self._codec = codec
        self._records = records
        self._known = known
        self._frontier = frontier
        self._journal = journal
        self._failures = failures

    def resolve(
        self, step_id: str, resolution: Resolution, left: Any, item_key: str | None
    ) -> tuple[Status, list[Record]]:
        """Return the status to save the workflow with, and the records of the failures that stand.

        Raises:
            TypeError, ValueError: The step, or what it is said to have left, cannot be resolved so.
        """
        if resolution not in get_args(Resolution):
            raise ValueError(
                f"a step is resolved as {', '.join(map(repr, get_args(Resolution)))}, not as {resolution!r}"
            )
        step = self._workflow.definition.steps.get(step_id)
        if step is None:
            raise ValueError(f"workflow {self._workflow.name!r} has no step {step_id!r}")
        if step_id in self._frontier.completed:
            raise ValueError(f"step {step_id!r} of workflow {self._workflow_id!r} is finished")
        if left is not None and resolution != "done":
            raise ValueError("what the step left goes with 'done' alone")
        if item_key is not None:
            self._check_item(step, item_key)
        standing = [
            self._failures.record(task_name(one.step, one.item_key), one)
            for one in self._records.failures
            if one.kind in FINAL and not (one.step == step_id and item_key in {None, one.item_key})
        ]
        # What stands of other steps has to be resolved by itself.
        status = Status.FAILED if standing else Status.RUNNING
        self._journal.touch()
        match resolution:
            case "retry":
                # Items that are finished stay so.
                self._known.forget_started(step_id, item_key)
            case "done":
                if step not in self._frontier.stage():
                    raise ValueError(f"step {step_id!r} of workflow {self._workflow_id!r} cannot have run yet")
                if item_key is not None:
                    result = item_result(left, self._workflow.state_type, self._codec, step_id, item_key)
                    self._known.forget_started(step_id, item_key)
                    self._known.branches[task_name(step_id, item_key)] = result
                else:
                    self._finish(step, left)
                    status = Status.COMPLETED if self._frontier.is_finished else status
            case "fail":
                failure = self._failures.failure(step_id, "final", item_key=item_key, attempts=1)
                standing.append(self._failures.record(task_name(step_id, item_key), failure))
                status = Status.FAILED
        return status, standing

    def _check_item(self, step: Step[Any], item_key: str) -> None:
        if step.for_each is None:
            raise ValueError(f"step {step.id!r} does not run for items")
        turns = self._journal.state.iterations
        items = make_branches([step], self._journal.entries, self._workflow.state_type, turns, is_kept=False)
        if item_key not in {one.item_key for one in items}:
            raise ValueError(f"step {step.id!r} of workflow {self._workflow_id!r} has no item {item_key!r}")
        if task_name(step.id, item_key) in self._known.branches:
            raise ValueError(f"item {item_key!r} of step {step.id!r} is finished")

    def _finish(self, step: Step[Any], left: Mapping[str, Any] | None) -> None:
        if step.for_each is not None:
            raise ValueError(f"step {step.id!r} runs for items: say which one is done")
        if left is not None and not isinstance(left, Mapping):
            raise TypeError(
                f"what step {step.id!r} left is a mapping of the entries that it changed, not {type(left).__name__}"
            )
        entries = self._journal.entries
        if left is not None:
            values = self._workflow.state_type.with_changes(self._state_of(entries), left)
            entries = Entries.of(values, self._codec, f"step {step.id!r}")
            # What was said to be left has to be of the declared type as well.
            self._state_of(entries)
        self._known.forget([step.id])
        self._frontier.finish([step.id])
        self._journal.finish([step.id], entries, last_step=step.id)

    def _state_of(self, entries: Entries) -> Any:
        return self._workflow.state_type.from_entries(
            entries.values(), workflow_id=self._workflow_id, checkpoint_id=self._journal.head_id
        )
