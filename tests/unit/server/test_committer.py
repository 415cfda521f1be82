"""The committer against an engine that does as the test says: groups, bounds, turns, failures, draining."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, cast

import pytest

from milepost_server.config import QueueConfig
from milepost_server.errors import (
    OutcomeUnknownError,
    PreconditionError,
    ResourceError,
    StorageFailedError,
    StoreError,
    UnavailableError,
)
from milepost_server.limits import KIB, MIB
from milepost_server.model import (
    Answer,
    BatchSaveCommand,
    Command,
    DeleteWorkflowAnswer,
    DeleteWorkflowCommand,
    EncodedBatchSaveCommand,
    EncodedLoadAnswer,
    EncodedLoadQuery,
    LoadAnswer,
    LoadQuery,
    ProbeAnswer,
    ProbeCommand,
    RefusedItem,
    SaveAnswer,
    SaveCommand,
    SweepAnswer,
    SweepCommand,
)
from milepost_server.storage.committer import AHEAD_COMMANDS_MAX, Committer
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import load_query

Outcomes = Sequence[Answer | StoreError]
DELETED = DeleteWorkflowAnswer(existed=True, checkpoint_count=1)
LOAD = EncodedLoadQuery(b"load")
LOADED = cast(LoadAnswer, object())
"""Nobody on the way looks into it."""


class ScriptedCodec:
    """Reads every load as the same one."""

    def decode_save(self, body: bytes) -> SaveCommand:
        raise NotImplementedError

    def encode_saved(self, answer: SaveAnswer) -> bytes:
        raise NotImplementedError

    def decode_items(self, bodies: Sequence[bytes], first_number: int) -> tuple[SaveCommand | RefusedItem, ...]:
        return tuple(
            RefusedItem(PreconditionError("HEAD_MOVED", "moved"), "n", "w", "", body.decode()) for body in bodies
        )

    def encode_results(self, outcomes: Sequence[SaveAnswer | StoreError]) -> bytes:
        raise NotImplementedError

    def decode_load(self, body: bytes) -> tuple[LoadQuery, frozenset[int]]:
        return load_query("w"), frozenset()

    def encode_loaded(self, answer: LoadAnswer, query: LoadQuery, accepted: frozenset[int]) -> bytes:
        assert answer is LOADED
        return b"loaded"


class ScriptedEngine:
    """Notes what it is asked, and answers when and what the test says.

    Commands of callers are `DeleteWorkflowCommand`s, told apart by their workflow_id, and slices of batches, told apart
    by their first item.
    """

    def __init__(self) -> None:
        self.entered: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self.batches: list[list[str]] = []
        self.sweeps = 0
        self.swept: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.sweep_has_more: Callable[[], bool] = lambda: False
        self.on_sweep: Callable[[SweepCommand], StoreError | None] = lambda command: None
        self.reopens = 0
        self.reopened: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.on_reopen: Callable[[], None] = lambda: None
        self.on_execute: Callable[[list[str]], Outcomes | None] = lambda ids: None
        self.on_load: Callable[[LoadQuery], LoadAnswer] = lambda query: LOADED
        self.probes = 0
        self.on_probe: Callable[[], None] = lambda: None
        self._gate = threading.Semaphore(0)
        self._is_held = False
        self._entered_count = 0

    def hold(self) -> None:
        """Let no commit end until `release`."""
        self._is_held = True

    def release(self, count: int = 1) -> None:
        """Let this many held commits end."""
        self._gate.release(count)

    def stop_holding(self) -> None:
        """Let all commits end from now on."""
        self._is_held = False
        self._gate.release(1_000)

    async def next_batch(self) -> list[str]:
        """Return the next batch as soon as the engine has been asked to run it."""
        return await asyncio.to_thread(self.entered.get)

    def execute(self, commands: Sequence[Command]) -> Outcomes:
        """See `Engine`."""
        if isinstance(commands[0], SweepCommand):
            self.sweeps += 1
            outcome = self.on_sweep(commands[0])
            self.swept.put(None)
            return [outcome or SweepAnswer(0, self.sweep_has_more())]
        if isinstance(commands[0], ProbeCommand):
            self.probes += 1
            return [ProbeAnswer()]
        ids = [
            f"{command.items[0].checkpoint_id} x{len(command.items)}"
            if isinstance(command, BatchSaveCommand)
            else cast(DeleteWorkflowCommand, command).workflow_id
            for command in commands
        ]
        self.batches.append(ids)
        self.entered.put(ids)
        if self._is_held:
            self._gate.acquire()
        scripted = self.on_execute(ids)
        return scripted if scripted is not None else [DELETED for _ in ids]

    def command_lane(self, loop: asyncio.AbstractEventLoop) -> None:
        """It has none of its own: the committer calls it in a thread."""

    def load_lane(self, loop: asyncio.AbstractEventLoop, **options: object) -> None:
        """It has none of its own either."""

    def load(self, query: LoadQuery) -> LoadAnswer:
        """See `Engine`."""
        return self.on_load(query)

    def probe(self) -> ProbeAnswer:
        """See `Engine`."""
        self.on_probe()
        return ProbeAnswer()

    def reopen(self) -> None:
        """See `Engine`."""
        self.reopens += 1
        self.reopened.put(None)
        self.on_reopen()


def command(workflow_id: str, size_bytes: int = 10) -> DeleteWorkflowCommand:
    return DeleteWorkflowCommand(namespace="n", workflow_id=workflow_id, size_bytes=size_bytes)


@asynccontextmanager
async def running(
    engine: ScriptedEngine, config: QueueConfig | None = None, **options: Any
) -> AsyncIterator[Committer]:
    config = config or QueueConfig(sweep_interval_s=1e6, reopen_wait_min_s=0, reopen_wait_max_s=0)
    committer = Committer(cast(Engine, engine), config=config, codec=ScriptedCodec(), **options)
    try:
        yield committer
    finally:
        engine.stop_holding()
        await committer.close()


async def test_a_lone_command_is_committed_at_once_and_alone() -> None:
    engine = ScriptedEngine()
    async with running(engine) as committer:
        assert await committer.submit(command("a"), namespace="n") == DELETED
        assert engine.batches == [["a"]]


async def test_what_queues_during_a_commit_is_the_next_commit() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        first = committer.submit(command("a"), namespace="n")
        assert await engine.next_batch() == ["a"]
        others = [committer.submit(command(name), namespace="n") for name in "bcdef"]
        assert not any(each.done() for each in [first, *others])
        engine.release()
        assert await engine.next_batch() == list("bcdef")
        assert await first == DELETED
        assert not any(each.done() for each in others)
        engine.release()
        await asyncio.gather(*others)


async def test_a_batch_is_answered_with_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        first = committer.submit(command("first"), namespace="n")
        await engine.next_batch()
        many = [committer.submit(command(f"w{number}"), namespace="n") for number in range(50)]
        engine.release()
        await first
        await engine.next_batch()
        loop = asyncio.get_running_loop()
        wake_ups: list[object] = []
        sweeps_before = engine.sweeps
        post = loop.call_soon_threadsafe

        def counting(*arguments: Any, **options: Any) -> Any:
            wake_ups.append(arguments)
            return post(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
        engine.release()
        await asyncio.gather(*many)
        # A slice of sweeping may have followed, which has a wake-up of its own.
        assert len(wake_ups) <= 1 + engine.sweeps - sweeps_before


async def test_a_batch_is_bounded_by_count_and_by_bytes() -> None:
    config = QueueConfig(batch_commands_max=3, batch_bytes_max=30 * KIB, alone_bytes=20 * KIB, sweep_interval_s=1e6)
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine, config) as committer:
        futures = [committer.submit(command("first"), namespace="n")]
        await engine.next_batch()
        futures += [committer.submit(command(name), namespace="n") for name in "abcd"]
        futures += [committer.submit(command(name, 12 * KIB), namespace="n") for name in "efg"]
        futures += [committer.submit(command("alone", 25 * KIB), namespace="n")]
        futures += [committer.submit(command("last"), namespace="n")]
        engine.stop_holding()
        await asyncio.gather(*futures)
    assert engine.batches == [["first"], ["a", "b", "c"], ["d", "e", "f"], ["g"], ["alone"], ["last"]]


class PipelinedLane:
    """Takes batches while others run, and ends them when the test says so."""

    is_pipelined = True

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.futures: list[asyncio.Future[Outcomes]] = []

    def execute(self, commands: Sequence[Command]) -> asyncio.Future[Outcomes]:
        future: asyncio.Future[Outcomes] = asyncio.get_running_loop().create_future()
        if isinstance(commands[0], DeleteWorkflowCommand):
            self.batches.append([cast(DeleteWorkflowCommand, command).workflow_id for command in commands])
            self.futures.append(future)
        else:
            future.set_result([SweepAnswer(0, False) if isinstance(commands[0], SweepCommand) else ProbeAnswer()])
        return future

    def end(self, number: int) -> None:
        self.futures[number].set_result([DELETED] * len(self.batches[number]))

    async def reopen(self) -> None:
        """Be there again at once."""

    async def close(self) -> None:
        """Nothing is to be let go."""


class PipelinedEngine(ScriptedEngine):
    """Has a lane of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = PipelinedLane()

    def command_lane(self, loop: asyncio.AbstractEventLoop) -> Any:
        return self.lane


