"""The public API as programs use it. Type-checked, never executed; a line marked `ignore` must be an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

from milepost import (
    CANCEL_SIGNAL,
    JSON,
    TLS,
    AsyncCheckpointStore,
    AsyncClient,
    AsyncInMemoryStore,
    AsyncLease,
    AsyncSupportsRecords,
    AsyncWatchStream,
    AsyncWorkflowStore,
    Checkpoint,
    CheckpointStore,
    Client,
    EntryVersion,
    HeadMovedError,
    InMemoryStore,
    Lease,
    LeaseInfo,
    MilepostError,
    OutcomeUnknownError,
    PendingSignal,
    Record,
    RecordOutcome,
    RetryPolicy,
    Saved,
    SaveItem,
    Signal,
    SignalSent,
    Status,
    SupportsRecords,
    WatchEvent,
    WatchEventKind,
    WatchStream,
    WorkflowInfo,
    WorkflowStore,
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


def leases_signals_and_watches(client: Client) -> None:
    with client.lease("w", ttl_s=10, wait_s=60, holder="me") as lease:
        assert_type(lease, Lease)
        saved = client.save("w", state={}, lease_token=lease.token, consumed_signals=["s"], release_lease=True)
        assert_type(saved.pending_signals, tuple[PendingSignal, ...])
        lease.check()
    assert_type(client.acquire_lease("w"), LeaseInfo)
    assert_type(client.get_lease("w"), LeaseInfo | None)
    assert_type(client.renew_lease("w", 7).lease, LeaseInfo)
    assert_type(client.release_lease("w", 7), bool)
    assert_type(client.send_signal("w", CANCEL_SIGNAL, {"by": "me"}), SignalSent)
    assert_type(client.signals("w"), Iterator[Signal])
    with client.watch("w", after=client.workflow("w")) as events:
        for event in events:
            assert_type(event, WatchEvent)
    assert_type(client.definition_manifest("f"), str)
    assert_type(client.workflows(is_leased=False, has_pending_signals=True, fingerprint="f"), Iterator[WorkflowInfo])


async def async_leases_signals_and_watches(client: AsyncClient) -> None:
    async with client.lease("w") as lease:
        assert_type(lease, AsyncLease)
        await client.save("w", state={}, lease_token=lease.token)
    async with client.watch() as events:
        async for event in events:
            assert_type(event.kind, WatchEventKind)
    async for signal in client.signals("w"):
        assert_type(signal, Signal)


def takes_everything(store: WorkflowStore) -> WatchStream:
    store.save("w", state={}, lease_token=store.acquire_lease("w").token, manifest="{}", fingerprint="f")
    return store.watch("w")


async def takes_everything_async(store: AsyncWorkflowStore) -> AsyncWatchStream:
    await store.renew_lease("w", (await store.acquire_lease("w")).token)
    return store.watch("w")


async def every_store_runs_workflows(client: Client, async_client: AsyncClient) -> None:
    takes_everything(client)
    takes_everything(InMemoryStore())
    await takes_everything_async(async_client)
    await takes_everything_async(AsyncInMemoryStore())


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
    takes_everything(async_client)  # type: ignore[arg-type]
    client.save("w", state={}, lease_token="7")  # type: ignore[arg-type]
    takes_async_store(client)  # type: ignore[arg-type]
