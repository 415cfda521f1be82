"""Steps that do not end when they should, and steps that take their process with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost import Status
from milepost.testing import LocalServer, local_server
from tests.support.effects_journal import EffectsJournal
from tests.support.runner_worker import Worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> EffectsJournal:
    return EffectsJournal(tmp_path / "journal")


def check_never_two_at_once(journal: EffectsJournal, workflow_id: str) -> None:
    lines = [line for line in journal.read(workflow_id=workflow_id) if line.what in {"begin", "end"}]
    for before, line in itertools.pairwise(lines):
        assert (before.what, line.what) != ("begin", "begin"), f"{line.step}: attempt {line.attempt} began too soon"


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_step_that_outlives_its_timeout_never_has_two_attempts_alive(
    is_async: bool, server: LocalServer, journal: EffectsJournal
) -> None:
    """A thread cannot be stopped: the next attempt waits for it, within the grace time."""
    workflow_id = f"slow-{is_async}"
    with Worker(
        "slow", workflow_id, target=server.target, journal=journal.path, is_async=is_async, grace_s=20.0
    ) as worker:
        outcome = worker.outcome()

    assert outcome["outcome"] == "StepTimeoutError", outcome
    assert "deaf" in outcome["text"]
    lines = journal.read(workflow_id=workflow_id)
    assert [line.attempt for line in lines if line.what == "begin"] == [1, 2, 3]
    check_never_two_at_once(journal, workflow_id)
    with server.client() as client:
        assert client.load(workflow_id).status is Status.FAILED


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_step_that_outlives_the_grace_time_too_is_abandoned_and_not_tried_again(
    is_async: bool, server: LocalServer, journal: EffectsJournal
) -> None:
    workflow_id = f"abandoned-{is_async}"
    with Worker(
        "slow", workflow_id, target=server.target, journal=journal.path, is_async=is_async, grace_s=0.1
    ) as worker:
        outcome = worker.outcome()

    assert outcome["outcome"] == "StepTimeoutError", outcome
    assert [line.attempt for line in journal.read(workflow_id=workflow_id) if line.what == "begin"] == [1]


def test_a_step_that_kills_its_process_is_given_up_after_the_crash_limit_and_named(
    server: LocalServer, journal: EffectsJournal
) -> None:
    """Each resume without progress is counted in the store, by whichever process; then nothing runs any more."""
    limit = 3

    def worker(call: str = "run") -> Worker:
        return Worker(
            "deadly",
            "deadly",
            target=server.target,
            journal=journal.path,
            call=call,
            lease_ttl_s=1.0,
            crash_limit=limit,
        )

    statuses: list[int] = []
    outcome: dict[str, object] = {}
    for _ in range(limit + 3):
        with worker() as one:
            statuses.append(one.wait())
            if statuses[-1] == 0:
                outcome = one.outcome()
                break

    assert statuses == [-9] * (len(statuses) - 1) + [0]
    # The first run is no resume.
    assert len([line for line in journal.read(workflow_id="deadly") if line.step == "bad"]) == limit + 1
    assert outcome["outcome"] == "StepFailedError", outcome
    assert "'bad'" in str(outcome["text"])
    with server.client() as client:
        assert client.load("deadly").status is Status.FAILED
    with worker("resume") as late:
        assert late.outcome()["outcome"] == outcome["outcome"]
    assert len([line for line in journal.read(workflow_id="deadly") if line.step == "bad"]) == limit + 1
    assert len([line for line in journal.read(workflow_id="deadly") if line.step == "good"]) == 1