async def settle() -> None:
    """Let the callbacks run that are due."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_pipelined_lane_is_handed_what_comes_but_no_more_than_one_commit_may_take() -> None:
    """Neither by count nor by bytes, and what is large has a commit of its own."""
    config = QueueConfig(batch_commands_max=3, batch_bytes_max=30 * KIB, alone_bytes=20 * KIB, sweep_interval_s=1e6)
    engine = PipelinedEngine()
    lane = engine.lane
    async with running(engine, config) as committer:
        await settle()
        futures = []
        for name, size_bytes in (("a", 10), ("b", 10), ("c", 10), ("d", 10), ("e", 28 * KIB), ("f", 10)):
            futures.append(committer.submit(command(name, size_bytes), namespace="n"))
            await settle()
        assert lane.batches == [["a"], ["b"], ["c"]]
        lane.end(0)
        await settle()
        assert lane.batches[3:] == [["d"]]
        for number in (1, 2, 3):
            assert len(lane.batches) == 4
            lane.end(number)
            await settle()
        assert lane.batches[4:] == [["e"]]
        lane.end(4)
        await settle()
        assert lane.batches[5:] == [["f"]]
        lane.end(5)
        assert await asyncio.gather(*futures) == [DELETED] * 6


async def test_while_a_pipelined_lane_has_enough_to_do_what_comes_goes_over_together() -> None:
    """With its next answer that leaves it less, and without waiting for any more."""
    engine = PipelinedEngine()
    lane = engine.lane
    async with running(engine, QueueConfig(sweep_interval_s=1e6)) as committer:
        await settle()
        futures = []
        for number in range(AHEAD_COMMANDS_MAX + 5):
            futures.append(committer.submit(command(str(number)), namespace="n"))
            await settle()
        assert lane.batches == [[str(number)] for number in range(AHEAD_COMMANDS_MAX)]
        lane.end(0)
        await settle()
        together = [str(number) for number in range(AHEAD_COMMANDS_MAX, AHEAD_COMMANDS_MAX + 5)]
        assert lane.batches[AHEAD_COMMANDS_MAX:] == [together]
        for number in range(1, AHEAD_COMMANDS_MAX + 1):
            lane.end(number)
        assert await asyncio.gather(*futures) == [DELETED] * len(futures)


async def test_when_a_pipelined_lane_fails_all_under_way_is_unknown_and_the_rest_not_stored() -> None:
    engine = PipelinedEngine()
    lane = engine.lane
    config = QueueConfig(batch_commands_max=2, sweep_interval_s=1e6, reopen_wait_min_s=0, reopen_wait_max_s=0)
    async with running(engine, config) as committer:
        await settle()
        futures = []
        for name in "abc":
            futures.append(committer.submit(command(name), namespace="n"))
            await settle()
        assert lane.batches == [["a"], ["b"]]
        for future in lane.futures:
            future.set_exception(StorageFailedError("the storage process ended"))
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [cast(StoreError, each).reason for each in outcomes] == ["OUTCOME_UNKNOWN"] * 2 + ["NOT_SERVING"]
        await settle()
        again = committer.submit(command("d"), namespace="n")
        await settle()
        lane.end(2)
        assert await again == DELETED


async def test_namespaces_take_turns_and_each_keeps_its_order() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        futures = [committer.submit(command("first"), namespace="x")]
        await engine.next_batch()
        futures += [committer.submit(command(f"x{number}"), namespace="x") for number in range(4)]
        futures += [committer.submit(command(f"y{number}"), namespace="y") for number in range(2)]
        engine.stop_holding()
        await asyncio.gather(*futures)
    assert engine.batches[1] == ["x0", "y0", "x1", "y1", "x2", "x3"]


async def test_a_flood_of_one_namespace_does_not_hold_up_another() -> None:
    engine = ScriptedEngine()
    engine.hold()
    config = QueueConfig(batch_commands_max=4, sweep_interval_s=1e6)
    async with running(engine, config) as committer:
        futures = [committer.submit(command("first"), namespace="x")]
        await engine.next_batch()
        futures += [committer.submit(command(f"x{number}"), namespace="x") for number in range(100)]
        futures += [committer.submit(command("y"), namespace="y")]
        engine.stop_holding()
        await asyncio.gather(*futures)
    assert "y" in engine.batches[1]


async def test_a_full_queue_refuses_with_its_bound_and_keeps_what_it_has() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine, QueueConfig(calls_max=4, sweep_interval_s=1e6)) as committer:
        futures = [committer.submit(command("first"), namespace="n")]
        await engine.next_batch()
        futures += [committer.submit(command(name), namespace="n") for name in "ab"]
        with pytest.raises(ResourceError) as refused:
            await committer.submit(command("c"), namespace="n")
        assert refused.value.reason == "QUEUE_FULL"
        assert refused.value.metadata == {
            "limit": "queue.calls_max",
            "allowed": "2",
            "found": "3",
            "unit": "calls",
            "namespace": "n",
        }
        assert refused.value.retry_after_s
        engine.stop_holding()
        await asyncio.gather(*futures)
        await committer.submit(command("d"), namespace="n")
    assert [name for batch in engine.batches for name in batch] == ["first", "a", "b", "d"]


async def test_the_queue_is_bounded_by_bytes_but_takes_one_call_of_any_size() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine, QueueConfig(bytes_max=MIB, calls_max=4, sweep_interval_s=1e6)) as committer:
        futures = [committer.submit(command("first"), namespace="n")]
        await engine.next_batch()
        futures.append(committer.submit(command("huge", 2 * MIB), namespace="n"))
        for _ in range(4):
            with pytest.raises(ResourceError) as refused:
                await committer.submit(command("small"), namespace="n")
            assert refused.value.metadata["limit"] == "queue.bytes_max"
        engine.stop_holding()
        await asyncio.gather(*futures)
        # What was refused does not count as calls either.
        await asyncio.gather(*(committer.submit(command("after"), namespace="n") for _ in range(2)))


Series = Generator[Command, Answer | StoreError, list[Answer | StoreError]]


def series_of(*commands: Command) -> Series:
    """Yield commands one after the other, and return all outcomes."""
    outcomes: list[Answer | StoreError] = []
    for each in commands:
        outcome = yield each
        outcomes.append(outcome)
    return outcomes


def submit_series(committer: Committer, *names: str, namespace: str = "n") -> asyncio.Future[list[Answer | StoreError]]:
    return committer.submit_series(
        series_of(*map(command, names)), namespace=namespace, command_count=len(names), size_bytes=100
    )


def slice_of(name: str, count: int) -> EncodedBatchSaveCommand:
    return EncodedBatchSaveCommand((name.encode(),) * count, count)


async def test_a_series_is_one_call_until_its_end_and_others_come_between_its_commands() -> None:
    engine = ScriptedEngine()
    engine.hold()
    failure = PreconditionError("HEAD_MOVED", "moved")
    engine.on_execute = lambda ids: [failure if name == "b" else DELETED for name in ids]
    async with running(engine, QueueConfig(calls_max=4, sweep_interval_s=1e6)) as committer:
        series = submit_series(committer, "a", "b", "c")
        assert await engine.next_batch() == ["a"]
        other = committer.submit(command("other"), namespace="n")
        with pytest.raises(ResourceError, match="3 calls wait for a commit, at most 2"):
            await committer.submit(command("one too many"), namespace="n")
        engine.release(1)
        assert await engine.next_batch() == ["other", "b"]
        engine.release(1)
        await other
        assert await engine.next_batch() == ["c"]
        # The last command is under way, and still it counts.
        waiting = committer.submit(command("waiting"), namespace="n")
        with pytest.raises(ResourceError):
            await committer.submit(command("one too many"), namespace="n")
        engine.stop_holding()
        assert await series == [DELETED, failure, DELETED]
        await waiting
        await asyncio.gather(*(committer.submit(command("after"), namespace="n") for _ in range(2)))


async def test_a_series_counts_all_its_bytes_until_its_end() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine, QueueConfig(bytes_max=MIB, sweep_interval_s=1e6)) as committer:
        series = committer.submit_series(
            series_of(command("a"), command("b")), namespace="n", command_count=2, size_bytes=MIB - 4 * KIB
        )
        await engine.next_batch()
        engine.release(1)
        await engine.next_batch()
        with pytest.raises(ResourceError) as refused:
            await committer.submit(command("large", 4 * KIB), namespace="n")
        assert refused.value.metadata["limit"] == "queue.bytes_max"
        engine.stop_holding()
        await series
        await committer.submit(command("large", 4 * KIB), namespace="n")


async def test_a_slice_counts_as_its_items_in_a_commit_and_in_turns() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        first = committer.submit(command("first"), namespace="n")
        await engine.next_batch()
        slices = [committer.submit(slice_of(f"s{number}", 128), namespace="busy") for number in range(4)]
        small = [committer.submit(command(f"w{number}"), namespace="small") for number in range(300)]
        engine.release(1)
        batch = await engine.next_batch()
        engine.stop_holding()
        await asyncio.gather(first, *slices, *small)
    assert batch == ["s0 x128", *(f"w{number}" for number in range(128))]


async def test_a_slice_that_does_not_fit_a_commit_waits_for_the_next() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        first = committer.submit(command("first"), namespace="n")
        await engine.next_batch()
        slices = [committer.submit(slice_of(f"s{number}", 100), namespace="n") for number in range(3)]
        engine.stop_holding()
        await asyncio.gather(first, *slices)
    assert engine.batches[1:] == [["s0 x100", "s1 x100"], ["s2 x100"]]


async def test_what_a_series_raises_reaches_its_caller_and_the_committer_goes_on() -> None:
    engine = ScriptedEngine()

    def raising() -> Series:
        yield command("a")
        raise ZeroDivisionError("as the test says")

    async with running(engine) as committer:
        with pytest.raises(ZeroDivisionError):
            await committer.submit_series(raising(), namespace="n", command_count=1, size_bytes=1)
        assert await committer.submit(command("b"), namespace="n") == DELETED


async def test_a_drain_runs_a_series_to_its_end() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        series = submit_series(committer, "a", "b", "c")
        await engine.next_batch()
        closing = asyncio.create_task(committer.close())
        engine.stop_holding()
        await closing
        assert await series == [DELETED] * 3
    assert engine.batches == [["a"], ["b"], ["c"]]


async def test_a_command_whose_caller_has_gone_is_dropped_before_it_starts_and_never_after() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        started = committer.submit(command("started"), namespace="n")
        await engine.next_batch()
        waiting = committer.submit(command("waiting"), namespace="n")
        last = committer.submit(command("last"), namespace="n")
        started.cancel()
        waiting.cancel()
        engine.stop_holding()
        await last
    assert engine.batches == [["started"], ["last"]]


async def test_the_commands_of_a_series_run_though_its_caller_has_gone() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        first = committer.submit(command("first"), namespace="n")
        await engine.next_batch()
        submit_series(committer, "a", "b").cancel()
        engine.stop_holding()
        await first
    assert engine.batches == [["first"], ["a"], ["b"]]


async def test_an_error_of_one_command_is_its_own() -> None:
    engine = ScriptedEngine()
    engine.hold()
    engine.on_execute = lambda ids: [
        PreconditionError("HEAD_MOVED", "moved") if name == "b" else DELETED for name in ids
    ]
    async with running(engine) as committer:
        futures = [committer.submit(command(name), namespace="n") for name in "abc"]
        engine.stop_holding()
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(each) for each in outcomes] == [DeleteWorkflowAnswer, PreconditionError, DeleteWorkflowAnswer]


async def test_a_defect_of_the_engine_is_an_internal_error_and_the_writer_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine()

    def fail_once(ids: list[str]) -> Outcomes | None:
        if ids == ["a"]:
            raise ZeroDivisionError("secret text")
        return None

    engine.on_execute = fail_once
    async with running(engine) as committer:
        with pytest.raises(StoreError) as failed:
            await committer.submit(command("a"), namespace="n")
        assert failed.value.reason == "INTERNAL_ERROR"
        assert "secret" not in failed.value.message
        assert failed.value.metadata["error_id"] in caplog.text
        assert await committer.submit(command("b"), namespace="n") == DELETED
    assert "ZeroDivisionError" in caplog.text


async def test_failed_storage_makes_the_batch_unknown_and_all_else_not_serving_until_it_is_back() -> None:
    engine = ScriptedEngine()
    engine.hold()
    may_reopen = threading.Event()
    health: list[bool] = []
    recovered = asyncio.Event()

    def on_health(is_serving: bool) -> None:
        health.append(is_serving)
        if is_serving:
            recovered.set()

    def fail(ids: list[str]) -> Outcomes | None:
        if "a" in ids:
            raise StorageFailedError("meta page")
        return None

    def reopen() -> None:
        may_reopen.wait()
        if engine.reopens < 3:
            raise StorageFailedError("still broken")

    engine.on_execute, engine.on_reopen = fail, reopen
    async with running(engine, on_health=on_health) as committer:
        batch = [committer.submit(command("a"), namespace="n")]
        begun = submit_series(committer, "a2", "a3", "a4")
        await engine.next_batch()
        queued = [committer.submit(command(name), namespace="n") for name in "bc"]
        group = submit_series(committer, "d", "e")
        engine.stop_holding()
        outcomes = await asyncio.gather(*batch, *queued, return_exceptions=True)
        assert isinstance(outcomes[0], OutcomeUnknownError)
        assert [cast(StoreError, each).reason for each in outcomes[1:]] == ["NOT_SERVING"] * 2
        assert [cast(StoreError, each).reason for each in await group] == ["NOT_SERVING"] * 2
        # A series ends with what was under way: its further commands are not started.
        assert [cast(StoreError, each).reason for each in await begun] == ["OUTCOME_UNKNOWN", *["NOT_SERVING"] * 2]
        await asyncio.to_thread(engine.reopened.get)
        assert health == [False]
        assert not committer.is_serving
        with pytest.raises(UnavailableError, match="storage") as refused:
            await committer.submit(command("f"), namespace="n")
        assert refused.value.reason == "NOT_SERVING"
        assert refused.value.retry_after_s
        with pytest.raises(UnavailableError):
            await committer.scan(lambda: 1, namespace="n")
        with pytest.raises(UnavailableError):
            await committer.load(LOAD, namespace="n")
        may_reopen.set()
        await recovered.wait()
        assert health == [False, True]
        assert (engine.reopens, engine.probes) == (3, 1)
        assert await committer.submit(command("g"), namespace="n") == DELETED
        assert await committer.scan(lambda: 1, namespace="n") == 1
    assert engine.batches == [["a", "a2"], ["g"]]


async def test_what_was_lost_with_the_storage_counts_no_more() -> None:
    engine = ScriptedEngine()
    recovered = asyncio.Event()

    def fail(ids: list[str]) -> Outcomes | None:
        if "a" in ids:
            raise StorageFailedError("meta page")
        return None

    def on_health(is_serving: bool) -> None:
        if is_serving:
            recovered.set()

    engine.on_execute = fail
    config = QueueConfig(calls_max=4, bytes_max=MIB, sweep_interval_s=1e6)
    async with running(engine, config, on_health=on_health) as committer:
        await committer.submit_series(
            series_of(command("a"), command("b")), namespace="n", command_count=2, size_bytes=MIB - 4 * KIB
        )
        await recovered.wait()
        await asyncio.gather(*(committer.submit(command("large", 100 * KIB), namespace="n") for _ in range(2)))


async def test_a_read_that_finds_the_storage_failed_starts_the_recovery_too() -> None:
    engine = ScriptedEngine()
    recovered = asyncio.Event()

    def fail() -> None:
        raise StorageFailedError("panic")

    def on_health(is_serving: bool) -> None:
        if is_serving:
            recovered.set()

    async with running(engine, on_health=on_health) as committer:
        with pytest.raises(UnavailableError) as refused:
            await committer.scan(fail, namespace="n")
        assert refused.value.reason == "NOT_SERVING"
        await recovered.wait()
        assert await committer.scan(lambda: 2, namespace="n") == 2
    assert engine.reopens == 1


class NotedHealth:
    """What the committer says of its storage, as it changes."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self._changes: asyncio.Queue[bool] = asyncio.Queue()

    def __call__(self, is_serving: bool) -> None:
        self.told.append(is_serving)
        self._changes.put_nowait(is_serving)

    async def next(self) -> bool:
        return await asyncio.wait_for(self._changes.get(), 10)


