"""`milepost check`: what a build could not go on with, before it is deployed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from milepost import JSON, Client, Context, StepFailedError, Workflow
from milepost.cli.app import cli
from milepost.cli.failures import ExitCode
from milepost.cli.session import Session
from tests.support.stored_memory import MemoryStore

State = dict[str, Any]
Run = Callable[..., Result]

MODULE = """
from typing import Any
from milepost import Workflow

order = Workflow("order", dict[str, Any])

@order.step{options}
def price(state): ...

@order.step
def charge(state): ...
"""


class FaultError(Exception):
    """What a step of these tests fails with."""


def does_nothing(state: State) -> None:
    return None


def fails(state: Any) -> None:
    raise FaultError


@pytest.fixture
def store() -> MemoryStore:
    """`order-1` failed in its second step, `order-2` is finished, `other-1` is of another definition."""
    store = MemoryStore(codec=JSON)
    for name, workflow_id, second in (
        ("order", "order-1", fails),
        ("order", "order-2", does_nothing),
        ("other", "other-1", fails),
    ):
        wf = Workflow(name, State)
        wf.step(id="price")(does_nothing)
        wf.step(id="charge")(second)
        try:
            wf.bind(store).run(workflow_id, {})
        except StepFailedError:
            assert second is fails
    return store


@pytest.fixture
def run(store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in a folder with a module of the given source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(100))

    def run(source: str, *args: str, name: str = "order") -> Result:
        module = f"shop_{tmp_path.name}_{next(count)}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        session = Session(connect=lambda settings: store)
        return CliRunner().invoke(cli, ["check", f"{module}:{name}", *args], obj=session)

    return run


def test_a_build_with_the_same_definition_could_go_on(run: Run) -> None:
    """What is finished, and what is of another definition, is not asked."""
    result = run(MODULE.format(options=""))
    assert result.exit_code == ExitCode.OK
    assert result.stdout == ""
    imported, found = result.stderr.splitlines()
    assert imported.startswith("importing shop_")
    assert imported.endswith(", which runs its code")
    assert found == "all 1 unfinished workflow of 'order' could be resumed"


def test_a_definition_without_unfinished_workflows_is_told_so(run: Run) -> None:
    result = run(MODULE.format(options=""), "--status", "suspended")
    assert result.exit_code == ExitCode.OK
    assert result.stderr.endswith("\n'order' has no unfinished workflows\n")


def test_what_could_not_go_on_is_listed_with_reasons(run: Run) -> None:
    source = MODULE.format(options="(version=2)")
    result = run(source)
    assert result.exit_code == ExitCode.NEGATIVE
    assert result.stdout.splitlines() == [
        "order-1  failed after 'price'",
        "  step 'price' is finished in version 1, and is version 2 now",
    ]
    assert result.stderr.endswith("\n1 of 1 unfinished workflow of 'order' could not be resumed\n")
    assert run(source, "--on-change", "compatible").exit_code == ExitCode.NEGATIVE
    assert run(source, "--on-change", "force").exit_code == ExitCode.OK
    assert run(source, "--status", "running").exit_code == ExitCode.OK


def test_the_policy_is_that_of_the_build(run: Run) -> None:
    """A harmless change is one that `fail` does not let pass, and `compatible` does."""
    source = MODULE.format(options="") + "\n@order.step\ndef ship(state): ...\n"
    result = run(source)
    assert result.exit_code == ExitCode.NEGATIVE
    assert "  added 'ship'" in result.stdout.splitlines()
    assert run(source, "--on-change", "compatible").exit_code == ExitCode.OK


def test_a_program_gets_documents(run: Run) -> None:
    result = run(MODULE.format(options="(version=2)"), "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "workflow_id": "order-1",
            "scope": "",
            "status": "failed",
            "current_step": "price",
            "problems": ["step 'price' is finished in version 1, and is version 2 now"],
        }
    ]
    assert not result.stderr


def test_a_state_without_a_migration_could_not_be_read(run: Run) -> None:
    source = MODULE.format(options="").replace("dict[str, Any])", "dict[str, Any], schema_version=2)")
    result = run(source, "--on-change", "force")
    assert result.exit_code == ExitCode.NEGATIVE
    assert "there is no migration from schema version 1 to 2" in result.stdout


def test_a_step_that_has_begun_counts(store: MemoryStore, run: Run) -> None:
    """An item of it is finished, so its version must stay; in a fork, which begins without it, it may change."""
    wf = Workflow("items", State)

    @wf.step(for_each="items", into="out")
    def quote(state: State, item: int) -> int:
        if item:
            raise FaultError
        return item

    with pytest.raises(StepFailedError):
        wf.bind(store).run("items-1", {"items": [0, 1]})
    wf.bind(store).fork("items-1", "items-2")
    source = """
from typing import Any
from milepost import Workflow

items = Workflow("items", dict[str, Any])

@items.step(for_each="items", into="out", version=2)
def quote(state, item): ...
"""
    result = run(source, "--on-change", "compatible", name="items")
    assert result.exit_code == ExitCode.NEGATIVE
    assert result.stdout.splitlines() == [
        "items-1  failed",
        "  step 'quote' is begun in version 1, and is version 2 now",
    ]


def test_a_child_in_progress_counts(store: MemoryStore, run: Run) -> None:
    """The scope says which one it is."""
    child = Workflow("pack", State)
    child.step(id="box")(does_nothing)
    child.step(id="label")(fails)
    wf = Workflow("parent", State)

    @wf.step(children=[child])
    def ship(state: State, ctx: Context) -> None:
        ctx.run(child, {})

    with pytest.raises(StepFailedError):
        wf.bind(store).run("parent-1", {})
    source = """
from typing import Any
from milepost import Workflow

child = Workflow("pack", dict[str, Any])

@child.step(version=2)
def box(state): ...

@child.step
def label(state): ...

parent = Workflow("parent", dict[str, Any])

@parent.step(children=[child])
def ship(state, ctx): ...
"""
    result = run(source, "--on-change", "compatible", name="parent")
    assert result.exit_code == ExitCode.NEGATIVE
    assert result.stdout.splitlines() == [
        "parent-1, scope 'ship'  failed after 'box'",
        "  step 'box' is finished in version 1, and is version 2 now",
    ]


@pytest.mark.parametrize(
    "source, name, problem",
    [
        ("order = 7", "order", "is int, not a Workflow"),
        ("", "order", "has no 'order'"),
        ("import no_such_module", "order", "there is no module 'no_such_module'"),
        ("1 / 0", "order", "cannot be imported: ZeroDivisionError"),
        ("from milepost import Workflow\norder = Workflow('order', dict)", "order", "'order' has no steps"),
    ],
)
def test_a_module_that_will_not_do_is_named(run: Run, source: str, name: str, problem: str) -> None:
    result = run(source, name=name)
    assert result.exit_code == ExitCode.USAGE
    assert problem in result.stderr


def test_a_name_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(cli, ["check", "shop"], obj=Session(connect=lambda settings: MemoryStore()))
    assert result.exit_code == ExitCode.USAGE
    assert "is not MODULE:WORKFLOW" in result.stderr


def test_the_client_has_what_the_command_needs() -> None:
    assert callable(Client.definition_manifest)
