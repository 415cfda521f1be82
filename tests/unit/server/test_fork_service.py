"""Forks in the service: what waits while one is being made, and what is left of one that does not come to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from milepost_server.config import QueueConfig
from milepost_server.errors import StoreError
from milepost_server.limits import Limits
from milepost_server.model import (
    AbandonForkCommand,
    Answer,
    Command,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowCommand,
    ForkAnswer,
    ForkCommand,
    PruneCommand,
)
from milepost_server.service import CheckpointService
from milepost_server.storage.committer import Committer
from milepost_server.storage.memory_check import check
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.testing.builders import NAMESPACE, delete_workflow, fork, save

LIMITS = Limits(slice_rows_max=12)
"""Two checkpoints a slice."""
CHECKPOINTS = 200
DEADLINE_S = 30.0


class World:
    """A service over an engine in memory, with a source to fork, and every command that was committed, in order."""

    def __init__(self, committer: Committer, engine: MemoryEngine) -> None:
        self.engine = engine
        self.committer = committer
        self.service = CheckpointService(committer, engine, limits=LIMITS, config=QueueConfig())
        self.committed: list[type] = []
        self._changed = asyncio.Event()
        committer.listen(self)

    def on_commit(self, commands: Sequence[Command], outcomes: Sequence[Answer | StoreError]) -> None:
        self.committed += map(type, commands)
        self._changed.set()

    def on_failure(self) -> None:
        raise AssertionError("the storage failed")

    async def begin_fork(self) -> asyncio.Task[ForkAnswer]:
        """Return a fork of which a few slices are made."""
        task = asyncio.create_task(self.service.fork(fork("source", "target")))
        async with asyncio.timeout(DEADLINE_S):
            while self.committed.count(ForkCommand) < 3:
                self._changed.clear()
                await self._changed.wait()
        return task


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    engine = MemoryEngine(limits=LIMITS)
    committer = Committer(engine, config=QueueConfig())
    one = World(committer, engine)
    for number in range(CHECKPOINTS):
        await committer.submit(save("source", f"c{number}", run_id="run"), namespace=NAMESPACE)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield one
            await one.service.close()
    finally:
        await committer.close()
    assert check(engine) == []


Change = Callable[[CheckpointService], Awaitable[object]]


def delete(service: CheckpointService) -> Awaitable[object]:
    return service.delete_workflow(delete_workflow("source"))


def delete_ids(service: CheckpointService) -> Awaitable[object]:
    command = DeleteIdsCommand(namespace=NAMESPACE, workflow_id="source", scope="", checkpoint_ids=("c0", "c1"))
    return service.delete_ids(command)


def prune(service: CheckpointService) -> Awaitable[object]:
    command = PruneCommand(namespace=NAMESPACE, workflow_id="source", keep_last=1, position=(), is_dry_run=False)
    return service.prune(command, continue_token="")


def delete_run(service: CheckpointService) -> Awaitable[object]:
    return service.delete_runs(NAMESPACE, "source", ["run"], continue_token="", lease_token=0, size_bytes=0)


def delete_run_everywhere(service: CheckpointService) -> Awaitable[object]:
    return service.delete_runs(NAMESPACE, "", ["run"], continue_token="", lease_token=0, size_bytes=0)


@pytest.mark.parametrize(
    "change,kind",
    [
        (delete, DeleteWorkflowCommand),
        (delete_ids, DeleteIdsCommand),
        (prune, PruneCommand),
        (delete_run, DeleteRunCommand),
        (delete_run_everywhere, DeleteRunCommand),
    ],
)
async def test_deletes_and_prunes_of_its_source_wait_for_a_fork(change: Change, kind: type) -> None:
    async with world() as one:
        forking = await one.begin_fork()
        await change(one.service)
        forked = await forking
        assert forked.workflow is not None
        assert forked.workflow.checkpoint_count == CHECKPOINTS
        last_slice = len(one.committed) - 1 - one.committed[::-1].index(ForkCommand)
        assert one.committed.index(kind) > last_slice


async def test_saves_to_its_source_do_not_wait_for_a_fork() -> None:
    async with world() as one:
        forking = await one.begin_fork()
        await one.committer.submit(save("source", "more"), namespace=NAMESPACE)
        assert not forking.done()
        assert (await forking).position is None


async def test_a_fork_whose_caller_goes_away_is_thrown_away() -> None:
    async with world() as one:
        forking = await one.begin_fork()
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
        await one.service.close()
        assert one.committed.count(ForkCommand) < CHECKPOINTS // 2
        assert one.committed.count(AbandonForkCommand) == 1
        assert one.engine.statistics()["checkpoints"] == CHECKPOINTS


async def test_a_fork_whose_target_is_saved_to_meanwhile_is_refused_and_thrown_away() -> None:
    async with world() as one:
        forking = await one.begin_fork()
        await one.committer.submit(save("target", "c"), namespace=NAMESPACE)
        with pytest.raises(StoreError) as refused:
            await forking
        assert refused.value.reason == "WORKFLOW_EXISTS"
        assert one.committed.count(AbandonForkCommand) == 1
        assert one.engine.get_workflow(NAMESPACE, "target").workflow.checkpoint_count == 1