def note_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what the committer waits from now on before it reopens; it no longer does."""
    waits: list[float] = []
    real = asyncio.timeout

    def noting(delay_s: float) -> asyncio.Timeout:
        waits.append(delay_s)
        return real(0)

    monkeypatch.setattr("milepost_server.storage.committer.asyncio.timeout", noting)
    return waits


async def test_storage_that_keeps_failing_soon_after_it_came_back_is_reopened_ever_less_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a process that the kernel kills each time it has grown. Tries that fail in between count as well."""
    waits = note_waits(monkeypatch)
    engine = ScriptedEngine()
    health = NotedHealth()
    now_s = 0.0

    def fail(ids: list[str]) -> Outcomes:
        raise StorageFailedError("killed")

    def fail_third() -> None:
        if engine.reopens == 3:
            raise StorageFailedError("killed at its start")

    engine.on_execute, engine.on_reopen = fail, fail_third
    config = QueueConfig(sweep_interval_s=1e6, reopen_wait_min_s=0.1, reopen_wait_max_s=1.0)
    async with running(engine, config, on_health=health, clock=lambda: now_s) as committer:
        for sound_s in (2, 2, 2, 59, 59, 59, 60, 2):
            with pytest.raises(OutcomeUnknownError):
                await committer.submit(command("a"), namespace="n")
            assert [await health.next(), await health.next()] == [False, True]
            now_s += sound_s
    assert waits == [0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 0]
    assert "the storage failed again; failed 2 times in 2 s, next try in 0.1 s" in caplog.text
    assert "killed at its start')); failed 4 times in 4 s, next try in 0.4 s" in caplog.text
    assert "failed 8 times in 183 s, next try in 1.0 s" in caplog.text


