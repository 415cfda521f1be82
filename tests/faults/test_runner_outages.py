"""The server goes away while a workflow runs: the run pauses and goes on, or ends with an error that says so."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from milepost import Client, Status
from tests.support.effects_journal import EffectsJournal
from tests.support.killable_server import KillableServer
from tests.support.runner_worker import Worker

STEPS = [f"step-{number}" for number in range(30)]
TTL_S = 1.0
SAYS_SO = {"UnavailableError", "OutcomeUnknownError", "DeadlineError", "LeaseLostError"}

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[KillableServer]:
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="mp-") as folder, KillableServer(Path(folder)) as running:
        running.start()
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> EffectsJournal:
    return EffectsJournal(tmp_path / "journal")


@dataclass(frozen=True)
class Mode:
    """One way to run, with a workflow of its own."""

    is_async: bool
    durability: str
    ttl_s: float = TTL_S

    @property
    def workflow_id(self) -> str:
        return f"{'async' if self.is_async else 'blocking'}-{self.durability}-{self.ttl_s:g}"


MODES = [Mode(is_async, durability) for is_async in (False, True) for durability in ("sync", "pipelined")]


def check_result(server: KillableServer, journal: EffectsJournal, mode: Mode, *, repeated_max: int = 1) -> None:
    """Check that the thirty steps are in the history once and in order, and how many effects happened twice."""
    with Client(server.target) as client:
        head = client.load(mode.workflow_id)
        history = list(client.list(mode.workflow_id, newest_first=False))
    assert head.status is Status.COMPLETED
    assert head.state["trail"] == STEPS
    assert [checkpoint.current_step for checkpoint in history] == ["", *STEPS]
    effects = Counter(effect.step for effect in journal.read(workflow_id=mode.workflow_id))
    assert effects.keys() == set(STEPS)
    assert effects.total() <= len(STEPS) + repeated_max


def worker_of(mode: Mode, server: KillableServer, journal: EffectsJournal, **options: Any) -> Worker:
    return Worker(
        "paced",
        mode.workflow_id,
        target=server.target,
        journal=journal.path,
        is_async=mode.is_async,
        durability=mode.durability,
        lease_ttl_s=mode.ttl_s,
        **options,
    )


def test_runs_pause_while_the_server_is_away_and_go_on(server: KillableServer, journal: EffectsJournal) -> None:
    """Also where their leases have run out meanwhile: the newest one is good again."""
    modes = [*MODES, *(replace(mode, ttl_s=30.0) for mode in MODES)]
    with ExitStack() as stack:
        workers = [stack.enter_context(worker_of(mode, server, journal)) for mode in modes]
        for worker in workers:
            worker.wait_for("done", "step-9")
        server.kill()
        # The length of the outage is what is tested.
        time.sleep(5.0)
        server.start()
        outcomes = {mode: worker.outcome() for mode, worker in zip(modes, workers, strict=True)}

    assert {mode: outcome["outcome"] for mode, outcome in outcomes.items()} == dict.fromkeys(modes, "completed")
    for mode in modes:
        # A step that was under way when the run paused may be asked to end, and runs again.
        check_result(server, journal, mode)


def test_an_outage_past_the_limit_ends_runs_and_others_go_on_behind_what_is_durable(
    server: KillableServer, journal: EffectsJournal
) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(worker_of(mode, server, journal, outage_limit_s=2.0)) for mode in MODES]
        for worker in workers:
            worker.wait_for("done", "step-9")
        server.kill()
        started = time.monotonic()
        outcomes = {mode: worker.outcome() for mode, worker in zip(MODES, workers, strict=True)}
        assert time.monotonic() - started < 45.0
    for mode, outcome in outcomes.items():
        assert outcome["outcome"] in SAYS_SO, f"{mode}: {outcome}"
        assert mode.workflow_id in outcome["text"] or server.target in outcome["text"], outcome
    done_before = {mode: len(journal.read(workflow_id=mode.workflow_id)) for mode in MODES}

    server.start()
    with Client(server.target) as client:
        durable = {mode: set(client.load(mode.workflow_id).completed_steps) for mode in MODES}
    with ExitStack() as stack:
        successors = [stack.enter_context(worker_of(mode, server, journal, call="resume")) for mode in MODES]
        for successor in successors:
            assert successor.outcome()["outcome"] == "completed"

    for mode in MODES:
        again = [effect.step for effect in journal.read(workflow_id=mode.workflow_id)[done_before[mode] :]]
        assert again == [step for step in STEPS if step not in durable[mode]]
        check_result(server, journal, mode, repeated_max=1 if mode.durability == "sync" else len(STEPS))
