"""The queries, each in one read transaction: what Load, List and their kin answer.

Every function takes a `ReadTransaction` and answers or raises a `StoreError`. Work is bounded by what is answered and,
where rows are filtered, by `rows_examined_max`; an engine decides how long one transaction may stay open.
"""

from __future__ import annotations

from collections.abc import Iterable

from milepost_server import rules
from milepost_server.errors import NotFoundError, StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    CheckpointRow,
    DefinitionAnswer,
    EntryHistoryAnswer,
    EntryHistoryQuery,
    EntryRef,
    EntryVersion,
    LeaseQueryAnswer,
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
    Record,
    ScopeRow,
    Selection,
    Signal,
    Value,
    WorkflowAnswer,
    WorkflowRow,
    utf8_bytes,
)
from milepost_server.storage import leases, lookups, signals
from milepost_server.storage.port import NameRow, ReadTransaction

VERSION_WIRE_BYTES = 512
"""What a version of an entry costs on the wire beside the entry: a checkpoint_id, and the rest about."""
SIGNAL_WIRE_BYTES = 640
"""What a signal costs on the wire beside its value, at most."""
SLICE_ROWS_MAX = 1_000
"""Rows that one read transaction examines: a longer one would keep LMDB from reusing pages freed since it began."""


def load(txn: ReadTransaction, query: LoadQuery, limits: Limits) -> LoadAnswer | LongLoad:
    """Read one checkpoint, or return where a look for a status goes on that found none among a slice's rows."""
    name, workflow = lookups.require_workflow(txn, query.namespace, query.workflow_id)
    scope = _find_scope(txn, name, workflow, query.scope)
    row: CheckpointRow | LongLoad | None = None
    if scope is not None and query.statuses:
        row = _find_status(txn, workflow, scope, query)
    elif scope is not None:
        row = _find_row(txn, name, workflow, scope, query)
    if isinstance(row, LongLoad):
        return row
    if row is None or scope is None:
        raise _no_checkpoint(query, workflow)
    return LoadAnswer(
        workflow=workflow,
        head_checkpoint_id=scope.head_checkpoint_id,
        checkpoint=_read_checkpoint(txn, name, workflow, row, query.selection),
        pending_signals=signals.pending(txn, workflow, limits),
    )


def _find_row(
    txn: ReadTransaction, name: NameRow, workflow: WorkflowRow, scope: ScopeRow, query: LoadQuery
) -> CheckpointRow | None:
    if query.checkpoint_id is not None:
        id_row = txn.find_id(name.name_id, scope.ordinal, query.checkpoint_id)
        if id_row is None or id_row.internal_id != workflow.internal_id or id_row.deleted_time_ms:
            return None
        return lookups.get_indexed(txn, workflow, id_row.sequence)
    if query.sequence is not None:
        row = txn.get_checkpoint(workflow.internal_id, query.sequence)
        return row if row is not None and row.scope_ordinal == scope.ordinal else None
    return lookups.get_indexed(txn, workflow, scope.head_sequence) if scope.head_checkpoint_id else None


def _find_status(
    txn: ReadTransaction, workflow: WorkflowRow, scope: ScopeRow, query: LoadQuery
) -> CheckpointRow | LongLoad | None:
    start = None
    if query.position is not None and query.position[0] == workflow.internal_id:
        start = query.position[1]
    sequences = txn.sequences(workflow.internal_id, scope.ordinal, newest_first=True, start=start)
    for examined, sequence in enumerate(sequences):
        if examined == SLICE_ROWS_MAX:
            return LongLoad((workflow.internal_id, sequence))
        row = lookups.get_indexed(txn, workflow, sequence)
        if row.status in query.statuses:
            return row
    return None


