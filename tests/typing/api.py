"""The public API as programs use it. Type-checked, never executed; a line marked `ignore` must be an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

from milepost import (
    JSON,
    TLS,
    AsyncCheckpointStore,
    AsyncClient,
    AsyncInMemoryStore,
    AsyncSupportsRecords,
    Checkpoint,
    CheckpointStore,
    Client,
    EntryVersion,
    HeadMovedError,
    InMemoryStore,
    MilepostError,
    OutcomeUnknownError,
    Record,
    RecordOutcome,
    RetryPolicy,
    Saved,
    SaveItem,
    Status,
    SupportsRecords,
    WorkflowInfo,
)


@dataclass
class Order:
    total: int


class OrderDict(TypedDict):
    total: int


def blocking() -> None:
    with Client("127.0.0.1:7450", namespace="team", token="t", tls=TLS(ca_file="ca.pem"), codec=JSON) as client:
        assert_type(client, Client)
        saved = client.save("w", state={"total": 1}, current_step="price", after="start", status=Status.RUNNING)
        assert_type(saved, Saved)
        checkpoint = client.load("w", latest_with_status=[Status.COMPLETED], entries=["total"])
        assert_type(checkpoint, Checkpoint)
        assert_type(checkpoint.state, dict[str, Any])
        assert_type(checkpoint.state_as(Order), Order)
        assert_type(checkpoint.state_as(OrderDict), OrderDict)
        client.save("w", state=checkpoint.state, after=checkpoint, records=[Record(task_id="t", value=1)])
        client.save(
            "w", state={}, after=saved, metadata={"by": ["me"]}, labels={"team": "a"}, completed_steps=["price"]
        )
        assert_type(client.list("w", scope=None, before=checkpoint, metadata_contains={"a": 1}), Iterator[Checkpoint])
        for one in client.list("w", newest_first=False, limit=3, with_state=True):
            assert_type(one, Checkpoint)
        first = SaveItem(workflow_id="v", state={})
        results = client.save_all([first, SaveItem(workflow_id="v", state={}, after=first)])
        assert_type(results, list[Saved | MilepostError])
        assert_type(client.append_records("w", "c", [Record()]), list[RecordOutcome])
        assert_type(client.entry_history("w", "total"), Iterator[EntryVersion])
        assert_type(client.workflows(prefix="w", status=Status.FAILED), Iterator[WorkflowInfo])
        assert_type(client.workflow("w").status, Status | None)
        assert_type(client.fork("w", "v", all_scopes=True), WorkflowInfo)
        assert_type(client.delete("w"), bool)
        assert_type(client.delete_checkpoints("w", ["c"], run_ids=["r"]), int)
        assert_type(client.prune("w", keep_last=3), int)
        client.ping(timeout_s=1)
    Client(retry=RetryPolicy(attempts_max=1)).close()


async def asynchronous() -> None:
    async with AsyncClient() as client:
        assert_type(client, AsyncClient)
        assert_type(await client.save("w", state={}), Saved)
        assert_type(await client.load("w"), Checkpoint)
        assert_type(client.list("w"), AsyncIterator[Checkpoint])
        async for one in client.workflows():
            assert_type(one, WorkflowInfo)
        assert_type(await client.append_records("w", "c", [Record()]), list[RecordOutcome])
        assert_type(await client.delete("w"), bool)
    await client.close()


def handles_errors(client: Client) -> None:
    try:
        client.save("w", state={})
    except HeadMovedError as error:
        assert_type(error.head_checkpoint_id, str)
        assert_type(error.head_sequence, int | None)
    except OutcomeUnknownError as error:
        assert_type(error.checkpoint_id, str)


def takes_store(store: SupportsRecords) -> CheckpointStore:
    assert_type(store.append_records("w", "c", []), list[RecordOutcome])
    return store


def takes_async_store(store: AsyncSupportsRecords) -> AsyncCheckpointStore:
    return store


def any_store(client: Client, async_client: AsyncClient) -> None:
    takes_store(client)
    takes_store(InMemoryStore())
    takes_async_store(async_client)
    takes_async_store(AsyncInMemoryStore())
    store: CheckpointStore = client
    assert_type(store.load("w"), Checkpoint)


def is_refused(client: Client, async_client: AsyncClient) -> None:
    client.save("w", {"x": 1})  # type: ignore[call-arg]
    client.save("w", state={}, after="first")  # type: ignore[arg-type]
    client.save("w", state={}, status="running")  # type: ignore[arg-type]
    client.save("w", state={}, steps=["a"])  # type: ignore[call-arg]
    client.load("w").sequence = 3  # type: ignore[misc]
    takes_store(async_client)  # type: ignore[arg-type]
    takes_async_store(client)  # type: ignore[arg-type]
