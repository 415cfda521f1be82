"""The offline check: walks every row of a store and proves what the engine relies on.

It opens nothing for writing and trusts nothing: first the file's structure, without LMDB's own code touching it; then
every row's checksum and key; then what rows say of one another. What it proves:

- every row decodes and belongs to its key, and its table is known;
- reference counts equal references, those of what waits in the trash included; no node, value, piece or record is an
  orphan;
- every value has the bytes that its digest says, every state the entries, steps, sizes and hashes that its checkpoint
  says;
- ids, order, runs, heads and counters agree with the checkpoints that are there;
- every workflow is listed under its status, and nothing else is;
- every lease is its name's, and its token one that the namespace has given;
- every pending signal is counted and found by its id; every manifest is what its fingerprint stands for.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from milepost_server import rules
from milepost_server.errors import StoreError
from milepost_server.model import (
    CheckpointRow,
    EntryRef,
    IdRow,
    LeaseRow,
    RecordGroupRow,
    ScopeRow,
    SignalIdRow,
    WorkflowRow,
)
from milepost_server.storage import keys, lmdb_env, long_keys, pieces, records, status_index
from milepost_server.storage.lease_timers import LeaseTimers
from milepost_server.storage.lmdb_env import META_KEY, MetaRow
from milepost_server.storage.lmdb_read_transaction import LmdbReadTransaction, apply_node
from milepost_server.storage.lmdb_rows import (
    DueKind,
    DueRow,
    ManifestHead,
    NameBranch,
    NamespaceRow,
    NodeBody,
    NodeHead,
    RecordHead,
    SignalHead,
    TrashKind,
    TrashRow,
    ValueHead,
)
from milepost_server.storage.lmdb_write_transaction import LEASE_EPOCH_SHIFT
from milepost_server.storage.port import NameRow, ResolvedState

PROBLEMS_MAX = 1_000
"""Problems that a report lists; a store that has more is beyond listing."""
RESOLVED_STATES_MAX = 64
PIECE_TABLES = (keys.NODE_PIECE, keys.VALUE_PIECE, keys.RECORD_PIECE, keys.SIGNAL_PIECE, keys.MANIFEST_PIECE)

T = TypeVar("T")


class VerifyReport(msgspec.Struct):
    """What a check found."""

    problems: list[str]
    counts: dict[str, int]
    """Rows by table, and bytes of the file."""

    def add(self, problem: str) -> None:
        """Note a problem, up to the bound."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def verify_store(data_dir: Path) -> VerifyReport:
    """Check a store that no server has open.

    Raises:
        DataDirError: The directory has no store that can be looked at, or a server has it open.
    """
    lock = lmdb_env.DirectoryLock(data_dir) if (data_dir / "LOCK").exists() else None
    try:
        report = VerifyReport([], {})
        lmdb_env.check_store(data_dir)
        for finding in lmdb_env.verify_file(data_dir):
            report.add(f"file: {finding}")
        if report.problems:
            # LMDB's own code is not let near a file whose structure is broken.
            return report
        with lmdb_env.reading_offline(data_dir) as txn:
            _Check(LmdbReadTransaction(txn, LeaseTimers()), report).run()
        report.counts["file_bytes"] = (data_dir / "store" / "data.mdb").stat().st_size
        return report
    finally:
        if lock is not None:
            lock.release()


