"""What passes between the engine and a driver: effects out, answers and events in.

The engine is a generator. What it yields is an effect that the driver carries out, and each falls under one of two:

- A **request** (`AcquireLease`, `LoadHead`, `SaveCheckpoint`, …) is answered: the driver sends the answer into the
  generator, or throws the error that it met.
- An **order** (`StartAttempt`, `CancelAttempt`, `Enqueue`) is begun, and answered with None at once. What becomes of an
  attempt comes later, as an event.

`NextEvent` is the one request that waits for whatever happens first: an attempt that ended, a notice from outside, or
the moment the engine asked to be woken at (then the answer is None). So the engine never reads from a channel, never
sleeps, and needs no lock: whatever happens, happens to it in one order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from milepost.errors import InvalidRequestError
from milepost.types import CANCEL_SIGNAL, PendingSignal, Record, SaveItem

if TYPE_CHECKING:
    from milepost.runner.attempt import Attempt

T = TypeVar("T")

SIGNALS_MAX: Final = 100
"""Most signals of a name that are read at once."""


@dataclass(frozen=True, slots=True)
class AcquireLease:
    """Request: take the workflow's lease. Answer: `LeaseInfo`."""

    ttl_s: float
    wait_s: float
    request_id: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Request: give the lease back. Nothing waits for it longer than `_leases.RELEASE_S`. Answer: None."""

    parting: AppendRecords | None
    """Appended before, where it says why."""


@dataclass(frozen=True, slots=True)
class LoadHead:
    """Request: read the head of a scope with its records. Answer: `Checkpoint`."""

    scope: str


@dataclass(frozen=True, slots=True)
class LoadAncestor:
    """Request: read a checkpoint of a scope that is not its head. Answer: `Checkpoint`."""

    scope: str
    checkpoint_id: str
    with_state: bool = False


@dataclass(frozen=True, slots=True)
class LoadManifest:
    """Request: read a stored definition. Answer: its text."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class ReadSignals:
    """Request: read the pending signals of a name. Answer: at most `SIGNALS_MAX` of them, oldest first."""

    name: str


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """Request: store one checkpoint. Answer: `Saved`."""

    arguments: Mapping[str, Any] = field(repr=False)
    """The keyword arguments of the store's `save`."""


@dataclass(frozen=True, slots=True)
class AppendRecords:
    """Request: append records to a checkpoint that exists. Answer: a list of `RecordOutcome`."""

    scope: str
    checkpoint_id: str
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Order: store a checkpoint behind those queued before it, while the run goes on. Answer: whether it is queued."""

    item: SaveItem = field(repr=False)
    is_optional: bool = False
    """Where the queue is full: do not wait for a store that takes nothing now, and do not queue it."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Request: wait until everything queued is durable. Answer: the newest `Saved`, or None where there is none."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Request: wait. Events stay where they are until somebody asks for the next one."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Order: call a step once."""

    attempt: Attempt
    may_block: bool
    """Nothing else has to happen meanwhile: a blocking driver may call the step in its own thread."""


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Order: ask an attempt to end. It may take its time, or never end."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class NextEvent:
    """Request: wait for the next event. Answer: the event, or None once `until` has come."""

    until: float | None
    """A reading of the clock; None: without end. One that is past asks what has happened already."""


POLL: Final = NextEvent(float("-inf"))
"""Asks for what has happened already."""


Effect: TypeAlias = (
    AcquireLease
    | LoadHead
    | LoadAncestor
    | LoadManifest
    | ReadSignals
    | SaveCheckpoint
    | AppendRecords
    | Enqueue
    | Drain
    | Sleep
    | StartAttempt
    | CancelAttempt
    | NextEvent
)

Flow: TypeAlias = Generator[Effect, Any, T]
"""A part of the engine: yields effects, is sent their answers, returns a T."""


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt has returned or raised."""

    attempt: Attempt
    result: Any = field(default=None, repr=False)
    """What it left: a patch, or for an item the item's encoded result."""
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class LeasePaused:
    """The lease may run out before it is renewed: nothing may be started or saved until it is."""


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    """The lease was renewed after a pause."""


@dataclass(frozen=True, slots=True)
class LeaseGone:
    """The lease is lost, or could not be renewed for too long: the run ends without saving anything."""

    error: Exception


@dataclass(frozen=True, slots=True)
class SignalsPending:
    """What is pending now, as a renewal said it."""

    signals: tuple[PendingSignal, ...]
    count: int


@dataclass(frozen=True, slots=True)
class SuspendRequested:
    """Stop at the next step boundary; or at once, where the time for that is over."""

    is_overdue: bool = False


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The step that this nested run belongs to was cancelled."""


@dataclass(frozen=True, slots=True)
class QueueFailed:
    """A queued checkpoint could not be stored."""

    error: BaseException


class SaveRefusedError(Exception):
    """The store will never take a checkpoint. What came before it is stored, what came after is not.

    Attributes:
        step_ids: The steps whose results it holds.
        error: Why.
    """

    def __init__(self, step_ids: Iterable[str], error: InvalidRequestError) -> None:
        self.step_ids = tuple(dict.fromkeys(step_ids))
        self.error = error
        super().__init__(self.step_ids, error)


Event: TypeAlias = (
    AttemptEnded
    | LeasePaused
    | LeaseRenewed
    | LeaseGone
    | SignalsPending
    | SuspendRequested
    | StopRequested
    | QueueFailed
)


def cancels_steps(event: Event) -> bool:
    """Tell whether steps that run should hear of an event at once, even while the engine cannot."""
    match event:
        case LeasePaused() | LeaseGone() | StopRequested():
            return True
        case SuspendRequested(is_overdue):
            return is_overdue
        case SignalsPending(signals):
            return any(signal.name == CANCEL_SIGNAL for signal in signals)
        case _:
            return False
