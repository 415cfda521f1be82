"""Spans of runs: who ran what, in one trace, linked from host to host, with nothing of the state in them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from milepost import StepFailedError, Workflow
from milepost.runner import tracing
from tests.integration.runner.conftest import World

State = dict[str, Any]
SECRET = "4111-1111-1111-1111"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Everything that is traced, in a program that has set up OpenTelemetry."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == f"checkpointed_workflow.{name}"]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


class Flaky:
    """Two steps; the second one fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.workflow = Workflow("order", State)
        self.workflow.step(self.price)
        self.workflow.step(self.charge)

    def price(self, state: State) -> State:
        trace.get_current_span().add_event("in the step")
        return {"card": SECRET}

    def charge(self, state: State) -> State:
        self.failures -= 1
        if self.failures >= 0:
            raise ValueError(SECRET)
        return {"charged": SECRET}


def test_a_run_is_one_trace(memory_world: World, spans: InMemorySpanExporter) -> None:
    """Attempts, loads and saves belong to the run; what a step traces belongs to its attempt."""
    run = memory_world.bind(Flaky().workflow).run("o-1", {"card": SECRET})
    (execute,) = named(spans, "execute")
    found = attributes(execute)
    assert found.pop("run_id")
    assert found == {
        "workflow": "order",
        "workflow_id": "o-1",
        "resumed": False,
        "checkpoint_id": run.checkpoint_id,
        "sequence": 3,
        "status": "completed",
    }
    steps = named(spans, "step")
    assert [attributes(span) for span in steps] == [
        {"workflow_id": "o-1", "current_step": step, "attempt": 1} for step in ("price", "charge")
    ]
    assert [event.name for event in steps[0].events] == ["in the step"]
    saves = [attributes(span) for span in named(spans, "save")]
    assert [(save["current_step"], save["status"]) for save in saves] == [
        ("", "running"),
        ("price", "running"),
        ("charge", "completed"),
    ]
    for name in ("step", "save", "load"):
        for span in named(spans, name):
            assert span.parent is not None
            assert span.parent.span_id == span_id(execute)


def test_a_resumed_run_links_to_the_one_before_it(memory_world: World, spans: InMemorySpanExporter) -> None:
    """Each host has a trace of its own, and they can be found from each other."""
    flaky = Flaky(failures=2)
    for _ in range(2):
        with pytest.raises(StepFailedError):
            memory_world.bind(flaky.workflow).run("o-1", {})
    memory_world.bind(flaky.workflow).run("o-1")
    runs = named(spans, "execute")
    assert [[link.context.span_id for link in span.links] for span in runs] == [
        [],
        [span_id(runs[0])],
        [span_id(runs[1])],
    ]
    assert [attributes(span).get("resumed") for span in runs] == [None, None, True]


def test_what_fails_has_its_type_and_not_its_text(memory_world: World, spans: InMemorySpanExporter) -> None:
    """Nor is anything of the state in a span."""
    with pytest.raises(StepFailedError):
        memory_world.bind(Flaky(failures=1).workflow).run("o-1", {"card": SECRET})
    (execute,) = named(spans, "execute")
    failed = named(spans, "step")[-1]
    assert attributes(failed)["error.type"] == "ValueError"
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert attributes(execute)["error.type"] == "StepFailedError"
    assert all(SECRET not in span.to_json() for span in spans.get_finished_spans())


def test_a_child_is_traced_under_its_step(memory_world: World, spans: InMemorySpanExporter) -> None:
    child = Workflow("child", State)
    child.step(id="inner")(lambda state: None)
    parent = Workflow("parent", State)

    @parent.step
    def ship(state: State, ctx: Any) -> None:
        ctx.run(child, {})

    memory_world.bind(parent).run("o-1", {})
    nested, _ = named(spans, "execute")
    assert (attributes(nested)["workflow"], attributes(nested)["scope"]) == ("child", "ship")
    inner, step = named(spans, "step")
    assert [attributes(inner)["current_step"], attributes(step)["current_step"]] == ["inner", "ship"]
    assert nested.parent is not None
    assert nested.parent.span_id == span_id(step)
    assert inner.parent is not None
    assert inner.parent.span_id == span_id(nested)
    assert len({span.context.trace_id for span in spans.get_finished_spans() if span.context}) == 1


def test_a_pipelined_run_traces_its_saves_too(memory_world: World, spans: InMemorySpanExporter) -> None:
    """They are made by another thread, and belong to the run all the same."""
    memory_world.bind(Flaky().workflow, durability="pipelined").run("o-1", {})
    (execute,) = named(spans, "execute")
    saves = named(spans, "save")
    assert saves
    assert {span.parent.span_id for span in saves if span.parent} == {span_id(execute)}


def test_nothing_is_traced_or_stored_where_nothing_is_set_up(memory_world: World) -> None:
    memory_world.bind(Flaky().workflow).run("o-1", {})
    assert "traceparent" not in memory_world.head("o-1").metadata["milepost"]
    assert tracing.attempt_span("o-1", "", "price", 1) is tracing.attempt_span("o-2", "", "price", 1)


def test_what_no_span_was_stored_as_is_no_link(memory_world: World, spans: InMemorySpanExporter) -> None:
    """Metadata may have been written by anybody."""
    with trace.get_tracer("test").start_as_current_span("run"):
        named_by = tracing.take_over("nonsense")
        assert tracing.take_over(named_by) == named_by
    (span,) = spans.get_finished_spans()
    assert len(span.links) == 1
