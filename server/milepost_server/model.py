"""Domain values: what commands carry, what engines store and what queries answer.

All are immutable. Ids are text, JSON is kept as the text that was sent, times are milliseconds since the epoch, sizes
are bytes. The `…Row` classes are what an engine keeps; a field may be added at the end, with a default, without a new
storage format.
"""

from __future__ import annotations

import enum

import msgspec

from milepost_server.errors import StoreError


class Status(enum.IntEnum):
    """Where a workflow stands; numbers are those of the protocol."""

    RUNNING = 1
    WAITING = 2
    SUSPENDED = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6


class ValueKind(enum.IntEnum):
    """What the bytes of a value are."""

    JSON = 1
    DATA = 2


class Compression(enum.IntEnum):
    """How the bytes of a value are compressed; numbers are those of the protocol."""

    NONE = 0
    ZSTD = 1


class RecordOutcome(enum.IntEnum):
    """What became of an appended record; numbers are those of the protocol."""

    CREATED = 1
    EXISTING = 2
    OVERWRITTEN = 3


class ForkMode(enum.IntEnum):
    """How much history a fork takes along; numbers are those of the protocol."""

    ANCESTORS = 1
    ALL_UP_TO = 2


class Value(msgspec.Struct, frozen=True, array_like=True):
    """Bytes as the client sent them, and how it reads them."""

    kind: int
    payload: bytes
    codec: str = ""
    compression: int = 0


class NewEntry(msgspec.Struct, frozen=True, array_like=True):
    """An entry as it arrives: a value and the digest that the server computed over it."""

    value: Value
    digest: bytes
    size_bytes: int


class EntryRef(msgspec.Struct, frozen=True, array_like=True):
    """An entry as it is kept: which stored value of the family it has."""

    value_id: int
    digest: bytes
    size_bytes: int


class Record(msgspec.Struct, frozen=True, array_like=True):
    """A small append-only item beside a checkpoint, keyed (task_id, index)."""

    task_id: str
    index: int
    path: str
    name: str
    value: Value
    overwrite: bool = False

    @property
    def sort_key(self) -> tuple[bytes, bytes, int]:
        """The order in which records are answered: bytewise by path, then task, then index."""
        return (self.path.encode(), self.task_id.encode(), self.index)

    @property
    def size_bytes(self) -> int:
        """What it counts against the limits."""
        texts_bytes = utf8_bytes(self.path) + utf8_bytes(self.task_id) + utf8_bytes(self.name)
        return len(self.value.payload) + texts_bytes + RECORD_OVERHEAD_BYTES


def utf8_bytes(text: str) -> int:
    """Return how many bytes a text has on the wire; almost every text is ASCII, which is known without encoding it."""
    return len(text) if text.isascii() else len(text.encode())


RECORD_OVERHEAD_BYTES = 32
"""What a record costs on the wire beside its texts and its value."""
ENTRY_OVERHEAD_BYTES = 24
"""What an entry costs on the wire beside its key and its value."""


class WorkflowRow(msgspec.Struct, frozen=True, array_like=True):
    """One incarnation of a workflow."""

    internal_id: int
    """Names this incarnation inside the store; never used again."""
    name_id: int
    """Names (namespace, workflow_id) inside the store; the same for every incarnation while any id is remembered."""
    namespace_id: int
    namespace: str
    workflow_id: str
    family_id: int
    """Internal id of the workflow that this one was forked from, or its own: the circle in which values are shared."""
    incarnation: str
    create_time_ms: int
    update_time_ms: int = 0
    """Last Save in the root scope; 0 before the first."""
    revision: int = 0
    last_sequence: int = 0
    status: int = 0
    """Of the root scope's head; 0 while there is none. The same for the three below."""
    current_step: str = ""
    head_checkpoint_id: str = ""
    head_sequence: int = 0
    checkpoint_count: int = 0
    scope_count: int = 0
    """Scopes with at least one live checkpoint."""
    stored_bytes: int = 0
    """Sum of `stored_bytes` of its live checkpoints."""
    waiting_record_count: int = 0
    """Records whose checkpoint does not exist yet."""
    definition: str = ""
    labels: dict[str, str] = {}
    forked_from: str = ""
    fork_id: str = ""
    fork_source: str = ""
    """What the fork was made of, in one text, so that a retry can be told from another fork."""
    fingerprint: str = ""
    """Of the root scope's head; "" too in a row that was written before there was this field."""
    pending_signal_count: int = 0
    last_signal_number: int = 0
    """Signals are numbered as they come, from 1."""


