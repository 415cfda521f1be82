"""Deletes: a workflow whole, checkpoints by id or by execution, and what a prune finds old.

What is deleted leaves a stub of its id; what it held is freed by the sweeper.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import msgspec

from milepost_server import rules
from milepost_server.errors import StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    BulkAnswer,
    CheckpointRow,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowAnswer,
    DeleteWorkflowCommand,
    IdRow,
    PruneCommand,
    ScopeRow,
    WorkflowChange,
    WorkflowRow,
    utf8_bytes,
)
from milepost_server.storage import leases, lookups
from milepost_server.storage.port import NameRow, ReadTransaction, WriteTransaction

ROWS_PER_KEPT = 2
"""Rows that passing over a checkpoint touches, about."""
NEEDS_BYTES_MAX = 4_096
"""What a prune carries of needed ancestors from slice to slice: a continue token must hold it."""
NEED_BYTES = 16
"""What a needed ancestor, or a key of one, takes in a token beside its text, at most."""

_replace = msgspec.structs.replace


def delete_workflow(txn: WriteTransaction, command: DeleteWorkflowCommand, limits: Limits) -> DeleteWorkflowAnswer:
    """Unlink a workflow: one small commit, whatever its size."""
    name = txn.find_name(command.namespace, command.workflow_id)
    workflow = lookups.present_workflow(txn, name)
    if name is None or (workflow is None and not name.has_lease):
        # Nothing is there to be guarded, so a repeated delete is none whose lease was lost.
        return DeleteWorkflowAnswer(False, 0)
    leases.check(txn, name, command.workflow_id, command.lease_token)
    if name.has_lease:
        name = leases.end(txn, name)
    if workflow is None:
        txn.forget_name_if_unused(name)
        return DeleteWorkflowAnswer(False, 0)
    # A fork that is being made under this name began before the workflow was saved: it must not be published now.
    txn.put_name(_replace(name, internal_id=0, building_id=0))
    txn.discard_workflow(workflow, forget_ids=False)
    gone = _replace(workflow, revision=workflow.revision + 1)
    return DeleteWorkflowAnswer(rules.is_visible(workflow), workflow.checkpoint_count, rules.change_of(gone))


def delete_ids(txn: WriteTransaction, command: DeleteIdsCommand, limits: Limits) -> BulkAnswer:
    """Delete checkpoints of one scope by id, passing over those that are not there."""
    name, workflow = lookups.require_workflow(txn, command.namespace, command.workflow_id)
    fence = leases.check(txn, name, command.workflow_id, command.lease_token)
    scope = txn.find_scope(name.name_id, command.scope)
    if scope is None:
        return BulkAnswer(0, None)
    rows = []
    for checkpoint_id in dict.fromkeys(command.checkpoint_ids):
        row = lookups.find_checkpoint(txn, name, workflow, scope, checkpoint_id)
        if row is not None:
            rows.append(row)
    if not rows:
        return BulkAnswer(0, None)
    name = leases.end_outlived(txn, name, fence)
    return BulkAnswer(len(rows), None, (_delete_rows(txn, name, workflow, rows),))


def delete_run(txn: WriteTransaction, command: DeleteRunCommand, limits: Limits) -> BulkAnswer:
    """Delete one slice of an execution's checkpoints, in one workflow or in all of a namespace.

    What comes after the first slice stays, in whatever workflow and whatever the clock tells: its row has a number
    beyond the one that the first slice took.
    """
    only_id = 0
    if command.workflow_id:
        only_name, only = lookups.require_workflow(txn, command.namespace, command.workflow_id)
        leases.check(txn, only_name, command.workflow_id, command.lease_token)
        only_id = only.internal_id
    row_id_end = command.row_id_end or txn.new_id()
    namespace_id = txn.find_namespace(command.namespace)
    if namespace_id is None:
        return BulkAnswer(0, None, row_id_end=row_id_end)
    after = (command.position[0], command.position[1]) if command.position else (only_id, 0)
    rows_by_workflow: dict[int, list[CheckpointRow]] = {}
    position: tuple[int, ...] | None = None
    found = txn.run_checkpoints(namespace_id, command.run_id, after)
    for examined, (internal_id, sequence) in enumerate(found, start=1):
        if only_id and internal_id != only_id:
            break
        row_id = txn.checkpoint_row_id(internal_id, sequence)
        row = txn.get_checkpoint(internal_id, sequence) if row_id is not None and row_id < row_id_end else None
        if row is not None:
            rows_by_workflow.setdefault(internal_id, []).append(row)
        if examined * lookups.ROWS_PER_CHECKPOINT >= limits.slice_rows_max:
            position = (internal_id, sequence)
            break
    deleted = 0
    changes: list[WorkflowChange] = []
    for internal_id, rows in rows_by_workflow.items():
        workflow = txn.get_workflow(internal_id)
        name = txn.find_name(workflow.namespace, workflow.workflow_id) if workflow is not None else None
        if workflow is None or name is None or name.internal_id != internal_id:
            continue
        if not only_id and leases.state_of(txn, name, live_only=True) is not None:
            continue
        fence = leases.check(txn, name, workflow.workflow_id, command.lease_token)
        changes.append(_delete_rows(txn, leases.end_outlived(txn, name, fence), workflow, rows))
        deleted += len(rows)
    return BulkAnswer(deleted, position, tuple(changes), row_id_end=row_id_end)


def prune(txn: WriteTransaction, command: PruneCommand, limits: Limits) -> BulkAnswer:
    """Delete one slice of what is older than the newest N of every scope and is not needed by these.

    Every scope is walked once, from its newest checkpoint to its oldest, over all slices: those that are kept are
    counted on the way, and what they need of their ancestors is taken along.
    """
    name, workflow = lookups.require_workflow(txn, command.namespace, command.workflow_id)
    if command.position and command.position[0] != workflow.internal_id:
        # Deleted and made again since the first slice: all that is there was saved later.
        return BulkAnswer(0, None)
    internal_id = workflow.internal_id
    sequence_max, from_ordinal = command.position[1:3] or (workflow.last_sequence, 0)
    rows: list[CheckpointRow] = []
    spent = 0
    position: tuple[int, ...] | None = None
    needs: _Needs = {}
    for scope in list(itertools.islice(txn.scopes(name.name_id, from_ordinal), limits.slice_rows_max)):
        if spent >= limits.slice_rows_max:
            position = (internal_id, sequence_max, scope.ordinal, 0)
            break
        spent += 1
        from_ordinal = scope.ordinal + 1
        if scope.internal_id != internal_id or scope.checkpoint_count <= command.keep_last:
            continue
        walk = _PruneWalk(txn, name, workflow, scope, command.keep_last, sequence_max)
        if command.position and scope.ordinal == command.position[2]:
            spent += walk.go_on(command.position, command.needs, limits.slice_rows_max)
        spent = walk.run(rows, spent, limits.slice_rows_max)
        if walk.next_sequence is not None:
            position, needs = walk.position()
            break
    else:
        if spent >= limits.slice_rows_max:
            # As many scopes as a slice may look at: there may be more.
            position = (internal_id, sequence_max, from_ordinal, 0)
    changes: tuple[WorkflowChange, ...] = ()
    if rows and not command.is_dry_run:
        changes = (_delete_rows(txn, name, workflow, rows),)
    return BulkAnswer(len(rows), position, changes, tuple((at, tuple(sorted(keys))) for at, keys in needs.items()))


_Needs = dict[int, set[str]]
"""What is needed of older checkpoints: their sequences, with the entries wanted of them or their ancestors."""


class _PruneWalk:
    """The walk of a prune through one scope, from the newest checkpoint to the oldest.

    Checkpoints saved since the prune began count as kept beyond the N, so that every slice of one prune means the same
    checkpoints.
    """

    def __init__(
        self,
        txn: ReadTransaction,
        name: NameRow,
        workflow: WorkflowRow,
        scope: ScopeRow,
        keep_last: int,
        sequence_max: int,
    ) -> None:
        self.next_sequence: int | None = None
        self._txn = txn
        self._name = name
        self._workflow = workflow
        self._scope = scope
        self._keep_last = keep_last
        self._sequence_max = sequence_max
        self._start: int | None = None
        self._walked_to: int | None = None
        """Down to it nothing is deleted, and nothing counts as work: it was walked before."""
        self._counted = 0
        self._kept_from = 0
        self._seen_max = workflow.last_sequence
        self._needs: _Needs = {}
        self._keys_looked_up: frozenset[str] = frozenset()

    def go_on(self, position: tuple[int, ...], needs: Iterable[tuple[int, Iterable[str]]], rows_max: int) -> int:
        """Take up where the slice before ended; return how many rows that took."""
        next_sequence = position[3]
        if len(position) == 4:
            self._walked_to = next_sequence or None
            return 0
        self._start = next_sequence
        self._counted, self._kept_from, seen_max = position[4:]
        # What is newer was met already; only a token that somebody made up could name it.
        self._needs = {at: set(keys) for at, keys in needs if at <= next_sequence}
        self._keys_looked_up = frozenset().union(*self._needs.values())
        spent = self._walk_newer(seen_max, next_sequence, rows_max)
        if spent >= rows_max:
            # Too much has come since: the scope is walked anew, in slices.
            self._start, self._counted, self._kept_from, self._needs = None, 0, 0, {}
            return 0
        return spent

    def _walk_newer(self, seen_max: int, next_sequence: int, rows_max: int) -> int:
        """Find what checkpoints need that were saved since the slice before."""
        spent = 0
        newer = itertools.takewhile(lambda sequence: sequence > seen_max, self._sequences(None))
        for sequence in itertools.islice(newer, rows_max // ROWS_PER_KEPT + 1):
            row = lookups.get_indexed(self._txn, self._workflow, sequence)
            if row.history_entries:
                self._needs[sequence] = set(row.history_entries)
            spent += ROWS_PER_KEPT
        while spent < rows_max and (above := [sequence for sequence in self._needs if sequence > next_sequence]):
            sequence = max(above)
            wanted = self._needs.pop(sequence)
            row = lookups.get_indexed(self._txn, self._workflow, sequence)
            if self._kept_from <= sequence <= seen_max:
                # What this one needs itself was taken along when it was walked.
                wanted -= set(row.history_entries)
            if wanted:
                self._pass_on(row, wanted)
                spent += lookups.ROWS_PER_CHECKPOINT
        return spent

    def run(self, rows: list[CheckpointRow], spent: int, rows_max: int) -> int:
        """Walk until as many rows are spent as a slice may, or to the end; add what is to be deleted to `rows`."""
        for sequence in self._sequences(self._start):
            is_walked = self._walked_to is not None and sequence > self._walked_to
            if spent >= rows_max and not is_walked:
                self.next_sequence = sequence
                break
            wanted = self._needs.pop(sequence, None)
            is_kept = sequence > self._sequence_max or self._counted < self._keep_last
            if is_kept and sequence <= self._sequence_max:
                self._counted += 1
            if is_walked and not is_kept and wanted is None:
                continue
            row = lookups.get_indexed(self._txn, self._workflow, sequence)
            if is_kept:
                self._kept_from = sequence
                wanted = (wanted or set()) | set(row.history_entries)
            if wanted is None:
                rows.append(row)
            elif wanted:
                self._pass_on(row, wanted)
            if not is_walked:
                spent += lookups.ROWS_PER_CHECKPOINT if wanted or wanted is None else ROWS_PER_KEPT
        return spent

    def _pass_on(self, row: CheckpointRow, wanted: set[str]) -> None:
        """Leave to a checkpoint's parent what is wanted of it and it has not stored."""
        # Of every checkpoint the same is asked, whatever is wanted of it: then the store reads each change of a state
        # about once, and not the whole chain of changes for every checkpoint.
        self._keys_looked_up |= wanted
        found = self._txn.lookup_entries(self._workflow.family_id, row.node_id, self._keys_looked_up)
        wanted = wanted - found.keys()
        if not wanted:
            return
        parent = lookups.find_ancestor(self._txn, self._name, self._workflow, self._scope, row)
        if parent is not None:
            self._needs.setdefault(parent.sequence, set()).update(wanted)

    def _sequences(self, start: int | None) -> Iterator[int]:
        return self._txn.sequences(self._workflow.internal_id, self._scope.ordinal, newest_first=True, start=start)

    def position(self) -> tuple[tuple[int, ...], _Needs]:
        """Return where the next slice goes on; only what must be walked again where its needs are too many to carry."""
        assert self.next_sequence is not None
        place = (self._workflow.internal_id, self._sequence_max, self._scope.ordinal, self.next_sequence)
        keys = [key for wanted in self._needs.values() for key in wanted]
        size_bytes = NEED_BYTES * (len(self._needs) + len(keys)) + sum(map(utf8_bytes, keys))
        if size_bytes > NEEDS_BYTES_MAX:
            return place, {}
        return (*place, self._counted, self._kept_from, self._seen_max), self._needs


