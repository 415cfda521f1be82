"""A lease that renews itself, against a store that answers from a script."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import grpc
import pytest

from milepost import AsyncClient
from milepost._async import _compat
from milepost._async.lease import AsyncLease
from milepost._leases import LeaseState
from milepost._retry import RetryPolicy
from milepost.errors import LeaseHeldError, LeaseLostError, OutcomeUnknownError, UnavailableError
from milepost.testing import FakeClock
from milepost.types import LeaseInfo, LeaseRenewal, Record
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import lease_pb2
from tests.support.scripted_server import Abort, ScriptedServer, scripted_server

LOST = LeaseLostError("another one was granted since", reason="LEASE_LOST")
OUTAGE = UnavailableError("nobody there")
DEADLINE_S = 20.0


def info(*, ttl_s: float = 30.0, remaining_s: float | None = None) -> LeaseInfo:
    return LeaseInfo(
        workflow_id="w",
        token=7,
        holder="me",
        ttl_s=ttl_s,
        remaining_s=ttl_s if remaining_s is None else remaining_s,
        grant_time=datetime(2024, 1, 1, tzinfo=UTC),
    )


class ScriptedLeases:
    """Grants at once, answers renewals from a script and rings after each."""

    def __init__(self, *renewals: LeaseInfo | Exception, granted: LeaseInfo | None = None) -> None:
        self.clock = FakeClock()
        self.granted = granted or info(ttl_s=0.03)
        self.renewals = deque(renewals)
        self.grant_takes_s = 0.0
        self.release_error: Exception | None = None
        self.released: list[int] = []
        self.renewed = _compat.Bell()
        self.script_ended = _compat.Bell()

    async def acquire_lease(self, workflow_id: str, *, ttl_s: float, wait_s: float, holder: str | None) -> LeaseInfo:
        self.clock.advance(self.grant_takes_s)
        return self.granted

    async def renew_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> LeaseRenewal:
        assert token == 7
        answer = self.renewals.popleft() if self.renewals else self.granted
        self.renewed.ring()
        if not self.renewals:
            self.script_ended.ring()
        if isinstance(answer, Exception):
            raise answer
        return LeaseRenewal(lease=answer)

    async def release_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> bool:
        self.released.append(token)
        if self.release_error is not None:
            raise self.release_error
        return True

    def lease(self) -> AsyncLease:
        return AsyncLease(self, "w", ttl_s=30, wait_s=0, holder=None, clock=self.clock.monotonic)


class RingAtLoss(logging.Handler):
    """Rings when the log tells of a loss: the lease knows of it by then."""

    def __init__(self, bell: _compat.Bell) -> None:
        super().__init__()
        self._bell = bell

    def emit(self, record: logging.LogRecord) -> None:
        if "was lost" in record.getMessage():
            self._bell.ring()


@pytest.fixture
def lost() -> Iterator[_compat.Bell]:
    bell = _compat.Bell()
    handler = RingAtLoss(bell)
    logger = logging.getLogger("milepost.client")
    logger.addHandler(handler)
    yield bell
    logger.removeHandler(handler)


async def test_a_lease_is_renewed_until_its_block_ends_and_then_released() -> None:
    leases = ScriptedLeases()
    async with leases.lease() as lease:
        for _ in range(3):
            assert await leases.renewed.wait(DEADLINE_S)
        assert (lease.token, lease.lost, lease.info.holder) == (7, False, "me")
        assert leases.released == []
    assert leases.released == [7]


async def test_an_outage_is_not_a_loss() -> None:
    leases = ScriptedLeases(OUTAGE, OUTAGE, info(ttl_s=0.03))
    async with leases.lease() as lease:
        leases.clock.advance(0.05)
        assert not lease.is_valid
        assert await leases.script_ended.wait(DEADLINE_S)
        assert await leases.renewed.wait(DEADLINE_S)
        lease.check()
        assert (lease.lost, lease.is_valid) == (False, True)
    assert leases.released == [7]


async def test_what_an_interceptor_raises_is_not_a_loss_either() -> None:
    leases = ScriptedLeases(ConnectionResetError("no token"), RuntimeError("of another loop"), info(ttl_s=0.03))
    leases.release_error = ConnectionResetError("no token")
    async with leases.lease() as lease:
        leases.clock.advance(0.05)
        assert await leases.script_ended.wait(DEADLINE_S)
        assert await leases.renewed.wait(DEADLINE_S)
        assert lease.is_valid
    assert leases.released == [7]


async def test_a_refused_token_is_a_loss_told_at_the_end_of_the_block(lost: _compat.Bell) -> None:
    leases = ScriptedLeases(OUTAGE, LOST)
    with pytest.raises(LeaseLostError):  # noqa: PT012  the end of the block is what raises
        async with leases.lease() as lease:
            assert await lost.wait(DEADLINE_S)
            assert (lease.lost, lease.is_valid) == (True, False)
            with pytest.raises(LeaseLostError):
                lease.check()
    assert leases.released == [], "it is somebody else's now"


async def test_another_error_on_its_way_out_is_not_replaced_by_the_loss(lost: _compat.Bell) -> None:
    leases = ScriptedLeases(LOST)
    with pytest.raises(ValueError, match="mine"):  # noqa: PT012  as above
        async with leases.lease():
            assert await lost.wait(DEADLINE_S)
            raise ValueError("mine")


async def test_the_ttl_is_counted_from_before_the_request() -> None:
    leases = ScriptedLeases(*[OUTAGE] * 1_000, granted=info(ttl_s=30))
    leases.grant_takes_s = 12.0
    async with leases.lease() as lease:
        leases.clock.advance(17.9)
        still_valid = lease.is_valid
        leases.clock.advance(0.2)
        assert (still_valid, lease.is_valid, lease.lost) == (True, False, False)


async def test_a_lease_that_cannot_be_released_ends_its_block_all_the_same() -> None:
    leases = ScriptedLeases(granted=info(ttl_s=30))
    leases.release_error = OUTAGE
    async with leases.lease():
        pass
    assert leases.released == [7]


async def test_a_lease_is_for_one_block() -> None:
    leases = ScriptedLeases(granted=info(ttl_s=30))
    lease = leases.lease()
    for ask in (lambda: lease.token, lambda: lease.info, lease.check):
        with pytest.raises(RuntimeError, match="with block"):
            ask()
    assert (lease.is_valid, lease.lost, lease.workflow_id) == (False, False, "w")
    async with lease:
        pass
    with pytest.raises(RuntimeError, match="used already"):
        async with lease:
            pass


def test_renewal_is_due_at_a_third_of_the_ttl_and_at_once_where_the_grant_was_waited_for() -> None:
    clock = FakeClock()
    state = LeaseState(info(ttl_s=30), asked_at=clock.monotonic(), clock=clock.monotonic)
    assert state.renew_in_s == 10
    clock.advance(4)
    assert state.renew_in_s == 6
    clock.advance(20)
    assert state.renew_in_s == 0
    state.renewed(info(ttl_s=30), asked_at=24.0)
    assert (state.renew_in_s, state.valid_for_s) == (10, 30)
    state.lost(LOST)
    assert state.valid_for_s == 0


# Over the wire.

HELD = Abort(grpc.StatusCode.ABORTED, "LEASE_HELD", workflow_id="w", holder="web-3", remaining_ms="1500")
REFUSED = Abort(grpc.StatusCode.ABORTED, "LEASE_LOST", workflow_id="w")
GRANTED = pb.AcquireLeaseResponse(lease=lease_pb2.Lease(token=7, holder="me", ttl_ms=30_000, remaining_ms=29_500))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, timeout_s=20, retry=RetryPolicy(attempts_max=4)) as client:
        client._sleep = no_sleep
        yield client


async def no_sleep(pause_s: float) -> None:
    """Stand in for the pause between attempts."""


async def test_a_retried_request_for_a_lease_is_the_same_request(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("AcquireLease", Abort(grpc.StatusCode.UNAVAILABLE), GRANTED, GRANTED)
    granted = await client.acquire_lease("w", ttl_s=30)
    await client.acquire_lease("w", ttl_s=30)
    first, again, other = server.asked("AcquireLease")
    assert first == again
    assert first.request_id
    assert first.request_id != other.request_id
    assert (first.ttl_ms, first.wait_ms) == (30_000, 0)
    assert ":" in first.holder
    assert (granted.token, granted.ttl_s, granted.remaining_s) == (7, 30.0, 29.5)


async def test_a_long_wait_is_several_calls_of_one_request(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("AcquireLease", HELD, HELD, GRANTED)
    await client.acquire_lease("w", wait_s=130, timeout_s=90)
    asked = server.asked("AcquireLease")
    assert [request.wait_ms for request in asked] == [60_000, 60_000, 10_000]
    assert len({request.request_id for request in asked}) == 1


async def test_no_part_of_a_wait_is_longer_than_the_time_for_a_call(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.on("AcquireLease", HELD, HELD)
    with pytest.raises(LeaseHeldError) as caught:
        await client.acquire_lease("w", wait_s=30)
    assert [request.wait_ms for request in server.asked("AcquireLease")] == [20_000, 10_000]
    assert (caught.value.holder, caught.value.remaining_s) == ("web-3", 1.5)


async def test_only_a_save_that_was_refused_is_known_not_to_be_stored(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """A save looks for its twin before it looks at the lease; records and deletes do not."""
    lost_answer = Abort(grpc.StatusCode.UNAVAILABLE)
    for method in ("Save", "AppendRecords", "DeleteWorkflow"):
        server.on(method, lost_answer, REFUSED)
    with pytest.raises(LeaseLostError):
        await client.save("w", state={}, lease_token=7)
    with pytest.raises(OutcomeUnknownError):
        await client.append_records("w", "c", [Record()], lease_token=7)
    with pytest.raises(OutcomeUnknownError):
        await client.delete("w", lease_token=7)
    server.on("AppendRecords", REFUSED)
    with pytest.raises(LeaseLostError):
        await client.append_records("w", "c", [Record()], lease_token=7)


async def test_what_a_save_does_not_use_is_not_sent(server: ScriptedServer, client: AsyncClient) -> None:
    answer = pb.SaveResponse(checkpoint_id="c", sequence=1, lease_remaining_ms=1_500)
    server.on("Save", answer, answer)
    await client.save("w", state={})
    saved = await client.save(
        "w", state={}, lease_token=7, release_lease=True, consumed_signals=["s1"], fingerprint="f", manifest="{}"
    )
    plain, full = server.asked("Save")
    names = {"lease_token", "release_lease", "consumed_signals", "manifest"}
    assert not names & {field.name for field, _ in plain.ListFields()}
    assert (full.lease_token, full.release_lease, list(full.consumed_signals), full.manifest) == (7, True, ["s1"], "{}")
    assert saved.lease_remaining_s == 1.5
    with pytest.raises(TypeError, match="consumed_signals"):
        await client.save("w", state={}, consumed_signals="s1")


async def test_a_signal_that_is_sent_again_keeps_its_id(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("SendSignal", Abort(grpc.StatusCode.UNAVAILABLE), pb.SendSignalResponse(replayed=True, revision=5))
    sent = await client.send_signal("w", "go", {"n": 1})
    first, again = server.asked("SendSignal")
    assert first == again
    assert (sent.signal_id, sent.replayed, sent.revision) == (first.signal_id, True, 5)