async def test_health_tells_of_storage_that_hangs_until_it_answers_again() -> None:
    """It does so each time, and not before the bound; the call itself goes on waiting and is answered."""
    engine = ScriptedEngine()
    engine.hold()
    health = NotedHealth()
    now_s = 0.0
    looks: asyncio.Queue[None] = asyncio.Queue()

    def clock() -> float:
        looks.put_nowait(None)
        return now_s

    config = QueueConfig(sweep_interval_s=1e6, commit_wait_max_s=0.001)
    async with running(engine, config, on_health=health, clock=clock) as committer:
        for _ in range(2):
            saved = committer.submit(command("a"), namespace="n")
            await engine.next_batch()
            while not looks.empty():
                looks.get_nowait()
            for _ in range(6):
                await asyncio.wait_for(looks.get(), 30)
            assert health.told.count(False) == health.told.count(True)
            now_s += 0.001
            assert await health.next() is False
            assert committer.is_serving
            assert not saved.done()
            engine.release()
            assert await health.next() is True
            assert await saved == DELETED


async def test_storage_that_answers_one_commit_and_hangs_in_the_next_is_told_of_again() -> None:
    """Also where that one had been handed over already."""
    engine = PipelinedEngine()
    health = NotedHealth()
    config = QueueConfig(sweep_interval_s=1e6, commit_wait_max_s=0.001)
    async with running(engine, config, on_health=health) as committer:
        await settle()
        saved = []
        for name in "ab":
            saved.append(committer.submit(command(name), namespace="n"))
            await settle()
        assert engine.lane.batches == [["a"], ["b"]]
        assert await health.next() is False
        engine.lane.end(0)
        assert await health.next() is True
        try:
            assert await health.next() is False
        finally:
            engine.lane.end(1)
        assert await health.next() is True
        assert await asyncio.gather(*saved) == [DELETED] * 2


