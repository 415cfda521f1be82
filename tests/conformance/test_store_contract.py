"""Every store that the package ships passes the contract: in memory and, through both clients, a real server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("milepost.testing.store_contract")

from milepost import AsyncClient, Client  # noqa: E402  asserts are rewritten at import
from milepost.memory import AsyncInMemoryStore, InMemoryStore  # noqa: E402
from milepost.testing import LocalServer, local_server  # noqa: E402
from milepost.testing.store_contract import AsyncStoreContract, StoreContract  # noqa: E402

_numbers = itertools.count()


class TestInMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> InMemoryStore:
        return InMemoryStore()


class TestAsyncInMemoryStore(AsyncStoreContract):
    @pytest.fixture
    def async_store(self) -> AsyncInMemoryStore:
        return AsyncInMemoryStore()


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
