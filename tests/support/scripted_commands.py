"""A fixed script of batches against an LMDB engine, and what the store has after each, for a process whose system
calls fail.

Run as `python -m tests.support.scripted_commands DATA_DIR` it prints one JSON object a line: what each batch was
answered, and what the store shows after a failure. A batch that is not stored, or of which nobody knows, is run again
until it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from milepost_server.errors import StorageFailedError, StoreError
from milepost_server.model import Command, Selection, SweepCommand
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import (
    ManualClock,
    acquire_lease,
    append,
    data_value,
    delete_ids,
    delete_workflow,
    list_query,
    list_signals_query,
    list_workflows_query,
    record,
    save,
    send_signal,
)
from tests.support.fault_engines import START_MS, open_on

TRIES_MAX = 20


def batches() -> list[list[Command]]:
    """Return the script: saves small and large, increments, records, leases, signals, deletes, sweeps."""
    large = data_value(b"large" * 14_000)
    return [
        [save("w1", "c1", {"a": 1, "b": 2, "large": large}), save("w2", "c1", {"a": 1})],
        [
            save("w1", "c2", {"a": 2}, base_checkpoint_id="c1", steps_added=("s1",), expected_head="c1"),
            append("w1", "c2", record("t", 1, "one"), record("t", 2, "two")),
            save("w3", "c1", {"x": data_value(b"y" * 5_000)}, records=(record("r"),)),
        ],
        [save(f"w{number}", f"n{number}", {"n": number, "pad": "p" * 900}) for number in range(1, 9)],
        [delete_ids("w1", "c1"), save("w2", "c2", {"a": 3}, base_checkpoint_id="c1")],
        [acquire_lease("w2", request_id="q"), send_signal("w2", "s1"), acquire_lease("to come", request_id="q")],
        # Tokens are given in order, and not twice for a batch that is run again.
        [save("w2", "c3", {"a": 4}, lease_token=1, release_lease=True, consumed_signals=("s1",))],
        [delete_workflow("w3"), save("w9", "c1", {"a": 1})],
        [SweepCommand()],
        [save("w1", "c4", {"b": data_value(b"z" * 200_000)}, removed_keys=("large",), base_checkpoint_id="c2")],
        [save("w1", "c5", {"a": 5})],
    ]


def show(engine: Engine) -> str:
    """Return all that readers see, without what differs between two equal histories."""
    shown: dict[str, Any] = {}
    for workflow in [each.workflow for each in engine.list_workflows(list_workflows_query()).workflows]:
        query = list_query(workflow.workflow_id, newest_first=False, selection=Selection(), bytes_max=1 << 30)
        shown[workflow.workflow_id] = [
            workflow.head_checkpoint_id,
            workflow.checkpoint_count,
            [
                [
                    loaded.row.sequence,
                    loaded.row.checkpoint_id,
                    loaded.row.parent_id,
                    loaded.row.digest.hex(),
                    {key: value.payload.hex() for key, value in (loaded.entries or {}).items()},
                    loaded.steps,
                    [[each.task_id, each.index, each.value.payload.decode()] for each in loaded.records],
                ]
                for loaded in engine.list_checkpoints(query).checkpoints
            ],
        ]
    held = [name for name in ("w2", "to come") if engine.get_lease("default", name).lease is not None]
    shown["leases"] = held
    if "w2" in shown:
        shown["signals"] = [signal.signal_id for signal in engine.list_signals(list_signals_query("w2")).signals]
    return json.dumps(shown, sort_keys=True)


def run_script(data_dir: Path) -> Iterator[dict[str, Any]]:
    """Run the script and tell what happens."""
    clock = ManualClock(START_MS)
    engine = open_on(data_dir, clock_ms=clock)
    try:
        for number, batch in enumerate(batches(), 1):
            clock.advance(1_000)
            yield from _run_batch(engine, number, batch)
        yield {"event": "end", "shown": show(engine)}
    finally:
        engine.close()


def _run_batch(engine: LmdbEngine, number: int, batch: list[Command]) -> Iterator[dict[str, Any]]:
    for _ in range(TRIES_MAX):
        try:
            answers = engine.execute(batch)
        except StorageFailedError:
            yield {"event": "unknown", "batch": number, "read": _reason_of_a_read(engine)}
            if (yield from _reopen(engine, number)):
                continue
            return
        reasons = {answer.reason for answer in answers if isinstance(answer, StoreError)}
        if not reasons:
            yield {"event": "acknowledged", "batch": number}
            return
        yield {"event": "refused", "batch": number, "reasons": sorted(reasons), "shown": show(engine)}
    yield {"event": "given up", "batch": number}


def _reopen(engine: LmdbEngine, number: int) -> Generator[dict[str, Any], None, bool]:
    for _ in range(TRIES_MAX):
        try:
            engine.reopen()
        except StorageFailedError:
            yield {"event": "not reopened", "batch": number, "read": _reason_of_a_read(engine)}
            continue
        yield {"event": "reopened", "batch": number, "shown": show(engine)}
        return True
    yield {"event": "given up", "batch": number}
    return False


def _reason_of_a_read(engine: Engine) -> str:
    try:
        engine.list_workflows(list_workflows_query())
    except StoreError as error:
        return error.reason
    return "answered"


def main() -> None:
    """Run the script in the directory that the command line names. Every line is out before the next step is taken."""
    for event in run_script(Path(sys.argv[1])):
        os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    main()
