"""Tracing: only where it is wanted, and then with the caller's trace."""

from __future__ import annotations

import importlib.util
from typing import Any

import grpc
import pytest

from milepost import AsyncClient, Client
from milepost._telemetry import wants_tracing
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.scripted_server import scripted_server

needs_otel = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.instrumentation") is None, reason="the extra otel is not installed"
)


def test_nothing_is_traced_unless_something_is_configured() -> None:
    assert not wants_tracing(None, {})
    assert not wants_tracing(False, {"OTEL_TRACES_EXPORTER": "otlp"})


@needs_otel
def test_the_environment_switches_tracing_on_and_off() -> None:
    assert wants_tracing(None, {"OTEL_TRACES_EXPORTER": "otlp"})
    assert not wants_tracing(None, {"OTEL_TRACES_EXPORTER": "none"})
    assert not wants_tracing(None, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"})
    assert wants_tracing(True, {})


def test_asking_for_what_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost._telemetry._is_installed", lambda: False)
    assert not wants_tracing(None, {"OTEL_TRACES_EXPORTER": "otlp"})
    with pytest.raises(ImportError, match=r"milepost\[otel\]"):
        wants_tracing(True, {})


@needs_otel
async def test_both_clients_carry_the_trace_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with scripted_server() as server:
        server.on("DeleteWorkflow", *[pb.DeleteWorkflowResponse(existed=True)] * 2)
        with provider.get_tracer("test").start_as_current_span("outer") as span:
            with Client(server.target) as client:
                assert client.delete("w")
            async with AsyncClient(server.target, instrument=True) as async_client:
                assert await async_client.delete("w")
        wanted = f"{span.get_span_context().trace_id:032x}"
        sent = [str(m.get("traceparent")) for m in server.servicer.metadata]
        assert [text.split("-")[1] for text in sent] == [wanted, wanted]


async def test_interceptors_of_the_caller_are_used() -> None:
    seen: list[str] = []

    class Sync(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            seen.append("sync")
            return continuation(client_call_details, request)

    class Async(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            seen.append("async")
            return await continuation(client_call_details, request)

    with scripted_server() as server:
        server.on("DeleteWorkflow", *[pb.DeleteWorkflowResponse(existed=True)] * 2)
        with Client(server.target, interceptors=[Sync()]) as client:
            client.delete("w")
        async with AsyncClient(server.target, interceptors=[Async()]) as async_client:
            await async_client.delete("w")
    assert seen == ["sync", "async"]


@needs_otel
async def test_a_watch_of_a_traced_client_can_be_closed() -> None:
    started = pb.WatchResponse(kind=pb.WATCH_EVENT_KIND_STARTED)
    with scripted_server() as server:
        server.on("Watch", *[lambda request, context: iter([started, started])] * 2)
        with Client(server.target, instrument=True) as client, client.watch() as events:
            next(events)
        assert list(events) == []
        async with AsyncClient(server.target, instrument=True) as async_client, async_client.watch() as async_events:
            await anext(async_events)
        assert [event async for event in async_events] == []
