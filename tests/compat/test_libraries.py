"""The package works on the libraries that are installed: imports, generated code, a server, both clients over TCP."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import milepost_server
from milepost import AsyncClient, Client
from tests.support.server_process import ServerProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data") as server:
        yield server
        assert server.stop() == 0


def test_every_module_of_the_server_is_imported() -> None:
    for module in pkgutil.walk_packages(milepost_server.__path__, "milepost_server."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_the_generated_code_loads() -> None:
    for name in ("milepost.v1.checkpoint_store_pb2", "milepost.v1.checkpoint_store_pb2_grpc"):
        importlib.import_module(name)


def test_the_blocking_client_saves_loads_and_lists(server: ServerProcess) -> None:
    with Client(server.target) as client:
        client.save("w", state={"x": 1}, checkpoint_id="c")
        assert client.load("w").state == {"x": 1}
        assert [each.checkpoint_id for each in client.list("w")] == ["c"]


async def test_the_async_client_saves_loads_and_lists(server: ServerProcess) -> None:
    async with AsyncClient(server.target) as client:
        await client.save("w", state={"x": 1}, checkpoint_id="c")
        assert (await client.load("w")).state == {"x": 1}
        assert [each.checkpoint_id async for each in client.list("w")] == ["c"]
