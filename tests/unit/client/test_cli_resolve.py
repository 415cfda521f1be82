"""`milepost resolve`: a person decides how a step goes on that no run would touch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from milepost import JSON, Context, StepFailedError, StepOutcomeUnknownError, Workflow
from milepost.cli.app import cli
from milepost.cli.failures import ExitCode
from milepost.cli.session import Session
from milepost.types import Status
from tests.support.stored_memory import MemoryStore

State = dict[str, Any]
Run = Callable[..., Result]

MODULE = """
from typing import Any
from milepost import JSON as codec, Workflow

order = Workflow("order", dict[str, Any])

@order.step
def price(state): raise AssertionError

@order.step(at_most_once=True{options})
def charge(state): raise AssertionError

@order.step
def ship(state): raise AssertionError
"""


class Shop:
    """A workflow `order-1` that failed in its step `charge`, which may run once."""

    def __init__(self, store: MemoryStore) -> None:
        self.calls: list[str] = []
        self.fails = True
        wf = Workflow("order", State)
        wf.step(self.price)
        wf.step(self.charge, at_most_once=True)
        wf.step(self.ship)
        self.runner = wf.bind(store)
        with pytest.raises(StepFailedError):
            self.runner.run("order-1", {"items": 3})

    def price(self, state: State) -> State:
        self.calls.append("price")
        return {"total": 42}

    def charge(self, state: State) -> None:
        self.calls.append("charge")
        if self.fails:
            raise ConnectionError

    def ship(self, state: State) -> None:
        self.calls.append("ship")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(codec=JSON)


@pytest.fixture
def shop(store: MemoryStore) -> Shop:
    return Shop(store)


@pytest.fixture
def run(store: MemoryStore, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in a folder with a module that has the definition."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(100))

    def run(*args: str, options: str = "", can_ask: bool = False, stdin: str = "") -> Result:
        module = f"resolved_{tmp_path.name}_{next(count)}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(MODULE.format(options=options), encoding="utf-8")
        session = Session(connect=lambda settings: store, can_ask=lambda: can_ask)
        words = [word.replace("MODULE", module) for word in args]
        command = ["resolve", *words, "--workflow", f"{module}:order"]
        return CliRunner().invoke(cli, command, obj=session, input=stdin)

    return run


def test_a_step_may_run_again(run: Run, shop: Shop) -> None:
    result = run("order-1", "charge", "retry", "--yes")
    head = shop.runner.status("order-1").head_checkpoint_id
    assert result.exit_code == ExitCode.OK
    assert result.stdout == (
        f"resolved step 'charge' of workflow 'order-1' as retry: it is running, checkpoint {head}\n"
    )
    shop.fails = False
    assert shop.runner.run("order-1").status == "completed"
    assert shop.calls == ["price", "charge", "charge", "ship"]


def test_what_happened_is_told_as_entries_of_the_state(run: Run, shop: Shop, store: MemoryStore) -> None:
    result = run("order-1", "charge", "done", "--value", '{"receipt": "r-7"}', "--yes", "--json")
    assert (result.exit_code, result.stderr) == (ExitCode.OK, "")
    document = json.loads(result.stdout)
    assert document == {
        "workflow_id": "order-1",
        "scope": "",
        "step": "charge",
        "item_key": None,
        "resolution": "done",
        "status": "running",
        "checkpoint_id": store.load("order-1").checkpoint_id,
        "sequence": 4,
    }
    assert shop.runner.run("order-1").state == {"items": 3, "total": 42, "receipt": "r-7"}
    assert shop.calls == ["price", "charge", "ship"]


def test_a_codec_of_the_program_reads_values(run: Run, store: MemoryStore) -> None:
    result = run("order-1", "charge", "done", "--value", '{"x": 1}', "--codec", "MODULE:codec", "--yes")
    assert result.exit_code == ExitCode.OK
    assert store.load("order-1").state["x"] == 1


def test_a_step_resolved_as_failed_stays_so_until_it_is_resolved_otherwise(run: Run, shop: Shop) -> None:
    assert run("order-1", "charge", "fail", "--yes").exit_code == ExitCode.OK
    with pytest.raises((StepFailedError, StepOutcomeUnknownError)):
        shop.runner.run("order-1")
    assert run("order-1", "charge", "done", "--yes").exit_code == ExitCode.OK
    assert shop.runner.run("order-1").status == "completed"
    assert shop.calls == ["price", "charge", "ship"]


def test_nothing_is_changed_before_a_yes(run: Run, store: MemoryStore) -> None:
    before = store.load("order-1").checkpoint_id
    assert run("order-1", "charge", "retry").exit_code == ExitCode.USAGE
    no = run("order-1", "charge", "done", "--value", '{"a": 1}', can_ask=True, stdin="n\n")
    assert no.exit_code == ExitCode.NEGATIVE
    assert "Count step 'charge' of workflow 'order-1' (failed) as finished, with 'a' changed?" in no.stderr
    assert "nothing was changed" in no.stderr
    assert store.load("order-1").checkpoint_id == before
    assert run("order-1", "charge", "retry", can_ask=True, stdin="y\n").exit_code == ExitCode.OK
    assert store.load("order-1").checkpoint_id != before


def test_what_is_imported_is_said_first(run: Run) -> None:
    result = run("order-1", "charge", "retry", "--yes")
    assert result.stderr.startswith("importing resolved_")
    assert result.stderr.endswith(", which runs its code\n")


@pytest.mark.parametrize(
    "args, code, problem",
    [
        (["order-1", "chrage", "retry"], ExitCode.USAGE, "its steps are 'price', 'charge', 'ship'"),
        (["order-1", "price", "retry"], ExitCode.CONFLICT, "step 'price' of workflow 'order-1' is finished"),
        (["order-1", "ship", "done"], ExitCode.CONFLICT, "cannot have run yet"),
        (["order-9", "charge", "retry"], ExitCode.NEGATIVE, "order-9"),
        (["order-1", "charge", "retry", "--item", "7"], ExitCode.CONFLICT, "does not run for items"),
        (["order-1", "charge", "done", "--item", "7", "--value", "x"], ExitCode.USAGE, "no JSON"),
        (["order-1", "charge", "again"], ExitCode.USAGE, "'again'"),
        (["order-1", "charge", "retry", "--value", "{}"], ExitCode.USAGE, "goes with done alone"),
        (["order-1", "charge", "done", "--value", "[1]"], ExitCode.USAGE, "no JSON object"),
        (["order-1", "charge", "done", "--codec", "MODULE:order"], ExitCode.USAGE, "not a Codec"),
    ],
)
def test_what_cannot_be_resolved(run: Run, store: MemoryStore, args: list[str], code: int, problem: str) -> None:
    before = store.load("order-1").checkpoint_id
    result = run(*args, "--yes")
    assert (result.exit_code, result.stdout) == (code, "")
    assert problem in result.stderr
    assert store.load("order-1").checkpoint_id == before


def test_an_ended_workflow_has_nothing_to_resolve(run: Run, shop: Shop, store: MemoryStore) -> None:
    shop.runner.cancel("order-1")
    result = run("order-1", "charge", "retry", "--yes")
    assert result.exit_code == ExitCode.CONFLICT
    assert "is cancelled" in result.stderr
    assert store.load("order-1").status is Status.CANCELLED


def test_another_definition_is_refused_as_a_run_would(run: Run) -> None:
    result = run("order-1", "charge", "retry", "--yes", options=", version=2")
    assert result.exit_code == ExitCode.CONFLICT
    assert "milepost check" in result.stderr
    result = run("order-1", "charge", "retry", "--yes", "--on-change", "force", options=", version=2")
    assert result.exit_code == ExitCode.OK


def test_whoever_runs_it_is_left_alone(run: Run, store: MemoryStore) -> None:
    store.acquire_lease("order-1", holder="web-3")
    result = run("order-1", "charge", "retry", "--yes")
    assert result.exit_code == ExitCode.CONFLICT
    assert "web-3" in result.stderr


def test_one_item_is_resolved_by_its_key(store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wf = Workflow("payments", State)

    @wf.step(for_each="items", into="paid", at_most_once=True)
    def pay(state: State, item: str) -> str:
        raise ConnectionError

    with pytest.raises(StepFailedError):
        wf.bind(store).run("pay-1", {"items": ["a", "b"]})
    (tmp_path / "resolved_items.py").write_text(
        """
