"""When leases are renewed, when a run pauses, and when it is told that its lease is gone."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from milepost.codecs import JSON
from milepost.errors import LeaseLostError, UnavailableError
from milepost.runner.attempt import Attempt
from milepost.runner.context import RunFrame
from milepost.runner.events import Event, LeaseGone, LeasePaused, LeaseRenewed, SignalsPending
from milepost.runner.lease_keeper import Hold, LeaseKeeper
from milepost.runner.patches import Entries
from milepost.runner.settings import Settings
from milepost.runner.state_type import StateType
from milepost.runner.step import Step
from milepost.testing import FakeClock
from milepost.types import LeaseInfo, LeaseRenewal, PendingSignal


def sleeping(state: dict[str, Any]) -> None: ...


class Store:
    """Renews, or fails as it is told; a call takes as long as it is told."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.calls: list[tuple[float, str, float]] = []
        self.error: Exception | None = None
        self.takes_s = 0.0
        self.signals: tuple[PendingSignal, ...] = ()

    def renew_lease(self, workflow_id: str, token: int, *, timeout_s: float = 5.0) -> LeaseRenewal:
        self.calls.append((self.clock.monotonic(), workflow_id, timeout_s))
        if self.error is not None:
            self.clock.advance(min(self.takes_s, timeout_s))
            raise self.error
        lease = LeaseInfo(
            workflow_id=workflow_id,
            token=token,
            ttl_s=30.0,
            remaining_s=30.0,
            grant_time=datetime(2024, 1, 1, tzinfo=UTC),
        )
        return LeaseRenewal(lease=lease, pending_signals=self.signals, pending_signal_count=len(self.signals))


