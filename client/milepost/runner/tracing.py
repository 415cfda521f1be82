"""Spans of runs, for programs that have set up OpenTelemetry; for all others next to nothing.

    checkpointed_workflow.execute   one call of `run`, or of a child workflow
      checkpointed_workflow.load    reading the head
      checkpointed_workflow.step    one attempt of a step
      checkpointed_workflow.save    storing a checkpoint, or those of a pipelined run that are sent together

A checkpoint's metadata names the span of the run that saved it, and a run that goes on from there links to it: so the
traces of all the hosts that a workflow has been on can be found from each other. Attributes are ids, steps, numbers and
types; nothing of a state is among them, nor what an exception says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from milepost.runner.run import Run

__all__ = ["attempt_span", "load_span", "queue_span", "run_span", "save_span", "take_over"]

_NAME: Final = "milepost.runner"
_TRACEPARENT: Final = "traceparent"
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_OFF: Final = frozenset({trace.ProxyTracerProvider, trace.NoOpTracerProvider})
# Entered and left without any effect, by whoever likes, at the same time too.
_NOTHING: Final[AbstractContextManager[None]] = contextlib.nullcontext()


class RunSpan:
    """What a run tells its span at the end."""

    def __init__(self, span: trace.Span | None) -> None:
        self._span = span

    def ended(self, run: Run[Any]) -> None:
        """Note how it ended."""
        if self._span is not None:
            self._span.set_attribute("resumed", run.resumed)
            self._span.set_attribute("checkpoint_id", run.checkpoint_id)
            self._span.set_attribute("sequence", run.sequence)
            self._span.set_attribute("status", run.status)


_UNTRACED: Final[AbstractContextManager[RunSpan]] = contextlib.nullcontext(RunSpan(None))


def _is_on() -> bool:
    return type(trace.get_tracer_provider()) not in _OFF


def run_span(workflow: str, workflow_id: str, scope: str, run_id: str) -> AbstractContextManager[RunSpan]:
    """Trace a run for as long as the block lasts."""
    return _run_span(workflow, workflow_id, scope, run_id) if _is_on() else _UNTRACED


@contextlib.contextmanager
def _run_span(workflow: str, workflow_id: str, scope: str, run_id: str) -> Iterator[RunSpan]:
    attributes: dict[str, Any] = {"workflow": workflow, "workflow_id": workflow_id, "run_id": run_id}
    if scope:
        attributes["scope"] = scope
    with _span("execute", attributes) as span:
        yield RunSpan(span)


def take_over(previous: str) -> str:
    """Link the current run to the one that saved the checkpoint it goes on from.

    Args:
        previous: What that checkpoint's metadata names; "" where it names nothing.

    Returns:
        What this run's checkpoints name: its own span, in the form of the header `traceparent`; "" where it has none.
    """
    if not _is_on():
        return ""
    span = trace.get_current_span()
    if not span.get_span_context().is_valid:
        return ""
    if previous:
        before = trace.get_current_span(_PROPAGATOR.extract({_TRACEPARENT: previous})).get_span_context()
        # Old versions of the API know links only of spans that are yet to begin.
        if before.is_valid and hasattr(span, "add_link"):
            span.add_link(before)
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_TRACEPARENT, "")


def attempt_span(workflow_id: str, scope: str, step: str, number: int) -> AbstractContextManager[Any]:
    """Trace one attempt of a step."""
    if not _is_on():
        return _NOTHING
    attributes: dict[str, Any] = {"workflow_id": workflow_id, "current_step": step, "attempt": number}
    if scope:
        attributes["scope"] = scope
    return _span("step", attributes)


def load_span(workflow_id: str, scope: str) -> AbstractContextManager[Any]:
    """Trace the reading of a head."""
    if not _is_on():
        return _NOTHING
    return _span("load", {"workflow_id": workflow_id, **({"scope": scope} if scope else {})})


def save_span(workflow_id: str, arguments: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Trace the storing of a checkpoint, given what the store's `save` is."""
    if not _is_on():
        return _NOTHING
    attributes = {
        "workflow_id": workflow_id,
        "current_step": arguments["current_step"],
        "checkpoint_id": arguments["checkpoint_id"],
        "status": str(arguments["status"]),
    }
    if arguments["scope"]:
        attributes["scope"] = arguments["scope"]
    return _span("save", attributes)


def queue_span(workflow_id: str, steps: Sequence[str]) -> AbstractContextManager[Any]:
    """Trace the storing of checkpoints that are sent together."""
    if not _is_on():
        return _NOTHING
    return _span("save", {"workflow_id": workflow_id, "current_step": steps[-1], "checkpoint_count": len(steps)})


@contextlib.contextmanager
def _span(name: str, attributes: dict[str, Any]) -> Iterator[trace.Span]:
    tracer = trace.get_tracer(_NAME)
    with tracer.start_as_current_span(
        f"checkpointed_workflow.{name}", attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            # Its type alone: what it says may quote the state.
            kind = type(error).__name__
            span.set_attribute("error.type", kind)
            span.set_status(trace.Status(trace.StatusCode.ERROR, kind))
            raise
