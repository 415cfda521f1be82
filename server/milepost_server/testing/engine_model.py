"""A store as a reader of the documentation would write it: dicts and lists, whole states, no digest, no sharing.

`engine_machine` runs the same commands on this and on an engine and compares. It is written from the promises and knows
nothing of `rules` and `commands`; where the two differ, one of them is wrong about the documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from milepost_server.limits import Limits
from milepost_server.model import (
    AcquireLeaseCommand,
    AppendRecordsCommand,
    DeleteIdsCommand,
    DeleteWorkflowCommand,
    ForkMode,
    Record,
    RecordOutcome,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
    SaveCommand,
    SendSignalCommand,
    Value,
)

Place = tuple[str, str]
"""(scope, checkpoint_id)."""


class Refused(NamedTuple):
    """The command is refused, with this reason."""

    reason: str


class Saved(NamedTuple):
    """What a Save answers."""

    sequence: int
    parent_id: str
    head_checkpoint_id: str
    is_replayed: bool
    lease_remaining_ms: int
    pending: tuple[str, ...]


class Granted(NamedTuple):
    """What an AcquireLease and a RenewLease answer."""

    token: int
    remaining_ms: int
    is_replayed: bool


class Released(NamedTuple):
    """What a ReleaseLease answers."""

    released: bool


class Sent(NamedTuple):
    """What a SendSignal answers."""

    is_replayed: bool
    is_consumed: bool


class Appended(NamedTuple):
    """What an AppendRecords answers."""

    outcomes: tuple[RecordOutcome, ...]


class Deleted(NamedTuple):
    """What a delete answers."""

    deleted_count: int


Outcome = Refused | Saved | Appended | Deleted | Granted | Released | Sent
SingleCommand = (
    SaveCommand
    | AppendRecordsCommand
    | DeleteIdsCommand
    | DeleteWorkflowCommand
    | AcquireLeaseCommand
    | RenewLeaseCommand
    | ReleaseLeaseCommand
    | SendSignalCommand
)
"""Commands that are one transaction, and may stand in a batch."""


@dataclass(frozen=True)
class ModelCheckpoint:
    """One checkpoint."""

    scope: str
    checkpoint_id: str
    sequence: int
    create_time_ms: int
    content: tuple[str, str, int, str, str, str]
    """Parent, step, status, definition, fingerprint, metadata."""
    state: dict[str, Value]
    steps: tuple[str, ...]
    sent: object
    """The Save as it was sent: an exact retry is known by it."""
    run_id: str
    history_entries: tuple[str, ...]

    @property
    def place(self) -> Place:
        """Where it is in its workflow."""
        return (self.scope, self.checkpoint_id)

    @property
    def parent_id(self) -> str:
        """The checkpoint before it."""
        return self.content[0]


@dataclass
class ModelRecords:
    """The records of one place."""

    since_ms: int
    items: dict[tuple[str, int], Record] = field(default_factory=dict)


@dataclass
class ModelSignal:
    """A signal that was sent."""

    content: tuple[str, Value | None]
    consumed_ms: int | None = None
    """`None` while it is pending."""


@dataclass
class ModelLease:
    """The newest lease of a workflow that has not ended."""

    token: int
    ttl_ms: int
    request_id: str
    expiry_ms: int
    due_ms: int | None
    """When the lease of a workflow that has not come is looked at."""


@dataclass
class ModelWorkflow:
    """One incarnation of a workflow."""

    last_sequence: int = 0
    definition: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    update_time_ms: int = 0
    checkpoints: dict[Place, ModelCheckpoint] = field(default_factory=dict)
    records: dict[Place, ModelRecords] = field(default_factory=dict)
    fork: object = None
    signals: dict[str, ModelSignal] = field(default_factory=dict)
    """In the order they came."""

    @property
    def pending(self) -> tuple[str, ...]:
        """Ids of the signals that no Save has consumed."""
        return tuple(signal_id for signal_id, signal in self.signals.items() if signal.consumed_ms is None)

    def in_order(self, scope: str | None = None) -> list[ModelCheckpoint]:
        """Return checkpoints, the newest first."""
        found = [row for row in self.checkpoints.values() if scope is None or row.scope == scope]
        return sorted(found, key=lambda row: -row.sequence)

    def head(self, scope: str) -> ModelCheckpoint | None:
        """Return a scope's head."""
        return next(iter(self.in_order(scope)), None)

    def head_id(self, scope: str) -> str:
        """Return the id of a scope's head, or ""."""
        head = self.head(scope)
        return head.checkpoint_id if head is not None else ""

    def parent_of(self, row: ModelCheckpoint) -> ModelCheckpoint | None:
        """Return a checkpoint's live parent; a later checkpoint that was given the same id is another one."""
        parent = self.checkpoints.get((row.scope, row.parent_id))
        return parent if parent is not None and parent.sequence < row.sequence else None

    def line(self, row: ModelCheckpoint) -> Iterator[ModelCheckpoint]:
        """Yield a checkpoint and its live ancestors."""
        found: ModelCheckpoint | None = row
        while found is not None:
            yield found
            found = self.parent_of(found)

    @property
    def is_visible(self) -> bool:
        """Readers see it."""
        return self.last_sequence > 0


