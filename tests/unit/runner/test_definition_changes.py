"""What a changed definition may go on with: the table of docs/workflows.md, cell by cell, and what it leaves out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.errors import DefinitionChangedError
from milepost.runner import Retry, Workflow
from milepost.runner.changes import Changes, compare
from milepost.runner.definition import Definition
from milepost.runner.plan import Frontier
from milepost.runner.settings import ChangePolicy

PAGE = Path(__file__).resolve().parents[3] / "docs" / "workflows.md"
HEADER = ["change", "fail", "compatible, not begun", "compatible, begun", "compatible, finished", "force"]

# How far step "x" had come: ids of finished steps, and of steps that have begun.
PROGRESS: dict[str, tuple[set[str], set[str]]] = {
    "not begun": ({"a"}, set()),
    "begun": ({"a"}, {"x"}),
    "finished": ({"a", "x"}, set()),
}


def does_nothing(state: Any) -> None:
    return None


def takes_item(state: Any, item: Any) -> None:
    return None


def child(version: int) -> Workflow[dict[str, Any]]:
    wf = Workflow("child", dict[str, Any])
    wf.step(id="inner", version=version)(does_nothing)
    return wf


def made(*steps: tuple[str, dict[str, Any]], name: str = "order") -> Definition:
    wf = Workflow(name, dict[str, Any])
    for step_id, options in steps:
        wf.step(id=step_id, **options)(takes_item if "for_each" in options else does_nothing)
    return wf.definition


def a_w_x_z(x: dict[str, Any] | None = None, *, name: str = "order", x_id: str = "x") -> Definition:
    """`x` and `w` come after `a`, `z` after `x`."""
    options = {"depends_on": ["a"], **(x or {})}
    after_a: dict[str, Any] = {"depends_on": ["a"]}
    return made(("a", {}), ("w", after_a), (x_id, options), ("z", {"depends_on": [x_id]}), name=name)


AFTER_A: dict[str, Any] = {"depends_on": ["a"]}

# By the row of the table: the definition before and after.
CHANGES: dict[str, Callable[[], list[tuple[Definition, Definition]]]] = {
    "nothing that the fingerprint covers: code, `retry`, `timeout_s`, `checkpoint`, `aliases`": lambda: [
        (a_w_x_z(), a_w_x_z(options))
        for options in ({"retry": Retry(attempts=2)}, {"timeout_s": 1}, {"checkpoint": False}, {"aliases": ["old"]})
    ],
    "a step is added after it": lambda: [
        (made(("a", {}), ("x", {})), made(("a", {}), ("x", {}), ("new", {}))),
        (made(("a", {}), ("x", {}), ("z", {})), made(("a", {}), ("x", {}), ("new", {}), ("z", {}))),
    ],
    "a step is added before it": lambda: [
        (made(("a", {}), ("x", {}), ("z", {})), made(("a", {}), ("new", {}), ("x", {}), ("z", {}))),
    ],
    "it is removed": lambda: [
        (a_w_x_z(), made(("a", {}), ("w", AFTER_A), ("z", AFTER_A))),
        (made(("a", {}), ("x", {})), made(("a", {}))),
    ],
    "it is renamed, and `aliases` has the old id": lambda: [
        (a_w_x_z(), a_w_x_z({"aliases": ["x"]}, x_id="y")),
        (a_w_x_z(), a_w_x_z({"aliases": ["never", "x"]}, x_id="y")),
    ],
    "it is renamed without an alias": lambda: [(a_w_x_z(), a_w_x_z(x_id="y"))],
    "its `version` is raised": lambda: [
        (a_w_x_z(), a_w_x_z({"version": 2})),
        (a_w_x_z(), a_w_x_z({"version": 2, "aliases": ["x"]}, x_id="y")),
    ],
    "it depends on one more step, which is finished": lambda: [
        (a_w_x_z({"depends_on": []}), a_w_x_z()),
    ],
    "it depends on one more step, which is not finished": lambda: [
        (a_w_x_z(), a_w_x_z({"depends_on": ["a", "w"]})),
        (made(("a", {}), ("x", {}), ("z", {})), made(("a", {}), ("z", {}), ("x", {}))),
    ],
    "it depends on one step less": lambda: [(a_w_x_z(), a_w_x_z({"depends_on": []}))],
    "it is declared in another place, with the same dependencies": lambda: [
        (
            made(("a", {}), ("w", AFTER_A), ("x", AFTER_A)),
            made(("x", AFTER_A), ("a", {"depends_on": []}), ("w", AFTER_A)),
        ),
    ],
    "it runs in another way: `for_each`, `repeat_while`, `waits_for`, `at_most_once`": lambda: [
        (a_w_x_z(), a_w_x_z(options))
        for options in (
            {"for_each": "items", "into": "out"},
            {"repeat_while": bool},
            {"waits_for": "paid"},
            {"at_most_once": True},
        )
    ],
    "a child workflow in `children` is changed": lambda: [
        (a_w_x_z({"children": [child(1)]}), a_w_x_z({"children": [child(2)]})),
        (a_w_x_z(), a_w_x_z({"children": [child(1)]})),
    ],
    "the workflow has another name": lambda: [(a_w_x_z(), a_w_x_z(name="invoice"))],
}


def rows() -> list[list[str]]:
    """Return the rows of the page's table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = cells.index(HEADER)
    return [row for row in cells[start + 1 :] if len(row) == len(HEADER)]


