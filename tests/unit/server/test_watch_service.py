"""Watching: every change once and in order, going on without a gap, and every bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import cast

import pytest

from milepost_server import watch_service
from milepost_server.config import QueueConfig
from milepost_server.errors import StorageFailedError, StoreError
from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import Answer, Command, PruneCommand, SaveCommand, SendSignalCommand, Status, SweepCommand
from milepost_server.service import CheckpointService
from milepost_server.storage.committer import Committer
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.testing.builders import (
    ManualClock,
    acquire_lease,
    append,
    delete_ids,
    delete_workflow,
    fork,
    json_value,
    record,
    release_lease,
    save,
    send_signal,
)
from milepost_server.watch_events import WatchEvent, WatchKind, WatchQuery, events_of
from tests.support.encoded_saves import SaveCodec, encoded

LONG_S = 30.0
CONFIG = QueueConfig(watches_max=6, watch_events_kept_max=20, watch_events_waiting_max=5)


class FailingEngine(MemoryEngine):
    """Fails once when it is told to, after it has stored a batch with a Save; the sweeper's are not meant."""

    fails = False

    def execute(self, batch: Sequence[Command]) -> Sequence[Answer | StoreError]:
        outcomes = super().execute(batch)
        if self.fails and any(isinstance(each, SaveCommand) for each in batch):
            self.fails = False
            raise StorageFailedError("as the test says")
        return outcomes


class Store:
    """A committer over an engine in memory, and the service."""

    def __init__(self, committer: Committer, engine: FailingEngine, service: CheckpointService) -> None:
        self.committer = committer
        self.engine = engine
        self.service = service
        self.is_back = asyncio.Event()

    def note_health(self, is_serving: bool) -> None:
        if is_serving:
            self.is_back.set()

    async def run(self, *commands: Command) -> list[Answer | StoreError]:
        submitted = [self.committer.submit(encoded(each), namespace="default") for each in commands]
        outcomes = await asyncio.gather(*submitted, return_exceptions=True)
        return cast(list[Answer | StoreError], outcomes)

    def at(self, workflow_id: str = "w") -> tuple[str, int]:
        row = self.engine.get_workflow("default", workflow_id).workflow
        return row.incarnation, row.revision

    @asynccontextmanager
    async def watch(
        self, workflow_id: str = "w", *, after: tuple[str, int] | None = None, definition: str | None = None
    ) -> AsyncIterator[Reader]:
        query = WatchQuery(namespace="default", workflow_id=workflow_id, after=after, definition=definition)
        async with aclosing(self.service.watches.watch(query)) as events:
            yield Reader(events)


class Reader:
    """Reads events, with a deadline."""

    def __init__(self, events: AsyncGenerator[WatchEvent, None]) -> None:
        self._events = events

    async def next(self) -> WatchEvent:
        async with asyncio.timeout(LONG_S):
            return await anext(self._events)

    async def take(self, count: int) -> list[tuple[str, int]]:
        """Return kind and revision of so many events."""
        found = [await self.next() for _ in range(count)]
        return [(event.kind.name, event.revision) for event in found]

    async def end(self) -> StoreError:
        """Read on until the watch ends, and return why."""
        try:
            while True:
                await self.next()
        except StoreError as ended:
            return ended


@asynccontextmanager
async def open_store(clock: ManualClock | None = None, config: QueueConfig = CONFIG) -> AsyncIterator[Store]:
    engine = FailingEngine(clock_ms=clock or ManualClock())
    committer = Committer(
        engine,
        config=config,
        codec=SaveCodec(DEFAULT_LIMITS),
        on_health=lambda is_serving: store.note_health(is_serving),
    )
    service = CheckpointService(committer, engine, limits=DEFAULT_LIMITS, config=config)
    store = Store(committer, engine, service)
    try:
        yield store
    finally:
        await committer.close()


# What is told.


async def test_the_first_event_tells_where_the_workflow_stands() -> None:
    async with open_store() as store:
        await store.run(save("w", "a", current_step="one", status=Status.WAITING, definition="d"))
        async with store.watch() as reader:
            started = await reader.next()
        assert started == WatchEvent(
            WatchKind.STARTED,
            "default",
            "w",
            *store.at(),
            "d",
            checkpoint_id="a",
            sequence=1,
            current_step="one",
            status=Status.WAITING,
        )