async def test_storage_that_hung_and_then_failed_is_good_again_once_it_is_back() -> None:
    engine = ScriptedEngine()
    health = NotedHealth()

    def fail(ids: list[str]) -> Outcomes | None:
        if ids == ["a"]:
            raise StorageFailedError("killed")
        return None

    engine.on_execute = fail
    config = QueueConfig(sweep_interval_s=1e6, commit_wait_max_s=0.01)
    async with running(engine, config, on_health=health) as committer:
        # Behind the first sweep, whose answer would tell that the storage is good.
        await committer.submit(command("first"), namespace="n")
        await asyncio.to_thread(engine.swept.get)
        await committer.submit(command("second"), namespace="n")
        for _ in list(health.told):
            await health.next()
        engine.hold()
        saved = committer.submit(command("a"), namespace="n")
        assert await health.next() is False
        engine.release()
        with pytest.raises(OutcomeUnknownError):
            await saved
        assert await health.next() is True


async def test_health_tells_of_an_idle_server_whose_storage_hangs_until_it_answers_again() -> None:
    """Each time; and nothing is written to find out."""
    engine = ScriptedEngine()
    health = NotedHealth()
    go = threading.Semaphore(0)
    engine.on_probe = lambda: cast(None, go.acquire())
    config = QueueConfig(sweep_interval_s=1e6, commit_wait_max_s=0.001, probe_interval_s=0.001)
    async with running(engine, config, on_health=health):
        try:
            for _ in range(2):
                assert await health.next() is False
                go.release()
                assert await health.next() is True
        finally:
            go.release(100)
    assert engine.batches == []
    assert engine.probes == 0


