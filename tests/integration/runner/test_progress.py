"""`run(progress=True)`: what a person sees of a run."""

from __future__ import annotations

import io
import re
import sys
import threading
from typing import Any

import pytest

from milepost import LeaseHeldError, Retry, StepFailedError, Workflow
from milepost.runner.progress import Lines, view_for
from tests.integration.runner.conftest import World

State = dict[str, Any]
SECRET = "4111-1111"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def order(failures: list[Exception]) -> Workflow[State]:
    wf = Workflow("order", State)

    @wf.step
    def price(state: State) -> None: ...

    @wf.step(for_each="items", into="quotes")
    def quote(state: State, item: int) -> int:
        return item

    @wf.step(retry=Retry(attempts=2, initial_s=0.0))
    def charge(state: State) -> None:
        if failures:
            raise failures.pop()

    return wf


def shown(text: str) -> list[str]:
    return re.sub(r"after [\d.]+ s", "after N s", text).splitlines()


def test_each_step_is_shown_as_it_goes(memory_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    bound = memory_world.bind(order([ValueError(SECRET)]), max_concurrency=1)
    bound.run("order-7", {"items": [1, 2], "card": SECRET}, progress=True)
    captured = capsys.readouterr()
    assert shown(captured.err) == [
        "order-7  0/3  price …",
        "order-7  1/3  price finished",
        "order-7  1/3  quote …",
        "order-7  2/3  quote finished",
        "order-7  2/3  quote …",
        "order-7  2/3  quote finished",
        "order-7  2/3  charge …",
        "order-7  2/3  charge failed (ValueError)",
        "order-7  2/3  charge … (attempt 2)",
        "order-7  3/3  charge finished",
        "order-7  3/3  completed after N s",
    ]
    assert captured.out == ""
    assert SECRET not in captured.err


def test_a_resume_says_how_far_it_was(memory_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    failures: list[Exception] = [ValueError(), ValueError()]
    bound = memory_world.bind(order(failures))
    with pytest.raises(StepFailedError):
        bound.run("order-7", {"items": []}, progress=True)
    assert shown(capsys.readouterr().err)[-1] == "order-7  2/3  StepFailedError after N s"
    bound.run("order-7", progress=True)
    assert shown(capsys.readouterr().err) == [
        "order-7  2/3  price: already done",
        "order-7  2/3  quote: already done",
        "order-7  2/3  charge …",
        "order-7  3/3  charge finished",
        "order-7  3/3  completed after N s",
    ]


def test_nothing_is_shown_unless_it_is_asked_for(memory_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    memory_world.bind(order([])).run("order-7", {"items": []})
    assert capsys.readouterr() == ("", "")


def test_a_run_goes_on_where_nobody_looks_any_more(memory_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal must not end a workflow."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert memory_world.bind(order([])).run("order-7", {"items": []}, progress=True).status == "completed"


def test_a_person_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich is installed, as it is with the command line."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    view = view_for("order-[red]7", order([]).definition)
    assert not isinstance(view, Lines)
    view.resumed(["price"])
    view.started("charge", 1)
    view.ended("charge", 2, "")
    view.close("completed")
    last = terminal.getvalue()
    assert "order-[red]7" in last
    assert "2/3" in last
    assert "completed" in last


def test_a_name_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Lines("order\x1b[2J", 3, sys.stderr).started("charge", 1)
    assert "\x1b" not in capsys.readouterr().err


def test_a_wait_for_the_lease_of_another_host_is_shown(
    memory_world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds it and for how long, on a terminal too; not where the run does not wait."""
    bound = memory_world.bind(order([]), lease_ttl_s=1.0)
    lease = memory_world.eyes.acquire_lease("o", ttl_s=12.0, holder="web-3:4711\x1b[2J")
    with pytest.raises(LeaseHeldError):
        bound.run("o", {"items": []}, lease_wait_s=0.0, progress=True)
    assert shown(capsys.readouterr().err) == ["o  0/3  LeaseHeldError after N s"]
    timer = threading.Timer(0.2, memory_world.eyes.release_lease, ("o", lease.token))
    timer.start()
    bound.run("o", {"items": []}, progress=True)
    timer.join()
    lines = shown(capsys.readouterr().err)
    assert [line for line in lines if "lease" in line] == [
        "o  0/3  waiting for lease held by web-3:4711?[2J, 12 s left"
    ]
    assert lines[-1] == "o  3/3  completed after N s"
    lease = memory_world.eyes.acquire_lease("p", ttl_s=12.0, holder="web-3:4711")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(LeaseHeldError):
        bound.run("p", {"items": []}, lease_wait_s=0.3, progress=True)
    assert "waiting for lease held by web-3:4711" in terminal.getvalue()
