"""Types inside a declared state: instances in the step, plain values in the store, no codec to be told."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired, TypedDict

import pydantic
import pytest

from milepost import InMemoryStore, StateSchemaError, Workflow
from milepost.codecs import JsonCodec
from milepost.errors import CodecError
from milepost.runner.state_type import StateType


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Line:
    name: str
    color: Color = Color.RED
    count: int = field(default=1, init=False)
    parts: list[Line] = field(default_factory=list)


class Address(pydantic.BaseModel):
    street: str
    levels: set[Level] = set()
    seen: datetime = datetime(2024, 1, 1, tzinfo=UTC)


class Box(TypedDict):
    line: NotRequired[Line]


@dataclass
class Order:
    line: Line
    lines: list[Line] = field(default_factory=list)
    by_name: dict[str, Line] = field(default_factory=dict)
    pair: tuple[int, Line | None] = (0, None)
    several: tuple[Line, ...] = ()
    maybe: Annotated[Line | None, "a note"] = None
    colors: frozenset[Color] = frozenset()
    level: Level = Level.LOW
    address: Address | None = None
    box: Box = field(default_factory=lambda: Box())


class OrderDict(TypedDict):
    line: Line
    lines: NotRequired[list[Line]]


class OrderModel(pydantic.BaseModel):
    line: Line
    color: Color = Color.RED
    address: Address | None = None
    by_color: dict[Color, Level] = {}


def full_line() -> Line:
    line = Line("a", Color.BLUE, [Line("inner")])
    line.count = 7
    return line


FULL = Order(
    line=full_line(),
    lines=[Line("b"), full_line()],
    by_name={"x": Line("c")},
    pair=(3, Line("d")),
    several=(Line("e"), Line("f")),
    maybe=Line("g", Color.BLUE),
    colors=frozenset({Color.RED}),
    level=Level.HIGH,
    address=Address(street="s", levels={Level.HIGH}),
    box={"line": Line("h")},
)


@pytest.mark.parametrize(
    "state",
    [
        FULL,
        Order(Line("a")),
        OrderModel(
            line=Line("a", Color.BLUE, [Line("b")]),
            color=Color.BLUE,
            address=FULL.address,
            by_color={Color.RED: Level.LOW},
        ),
    ],
    ids=["dataclass", "defaults", "model"],
)
def test_a_step_gets_what_the_one_before_it_left(state: Any) -> None:
    """Instances of the declared types, equal and not the same, whatever they are nested in."""
    seen: list[Any] = []
    wf: Workflow[Any] = Workflow("order", type(state))
    wf.step(id="first")(lambda got: seen.append(got))
    wf.step(id="second")(lambda got: seen.append(got))
    run = wf.bind(InMemoryStore()).run("order-7", state)
    assert seen == [state, state]
    assert run.state == state
    assert len({id(one.line) for one in (*seen, run.state, state)}) == 4


def test_what_is_stored_is_plain() -> None:
    """Anybody can read it: other programs, grpcurl, a later version of the type."""
    store = InMemoryStore()
    wf = Workflow("order", Order)
    wf.step(id="only")(lambda got: None)
    wf.bind(store).run("order-7", Order(full_line(), level=Level.HIGH))
    state = store.load("order-7").state
    assert state["line"] == {
        "name": "a",
        "color": "blue",
        "count": 7,
        "parts": [{"name": "inner", "color": "red", "count": 1, "parts": []}],
    }
    assert (state["level"], type(state["level"])) == (2, int)
    assert store.load("order-7").state_as(Order) == Order(full_line(), level=Level.HIGH)


@pytest.mark.parametrize("kind", [OrderDict, Order, OrderModel])
def test_patches_hold_instances_too(kind: Any) -> None:
    wf: Workflow[Any] = Workflow("order", kind)

    @wf.step
    def swaps(state: Any) -> dict[str, object]:
        return {"line": Line("new", Color.BLUE)}

    @wf.step
    def edits(state: Any) -> None:
        (state["line"] if kind is OrderDict else state.line).parts.append(Line("part"))

    first = {"line": Line("old")}
    run = wf.bind(InMemoryStore()).run("order-7", first if kind is OrderDict else kind(**first))
    line = run.state["line"] if kind is OrderDict else run.state.line
    assert line == Line("new", Color.BLUE, [Line("part")])


def test_results_of_items_may_be_instances() -> None:
    """And the items are."""
    wf = Workflow("order", Order)

    @wf.step(for_each="lines", into="several")
    def double(state: Order, item: Line) -> Line:
        assert isinstance(item, Line)
        return Line(item.name * 2)

    with pytest.raises(StateSchemaError, match="entry 'several' is list"):
        run_it(wf)
    again = Workflow("order", Order)
    again.step(id="double", for_each="lines", into="lines", key=lambda line: line.name)(double)
    assert run_it(again).lines == [Line("aa"), Line("bb")]


def run_it(wf: Workflow[Order]) -> Order:
    try:
        return wf.bind(InMemoryStore()).run("order-7", Order(Line("x"), lines=[Line("a"), Line("b")])).state
    except Exception as error:
        if isinstance(error.__cause__, StateSchemaError):
            raise error.__cause__ from None
        raise


@pytest.mark.parametrize(
    "entries",
    [
        {"line": {"name": 7}},
        {"line": {"title": "a"}},
        {"line": "a"},
        {"line": {"name": "a", "color": "green"}},
        {"line": {"name": "a"}, "lines": {"name": "a"}},
    ],
)
def test_what_is_none_is_refused(entries: dict[str, Any]) -> None:
    """Read as it is stored, and refused by its place; a field of a nested type is checked like one at the top."""
    with pytest.raises(StateSchemaError):
        StateType(Order).from_entries(entries)


def test_a_choice_of_types_is_left_to_the_codec() -> None:
    """Which one a plain value was would be a guess."""

    @dataclass
    class Cash:
        amount: int = 0

    @dataclass
    class Payment:
        by: Any = None

    either: Any = Payment
    either.__annotations__["by"] = Line | Cash
    wf: Workflow[Any] = Workflow("order", either)
    wf.step(id="only")(lambda got: None)
    with pytest.raises(CodecError, match="register"):
        wf.bind(InMemoryStore()).run("order-7", Payment(Cash(1)))
    run = wf.bind(InMemoryStore(codec=JsonCodec([Cash, Line]))).run("order-7", Payment(Cash(1)))
    assert run.state == Payment(Cash(1))


def test_values_that_a_codec_tagged_before_are_still_read() -> None:
    """States of programs that registered the type."""
    store = InMemoryStore(codec=JsonCodec([Line, Color]))
    store.save("order-7", state={"line": Line("a")}, after="start")
    assert store.load("order-7").state_as(Order) == Order(Line("a"))


def test_an_input_that_does_not_come_back_equal_is_refused() -> None:
    """Before anything is stored: pydantic does not set the fields that a dataclass sets later."""
    store = InMemoryStore()
    wf = Workflow("order", OrderModel)
    wf.step(id="only")(lambda got: None)
    with pytest.raises(CodecError, match=r"the input: \$\.line does not come back as it was"):
        wf.bind(store).run("order-7", OrderModel(line=full_line()))
    assert list(store.workflows()) == []


@dataclass
class Counted:
    count: int = 0

    def __post_init__(self) -> None:
        self.count += 1


class CountedDict(TypedDict):
    counted: Counted


def test_a_nested_type_that_changes_what_it_is_given_is_found_out() -> None:
    """In a TypedDict too, at the step that changed it."""
    wf = Workflow("order", CountedDict)

    @wf.step
    def only(state: CountedDict) -> None:
        state["counted"].count = 10

    with pytest.raises(CodecError, match=r"\$\.counted does not come back as it was"):
        wf.bind(InMemoryStore()).run("order-7", {"counted": Counted()})


def test_names_that_cannot_be_found_are_named() -> None:
    """When the workflow is defined: annotations are read from the module, not from the function around them."""

    @dataclass
    class Inner:
        x: int

    @dataclass
    class Outer:
        inner: Inner

    with pytest.raises(TypeError, match="Outer cannot be a state: its annotations name 'Inner'"):
        Workflow("order", Outer)
