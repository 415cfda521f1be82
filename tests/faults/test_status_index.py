"""A poll for live workflows costs what is live; a store from before there was an index for it gets one, once.

A store of format 1 is made of one of the present format by taking away what format 2 has brought.
"""

from __future__ import annotations

from pathlib import Path

import lmdb
import msgspec
import pytest

from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import ListWorkflowsAnswer, LoadAnswer, LongLoad, Status, WorkflowRow
from milepost_server.storage import keys, lmdb_engine, lmdb_env, records, status_index
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.lmdb_env import META_KEY, DataDirError, MetaRow
from milepost_server.storage.lmdb_write_transaction import LmdbWriteTransaction
from milepost_server.storage.verify import verify_store
from milepost_server.testing.builders import (
    NAMESPACE,
    Store,
    append,
    delete_workflow,
    list_workflows_query,
    load_query,
    record,
    save,
)
from tests.support.counting_env import counting_rows
from tests.support.fault_engines import LONG_WORKFLOW, OpenEngine, count_rows, store_on

LIVE = frozenset({Status.RUNNING, Status.WAITING})
WORKFLOWS = [f"w{number}" for number in range(7)] + [LONG_WORKFLOW, LONG_WORKFLOW + "x"]


def fill(store: Store) -> None:
    """Make workflows of every kind that a list can meet, or must not."""
    for number, workflow_id in enumerate(WORKFLOWS):
        store.save(workflow_id, "a", status=Status(number % 6 + 1))
    store.send("w1", "s")
    store.save("elsewhere", "a", namespace="other")
    store.save("gone", "a")
    store.delete_workflow("gone")
    store.engine.execute([append("records alone", "a", record("task"))])
    store.save("child alone", "a", scope="s")


def make_format_1(data_dir: Path) -> None:
    """Turn a store into what an earlier server has left."""
    path = data_dir / "store"
    env = lmdb.open(str(path), create=False, map_size=1 << 30)
    with env.begin(write=True) as txn:
        for key in [bytes(key) for key, _ in txn.cursor() if keys.table_of(bytes(key)) == keys.STATUS]:
            txn.delete(key)
        meta = records.decode(META_KEY, bytes(txn.get(META_KEY) or b""), MetaRow)
        txn.put(META_KEY, records.encode(META_KEY, msgspec.structs.replace(meta, format=1)))
    env.close()
    identity = msgspec.json.decode((path / "IDENTITY").read_bytes())
    (path / "IDENTITY").write_bytes(msgspec.json.encode({**identity, "format": 1}))


def identity_format(data_dir: Path) -> int:
    return int(msgspec.json.decode((data_dir / "store" / "IDENTITY").read_bytes())["format"])


def by_status(store: Store) -> dict[str, list[str]]:
    """Return what a list of each kind answers."""
    found = {status.name: store.workflow_ids(statuses=frozenset({status})) for status in Status}
    found["signals"] = store.workflow_ids(has_pending_signals=True)
    found["other"] = store.workflow_ids(statuses=LIVE, namespace="other")
    return found


@pytest.fixture
def format_1(data_dir: Path) -> dict[str, list[str]]:
    """Leave a store of format 1 in the data directory; return what its lists should answer."""
    engine = LmdbEngine.open(data_dir, low_disk_bytes=0)
    store = store_on(engine)
    fill(store)
    expected = by_status(store)
    assert expected["RUNNING"]
    engine.close()
    make_format_1(data_dir)
    assert verify_store(data_dir).problems == []
    return expected


@pytest.mark.parametrize("rows_max", [1, 2, 1_000])
def test_a_store_of_format_1_is_listed_by_status_when_it_is_opened(
    rows_max: int,
    format_1: dict[str, list[str]],
    data_dir: Path,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lmdb_engine, "UPGRADE_ROWS", rows_max)
    store = store_on(open_engine())

    assert by_status(store) == format_1
    assert identity_format(data_dir) == lmdb_env.STORE_FORMAT
    store.save("w0", "b", status=Status.COMPLETED)
    assert "w0" in store.workflow_ids(statuses=frozenset({Status.COMPLETED}))


