"""One server for all tests of the adapter, a namespace for each, and the saver's two halves behind one API."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from milepost.adapters.langgraph import MilepostSaver
from milepost.testing import LocalServer, local_server
from tests.support.langgraph_shim import BlockingHalf


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    with local_server() as running:
        yield running


@pytest.fixture
def namespace() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def saver(server: LocalServer, namespace: str) -> Iterator[MilepostSaver]:
    with MilepostSaver(server.target, namespace=namespace) as made:
        yield made


@pytest.fixture(params=["asyncio", "blocking"])
def half(request: pytest.FixtureRequest, saver: MilepostSaver) -> MilepostSaver | BlockingHalf:
    """The saver by its async methods, and its sync methods under the same names."""
    return saver if request.param == "asyncio" else BlockingHalf(saver)
