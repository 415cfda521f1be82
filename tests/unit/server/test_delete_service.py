"""Deletes of executions in the service: what a call that goes on with a token may touch."""

from __future__ import annotations

import asyncio
import time

import pytest

from milepost_server.config import QueueConfig
from milepost_server.errors import InvalidFieldError
from milepost_server.limits import Limits
from milepost_server.model import ListQuery
from milepost_server.service import CheckpointService
from milepost_server.storage.committer import Committer
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.testing.builders import NAMESPACE, delete_workflow, list_query, save
from milepost_server.tokens import Token, encode_token, hash_query

LIMITS = Limits(slice_rows_max=12)
"""Two checkpoints a slice."""
CHECKPOINTS = 100
"""More than one call deletes."""
RUNS = ["run", "other"]
HOUR_MS = 3_600_000
DEADLINE_S = 30.0


@pytest.mark.parametrize("set_back_ms", [0, HOUR_MS])
async def test_what_is_saved_between_two_calls_stays_whatever_the_clock_tells(set_back_ms: int) -> None:
    """So does a workflow that is made again, and what belongs to a run that the first call had not come to."""
    now_ms = time.time_ns() // 1_000_000
    engine = MemoryEngine(limits=LIMITS, clock_ms=lambda: now_ms)
    committer = Committer(engine, config=QueueConfig())
    service = CheckpointService(committer, engine, limits=LIMITS, config=QueueConfig())

    async def delete(token: str) -> tuple[int, str]:
        return await service.delete_runs(NAMESPACE, "", RUNS, continue_token=token, lease_token=0, size_bytes=0)

    async with asyncio.timeout(DEADLINE_S):
        for number in range(CHECKPOINTS):
            await committer.submit(save("w", f"c{number}", run_id="run"), namespace=NAMESPACE)
        await committer.submit(save("again", "old", run_id="other"), namespace=NAMESPACE)
        deleted, token = await delete("")
        assert 0 < deleted < CHECKPOINTS

        now_ms -= set_back_ms
        await committer.submit(delete_workflow("again"), namespace=NAMESPACE)
        for workflow_id, run_id in [("w", "run"), ("w", "other"), ("again", "run"), ("new", "other")]:
            await committer.submit(save(workflow_id, f"later in {run_id}", run_id=run_id), namespace=NAMESPACE)
        while token:
            more, token = await delete(token)
            deleted += more

        assert deleted == CHECKPOINTS
        found = {each: ids(engine, list_query(each)) for each in ("w", "again", "new")}
        assert found == {"w": ["later in other", "later in run"], "again": ["later in run"], "new": ["later in other"]}
        await service.close()
        await committer.close()


async def test_a_token_that_has_a_time_for_its_bound_is_refused() -> None:
    """Such were given before; the time would be taken for the number of a row."""
    engine = MemoryEngine(limits=LIMITS)
    committer = Committer(engine, config=QueueConfig())
    service = CheckpointService(committer, engine, limits=LIMITS, config=QueueConfig())
    query_hash = hash_query(NAMESPACE, "", RUNS)
    for position in [(1,), (0, 7, 3)]:
        old = Token(kind="delete_runs", query_hash=query_hash, position=position, bound=1_700_000_000_000)
        with pytest.raises(InvalidFieldError) as caught:
            await service.delete_runs(
                NAMESPACE, "", RUNS, continue_token=encode_token(old), lease_token=0, size_bytes=0
            )
        assert caught.value.reason == "PAGE_TOKEN_INVALID"
    await service.close()
    await committer.close()


def ids(engine: MemoryEngine, query: ListQuery) -> list[str]:
    return [each.row.checkpoint_id for each in engine.list_checkpoints(query).checkpoints]