async def test_health_tells_of_reads_that_hang_though_commits_do_not() -> None:
    """It goes on to say so whatever is committed, until there is an answer to a read."""
    engine = ScriptedEngine()
    health = NotedHealth()
    go = threading.Event()

    def hold(query: LoadQuery) -> LoadAnswer:
        go.wait()
        return LOADED

    engine.on_load = hold
    # Time enough for commits, however busy the machine: what is told must be of the read.
    config = QueueConfig(read_calls_max=1, sweep_interval_s=1e6, commit_wait_max_s=0.5, probe_interval_s=0.05)
    async with running(engine, config, on_health=health) as committer:
        try:
            loads = [committer.load(LOAD, namespace="n")]
            assert await health.next() is False
            assert await committer.submit(command("a"), namespace="n") == DELETED
            assert health.told == [False]
        finally:
            go.set()
        assert await health.next() is True
        await asyncio.gather(*loads)


async def test_storage_that_answers_is_read_from_now_and_then_without_a_word_of_it() -> None:
    engine = ScriptedEngine()
    health = NotedHealth()
    probed: queue.SimpleQueue[None] = queue.SimpleQueue()
    engine.on_probe = lambda: probed.put(None)
    config = QueueConfig(sweep_interval_s=1e6, commit_wait_max_s=30, probe_interval_s=0.001)
    async with running(engine, config, on_health=health):
        for _ in range(3):
            await asyncio.to_thread(probed.get)
    assert health.told == []


