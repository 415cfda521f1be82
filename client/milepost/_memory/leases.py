"""The leases of the in-memory store: who may advance a workflow, under which token, until when.

A lease that has run out stays until somebody else acts, so that its holder may go on. Nothing here waits, and the
caller holds the core's lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from milepost._memory.checks import CLASS_BY_REASON
from milepost.errors import InvalidRequestError, MilepostError
from milepost.types import LeaseInfo

TTL_S_MIN: Final = 1.0
TTL_S_MAX: Final = 3_600.0
_FIRST_TOKEN: Final = (1 << 32) + 1
"""Looks like a server's: an epoch in the upper half, a counter in the lower."""


@dataclass(slots=True)
class _Lease:
    token: int = field(repr=False)
    holder: str
    ttl: timedelta
    request_id: str
    grant_time: datetime
    expires: datetime


class LeaseTable:
    """At most one lease for each workflow id, whether or not there is such a workflow."""

    def __init__(self, namespace: str, clock: Callable[[], datetime]) -> None:
        self._namespace = namespace
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._tokens = itertools.count(_FIRST_TOKEN)

    def acquire(self, workflow_id: str, *, holder: str, ttl_s: float, request_id: str) -> tuple[LeaseInfo, bool]:
        """Grant the lease; tell whether this very request had been granted before.

        Raises:
            LeaseHeldError: Somebody else's is live.
            InvalidRequestError: The ttl or a text is out of bounds.
        """
        if not TTL_S_MIN <= ttl_s <= TTL_S_MAX:
            raise self._invalid(workflow_id, "ttl_ms", f"ttl_s is {TTL_S_MIN:.0f} to {TTL_S_MAX:.0f}, not {ttl_s}")
        lease = self._leases.get(workflow_id)
        if lease is not None and request_id and lease.request_id == request_id:
            return self._info(workflow_id, lease, token=lease.token), True
        now = self._clock()
        if lease is not None and lease.expires > now:
            raise self._held(workflow_id, lease, now)
        ttl = timedelta(seconds=ttl_s)
        lease = _Lease(next(self._tokens), holder, ttl, request_id, now, now + ttl)
        self._leases[workflow_id] = lease
        return self._info(workflow_id, lease, token=lease.token), False

    def renew(self, workflow_id: str, token: int) -> LeaseInfo:
        """Let the lease run its full ttl from now.

        Raises:
            LeaseLostError: The token is not that of the newest lease.
        """
        lease = self._require(workflow_id, token)
        lease.expires = self._clock() + lease.ttl
        return self._info(workflow_id, lease, token=token)

    def release(self, workflow_id: str, token: int) -> bool:
        """End the lease, if that token has it; tell whether it had."""
        lease = self._leases.get(workflow_id)
        if lease is None or lease.token != token:
            return False
        del self._leases[workflow_id]
        return True

    def clear(self, workflow_id: str) -> bool:
        """End whatever lease there is; tell whether there was one."""
        return self._leases.pop(workflow_id, None) is not None

    def find(self, workflow_id: str) -> LeaseInfo | None:
        """Return the lease without its token, also where it has run out and nobody else has acted."""
        lease = self._leases.get(workflow_id)
        return None if lease is None else self._info(workflow_id, lease)

    def find_live(self, workflow_id: str) -> LeaseInfo | None:
        """Return the lease without its token, unless it has run out."""
        info = self.find(workflow_id)
        return info if info is not None and info.remaining_s > 0 else None

    def check(self, workflow_id: str, token: int) -> None:
        """Refuse a change that needs the lease and has it not. Changes nothing.

        Raises:
            LeaseHeldError: No token was given, and a lease is live.
            LeaseLostError: The token is not that of the newest lease.
        """
        if token:
            self._require(workflow_id, token)
            return
        lease, now = self._leases.get(workflow_id), self._clock()
        if lease is not None and lease.expires > now:
            raise self._held(workflow_id, lease, now)

    def settle(self, workflow_id: str, token: int, *, release: bool = False) -> float:
        """Do to the lease what an accepted change does: renew the holder's, end one that had run out.

        Returns:
            How long the lease of `token` runs from now on, in seconds; 0 where there is none.
        """
        if not token or release:
            self.clear(workflow_id)
            return 0.0
        return self.renew(workflow_id, token).remaining_s

    def remaining_s(self, workflow_id: str, token: int) -> float:
        """Return how long the lease of this token still runs; 0 where it is not the newest."""
        lease = self._leases.get(workflow_id)
        if lease is None or not token or lease.token != token:
            return 0.0
        return self._info(workflow_id, lease).remaining_s

    def _require(self, workflow_id: str, token: int) -> _Lease:
        lease = self._leases.get(workflow_id)
        if lease is None or lease.token != token:
            raise self._error(
                "LEASE_LOST",
                f"the token is not that of the newest lease of workflow {workflow_id!r}: another was granted since, or "
                "it was released or broken",
                workflow_id,
            )
        return lease

    def _invalid(self, workflow_id: str, field_name: str, message: str) -> InvalidRequestError:
        return InvalidRequestError(
            message,
            reason="INVALID_FIELD",
            namespace=self._namespace,
            workflow_id=workflow_id,
            metadata={"field": field_name},
        )

    def _held(self, workflow_id: str, lease: _Lease, now: datetime) -> MilepostError:
        remaining_ms = round((lease.expires - now).total_seconds() * 1_000)
        return self._error(
            "LEASE_HELD",
            f"workflow {workflow_id!r} is held by {lease.holder!r} for another {remaining_ms / 1_000:.3f} s",
            workflow_id,
            holder=lease.holder,
            remaining_ms=str(remaining_ms),
        )

    def _error(self, reason: str, message: str, workflow_id: str, **metadata: str) -> MilepostError:
        return CLASS_BY_REASON[reason](
            message,
            reason=reason,
            namespace=self._namespace,
            workflow_id=workflow_id,
            metadata={"workflow_id": workflow_id, **metadata},
        )

    def _info(self, workflow_id: str, lease: _Lease, *, token: int = 0) -> LeaseInfo:
        return LeaseInfo(
            namespace=self._namespace,
            workflow_id=workflow_id,
            token=token,
            holder=lease.holder,
            ttl_s=lease.ttl.total_seconds(),
            remaining_s=max(0.0, (lease.expires - self._clock()).total_seconds()),
            grant_time=lease.grant_time,
        )
