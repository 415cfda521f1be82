"""Heartbeats: keeps the leases of a runner's runs alive, from one thread of its own.

A run may be busy for long: in a step, in a garbage collection, waiting for a lock of the interpreter. So its lease is
not renewed by the thread that runs it. The keeper says three things to a run: pause (the lease may run out before the
store answers), go on, and gone. It counts a lease's time from before the request that granted it was sent, so that it
never relies on a lease longer than the store does.

`tick` is everything the keeper does, and reads the clock it was given; the thread only calls it when it is time.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from milepost.errors import LeaseLostError, MilepostError
from milepost.runner.attempt import Attempt
from milepost.runner.context import logger
from milepost.runner.events import Event, LeaseGone, LeasePaused, LeaseRenewed, SignalsPending
from milepost.runner.settings import Settings
from milepost.types import LeaseRenewal

__all__ = ["Hold", "LeaseKeeper", "RenewsLeases"]

IDLE_S: Final = 1.0
"""How long the thread stays without a lease to keep."""
RETRY_S: Final = 0.5
"""Wait between two tries of a renewal that met no answer."""
CALL_MAX_S: Final = 5.0
CALL_MIN_S: Final = 0.5


class RenewsLeases(Protocol):
    """The store as the keeper sees it: may be called from its thread."""

    def renew_lease(self, workflow_id: str, token: int) -> LeaseRenewal:
        """Keep the lease for another ttl."""
        ...


class Hold:
    """One lease that is kept."""

    __slots__ = (
        "_clock",
        "_limits",
        "_settings",
        "has_failed",
        "is_dropped",
        "is_paused",
        "next_try_at",
        "post",
        "renewed_at",
        "token",
        "workflow_id",
    )

    def __init__(
        self,
        workflow_id: str,
        token: int,
        asked_at: float,
        *,
        post: Callable[[Event], None],
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.workflow_id = workflow_id
        self.token = token
        self.post = post
        self.renewed_at = asked_at
        self.next_try_at = asked_at
        self._limits: dict[Attempt, float] = {}
        self.has_failed = False
        self.is_paused = False
        self.is_dropped = False

    def began(self, attempt: Attempt) -> None:
        """Note an attempt. The engine gives it up in time; where even that has hung, the lease is not kept for ever."""
        timeout_s = attempt.step.timeout_s
        if timeout_s is not None:
            given_s = timeout_s + self._settings.grace_s + self._settings.lease_margin_s
            self._limits[attempt] = self._clock() + given_s

    def ended(self, attempt: Attempt) -> None:
        """Note that an attempt has ended, or was given up."""
        self._limits.pop(attempt, None)

    @property
    def renew_until(self) -> float:
        """When the run has hung: from then on the lease is left to run out."""
        return min(list(self._limits.values()), default=float("inf"))

    def renewed(self, asked_at: float) -> None:
        """Note that a save has renewed the lease; the time is from before it was sent."""
        self.renewed_at = max(self.renewed_at, asked_at)


class LeaseKeeper:
    """Keeps leases until they are dropped.

    Args:
        connect: Opens what to renew with, in the keeper's thread; it has a `close` if it is to be closed there.
    """

    def __init__(self, connect: Callable[[], RenewsLeases], settings: Settings, clock: Callable[[], float]) -> None:
        self._connect = connect
        self._settings = settings
        self._clock = clock
        self._condition = threading.Condition()
        self._holds: set[Hold] = set()
        self._thread: threading.Thread | None = None
        self._store: RenewsLeases | None = None
        self._takes_timeout = False

    def hold(self, workflow_id: str, token: int, asked_at: float, post: Callable[[Event], None]) -> Hold:
        """Keep a lease that was granted.

        Args:
            asked_at: Reading of the clock from before the request was sent.
            post: Tells the run; called from the keeper's thread.
        """
        hold = Hold(workflow_id, token, asked_at, post=post, settings=self._settings, clock=self._clock)
        hold.next_try_at = asked_at + self._settings.lease_ttl_s / 3
        with self._condition:
            self._holds.add(hold)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="milepost-lease-keeper", daemon=True)
                self._thread.start()
            # A thread that sleeps until another lease's time may be late for this one only if this one's is sooner.
            elif len(self._holds) == 1:
                self._condition.notify()
        return hold

    def drop(self, hold: Hold) -> None:
        """Keep a lease no longer. It may still be renewed once, by a call that is on its way."""
        with self._condition:
            hold.is_dropped = True
            self._holds.discard(hold)
            if not self._holds:
                # Else it would sleep on until this one's time: a program that binds for each run has a keeper for each.
                self._condition.notify()

    def tick(self) -> float | None:
        """Do what is due, and return the reading of the clock at which something is again; None: nothing is kept."""
        settings = self._settings
        interval_s = settings.lease_ttl_s / 3
        safe_s = settings.lease_ttl_s - settings.lease_margin_s
        with self._condition:
            holds = [*self._holds]
        for hold in holds:
            self._pause_if_due(hold, safe_s)
        for hold in holds:
            now = self._clock()
            due_at = max(hold.next_try_at, hold.renewed_at + interval_s) if not hold.is_paused else hold.next_try_at
            if hold.is_dropped or now < due_at or now >= hold.renew_until:
                continue
            self._renew(hold, interval_s)
            for other in holds:
                self._pause_if_due(other, safe_s)
        moments = []
        for hold in holds:
            if hold.is_dropped:
                continue
            if self._clock() < hold.renew_until:
                moments.append(
                    hold.next_try_at if hold.is_paused else max(hold.next_try_at, hold.renewed_at + interval_s)
                )
            if not hold.is_paused:
                moments.append(hold.renewed_at + safe_s)
        return min(moments, default=None)

    def _pause_if_due(self, hold: Hold, safe_s: float) -> None:
        if hold.is_paused or hold.is_dropped or self._clock() < hold.renewed_at + safe_s:
            return
        hold.is_paused = True
        hold.next_try_at = self._clock()
        logger.warning("workflow %r: its lease may run out before the store answers; the run pauses", hold.workflow_id)
        hold.post(LeasePaused())

    def _renew(self, hold: Hold, interval_s: float) -> None:
        asked_at = self._clock()
        try:
            renewal = self._call(hold)
        except LeaseLostError as error:
            self._gone(hold, error)
            return
        # A store and the interceptors of a client are a program's own, and may raise anything at all. That tells no
        # more of the lease than an outage does; let out, it would end the heartbeats of every run.
        except Exception as error:  # noqa: BLE001
            if not isinstance(error, MilepostError) and not hold.has_failed:
                logger.warning("workflow %r: its lease could not be renewed", hold.workflow_id, exc_info=error)
            hold.has_failed = True
            if asked_at - hold.renewed_at >= self._settings.outage_limit_s:
                self._gone(hold, error)
                return
            hold.next_try_at = self._clock() + min(RETRY_S, interval_s / 2)
            return
        hold.has_failed = False
        hold.renewed(asked_at)
        hold.next_try_at = asked_at + interval_s
        if hold.is_paused:
            hold.is_paused = False
            logger.info("workflow %r: its lease is renewed; the run goes on", hold.workflow_id)
            hold.post(LeaseRenewed())
        if renewal.pending_signal_count:
            hold.post(SignalsPending(renewal.pending_signals, renewal.pending_signal_count))

    def _call(self, hold: Hold) -> LeaseRenewal:
        store = self._store
        if store is None:
            store = self._store = self._connect()
            self._takes_timeout = "timeout_s" in inspect.signature(store.renew_lease).parameters
        if not self._takes_timeout:
            return store.renew_lease(hold.workflow_id, hold.token)
        # No call may make the keeper late for another run's pause by more than a moment.
        safe_s = self._settings.lease_ttl_s - self._settings.lease_margin_s
        with self._condition:
            pauses = [one.renewed_at + safe_s for one in self._holds if not one.is_paused]
        left_s = min(pauses, default=float("inf")) - self._clock()
        timeout_s = max(CALL_MIN_S, min(CALL_MAX_S, left_s))
        renew: Any = store.renew_lease
        renewal: LeaseRenewal = renew(hold.workflow_id, hold.token, timeout_s=timeout_s)
        return renewal

    def _gone(self, hold: Hold, error: Exception) -> None:
        self.drop(hold)
        hold.post(LeaseGone(error))

    def _work(self) -> None:
        try:
            self._keep()
        except BaseException:
            # Without heartbeats the leases run out while their runs go on: they must know.
            logger.exception("the lease keeper failed")
            with self._condition:
                holds, self._thread = [*self._holds], None
            for hold in holds:
                self._gone(hold, LeaseLostError("the heartbeat thread failed", workflow_id=hold.workflow_id))
            raise

    def _keep(self) -> None:
        store: RenewsLeases | None = None
        while True:
            due_at = self.tick()
            with self._condition:
                if not self._holds:
                    self._condition.wait(IDLE_S)
                    if not self._holds:
                        self._thread = None
                        store, self._store = self._store, None
                        break
                elif due_at is not None and (wait_s := due_at - self._clock()) > 0:
                    # Woken at least every interval: a lease that came meanwhile is due no sooner.
                    self._condition.wait(min(wait_s, self._settings.lease_ttl_s / 3))
        close = getattr(store, "close", None)
        if close is not None:
            close()