class StoreModel:
    """All workflows of one namespace."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.workflows: dict[str, ModelWorkflow] = {}
        self.stubs: dict[str, dict[Place, int]] = {}
        self.stub_steps: dict[tuple[str, Place], int] = {}
        """How many steps a deleted checkpoint had completed."""
        """By workflow_id: what was deleted, and when."""
        self.leases: dict[str, ModelLease] = {}
        self.lease_count = 0
        """Leases that were ever granted: the newest token."""
        self._lease_now_ms = 0

    def visible(self, workflow_id: str) -> ModelWorkflow | None:
        """Return a workflow that readers see."""
        workflow = self.workflows.get(workflow_id)
        return workflow if workflow is not None and workflow.is_visible else None

    def run(self, command: SingleCommand, now_ms: int, lease_now_ms: int) -> Outcome:
        """Run one command."""
        self._lease_now_ms = lease_now_ms
        if isinstance(command, AcquireLeaseCommand):
            return self._acquire(command, now_ms)
        if isinstance(command, RenewLeaseCommand):
            return self._renew(command)
        if isinstance(command, ReleaseLeaseCommand):
            return self._release(command)
        if isinstance(command, SendSignalCommand):
            return self._send(command)
        if isinstance(command, SaveCommand):
            return self._save(command, now_ms)
        if isinstance(command, AppendRecordsCommand):
            return self._append(command, now_ms)
        if isinstance(command, DeleteIdsCommand):
            return self._delete_ids(command, now_ms)
        return self._delete_workflow(command, now_ms)

    # Leases.

    def remaining_ms(self, workflow_id: str, lease_now_ms: int) -> int | None:
        """Return how long a lease still runs; `None` where there is none."""
        lease = self.leases.get(workflow_id)
        return None if lease is None else max(0, lease.expiry_ms - lease_now_ms)

    def restart(self, lease_now_ms: int) -> None:
        """Give every lease its full time."""
        for lease in self.leases.values():
            lease.expiry_ms = lease_now_ms + lease.ttl_ms

    def _is_live(self, workflow_id: str) -> bool:
        return bool(self.remaining_ms(workflow_id, self._lease_now_ms))

    def _fence(self, workflow_id: str, token: int) -> Refused | None:
        lease = self.leases.get(workflow_id)
        if token:
            return None if lease is not None and lease.token == token else Refused("LEASE_LOST")
        return Refused("LEASE_HELD") if self._is_live(workflow_id) else None

    def _settle(self, workflow_id: str, token: int, *, renews: bool = True) -> None:
        """Renew the lease that a change was made under, or end the expired one that it was made without."""
        if not token:
            self.leases.pop(workflow_id, None)
        elif renews:
            lease = self.leases[workflow_id]
            lease.expiry_ms = self._lease_now_ms + lease.ttl_ms

    def _acquire(self, command: AcquireLeaseCommand, now_ms: int) -> Outcome:
        workflow_id = command.workflow_id
        lease = self.leases.get(workflow_id)
        if lease is not None and command.request_id and lease.request_id == command.request_id:
            return Granted(lease.token, max(0, lease.expiry_ms - self._lease_now_ms), True)
        if self._is_live(workflow_id):
            return Refused("LEASE_HELD")
        self.lease_count += 1
        is_to_come = workflow_id not in self.workflows
        self.leases[workflow_id] = ModelLease(
            self.lease_count,
            command.ttl_ms,
            command.request_id,
            self._lease_now_ms + command.ttl_ms,
            now_ms + self._limits.unused_lease_ttl_ms if is_to_come else None,
        )
        return Granted(self.lease_count, command.ttl_ms, False)

    def _renew(self, command: RenewLeaseCommand) -> Outcome:
        refused = self._fence(command.workflow_id, command.lease_token)
        if refused is not None:
            return refused
        self._settle(command.workflow_id, command.lease_token)
        lease = self.leases[command.workflow_id]
        return Granted(lease.token, lease.ttl_ms, False)

    def _release(self, command: ReleaseLeaseCommand) -> Outcome:
        lease = self.leases.get(command.workflow_id)
        if lease is None or not (command.force or lease.token == command.lease_token):
            return Released(False)
        del self.leases[command.workflow_id]
        return Released(True)

    # Signals.

    def _send(self, command: SendSignalCommand) -> Outcome:
        workflow = self.visible(command.workflow_id)
        if workflow is None:
            return Refused("WORKFLOW_NOT_FOUND")
        content = (command.name, command.value)
        known = workflow.signals.get(command.signal_id)
        if known is None:
            workflow.signals[command.signal_id] = ModelSignal(content)
            return Sent(False, False)
        if known.content != content:
            return Refused("SIGNAL_EXISTS")
        return Sent(True, known.consumed_ms is not None)

    # Save.

    def _save(self, command: SaveCommand, now_ms: int) -> Outcome:
        place = (command.scope, command.checkpoint_id)
        if place in self.stubs.get(command.workflow_id, {}):
            return Refused("CHECKPOINT_DELETED")
        workflow = self.workflows.get(command.workflow_id) or ModelWorkflow()
        existing = workflow.checkpoints.get(place)
        outcome = (
            self._save_new(command, workflow, now_ms)
            if existing is None
            else self._save_again(command, workflow, existing, now_ms)
        )
        if isinstance(outcome, Saved):
            self.workflows[command.workflow_id] = workflow
        return outcome

    def _save_new(self, command: SaveCommand, workflow: ModelWorkflow, now_ms: int) -> Outcome:
        refused = self._fence(command.workflow_id, command.lease_token)
        if refused is not None:
            return refused
        head_id = workflow.head_id(command.scope)
        if command.expected_head not in (None, head_id):
            return Refused("HEAD_MOVED")
        parent_id = head_id if command.parent_id is None else command.parent_id
        base = self._base(command, workflow)
        if isinstance(base, Refused):
            return base
        if not self._is_known(command, workflow, parent_id):
            return Refused("PARENT_NOT_FOUND")
        if command.definition and workflow.definition not in ("", command.definition):
            return Refused("DEFINITION_MISMATCH")
        workflow.last_sequence += 1
        row = self._row(command, workflow, parent_id, base, sequence=workflow.last_sequence, create_time_ms=now_ms)
        self._store(command, workflow, row, now_ms)
        if command.scope == "":
            workflow.update_time_ms = now_ms
        left_ms = self._settle_save(command)
        return Saved(row.sequence, parent_id, command.checkpoint_id, False, left_ms, workflow.pending)

    def _settle_save(self, command: SaveCommand) -> int:
        """Do with the lease what a Save does that was made; return how long it still runs."""
        self._settle(command.workflow_id, command.lease_token)
        if command.release_lease:
            del self.leases[command.workflow_id]
        return self.remaining_ms(command.workflow_id, self._lease_now_ms) or 0

    def _save_again(
        self, command: SaveCommand, workflow: ModelWorkflow, existing: ModelCheckpoint, now_ms: int
    ) -> Outcome:
        head_id = workflow.head_id(command.scope)
        lease = self.leases.get(command.workflow_id)
        is_held = lease is not None and lease.token == command.lease_token
        left_ms = (self.remaining_ms(command.workflow_id, self._lease_now_ms) or 0) if is_held else 0
        replayed = Saved(existing.sequence, existing.parent_id, head_id, True, left_ms, workflow.pending)
        if _sent(command) == existing.sent:
            return replayed
        base = self._base(command, workflow)
        if isinstance(base, Refused):
            return base
        parent_id = existing.parent_id if command.parent_id is None else command.parent_id
        row = self._row(
            command,
            workflow,
            parent_id,
            base,
            sequence=existing.sequence,
            create_time_ms=existing.create_time_ms,
        )
        parent = workflow.checkpoints.get((command.scope, parent_id))
        if parent_id and parent_id == existing.parent_id and parent is None and base is None:
            # What the parent had finished is known from the checkpoint alone.
            count = len(command.steps_added)
            if existing.steps[len(existing.steps) - count :] == command.steps_added:
                row = replace(row, steps=existing.steps)
        if (row.content, row.state, row.steps) == (existing.content, existing.state, existing.steps):
            return replayed
        if not command.is_replace:
            return Refused("CHECKPOINT_EXISTS")
        refused = self._fence(command.workflow_id, command.lease_token)
        if refused is not None:
            return refused
        if command.expected_head not in (None, head_id):
            return Refused("HEAD_MOVED")
        if parent_id != existing.parent_id and not self._is_known(command, workflow, parent_id):
            return Refused("PARENT_NOT_FOUND")
        if parent is not None and parent.sequence >= existing.sequence:
            return Refused("INVALID_FIELD")
        if command.definition and workflow.definition not in ("", command.definition):
            return Refused("DEFINITION_MISMATCH")
        self._store(command, workflow, row, now_ms)
        if command.scope == "" and head_id == command.checkpoint_id:
            workflow.update_time_ms = now_ms
        left_ms = self._settle_save(command)
        return Saved(existing.sequence, parent_id, head_id, False, left_ms, workflow.pending)

    def _base(self, command: SaveCommand, workflow: ModelWorkflow) -> ModelCheckpoint | Refused | None:
        if command.base_checkpoint_id is None:
            return None
        base = workflow.checkpoints.get((command.scope, command.base_checkpoint_id))
        return base if base is not None else Refused("BASE_NOT_FOUND")

    def _is_known(self, command: SaveCommand, workflow: ModelWorkflow, parent_id: str) -> bool:
        place = (command.scope, parent_id)
        if not parent_id or place in workflow.checkpoints:
            return True
        if place not in self.stubs.get(command.workflow_id, {}):
            return False
        # A full Save counts its steps from the parent, so one that had some is needed itself.
        return command.base_checkpoint_id is not None or not self.stub_steps[command.workflow_id, place]

    def _row(
        self,
        command: SaveCommand,
        workflow: ModelWorkflow,
        parent_id: str,
        base: ModelCheckpoint | None,
        *,
        sequence: int,
        create_time_ms: int,
    ) -> ModelCheckpoint:
        sent = {key: entry.value for key, entry in command.entries.items()}
        kept = {} if base is None else {k: v for k, v in base.state.items() if k not in command.removed_keys}
        before = base or workflow.checkpoints.get((command.scope, parent_id))
        steps = (before.steps if before is not None else ()) + command.steps_added
        return ModelCheckpoint(
            scope=command.scope,
            checkpoint_id=command.checkpoint_id,
            sequence=sequence,
            create_time_ms=create_time_ms,
            content=(
                parent_id,
                command.current_step,
                int(command.status),
                command.definition,
                command.fingerprint,
                command.metadata,
            ),
            state={**kept, **sent},
            steps=tuple(dict.fromkeys(steps)),
            sent=_sent(command),
            run_id=command.run_id,
            history_entries=command.history_entries,
        )

    def _store(self, command: SaveCommand, workflow: ModelWorkflow, row: ModelCheckpoint, now_ms: int) -> None:
        workflow.checkpoints[row.place] = row
        workflow.definition = workflow.definition or command.definition
        if command.labels is not None:
            workflow.labels = command.labels
        for signal_id in command.consumed_signals:
            signal = workflow.signals.get(signal_id)
            if signal is not None and signal.consumed_ms is None:
                signal.consumed_ms = now_ms
        if command.records:
            self._put_records(workflow, row.place, command.records, now_ms)

    # Records.

    def _append(self, command: AppendRecordsCommand, now_ms: int) -> Outcome:
        place = (command.scope, command.checkpoint_id)
        if place in self.stubs.get(command.workflow_id, {}):
            return Refused("CHECKPOINT_DELETED")
        workflow = self.workflows.get(command.workflow_id)
        is_live = workflow is not None and place in workflow.checkpoints
        refused = self._fence(command.workflow_id, command.lease_token)
        if refused is not None:
            return refused
        if command.require_checkpoint and not is_live:
            return Refused("RECORD_CHECKPOINT_MISSING")
        workflow = self.workflows.setdefault(command.workflow_id, ModelWorkflow())
        outcomes = self._put_records(workflow, place, command.records, now_ms)
        if set(outcomes) != {RecordOutcome.EXISTING}:
            self._settle(command.workflow_id, command.lease_token)
        return Appended(outcomes)

    def _put_records(
        self, workflow: ModelWorkflow, place: Place, records: tuple[Record, ...], now_ms: int
    ) -> tuple[RecordOutcome, ...]:
        stored = workflow.records.setdefault(place, ModelRecords(now_ms)).items
        outcomes = []
        for record in records:
            key = (record.task_id, record.index)
            if key not in stored:
                outcomes.append(RecordOutcome.CREATED)
            elif record.overwrite:
                outcomes.append(RecordOutcome.OVERWRITTEN)
            else:
                outcomes.append(RecordOutcome.EXISTING)
                continue
            stored[key] = Record(record.task_id, record.index, record.path, record.name, record.value)
        return tuple(outcomes)

    # Deletes.

    def _delete_ids(self, command: DeleteIdsCommand, now_ms: int) -> Outcome:
        workflow = self.visible(command.workflow_id)
        if workflow is None:
            return Refused("WORKFLOW_NOT_FOUND")
        refused = self._fence(command.workflow_id, command.lease_token)
        if refused is not None:
            return refused
        places = {(command.scope, checkpoint_id) for checkpoint_id in command.checkpoint_ids}
        count = self._delete(command.workflow_id, places & workflow.checkpoints.keys(), now_ms)
        if count:
            self._settle(command.workflow_id, command.lease_token, renews=False)
        return Deleted(count)

    def _delete(self, workflow_id: str, places: set[Place], now_ms: int) -> int:
        workflow = self.workflows[workflow_id]
        for place in places:
            self.stub_steps[workflow_id, place] = len(workflow.checkpoints[place].steps)
            del workflow.checkpoints[place]
            workflow.records.pop(place, None)
            self.stubs.setdefault(workflow_id, {})[place] = now_ms
        return len(places)

    def _delete_workflow(self, command: DeleteWorkflowCommand, now_ms: int) -> Outcome:
        workflow = self.workflows.get(command.workflow_id)
        if workflow is None and command.workflow_id not in self.leases:
            return Deleted(0)
        refused = self._fence(command.workflow_id, command.lease_token)
        if refused is not None:
            return refused
        self.leases.pop(command.workflow_id, None)
        if workflow is None:
            return Deleted(0)
        count = self._delete(command.workflow_id, set(workflow.checkpoints), now_ms)
        del self.workflows[command.workflow_id]
        return Deleted(count)

    def delete_run(self, workflow_id: str, run_id: str, now_ms: int, lease_now_ms: int) -> Outcome:
        """Delete a run's checkpoints, in one workflow or (with "") in all whose lease is not live."""
        self._lease_now_ms = lease_now_ms
        if workflow_id and self.visible(workflow_id) is None:
            return Refused("WORKFLOW_NOT_FOUND")
        if workflow_id and self._is_live(workflow_id):
            return Refused("LEASE_HELD")
        count = 0
        for name in [workflow_id] if workflow_id else list(self.workflows):
            rows = self.workflows[name].checkpoints.values()
            places = {row.place for row in rows if row.run_id == run_id}
            if places and not self._is_live(name):
                count += self._delete(name, places, now_ms)
                self._settle(name, 0)
        return Deleted(count)

    def prune(self, workflow_id: str, keep_last: int, now_ms: int) -> Outcome:
        """Keep the newest of every scope and the ancestors that these need."""
        workflow = self.visible(workflow_id)
        if workflow is None:
            return Refused("WORKFLOW_NOT_FOUND")
        kept: set[Place] = set()
        for scope in {row.scope for row in workflow.checkpoints.values()}:
            for row in workflow.in_order(scope)[:keep_last]:
                kept |= self._needed(workflow, row)
        return Deleted(self._delete(workflow_id, workflow.checkpoints.keys() - kept, now_ms))

    def _needed(self, workflow: ModelWorkflow, row: ModelCheckpoint) -> set[Place]:
        needed: set[Place] = set()
        wanted = set(row.history_entries)
        for ancestor in workflow.line(row):
            needed.add(ancestor.place)
            wanted -= ancestor.state.keys()
            if not wanted:
                break
        return needed

    def has_due(self, now_ms: int) -> bool:
        """Tell whether a sweep would forget anything."""
        is_lease_due = any(lease.due_ms is not None and lease.due_ms <= now_ms for lease in self.leases.values())
        is_signal_due = any(True for workflow in self.workflows.values() for _ in self._outlived(workflow, now_ms))
        return is_lease_due or is_signal_due or any(True for _ in self._due(now_ms))

    def sweep(self, now_ms: int, lease_now_ms: int) -> None:
        """Forget what is past its time."""
        self._lease_now_ms = lease_now_ms
        for workflow_id, lease in list(self.leases.items()):
            if lease.due_ms is not None and lease.due_ms <= now_ms:
                if workflow_id in self.workflows:
                    lease.due_ms = None
                elif self._is_live(workflow_id):
                    lease.due_ms = now_ms + self._limits.unused_lease_ttl_ms
                else:
                    del self.leases[workflow_id]
        for workflow in self.workflows.values():
            for signal_id in list(self._outlived(workflow, now_ms)):
                del workflow.signals[signal_id]
        for owner, place in list(self._due(now_ms)):
            del owner[place]
        for workflow_id, workflow in list(self.workflows.items()):
            if not workflow.is_visible and not workflow.records:
                del self.workflows[workflow_id]
                if workflow_id in self.leases:
                    self.leases[workflow_id].due_ms = now_ms + self._limits.unused_lease_ttl_ms

    def _outlived(self, workflow: ModelWorkflow, now_ms: int) -> Iterator[str]:
        """Yield ids of signals that were consumed a replay window ago."""
        for signal_id, signal in workflow.signals.items():
            if signal.consumed_ms is not None and signal.consumed_ms + self._limits.replay_window_ms <= now_ms:
                yield signal_id

    def _due(self, now_ms: int) -> Iterator[tuple[dict[Place, int] | dict[Place, ModelRecords], Place]]:
        for stubs in self.stubs.values():
            for place, deleted_ms in stubs.items():
                if deleted_ms + self._limits.replay_window_ms <= now_ms:
                    yield stubs, place
        for workflow in self.workflows.values():
            for place, records in workflow.records.items():
                is_due = records.since_ms + self._limits.waiting_records_ttl_ms <= now_ms
                if is_due and place not in workflow.checkpoints:
                    yield workflow.records, place

    # Fork.

    def fork(
        self,
        workflow_id: str,
        target_id: str,
        *,
        scope: str,
        checkpoint_id: str | None,
        mode: ForkMode,
        fork_id: str,
        lease_now_ms: int,
    ) -> Refused | bool:
        """Fork; tell whether it is a replay."""
        self._lease_now_ms = lease_now_ms
        source_text = (fork_id, workflow_id, scope, checkpoint_id, mode)
        target = self.workflows.get(target_id)
        if target is not None:
            is_same = bool(fork_id) and target.fork == source_text
            return True if is_same else Refused("WORKFLOW_EXISTS")
        if self._is_live(target_id):
            return Refused("LEASE_HELD")
        source = self.visible(workflow_id)
        if source is None:
            return Refused("WORKFLOW_NOT_FOUND")
        wanted = source.head_id(scope) if checkpoint_id is None else checkpoint_id
        last = source.checkpoints.get((scope, wanted))
        if last is None:
            return Refused("CHECKPOINT_NOT_FOUND")
        if mode is ForkMode.ANCESTORS:
            rows = list(source.line(last))
        else:
            rows = [row for row in source.checkpoints.values() if row.sequence <= last.sequence]
        copied = {row.place: row for row in rows}
        self.leases.pop(target_id, None)
        self.workflows[target_id] = ModelWorkflow(
            last_sequence=last.sequence,
            definition=source.definition,
            labels=source.labels,
            checkpoints=copied,
            records={
                place: ModelRecords(records.since_ms, dict(records.items))
                for place, records in source.records.items()
                if place in copied
            },
            fork=source_text,
        )
        for place in copied:
            self.stubs.get(target_id, {}).pop(place, None)
        return False


def _sent(command: SaveCommand) -> object:
    return (
        command.parent_id,
        command.base_checkpoint_id,
        command.current_step,
        command.steps_added,
        command.status,
        command.removed_keys,
        command.metadata,
        command.definition,
        command.fingerprint,
        {key: entry.value for key, entry in command.entries.items()},
    )