async def test_every_change_is_told_with_its_revision() -> None:
    async with open_store() as store, store.watch() as reader:
        assert (await reader.next()) == WatchEvent(WatchKind.STARTED, "default", "w")
        changes: list[tuple[Command, str]] = [
            (save("w", "a", current_step="one", definition="d"), "SAVED"),
            (save("w", "a", {"x": 1}, is_replace=True), "REPLACED"),
            (append("w", "a", record("t")), "RECORDS_APPENDED"),
            (send_signal("w", "s1", "approve"), "SIGNAL_SENT"),
            (acquire_lease("w", holder="web-1"), "LEASE_GRANTED"),
            (release_lease("w", force=True), "LEASE_RELEASED"),
            (save("w", "b", scope="s", status=Status.COMPLETED), "SAVED"),
            (delete_ids("w", "b", scope="s"), "CHECKPOINTS_DELETED"),
            (save("w", "c"), "SAVED"),
            (
                PruneCommand(namespace="default", workflow_id="w", keep_last=1, position=()),
                "CHANGED",
            ),
            (delete_workflow("w"), "WORKFLOW_DELETED"),
        ]
        incarnation = ""
        for revision, (command, kind) in enumerate(changes, start=1):
            await store.run(command)
            event = await reader.next()
            incarnation = incarnation or event.incarnation
            assert (event.kind.name, event.revision, event.incarnation) == (kind, revision, incarnation)
            if revision == 1:
                assert (event.checkpoint_id, event.sequence, event.current_step) == ("a", 1, "one")
                assert (event.status, event.definition) == (Status.RUNNING, "d")
            if kind == "RECORDS_APPENDED":
                assert (event.checkpoint_id, event.sequence) == ("a", 1)
            if kind == "SIGNAL_SENT":
                assert (event.signal_id, event.signal_name) == ("s1", "approve")
            if kind == "LEASE_GRANTED":
                assert event.holder == "web-1"
            if revision == 7:
                assert (event.scope, event.status) == ("s", Status.COMPLETED)


async def test_what_changes_nothing_is_not_told() -> None:
    async with open_store() as store:
        await store.run(
            save("w", "a", records=(record("t"),)), send_signal("w", "s1"), acquire_lease("w", request_id="r")
        )
        async with store.watch() as reader:
            await reader.next()
            token = store.engine.inspect(lambda tables: next(iter(tables.leases.values())).token)
            await store.run(
                save("w", "a", records=(record("t"),)),
                save("w", "b"),
                append("w", "a", record("t"), lease_token=token),
                send_signal("w", "s1"),
                acquire_lease("w", request_id="r"),
                delete_ids("w", "nowhere", lease_token=token),
                delete_workflow("nowhere"),
                SweepCommand(),
                save("w", "c", lease_token=token, release_lease=True),
            )
            event = await reader.next()
        assert (event.kind, event.checkpoint_id, event.lease_released) == (WatchKind.SAVED, "c", True)


async def test_a_lease_is_told_before_there_is_a_workflow() -> None:
    async with open_store() as store, store.watch() as reader:
        await reader.next()
        await store.run(acquire_lease("w"), release_lease("w", force=True), acquire_lease("w"))
        assert await reader.take(3) == [("LEASE_GRANTED", 0), ("LEASE_RELEASED", 0), ("LEASE_GRANTED", 0)]


async def test_a_fork_is_told_to_who_watches_its_namespace() -> None:
    async with open_store() as store:
        await store.run(save("w", "a"))
        async with store.watch("") as reader:
            assert (await reader.next()) == WatchEvent(WatchKind.STARTED, "default", "")
            await store.run(fork("w", "v"))
            event = await reader.next()
            assert (event.kind, event.workflow_id, event.revision, event.checkpoint_id) == (
                WatchKind.CHANGED,
                "v",
                1,
                "a",
            )


async def test_what_the_sweeper_drops_is_told() -> None:
    clock = ManualClock()
    async with open_store(clock) as store:
        await store.run(save("w", "a"), append("w", "later", record("t")))
        async with store.watch() as reader:
            await reader.next()
            clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
            await store.run(SweepCommand())
            assert await reader.take(1) == [("CHANGED", 3)]


async def test_a_namespace_is_followed_without_the_others() -> None:
    async with open_store() as store, store.watch("") as reader:
        await reader.next()
        await store.run(save("v", "a"), save("x", "a", namespace="other"), save("w", "a"))
        assert [(await reader.next()).workflow_id for _ in range(2)] == ["v", "w"]