class ScopeRow(msgspec.Struct, frozen=True, array_like=True):
    """A scope of a workflow name: its number, and the head it has in one incarnation."""

    ordinal: int
    scope: str
    internal_id: int = 0
    """The incarnation that the head belongs to; in another one the scope has no head."""
    head_sequence: int = 0
    head_checkpoint_id: str = ""
    checkpoint_count: int = 0


class IdRow(msgspec.Struct, frozen=True, array_like=True):
    """What became of a checkpoint_id: live in an incarnation, or a stub of what was deleted."""

    internal_id: int
    """The incarnation it was saved in. If that is not the workflow's present one, this is a stub."""
    sequence: int
    deleted_time_ms: int = 0
    """When it was deleted or pruned; 0 while it is live (or went with its whole workflow)."""
    step_count: int = 0
    """Completed steps that it has, or had: what follows a deleted checkpoint must not silently lose them."""
    prior: IdRow | None = None
    """The stub that a fork has taken the place of. It counts until the fork is published, and comes back if it is
    not."""


class CheckpointRow(msgspec.Struct, frozen=True, array_like=True):
    """One checkpoint without its state; `node_id` leads to that."""

    sequence: int
    checkpoint_id: str
    scope: str
    scope_ordinal: int
    parent_id: str
    current_step: str
    status: int
    create_time_ms: int
    node_id: int
    entry_count: int
    entries_bytes: int
    """Keys and values of the whole state as stored, with `ENTRY_OVERHEAD_BYTES` for each entry."""
    entries_hash: bytes
    """32 bytes: the sum of the entries' hashes, so that an increment changes it in O(changes)."""
    step_count: int
    steps_bytes: int
    steps_hash: bytes
    """16 bytes: a chain over the completed steps, in order."""
    digest: bytes
    """32 bytes that stand for the content."""
    sent_digest: bytes
    """16 bytes that stand for the Save as it was sent, so that an exact retry is known though its base has gone."""
    stored_bytes: int
    """What it added to the store when it was saved: its rows and the values it stored first."""
    metadata: str = ""
    definition: str = ""
    fingerprint: str = ""
    run_id: str = ""
    history_entries: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole state, metadata and steps: what one Load answers."""
        return self.entries_bytes + self.steps_bytes + utf8_bytes(self.metadata)


class RecordGroupRow(msgspec.Struct, frozen=True, array_like=True):
    """The records of one checkpoint id, counted."""

    checkpoint_id: str
    record_count: int
    record_bytes: int
    is_waiting: bool
    """The checkpoint does not exist (yet)."""
    create_time_ms: int


class Signal(msgspec.Struct, frozen=True, array_like=True):
    """A message to a workflow from outside, pending until a Save consumes it."""

    number: int
    """The order in which signals came."""
    signal_id: str
    name: str
    value: Value | None
    create_time_ms: int


class PendingSignal(msgspec.Struct, frozen=True, array_like=True):
    """A pending signal without its content."""

    number: int
    signal_id: str
    name: str


class SignalIdRow(msgspec.Struct, frozen=True, array_like=True):
    """What became of a signal_id: pending, or a stub of what was consumed."""

    number: int
    digest: bytes
    """16 bytes that stand for name and content."""
    consumed_time_ms: int = 0
    """0 while it is pending."""


class LeaseRow(msgspec.Struct, frozen=True, array_like=True):
    """The newest lease of a workflow's name, live or expired, until someone else acts.

    When it expires is kept in memory only (`storage.lease_timers`): renewing writes nothing.
    """

    token: int
    holder: str
    ttl_ms: int
    request_id: str
    grant_time_ms: int


class LeaseState(msgspec.Struct, frozen=True, array_like=True):
    """A lease as it is told."""

    token: int
    """0 for everybody but the holder."""
    holder: str
    ttl_ms: int
    remaining_ms: int
    """How long it runs without a renewal; 0: it has expired."""
    grant_time_ms: int


class SaveCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Store one checkpoint."""

    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str
    is_id_generated: bool = False
    """The server made the id: there can be no replay."""
    parent_id: str | None = None
    """`None`: the scope's head at the commit."""
    base_checkpoint_id: str | None = None
    """`None`: `entries` is the full state."""
    base_digest: bytes | None = None
    """The content that the base must have; `None`: whatever it has."""
    current_step: str = ""
    steps_added: tuple[str, ...] = ()
    status: Status = Status.RUNNING
    entries: dict[str, NewEntry] = {}
    removed_keys: tuple[str, ...] = ()
    metadata: str = ""
    labels: dict[str, str] | None = None
    definition: str = ""
    fingerprint: str = ""
    run_id: str = ""
    records: tuple[Record, ...] = ()
    history_entries: tuple[str, ...] = ()
    expected_head: str | None = None
    is_replace: bool = False
    replaces_digest: bytes | None = None
    lease_token: int = 0
    """0: none. The same in every command that has it."""
    release_lease: bool = False
    consumed_signals: tuple[str, ...] = ()
    manifest: str = ""
    """The text that `fingerprint` is the digest of; "": not sent."""
    size_bytes: int = 0
    """Size of the request, for the queue's budget."""


class SaveAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What became of a Save."""

    checkpoint_id: str
    sequence: int
    parent_id: str
    head_checkpoint_id: str
    is_replayed: bool
    create_time_ms: int
    revision: int
    digest: bytes
    incarnation: str
    definition: str
    """The workflow's; like the incarnation it is there for those who watch."""
    lease_remaining_ms: int = 0
    """0 where the Save had no lease, or has released it."""
    pending_signal_count: int = 0
    pending_signals: tuple[PendingSignal, ...] = ()
    """The oldest of them."""
    is_replaced: bool = False
    """It has taken the place of other content."""


class AppendRecordsCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Append records to a checkpoint id."""

    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str
    records: tuple[Record, ...]
    require_checkpoint: bool = False
    lease_token: int = 0
    size_bytes: int = 0


class AppendRecordsAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What became of each record."""

    outcomes: tuple[RecordOutcome, ...]
    revision: int
    incarnation: str
    definition: str
    sequence: int
    """Of the checkpoint; 0 while it does not exist."""
    is_replayed: bool = False
    """Every record was there already: nothing was written."""


class DeleteWorkflowCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Delete a workflow with all its scopes."""

    namespace: str
    workflow_id: str
    lease_token: int = 0
    size_bytes: int = 0


class DeleteWorkflowAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What was deleted."""

    existed: bool
    checkpoint_count: int
    change: WorkflowChange | None = None
    """`None` where nothing was deleted."""


class WorkflowChange(msgspec.Struct, frozen=True, array_like=True):
    """Where a workflow stands after a change, for those who watch."""

    namespace: str
    workflow_id: str
    incarnation: str
    revision: int
    definition: str


class BulkAnswer(msgspec.Struct, frozen=True, array_like=True):
    """How far one slice of a bulk delete came."""

    deleted: int
    position: tuple[int, ...] | None
    """Where the next slice starts; `None` when nothing is left."""
    changes: tuple[WorkflowChange, ...] = ()
    """The workflows that were changed."""
    needs: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Of a prune, for the next slice: as in `PruneCommand`."""
    row_id_end: int = 0
    """Of a delete of a run, for the next slice: as in `DeleteRunCommand`."""


class DeleteIdsCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Delete checkpoints of one scope by id. Small enough for one transaction."""

    namespace: str
    workflow_id: str
    scope: str
    checkpoint_ids: tuple[str, ...]
    lease_token: int = 0
    size_bytes: int = 0


class DeleteRunCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Delete one slice of the checkpoints of an execution."""

    namespace: str
    workflow_id: str
    """"" for every workflow of the namespace."""
    run_id: str
    position: tuple[int, ...]
    """(internal_id, sequence) after which to go on; () at the start."""
    row_id_end: int = 0
    """Only checkpoints whose row has a number below this one, which the first slice fixes; 0 for the first slice."""
    lease_token: int = 0
    """Only with a `workflow_id`; without one, leased workflows are passed over."""
    size_bytes: int = 0


class PruneCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Prune one slice of a workflow."""

    namespace: str
    workflow_id: str
    keep_last: int
    position: tuple[int, ...]
    """() at the start, then what the slice before answered.

    (incarnation's internal_id, highest sequence to delete, scope's ordinal, next sequence), with the next sequence 0
    where the scope begins; within a scope also (how many of the newest N were met, the oldest of these, the newest
    sequence seen). Without these the scope is walked again down to the next sequence.
    """
    needs: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Within a scope: what is older and yet needed, each a sequence and the history entries that are wanted of it."""
    is_dry_run: bool = False
    size_bytes: int = 0


class ForkCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Copy one slice of a fork; the first slice makes the target, the last one publishes it."""

    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str | None
    target_workflow_id: str
    mode: ForkMode
    fork_id: str
    position: tuple[int, ...] = ()
    """(target's internal_id, source's internal_id, next sequence to copy); () at the start."""
    size_bytes: int = 0


class ForkAnswer(msgspec.Struct, frozen=True, array_like=True):
    """How far a fork came."""

    workflow: WorkflowRow | None
    """The published fork, or `None` while there is more to copy."""
    is_replayed: bool
    position: tuple[int, ...] | None


class AbandonForkCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Throw away the unpublished target of a fork that will not be finished."""

    target_internal_id: int
    size_bytes: int = 0


class AcquireLeaseCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Grant a lease, if nobody has it."""

    namespace: str
    workflow_id: str
    holder: str
    ttl_ms: int
    request_id: str = ""
    """"": every call is one of its own."""
    size_bytes: int = 0


class RenewLeaseCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Let a lease run its full ttl from now."""

    namespace: str
    workflow_id: str
    lease_token: int
    size_bytes: int = 0


class LeaseAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The lease of whoever asked, with its token."""

    lease: LeaseState
    is_replayed: bool
    """It had been granted to the same request before."""
    change: WorkflowChange | None = None
    """`None` where the workflow does not exist, or did not change."""
    pending_signal_count: int = 0
    pending_signals: tuple[PendingSignal, ...] = ()


class ReleaseLeaseCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """End a lease: the one of a token, or whichever there is."""

    namespace: str
    workflow_id: str
    lease_token: int = 0
    force: bool = False
    size_bytes: int = 0


class ReleaseLeaseAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What became of it."""

    released: bool
    change: WorkflowChange | None = None


class SendSignalCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Store a signal."""

    namespace: str
    workflow_id: str
    signal_id: str
    name: str
    value: Value | None = None
    size_bytes: int = 0


class SendSignalAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What became of a signal."""

    is_replayed: bool
    is_consumed: bool
    revision: int
    incarnation: str
    definition: str


class SweepCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Free one slice of what was deleted, and drop what is past its time."""

    rows_max: int = 1_000
    passed_over: tuple[str, ...] = ()
    """Places that are left alone, because a damaged record was met there."""
    size_bytes: int = 0


class SweepAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a sweep did."""

    rows_freed: int
    has_more: bool
    changes: tuple[WorkflowChange, ...] = ()


class ProbeCommand(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Write and flush a mark: shows that commits work."""

    size_bytes: int = 0


class ProbeQuery(msgspec.Struct, frozen=True, array_like=True):
    """Read, and write nothing: shows that the storage answers."""


class ProbeAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The probe has been done: the mark is on disk, or something was read."""


ItemKey = tuple[str, str, str, str]
"""What names an item of a batch to those that build on it: (namespace, workflow_id, scope, checkpoint_id)."""


class RefusedItem(msgspec.Struct, frozen=True):
    """An item of a batch that was malformed; what it is named matters to those that build on it."""

    error: StoreError
    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str


class BatchSaveCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Store one slice of the checkpoints of a BatchSave, in order, each or not. Made where it is run."""

    items: tuple[SaveCommand | RefusedItem, ...]
    first_number: int = 0
    """The number of the slice's first item within its call."""
    failed: dict[ItemKey, int] = {}
    """What failed in earlier slices of the call and has not been stored since, with the numbers of the items."""
    size_bytes: int = 0


