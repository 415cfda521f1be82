"""Readers do not hold the file's pages: not those of dead processes, not a list that takes its time. Freeing goes on
after a crash, in small steps."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from milepost_server.errors import StoreError
from milepost_server.limits import DEFAULT_LIMITS, KIB
from milepost_server.model import (
    BulkAnswer,
    CheckpointFilter,
    Command,
    EntryHistoryAnswer,
    EntryRef,
    ListAnswer,
    ListWorkflowsAnswer,
    PruneCommand,
    ScopeRow,
    Status,
    SweepAnswer,
    SweepCommand,
)
from milepost_server.storage import lmdb_read_transaction
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.lmdb_read_transaction import LmdbReadTransaction
from milepost_server.storage.lmdb_rows import NodeBody, NodeHead
from milepost_server.storage.lmdb_write_transaction import LmdbWriteTransaction
from milepost_server.testing.builders import (
    NAMESPACE,
    data_value,
    delete_workflow,
    history_query,
    list_query,
    list_workflows_query,
    save,
)
from tests.support.counting_env import counting_rows
from tests.support.fault_engines import OpenEngine, count_rows, open_on, store_on
from tests.support.killable_server import REPOSITORY

CHECKPOINT_COUNT = 20_000
SAVES_PER_BATCH = 500
ROWS_OVER_SLICE = 300
"""What a slice may exceed its rows by: the last thing that it frees is freed whole."""

READER = """
import sys, lmdb
env = lmdb.open(sys.argv[1], create=False, max_readers=1024)
txn = env.begin()
print("reading", flush=True)
sys.stdin.read()
"""


@contextmanager
def reader_in_other_process(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a read transaction open and waits; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(data_dir / "store")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"reading\n"
        yield process
    finally:
        process.kill()
        process.wait(60)
        process.stdin.close()
        process.stdout.close()


def churn(engine: LmdbEngine, rounds: int, name: str = "churned") -> None:
    """Write and free about 100 KiB a round."""
    for number in range(rounds):
        block = {"block": data_value(number.to_bytes(4, "big") * 25 * KIB)}
        engine.execute([save(name, f"c{number}", block), delete_workflow(name), SweepCommand()])
        # Ids stay as stubs: another name each round.
        name = f"{name.split('-', maxsplit=1)[0]}-{number}"


def file_bytes(engine: LmdbEngine) -> int:
    """Return the size of the file. Statistics free the slots of dead readers first."""
    return engine.statistics()["file_bytes"]


def test_slots_of_killed_readers_are_freed_and_their_pages_used_again(data_dir: Path, open_engine: OpenEngine) -> None:
    engine = open_engine()
    store_on(engine).save("w", "c1", {"a": 1})
    churn(engine, 5, "before")
    with reader_in_other_process(data_dir):
        churn(engine, 20, "pinned")
        while_pinned = file_bytes(engine)
    assert while_pinned > 20 * 100 * KIB, "the reader held no pages, so this test shows nothing"

    file_bytes(engine)
    churn(engine, 40, "after")

    assert file_bytes(engine) <= while_pinned + 200 * KIB


def test_an_engine_frees_the_slots_of_a_server_that_was_killed(data_dir: Path, open_engine: OpenEngine) -> None:
    open_on(data_dir).close()
    with reader_in_other_process(data_dir), reader_in_other_process(data_dir):
        pass

    engine = open_engine()
    assert engine.statistics()["readers"] <= 1


def test_a_list_read_page_by_page_does_not_hold_pages(open_engine: OpenEngine) -> None:
    engine = open_engine()
    store = store_on(engine)
    store.save_line("listed", *(f"c{number:03d}" for number in range(200)))
    churn(engine, 10, "before")
    before = file_bytes(engine)
    found: list[str] = []
    position: int | None = None

    for page_number in range(20):
        page = store.page("listed", page_size=10, position=position, newest_first=False)
        found += [loaded.row.checkpoint_id for loaded in page.checkpoints]
        position = page.position
        churn(engine, 5, f"during{page_number}")

    assert found == [f"c{number:03d}" for number in range(200)]
    assert file_bytes(engine) <= before + 500 * KIB


@pytest.mark.parametrize("call", ["List", "ListWorkflows", "GetEntryHistory"])
def test_a_read_that_finds_nothing_among_many_rows_takes_many_short_transactions(
    call: str, open_engine: OpenEngine
) -> None:
    """Of 11,500 it examines 10,000 for one answer, 1,000 in a transaction."""
    engine = open_engine()
    for start in range(0, 11_500, SAVES_PER_BATCH):
        names = [f"{number:05d}" for number in range(start, start + SAVES_PER_BATCH)]
        engine.execute([save(name, "c") if call == "ListWorkflows" else save("w", name) for name in names])
    reads: dict[str, Callable[[], ListAnswer | ListWorkflowsAnswer | EntryHistoryAnswer]] = {
        "List": lambda: engine.list_checkpoints(
            list_query("w", filter=CheckpointFilter(statuses=frozenset({Status.FAILED})))
        ),
        "ListWorkflows": lambda: engine.list_workflows(list_workflows_query(labels={"no": "such"})),
        "GetEntryHistory": lambda: engine.entry_history(history_query("w", "none")),
    }

    with counting_rows() as count:
        answer = reads[call]()

    assert len(count.rows_of_transactions) == 10
    assert max(count.rows_of_transactions) <= 5 * 1_000  # A few for each that is examined.
    match answer:
        case ListAnswer():
            assert (answer.checkpoints, answer.position) == ((), 1_501)
        case ListWorkflowsAnswer():
            assert (answer.workflows, answer.after_workflow_id) == ((), "09999")
        case EntryHistoryAnswer():
            assert (answer.versions, answer.position) == ((), 1_500)


def test_the_history_of_an_entry_that_hardly_changes_reads_each_state_once(open_engine: OpenEngine) -> None:
    """Every state here is a chain of up to 3,000 changes of other entries."""
    engine = open_engine()
    count_of_saves = 3_000
    engine.execute([save("w", "c0", {f"k{number}": number for number in range(count_of_saves + 1)})])
    for start in range(1, count_of_saves, SAVES_PER_BATCH):
        numbers = range(start, start + SAVES_PER_BATCH)
        engine.execute(
            [save("w", f"c{number}", {"k0": -number}, base_checkpoint_id=f"c{number - 1}") for number in numbers]
        )

    with counting_rows() as count:
        answer = engine.entry_history(history_query("w", "k1"))

    assert [each.checkpoint_id for each in answer.versions] == ["c0"]
    # In each of four transactions: a few rows for a checkpoint, and the rest of the chain once.
    assert count.rows < 10 * count_of_saves


@pytest.mark.parametrize("seed", range(5))
def test_a_history_is_the_same_however_entries_are_looked_up(
    seed: int, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    store = store_on(engine)
    chooser = random.Random(seed)
    store.save("w", "c0", {f"k{number}": 0 for number in range(30)})
    for number in range(1, 60):
        base, parent = (f"c{chooser.randrange(max(0, number - 4), number)}" for _ in range(2))
        changed = {f"k{chooser.randrange(4)}": number for _ in range(chooser.randrange(2))}
        removed = tuple({f"k{chooser.randrange(4)}" for _ in range(chooser.randrange(2))} - changed.keys())
        store.save("w", f"c{number}", changed, base_checkpoint_id=base, parent_id=parent, removed_keys=removed)

    answers = []
    for nodes, entries in ((0, 1_000_000), (0, 6), (7, 1_000_000), (1_000_000, 0)):
        monkeypatch.setattr(lmdb_read_transaction, "LINE_NODES", nodes)
        monkeypatch.setattr(lmdb_read_transaction, "LINE_ENTRIES_MAX", entries)
        answers.append(store.history("w", "k0", "k1", "k2", "k3", "none").versions)

    assert len(answers[0]) > 5
    assert all(answer == answers[0] for answer in answers)


def test_what_is_kept_of_a_line_of_states_is_bounded(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state here differs in one of the entries asked for, so what was found of each is kept by itself."""
    store = store_on(open_engine())
    keys = [f"k{number}" for number in range(20)]
    store.save("w", "c0", dict.fromkeys([*keys, *(f"other{number}" for number in range(200))], 0))
    for number in range(1, 100):
        store.save("w", f"c{number}", {keys[number % 20]: number}, base_checkpoint_id=f"c{number - 1}")
    kept: list[int] = []
    look_up = LmdbReadTransaction.lookup_entries

    def noting(txn: LmdbReadTransaction, *args: Any) -> dict[str, EntryRef]:
        found = look_up(txn, *args)
        kept.append(sum(map(len, {id(each): each for each in txn._line.values()}.values())))
        return found

    monkeypatch.setattr(lmdb_read_transaction, "LINE_NODES", 0)
    monkeypatch.setattr(lmdb_read_transaction, "LINE_ENTRIES_MAX", 200)
    monkeypatch.setattr(LmdbReadTransaction, "lookup_entries", noting)
    assert len(store.history("w", *keys).versions) > 0
    assert 100 < max(kept) <= 200


