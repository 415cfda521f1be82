"""A run of one workflow in one scope: from the lease to the outcome. Sans-IO: effects out, answers and events in.

`Engine.run` is a generator (see `events`). It reads top to bottom as a run goes: take the lease, load, refuse what must
not go on, then stage after stage until an outcome is saved. Nothing here reads a clock that was not passed in, opens
anything, or waits; the drivers do.

**Invariant: the lease comes before the load**, so that what was loaded stays the head.
**Invariant: only `WorkflowNotFoundError` means new.** Any other failure to load is the run's failure.
**Invariant: `run` ends with a stored outcome, or with an error that says there is none.**
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NoReturn, TypeAlias, TypeVar

from milepost.codecs import Codec
from milepost.errors import (
    CheckpointNotFoundError,
    CodecError,
    DefinitionNotFoundError,
    InputMismatchError,
    LeaseHeldError,
    LimitExceededError,
    MilepostError,
    StateConflictError,
    StateSchemaError,
    StepFailedError,
    StepOutcomeUnknownError,
    StepTimeoutError,
    WorkflowCancelledError,
    WorkflowDeadlineError,
    WorkflowExistsError,
    WorkflowNotFoundError,
)
from milepost.runner import tracing
from milepost.runner.changes import compare
from milepost.runner.context import ChildWaitsError, RunFrame, StepCancelledError, logger
from milepost.runner.events import AcquireLease, Flow, LoadHead, LoadManifest, ReadSignals
from milepost.runner.journal import Journal
from milepost.runner.keys import item_keys, task_name
from milepost.runner.manifest import Manifest
from milepost.runner.notices import Notices
from milepost.runner.patches import Entries, Patch, apply, collect, from_record, merge, to_record
from milepost.runner.plan import Frontier
from milepost.runner.run import Run
from milepost.runner.run_state import (
    NEEDS_RESOLVE,
    Failure,
    FailureKind,
    HeadRecords,
    RunState,
    branch_record,
    failure_record,
    left_record,
    read_head_records,
    read_run_state,
    resume_record,
    started_record,
)
from milepost.runner.settings import LEASE_WAIT_MAX_S, Environment, Settings
from milepost.runner.stage import NEVER, Branch, Stage
from milepost.runner.step import Step
from milepost.runner.workflow import Workflow
from milepost.types import CANCEL_SIGNAL, Checkpoint, LeaseInfo, PendingSignal, Record, RecordOutcome, Signal, Status

__all__ = ["Engine", "Order"]

S = TypeVar("S")

BRANCHES_MAX: Final = 9_000
"""Most branches of a stage that keeps its finished ones: each is a record on one checkpoint, which holds 10,000."""
ENDED: Final = frozenset({Status.COMPLETED, Status.CANCELLED})

Resolution: TypeAlias = Literal["retry", "done", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Generic[S]):
    """What is asked of a run."""

    workflow_id: str
    kind: Literal["run", "start", "resume"] = "run"
    state: S | None = None
    """The input; None: resume."""
    deadline_s: float | None = None
    """Time for the whole workflow from now on, in seconds; None: as before."""
    lease_wait_s: float | None = None
    """Longest wait for a lease that is held; None: as long as it can live without a renewal."""
    scope: str = ""
    """A child's scope; "" is the root."""
    lease_token: int = 0
    """The root's lease, for a child."""
    deadline: float | None = None
    """The root's deadline, for a child, in seconds since 1970."""


class _SuspendedError(Exception):
    """The run was asked to stop, and everything that is finished is durable."""


class _SignalCameError(Exception):
    """A signal came while WAITING was being saved: look again."""