def list_checkpoints(txn: ReadTransaction, query: ListQuery) -> ListAnswer:
    """Read one page of a workflow's checkpoints."""
    name, workflow = lookups.require_workflow(txn, query.namespace, query.workflow_id)
    _check_incarnation(workflow, query.incarnation)
    sequence_max = workflow.last_sequence if query.sequence_max is None else query.sequence_max
    scope_ordinal = None
    if query.scope is not None:
        scope = _find_scope(txn, name, workflow, query.scope)
        if scope is None:
            return ListAnswer(workflow=workflow, checkpoints=(), position=None, sequence_max=sequence_max)
        scope_ordinal = scope.ordinal
    if query.position is None:
        start = sequence_max if query.newest_first else None
    else:
        start = query.position - 1 if query.newest_first else query.position + 1
    found: list[LoadedCheckpoint] = []
    bytes_left = query.bytes_max
    filter_items = rules.filter_items(query.filter.metadata_contains)
    examined = 0
    is_full = False
    position: int | None = query.position
    for sequence in txn.sequences(workflow.internal_id, scope_ordinal, newest_first=query.newest_first, start=start):
        if sequence > sequence_max:
            position = None
            break
        is_full = len(found) == query.page_size
        if is_full or examined >= query.rows_examined_max:
            break
        row = lookups.get_indexed(txn, workflow, sequence)
        if rules.matches(row, query.filter):
            size_bytes = _answer_bytes(txn, workflow, row, query.selection)
            is_full = size_bytes > bytes_left and bool(found or query.is_page_started)
            if is_full:
                break
            bytes_left -= size_bytes
            found.append(_read_checkpoint(txn, name, workflow, row, query.selection))
        examined += rules.rows_worth(row, filter_items)
        position = sequence
    else:
        position = None
    return ListAnswer(
        workflow=workflow,
        checkpoints=tuple(found),
        position=position,
        sequence_max=sequence_max,
        rows_examined=examined,
        bytes_left=bytes_left,
        is_full=is_full,
    )


def get_workflow(txn: ReadTransaction, namespace: str, workflow_id: str) -> WorkflowAnswer:
    """Read one workflow, and the lease that is live."""
    name, workflow = lookups.require_workflow(txn, namespace, workflow_id)
    return WorkflowAnswer(workflow, leases.state_of(txn, name, live_only=True))


def get_lease(txn: ReadTransaction, namespace: str, workflow_id: str) -> LeaseQueryAnswer:
    """Read a workflow's lease, also while it has expired and nobody else has acted."""
    return LeaseQueryAnswer(leases.state_of(txn, txn.find_name(namespace, workflow_id), live_only=False))


def list_signals(txn: ReadTransaction, query: ListSignalsQuery) -> ListSignalsAnswer:
    """Read one page of a workflow's pending signals."""
    _, workflow = lookups.require_workflow(txn, query.namespace, query.workflow_id)
    _check_incarnation(workflow, query.incarnation)
    found: list[Signal] = []
    bytes_left = query.bytes_max
    waiting = list(txn.pending_signals(workflow.internal_id, query.after_number))
    if not query.after_number:
        lookups.check_signal_count(workflow, len(waiting), workflow.pending_signal_count)
    for pending in waiting:
        if query.name is not None and pending.name != query.name:
            continue
        if len(found) == query.page_size:
            return ListSignalsAnswer(workflow=workflow, signals=tuple(found), position=found[-1].number)
        signal = txn.get_signal(workflow.internal_id, pending.number)
        bytes_left -= SIGNAL_WIRE_BYTES + (len(signal.value.payload) if signal.value is not None else 0)
        if bytes_left < 0 and found:
            return ListSignalsAnswer(workflow=workflow, signals=tuple(found), position=found[-1].number)
        found.append(signal)
    return ListSignalsAnswer(workflow=workflow, signals=tuple(found), position=None)


def get_definition(txn: ReadTransaction, namespace: str, fingerprint: str) -> DefinitionAnswer:
    """Read the manifest of a fingerprint."""
    manifest = txn.find_manifest(namespace, fingerprint)
    if manifest is None:
        raise NotFoundError(
            "DEFINITION_NOT_FOUND",
            f"no manifest was stored under fingerprint {fingerprint!r} in namespace {namespace!r}",
            {"fingerprint": fingerprint},
        )
    return DefinitionAnswer(manifest)


def list_workflows(txn: ReadTransaction, query: ListWorkflowsQuery) -> ListWorkflowsAnswer:
    """Read one page of a namespace's workflows."""
    namespace_id = txn.find_namespace(query.namespace)
    if namespace_id is None:
        return ListWorkflowsAnswer(workflows=(), after_workflow_id=None)
    found: list[WorkflowAnswer] = []
    bytes_left = query.bytes_max
    examined = 0
    after = query.after_workflow_id
    names = txn.workflow_names(
        namespace_id,
        query.prefix,
        after,
        statuses=query.statuses,
        has_pending_signals=query.has_pending_signals,
    )
    for name in names:
        is_full = len(found) == query.page_size or bytes_left <= 0
        if is_full or examined == query.rows_examined_max:
            return ListWorkflowsAnswer(
                workflows=tuple(found),
                after_workflow_id=after,
                rows_examined=examined,
                bytes_left=bytes_left,
                is_full=is_full,
            )
        examined += 1
        after = name.workflow_id
        workflow = lookups.present_workflow(txn, name)
        if workflow is None or not rules.matches_workflow(
            workflow,
            statuses=query.statuses,
            labels=query.labels,
            definition=query.definition,
            updated_from_ms=query.updated_from_ms,
            updated_before_ms=query.updated_before_ms,
            has_pending_signals=query.has_pending_signals,
            fingerprint=query.fingerprint,
        ):
            continue
        lease = leases.state_of(txn, name, live_only=True)
        if query.is_leased is not None and (lease is not None) is not query.is_leased:
            continue
        found.append(WorkflowAnswer(workflow, lease))
        bytes_left -= rules.listed_workflow_bytes(workflow, lease)
    return ListWorkflowsAnswer(workflows=tuple(found), after_workflow_id=None)


