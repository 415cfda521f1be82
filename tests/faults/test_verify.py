"""The offline check proves what it says: of rows that are whole, but say what is not so, it tells each.

Every storage test ends with this check, so one that overlooked something would let all of them pass. Damage that
a checksum shows is in `test_corruption`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from milepost_server.model import (
    CheckpointRow,
    IdRow,
    LeaseRow,
    RecordGroupRow,
    ScopeRow,
    SignalIdRow,
    WorkflowRow,
)
from milepost_server.storage import keys, long_keys, records
from milepost_server.storage.lmdb_env import MetaRow
from milepost_server.storage.lmdb_rows import (
    DueKind,
    DueRow,
    ManifestHead,
    NamespaceRow,
    NodeHead,
    TrashKind,
    TrashRow,
    ValueHead,
)
from milepost_server.storage.port import NameRow
from milepost_server.storage.verify import verify_store
from tests.support.fault_engines import fill_every_table

Lie = Callable[[lmdb.Transaction], None]
Select = Callable[[Any], bool]

KINDS: dict[bytes, Any] = {
    keys.META: MetaRow,
    keys.NAMESPACE: NamespaceRow,
    keys.TRASH: TrashRow,
    keys.DUE: DueRow,
    keys.NAME: NameRow,
    keys.SCOPE: ScopeRow,
    keys.ID: IdRow,
    keys.LEASE: LeaseRow,
    keys.WORKFLOW: WorkflowRow,
    keys.CHECKPOINT: CheckpointRow,
    keys.SEQUENCE: int,
    keys.GROUP: RecordGroupRow,
    keys.SIGNAL_ID: SignalIdRow,
    keys.MANIFEST: ManifestHead,
    keys.NODE: NodeHead,
    keys.VALUE: ValueHead,
}


def find(txn: lmdb.Transaction, table: bytes, select: Select = lambda row: True) -> tuple[bytes, Any]:
    """Return key and content of the first row of a table that is wanted."""
    for key, row in ((bytes(key), bytes(row)) for key, row in txn.cursor()):
        if keys.table_of(key) == table:
            # Of a name that is longer than one key, the row is a branch to its end.
            if table == keys.NAME and len(key) - keys.PREFIX_BYTES > long_keys.SEGMENT_BYTES:
                continue
            content = records.decode(key, row, KINDS[table]) if table in KINDS else records.unseal(key, row)
            if select(content):
                return key, content
    raise AssertionError("there is no such row")


def change(table: bytes, select: Select = lambda row: True, **fields: Callable[[Any], object]) -> Lie:
    """Return what says something else in some fields of a row."""

    def lie(txn: lmdb.Transaction) -> None:
        key, row = find(txn, table, select)
        changed = msgspec.structs.replace(row, **{name: make(getattr(row, name)) for name, make in fields.items()})
        assert changed != row
        txn.put(key, records.encode(key, changed))

    return lie


def lose(table: bytes, select: Select = lambda row: True) -> Lie:
    """Return what takes a row away."""

    def lie(txn: lmdb.Transaction) -> None:
        assert txn.delete(find(txn, table, select)[0])

    return lie


def add(table: bytes, make_key: Callable[[bytes], bytes]) -> Lie:
    """Return what puts a row beside one like it, with its content."""

    def lie(txn: lmdb.Transaction) -> None:
        key, _ = find(txn, table)
        other = make_key(key)
        assert txn.get(other) is None
        txn.put(other, records.seal(other, records.unseal(key, bytes(txn.get(key) or b""))))

    return lie


def more(number: Any) -> Any:
    return number + 1


def other_text(text: str) -> str:
    return f"{text}-not"


def other_bytes(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def other_last_byte(key: bytes) -> bytes:
    return key[:-1] + bytes([key[-1] ^ 0x40])


def is_w1(row: Any) -> bool:
    return bool(row.workflow_id == "w1")


def is_c3(row: Any) -> bool:
    return bool(row.checkpoint_id == "c3")


def is_delta(row: Any) -> bool:
    return bool(row.prior_id)


def is_inline(row: Any) -> bool:
    return bool(4 < row.size_bytes == len(row.tail))


def is_due(kind: DueKind) -> Select:
    return lambda row: bool(row.kind == kind)


def is_live(row: Any) -> bool:
    return bool(row.step_count and not row.deleted_time_ms)


LIES: dict[str, tuple[Lie, str]] = {
    # Reference counts, and what nobody refers to.
    "a node counts one holder more": (change(keys.NODE, holder_count=more), "holders, has"),
    "a value counts one holder more": (change(keys.VALUE, holder_count=more), "holders, has"),
    "a node is gone": (lose(keys.NODE, is_delta), "is missing though it has"),
    "a value is gone": (lose(keys.VALUE), "is missing though it has"),
    "a node that nobody holds": (
        add(keys.NODE, lambda key: keys.prefix(1, keys.NODE)),
        "holders, has 0",
    ),
    "a node without holders that waits for no sweep": (
        change(keys.NODE, holder_count=lambda count: 0),
        "nobody holds it and it is not in the trash",
    ),
    "a dying workflow that waits for no sweep": (
        lose(keys.TRASH, lambda row: row.kind == TrashKind.WORKFLOW),
        "no name leads to it",
    ),
    "discarded records that wait for no sweep": (
        lose(keys.TRASH, lambda row: row.kind == TrashKind.RECORDS),
        "orphans",
    ),
    "a node of another family": (change(keys.NODE, family_id=more), "of another family"),
    "a value of another family": (change(keys.VALUE, family_id=more), "another family names it"),
    # States.
    "a node of another weight": (change(keys.NODE, weight=more), "its weights are wrong"),
    "a chain of another weight": (change(keys.NODE, is_delta, chain_weight=more), "its weights are wrong"),
    "a value of other bytes": (change(keys.VALUE, is_inline, tail=other_bytes), "not those of its digest"),
    "one entry more": (change(keys.CHECKPOINT, is_c3, entry_count=more), "entry_count is not that of its state"),
    "a larger state": (change(keys.CHECKPOINT, is_c3, entries_bytes=more), "entries_bytes is not that of its state"),
    "another state": (change(keys.CHECKPOINT, is_c3, entries_hash=other_bytes), "entries_hash is not that"),
    "one step more": (change(keys.CHECKPOINT, is_c3, step_count=more), "step_count is not that of its state"),
    "larger steps": (change(keys.CHECKPOINT, is_c3, steps_bytes=more), "steps_bytes is not that of its state"),
    "other steps": (change(keys.CHECKPOINT, is_c3, steps_hash=other_bytes), "steps_hash is not that of its state"),
    # Checkpoints and what leads to them.
    "other content than its digest": (change(keys.CHECKPOINT, is_c3, metadata=other_text), "does not stand for"),
    "a checkpoint that no sequence leads to": (lose(keys.SEQUENCE), "no sequence leads to it"),
    "a sequence without a checkpoint": (lose(keys.CHECKPOINT, is_c3), "is missing"),
    "a checkpoint outside of its order": (lose(keys.ORDER), "not in its scope's order"),
    "an order of nothing": (add(keys.ORDER, other_last_byte), "leads to no checkpoint"),
    "a checkpoint outside of its run": (lose(keys.RUN), "not under its run"),
    "a run of nothing": (add(keys.RUN, other_last_byte), "leads to no checkpoint of it"),
    "a checkpoint without an id": (lose(keys.ID, is_live), "not among the ids"),
    "an id of another checkpoint": (change(keys.ID, is_live, sequence=more), "leads to no checkpoint"),
    "an id that counts one step more": (change(keys.ID, is_live, step_count=more), "leads to no checkpoint"),
    "a stub of what is there": (change(keys.ID, is_live, deleted_time_ms=more), "a stub, though its checkpoint"),
    # Heads and counters.
    "a head that is not the highest": (change(keys.SCOPE, head_sequence=more), "the highest sequence is"),
    "a head of another id": (change(keys.SCOPE, head_checkpoint_id=other_text), "the highest sequence is"),
    "a scope that counts one more": (change(keys.SCOPE, checkpoint_count=more), "checkpoints, has"),
    "a scope whose number is gone": (lose(keys.SCOPE_NUMBER), "does not lead back to it"),
    "a number whose scope is gone": (lose(keys.SCOPE), "is missing though its number"),
    **{
        f"a workflow of another {field}": (change(keys.WORKFLOW, is_w1, **{field: make}), f": {told} is ")
        for field, make, told in (
            ("checkpoint_count", more, "checkpoint_count"),
            ("scope_count", more, "scope_count"),
            ("stored_bytes", more, "stored_bytes"),
            ("waiting_record_count", more, "waiting_record_count"),
            ("head_checkpoint_id", other_text, "head"),
            ("status", more, "status"),
            ("current_step", other_text, "current_step"),
            ("fingerprint", other_text, "fingerprint"),
        )
    },
    "a counter below what it has given": (
        change(keys.WORKFLOW, is_w1, last_sequence=lambda number: 1),
        "last_sequence 1 is below",
    ),
    "a number that was never given": (change(keys.META, next_id=lambda number: 5), "was never given"),
    # Names, leases and namespaces.
    "a name without its workflow": (change(keys.NAME, is_w1, internal_id=lambda number: 0), "no name leads to it"),
    "a workflow that is gone": (lose(keys.WORKFLOW, is_w1), "is missing"),
    "a fork that nobody will throw away": (lose(keys.BUILDING), "not noted as under construction"),
    "a lease that its name does not have": (change(keys.NAME, is_w1, has_lease=lambda has: not has), "does not say so"),
    "a lease that is gone": (lose(keys.LEASE), "its lease is missing"),
    "a token that was never granted": (change(keys.LEASE, token=lambda token: 1 << 20), "has granted"),
    "a token of two leases": (change(keys.LEASE, lambda row: row.token == 2, token=lambda token: 1), "given twice"),
    "a namespace of fewer leases": (change(keys.NAMESPACE, lease_count=lambda count: 0), "has granted 0 leases"),
    "a namespace of more manifests": (change(keys.NAMESPACE, manifest_count=more), "manifests, has"),
    # Records, signals and manifests.
    "records that are counted wrongly": (change(keys.GROUP, record_count=more), "counted as"),
    "records of another size": (change(keys.GROUP, record_bytes=more), "counted as"),
    "records that nobody counts": (lose(keys.GROUP), "orphans"),
    "a record that is gone": (lose(keys.RECORD), "counted as"),
    "signals that are counted wrongly": (change(keys.WORKFLOW, is_w1, pending_signal_count=more), "pending signals"),
    "a signal that is gone": (lose(keys.SIGNAL), "pending signals"),
    "a signal that no id leads to": (lose(keys.SIGNAL_ID, lambda row: not row.consumed_time_ms), "not those that"),
    "a signal above the last number": (
        change(keys.WORKFLOW, is_w1, last_signal_number=lambda number: 0),
        "above the last number",
    ),
    "a manifest of another fingerprint": (change(keys.MANIFEST, tail=other_bytes), "not what its fingerprint says"),
    # What is to be looked at in its time.
    "stubs that stay for ever": (lose(keys.DUE, is_due(DueKind.STUBS)), "stub"),
    "records that wait for ever": (lose(keys.DUE, is_due(DueKind.WAITING_RECORDS)), "for ever"),
    "an unused lease that stays for ever": (lose(keys.DUE, is_due(DueKind.LEASE)), "of a workflow to come"),
    "a consumed signal that stays for ever": (lose(keys.DUE, is_due(DueKind.SIGNAL_STUB)), "never looked at again"),
    # Pieces.
    **{
        f"{what} that lost a piece": (lose(table), "its head needs")
        for what, table in (
            ("a node", keys.NODE_PIECE),
            ("a value", keys.VALUE_PIECE),
            ("a record", keys.RECORD_PIECE),
            ("a signal", keys.SIGNAL_PIECE),
            ("a manifest", keys.MANIFEST_PIECE),
        )
    },
    "a piece of nothing": (add(keys.VALUE_PIECE, lambda key: keys.prefix(1, keys.VALUE_PIECE) + key[-2:]), "needs 0"),
    "a row of no table": (add(keys.ORDER, lambda key: key[:8] + b"?" + key[9:]), "there is no such table"),
}


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "data"
    fill_every_table(path)
    return path


@pytest.mark.parametrize("what", LIES)
def test_the_check_tells_of_rows_that_say_what_is_not_so(what: str, whole_store: Path, tmp_path: Path) -> None:
    lie, told = LIES[what]
    data_dir = tmp_path / "data"
    shutil.copytree(whole_store, data_dir)
    with lmdb.open(str(data_dir / "store"), create=False, map_size=1 << 30) as env, env.begin(write=True) as txn:
        lie(txn)
    problems = verify_store(data_dir).problems
    assert any(told in problem for problem in problems), problems


def test_the_command_line_tells_each_problem_and_exits_with_1(whole_store: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(whole_store, data_dir)
    with lmdb.open(str(data_dir / "store"), create=False, map_size=1 << 30) as env, env.begin(write=True) as txn:
        change(keys.WORKFLOW, is_w1, checkpoint_count=more)(txn)
    done = subprocess.run(
        [sys.executable, "-m", "milepost_server", "verify", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    *_, problem, last = done.stdout.splitlines()
    assert problem.startswith("problem: workflow 'w1'")
    assert last == f"{data_dir}: 1 problem"
