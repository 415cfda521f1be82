"""Watching over the wire."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.raw_calls import Refusal, open_channel, open_stub, read_error, refusal, save_request
from tests.support.server_process import ServerProcess

STARTED, SAVED = pb.WATCH_EVENT_KIND_STARTED, pb.WATCH_EVENT_KIND_SAVED


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return open_stub(channel)


@contextmanager
def watching(stub: Any, workflow_id: str, **fields: Any) -> Iterator[Any]:
    call = stub.Watch(pb.WatchRequest(workflow_id=workflow_id, **fields), timeout=60)
    try:
        yield call
    finally:
        call.cancel()


def end_of(call: Any) -> Refusal:
    """Read a stream to its end, and return what that says."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return read_error(error)
    raise AssertionError("the stream ended without an error")


def test_a_workflow_is_followed_from_its_first_save_to_its_end(stub: Any) -> None:
    with watching(stub, "follow") as events:
        started = next(events)
        assert (started.kind, started.workflow_id, started.incarnation, started.revision) == (STARTED, "follow", "", 0)
        request = save_request("follow", checkpoint_id="a", current_step="one", definition="d")
        saved = stub.Save(request, timeout=30)
        event = next(events)
        assert (event.kind, event.revision, event.checkpoint_id, event.sequence) == (SAVED, saved.revision, "a", 1)
        assert (event.current_step, event.definition, event.status) == ("one", "d", checkpoint_pb2.STATUS_RUNNING)
        stub.SendSignal(pb.SendSignalRequest(workflow_id="follow", signal_id="1", name="approve"), timeout=30)
        event = next(events)
        assert (event.kind, event.signal_id, event.signal_name) == (pb.WATCH_EVENT_KIND_SIGNAL_SENT, "1", "approve")
        token = stub.AcquireLease(pb.AcquireLeaseRequest(workflow_id="follow", holder="h"), timeout=30).lease.token
        event = next(events)
        assert (event.kind, event.holder) == (pb.WATCH_EVENT_KIND_LEASE_GRANTED, "h")
        request = save_request("follow", status=checkpoint_pb2.STATUS_COMPLETED, lease_token=token, release_lease=True)
        stub.Save(request, timeout=30)
        event = next(events)
        assert (event.kind, event.status, event.lease_released) == (SAVED, checkpoint_pb2.STATUS_COMPLETED, True)
        stub.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id="follow"), timeout=30)
        assert next(events).kind == pb.WATCH_EVENT_KIND_WORKFLOW_DELETED


def test_a_watch_goes_on_after_a_break(stub: Any) -> None:
    stub.Save(save_request("break"), timeout=30)
    with watching(stub, "break") as events:
        started = next(events)
    for _ in range(3):
        stub.Save(save_request("break"), timeout=30)
    place = {"after_incarnation": started.incarnation, "after_revision": started.revision}
    with watching(stub, "break", **place) as events:
        assert [next(events).revision for _ in range(4)] == [1, 2, 3, 4]
        stub.Save(save_request("break"), timeout=30)
        assert next(events).revision == 5


def test_what_is_not_kept_any_more_is_told_so(stub: Any) -> None:
    stub.Save(save_request("compacted"), timeout=30)
    with watching(stub, "compacted", after_incarnation="another", after_revision=1) as events:
        ended = end_of(events)
    assert (ended.code, ended.reason) == (grpc.StatusCode.OUT_OF_RANGE, "WATCH_COMPACTED")
    assert dict(ended.metadata) == {"workflow_id": "compacted", "revision": "1"}


def test_a_namespace_is_followed(stub: Any) -> None:
    with watching(stub, "", namespace="all", definition="d") as events:
        assert next(events).kind == STARTED
        for workflow_id, definition in (("u", "e"), ("v", "d"), ("w", "d")):
            stub.Save(save_request(workflow_id, namespace="all", definition=definition), timeout=30)
        assert [next(events).workflow_id for _ in range(2)] == ["v", "w"]


@pytest.mark.parametrize(
    "field, fields",
    [
        ("after_revision", {"workflow_id": "w", "after_revision": 1}),
        ("after_revision", {"workflow_id": "w", "after_incarnation": "i", "after_revision": -1}),
        ("after_incarnation", {"after_incarnation": "i", "after_revision": 1}),
        ("workflow_id", {"workflow_id": "w" * 1_025}),
        ("namespace", {"namespace": "n" * 129}),
    ],
)
def test_malformed_requests_name_their_field(stub: Any, field: str, fields: Any) -> None:
    assert end_of(stub.Watch(pb.WatchRequest(**fields), timeout=30)).fields == (field,)


