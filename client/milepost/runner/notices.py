"""What has come from outside since a run began: the part of the engine's memory that every phase looks at."""

from __future__ import annotations

from milepost.runner.events import (
    Event,
    LeaseGone,
    LeasePaused,
    LeaseRenewed,
    QueueFailed,
    SignalsPending,
    StopRequested,
    SuspendRequested,
)
from milepost.types import CANCEL_SIGNAL, PendingSignal


class Notices:
    """Flags and pending signals; `note` takes in one event."""

    __slots__ = (
        "gone",
        "is_overdue",
        "is_paused",
        "is_stopped",
        "is_suspended",
        "pending",
        "pending_count",
        "queue_error",
    )

    def __init__(self) -> None:
        self.is_paused = False
        """The lease may run out: nothing is started or saved."""
        self.is_suspended = False
        """Stop at the next step boundary."""
        self.is_overdue = False
        """The time to reach one is over: cancel what runs."""
        self.is_stopped = False
        """The step that this nested run belongs to was cancelled."""
        self.gone: Exception | None = None
        """Why the run ends and saves nothing more: the lease is lost, or the store does not answer."""
        self.queue_error: BaseException | None = None
        """Why a queued checkpoint is not stored."""
        self.pending: tuple[PendingSignal, ...] = ()
        """Signals that wait to be consumed, oldest first, as far as an answer names them."""
        self.pending_count = 0
        """How many there are."""

    def note(self, event: Event) -> None:
        """Take in an event; those of attempts say nothing here."""
        match event:
            case LeasePaused():
                self.is_paused = True
            case LeaseRenewed():
                self.is_paused = False
            case LeaseGone(error):
                self.gone = error
            case SignalsPending(signals, count):
                self.saw(signals, count)
            case SuspendRequested(is_overdue):
                self.is_suspended = True
                self.is_overdue = self.is_overdue or is_overdue
            case StopRequested():
                self.is_stopped = True
            case QueueFailed(error):
                self.queue_error = self.queue_error or error
            case _:
                pass

    def saw(self, signals: tuple[PendingSignal, ...], count: int) -> None:
        """Take in what an answer of the store says is pending."""
        self.pending = signals
        self.pending_count = count

    @property
    def cancel_ids(self) -> tuple[str, ...]:
        """Ids of pending signals that ask the workflow to stop."""
        return (
            tuple(signal.signal_id for signal in self.pending if signal.name == CANCEL_SIGNAL) if self.pending else ()
        )

    @property
    def is_complete(self) -> bool:
        """`pending` names every signal there is."""
        return len(self.pending) >= self.pending_count

    def signal_id(self, name: str) -> str | None:
        """Return the oldest pending signal of a name, or None."""
        for signal in self.pending:
            if signal.name == name:
                return signal.signal_id
        return None
