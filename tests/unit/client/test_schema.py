"""A state read as the type a program declares for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NotRequired, TypedDict

import pydantic
import pytest

from milepost.errors import StateSchemaError
from milepost.types import Checkpoint


@dataclass
class Order:
    total: int
    items: list[str]
    price: float = 0.0
    note: str | None = None
    kind: Literal["a", "b"] = "a"
    tags: dict[str, int] = field(default_factory=dict)
    pair: tuple[int, str] = (0, "")
    derived: int = field(default=0, init=False)


class OrderDict(TypedDict):
    total: int
    note: NotRequired[str]


class OrderModel(pydantic.BaseModel):
    total: int
    note: str = pydantic.Field(default="", alias="Note")


def read(state: dict[str, Any], kind: type[Any]) -> Any:
    checkpoint = Checkpoint(
        workflow_id="w", checkpoint_id="c", sequence=1, create_time=datetime(2024, 1, 1, tzinfo=UTC), state_values=state
    )
    return checkpoint.state_as(kind)


def test_a_dict_is_read_as_it_is() -> None:
    assert read({"x": 1}, dict) == {"x": 1}
    assert read({"x": 1}, dict[str, Any]) == {"x": 1}


def test_a_dataclass_is_read_field_by_field() -> None:
    order = read({"total": 3, "items": ["a"], "price": 2, "pair": (1, "x"), "derived": 9}, Order)
    assert (order.total, order.items, order.price, order.pair) == (3, ["a"], 2, (1, "x"))
    assert order.derived == 9
    assert order.note is None


@pytest.mark.parametrize(
    "state, problem",
    [
        ({"items": []}, "lacks the entries 'total'"),
        ({"total": 1, "items": [], "colour": "red"}, "unknown entries 'colour'"),
        ({"total": "1", "items": []}, "entry 'total' is str, declared as int"),
        ({"total": 1, "items": ["a", 2]}, "entry 'items' is list"),
        ({"total": 1, "items": [], "kind": "c"}, "entry 'kind'"),
        ({"total": 1, "items": [], "note": 5}, "entry 'note'"),
        ({"total": 1, "items": [], "tags": {"a": "b"}}, "entry 'tags'"),
        ({"total": 1, "items": [], "pair": (1, "x", 2)}, "entry 'pair'"),
        ({"total": 1, "items": [], "pair": [1, "x"]}, "entry 'pair'"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error(state: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(StateSchemaError, match=problem):
        read(dict(state), Order)


def test_a_typed_dict_is_checked() -> None:
    assert read({"total": 1}, OrderDict) == {"total": 1}
    with pytest.raises(StateSchemaError, match="lacks"):
        read({"note": "x"}, OrderDict)
    with pytest.raises(StateSchemaError, match="'note' is int"):
        read({"total": 1, "note": 1}, OrderDict)


def test_a_pydantic_model_validates_by_python_names_and_keeps_values_to_itself() -> None:
    assert read({"total": 1, "note": "x"}, OrderModel).note == "x"
    with pytest.raises(StateSchemaError, match="total") as caught:
        read({"total": "canary-4711"}, OrderModel)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(StateSchemaError, match="unknown entries 'Note'"):
        read({"total": 1, "Note": "x"}, OrderModel)


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="dict, TypedDict, dataclass or pydantic model"):
        read({}, list)