async def test_close_ends_a_recovery_that_does_not_succeed() -> None:
    engine = ScriptedEngine()

    def fail(*_: object) -> None:
        raise StorageFailedError("gone for good")

    engine.on_reopen = fail
    engine.on_execute = fail
    config = QueueConfig(sweep_interval_s=1e6, reopen_wait_min_s=1e5, reopen_wait_max_s=1e5)
    async with running(engine, config) as committer:
        with pytest.raises(OutcomeUnknownError):
            await committer.submit(command("a"), namespace="n")
        await asyncio.to_thread(engine.reopened.get)


async def test_close_commits_what_was_accepted_and_then_refuses() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with running(engine) as committer:
        futures = [committer.submit(command("first"), namespace="n")]
        await engine.next_batch()
        futures += [committer.submit(command(name), namespace="n") for name in "abc"]
        closing = asyncio.create_task(committer.close())
        # One turn of the loop: closing begins by refusing what comes later.
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="draining") as refused:
            await committer.submit(command("late"), namespace="n")
        assert refused.value.reason == "NOT_SERVING"
        engine.stop_holding()
        await closing
        assert all(each.done() and each.result() for each in futures)
    assert engine.batches == [["first"], ["a", "b", "c"]]


async def test_the_sweeper_runs_when_idle_slice_by_slice_until_nothing_is_left() -> None:
    engine = ScriptedEngine()
    engine.sweep_has_more = lambda: engine.sweeps < 5
    async with running(engine):
        for _ in range(5):
            await asyncio.to_thread(engine.swept.get)
    assert engine.sweeps == 5


async def test_the_sweeper_passes_over_what_is_damaged_and_frees_the_rest() -> None:
    engine = ScriptedEngine()
    asked: list[tuple[str, ...]] = []

    def sweep(command: SweepCommand) -> StoreError | None:
        asked.append(command.passed_over)
        place = {0: "aa", 1: "bb"}.get(len(command.passed_over))
        return StoreError("RECORD_DAMAGED", "damaged", {"place": place}) if place is not None else None

    engine.on_sweep = sweep
    async with running(engine):
        for _ in range(3):
            await asyncio.to_thread(engine.swept.get)
    assert asked == [(), ("aa",), ("aa", "bb")]


async def test_a_delete_wakes_the_sweeper() -> None:
    engine = ScriptedEngine()
    async with running(engine) as committer:
        await asyncio.to_thread(engine.swept.get)
        await committer.submit(command("a"), namespace="n")
        await asyncio.to_thread(engine.swept.get)


async def test_saves_come_before_the_sweeper_but_cannot_starve_it() -> None:
    engine = ScriptedEngine()
    engine.hold()
    engine.sweep_has_more = lambda: True
    now_s = [0.0]
    config = QueueConfig(batch_commands_max=1, sweep_interval_s=1e6)
    async with running(engine, config, clock=lambda: now_s[0]) as committer:
        futures = [committer.submit(command("first"), namespace="n")]
        await engine.next_batch()
        sweeps_before = engine.sweeps
        futures += [committer.submit(command(name), namespace="n") for name in "ab"]
        engine.release()
        await engine.next_batch()
        # Two commits without a sweep between, though there is something to sweep.
        assert engine.sweeps == sweeps_before
        now_s[0] += 10
        engine.release()
        await engine.next_batch()
        # A second under load is long enough: one slice came before the next commit, and only one.
        assert engine.sweeps == sweeps_before + 1
        engine.sweep_has_more = lambda: False
        engine.stop_holding()
        await asyncio.gather(*futures)


