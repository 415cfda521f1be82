"""One suite for every kind of store: the same workflows in memory and on a real server, blocking and async."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import pytest

from milepost import AsyncClient, AsyncInMemoryStore, Client, InMemoryStore
from milepost.runner import Workflow
from milepost.runner.run import Run
from milepost.runner.runner import AsyncRunner, Runner
from milepost.runner.settings import Environment, Settings
from milepost.testing import LocalServer, local_server
from milepost.types import Checkpoint, Record

T = TypeVar("T")

_numbers = itertools.count(1)


class Bound:
    """A runner of either kind, called the same way by a test."""

    def __init__(self, runner: Runner[Any] | AsyncRunner[Any]) -> None:
        self.runner = runner

    def run(self, workflow_id: str, state: Any = None, **options: Any) -> Run[Any]:
        run: Run[Any] = self._call("run", workflow_id, state, **options)
        return run

    def start(self, workflow_id: str, state: Any, **options: Any) -> Run[Any]:
        run: Run[Any] = self._call("start", workflow_id, state, **options)
        return run

    def resume(self, workflow_id: str, **options: Any) -> Run[Any]:
        run: Run[Any] = self._call("resume", workflow_id, **options)
        return run

    def submit(self, workflow_id: str, state: Any, **options: Any) -> bool:
        is_new: bool = self._call("submit", workflow_id, state, **options)
        return is_new

    def fork(self, workflow_id: str, new_workflow_id: str, **options: Any) -> Any:
        return self._call("fork", workflow_id, new_workflow_id, **options)

    def cancel(self, workflow_id: str) -> None:
        self._call("cancel", workflow_id)

    def signal(self, workflow_id: str, name: str, value: object = None) -> None:
        self._call("signal", workflow_id, name, value)

    def resolve(self, workflow_id: str, step: str, resolution: Any, left: Any = None, **options: Any) -> None:
        self._call("resolve", workflow_id, step, resolution, left, **options)

    def status(self, workflow_id: str) -> Any:
        return self._call("status", workflow_id)

    def history(self, workflow_id: str, **options: Any) -> list[Checkpoint]:
        found: Any = self.runner.history(workflow_id, **options)
        if isinstance(self.runner, Runner):
            return [*found]

        async def read() -> list[Checkpoint]:
            return [checkpoint async for checkpoint in found]

        return asyncio.run(read())

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        answer = getattr(self.runner, name)(*args, **options)
        return asyncio.run(answer) if isinstance(self.runner, AsyncRunner) else answer


class World:
    """A store of one kind, and a blocking view of it for the test's own eyes."""

    def __init__(self, kind: Literal["sync", "async"], server: LocalServer | None) -> None:
        self.kind = kind
        self.server = server
        self.namespace = f"test-{next(_numbers)}"
        self._clients: list[Client] = []
        self.store: Any
        self.eyes: Any
        if server is not None:
            self.eyes = Client(server.target, namespace=self.namespace)
            self._clients.append(self.eyes)
            self.store = self.eyes if kind == "sync" else AsyncClient(server.target, namespace=self.namespace)
        elif kind == "sync":
            self.store = self.eyes = InMemoryStore(namespace=self.namespace)
        else:
            self.store = AsyncInMemoryStore(namespace=self.namespace)
            self.eyes = InMemoryStore(namespace=self.namespace)
            # Two faces of one store.
            self.eyes._core = self.store._core

    def bind(self, workflow: Workflow[Any], environment: Environment | None = None, **options: Any) -> Bound:
        """Bind a workflow, as another host would: its runner shares nothing with those before."""
        settings = Settings(**{"grace_s": 2.0, **options})
        made = Runner if self.kind == "sync" else AsyncRunner
        return Bound(made(workflow, self.store, settings, environment))

    def head(self, workflow_id: str, scope: str = "") -> Checkpoint:
        found: Checkpoint = self.eyes.load(workflow_id, scope=scope)
        return found

    def records(self, workflow_id: str, prefix: str) -> list[Record]:
        return [record for record in self.head(workflow_id).records if record.task_id.startswith(prefix)]

    def steps(self, workflow_id: str) -> list[tuple[str, str]]:
        """Step and status of each checkpoint, oldest first."""
        found = self.eyes.list(workflow_id, newest_first=False)
        return [(checkpoint.current_step, checkpoint.status.value) for checkpoint in found]

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture(scope="session")
def runner_server() -> Iterator[LocalServer]:
    """A server that all tests of runners share, each in a namespace of its own."""
    with local_server() as server:
        yield server


@pytest.fixture(params=["memory-sync", "memory-async", "server-sync", "server-async"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A store of each kind in turn."""
    place, _, kind = request.param.partition("-")
    server = request.getfixturevalue("runner_server") if place == "server" else None
    made = World(kind, server)
    yield made
    made.close()


@pytest.fixture(params=["sync", "async"])
def memory_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A store in memory of each kind in turn, for tests about what only the runner does."""
    made = World(request.param, None)
    yield made
    made.close()