def entry_history(txn: ReadTransaction, query: EntryHistoryQuery) -> EntryHistoryAnswer:
    """Read one page of the values that entries had along a line of ancestors, newest first.

    A value is told with the oldest checkpoint of an unbroken stretch that has it: the one that brought it.
    """
    name, workflow = lookups.require_workflow(txn, query.namespace, query.workflow_id)
    _check_incarnation(workflow, query.incarnation)
    scope = _find_scope(txn, name, workflow, query.scope)
    row: CheckpointRow | None = None
    if scope is not None and query.position is not None:
        row = txn.get_checkpoint(workflow.internal_id, query.position)
    elif scope is not None:
        wanted = LoadQuery(
            namespace=query.namespace,
            workflow_id=query.workflow_id,
            scope=query.scope,
            checkpoint_id=query.checkpoint_id,
        )
        row = _find_row(txn, name, workflow, scope, wanted)
    if row is None or scope is None:
        if query.position is not None:
            return EntryHistoryAnswer(workflow=workflow, versions=(), position=None, ancestors_pruned=True)
        raise NotFoundError(
            "CHECKPOINT_NOT_FOUND",
            f"workflow {query.workflow_id!r} has no checkpoint {query.checkpoint_id or ''!r} in scope {query.scope!r}",
            {"workflow_id": query.workflow_id, "scope": query.scope, "checkpoint_id": query.checkpoint_id or ""},
        )
    versions: list[EntryVersion] = []
    bytes_left = query.bytes_max
    examined = 0
    mine = txn.lookup_entries(workflow.family_id, row.node_id, query.entry_keys)
    while True:
        examined += 1
        parent = _find_parent(txn, name, workflow, row)
        theirs = txn.lookup_entries(workflow.family_id, parent.node_id, query.entry_keys) if parent is not None else {}
        changed = [key for key in query.entry_keys if not _is_same(mine.get(key), theirs.get(key))]
        changed_bytes = sum(
            VERSION_WIRE_BYTES + (mine[key].size_bytes if key in mine else utf8_bytes(key)) for key in changed
        )
        if changed_bytes > bytes_left and (versions or query.is_page_started):
            # All that one checkpoint brought fits one answer, as its whole state does; two of them may not.
            return EntryHistoryAnswer(
                workflow=workflow,
                versions=tuple(versions),
                position=row.sequence,
                ancestors_pruned=False,
                rows_examined=examined,
                is_full=True,
            )
        bytes_left -= changed_bytes
        for key in changed:
            value = txn.read_value(workflow.family_id, mine[key]) if key in mine else None
            versions.append(
                EntryVersion(entry_key=key, checkpoint_id=row.checkpoint_id, sequence=row.sequence, value=value)
            )
        if parent is None:
            return EntryHistoryAnswer(
                workflow=workflow,
                versions=tuple(versions),
                position=None,
                ancestors_pruned=bool(row.parent_id),
            )
        is_full = len(versions) >= query.page_size or bytes_left <= 0
        if is_full or examined >= query.rows_examined_max:
            return EntryHistoryAnswer(
                workflow=workflow,
                versions=tuple(versions),
                position=parent.sequence,
                ancestors_pruned=False,
                rows_examined=examined,
                bytes_left=bytes_left,
                is_full=is_full,
            )
        row, mine = parent, theirs


def _is_same(ref: EntryRef | None, other: EntryRef | None) -> bool:
    if ref is None or other is None:
        return ref is other
    return ref.digest == other.digest


# Shared steps.