async def test_only_workflows_of_a_definition_are_told() -> None:
    async with open_store() as store, store.watch("", definition="d") as reader:
        await reader.next()
        await store.run(save("u", "a"), save("v", "a", definition="e"), save("w", "a", definition="d"), save("w", "b"))
        assert [(await reader.next()).checkpoint_id for _ in range(2)] == ["a", "b"]


async def test_a_workflow_that_is_made_again_is_followed_on() -> None:
    async with open_store() as store:
        await store.run(save("w", "a"))
        async with store.watch() as reader:
            first = await reader.next()
            await store.run(delete_workflow("w"), save("w", "b"), save("w", "c"))
            events = [await reader.next() for _ in range(3)]
        assert [(each.kind.name, each.revision) for each in events] == [
            ("WORKFLOW_DELETED", 2),
            ("SAVED", 1),
            ("SAVED", 2),
        ]
        assert [each.incarnation == first.incarnation for each in events] == [True, False, False]


async def test_many_readers_are_told_the_same_in_the_same_order() -> None:
    async with open_store(config=QueueConfig()) as store, store.watch() as first, store.watch("") as second:
        await first.next()
        await second.next()
        tasks = [asyncio.create_task(store.run(save("w", f"{number}"))) for number in range(200)]
        told = [await first.next() for _ in range(200)]
        assert told == [await second.next() for _ in range(200)]
        assert [event.revision for event in told] == list(range(1, 201))
        await asyncio.wait(tasks)


# Going on.


async def test_a_watch_goes_on_where_it_was() -> None:
    async with open_store() as store:
        await store.run(save("w", "a"))
        at = store.at()
        await store.run(save("w", "b"), save("v", "other"), send_signal("w", "s1"))
        async with store.watch(after=at) as reader:
            assert await reader.take(3) == [("STARTED", 1), ("SAVED", 2), ("SIGNAL_SENT", 3)]
            await store.run(save("w", "c"))
            assert await reader.take(1) == [("SAVED", 4)]


async def test_a_watch_that_has_seen_all_goes_on() -> None:
    async with open_store() as store:
        await store.run(save("w", "a", current_step="one"))
        async with store.watch(after=store.at()) as reader:
            started = await reader.next()
            assert (started.revision, started.current_step) == (1, "one")
            await store.run(save("w", "b"))
            assert await reader.take(1) == [("SAVED", 2)]


async def test_a_watch_goes_on_over_a_delete() -> None:
    async with open_store() as store:
        await store.run(save("w", "a"))
        at = store.at()
        await store.run(delete_workflow("w"), save("w", "b"), delete_workflow("w"))
        async with store.watch(after=at) as reader:
            assert await reader.take(4) == [
                ("STARTED", 1),
                ("WORKFLOW_DELETED", 2),
                ("SAVED", 1),
                ("WORKFLOW_DELETED", 2),
            ]
        async with store.watch(after=(at[0], 2)) as reader:
            assert await reader.take(3) == [("STARTED", 2), ("SAVED", 1), ("WORKFLOW_DELETED", 2)]


async def test_a_watch_whose_past_is_not_kept_is_told_so() -> None:
    async with open_store() as store:
        await store.run(save("w", "0"))
        at = store.at()
        await store.run(*(save("w", str(number)) for number in range(1, 22)))
        async with store.watch(after=at) as reader:
            ended = await reader.end()
        assert (ended.reason, ended.metadata) == ("WATCH_COMPACTED", {"workflow_id": "w", "revision": "1"})
        async with store.watch(after=(at[0], 2)) as reader:
            assert (await reader.take(21))[-1] == ("SAVED", 22)
        assert store.service.watches.watch_count == 0


@pytest.mark.parametrize("after", [("another", 1), ("", 0)])
async def test_a_place_that_never_was_is_told_as_not_kept(after: tuple[str, int]) -> None:
    async with open_store() as store:
        await store.run(save("w", "a"))
        incarnation, revision = store.at()
        async with store.watch(after=(after[0] or incarnation, after[1] or revision + 1)) as reader:
            assert (await reader.end()).reason == "WATCH_COMPACTED"
        async with store.watch("nowhere", after=(incarnation, 1)) as reader:
            assert (await reader.end()).reason == "WATCH_COMPACTED"


