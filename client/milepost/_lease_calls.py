"""What the clients say and hear about leases. Sans-IO, as `_calls`."""

from __future__ import annotations

import math
from typing import Final

from milepost import _calls
from milepost._texts import build
from milepost.errors import InvalidRequestError
from milepost.types import LeaseInfo, LeaseRenewal
from milepost.v1 import checkpoint_store_pb2 as pb

WAIT_S_MAX: Final = 60.0
"""Longest wait of one call; longer ones are several calls."""


def acquire_request(
    namespace: str, workflow_id: str, *, ttl_s: float, wait_s: float, holder: str, request_id: str
) -> pb.AcquireLeaseRequest:
    """Return a request for a lease, without its wait.

    Raises:
        InvalidRequestError: A time makes no sense.
    """
    # On the wire a ttl of 0 is the server's default; from a caller it is a mistake.
    for name, seconds, is_wrong in (("ttl_s", ttl_s, not 0 < ttl_s < math.inf), ("wait_s", wait_s, not wait_s >= 0)):
        if is_wrong:
            raise InvalidRequestError(
                f"acquire_lease of workflow {workflow_id!r}: {name} is a number of seconds, not {seconds}",
                reason="INVALID_FIELD",
                namespace=namespace,
                workflow_id=workflow_id,
                metadata={"field": name},
            )
    return build(
        pb.AcquireLeaseRequest,
        namespace=namespace,
        workflow_id=workflow_id,
        holder=holder,
        # At least 1, so that a ttl that is too short is refused and not taken for the default.
        ttl_ms=max(1, round(ttl_s * 1_000)),
        request_id=request_id,
    )


def renewal(response: pb.RenewLeaseResponse, namespace: str, workflow_id: str) -> LeaseRenewal:
    """Return a renewal as programs see it."""
    return LeaseRenewal(
        lease=_calls.read_lease(response.lease, namespace, workflow_id),
        pending_signals=_calls.read_pending(response),
        pending_signal_count=response.pending_signal_count,
    )


def lease(response: pb.GetLeaseResponse, namespace: str, workflow_id: str) -> LeaseInfo | None:
    """Return a lease as programs see it; None where there is none."""
    return _calls.read_lease(response.lease, namespace, workflow_id) if response.HasField("lease") else None
