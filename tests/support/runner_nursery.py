"""Runs of the ten steps, each in a process of its own that may be killed; forked from one that has imported everything.

    with Nursery() as nursery:
        statuses = nursery.run([RunOrder(…), RunOrder(…)])

A fresh interpreter would take most of a second for each of hundreds of runs. The process that forks has never opened a
channel, so its children may.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from milepost.runner import engine
from milepost.runner.run_state import HeadRecords
from milepost.runner.settings import Durability
from tests.support.boundaries import AsyncBoundedClient, Boundaries, BoundedClient
from tests.support.effects_journal import EffectsJournal
from tests.support.ten_steps import INPUT, RESULT, ten_steps

ROOT = Path(__file__).resolve().parents[2]
LEASE_TTL_S = 1.0
"""The shortest there is: a run after a kill waits for the rest of it."""
QUEUE_ITEMS_MAX = 2
"""So small that pipelined runs meet the bound."""
MISMATCH = 3
"""Exit status of a run whose result is not the one that it should be."""


@dataclass(frozen=True)
class RunOrder:
    """What one child does."""

    target: str
    workflow_id: str
    journal: str
    durability: Durability
    is_async: bool
    fatal: int | str = 0
    """Number or name of the boundary at which it is killed; 0: none."""
    is_forgetful: bool = False
    """A seeded defect: branches that are recorded as finished are not looked at."""


class Nursery:
    """The process that forks, as its users see it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.runner_nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )

    def run(self, orders: Sequence[RunOrder]) -> list[int]:
        """Run them side by side; return how each ended: its exit status, or less than 0 the signal that killed it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(order) for order in orders]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery has ended"
        statuses: list[int] = json.loads(answer)
        return statuses

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *details: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Read orders, a line at a time, and answer each line with the statuses."""
    for line in sys.stdin:
        orders = [RunOrder(**order) for order in json.loads(line)]
        children = [fork(order) for order in orders]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()


def fork(order: RunOrder) -> int:
    """Carry out an order in a child; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = carry_out(order)
    except BaseException:  # noqa: BLE001  nothing may get back into the nursery's own code
        traceback.print_exc()
    finally:
        os._exit(status)


def carry_out(order: RunOrder) -> int:
    """Run the workflow in this process."""
    if order.is_forgetful:
        patched: Any = engine
        patched.read_head_records = lambda records, workflow_id: HeadRecords()
    journal = EffectsJournal(Path(order.journal))
    boundaries = Boundaries(journal, order.workflow_id, order.fatal)
    workflow = ten_steps(journal, boundaries, is_async=order.is_async)
    options: Any = {"durability": order.durability, "lease_ttl_s": LEASE_TTL_S, "queue_items_max": QUEUE_ITEMS_MAX}

    async def run_async() -> object:
        async with AsyncBoundedClient(order.target, boundaries) as client:
            return (await workflow.bind(client, **options).run(order.workflow_id, INPUT)).state

    if order.is_async:
        result = asyncio.run(run_async())
    else:
        with BoundedClient(order.target, boundaries) as client:
            result = workflow.bind(client, **options).run(order.workflow_id, INPUT).state
    return 0 if result == RESULT else MISMATCH


if __name__ == "__main__":
    serve()