from typing import Any
from milepost import Workflow

payments = Workflow("payments", dict[str, Any])

@payments.step(for_each="items", into="paid", at_most_once=True)
def pay(state, item): raise AssertionError
""",
        encoding="utf-8",
    )
    for key in ("0", "1"):
        command = ["resolve", "pay-1", "pay", "done", "--item", key, "--value", '{"paid": 2.50}']
        command += ["--workflow", "resolved_items:payments"]
        session = Session(connect=lambda settings: store, can_ask=lambda: True)
        result = CliRunner().invoke(cli, command, obj=session, input="y\n")
        assert result.exit_code == ExitCode.OK
        assert f"Count item {key!r} of step 'pay' of workflow 'pay-1'" in result.stderr
    assert wf.bind(store).run("pay-1").state["paid"] == [{"paid": 2.5}, {"paid": 2.5}]


def test_a_step_of_a_nested_run_is_resolved_in_its_scope(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = Workflow("order", State)

    @child.step(at_most_once=True)
    def charge(state: State) -> None:
        raise ConnectionError

    wf = Workflow("trip", State)

    @wf.step
    def pay(state: State, ctx: Context) -> State:
        return {"paid": ctx.run(child, {}).state}

    with pytest.raises(StepFailedError):
        wf.bind(store).run("trip-1", {})
    (tmp_path / "resolved_child.py").write_text(
        """
from typing import Any
from milepost import Workflow

order = Workflow("order", dict[str, Any])

@order.step(at_most_once=True)
def charge(state): raise AssertionError
""",
        encoding="utf-8",
    )
    command = ["resolve", "trip-1", "charge", "done", "--scope", "pay", "--workflow", "resolved_child:order", "--yes"]
    session = Session(connect=lambda settings: store)
    result = CliRunner().invoke(cli, [*command, "--value", '{"receipt": 7}', "--json"], obj=session)
    assert result.exit_code == ExitCode.OK
    document = json.loads(result.stdout)
    assert (document["scope"], document["status"]) == ("pay", "completed")
    assert wf.bind(store).run("trip-1").state == {"paid": {"receipt": 7}}
