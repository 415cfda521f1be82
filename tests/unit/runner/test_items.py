"""What each call of a `for_each` step gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pydantic
import pytest

from milepost import JSON, InMemoryStore, Workflow
from milepost.runner.items import SHARED_FROM, state_and_item
from milepost.runner.patches import Entries
from milepost.runner.state_type import StateType


@dataclass
class Line:
    name: str
    tags: list[str] = field(default_factory=list)


@dataclass
class Order:
    lines: list[Line]
    log: list[str] = field(default_factory=list)


class OrderModel(pydantic.BaseModel):
    lines: list[Line]
    log: list[str] = []


def made(kind: Any, count: int) -> tuple[Entries, StateType[Any]]:
    state_type: StateType[Any] = StateType(kind)
    lines: list[Any] = [Line(f"n{number}") for number in range(count)]
    if kind is dict:
        return Entries.of({"lines": [vars(line) for line in lines], "log": []}, JSON), state_type
    return Entries.of(state_type.to_entries(kind(lines=lines, log=[])), JSON), state_type


def part(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, dict) else getattr(value, name)


@pytest.mark.parametrize("count", [3, SHARED_FROM, 3 * SHARED_FROM])
@pytest.mark.parametrize("kind", [dict, Order, OrderModel])
def test_each_call_has_a_state_a_list_and_an_item_of_its_own(kind: Any, count: int) -> None:
    """Whatever a step does to them, the next call sees what was stored; its item is the one in its list."""
    entries, state_type = made(kind, count)
    for _ in range(2):
        for index in (0, count - 1, 1):
            state, item = state_and_item(entries, state_type, "lines", index)
            lines = part(state, "lines")
            assert lines[index] is item
            assert part(item, "name") == f"n{index}"
            assert [part(line, "name") for line in lines] == [f"n{number}" for number in range(count)]
            assert (part(item, "tags"), part(state, "log")) == ([], [])
            part(item, "tags").append("mine")
            part(state, "log").append("mine")
            lines.append("mine")
            assert type(state) is kind


def test_a_neighbour_that_a_step_changes_is_nobodys_item() -> None:
    """The others in a long list are shared, and are never handed out as an item."""
    entries, state_type = made(dict, SHARED_FROM)
    state, _ = state_and_item(entries, state_type, "lines", 0)
    state["lines"][5]["tags"].append("not mine")
    _, item = state_and_item(entries, state_type, "lines", 5)
    assert item["tags"] == []


def test_long_lists_do_not_cost_the_square_of_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is read a few times, not once for each item."""
    reads: list[int] = []
    values = Entries.values

    def counted(self: Entries) -> dict[str, Any]:
        reads.append(1)
        return values(self)

    monkeypatch.setattr(Entries, "values", counted)
    wf = Workflow("order", dict[str, Any])

    @wf.step(for_each="items", into="out")
    def double(state: dict[str, Any], item: int) -> int:
        return item * 2

    run = wf.bind(InMemoryStore(), max_concurrency=4).run("order-7", {"items": list(range(500))})
    assert run.state["out"] == [2 * number for number in range(500)]
    assert len(reads) < 20
