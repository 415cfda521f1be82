"""All reads of the store that `fault_engines.fill_every_table` makes, as data that can be compared and printed.

Run as `python -m tests.support.read_everything DATA_DIR…` it reads one store after another and prints one JSON object
a line, for damage that may end the process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from milepost_server.errors import RecordDamagedError, StoreError
from milepost_server.model import CheckpointFilter, Selection, Status
from milepost_server.storage.lmdb_env import DataDirError
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import (
    ManualClock,
    history_query,
    list_query,
    list_signals_query,
    list_workflows_query,
    load_query,
    manifest_of,
)
from tests.support.fault_engines import LONG_WORKFLOW, START_MS, open_on

DAMAGED = "RECORD_DAMAGED"
READER_CLOCK_MS = START_MS + 4 * 3_600_000


def read_everything(engine: Engine) -> dict[str, str]:
    """Return the answer of every read, or the reason of its refusal, by what was asked."""
    answers: dict[str, str] = {}
    for label, read in _reads(engine):
        try:
            answers[label] = json.dumps(msgspec.to_builtins(read()), sort_keys=True)
        except StoreError as error:
            answers[label] = error.reason
    return answers


def _reads(engine: Engine) -> Iterator[tuple[str, Callable[[], object]]]:
    two_entries = Selection(entry_keys=("entry-2", "pieces"), with_steps=False)
    of_run = CheckpointFilter(run_id="run-1")
    for workflow_id in ("w1", "w2", LONG_WORKFLOW):
        name = workflow_id[:4]
        load = {
            "head": load_query(workflow_id),
            "nested head": load_query(workflow_id, scope="nested"),
            "waiting": load_query(workflow_id, statuses=(Status.WAITING,)),
            "two entries": load_query(workflow_id, selection=two_entries),
            **{f"c{step}": load_query(workflow_id, f"c{step}") for step in range(1, 7)},
            **{f"#{step}": load_query(workflow_id, sequence=step) for step in range(1, 7)},
        }
        pages = {
            f"scope {scope}, newest first {newest_first}": list_query(
                workflow_id, scope=scope, newest_first=newest_first, selection=Selection(), bytes_max=1 << 30
            )
            for newest_first in (True, False)
            for scope in (None, "", "nested")
        }
        pages["run-1"] = list_query(workflow_id, filter=of_run)
        history = history_query(workflow_id, "entry-1", "entry-3", "pieces")
        yield f"{name}: get", partial(engine.get_workflow, "default", workflow_id)
        yield f"{name}: lease", partial(engine.get_lease, "default", workflow_id)
        yield f"{name}: signals", partial(engine.list_signals, list_signals_query(workflow_id))
        yield f"{name}: manifest", partial(engine.get_definition, "default", manifest_of("m" * 5_000 + workflow_id)[1])
        yield from ((f"{name}: load {what}", partial(engine.load, query)) for what, query in load.items())
        yield from ((f"{name}: list {what}", partial(engine.list_checkpoints, query)) for what, query in pages.items())
        yield f"{name}: history", partial(engine.entry_history, history)
    for number in range(2):
        yield f"load wide-{number}", partial(engine.load, load_query("wide", f"wide-{number}"))
    yield "other namespace", partial(engine.load, load_query("w1", "c1", namespace="other"))
    yield "workflows", partial(engine.list_workflows, list_workflows_query())
    by_status = list_workflows_query(statuses=frozenset(Status))
    yield "workflows by status", partial(engine.list_workflows, by_status)
    yield "long workflows", partial(engine.list_workflows, list_workflows_query(prefix="long-"))


def read_store(data_dir: Path) -> dict[str, str]:
    """Open a store, read everything and close it; a store that cannot be opened answers nothing but the reason for
    that."""
    try:
        engine = open_on(data_dir, clock_ms=ManualClock(READER_CLOCK_MS), lease_clock_ms=ManualClock())
    except DataDirError as error:
        return {"open": f"refused: {error}"}
    except RecordDamagedError as error:
        return {"open": f"damaged: {error}"}
    try:
        return read_everything(engine)
    finally:
        engine.close()


def main() -> None:
    """Read the stores that the command line names."""
    for name in sys.argv[1:]:
        sys.stdout.write(json.dumps({"store": name, "answers": read_store(Path(name))}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