async def test_no_change_is_missed_or_told_twice_while_watches_begin() -> None:
    """Watches begin and go on while saves are committed: each sees every revision from its first on, once."""
    config = QueueConfig(watch_events_kept_max=1_000)
    async with open_store(config=config) as store:
        await store.run(save("w", "first"))
        last = 300
        saving = asyncio.create_task(save_all(store, last))
        told: list[list[int]] = []
        after: tuple[str, int] | None = None
        while not told or told[-1][-1] < last:
            async with store.watch(after=after) as reader:
                event = await reader.next()
                revisions = [event.revision]
                for _ in range(7):
                    if revisions[-1] < last:
                        event = await reader.next()
                        revisions.append(event.revision)
            assert revisions == list(range(revisions[0], revisions[-1] + 1))
            told.append(revisions)
            after = (event.incarnation, event.revision) if len(told) % 3 else None
        await saving


async def save_all(store: Store, last: int) -> None:
    for number in range(2, last + 1):
        await store.run(save("w", str(number)))


# Bounds and ends.


@pytest.mark.parametrize("workflow_id", ["w", ""], ids=["workflow", "namespace"])
async def test_a_reader_that_is_too_slow_reads_what_waited_and_then_the_end(workflow_id: str) -> None:
    async with open_store() as store:
        async with store.watch(workflow_id) as slow, store.watch() as quick:
            await slow.next()
            await quick.next()
            for number in range(7):
                await store.run(save("w", str(number)))
                await quick.next()
            assert await slow.take(5) == [("SAVED", revision) for revision in range(1, 6)]
            ended = await slow.end()
        assert (ended.reason, ended.metadata["allowed"]) == ("WATCH_TOO_SLOW", "5")
        assert store.service.watches.watch_count == 0


async def test_no_more_than_so_many_watch() -> None:
    async with open_store() as store:
        async with store.watch() as one, store.watch("v") as two, store.watch("") as three:
            for reader in (one, two, three):
                await reader.next()
            async with store.watch() as fourth:
                ended = await fourth.end()
            assert (ended.reason, ended.metadata["limit"]) == ("QUOTA_EXCEEDED", "queue.watches_max")
        async with store.watch() as again:
            await again.next()


async def test_a_drain_ends_watches_after_what_waits_for_them() -> None:
    async with open_store() as store, store.watch() as reader:
        await reader.next()
        await store.run(save("w", "a"))
        store.service.begin_drain()
        assert await reader.take(1) == [("SAVED", 1)]
        assert (await reader.end()).reason == "NOT_SERVING"
        async with store.watch() as late:
            assert (await late.end()).reason == "NOT_SERVING"


async def test_a_batch_of_unknown_outcome_ends_watches_so_that_none_misses_it() -> None:
    async with open_store() as store:
        await store.run(save("w", "a"))
        async with store.watch() as reader:
            at = await reader.next()
            store.engine.fails = True
            outcomes = await store.run(save("w", "b"))
            assert isinstance(outcomes[0], StoreError)
            assert (await reader.end()).reason == "NOT_SERVING"
        async with asyncio.timeout(LONG_S):
            await store.is_back.wait()
        async with store.watch(after=(at.incarnation, at.revision)) as reader:
            assert (await reader.end()).reason == "WATCH_COMPACTED"
        async with store.watch() as reader:
            assert (await reader.next()).checkpoint_id == "b"


async def test_a_change_that_could_not_be_told_ends_watches_so_that_none_misses_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def events(command: Command, outcome: Answer | StoreError) -> Iterator[WatchEvent]:
        if type(command) is SendSignalCommand:
            raise RuntimeError("broken on purpose")
        return events_of(command, outcome)

    monkeypatch.setattr(watch_service, "events_of", events)
    async with open_store() as store:
        await store.run(save("w", "a"))
        at = store.at()
        async with store.watch("") as reader:
            assert (await reader.next()).kind is WatchKind.STARTED
            await store.run(save("w", "b"))
            await store.run(send_signal("w", "s"))
            await store.run(save("w", "c"))
            assert await reader.take(1) == [("SAVED", 2)]
            assert (await reader.end()).reason == "NOT_SERVING"
        async with store.watch(after=at) as reader:
            assert (await reader.end()).reason == "WATCH_COMPACTED"
    assert "a listener of commits failed" in caplog.text


async def test_values_are_not_kept_by_events() -> None:
    async with open_store() as store, store.watch("") as reader:
        await reader.next()
        await store.run(
            save("w", "a", {"x": "canary"}, metadata='{"m":"canary"}'),
            send_signal("w", "s", value=json_value("canary")),
        )
        assert "canary" not in repr([await reader.next() for _ in range(2)])