class Engine(Generic[S]):
    """One call of `run`.

    Args:
        workflow: The definition.
        order: What is asked.
        codec: Encodes the entries, as the store does.
        namespace: The store's.
        keeps_records: The store has records.
        uses_lease: Take a lease. Never for a child, which runs under its parent's.
        takes_encoded: The store takes entries as this codec has encoded them.
    """

    def __init__(
        self,
        workflow: Workflow[S],
        order: Order[S],
        *,
        settings: Settings,
        environment: Environment,
        codec: Codec,
        namespace: str,
        keeps_records: bool = True,
        uses_lease: bool = True,
        takes_encoded: bool = False,
    ) -> None:
        self.notices = Notices()
        self.frame = RunFrame(
            namespace=namespace,
            workflow_id=order.workflow_id,
            scope=order.scope,
            lease_token=order.lease_token,
            deadline=order.deadline,
            wall_clock=environment.wall_clock,
        )
        self.lease_token = order.lease_token
        """The token under which is saved; 0 while there is none."""
        self.run_id = environment.new_id()
        self._workflow = workflow
        self._definition = workflow.definition
        self._order = order
        self._settings = settings
        self._environment = environment
        self._codec = codec
        self._keeps_records = keeps_records
        self._takes_encoded = takes_encoded
        self._uses_lease = uses_lease and not order.scope
        self._input = None if order.state is None else self._encode(order.state)
        self._journal: Journal | None = None
        self._frontier = Frontier(self._definition)
        self._records = HeadRecords()
        self._records_head = ""
        self._is_resumed = False
        self._resume_head = ""
        self._deadline_at = NEVER
        self._request_id = environment.new_id()

    # What a driver asks.

    @property
    def workflow(self) -> Workflow[S]:
        """The definition."""
        return self._workflow

    @property
    def holds_lease(self) -> bool:
        """There is a lease of this run's own to give back."""
        return (
            self._uses_lease and self.lease_token != 0 and not (self._journal is not None and self._journal.is_released)
        )

    def parting_records(self) -> tuple[str, Sequence[Record]] | None:
        """Return what to append, and to which checkpoint, where a resume ends on purpose: it was no crash."""
        journal = self._journal
        if journal is None or not self._resume_head or journal.head_id != self._resume_head:
            return None
        return journal.head_id, [left_record(self._order.workflow_id, self.run_id)]

    # The run.

    def run(self) -> Flow[Run[S]]:
        """Start or resume the workflow, and run it to an outcome.

        Raises:
            MilepostError: There is none, and why; everything that could be saved is.
        """
        while True:
            if self._uses_lease:
                yield from self._take_lease()
            try:
                return (yield from self._run())
            except _SuspendedError:
                if self._order.scope:
                    # The step that runs this child ends with it, and runs again when somebody goes on.
                    raise StepCancelledError(f"workflow {self._order.workflow_id!r} is being suspended") from None
                return self._outcome("suspended")
            except _WaitsError as waits:
                return waits.run
            except _SignalCameError:
                continue

    def cancel(self) -> Flow[None]:
        """Save the workflow as cancelled, unless it has ended already."""
        if self._uses_lease:
            yield from self._take_lease()
        head = yield from self._load_head()
        if head is None or head.status in ENDED:
            return
        self._adopt(head)
        yield from self._save_cancelled()

    def resolve(self, step_id: str, resolution: Resolution, left: Mapping[str, Any] | None) -> Flow[None]:
        """Say how a step goes on that a resume refuses to run. See `Runner.resolve`."""
        if self._uses_lease:
            yield from self._take_lease()
        head = yield from self._load_head()
        if head is None:
            raise WorkflowNotFoundError(
                f"there is no workflow {self._order.workflow_id!r} to resolve a step of",
                workflow_id=self._order.workflow_id,
            )
        if head.status in ENDED:
            raise ValueError(f"workflow {self._order.workflow_id!r} has ended: there is nothing to resolve")
        self._adopt(head)
        yield from self._resolve(step_id, resolution, left)

    def _run(self) -> Flow[Run[S]]:
        head = yield from self._load_head()
        if head is None:
            yield from self._begin()
        else:
            self._is_resumed = True
            if self._order.kind == "start":
                raise WorkflowExistsError(
                    f"workflow {self._order.workflow_id!r} exists already: resume it, or take another id",
                    workflow_id=self._order.workflow_id,
                    reason="WORKFLOW_EXISTS",
                )
            state = read_run_state(head)
            self._check_input(state)
            if head.status is Status.COMPLETED:
                # Its result is its result, whatever has become of the definition.
                return self._stored_result(head, state)
            if head.status is Status.CANCELLED:
                raise self._cancelled_error()
            finished, extra = yield from self._check_definition(head, state)
            self._adopt(head, state, finished, extra)
            self._refuse_unresolved(head)
            if self._still_waits(head, state):
                return self._outcome("waiting", state.waiting_for)
        return (yield from self._advance())

    def _still_waits(self, head: Checkpoint, state: RunState) -> bool:
        """Tell whether a step would only be run to find that its child still waits for the same signal."""
        notices = self.notices
        return (
            head.status is Status.WAITING
            and bool(state.waiting_for)
            and notices.is_complete
            and notices.signal_id(state.waiting_for) is None
            and not notices.cancel_ids
            and not self._order.scope
            and all(step.waits_for is None for step in self._frontier.stage())
        )

    def _advance(self) -> Flow[Run[S]]:
        journal = self._the_journal
        while True:
            yield from self._boundary()
            if self._frontier.is_finished:
                yield from journal.save(Status.COMPLETED, releases=self._uses_lease)
                return self._outcome("completed")
            stage, waiting = self._choose_stage()
            if not stage:
                return (yield from self._wait_for_signal(waiting))
            if self._is_resumed and not self._resume_head:
                yield from self._count_resume(stage[0])
            yield from self._run_stage(stage)
            if journal.status is Status.COMPLETED:
                return self._outcome("completed")

    # Lease and load.

    def _take_lease(self) -> Flow[None]:
        settings = self._settings
        budget_s = self._order.lease_wait_s
        if budget_s is None:
            budget_s = settings.lease_ttl_s + settings.lease_margin_s
        clock = self._environment.clock
        give_up_at = clock() + budget_s
        wait_s = waited_s = 0.0
        lease: LeaseInfo
        while True:
            try:
                lease = yield AcquireLease(settings.lease_ttl_s, wait_s, self._request_id)
                break
            except LeaseHeldError as held:
                waited_s += wait_s
                # Both: the clock may stand still in a test, and a call may take longer than it waits.
                left_s = min(give_up_at - clock(), budget_s - waited_s)
                if left_s <= 0.001:
                    raise
                remaining_s = held.remaining_s
                logger.info(
                    "workflow %r is held by %s, expires in %s s; waiting up to %.0f s",
                    self._order.workflow_id,
                    held.holder,
                    "?" if remaining_s is None else f"{remaining_s:.0f}",
                    left_s,
                )
                # The ttl counts from before the request: a long wait would use it up.
                wait_s = min(left_s, settings.lease_ttl_s / 3, LEASE_WAIT_MAX_S)
        self._request_id = self._environment.new_id()
        self.lease_token = self.frame.lease_token = lease.token
        self.notices.is_paused = False

    def _load_head(self) -> Flow[Checkpoint | None]:
        try:
            head: Checkpoint = yield LoadHead(self._order.scope)
        except WorkflowNotFoundError:
            if self._input is None or self._order.kind == "resume":
                raise
            return None
        except CheckpointNotFoundError:
            # The workflow is there and this child has not begun. Without a scope it would be a damaged workflow.
            if not self._order.scope:
                raise
            return None
        self.notices.saw(head.pending_signals, head.pending_signal_count)
        return head

    def _begin(self) -> Flow[None]:
        entries = self._input
        assert entries is not None
        first = self._environment.new_id()
        state = RunState(first=first, input=entries.digest(), schema=self._workflow.schema_version)
        state.input_schema = state.schema
        self._use(state, entries, None)
        self._frontier = Frontier(self._definition)
        self._the_journal.touch()
        yield from self._the_journal.save(Status.RUNNING)

    def _adopt(
        self,
        head: Checkpoint,
        state: RunState | None = None,
        finished: frozenset[str] | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        """Take over what is stored."""
        state = read_run_state(head) if state is None else state
        entries, is_migrated = self._read_entries(head, state)
        self._use(state, entries, head)
        self._frontier = Frontier(self._definition, head.completed_steps if finished is None else finished)
        if extra:
            self._the_journal.finish(extra, entries, last_step=head.current_step)
        if is_migrated or state.changed:
            self._the_journal.touch()
        if head.status is not Status.WAITING:
            state.waiting_for = ""
        self._records = read_head_records(head.records, self._order.workflow_id)
        self._records_head = head.checkpoint_id

    def _use(self, state: RunState, entries: Entries, head: Checkpoint | None) -> None:
        manifest = self._definition.manifest
        known = head is not None and head.fingerprint == manifest.fingerprint
        state.traceparent = tracing.take_over(state.traceparent)
        self._journal = Journal(
            self._order.workflow_id,
            self._order.scope,
            state=state,
            entries=entries,
            after=head,
            run_id=self.run_id,
            definition=self._workflow.name,
            fingerprint=manifest.fingerprint,
            manifest="" if known else manifest.text,
            settings=self._settings,
            environment=self._environment,
            notices=self.notices,
            takes_encoded=self._takes_encoded,
        )
        self._journal.lease_token = self.lease_token
        self.frame.first_checkpoint_id = state.first
        self._set_deadline(state)

    def _set_deadline(self, state: RunState) -> None:
        now = self._environment.wall_clock()
        if self._order.deadline_s is not None:
            state.deadline = now + self._order.deadline_s
        deadlines = [one for one in (state.deadline, self._order.deadline) if one is not None]
        self.frame.deadline = min(deadlines, default=None)
        if self.frame.deadline is not None:
            self._deadline_at = self._environment.clock() + self.frame.deadline - now

    def _read_entries(self, head: Checkpoint, state: RunState) -> tuple[Entries, bool]:
        """Return the entries as this definition has them, and whether they were migrated."""
        values = head.state
        is_migrated = state.schema != self._workflow.schema_version
        if is_migrated:
            values = self._workflow.migrations.migrate(values, state.schema)
            state.schema = self._workflow.schema_version
        entries = Entries.of(values, self._codec)
        # A state that does not fit is the run's failure, not that of whichever step would get it first.
        self._state_of(entries, head.checkpoint_id)
        return entries, is_migrated

    def _stored_result(self, head: Checkpoint, state: RunState) -> Run[S]:
        entries, _ = self._read_entries(head, state)
        return Run(
            workflow_id=self._order.workflow_id,
            state=self._state_of(entries, head.checkpoint_id),
            status="completed",
            checkpoint_id=head.checkpoint_id,
            sequence=head.sequence,
            resumed=True,
        )

    def _outcome(self, status: Literal["completed", "waiting", "suspended"], waiting_for: str = "") -> Run[S]:
        journal = self._the_journal
        return Run(
            workflow_id=self._order.workflow_id,
            state=self._state_of(journal.entries, journal.head_id),
            status=status,
            checkpoint_id=journal.head_id,
            sequence=journal.sequence,
            resumed=self._is_resumed,
            waiting_for=waiting_for,
        )

    # What must not go on.

    def _check_input(self, state: RunState) -> None:
        if self._input is None or not state.input or state.input_schema != self._workflow.schema_version:
            return
        if self._input.digest() != state.input:
            where = f", scope {self._order.scope!r}" if self._order.scope else ""
            raise InputMismatchError(
                f"workflow {self._order.workflow_id!r}{where} was started with another input; pass none to resume it, "
                "or take another id",
                workflow_id=self._order.workflow_id,
                scope=self._order.scope,
            )

    def _check_definition(self, head: Checkpoint, state: RunState) -> Flow[tuple[frozenset[str], Sequence[str]]]:
        """Return the steps that count as finished, and those the store does not know as such."""
        fingerprint = self._definition.manifest.fingerprint
        completed = frozenset(head.completed_steps)
        if not head.fingerprint or head.fingerprint == fingerprint:
            return completed, ()
        try:
            text: str = yield LoadManifest(head.fingerprint)
        except DefinitionNotFoundError:
            if self._settings.on_change != "force":
                raise
            return completed, ()
        records = read_head_records(head.records, self._order.workflow_id)
        begun = {task.partition("[")[0] for task in (*records.branches, *records.started)} | state.iterations.keys()
        changes = compare(Manifest.read(text), self._definition, head.completed_steps, begun)
        if not changes.allows(self._settings.on_change):
            raise changes.error(self._settings.on_change, self._order.workflow_id)
        if self._settings.on_change == "force":
            state.changed = changes.to_metadata()
        state.iterations = {changes.renamed.get(one, one): count for one, count in state.iterations.items()}
        return changes.finished, changes.newly_named

    def _refuse_unresolved(self, head: Checkpoint) -> None:
        if head.status is not Status.FAILED:
            return
        for failure in self._records.failures:
            if failure.kind in NEEDS_RESOLVE:
                raise self._unresolved_error(failure)

    def _unresolved_error(self, failure: Failure) -> MilepostError:
        workflow_id, step = self._order.workflow_id, failure.step
        if failure.kind == "unknown":
            return StepOutcomeUnknownError(
                f"step {step!r} of workflow {workflow_id!r} may run once; it was started and nobody knows how it "
                f"ended. Find out, then resolve({workflow_id!r}, {step!r}, 'done', 'retry' or 'fail')",
                step=step,
                item_key=failure.item_key,
                workflow_id=workflow_id,
                scope=self._order.scope,
            )
        why = {
            "crash_limit": f"was resumed {failure.attempts} times without getting past it",
            "too_large": "left more than the store keeps beside one checkpoint",
            "final": "was resolved as failed",
        }[failure.kind]
        return StepFailedError(
            f"workflow {workflow_id!r} is failed at step {step!r}: it {why}. "
            f"resolve({workflow_id!r}, {step!r}, 'retry') lets it go on",
            step=step,
            attempts=failure.attempts,
            workflow_id=workflow_id,
            scope=self._order.scope,
        )

    def _count_resume(self, step: Step[Any]) -> Flow[None]:
        """Note durably that a run goes on from here; fail where too many have without progress."""
        journal = self._the_journal
        self._resume_head = journal.head_id
        if self._order.scope or not self._keeps_records or not journal.is_durable:
            return
        count = len(self._records.resumes)
        if count >= self._settings.crash_limit:
            failure = self._failure(step.id, None, "crash_limit", None, count)
            yield from journal.save(
                Status.FAILED,
                records=[self._failure_record(step.id, failure), *self._carried("")],
                releases=self._uses_lease,
            )
            raise self._unresolved_error(failure)
        yield from journal.append([resume_record(self._order.workflow_id, self.run_id)])

    # Between stages.

    def _boundary(self) -> Flow[None]:
        """Take in what has happened, and end the run where it says so."""
        notices = self.notices
        while True:
            yield from self._the_journal.until_renewed()
            if notices.queue_error is not None:
                raise notices.queue_error
            if notices.is_stopped:
                raise StepCancelledError(f"workflow {self._order.workflow_id!r} was asked to end")
            if notices.pending_count and not self._order.scope:
                if not notices.is_complete and not notices.cancel_ids:
                    yield from self._look_for(CANCEL_SIGNAL)
                if notices.cancel_ids:
                    yield from self._save_cancelled()
                    raise self._cancelled_error()
            if self._environment.clock() >= self._deadline_at:
                yield from self._end_late(())
            if notices.is_suspended:
                yield from self._suspend()
            return

    def _look_for(self, name: str) -> Flow[None]:
        """Ask for signals of a name, where there are more than an answer lists."""
        signals: Sequence[Signal] = yield ReadSignals(name)
        listed = {one.signal_id for one in self.notices.pending}
        found = tuple(PendingSignal(signal_id=one.signal_id, name=one.name) for one in signals)
        self.notices.pending = (*self.notices.pending, *(one for one in found if one.signal_id not in listed))

    def _suspend(self) -> Flow[NoReturn]:
        if not self._the_journal.is_durable:
            yield from self._the_journal.save(Status.RUNNING, releases=self._uses_lease)
            yield from self._the_journal.drain()
        raise _SuspendedError

    def _save_cancelled(self, records: Sequence[Record] = ()) -> Flow[None]:
        journal = self._the_journal
        yield from journal.drain()
        yield from journal.save(
            Status.CANCELLED, signals=self.notices.cancel_ids, records=records, releases=self._uses_lease
        )

    def _cancelled_error(self) -> WorkflowCancelledError:
        return WorkflowCancelledError(
            f"workflow {self._order.workflow_id!r} is cancelled; fork it to go on from one of its checkpoints",
            workflow_id=self._order.workflow_id,
            scope=self._order.scope,
        )

    def _end_late(self, branches: Sequence[Branch]) -> Flow[NoReturn]:
        late = [one.step for one in branches if one.status != "finished"] or self._frontier.stage()
        step_id = late[0].id if late else ""
        failure = self._failure(step_id, None, "deadline", None, 0)
        records: list[Record] = []
        if self._keeps_records:
            records = [self._failure_record(step_id or "deadline", failure), *self._branch_records(branches)]
            records += self._unknown_records(branches)
        yield from self._the_journal.save(Status.FAILED, records=records, releases=self._uses_lease)
        raise WorkflowDeadlineError(
            f"workflow {self._order.workflow_id!r} was not finished in the time it was given"
            + (f"; step {step_id!r} was next" if step_id else ""),
            step=step_id,
            workflow_id=self._order.workflow_id,
            scope=self._order.scope,
        )

    # Stages.

    def _choose_stage(self) -> tuple[Sequence[Step[Any]], Sequence[Step[Any]]]:
        """Return the steps to run now, and those that wait for a signal that has not come.

        A step that waits for a signal runs when nothing else can: so what it is given never depends on when the signal
        came.
        """
        ready = self._frontier.stage()
        waiting = [step for step in ready if step.waits_for is not None]
        if not waiting:
            return ready, ()
        others = [step for step in ready if step.waits_for is None]
        if others:
            return others, waiting
        taken: set[str] = set()
        stage: list[Step[Any]] = []
        for step in waiting:
            # One signal lets one step run: two that wait for the same name take turns.
            if step.waits_for not in taken and self.notices.signal_id(step.waits_for or "") is not None:
                taken.add(step.waits_for or "")
                stage.append(step)
        return stage, [step for step in waiting if step not in stage]

    def _wait_for_signal(self, waiting: Sequence[Step[Any]]) -> Flow[Run[S]]:
        notices = self.notices
        if not notices.is_complete:
            for step in waiting:
                yield from self._look_for(step.waits_for or "")
            if self._choose_stage()[0]:
                return (yield from self._advance())
        return (yield from self._save_waiting([step.waits_for or "" for step in waiting], ()))

    def _save_waiting(self, names: Sequence[str], records: Sequence[Record]) -> Flow[Run[S]]:
        journal = self._the_journal
        name = names[0]
        if self._order.scope:
            # The root says that the workflow waits; this scope only how far it has come.
            if journal.status is not Status.WAITING or journal.is_dirty or journal.state.waiting_for != name:
                journal.state.waiting_for = name
                yield from journal.save(Status.WAITING, records=records)
            raise ChildWaitsError(name)
        if journal.status is not Status.WAITING or journal.is_dirty or journal.state.waiting_for != name or records:
            journal.state.waiting_for = name
            yield from journal.drain()
            yield from journal.save(Status.WAITING, records=records, releases=self._uses_lease)
            if any(self.notices.signal_id(one) is not None for one in names):
                raise _SignalCameError
        return self._outcome("waiting", name)

    def _run_stage(self, steps: Sequence[Step[Any]]) -> Flow[None]:
        journal = self._the_journal
        has_items = any(step.for_each is not None for step in steps)
        keeps = self._keeps_records and (len(steps) > 1 or has_items) and self._settings.durability != "exit"
        if keeps or any(step.at_most_once or step.waits_for is not None for step in steps):
            # Records go to a checkpoint that holds all they build on, and what may run once may not be run for nothing.
            yield from journal.flush()
        try:
            branches = yield from self._branches(steps)
        except (CodecError, TypeError, ValueError, LookupError) as error:
            if isinstance(error, MilepostError) and not isinstance(error, CodecError):
                raise
            yield from self._fail_steps(steps[0], error)
            raise AssertionError("unreachable") from error
        self._recall(branches)
        keeps = keeps and len(branches) > 1
        stage = Stage(
            branches,
            entries=journal.entries,
            state_type=self._workflow.state_type,
            frame=self.frame,
            settings=self._settings,
            environment=self._environment,
            notices=self.notices,
            deadline_at=self._deadline_at,
            cancels_siblings=self._workflow.siblings == "cancel",
            begin=self._begin_once,
            keep=self._keep if keeps else None,
        )
        yield from stage.run()
        yield from self._settle(steps, stage)

    def _branches(self, steps: Sequence[Step[Any]]) -> Flow[list[Branch]]:
        journal = self._the_journal
        branches: list[Branch] = []
        for step in steps:
            if step.for_each is not None:
                items = journal.entries.value(step.for_each)
                if not isinstance(items, list | tuple):
                    raise TypeError(
                        f"step {step.id!r} runs for each of {step.for_each!r}, which is {type(items).__name__}, no list"
                    )
                keys = item_keys(step, items)
                branches += [
                    Branch(step, task_name(step.id, key), item_key=key, item_index=index)
                    for index, key in enumerate(keys)
                ]
                continue
            iteration = None
            if step.repeat_while is not None:
                iteration = journal.state.iterations.get(step.id, 0) + 1
            branch = Branch(step, step.id, iteration=iteration)
            if step.waits_for is not None:
                signals: Sequence[Signal] = yield ReadSignals(step.waits_for)
                if not signals:
                    raise LookupError(f"the signal {step.waits_for!r} is pending no more")
                branch.signal_id, branch.signal = signals[0].signal_id, signals[0].value
            branches.append(branch)
        if len(branches) > BRANCHES_MAX and self._settings.durability != "exit":
            raise ValueError(
                f"step {branches[0].step.id!r} would run for {len(branches)} items; a stage has at most {BRANCHES_MAX}: "
                "run it for lists of items, or for parts of them in a loop"
            )
        return branches

    def _recall(self, branches: Sequence[Branch]) -> None:
        """Take over what branches left in an earlier run, and refuse to start again what may run once."""
        if self._records_head != self._the_journal.head_id:
            return
        records = self._records
        if not records.branches and not records.started:
            return
        for branch in branches:
            names = (branch.task, *(task_name(alias, branch.item_key) for alias in branch.step.aliases))
            for name in names:
                if name in records.branches:
                    left = records.branches[name]
                    branch.finish(from_record(left, self._codec) if branch.item_key is None else left)
                    break
            else:
                if branch.step.at_most_once and (started := [name for name in names if name in records.started]):
                    raise StepOutcomeUnknownError(
                        f"step {branch.task!r} of workflow {self._order.workflow_id!r} may run once; it was started "
                        f"and nobody knows how it ended. Find out, then resolve({self._order.workflow_id!r}, "
                        f"{branch.step.id!r}, 'done', 'retry' or 'fail')",
                        step=branch.step.id,
                        item_key=branch.item_key or "",
                        attempt_id=records.started[started[0]],
                        workflow_id=self._order.workflow_id,
                        scope=self._order.scope,
                    )

    def _begin_once(self, branch: Branch) -> Flow[None]:
        """Make it durable that an at-most-once step begins: whoever finds the mark does not start it again."""
        if branch.attempt_id:
            return
        journal = self._the_journal
        attempt_id = self._environment.new_id()
        record = started_record(self._order.workflow_id, branch.task, branch.step.id, attempt_id)
        outcome = (yield from journal.append([record]))[0]
        if outcome is not RecordOutcome.CREATED:
            # A lost answer and a second try of our own look the same: then the mark has our attempt's id.
            head: Checkpoint = yield LoadHead(self._order.scope)
            found = read_head_records(head.records, self._order.workflow_id).started.get(branch.task)
            if found != attempt_id or head.checkpoint_id != journal.head_id:
                raise StepOutcomeUnknownError(
                    f"step {branch.task!r} of workflow {self._order.workflow_id!r} may run once, and was started by "
                    "somebody else",
                    step=branch.step.id,
                    item_key=branch.item_key or "",
                    attempt_id=found or "",
                    workflow_id=self._order.workflow_id,
                    scope=self._order.scope,
                )
        branch.attempt_id = attempt_id

    def _keep(self, branches: Sequence[Branch]) -> Flow[None]:
        """Make branches durable that finished before their stage did."""
        try:
            yield from self._the_journal.append(self._branch_records(branches))
        except LimitExceededError as error:
            # They ran, and there is no room to say so: it must not look as if they had not.
            for branch in branches:
                branch.fail(error, "too_large")

    def _settle(self, steps: Sequence[Step[Any]], stage: Stage) -> Flow[None]:
        """Save what a stage has come to, and end the run where that is no progress."""
        notices, branches = self.notices, stage.branches
        if notices.gone is not None:
            raise notices.gone
        if notices.queue_error is not None:
            raise notices.queue_error
        failed = [branch for branch in branches if branch.status == "failed"]
        if all(branch.status == "finished" for branch in branches):
            try:
                yield from self._commit(steps, branches)
            except _StepProblemError as problem:
                yield from self._fail_steps(problem.step, problem.error, records=self._branch_records(branches))
            return
        yield from self._the_journal.drain()
        kept = self._branch_records(branches)
        if notices.is_stopped:
            if not self._the_journal.is_durable:
                yield from self._the_journal.save(Status.RUNNING, records=kept)
            raise StepCancelledError(f"workflow {self._order.workflow_id!r} was asked to end")
        if notices.cancel_ids and not self._order.scope:
            yield from self._save_cancelled([*kept, *self._unknown_records(branches)])
            raise self._cancelled_error()
        if stage.is_late:
            yield from self._end_late(branches)
        if failed:
            yield from self._fail(failed, kept)
        if stage.waits_for:
            run = yield from self._save_waiting(stage.waits_for, kept)
            raise _WaitsError(run)
        yield from self._suspend()

    def _commit(self, steps: Sequence[Step[Any]], branches: Sequence[Branch]) -> Flow[None]:
        journal = self._the_journal
        patches = self._patches(steps, branches)
        if len(patches) == 1:
            entries = apply(journal.entries, patches[0][1])
        else:
            try:
                entries = apply(journal.entries, merge(journal.entries, patches, self._workflow.reducers))
                self._state_of(entries, "")
            except (StateConflictError, CodecError, StateSchemaError) as error:
                raise _StepProblemError(steps[-1], error) from None
        repeated = {step.id for step in steps if step.repeat_while is not None and self._repeats(step, entries)}
        iterations = journal.state.iterations
        for step in steps:
            if step.id in repeated:
                iterations[step.id] = iterations.get(step.id, 0) + 1
            else:
                iterations.pop(step.id, None)
        finished = [step.id for step in steps if step.id not in repeated]
        self._frontier.finish(finished)
        journal.finish(
            finished,
            entries,
            last_step=steps[-1].id,
            signals=[branch.signal_id for branch in branches if branch.signal_id],
        )
        journal.state.waiting_for = ""
        if self._frontier.is_finished:
            yield from journal.save(Status.COMPLETED, releases=self._uses_lease)
        elif self._settings.durability != "exit" and any(step.checkpoint for step in steps):
            yield from journal.save(Status.RUNNING, is_optional=self._settings.on_save_error == "continue")

    def _patches(self, steps: Sequence[Step[Any]], branches: Sequence[Branch]) -> list[tuple[str, Patch]]:
        if len(steps) == len(branches) == 1 and branches[0].item_key is None:
            return [(steps[0].id, branches[0].left)]
        journal = self._the_journal
        patches: list[tuple[str, Patch]] = []
        by_step: dict[str, list[Any]] = {step.id: [] for step in steps}
        for branch in branches:
            by_step[branch.step.id].append(branch.left)
        for step in steps:
            lefts = by_step[step.id]
            if step.for_each is None or step.into is None:
                patches.append((step.id, lefts[0]))
                continue
            try:
                patch = collect(journal.entries, step.into, lefts, self._workflow.state_type, step.id)
            except (CodecError, StateSchemaError) as error:
                raise _StepProblemError(step, error) from None
            patches.append((step.id, patch))
        return patches

    def _repeats(self, step: Step[Any], entries: Entries) -> bool:
        assert step.repeat_while is not None
        try:
            repeats = step.repeat_while(self._state_of(entries, ""))
        except Exception as error:  # noqa: BLE001  the user's predicate may raise anything, and fails its step
            raise _StepProblemError(step, error) from None
        count = self._the_journal.state.iterations.get(step.id, 0) + 1
        if repeats and count >= step.max_iterations:
            problem = RuntimeError(f"step {step.id!r} would run again after {count} turns, its max_iterations")
            raise _StepProblemError(step, problem)
        return bool(repeats)

    # Failures.

    def _fail_steps(self, step: Step[Any], error: Exception, records: Sequence[Record] = ()) -> Flow[NoReturn]:
        branch = Branch(step, step.id)
        branch.attempt_count = 1
        branch.fail(error, "error")
        return (yield from self._fail([branch], records if self._keeps_records else ()))

    def _fail(self, failed: Sequence[Branch], kept: Sequence[Record]) -> Flow[NoReturn]:
        error = self._failed_error(failed)
        records = list(kept)
        if self._keeps_records:
            records += [self._branch_failure_record(branch) for branch in failed]
        if self._settings.record_error_text:
            said = ": " + "; ".join(self._settings.quoted(one.error) for one in failed if one.error is not None)
        else:
            said = ""
        logger.warning(
            "workflow %r failed at %s (%s)%s",
            self._order.workflow_id,
            ", ".join(repr(one.task) for one in failed[:5]),
            ", ".join(type(one.error).__name__ for one in failed[:5]),
            said,
        )
        try:
            yield from self._the_journal.drain()
            yield from self._the_journal.save(Status.FAILED, records=records, releases=self._uses_lease)
        except MilepostError as unsaved:
            error.add_note(f"That it failed is not stored: {type(unsaved).__name__}: {unsaved.message}")
        causes = [one.error for one in failed if one.error is not None]
        cause = causes[0] if len(causes) == 1 else BaseExceptionGroup(f"{len(causes)} branches failed", causes)
        if cause is not error:
            error.__cause__ = cause
        raise error

    def _failed_error(self, failed: Sequence[Branch]) -> StepFailedError:
        first = failed[0]
        if len(failed) == 1 and isinstance(first.error, StepTimeoutError):
            return first.error
        what = type(first.error).__name__ if len(failed) == 1 else f"and {len(failed) - 1} more"
        text = ""
        if self._settings.record_error_text and len(failed) == 1 and first.error is not None:
            text = f": {self._settings.quoted(first.error)}"
        times = "once" if first.attempt_count == 1 else f"{first.attempt_count} times"
        return StepFailedError(
            f"step {first.task!r} of workflow {self._order.workflow_id!r} failed, tried {times}: {what}{text}",
            step=first.step.id,
            attempts=first.attempt_count,
            workflow_id=self._order.workflow_id,
            scope=self._order.scope,
        )

    def _failure(
        self, step_id: str, item_key: str | None, kind: FailureKind, error: BaseException | None, attempts: int
    ) -> Failure:
        return Failure(
            step=step_id,
            item_key=item_key or "",
            kind=kind,
            type="" if error is None else type(error).__name__,
            text="" if error is None else self._settings.quoted(error),
            attempts=attempts,
            time=dt.datetime.fromtimestamp(self._environment.wall_clock(), dt.UTC).isoformat(),
        )

    def _failure_record(self, task: str, failure: Failure) -> Record:
        return failure_record(self._order.workflow_id, task, failure)

    def _branch_failure_record(self, branch: Branch) -> Record:
        failure = self._failure(branch.step.id, branch.item_key, branch.kind, branch.error, branch.attempt_count)
        return self._failure_record(branch.task, failure)

    def _unknown_records(self, branches: Sequence[Branch]) -> list[Record]:
        """Return the failures of a stage that a new head must not lose."""
        return [self._branch_failure_record(one) for one in branches if one.status == "failed"]

    def _branch_records(self, branches: Sequence[Branch]) -> list[Record]:
        """Return the records of finished branches, where a stage has several."""
        if not self._keeps_records:
            return []
        return [
            branch_record(
                self._order.workflow_id,
                branch.task,
                branch.step.id,
                to_record(branch.left, self._codec) if branch.item_key is None else branch.left,
            )
            for branch in branches
            if branch.status == "finished"
        ]

    def _carried(self, resolved: str) -> list[Record]:
        """Return what the head's records say of steps other than `resolved`, for a new head of the same stage."""
        workflow_id, records = self._order.workflow_id, self._records
        kept = [branch_record(workflow_id, task, _step_of(task), left) for task, left in records.branches.items()]
        started = dict(records.started)
        for failure in records.failures:
            if failure.kind == "unknown":
                started[task_name(failure.step, failure.item_key or None)] = ""
        kept += [
            started_record(workflow_id, task, _step_of(task), attempt_id)
            for task, attempt_id in started.items()
            if _step_of(task) != resolved and task not in records.branches
        ]
        return kept

    # Resolving.

    def _resolve(self, step_id: str, resolution: Resolution, left: Mapping[str, Any] | None) -> Flow[None]:
        journal, definition = self._the_journal, self._definition
        if step_id not in definition.steps:
            raise ValueError(f"workflow {self._workflow.name!r} has no step {step_id!r}")
        if step_id in self._frontier.completed:
            raise ValueError(f"step {step_id!r} of workflow {self._order.workflow_id!r} is finished")
        step = definition.steps[step_id]
        if left is not None and resolution != "done":
            raise ValueError("what the step left goes with 'done' alone")
        kept = self._carried(step_id)
        match resolution:
            case "retry":
                journal.touch()
                yield from journal.save(Status.RUNNING, records=kept, releases=self._uses_lease)
            case "done":
                if step.for_each is not None:
                    raise ValueError(f"step {step_id!r} runs for items: resolve it with 'retry' or 'fail'")
                if step not in self._frontier.stage():
                    raise ValueError(f"step {step_id!r} of workflow {self._order.workflow_id!r} cannot have run yet")
                entries = journal.entries
                if left is not None:
                    values = self._workflow.state_type.with_changes(self._state_of(entries, journal.head_id), left)
                    entries = Entries.of(values, self._codec, f"step {step_id!r}")
                    self._state_of(entries, journal.head_id)
                self._frontier.finish([step_id])
                journal.finish([step_id], entries, last_step=step_id)
                status = Status.COMPLETED if self._frontier.is_finished else Status.RUNNING
                kept = [record for record in kept if record.name != step_id] if status is Status.RUNNING else []
                yield from journal.save(status, records=kept, releases=self._uses_lease)
            case "fail":
                failure = self._failure(step_id, None, "final", None, 1)
                journal.touch()
                yield from journal.save(
                    Status.FAILED,
                    records=[*kept, self._failure_record(step_id, failure)],
                    releases=self._uses_lease,
                )

    # Values.

    @property
    def _the_journal(self) -> Journal:
        assert self._journal is not None, "made when the workflow is begun or adopted"
        return self._journal

    def _encode(self, state: S) -> Entries:
        entries = Entries.of(self._workflow.state_type.to_entries(state), self._codec, "the input")
        self._state_of(entries, "")
        return entries

    def _state_of(self, entries: Entries, checkpoint_id: str) -> S:
        return self._workflow.state_type.from_entries(
            entries.values(), workflow_id=self._order.workflow_id, checkpoint_id=checkpoint_id
        )


class _StepProblemError(Exception):
    """What a stage left cannot be taken over."""

    def __init__(self, step: Step[Any], error: Exception) -> None:
        super().__init__(step.id)
        self.step = step
        self.error = error


class _WaitsError(Exception):
    """A child waits, and so does the run: its outcome."""

    def __init__(self, run: Run[Any]) -> None:
        super().__init__(run.waiting_for)
        self.run = run


def _step_of(task: str) -> str:
    return task.partition("[")[0]
