"""Traces: one trace from client to server, commits linked to the calls they answer, and ends told as they were."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.instrumentation.grpc import aio_client_interceptors
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from milepost import AsyncClient, Client, MilepostError
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.config import QueueConfig
from milepost_server.grpc_api.addresses import Address
from milepost_server.grpc_api.call_codec import PbCallCodec
from milepost_server.grpc_api.server import GrpcFront
from milepost_server.limits import DEFAULT_LIMITS, MIB
from milepost_server.model import Answer, Command
from milepost_server.service import CheckpointService
from milepost_server.storage.committer import Committer
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.telemetry import COMMIT_SPAN, Tracing, make_tracing
from tests.support.raw_calls import open_stub, save_request

DEADLINE_S = 30.0


class HeldEngine(MemoryEngine):
    """Commits when it may."""

    def __init__(self) -> None:
        super().__init__(limits=DEFAULT_LIMITS)
        self.may_commit = threading.Event()
        self.may_commit.set()
        self.has_begun = threading.Event()

    def execute(self, commands: Sequence[Command]) -> Any:
        """See `Engine`."""
        self.has_begun.set()
        self.may_commit.wait()
        return super().execute(commands)


class Traced:
    """A server in this process, its spans, and a channel to it that makes spans too."""

    def __init__(
        self,
        engine: HeldEngine,
        service: CheckpointService,
        exporter: InMemorySpanExporter,
        *,
        provider: TracerProvider,
        target: str,
        channel: grpc.aio.Channel,
    ) -> None:
        self.engine = engine
        self.service = service
        self.provider = provider
        self.target = target
        self.channel = channel
        self.stub: Any = open_stub(channel)  # type: ignore[arg-type]
        self._exporter = exporter

    def spans(self, name: str, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.kind is kind and span.name.endswith(name)]


@asynccontextmanager
async def traced() -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    engine = HeldEngine()
    committer = Committer(engine, config=QueueConfig(), codec=PbCallCodec(DEFAULT_LIMITS), observer=tracing)
    service = CheckpointService(committer, engine, limits=DEFAULT_LIMITS, config=QueueConfig())
    front = GrpcFront(
        service,
        limits=DEFAULT_LIMITS,
        concurrent_calls_max=100,
        large_bytes_max=16 * MIB,
        large_answers_bytes_max=16 * MIB,
        interceptors=tracing.interceptors,
        mark_span=tracing.mark_span,
    )
    address = front.listen(Address(host="127.0.0.1", port=0), insecure=False)
    await front.start()
    interceptors: Any = aio_client_interceptors(tracer_provider=provider)  # type: ignore[no-untyped-call]
    try:
        async with grpc.aio.insecure_channel(str(address), interceptors=interceptors) as channel:
            yield Traced(engine, service, exporter, provider=provider, target=str(address), channel=channel)
    finally:
        engine.may_commit.set()
        await front.drain(delay_s=0, grace_s=0)
        await committer.close()


async def test_client_server_and_commit_are_one_story() -> None:
    async with traced() as world:
        await world.stub.Save(save_request("w"))
    [client] = world.spans("Save", SpanKind.CLIENT)
    [server] = world.spans("Save", SpanKind.SERVER)
    assert client.context
    assert server.context
    assert server.parent
    assert server.context.trace_id == client.context.trace_id
    assert server.parent.span_id == client.context.span_id
    [commit] = world.spans(COMMIT_SPAN, SpanKind.INTERNAL)
    assert commit.parent is None
    assert [link.context.span_id for link in commit.links] == [server.context.span_id]


async def test_a_commit_links_to_every_call_it_answers() -> None:
    async with traced() as world:
        world.engine.may_commit.clear()
        calls = [asyncio.ensure_future(world.stub.Save(save_request(f"w{number}"))) for number in range(5)]
        await asyncio.sleep(0)
        world.engine.may_commit.set()
        await asyncio.gather(*calls)
    servers = {span.context.span_id for span in world.spans("Save", SpanKind.SERVER) if span.context}
    commits = world.spans(COMMIT_SPAN, SpanKind.INTERNAL)
    linked = [link.context.span_id for commit in commits for link in commit.links]
    assert sorted(linked) == sorted(servers)


async def test_a_watch_is_one_span_that_ends_with_it_and_no_fault_where_its_caller_has_enough() -> None:
    """It belongs to the caller's trace; what is saved meanwhile does not belong to it."""
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with traced() as world, grpc.aio.insecure_channel(world.target) as channel:
        stub: Any = open_stub(channel)  # type: ignore[arg-type]
        watch = stub.Watch(pb.WatchRequest(workflow_id="w"), metadata=[("traceparent", caller)])
        assert (await watch.read()).revision == 0
        await world.stub.Save(save_request("w"))
        assert (await watch.read()).revision == 1
        assert world.spans("Watch", SpanKind.SERVER) == []
        watch.cancel()
        async with asyncio.timeout(30):
            while world.service.watches.watch_count:
                await world.stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="w"))
    [span] = world.spans("Watch", SpanKind.SERVER)
    assert span.context
    assert span.parent
    assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == caller
    assert span.name == "/milepost.v1.CheckpointStore/Watch"
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "milepost.v1.CheckpointStore",
        "rpc.method": "Watch",
        "rpc.grpc.status_code": grpc.StatusCode.CANCELLED.value[0],
    }
    assert span.status.status_code is StatusCode.UNSET
    [saved] = world.spans("Save", SpanKind.SERVER)
    assert saved.context
    assert saved.context.trace_id != span.context.trace_id


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_watch_of_a_client_is_a_span_of_the_caller_and_has_the_servers_in_it(
    monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    async with traced() as world:
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", world.provider)

        def watch_once() -> None:
            with Client(world.target) as client, client.watch("w") as events:
                assert next(events).kind == "started"

        with world.provider.get_tracer("test").start_as_current_span("outer") as outer:
            if is_async:
                async with AsyncClient(world.target) as client, client.watch("w") as events:
                    assert (await anext(events)).kind == "started"
            else:
                await asyncio.to_thread(watch_once)
        async with asyncio.timeout(30):
            while world.service.watches.watch_count:
                await world.stub.Save(save_request("v"))
    [client_span] = world.spans("Watch", SpanKind.CLIENT)
    [server_span] = world.spans("Watch", SpanKind.SERVER)
    assert client_span.context
    assert client_span.parent
    assert client_span.parent.span_id == outer.get_span_context().span_id
    assert server_span.parent
    assert server_span.parent.span_id == client_span.context.span_id
    assert (client_span.attributes or {})["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert client_span.status.status_code is StatusCode.UNSET


async def test_a_watch_of_a_client_that_the_server_refuses_is_a_failed_span(monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced() as world:
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", world.provider)
        async with AsyncClient(world.target) as client:
            with pytest.raises(MilepostError):
                await anext(client.watch("w" * 2_000))
        with Client(world.target) as sync_client, pytest.raises(MilepostError):
            await asyncio.to_thread(next, sync_client.watch("w" * 2_000))
    spans = world.spans("Watch", SpanKind.CLIENT)
    codes = [(span.attributes or {})["rpc.grpc.status_code"] for span in spans]
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 2
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR] * 2


async def test_a_watch_that_the_server_ends_says_why() -> None:
    async with traced() as world:
        refused = world.stub.Watch(pb.WatchRequest(workflow_id="w", after_incarnation="gone", after_revision=7))
        with pytest.raises(grpc.aio.AioRpcError):
            await refused.read()
        watch = world.stub.Watch(pb.WatchRequest(workflow_id="w"))
        await watch.read()
        world.service.begin_drain()
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.read()
    ended = [(span.attributes or {}, span.status.status_code) for span in world.spans("Watch", SpanKind.SERVER)]
    assert [attributes["milepost.reason"] for attributes, _ in ended] == ["WATCH_COMPACTED", "NOT_SERVING"]
    assert [status for _, status in ended] == [StatusCode.UNSET, StatusCode.ERROR]
    assert not any(span.events for span in world.spans("Watch", SpanKind.SERVER))


async def test_a_refused_call_has_its_code_and_reason_and_is_no_fault_of_the_server() -> None:
    async with traced() as world:
        with pytest.raises(grpc.aio.AioRpcError):
            await world.stub.Load(pb.LoadRequest(workflow_id="none"))
    [span] = world.spans("Load", SpanKind.SERVER)
    assert span.attributes
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert span.attributes["milepost.reason"] == "WORKFLOW_NOT_FOUND"
    assert span.status.status_code is not StatusCode.ERROR


async def test_a_cancelled_call_does_not_look_like_a_good_one() -> None:
    async with traced() as world:
        world.engine.may_commit.clear()
        world.engine.has_begun.clear()
        # Without the interceptors of the channel: to cancel a call of theirs need not cancel that on the wire.
        async with grpc.aio.insecure_channel(world.target) as channel:
            call = open_stub(channel).Save(save_request("w"))  # type: ignore[arg-type]
            calling = asyncio.ensure_future(call)
            assert await asyncio.to_thread(world.engine.has_begun.wait, DEADLINE_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        world.engine.may_commit.set()
        # Commits in order: once this one is answered, the span of the other has ended.
        await world.stub.Save(save_request("w"))
    ended = [span for span in world.spans("Save", SpanKind.SERVER) if span.status.status_code is StatusCode.ERROR]
    assert [(span.attributes or {})["rpc.grpc.status_code"] for span in ended] == [grpc.StatusCode.CANCELLED.value[0]]


async def test_a_defect_is_an_error_of_the_server_with_an_id_and_no_detail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with traced() as world:

        def fail(namespace: str, workflow_id: str) -> Answer:
            raise ZeroDivisionError("secret text")

        monkeypatch.setattr(world.engine, "get_workflow", fail)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await world.stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="w"))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(failed.value) + str(failed.value.trailing_metadata())
    assert "secret text" in caplog.text
    [span] = world.spans("GetWorkflow", SpanKind.SERVER)
    assert span.status.status_code is StatusCode.ERROR
    assert "secret" not in str(span.to_json())


async def test_health_is_not_traced_and_its_watch_works_under_tracing() -> None:
    async with traced() as world:
        stub: Any = health_pb2_grpc.HealthStub(world.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    assert not world.spans("Watch", SpanKind.SERVER)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off_unless_asked_for(environment: dict[str, str]) -> None:
    assert make_tracing(environment) is None


def test_tracing_is_on_where_the_standard_variables_ask_for_it() -> None:
    tracing = make_tracing({"OTEL_TRACES_EXPORTER": "console"})
    assert tracing is not None
    tracing.close()


@pytest.mark.parametrize(
    "request_",
    [
        save_request("w", entries={"x": '"canary"'}, metadata='{"m":"canary"}', labels={"l": "canary"}),
        save_request("w", entries={"x": "canary"}),
        save_request("w", metadata='"canary"'),
        save_request("w", labels={"l": "canary\0"}),
        save_request("w", labels={"l": "canary" * 100}),
    ],
)
async def test_no_span_carries_values_metadata_or_labels(request_: pb.SaveRequest) -> None:
    async with traced() as world:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await world.stub.Save(request_)
    [server] = world.spans("Save", SpanKind.SERVER)
    [client] = world.spans("Save", SpanKind.CLIENT)
    assert (server.attributes or {})["rpc.grpc.status_code"] in {0, grpc.StatusCode.INVALID_ARGUMENT.value[0]}
    assert "canary" not in str(server.to_json()) + str(client.to_json())
