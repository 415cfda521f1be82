"""Fixtures of the tests that talk to a real server process."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.support.raw_calls import open_channel
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for the tests of one file, which use workflows of their own. Fails the file if it logged a traceback."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as process:
        yield process
        assert process.stop() == 0, process.stderr
        assert "Traceback" not in process.stderr, process.stderr


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """A channel to the file's server."""
    with open_channel(server.target) as channel:
        yield channel
