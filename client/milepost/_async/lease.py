"""A lease that renews itself while a block of code runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from typing_extensions import override

from milepost._async import _compat
from milepost._leases import LeaseState
from milepost.errors import LeaseLostError
from milepost.types import LeaseInfo, LeaseRenewal

logger = logging.getLogger("milepost.client")


class AsyncLeaseStore(Protocol):
    """What a lease asks of the store that granted it."""

    async def acquire_lease(
        self,
        workflow_id: str,
        *,
        ttl_s: float,
        wait_s: float,
        holder: str | None,
    ) -> LeaseInfo:
        """Take the lease, or wait for it."""
        ...

    async def renew_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> LeaseRenewal:
        """Keep the lease for another ttl."""
        ...

    async def release_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> bool:
        """Give the lease back."""
        ...


class AsyncLease:
    """The exclusive right to advance a workflow, for the length of a block. Made by `lease()` of a client or store.

    It is taken when the block begins, renewed beside it at a third of its ttl, and released at its end. While the
    store cannot be reached it is not lost: the newest token may renew also after the ttl, as long as nobody else has
    acted. Once the store refuses the token it is lost, for good.

    Pass `token` to every save in the block: the store then refuses them if somebody else has the lease. Nothing here
    stops the block's own code; `check()` is for that.
    """

    def __init__(
        self,
        store: AsyncLeaseStore,
        workflow_id: str,
        *,
        ttl_s: float,
        wait_s: float,
        holder: str | None,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._ttl_s = ttl_s
        self._wait_s = wait_s
        self._holder = holder
        self._clock = clock
        self._state: LeaseState | None = None
        self._is_cut_off = False
        self._heartbeat = _compat.Heartbeat(self._renew, f"milepost-lease-{workflow_id}")

    @property
    def workflow_id(self) -> str:
        """The run; the lease covers all its scopes."""
        return self._workflow_id

    @property
    def token(self) -> int:
        """The fencing token, for `lease_token` of saves.

        Raises:
            RuntimeError: The block has not begun.
        """
        return self.info.token

    @property
    def info(self) -> LeaseInfo:
        """The lease as the store last told of it; counted from then, `remaining_s` grows old.

        Raises:
            RuntimeError: The block has not begun.
        """
        return self._held.info

    @property
    def is_valid(self) -> bool:
        """It surely holds now: less than its ttl has passed since before it was last renewed, and it was not lost.

        False does not mean that it was lost.
        """
        return self._state is not None and self._state.valid_for_s > 0

    @property
    def lost(self) -> bool:
        """The store has refused the token: somebody else may be advancing the workflow."""
        return self._state is not None and self._state.loss is not None

    def check(self) -> None:
        """Raise if the lease was lost. Asks nobody.

        Raises:
            LeaseLostError: The store has refused the token.
            RuntimeError: The block has not begun.
        """
        loss = self._held.loss
        if loss is not None:
            raise loss

    async def __aenter__(self) -> Self:
        if self._state is not None:
            raise RuntimeError(f"{self!r} was used already: make a new one with lease()")
        asked_at = self._clock()
        info = await self._store.acquire_lease(
            self._workflow_id, ttl_s=self._ttl_s, wait_s=self._wait_s, holder=self._holder
        )
        self._state = LeaseState(info, asked_at=asked_at, clock=self._clock)
        self._heartbeat.start(self._state.renew_in_s)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await _compat.to_its_end(self._end)
        loss = self._held.loss
        if loss is not None and error is None:
            raise loss

    async def _end(self) -> None:
        await self._heartbeat.stop()
        if self._held.loss is not None:
            return
        try:
            await self._store.release_lease(self._workflow_id, self.token, timeout_s=self._held.release_timeout_s)
        except Exception as failure:  # noqa: BLE001
            # It runs out by itself; what the block has done is done.
            logger.warning("lease of workflow %r could not be released: %r", self._workflow_id, failure)

    @override
    def __repr__(self) -> str:
        state = self._state
        told = "not taken" if state is None else "lost" if self.lost else f"holder={state.info.holder!r}"
        return f"{type(self).__name__}({self._workflow_id!r}, {told})"

    @property
    def _held(self) -> LeaseState:
        if self._state is None:
            raise RuntimeError(f"{self!r}: it is taken when its with block begins")
        return self._state

    async def _renew(self) -> float | None:
        """Renew once; return the pause before the next time."""
        state = self._held
        asked_at = self._clock()
        try:
            renewal = await self._store.renew_lease(
                self._workflow_id, state.info.token, timeout_s=state.renewal_timeout_s
            )
        except LeaseLostError as error:
            state.lost(error)
            logger.warning("lease of workflow %r was lost: %s", self._workflow_id, error)
            return None
        # The client's interceptors may raise anything at all, and that says no more of the lease than an outage does.
        except Exception as error:  # noqa: BLE001
            # Once for an outage, however long it lasts.
            level = logging.DEBUG if self._is_cut_off else logging.WARNING
            logger.log(level, "lease of workflow %r could not be renewed yet: %r", self._workflow_id, error)
            self._is_cut_off = True
            return state.retry_in_s
        if self._is_cut_off:
            self._is_cut_off = False
            logger.info("lease of workflow %r is renewed again", self._workflow_id)
        state.renewed(renewal.lease, asked_at=asked_at)
        return state.renew_in_s