class _Check:
    """One walk over a store, and what it has seen so far."""

    def __init__(self, txn: LmdbReadTransaction, report: VerifyReport) -> None:
        self._txn = txn
        self._report = report
        self._counts: Counter[str] = Counter()
        self._next_id = 0
        self._lease_epoch = 0
        self._leases: dict[int, LeaseRow] = {}
        self._signals: dict[int, dict[int, str]] = defaultdict(dict)
        """By incarnation: numbers and ids of pending ones."""
        self._signal_ids: dict[int, dict[str, SignalIdRow]] = defaultdict(dict)
        self._manifest_counts: Counter[int] = Counter()
        self._namespaces: dict[int, NamespaceRow] = {}
        self._names: dict[int, NameRow] = {}
        self._workflows: dict[int, WorkflowRow] = {}
        self._checkpoints: dict[tuple[int, int], CheckpointRow] = {}
        self._scopes: dict[tuple[int, int], ScopeRow] = {}
        self._scope_numbers: dict[tuple[int, int], str] = {}
        self._ids: list[tuple[int, int, str, IdRow]] = []
        self._checkpoints_by_row: dict[int, CheckpointRow] = {}
        self._sequences: dict[int, tuple[int, int]] = {}
        self._order: set[tuple[int, int, int]] = set()
        self._runs: set[tuple[int, bytes, int, int]] = set()
        self._groups: dict[tuple[int, int, bytes], RecordGroupRow] = {}
        self._record_totals: dict[tuple[int, int, bytes], list[int]] = defaultdict(lambda: [0, 0])
        self._nodes: dict[int, NodeHead] = {}
        self._values: dict[int, ValueHead] = {}
        self._piece_counts: Counter[bytes] = Counter()
        self._piece_needs: dict[bytes, int] = {}
        self._trash: list[TrashRow] = []
        self._due: list[DueRow] = []
        self._building: set[int] = set()
        self._listed_count = 0
        self._is_upgrading = False
        self._resolved: OrderedDict[int, ResolvedState] = OrderedDict()

    def run(self) -> None:
        """Walk the rows, then hold what they say against each other."""
        try:
            meta = self._txn.read_required(META_KEY, MetaRow)
            self._next_id, self._lease_epoch = meta.next_id, meta.lease_epoch
            self._is_upgrading = meta.format < lmdb_env.STORE_FORMAT
        except StoreError as error:
            self._report.add(error.message)
            return
        for key, row in self._txn.scan(b"", b""):
            try:
                self._take(key, row)
            except StoreError as error:
                self._report.add(error.message)
        self._place_checkpoints()
        self._check_names()
        self._check_leases()
        self._check_checkpoints()
        self._check_scopes()
        self._check_workflows()
        self._check_statuses()
        self._check_records()
        self._check_signals()
        self._check_due()
        self._check_pieces()
        self._check_states()
        self._report.counts.update(self._counts)

    # Rows.

    def _take(self, key: bytes, row: bytes) -> None:
        table = keys.table_of(key)
        owner = keys.owner_of(key)
        self._counts[keys.TABLE_NAMES.get(table, "unknown")] += 1
        if owner >= self._next_id:
            self._report.add(f"row {key.hex()}: its owner {owner} was never given")
        if table == keys.META:
            records.decode(key, row, MetaRow)
        elif table == keys.NAMESPACE:
            namespace = records.decode(key, row, NamespaceRow)
            self._namespaces[namespace.namespace_id] = namespace
        elif table == keys.NAME:
            self._take_name(key, row)
        elif table == keys.WORKFLOW:
            self._workflows[owner] = records.decode(key, row, WorkflowRow)
        elif table == keys.CHECKPOINT:
            self._checkpoints_by_row[owner] = records.decode(key, row, CheckpointRow)
        elif table == keys.SEQUENCE:
            self._sequences[records.decode(key, row, int)] = (owner, next(keys.numbers_of(key, 1)))
        elif table == keys.SCOPE:
            scope = records.decode(key, row, ScopeRow)
            self._scopes[owner, scope.ordinal] = scope
            self._expect_key(key, keys.scope(owner, scope.scope))
        elif table == keys.SCOPE_NUMBER:
            self._scope_numbers[owner, next(keys.numbers_of(key, 1))] = records.decode(key, row, str)
        elif table == keys.ID:
            ordinal = next(keys.numbers_of(key, 1))
            text = key[keys.PREFIX_BYTES + 8 :].decode()
            self._ids.append((owner, ordinal, text, records.decode(key, row, IdRow)))
        elif table == keys.ORDER:
            records.unseal(key, row)
            ordinal, sequence = keys.numbers_of(key, 2)
            self._order.add((owner, ordinal, sequence))
        elif table == keys.RUN:
            records.unseal(key, row)
            rest = key[keys.PREFIX_BYTES :]
            digest = rest[: keys.DIGEST_BYTES]
            self._runs.add((owner, digest, int.from_bytes(rest[-16:-8], "big"), int.from_bytes(rest[-8:], "big")))
        else:
            self._take_more(key, row, table, owner)

    def _take_more(self, key: bytes, row: bytes, table: bytes, owner: int) -> None:
        if table == keys.GROUP:
            self._groups[_group_of(key)] = records.decode(key, row, RecordGroupRow)
        elif table == keys.RECORD:
            head = records.decode(key, row, RecordHead)
            self._need_pieces(key, keys.RECORD_PIECE, head.size_bytes)
            totals = self._record_totals[_group_of(key)]
            totals[0] += 1
            totals[1] += next(self._txn.records_at(key)).size_bytes
        elif table == keys.NODE:
            node = records.decode(key, row, NodeHead)
            self._nodes[owner] = node
            self._need_pieces(key, keys.NODE_PIECE, node.size_bytes)
        elif table == keys.VALUE:
            value = records.decode(key, row, ValueHead)
            self._values[owner] = value
            self._need_pieces(key, keys.VALUE_PIECE, value.size_bytes)
        elif table in PIECE_TABLES:
            records.unseal(key, row)
            self._piece_counts[key[:-2]] += 1
        elif table == keys.TRASH:
            self._trash.append(records.decode(key, row, TrashRow))
        elif table == keys.DUE:
            self._due.append(records.decode(key, row, DueRow))
        elif table == keys.BUILDING:
            records.unseal(key, row)
            self._building.add(next(keys.numbers_of(key, 1)))
        elif table == keys.STATUS:
            self._take_status(key, row)
        elif table == keys.LEASE:
            self._leases[owner] = records.decode(key, row, LeaseRow)
        elif table == keys.SIGNAL:
            signal = records.decode(key, row, SignalHead)
            self._need_pieces(key, keys.SIGNAL_PIECE, signal.size_bytes)
            self._signals[owner][next(keys.numbers_of(key, 1))] = signal.signal_id
        elif table == keys.SIGNAL_ID:
            self._signal_ids[owner][key[keys.PREFIX_BYTES :].decode()] = records.decode(key, row, SignalIdRow)
        elif table == keys.MANIFEST:
            self._need_pieces(key, keys.MANIFEST_PIECE, records.decode(key, row, ManifestHead).size_bytes)
            self._manifest_counts[owner] += 1
            fingerprint = key[keys.PREFIX_BYTES :].decode()
            if rules.digest_manifest(self._txn.find_manifest_in(owner, fingerprint) or "") != fingerprint:
                self._report.add(f"manifest {fingerprint} of namespace {owner}: it is not what its fingerprint says")
        else:
            self._report.add(f"row {key.hex()}: there is no such table")

    def _take_name(self, key: bytes, row: bytes) -> None:
        if len(key) - keys.PREFIX_BYTES > long_keys.SEGMENT_BYTES:
            records.decode(key, row, NameBranch)
            return
        name = records.decode(key, row, NameRow)
        if name.name_id in self._names:
            self._report.add(f"name {name.workflow_id!r}: its number {name.name_id} is used twice")
        self._names[name.name_id] = name
        found = long_keys.find(self._txn, name.namespace_id, name.workflow_id.encode())
        if found != key:
            self._report.add(f"name {name.workflow_id!r}: kept under a key that is not its own")

    def _take_status(self, key: bytes, row: bytes) -> None:
        if len(key) - keys.PREFIX_BYTES - 1 > long_keys.SEGMENT_BYTES:
            records.decode(key, row, NameBranch)
        else:
            records.unseal(key, row)
            self._listed_count += 1

    def _expect_key(self, key: bytes, wanted: bytes) -> None:
        if key != wanted:
            self._report.add(f"row {key.hex()}: its body belongs to {wanted.hex()}")

    def _need_pieces(self, key: bytes, table: bytes, size_bytes: int) -> None:
        count = len(pieces.plan(size_bytes))
        if count:
            self._piece_needs[keys.piece(key, table, 0)[:-2]] = count

    # What rows say of one another.

    def _check_names(self) -> None:
        for name in self._names.values():
            if name.namespace_id not in self._namespaces:
                self._report.add(f"name {name.workflow_id!r}: its namespace {name.namespace_id} is missing")
            for internal_id in filter(None, (name.internal_id, name.building_id)):
                workflow = self._workflows.get(internal_id)
                if workflow is None or workflow.name_id != name.name_id:
                    self._report.add(f"name {name.workflow_id!r}: its incarnation {internal_id} is missing")
            if name.building_id and name.building_id not in self._building:
                self._report.add(f"name {name.workflow_id!r}: a fork to it is not noted as under construction")

    def _check_leases(self) -> None:
        """Every lease is the newest of its name, and no token is beyond what its namespace has counted."""
        for namespace_id in self._manifest_counts.keys() - self._namespaces.keys():
            self._report.add(f"manifests of namespace {namespace_id}: there is no such namespace")
        for namespace in self._namespaces.values():
            said, found = namespace.manifest_count, self._manifest_counts[namespace.namespace_id]
            if said != found:
                self._report.add(f"namespace {namespace.name!r}: counts {said} manifests, has {found}")
        tokens: set[tuple[int, int]] = set()
        for name_id, lease in self._leases.items():
            name = self._names.get(name_id)
            where = f"lease {lease.token} of name {name_id}"
            if name is None or not name.has_lease:
                self._report.add(f"{where}: its name does not say so")
                continue
            granted_in = self._namespaces.get(name.namespace_id)
            count = granted_in.lease_count if granted_in is not None else 0
            if not 0 < lease.token <= (self._lease_epoch << LEASE_EPOCH_SHIFT) + count:
                self._report.add(f"{where}: its namespace has granted {count} leases in epoch {self._lease_epoch}")
            if (name.namespace_id, lease.token) in tokens:
                self._report.add(f"{where}: its token was given twice")
            tokens.add((name.namespace_id, lease.token))
        for name in self._names.values():
            if name.has_lease and name.name_id not in self._leases:
                self._report.add(f"name {name.workflow_id!r}: its lease is missing")

    def _place_checkpoints(self) -> None:
        """Find the workflow of each checkpoint by the sequence row that leads to it."""
        for row_id, checkpoint in self._checkpoints_by_row.items():
            place = self._sequences.pop(row_id, None)
            if place is None or place[1] != checkpoint.sequence:
                self._report.add(f"checkpoint {checkpoint.checkpoint_id!r} (row {row_id}): no sequence leads to it")
            else:
                self._checkpoints[place] = checkpoint
        for row_id, place in self._sequences.items():
            self._report.add(f"sequence {place[0]}/{place[1]}: its checkpoint, row {row_id}, is missing")

    def _reachable(self) -> Iterator[tuple[NameRow, WorkflowRow]]:
        """Yield the workflows that can be read, or will be."""
        for name in self._names.values():
            for internal_id in filter(None, (name.internal_id, name.building_id)):
                workflow = self._workflows.get(internal_id)
                if workflow is not None:
                    yield name, workflow

    def _check_checkpoints(self) -> None:
        for (internal_id, sequence), row in self._checkpoints.items():
            where = f"checkpoint {row.checkpoint_id!r} ({internal_id}/{sequence})"
            workflow = self._workflows.get(internal_id)
            if workflow is None:
                self._report.add(f"{where}: its workflow is missing")
                continue
            if (internal_id, row.scope_ordinal, sequence) not in self._order:
                self._report.add(f"{where}: not in its scope's order")
            run = (workflow.namespace_id, keys.digest_text(row.run_id), internal_id, sequence)
            if row.run_id and run not in self._runs:
                self._report.add(f"{where}: not under its run")
            if row.digest != rules.digest_row(row):
                self._report.add(f"{where}: its digest does not stand for its content")
        for internal_id, ordinal, sequence in self._order:
            ordered = self._checkpoints.get((internal_id, sequence))
            if ordered is None or ordered.scope_ordinal != ordinal:
                self._report.add(f"order {internal_id}/{ordinal}/{sequence}: leads to no checkpoint")
        for namespace_id, digest, internal_id, sequence in self._runs:
            member = self._checkpoints.get((internal_id, sequence))
            if member is None or keys.digest_text(member.run_id) != digest:
                self._report.add(f"run entry {namespace_id}/{internal_id}/{sequence}: leads to no checkpoint of it")
        live = {
            (name.name_id, row.scope_ordinal, row.checkpoint_id): (workflow.internal_id, row.sequence, row.step_count)
            for name, workflow in self._reachable()
            for row in self._rows_of(workflow)
        }
        for name_id, ordinal, text, id_row in self._ids:
            id_name = self._names.get(name_id)
            if id_name is None:
                self._report.add(f"id {text!r} ({name_id}/{ordinal}): its name is missing")
                continue
            is_live = id_row.deleted_time_ms == 0 and id_row.internal_id in (id_name.internal_id, id_name.building_id)
            expected = live.pop((name_id, ordinal, text), None)
            if is_live and expected != (id_row.internal_id, id_row.sequence, id_row.step_count):
                self._report.add(f"id {text!r} ({name_id}/{ordinal}): leads to no checkpoint of as many steps")
            if not is_live and expected is not None:
                self._report.add(f"id {text!r} ({name_id}/{ordinal}): a stub, though its checkpoint is there")
        for name_id, ordinal, text in live:
            self._report.add(f"checkpoint {text!r} ({name_id}/{ordinal}): not among the ids")

    def _rows_of(self, workflow: WorkflowRow) -> list[CheckpointRow]:
        return self._by_workflow.get(workflow.internal_id, [])

    @cached_property
    def _by_workflow(self) -> dict[int, list[CheckpointRow]]:
        """The checkpoints of each incarnation. Not to be asked before all rows were taken."""
        grouped: dict[int, list[CheckpointRow]] = defaultdict(list)
        for (internal_id, _), row in self._checkpoints.items():
            grouped[internal_id].append(row)
        return grouped

    def _check_scopes(self) -> None:
        for (name_id, ordinal), text in self._scope_numbers.items():
            if (name_id, ordinal) not in self._scopes:
                self._report.add(f"scope {text!r} of name {name_id}: is missing though its number {ordinal} is there")
        for (name_id, ordinal), scope in self._scopes.items():
            where = f"scope {scope.scope!r} of name {name_id}"
            if self._scope_numbers.get((name_id, ordinal)) != scope.scope:
                self._report.add(f"{where}: its number {ordinal} does not lead back to it")
            name = self._names.get(name_id)
            if name is None:
                self._report.add(f"{where}: its name is missing")
                continue
            if not scope.internal_id or scope.internal_id not in (name.internal_id, name.building_id):
                continue
            rows = [row for row in self._by_workflow.get(scope.internal_id, []) if row.scope_ordinal == ordinal]
            head = max(rows, key=lambda row: row.sequence, default=None)
            found = (head.sequence, head.checkpoint_id) if head is not None else (0, "")
            if found != (scope.head_sequence, scope.head_checkpoint_id):
                self._report.add(f"{where}: its head is {scope.head_sequence}, the highest sequence is {found[0]}")
            if len(rows) != scope.checkpoint_count:
                self._report.add(f"{where}: counts {scope.checkpoint_count} checkpoints, has {len(rows)}")

    def _check_workflows(self) -> None:
        reachable = {workflow.internal_id for _, workflow in self._reachable()}
        dying = {row.owner_id for row in self._trash if row.kind == TrashKind.WORKFLOW}
        for internal_id in self._workflows.keys() - reachable - dying - self._building:
            self._report.add(
                f"workflow {internal_id}: no name leads to it, and it is neither in the trash nor under construction"
            )
        for _, workflow in self._reachable():
            where = f"workflow {workflow.workflow_id!r} ({workflow.internal_id})"
            rows = self._rows_of(workflow)
            roots = [row for row in rows if row.scope == ""]
            head = max(roots, key=lambda row: row.sequence, default=None)
            waiting_count = sum(
                group.record_count
                for (internal_id, _, _), group in self._groups.items()
                if internal_id == workflow.internal_id and group.is_waiting
            )
            told = rules.with_head(workflow, head)
            for what, said, found in (
                ("checkpoint_count", workflow.checkpoint_count, len(rows)),
                ("scope_count", workflow.scope_count, len({row.scope for row in rows})),
                ("stored_bytes", workflow.stored_bytes, sum(row.stored_bytes for row in rows)),
                ("waiting_record_count", workflow.waiting_record_count, waiting_count),
                ("head", workflow.head_checkpoint_id, told.head_checkpoint_id),
                ("status", workflow.status, told.status),
                ("current_step", workflow.current_step, told.current_step),
                # A row from before there was this field has none.
                ("fingerprint", workflow.fingerprint or told.fingerprint, told.fingerprint),
            ):
                if said != found:
                    self._report.add(f"{where}: {what} is {said!r}, the checkpoints say {found!r}")
            highest = max((row.sequence for row in rows), default=0)
            if workflow.last_sequence < highest:
                self._report.add(f"{where}: last_sequence {workflow.last_sequence} is below {highest}")

    def _check_statuses(self) -> None:
        """Every workflow is listed in the group of its status, and in no other."""
        listed: set[tuple[int, bytes, str]] = set()
        for namespace_id in self._namespaces:
            for table in status_index.all_tables():
                try:
                    found = long_keys.walk(self._txn, namespace_id, b"", None, table=table)
                    listed.update((namespace_id, table, workflow_id.decode()) for workflow_id, _, _ in found)
                except StoreError as error:
                    self._report.add(error.message)
        if len(listed) != self._listed_count:
            self._report.add(f"status index: {self._listed_count} rows, of which {len(listed)} are in some group")
        expected = {
            (name.namespace_id, status_index.table_of(group), name.workflow_id)
            for name in self._names.values()
            if (group := status_index.group_of(self._workflows.get(name.internal_id))) is not None
        }
        for _, table, workflow_id in sorted(listed - expected):
            self._report.add(f"workflow {workflow_id!r}: is listed by a status that it has not (group {table[1]})")
        if not self._is_upgrading:
            for _, table, workflow_id in sorted(expected - listed):
                self._report.add(f"workflow {workflow_id!r}: is not listed by its status (group {table[1]})")

    def _check_records(self) -> None:
        discarded = {(row.owner_id, row.number, row.digest) for row in self._trash if row.kind == TrashKind.RECORDS}
        dying = {row.owner_id for row in self._trash if row.kind == TrashKind.WORKFLOW}
        for where, group in self._groups.items():
            totals = self._record_totals.get(where, [0, 0])
            if totals != [group.record_count, group.record_bytes] and where[0] not in dying:
                said = [group.record_count, group.record_bytes]
                self._report.add(f"records of {group.checkpoint_id!r}: counted as {said}, there are {totals}")
        for where in self._record_totals:
            if where not in self._groups and where not in discarded and where[0] not in dying:
                self._report.add(f"records of {where[0]}/{where[1]}/{where[2].hex()}: orphans")

    def _check_signals(self) -> None:
        """Every pending signal is found by its id, and counted; no id leads to a signal that is not there."""
        dying = {row.owner_id for row in self._trash if row.kind == TrashKind.WORKFLOW}
        noted = {row.position for row in self._due if row.kind == DueKind.SIGNAL_STUB}
        for due in self._due:
            if due.kind == DueKind.SIGNAL_STUB and due.internal_id in self._workflows.keys() - dying:
                known = self._signal_ids[due.internal_id].get(due.position[keys.PREFIX_BYTES :].decode())
                if known is None or not known.consumed_time_ms:
                    self._report.add(f"signal id {due.position.hex()}: is to be forgotten, and is not there")
        for internal_id in (self._signals.keys() | self._signal_ids.keys()) - self._workflows.keys():
            self._report.add(f"signals of incarnation {internal_id}: there is no such workflow")
        for internal_id, workflow in self._workflows.items():
            if internal_id in dying:
                continue
            where = f"workflow {workflow.workflow_id!r} ({internal_id})"
            pending = self._signals.get(internal_id, {})
            ids = self._signal_ids.get(internal_id, {})
            if workflow.pending_signal_count != len(pending):
                said = workflow.pending_signal_count
                self._report.add(f"{where}: counts {said} pending signals, has {len(pending)}")
            if max((row.number for row in ids.values()), default=0) > workflow.last_signal_number:
                self._report.add(f"{where}: a signal is above the last number {workflow.last_signal_number}")
            found = {row.number: text for text, row in ids.items() if not row.consumed_time_ms}
            if found != pending:
                self._report.add(f"{where}: its pending signals are not those that its signal ids lead to")
            for text, row in ids.items():
                if row.consumed_time_ms and keys.signal_id(internal_id, text) not in noted:
                    self._report.add(f"{where}: the id of consumed signal {text!r} is never looked at again")

    def _check_due(self) -> None:
        """Whatever is to be dropped when its time has come is noted as due."""
        noted = {(row.kind, row.name_id, row.internal_id, row.scope_ordinal, row.digest) for row in self._due}
        noted_leases = {(row.name_id, row.lease_token) for row in self._due if row.kind == DueKind.LEASE}
        for name in self._names.values():
            if name.stub_due_ms and (DueKind.STUBS, name.name_id, 0, 0, b"") not in noted:
                self._report.add(f"name {name.workflow_id!r}: no look for its outlived stubs is noted")
            lease = self._leases.get(name.name_id)
            is_unused = lease is not None and not name.internal_id
            if lease is not None and is_unused and (name.name_id, lease.token) not in noted_leases:
                self._report.add(f"name {name.workflow_id!r}: no look for the lease of a workflow to come is noted")
        for name_id, _, text, row in self._ids:
            known = self._names.get(name_id)
            is_past = known is not None and row.internal_id not in (known.internal_id, known.building_id)
            if is_past and not row.deleted_time_ms and (DueKind.STUBS, name_id, row.internal_id, 0, b"") not in noted:
                self._report.add(f"id {text!r} of name {name_id}: a stub that is never looked at again")
        for (internal_id, ordinal, digest), group in self._groups.items():
            is_kept = group.is_waiting and internal_id in self._workflows
            if is_kept and (DueKind.WAITING_RECORDS, 0, internal_id, ordinal, digest) not in noted:
                self._report.add(f"records of {group.checkpoint_id!r}: wait for their checkpoint for ever")

    def _check_pieces(self) -> None:
        for start, count in self._piece_counts.items():
            if self._piece_needs.get(start) != count:
                self._report.add(f"pieces of {start.hex()}: {count}, its head needs {self._piece_needs.get(start, 0)}")
        for start, count in self._piece_needs.items():
            if start not in self._piece_counts:
                self._report.add(f"pieces of {start.hex()}: none, its head needs {count}")

    # States.

    def _check_states(self) -> None:
        trashed = {row.owner_id: row for row in self._trash if row.kind == TrashKind.NODE}
        node_holders: Counter[int] = Counter()
        value_holders: Counter[int] = Counter()
        for (internal_id, _), row in self._checkpoints.items():
            workflow = self._workflows.get(internal_id)
            node = self._nodes.get(row.node_id)
            node_holders[row.node_id] += 1
            if workflow is not None and node is not None and node.family_id != workflow.family_id:
                self._report.add(f"checkpoint {row.checkpoint_id!r}: its node {row.node_id} is of another family")
        checked: set[int] = set()
        for node_id, head in self._nodes.items():
            if head.prior_id:
                node_holders[head.prior_id] += 1
            try:
                body = self._txn.read_node(node_id)[1]
            except StoreError as error:
                self._report.add(error.message)
                continue
            trash = trashed.get(node_id)
            refs = list(body.entries.values())[trash.position if trash is not None else 0 :]
            value_holders.update(ref.value_id for ref in refs)
            self._check_weight(node_id, head, body)
            for ref in refs:
                if ref.value_id not in checked:
                    checked.add(ref.value_id)
                    self._check_value(head.family_id, ref)
        self._compare_holders("node", node_holders, {number: head.holder_count for number, head in self._nodes.items()})
        self._compare_holders(
            "value", value_holders, {number: head.holder_count for number, head in self._values.items()}
        )
        for node_id, head in self._nodes.items():
            if head.holder_count == 0 and node_id not in trashed:
                self._report.add(f"node {node_id}: nobody holds it and it is not in the trash")
        for (internal_id, _), row in sorted(self._checkpoints.items(), key=lambda item: item[1].node_id):
            self._check_state(internal_id, row)

    def _compare_holders(self, what: str, found: Counter[int], said: dict[int, int]) -> None:
        for number, count in said.items():
            if found[number] != count:
                self._report.add(f"{what} {number}: counts {count} holders, has {found[number]}")
        for number, count in found.items():
            if number not in said:
                self._report.add(f"{what} {number}: is missing though it has {count} holders")

    def _check_weight(self, node_id: int, head: NodeHead, body: NodeBody) -> None:
        weight = len(body.entries) + len(body.removed) + len(body.steps)
        if not head.prior_id:
            expected = (weight, 0)
        else:
            prior = self._nodes.get(head.prior_id)
            expected = (prior.weight, prior.chain_weight + weight) if prior is not None else (0, 0)
        if (head.weight, head.chain_weight) != expected:
            self._report.add(f"node {node_id}: its weights are wrong")
        if head.prior_id and head.chain_weight >= head.weight:
            self._report.add(f"node {node_id}: its chain is longer than its keyframe")

    def _check_value(self, family_id: int, ref: EntryRef) -> None:
        head = self._values.get(ref.value_id)
        if head is None:
            # Reported with its holders.
            return
        if head.family_id != family_id:
            self._report.add(f"value {ref.value_id}: a node of another family names it")
        try:
            value = self._txn.read_value(family_id, ref)
        except StoreError as error:
            self._report.add(error.message)
            return
        if rules.digest_value(value) != ref.digest:
            self._report.add(f"value {ref.value_id}: its bytes are not those of its digest")

    def _check_state(self, internal_id: int, row: CheckpointRow) -> None:
        where = f"checkpoint {row.checkpoint_id!r} ({internal_id}/{row.sequence})"
        try:
            state = self._resolve(row.node_id)
        except StoreError as error:
            self._report.add(f"{where}: {error.message}")
            return
        entries_hash = rules.add_to_entries_hash(
            rules.EMPTY_ENTRIES_HASH, (rules.hash_entry(key, ref.digest) for key, ref in state.entries.items()), ()
        )
        for what, said, found in (
            ("entry_count", row.entry_count, len(state.entries)),
            ("entries_bytes", row.entries_bytes, sum(ref.size_bytes for ref in state.entries.values())),
            ("entries_hash", row.entries_hash, entries_hash),
            ("step_count", row.step_count, len(state.steps)),
            ("steps_bytes", row.steps_bytes, rules.steps_bytes(tuple(state.steps))),
            ("steps_hash", row.steps_hash, rules.extend_steps_hash(rules.EMPTY_STEPS_HASH, state.steps)),
        ):
            if said != found:
                self._report.add(f"{where}: {what} is not that of its state")

    def _resolve(self, node_id: int) -> ResolvedState:
        """Return a state, building on one that was resolved lately; each is a copy, so this is O(state)."""
        known = self._resolved.get(node_id)
        if known is not None:
            self._resolved.move_to_end(node_id)
            return known
        head, body = self._txn.read_node(node_id)
        prior = self._resolved.get(head.prior_id) or self._txn.resolve_state(head.family_id, head.prior_id)
        state = ResolvedState(dict(prior.entries), dict(prior.steps))
        apply_node(state, body)
        self._resolved[node_id] = state
        if len(self._resolved) > RESOLVED_STATES_MAX:
            self._resolved.popitem(last=False)
        return state


def _group_of(key: bytes) -> tuple[int, int, bytes]:
    start = keys.PREFIX_BYTES + 8
    return keys.owner_of(key), next(keys.numbers_of(key, 1)), key[start : start + keys.DIGEST_BYTES]