def _read_checkpoint(
    txn: ReadTransaction, name: NameRow, workflow: WorkflowRow, row: CheckpointRow, selection: Selection
) -> LoadedCheckpoint:
    entries: dict[str, Value] | None = None
    steps: tuple[str, ...] = ()
    if selection.with_state and selection.entry_keys is not None and not selection.with_steps:
        refs = txn.lookup_entries(workflow.family_id, row.node_id, selection.entry_keys)
        entries = _read_values(txn, workflow, refs.items())
    elif selection.with_state or selection.with_steps:
        state = txn.resolve_state(workflow.family_id, row.node_id)
        if len(state.entries) != row.entry_count or len(state.steps) != row.step_count:
            raise StoreError(
                "RECORD_DAMAGED",
                f"checkpoint {row.checkpoint_id!r} has {len(state.entries)} entries and {len(state.steps)} steps "
                f"stored, not {row.entry_count} and {row.step_count}",
                {"table": "nodes", "key": f"{workflow.family_id:016x}{row.node_id:016x}"},
            )
        if selection.with_steps:
            steps = tuple(state.steps)
        if selection.with_state:
            wanted: Iterable[tuple[str, EntryRef]] = state.entries.items()
            if selection.entry_keys is not None:
                keys = dict.fromkeys(selection.entry_keys)
                wanted = [(key, state.entries[key]) for key in keys if key in state.entries]
            entries = _read_values(txn, workflow, wanted)
    records: tuple[Record, ...] = ()
    group = txn.find_record_group(workflow.internal_id, row.scope_ordinal, row.checkpoint_id)
    if group is not None and selection.with_records:
        records = rules.sort_records(txn.records(workflow.internal_id, row.scope_ordinal, row.checkpoint_id))
        if len(records) != group.record_count:
            raise StoreError(
                "RECORD_DAMAGED",
                f"checkpoint {row.checkpoint_id!r} has {len(records)} records stored, not {group.record_count}",
                {"table": "records", "key": f"{workflow.internal_id:016x}"},
            )
    return LoadedCheckpoint(
        row=row,
        parent_pruned=bool(row.parent_id) and not _has_parent(txn, name, workflow, row),
        record_count=group.record_count if group is not None else 0,
        entries=entries,
        steps=steps,
        records=records,
    )


def _read_values(txn: ReadTransaction, workflow: WorkflowRow, refs: Iterable[tuple[str, EntryRef]]) -> dict[str, Value]:
    return {key: txn.read_value(workflow.family_id, ref) for key, ref in refs}


def _answer_bytes(txn: ReadTransaction, workflow: WorkflowRow, row: CheckpointRow, selection: Selection) -> int:
    size_bytes = rules.listed_bytes(workflow, row)
    if selection.with_state:
        size_bytes += row.entries_bytes
    if selection.with_records:
        group = txn.find_record_group(workflow.internal_id, row.scope_ordinal, row.checkpoint_id)
        size_bytes += group.record_bytes if group is not None else 0
    return size_bytes


def _has_parent(txn: ReadTransaction, name: NameRow, workflow: WorkflowRow, row: CheckpointRow) -> bool:
    id_row = txn.find_id(name.name_id, row.scope_ordinal, row.parent_id)
    return lookups.leads_to_parent(workflow, row, id_row)


def _find_parent(
    txn: ReadTransaction, name: NameRow, workflow: WorkflowRow, row: CheckpointRow
) -> CheckpointRow | None:
    if not row.parent_id:
        return None
    id_row = txn.find_id(name.name_id, row.scope_ordinal, row.parent_id)
    if id_row is None or not lookups.leads_to_parent(workflow, row, id_row):
        return None
    return lookups.get_indexed(txn, workflow, id_row.sequence)


def _find_scope(txn: ReadTransaction, name: NameRow, workflow: WorkflowRow, scope: str) -> ScopeRow | None:
    row = lookups.present_scope(txn, name, workflow, scope)
    return row if row is not None and row.internal_id == workflow.internal_id else None


def _check_incarnation(workflow: WorkflowRow, incarnation: str) -> None:
    if incarnation and incarnation != workflow.incarnation:
        raise StoreError(
            "PAGE_EXPIRED",
            f"page_token: workflow {workflow.workflow_id!r} was deleted and made again since; start at the first page",
            {"workflow_id": workflow.workflow_id},
        )


def _no_checkpoint(query: LoadQuery, workflow: WorkflowRow) -> NotFoundError:
    if query.checkpoint_id is not None:
        what, detail = f"no checkpoint {query.checkpoint_id!r}", {"checkpoint_id": query.checkpoint_id}
    elif query.sequence is not None:
        what, detail = f"no checkpoint with sequence {query.sequence}", {"sequence": str(query.sequence)}
    elif query.statuses:
        what, detail = "no checkpoint with a wanted status", {}
    else:
        what, detail = "no checkpoint", {}
    return NotFoundError(
        "CHECKPOINT_NOT_FOUND",
        f"workflow {workflow.workflow_id!r} has {what} in scope {query.scope!r}",
        {"workflow_id": workflow.workflow_id, "scope": query.scope, **detail},
    )
