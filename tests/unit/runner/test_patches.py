"""The effect of a step: what it changed, exactly, and nothing that it still holds."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, NotRequired, TypedDict

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from milepost.codecs import JSON, JsonCodec, MsgpackCodec, PickleCodec, require_equal
from milepost.errors import CodecError, StateConflictError, StateSchemaError
from milepost.runner import DELETE, Reducer, Replace, add, append, last, union
from milepost.runner.patches import (
    EMPTY_PATCH,
    Entries,
    Patch,
    apply,
    collect,
    effect_of,
    from_record,
    item_result,
    merge,
    to_record,
)
from milepost.runner.state_type import StateType

DICT: StateType[dict[str, Any]] = StateType(dict[str, Any])


@dataclass
class Order:
    items: list[str]
    total: float = 0.0
    note: str | None = None


class OrderDict(TypedDict):
    items: list[str]
    total: NotRequired[float]


class Line(pydantic.BaseModel):
    name: str
    count: int = 1


class OrderModel(pydantic.BaseModel):
    lines: list[Line] = []
    total: float = pydantic.Field(default=0.0, alias="Total")
    secret: str = pydantic.Field(default="", exclude=True)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return sum(line.count for line in self.lines)


def entries(values: Mapping[str, Any]) -> Entries:
    return Entries.of(values, JSON)


def effect(values: dict[str, Any], step: Any, state_type: StateType[Any] = DICT) -> dict[str, Any]:
    """Run a step on values and return what comes after it."""
    before = entries(values)
    state = before.state_as(state_type)
    return apply(before, effect_of(before, state, step(state), state_type, "price")).values()


# What a step may do with a dict.


def test_a_step_may_edit_its_copy() -> None:
    def step(state: dict[str, Any]) -> None:
        state["list"].append(2)
        state["new"] = {"x": 1}
        del state["old"]

    assert effect({"list": [1], "old": 0, "same": "s"}, step) == {"list": [1, 2], "new": {"x": 1}, "same": "s"}


def test_a_step_may_answer_what_changes() -> None:
    """The mapping is laid on the copy, edits included; DELETE removes."""

    def step(state: dict[str, Any]) -> dict[str, Any]:
        state["edited"] = True
        return {"total": 3, "old": DELETE}

    assert effect({"old": 0, "same": "s"}, step) == {"edited": True, "total": 3, "same": "s"}


def test_a_step_may_answer_its_own_copy() -> None:
    def step(state: dict[str, Any]) -> dict[str, Any]:
        del state["old"]
        return state

    assert effect({"old": 0, "same": "s"}, step) == {"same": "s"}


def test_a_step_may_replace_everything() -> None:
    assert effect({"old": 0, "same": "s"}, lambda state: Replace({"same": "s", "new": 1})) == {"same": "s", "new": 1}


def test_only_what_differs_is_in_the_patch() -> None:
    """Also where the step put an equal value of its own in place."""
    before = entries({"a": 1, "b": [1, {"x": 2.0}], "c": "text"})
    state = before.values()
    patch = effect_of(before, state, {"a": 1, "b": [1, {"x": 2.0}], "c": "other"}, DICT, "price")
    assert (patch.entries, patch.removed) == (entries({"c": "other"}).by_key, frozenset())
    assert effect_of(before, before.values(), None, DICT, "price").is_empty


@pytest.mark.parametrize("before, after", [(1, True), (1, 1.0), (0.0, -0.0), (None, ""), ([1], (1,)), (1, "1")])
def test_values_that_only_compare_equal_are_different(before: Any, after: Any) -> None:
    """1, 1.0 and True are three values, and so are 0.0 and -0.0."""
    found = effect({"x": before}, lambda state: {"x": after})["x"]
    assert type(found) is type(after)
    assert repr(found) == repr(after)


@pytest.mark.parametrize(
    "before, after",
    [
        ([1], [True]),
        ([1], [1.0]),
        ([0.0], [-0.0]),
        ([[1]], [(1,)]),
        ({"a": [1], "b": 2}, {"b": 2, "a": [1]}),
        ([b"x"], [b"y"]),
        ([(1, 2)], [[1, 2]]),
    ],
)
def test_values_deep_inside_that_only_compare_equal_are_different(before: Any, after: Any) -> None:
    """Also in the second step in a row that gets the same value, and the order of a mapping counts."""
    start = entries({"x": before, "n": 0})
    start.values()
    for _ in range(2):
        patch = effect_of(start, start.values(), {"x": after, "n": 1}, DICT, "price")
        assert patch.entries.keys() == {"x", "n"}
        require_equal(after, apply(start, patch).values()["x"], JSON)
        assert repr(apply(start, patch).values()["x"]) == repr(after)


class Texts(list[str]):
    """A list that is not quite one."""


@pytest.mark.parametrize("before, after", [(["a"], Texts("a")), ([["a"]], [Texts("a")]), ([b"x"], [bytearray(b"x")])])
def test_a_value_of_another_type_is_refused_where_an_equal_one_was(before: Any, after: Any) -> None:
    start = entries({"x": before})
    assert before == after
    with pytest.raises(CodecError, match=r"step 'price'.*\$\.x"):
        effect_of(start, start.values(), {"x": after}, DICT, "price")


@pytest.mark.parametrize("value", [["a"], [{"a": 1.5, "b": [None]}], [b"x"], [(1, 2)], ["\x01"], [{"$milepost": 1}]])
def test_every_value_that_is_handed_out_is_the_callers_own(value: Any) -> None:
    """However often it was handed out before, and whatever became of it."""
    start = entries({"x": value})
    for _ in range(3):
        found = start.values()["x"]
        require_equal(value, found, JSON)
        found.append("changed")


def test_not_a_number_is_no_change() -> None:
    before = entries({"x": math.nan})
    assert effect_of(before, before.values(), None, DICT, "price").is_empty


@pytest.mark.parametrize("answer", [7, "text", True, [("a", 1)], Order(["x"])])
def test_another_answer_is_refused(answer: Any) -> None:
    with pytest.raises(TypeError, match=r"step 'price': it returned .*Replace"):
        effect({}, lambda state: answer)


def test_a_forgotten_await_is_named() -> None:
    async def fetch() -> None:
        return None

    coroutine = fetch()
    with pytest.raises(TypeError, match=r"step 'price': it returned an awaitable \(coroutine\)"):
        effect({}, lambda state: coroutine)
    coroutine.close()


# Nothing live crosses.


def test_nothing_that_a_step_holds_reaches_the_next() -> None:
    """What a step keeps and changes later is its own affair."""
    held: list[Any] = []

    def step(state: dict[str, Any]) -> dict[str, Any]:
        held.append(state["list"])
        held.append(given := {"deep": [1]})
        return {"new": given}

    before = entries({"list": [1]})
    state = before.state_as(DICT)
    after = apply(before, effect_of(before, state, step(state), DICT, "price"))
    held[0].append("late")
    held[1]["deep"].append("late")
    state["list"] = "late"
    first, second = after.values(), after.values()
    assert first == second == {"list": [1], "new": {"deep": [1]}}
    assert first["new"] is not second["new"]
    assert before.values() == {"list": [1]}


@pytest.mark.parametrize("kind", [Order, OrderModel])
def test_each_taker_has_a_state_of_its_own(kind: Any) -> None:
    """Also where one was made to check the step before: it is handed out once."""
    state_type = StateType(kind)
    before = Entries.of(state_type.to_entries(Order(["x"]) if kind is Order else OrderModel()), JSON)
    state = before.state_as(state_type)
    after = apply(before, effect_of(before, state, {"total": 5.0}, state_type, "price"))
    taken = [after.state_as(state_type) for _ in range(3)]
    assert taken[0] == taken[1] == taken[2] != state
    assert len({id(one) for one in taken}) == 3
    assert [one.total for one in taken] == [5.0] * 3


def test_the_order_of_entries_is_that_of_the_store() -> None:
    """A store reads them by key: whoever goes through them must not see another order before a crash than after."""
    before = entries({"c": 1, "a": 1})
    assert list(before.values()) == ["a", "c"]
    after = apply(before, effect_of(before, before.values(), {"z": 1, "b": 1}, DICT, "price"))
    assert list(after.values()) == list(entries(after.values()).values()) == ["a", "b", "c", "z"]


def test_a_failed_step_leaves_no_trace() -> None:
    """What was edited before an error is in no entries."""
    before = entries({"list": [1]})
    state = before.state_as(DICT)
    state["list"].append(object())
    with pytest.raises(CodecError):
        effect_of(before, state, None, DICT, "price")
    assert before.values() == {"list": [1]}


# The step that made a value is the one to be told.


class Color(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value, path, type_name",
    [
        ({"deep": [1, {2: "x"}]}, "$.new.deep[1]", "int"),
        ([object()], "$.new[0]", "object"),
        ({"c": Color("red")}, "$.new.c", "test_patches.Color"),
        (Order(["x"]), "$.new", "test_patches.Order"),
    ],
)
def test_what_cannot_be_stored_is_an_error_with_step_and_path(value: Any, path: str, type_name: str) -> None:
    with pytest.raises(CodecError, match="step 'price': ") as caught:
        effect({"x": 1}, lambda state: {"new": value})
    assert caught.value.path == path
    assert caught.value.type.endswith(type_name)


class LossyCodec:
    """Writes tuples as lists, as a plain JSON library would."""

    name = "lossy"

    def encode(self, value: object, path: str = "$") -> bytes:
        text = JSON.encode(list(value) if isinstance(value, tuple) else value, path)
        return text.encode() if isinstance(text, str) else text

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        return JSON.decode(content, path)


def test_what_does_not_come_back_equal_is_an_error_with_step_and_path() -> None:
    before = Entries.of({}, LossyCodec())
    with pytest.raises(CodecError, match=r"step 'price': .*\$\.new: tuple comes back as list"):
        effect_of(before, {"new": (1, 2)}, None, DICT, "price")


def test_keys_are_text() -> None:
    with pytest.raises(CodecError, match="step 'price': entry keys are str, not int"):
        effect({}, lambda state: {7: "x"})


def test_delete_is_for_answers() -> None:
    def step(state: dict[str, Any]) -> None:
        state["x"] = DELETE

    with pytest.raises(TypeError, match="DELETE is for the mapping that a step returns"):
        effect({"x": 1}, step)


# Declared types.


def test_a_dataclass_is_edited_patched_or_replaced() -> None:
    state_type = StateType(Order)

    def edits(state: Order) -> None:
        state.items.append("y")

    values = {"items": ["x"], "total": 0.0, "note": None}
    assert effect(values, edits, state_type) == {**values, "items": ["x", "y"]}
    assert effect(values, lambda state: {"total": 3.0}, state_type) == {**values, "total": 3.0}
    assert effect(values, lambda state: Order(["z"]), state_type) == {**values, "items": ["z"]}


def test_a_model_is_edited_patched_or_replaced() -> None:
    """Nested models need no registration: they are dumped and validated with the state. Aliases and computed fields
    stay out of the store."""
    state_type = StateType(OrderModel)

    def edits(state: OrderModel) -> None:
        state.lines.append(Line(name="y", count=2))

    values = {"lines": [{"name": "x", "count": 1}], "total": 0.0}
    longer = [*values["lines"], {"name": "y", "count": 2}]  # type: ignore[misc]
    assert effect(values, edits, state_type) == {**values, "lines": longer}
    assert effect(values, lambda state: {"total": 3.0}, state_type) == {**values, "total": 3.0}
    assert effect(values, lambda state: {"lines": [Line(name="z")]}, state_type)["lines"] == [{"name": "z", "count": 1}]
    assert effect(values, lambda state: OrderModel(Total=1.0), state_type) == {"lines": [], "total": 1.0}


@pytest.mark.parametrize(
    "kind, values",
    [(Order, {"items": []}), (OrderDict, {"items": []}), (OrderModel, {})],
)
def test_unknown_and_ill_typed_entries_are_refused_at_their_step(kind: Any, values: dict[str, Any]) -> None:
    """Not by the next step, and not after a resume."""
    state_type = StateType(kind)
    with pytest.raises(StateSchemaError, match=r"step 'price': .*'totl'"):
        effect(values, lambda state: {"totl": 3.0}, state_type)
    with pytest.raises(StateSchemaError, match=r"step 'price': .*total"):
        effect(values, lambda state: {"total": ["x"]}, state_type)


def test_fields_of_classes_cannot_be_removed() -> None:
    with pytest.raises(StateSchemaError, match="step 'price': 'total' cannot be removed"):
        effect({"items": []}, lambda state: {"total": DELETE}, StateType(Order))
    assert effect({"items": [], "total": 1.0}, lambda state: {"total": DELETE}, StateType(OrderDict)) == {"items": []}
    with pytest.raises(StateSchemaError, match="lacks the entries 'items'"):
        effect({"items": []}, lambda state: {"items": DELETE}, StateType(OrderDict))


def test_a_field_kept_out_of_the_store_cannot_be_changed() -> None:
    """A resumed run would not have it: better to say so at once."""

    def step(state: OrderModel) -> None:
        state.secret = "now"

    with pytest.raises(CodecError, match=r"step 'price': \$\.secret does not come back as it was") as caught:
        effect({}, step, StateType(OrderModel))
    assert caught.value.path == "$.secret"


def test_a_class_that_changes_what_it_is_given_is_found_out() -> None:
    @dataclass
    class Counted:
        count: int = 0

        def __post_init__(self) -> None:
            self.count += 1

    def step(state: Counted) -> None:
        state.count = 10

    with pytest.raises(CodecError, match=r"\$\.count does not come back as it was"):
        effect({"count": 0}, step, StateType(Counted))


def test_an_instance_of_a_subclass_is_refused() -> None:
    """Its own fields would be lost."""

    @dataclass
    class Special(Order):
        extra: int = 0

    with pytest.raises(TypeError, match=r"step 'price': it returned .*Special"):
        effect({"items": []}, lambda state: Special(["x"]), StateType(Order))


def test_missing_fields_take_their_defaults() -> None:
    """A state stored before the field was declared."""
    seen: list[Order] = []
    assert effect({"items": []}, seen.append, StateType(Order)) == {"items": [], "total": 0.0, "note": None}
    assert seen == [Order([])]


# Every value, every codec.

ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4)
TIMES = st.datetimes(timezones=st.just(dt.UTC)) | st.decimals(allow_nan=False)
VALUES = st.recursive(
    ATOMS | TIMES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(ATOMS.filter(lambda value: value == value), max_size=3)  # noqa: PLR0124  no NaN
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["a", "b", "c", "d e"])
STATES = st.dictionaries(KEYS, VALUES, max_size=4)


@pytest.mark.parametrize(
    "codec",
    [JSON, MsgpackCodec(), PickleCodec([dt.datetime, dt.timezone, dt.timedelta, Decimal])],
    ids=lambda codec: str(codec.name),
)
@given(before=STATES, after=STATES, data=st.data())
def test_the_effect_laid_on_the_start_is_the_end(
    codec: JsonCodec, before: dict[str, Any], after: dict[str, Any], data: st.DataObject
) -> None:
    """Whatever a step does, and through a record too; what it did not touch is not in the patch."""
    start = Entries.of(before, codec)
    kept = before.keys() & data.draw(st.lists(KEYS))
    left = {**after, **{key: value for key, value in start.values().items() if key in kept}}
    patch = effect_of(start, left, None, DICT, "price")
    end = apply(start, patch)
    assert end == Entries.of(left, codec) or codec.name == "pickle"
    require_equal(left, end.values(), codec)
    assert not kept & patch.entries.keys()
    if codec.name != "pickle":
        again = from_record(JSON.decode(JSON.encode(to_record(patch))), codec)
        assert again == patch
        assert apply(start, again) == end
        assert end.digest() == Entries.of(dict(reversed(left.items())), codec).digest()


@given(before=STATES, left=STATES, right=STATES)
def test_branches_that_touch_different_entries_do_not_depend_on_their_order(
    before: dict[str, Any], left: dict[str, Any], right: dict[str, Any]
) -> None:
    """And merging is applying one after the other."""
    start = entries(before)
    one = effect_of(start, {**start.values(), **{f"l{key}": left[key] for key in left}}, None, DICT, "one")
    other = effect_of(start, {**start.values(), **{f"r{key}": right[key] for key in right}}, None, DICT, "other")
    merged = apply(start, merge(start, [("one", one), ("other", other)], {}))
    assert merged == apply(start, merge(start, [("other", other), ("one", one)], {})) == apply(apply(start, one), other)


# Branches.


def branch(before: dict[str, Any], after: dict[str, Any]) -> Patch:
    return effect_of(entries(before), after, None, DICT, "branch")


def merged(before: dict[str, Any], *branches: dict[str, Any], **reducers: Any) -> dict[str, Any]:
    start = entries(before)
    parts = [(f"s{number}", branch(before, after)) for number, after in enumerate(branches)]
    return apply(start, merge(start, parts, reducers)).values()


def test_different_values_without_a_reducer_are_a_conflict() -> None:
    with pytest.raises(StateConflictError, match="steps 's0', 's1' left different values in entry 'x'") as caught:
        merged({"x": 1}, {"x": 2}, {"x": 3})
    assert (caught.value.entry, caught.value.steps) == ("x", ("s0", "s1"))


def test_removing_and_changing_is_a_conflict() -> None:
    """Also with a reducer, except with the one that lets the last one win."""
    for reducers in ({}, {"x": add}):
        with pytest.raises(StateConflictError, match="entry 'x'"):
            merged({"x": 1}, {"x": 2}, {}, **reducers)
    assert merged({"x": 1}, {"x": 2}, {}, x=last) == {}
    assert merged({"x": 1}, {}, {"x": 2}, x=last) == {"x": 2}


def test_equal_values_are_no_conflict() -> None:
    assert merged({"x": 1}, {"x": 2}, {"x": 2}) == {"x": 2}
    assert merged({"x": 1}, {}, {}) == {}


def test_one_branch_needs_no_reducer() -> None:
    assert merged({"x": 1, "y": 1}, {"x": 2, "y": 1}, {"x": 1, "y": 5}) == {"x": 2, "y": 5}


@pytest.mark.parametrize(
    "reducer, base, branches, expected",
    [
        (append, ["a"], [["a", "b"], ["a", "c", "d"], ["a", "e"]], ["a", "b", "c", "d", "e"]),
        (append, ["a"], [["a", "b"], ["a", "b"]], ["a", "b", "b"]),
        (append, (1,), [(1, 2), (1, 3)], (1, 2, 3)),
        (append, None, [["b"], ["c"]], ["b", "c"]),
        (add, 1, [3, 5], 7),
        (add, 0, [1, 1], 2),
        (add, None, [3, 5], 8),
        (add, 1.5, [2.5, 1.0], 2.0),
        (union, {"a", "b"}, [{"a", "b", "c"}, {"a"}], {"a", "c"}),
        (union, frozenset({"a"}), [frozenset({"a", "b"}), frozenset()], frozenset({"b"})),
        (union, {"k": 1, "gone": 1}, [{"k": 1, "x": 2}, {"k": 1, "y": 3}], {"k": 1, "x": 2, "y": 3}),
        (union, {"k": 1}, [{"k": 2}, {"k": 1, "y": 3}], {"k": 2, "y": 3}),
        (union, {"k": 1}, [{"k": 1, "y": 3}, {"k": 2}], {"k": 2, "y": 3}),
        (union, None, [{"x": 2}, {"y": 3}], {"x": 2, "y": 3}),
        (last, 1, [2, 3], 3),
        (Reducer("most", lambda base, left, right: max(left, right)), 1, [5, 3], 5),
        (lambda base, left, right: [base, left, right], 1, [5, 3], [1, 5, 3]),
    ],
)
def test_a_reducer_merges_both_differences(reducer: Any, base: Any, branches: list[Any], expected: Any) -> None:
    """Of what was there to what each branch left; equal differences count as often as they were made."""
    before = {} if base is None else {"x": base}
    assert merged(before, *({"x": value} for value in branches), x=reducer) == {"x": expected}


@pytest.mark.parametrize(
    "reducer, base, branches",
    [
        (append, ["a"], [["b"], ["a", "c"]]),
        (append, ["a"], [["a", "c"], []]),
        (append, ["a"], [["a", "c"], "text"]),
        (union, {"k": 1}, [{"k": 2}, {"k": 3}]),
        (union, {"k": 1}, [{"k": 2}, {}]),
        (union, {"k": 1}, [{"k": 2}, ["k"]]),
        (add, 1, [2, "text"]),
    ],
)
def test_what_a_reducer_refuses_is_a_conflict(reducer: Any, base: Any, branches: list[Any]) -> None:
    """Entry and steps are named; what the reducer said is the cause."""
    with pytest.raises(StateConflictError, match="entry 'x' that its reducer does not merge") as caught:
        merged({"x": base}, *({"x": value} for value in branches), x=reducer)
    assert caught.value.steps == ("s0", "s1")
    assert isinstance(caught.value.__cause__, (TypeError, ValueError))


def test_what_a_reducer_makes_is_checked_like_what_a_step_makes() -> None:
    with pytest.raises(CodecError, match="the reducer of 'x', for the steps 's0', 's1': "):
        merged({"x": 1}, {"x": 2}, {"x": 3}, x=lambda base, left, right: object())


LISTS = st.lists(st.integers(0, 3), max_size=3)


@given(base=LISTS, suffixes=st.lists(LISTS.filter(bool), min_size=2, max_size=4))
def test_append_keeps_everything_in_order(base: list[int], suffixes: list[list[int]]) -> None:
    expected = base + [one for suffix in suffixes for one in suffix]
    assert merged({"x": base}, *({"x": base + suffix} for suffix in suffixes), x=append) == {"x": expected}


SETS = st.sets(st.integers(0, 5))


@given(base=SETS, left=SETS, right=SETS)
def test_union_has_each_change_of_either(base: set[int], left: set[int], right: set[int]) -> None:
    """An item is in the result if both have it, or just one has and put it in."""
    found = merged({"x": base}, {"x": left}, {"x": right}, x=union)["x"]
    for one in range(6):
        here, there, was = one in left, one in right, one in base
        assert (one in found) == (here if here == there else not was)


# Items.


def test_results_of_items_are_a_list_in_their_order() -> None:
    before = entries({"items": ["a", "b"]})
    results = [item_result({"n": number}, DICT, JSON, "quote", str(number)) for number in range(2)]
    patch = collect(before, "quotes", results, DICT, "quote")
    assert apply(before, patch).values()["quotes"] == [{"n": 0}, {"n": 1}]
    assert collect(apply(before, patch), "quotes", results, DICT, "quote") is EMPTY_PATCH


def test_a_result_is_checked_where_it_was_made() -> None:
    with pytest.raises(CodecError, match=r"step 'quote', item 'k': .*\$\.result\.x"):
        item_result({"x": object()}, DICT, JSON, "quote", "k")
    live = {"list": [1]}
    found = item_result(live, DICT, JSON, "quote", "k")
    live["list"].append(2)
    assert found == {"list": [1]}


def test_models_are_results_too() -> None:
    """They are stored as the state's own are."""
    state_type = StateType(OrderModel)
    result = item_result(Line(name="x"), state_type, JSON, "quote", "0")
    patch = collect(entries({}), "lines", [result], state_type, "quote")
    assert apply(entries({}), patch).state_as(state_type).lines == [Line(name="x")]
    with pytest.raises(StateSchemaError, match="step 'quote': "):
        collect(entries({}), "lines", ["text"], state_type, "quote")