class BatchSaveAnswer(msgspec.Struct, frozen=True):
    """What became of each item of a slice."""

    outcomes: tuple[SaveAnswer | StoreError, ...]
    failed: dict[ItemKey, int]
    """As in the command, after this slice."""


class EncodedSaveCommand(msgspec.Struct, frozen=True, array_like=True):
    """A Save as it came: decoded and checked where it is run, right before."""

    body: bytes
    size_bytes: int


class StoredSave(msgspec.Struct, frozen=True, array_like=True):
    """What those who listen for commits want to know of a Save that came encoded and was stored."""

    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str
    sequence: int
    incarnation: str
    revision: int
    definition: str
    current_step: str
    status: int
    is_replaced: bool
    release_lease: bool


class EncodedSaveAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to an encoded Save as it goes out."""

    body: bytes
    stored: tuple[StoredSave, ...]
    """One, or none for a replay."""


class EncodedBatchSaveCommand(msgspec.Struct, frozen=True, array_like=True):
    """One slice of a BatchSave, its items as they came. Its other fields are those of `BatchSaveCommand`."""

    items: tuple[bytes, ...]
    size_bytes: int
    first_number: int = 0
    failed: dict[ItemKey, int] = {}


class EncodedBatchSaveAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The results of a slice as they go out, one after the other."""

    body: bytes
    stored: tuple[StoredSave, ...]
    """Of the items that were stored by this call, in order."""
    failed: dict[ItemKey, int]


Command = (
    SaveCommand
    | EncodedSaveCommand
    | BatchSaveCommand
    | EncodedBatchSaveCommand
    | AppendRecordsCommand
    | DeleteWorkflowCommand
    | DeleteIdsCommand
    | DeleteRunCommand
    | PruneCommand
    | ForkCommand
    | AbandonForkCommand
    | AcquireLeaseCommand
    | RenewLeaseCommand
    | ReleaseLeaseCommand
    | SendSignalCommand
    | SweepCommand
    | ProbeCommand
)
Answer = (
    SaveAnswer
    | EncodedSaveAnswer
    | BatchSaveAnswer
    | EncodedBatchSaveAnswer
    | AppendRecordsAnswer
    | DeleteWorkflowAnswer
    | BulkAnswer
    | ForkAnswer
    | LeaseAnswer
    | ReleaseLeaseAnswer
    | SendSignalAnswer
    | SweepAnswer
    | ProbeAnswer
)