def test_watches_are_bounded_and_a_cancelled_one_makes_room(tmp_path: Path) -> None:
    environment = {"MILEPOST_SERVER__QUEUE__WATCHES_MAX": "1"}
    with ServerProcess(tmp_path / "data", environment=environment) as server, open_channel(server.target) as channel:
        stub = open_stub(channel)
        with watching(stub, "w") as events:
            next(events)
            refused = end_of(stub.Watch(pb.WatchRequest(workflow_id="v"), timeout=30))
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        # The server learns of it a moment later.
        retry_until(lambda: try_to_watch(stub))


def try_to_watch(stub: Any) -> bool:
    with watching(stub, "w") as events:
        try:
            return bool(next(events).kind == STARTED)
        except grpc.RpcError:
            return False


def retry_until(is_done: Callable[[], bool]) -> None:
    """Try again and again, each try a call of its own; for what the server learns by itself a moment later."""
    for _ in range(1_000):
        if is_done():
            return
    raise AssertionError("it never came")


def test_a_reader_that_does_not_read_is_ended(tmp_path: Path) -> None:
    environment = {"MILEPOST_SERVER__QUEUE__WATCH_EVENTS_WAITING_MAX": "10"}
    with ServerProcess(tmp_path / "data", environment=environment) as server, open_channel(server.target) as channel:
        stub = open_stub(channel)
        with watching(stub, "") as events:
            next(events)
            # Far more than the transport takes before it waits for its reader.
            workflow_id, scope = "w" * 1_000, "s" * 1_000
            items = [save_request(workflow_id, scope=scope, current_step="x" * 200) for _ in range(1_000)]
            stub.BatchSave(pb.BatchSaveRequest(items=items), timeout=60)
            ended = end_of(events)
        assert (ended.code, ended.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")
        assert "Traceback" not in server.stderr


@pytest.mark.parametrize("arguments", [(), ("--no-engine-process",)], ids=["process", "no process"])
def test_a_drain_ends_watches_and_does_not_wait_for_them(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with ServerProcess(tmp_path / "data", arguments=["--drain-grace-s", "3600", *arguments]) as server:
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            stub.Save(save_request("w"), timeout=30)
            with watching(stub, "w") as one, watching(stub, "") as all_:
                next(one)
                next(all_)
                server.signal(signal.SIGTERM)
                for ended in (end_of(one), end_of(all_)):
                    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_SERVING")
            assert server.wait() == 0
        assert "Traceback" not in server.stderr


def test_watches_under_load_miss_nothing_and_calls_are_cut_off_cleanly(server: ServerProcess) -> None:
    """Saves by several, watched by several, some of whom go away at any moment."""
    saved: list[int] = []
    stop = threading.Event()

    def save(name: str) -> None:
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            saved.extend(stub.Save(save_request("load"), timeout=30).revision for _ in range(100))

    def come_and_go() -> None:
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            while not stop.is_set():
                with watching(stub, "load") as events:
                    next(events)

    savers = [threading.Thread(target=save, args=(f"s{number}",)) for number in range(3)]
    visitor = threading.Thread(target=come_and_go)
    with open_channel(server.target) as channel, watching(open_stub(channel), "load") as events:
        assert next(events).revision == 0
        for thread in (*savers, visitor):
            thread.start()
        try:
            assert [next(events).revision for _ in range(300)] == list(range(1, 301))
        finally:
            stop.set()
            for thread in (*savers, visitor):
                thread.join()
    assert sorted(saved) == list(range(1, 301))


def test_a_kill_makes_watches_begin_anew(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            stub.Save(save_request("w"), timeout=30)
            with watching(stub, "w") as events:
                place = next(events)
                stub.Save(save_request("w"), timeout=30)
                server.kill()
                assert end_of(events).code is grpc.StatusCode.UNAVAILABLE
        server.start()
        with open_channel(server.target) as channel:
            stub = open_stub(channel)
            request = pb.WatchRequest(
                workflow_id="w", after_incarnation=place.incarnation, after_revision=place.revision
            )
            assert end_of(stub.Watch(request, timeout=30)).reason == "WATCH_COMPACTED"
            request.after_revision += 1
            assert next(stub.Watch(request, timeout=30)).revision == 2


def test_a_unary_call_of_it_is_refused_with_an_answer(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/milepost.v1.CheckpointStore/Watch")
    assert refusal(call, b"\xff\xff").reason == "INVALID_FIELD"
