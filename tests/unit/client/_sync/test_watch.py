# Generated from tests/unit/client/_async/test_watch.py by tools/unasync.py. Do not edit.
"""A watch over a real connection, against a server that streams from a script."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Callable, Iterator
from typing import Any

import grpc
import pytest

from milepost import Client
from milepost._sync import _compat
from milepost._retry import RetryPolicy
from milepost.errors import UnavailableError, WatchCompactedError, WatchTooSlowError
from milepost.types import WatchEventKind
from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.scripted_server import Abort, ScriptedServer, scripted_server

COMPACTED = Abort(grpc.StatusCode.OUT_OF_RANGE, "WATCH_COMPACTED", workflow_id="w", revision="3")
TOO_SLOW = Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW", limit="events", allowed="10")
UNAVAILABLE = Abort(grpc.StatusCode.UNAVAILABLE)
DEADLINE_S = 20.0


def started(revision: int, incarnation: str = "i1", workflow_id: str = "w") -> pb.WatchResponse:
    return pb.WatchResponse(
        kind=pb.WATCH_EVENT_KIND_STARTED, workflow_id=workflow_id, incarnation=incarnation, revision=revision
    )


def saved(revision: int, incarnation: str = "i1", workflow_id: str = "w") -> pb.WatchResponse:
    return pb.WatchResponse(
        kind=pb.WATCH_EVENT_KIND_SAVED,
        workflow_id=workflow_id,
        incarnation=incarnation,
        revision=revision,
        checkpoint_id=f"c{revision}",
        status=checkpoint_pb2.STATUS_RUNNING,
    )


def stream(*answers: pb.WatchResponse | Abort) -> Callable[[Any, grpc.ServicerContext], Iterator[pb.WatchResponse]]:
    """Answer with these, and end, or break off with an error."""

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        for one in answers:
            if isinstance(one, Abort):
                context.set_trailing_metadata(one.trailers)
                context.abort(one.code, one.message)
            yield one

    return answer


class Quiet:
    """A stream that says nothing more until its reader has gone."""

    def __init__(self, *answers: pb.WatchResponse) -> None:
        self.answers = answers
        self.is_ended = threading.Event()

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        context.add_callback(self.is_ended.set)
        yield from self.answers
        assert self.is_ended.wait(DEADLINE_S)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    retry = RetryPolicy(attempts_max=3, backoff_initial_s=0.001, backoff_max_s=0.001)
    with Client(server.target, timeout_s=20, retry=retry) as client:
        yield client


def test_a_watch_of_one_workflow_goes_on_after_the_last_revision_when_its_stream_breaks(
    server: ScriptedServer, client: Client
) -> None:
    quiet = Quiet(started(9), saved(6))
    server.on("Watch", stream(started(4), saved(5), UNAVAILABLE), UNAVAILABLE, stream(started(9), UNAVAILABLE), quiet)
    with client.watch("w", definition="orders") as events:
        seen = [next(events) for _ in range(3)]
    assert [(event.kind, event.revision) for event in seen] == [
        (WatchEventKind.STARTED, 4),
        (WatchEventKind.SAVED, 5),
        (WatchEventKind.SAVED, 6),
    ]
    asked = server.asked("Watch")
    assert [(one.after_incarnation, one.after_revision) for one in asked] == [("", 0), ("i1", 5), ("i1", 5), ("i1", 5)]
    assert {(one.workflow_id, one.definition, one.namespace) for one in asked} == {("w", "orders", "default")}
    assert quiet.is_ended.wait(DEADLINE_S), "closing the watch ends its stream"


def test_a_stream_that_the_server_ends_is_opened_again(server: ScriptedServer, client: Client) -> None:
    server.on("Watch", stream(started(4)), Quiet(started(4), saved(5)))
    with client.watch("w") as events:
        assert [(next(events)).revision for _ in range(2)] == [4, 5]


def test_a_watch_of_all_workflows_begins_anew_and_says_so(server: ScriptedServer, client: Client) -> None:
    begin = started(0, "", "")
    server.on("Watch", stream(begin, saved(5), UNAVAILABLE), Quiet(begin, saved(7)))
    with client.watch() as events:
        kinds = [(next(events)).kind for _ in range(4)]
    assert kinds == [WatchEventKind.STARTED, WatchEventKind.SAVED] * 2
    assert {one.after_incarnation for one in server.asked("Watch")} == {""}


def test_a_workflow_that_came_during_an_outage_is_told_of_by_a_second_beginning(
    server: ScriptedServer, client: Client
) -> None:
    server.on("Watch", stream(started(0, ""), UNAVAILABLE), Quiet(started(3, "i1")))
    with client.watch("w") as events:
        told = [next(events) for _ in range(2)]
    assert [(event.incarnation, event.revision) for event in told] == [("", 0), ("i1", 3)]


def test_the_first_event_of_a_resumed_watch_passes_over_nothing(server: ScriptedServer, client: Client) -> None:
    server.on("Watch", stream(started(3), UNAVAILABLE), Quiet(started(3), saved(4)))
    with client.watch("w", after=("i1", 3)) as events:
        assert [(next(events)).revision for _ in range(2)] == [3, 4]
    assert [one.after_revision for one in server.asked("Watch")] == [3, 3]


@pytest.mark.parametrize("abort, error", [(COMPACTED, WatchCompactedError), (TOO_SLOW, WatchTooSlowError)])
def test_what_cannot_be_mended_by_trying_again_is_raised_and_ends_the_watch(
    server: ScriptedServer, client: Client, abort: Abort, error: type[Exception]
) -> None:
    server.on("Watch", stream(started(4), abort))
    events = client.watch("w")
    assert (next(events)).revision == 4
    with pytest.raises(error):
        next(events)
    assert [event for event in events] == []
    assert len(server.asked("Watch")) == 1


def test_a_server_that_stays_away_is_told_after_the_attempts_of_the_policy(
    server: ScriptedServer, client: Client
) -> None:
    server.on("Watch", stream(started(4), UNAVAILABLE), *[UNAVAILABLE] * 5)
    with client.watch("w") as events:
        next(events)
        with pytest.raises(UnavailableError, match=r"watch of workflow .w..*after 3 attempts"):
            next(events)


def test_each_event_makes_the_attempts_count_anew(server: ScriptedServer, client: Client) -> None:
    breaking = [stream(started(4), saved(revision), UNAVAILABLE) for revision in range(5, 15)]
    server.on("Watch", *breaking, Quiet(started(4), saved(15)))
    with client.watch("w") as events:
        assert [(next(events)).revision for _ in range(12)] == [4, *range(5, 16)]


def test_a_waiting_reader_is_woken_by_the_close(server: ScriptedServer, client: Client) -> None:
    quiet = Quiet(started(4))
    server.on("Watch", quiet)
    events = client.watch("w")
    next(events)
    closer = _compat.Heartbeat(lambda: close(events), "closer")
    closer.start(0.01)
    assert [event for event in events] == []
    closer.stop()
    assert quiet.is_ended.wait(DEADLINE_S)


def test_a_waiting_reader_has_an_error_when_the_client_is_closed(server: ScriptedServer) -> None:
    """It is not told as a cancellation of its reader, who was not cancelled."""
    quiet = Quiet(started(4))
    server.on("Watch", quiet)
    client = Client(server.target)
    events = client.watch("w")
    next(events)

    def close_client() -> float | None:
        client.close()
        return None

    closer = _compat.Heartbeat(close_client, "closer")
    closer.start(0.01)
    with pytest.raises(UnavailableError):
        next(events)
    closer.stop()
    assert quiet.is_ended.wait(DEADLINE_S)


def close(events: Any) -> float | None:
    events.close()
    return None


def test_a_reader_between_two_attempts_is_woken_by_the_close(server: ScriptedServer) -> None:
    slow = RetryPolicy(backoff_initial_s=1_000, backoff_max_s=1_000)
    with Client(server.target, timeout_s=10_000, retry=slow) as client:
        client._random = lambda: 1.0
        server.on("Watch", stream(started(4), UNAVAILABLE))
        events = client.watch("w")
        next(events)
        closer = _compat.Heartbeat(lambda: close(events), "closer")
        closer.start(0.05)
        assert [event for event in events] == []
        closer.stop()


def test_an_unknown_kind_of_event_is_a_change(server: ScriptedServer, client: Client) -> None:
    odd = pb.WatchResponse(workflow_id="w", incarnation="i1", revision=5)
    odd.kind = 99  # type: ignore[assignment]  # of a later server
    server.on("Watch", Quiet(started(4), odd))
    with client.watch("w") as events:
        next(events)
        assert (next(events)).kind is WatchEventKind.CHANGED