async def test_reads_are_answered_off_the_loop_and_bounded() -> None:
    engine = ScriptedEngine()
    is_held = threading.Event()
    go = threading.Event()
    names: list[str] = []

    def hold(query: LoadQuery) -> LoadAnswer:
        names.append(threading.current_thread().name)
        is_held.set()
        go.wait()
        return LOADED

    engine.on_load = hold
    async with running(engine, QueueConfig(read_calls_max=4, sweep_interval_s=1e6)) as committer:
        held = committer.load(LOAD, namespace="n")
        await asyncio.to_thread(is_held.wait)
        others = [committer.load(LOAD, namespace="n") for _ in range(2)]
        with pytest.raises(ResourceError) as refused:
            await committer.load(LOAD, namespace="n")
        assert refused.value.reason == "QUEUE_FULL"
        assert refused.value.metadata["limit"] == "queue.read_calls_max"
        # A long read has threads of its own.
        assert await committer.scan(lambda: "scanned", namespace="n") == "scanned"
        go.set()
        assert await asyncio.gather(held, *others) == [EncodedLoadAnswer(b"loaded")] * 3
    assert all(name.startswith("milepost-load") for name in names)


async def test_an_error_of_a_read_is_its_callers() -> None:
    def fail() -> None:
        raise KeyError("x")

    async with running(ScriptedEngine()) as committer:
        with pytest.raises(KeyError):
            await committer.scan(fail, namespace="n")
        assert await committer.scan(lambda: 1, namespace="n") == 1


class NotingObserver:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.captures = 0
        self.commits: list[tuple[list[object], int]] = []

    def capture(self) -> object:
        self.captures += 1
        return f"span {self.captures}"

    def committing(self, captured: Sequence[object], command_count: int) -> Any:
        self.commits.append((list(captured), command_count))
        return nullcontext()


async def test_an_observer_sees_each_commit_with_the_spans_of_its_calls() -> None:
    engine = ScriptedEngine()
    engine.hold()
    observer = NotingObserver()
    async with running(engine, observer=observer) as committer:
        first = committer.submit(command("first"), namespace="n")
        await engine.next_batch()
        rest = [
            committer.submit(command("a"), namespace="n"),
            submit_series(committer, "b", "c"),
            committer.submit(slice_of("s", 3), namespace="n"),
        ]
        engine.stop_holding()
        await asyncio.gather(first, *rest)
    commits = [commit for commit in observer.commits if commit[0]]
    assert commits == [(["span 1"], 1), (["span 2", "span 3", "span 4"], 5), (["span 3"], 1)]


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[list[str], list[object]]] = []
        self.failures = 0
        self.on_told: Callable[[], None] = lambda: None

    def on_commit(self, commands: Sequence[Command], outcomes: Outcomes) -> None:
        names = [getattr(each, "workflow_id", type(each).__name__) for each in commands]
        self.told.append((names, list(outcomes)))
        self.on_told()

    def on_failure(self) -> None:
        self.failures += 1


async def test_a_listener_hears_of_every_commit_before_who_waits_for_it_and_of_abandoned_ones_too() -> None:
    engine = ScriptedEngine()
    engine.hold()
    failure = PreconditionError("HEAD_MOVED", "moved")
    engine.on_execute = lambda ids: [failure if name == "b" else DELETED for name in ids]
    listener = Listener()
    async with running(engine) as committer:
        committer.listen(listener)
        gone = committer.submit(command("gone"), namespace="n")
        await engine.next_batch()
        gone.cancel()
        others = [committer.submit(command(name), namespace="n") for name in "ab"]
        were_done: list[bool] = []
        listener.on_told = lambda: were_done.append(any(each.done() for each in others))
        engine.stop_holding()
        await asyncio.gather(*others, return_exceptions=True)
        told = [each for each in listener.told if each[0] != ["SweepCommand"]]
        assert told == [(["gone"], [DELETED]), (["a", "b"], [DELETED, failure])]
        assert not any(were_done)
    assert listener.failures == 0


async def test_a_listener_hears_of_sweeps() -> None:
    engine = ScriptedEngine()
    listener = Listener()
    async with running(engine) as committer:
        committer.listen(listener)
        await asyncio.to_thread(engine.swept.get)
        await committer.submit(command("a"), namespace="n")
    assert (["SweepCommand"], [SweepAnswer(0, False)]) in listener.told


async def test_a_listener_that_fails_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine()
    listener = Listener()

    def fail() -> None:
        raise ZeroDivisionError

    listener.on_told = fail
    async with running(engine) as committer:
        committer.listen(listener)
        assert await committer.submit(command("a"), namespace="n") == DELETED
        assert await committer.submit(command("b"), namespace="n") == DELETED
    assert "a listener of commits failed" in caplog.text


@pytest.mark.parametrize("error", [StorageFailedError("failed"), ZeroDivisionError("a defect")], ids=repr)
async def test_a_listener_hears_of_a_commit_that_nobody_knows_of(error: Exception) -> None:
    engine = ScriptedEngine()
    listener = Listener()

    def fail(ids: list[str]) -> Outcomes | None:
        raise error

    engine.on_execute = fail
    async with running(engine) as committer:
        committer.listen(listener)
        with pytest.raises(StoreError):
            await committer.submit(command("a"), namespace="n")
        assert listener.failures == 1
