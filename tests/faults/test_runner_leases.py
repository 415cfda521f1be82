"""Two workers and one workflow: whoever loses the lease saves nothing more, even where its save would fit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milepost import Client
from milepost.testing import LocalServer, local_server
from tests.support.effects_journal import EffectsJournal
from tests.support.killable_server import NO_FENCE_SERVER, KillableServer
from tests.support.runner_worker import Worker

TTL_S = 1.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> EffectsJournal:
    return EffectsJournal(tmp_path / "journal")


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_worker_frozen_past_its_lease_saves_nothing_once_it_is_thawed(
    is_async: bool, server: LocalServer, journal: EffectsJournal
) -> None:
    check_frozen_worker(server.target, journal, is_async=is_async)


def test_the_check_catches_a_server_that_lets_everybody_save(journal: EffectsJournal) -> None:
    # The path of a socket must be short.
    with (
        tempfile.TemporaryDirectory(prefix="mp-") as folder,
        KillableServer(Path(folder), program=NO_FENCE_SERVER) as server,
    ):
        server.start()
        with pytest.raises(AssertionError, match="LeaseLostError"):
            check_frozen_worker(server.target, journal, is_async=False)


def check_frozen_worker(target: str, journal: EffectsJournal, *, is_async: bool) -> None:
    """Freeze a worker in a step, thaw it when another has its lease, and check what each of them saved and did.

    The head is still the one that the frozen worker knows: only the token of its lease tells that it is late.
    """
    definition = "gated_async" if is_async else "gated"
    workflow_id = f"frozen-{definition}"

    def worker() -> Worker:
        return Worker(
            definition, workflow_id, target=target, journal=journal.path, is_async=is_async, lease_ttl_s=TTL_S
        )

    with worker() as frozen, Client(target) as client:
        frozen.wait_for("at", "b")
        before = client.load(workflow_id)
        frozen.freeze()
        with worker() as successor:
            successor.wait_for("at", "b")
            assert client.load(workflow_id).checkpoint_id == before.checkpoint_id
            frozen.open_gate()
            frozen.thaw()
            assert frozen.outcome()["outcome"] == "LeaseLostError"
            assert client.load(workflow_id).checkpoint_id == before.checkpoint_id
            successor.open_gate()
            outcome = successor.outcome()
        history = list(client.list(workflow_id, newest_first=False, with_state=True))

    assert outcome["outcome"] == "completed"
    assert outcome["state"]["b"] == successor.pid
    assert [checkpoint.current_step for checkpoint in history] == ["", "a", "b", "c"]
    assert all(checkpoint.state.get("b", successor.pid) == successor.pid for checkpoint in history)
    effects = [(effect.step, effect.pid) for effect in journal.read(workflow_id=workflow_id)]
    assert effects.count(("a", frozen.pid)) == 1
    assert effects.count(("b", successor.pid)) == 1
    assert effects.count(("c", successor.pid)) == 1
    # A step that was cut off may still have its effect: fencing guards saves, not effects.
    assert set(effects) - {("b", frozen.pid)} == {("a", frozen.pid), ("b", successor.pid), ("c", successor.pid)}


def test_a_second_worker_waits_for_the_first_and_finds_its_result(server: LocalServer, journal: EffectsJournal) -> None:
    def worker() -> Worker:
        return Worker("gated", "waits", target=server.target, journal=journal.path, lease_ttl_s=TTL_S)

    with worker() as first:
        first.wait_for("at", "b")
        with worker() as second:
            first.open_gate()
            outcomes = [first.outcome(), second.outcome()]

    assert [outcome["outcome"] for outcome in outcomes] == ["completed", "completed"]
    assert outcomes[1]["state"] == outcomes[0]["state"]
    assert [effect.step for effect in journal.read(workflow_id="waits")] == ["a", "b", "c"]


def test_a_worker_that_will_not_wait_is_told_who_holds_the_lease(server: LocalServer, journal: EffectsJournal) -> None:
    def worker(**options: Any) -> Worker:
        return Worker("gated", "held", target=server.target, journal=journal.path, **options)

    with worker(holder="first-worker") as first:
        first.wait_for("at", "b")
        with worker(lease_wait_s=0.0) as second:
            refused = second.outcome()
        first.open_gate()
        assert first.outcome()["outcome"] == "completed"

    assert refused["outcome"] == "LeaseHeldError"
    assert "first-worker" in refused["text"]


def test_a_worker_stopped_by_ctrl_c_leaves_the_workflow_to_another_at_once(
    server: LocalServer, journal: EffectsJournal
) -> None:
    """Its lease is given back: the successor does not wait, and finds the workflow running, not failed."""

    def worker(**options: Any) -> Worker:
        return Worker("heedful", "ctrl-c", target=server.target, journal=journal.path, lease_ttl_s=60.0, **options)

    with worker() as stopped:
        stopped.wait_for("at", "work")
        stopped.interrupt()
        assert stopped.wait() != 0
    with server.client() as client:
        assert client.get_lease("ctrl-c") is None
        assert client.workflow("ctrl-c").status == "running"
    with worker(lease_wait_s=0.0) as successor:
        successor.wait_for("at", "work")
