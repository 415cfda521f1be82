"""Signals between processes: an approval that a person gives elsewhere, and a cancel from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from milepost import Client, Status
from tests.support.effects_journal import EffectsJournal
from tests.support.runner_worker import Worker, approval, heedful
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.slow


@pytest.fixture
def journal(tmp_path: Path) -> EffectsJournal:
    return EffectsJournal(tmp_path / "journal")


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_an_approval_given_elsewhere_is_acted_on_by_another_process(
    is_async: bool, server: ServerProcess, journal: EffectsJournal
) -> None:
    workflow_id = f"approval-{is_async}"

    def worker(call: str) -> Worker:
        return Worker("approval", workflow_id, target=server.target, journal=journal.path, call=call, is_async=is_async)

    with worker("run") as asks:
        waiting = asks.outcome()
    assert (waiting["outcome"], waiting["waiting_for"]) == ("waiting", "approval")
    with worker("resume") as too_early:
        assert too_early.outcome()["outcome"] == "waiting"
    with Client(server.target) as client:
        assert client.get_lease(workflow_id) is None
        assert client.load(workflow_id).status is Status.WAITING
        runner = approval(journal).bind(client)
        for _ in range(2):
            runner.signal(workflow_id, "approval", {"by": "Ada"}, signal_id="decision-1")
    with worker("resume") as acts:
        outcome = acts.outcome()
    with Client(server.target) as client:
        assert list(client.signals(workflow_id)) == []

    assert outcome["outcome"] == "completed"
    assert outcome["state"]["acted"] == "as Ada said"
    effects = journal.read(workflow_id=workflow_id)
    assert [effect.step for effect in effects] == ["ask", "decide", "act"]
    assert effects[0].pid == asks.pid
    assert {effect.pid for effect in effects[1:]} == {acts.pid}


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_cancel_from_outside_ends_the_step_that_runs(
    is_async: bool, server: ServerProcess, journal: EffectsJournal
) -> None:
    """The worker hears of it with its next heartbeat, and nothing behind the step runs."""
    workflow_id = f"cancel-{is_async}"
    definition = "heedful_async" if is_async else "heedful"
    with Worker(
        definition, workflow_id, target=server.target, journal=journal.path, is_async=is_async, lease_ttl_s=1.0
    ) as worker:
        worker.wait_for("at", "work")
        with Client(server.target) as client:
            heedful(journal).bind(client).cancel(workflow_id)
        outcome = worker.outcome()

    assert outcome["outcome"] == "WorkflowCancelledError", outcome
    with Client(server.target) as client:
        head = client.load(workflow_id)
        assert head.status is Status.CANCELLED
        assert list(client.signals(workflow_id)) == []
        assert client.get_lease(workflow_id) is None
    assert journal.read(workflow_id=workflow_id) == []
