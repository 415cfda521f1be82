"""The client over a real connection, against a server that answers from a script."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from milepost import AsyncClient, _calls, _compression, errors
from milepost._async import _compat
from milepost._retry import RetryPolicy
from milepost.types import Record, RecordOutcome, Saved, SaveItem, Status
from milepost.v1 import checkpoint_pb2, error_reason_pb2
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.scripted_server import Abort, ScriptedServer, scripted_server

DEADLINE_S = 20.0
UNAVAILABLE = Abort(grpc.StatusCode.UNAVAILABLE)
NOT_SERVING = Abort(grpc.StatusCode.UNAVAILABLE, "NOT_SERVING", "draining", retry_after_s=0.001)
NOT_COMMITTED = Abort(grpc.StatusCode.UNAVAILABLE, "NOT_COMMITTED", "the commit failed", retry_after_s=0.001)
BASE_NOT_FOUND = Abort(grpc.StatusCode.FAILED_PRECONDITION, "BASE_NOT_FOUND", "the base is gone")
HEAD_MOVED = Abort(
    grpc.StatusCode.ABORTED,
    "HEAD_MOVED",
    "the head is 'c9'",
    expected_head="c1",
    head_checkpoint_id="c9",
    head_sequence="9",
)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, timeout_s=20, retry=RetryPolicy(attempts_max=4)) as client:
        client._sleep = no_sleep
        yield client


async def no_sleep(pause_s: float) -> None:
    """Stand in for the pause between attempts."""


def saved_as_asked(request: pb.SaveRequest, context: Any = None) -> pb.SaveResponse:
    return pb.SaveResponse(checkpoint_id=request.checkpoint_id, sequence=1, parent_id=request.parent_id)


def checkpoint(checkpoint_id: str, sequence: int, **state: str) -> checkpoint_pb2.Checkpoint:
    return checkpoint_pb2.Checkpoint(
        namespace="default",
        workflow_id="w",
        checkpoint_id=checkpoint_id,
        sequence=sequence,
        status=checkpoint_pb2.STATUS_RUNNING,
        state={key: checkpoint_pb2.Value(json=text) for key, text in state.items()},
        entry_count=3,
    )


async def test_after_start_demands_to_be_the_first(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", saved_as_asked)
    await client.save("w", state={"x": 1}, current_step="a", after="start", metadata={"b": 1, "a": 2})
    (request,) = server.asked("Save")
    assert (request.HasField("parent_id"), request.parent_id) == (True, "")
    assert (request.HasField("expected_head"), request.expected_head) == (True, "")
    assert request.metadata == '{"a":2,"b":1}'
    assert request.namespace == "default"
    assert request.state["x"].json == "1"


async def test_without_after_a_save_is_an_unconditional_append(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", saved_as_asked, saved_as_asked)
    await client.save("w", state={"x": 1, "y": 2})
    await client.save("w", state={"x": 1, "y": 3})
    for request in server.asked("Save"):
        assert not request.HasField("parent_id")
        assert not request.HasField("expected_head")
        assert not request.HasField("base_checkpoint_id")


async def test_a_save_after_another_sends_only_what_changed(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", saved_as_asked, saved_as_asked)
    first = await client.save("w", state={"x": 1, "y": 2, "z": 3}, after="start")
    await client.save("w", state={"x": 1, "y": 9}, after=first)
    request = server.asked("Save")[1]
    assert request.base_checkpoint_id == request.parent_id == request.expected_head == first.checkpoint_id
    assert set(request.state) == {"y"}
    assert list(request.removed_keys) == ["z"]


async def test_when_the_base_is_gone_the_same_checkpoint_is_sent_in_full(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.on("Save", saved_as_asked, BASE_NOT_FOUND, saved_as_asked, saved_as_asked)
    first = await client.save("w", state={"x": 1, "y": 2}, after="start")
    second = await client.save("w", state={"x": 1, "y": 9}, after=first, completed_steps=["a"])
    _, incremental, full = server.asked("Save")
    assert incremental.HasField("base_checkpoint_id")
    assert not full.HasField("base_checkpoint_id")
    assert full.checkpoint_id == incremental.checkpoint_id == second.checkpoint_id
    assert full.parent_id == full.expected_head == first.checkpoint_id
    assert {key: value.json for key, value in full.state.items()} == {"x": "1", "y": "9"}
    assert list(full.completed_steps_added) == ["a"]
    await client.save("w", state={"x": 1, "y": 10}, after=second)
    assert set(server.asked("Save")[3].state) == {"y"}, "what was sent in full is a base again"


async def test_a_replace_is_sent_in_full(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", saved_as_asked, saved_as_asked)
    first = await client.save("w", state={"x": 1, "y": 2}, after="start")
    await client.save("w", state={"x": 1, "y": 9}, after=first, checkpoint_id="c", replace=True)
    request = server.asked("Save")[1]
    assert request.on_conflict == pb.ON_CONFLICT_REPLACE
    assert not request.HasField("base_checkpoint_id")


async def test_a_retry_sends_the_same_bytes(server: ScriptedServer, client: AsyncClient) -> None:
    unknown = Abort(grpc.StatusCode.UNKNOWN, "OUTCOME_UNKNOWN")
    server.on("Save", NOT_SERVING, unknown, UNAVAILABLE, saved_as_asked)
    saved = await client.save("w", state={"x": 1})
    requests = server.asked("Save")
    assert len(requests) == 4
    assert {r.SerializeToString(deterministic=True) for r in requests} == {
        requests[0].SerializeToString(deterministic=True)
    }
    assert saved.checkpoint_id == requests[0].checkpoint_id


async def test_a_full_queue_is_waited_for_as_long_as_the_server_says(
    server: ScriptedServer, client: AsyncClient
) -> None:
    pauses: list[float] = []

    async def record_pause(pause_s: float) -> None:
        pauses.append(pause_s)

    client._sleep = record_pause
    client._random = lambda: 0.5
    queue_full = Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=1.5)
    server.on("Save", queue_full, saved_as_asked)
    await client.save("w", state={})
    assert pauses == [pytest.approx(1.5 + 0.5 * 0.05)]


async def test_no_attempt_follows_that_would_start_after_the_deadline(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.on("Save", Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=60))
    with pytest.raises(errors.QueueFullError):
        await client.save("w", state={})
    assert len(server.asked("Save")) == 1


async def test_a_save_whose_answers_are_lost_is_of_unknown_outcome(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", UNAVAILABLE, NOT_SERVING, NOT_SERVING, NOT_SERVING)
    with pytest.raises(errors.OutcomeUnknownError) as caught:
        await client.save("w", state={"x": 1}, checkpoint_id="c7")
    assert caught.value.checkpoint_id == "c7"
    assert caught.value.workflow_id == "w"
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert "c7" in str(caught.value)


async def test_a_save_that_was_surely_not_stored_is_unavailable(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", NOT_COMMITTED, NOT_SERVING, NOT_COMMITTED, NOT_COMMITTED)
    with pytest.raises(errors.UnavailableError) as caught:
        await client.save("w", state={"x": 1})
    assert caught.value.reason == "NOT_COMMITTED"


async def test_a_refusal_after_a_lost_answer_is_the_answer(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", UNAVAILABLE, HEAD_MOVED)
    with pytest.raises(errors.HeadMovedError) as caught:
        await client.save("w", state={"x": 1})
    assert (caught.value.expected_head, caught.value.head_checkpoint_id, caught.value.head_sequence) == ("c1", "c9", 9)


async def test_a_missing_base_does_not_settle_what_a_lost_answer_left_open(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.on("Save", saved_as_asked, UNAVAILABLE, BASE_NOT_FOUND, NOT_SERVING, NOT_SERVING)
    first = await client.save("w", state={"x": 1, "y": 2}, after="start")
    with pytest.raises(errors.OutcomeUnknownError):
        await client.save("w", state={"x": 1, "y": 9}, after=first)


async def test_a_message_cuts_a_long_id_and_the_error_has_it_whole(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", BASE_NOT_FOUND)
    with pytest.raises(errors.MilepostError) as caught:
        await client.save("w" * 1_000, state={"x": 1})
    assert len(str(caught.value)) < 500
    assert caught.value.workflow_id == "w" * 1_000


async def test_an_unreachable_server_stores_nothing(server: ScriptedServer) -> None:
    server.stop()
    async with AsyncClient(server.target, retry=RetryPolicy(attempts_max=2, backoff_initial_s=0.001)) as client:
        with pytest.raises(errors.UnavailableError, match="Is milepost-server running at"):
            await client.save("w", state={"x": 1})
        with pytest.raises(ConnectionError):
            await client.load("w")


async def test_a_connection_that_breaks_leaves_the_outcome_open(server: ScriptedServer) -> None:
    broken = threading.Event()

    def break_connection(request: pb.SaveRequest, context: grpc.ServicerContext) -> Abort:
        threading.Thread(target=server.stop).start()
        context.add_callback(broken.set)
        assert broken.wait(10)
        return UNAVAILABLE

    server.on("Save", break_connection)
    async with AsyncClient(server.target, retry=RetryPolicy(attempts_max=1)) as client:
        with pytest.raises(errors.OutcomeUnknownError):
            await client.save("w", state={"x": 1})


async def test_a_deadline_leaves_the_outcome_of_a_save_open_and_ends_a_load(
    server: ScriptedServer, client: AsyncClient
) -> None:
    release = threading.Event()

    def wait(request: Any, context: Any) -> Abort:
        assert release.wait(10)
        return UNAVAILABLE

    server.on("Save", wait).on("Load", wait)
    try:
        with pytest.raises(errors.OutcomeUnknownError) as caught:
            await client.save("w", state={"x": 1}, checkpoint_id="c7", timeout_s=0.05)
        assert caught.value.checkpoint_id == "c7"
        with pytest.raises(TimeoutError) as timed_out:
            await client.load("w", timeout_s=0.05)
        assert isinstance(timed_out.value, errors.DeadlineError)
    finally:
        release.set()


async def test_what_was_never_sent_is_no_open_outcome(server: ScriptedServer, client: AsyncClient) -> None:
    now = [0.0]

    async def oversleep(pause_s: float) -> None:
        now[0] += 100

    client._clock = lambda: now[0]
    client._sleep = oversleep
    server.on("Save", NOT_COMMITTED)
    with pytest.raises(errors.UnavailableError):
        await client.save("w", state={"x": 1})

    def answer_late(request: Any, context: Any) -> Abort:
        now[0] += 100
        return BASE_NOT_FOUND

    server.on("Save", saved_as_asked, answer_late)
    first = await client.save("w", state={"x": 1, "y": 2}, after="start")
    with pytest.raises(errors.DeadlineError, match="no time was left"):
        await client.save("w", state={"x": 1, "y": 3}, after=first)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e12])
async def test_a_timeout_is_positive_and_has_an_end(server: ScriptedServer, timeout_s: float) -> None:
    """gRPC would take one that overflows for one that is over, and the call for one whose answer was lost."""
    async with AsyncClient(server.target) as client:
        with pytest.raises(ValueError, match="timeout_s"):
            await client.load("w", timeout_s=timeout_s)
    with pytest.raises(ValueError, match="timeout_s"):
        AsyncClient(server.target, timeout_s=timeout_s)


async def test_a_request_over_the_limit_is_refused_with_its_largest_entry(server: ScriptedServer) -> None:
    state = {"small": 1, "large": "x" * (17 * 1024 * 1024)}
    async with AsyncClient(server.target, compress_over_bytes=None) as plain:
        with pytest.raises(errors.LimitExceededError, match="largest entry is 'large'") as caught:
            await plain.save("w", state=state)
    assert caught.value.allowed == 16 * 1024 * 1024
    assert caught.value.found is not None
    assert caught.value.found > 17 * 1024 * 1024
    assert server.asked("Save") == []


async def test_after_of_another_workflow_is_refused(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", saved_as_asked)
    first = await client.save("w", state={}, after="start")
    with pytest.raises(errors.InvalidRequestError, match="stays in one of each"):
        await client.save("other", state={}, after=first)
    with pytest.raises(errors.InvalidRequestError, match="stays in one of each"):
        await client.save("w", state={}, after=first, scope="sub")
    async with AsyncClient(server.target, namespace="team") as elsewhere:
        with pytest.raises(errors.InvalidRequestError, match="stays in one of each"):
            await elsewhere.save("w", state={}, after=first)


async def test_load_reads_state_and_records(server: ScriptedServer, client: AsyncClient) -> None:
    found = checkpoint("c1", 3, x="1", y='"two"')
    found.metadata = '{"by":"me"}'
    found.completed_steps.extend(["a", "b"])
    found.records.add(task_id="t", index=-1, name="n", value=checkpoint_pb2.Value(json="[1]"))
    server.on("Load", pb.LoadResponse(checkpoint=found, head_checkpoint_id="c2"))
    loaded = await client.load("w", sequence=3)
    assert loaded.state == {"x": 1, "y": "two"}
    assert loaded.metadata == {"by": "me"}
    assert loaded.completed_steps == ("a", "b")
    assert loaded.records == (Record(task_id="t", index=-1, name="n", value=[1]),)
    assert loaded.head_checkpoint_id == "c2"
    assert loaded.status is Status.RUNNING
    (request,) = server.asked("Load")
    assert request.sequence == 3
    assert not request.HasField("checkpoint_id")


def frame_of_nothing(*, states_bytes: int) -> checkpoint_pb2.Value:
    """Return a value whose frame states a size, and has nothing: only one that is never begun is not damaged."""
    # Magic, a descriptor of a single segment with an 8-byte size, the size.
    data = b"\x28\xb5\x2f\xfd" + b"\xe0" + states_bytes.to_bytes(8, "little")
    return checkpoint_pb2.Value(data=data, codec="json", compression=checkpoint_pb2.COMPRESSION_ZSTD)


@pytest.mark.parametrize("part", ["state", "records"])
async def test_a_checkpoint_that_is_too_large_decompressed_is_refused_before_any_of_it_is_begun(
    server: ScriptedServer, client: AsyncClient, part: str
) -> None:
    """Each value is within its own bound; short frames of many saves would fill a reader's memory."""
    found = checkpoint("c1", 3)
    value = frame_of_nothing(states_bytes=_compression.DECOMPRESSED_BYTES_MAX)
    for number in range(_compression.CHECKPOINT_DECOMPRESSED_BYTES_MAX // _compression.DECOMPRESSED_BYTES_MAX + 1):
        if part == "state":
            found.state[f"k{number}"].CopyFrom(value)
        else:
            found.records.add(task_id="t", index=number, value=value)
    server.on("Load", pb.LoadResponse(checkpoint=found)).on("List", pb.ListResponse(checkpoints=[found]))
    told = r"checkpoint 'c1' of workflow 'w' has \d+ bytes decompressed or more; at most 1073741824"
    with pytest.raises(errors.CodecError, match=told) as loaded:
        await client.load("w")
    with pytest.raises(errors.CodecError, match=told) as listed:
        await anext(client.list("w", with_state=True, with_records=True))
    for error in (loaded.value, listed.value):
        assert (error.namespace, error.workflow_id, error.checkpoint_id) == ("default", "w", "c1")
        assert error.path.startswith("$.k" if part == "state" else "record('t', 16)")


async def test_a_missing_workflow_is_told_from_a_missing_server(server: ScriptedServer, client: AsyncClient) -> None:
    server.on(
        "Load",
        Abort(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", "no workflow 'w'", workflow_id="w"),
        Abort(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", domain="somebody.else"),
        Abort(grpc.StatusCode.NOT_FOUND),
        Abort(grpc.StatusCode.NOT_FOUND, "A_REASON_OF_TOMORROW"),
    )
    with pytest.raises(errors.WorkflowNotFoundError):
        await client.load("w")
    for _ in range(2):
        with pytest.raises(errors.MilepostError) as caught:
            await client.load("w")
        assert not isinstance(caught.value, errors.NotFoundError)
    with pytest.raises(errors.NotFoundError) as unknown:
        await client.load("w")
    assert type(unknown.value) is errors.NotFoundError
    assert unknown.value.reason == "A_REASON_OF_TOMORROW"


async def test_a_status_of_tomorrow_is_an_error_not_a_guess(server: ScriptedServer, client: AsyncClient) -> None:
    found = checkpoint("c1", 1)
    found.status = 99  # type: ignore[assignment]  # what a newer server may send
    server.on("Load", pb.LoadResponse(checkpoint=found))
    with pytest.raises(errors.MilepostError, match="status 99"):
        await client.load("w")


async def test_pages_are_asked_for_when_they_are_needed(server: ScriptedServer, client: AsyncClient) -> None:
    server.on(
        "List",
        pb.ListResponse(checkpoints=[checkpoint("c3", 3), checkpoint("c2", 2)], next_page_token="p2"),
        pb.ListResponse(next_page_token="p3"),
        pb.ListResponse(checkpoints=[checkpoint("c1", 1)]),
    )
    pages = client.list("w", page_size=2)
    assert server.asked("List") == []
    found = [await anext(pages), await anext(pages)]
    assert len(server.asked("List")) == 1
    found += [one async for one in pages]
    assert [c.sequence for c in found] == [3, 2, 1]
    assert [r.page_token for r in server.asked("List")] == ["", "p2", "p3"]
    with pytest.raises(errors.StateNotLoadedError):
        _ = found[0].state


async def test_a_limit_bounds_what_is_asked_for(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("List", pb.ListResponse(checkpoints=[checkpoint("c3", 3), checkpoint("c2", 2)], next_page_token="p2"))
    found = [c async for c in client.list("w", limit=2, scope=None)]
    assert len(found) == 2
    (request,) = server.asked("List")
    assert request.page_size == 2
    assert not request.HasField("scope")
    assert [c async for c in client.list("w", limit=0)] == []


async def test_deletes_and_prunes_go_on_until_nothing_is_left(server: ScriptedServer, client: AsyncClient) -> None:
    server.on(
        "DeleteCheckpoints",
        pb.DeleteCheckpointsResponse(deleted=2, continue_token="t"),
        pb.DeleteCheckpointsResponse(deleted=1, done=True),
        pb.DeleteCheckpointsResponse(deleted=4, done=True),
    )
    server.on(
        "PruneWorkflow",
        pb.PruneWorkflowResponse(deleted=10, continue_token="t"),
        pb.PruneWorkflowResponse(deleted=5, done=True),
    )
    assert await client.delete_checkpoints("w", ["c1", "c2", "c3"], run_ids=["r"]) == 7
    assert await client.prune("w", keep_last=3) == 15
    assert [r.continue_token for r in server.asked("DeleteCheckpoints")] == ["", "t", ""]
    assert [list(r.run_ids) for r in server.asked("DeleteCheckpoints")] == [[], [], ["r"]]
    assert [r.continue_token for r in server.asked("PruneWorkflow")] == ["", "t"]
    assert server.asked("PruneWorkflow")[0].keep_last == 3


async def test_the_other_calls_say_what_they_were_told(server: ScriptedServer, client: AsyncClient) -> None:
    workflow = checkpoint_pb2.Workflow(workflow_id="w", labels={"a": "b"}, forked_from_workflow_id="v")
    server.on("GetWorkflow", pb.GetWorkflowResponse(workflow=workflow))
    server.on("ListWorkflows", pb.ListWorkflowsResponse(workflows=[workflow]))
    server.on("ForkWorkflow", UNAVAILABLE, pb.ForkWorkflowResponse(workflow=workflow))
    server.on("DeleteWorkflow", pb.DeleteWorkflowResponse(existed=True))
    server.on(
        "AppendRecords",
        pb.AppendRecordsResponse(outcomes=[pb.RECORD_OUTCOME_CREATED, pb.RECORD_OUTCOME_EXISTING]),
    )
    version = pb.EntryVersion(entry_key="x", checkpoint_id="c2", sequence=2, value=checkpoint_pb2.Value(json="1"))
    gone = pb.EntryVersion(entry_key="x", checkpoint_id="c3", sequence=3)
    server.on("GetEntryHistory", pb.GetEntryHistoryResponse(versions=[gone, version]))

    info = await client.workflow("w")
    assert (info.status, info.labels, info.forked_from_workflow_id) == (None, {"a": "b"}, "v")
    assert [w.workflow_id async for w in client.workflows(prefix="w", status=Status.FAILED)] == ["w"]
    assert (await client.fork("v", "w")).workflow_id == "w"
    first, second = server.asked("ForkWorkflow")
    assert first.fork_id == second.fork_id != ""
    assert await client.delete("w") is True
    records = [Record(task_id="t", value=1), Record(task_id="t", index=1, value=2, overwrite=True)]
    outcomes = await client.append_records("w", "c1", records, require_checkpoint=True)
    assert outcomes == [RecordOutcome.CREATED, RecordOutcome.EXISTING]
    assert [r.overwrite for r in server.asked("AppendRecords")[0].records] == [False, True]
    versions = [v async for v in client.entry_history("w", "x")]
    assert [(v.removed, v.value) for v in versions] == [(True, None), (False, 1)]
    assert list(server.asked("GetEntryHistory")[0].entry_keys) == ["x"]


async def test_ping_tells_whether_the_server_serves(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Check", b"\x08\x01", b"\x08\x02", Abort(grpc.StatusCode.UNIMPLEMENTED))
    await client.ping()
    with pytest.raises(errors.UnavailableError, match="does not serve"):
        await client.ping()
    with pytest.raises(errors.MilepostError, match="ping"):
        await client.ping()


async def test_a_token_from_a_file_is_read_again_when_it_changes(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    monkeypatch.setenv("MILEPOST_TOKEN_FILE", str(file))
    server.on("DeleteWorkflow", pb.DeleteWorkflowResponse(), pb.DeleteWorkflowResponse())
    async with AsyncClient(server.target) as client:
        await client.delete("w")
        file.write_text("second, longer".replace(", ", "-"))
        await client.delete("w")
    sent = [m["authorization"] for m in server.servicer.metadata]
    assert sent == ["Bearer first", "Bearer second-longer"]


async def test_a_token_file_that_cannot_be_read_is_an_auth_error(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILEPOST_TOKEN_FILE", str(tmp_path / "absent"))
    async with AsyncClient(server.target) as client:
        with pytest.raises(errors.AuthError, match="absent"):
            await client.load("w")


async def test_a_closed_client_is_not_opened_again(server: ScriptedServer) -> None:
    client = AsyncClient(server.target)
    server.on("DeleteWorkflow", pb.DeleteWorkflowResponse())
    await client.delete("w")
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.delete("w")


@pytest.mark.parametrize("method", ["Save", "Load"])
async def test_a_call_under_way_ends_with_an_error_when_the_client_is_closed(
    server: ScriptedServer, method: str
) -> None:
    """It is not told as a cancellation of its caller, who was not cancelled."""
    arrived, ended = threading.Event(), threading.Event()

    def hold(request: Any, context: grpc.ServicerContext) -> Abort:
        context.add_callback(ended.set)
        arrived.set()
        ended.wait(DEADLINE_S)
        return Abort(grpc.StatusCode.UNAVAILABLE)

    server.on(method, hold)
    client = AsyncClient(server.target)

    async def close_when_arrived() -> float | None:
        if not arrived.is_set():
            return 0.01
        await client.close()
        return None

    closer = _compat.Heartbeat(close_when_arrived, "closer")
    closer.start(0.01)
    if method == "Save":
        with pytest.raises(errors.OutcomeUnknownError) as caught:
            await client.save("w", state={}, checkpoint_id="c")
        assert caught.value.checkpoint_id == "c"
    else:
        with pytest.raises(errors.UnavailableError):
            await client.load("w")
    assert ended.wait(DEADLINE_S)
    await closer.stop()


def item(checkpoint_id: str, *, workflow_id: str = "w", **more: Any) -> SaveItem:
    return SaveItem(workflow_id=workflow_id, state=more.pop("state", {"x": 1}), checkpoint_id=checkpoint_id, **more)


def stored(checkpoint_id: str) -> pb.BatchSaveResult:
    return pb.BatchSaveResult(saved=pb.SaveResponse(checkpoint_id=checkpoint_id, sequence=1))


def refused(code: grpc.StatusCode, reason: error_reason_pb2.ErrorReason.ValueType) -> pb.BatchSaveResult:
    return pb.BatchSaveResult(error=pb.ItemError(code=code.value[0], reason=reason, message="scripted"))


QUEUE_FULL = refused(grpc.StatusCode.RESOURCE_EXHAUSTED, error_reason_pb2.QUEUE_FULL)
ITEM_OUTCOME_UNKNOWN = refused(grpc.StatusCode.UNKNOWN, error_reason_pb2.OUTCOME_UNKNOWN)
PREDECESSOR_FAILED = refused(grpc.StatusCode.FAILED_PRECONDITION, error_reason_pb2.PREDECESSOR_FAILED)
ITEM_BASE_NOT_FOUND = refused(grpc.StatusCode.FAILED_PRECONDITION, error_reason_pb2.BASE_NOT_FOUND)


def batch(*results: pb.BatchSaveResult) -> pb.BatchSaveResponse:
    return pb.BatchSaveResponse(results=results)


def ids(request: pb.BatchSaveRequest) -> list[str]:
    return [one.checkpoint_id for one in request.items]


async def test_save_all_answers_for_each_item(server: ScriptedServer, client: AsyncClient) -> None:
    moved = refused(grpc.StatusCode.ABORTED, error_reason_pb2.HEAD_MOVED)
    server.on("BatchSave", batch(stored("c1"), moved, stored("c3")))
    unencodable = item("c4", state={"x": object()})
    first, second, third, fourth = await client.save_all([item("c1"), item("c2"), item("c3"), unencodable])
    assert isinstance(first, Saved)
    assert isinstance(second, errors.HeadMovedError)
    assert second.checkpoint_id == "c2"
    assert isinstance(third, Saved)
    assert isinstance(fourth, errors.CodecError)
    assert await client.save_all([]) == []


async def test_save_all_sends_a_chain_and_sends_again_what_failed_in_passing(
    server: ScriptedServer, client: AsyncClient
) -> None:
    one = item("c1", state={"x": 1, "y": 1}, after="start")
    two = item("c2", state={"x": 1, "y": 2}, after=one)
    three = item("c3", state={"x": 1, "y": 3}, after=two)
    server.on("BatchSave", batch(stored("c1"), QUEUE_FULL, PREDECESSOR_FAILED), batch(stored("c2"), stored("c3")))
    results = await client.save_all([one, two, three])
    assert [isinstance(r, Saved) for r in results] == [True, True, True]
    whole, rest = server.asked("BatchSave")
    assert ids(whole) == ["c1", "c2", "c3"]
    assert ids(rest) == ["c2", "c3"]
    assert whole.items[1].base_checkpoint_id == whole.items[1].expected_head == "c1"
    assert set(whole.items[1].state) == {"y"}


async def test_save_all_sends_in_full_what_lacks_its_base(server: ScriptedServer, client: AsyncClient) -> None:
    server.on("Save", saved_as_asked)
    first = await client.save("w", state={"x": 1, "y": 2}, after="start")
    server.on("BatchSave", batch(ITEM_BASE_NOT_FOUND), batch(stored("c2")))
    (result,) = await client.save_all([item("c2", state={"x": 1, "y": 3}, after=first)])
    assert isinstance(result, Saved)
    again = server.asked("BatchSave")[1].items[0]
    assert not again.HasField("base_checkpoint_id")
    assert set(again.state) == {"x", "y"}


async def test_save_all_sends_again_only_what_builds_on_an_item_of_its_own_workflow(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """Sent without its failed predecessor, an item would be laid on what the store has under that id."""
    taken = refused(grpc.StatusCode.ALREADY_EXISTS, error_reason_pb2.CHECKPOINT_EXISTS)
    server.on(
        "BatchSave",
        pb.BatchSaveResponse(results=[QUEUE_FULL, taken, PREDECESSOR_FAILED]),
        pb.BatchSaveResponse(results=[stored("c1")]),
    )
    passing, failing = item("c1"), item("c1", workflow_id="v")
    results = await client.save_all([passing, failing, item("c2", workflow_id="v", after=failing)])
    assert [type(result) for result in results] == [
        Saved,
        errors.CheckpointExistsError,
        errors.PredecessorFailedError,
    ]


async def test_save_all_says_which_content_an_increment_of_a_later_request_is_made_on(
    server: ScriptedServer, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have replaced the base between two requests; within one nobody can."""
    monkeypatch.setattr(_calls, "ITEMS_MAX", 2)
    answers = [
        pb.BatchSaveResult(
            saved=pb.SaveResponse(checkpoint_id=f"c{number}", sequence=number, digest=b"%d" % number * 32)
        )
        for number in (1, 2, 3)
    ]
    server.on("BatchSave", pb.BatchSaveResponse(results=answers[:2]), pb.BatchSaveResponse(results=answers[2:]))
    first = item("c1", state={"x": 1, "y": 1}, after="start")
    second = item("c2", state={"x": 1, "y": 2}, after=first)
    third = item("c3", state={"x": 1, "y": 3}, after=second)
    assert [type(result) for result in await client.save_all([first, second, third])] == [Saved] * 3
    sent = [one for request in server.asked("BatchSave") for one in request.items]
    assert [(one.base_checkpoint_id, one.base_digest) for one in sent] == [("", b""), ("c1", b""), ("c2", b"2" * 32)]


async def test_save_all_does_not_reorder_what_nothing_else_keeps_in_order(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.on("BatchSave", batch(QUEUE_FULL, stored("c2"), QUEUE_FULL), batch(stored("d1")))
    overtaken, later, other = await client.save_all([item("c1"), item("c2"), item("d1", workflow_id="v")])
    assert isinstance(overtaken, errors.QueueFullError)
    assert isinstance(later, Saved)
    assert isinstance(other, Saved)


async def test_save_all_says_for_each_item_that_its_outcome_is_unknown(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.on("BatchSave", batch(stored("c1"), ITEM_OUTCOME_UNKNOWN), *[batch(ITEM_OUTCOME_UNKNOWN)] * 3)
    first, second = await client.save_all([item("c1", after="start"), item("c2", workflow_id="v", after="start")])
    assert isinstance(first, Saved)
    assert isinstance(second, errors.OutcomeUnknownError)
    assert second.checkpoint_id == "c2"


async def test_save_all_does_not_forget_that_an_answer_was_lost(server: ScriptedServer, client: AsyncClient) -> None:
    disk_low = refused(grpc.StatusCode.RESOURCE_EXHAUSTED, error_reason_pb2.DISK_LOW)
    moved = refused(grpc.StatusCode.ABORTED, error_reason_pb2.HEAD_MOVED)
    server.on("BatchSave", UNAVAILABLE, batch(disk_low, moved))
    lost, settled = await client.save_all([item("c1"), item("d1", workflow_id="v")])
    assert isinstance(lost, errors.OutcomeUnknownError)
    assert isinstance(settled, errors.HeadMovedError)

    server.on("BatchSave", batch(ITEM_OUTCOME_UNKNOWN), *[NOT_SERVING] * 4)
    (open_item,) = await client.save_all([item("c2")])
    assert isinstance(open_item, errors.OutcomeUnknownError)
    assert open_item.checkpoint_id == "c2"


async def test_save_all_keeps_what_it_knows_when_a_later_part_fails(
    server: ScriptedServer, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milepost._calls.ITEMS_MAX", 1)
    server.on("BatchSave", batch(stored("c1")), *[UNAVAILABLE] * 4)
    first, second, third = await client.save_all([item("c1"), item("c2"), item("c3")])
    assert isinstance(first, Saved)
    assert isinstance(second, errors.OutcomeUnknownError)
    assert (second.workflow_id, second.checkpoint_id) == ("w", "c2")
    assert isinstance(third, errors.UnavailableError)
    assert third.checkpoint_id == "c3"


async def test_no_answer_shows_a_value(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-4711"
    caplog.set_level("DEBUG")
    found = checkpoint("c1", 1, x=f'"{canary}"')
    found.records.add(task_id="t", value=checkpoint_pb2.Value(json=f'"{canary}"'))
    found.metadata = f'{{"m":"{canary}"}}'
    server.on("Save", NOT_SERVING, saved_as_asked, HEAD_MOVED).on("Load", pb.LoadResponse(checkpoint=found))
    shown: list[Callable[[], str]] = []
    async with AsyncClient(server.target, token=canary) as client:
        saved = await client.save("w", state={"x": canary}, metadata={"m": canary})
        loaded = await client.load("w")
        with pytest.raises(errors.HeadMovedError) as caught:
            await client.save("w", state={"x": canary}, after=saved)
        shown = [lambda: repr(client), lambda: repr(saved), lambda: repr(loaded), lambda: repr(caught.value)]
        shown += [lambda: repr(loaded.records), lambda: repr(item("c", state={"x": canary})), lambda: caplog.text]
        assert [text() for text in shown if canary in text()] == []
    assert "Save: attempt 1 failed" in caplog.text
