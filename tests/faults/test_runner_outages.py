"""The server goes away while a workflow runs: the run pauses and goes on, or ends with an error that says so."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost import Client, Status
from tests.support.effects_journal import EffectsJournal
from tests.support.killable_server import KillableServer
from tests.support.runner_worker import Worker

STEPS = [f"step-{number}" for number in range(30)]
TTL_S = 1.0

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


def check_result(server: KillableServer, journal: EffectsJournal, *, repeated_max: int = 1) -> None:
    """Check that the thirty steps are in the history once and in order, and how many effects happened twice."""
    with Client(server.target) as client:
        head = client.load("paced")
        history = list(client.list("paced", newest_first=False))
    assert head.status is Status.COMPLETED
    assert head.state["trail"] == STEPS
    assert [checkpoint.current_step for checkpoint in history] == ["", *STEPS]
    effects = Counter(effect.step for effect in journal.read(workflow_id="paced"))
    assert effects.keys() == set(STEPS)
    assert effects.total() <= len(STEPS) + repeated_max


@pytest.mark.parametrize("durability", ["sync", "pipelined"])
@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
@pytest.mark.parametrize("ttl_s", [TTL_S, 30.0], ids=["longer than its lease", "shorter than its lease"])
def test_a_run_pauses_while_the_server_is_away_and_goes_on(
    ttl_s: float, is_async: bool, durability: str, server: KillableServer, journal: EffectsJournal
) -> None:
    """The newest lease is good again after the outage, though its time ran out in it."""
    with Worker(
        "paced",
        "paced",
        target=server.target,
        journal=journal.path,
        is_async=is_async,
        durability=durability,
        lease_ttl_s=ttl_s,
    ) as worker:
        worker.wait_for("done", "step-9")
        server.kill()
        # The length of the outage is what is tested.
        time.sleep(5.0)
        server.start()
        outcome = worker.outcome()

    assert outcome["outcome"] == "completed", outcome
    assert outcome["state"]["trail"] == STEPS
    # Pipelined, a step may have been under way when the run paused.
    check_result(server, journal)


@pytest.mark.parametrize("durability", ["sync", "pipelined"])
@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_an_outage_past_the_limit_ends_the_run_and_another_goes_on_behind_what_is_durable(
    is_async: bool, durability: str, server: KillableServer, journal: EffectsJournal
) -> None:
    with Worker(
        "paced",
        "paced",
        target=server.target,
        journal=journal.path,
        is_async=is_async,
        durability=durability,
        lease_ttl_s=TTL_S,
        outage_limit_s=2.0,
    ) as worker:
        worker.wait_for("done", "step-9")
        server.kill()
        started = time.monotonic()
        outcome = worker.outcome()
        assert time.monotonic() - started < 45.0
    assert outcome["outcome"] in {"UnavailableError", "OutcomeUnknownError", "DeadlineError", "LeaseLostError"}, outcome
    assert "paced" in outcome["text"] or server.target in outcome["text"], outcome
    done_before = len(journal.read(workflow_id="paced"))

    server.start()
    with Client(server.target) as client:
        durable = set(client.load("paced").completed_steps)
    with Worker(
        "paced", "paced", target=server.target, journal=journal.path, call="resume", is_async=is_async, lease_ttl_s=TTL_S
    ) as successor:
        assert successor.outcome()["outcome"] == "completed"

    again = [effect.step for effect in journal.read(workflow_id="paced")[done_before:]]
    assert again == [step for step in STEPS if step not in durable]
    check_result(server, journal, repeated_max=1 if durability == "sync" else len(STEPS))