def _delete_rows(
    txn: WriteTransaction, name: NameRow, workflow: WorkflowRow, rows: list[CheckpointRow]
) -> WorkflowChange:
    """Delete checkpoints of one workflow: leave stubs, let go of their states, and find the heads anew."""
    counts: dict[str, int] = {}
    for row in rows:
        txn.delete_checkpoint(workflow, row)
        stub = IdRow(workflow.internal_id, row.sequence, txn.now_ms, row.step_count)
        txn.put_id(name.name_id, row.scope_ordinal, row.checkpoint_id, stub)
        txn.release_state(workflow.family_id, row.node_id)
        if txn.find_record_group(workflow.internal_id, row.scope_ordinal, row.checkpoint_id) is not None:
            txn.discard_records(workflow.internal_id, row.scope_ordinal, row.checkpoint_id)
        counts[row.scope] = counts.get(row.scope, 0) + 1
    name = txn.schedule_stub_expiry(name)
    workflow = _replace(
        workflow,
        revision=workflow.revision + 1,
        checkpoint_count=workflow.checkpoint_count - len(rows),
        stored_bytes=workflow.stored_bytes - sum(row.stored_bytes for row in rows),
    )
    for scope_name, count in counts.items():
        scope = txn.find_scope(name.name_id, scope_name)
        if scope is None:
            raise StoreError(
                "RECORD_DAMAGED",
                f"scope {scope_name!r} of workflow {workflow.workflow_id!r} is missing though it has checkpoints",
                {"table": "scopes", "key": f"{workflow.name_id:016x}"},
            )
        head = _newest(txn, workflow, scope.ordinal)
        txn.put_scope(
            name.name_id,
            ScopeRow(
                scope.ordinal,
                scope.scope,
                workflow.internal_id,
                head.sequence if head is not None else 0,
                head.checkpoint_id if head is not None else "",
                scope.checkpoint_count - count,
            ),
        )
        if head is None:
            workflow = _replace(workflow, scope_count=workflow.scope_count - 1)
        if scope_name == "":
            workflow = rules.with_head(workflow, head)
    txn.put_workflow(workflow)
    return rules.change_of(workflow)


def _newest(txn: ReadTransaction, workflow: WorkflowRow, scope_ordinal: int) -> CheckpointRow | None:
    for sequence in txn.sequences(workflow.internal_id, scope_ordinal, newest_first=True, start=None):
        return lookups.get_indexed(txn, workflow, sequence)
    return None
