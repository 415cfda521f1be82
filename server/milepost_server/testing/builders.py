"""Commands and queries with all that a test does not care about filled in, and a store driven one command at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypedDict, TypeVar, Unpack

import msgspec
import pytest

from milepost_server import rules
from milepost_server.errors import NotFoundError, StoreError
from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import (
    AbandonForkCommand,
    AcquireLeaseCommand,
    Answer,
    AppendRecordsAnswer,
    AppendRecordsCommand,
    BulkAnswer,
    CheckpointFilter,
    Command,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowAnswer,
    DeleteWorkflowCommand,
    EntryHistoryAnswer,
    EntryHistoryQuery,
    ForkAnswer,
    ForkCommand,
    ForkMode,
    LeaseAnswer,
    LeaseState,
    ListAnswer,
    ListQuery,
    ListSignalsAnswer,
    ListSignalsQuery,
    ListWorkflowsAnswer,
    ListWorkflowsQuery,
    LoadAnswer,
    LoadedCheckpoint,
    LoadQuery,
    LongLoad,
    NewEntry,
    PruneCommand,
    Record,
    ReleaseLeaseAnswer,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
    SaveAnswer,
    SaveCommand,
    Selection,
    SendSignalAnswer,
    SendSignalCommand,
    Signal,
    Status,
    SweepAnswer,
    SweepCommand,
    Value,
    ValueKind,
    WorkflowRow,
)
from milepost_server.storage.port import Engine

NAMESPACE = "default"
LEASE_TTL_MS = 10_000
"""How long a lease runs where a test does not care."""
SLICES_MAX = 10_000
"""A bulk command that has not ended after so many slices never will."""

CountRows = Callable[[Engine, str], int]

_A = TypeVar("_A", bound=Answer)


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        """Tell the time, in milliseconds since the epoch."""
        return self.now_ms

    def advance(self, step_ms: int) -> None:
        """Let time pass."""
        self.now_ms += step_ms


def json_value(content: object) -> Value:
    """Return a value of kind json."""
    return Value(ValueKind.JSON, json.dumps(content).encode())


def data_value(payload: bytes, codec: str = "", compression: int = 0) -> Value:
    """Return an opaque value."""
    return Value(ValueKind.DATA, payload, codec, compression)


def entries(state: Mapping[str, object]) -> dict[str, NewEntry]:
    """Return a state as it arrives: values as they are, anything else as json."""
    return {
        key: rules.new_entry(key, content if isinstance(content, Value) else json_value(content))
        for key, content in state.items()
    }


def record(
    task_id: str, index: int = 0, content: object = None, *, path: str = "", name: str = "", overwrite: bool = False
) -> Record:
    """Return a record with a json value."""
    return Record(task_id, index, path, name, json_value(content), overwrite)


class SaveOptions(TypedDict, total=False):
    """What a Save may carry beside its ids and its state."""

    namespace: str
    scope: str
    is_id_generated: bool
    parent_id: str | None
    base_checkpoint_id: str | None
    base_digest: bytes | None
    current_step: str
    steps_added: tuple[str, ...]
    status: Status
    removed_keys: tuple[str, ...]
    metadata: str
    labels: dict[str, str] | None
    definition: str
    fingerprint: str
    run_id: str
    records: tuple[Record, ...]
    history_entries: tuple[str, ...]
    expected_head: str | None
    is_replace: bool
    replaces_digest: bytes | None
    lease_token: int
    release_lease: bool
    consumed_signals: tuple[str, ...]
    manifest: str


def save(
    workflow_id: str, checkpoint_id: str, state: Mapping[str, object] | None = None, **options: Unpack[SaveOptions]
) -> SaveCommand:
    """Return a Save."""
    filled: SaveOptions = {"namespace": NAMESPACE, "scope": "", **options}
    return SaveCommand(workflow_id=workflow_id, checkpoint_id=checkpoint_id, entries=entries(state or {}), **filled)


def append(
    workflow_id: str,
    checkpoint_id: str,
    *records: Record,
    scope: str = "",
    require_checkpoint: bool = False,
    namespace: str = NAMESPACE,
    lease_token: int = 0,
) -> AppendRecordsCommand:
    """Return an AppendRecords."""
    return AppendRecordsCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        records=records,
        require_checkpoint=require_checkpoint,
        lease_token=lease_token,
    )


def delete_workflow(workflow_id: str, *, namespace: str = NAMESPACE, lease_token: int = 0) -> DeleteWorkflowCommand:
    """Return a DeleteWorkflow."""
    return DeleteWorkflowCommand(namespace=namespace, workflow_id=workflow_id, lease_token=lease_token)


def delete_ids(
    workflow_id: str, *checkpoint_ids: str, scope: str = "", namespace: str = NAMESPACE, lease_token: int = 0
) -> DeleteIdsCommand:
    """Return a DeleteCheckpoints by id."""
    return DeleteIdsCommand(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_ids=checkpoint_ids,
        lease_token=lease_token,
    )


class AcquireOptions(TypedDict, total=False):
    """How an AcquireLease may differ from one of a holder "h", for ten seconds."""

    namespace: str
    holder: str
    ttl_ms: int
    request_id: str


def acquire_lease(workflow_id: str, **options: Unpack[AcquireOptions]) -> AcquireLeaseCommand:
    """Return an AcquireLease."""
    filled: AcquireOptions = {"namespace": NAMESPACE, "holder": "h", "ttl_ms": LEASE_TTL_MS, **options}
    return AcquireLeaseCommand(workflow_id=workflow_id, **filled)


def renew_lease(workflow_id: str, token: int) -> RenewLeaseCommand:
    """Return a RenewLease."""
    return RenewLeaseCommand(namespace=NAMESPACE, workflow_id=workflow_id, lease_token=token)


def release_lease(workflow_id: str, token: int = 0, *, force: bool = False) -> ReleaseLeaseCommand:
    """Return a ReleaseLease."""
    return ReleaseLeaseCommand(namespace=NAMESPACE, workflow_id=workflow_id, lease_token=token, force=force)


def send_signal(
    workflow_id: str, signal_id: str, name: str = "n", value: Value | None = None, *, namespace: str = NAMESPACE
) -> SendSignalCommand:
    """Return a SendSignal."""
    return SendSignalCommand(namespace=namespace, workflow_id=workflow_id, signal_id=signal_id, name=name, value=value)


def manifest_of(content: object) -> tuple[str, str]:
    """Return a manifest and its fingerprint."""
    text = json.dumps(content)
    return text, rules.digest_manifest(text)


class ListSignalsOptions(TypedDict, total=False):
    """How a ListSignals may differ from a first page of all of them."""

    name: str | None
    page_size: int
    bytes_max: int
    incarnation: str
    after_number: int


def list_signals_query(workflow_id: str, **options: Unpack[ListSignalsOptions]) -> ListSignalsQuery:
    """Return a ListSignals."""
    filled: ListSignalsOptions = {
        "name": None,
        "page_size": DEFAULT_LIMITS.page_size_max,
        "bytes_max": DEFAULT_LIMITS.page_bytes_max,
        **options,
    }
    return ListSignalsQuery(namespace=NAMESPACE, workflow_id=workflow_id, **filled)


class ForkOptions(TypedDict, total=False):
    """What a fork may say beside its source and its target."""

    namespace: str
    scope: str
    checkpoint_id: str | None
    mode: ForkMode
    fork_id: str
    position: tuple[int, ...]


def fork(workflow_id: str, target_workflow_id: str, **options: Unpack[ForkOptions]) -> ForkCommand:
    """Return one slice of a ForkWorkflow."""
    filled: ForkOptions = {
        "namespace": NAMESPACE,
        "scope": "",
        "checkpoint_id": None,
        "mode": ForkMode.ANCESTORS,
        "fork_id": "",
        **options,
    }
    return ForkCommand(workflow_id=workflow_id, target_workflow_id=target_workflow_id, **filled)


def load_query(
    workflow_id: str,
    checkpoint_id: str | None = None,
    *,
    scope: str = "",
    sequence: int | None = None,
    statuses: Sequence[Status] = (),
    selection: Selection | None = None,
    namespace: str = NAMESPACE,
) -> LoadQuery:
    """Return a Load: of the head where nothing else is said."""
    return LoadQuery(
        namespace=namespace,
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
        sequence=sequence,
        statuses=frozenset(map(int, statuses)),
        selection=selection or Selection(),
    )


class ListOptions(TypedDict, total=False):
    """How a List may differ from a first page of all scopes, newest first."""

    namespace: str
    scope: str | None
    newest_first: bool
    filter: CheckpointFilter
    selection: Selection
    page_size: int
    bytes_max: int
    rows_examined_max: int
    incarnation: str
    position: int | None
    sequence_max: int | None


def list_query(workflow_id: str, **options: Unpack[ListOptions]) -> ListQuery:
    """Return a List."""
    filled: ListOptions = {
        "namespace": NAMESPACE,
        "scope": None,
        "newest_first": True,
        "filter": CheckpointFilter(),
        "selection": Selection(with_state=False, with_steps=False, with_records=False),
        "page_size": DEFAULT_LIMITS.page_size_max,
        "bytes_max": DEFAULT_LIMITS.page_bytes_max,
        "rows_examined_max": DEFAULT_LIMITS.page_rows_examined_max,
        **options,
    }
    return ListQuery(workflow_id=workflow_id, **filled)


class ListWorkflowsOptions(TypedDict, total=False):
    """How a ListWorkflows may differ from a first page of all workflows."""

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
    after_workflow_id: str | None
    is_leased: bool | None
    has_pending_signals: bool | None
    fingerprint: str | None


def list_workflows_query(**options: Unpack[ListWorkflowsOptions]) -> ListWorkflowsQuery:
    """Return a ListWorkflows."""
    filled: ListWorkflowsOptions = {
        "namespace": NAMESPACE,
        "prefix": "",
        "statuses": frozenset(),
        "labels": {},
        "definition": None,
        "updated_from_ms": None,
        "updated_before_ms": None,
        "page_size": DEFAULT_LIMITS.page_size_max,
        "bytes_max": DEFAULT_LIMITS.page_bytes_max,
        "rows_examined_max": DEFAULT_LIMITS.page_rows_examined_max,
        **options,
    }
    return ListWorkflowsQuery(**filled)


class HistoryOptions(TypedDict, total=False):
    """How an entry history may differ from a first page that starts at the root scope's head."""

    namespace: str
    scope: str
    checkpoint_id: str | None
    page_size: int
    bytes_max: int
    rows_examined_max: int
    incarnation: str
    position: int | None