class Selection(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How much of a checkpoint to read."""

    with_state: bool = True
    with_steps: bool = True
    with_records: bool = True
    entry_keys: tuple[str, ...] | None = None
    """Only these entries; `None` means all."""


class LoadQuery(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Read one checkpoint: by id, by sequence, the newest with a status, or the head."""

    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str | None = None
    sequence: int | None = None
    statuses: frozenset[int] = frozenset()
    selection: Selection = Selection()
    position: tuple[int, int] | None = None
    """(incarnation's internal_id, next sequence) where a look for a status goes on."""


class LoadedCheckpoint(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A checkpoint as far as it was asked for."""

    row: CheckpointRow
    parent_pruned: bool
    record_count: int
    entries: dict[str, Value] | None = None
    """`None` where the state was not asked for."""
    steps: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()


class LoadAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The checkpoint and what stood beside it at the same moment."""

    workflow: WorkflowRow
    head_checkpoint_id: str
    checkpoint: LoadedCheckpoint
    pending_signals: tuple[PendingSignal, ...] = ()
    """The oldest of them; `workflow` counts all."""


class EncodedLoadQuery(msgspec.Struct, frozen=True, array_like=True):
    """A Load as it came: decoded and checked where it is run."""

    body: bytes


class EncodedLoadAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to an encoded Load as it goes out."""

    body: bytes


class LongLoad(msgspec.Struct, frozen=True, array_like=True):
    """The Load looks at many rows: it has not been run among the short ones, or not to its end in one turn."""

    position: tuple[int, int] | None = None
    """Where it goes on, as in `LoadQuery`; `None`: at the start."""


class CheckpointFilter(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Which checkpoints a list answers."""

    statuses: frozenset[int] = frozenset()
    current_step: str | None = None
    before_checkpoint_id: str | None = None
    metadata_contains: dict[str, object] | None = None
    run_id: str | None = None


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Read one page of a workflow's checkpoints."""

    namespace: str
    workflow_id: str
    scope: str | None
    """`None` for all scopes."""
    newest_first: bool
    filter: CheckpointFilter
    selection: Selection
    page_size: int
    bytes_max: int
    rows_examined_max: int
    is_page_started: bool = False
    """Earlier slices of the page have items already, so that none may pass `bytes_max`."""
    incarnation: str = ""
    """The incarnation that an earlier page was read from; "" on the first page."""
    position: int | None = None
    """Sequence of the row that the page before looked at last."""
    sequence_max: int | None = None
    """Only sequences up to this one."""


class ListAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One page."""

    workflow: WorkflowRow
    checkpoints: tuple[LoadedCheckpoint, ...]
    position: int | None
    """Where the next page starts; `None` after the last one."""
    sequence_max: int
    rows_examined: int = 0
    bytes_left: int = 0
    is_full: bool = False
    """The page has all that fits it, whatever rows there are still to look at."""


class WorkflowAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A workflow, and the lease that is live."""

    workflow: WorkflowRow
    lease: LeaseState | None


class LeaseQueryAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The lease of a workflow without its token, expired or not; `None` where there is none."""

    lease: LeaseState | None


class ListWorkflowsQuery(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Read one page of a namespace's workflows."""

    namespace: str
    prefix: str
    statuses: frozenset[int]
    labels: dict[str, str]
    definition: str | None
    updated_from_ms: int | None
    updated_before_ms: int | None
    page_size: int
    bytes_max: int
    rows_examined_max: int
    is_page_started: bool = False
    """Earlier slices of the page have items already, so that none may pass `bytes_max`."""
    after_workflow_id: str | None = None
    """Only ids after this one, bytewise."""
    is_leased: bool | None = None
    has_pending_signals: bool | None = None
    fingerprint: str | None = None


class ListWorkflowsAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One page."""

    workflows: tuple[WorkflowAnswer, ...]
    after_workflow_id: str | None
    """Where the next page starts; `None` after the last one."""
    rows_examined: int = 0
    bytes_left: int = 0
    is_full: bool = False
    """The page has all that fits it, whatever rows there are still to look at."""


class EntryHistoryQuery(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Follow entries back along a checkpoint's line of ancestors."""

    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str | None
    entry_keys: tuple[str, ...]
    page_size: int
    bytes_max: int
    rows_examined_max: int
    is_page_started: bool = False
    """Earlier slices of the page have items already, so that none may pass `bytes_max`."""
    incarnation: str = ""
    position: int | None = None
    """Sequence of the ancestor at which to go on."""


class EntryVersion(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A value that an entry had from one checkpoint on."""

    entry_key: str
    checkpoint_id: str
    sequence: int
    value: Value | None
    """`None` where the entry was removed."""


class EntryHistoryAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One page."""

    workflow: WorkflowRow
    versions: tuple[EntryVersion, ...]
    position: int | None
    ancestors_pruned: bool
    rows_examined: int = 0
    bytes_left: int = 0
    is_full: bool = False
    """The page has all that fits it, whatever rows there are still to look at."""


class ListSignalsQuery(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Read one page of a workflow's pending signals. There are never more than one transaction may look at."""

    namespace: str
    workflow_id: str
    name: str | None
    page_size: int
    bytes_max: int
    incarnation: str = ""
    after_number: int = 0


class ListSignalsAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One page."""

    workflow: WorkflowRow
    signals: tuple[Signal, ...]
    position: int | None
    """The number of the last signal of the page; `None` on the last page."""


class DefinitionAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A definition's manifest, as it was first sent."""

    manifest: str
