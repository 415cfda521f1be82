"""Any definition, killed anywhere, changed in any compatible way, again and again: each step runs once."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost import DefinitionChangedError, InMemoryStore, Status, Workflow, append
from milepost.testing import SimulatedCrash, crash_after, crash_before_save

State = dict[str, Any]
Draw = random.Random
DEPLOYMENTS_MAX = 20


@dataclass(frozen=True)
class Declared:
    """A step, as one deployment declares it."""

    step_id: str
    depends_on: tuple[str, ...]
    version: int = 1
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        return {self.step_id, *self.aliases}


def built(steps: list[Declared]) -> Workflow[State]:
    """Return a workflow whose steps note in the state that they ran."""
    wf = Workflow("order", State, reducers={"ran": append})

    def noting(step_id: str) -> Any:
        def note(state: State) -> State:
            return {"ran": [*state["ran"], step_id]}

        return note

    for one in steps:
        wf.step(id=one.step_id, version=one.version, depends_on=one.depends_on, aliases=one.aliases)(
            noting(one.step_id)
        )
    return wf


def changed(draw: Draw, steps: list[Declared], finished: set[str], number: int) -> list[Declared]:
    """Return what the next deployment declares: only what `compatible` allows for steps that have not begun."""
    found: list[Declared] = []
    renamed: dict[str, str] = {}
    for place, one in enumerate(steps):
        is_finished = bool(one.names & finished)
        match draw.randrange(8):
            case 0:
                renamed[one.step_id] = f"renamed-{number}-{place}"
                found.append(replace(one, step_id=renamed[one.step_id], aliases=(*one.aliases, one.step_id)))
            case 1 if not is_finished and len(steps) > 1:
                pass  # removed
            case 2 if not is_finished:
                found.append(replace(one, version=one.version + 1))
            case _:
                found.append(one)
    if draw.randrange(3) == 0:
        found.append(Declared(f"new-{number}", ()))
    ids = {one.step_id for one in found}
    for place, one in enumerate(found):
        wanted = [renamed.get(name, name) for name in one.depends_on]
        found[place] = replace(one, depends_on=tuple(name for name in wanted if name in ids))
    return found or steps


@pytest.mark.slow
@settings(max_examples=150)
@given(st.integers(0, 1 << 32))
def test_every_step_runs_once_whatever_is_deployed_meanwhile(seed: int) -> None:
    """A deployment is refused only where a step has begun in a way that it no longer has."""
    # Not drawn one by one: steps side by side are threads, so what has finished at a crash is not the same every time,
    # and neither is what is drawn next.
    draw = random.Random(seed)
    ids = [f"step-{number}" for number in range(draw.randint(2, 6))]
    steps = [
        Declared(step_id, tuple(one for one in ids[:place] if draw.random() < 0.5)) for place, step_id in enumerate(ids)
    ]
    store = InMemoryStore()
    before = steps
    for number in range(DEPLOYMENTS_MAX):
        runner = built(steps).bind(store, on_change="compatible", crash_limit=100)
        crash = draw.choice([crash_after, crash_before_save])
        try:
            with crash(draw.choice(steps).step_id):
                runner.run("order-7", {"ran": []} if not list(store.workflows()) else None)
            break
        except SimulatedCrash:
            pass
        except DefinitionChangedError as error:
            if not all("begun" in problem for problem in error.problems):
                raise
            steps = before
            continue
        head = store.load("order-7")
        if head.status is Status.COMPLETED:
            break  # its result is its result, whatever is deployed then
        before, steps = steps, changed(draw, steps, set(head.completed_steps), number)
    else:
        try:
            built(steps).bind(store, on_change="compatible", crash_limit=100).run("order-7")
        except DefinitionChangedError:
            steps = before
            built(steps).bind(store, on_change="compatible", crash_limit=100).run("order-7")
    ran = store.load("order-7").state["ran"]
    assert len(ran) == len(set(ran))
    for one in steps:
        assert len(one.names.intersection(ran)) == 1, (one, ran)
