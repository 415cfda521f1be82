"""BatchSave in the service: how its items are cut into commands, and what their failures leave of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

import pytest

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1.error_reason_pb2 import ErrorReason
from milepost_server.config import QueueConfig
from milepost_server.errors import (
    InvalidFieldError,
    OutcomeUnknownError,
    ResourceError,
    StoreError,
    UnavailableError,
)
from milepost_server.grpc_api.servicer import CheckpointStoreServicer
from milepost_server.limits import DEFAULT_LIMITS, KIB
from milepost_server.model import Answer, Command, EncodedBatchSaveAnswer, EncodedBatchSaveCommand, ItemKey
from milepost_server.service import CheckpointService, FailedItems
from milepost_server.storage.memory_engine import MemoryEngine

CONFIG = QueueConfig(batch_commands_max=4, alone_bytes=KIB)

_T = TypeVar("_T")


class ScriptedQueue:
    """Runs a series at once, and answers each of its commands as the test says."""

    def __init__(self, answer: Callable[[EncodedBatchSaveCommand], Answer | StoreError]) -> None:
        self._answer = answer
        self.commands: list[EncodedBatchSaveCommand] = []
        self.counted: tuple[int, int] | None = None

    def listen(self, listener: object) -> None:
        """Tell nobody anything."""

    def submit_series(
        self,
        series: Generator[Command, Answer | StoreError, _T],
        *,
        namespace: str,
        command_count: int,
        size_bytes: int,
    ) -> asyncio.Future[_T]:
        self.counted = (command_count, size_bytes)
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        try:
            command = next(series)
            while True:
                self.commands.append(cast(EncodedBatchSaveCommand, command))
                command = series.send(self._answer(self.commands[-1]))
        except StopIteration as end:
            future.set_result(end.value)
        except StoreError as error:
            future.set_exception(error)
        return future


def results_of(command: EncodedBatchSaveCommand) -> EncodedBatchSaveAnswer:
    """Answer with what was asked, and fail every item that ends with `x`."""
    failed: dict[ItemKey, int] = dict(command.failed)
    for number, item in enumerate(command.items, command.first_number):
        if item.endswith(b"x"):
            failed["n", "w", "", item.decode()] = number
    return EncodedBatchSaveAnswer(b"".join(command.items), (), failed)


async def run(queue: ScriptedQueue, *items: bytes) -> list[bytes | FailedItems]:
    service = CheckpointService(cast(Any, queue), MemoryEngine(), limits=DEFAULT_LIMITS, config=CONFIG)
    return await service.batch_save([memoryview(item) for item in items], namespace="n")


async def test_a_slice_has_the_commands_of_a_commit_and_tells_the_next_what_failed() -> None:
    queue = ScriptedQueue(results_of)
    items = [b"a", b"bx", b"c", b"d", b"e", b"fx", b"g", b"h", b"i"]
    assert await run(queue, *items) == [b"abxcd", b"efxgh", b"i"]
    assert [(each.first_number, each.size_bytes) for each in queue.commands] == [(0, 5), (4, 5), (8, 1)]
    first, second = ("n", "w", "", "bx"), ("n", "w", "", "fx")
    assert [each.failed for each in queue.commands] == [{}, {first: 1}, {first: 1, second: 5}]
    assert queue.counted == (9, 11)


async def test_a_slice_has_the_bytes_that_go_beside_others_and_a_larger_item_goes_alone() -> None:
    queue = ScriptedQueue(results_of)
    sizes = [600, 424, 1, 3_000, 1, 1_023, 1]
    await run(queue, *(b"i" * size for size in sizes))
    assert [[len(item) for item in each.items] for each in queue.commands] == [
        [600, 424],
        [1],
        [3_000],
        [1, 1_023],
        [1],
    ]


@pytest.mark.parametrize(
    "error, rest",
    [
        (UnavailableError("NOT_COMMITTED", "nothing of it is stored"), "NOT_COMMITTED"),
        (ResourceError("STORE_FULL", "full", {}), "STORE_FULL"),
        (OutcomeUnknownError("who knows"), "NOT_SERVING"),
        (InvalidFieldError("request", "must be a BatchSaveRequest", "7 bytes"), "INVALID_FIELD"),
    ],
    ids=lambda each: each.reason if isinstance(each, StoreError) else "",
)
async def test_what_comes_after_a_slice_that_failed_whole_is_not_started(error: StoreError, rest: str) -> None:
    queue = ScriptedQueue(lambda command: error if command.first_number == 4 else results_of(command))
    first, failed, not_started = await run(queue, *[b"a"] * 11)
    assert first == b"aaaa"
    assert failed == FailedItems(4, error)
    assert isinstance(not_started, FailedItems)
    assert (not_started.item_count, not_started.error.reason) == (3, rest)
    assert len(queue.commands) == 2


async def test_what_is_no_batch_is_refused_as_a_call_where_nothing_was_run() -> None:
    refusal = InvalidFieldError("request", "must be a BatchSaveRequest", "7 bytes")
    with pytest.raises(InvalidFieldError):
        await run(ScriptedQueue(lambda command: refusal), *[b"a"] * 11)


async def test_results_and_errors_of_slices_are_one_answer() -> None:
    """What was answered for a slice goes on as it is; what a whole slice failed with becomes an error for each item."""
    saved = pb.BatchSaveResponse(results=[pb.BatchSaveResult(saved=pb.SaveResponse(checkpoint_id="a"))] * 4)
    lost = OutcomeUnknownError("who knows")

    def answer(command: EncodedBatchSaveCommand) -> Answer | StoreError:
        return EncodedBatchSaveAnswer(saved.SerializeToString(), (), {}) if not command.first_number else lost

    queue = ScriptedQueue(answer)
    service = CheckpointService(cast(Any, queue), MemoryEngine(), limits=DEFAULT_LIMITS, config=CONFIG)
    request = pb.BatchSaveRequest(items=[pb.SaveRequest(workflow_id="w")] * 11)
    body = await CheckpointStoreServicer(service).BatchSave(request.SerializeToString(), cast(Any, None))
    results = pb.BatchSaveResponse.FromString(body).results
    assert [each.saved.checkpoint_id for each in results[:4]] == ["a"] * 4
    assert [ErrorReason.Name(each.error.reason) for each in results[4:]] == [
        *["OUTCOME_UNKNOWN"] * 4,
        *["NOT_SERVING"] * 3,
    ]
