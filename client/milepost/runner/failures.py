"""How failures are told and kept: errors for the caller, records for whoever resumes.

Neither quotes what a step's exception said, except the record's value, which is stored and encrypted like the state,
and messages where the runner was told that they may.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from milepost.errors import (
    DefinitionMismatchError,
    InputMismatchError,
    InvalidRequestError,
    MilepostError,
    StepFailedError,
    StepOutcomeUnknownError,
    StepTimeoutError,
    WorkflowCancelledError,
    WorkflowDeadlineError,
    WorkflowError,
    WorkflowExistsError,
)
from milepost.runner.context import logger
from milepost.runner.run_state import Failure, FailureKind, failure_record
from milepost.runner.settings import Environment, Settings
from milepost.runner.stage import Branch
from milepost.types import Record

__all__ = ["Failures"]

_NAMED_MAX: Final = 5
"""Branches that a log line names."""


class Failures:
    """The failures of one run in one scope."""

    def __init__(self, workflow_id: str, scope: str, settings: Settings, environment: Environment) -> None:
        self._workflow_id = workflow_id
        self._scope = scope
        self._settings = settings
        self._environment = environment

    def exists(self) -> WorkflowExistsError:
        """Return the error of a start that finds the workflow there."""
        return WorkflowExistsError(
            f"workflow {self._workflow_id!r} exists already: resume it, or take another id",
            workflow_id=self._workflow_id,
            reason="WORKFLOW_EXISTS",
        )

    def other_input(self) -> InputMismatchError:
        """Return the error of a run that brings another input."""
        where = f", scope {self._scope!r}" if self._scope else ""
        return InputMismatchError(
            f"workflow {self._workflow_id!r}{where} was started with another input; pass none to resume it, or take "
            "another id",
            workflow_id=self._workflow_id,
            scope=self._scope,
        )

    def other_definition(self, found: str, wanted: str) -> DefinitionMismatchError:
        """Return the error of an input for a workflow that belongs to another definition."""
        return DefinitionMismatchError(
            f"workflow {self._workflow_id!r} belongs to the definition {found!r}, not to {wanted!r}; take another id",
            workflow_id=self._workflow_id,
            metadata={"definition": found},
        )

    def cancelled(self) -> WorkflowCancelledError:
        """Return the error of a workflow that is cancelled."""
        return WorkflowCancelledError(
            f"workflow {self._workflow_id!r} is cancelled; fork it to go on from one of its checkpoints",
            workflow_id=self._workflow_id,
            scope=self._scope,
        )

    def late(self, step_id: str) -> WorkflowDeadlineError:
        """Return the error of a workflow whose time is over; `step_id` was next, "" where none was."""
        return WorkflowDeadlineError(
            f"workflow {self._workflow_id!r} was not finished in the time it was given"
            + (f"; step {step_id!r} was next" if step_id else ""),
            step=step_id,
            workflow_id=self._workflow_id,
            scope=self._scope,
        )

    def outcome_unknown(self, step_id: str, item_key: str | None, attempt_id: str = "") -> StepOutcomeUnknownError:
        """Return the error of a step that may run once and was started."""
        what = f"step {step_id!r}" + ("" if item_key is None else f", item {item_key!r},")
        return StepOutcomeUnknownError(
            f"{what} of workflow {self._workflow_id!r} may run once; it was started and nobody knows how it ended. "
            f"Find out, then {self._resolving(step_id, item_key, 'done', 'retry', 'fail')}",
            step=step_id,
            item_key=item_key,
            attempt_id=attempt_id,
            workflow_id=self._workflow_id,
            scope=self._scope,
        )

    def _resolving(self, step_id: str, item_key: str | None, *resolutions: str) -> str:
        """Return the call that resolves a step; that of a child is resolved by a runner of the child."""
        item = "" if item_key is None else f", item_key={item_key!r}"
        scope = f", scope={self._scope!r}" if self._scope else ""
        named = " or ".join(map(repr, resolutions))
        return f"resolve({self._workflow_id!r}, {step_id!r}, {named}{item}{scope})"

    def unresolved(self, failure: Failure) -> WorkflowError:
        """Return the error of a resume that somebody has to decide about first."""
        step_id = failure.step
        if failure.kind == "unknown":
            return self.outcome_unknown(step_id, failure.item_key)
        why = {
            "crash_limit": f"was resumed {failure.attempts} times without getting past it",
            "too_large": "left more than the store keeps beside one checkpoint",
            "final": "was resolved as failed",
        }[failure.kind]
        return StepFailedError(
            f"workflow {self._workflow_id!r} is failed at step {step_id!r}: it {why}. "
            f"{self._resolving(step_id, failure.item_key, 'retry')} lets it go on",
            step=step_id,
            attempts=failure.attempts,
            workflow_id=self._workflow_id,
            scope=self._scope,
        )

    def of_branches(self, failed: Sequence[Branch]) -> StepFailedError:
        """Return the error of branches that failed, with what they raised as its cause, and log it."""
        error = self._step_failed(failed)
        causes = [branch.error for branch in failed if branch.error is not None]
        cause = causes[0] if len(causes) == 1 else BaseExceptionGroup(f"{len(causes)} branches failed", causes)
        if cause is not error:
            error.__cause__ = cause
        logger.warning(
            "workflow %r failed at %s (%s)%s",
            self._workflow_id,
            ", ".join(repr(branch.task) for branch in failed[:_NAMED_MAX]),
            ", ".join(type(branch.error).__name__ for branch in failed[:_NAMED_MAX]),
            "".join(self._quoted(one) for one in causes[:_NAMED_MAX]),
        )
        return error

    def unstorable(self, failed: Sequence[Branch], refused: InvalidRequestError) -> StepFailedError:
        """Return the error of steps of whose results the store will never take one."""
        tasks = ", ".join(repr(branch.task) for branch in failed[:_NAMED_MAX])
        more = f" and {len(failed) - _NAMED_MAX} more" if len(failed) > _NAMED_MAX else ""
        what = "what step" if len(failed) == 1 else "something of what steps"
        error = StepFailedError(
            f"{what} {tasks}{more} of workflow {self._workflow_id!r} left cannot be stored: {type(refused).__name__}: "
            f"{refused.message}",
            step=failed[-1].step.id,
            attempts=failed[-1].attempt_count,
            workflow_id=self._workflow_id,
            scope=self._scope,
        )
        error.__cause__ = refused
        return error

    def unstored(self, error: WorkflowError, unsaved: MilepostError) -> WorkflowError:
        """Note with the end of a run that it could not be stored, and log it."""
        error.save_error = unsaved
        problem = f"{type(unsaved).__name__}: {unsaved.message}"
        error.add_note(f"That is not stored, so the workflow still counts as running: {problem}")
        logger.warning("workflow %r: that it has ended is not stored (%s)", self._workflow_id, type(unsaved).__name__)
        return error

    def _step_failed(self, failed: Sequence[Branch]) -> StepFailedError:
        first = failed[0]
        if len(failed) == 1 and isinstance(first.error, StepTimeoutError):
            return first.error
        others = "" if len(failed) == 1 else f", and {len(failed) - 1} beside it"
        text = self._quoted(first.error) if len(failed) == 1 and first.error is not None else ""
        times = "once" if first.attempt_count == 1 else f"{first.attempt_count} times"
        return StepFailedError(
            f"step {first.task!r} of workflow {self._workflow_id!r} failed, tried {times}: "
            f"{type(first.error).__name__}{text}{others}",
            step=first.step.id,
            attempts=first.attempt_count,
            workflow_id=self._workflow_id,
            scope=self._scope,
        )

    def _quoted(self, error: BaseException) -> str:
        return f": {self._settings.quoted(error)}" if self._settings.record_error_text else ""

    def failure(
        self,
        step_id: str,
        kind: FailureKind,
        *,
        item_key: str | None = None,
        error: BaseException | None = None,
        attempts: int = 0,
    ) -> Failure:
        """Return a failure as it is kept."""
        return Failure(
            step=step_id,
            item_key=item_key,
            kind=kind,
            type="" if error is None else type(error).__name__,
            text="" if error is None else self._settings.quoted(error),
            attempts=attempts,
            time=dt.datetime.fromtimestamp(self._environment.wall_clock(), dt.UTC).isoformat(),
        )

    def record(self, task: str, failure: Failure) -> Record:
        """Return the record of a failure."""
        return failure_record(self._workflow_id, task, failure)

    def branch_records(self, branches: Sequence[Branch]) -> list[Record]:
        """Return the records of those branches that failed."""
        return [
            self.record(
                branch.task,
                self.failure(
                    branch.step.id,
                    branch.kind,
                    item_key=branch.item_key,
                    error=branch.error,
                    attempts=branch.attempt_count,
                ),
            )
            for branch in branches
            if branch.status == "failed"
        ]
