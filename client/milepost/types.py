"""What the store hands out and takes in: frozen values, the same for clients and in-memory stores.

`repr` shows names and sizes, never a value of the state, of a record or of metadata.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NoReturn, TypeAlias, TypeVar

from typing_extensions import override

from milepost import _schema
from milepost.errors import StateNotLoadedError

__all__ = [
    "CANCEL_SIGNAL",
    "After",
    "Checkpoint",
    "EntryVersion",
    "LeaseInfo",
    "LeaseRenewal",
    "PendingSignal",
    "Record",
    "RecordOutcome",
    "SaveItem",
    "Saved",
    "Signal",
    "SignalSent",
    "Status",
    "WatchAfter",
    "WatchEvent",
    "WatchEventKind",
    "WorkflowInfo",
    "new_checkpoint_id",
]

CANCEL_SIGNAL: Final = "milepost.cancel"
"""Name of the signal that asks a workflow to stop."""

T = TypeVar("T")


class Status(enum.StrEnum):
    """Where a workflow stands after a step."""

    RUNNING = "running"
    """More steps follow."""
    WAITING = "waiting"
    """It goes on when a signal comes."""
    SUSPENDED = "suspended"
    """It was stopped on purpose and may be resumed."""
    COMPLETED = "completed"
    """Finished: the state is the result."""
    FAILED = "failed"
    """A step failed."""
    CANCELLED = "cancelled"
    """It was cancelled."""

    @classmethod
    @override
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"a status is one of {', '.join(cls)}, not {value!r}")


class RecordOutcome(enum.StrEnum):
    """What became of an appended record."""

    CREATED = "created"
    """It is stored."""
    EXISTING = "existing"
    """There was one of this key already; that one stays."""
    OVERWRITTEN = "overwritten"
    """There was one of this key; this one took its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A small append-only item beside a checkpoint; its key there is (`task_id`, `index`)."""

    task_id: str = ""
    """Who wrote it."""
    index: int = 0
    """Its number among those of the task; may be negative."""
    value: Any = field(default=None, repr=False, hash=False)
    """Its content; encoded like an entry of the state."""
    name: str = ""
    """What it is, for example the entry it will go to."""
    path: str = ""
    """Where the task stands among its siblings. Records are read in the order (path, task_id, index)."""
    overwrite: bool = field(default=False, repr=False, compare=False)
    """When appended: replace a stored record of the same key. Otherwise the first one wins. Never read back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseInfo:
    """The exclusive right to advance a workflow, as it was when the store answered."""

    namespace: str = "default"
    """Tenant boundary."""
    workflow_id: str
    """The run; the lease covers all its scopes."""
    token: int = field(default=0, repr=False)
    """The fencing token, larger than every one before it. Only who acquires or renews is told; 0 for others."""
    holder: str = ""
    """Who holds it: a label for people."""
    ttl_s: float
    """How long it runs without a renewal, in seconds."""
    remaining_s: float
    """How long it still ran, in seconds. 0: it has expired, and its holder may go on until anyone else acts."""
    grant_time: datetime
    """When it was granted (UTC). For people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRenewal:
    """A lease that runs its full ttl again, and what has come for its workflow meanwhile."""

    lease: LeaseInfo
    """The lease."""
    pending_signals: tuple[PendingSignal, ...] = ()
    """Signals that no save has consumed yet, oldest first; at most 100 of them."""
    pending_signal_count: int = 0
    """How many there are in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSignal:
    """A signal that no save has consumed yet, without its value."""

    signal_id: str
    """Unique in the workflow."""
    name: str
    """What it is, for the workflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A message to a workflow from outside, pending until a save names it in `consumed_signals`."""

    signal_id: str
    """Unique in the workflow, chosen by the sender."""
    name: str
    """What it is, for the workflow, for example `CANCEL_SIGNAL`."""
    value: Any = field(default=None, repr=False, hash=False)
    """Its content; None where none was sent."""
    create_time: datetime
    """When it came (UTC). For people: the order is that in which signals are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSent:
    """What became of a signal. It is stored durably."""

    signal_id: str
    """The id it was sent under."""
    replayed: bool = False
    """The same signal had been sent before; this call wrote nothing."""
    consumed: bool = False
    """The workflow has taken it in already."""
    revision: int = field(default=0, repr=False)
    """The workflow's revision after the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One immutable picture of a workflow after a step."""

    namespace: str = "default"
    """Tenant boundary."""
    workflow_id: str
    """The run it belongs to."""
    scope: str = ""
    """The nested run inside the workflow; "" is the root."""
    checkpoint_id: str
    """Unique in (workflow, scope)."""
    parent_id: str = ""
    """The checkpoint before it on its line; "" for a first one."""
    parent_pruned: bool = field(default=False, repr=False)
    """The parent was pruned or deleted: the line of ancestors ends here."""
    sequence: int
    """Position in the workflow, from 1, given by the server. Order is sequence, never a clock."""
    current_step: str = ""
    """The step that this checkpoint records as finished; "" at the start."""
    completed_steps: tuple[str, ...] = field(default=(), repr=False)
    """Every step finished so far, in order. Filled by `load`; a listed checkpoint has the count alone."""
    completed_step_count: int = 0
    """How many steps are finished."""
    status: Status = Status.RUNNING
    """Where the workflow stands."""
    create_time: datetime
    """When the server committed it (UTC). For people: never an order."""
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """What was saved beside the state, for filters and people."""
    definition: str = field(default="", repr=False)
    """Name of the definition it was saved under."""
    fingerprint: str = field(default="", repr=False)
    """Digest of that definition's manifest."""
    run_id: str = field(default="", repr=False)
    """The execution that saved it."""
    history_entries: tuple[str, ...] = field(default=(), repr=False)
    """Entries whose meaning needs ancestors; pruning keeps what they need."""
    entry_count: int = 0
    """How many entries the state has, also where it was not loaded."""
    size_bytes: int = 0
    """Bytes of the whole state as stored, metadata and steps."""
    digest: bytes = field(default=b"", repr=False)
    """32 bytes that stand for the content: equal content has an equal digest."""
    records: tuple[Record, ...] = field(default=(), repr=False, hash=False)
    """Its records, in the order (path, task_id, index)."""
    record_count: int = 0
    """How many records it has."""
    head_checkpoint_id: str = field(default="", repr=False, compare=False)
    """Head of its scope when it was loaded; "" where it was listed."""
    revision: int = field(default=0, repr=False, compare=False)
    """The workflow's revision when it was loaded; 0 where it was listed."""
    pending_signals: tuple[PendingSignal, ...] = field(default=(), repr=False, compare=False)
    """Signals that were pending when it was loaded, oldest first, at most 100 of them; () where it was listed."""
    pending_signal_count: int = field(default=0, repr=False, compare=False)
    """How many were pending in all when it was loaded."""
    state_omitted: bool = field(default=False, repr=False)
    """The state, or a part of it, was left out because the call asked for that."""
    state_values: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)
    """The decoded entries; None where none were loaded. Read `state` instead, which tells the two apart."""

    @property
    def state(self) -> dict[str, Any]:
        """The entries by key: a dict of your own at each access, so that adding and removing keys changes nothing here.

        Raises:
            StateNotLoadedError: The checkpoint was listed or loaded without its state.
        """
        if self.state_values is None:
            raise StateNotLoadedError(
                f"Checkpoint {self.checkpoint_id!r} of workflow {self.workflow_id!r} was read without its state "
                f"({self.entry_count} entries). Load it, or list with_state=True.",
                namespace=self.namespace,
                workflow_id=self.workflow_id,
                scope=self.scope,
                checkpoint_id=self.checkpoint_id,
            )
        return dict(self.state_values)

    def state_as(self, kind: type[T]) -> T:
        """Read the state as a dict, TypedDict, dataclass or pydantic model: one entry is one field.

        Raises:
            StateNotLoadedError: The checkpoint was listed or loaded without its state.
            StateSchemaError: An entry is missing, unknown, or not of the declared type.
        """
        return _schema.read_state(self.state, kind, checkpoint_id=self.checkpoint_id, workflow_id=self.workflow_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What became of a save. Stored durably; pass it as `after` to the next one."""

    namespace: str = "default"
    """Tenant boundary."""
    workflow_id: str
    """The run it belongs to."""
    scope: str = ""
    """The nested run inside the workflow."""
    checkpoint_id: str
    """The id it was stored under."""
    parent_id: str = ""
    """The checkpoint before it, also where the server chose it."""
    sequence: int
    """Its position in the workflow."""
    head_checkpoint_id: str = ""
    """The scope's head now: another id where a replayed save has been overtaken."""
    replayed: bool = False
    """The same save had been stored before; this call wrote nothing."""
    create_time: datetime
    """When it was (first) committed (UTC). For people."""
    digest: bytes = field(default=b"", repr=False)
    """32 bytes that stand for the content."""
    revision: int = field(default=0, repr=False)
    """The workflow's revision after the call; every change raises it."""
    lease_remaining_s: float = field(default=0.0, repr=False)
    """How long the lease of `lease_token` runs from the answer on, in seconds; 0 without one, or once released."""
    pending_signals: tuple[PendingSignal, ...] = field(default=(), repr=False)
    """Signals of the workflow that no save has consumed yet, oldest first; at most 100 of them."""
    pending_signal_count: int = field(default=0, repr=False)
    """How many there are in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """One workflow as it stands now; made without reading any state."""

    namespace: str = "default"
    """Tenant boundary."""
    workflow_id: str
    """The run's name."""
    status: Status | None
    """Status of the root scope's head; None while the root scope has no checkpoint."""
    current_step: str = ""
    """Step of the root scope's head."""
    definition: str = ""
    """Definition it belongs to; "" where no save named one."""
    labels: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Labels, as the last save that carried any set them."""
    head_checkpoint_id: str = ""
    """Head of the root scope; "" while it has none."""
    head_sequence: int = 0
    """Sequence of that head."""
    last_sequence: int = 0
    """The highest sequence ever given in the workflow, over all scopes."""
    checkpoint_count: int = 0
    """Live checkpoints, over all scopes."""
    scope_count: int = 0
    """Scopes that have a checkpoint."""
    stored_bytes: int = 0
    """Bytes it takes in the store; what it shares with forks counts where it was first stored."""
    create_time: datetime | None = field(default=None, repr=False)
    """First save (UTC)."""
    update_time: datetime | None = None
    """Last save in the root scope (UTC)."""
    revision: int = field(default=0, repr=False)
    """Raised by every change."""
    incarnation: str = field(default="", repr=False)
    """New when a workflow is made, also after a delete."""
    forked_from_workflow_id: str = ""
    """The workflow it was forked from; "" where it was not."""
    lease: LeaseInfo | None = None
    """The lease that is live now, without its token; None where there is none."""
    pending_signal_count: int = 0
    """Signals that no save has consumed yet."""
    fingerprint: str = field(default="", repr=False)
    """Fingerprint that the root scope's head was saved under."""


class WatchEventKind(enum.StrEnum):
    """What a watcher is told of."""

    STARTED = "started"
    """The first event: what happens after it is told. Says where the workflow stands, if there is one; in a watch that
    goes on after an earlier one, the place it goes on from."""
    SAVED = "saved"
    """A checkpoint was saved."""
    REPLACED = "replaced"
    """A checkpoint's content was replaced."""
    RECORDS_APPENDED = "records_appended"
    """Records were appended."""
    CHECKPOINTS_DELETED = "checkpoints_deleted"
    """Checkpoints were deleted."""
    WORKFLOW_DELETED = "workflow_deleted"
    """The workflow was deleted."""
    SIGNAL_SENT = "signal_sent"
    """A signal came."""
    LEASE_GRANTED = "lease_granted"
    """A lease was granted."""
    LEASE_RELEASED = "lease_released"
    """A lease was released or broken. An expiry is not an event."""
    CHANGED = "changed"
    """Something else about the workflow, for example that it was pruned: read it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One change. Events of one workflow come in the order of their revisions; pass one as `after` to go on."""

    kind: WatchEventKind
    """What changed."""
    workflow_id: str = ""
    """The run; "" in the first event of a watch over the namespace."""
    incarnation: str = field(default="", repr=False)
    """The workflow's incarnation; "" while it does not exist."""
    revision: int = 0
    """The workflow's revision after the change."""
    scope: str = ""
    """Scope of a checkpoint that was saved, replaced or got records."""
    checkpoint_id: str = ""
    """That checkpoint; in the first event the head of the root scope."""
    sequence: int = 0
    """That checkpoint's sequence."""
    current_step: str = ""
    """That checkpoint's step."""
    status: Status | None = None
    """That checkpoint's status; None where the event is not about one."""
    definition: str = ""
    """The workflow's definition, where it is known."""
    signal_name: str = ""
    """Name of the signal that came."""
    signal_id: str = ""
    """Id of the signal that came."""
    holder: str = ""
    """Holder of the lease that was granted."""
    lease_released: bool = False
    """The save that this event tells of released the lease."""


WatchAfter: TypeAlias = WatchEvent | WorkflowInfo | tuple[str, int] | None
"""Where a watch goes on: an event, a workflow as it was read, (incarnation, revision) of either; None: from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryVersion:
    """One value that an entry had on a checkpoint's line of ancestors."""

    entry_key: str
    """The entry."""
    checkpoint_id: str
    """The checkpoint in which it first had this value."""
    sequence: int
    """That checkpoint's sequence."""
    value: Any = field(default=None, repr=False, hash=False)
    """The value; None where the entry was removed."""
    removed: bool = False
    """The entry was removed by this checkpoint."""


def new_checkpoint_id(
    *,
    time_ns: Callable[[], int] = time.time_ns,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> str:
    """Make a UUIDv7 (RFC 9562): ids made later in one process sort later, to within a quarter of a microsecond.

    For people and for keys that lie close together: the order of checkpoints is their sequence.
    """
    milliseconds, rest_ns = divmod(time_ns(), 1_000_000)
    number = (milliseconds & 0xFFFF_FFFF_FFFF) << 80
    number |= 7 << 76
    # The fraction of the millisecond in 12 bits (RFC 9562, section 6.2, method 3).
    number |= (rest_ns * 4096 // 1_000_000) << 64
    number |= 0b10 << 62
    number |= int.from_bytes(random_bytes(8), "big") >> 2
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveItem:
    """One checkpoint for `save_all`; the fields are the arguments of `save`.

    `after` may name an earlier item of the same call, which is how a chain is saved in one go.
    """

    workflow_id: str
    state: Mapping[str, Any] = field(repr=False, hash=False)
    current_step: str = ""
    after: After = None
    checkpoint_id: str = field(default_factory=new_checkpoint_id)
    status: Status = Status.RUNNING
    metadata: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)
    scope: str = ""
    completed_steps: Sequence[str] = field(default=(), repr=False, hash=False)
    labels: Mapping[str, str] | None = field(default=None, repr=False, hash=False)
    definition: str = ""
    fingerprint: str = ""
    run_id: str = ""
    records: Sequence[Record] = field(default=(), repr=False, hash=False)
    history_entries: Sequence[str] = field(default=(), repr=False, hash=False)
    replace: bool = False
    lease_token: int = field(default=0, repr=False)
    release_lease: bool = False
    consumed_signals: Sequence[str] = field(default=(), repr=False, hash=False)
    manifest: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        # What a type checker would have said, to those who have none: the mistakes that are made most, said here
        # rather than from deep inside of what follows.
        if not isinstance(self.workflow_id, str):
            raise TypeError(f"workflow_id is a str, not {type(self.workflow_id).__name__}")
        if not isinstance(self.state, Mapping):
            raise TypeError(f"state is a mapping of entries, not {type(self.state).__name__}")
        after: object = self.after
        if not (after is None or isinstance(after, (Checkpoint, Saved, SaveItem)) or after == "start"):
            # An id may be told, but what else it is could be a state.
            found = repr(after[:100]) if isinstance(after, str) else type(after).__name__
            raise TypeError(f'after is what save, load or list returned, or "start", or None; not {found}')
        if self.status.__class__ is not Status:
            Status(self.status)


After: TypeAlias = Checkpoint | Saved | SaveItem | Literal["start"] | None
"""What a save comes after: a checkpoint, an earlier save, nothing at all ("start"), or whatever is there (None)."""
