"""Manifests: one text for one definition, on every host and in every release; and states of earlier schemas."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from milepost.errors import InvalidRequestError, StateSchemaError
from milepost.runner import Retry, Workflow
from milepost.runner.manifest import Manifest
from milepost.runner.migrations import Migrations


def does_nothing(state: Any) -> None:
    return None


def takes_item(state: Any, item: Any) -> None:
    return None


def order() -> Workflow[dict[str, Any]]:
    child = Workflow("ship", dict[str, Any])
    child.step(id="pack")(does_nothing)
    wf = Workflow("ordér", dict[str, Any])
    wf.step(id="price", version=2)(does_nothing)
    wf.step(id="quote", depends_on=[], for_each="items", into="quotes")(takes_item)
    wf.step(id="charge", depends_on=["quote", "price"], at_most_once=True, waits_for="paid")(does_nothing)
    wf.step(id="ship", repeat_while=bool, children=[child])(does_nothing)
    return wf


TEXT = (
    '{"format":1,"name":"ordér","steps":['
    '{"depends_on":[],"id":"price","version":2},'
    '{"depends_on":[],"for_each":"items","id":"quote","into":"quotes","version":1},'
    '{"at_most_once":true,"depends_on":["price","quote"],"id":"charge","version":1,"waits_for":"paid"},'
    '{"children":[{"format":1,"name":"ship","steps":[{"depends_on":[],"id":"pack","version":1}]}],'
    '"depends_on":["charge"],"id":"ship","repeats":true,"version":1}]}'
)


def test_the_text_is_frozen() -> None:
    """Workflows in the store carry its digest: another text for the same definition would strand them."""
    manifest = order().definition.manifest
    assert manifest.text == TEXT
    assert manifest.fingerprint == hashlib.sha256(TEXT.encode()).hexdigest()


def test_a_stored_text_is_read_back() -> None:
    read = Manifest.read(TEXT)
    assert read == order().definition.manifest
    assert (read.text, read.fingerprint) == (TEXT, order().definition.manifest.fingerprint)


def test_how_a_step_is_tried_is_no_part_of_it() -> None:
    """Retries, timeouts, checkpoints and aliases may change in any deployment."""

    def made(**options: Any) -> str:
        wf = Workflow("order", dict[str, Any])
        wf.step(id="a", **options)(does_nothing)
        return wf.definition.manifest.fingerprint

    assert made() == made(retry=Retry(attempts=3), timeout_s=3, checkpoint=False, aliases=["b"], max_iterations=3)
    assert len({made(), made(version=2), made(at_most_once=True), made(waits_for="x"), made(repeat_while=bool)}) == 5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":2,"name":"n","steps":[]}', '{"format":1,"steps":[1]}'])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="manifest cannot be read"):
        Manifest.read(text)


# Migrations.


def rename(entries: dict[str, Any]) -> None:
    entries["total"] = entries.pop("sum")


def to_cents(entries: dict[str, Any]) -> dict[str, Any]:
    return {**entries, "total": entries["total"] * 100}


def test_each_version_leads_to_the_next() -> None:
    """A migration edits what it gets, or answers another dict."""
    for steps in ({1: rename, 2: to_cents}, [(2, to_cents), (1, rename)]):
        migrations = Migrations(3, steps)
        assert migrations.migrate({"sum": 3}, 1) == {"total": 300}
        assert migrations.migrate({"total": 3}, 2) == {"total": 300}
        assert migrations.migrate({"total": 3}, 3) == {"total": 3}


def test_a_state_without_a_way_is_refused() -> None:
    """Too old, for its migration was dropped; or of a later definition."""
    migrations = Migrations(4, {2: rename, 3: to_cents})
    assert [migrations.problem(version) is None for version in (1, 2, 3, 4, 5)] == [False, True, True, True, False]
    with pytest.raises(StateSchemaError, match="no migration from schema version 1 to 4"):
        migrations.migrate({}, 1)
    with pytest.raises(StateSchemaError, match="schema version 5, later than 4"):
        migrations.migrate({}, 5)


def test_a_migration_that_raises_is_named() -> None:
    """Its error is the cause; the message quotes no value."""
    with pytest.raises(StateSchemaError, match="the migration from version 1 to 2 raised KeyError") as caught:
        Migrations(2, {1: rename}).migrate({"secret": 1}, 1)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(StateSchemaError, match="from version 1 to 2 answered int"):
        Migrations(2, {1: lambda entries: 7}).migrate({}, 1)  # type: ignore[dict-item,return-value]


@pytest.mark.parametrize(
    "schema_version, steps, problem",
    [
        (0, {}, "schema_version is 0"),
        (2, {2: rename}, "does not lead to schema_version 2"),
        (2, {0: rename}, "does not lead to schema_version 2"),
        (4, {1: rename, 3: rename}, "no migration from version 2"),
        (3, {1: rename}, "no migration from version 2"),
        (3, [(2, rename), (2, to_cents)], "two migrations from version 2"),
    ],
)
def test_gaps_are_refused_when_the_workflow_is_defined(schema_version: int, steps: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=f"workflow 'order': .*{problem}"):
        Workflow("order", dict, schema_version=schema_version, migrations=steps)
