"""The in-memory store's rules, without any input or output: what both faces in `memory` share.

Follows the server's rules (docs/guarantees.md): replay by id and content, leases, expected head, stubs of what was
deleted, a sequence for each workflow. Rows hold encoded values, so nothing that a caller changes later
changes what is stored. One lock guards all; values are encoded and decoded outside of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from milepost._calls import encode_metadata, records_to_wire
from milepost._failures import located
from milepost._memory.base import names_call
from milepost._memory.checks import (
    CLASS_BY_REASON,
    ENTRIES_MAX,
    ENTRY_OVERHEAD_BYTES,
    WAITING_RECORDS_MAX,
    check_content,
    check_count,
    check_item,
    check_metadata,
    check_records,
    check_sent_records,
    check_texts,
    check_token,
    limit_metadata,
    line_of,
)
from milepost._memory.coordination import Coordination
from milepost._memory.reading import Reading
from milepost._memory.rows import (
    NO_STEPS,
    RecordGroup,
    Row,
    Stub,
    Workflow,
    add_steps,
    digest_content,
    digest_parts,
    drop_waiting,
    merge_records,
    needed_ancestors,
    pick,
    steps_without_parent,
)
from milepost._memory.signals import REPLAY_WINDOW
from milepost._state import encode_state
from milepost._texts import list_of_texts
from milepost.errors import (
    CheckpointDeletedError,
    CheckpointNotFoundError,
    InvalidRequestError,
    MilepostError,
    QuotaExceededError,
    WorkflowExistsError,
)
from milepost.types import (
    Record,
    RecordOutcome,
    Saved,
    SaveItem,
    Status,
    WatchEventKind,
    WorkflowInfo,
)
from milepost.v1 import checkpoint_pb2 as pb


class MemoryCore(Reading, Coordination):
    """Every operation of the store, for one namespace."""

    # Saving.

    @names_call
    def save(self, item: SaveItem) -> Saved:
        """Store one checkpoint, once."""
        # First what a client refuses, then what a server does.
        encoded = encode_state(item.state, self.codec, compress_over_bytes=None)
        metadata = "" if item.metadata is None else encode_metadata(item.metadata)
        records = self._encode_records(item.records)
        parent_id, expected_head = line_of(item, self.namespace)
        check_item(item)
        check_metadata(metadata)
        check_sent_records(item.records)
        size_bytes = encoded.size_bytes + len(encoded.digests) * ENTRY_OVERHEAD_BYTES + len(metadata.encode())
        check_count("state", len(encoded.digests), limit="entries_max", allowed=ENTRIES_MAX)
        draft = Row(
            scope=item.scope,
            checkpoint_id=item.checkpoint_id,
            parent_id="",
            sequence=0,
            current_step=item.current_step,
            steps=NO_STEPS,
            sent=(parent_id, tuple(item.completed_steps)),
            status=Status(item.status),
            values=encoded.values,
            metadata=metadata,
            definition=item.definition,
            fingerprint=item.fingerprint,
            run_id=item.run_id,
            history_entries=tuple(item.history_entries),
            create_time=self._clock(),
            size_bytes=size_bytes,
            digest=digest_parts(*(part for pair in sorted(encoded.digests.items()) for part in pair)),
        )
        with self._lock:
            return self._save(item, draft, records, parent_id, expected_head)

    def _save(
        self,
        item: SaveItem,
        draft: Row,
        records: Sequence[tuple[pb.Record, bool]],
        parent_id: str | None,
        expected_head: str | None,
    ) -> Saved:
        workflow = self._workflows.get(item.workflow_id)
        existing = workflow.find(item.scope, item.checkpoint_id) if workflow is not None else None
        if existing is None:
            self._refuse_deleted(item.workflow_id, item.scope, item.checkpoint_id)
        if existing is not None and parent_id is None:
            parent_id = existing.parent_id
        head = workflow.head(item.scope) if workflow is not None else None
        parent = self._find_parent(item, workflow, head, parent_id, existing)
        parent_id = parent_id if parent_id is not None else head.checkpoint_id if head is not None else ""
        steps, known = add_steps(workflow, parent, item.completed_steps)
        if existing is not None and parent is None and parent_id and parent_id == existing.parent_id:
            steps = steps_without_parent(existing, draft.sent, steps)
        row = dataclasses.replace(
            draft, parent_id=parent_id, steps=steps, size_bytes=draft.size_bytes + steps.size_bytes
        )
        digest = digest_content(row, entries_digest=draft.digest)
        if existing is not None and workflow is not None:
            if digest == existing.digest:
                return self._saved(workflow, existing, replayed=True, lease_token=item.lease_token)
            if not item.replace:
                raise self._error(
                    "CHECKPOINT_EXISTS",
                    f"checkpoint {item.checkpoint_id!r} exists with other content, at sequence {existing.sequence}",
                    checkpoint_id=item.checkpoint_id,
                    sequence=existing.sequence,
                    digest=existing.digest.hex(),
                )
        self._leases.check(item.workflow_id, item.lease_token)
        self._check_head(expected_head, head)
        if existing is not None and parent is not None and parent.sequence >= existing.sequence:
            raise self._error(
                "INVALID_FIELD",
                "parent_id must name a checkpoint older than the one it replaces",
                field="parent_id",
            )
        if workflow is not None and item.definition and workflow.definition not in {"", item.definition}:
            raise self._error(
                "DEFINITION_MISMATCH",
                f"workflow {item.workflow_id!r} belongs to definition {workflow.definition!r}, "
                f"not to {item.definition!r}",
                definition=workflow.definition,
                found=item.definition,
            )
        group = workflow.records.get((item.scope, item.checkpoint_id)) if workflow is not None else None
        merged = merge_records(group, records)
        check_content(row)
        check_records(merged[0])
        # Nothing was changed so far, and nothing fails from here on.
        workflow = workflow or self._create(item.workflow_id)
        if existing is None:
            sequence, create_time = workflow.last_sequence + 1, row.create_time
            workflow.last_sequence = sequence
            workflow.heads[item.scope] = sequence
        else:
            sequence, create_time = existing.sequence, existing.create_time
        row = dataclasses.replace(row, sequence=sequence, create_time=create_time, digest=digest)
        workflow.rows[sequence] = row
        workflow.sequences[item.scope, item.checkpoint_id] = sequence
        if existing is None:
            known.update(row.steps.added)
            workflow.known_steps = (row.steps, known)
        workflow.definition = workflow.definition or item.definition
        if item.labels:
            workflow.labels = dict(item.labels)
        if item.scope == "" and workflow.heads[""] == sequence:
            workflow.update_time = draft.create_time
        if item.manifest:
            self._manifests.setdefault(item.fingerprint, item.manifest)
        workflow.signals.consume(item.consumed_signals, draft.create_time)
        self._leases.settle(item.workflow_id, item.lease_token, release=item.release_lease)
        kind = WatchEventKind.SAVED if existing is None else WatchEventKind.REPLACED
        self._changed(workflow, kind, row=row, lease_released=item.release_lease and item.lease_token > 0)
        if group is not None or records:
            key = (item.scope, item.checkpoint_id)
            workflow.records[key] = RecordGroup(draft.create_time, merged[0])
            workflow.waiting.discard(key)
        return self._saved(workflow, row, replayed=False, lease_token=item.lease_token)

    def _find_parent(
        self,
        item: SaveItem,
        workflow: Workflow | None,
        head: Row | None,
        parent_id: str | None,
        existing: Row | None,
    ) -> Row | None:
        if parent_id is None:
            return head
        if not parent_id:
            return None
        parent = workflow.find(item.scope, parent_id) if workflow is not None else None
        known = parent is not None or self._stub(item.workflow_id, item.scope, parent_id) is not None
        if known or (existing is not None and existing.parent_id == parent_id):
            return parent
        # On the server the lease and the expected head are looked at first; `after` sets both to the same checkpoint.
        self._leases.check(item.workflow_id, item.lease_token)
        self._check_head(parent_id, head)
        raise self._error(
            "PARENT_NOT_FOUND",
            f"parent_id: checkpoint {parent_id!r} was never saved in this scope",
            parent_id=parent_id,
        )

    def _check_head(self, expected: str | None, head: Row | None) -> None:
        found_id, found_sequence = (head.checkpoint_id, head.sequence) if head is not None else ("", 0)
        if expected is None or expected == found_id:
            return
        found = f"{found_id!r} at sequence {found_sequence}" if head is not None else "none"
        raise self._error(
            "HEAD_MOVED",
            f"expected_head: the head is {found}, not {repr(expected) if expected else 'none'}; load it and decide "
            "again",
            expected_head=expected,
            head_checkpoint_id=found_id,
            head_sequence=found_sequence,
        )

    def _saved(self, workflow: Workflow, row: Row, *, replayed: bool, lease_token: int) -> Saved:
        return Saved(
            namespace=self.namespace,
            workflow_id=workflow.workflow_id,
            scope=row.scope,
            checkpoint_id=row.checkpoint_id,
            parent_id=row.parent_id,
            sequence=row.sequence,
            head_checkpoint_id=workflow.rows[workflow.heads[row.scope]].checkpoint_id,
            replayed=replayed,
            create_time=row.create_time,
            digest=row.digest,
            revision=workflow.revision,
            lease_remaining_s=self._leases.remaining_s(workflow.workflow_id, lease_token),
            pending_signals=workflow.signals.shown(),
            pending_signal_count=len(workflow.signals),
        )

    def save_all(self, items: Iterable[SaveItem]) -> list[Saved | MilepostError]:
        """Store many checkpoints, in order; an item that builds on a failed one fails with it."""
        results: list[Saved | MilepostError] = []
        failed: dict[tuple[str, str, str], int] = {}
        for index, item in enumerate(items):
            key = (item.workflow_id, item.scope, item.checkpoint_id)
            try:
                self._check_predecessor(item, index, failed)
                results.append(self.save(item))
                failed.pop(key, None)
            except MilepostError as error:
                failed[key] = index
                results.append(located(error, self.namespace, *key))
        return results

    def _check_predecessor(self, item: SaveItem, index: int, failed: Mapping[tuple[str, str, str], int]) -> None:
        line_of(item, self.namespace)
        after = item.after
        if after is None or isinstance(after, str):
            return
        predecessor = failed.get((after.workflow_id, after.scope, after.checkpoint_id))
        if predecessor is not None:
            raise self._error(
                "PREDECESSOR_FAILED",
                f"item {index} builds on item {predecessor}, which failed",
                index=index,
                predecessor_index=predecessor,
            )

    # Records.

    @names_call
    def append_records(
        self,
        workflow_id: str,
        checkpoint_id: str,
        records: Iterable[Record],
        *,
        scope: str,
        require_checkpoint: bool,
        lease_token: int,
    ) -> list[RecordOutcome]:
        """Append records to a checkpoint id, also before that checkpoint exists."""
        records = [*records]
        if not records:
            return []
        check_texts(workflow_id=workflow_id, scope=scope, checkpoint_id=checkpoint_id)
        check_token(lease_token)
        encoded = self._encode_records(records)
        check_sent_records(records)
        now = self._clock()
        with self._lock:
            workflow = self._workflows.get(workflow_id)
            is_live = workflow is not None and workflow.find(scope, checkpoint_id) is not None
            if not is_live:
                self._refuse_deleted(workflow_id, scope, checkpoint_id)
            self._leases.check(workflow_id, lease_token)
            if require_checkpoint and not is_live:
                raise CheckpointNotFoundError(
                    f"checkpoint_id: there is no checkpoint {checkpoint_id!r} in this scope, "
                    "and require_checkpoint was set",
                    reason="RECORD_CHECKPOINT_MISSING",
                    metadata={"checkpoint_id": checkpoint_id},
                )
            waiting = 0
            if workflow is not None:
                drop_waiting(workflow, now)
                waiting = sum(len(workflow.records[key].records) for key in workflow.waiting)
            group = workflow.records.get((scope, checkpoint_id)) if workflow is not None else None
            merged, outcomes = merge_records(group, encoded)
            check_records(merged)
            waiting += 0 if is_live else outcomes.count(RecordOutcome.CREATED)
            if waiting > WAITING_RECORDS_MAX:
                raise QuotaExceededError(
                    f"records: {waiting} records of workflow {workflow_id!r} would wait for checkpoints that do not "
                    f"exist; at most {WAITING_RECORDS_MAX} may",
                    reason="QUOTA_EXCEEDED",
                    metadata=limit_metadata("waiting_records_max", WAITING_RECORDS_MAX, waiting, "records"),
                )
            workflow = workflow or self._create(workflow_id)
            key = (scope, checkpoint_id)
            workflow.records[key] = RecordGroup(now if group is None else group.create_time, merged)
            if not is_live:
                workflow.waiting.add(key)
            self._leases.settle(workflow_id, lease_token)
            if any(outcome is not RecordOutcome.EXISTING for outcome in outcomes):
                row = workflow.find(scope, checkpoint_id)
                where = {} if row is not None else {"scope": scope, "checkpoint_id": checkpoint_id}
                self._changed(workflow, WatchEventKind.RECORDS_APPENDED, row=row, **where)
        return outcomes

    def _encode_records(self, records: Sequence[Record]) -> list[tuple[pb.Record, bool]]:
        encoded = records_to_wire(records, self.codec, None)
        return [(one, record.overwrite) for one, record in zip(encoded, records, strict=True)]

    # Forking and deleting.

    @names_call
    def fork(
        self,
        workflow_id: str,
        target_workflow_id: str,
        *,
        checkpoint_id: str | None,
        scope: str,
        all_scopes: bool,
        fork_id: str,
    ) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint."""
        check_texts(
            workflow_id=workflow_id,
            scope=scope,
            target_workflow_id=target_workflow_id,
            fork_id=fork_id,
            checkpoint_id=checkpoint_id,
        )
        if target_workflow_id == workflow_id:
            raise InvalidRequestError(
                "target_workflow_id: must not be the source",
                reason="INVALID_FIELD",
                metadata={"field": "target_workflow_id"},
            )
        origin = (workflow_id, scope, checkpoint_id, all_scopes)
        now = self._clock()
        with self._lock:
            target = self._workflows.get(target_workflow_id)
            if target is not None:
                if fork_id and (target.fork_id, target.fork_source) == (fork_id, origin):
                    return self._info(target)
                raise WorkflowExistsError(
                    f"target_workflow_id: workflow {target_workflow_id!r} exists already",
                    reason="WORKFLOW_EXISTS",
                    metadata={"workflow_id": target_workflow_id},
                )
            # Whoever has taken the lease of the target before it exists is the one to make it.
            self._leases.check(target_workflow_id, 0)
            source = self._require(workflow_id)
            first = pick(source, scope, checkpoint_id, None, frozenset())
            if first is None:
                raise self._no_checkpoint(workflow_id, scope, checkpoint_id, None)
            if all_scopes:
                taken = [row for row in source.rows.values() if row.sequence <= first.sequence]
            else:
                taken = [*source.ancestors(first)][::-1]
            self._leases.settle(target_workflow_id, 0)
            target = self._create(target_workflow_id)
            target.last_sequence = first.sequence
            target.definition, target.labels = source.definition, source.labels
            target.forked_from, target.fork_id, target.fork_source = workflow_id, fork_id, origin
            for row in taken:
                key = (row.scope, row.checkpoint_id)
                target.rows[row.sequence] = row
                target.sequences[key] = row.sequence
                target.heads[row.scope] = row.sequence
                group = source.records.get(key)
                if group is not None:
                    target.records[key] = group
            target.update_time = now if "" in target.heads else None
            self._changed(target, WatchEventKind.CHANGED)
            return self._info(target)

    @names_call
    def delete(self, workflow_id: str, *, lease_token: int) -> bool:
        """Delete a workflow with all its scopes; tell whether there was one."""
        check_texts(workflow_id=workflow_id)
        check_token(lease_token)
        with self._lock:
            workflow = self._workflows.get(workflow_id)
            if workflow is None and self._leases.find(workflow_id) is None:
                # Nothing is there to be guarded, so a repeated delete is none whose lease was lost.
                return False
            self._leases.check(workflow_id, lease_token)
            self._leases.clear(workflow_id)
            if workflow is None:
                return False
            del self._workflows[workflow_id]
            for row in workflow.rows.values():
                self._leave_stub(workflow_id, row)
            self._changed(workflow, WatchEventKind.WORKFLOW_DELETED)
            return workflow.is_visible

    @names_call
    def delete_checkpoints(
        self,
        workflow_id: str,
        checkpoint_ids: Iterable[str],
        *,
        run_ids: Iterable[str],
        scope: str,
        lease_token: int,
    ) -> int:
        """Delete checkpoints of one scope by id, and those of executions in every scope; return how many."""
        ids = list_of_texts(checkpoint_ids, "checkpoint_ids")
        runs = list_of_texts(run_ids, "run_ids")
        if not ids and not runs:
            return 0
        check_texts(
            workflow_id=workflow_id if workflow_id or ids else None,
            scope=scope,
            checkpoint_ids=ids,
            run_ids=runs,
        )
        # Over the namespace no token is that of every workflow.
        check_token(lease_token, is_allowed=bool(workflow_id or ids))
        deleted = 0
        with self._lock:
            # Without a workflow, the runs of all of them.
            is_one = bool(workflow_id or ids)
            if is_one:
                workflows = [self._require(workflow_id)]
                self._leases.check(workflow_id, lease_token)
            else:
                # Somebody is at work on those that are leased; they are passed over.
                workflows = [one for key, one in self._workflows.items() if self._leases.find_live(key) is None]
            for workflow in workflows:
                named = {row.sequence: row for one in ids if (row := workflow.find(scope, one)) is not None}
                by_run = [row for row in workflow.rows.values() if row.run_id in runs and row.sequence not in named]
                # One after the other, as the requests of a client.
                for rows in ([*named.values()], by_run):
                    if rows:
                        self._leases.settle(workflow.workflow_id, lease_token)
                    self._delete_rows(workflow, rows, WatchEventKind.CHECKPOINTS_DELETED)
                    deleted += len(rows)
        return deleted

    @names_call
    def prune(self, workflow_id: str, *, keep_last: int, dry_run: bool) -> int:
        """Delete all but the newest N of every scope and what these need; return how many."""
        if keep_last < 1:
            raise ValueError(f"keep_last is at least 1, not {keep_last}; delete() removes a whole workflow")
        check_texts(workflow_id=workflow_id)
        with self._lock:
            workflow = self._require(workflow_id)
            by_scope: dict[str, list[Row]] = {}
            for row in workflow.rows.values():
                by_scope.setdefault(row.scope, []).append(row)
            doomed: list[Row] = []
            for rows in by_scope.values():
                kept = rows[-keep_last:]
                needed = needed_ancestors(workflow, kept)
                doomed += [row for row in rows[: -len(kept)] if row.sequence not in needed]
            if not dry_run:
                self._delete_rows(workflow, doomed, WatchEventKind.CHANGED)
        return len(doomed)

    # Shared steps; the lock is held.

    def _stub(self, workflow_id: str, scope: str, checkpoint_id: str) -> Stub | None:
        key = (workflow_id, scope, checkpoint_id)
        stub = self._stubs.get(key)
        if stub is not None and stub.expires <= self._clock():
            del self._stubs[key]
            return None
        return stub

    def _refuse_deleted(self, workflow_id: str, scope: str, checkpoint_id: str) -> None:
        stub = self._stub(workflow_id, scope, checkpoint_id)
        if stub is not None:
            raise CheckpointDeletedError(
                f"checkpoint {checkpoint_id!r} was saved as sequence {stub.sequence} and has been deleted since; "
                "nothing was written. Use a new checkpoint_id to save again",
                reason="CHECKPOINT_DELETED",
                metadata={"checkpoint_id": checkpoint_id, "sequence": str(stub.sequence)},
            )

    def _leave_stub(self, workflow_id: str, row: Row) -> None:
        now = self._clock()
        # The oldest come first, as dicts keep their order: only expired ones are looked at.
        for key, stub in [*islice(self._stubs.items(), 2)]:
            if stub.expires <= now:
                del self._stubs[key]
        key = (workflow_id, row.scope, row.checkpoint_id)
        self._stubs.pop(key, None)
        self._stubs[key] = Stub(row.sequence, now + REPLAY_WINDOW)

    def _delete_rows(self, workflow: Workflow, rows: Sequence[Row], kind: WatchEventKind) -> None:
        if not rows:
            return
        for row in rows:
            key = (row.scope, row.checkpoint_id)
            del workflow.rows[row.sequence]
            del workflow.sequences[key]
            workflow.records.pop(key, None)
            self._leave_stub(workflow.workflow_id, row)
        workflow.heads = {row.scope: row.sequence for row in workflow.rows.values()}
        self._changed(workflow, kind)

    def _error(self, reason: str, message: str, **metadata: object) -> MilepostError:
        said = {key: str(value) for key, value in metadata.items()}
        return CLASS_BY_REASON[reason](message, reason=reason, metadata=said)
