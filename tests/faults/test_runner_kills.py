"""A run whose process is killed goes on in another one, and does nothing again that was durable.

What is durable is read from the server when the killed run's lease has been taken away, so that nothing of it can still
arrive. What was done is read from a journal that milepost knows nothing of.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from milepost import Checkpoint, Client, Status, WorkflowNotFoundError
from milepost.runner.settings import Durability
from milepost.testing import LocalServer, local_server
from tests.support.effects_journal import Effect, EffectsJournal
from tests.support.runner_nursery import QUEUE_ITEMS_MAX, Nursery, RunOrder
from tests.support.ten_steps import EFFECTS, SEQUENCE

WAVE = 12
"""Runs side by side: most of their time they wait for leases, processes and disks."""
BOUNDARIES_MAX = 200
KILLED = -9


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as running:
        yield running


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> EffectsJournal:
    return EffectsJournal(tmp_path / "journal")


class Killed:
    """A run that was killed, and what is durable of it."""

    def __init__(self, order: RunOrder, client: Client, journal: EffectsJournal) -> None:
        self.order = order
        self.where = next(line.note for line in journal.read(workflow_id=order.workflow_id, what="killed"))
        client.break_lease(order.workflow_id)
        self.done = journal.read(workflow_id=order.workflow_id, what="effect")
        self.head: Checkpoint | None = None
        with contextlib.suppress(WorkflowNotFoundError):
            self.head = client.load(order.workflow_id)
        self.durable = frozenset() if self.head is None else durable_effects(self.head)

    def check(self, status: int, again: list[Effect]) -> None:
        """Check what its successor did."""
        assert status == 0
        named = Counter(effect.step for effect in again)
        assert named == Counter(EFFECTS) - Counter(self.durable)
        assert stages_of(again) == sorted(stages_of(again))
        first = {effect.step: effect.key for effect in self.done}
        assert self.durable <= first.keys()
        if self.head is not None:
            assert {effect.step: effect.key for effect in again if effect.step in first}.items() <= first.items()
        repeated = named.keys() & first.keys()
        if self.order.durability != "exit":
            # What was being done when it was killed and what was on its way, and a step without checkpoint of its own.
            stages = 1 if self.order.durability == "sync" else 1 + QUEUE_ITEMS_MAX
            assert len({stage_of(step) for step in repeated - {"label"}}) <= stages


def durable_effects(head: Checkpoint) -> frozenset[str]:
    """Return the effects that a resume must not repeat."""
    finished = {effect for effect in EFFECTS if effect.partition("[")[0] in head.completed_steps}
    branches = {record.task_id.removeprefix("branch:") for record in head.records}
    return frozenset(finished | branches & set(EFFECTS))


def stage_of(effect: str) -> int:
    return next(number for number, stage in enumerate(SEQUENCE) if effect in stage)


def stages_of(effects: list[Effect]) -> list[int]:
    return [stage_of(effect.step) for effect in effects]


def kill_and_go_on(
    orders: list[RunOrder], nursery: Nursery, server: LocalServer, journal: EffectsJournal
) -> list[Killed]:
    """Run the orders, and those that were killed a second time to their end; return those."""
    statuses = nursery.run(orders)
    assert set(statuses) <= {0, KILLED}
    with server.client() as client:
        killed = [
            Killed(order, client, journal) for order, status in zip(orders, statuses, strict=True) if status == KILLED
        ]
        ends = nursery.run([replace(run.order, fatal=0) for run in killed])
        for run, end in zip(killed, ends, strict=True):
            lines = journal.read(workflow_id=run.order.workflow_id, what="effect")
            try:
                run.check(end, lines[len(run.done) :])
            except AssertionError as error:
                error.add_note(f"killed at boundary {run.order.fatal}: {run.where}; durable: {sorted(run.durable)}")
                raise
        for order in orders:
            check_history(client, order.workflow_id)
    return killed


def check_history(client: Client, workflow_id: str) -> None:
    """Check that the history of a finished workflow has no hole, no duplicate and no second branch."""
    history = list(client.list(workflow_id, newest_first=False))
    assert [checkpoint.sequence for checkpoint in history] == list(range(1, len(history) + 1))
    assert [checkpoint.parent_id for checkpoint in history[1:]] == [each.checkpoint_id for each in history[:-1]]
    head = client.load(workflow_id)
    assert head.status is Status.COMPLETED
    assert sorted(head.completed_steps) == sorted({effect.partition("[")[0] for effect in EFFECTS})


def order_for(
    server: LocalServer, journal: EffectsJournal, durability: Durability, *, is_async: bool, fatal: int | str
) -> RunOrder:
    kind = "async" if is_async else "sync"
    workflow_id = f"{kind}-{durability}-{fatal}".replace(" ", "-")
    return RunOrder(server.target, workflow_id, str(journal.path), durability, is_async, fatal)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("durability", get_args(Durability))
@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_run_killed_at_any_boundary_repeats_nothing_that_was_durable_and_skips_nothing(
    is_async: bool, durability: Durability, server: LocalServer, nursery: Nursery, journal: EffectsJournal
) -> None:
    """Each boundary is tried: those of the effects by name, and then all by number, until they lie behind the end."""

    def orders_for(fatal: Iterable[int | str]) -> list[RunOrder]:
        return [order_for(server, journal, durability, is_async=is_async, fatal=one) for one in fatal]

    names = [f"{when} {effect}" for effect in EFFECTS for when in ("before", "after")]
    for first in range(0, len(names), WAVE):
        orders = orders_for(names[first : first + WAVE])
        assert len(kill_and_go_on(orders, nursery, server, journal)) == len(orders)
    places: set[str] = set()
    # How many there are differs from run to run: branches that finish together are recorded together.
    for first in range(1, BOUNDARIES_MAX, WAVE):
        killed = kill_and_go_on(orders_for(range(first, first + WAVE)), nursery, server, journal)
        places |= {run.where for run in killed}
        if not killed:
            break
    else:
        pytest.fail(f"a run has more than {BOUNDARIES_MAX} boundaries")
    save = "save_all" if durability == "pipelined" else "save"
    assert places >= {f"before {save}", f"{save} on its way", f"{save} stored, answer not seen"}


@pytest.mark.parametrize("durability", get_args(Durability))
@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_killed_run_repeats_nothing_that_was_durable(
    is_async: bool, durability: Durability, server: LocalServer, nursery: Nursery, journal: EffectsJournal
) -> None:
    """A few of the boundaries; the slow tier has them all."""
    orders = [
        replace(order, workflow_id=f"few-{order.workflow_id}")
        for order in (
            order_for(server, journal, durability, is_async=is_async, fatal=fatal) for fatal in (9, 14, 21, 30)
        )
    ]
    assert len(kill_and_go_on(orders, nursery, server, journal)) == len(orders)


def test_the_check_catches_a_run_that_forgets_what_branches_have_finished(
    server: LocalServer, nursery: Nursery, journal: EffectsJournal
) -> None:
    """Killed among its first three branches, of which some are recorded."""
    orders = [
        replace(order, workflow_id=f"forgetful-{order.fatal}", is_forgetful=True)
        for order in (order_for(server, journal, "sync", is_async=False, fatal=fatal) for fatal in range(18, 30))
    ]
    with pytest.raises(AssertionError, match="Counter"):
        kill_and_go_on(orders, nursery, server, journal)


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_run_that_is_killed_again_and_again_gets_to_its_end(
    is_async: bool, server: LocalServer, nursery: Nursery, journal: EffectsJournal
) -> None:
    """Each process dies at its seventeenth boundary; what was durable before it is never done by it."""
    order = order_for(server, journal, "sync", is_async=is_async, fatal=17)
    order = replace(order, workflow_id=f"again-and-again-{is_async}")
    durable: frozenset[str] = frozenset()
    done = 0
    deaths = 0
    with server.client() as client:
        while nursery.run([order]) == [KILLED]:
            deaths += 1
            effects = journal.read(workflow_id=order.workflow_id, what="effect")
            assert not durable & {effect.step for effect in effects[done:]}
            done = len(effects)
            client.break_lease(order.workflow_id)
            newly = durable_effects(client.load(order.workflow_id))
            assert durable <= newly
            durable = newly
            assert deaths < len(EFFECTS)
        check_history(client, order.workflow_id)
    effects = journal.read(workflow_id=order.workflow_id, what="effect")
    assert not durable & {effect.step for effect in effects[done:]}
    assert {effect.step for effect in effects} == set(EFFECTS)
    assert deaths > 3
