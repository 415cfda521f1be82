"""What a run says about itself never has a value of the state, or what an exception quoted of one."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest

from milepost.errors import StepFailedError
from milepost.runner import Retry, Workflow
from tests.integration.runner.conftest import World

State = dict[str, Any]
SECRET = "canary-4111-1111"


def leaking() -> Workflow[State]:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def keeps(state: State) -> State:
        return {"card": SECRET}

    @workflow.step(depends_on=["keeps"], retry=Retry(attempts=2, initial_s=0.001))
    def charge(state: State) -> None:
        raise ValueError(f"refused {state['card']}")

    @workflow.step(depends_on=["keeps"])
    def other(state: State) -> State:
        raise KeyError(state["card"])

    return workflow


def test_logs_and_errors_quote_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bound = world.bind(leaking())
    with pytest.raises(StepFailedError) as caught:
        bound.run("o", {})
    error = caught.value
    assert "charge" in caplog.text
    for said in (caplog.text, str(error), repr(error), repr(bound.runner), repr(world.head("o")), str(error.metadata)):
        assert SECRET not in said
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (same.step, same.attempts, str(same)) == (error.step, error.attempts, str(error))


def test_what_was_said_is_stored_after_it_was_redacted(world: World) -> None:
    """In the value of a record, so under whatever encrypts the state."""
    bound = world.bind(leaking(), redact=lambda text: text.replace("1111", "****"))
    with pytest.raises(StepFailedError):
        bound.run("o", {})
    texts = {record.name: record.value["text"] for record in world.records("o", "failure:")}
    assert texts == {"charge": "refused canary-4111-****", "other": "'canary-4111-****'"}


def test_texts_are_quoted_where_that_was_asked_for(memory_world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def charge(state: State) -> None:
        raise ValueError("no such card")

    with pytest.raises(StepFailedError, match="no such card"):
        memory_world.bind(workflow, record_error_text=True).run("o", {})
    assert "no such card" in caplog.text


class UntellableError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def refuses(text: str) -> str:
    raise LookupError(text)


@pytest.mark.parametrize(
    "error, redact, told",
    [
        (UntellableError(), None, "(its text cannot be told: RuntimeError)"),
        (OSError("name \udcff"), None, "name \\udcff"),
        (ValueError(SECRET), refuses, "(its text cannot be told: LookupError)"),
        (ValueError(SECRET), lambda text: None, "(its text cannot be told: AttributeError)"),
    ],
)
def test_a_failure_is_stored_whatever_its_text(memory_world: World, error: Exception, redact: Any, told: str) -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    def charge(state: State) -> None:
        raise error

    bound = memory_world.bind(workflow, redact=redact, record_error_text=True)
    with pytest.raises(StepFailedError) as caught:
        bound.run("o", {})
    assert caught.value.__cause__ is error
    assert SECRET not in str(caught.value)
    (record,) = memory_world.records("o", "failure:")
    assert record.value["text"] == told


def test_what_an_error_says_is_cut_wherever_it_is_quoted(memory_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """In records, logs, notes and messages: an exception may quote a whole document."""
    caplog.set_level(logging.DEBUG)
    workflow = Workflow("order", dict[str, Any])

    @workflow.step(retry=Retry(attempts=2, initial_s=0.001))
    def charge(state: State) -> None:
        raise ValueError("x" * 1_000_000)

    with pytest.raises(StepFailedError) as caught:
        memory_world.bind(workflow, record_error_text=True).run("o", {})
    (record,) = memory_world.records("o", "failure:")
    assert len(record.value["text"]) == 2_000
    assert len(str(caught.value)) < 2_200
    assert max(len(line.getMessage()) for line in caplog.records) < 2_200
