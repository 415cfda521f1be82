"""Loads and commands on their way to a storage process, over real sockets whose other end is in the test's hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from milepost_server.errors import NotFoundError, ResourceError, StorageFailedError, StoreError, UnavailableError
from milepost_server.limits import MIB
from milepost_server.model import EncodedLoadAnswer, EncodedLoadQuery, ProbeAnswer, ProbeCommand, ProbeQuery
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage import frames
from milepost_server.storage.process_lanes import (
    GATHER_LOADS_MAX,
    ROUND_LOADS,
    ProcessCommandLane,
    ProcessLoadLane,
)
from milepost_server.testing.builders import save

BUFFER_BYTES = 4096
"""What the sockets are told to keep, so that a large frame goes in many parts."""
GONE = NotFoundError("WORKFLOW_NOT_FOUND", "there is no such workflow", {"workflow_id": "w"})


class Process:
    """The other end of one connection after another: receives and answers when the test says so."""

    def __init__(self) -> None:
        self.is_away = False
        self.connects = 0
        self.failures = 0
        self.has_failed = asyncio.Event()
        self.ends: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        self.mine, self.theirs = socket.socketpair()
        self.received = frames.FrameBuffer()
        self.ends += [self.mine, self.theirs]
        for each in (self.mine, self.theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.theirs.setblocking(False)

    def die(self) -> None:
        """End, and have a successor for whoever connects again."""
        self.theirs.close()
        self.start()

    def connect(self) -> socket.socket:
        if self.is_away:
            raise ConnectionError("not started again yet")
        self.connects += 1
        return self.mine

    def note_failure(self) -> None:
        self.failures += 1
        self.has_failed.set()

    async def receive(self) -> list[Any]:
        """Return the items of the next frame."""
        while True:
            try:
                items = self.received.receive(self.theirs)
            except BlockingIOError:
                await readable(self.theirs)
                continue
            if items:
                return items

    async def answer(self, items: list[Any]) -> None:
        for part in frames.pack(items):
            await asyncio.get_running_loop().sock_sendall(self.theirs, part)


async def readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    has_come = asyncio.Event()
    loop.add_reader(connection, has_come.set)
    try:
        await has_come.wait()
    finally:
        loop.remove_reader(connection)


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    for end in process.ends:
        end.close()


@asynccontextmanager
async def loading(
    process: Process, *, calls_max: int = 100, frame_loads_max: int = 32
) -> AsyncIterator[ProcessLoadLane]:
    lane = ProcessLoadLane(
        asyncio.get_running_loop(),
        process.connect,
        bound=SharedBound("queue.read_calls_max", calls_max, what="Loads wait", retry_after_s=0.1),
        frame_loads_max=frame_loads_max,
        on_failure=process.note_failure,
    )
    yield lane
    await lane.close()


def query(name: str) -> EncodedLoadQuery:
    return EncodedLoadQuery(name.encode())


def names(queries: list[Any]) -> list[str]:
    return [each.body.decode() for each in queries]


def loaded(content: str = "") -> EncodedLoadAnswer:
    return EncodedLoadAnswer(content.encode())


async def test_loads_asked_together_go_out_as_one_frame_and_each_gets_its_own_answer(process: Process) -> None:
    async with loading(process) as lane:
        futures = [lane.submit(query(name), namespace="n") for name in "abc"]
        assert names(await process.receive()) == list("abc")
        answer = loaded()
        await process.answer([answer, GONE, answer])
        assert await futures[0] == answer
        with pytest.raises(NotFoundError) as refused:
            await futures[1]
        assert refused.value.metadata == {"workflow_id": "w"}
        assert await futures[2] == answer


async def test_what_is_asked_meanwhile_waits_for_the_next_frame(process: Process) -> None:
    async with loading(process) as lane:
        first = lane.submit(query("a"), namespace="n")
        assert names(await process.receive()) == ["a"]
        others = [lane.submit(query(name), namespace="n") for name in "bc"]
        await process.answer([loaded()])
        await first
        assert names(await process.receive()) == ["b", "c"]
        await process.answer([loaded()] * 2)
        await asyncio.gather(*others)


def note_timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the delays of the timers that are set from now on."""
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    delays: list[float] = []

    def noting(delay_s: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        delays.append(delay_s)
        return call_later(delay_s, *arguments, **options)

    monkeypatch.setattr(loop, "call_later", noting)
    return delays


async def be_busy(lane: ProcessLoadLane, process: Process) -> None:
    """Load as many callers do."""
    for _ in range(2 * ROUND_LOADS // GATHER_LOADS_MAX):
        burst = [lane.submit(query("a"), namespace="n") for _ in range(GATHER_LOADS_MAX)]
        await process.receive()
        await process.answer([loaded()] * GATHER_LOADS_MAX)
        await asyncio.gather(*burst)


async def test_loads_of_many_callers_gather_until_as_many_wait_as_were_open_at_once(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst says that many are at work; those that come one by one after it then go out together."""
    async with loading(process) as lane:
        await be_busy(lane, process)
        delays = note_timers(monkeypatch)
        gathered = []
        for number in range(GATHER_LOADS_MAX):
            gathered.append(lane.submit(query(str(number)), namespace="n"))
            await asyncio.sleep(0)
        assert len(delays) >= 1
        assert names(await process.receive()) == [str(number) for number in range(GATHER_LOADS_MAX)]
        await process.answer([loaded()] * GATHER_LOADS_MAX)
        await asyncio.gather(*gathered)


async def test_a_gap_ends_the_gathering_and_a_lone_caller_is_soon_not_kept_any_more(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loading(process) as lane:
        await be_busy(lane, process)
        delays = note_timers(monkeypatch)
        for _ in range(2 * ROUND_LOADS):
            future = lane.submit(query("b"), namespace="n")
            assert names(await process.receive()) == ["b"]
            await process.answer([loaded()])
            await future
        # Each wait is of two gaps or a little more, and each halves the next target.
        assert 0 < len(delays) <= 4 * GATHER_LOADS_MAX.bit_length()


async def test_a_caller_that_was_always_alone_is_never_kept(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it calls."""
    async with loading(process) as lane:
        delays = note_timers(monkeypatch)
        for _ in range(4 * ROUND_LOADS):
            future = lane.submit(query("a"), namespace="n")
            await process.receive()
            await process.answer([loaded()])
            await future
        assert delays == []


async def test_close_does_not_wait_for_loads_to_gather(process: Process) -> None:
    async with loading(process) as lane:
        await be_busy(lane, process)
        last = lane.submit(query("b"), namespace="n")
        closing = asyncio.ensure_future(lane.close())
        assert names(await process.receive()) == ["b"]
        await process.answer([loaded()])
        await asyncio.gather(last, closing)


async def test_a_frame_carries_no_more_than_its_bound(process: Process) -> None:
    async with loading(process, frame_loads_max=2) as lane:
        futures = [lane.submit(query(name), namespace="n") for name in "abc"]
        assert names(await process.receive()) == ["a", "b"]
        await process.answer([loaded()] * 2)
        assert names(await process.receive()) == ["c"]
        await process.answer([loaded()])
        await asyncio.gather(*futures)


async def test_one_load_too_many_is_refused_with_the_bound(process: Process) -> None:
    async with loading(process, calls_max=4) as lane:
        futures = [lane.submit(query(name), namespace="n") for name in "ab"]
        with pytest.raises(ResourceError) as refused:
            await lane.submit(query("c"), namespace="n")
        assert refused.value.reason == "QUEUE_FULL"
        assert refused.value.metadata["limit"] == "queue.read_calls_max"
        assert refused.value.retry_after_s
        await process.receive()
        await process.answer([loaded()] * 2)
        await asyncio.gather(*futures)


async def test_a_probe_goes_out_behind_what_waits_however_full_it_is(process: Process) -> None:
    async with loading(process, calls_max=1) as lane:
        load = lane.submit(query("a"), namespace="n")
        probe = lane.probe()
        asked = await process.receive()
        assert names(asked[:1]) == ["a"]
        assert isinstance(asked[1], ProbeQuery)
        await process.answer([loaded(), ProbeAnswer()])
        await load
        assert await probe == ProbeAnswer()
        assert lane.answered_count == 2


async def test_a_load_that_was_given_up_in_time_is_not_asked(process: Process) -> None:
    async with loading(process) as lane:
        futures = [lane.submit(query(name), namespace="n") for name in "ab"]
        futures[0].cancel()
        assert names(await process.receive()) == ["b"]
        await process.answer([loaded()])
        await futures[1]


async def test_a_load_that_is_given_up_later_leaves_the_others_their_answers(process: Process) -> None:
    async with loading(process) as lane:
        futures = [lane.submit(query(name), namespace="n") for name in "ab"]
        await process.receive()
        futures[0].cancel()
        await process.answer([GONE, loaded()])
        assert await futures[1] == loaded()


async def test_when_all_were_given_up_nothing_is_asked(process: Process) -> None:
    async with loading(process) as lane:
        lane.submit(query("a"), namespace="n").cancel()
    assert process.connects == 0


async def test_a_large_answer_comes_in_many_parts(process: Process) -> None:
    answer = loaded("x" * MIB)
    async with loading(process) as lane:
        future = lane.submit(query("a"), namespace="n")
        await process.receive()
        await process.answer([answer])
        assert await future == answer


async def test_a_large_question_goes_in_many_parts(process: Process) -> None:
    async with loading(process) as lane:
        future = lane.submit(query("a" * MIB), namespace="n")
        assert names(await process.receive()) == ["a" * MIB]
        await process.answer([GONE])
        with pytest.raises(NotFoundError):
            await future


@pytest.mark.parametrize("answered_bytes", [0, 3, 20])
async def test_when_the_process_dies_its_callers_are_told_and_the_next_reach_its_successor(
    process: Process, answered_bytes: int
) -> None:
    async with loading(process) as lane:
        futures = [lane.submit(query(name), namespace="n") for name in "ab"]
        await process.receive()
        part = frames.pack([GONE, GONE])[0][:answered_bytes]
        await asyncio.get_running_loop().sock_sendall(process.theirs, part)
        process.die()
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(outcome, UnavailableError)
            assert outcome.reason == "NOT_SERVING"
            assert outcome.retry_after_s is not None
        assert process.failures == 1
        again = lane.submit(query("c"), namespace="n")
        assert names(await process.receive()) == ["c"]
        await process.answer([loaded()])
        assert await again == loaded()
        assert process.connects == 2


async def test_a_death_while_a_question_is_half_sent_is_told(process: Process) -> None:
    async with loading(process) as lane:
        future = lane.submit(query("a" * MIB), namespace="n")
        await asyncio.get_running_loop().sock_recv(process.theirs, 1)
        process.die()
        with pytest.raises(UnavailableError):
            await future
        assert process.failures == 1


async def test_as_long_as_there_is_no_successor_loads_are_refused(process: Process) -> None:
    process.is_away = True
    async with loading(process) as lane:
        with pytest.raises(UnavailableError) as refused:
            await lane.submit(query("a"), namespace="n")
        assert refused.value.reason == "NOT_SERVING"
        process.is_away = False
        future = lane.submit(query("b"), namespace="n")
        await process.receive()
        await process.answer([loaded()])
        await future


async def test_close_answers_what_was_accepted_and_then_refuses(process: Process) -> None:
    async with loading(process, frame_loads_max=1) as lane:
        futures = [lane.submit(query(name), namespace="n") for name in "ab"]
        closing = asyncio.ensure_future(lane.close())
        for _ in futures:
            await process.receive()
            assert not closing.done()
            await process.answer([loaded()])
        await closing
        assert all(future.done() for future in futures)
        with pytest.raises(UnavailableError):
            await lane.submit(query("c"), namespace="n")
        with pytest.raises(EOFError):
            await process.receive()


def commanding(process: Process) -> ProcessCommandLane:
    def reopen() -> None:
        process.is_away = False

    return ProcessCommandLane(
        asyncio.get_running_loop(),
        process.connect,
        reopen,
        ending=lambda: "ended with status 3",
        on_failure=process.note_failure,
    )


async def test_a_batch_goes_out_and_its_answers_come_back(process: Process) -> None:
    lane = commanding(process)
    for _ in range(2):
        execution = asyncio.ensure_future(lane.execute([save("w", "a"), ProbeCommand()]))
        assert await process.receive() == [save("w", "a"), ProbeCommand()]
        await process.answer([GONE, ProbeAnswer()])
        refused, probed = await execution
        assert isinstance(refused, StoreError)
        assert probed == ProbeAnswer()
    assert process.connects == 1
    await lane.close()


async def test_batches_go_out_while_others_run_and_one_commit_may_answer_several(process: Process) -> None:
    """Each gets its own part of the answers, in the order they were handed over."""
    lane = commanding(process)
    first = lane.execute([save("w", "a")])
    assert await process.receive() == [save("w", "a")]
    second, third = lane.execute([save("w", "b"), ProbeCommand()]), lane.execute([save("w", "c")])
    assert await process.receive() == [save("w", "b"), ProbeCommand(), save("w", "c")]
    await process.answer([ProbeAnswer()])
    assert await first == [ProbeAnswer()]
    assert not second.done()
    await process.answer([GONE, ProbeAnswer(), ProbeAnswer()])
    refused, probed = await second
    assert isinstance(refused, StoreError)
    assert [probed] == await third == [ProbeAnswer()]
    await lane.close()


async def test_when_a_commit_fails_so_does_all_that_was_sent_after_it(process: Process) -> None:
    """Nobody is left waiting for an answer that never comes."""
    lane = commanding(process)
    batches = [lane.execute([save("w", name)]) for name in "ab"]
    await process.receive()
    await process.answer([frames.StorageFailed("a meta page was not written")])
    for batch in batches:
        with pytest.raises(StorageFailedError, match="meta page"):
            await batch
    await lane.close()


async def test_a_batch_whose_process_dies_is_of_unknown_outcome(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    lane = commanding(process)
    execution = asyncio.ensure_future(lane.execute([save("w", "a")]))
    await process.receive()
    process.die()
    with pytest.raises(StorageFailedError, match="ended with status 3; what it had been sent may or may not be stored"):
        await execution
    assert "the storage process ended with status 3" in caplog.text
    await lane.reopen()
    execution = asyncio.ensure_future(lane.execute([ProbeCommand()]))
    assert await process.receive() == [ProbeCommand()]
    await process.answer([ProbeAnswer()])
    assert await execution == [ProbeAnswer()]
    await lane.close()


async def test_a_failed_storage_is_told_as_one(process: Process) -> None:
    lane = commanding(process)
    execution = asyncio.ensure_future(lane.execute([save("w", "a")]))
    await process.receive()
    await process.answer([frames.StorageFailed("a meta page was not written")])
    with pytest.raises(StorageFailedError, match="meta page"):
        await execution
    await lane.close()


async def test_a_batch_for_a_process_that_is_not_there_fails(process: Process) -> None:
    process.is_away = True
    lane = commanding(process)
    with pytest.raises(StorageFailedError):
        await lane.execute([save("w", "a")])
    await lane.close()


async def test_a_process_that_dies_while_nothing_is_asked_is_missed_at_once(process: Process) -> None:
    lane = commanding(process)
    execution = asyncio.ensure_future(lane.execute([ProbeCommand()]))
    await process.receive()
    await process.answer([ProbeAnswer()])
    await execution
    process.die()
    await process.has_failed.wait()
    assert process.failures == 1
    await lane.close()


async def test_a_batch_that_cannot_be_packed_is_refused_and_the_next_one_runs(process: Process) -> None:
    lane = commanding(process)
    with pytest.raises(TypeError):
        await lane.execute([object()])  # type: ignore[list-item]
    task = asyncio.ensure_future(lane.execute([ProbeCommand()]))
    await process.receive()
    await process.answer([ProbeAnswer()])
    assert await task == [ProbeAnswer()]
    await lane.close()


async def test_a_load_that_cannot_be_packed_is_refused_and_the_next_one_runs(process: Process) -> None:
    async with loading(process) as lane:
        with pytest.raises(TypeError):
            await lane.submit(object(), namespace="n")  # type: ignore[arg-type]
        answer = lane.submit(query("c"), namespace="n")
        await process.receive()
        await process.answer([loaded()])
        assert await answer == loaded()


async def test_what_was_postponed_is_asked_for_again(process: Process) -> None:
    async with loading(process) as lane:
        answers = [lane.submit(query(name), namespace="n") for name in ("a", "b")]
        assert names(await process.receive()) == ["a", "b"]
        await process.answer([loaded(), frames.Postponed()])
        assert names(await process.receive()) == ["b"]
        await process.answer([loaded()])
        assert len(await asyncio.gather(*answers)) == 2


async def test_large_loads_of_one_namespace_do_not_have_those_of_another_postponed_for_ever(process: Process) -> None:
    """Each frame answers its first and postpones the others, while one namespace never lacks loads that wait."""
    async with loading(process) as lane:
        answers = [lane.submit(query(name), namespace=name[0]) for name in ("a1", "b1", "a2", "b2")]
        asked = names(await process.receive())
        assert asked == ["a1", "b1", "a2", "b2"]
        for number in range(3, 6):
            answers.append(lane.submit(query(f"a{number}"), namespace="a"))
            await process.answer([loaded(), *[frames.Postponed()] * (len(asked) - 1)])
            asked = names(await process.receive())
            if number == 3:
                assert asked == ["b1", "a2", "b2", "a3"]
        await process.answer([loaded()] * len(asked))
        assert len(await asyncio.gather(*answers)) == 7


async def test_an_answer_that_cannot_be_read_is_a_failure_of_the_process(process: Process) -> None:
    async with loading(process) as lane:
        answer = lane.submit(query("c"), namespace="n")
        await process.receive()
        await asyncio.get_running_loop().sock_sendall(process.theirs, b"\0\0\0\3\x91\x92\xc1")
        with pytest.raises(UnavailableError):
            await answer
        assert process.failures == 1
