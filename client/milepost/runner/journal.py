"""What of a run is durable, what is not yet, and how it becomes so. Sans-IO.

The journal holds the state between two stages. Steps finish into it; `save` makes a checkpoint of it, with all that was
not saved before. A save whose outcome is unknown is sent again under the same id until an answer comes or the outage
limit is over, so that a step is never recorded twice and never dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from milepost.errors import (
    CapacityError,
    CheckpointNotFoundError,
    DeadlineError,
    OutcomeUnknownError,
    UnavailableError,
)
from milepost.runner.context import logger
from milepost.runner.events import POLL, AppendRecords, Drain, Effect, Enqueue, Flow, NextEvent, SaveCheckpoint, Sleep
from milepost.runner.notices import Notices
from milepost.runner.patches import Entries
from milepost.runner.run_state import RunState
from milepost.runner.settings import Environment, Settings
from milepost.types import After, Checkpoint, Record, RecordOutcome, Saved, SaveItem, Status

__all__ = ["Journal"]

T = TypeVar("T")

PASSING: Final = (UnavailableError, DeadlineError, OutcomeUnknownError, CapacityError)
"""Refusals that another try may not meet."""
PAUSE_INITIAL_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0


class Journal:
    """The state of one run in one scope, and its line of checkpoints.

    Args:
        state: What the metadata of each checkpoint carries; may be changed at any time.
        entries: The state now.
        after: The head; None before the first checkpoint.
        takes_encoded: The store takes entries as they are encoded here.
        definition, fingerprint, manifest: What the workflow belongs to; the manifest goes with the first save only.
    """

    def __init__(
        self,
        workflow_id: str,
        scope: str,
        *,
        state: RunState,
        entries: Entries,
        after: Checkpoint | None,
        run_id: str,
        definition: str,
        fingerprint: str,
        manifest: str,
        settings: Settings,
        environment: Environment,
        notices: Notices,
        takes_encoded: bool,
    ) -> None:
        self.state = state
        self.entries = entries
        self.last_step = "" if after is None else after.current_step
        """The step that was finished last."""
        self.status = Status.RUNNING if after is None else after.status
        """Status of the head."""
        self.head_id = "" if after is None else after.checkpoint_id
        """Id of the newest checkpoint that is known to be durable."""
        self.sequence = 0 if after is None else after.sequence
        """Its sequence."""
        self.lease_token = 0
        self.is_released = False
        """A save has given the lease back."""
        self._workflow_id = workflow_id
        self._scope = scope
        self._after: After = "start" if after is None else after
        self._run_id = run_id
        self._definition = definition
        self._fingerprint = fingerprint
        self._manifest = manifest
        self._settings = settings
        self._environment = environment
        self._notices = notices
        self._takes_encoded = takes_encoded
        self._unsaved_steps: list[str] = []
        self._unsaved_signals: list[str] = []
        self._is_dirty = False
        # A head that was saved under another definition says what was begun under that one.
        self._leaves_head = after is not None and after.fingerprint != fingerprint
        self._is_queued = False
        self._owed: dict[str, Any] | None = None

    @property
    def is_durable(self) -> bool:
        """Everything is in a checkpoint that was acknowledged."""
        return not self._is_dirty and not self._is_queued

    @property
    def is_dirty(self) -> bool:
        """Something is in no checkpoint yet."""
        return self._is_dirty

    @property
    def unsaved_steps(self) -> Sequence[str]:
        """Finished steps that are in no checkpoint yet."""
        return self._unsaved_steps

    def touch(self) -> None:
        """Note that the state differs from the head's."""
        self._is_dirty = True

    def begin_records(self) -> None:
        """Note that records are about to be kept, where the head is the place for them."""
        self._is_dirty = self._is_dirty or self._leaves_head

    def leave_head(self) -> None:
        """Note that records are to be kept beside a checkpoint of its own, not beside this head."""
        self._leaves_head = True

    def finish(self, step_ids: Iterable[str], entries: Entries, *, last_step: str, signals: Iterable[str] = ()) -> None:
        """Take in steps that are finished, and the state they left."""
        self._unsaved_steps.extend(step_ids)
        self._unsaved_signals.extend(signals)
        self.entries = entries
        self.last_step = last_step
        self._is_dirty = True

    def mark(self) -> Callable[[], None]:
        """Return what takes back the steps that are taken in from now on, where the store refuses them."""
        entries, last_step, is_dirty = self.entries, self.last_step, self._is_dirty
        # Both only grow until they are saved: a copy for each step of a run that saves at its end would be most of it.
        steps, signals = self._unsaved_steps, self._unsaved_signals
        step_count, signal_count = len(steps), len(signals)

        def back() -> None:
            self.entries, self.last_step, self._is_dirty = entries, last_step, is_dirty
            self._unsaved_steps, self._unsaved_signals = steps[:step_count], signals[:signal_count]

        return back

    def save(
        self,
        status: Status,
        *,
        records: Sequence[Record] = (),
        signals: Sequence[str] = (),
        releases: bool = False,
        is_optional: bool = False,
    ) -> Flow[None]:
        """Store a checkpoint of everything so far; when this returns it is durable, or queued.

        Args:
            status: Its status. Only RUNNING ones are queued.
            records: Stored with it.
            signals: Ids of signals it takes in.
            releases: Give the lease back with it.
            is_optional: If the store does not take it now, it goes with the next one.

        Raises:
            MilepostError: It is not stored, or that cannot be known.
        """
        arguments = self._arguments(status, records, [*self._unsaved_signals, *signals], releases=releases)
        may_queue = status is Status.RUNNING and not records and not releases and not isinstance(self._after, str)
        if may_queue and self._settings.durability == "pipelined":
            item = SaveItem(workflow_id=self._workflow_id, **arguments)
            if not (yield Enqueue(item, is_optional)):
                self._log_not_saved("too many before it are on their way")
                return
            self._after = item
            self._is_queued = True
            self._is_saved(status)
            return
        yield from self.drain()
        if is_optional:
            try:
                yield from self._pay(patient=False)
                saved = yield from self._send(arguments, patient=False)
            except PASSING as error:
                self._log_not_saved(type(error).__name__)
                if self._owed is arguments:
                    # It may be stored: what it holds is sent again as it is, before anything else.
                    self._is_saved(status)
                    self._is_dirty = True
                return
        else:
            yield from self._pay(patient=True)
            saved = yield from self._send(arguments, patient=True)
        self._take(saved)
        self._is_saved(status)
        self.is_released = self.is_released or releases

    def flush(self) -> Flow[None]:
        """Make everything so far durable, in whatever mode."""
        if self._is_dirty:
            yield from self.save(Status.RUNNING)
        yield from self.drain()

    def drain(self) -> Flow[None]:
        """Wait until everything that was queued is durable."""
        if self._is_queued:
            saved: Saved | None = yield Drain()
            self._is_queued = False
            if saved is not None:
                self._take(saved)

    def append(self, records: Sequence[Record]) -> Flow[list[RecordOutcome]]:
        """Append records to the head; when this returns they are durable. What they build on must be in the head."""
        assert not self._is_queued, "there is a newer checkpoint on its way"
        effect = AppendRecords(self._scope, self.head_id, records)
        outcomes: list[RecordOutcome] = yield from self._patiently(lambda: effect, patient=True, polls=False)
        return outcomes

    def _arguments(
        self, status: Status, records: Sequence[Record], signals: Sequence[str], *, releases: bool
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "state": self.entries.encoded() if self._takes_encoded else self.entries.values(),
            "current_step": self.last_step,
            "after": self._after,
            "checkpoint_id": self.state.first if isinstance(self._after, str) else self._environment.new_id(),
            "status": status,
            "metadata": self.state.to_metadata(),
            "scope": self._scope,
            "completed_steps": tuple(self._unsaved_steps),
            "run_id": self._run_id,
        }
        if records:
            arguments["records"] = records
        # The name is the root's, for a workflow belongs to one definition. Each scope has a manifest of its own.
        if not self._scope:
            arguments["definition"] = self._definition
        arguments["fingerprint"] = self._fingerprint
        if self._manifest:
            arguments["manifest"] = self._manifest
        if self.lease_token:
            arguments["lease_token"] = self.lease_token
            if releases:
                arguments["release_lease"] = True
        if signals:
            arguments["consumed_signals"] = tuple(dict.fromkeys(signals))
        return arguments

    def _is_saved(self, status: Status) -> None:
        self.status = status
        self._unsaved_steps = []
        self._unsaved_signals = []
        self._is_dirty = self._leaves_head = False
        self._manifest = ""

    def _take(self, saved: Saved) -> None:
        self._after = saved
        self.head_id = saved.checkpoint_id
        self.sequence = saved.sequence
        self._notices.saw(saved.pending_signals, saved.pending_signal_count)

    def _pay(self, *, patient: bool) -> Flow[None]:
        """Learn what became of a save that was left behind with an unknown outcome, by sending it again."""
        if self._owed is not None:
            owed = self._owed
            saved = yield from self._send(owed, patient=patient)
            self._owed = None
            self._take(saved)

    def _send(self, arguments: dict[str, Any], *, patient: bool) -> Flow[Saved]:
        def effect() -> Effect:
            if arguments["after"] is not self._after and arguments is not self._owed:
                arguments["after"] = self._after
            return SaveCheckpoint(arguments)

        try:
            saved: Saved = yield from self._patiently(effect, patient=patient, polls=True)
        except (OutcomeUnknownError, DeadlineError):
            # A store may call it a deadline that an answer has not come.
            self._owed = arguments
            raise
        return saved

    def _patiently(self, effect: Callable[[], Effect], *, patient: bool, polls: bool) -> Flow[Any]:
        """Send something that bears repeating until it is answered, at most for as long as an outage may last.

        Args:
            effect: Makes what to send.
            patient: Try again at all.
            polls: Events may be taken in meanwhile. Not so while steps run: theirs belong to the stage.
        """
        clock = self._environment.clock
        give_up_at = clock() + self._settings.outage_limit_s
        pause_s = PAUSE_INITIAL_S
        is_unknown: OutcomeUnknownError | None = None
        while True:
            if polls:
                yield from self.until_renewed()
            try:
                return (yield effect())
            except CheckpointNotFoundError:
                raise
            except PASSING as error:
                if isinstance(error, OutcomeUnknownError):
                    is_unknown = error
                if not patient or self._notices.is_overdue or clock() + pause_s > give_up_at:
                    # An earlier try may have been stored, whatever the last one met.
                    raise is_unknown or error from error
                logger.warning(
                    "workflow %r: the store does not answer (%s); trying again in %.3g s",
                    self._workflow_id,
                    type(error).__name__,
                    pause_s,
                )
            yield Sleep(pause_s * (0.5 + self._environment.random() / 2))
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def until_renewed(self) -> Flow[None]:
        """Take in what has happened, and wait while the lease may have run out. Not while steps run.

        Raises:
            Exception: What ended the lease.
        """
        notices = self._notices
        while (event := (yield POLL)) is not None:
            notices.note(event)
        while notices.is_paused and notices.gone is None:
            if notices.is_overdue:
                raise UnavailableError(
                    f"workflow {self._workflow_id!r} was to be suspended while the store does not answer: nothing more "
                    "is saved",
                    workflow_id=self._workflow_id,
                )
            notices.note((yield NextEvent(None)))
        if notices.gone is not None:
            raise notices.gone

    def _log_not_saved(self, why: str) -> None:
        logger.warning(
            "workflow %r, scope %r: step %r is not saved yet (%s); it goes with the next checkpoint",
            self._workflow_id,
            self._scope,
            self.last_step,
            why,
        )
