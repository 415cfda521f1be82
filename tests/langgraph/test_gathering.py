"""Saves of many callers in one call: who goes with whom, and that each caller gets its own answer."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from milepost import LeaseHeldError, MilepostError, OutcomeUnknownError, RetryPolicy, _calls
from milepost._calls import Method
from milepost._retry import Attempts, Failure
from milepost.adapters.langgraph import MilepostSaver, gathering
from milepost.adapters.langgraph.gathering import CALLS_MAX, AsyncGatherer, BlockingGatherer, Gathering
from milepost.errors import Code
from milepost.testing import LocalServer
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.langgraph_checkpoints import config_of, make_checkpoint, metadata_of

WAIT_S = 30.0
REFUSED = pb.ItemError(code=Code.FAILED_PRECONDITION, message="refused")


def save_of(name: str) -> bytes:
    return pb.SaveRequest(workflow_id=name).SerializeToString()


def attempts() -> Attempts:
    return Attempts(RetryPolicy(), WAIT_S, time.monotonic, random.random)


def names_in(method: Method[Any], payload: bytes) -> list[str]:
    if method is _calls.SAVE:
        return [pb.SaveRequest.FromString(payload).workflow_id]
    return [item.workflow_id for item in pb.BatchSaveRequest.FromString(payload).items]


def answer_to(method: Method[Any], payload: bytes) -> Any:
    """Answer as a server: each Save with its workflow as the digest, and "bad" with a refusal."""
    results = [
        pb.BatchSaveResult(error=REFUSED)
        if name == "bad"
        else pb.BatchSaveResult(saved=pb.SaveResponse(digest=name.encode()))
        for name in names_in(method, payload)
    ]
    return results[0].saved if method is _calls.SAVE else pb.BatchSaveResponse(results=results)


class Wire:
    """A connection whose calls are held until the gate is opened."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.broken: BaseException | None = None

    def attempt(self, method: Method[Any], payload: bytes, timeout_s: float) -> Any:
        self.calls.append(names_in(method, payload))
        self.begun.release()
        assert self.gate.wait(WAIT_S)
        if self.broken is not None:
            raise self.broken
        return answer_to(method, payload)


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Told of each Save that has entered, none of which gives up waiting."""
    told, enter = threading.Semaphore(0), Gathering.enter

    def telling(self: Any, save: Any) -> Any:
        try:
            return enter(self, save)
        finally:
            told.release()

    monkeypatch.setattr(Gathering, "enter", telling)
    monkeypatch.setattr(gathering, "WAIT_MAX_S", WAIT_S)
    return told


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def test_what_comes_while_calls_are_under_way_is_sent_together_and_each_gets_its_own_answer(
    entered: threading.Semaphore, pool: ThreadPoolExecutor
) -> None:
    wire = Wire()
    gatherer = BlockingGatherer(wire.attempt)
    names = ["a", "b", "c", "bad", "e"]
    saves = []
    for name in names:
        saves.append(pool.submit(gatherer.send, save_of(name), attempts()))
        assert entered.acquire(timeout=WAIT_S)
    wire.gate.set()
    outcomes = [save.result(WAIT_S) for save in saves]
    assert sorted(wire.calls, key=len) == [["a"], ["b"], ["c", "bad", "e"]]
    assert [outcome.digest for outcome in outcomes if isinstance(outcome, pb.SaveResponse)] == [b"a", b"b", b"c", b"e"]
    assert isinstance(outcomes[3], Failure)
    assert outcomes[3].text == "refused"


def test_a_save_that_has_waited_long_is_sent_beside_those_under_way(pool: ThreadPoolExecutor) -> None:
    wire = Wire()
    gatherer = BlockingGatherer(wire.attempt)
    for number in range(CALLS_MAX + 1):
        pool.submit(gatherer.send, save_of(str(number)), attempts())
        assert wire.begun.acquire(timeout=WAIT_S)
    wire.gate.set()
    assert wire.calls == [[str(number)] for number in range(CALLS_MAX + 1)]


def test_a_large_save_goes_by_itself_and_a_call_holds_so_many_bytes(
    entered: threading.Semaphore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "GATHERED_BYTES_MAX", 100)
    wire = Wire()
    gatherer = BlockingGatherer(wire.attempt)
    saves = []
    for name in ("a", "b", "x" * 40, "y" * 40, "z" * 40):
        saves.append(pool.submit(gatherer.send, save_of(name), attempts()))
        assert entered.acquire(timeout=WAIT_S)
    large = pool.submit(gatherer.send, save_of("L" * 101), attempts())
    for _ in range(3):
        assert wire.begun.acquire(timeout=WAIT_S)
    assert wire.calls[-1] == ["L" * 101]
    wire.gate.set()
    for save in (*saves, large):
        assert isinstance(save.result(WAIT_S), pb.SaveResponse)
    assert sorted(map(len, wire.calls)) == [1, 1, 1, 1, 2]


def test_those_who_share_a_call_that_breaks_are_told_and_the_next_call_goes_on(
    entered: threading.Semaphore, pool: ThreadPoolExecutor
) -> None:
    wire = Wire()
    gatherer = BlockingGatherer(wire.attempt)
    saves = []
    for name in ("a", "b", "c", "d"):
        saves.append(pool.submit(gatherer.send, save_of(name), attempts()))
        assert entered.acquire(timeout=WAIT_S)
    wire.broken = KeyboardInterrupt()
    wire.gate.set()
    # Each call has one thread that sends it, which is interrupted; the others learn that nothing is known.
    outcomes = [save.exception(WAIT_S) or save.result() for save in saves]
    assert [type(outcome) for outcome in outcomes[:3]] == [KeyboardInterrupt] * 3
    assert outcomes[3] == gathering.UNANSWERED
    assert gathering.UNANSWERED.may_have_taken_effect
    wire.broken = None
    assert isinstance(gatherer.send(save_of("after"), attempts()), pb.SaveResponse)


def test_a_thread_that_is_interrupted_while_it_waits_leaves_the_others_alone(
    entered: threading.Semaphore, pool: ThreadPoolExecutor
) -> None:
    wire = Wire()
    gatherer = BlockingGatherer(wire.attempt)
    saves = [pool.submit(gatherer.send, save_of(name), attempts()) for name in ("a", "b")]
    for _ in saves:
        assert entered.acquire(timeout=WAIT_S)

    def interrupt() -> None:
        assert entered.acquire(timeout=WAIT_S)
        saves.append(pool.submit(gatherer.send, save_of("c"), attempts()))
        assert entered.acquire(timeout=WAIT_S)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = pool.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        gatherer.send(save_of("interrupted"), attempts())
    interrupting.result(WAIT_S)
    wire.gate.set()
    assert all(isinstance(save.result(WAIT_S), pb.SaveResponse) for save in saves)
    assert sorted(wire.calls) == [["a"], ["b"], ["c"]]


async def test_a_task_that_is_cancelled_leaves_the_others_of_its_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "WAIT_MAX_S", WAIT_S)
    calls: list[list[str]] = []
    gate = asyncio.Event()

    async def attempt(method: Method[Any], payload: bytes, timeout_s: float) -> Any:
        calls.append(names_in(method, payload))
        await asyncio.wait_for(gate.wait(), WAIT_S)
        return answer_to(method, payload)

    gatherer = AsyncGatherer(attempt)
    saves = [asyncio.create_task(gatherer.send(save_of(name), attempts())) for name in ("a", "b", "c", "d", "bad")]
    # All have begun, and entered in this order, when the loop comes back here.
    await asyncio.sleep(0)
    saves[2].cancel()
    gate.set()
    outcomes = await asyncio.gather(*saves, return_exceptions=True)
    assert [sorted(call) for call in calls] == [["a"], ["b"], ["bad", "d"]]
    assert [type(outcome) for outcome in outcomes] == [pb.SaveResponse] * 2 + [
        asyncio.CancelledError,
        pb.SaveResponse,
        Failure,
    ]


def test_puts_of_many_threads_are_fewer_calls_and_each_caller_gets_its_own_error(
    server: LocalServer, namespace: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MilepostSaver(server.target, namespace=namespace) as saver:
        calls: list[list[str]] = []
        sender = saver._connections.blocking
        attempt = sender._attempt

        def counted(method: Method[Any], payload: bytes, timeout_s: float) -> Any:
            calls.append(names_in(method, payload))
            return attempt(method, payload, timeout_s)

        monkeypatch.setattr(sender._gatherer, "_attempt", counted)
        start = threading.Barrier(8, timeout=WAIT_S)

        def work(number: int) -> str:
            config = config_of(f"t{number}")
            start.wait()
            try:
                for step in range(20):
                    made = make_checkpoint({"x": step}, {"x": step})
                    config = saver.put(config, made, metadata_of(), {"x": step})
            except MilepostError as error:
                return type(error).__name__
            return str(config["configurable"]["checkpoint_id"])

        with saver._connections.blocking.lease("t3"):
            ends = list(pool.map(work, range(8)))
        assert ends[3] == LeaseHeldError.__name__
        for number, end in enumerate(ends):
            found = saver.get_tuple(config_of(f"t{number}"))
            assert (found is None) == (number == 3)
            assert found is None or found.checkpoint["id"] == end
        assert sum(map(len, calls)) == 7 * 20 + 1
        assert len(calls) < 7 * 20


@pytest.mark.parametrize("code", [Code.UNKNOWN, Code.UNAVAILABLE])
def test_an_attempt_whose_end_is_not_known_is_remembered_when_a_save_goes_on_by_itself(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MilepostSaver("127.0.0.1:1", timeout_s=0.5) as saver:
        sender = saver._connections.blocking
        monkeypatch.setattr(sender._gatherer, "_attempt", lambda *_: Failure(code, "cut off"))
        # Nobody listens: by itself it would be an UnavailableError, which says that nothing was stored.
        with pytest.raises(OutcomeUnknownError):
            saver.put(config_of("t"), make_checkpoint({}, {}), metadata_of(), {})