@pytest.mark.parametrize(
    "value", [None, [], {"set": {}}, {"set": {}, "removed": [], "more": 1}, {"set": 1, "removed": []}]
)
def test_a_record_that_is_no_patch_is_refused(value: Any) -> None:
    with pytest.raises(CodecError, match="is no patch"):
        from_record(value, JSON)


def test_reprs_show_no_values() -> None:
    before = entries({"x": "secret", "y": ["secret"]})
    patch = branch({}, {"x": "secret", "y": ["secret"]})
    assert "secret" not in repr(before) + repr(patch) + repr(Replace({"x": "secret"}))


def test_an_attribute_that_is_no_field_is_refused() -> None:
    """It would be lost. What the class itself keeps beside its fields is made again."""

    @dataclass
    class Basket:
        prices: list[float]

        def __post_init__(self) -> None:
            self.count = len(self.prices)
            self._seen = True

        @cached_property
        def total(self) -> float:
            return sum(self.prices)

    state_type = StateType(Basket)
    before = Entries.of_state(Basket([1.0]), state_type, JSON, "the input")
    left = before.state_as(state_type)
    assert left.total == 1.0
    left.prices.append(2.0)
    assert set(effect_of(before, left, None, state_type, "price").entries) == {"prices"}
    left.discount = 3.0  # type: ignore[attr-defined]
    with pytest.raises(StateSchemaError, match=r"step 'price'.*no fields 'discount'"):
        effect_of(before, left, None, state_type, "price")


def test_data_in_a_private_attribute_is_warned_of() -> None:
    """It is not stored. What the class makes of its fields, and what is no data, is nobody's loss."""

    class Basket(pydantic.BaseModel):
        prices: list[float]
        _note: str = pydantic.PrivateAttr(default="")
        _lock: Any = pydantic.PrivateAttr(default_factory=object)

        @override
        def model_post_init(self, context: Any, /) -> None:
            self._note = f"{len(self.prices)} prices"

    @dataclass
    class Bag:
        prices: list[float]

        def __post_init__(self) -> None:
            self._note = f"{len(self.prices)} prices"
            self._lock = object()

    for kind in (Basket, Bag):
        state_type: StateType[Any] = StateType(kind)
        before = Entries.of_state(kind(prices=[1.0]), state_type, JSON, "the input")
        left = before.state_as(state_type)
        left.prices.append(2.0)
        left._note = "2 prices"
        effect_of(before, left, None, state_type, "price")
        left._note = "pays in cash"
        with pytest.warns(UserWarning, match=r"\._note is no field"):
            effect_of(before, left, None, state_type, "price")
        # Once is enough.
        effect_of(before, left, None, state_type, "price")