def compared(before: Definition, after: Definition, progress: str) -> Changes:
    completed, begun = PROGRESS[progress]
    return compare(before.manifest, after, completed, begun)


def test_the_page_has_the_changes_that_are_tested_and_no_others() -> None:
    assert [row[0] for row in rows()] == list(CHANGES)


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0]))
def test_each_cell_is_what_happens(row: list[str]) -> None:
    """With `fail` and `force` it does not matter how far the step had come."""
    for before, after in CHANGES[row[0]]():
        for header, cell in zip(HEADER[1:], row[1:], strict=True):
            policy, _, only = header.partition(", ")
            for progress in [only] if only else list(PROGRESS):
                changes = compared(before, after, progress)
                allowed = changes.allows(policy)  # type: ignore[arg-type]
                assert ("resumes" if allowed else "refused") == cell, (header, progress, changes.problems)


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0]))
@pytest.mark.parametrize("progress", PROGRESS)
def test_what_may_go_on_runs_each_step_once_in_order(row: list[str], progress: str) -> None:
    """The promise of `compatible`: what is finished stays so, and the others run after what they depend on."""
    for before, after in CHANGES[row[0]]():
        changes = compared(before, after, progress)
        if not changes.allows("compatible"):
            continue
        frontier = Frontier(after, changes.finished)
        order = [step_id for step_id in after.steps if step_id in changes.finished]
        assert len(order) == len(PROGRESS[progress][0] & before.steps.keys()), "what was finished counts, all of it"
        while not frontier.is_finished:
            stage = [step.id for step in frontier.stage()]
            assert stage, "there is always a step that can run"
            order += stage
            frontier.finish(stage)
        assert sorted(order) == sorted(after.steps)
        unfinished = [step_id for step_id in order if step_id not in changes.finished]
        for step_id in unfinished:
            assert all(order.index(one) < order.index(step_id) for one in after.dependencies[step_id])


def test_the_differences_are_named() -> None:
    before = made(("a", {}), ("b", {}), ("c", {}), ("d", {}))
    after = made(("a", {"version": 2}), ("new", {}), ("bb", {"aliases": ["b"]}), ("d", {"at_most_once": True}))
    changes = compare(before.manifest, after, {"b"})
    assert changes.added == ("new",)
    assert changes.removed == ("c",)
    assert changes.changed == ("a", "bb", "d")
    assert changes.renamed == {"b": "bb"}
    assert changes.finished == {"bb"}
    assert changes.newly_named == ("bb",)
    assert changes.to_metadata() == {
        "from": before.manifest.fingerprint,
        "added": ["new"],
        "removed": ["c"],
        "changed": ["a", "bb", "d"],
        "renamed": {"b": "bb"},
    }


def test_the_refusal_says_why_and_survives_a_process() -> None:
    """It names the steps, and what would let the workflow go on."""
    before, after = a_w_x_z(), a_w_x_z({"version": 2})
    free = compared(before, after, "not begun").error("fail", "order-7")
    assert "changed 'x'" in str(free)
    assert "on_change='compatible' would go on with it" in str(free)
    error = compared(before, after, "finished").error("compatible", "order-7")
    assert isinstance(error, DefinitionChangedError)
    assert "step 'x' is finished in version 1, and is version 2 now" in str(error)
    assert "would go on" not in str(error)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (again.workflow_id, again.changed, again.problems) == ("order-7", ("x",), error.problems)
        assert str(again) == str(error)


