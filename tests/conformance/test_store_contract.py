"""Every store that the package ships passes the contract: in memory and, through both clients, a real server."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

pytest.register_assert_rewrite("milepost.testing.store_contract")

from milepost import AsyncClient, Client  # noqa: E402  asserts are rewritten at import
from milepost.memory import AsyncInMemoryStore, InMemoryStore  # noqa: E402
from milepost.testing import FakeClock, LocalServer, local_server  # noqa: E402
from milepost.testing.store_contract import AsyncStoreContract, StoreContract  # noqa: E402

_numbers = itertools.count()


class TestInMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> InMemoryStore:
        return InMemoryStore()


class TestAsyncInMemoryStore(AsyncStoreContract):
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def async_store(self, clock: FakeClock) -> AsyncInMemoryStore:
        return AsyncInMemoryStore(clock=clock)

    @pytest.fixture
    def pass_time(self, clock: FakeClock) -> Iterator[Callable[[float], None]]:
        """Let the clock stand still, but for what is asked of it; later it goes on, for whoever waits."""
        timers: list[threading.Timer] = []

        def advance(seconds: float) -> None:
            clock.advance(seconds)
            timers.append(threading.Timer(0.1, clock.advance, (1.0,)))
            timers[-1].start()

        yield advance
        for timer in timers:
            timer.join(10)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


@pytest.fixture
def namespace(server: LocalServer) -> str:
    """Give each test of the shared server an empty namespace."""
    server.namespace = f"test-{next(_numbers)}"
    return server.namespace


class TestClient(StoreContract):
    @pytest.fixture
    def store(self, server: LocalServer, namespace: str) -> Iterator[Client]:
        with server.client() as client:
            yield client


class TestAsyncClient(AsyncStoreContract):
    @pytest.fixture
    def async_store(self, server: LocalServer, namespace: str) -> AsyncClient:
        return server.async_client()
