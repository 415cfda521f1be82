"""Names that runs give: frozen, and no two things with one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.runner.keys import child_scope, idempotency_key, item_keys, task_name
from milepost.runner.step import Step

IDS = st.text(st.sampled_from("ab.-_ ä"), min_size=1, max_size=6)
KEYS = st.none() | st.text(max_size=140) | st.text(st.sampled_from("a/[]#:%~1"), max_size=8)


def quote(state: Any, item: Any) -> None:
    return None


def step(**options: Any) -> Step[Any]:
    return Step("quote", quote, for_each="items", into="quotes", **options)


def test_the_formula_is_frozen() -> None:
    """Other services hold these keys: a change here would make them do things twice."""
    workflow = ("default", "order-7", "first")
    assert (
        idempotency_key(*workflow, "", "charge") == "145ab27ae47c7bff1a51127954976df757d39004a903b03ad3f042c80fc1fc45"
    )
    assert (
        idempotency_key(*workflow, "ship/0", "charge", item_key="7")
        == "7de66bfdfb24c1c240310832a52e873134483719938fe8697b18375af5b5f559"
    )
    assert (
        idempotency_key(*workflow, "", "charge", iteration=3)
        == "6978ec8856b2c60dc79f9e2e51c9ee4d619e8adaf7a62fb58b2fd2b1c7ebfca6"
    )


@given(
    st.lists(
        st.tuples(
            st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)
        ),
        unique=True,
        min_size=2,
        max_size=2,
    )
)
def test_other_effects_have_other_keys(pairs: list[tuple[str, str, str, str, str]]) -> None:
    """Where one part ends and the next begins makes a difference."""
    one, other = pairs
    assert idempotency_key(*one) != idempotency_key(*other)


def test_an_item_is_no_iteration_and_neither_is_none() -> None:
    parts = ("n", "w", "c", "", "s")
    keys = {
        idempotency_key(*parts),
        idempotency_key(*parts, item_key=""),
        idempotency_key(*parts, item_key="0"),
        idempotency_key(*parts, iteration=0),
    }
    assert len(keys) == 4
    assert all(len(key) == 64 and key.isascii() for key in keys)
    with pytest.raises(ValueError, match="not both"):
        idempotency_key(*parts, item_key="0", iteration=0)


@given(st.lists(st.tuples(IDS, KEYS), unique=True, min_size=2, max_size=2))
def test_no_two_items_have_one_name(pair: list[tuple[str, str | None]]) -> None:
    """Nor is one step's item another step's name; all of them fit the store's limits."""
    names = [task_name(step_id, key) for step_id, key in pair]
    assert names[0] != names[1]
    assert max(len(name.encode()) for name in names) <= 512


SCOPES = st.lists(st.tuples(IDS, KEYS, st.none() | st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=3)


@given(SCOPES, SCOPES)
def test_no_two_children_have_one_scope(one: Any, other: Any) -> None:
    """Whatever step, item, turn and number they are of, at any depth."""

    def scope(path: Any) -> str:
        found = ""
        for step_id, key, iteration, number in path:
            found = child_scope(found, step_id, item_key=key, iteration=iteration, number=number)
        return found

    assert (scope(one) == scope(other)) is (one == other)


def test_items_are_named_by_place_or_key() -> None:
    assert item_keys(step(), ["x", "x"]) == ["0", "1"]
    assert item_keys(step(key=lambda item: item["id"]), [{"id": 7}, {"id": "b"}]) == ["7", "b"]


def test_keys_must_differ() -> None:
    with pytest.raises(ValueError, match="'quote': items 0 and 2 have the same key"):
        item_keys(step(key=lambda item: item), ["1", "2", 1])
    with pytest.raises(TypeError, match="'quote': key answered bool for item 0"):
        item_keys(step(key=lambda item: True), ["1"])