@pytest.mark.parametrize("slices", range(6))
def test_an_upgrade_that_was_cut_short_goes_on_where_it_was(
    slices: int,
    format_1: dict[str, list[str]],
    data_dir: Path,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    positions: list[tuple[str, str]] = []
    build_slice = status_index.build_slice

    def build(txn: LmdbWriteTransaction, position: tuple[str, str], rows_max: int) -> tuple[str, str] | None:
        positions.append(position)
        result = build_slice(txn, position, rows_max)
        if len(positions) == slices + 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(lmdb_engine, "UPGRADE_ROWS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(status_index, "build_slice", build)
        with pytest.raises(KeyboardInterrupt):
            open_engine()
    cut_short_at = positions[-1]
    assert verify_store(data_dir).problems == []
    # No server that knows format 1 alone may come near it now.
    assert identity_format(data_dir) == lmdb_env.STORE_FORMAT

    positions.clear()
    slices = 1_000
    monkeypatch.setattr(status_index, "build_slice", build)
    store = store_on(open_engine())

    assert positions[0] == cut_short_at
    assert by_status(store) == format_1


def test_an_upgrade_lets_the_map_grow(
    format_1: dict[str, list[str]], data_dir: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    build_slice = status_index.build_slice

    def build(txn: LmdbWriteTransaction, position: tuple[str, str], rows_max: int) -> tuple[str, str] | None:
        tried.append(rows_max)
        if len(tried) == 1:
            raise lmdb_env.MapFullError("on purpose")
        return build_slice(txn, position, rows_max)

    monkeypatch.setattr(status_index, "build_slice", build)
    assert by_status(store_on(open_engine())) == format_1
    assert len(tried) == 2


def test_a_damaged_workflow_does_not_keep_the_others_from_being_listed(
    format_1: dict[str, list[str]], tmp_path: Path, data_dir: Path, open_engine: OpenEngine
) -> None:
    damaged = tmp_path / "damaged"
    data_dir.rename(damaged)
    with lmdb_env.reading_offline(damaged) as raw:
        key = next(
            bytes(key)
            for key, row in raw.cursor().iternext(keys=True, values=True)
            if keys.table_of(key) == keys.WORKFLOW and b"w0" in row
        )
    env = lmdb.open(str(damaged / "store"), create=False, map_size=1 << 30)
    with env.begin(write=True) as txn:
        txn.put(key, bytes(txn.get(key) or b"")[:-1] + b"\xff")
    env.close()

    engine = LmdbEngine.open(damaged, low_disk_bytes=0)
    try:
        found = by_status(store_on(engine))
    finally:
        engine.close()
    assert found == {name: [each for each in ids if each != "w0"] for name, ids in format_1.items()}


def test_an_upgrade_that_cannot_write_its_identity_changes_nothing(
    format_1: dict[str, list[str]], data_dir: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_disk(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    before = (data_dir / "store" / "data.mdb").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", no_disk)
        with pytest.raises(DataDirError, match="nothing of it was changed"):
            open_engine()
    assert (data_dir / "store" / "data.mdb").read_bytes() == before
    assert identity_format(data_dir) == 1
    assert by_status(store_on(open_engine())) == format_1


@pytest.mark.parametrize("fault", ["lost", "left behind"])
def test_verify_tells_of_a_workflow_that_is_listed_wrongly(
    fault: str, tmp_path: Path, open_engine: OpenEngine, data_dir: Path
) -> None:
    broken = tmp_path / "broken"
    engine = LmdbEngine.open(broken, low_disk_bytes=0)
    store_on(engine).save("w", "a")
    namespace_id = engine.get_workflow(NAMESPACE, "w").workflow.namespace_id
    engine.close()
    group = 2 * (Status.RUNNING if fault == "lost" else Status.WAITING)
    key = keys.prefix(namespace_id, keys.STATUS) + bytes([group]) + b"w"
    env = lmdb.open(str(broken / "store"), create=False, map_size=1 << 30)
    with env.begin(write=True) as txn:
        if fault == "lost":
            assert txn.delete(key)
        else:
            txn.put(key, records.seal(key, b""))
    env.close()
    told = "is not listed by its status" if fault == "lost" else "is listed by a status that it has not"
    assert [problem for problem in verify_store(broken).problems if told in problem]


def test_a_load_by_status_looks_at_so_many_rows_in_a_transaction_and_in_a_turn(open_engine: OpenEngine) -> None:
    """What is old is found all the same, in further turns; another incarnation is looked at from its newest."""
    engine = open_engine()
    engine.execute([save("w", "wanted", status=Status.WAITING)])
    for start in range(0, 11_500, 500):
        engine.execute([save("w", f"c{number}", parent_id="") for number in range(start, start + 500)])
    query = load_query("w", statuses=[Status.WAITING])

    with counting_rows() as count:
        answer = engine.load(query)
    assert isinstance(answer, LongLoad)
    assert answer.position is not None
    assert answer.position[1] == 11_501 - 10_000
    assert len(count.rows_of_transactions) == 10
    assert max(count.rows_of_transactions) <= 4 * 1_000  # A few for each checkpoint.
    rest = engine.load(msgspec.structs.replace(query, position=answer.position))
    assert isinstance(rest, LoadAnswer)
    assert rest.checkpoint.row.checkpoint_id == "wanted"

    engine.execute([delete_workflow("w"), save("w", "new", status=Status.WAITING)])
    anew = engine.load(msgspec.structs.replace(query, position=answer.position))
    assert isinstance(anew, LoadAnswer)
    assert anew.checkpoint.row.checkpoint_id == "new"


@pytest.mark.parametrize("history_entries", [(), ("log",)], ids=["needs nothing", "needs its line"])
def test_a_slice_of_a_prune_reads_as_much_however_many_are_kept(
    open_engine: OpenEngine, history_entries: tuple[str, ...]
) -> None:
    engine = open_engine()
    store = store_on(engine)
    store.save("w", "log", {"log": 1})
    for start in range(0, 5_000, 500):
        numbers = range(start, start + 500)
        engine.execute([save("w", f"c{number}", history_entries=history_entries) for number in numbers])

    with counting_rows() as count:
        deleted = store.prune("w", 4_500)

    assert deleted == (0 if history_entries else 501)
    assert len(count.rows_of_transactions) > 10
    assert max(count.rows_of_transactions) <= 4 * DEFAULT_LIMITS.slice_rows_max


def test_a_poll_for_live_workflows_reads_as_much_whatever_has_ended(open_engine: OpenEngine) -> None:
    engine = open_engine()
    store = store_on(engine)

    def poll() -> tuple[ListWorkflowsAnswer, int]:
        with counting_rows() as count:
            answer = engine.list_workflows(list_workflows_query(statuses=LIVE, definition="d", is_leased=False))
        return answer, count.rows

    def save_all(numbers: range, status: Status) -> None:
        engine.execute([save(f"w{number:05}", "a", definition="d", status=status) for number in numbers])

    save_all(range(10), Status.COMPLETED)
    save_all(range(100, 105), Status.RUNNING)
    before, rows_before = poll()
    save_all(range(1_000, 4_000), Status.COMPLETED)
    after, rows_after = poll()

    assert [each.workflow.workflow_id for each in before.workflows] == [f"w{number:05}" for number in range(100, 105)]
    assert after == before
    assert rows_after <= rows_before + 4  # Where a group ends, a walk looks at one row of the next.
    assert rows_after < 50
    assert store.workflow_ids(statuses=LIVE) == [f"w{number:05}" for number in range(100, 105)]


def test_a_save_that_keeps_the_status_writes_no_row_of_the_index(
    open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(open_engine())
    store.save("w", "a")
    moved: list[str] = []
    move = status_index.move

    def count_move(txn: LmdbWriteTransaction, workflow: WorkflowRow, before: int | None, after: int | None) -> None:
        moved.append(workflow.workflow_id)
        move(txn, workflow, before, after)

    monkeypatch.setattr(status_index, "move", count_move)
    for checkpoint_id in "bcd":
        store.save("w", checkpoint_id)
    assert moved == []
    store.save("w", "e", status=Status.COMPLETED)
    assert len(moved) == 1
    assert count_rows(store.engine, "statuses") == 1
