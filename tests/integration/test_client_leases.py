"""Leases, signals and watches of the clients when servers and holders are killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc.aio
import pytest

from milepost import (
    AsyncClient,
    Client,
    LeaseHeldError,
    LeaseLostError,
    RetryPolicy,
    UnavailableError,
    WatchCompactedError,
    WatchEventKind,
)
from milepost.testing import LocalServer, local_server

DEADLINE_S = 30.0
PATIENT = RetryPolicy(attempts_max=1_000, backoff_max_s=0.1)
HOLDER = """
import sys, time
from milepost import Client
client = Client(sys.argv[1])
lease = client.lease("w", ttl_s=1, holder="doomed")
lease.__enter__()
client.save("w", state={"n": 1}, lease_token=lease.token)
print(lease.token, flush=True)
time.sleep(600)
"""


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.target, retry=PATIENT) as client:
        yield client


@pytest.mark.slow
def test_the_lease_of_a_killed_holder_is_kept_alive_until_then_and_falls_to_who_waits(
    server: LocalServer, client: Client
) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, server.target], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        token = int(process.stdout.readline())
        # More than two of its times to live: the holder renews.
        with pytest.raises(LeaseHeldError) as caught:
            client.acquire_lease("w", wait_s=2.5)
        assert caught.value.holder == "doomed"
        process.kill()
        process.wait(DEADLINE_S)
    with client.lease("w", wait_s=DEADLINE_S) as lease:
        assert lease.token > token
        with pytest.raises(LeaseLostError):
            client.save("w", state={"n": 9}, lease_token=token)
        client.save("w", state={"n": 2}, lease_token=lease.token)
    assert client.load("w").state == {"n": 2}


@pytest.mark.slow
def test_a_lease_outlives_a_killed_server(server: LocalServer, client: Client) -> None:
    with client.lease("w", ttl_s=1) as lease:
        server.kill()
        server.restart()
        client.save("w", state={"n": 1}, lease_token=lease.token)
        with Client(server.target) as other, pytest.raises(LeaseHeldError):
            other.save("w", state={"n": 2})
        assert not lease.lost
    assert client.get_lease("w") is None


@pytest.mark.slow
async def test_an_async_lease_is_renewed_beside_its_block(server: LocalServer) -> None:
    async with AsyncClient(server.target) as client, AsyncClient(server.target) as other:
        async with client.lease("w", ttl_s=1) as lease:
            with pytest.raises(LeaseHeldError):
                await other.acquire_lease("w", wait_s=2.5)
            assert lease.is_valid
        assert (await other.acquire_lease("w")).token > lease.token


@pytest.mark.slow
def test_a_lease_that_is_broken_is_noticed_beside_the_block(server: LocalServer, client: Client) -> None:
    with (  # noqa: PT012  the end of the block is what raises
        pytest.raises(LeaseLostError),
        client.lease("w", ttl_s=1) as lease,
        Client(server.target) as other,
    ):
        other.break_lease("w")
        # The next one is granted only after the first one's time: by then its renewal was refused.
        taken = other.acquire_lease("w", ttl_s=1)
        with pytest.raises(LeaseHeldError):
            other.acquire_lease("w", wait_s=0.8)
        assert other.renew_lease("w", taken.token).lease.token == taken.token
        assert lease.lost


def test_who_waits_is_woken_by_the_release(server: LocalServer, client: Client) -> None:
    mine = client.acquire_lease("w", ttl_s=3_600)
    granted: list[int] = []
    waiter = threading.Thread(
        target=lambda: granted.append(client.acquire_lease("w", wait_s=DEADLINE_S, holder="waiter").token)
    )
    waiter.start()
    with pytest.raises(LeaseHeldError):
        client.acquire_lease("w", wait_s=0.05)
    client.release_lease("w", mine.token)
    waiter.join(DEADLINE_S)
    assert granted
    assert granted[0] > mine.token


@pytest.mark.slow
def test_a_watch_goes_on_when_the_server_is_restarted(server: LocalServer, client: Client) -> None:
    first = client.save("w", state={"n": 1}, after="start")
    with client.watch("w") as events, client.watch() as everything:
        assert next(events).revision == next(everything).revision + 1 == 1
        server.kill()
        server.restart()
        client.save("w", state={"n": 2}, after=first)
        told = next(events)
        assert (told.kind, told.revision) == (WatchEventKind.SAVED, 2)
        assert next(everything).kind is WatchEventKind.STARTED


@pytest.mark.slow
def test_what_a_restart_has_made_unknown_is_said(server: LocalServer, client: Client) -> None:
    client.save("w", state={"n": 1})
    before = client.workflow("w")
    client.save("w", state={"n": 2})
    server.kill()
    server.restart()
    with client.watch("w", after=before) as events, pytest.raises(WatchCompactedError):
        next(events)
    with client.watch("w", after=client.workflow("w")) as events:
        assert next(events).kind is WatchEventKind.STARTED


def test_a_watch_ends_when_its_thread_is_told_to(client: Client) -> None:
    events = client.watch()
    next(events)
    seen: list[object] = []
    reader = threading.Thread(target=lambda: seen.extend(events))
    reader.start()
    events.close()
    reader.join(DEADLINE_S)
    assert not reader.is_alive()
    assert seen == []


def test_a_watch_of_a_closed_client_is_over(server: LocalServer) -> None:
    client = Client(server.target)
    events = client.watch()
    next(events)
    threading.Timer(0.1, client.close).start()
    with pytest.raises((UnavailableError, RuntimeError)):
        next(events)


async def test_a_reader_of_a_watch_that_was_cancelled_may_read_on(server: LocalServer) -> None:
    async with AsyncClient(server.target) as client, client.watch("w") as events:
        await client.save("w", state={"n": 1})
        assert (await anext(events)).revision == 1
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(events)
        await client.save("w", state={"n": 2})
        await client.save("w", state={"n": 3})
        assert [(await anext(events)).revision for _ in range(2)] == [2, 3]


class CutsOff(grpc.aio.UnaryUnaryClientInterceptor):
    """Does something each time that an answer is there and its caller has not seen it yet."""

    def __init__(self, act: Callable[[str], object]) -> None:
        self.act = act
        self.answered: list[str] = []

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        await call
        self.answered.append(details.method.rpartition(b"/")[2].decode())
        self.act(self.answered[-1])
        return call


@pytest.mark.parametrize("wait_s", [0.0, DEADLINE_S])
async def test_a_lease_whose_answer_is_cut_off_is_given_back(server: LocalServer, wait_s: float) -> None:
    """The server had granted it and nobody knew; also where the task is cancelled again meanwhile."""
    cuts = CutsOff(lambda method: task.cancel())

    async def work(client: AsyncClient) -> None:
        async with client.lease("w", wait_s=wait_s):
            pytest.fail("the block began")

    async with AsyncClient(server.target, interceptors=[cuts]) as client, AsyncClient(server.target) as other:
        task = asyncio.ensure_future(work(client))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cuts.answered == ["AcquireLease", "AcquireLease", "ReleaseLease"]
        assert await other.get_lease("w") is None


async def test_a_block_that_is_cancelled_at_its_end_gives_its_lease_back(server: LocalServer) -> None:
    async def work(client: AsyncClient) -> None:
        async with client.lease("w"):
            # At the first wait from here on, which is that for the end of the heartbeat.
            task.cancel()

    async with AsyncClient(server.target) as client:
        task = asyncio.ensure_future(work(client))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.get_lease("w") is None


async def test_a_wait_for_a_lease_that_is_cut_off_takes_nothing_from_who_has_it(server: LocalServer) -> None:
    async with AsyncClient(server.target) as client:
        async with client.lease("w") as lease:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.acquire_lease("w", wait_s=DEADLINE_S)
            await client.save("w", state={}, lease_token=lease.token)
        assert await client.get_lease("w") is None


async def test_a_lease_that_cannot_be_given_back_does_not_hide_what_cut_it_off(
    server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    def cut_off_then_fail(method: str) -> None:
        if len(cuts.answered) > 1:
            raise RuntimeError("an interceptor's own")
        task.cancel()

    cuts = CutsOff(cut_off_then_fail)
    async with AsyncClient(server.target, interceptors=[cuts]) as client:
        task = asyncio.ensure_future(client.acquire_lease("w"))
        with pytest.raises(asyncio.CancelledError):
            await task
    assert "lease of workflow 'w' may have been granted and could not be released" in caplog.text