def test_a_rename_may_go_on_for_ever() -> None:
    """Once the new id is stored, the alias is not needed any more, and the old id in the store does no harm."""
    first, second, third = a_w_x_z(), a_w_x_z({"aliases": ["x"]}, x_id="y"), a_w_x_z({"version": 1}, x_id="y")
    changes = compare(first.manifest, second, {"a", "x"})
    stored = {"a", "x", *changes.newly_named}
    assert compare(second.manifest, third, stored).finished == {"a", "y"}
    back = a_w_x_z({"aliases": ["y"]})
    changes = compare(second.manifest, back, stored)
    assert changes.finished == {"a", "x"}
    assert not changes.problems
    assert not changes.newly_named


def test_an_id_that_was_finished_before_is_not_taken_for_a_new_step() -> None:
    """A step was forced out, and another one gets its id: it would never run."""
    without_x = made(("a", {}), ("w", AFTER_A))
    changes = compare(without_x.manifest, a_w_x_z(), {"a", "x"})
    assert not changes.allows("compatible")
    assert changes.problems == ("'x' is a new step, but one of this id was finished before",)
    assert changes.finished == {"a", "x"}


def test_what_a_forced_change_left_is_no_new_problem() -> None:
    """A step that was forced in before a finished one may still be pending when something harmless changes."""
    old = made(("a", {}), ("x", {}))
    forced = made(("a", {}), ("new", {}), ("x", {}))
    assert not compare(old.manifest, forced, {"a", "x"}).allows("compatible")
    longer = made(("a", {}), ("new", {}), ("x", {}), ("last", {}))
    assert compare(forced.manifest, longer, {"a", "x"}).allows("compatible")


def test_a_long_list_is_cut() -> None:
    """Message and metadata stay small, however many steps there are."""
    before = made(*((f"step-{number}", {"depends_on": []}) for number in range(1_000)))
    after = made(("other", {}))
    changes = compare(before.manifest, after, set(before.steps))
    assert len(str(changes.error("compatible", "w"))) < 4_000
    assert len(str(changes.error("fail", "w"))) < 4_000
    assert len(changes.to_metadata()["removed"]) == 20
    assert len(changes.removed) == 1_000


IDS = list("abcde")


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    ids = draw(st.permutations(IDS).map(lambda ids: ids[: max(1, len(ids) - 2)]))
    steps = []
    for position, step_id in enumerate(ids):
        options: dict[str, Any] = {"version": draw(st.integers(1, 2))}
        options["depends_on"] = draw(st.lists(st.sampled_from(ids[:position]), unique=True)) if position else []
        unused = [one for one in IDS if one not in ids]
        if position == 0:
            options["aliases"] = draw(st.lists(st.sampled_from(unused), max_size=1)) if unused else []
        steps.append((step_id, options))
    return made(*steps)


@given(definitions(), definitions(), st.integers(0, 5))
def test_any_two_definitions_keep_the_promise(before: Definition, after: Definition, done: int) -> None:
    """Stop anywhere, change anything: `compatible` runs no finished step again, and none before its dependencies."""
    frontier = Frontier(before)
    completed: list[str] = []
    while not frontier.is_finished and len(completed) < done:
        step_id = frontier.stage()[0].id
        frontier.finish([step_id])
        completed.append(step_id)
    changes = compare(before.manifest, after, completed)
    assert changes.allows("force")
    assert changes.is_same == (before.manifest.text == after.manifest.text)
    if changes.allows("compatible"):
        names = {changes.renamed.get(step_id, step_id) for step_id in completed}
        assert changes.finished == names
        for step_id in changes.finished:
            assert changes.finished >= set(after.dependencies[step_id])
            old_id = next(one for one in completed if changes.renamed.get(one, one) == step_id)
            assert before.steps[old_id].version == after.steps[step_id].version
    policies: list[ChangePolicy] = ["fail", "compatible", "force"]
    allowed = [changes.allows(policy) for policy in policies]
    assert allowed == sorted(allowed), "each policy allows what the one before it does"
