"""One stage: steps and items that run side by side on one snapshot, with their retries, timeouts and ends. Sans-IO.

The engine makes the branches, runs the stage, and decides what is saved of it; the stage decides what is started,
cancelled, tried again or given up, and when nothing is left to wait for. Two promises are kept here: no attempt of a
branch starts while an earlier one may still be running, and nothing starts once the run is to end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from typing_extensions import override

from milepost.errors import LeaseLostError, StepOutcomeUnknownError, StepTimeoutError
from milepost.runner.attempt import Attempt
from milepost.runner.context import ChildOutageError, ChildWaitsError, RunFrame, StepCancelledError, logger
from milepost.runner.events import POLL, AttemptEnded, CancelAttempt, Flow, NextEvent, StartAttempt
from milepost.runner.notices import Notices
from milepost.runner.patches import Entries
from milepost.runner.run_state import FailureKind
from milepost.runner.settings import Environment, Settings
from milepost.runner.state_type import StateType
from milepost.runner.step import Step

__all__ = ["Branch", "Stage"]

BranchStatus: TypeAlias = Literal["ready", "running", "backoff", "finished", "failed", "dropped"]
NEVER: Final = float("inf")


class Branch:
    """A step of a stage, or one item of it."""

    __slots__ = (
        "asked",
        "attempt",
        "attempt_count",
        "attempt_id",
        "error",
        "give_up_at",
        "item_index",
        "item_key",
        "iteration",
        "kind",
        "left",
        "retry_at",
        "signal",
        "signal_id",
        "status",
        "step",
        "task",
        "timeout_at",
    )

    def __init__(
        self,
        step: Step[Any],
        task: str,
        *,
        item_key: str | None = None,
        item_index: int = -1,
        iteration: int | None = None,
    ) -> None:
        self.step = step
        self.task = task
        """Names it in records: `<step>` or `<step>[<key>]`."""
        self.item_key = item_key
        self.item_index = item_index
        self.iteration = iteration
        self.signal: Any = None
        self.signal_id = ""
        self.status: BranchStatus = "ready"
        self.left: Any = None
        """What it left, once it is finished."""
        self.error: BaseException | None = None
        """Why it failed."""
        self.kind: FailureKind = "error"
        self.attempt: Attempt | None = None
        """The attempt that may still be running."""
        self.attempt_count = 0
        self.attempt_id = ""
        """Of an at-most-once step: names the attempt that was begun."""
        self.asked: Literal["", "timeout", "pause", "stop"] = ""
        """Why the attempt was asked to end."""
        self.timeout_at = NEVER
        self.give_up_at = NEVER
        self.retry_at = NEVER

    def finish(self, left: Any) -> None:
        """Note what the branch left."""
        self.status = "finished"
        self.left = left

    def fail(self, error: BaseException, kind: FailureKind) -> None:
        """Note why the branch failed."""
        self.status = "failed"
        self.error = error
        self.kind = kind

    @override
    def __repr__(self) -> str:
        return f"Branch({self.task!r}, status={self.status!r}, attempts={self.attempt_count})"


class Stage:
    """The branches of one stage, until each is finished, failed or dropped.

    Args:
        branches: In the order of declaration, items in their order; some may be finished already.
        entries: The snapshot that all of them start from.
        cancels_siblings: The first failure ends the others.
        begin: Called before an attempt starts: makes it known where that has to be durable.
        keep: Called with branches that have just finished: makes them durable.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        *,
        entries: Entries,
        state_type: StateType[Any],
        frame: RunFrame,
        settings: Settings,
        environment: Environment,
        notices: Notices,
        deadline_at: float,
        cancels_siblings: bool,
        begin: Callable[[Branch], Flow[None]] | None,
        keep: Callable[[Sequence[Branch]], Flow[None]] | None,
    ) -> None:
        self.branches = branches
        self.waits_for: list[str] = []
        """Signals that children of its branches wait for."""
        self.is_late = False
        """The workflow's deadline has passed."""
        self.abandoned: Branch | None = None
        """A branch that went on past its timeout and the grace time."""
        self._entries = entries
        self._state_type = state_type
        self._frame = frame
        self._settings = settings
        self._environment = environment
        self._notices = notices
        self._deadline_at = deadline_at
        self._cancels_siblings = cancels_siblings
        self._begin = begin
        self._keep = keep
        self._ready = deque(branch for branch in branches if branch.status == "ready")
        self._running: dict[Attempt, Branch] = {}
        self._backoff: list[Branch] = []
        self._unkept: list[Branch] = []
        self._open_count = sum(branch.status != "finished" for branch in branches)
        self._has_failed = False
        self._is_full = False
        self._may_block = len(branches) == 1

    def run(self) -> Flow[None]:
        """Run until nothing is left to start or to wait for."""
        clock = self._environment.clock
        while True:
            if not self._is_ending:
                yield from self._start_ready()
            if self._unkept and not self._notices.is_paused:
                yield from self._keep_finished()
            if not self._running and (self._is_ending or not (self._ready or self._backoff)):
                break
            if self._is_stopping:
                yield from self._stop_all()
            elif self._notices.is_paused:
                yield from self._pause_all()
            event = yield NextEvent(self._next_moment())
            while isinstance(event, AttemptEnded):
                self._ended(event)
                # Whatever else has finished is kept with it by one call. A notice is acted on before the end of an
                # attempt that it ended.
                event = yield POLL
            if event is not None:
                self._notices.note(event)
            if self._next_moment() < NEVER:
                yield from self._on_time(clock())
        for branch in self.branches:
            if branch.status in {"ready", "backoff", "running"}:
                branch.status = "dropped"
        if self._unkept and self._notices.gone is None:
            yield from self._keep_finished()

    @property
    def _is_stopping(self) -> bool:
        """What runs is to end now."""
        notices = self._notices
        return (
            (self._has_failed and self._cancels_siblings)
            or self._is_full
            or self.is_late
            or self.abandoned is not None
            or notices.gone is not None
            or notices.is_stopped
            or notices.is_overdue
            or notices.queue_error is not None
            or bool(self.waits_for)
            or (not self._frame.scope and bool(notices.pending) and bool(notices.cancel_ids))
        )

    @property
    def _is_ending(self) -> bool:
        """Nothing more is to be started."""
        return self._notices.is_suspended or self._is_stopping

    def _start_ready(self) -> Flow[None]:
        while self._ready and len(self._running) < self._settings.max_concurrency and not self._notices.is_paused:
            branch = self._ready.popleft()
            step = branch.step
            if self._begin is not None and step.at_most_once:
                yield from self._begin(branch)
            branch.attempt_count += 1
            attempt = Attempt(
                step,
                self._entries,
                self._state_type,
                self._frame,
                number=branch.attempt_count,
                item_key=branch.item_key,
                item_index=branch.item_index,
                iteration=branch.iteration,
                signal=branch.signal,
            )
            branch.attempt = attempt
            branch.status = "running"
            branch.asked = ""
            branch.give_up_at = NEVER
            if step.timeout_s is not None:
                branch.timeout_at = self._environment.clock() + step.timeout_s
            self._running[attempt] = branch
            yield StartAttempt(attempt, self._may_block and step.timeout_s is None)

    def _next_moment(self) -> float:
        moment = self._deadline_at if not self.is_late else NEVER
        for branch in self._running.values():
            moment = min(moment, branch.timeout_at, branch.give_up_at)
        if self._backoff and not self._is_ending:
            moment = min(moment, *(branch.retry_at for branch in self._backoff))
        return moment

    def _on_time(self, now: float) -> Flow[None]:
        if now >= self._deadline_at:
            self.is_late = True
        for branch in [*self._running.values()]:
            if now >= branch.timeout_at and branch.attempt is not None:
                branch.timeout_at = NEVER
                if branch.asked != "stop":
                    branch.asked = "timeout"
                    branch.give_up_at = now + self._settings.grace_s
                    yield CancelAttempt(branch.attempt)
            elif now >= branch.give_up_at:
                self._abandon(branch)
        for branch in [one for one in self._backoff if now >= one.retry_at]:
            self._backoff.remove(branch)
            branch.status = "ready"
            self._ready.append(branch)

    def _stop_all(self) -> Flow[None]:
        yield from self._ask_all("stop", self._environment.clock() + self._settings.grace_s)

    def _pause_all(self) -> Flow[None]:
        # What may run once is not cut off: nobody else may start it, and its outcome would be lost.
        yield from self._ask_all("pause", NEVER)

    def _ask_all(self, why: Literal["pause", "stop"], give_up_at: float) -> Flow[None]:
        for branch in [*self._running.values()]:
            if branch.asked in {"timeout", why} or (why == "pause" and branch.step.at_most_once):
                continue
            if why == "pause" and branch.asked:
                continue
            branch.asked = why
            branch.give_up_at = give_up_at
            branch.timeout_at = NEVER
            if branch.attempt is not None:
                yield CancelAttempt(branch.attempt)

    def _abandon(self, branch: Branch) -> None:
        """Wait no longer for an attempt that does not end."""
        if branch.attempt is not None:
            self._running.pop(branch.attempt, None)
        logger.warning(
            "step %r of workflow %r did not end within %g s of being asked to; it is left behind",
            branch.step.id,
            self._frame.workflow_id,
            self._settings.grace_s,
        )
        if branch.asked == "timeout":
            branch.fail(
                self._timeout_error(branch, abandoned=True), "unknown" if branch.step.at_most_once else "abandoned"
            )
            self.abandoned = branch
            self._has_failed = True
        elif branch.step.at_most_once:
            branch.fail(StepCancelledError(f"step {branch.step.id!r} did not end"), "unknown")
        else:
            branch.status = "dropped"

    def _ended(self, event: AttemptEnded) -> None:
        branch = self._running.pop(event.attempt, None)
        if branch is None:
            return  # It was left behind before; whatever it did is not wanted any more.
        asked, error = branch.asked, event.error
        branch.attempt = None
        branch.asked = ""
        branch.timeout_at = branch.give_up_at = NEVER
        if asked == "timeout":
            self._failed(branch, self._timeout_error(branch), "timeout")
        elif error is None:
            branch.finish(event.result)
            self._open_count -= 1
            if self._keep is not None:
                self._unkept.append(branch)
        elif _is_cancellation(error) and not asked and self._has_deadline_passed():
            # The step looked at the time of day, which passed the deadline before the engine's clock did.
            self.is_late = True
            branch.status = "dropped"
        elif isinstance(error, LeaseLostError) and error.workflow_id == self._frame.workflow_id:
            self._notices.gone = self._notices.gone or error
            branch.status = "dropped"
        elif isinstance(error, ChildOutageError):
            # What is stored says that the workflow is running, as after any outage: somebody will go on from there.
            self._notices.gone = self._notices.gone or error.error
            branch.status = "dropped"
        elif isinstance(error, ChildWaitsError) and branch.step.at_most_once:
            problem = RuntimeError(f"a child of step {branch.step.id!r} waits for a signal, and the step may run once")
            self._failed(branch, problem, "unknown")
        elif isinstance(error, ChildWaitsError):
            self.waits_for.append(error.signal_name)
            branch.status = "dropped"
        elif not (_is_cancellation(error) and (asked or self._notices.is_suspended)):
            self._failed(branch, error, "error")
        elif branch.step.at_most_once:
            self._failed(branch, error, "unknown")
        elif asked == "pause":
            # Nobody else has acted, or the run ends anyway: it begins again, as the same attempt.
            branch.attempt_count -= 1
            branch.status = "ready"
            self._ready.append(branch)
        else:
            branch.status = "dropped"

    def _has_deadline_passed(self) -> bool:
        deadline = self._frame.deadline
        return deadline is not None and self._environment.wall_clock() >= deadline

    def _failed(self, branch: Branch, error: BaseException, kind: FailureKind) -> None:
        step = branch.step
        if step.at_most_once:
            branch.fail(error, "unknown")
        elif (
            step.retry.allows(error, branch.attempt_count)
            and not self._is_stopping
            # Of a child's step: only people can tell how it goes on.
            and not isinstance(error, StepOutcomeUnknownError)
        ):
            pause_s = step.retry.delay_s(branch.attempt_count, self._environment.random)
            branch.status = "backoff"
            branch.retry_at = self._environment.clock() + pause_s
            self._backoff.append(branch)
            logger.info(
                "step %r of workflow %r failed (%s, attempt %d of %d); again in %.3g s%s",
                branch.task,
                self._frame.workflow_id,
                type(error).__name__,
                branch.attempt_count,
                step.retry.attempts,
                pause_s,
                f": {self._settings.quoted(error)}" if self._settings.record_error_text else "",
            )
            return
        else:
            branch.fail(error, kind)
        self._has_failed = True

    def _keep_finished(self) -> Flow[None]:
        kept, self._unkept = self._unkept, []
        # What finishes the stage goes with its checkpoint, which follows at once.
        if self._keep is None or (not self._open_count and all(one.status == "finished" for one in self.branches)):
            return
        yield from self._keep(kept)
        if any(branch.status == "failed" for branch in kept):
            # There is no room for what finishes now: nothing more is run only to be lost.
            self._has_failed = self._is_full = True

    def _timeout_error(self, branch: Branch, *, abandoned: bool = False) -> StepTimeoutError:
        timeout_s = branch.step.timeout_s or 0.0
        rest = ", and has not ended since" if abandoned else ""
        return StepTimeoutError(
            f"step {branch.task!r} of workflow {self._frame.workflow_id!r} took longer than {timeout_s:g} s{rest}",
            step=branch.step.id,
            attempts=branch.attempt_count,
            timeout_s=timeout_s,
            abandoned=abandoned,
            workflow_id=self._frame.workflow_id,
            scope=self._frame.scope,
        )


def _is_cancellation(error: BaseException) -> bool:
    # asyncio's and concurrent.futures' are different classes of one name.
    return isinstance(error, StepCancelledError) or type(error).__name__ == "CancelledError"
