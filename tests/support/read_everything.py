"""All reads of the store that `fault_engines.fill_every_table` makes, as data that can be compared and printed.

Run as `python -m tests.support.read_everything DATA_DIR…` it reads one store after another and prints one JSON object a line, for damage that may
end the process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from milepost_server.errors import RecordDamagedError, StoreError
from milepost_server.model import CheckpointFilter, Selection, Status
from milepost_server.storage.lmdb_env import DataDirError
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import (
    history_query,
    list_query,
    list_workflows_query,
    load_query,
)
from tests.support.fault_engines import LONG_WORKFLOW, START_MS, open_on
from milepost_server.testing.builders import ManualClock

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
    whole = Selection()
    for workflow_id in ("w1", "w2", LONG_WORKFLOW):
        name = workflow_id[:4]
        yield f"get {name}", lambda w=workflow_id: engine.get_workflow("default", w)
        yield f"head of {name}", lambda w=workflow_id: engine.load(load_query(w))
        yield f"nested head of {name}", lambda w=workflow_id: engine.load(load_query(w, scope="nested"))
        yield f"waiting in {name}", lambda w=workflow_id: engine.load(load_query(w, statuses=(Status.WAITING,)))
        yield (
            f"entries of {name}",
            lambda w=workflow_id: engine.load(
                load_query(w, selection=Selection(entry_keys=("entry-2", "pieces"), with_steps=False))
            ),
        )
        for step in range(1, 7):
            yield f"load {name}/c{step}", lambda w=workflow_id, s=step: engine.load(load_query(w, f"c{s}"))
            yield f"load {name}#{step}", lambda w=workflow_id, s=step: engine.load(load_query(w, sequence=s))
        for newest_first in (True, False):
            for scope in (None, "", "nested"):
                yield (
                    f"list {name} {scope} {newest_first}",
                    lambda w=workflow_id, s=scope, n=newest_first: engine.list_checkpoints(
                        list_query(w, scope=s, newest_first=n, selection=whole, bytes_max=1 << 30)
                    ),
                )
        of_run = CheckpointFilter(run_id="run-1")
        yield f"run-1 of {name}", lambda w=workflow_id: engine.list_checkpoints(list_query(w, filter=of_run))
        yield (
            f"history of {name}",
            lambda w=workflow_id: engine.entry_history(history_query(w, "entry-1", "entry-3", "pieces")),
        )
    for number in range(2):
        yield f"load wide-{number}", lambda n=number: engine.load(load_query("wide", f"wide-{n}"))
    yield "other namespace", lambda: engine.load(load_query("w1", "c1", namespace="other"))
    yield "workflows", lambda: engine.list_workflows(list_workflows_query())
    yield "long workflows", lambda: engine.list_workflows(list_workflows_query(prefix="long-"))


def read_store(data_dir: Path) -> dict[str, str]:
    """Open a store, read everything and close it; a store that cannot be opened answers nothing but the reason for that."""
    try:
        engine = open_on(data_dir, clock_ms=ManualClock(READER_CLOCK_MS))
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
