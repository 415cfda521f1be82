"""The port between the operations and an engine: what a store must be able to do, in domain terms.

An engine gives transactions; `commands` and `queries` are written once against them. The contract asks only for what
LMDB and PostgreSQL can both give: appends that are linearizable per workflow, sequences given by the server, reads by
key and in key order. There is no order over workflows, no transaction beyond one workflow's family and its name, and no
engine cursor leaves a transaction.

Inside, a workflow is known by three numbers. Its *name id* stands for (namespace, workflow_id) and stays while any of
its checkpoint ids is remembered. Its *internal id* stands for one incarnation. Its *family id* is the internal id of
the workflow it was forked from (or its own): values and state nodes are shared within a family and never beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from milepost_server.errors import StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    Answer,
    CheckpointRow,
    Command,
    DefinitionAnswer,
    EncodedLoadAnswer,
    EncodedLoadQuery,
    EntryHistoryAnswer,
    EntryHistoryQuery,
    EntryRef,
    IdRow,
    LeaseQueryAnswer,
    LeaseRow,
    ListAnswer,
    ListQuery,
    ListSignalsAnswer,
    ListSignalsQuery,
    ListWorkflowsAnswer,
    ListWorkflowsQuery,
    LoadAnswer,
    LoadQuery,
    LongLoad,
    NewEntry,
    PendingSignal,
    ProbeAnswer,
    Record,
    RecordGroupRow,
    ScopeRow,
    Signal,
    SignalIdRow,
    SweepAnswer,
    Value,
    WorkflowAnswer,
    WorkflowRow,
)

if TYPE_CHECKING:
    # Not imported at run time: the storage process does without an event loop, and it is large.
    from asyncio import AbstractEventLoop, Future

    from milepost_server.shared_bounds import SharedBound


class NameRow(msgspec.Struct, frozen=True, array_like=True):
    """A (namespace, workflow_id), whether or not there is such a workflow now."""

    name_id: int
    namespace_id: int
    workflow_id: str
    internal_id: int = 0
    """The present incarnation; 0 while there is none."""
    building_id: int = 0
    """The incarnation that a fork is making; 0 while there is none."""
    stub_due_ms: int = 0
    """When the next look for outlived stubs of deleted checkpoints is due; 0 where none is."""
    has_lease: bool = False
    """There is a lease, live or expired. Kept here too so that a change without one need not look for it."""


class ResolvedState(msgspec.Struct):
    """The whole state and all completed steps behind a node. Callers must not change it."""

    entries: dict[str, EntryRef]
    steps: dict[str, None]
    """An ordered set."""


class StateChange(msgspec.Struct, frozen=True, kw_only=True):
    """How a new state differs from the one it is built on."""

    prior_node_id: int
    """0: built on nothing."""
    changed: dict[str, NewEntry]
    removed: tuple[str, ...]
    steps_added: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """The new state is the prior one."""
        return not (self.changed or self.removed or self.steps_added)


class ReadTransaction(Protocol):
    """One consistent view of the store. Every read of a damaged record raises `RecordDamagedError`."""

    def find_namespace(self, namespace: str) -> int | None:
        """Return the number of a namespace."""

    def namespace_count(self) -> int:
        """Return how many namespaces there are. O(namespaces)."""

    def find_name(self, namespace: str, workflow_id: str) -> NameRow | None:
        """Return what stands behind a workflow's name."""

    def get_workflow(self, internal_id: int) -> WorkflowRow | None:
        """Return one incarnation."""

    def find_lease(self, name_id: int) -> LeaseRow | None:
        """Return the newest lease of a name, live or expired, that has not ended."""

    def lease_remaining_ms(self, name_id: int, lease: LeaseRow) -> int:
        """Return how long a lease still runs; 0 if it has expired.

        Time is that of the engine since its start, in which every lease gets its full ttl anew.
        """

    def workflow_names(
        self,
        namespace_id: int,
        prefix: str,
        after: str | None,
        *,
        statuses: Collection[int],
        has_pending_signals: bool | None,
    ) -> Iterator[NameRow]:
        """Yield the names that start with `prefix`, bytewise by workflow_id, from the first one after `after`.

        With `statuses`, or with signals wanted, only those of workflows that readers see and that are so: at the cost
        of these, not of the others.
        """

    def find_signal_id(self, internal_id: int, signal_id: str) -> SignalIdRow | None:
        """Return what became of a signal_id."""

    def pending_signals(self, internal_id: int, after_number: int) -> Iterator[PendingSignal]:
        """Yield pending signals in the order they came, from the first one after `after_number`."""

    def get_signal(self, internal_id: int, number: int) -> Signal:
        """Return a pending signal whole."""

    def find_manifest(self, namespace: str, fingerprint: str) -> str | None:
        """Return the manifest of a fingerprint."""

    def has_manifest(self, namespace: str, fingerprint: str) -> bool:
        """Tell whether a fingerprint's manifest is stored."""

    def manifest_count(self, namespace: str) -> int:
        """Return how many manifests a namespace has."""

    def find_scope(self, name_id: int, scope: str) -> ScopeRow | None:
        """Return a scope of a name, as it was last put: its head may belong to an earlier incarnation."""

    def scopes(self, name_id: int, from_ordinal: int) -> Iterator[ScopeRow]:
        """Yield the scopes of a name by ordinal, from `from_ordinal` on."""

    def find_id(self, name_id: int, scope_ordinal: int, checkpoint_id: str) -> IdRow | None:
        """Return what became of a checkpoint_id."""

    def get_checkpoint(self, internal_id: int, sequence: int) -> CheckpointRow | None:
        """Return one checkpoint."""

    def checkpoint_row_id(self, internal_id: int, sequence: int) -> int | None:
        """Return the number that a checkpoint's row was given when it came to its run: one of `new_id`."""

    def sequences(
        self, internal_id: int, scope_ordinal: int | None, *, newest_first: bool, start: int | None
    ) -> Iterator[int]:
        """Yield sequences of a scope (`None`: of all scopes), from `start` (inclusive; `None`: the end) on."""

    def run_checkpoints(self, namespace_id: int, run_id: str, after: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yield (internal_id, sequence) of a run's checkpoints in that order, from the first one after `after`."""

    def resolve_state(self, family_id: int, node_id: int) -> ResolvedState:
        """Return the whole state behind a node: O(entries + steps), however long the history."""

    def lookup_entries(self, family_id: int, node_id: int, keys: Iterable[str]) -> dict[str, EntryRef]:
        """Return some entries of the state behind a node; keys that it lacks are left out."""

    def read_value(self, family_id: int, ref: EntryRef) -> Value:
        """Return a stored value."""

    def find_record_group(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> RecordGroupRow | None:
        """Return the count of a checkpoint id's records."""

    def find_record(
        self, internal_id: int, scope_ordinal: int, checkpoint_id: str, task_id: str, index: int
    ) -> Record | None:
        """Return one record."""

    def records(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> Iterator[Record]:
        """Yield a checkpoint id's records, in no order that means anything."""


class WriteTransaction(ReadTransaction, Protocol):
    """A view that can be changed. All changes of a command become visible together, or none does."""

    @property
    def now_ms(self) -> int:
        """The time of the commit, for people."""

    def new_id(self) -> int:
        """Return a number that is larger than all that were given before, from 1."""

    def random_bytes(self) -> bytes:
        """Return 8 random bytes."""

    def add_namespace(self, namespace: str) -> int:
        """Store a namespace that is not there, and return its number."""

    def put_name(self, row: NameRow) -> None:
        """Store a name."""

    def forget_name_if_unused(self, row: NameRow) -> None:
        """Remove a name that stands for nothing: no incarnation, no checkpoint id, no lease."""

    def put_workflow(self, row: WorkflowRow) -> None:
        """Store an incarnation."""

    def next_lease_token(self, namespace: str) -> int:
        """Return a number larger than every token given in the namespace before, whatever was deleted since."""

    def put_lease(self, name_id: int, row: LeaseRow) -> None:
        """Store a lease in the place of the one before it, and let it run its full ttl from now."""

    def renew_lease(self, name_id: int, row: LeaseRow) -> None:
        """Let a lease run its full ttl from now. Only in memory, and like all changes once the commit is done."""

    def delete_lease(self, name_id: int) -> None:
        """End a lease."""

    def schedule_lease_expiry(self, name: NameRow) -> None:
        """See to it that the lease of a workflow that never comes is forgotten some time after it has expired."""

    def put_signal(self, internal_id: int, signal: Signal, id_row: SignalIdRow) -> None:
        """Store a pending signal, and what is known of its id."""

    def consume_signal(self, internal_id: int, signal_id: str, stub: SignalIdRow) -> None:
        """Remove a pending signal; its id stays for the replay window."""

    def put_manifest(self, namespace: str, fingerprint: str, manifest: str) -> None:
        """Store the manifest of a fingerprint that has none."""

    def put_scope(self, name_id: int, row: ScopeRow) -> None:
        """Store a scope."""

    def put_id(self, name_id: int, scope_ordinal: int, checkpoint_id: str, row: IdRow) -> None:
        """Store what became of a checkpoint_id."""

    def put_checkpoint(self, workflow: WorkflowRow, row: CheckpointRow) -> None:
        """Store a checkpoint, with its place in its scope's order and in its run."""

    def delete_checkpoint(self, workflow: WorkflowRow, row: CheckpointRow) -> None:
        """Remove a checkpoint's row and places, not its id, its state or its records."""

    def put_state(self, family_id: int, change: StateChange) -> int:
        """Store a changed state and return its node, which the caller holds. O(changes), amortised along one chain."""

    def retain_state(self, family_id: int, node_id: int) -> None:
        """Hold a node once more."""

    def release_state(self, family_id: int, node_id: int) -> None:
        """Let go of a node; it is freed with the values that nothing else has, once nobody holds it."""

    def put_record_group(self, internal_id: int, scope_ordinal: int, row: RecordGroupRow) -> None:
        """Store the count of a checkpoint id's records."""

    def put_record(self, internal_id: int, scope_ordinal: int, checkpoint_id: str, record: Record) -> None:
        """Store a record, in the place of one of the same key."""

    def discard_records(self, internal_id: int, scope_ordinal: int, checkpoint_id: str) -> None:
        """Remove the group of a checkpoint id's records at once, the records themselves at leisure."""

    def discard_workflow(self, row: WorkflowRow, *, forget_ids: bool) -> None:
        """Free an incarnation at leisure.

        Its name does not lead to it any more. Its checkpoint ids stay as stubs for the replay window, unless they are
        to be forgotten.
        """

    def schedule_stub_expiry(self, name: NameRow) -> NameRow:
        """See to it that stubs in this name are looked through when the first may have outlived the replay window."""

    def schedule_waiting_expiry(self, internal_id: int, scope_ordinal: int, checkpoint_id: str, due_ms: int) -> None:
        """See to it that records are dropped at `due_ms` if their checkpoint has not come."""

    def note_building(self, internal_id: int, *, is_building: bool) -> None:
        """Remember (or forget) that an incarnation is being made, so that a restart throws it away."""

    def sweep(self, rows_max: int, passed_over: Collection[str], limits: Limits) -> SweepAnswer:
        """Free up to about `rows_max` rows of what was discarded or is past its time.

        A damaged record raises `RecordDamagedError` whose metadata names the `place` that led to it, if one did; what
        is named in `passed_over` is left alone.
        """


class CommandLane(Protocol):
    """Batches of commands for callers on one event loop."""

    is_pipelined: bool
    """It takes batches while others run: they are run in order, and those that wait together become one commit."""

    def execute(self, commands: Sequence[Command]) -> Future[Sequence[Answer | StoreError]]:
        """Run a batch as `Engine.execute` does, without holding up the loop. Encoded commands are run as well.

        The answer is delivered when the batch is on disk. Raises nothing; once one batch has failed with
        `StorageFailedError`, so does all that was handed over.
        """

    async def reopen(self) -> None:
        """Start the engine again as `Engine.reopen` does, without holding up the loop."""

    async def close(self) -> None:
        """Let go of the engine. No batch may be running."""


class LoadLane(Protocol):
    """Loads of many callers on one event loop."""

    def submit(self, query: EncodedLoadQuery, *, namespace: str) -> Future[EncodedLoadAnswer | LongLoad]:
        """Ask for a checkpoint; a namespace is whose turn it takes.

        Raises:
            ResourceError: `QUEUE_FULL`.
        """

    answered_count: int
    """How many loads have been answered, refusals included. Only for whoever looks whether it grows."""

    def probe(self) -> Future[ProbeAnswer]:
        """Have `Engine.probe` run behind what waits. Never refused for want of room."""

    async def close(self) -> None:
        """Answer what was accepted, and accept no more."""


class Engine(Protocol):
    """A store. `execute` is called by one thread at a time; the reads by any."""

    def execute(self, commands: Sequence[Command]) -> Sequence[Answer | StoreError]:
        """Run commands in order as one durable transaction, and return when it is on disk.

        A command that fails leaves nothing and fails alone. Each sees what those before it did.

        Raises:
            StorageFailedError: The outcome of the whole batch is unknown and the engine must be reopened.
        """

    def reopen(self) -> None:
        """Start again after `StorageFailedError`: returns once a commit has been flushed, else raises."""

    def load(self, query: LoadQuery) -> LoadAnswer | LongLoad:
        """Read one checkpoint. A look for a status that is not done after `page_rows_examined_max` rows is returned."""

    def command_lane(self, loop: AbstractEventLoop) -> CommandLane | None:
        """Return a way of its own to run commands, or `None`: then `execute` is called in a thread."""

    def load_lane(
        self, loop: AbstractEventLoop, *, bound: SharedBound, on_failure: Callable[[], None]
    ) -> LoadLane | None:
        """Return a way of its own to load for callers on an event loop, or `None`: then `load` is called in a thread.

        `bound` counts the loads that wait; `on_failure` is called when a load found that the engine must be reopened.
        """

    def list_checkpoints(self, query: ListQuery) -> ListAnswer:
        """Read one page of a workflow's checkpoints."""

    def get_workflow(self, namespace: str, workflow_id: str) -> WorkflowAnswer:
        """Read one workflow."""

    def list_signals(self, query: ListSignalsQuery) -> ListSignalsAnswer:
        """Read one page of a workflow's pending signals."""

    def get_definition(self, namespace: str, fingerprint: str) -> DefinitionAnswer:
        """Read the manifest of a fingerprint."""

    def get_lease(self, namespace: str, workflow_id: str) -> LeaseQueryAnswer:
        """Read a workflow's lease, without its token."""

    def list_workflows(self, query: ListWorkflowsQuery) -> ListWorkflowsAnswer:
        """Read one page of a namespace's workflows."""

    def entry_history(self, query: EntryHistoryQuery) -> EntryHistoryAnswer:
        """Read one page of what entries were."""

    def probe(self) -> ProbeAnswer:
        """Read something, from the disk itself where there is one: returns once the storage has answered."""

    def statistics(self) -> Mapping[str, int]:
        """Return sizes and counts, for people."""

    def close(self) -> None:
        """Let go of the store. Nothing is lost: every answered command is on disk."""