def history_query(workflow_id: str, *entry_keys: str, **options: Unpack[HistoryOptions]) -> EntryHistoryQuery:
    """Return a GetEntryHistory."""
    filled: HistoryOptions = {
        "namespace": NAMESPACE,
        "scope": "",
        "checkpoint_id": None,
        "page_size": DEFAULT_LIMITS.page_size_max,
        "bytes_max": DEFAULT_LIMITS.page_bytes_max,
        "rows_examined_max": DEFAULT_LIMITS.page_rows_examined_max,
        **options,
    }
    return EntryHistoryQuery(workflow_id=workflow_id, entry_keys=entry_keys, **filled)


class Refusal:
    """Where `refused` puts the error it caught."""

    error: StoreError


@contextmanager
def refused(reason: str) -> Iterator[Refusal]:
    """Expect the store to refuse, with just this reason."""
    caught = Refusal()
    with pytest.raises(StoreError) as raised:
        yield caught
    caught.error = raised.value
    assert raised.value.reason == reason, raised.value.message


class Store:
    """An engine driven one command at a time: bulk commands run to their end, refusals are raised."""

    def __init__(self, engine: Engine, count_rows: CountRows) -> None:
        self.engine = engine
        self._count_rows = count_rows

    def run(self, command: Command, expect: type[_A]) -> _A:
        """Run one command as a batch of its own."""
        (answer,) = self.engine.execute([command])
        if isinstance(answer, StoreError):
            raise answer
        assert isinstance(answer, expect)
        return answer

    def save(
        self,
        workflow_id: str,
        checkpoint_id: str,
        state: Mapping[str, object] | None = None,
        **options: Unpack[SaveOptions],
    ) -> SaveAnswer:
        """Store one checkpoint."""
        return self.run(save(workflow_id, checkpoint_id, state, **options), SaveAnswer)

    def save_line(self, workflow_id: str, *checkpoint_ids: str, **options: Unpack[SaveOptions]) -> None:
        """Store checkpoints one after another, each the next one's parent, with state {"at": its id}."""
        for checkpoint_id in checkpoint_ids:
            self.save(workflow_id, checkpoint_id, {"at": checkpoint_id}, **options)

    def send(self, workflow_id: str, signal_id: str, name: str = "n", value: Value | None = None) -> SendSignalAnswer:
        """Send a signal."""
        return self.run(send_signal(workflow_id, signal_id, name, value), SendSignalAnswer)

    def list_signals(self, workflow_id: str, **options: Unpack[ListSignalsOptions]) -> ListSignalsAnswer:
        """Read one page of pending signals."""
        return self.engine.list_signals(list_signals_query(workflow_id, **options))

    def signals(self, workflow_id: str, **options: Unpack[ListSignalsOptions]) -> list[Signal]:
        """Read one page of pending signals; return them."""
        return list(self.list_signals(workflow_id, **options).signals)

    def pending(self, workflow_id: str) -> list[str]:
        """Return the ids of pending signals that a Load tells."""
        return [each.signal_id for each in self.load_answer(workflow_id).pending_signals]

    def load_answer(self, workflow_id: str) -> LoadAnswer:
        """Read the root head, and what stands beside it."""
        return self._load(load_query(workflow_id))

    def definition(self, fingerprint: str, *, namespace: str = NAMESPACE) -> str:
        """Read a manifest."""
        return self.engine.get_definition(namespace, fingerprint).manifest

    def append(
        self,
        workflow_id: str,
        checkpoint_id: str,
        *records: Record,
        scope: str = "",
        require_checkpoint: bool = False,
        lease_token: int = 0,
    ) -> AppendRecordsAnswer:
        """Append records."""
        command = append(
            workflow_id,
            checkpoint_id,
            *records,
            scope=scope,
            require_checkpoint=require_checkpoint,
            lease_token=lease_token,
        )
        return self.run(command, AppendRecordsAnswer)

    def delete_workflow(self, workflow_id: str, *, lease_token: int = 0) -> DeleteWorkflowAnswer:
        """Delete a workflow."""
        return self.run(delete_workflow(workflow_id, lease_token=lease_token), DeleteWorkflowAnswer)

    def delete_ids(self, workflow_id: str, *checkpoint_ids: str, scope: str = "", lease_token: int = 0) -> int:
        """Delete checkpoints by id; return how many there were."""
        command = delete_ids(workflow_id, *checkpoint_ids, scope=scope, lease_token=lease_token)
        return self.run(command, BulkAnswer).deleted

    def delete_run_slice(
        self, run_id: str, after: BulkAnswer | None = None, *, workflow_id: str = "", lease_token: int = 0
    ) -> BulkAnswer:
        """Delete one slice of a run, the first one or that after another."""
        command = DeleteRunCommand(
            namespace=NAMESPACE,
            workflow_id=workflow_id,
            run_id=run_id,
            position=after.position or () if after is not None else (),
            row_id_end=after.row_id_end if after is not None else 0,
            lease_token=lease_token,
        )
        return self.run(command, BulkAnswer)

    def delete_run(
        self, run_id: str, after: BulkAnswer | None = None, *, workflow_id: str = "", lease_token: int = 0
    ) -> int:
        """Delete what is left of a run, slice by slice; return how many checkpoints there were."""
        deleted = 0
        for _ in range(SLICES_MAX):
            after = self.delete_run_slice(run_id, after, workflow_id=workflow_id, lease_token=lease_token)
            deleted += after.deleted
            if after.position is None:
                return deleted
        raise AssertionError("a delete by run did not end")

    def prune_slice(
        self, workflow_id: str, keep_last: int, after: BulkAnswer | None = None, *, is_dry_run: bool = False
    ) -> BulkAnswer:
        """Prune one slice, the first one or that after another."""
        command = PruneCommand(
            namespace=NAMESPACE,
            workflow_id=workflow_id,
            keep_last=keep_last,
            position=after.position or () if after is not None else (),
            needs=after.needs if after is not None else (),
            is_dry_run=is_dry_run,
        )
        return self.run(command, BulkAnswer)

    def prune(self, workflow_id: str, keep_last: int, *, is_dry_run: bool = False) -> int:
        """Prune slice by slice to the end; return how many checkpoints were deleted."""
        return self.prune_rest(workflow_id, keep_last, None, is_dry_run=is_dry_run)

    def prune_rest(
        self, workflow_id: str, keep_last: int, after: BulkAnswer | None, *, is_dry_run: bool = False
    ) -> int:
        """Prune what is left after a slice; return how many checkpoints were deleted."""
        deleted = 0
        for _ in range(SLICES_MAX):
            after = self.prune_slice(workflow_id, keep_last, after, is_dry_run=is_dry_run)
            deleted += after.deleted
            if after.position is None:
                return deleted
        raise AssertionError("a prune did not end")

    def fork_slice(self, workflow_id: str, target_workflow_id: str, **options: Unpack[ForkOptions]) -> ForkAnswer:
        """Copy one slice of a fork."""
        return self.run(fork(workflow_id, target_workflow_id, **options), ForkAnswer)

    def fork(self, workflow_id: str, target_workflow_id: str, **options: Unpack[ForkOptions]) -> ForkAnswer:
        """Fork slice by slice to the end."""
        answer = self.fork_slice(workflow_id, target_workflow_id, **options)
        for _ in range(SLICES_MAX):
            if answer.position is None:
                return answer
            options["position"] = answer.position
            answer = self.fork_slice(workflow_id, target_workflow_id, **options)
        raise AssertionError("a fork did not end")

    def abandon_fork(self, target_internal_id: int) -> None:
        """Throw away an unpublished fork."""
        self.run(AbandonForkCommand(target_internal_id=target_internal_id), BulkAnswer)

    def sweep(self, rows_max: int = DEFAULT_LIMITS.slice_rows_max) -> int:
        """Sweep until nothing is left to do; return how many rows were freed."""
        freed = 0
        for _ in range(SLICES_MAX):
            answer = self.run(SweepCommand(rows_max=rows_max), SweepAnswer)
            freed += answer.rows_freed
            if not answer.has_more:
                return freed
        raise AssertionError("a sweep did not end")

    def load(
        self,
        workflow_id: str,
        checkpoint_id: str | None = None,
        *,
        scope: str = "",
        sequence: int | None = None,
        statuses: Sequence[Status] = (),
        selection: Selection | None = None,
    ) -> LoadedCheckpoint:
        """Read one checkpoint: the head where nothing else is said."""
        query = load_query(
            workflow_id, checkpoint_id, scope=scope, sequence=sequence, statuses=statuses, selection=selection
        )
        return self._load(query).checkpoint

    def state(self, workflow_id: str, checkpoint_id: str | None = None, *, scope: str = "") -> dict[str, object]:
        """Read a state whose values are all json."""
        loaded = self.load(workflow_id, checkpoint_id, scope=scope)
        assert loaded.entries is not None
        return {key: json.loads(value.payload) for key, value in loaded.entries.items()}

    def head(self, workflow_id: str, scope: str = "") -> str:
        """Return the id of a scope's head."""
        return self._load(load_query(workflow_id, scope=scope)).head_checkpoint_id

    def _load(self, query: LoadQuery) -> LoadAnswer:
        for _ in range(SLICES_MAX):
            answer = self.engine.load(query)
            if not isinstance(answer, LongLoad):
                return answer
            query = msgspec.structs.replace(query, position=answer.position)
        raise AssertionError("a load did not end")

    def page(self, workflow_id: str, **options: Unpack[ListOptions]) -> ListAnswer:
        """Read one page of checkpoints."""
        return self.engine.list_checkpoints(list_query(workflow_id, **options))

    def ids(self, workflow_id: str, **options: Unpack[ListOptions]) -> list[str]:
        """Read one page of checkpoints; return their ids."""
        return [loaded.row.checkpoint_id for loaded in self.page(workflow_id, **options).checkpoints]

    def get_workflow(self, workflow_id: str) -> WorkflowRow:
        """Read a workflow."""
        return self.engine.get_workflow(NAMESPACE, workflow_id).workflow

    def shown_lease(self, workflow_id: str) -> LeaseState | None:
        """Read the lease that a workflow shows: the live one."""
        return self.engine.get_workflow(NAMESPACE, workflow_id).lease

    def get_lease(self, workflow_id: str) -> LeaseState | None:
        """Read a lease, live or expired."""
        return self.engine.get_lease(NAMESPACE, workflow_id).lease

    def acquire(self, workflow_id: str, **options: Unpack[AcquireOptions]) -> LeaseAnswer:
        """Take a lease."""
        return self.run(acquire_lease(workflow_id, **options), LeaseAnswer)

    def renew(self, workflow_id: str, token: int) -> LeaseAnswer:
        """Renew a lease."""
        return self.run(renew_lease(workflow_id, token), LeaseAnswer)

    def release(self, workflow_id: str, token: int = 0, *, force: bool = False) -> bool:
        """Release or break a lease; tell whether there was one."""
        return self.run(release_lease(workflow_id, token, force=force), ReleaseLeaseAnswer).released

    def list_workflows(self, **options: Unpack[ListWorkflowsOptions]) -> ListWorkflowsAnswer:
        """Read one page of workflows."""
        return self.engine.list_workflows(list_workflows_query(**options))

    def workflow_ids(self, **options: Unpack[ListWorkflowsOptions]) -> list[str]:
        """Read one page of workflows; return their ids."""
        return [answer.workflow.workflow_id for answer in self.list_workflows(**options).workflows]

    def history(self, workflow_id: str, *entry_keys: str, **options: Unpack[HistoryOptions]) -> EntryHistoryAnswer:
        """Read one page of what entries were."""
        return self.engine.entry_history(history_query(workflow_id, *entry_keys, **options))

    def count(self, what: str) -> int:
        """Return how many rows of a kind the engine keeps, live or discarded and not yet freed."""
        return self._count_rows(self.engine, what)


def is_found(store: Store, workflow_id: str) -> bool:
    """Tell whether readers see a workflow."""
    try:
        store.get_workflow(workflow_id)
    except NotFoundError:
        return False
    return True