class Kept:
    """A keeper that only moves when a test ticks it, with a ttl of 30 s and a margin of 3 s."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = Store(self.clock)
        self.keeper = LeaseKeeper(lambda: self.store, Settings(lease_ttl_s=30.0), self.clock.monotonic)
        # In place of the thread that `hold` would start.
        self.keeper._thread = threading.current_thread()
        self.events: dict[str, list[Event]] = {}

    def hold(self, workflow_id: str = "w", token: int = 7) -> Hold:
        self.events[workflow_id] = []
        return self.keeper.hold(workflow_id, token, self.clock.monotonic(), self.events[workflow_id].append)

    def until(self, moment: float) -> None:
        """Let time pass as the thread would: from one due moment to the next."""
        while True:
            due_at = self.keeper.tick()
            if due_at is None or due_at > moment:
                self.clock.advance(max(0.0, moment - self.clock.monotonic()))
                return
            self.clock.advance(max(0.0, due_at - self.clock.monotonic()))

    def kinds(self, workflow_id: str = "w") -> list[type[Any]]:
        return [type(event) for event in self.events[workflow_id]]


def test_a_lease_is_renewed_at_every_third_of_its_ttl() -> None:
    kept = Kept()
    kept.hold()
    kept.until(35)
    assert [at for at, _, _ in kept.store.calls] == [10, 20, 30]
    assert kept.kinds() == []


def test_a_save_is_a_renewal_too() -> None:
    kept = Kept()
    hold = kept.hold()
    kept.until(9)
    hold.renewed(9)
    kept.until(18)
    assert kept.store.calls == []
    kept.until(20)
    assert [at for at, _, _ in kept.store.calls] == [19]


def test_the_run_pauses_a_margin_before_the_lease_runs_out_and_goes_on_when_it_is_renewed() -> None:
    kept = Kept()
    kept.hold()
    kept.until(9.9)
    kept.store.error = UnavailableError("nobody is there")
    kept.until(26.9)
    assert kept.kinds() == []
    kept.until(27.1)
    assert kept.kinds() == [LeasePaused]
    kept.until(60)
    kept.store.error = None
    kept.until(61)
    assert kept.kinds() == [LeasePaused, LeaseRenewed]


def test_calls_that_hang_do_not_make_any_run_pause_late() -> None:
    """A call is given only the time that is left until the first pause."""
    kept = Kept()
    for name in "abcdefgh":
        kept.hold(name)
    kept.store.error = UnavailableError("nobody is there")
    kept.store.takes_s = 60.0
    paused_at: dict[str, float] = {}
    for name in "abcdefgh":
        kept.events[name] = _Watched(kept.clock, paused_at, name)
    for hold in kept.keeper._holds:
        hold.post = kept.events[hold.workflow_id].append
    kept.until(29)
    assert sorted(paused_at) == list("abcdefgh")
    assert max(paused_at.values()) <= 27.5


class _Watched(list[Event]):
    """Notes when a pause came."""

    def __init__(self, clock: FakeClock, paused_at: dict[str, float], name: str) -> None:
        super().__init__()
        self._clock, self._paused_at, self._name = clock, paused_at, name

    def append(self, event: Event, /) -> None:
        super().append(event)
        self._paused_at.setdefault(self._name, self._clock.monotonic())


def test_a_refused_token_ends_the_run() -> None:
    kept = Kept()
    kept.hold()
    kept.store.error = LeaseLostError("another was granted")
    kept.until(11)
    (event,) = kept.events["w"]
    assert isinstance(event, LeaseGone)
    assert isinstance(event.error, LeaseLostError)
    kept.until(60)
    assert len(kept.store.calls) == 1


def test_an_outage_is_waited_out_for_a_limited_time() -> None:
    kept = Kept()
    kept.hold()
    kept.until(10)
    kept.store.error = UnavailableError("nobody is there")
    kept.until(309)
    assert kept.kinds() == [LeasePaused]
    kept.until(312)
    assert kept.kinds() == [LeasePaused, LeaseGone]


def test_an_error_that_is_none_of_ours_is_an_outage_for_that_lease_alone(caplog: pytest.LogCaptureFixture) -> None:
    """An interceptor that cannot refresh its token raises what it likes; the keeper goes on for every run."""
    kept = Kept()
    kept.hold()
    kept.hold("other")
    kept.store.error = ConnectionResetError("no token")
    kept.until(60)
    assert kept.events == {"w": [LeasePaused()], "other": [LeasePaused()]}
    assert caplog.text.count("ConnectionResetError: no token") == 2, "once for each run, not for each try"
    kept.store.error = None
    kept.until(70)
    assert kept.events == {"w": [LeasePaused(), LeaseRenewed()], "other": [LeasePaused(), LeaseRenewed()]}


def test_pending_signals_are_passed_on() -> None:
    kept = Kept()
    kept.hold()
    kept.store.signals = (PendingSignal(signal_id="s", name="milepost.cancel"),)
    kept.until(11)
    assert kept.events["w"] == [SignalsPending(kept.store.signals, 1)]


def test_a_lease_that_was_dropped_is_renewed_no_more() -> None:
    kept = Kept()
    hold = kept.hold()
    kept.until(15)
    kept.keeper.drop(hold)
    kept.until(60)
    assert [at for at, _, _ in kept.store.calls] == [10]
    assert kept.keeper.tick() is None


def test_a_hung_run_does_not_keep_its_lease_for_ever() -> None:
    """Past the time its step could be ended in, the lease runs out; it is kept again when the step has ended."""
    kept = Kept()
    hold = kept.hold()
    step: Step[dict[str, Any]] = Step("s", sleeping, timeout_s=12.0)
    frame = RunFrame(namespace="", workflow_id="w", wall_clock=kept.clock.monotonic)
    attempt = Attempt(step, Entries.of({}, JSON), StateType(dict[str, Any]), frame, number=1)
    hold.began(attempt)
    kept.until(100)
    assert [at for at, _, _ in kept.store.calls] == [10, 20]
    assert kept.kinds() == [LeasePaused]
    hold.ended(attempt)
    kept.until(101)
    assert kept.kinds() == [LeasePaused, LeaseRenewed]
