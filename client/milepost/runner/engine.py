"""A run of one workflow in one scope: from the lease to the outcome. Sans-IO: effects out, answers and events in.

`Engine.run` is a generator (see `events`). It reads top to bottom as a run goes: take the lease, load, refuse what must
not go on, then stage after stage until an outcome is saved. Nothing here reads a clock that was not passed in, opens
anything, or waits; the drivers do.

**Invariant: the lease comes before the load**, so that what was loaded stays the head.
**Invariant: `run` ends with a stored outcome, or with an error that says there is none.**
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, Literal, NoReturn, TypeVar

from milepost.codecs import Codec
from milepost.errors import (
    HeadMovedError,
    InvalidRequestError,
    LeaseError,
    LeaseHeldError,
    LeaseLostError,
    LimitExceededError,
    MilepostError,
    StepFailedError,
    WorkflowExistsError,
)
from milepost.runner import crash_points, tracing
from milepost.runner.branches import KnownProgress, branch_records, make_branches, recall
from milepost.runner.context import ChildWaitsError, RunFrame, StepCancelledError, logger
from milepost.runner.effects import StageProblemError, repeated_steps, state_after
from milepost.runner.events import AcquireLease, AppendRecords, Flow, Leave, LoadHead, ReadSignals, SaveRefusedError
from milepost.runner.failures import Failures
from milepost.runner.journal import Journal
from milepost.runner.notices import Notices
from milepost.runner.order import Order
from milepost.runner.patches import Entries
from milepost.runner.plan import Frontier
from milepost.runner.resolving import Resolution, Resolver
from milepost.runner.run import Run
from milepost.runner.run_state import (
    NEEDS_RESOLVE,
    HeadRecords,
    RunState,
    left_record,
    read_head_records,
    resume_record,
    started_record,
)
from milepost.runner.settings import LEASE_WAIT_MAX_S, Environment, Settings
from milepost.runner.stage import NEVER, Branch, Stage
from milepost.runner.step import Step
from milepost.runner.stored_run import StoredRun
from milepost.runner.workflow import Workflow
from milepost.types import CANCEL_SIGNAL, Checkpoint, LeaseInfo, PendingSignal, Record, RecordOutcome, Signal, Status

__all__ = ["ENDED", "Engine"]

S = TypeVar("S")

ENDED: Final = frozenset({Status.COMPLETED, Status.CANCELLED})
SUBMIT_WAIT_S: Final = 0.5
"""How long a submission waits for a lease before it looks again whether the workflow has begun."""


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
        keeps_records: bool,
        uses_lease: bool,
        takes_encoded: bool,
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
        self._uses_lease = uses_lease and not order.is_nested
        self._failures = Failures(order.workflow_id, order.scope, settings, environment)
        self._stored = StoredRun(
            workflow, order, settings=settings, codec=codec, notices=self.notices, failures=self._failures
        )
        self._journal: Journal | None = None
        self._frontier = Frontier(self._definition)
        self._records = HeadRecords()
        self._known = KnownProgress()
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

    def leaving(self, failure: BaseException | None) -> Leave | None:
        """Return how to give the lease back now that a flow has ended; None where there is none to give back.

        Args:
            failure: What ended the flow; None: it came to its end.
        """
        if isinstance(failure, LeaseError) or not self.holds_lease:
            return None
        if isinstance(failure, crash_points.SimulatedCrash):
            return None if failure.keeps_lease else Leave(None)
        journal = self._journal
        if journal is None or not self._resume_head or journal.head_id != self._resume_head:
            return Leave(None)
        if isinstance(failure, Exception):
            return Leave(None)
        # A resume that ends on purpose where it began: it was no crash.
        return Leave(AppendRecords("", journal.head_id, [left_record(self._order.workflow_id, self.run_id)]))

    def lease_stays(self, error: Exception) -> None:
        """Note that the lease could not be given back."""
        logger.info(
            "workflow %r: its lease is not given back (%s) and runs out by itself",
            self._order.workflow_id,
            type(error).__name__,
        )

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
            except SaveRefusedError as refused:
                yield from self._fail_refused(refused)

    def submit(self) -> Flow[bool]:
        """Store the input for somebody else to run. Returns whether the workflow is new."""
        clock = self._environment.clock
        give_up_at = clock() + self._lease_wait_s
        while True:
            try:
                yield from self._begin(releases=self.holds_lease)
            except (HeadMovedError, WorkflowExistsError):
                head = yield from self._stored.load_head()
                if head is None:
                    raise
                break
            except LeaseHeldError:
                head = yield from self._stored.load_head()
                if head is not None:
                    break
                # Whoever holds the lease is about to begin, or has died before that.
                if not self._uses_lease or clock() >= give_up_at:
                    raise
                with suppress(LeaseHeldError):
                    yield from self._take_lease(SUBMIT_WAIT_S)
            else:
                return True
        if head.definition not in {"", self._workflow.name}:
            raise self._failures.other_definition(head.definition, self._workflow.name)
        yield from self._stored.check_input((yield from self._stored.run_state(head)))
        return False

    def cancel(self) -> Flow[None]:
        """Save the workflow as cancelled, unless it has ended already. Its state and definition stay as they are."""
        head = yield from self._take_over()
        if head.status in ENDED:
            return
        self._use((yield from self._stored.run_state(head)), Entries.of(head.state, self._codec), head, as_it_is=True)
        yield from self._save_cancelled()

    def resolve(self, step_id: str, resolution: Resolution, left: Any, item_key: str | None = None) -> Flow[None]:
        """Say how a step goes on that a resume refuses to run. See `Runner.resolve`."""
        head = yield from self._take_over()
        if head.status in ENDED:
            raise ValueError(f"workflow {self._order.workflow_id!r} has ended: there is nothing to resolve")
        yield from self._adopt(head, (yield from self._stored.run_state(head)))
        resolver = Resolver(
            self._order.workflow_id,
            self._workflow,
            codec=self._codec,
            records=self._records,
            known=self._known,
            frontier=self._frontier,
            journal=self._the_journal,
            failures=self._failures,
        )
        status, standing = resolver.resolve(step_id, resolution, left, item_key)
        yield from self._save(status, records=standing, releases=True)

    def _take_over(self) -> Flow[Checkpoint]:
        if self._uses_lease:
            yield from self._take_lease()
        head = yield from self._stored.load_head()
        assert head is not None, "an order to resume never begins a workflow"
        return head

    def _run(self) -> Flow[Run[S]]:
        head = yield from self._stored.load_head()
        if head is None:
            yield from self._begin()
        else:
            self._is_resumed = True
            if self._order.kind == "start":
                raise self._failures.exists()
            state = yield from self._stored.run_state(head)
            yield from self._stored.check_input(state)
            if head.status is Status.COMPLETED:
                # Its result is its result, whatever has become of the definition.
                return self._stored_result(head, state)
            if head.status is Status.CANCELLED:
                raise self._failures.cancelled()
            yield from self._adopt(head, state)
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
            and not self._the_journal.is_dirty
            and self._environment.clock() < self._deadline_at
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
                yield from self._save(Status.COMPLETED, releases=True)
                return self._outcome("completed")
            stage, waiting = self._choose_stage()
            if not stage:
                return (yield from self._wait_for_signal(waiting))
            yield from self._run_stage(stage)
            if journal.status is Status.COMPLETED:
                return self._outcome("completed")

    # Lease and load.

    @property
    def _lease_wait_s(self) -> float:
        """Longest wait for a lease: as long as a host that is dead would keep it, unless the order says otherwise."""
        wait_s, settings = self._order.lease_wait_s, self._settings
        return settings.lease_ttl_s + settings.lease_margin_s if wait_s is None else wait_s

    def _take_lease(self, budget_s: float | None = None) -> Flow[None]:
        settings = self._settings
        if budget_s is None:
            budget_s = self._lease_wait_s
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

    def _begin(self, *, releases: bool = False) -> Flow[None]:
        entries = self._stored.input
        assert entries is not None
        first = self._environment.new_id()
        state = RunState(first=first, input=entries.digest(), schema=self._workflow.schema_version)
        state.input_schema = state.schema
        self._use(state, entries, None)
        self._frontier = Frontier(self._definition)
        self._the_journal.touch()
        yield from self._save(Status.RUNNING, releases=releases)

    def _adopt(self, head: Checkpoint, state: RunState) -> Flow[None]:
        """Take over what is stored, as this definition has it."""
        records = self._records = read_head_records(head.records, self._order.workflow_id)
        finished, newly_named = yield from self._stored.check_definition(head, state, records)
        entries, is_migrated = self._stored.entries(head, state)
        self._use(state, entries, head)
        self._frontier = Frontier(self._definition, finished)
        if newly_named:
            self._the_journal.finish(newly_named, entries, last_step=head.current_step)
        if is_migrated or state.changed:
            self._the_journal.touch()
        if head.status is not Status.WAITING:
            state.waiting_for = ""
        unfinished = (step for step in self._definition.steps.values() if step.id not in self._frontier.completed)
        self._known = KnownProgress(records, unfinished)
        if records.are_copied:
            self._the_journal.leave_head()

    def _use(self, state: RunState, entries: Entries, head: Checkpoint | None, *, as_it_is: bool = False) -> None:
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
            definition=head.definition if as_it_is and head is not None else self._workflow.name,
            fingerprint=head.fingerprint if as_it_is and head is not None else manifest.fingerprint,
            manifest="" if known or as_it_is else manifest.text,
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
            # It is kept even where the run comes no further.
            self._the_journal.touch()
        deadlines = [one for one in (state.deadline, self._order.deadline) if one is not None]
        self.frame.deadline = min(deadlines, default=None)
        if self.frame.deadline is not None:
            self._deadline_at = self._environment.clock() + self.frame.deadline - now

    def _stored_result(self, head: Checkpoint, state: RunState) -> Run[S]:
        entries, _ = self._stored.entries(head, state)
        return Run(
            workflow_id=self._order.workflow_id,
            state=self._stored.state_of(entries, head.checkpoint_id),
            status="completed",
            checkpoint_id=head.checkpoint_id,
            sequence=head.sequence,
            resumed=True,
        )

    def _outcome(self, status: Literal["completed", "waiting", "suspended"], waiting_for: str = "") -> Run[S]:
        journal = self._the_journal
        return Run(
            workflow_id=self._order.workflow_id,
            state=self._stored.state_of(journal.entries, journal.head_id),
            status=status,
            checkpoint_id=journal.head_id,
            sequence=journal.sequence,
            resumed=self._is_resumed,
            waiting_for=waiting_for,
        )

    def _refuse_unresolved(self, head: Checkpoint) -> None:
        if head.status is not Status.FAILED:
            return
        for failure in self._records.failures:
            if failure.kind in NEEDS_RESOLVE:
                raise self._failures.unresolved(failure)

    def _count_resume(self, step: Step[Any]) -> Flow[None]:
        """Note durably that a run goes on from here; fail where too many have without progress."""
        journal = self._the_journal
        self._resume_head = journal.head_id
        if self._order.scope or not self._keeps_records:
            return
        count = len(self._records.resumes)
        if count >= self._settings.crash_limit:
            failure = self._failures.failure(step.id, "crash_limit", attempts=count)
            yield from self._save(
                Status.FAILED,
                records=[self._failures.record(step.id, failure)],
                releases=True,
            )
            raise self._failures.unresolved(failure)
        yield from journal.append([resume_record(self._order.workflow_id, self.run_id)])

    # Between stages.

    def _boundary(self) -> Flow[None]:
        """Take in what has happened, and end the run where it says so."""
        notices = self.notices
        yield from self._the_journal.until_renewed()
        if notices.queue_error is not None:
            raise notices.queue_error
        if notices.is_stopped:
            raise self._stopped()
        if notices.pending_count and not self._order.scope:
            if not notices.is_complete and not notices.cancel_ids:
                yield from self._look_for(CANCEL_SIGNAL)
            if notices.cancel_ids:
                yield from self._save_cancelled()
                raise self._failures.cancelled()
        if self._environment.clock() >= self._deadline_at:
            yield from self._end_late(())
        if notices.is_suspended:
            yield from self._suspend()

    def _stopped(self) -> StepCancelledError:
        return StepCancelledError(f"workflow {self._order.workflow_id!r} was asked to end")

    def _look_for(self, name: str) -> Flow[None]:
        """Ask for signals of a name, where there are more than an answer lists."""
        signals: Sequence[Signal] = yield ReadSignals(name)
        listed = {one.signal_id for one in self.notices.pending}
        found = tuple(PendingSignal(signal_id=one.signal_id, name=one.name) for one in signals)
        self.notices.pending = (*self.notices.pending, *(one for one in found if one.signal_id not in listed))

    def _suspend(self) -> Flow[NoReturn]:
        if not self._the_journal.is_durable:
            yield from self._save(Status.RUNNING, releases=True)
            yield from self._the_journal.drain()
        raise _SuspendedError

    def _save_cancelled(self, records: Sequence[Record] = ()) -> Flow[None]:
        journal = self._the_journal
        yield from journal.drain()
        yield from self._save(Status.CANCELLED, signals=self.notices.cancel_ids, records=records, releases=True)

    def _end_late(self, branches: Sequence[Branch]) -> Flow[NoReturn]:
        late = [one.step.id for one in branches if one.status != "finished"]
        late = late or [step.id for step in self._frontier.stage()]
        step_id = late[0] if late else ""
        records: list[Record] = []
        if self._keeps_records:
            records = self._branch_records(branches)
            failed = self._failures.branch_records(branches)
            records += failed or [self._failures.record(step_id, self._failures.failure(step_id, "deadline"))]
        late_error = self._failures.late(step_id)
        try:
            yield from self._save(Status.FAILED, records=records, releases=True)
        except LeaseLostError as lost:
            raise lost from late_error
        except MilepostError as unsaved:
            self._failures.unstored(late_error, unsaved)
        raise late_error

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
                yield from self._save(Status.WAITING, records=records)
            raise ChildWaitsError(name)
        if journal.status is not Status.WAITING or journal.is_dirty or journal.state.waiting_for != name or records:
            journal.state.waiting_for = name
            yield from journal.drain()
            yield from self._save(Status.WAITING, records=records, releases=True)
            if any(self.notices.signal_id(one) is not None for one in names):
                raise _SignalCameError
        return self._outcome("waiting", name)

    def _run_stage(self, steps: Sequence[Step[Any]]) -> Flow[None]:
        journal = self._the_journal
        has_items = any(step.for_each is not None for step in steps)
        keeps = self._keeps_records and (len(steps) > 1 or has_items) and self._settings.durability != "exit"
        if keeps or any(step.at_most_once or step.waits_for is not None for step in steps):
            # Records go to a checkpoint that holds all they build on, and what may run once may not be run for nothing.
            journal.begin_records()
            yield from self._flush()
        try:
            branches = make_branches(
                steps, journal.entries, self._workflow.state_type, journal.state.iterations, is_kept=keeps
            )
        except Exception as error:  # noqa: BLE001  the user's key may raise anything, and fails its step
            yield from self._fail_step(steps[0], error, ())
            return
        yield from self._give_signals(branches)
        for branch, attempt_id in recall(branches, self._known, self._codec):
            raise self._failures.outcome_unknown(branch.step.id, branch.item_key, attempt_id)
        if self._is_resumed and not self._resume_head:
            yield from self._count_resume(steps[0])
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
            keep=self._keep if keeps and len(branches) > 1 else None,
        )
        yield from stage.run()
        yield from self._settle(steps, stage)

    def _give_signals(self, branches: Sequence[Branch]) -> Flow[None]:
        for branch in branches:
            if branch.step.waits_for is not None:
                signals: Sequence[Signal] = yield ReadSignals(branch.step.waits_for)
                if not signals:
                    # Only a save consumes signals, and only the holder of the lease saves.
                    raise MilepostError(f"the signal {branch.step.waits_for!r} was pending and is no more")
                branch.signal_id, branch.signal = signals[0].signal_id, signals[0].value

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
                raise self._failures.outcome_unknown(branch.step.id, branch.item_key, found or "")
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
        if all(branch.status == "finished" for branch in branches):
            yield from self._commit(steps, branches)
            return
        yield from self._the_journal.drain()
        kept = self._branch_records(branches)
        if notices.is_stopped:
            if not self._the_journal.is_durable:
                yield from self._save(Status.RUNNING, records=kept)
            raise self._stopped()
        if notices.cancel_ids and not self._order.scope:
            yield from self._save_cancelled([*kept, *self._failures.branch_records(branches)])
            raise self._failures.cancelled()
        if stage.is_late:
            yield from self._end_late(branches)
        if failed := [branch for branch in branches if branch.status == "failed"]:
            yield from self._fail(failed, kept)
        if stage.waits_for:
            run = yield from self._save_waiting(stage.waits_for, kept)
            raise _WaitsError(run)
        yield from self._suspend()

    def _commit(self, steps: Sequence[Step[Any]], branches: Sequence[Branch]) -> Flow[None]:
        """Take over what a finished stage left, and save it."""
        journal, turns = self._the_journal, self._the_journal.state.iterations
        try:
            entries = state_after(steps, branches, journal.entries, self._workflow)
            repeated = repeated_steps(steps, entries, turns, self._workflow)
        except StageProblemError as problem:
            yield from self._fail_step(problem.step, problem.error, self._branch_records(branches))
            return
        undo = self._undo(steps)
        for step in steps:
            if step.id in repeated:
                turns[step.id] = turns.get(step.id, 0) + 1
            else:
                turns.pop(step.id, None)
        self._known.forget(step.id for step in steps)
        finished = [step.id for step in steps if step.id not in repeated]
        self._frontier.finish(finished)
        signals = [branch.signal_id for branch in branches if branch.signal_id]
        journal.finish(finished, entries, last_step=steps[-1].id, signals=signals)
        journal.state.waiting_for = ""
        try:
            if self._frontier.is_finished:
                yield from self._save(Status.COMPLETED, releases=True)
            elif self._settings.durability != "exit" and any(step.checkpoint for step in steps):
                yield from self._save(Status.RUNNING, is_optional=self._settings.on_save_error == "continue")
        except InvalidRequestError as refused:
            # The store will never take what they left: too much of it, or a name that it does not allow.
            undo()
            kept = self._branch_records(branches) if len(branches) > 1 else ()
            yield from self._fail_unstorable(steps, refused, kept)

    def _undo(self, steps: Sequence[Step[Any]]) -> Callable[[], None]:
        """Return what puts everything back to where it is now, before a stage is taken in."""
        journal, known, state = self._the_journal, self._known, self._the_journal.state
        back = journal.mark()
        kept = known.branches, known.started
        turns = dict(state.iterations)
        waiting_for = state.waiting_for

        def undo() -> None:
            back()
            known.branches, known.started = kept
            state.iterations = turns
            state.waiting_for = waiting_for
            self._frontier = Frontier(self._definition, self._frontier.completed - {step.id for step in steps})

        return undo

    def _fail_step(self, step: Step[Any], error: Exception, kept: Sequence[Record]) -> Flow[None]:
        yield from self._fail([_failed_branch(step, error)], kept)

    def _fail_unstorable(
        self, steps: Sequence[Step[Any]], refused: InvalidRequestError, kept: Sequence[Record]
    ) -> Flow[None]:
        """Fail steps of whose results the store will never take one."""
        failed = [_failed_branch(step, refused) for step in steps]
        error = self._failures.unstorable(failed, refused)
        try:
            yield from self._fail(failed, kept, error)
        except StepFailedError:
            logger.warning("%s", error)
            raise

    def _fail_refused(self, refused: SaveRefusedError) -> Flow[None]:
        """Fail the steps whose checkpoint the store will never take, behind what is durable."""
        error = refused.error
        steps = [self._definition.steps[one] for one in refused.step_ids if one in self._definition.steps]
        if not steps:
            raise error
        deadline = self._the_journal.state.deadline
        try:
            # What ran since is not stored and builds on what was refused: the store knows where the run stands.
            head = yield from self._stored.load_head()
            assert head is not None, "only what has begun is saved again"
            yield from self._adopt(head, (yield from self._stored.run_state(head)))
        except MilepostError as unread:
            failed = [_failed_branch(step, error) for step in steps]
            raise self._failures.unstored(self._failures.unstorable(failed, error), unread) from error
        self._the_journal.state.deadline = deadline
        yield from self._fail_unstorable(steps, error, ())

    def _fail(
        self, failed: Sequence[Branch], kept: Sequence[Record], error: StepFailedError | None = None
    ) -> Flow[NoReturn]:
        error = error or self._failures.of_branches(failed)
        records = [*kept, *self._failures.branch_records(failed)] if self._keeps_records else []
        journal = self._the_journal
        try:
            yield from journal.drain()
            yield from self._save(Status.FAILED, records=records, releases=True)
        except LeaseLostError as lost:
            raise lost from error
        except MilepostError as unsaved:
            if isinstance(unsaved, InvalidRequestError) and journal.unsaved_steps:
                # It is what steps before these left that is not taken.
                raise SaveRefusedError(journal.unsaved_steps, unsaved) from error
            self._failures.unstored(error, unsaved)
        raise error

    def _save(
        self,
        status: Status,
        *,
        records: Sequence[Record] = (),
        signals: Sequence[str] = (),
        releases: bool = False,
        is_optional: bool = False,
    ) -> Flow[None]:
        """Save a checkpoint, and with it what is known of steps that are still to be finished."""
        if status not in ENDED and self._keeps_records:
            given = {record.task_id for record in records}
            known = self._known.to_records(self._order.workflow_id)
            records = [*records, *(record for record in known if record.task_id not in given)]
        yield from self._the_journal.save(
            status,
            records=records,
            signals=signals,
            releases=releases and self._uses_lease,
            is_optional=is_optional,
        )

    def _flush(self) -> Flow[None]:
        """Make everything so far durable, in whatever mode."""
        if self._the_journal.is_dirty:
            yield from self._save(Status.RUNNING)
        yield from self._the_journal.drain()

    @property
    def _the_journal(self) -> Journal:
        assert self._journal is not None, "made when the workflow is begun or adopted"
        return self._journal

    def _branch_records(self, branches: Sequence[Branch]) -> list[Record]:
        if not self._keeps_records:
            return []
        return branch_records(branches, self._order.workflow_id)


def _failed_branch(step: Step[Any], error: Exception) -> Branch:
    branch = Branch(step, step.id)
    branch.attempt_count = 1
    branch.fail(error, "error")
    return branch


class _WaitsError(Exception):
    """A child waits, and so does the run: its outcome."""

    def __init__(self, run: Run[Any]) -> None:
        super().__init__(run.waiting_for)
        self.run = run
