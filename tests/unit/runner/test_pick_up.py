"""What a serving runner takes up, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from milepost import LeaseInfo, Status, WatchEvent, WatchEventKind, WorkflowInfo
from milepost.runner.pick_up import CANDIDATES_MAX, DELAYS_MAX, Outcome, PickUp, is_news, is_ready
from milepost.testing import FakeClock

LEASE = LeaseInfo(workflow_id="w", ttl_s=30, remaining_s=3, grant_time=datetime(2024, 1, 1, tzinfo=UTC))


def made(clock: FakeClock, *, max_concurrency: int = 2, poll_s: float = 30.0) -> PickUp:
    return PickUp(max_concurrency=max_concurrency, poll_s=poll_s, clock=clock.monotonic, random=lambda: 0.5)


def event(kind: WatchEventKind, workflow_id: str = "w", **fields: Any) -> WatchEvent:
    return WatchEvent(kind=kind, workflow_id=workflow_id, **fields)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_the_store_is_asked_at_once_and_then_now_and_then(clock: FakeClock) -> None:
    pick_up = made(clock)
    assert pick_up.is_query_due()
    pick_up.queried([], has_more=False)
    assert not pick_up.is_query_due()
    assert pick_up.wait_s() == pytest.approx(30)
    clock.advance(30)
    assert pick_up.is_query_due()


def test_no_more_run_than_allowed(clock: FakeClock) -> None:
    """The others wait their turn; meanwhile nothing is due, and the store is not asked."""
    pick_up = made(clock)
    pick_up.queried(["a", "b", "c"], has_more=False)
    clock.advance(0.2)
    assert pick_up.take() == ["a", "b"]
    assert pick_up.take() == []
    assert pick_up.wait_s() is None
    clock.advance(100)
    assert not pick_up.is_query_due()
    pick_up.ended("a", Outcome.PROGRESS)
    assert pick_up.take() == ["c"]
    assert pick_up.running == {"b", "c"}


def test_candidates_are_tried_after_a_random_wait(clock: FakeClock) -> None:
    """So that hosts that heard of one together do not reach for it together."""
    pick_up = made(clock)
    pick_up.queried(["a"], has_more=False)
    assert pick_up.take() == []
    assert pick_up.wait_s() == pytest.approx(0.1)
    clock.advance(0.1)
    assert pick_up.take() == ["a"]


def test_a_workflow_without_progress_is_left_alone_for_longer_and_longer(clock: FakeClock) -> None:
    pick_up = made(clock)
    delays = []
    for _ in range(11):
        assert pick_up.is_wanted("a")
        pick_up.queried(["a"], has_more=False)
        clock.advance(0.1)
        assert pick_up.take() == ["a"]
        delays.append(pick_up.ended("a", Outcome.STUCK))
        assert not pick_up.is_wanted("a")
        pick_up.heard(event(WatchEventKind.LEASE_RELEASED, "a"))
        clock.advance(0.1)
        assert pick_up.take() == [], "its own lease, given back, is no news"
        clock.advance(delays[-1])
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == 300


def test_progress_ends_the_delays(clock: FakeClock) -> None:
    pick_up = made(clock)
    for outcome in (Outcome.STUCK, Outcome.STUCK, Outcome.PROGRESS):
        pick_up.queried(["a"], has_more=False)
        clock.advance(10)
        assert pick_up.take() == ["a"]
        pick_up.ended("a", outcome)
        clock.advance(10)
    pick_up.queried(["a"], has_more=False)
    clock.advance(1)
    pick_up.take()
    assert pick_up.ended("a", Outcome.STUCK) == 1


def test_a_signal_ends_a_delay_at_once(clock: FakeClock) -> None:
    pick_up = made(clock)
    pick_up.queried(["a"], has_more=False)
    clock.advance(1)
    pick_up.take()
    pick_up.ended("a", Outcome.STUCK)
    pick_up.heard(event(WatchEventKind.SIGNAL_SENT, "a"))
    clock.advance(0.1)
    assert pick_up.take() == ["a"]


def test_a_signal_for_what_runs_is_looked_at_when_it_has_ended(clock: FakeClock) -> None:
    """The run may have ended without having seen it."""
    pick_up = made(clock)
    pick_up.heard(event(WatchEventKind.SIGNAL_SENT, "a"))
    clock.advance(1)
    assert pick_up.take() == ["a"]
    pick_up.heard(event(WatchEventKind.SIGNAL_SENT, "a"))
    clock.advance(1)
    assert pick_up.take() == []
    pick_up.ended("a", Outcome.PROGRESS)
    assert pick_up.take() == ["a"]


def test_what_somebody_else_has_is_no_failure(clock: FakeClock) -> None:
    pick_up = made(clock)
    pick_up.queried(["a"], has_more=False)
    clock.advance(1)
    pick_up.take()
    assert pick_up.ended("a", Outcome.SKIPPED) == 0
    assert pick_up.is_wanted("a")


def test_the_store_is_asked_again_soon_where_there_is_more(clock: FakeClock) -> None:
    """Once what was found is taken; but not without a pause."""
    pick_up = made(clock)
    pick_up.queried(["a"], has_more=True)
    clock.advance(0.1)
    assert pick_up.take() == ["a"]
    assert not pick_up.is_query_due()
    assert pick_up.wait_s() == pytest.approx(0.1)
    clock.advance(0.1)
    assert pick_up.is_query_due()


def test_a_watch_that_begins_asks_the_store(clock: FakeClock) -> None:
    """What happened before it is not told."""
    pick_up = made(clock)
    pick_up.queried([], has_more=False)
    clock.advance(1)
    pick_up.heard(event(WatchEventKind.STARTED, ""))
    assert pick_up.is_query_due()


def test_a_store_that_does_not_answer_is_asked_less_and_less(clock: FakeClock) -> None:
    pick_up = made(clock)
    pauses = []
    for _ in range(9):
        pick_up.query_failed()
        pauses.append(pick_up.wait_s() or 0.0)
        clock.advance(pauses[-1])
        assert pick_up.is_query_due()
    assert pauses[:3] == pytest.approx([0.4, 0.8, 1.6])
    assert pauses[-1] == pytest.approx(30)
    pick_up.queried([], has_more=False)
    pick_up.query_failed()
    assert pick_up.wait_s() == pytest.approx(0.4)


def test_what_is_remembered_is_bounded(clock: FakeClock) -> None:
    """Candidates that are dropped are found by the next query; the oldest delays are forgotten."""
    pick_up = made(clock, max_concurrency=1)
    for number in range(CANDIDATES_MAX + 10):
        pick_up.heard(event(WatchEventKind.SIGNAL_SENT, f"w{number}"))
    assert pick_up.wanted == 0
    taken = 0
    for number in range(DELAYS_MAX + 1):
        pick_up.heard(event(WatchEventKind.SIGNAL_SENT, f"x{number}"))
        clock.advance(0.2)
        for workflow_id in pick_up.take():
            taken += 1
            pick_up.ended(workflow_id, Outcome.STUCK)
    assert taken == DELAYS_MAX + 1
    assert len(pick_up._delays) == DELAYS_MAX


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"status": Status.RUNNING}, True),
        ({"status": Status.WAITING, "pending_signal_count": 1}, True),
        ({"status": Status.WAITING}, False),
        ({"status": Status.RUNNING, "lease": LEASE}, False),
        ({"status": Status.RUNNING, "definition": "other"}, False),
        ({"status": Status.FAILED}, False),
        ({"status": Status.SUSPENDED}, False),
        ({"status": Status.COMPLETED, "pending_signal_count": 1}, False),
        ({"status": Status.CANCELLED}, False),
        ({"status": None}, False),
    ],
)
def test_only_what_can_go_on_is_taken_up(fields: dict[str, Any], expected: bool) -> None:
    info = WorkflowInfo(workflow_id="w", **{"definition": "order", **fields})
    assert is_ready(info, "order") is expected


@pytest.mark.parametrize(
    "found, expected",
    [
        (event(WatchEventKind.STARTED), True),
        (event(WatchEventKind.SIGNAL_SENT), True),
        (event(WatchEventKind.LEASE_RELEASED), True),
        (event(WatchEventKind.SAVED, status=Status.RUNNING, lease_released=True), True),
        (event(WatchEventKind.SAVED, status=Status.RUNNING), False),
        (event(WatchEventKind.SAVED, status=Status.WAITING, lease_released=True), False),
        (event(WatchEventKind.SAVED, status=Status.RUNNING, lease_released=True, scope="ship"), False),
        (event(WatchEventKind.LEASE_GRANTED), False),
        (event(WatchEventKind.WORKFLOW_DELETED), False),
    ],
)
def test_only_what_may_free_a_workflow_is_news(found: WatchEvent, expected: bool) -> None:
    """Every step of every run is an event: most of them are nobody else's affair."""
    assert is_news(found) is expected
