"""Which steps come next."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.runner.definition import Definition, define
from milepost.runner.plan import Frontier
from milepost.runner.step import Step


def does_nothing(state: Any) -> None:
    return None


def made(dependencies: dict[str, list[str] | None]) -> Definition:
    return define("order", [Step(step_id, does_nothing, depends_on=found) for step_id, found in dependencies.items()])


@st.composite
def graphs(draw: st.DrawFn) -> Definition:
    ids = [f"s{number}" for number in range(draw(st.integers(1, 8)))]
    order = draw(st.permutations(ids))
    found: dict[str, list[str] | None] = {}
    for position, step_id in enumerate(order):
        found[step_id] = draw(st.lists(st.sampled_from(order[:position]), unique=True)) if position else []
    return made({step_id: found[step_id] for step_id in ids})


def test_a_sequence_is_stages_of_one() -> None:
    frontier = Frontier(made({"a": None, "b": None, "c": None}))
    seen = []
    while not frontier.is_finished:
        seen.append([step.id for step in frontier.stage()])
        frontier.finish(seen[-1])
    assert seen == [["a"], ["b"], ["c"]]


def test_a_diamond_is_three_stages() -> None:
    """What is ready at the same time is one stage, in the order of declaration."""
    frontier = Frontier(made({"c": ["a"], "a": [], "b": ["a"], "d": ["b", "c"]}))
    seen = []
    while not frontier.is_finished:
        seen.append([step.id for step in frontier.stage()])
        frontier.finish(seen[-1])
    assert seen == [["a"], ["c", "b"], ["d"]]


def test_a_step_whose_dependencies_are_not_finished_cannot_finish() -> None:
    frontier = Frontier(made({"a": None, "b": None}))
    with pytest.raises(ValueError, match="not ready"):
        frontier.finish(["b"])
    frontier.finish(["a"])
    with pytest.raises(ValueError, match="not ready"):
        frontier.finish(["a"])


def next_stage(definition: Definition, completed: AbstractSet[str]) -> tuple[Step[Any], ...]:
    """Return what `Frontier` has to: the steps that can run, by looking at every one."""
    return tuple(
        step
        for step_id, step in definition.steps.items()
        if step_id not in completed and completed >= set(definition.dependencies[step_id])
    )


@given(graphs(), st.data())
def test_step_by_step_or_from_the_set_it_is_the_same(definition: Definition, data: st.DataObject) -> None:
    """The frontier that is kept up to date equals the one computed anew, also after a resume in any state."""
    done: set[str] = set(data.draw(st.lists(st.sampled_from(list(definition.steps)), unique=True)))
    frontier = Frontier(definition, [*done, "a step of an earlier definition"])
    for _ in definition.steps:
        assert frontier.stage() == next_stage(definition, done)
        if not frontier.stage():
            break
        ready = [step.id for step in frontier.stage()]
        finished = data.draw(st.lists(st.sampled_from(ready), unique=True, min_size=1))
        frontier.finish(finished)
        done.update(finished)
    else:
        assert frontier.is_finished
    assert frontier.is_finished == (not next_stage(definition, done))
    assert frontier.completed == done
