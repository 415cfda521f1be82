"""Fixtures for tests of workflows. Opt in with `-p milepost.testing.pytest_plugin`, or in a `conftest.py`.

    pytest_plugins = ["milepost.testing.pytest_plugin"]

`milepost_store`: an `InMemoryStore` of the test's own.
`milepost_server`: a real server. One process serves the whole session, each test has a namespace of its own
(`milepost_server.client()` is in it), and a test may kill it: the next one finds it running again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from milepost.memory import InMemoryStore
from milepost.testing._local_server import LocalServer, local_server

pytest.register_assert_rewrite("milepost.testing.store_contract")

TESTS_PER_SERVER = 900
"""Below the server's limit of namespaces; then a new server with an empty store takes over."""


class _Servers:
    """The server of the session, made when the first test asks for one."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._server: LocalServer | None = None
        self._tests = 0

    def next(self) -> LocalServer:
        if self._tests and self._tests % TESTS_PER_SERVER == 0:
            self.close()
        if self._server is None:
            self._server = self._stack.enter_context(local_server())
        elif not self._server.is_running:
            self._server.restart()
        self._tests += 1
        self._server.namespace = f"test-{self._tests}"
        return self._server

    def close(self) -> None:
        self._server = None
        self._stack.close()


@pytest.fixture(scope="session")
def _milepost_servers() -> Iterator[_Servers]:
    servers = _Servers()
    yield servers
    servers.close()


@pytest.fixture
def milepost_server(_milepost_servers: _Servers) -> LocalServer:
    """Give a running server and, in its `client()`, a namespace that no other test uses."""
    return _milepost_servers.next()


@pytest.fixture
def milepost_store() -> InMemoryStore:
    """Give an empty in-memory store."""
    return InMemoryStore()
