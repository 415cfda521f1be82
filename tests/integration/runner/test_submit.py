"""`submit`: an input is stored for others to run."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from milepost import AsyncInMemoryStore, InMemoryStore, Workflow
from milepost.errors import DefinitionMismatchError, InputMismatchError, LeaseHeldError
from milepost.types import Status
from tests.integration.runner.conftest import World
from tests.integration.runner.test_serve import Orders, serving, statuses

State = dict[str, Any]


def test_an_input_is_stored_and_no_step_is_run(world: World) -> None:
    """Under the name and the fingerprint of its definition, so that a later one knows whether it can go on with it."""
    orders = Orders()
    bound = world.bind(orders.workflow)
    assert bound.submit("o", {"a": 1}, deadline_s=1_000.0) is True
    head = world.head("o")
    assert (head.sequence, head.status, head.state, head.definition) == (1, Status.RUNNING, {"a": 1}, "order")
    assert head.fingerprint == orders.workflow.definition.manifest.fingerprint
    assert head.metadata["milepost"]["deadline"] > 0
    assert world.eyes.get_lease("o") is None
    assert not orders.ran
    run = bound.run("o", {"a": 1})
    assert (run.status, run.resumed, orders.ran) == ("completed", True, ["o"])


def test_a_workflow_is_submitted_once(world: World) -> None:
    """Again with its own input it stays as it is, before, while and after it runs; another input is refused."""
    orders = Orders()
    bound = world.bind(orders.workflow)
    bound.submit("o", {"a": 1})
    assert bound.submit("o", {"a": 1}) is False
    with pytest.raises(InputMismatchError):
        bound.submit("o", {"a": 2})
    orders.may_end.clear()
    with serving(world.bind(orders.workflow)):
        orders.wait_for(1, "started")
        assert bound.submit("o", {"a": 1}) is False
        with pytest.raises(InputMismatchError):
            bound.submit("o", {"a": 2})
        orders.may_end.set()
        orders.wait_for(1)
    assert bound.submit("o", {"a": 1}) is False
    with pytest.raises(InputMismatchError):
        bound.submit("o", {"a": 2})
    assert orders.ran == ["o"]


def test_another_definition_is_refused(world: World) -> None:
    world.bind(Orders().workflow).submit("o", {})
    other = Workflow("invoice", dict[str, Any])
    other.step(lambda state: None, id="only")
    with pytest.raises(DefinitionMismatchError, match="'order'"):
        world.bind(other).submit("o", {})


def test_a_host_that_serves_takes_it_up_at_once(world: World) -> None:
    """It is told by the watch: the next query is an hour away."""
    orders = Orders()
    with serving(world.bind(orders.workflow), poll_s=3_600.0):
        world.bind(orders.workflow).submit("first", {})
        # Both what the first query finds and what comes after it.
        orders.wait_for(1)
        world.bind(orders.workflow).submit("second", {})
        orders.wait_for(1)
    assert statuses(world) == {"first": Status.COMPLETED, "second": Status.COMPLETED}


def test_a_submission_waits_for_who_is_about_to_begin(world: World) -> None:
    """A lease on a workflow that is not there: its host may store the input, or may have died."""
    bound = world.bind(Orders().workflow, lease_ttl_s=1.0)
    lease = world.eyes.acquire_lease("o", ttl_s=30.0, holder="web-3")
    with pytest.raises(LeaseHeldError) as caught:
        bound.submit("o", {"a": 1})
    assert caught.value.holder == "web-3"
    timer = threading.Timer(0.3, world.eyes.release_lease, ("o", lease.token))
    timer.start()
    assert bound.submit("o", {"a": 1}) is True
    timer.join()
    assert (world.head("o").state, world.eyes.get_lease("o")) == ({"a": 1}, None)


def test_a_submission_does_not_wait_for_who_has_begun(world: World) -> None:
    """Meanwhile, under a lease that will be held for long."""
    bound = world.bind(Orders().workflow)
    lease = world.eyes.acquire_lease("o", ttl_s=30.0)

    def begin() -> None:
        world.eyes.save("o", state={"a": 1}, after="start", definition="order", lease_token=lease.token)

    timer = threading.Timer(0.3, begin)
    timer.start()
    begun_at = time.monotonic()
    assert bound.submit("o", {"a": 1}) is False
    assert time.monotonic() - begun_at < 10.0
    timer.join()
    assert world.eyes.get_lease("o") is not None


def test_a_blocking_program_may_submit_what_async_hosts_run() -> None:
    workflow = Workflow("order", dict[str, Any])

    @workflow.step
    async def ship(state: State) -> State:
        return {"shipped": True}

    store = InMemoryStore()
    assert workflow.bind(store).submit("o", {}) is True
    twin = AsyncInMemoryStore()
    twin._core = store._core
    assert asyncio.run(workflow.bind(twin).run("o")).state == {"shipped": True}


def test_the_order_of_keys_makes_no_other_input(world: World) -> None:
    """Wherever they are in it; a value of another type does."""
    bound = world.bind(Orders().workflow)
    state = {"lines": [{"product": "cup", "count": 2}], "to": {"name": "kim", "zip": (1, 2)}}
    bound.submit("o", state)
    turned = {"to": {"zip": (1, 2), "name": "kim"}, "lines": [{"count": 2, "product": "cup"}]}
    assert bound.submit("o", turned) is False
    assert bound.run("o", turned).status == "completed"
    with pytest.raises(InputMismatchError):
        bound.run("o", {**turned, "lines": [{"count": 2.0, "product": "cup"}]})


def test_an_input_that_a_client_has_saved_is_compared_too(world: World) -> None:
    world.eyes.save("o", state={"a": 1}, after="start", definition="order")
    bound = world.bind(Orders().workflow)
    assert bound.submit("o", {"a": 1}) is False
    with pytest.raises(InputMismatchError):
        bound.submit("o", {"a": 2})
    with pytest.raises(InputMismatchError):
        bound.run("o", {"a": 2})
    assert bound.run("o", {"a": 1}).status == "completed"
    with pytest.raises(InputMismatchError):
        bound.run("o", {"a": 2})
