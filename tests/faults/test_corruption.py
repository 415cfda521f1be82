"""G7: damage is told as damage. Reads never answer other bytes, nor NOT_FOUND for what the store says is there.

Rows are changed behind the engine's back, in every table; then the file itself. Where a row that is missing leaves no
trace on the way of a read (`UNSEEN_BY_READS`), only the offline check can know, and it does.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from milepost_server.errors import StoreError
from milepost_server.model import DeleteWorkflowCommand, SweepAnswer, SweepCommand
from milepost_server.storage import keys, lmdb_env
from milepost_server.storage.verify import verify_store
from milepost_server.testing.builders import save
from tests.support.fault_engines import count_rows, fill_every_table, open_on
from tests.support.killable_server import REPOSITORY
from tests.support.read_everything import DAMAGED, read_store

SEED = 7
ROWS_PER_TABLE = 3
PAGE_FLIPS = 40
CHILD_DEADLINE_S = 100.0

Rows = list[tuple[bytes, bytes]]
Damage = Callable[[lmdb.Transaction, Rows, random.Random], bytes]

UNSEEN_BY_READS = {
    "namespaces": "the name of a namespace is where every read begins",
    "names": "the name of a workflow is where every read of it begins",
    "statuses": "a list of workflows with a status shows what is listed under it",
    "ids": "a checkpoint id is looked up here alone",
    "scopes": "a scope other than the root is looked up here alone",
    "order": "a list of a scope shows what is in its order",
    "sequences": "a list of all scopes shows what is in their order",
    "record_groups": "without it a checkpoint has no records",
    "signal_ids": "a signal id is looked up here alone, by who sends it again and by who consumes it",
    "manifests": "a manifest is looked up by its fingerprint alone",
}
"""Tables in which a deleted row can look to a read as if it had never been there, and why."""


def flip(txn: lmdb.Transaction, rows: Rows, rng: random.Random) -> bytes:
    key, row = rng.choice(rows)
    position = rng.randrange(len(row))
    txn.put(key, row[:position] + bytes([row[position] ^ 1 << rng.randrange(8)]) + row[position + 1 :])
    return key


def cut(txn: lmdb.Transaction, rows: Rows, rng: random.Random) -> bytes:
    key, row = rng.choice(rows)
    txn.put(key, row[: rng.randrange(len(row))])
    return key


def swap(txn: lmdb.Transaction, rows: Rows, rng: random.Random) -> bytes:
    (key, row), (other_key, other_row) = rng.sample(rows, 2)
    txn.put(key, other_row)
    txn.put(other_key, row)
    return key


def delete(txn: lmdb.Transaction, rows: Rows, rng: random.Random) -> bytes:
    key, _ = rng.choice(rows)
    txn.delete(key)
    return key


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "data"
    fill_every_table(path)
    report = verify_store(path)
    assert report.problems == []
    assert set(keys.TABLE_NAMES.values()) <= report.counts.keys()
    return path


@pytest.fixture(scope="module")
def right_answers(whole_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    copy = tmp_path_factory.mktemp("right") / "data"
    shutil.copytree(whole_store, copy)
    return read_store(copy)


def damage_one_row(data_dir: Path, table: bytes, damage: Damage, rng: random.Random) -> bytes:
    env = lmdb.open(str(data_dir / "store"), create=False, map_size=1 << 30)
    try:
        with env.begin(write=True) as txn:
            rows = [(bytes(key), bytes(row)) for key, row in txn.cursor() if keys.table_of(bytes(key)) == table]
            if damage is swap and len(rows) < 2:
                pytest.skip("a table with one row")
            return damage(txn, rows, rng)
    finally:
        env.close()


@pytest.mark.parametrize("damage", [flip, cut, swap, delete])
@pytest.mark.parametrize("table", keys.TABLE_NAMES, ids=keys.TABLE_NAMES.values())
def test_damaged_rows_are_reported_and_never_read_as_something_else(
    table: bytes, damage: Damage, whole_store: Path, right_answers: dict[str, str], tmp_path: Path
) -> None:
    table_name = keys.TABLE_NAMES[table]
    is_unseen = damage is delete and table_name in UNSEEN_BY_READS
    for number in range(ROWS_PER_TABLE):
        data_dir = tmp_path / str(number)
        shutil.copytree(whole_store, data_dir)
        key = damage_one_row(data_dir, table, damage, random.Random(f"{SEED}-{table_name}-{number}"))

        problems = verify_store(data_dir).problems
        answers = read_store(data_dir)

        assert problems, f"the offline check finds nothing wrong with row {key.hex()}"
        if table == keys.META:
            assert answers.keys() == {"open"}
            assert answers["open"].startswith("refused: ")
            continue
        wrong = {what: answer for what, answer in answers.items() if answer not in {right_answers[what], DAMAGED}}
        assert is_unseen or not wrong, f"row {key.hex()}: {wrong}"


@pytest.mark.parametrize("table", [keys.WORKFLOW, keys.SCOPE], ids=["workflow", "root scope"])
def test_a_workflow_that_lost_a_row_does_not_look_like_a_new_one(
    table: bytes, whole_store: Path, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(whole_store, data_dir)
    engine = open_on(data_dir)
    workflow = engine.get_workflow("default", "w1").workflow
    engine.close()
    key = keys.workflow(workflow.internal_id) if table == keys.WORKFLOW else keys.scope(workflow.name_id, "")
    env = lmdb.open(str(data_dir / "store"), create=False, map_size=1 << 30)
    with env.begin(write=True) as txn:
        assert txn.delete(key)
    env.close()
    engine = open_on(data_dir)

    answers = engine.execute([save("w1", "new", {"a": 1}, expected_head=""), save("fresh", "c1", {"a": 1})])

    assert [getattr(answer, "reason", "stored") for answer in answers] == [DAMAGED, "stored"]
    engine.close()


def test_a_damaged_row_in_the_trash_does_not_keep_the_rest_from_being_freed(tmp_path: Path) -> None:
    engine = open_on(tmp_path / "data")
    engine.execute([save(name, "c1", {"a": 1}) for name in ("w1", "w2", "w3")])
    damaged_id = engine.get_workflow("default", "w1").workflow.internal_id
    engine.execute([DeleteWorkflowCommand(namespace="default", workflow_id=name) for name in ("w1", "w2", "w3")])
    engine.close()
    env = lmdb.open(str(tmp_path / "data" / "store"), create=False, map_size=1 << 30)
    with env.begin(write=True) as txn:
        assert txn.delete(keys.workflow(damaged_id))
    env.close()
    engine = open_on(tmp_path / "data")

    (failed,) = engine.execute([SweepCommand()])
    assert isinstance(failed, StoreError)
    assert failed.reason == DAMAGED
    (swept,) = engine.execute([SweepCommand(passed_over=(failed.metadata["place"],))])
    assert isinstance(swept, SweepAnswer)
    assert not swept.has_more

    assert count_rows(engine, "trash") == 1
    assert count_rows(engine, "workflows") == 0
    engine.close()


@pytest.mark.slow
def test_flipped_bits_of_the_file_are_never_read_as_something_else(
    whole_store: Path, right_answers: dict[str, str], tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    reports: dict[str, list[str]] = {}
    for number in range(PAGE_FLIPS):
        data_dir = tmp_path / str(number)
        shutil.copytree(whole_store, data_dir)
        flip_bits(data_dir / "store" / "data.mdb", rng)
        try:
            reports[str(data_dir)] = verify_store(data_dir).problems
        except lmdb_env.DataDirError as error:
            reports[str(data_dir)] = [str(error)]

    results = read_in_other_process(list(reports))

    refused = died = told = 0
    for name, problems in reports.items():
        answers = results.get(name)
        if answers is None:
            died += 1
            assert problems, f"{name}: reading it ends the process, and the offline check finds nothing wrong"
            continue
        if answers.keys() == {"open"}:
            refused += 1
            continue
        wrong = {what: answer[:200] for what, answer in answers.items() if answer not in {right_answers[what], DAMAGED}}
        told += DAMAGED in answers.values()
        # A broken tree can hide rows: what is answered must still be the store's, and the offline check must know.
        assert not wrong or problems, f"{name}: {wrong}"
        assert all(is_part_of(answer, right_answers[what]) for what, answer in wrong.items()), f"{name}: {wrong}"
    assert told > 0


def flip_bits(database: Path, rng: random.Random) -> None:
    """Flip one bit in each of a few bytes that lie together, as a bad sector or a stray write would."""
    size = database.stat().st_size
    with database.open("r+b") as file:
        start = rng.randrange(size - 16)
        file.seek(start)
        content = bytearray(file.read(rng.randint(1, 16)))
        for position in range(len(content)):
            content[position] ^= 1 << rng.randrange(8)
        file.seek(start)
        file.write(content)


def read_in_other_process(names: list[str]) -> dict[str, dict[str, str]]:
    """Return what each store answered; a store whose reading ended the process is left out."""
    results: dict[str, dict[str, str]] = {}
    left = names
    while left:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.read_everything", *left],
            cwd=REPOSITORY,
            capture_output=True,
            timeout=CHILD_DEADLINE_S,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        results.update({line["store"]: line["answers"] for line in lines})
        if done.returncode == 0:
            return results
        assert done.returncode < 0, done.stderr.decode()
        left = left[len(lines) + 1 :]
    return results


def is_part_of(answer: str, right: str) -> bool:
    """Tell whether an answer is a refusal, or has nothing that the right one has not."""
    if not answer.startswith("{"):
        return True
    found, wanted = json.loads(answer), json.loads(right) if right.startswith("{") else {}
    for name in ("checkpoints", "workflows", "versions"):
        if name in found:
            return all(each in wanted.get(name, []) for each in found[name])
    return bool(found == wanted)
