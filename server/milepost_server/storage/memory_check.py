"""A proof that a store in memory is whole: counts are what they count, heads are heads, every lead ends somewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from milepost_server import rules
from milepost_server.model import CheckpointRow, IdRow, WorkflowRow
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.storage.memory_transaction import Tables


def check(engine: MemoryEngine) -> list[str]:
    """Return what is wrong inside a store; nothing, it is to be hoped."""
    return engine.inspect(lambda tables: list(_find_problems(tables)))


def _find_problems(tables: Tables) -> Iterator[str]:
    yield from _find_sharing_problems(tables)
    for name in tables.names.values():
        for internal_id in filter(None, (name.internal_id, name.building_id)):
            workflow = tables.workflows.get(internal_id)
            if workflow is None or workflow.name_id != name.name_id:
                yield f"name {name.workflow_id!r} leads to incarnation {internal_id}, which is not its own"
    for workflow in tables.workflows.values():
        named = tables.names.get((workflow.namespace_id, workflow.workflow_id))
        if named is None or workflow.internal_id not in (named.internal_id, named.building_id):
            if workflow.internal_id not in tables.building:
                yield f"incarnation {workflow.internal_id} of {workflow.workflow_id!r} has no name"
            continue
        yield from (
            f"workflow {workflow.workflow_id!r}: {problem}" for problem in _find_workflow_problems(tables, workflow)
        )
    yield from _find_lease_problems(tables)
    for internal_id in tables.signals.keys() | tables.signal_ids.keys():
        if internal_id not in tables.workflows:
            yield f"incarnation {internal_id} has signals but does not exist"
    for internal_id in tables.checkpoints.keys() | tables.records.keys() | tables.record_groups.keys():
        if internal_id not in tables.workflows:
            yield f"incarnation {internal_id} has rows but does not exist"
    places = {(internal_id, sequence) for internal_id, rows in tables.checkpoints.items() for sequence in rows}
    if tables.checkpoint_row_ids.keys() != places:
        yield "not just the checkpoints that are there have a row id"


def _find_lease_problems(tables: Tables) -> Iterator[str]:
    names = {name.name_id: name for name in tables.names.values()}
    lease_counts = {tables.namespaces[namespace]: count for namespace, count in tables.lease_counts.items()}
    for name in names.values():
        if name.has_lease is not (name.name_id in tables.leases):
            yield f"name {name.workflow_id!r} says {name.has_lease} of whether it has a lease"
    for name_id, lease in tables.leases.items():
        if name_id not in names:
            yield f"lease {lease.token} has no name"
        elif not 0 < lease.token <= lease_counts[names[name_id].namespace_id]:
            yield f"lease {lease.token} was never granted in its namespace"
        elif not names[name_id].internal_id and name_id not in tables.lease_due_ms:
            yield f"lease {lease.token} of a workflow to come is never looked at again"
    for fingerprint, manifest in ((each, text) for found in tables.manifests.values() for each, text in found.items()):
        if rules.digest_manifest(manifest) != fingerprint:
            yield f"manifest {fingerprint} is not what its fingerprint says"


def _find_sharing_problems(tables: Tables) -> Iterator[str]:
    """Compare the counts of holders with the holders."""
    node_holders = Counter(
        (tables.workflows[internal_id].family_id, row.node_id)
        for internal_id, rows in tables.checkpoints.items()
        if internal_id in tables.workflows
        for row in rows.values()
    )
    if node_holders != {key: node.holder_count for key, node in tables.nodes.items()}:
        yield "nodes are not held just as often as checkpoints have them"
    value_holders = Counter(
        (family_id, ref.value_id) for (family_id, _), node in tables.nodes.items() for ref in node.entries.values()
    )
    if value_holders != {key: stored.holder_count for key, stored in tables.values.items()}:
        yield "values are not held just as often as nodes have them"
    for (family_id, _), node in tables.nodes.items():
        for key, ref in node.entries.items():
            stored = tables.values.get((family_id, ref.value_id))
            if stored is None or rules.digest_value(stored.value) != ref.digest:
                yield f"entry {key!r} leads to no value of its digest"


def _find_workflow_problems(tables: Tables, workflow: WorkflowRow) -> Iterator[str]:
    rows = tables.checkpoints.get(workflow.internal_id, {})
    by_scope: dict[str, list[CheckpointRow]] = {}
    for row in sorted(rows.values(), key=lambda row: row.sequence):
        by_scope.setdefault(row.scope, []).append(row)
        yield from (f"checkpoint {row.sequence}: {what}" for what in _find_checkpoint_problems(tables, workflow, row))
    root_head = by_scope[""][-1] if "" in by_scope else None
    if rules.with_head(workflow, root_head) != workflow:
        yield "it does not show the head of its root scope"
    if max(rows, default=0) > workflow.last_sequence:
        yield "a sequence is above the last one"
    groups = tables.record_groups.get(workflow.internal_id, {})
    counted = {
        "checkpoint_count": len(rows),
        "scope_count": len(by_scope),
        "stored_bytes": sum(row.stored_bytes for row in rows.values()),
        "pending_signal_count": len(tables.signals.get(workflow.internal_id, {})),
        "waiting_record_count": sum(group.record_count for group in groups.values() if group.is_waiting),
    }
    for field, count in counted.items():
        if getattr(workflow, field) != count:
            yield f"{field} is {getattr(workflow, field)}, not {count}"
    for scope in tables.scopes.get(workflow.name_id, {}).values():
        mine = by_scope.pop(scope.scope, [])
        found = (scope.checkpoint_count, scope.head_sequence) if scope.internal_id == workflow.internal_id else (0, 0)
        if found != (len(mine), mine[-1].sequence if mine else 0):
            yield f"scope {scope.scope!r} has count and head {found}"
    if by_scope:
        yield f"scopes {sorted(by_scope)} are missing"
    ids = tables.ids.get(workflow.name_id, {})
    for (ordinal, checkpoint_id), id_row in ids.items():
        live = rows.get(id_row.sequence)
        place = None if live is None else (live.scope_ordinal, live.checkpoint_id)
        if _is_live(id_row, workflow) and place != (ordinal, checkpoint_id):
            yield f"id {checkpoint_id!r} leads to no checkpoint of its own"
    pending = {number: signal.signal_id for number, signal in tables.signals.get(workflow.internal_id, {}).items()}
    known = tables.signal_ids.get(workflow.internal_id, {})
    if pending != {row.number: signal_id for signal_id, row in known.items() if not row.consumed_time_ms}:
        yield "its pending signals are not those that its signal ids lead to"
    if max((row.number for row in known.values()), default=0) > workflow.last_signal_number:
        yield "a signal is above the last number"
    records = tables.records.get(workflow.internal_id, {})
    if {key for key, group in groups.items() if group.record_count} != {key for key, group in records.items() if group}:
        yield "there are not just as many record groups as groups of records"
    for key, group in groups.items():
        stored = records.get(key, {}).values()
        if (group.record_count, group.record_bytes) != (len(stored), sum(record.size_bytes for record in stored)):
            yield f"the records of {key} are miscounted"
        if group.is_waiting == _is_live(ids.get(key), workflow):
            yield f"the records of {key} are wrong about whether they wait"


def _find_checkpoint_problems(tables: Tables, workflow: WorkflowRow, row: CheckpointRow) -> Iterator[str]:
    id_row = tables.ids.get(workflow.name_id, {}).get((row.scope_ordinal, row.checkpoint_id))
    if id_row is None or not _is_live(id_row, workflow) or id_row.sequence != row.sequence:
        yield "its id does not lead to it"
    node = tables.nodes.get((workflow.family_id, row.node_id))
    if node is None:
        yield "its state is missing"
        return
    if (row.entry_count, row.entries_bytes) != (
        len(node.entries),
        sum(ref.size_bytes for ref in node.entries.values()),
    ):
        yield "its entries are miscounted"
    hashes = [rules.hash_entry(key, ref.digest) for key, ref in node.entries.items()]
    if row.entries_hash != rules.add_to_entries_hash(rules.EMPTY_ENTRIES_HASH, hashes, ()):
        yield "its entries have another hash"
    if row.step_count != len(node.steps):
        yield "its steps are miscounted"
    if row.steps_hash != rules.extend_steps_hash(rules.EMPTY_STEPS_HASH, node.steps):
        yield "its steps have another hash"


def _is_live(id_row: IdRow | None, workflow: WorkflowRow) -> bool:
    return id_row is not None and id_row.internal_id == workflow.internal_id and not id_row.deleted_time_ms