@pytest.mark.parametrize("line_count", [1, 3])
def test_a_slice_of_a_prune_reads_each_state_about_once(
    line_count: int, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state here is a chain of up to 1,500 changes, and no ancestor has what is wanted of it.

    So every checkpoint is needed, and looked at; where lines of ancestors take turns, each wants another entry.
    """
    engine = open_engine()
    count_of_saves = 1_500
    engine.execute([save("w", "c0", {f"k{number}": number for number in range(count_of_saves + 1)})])
    for start in range(1, count_of_saves, SAVES_PER_BATCH):
        engine.execute(
            [
                save(
                    "w",
                    f"c{number}",
                    {"k0": -number},
                    base_checkpoint_id=f"c{number - 1}",
                    parent_id=f"c{max(0, number - line_count)}",
                    history_entries=(f"wanted-{number % line_count}",),
                )
                for number in range(start, start + SAVES_PER_BATCH)
            ]
        )
    after = store_on(engine).prune_slice("w", line_count)
    assert after.position is not None

    node_ids: list[int] = []
    read_node = LmdbReadTransaction.read_node

    def read_counted(txn: LmdbReadTransaction, node_id: int) -> tuple[NodeHead, NodeBody]:
        node_ids.append(node_id)
        return read_node(txn, node_id)

    # Rows are not counted: the writer keeps some of them, but not what they decode to.
    monkeypatch.setattr(LmdbReadTransaction, "read_node", read_counted)
    for _ in range(3):
        node_ids.clear()
        after = store_on(engine).prune_slice("w", line_count, after)
        assert (after.deleted, after.position is not None) == (0, True)
        # The first lookups keep nothing: the last of them reads the chain, and then it is read to be kept.
        assert len(set(node_ids)) > count_of_saves // 2
        assert len(node_ids) <= lmdb_read_transaction.LINE_NODES + 2 * len(set(node_ids))


@pytest.mark.parametrize("seed", range(5))
def test_prunes_are_the_same_however_entries_are_looked_up(
    seed: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one commit with saves and deletes, some of which are undone after they had written."""
    chooser = random.Random(seed)
    keys = [f"k{number}" for number in range(4)]
    batches: list[list[Command]] = [[save("w", "c0", {f"k{number}": 0 for number in range(30)}, removed_keys=())]]
    for number in range(1, 100):
        base, parent = (f"c{chooser.randrange(max(0, number - 5), number)}" for _ in range(2))
        changed = {chooser.choice(keys): number for _ in range(chooser.randrange(2))}
        removed = {chooser.choice(keys) for _ in range(chooser.randrange(2))} - changed.keys()
        history = {chooser.choice(keys) for _ in range(chooser.randrange(2))}
        for name in (f"doomed{number}", f"c{number}"):
            one = save(
                "w",
                name,
                changed,
                base_checkpoint_id=base,
                parent_id=parent,
                removed_keys=tuple(sorted(removed)),
                history_entries=tuple(sorted(history)),
            )
            batches[-1].append(one)
        if number % 3 == 0:
            batches[-1].append(PruneCommand(namespace=NAMESPACE, workflow_id="w", keep_last=8, position=()))
        if number % 10 == 0:
            batches.append([])
    put_scope = LmdbWriteTransaction.put_scope

    def put_scope_or_fail(txn: LmdbWriteTransaction, name_id: int, row: ScopeRow) -> None:
        """By then a Save has put its state, and a prune has deleted."""
        before = txn.find_scope(name_id, row.scope)
        put_scope(txn, name_id, row)
        is_prune = before is not None and row.checkpoint_count < before.checkpoint_count
        if row.head_checkpoint_id.startswith("doomed") or (is_prune and row.checkpoint_count % 2):
            raise StoreError("HEAD_MOVED", "made up")

    monkeypatch.setattr(LmdbWriteTransaction, "put_scope", put_scope_or_fail)
    answers: list[list[object]] = []
    for nodes in (1_000_000, 7, 0):
        monkeypatch.setattr(lmdb_read_transaction, "LINE_NODES", nodes)
        engine = open_on(data_dir / str(nodes))
        outcomes = [outcome for batch in batches for outcome in engine.execute(batch)]
        answers.append([each.deleted if isinstance(each, BulkAnswer) else type(each) for each in outcomes])
        answers[-1] += store_on(engine).ids("w")
        engine.close()

    assert sum(each for each in answers[0] if isinstance(each, int)) > 20
    assert answers[0].count(StoreError) > 100
    assert answers[0] == answers[1] == answers[2]


SWEEPER = """
import sys
from pathlib import Path
from milepost_server.model import SweepCommand
from tests.support.fault_engines import open_on
engine = open_on(Path(sys.argv[1]))
while True:
    (answer,) = engine.execute([SweepCommand(rows_max=int(sys.argv[2]))])
    print(answer.rows_freed, answer.has_more, flush=True)
    if not sys.stdin.readline():
        break
"""


@pytest.mark.parametrize("slices", [1, 2, 5, 11])
def test_sweeping_goes_on_where_a_killed_process_left_it(slices: int, data_dir: Path) -> None:
    engine = open_on(data_dir)
    store = store_on(engine)
    store.save("kept", "c1", {"a": 1})
    for number in range(30):
        store.save("w", f"c{number}", {"a": number, "b": data_value(b"x" * 3_000 + bytes([number]))})
    store.delete_workflow("w")
    engine.close()

    process = subprocess.Popen(
        [sys.executable, "-c", SWEEPER, str(data_dir), "20"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(slices):
        assert process.stdout.readline().endswith(b" True\n"), "there is more to sweep"
        if number < slices - 1:
            process.stdin.write(b"\n")
            process.stdin.flush()
    process.kill()
    process.wait(60)
    process.stdin.close()
    process.stdout.close()

    engine = open_on(data_dir)
    assert store_on(engine).sweep() > 0
    assert [count_rows(engine, table) for table in ("workflows", "checkpoints", "values", "trash")] == [1, 1, 1, 0]
    assert store_on(engine).state("kept") == {"a": 1}
    engine.close()


class _CountingTransaction:
    """Counts what is written through it."""

    def __init__(self, txn: Any, counts: list[int]) -> None:
        self._txn = txn
        self._counts = counts

    def put(self, *arguments: Any, **options: Any) -> Any:
        self._counts[-1] += 1
        return self._txn.put(*arguments, **options)

    def delete(self, *arguments: Any, **options: Any) -> Any:
        self._counts[-1] += 1
        return self._txn.delete(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)


@pytest.mark.slow
def test_deleting_twenty_thousand_checkpoints_takes_many_small_transactions(
    open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    for start in range(0, CHECKPOINT_COUNT, SAVES_PER_BATCH):
        engine.execute([save("w", f"c{number}", {"n": number}) for number in range(start, start + SAVES_PER_BATCH)])
    write_counts: list[int] = []
    enter = LmdbWriteTransaction.enter

    def enter_counted(txn: LmdbWriteTransaction, child: Any) -> None:
        write_counts.append(0)
        enter(txn, _CountingTransaction(child, write_counts))

    monkeypatch.setattr(LmdbWriteTransaction, "enter", enter_counted)

    engine.execute([delete_workflow("w")])
    delete_count = write_counts[0]
    has_more = True
    slice_count = 0
    while has_more:
        (answer,) = engine.execute([SweepCommand()])
        assert isinstance(answer, SweepAnswer)
        assert answer.rows_freed <= DEFAULT_LIMITS.slice_rows_max + ROWS_OVER_SLICE
        has_more = answer.has_more
        slice_count += 1

    assert delete_count < 10, "a delete only unlinks"
    assert slice_count > CHECKPOINT_COUNT * 4 // DEFAULT_LIMITS.slice_rows_max
    assert max(write_counts) <= 2 * (DEFAULT_LIMITS.slice_rows_max + ROWS_OVER_SLICE)
    assert count_rows(engine, "checkpoints") == count_rows(engine, "values") == count_rows(engine, "trash") == 0


def test_saves_get_through_between_the_slices_of_a_delete(open_engine: OpenEngine) -> None:
    engine = open_engine()
    store = store_on(engine)
    store.save_line("w", *(f"c{number}" for number in range(50)))
    engine.execute([delete_workflow("w")])
    saved = 0
    has_more = True
    while has_more:
        swept, _ = engine.execute([SweepCommand(rows_max=20), save("other", f"c{saved}", {"n": saved})])
        assert isinstance(swept, SweepAnswer)
        has_more = swept.has_more
        saved += 1

    assert saved > 5
    assert store_on(engine).load("other").row.sequence == saved
