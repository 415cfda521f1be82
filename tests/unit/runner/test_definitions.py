"""Definitions: what a workflow and its steps may be, and what is refused when they are defined, not when they run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

import pydantic
import pytest

from milepost import InMemoryStore
from milepost.runner import Reducer, Retry, Step, Workflow, append, union
from milepost.runner.options import BindOptions
from milepost.runner.settings import Settings
from milepost.runner.step import StepOptions


@dataclass
class Order:
    items: list[str]
    total: int = 0
    log: Annotated[list[str], append] = None  # type: ignore[assignment]


class OrderDict(TypedDict):
    items: list[str]
    seen: NotRequired[Annotated[set[str], union]]


class OrderModel(pydantic.BaseModel):
    items: list[str]
    log: Annotated[list[str], pydantic.Field(min_length=0), append] = []


def workflow() -> Workflow[dict[str, Any]]:
    return Workflow("order", dict[str, Any])


def takes_state(state: Any) -> None:
    return None


def takes_both(state: Any, ctx: Any) -> None:
    return None


async def is_awaited(state: Any) -> None:
    return None


class Callables:
    def method(self, state: Any, ctx: Any) -> None:
        return None

    async def __call__(self, state: Any) -> None:
        return None


def test_a_step_is_the_function_itself() -> None:
    """The decorator, with and without options, gives back the very function, so tests call it directly."""
    wf = workflow()
    assert wf.step(takes_state) is takes_state
    assert wf.step(id="b")(takes_both) is takes_both
    assert [(step.id, step.takes_context) for step in wf.steps.values()] == [("takes_state", False), ("b", True)]


@pytest.mark.parametrize(
    "function, takes_context, is_async",
    [
        (takes_state, False, False),
        (takes_both, True, False),
        (is_awaited, False, True),
        (lambda state, ctx=None: None, True, False),
        (lambda state, *, verbose=False: None, False, False),
        (lambda state, ctx, *, i=0: None, True, False),
        (lambda state, **options: None, False, False),
        (Callables().method, True, False),
        (Callables(), False, True),
        (functools.partial(takes_both, ctx=None), False, False),
        (functools.partial(is_awaited), False, True),
    ],
)
def test_the_parameters_decide_what_a_step_is_given(
    function: Callable[..., Any], takes_context: bool, is_async: bool
) -> None:
    """One positional parameter is the state, two are state and context; keywords with defaults do not count."""
    step: Step[Any] = Step("a", function)
    assert (step.takes_context, step.is_async) == (takes_context, is_async)


@pytest.mark.parametrize("count, takes_context", [(2, False), (3, True)])
def test_a_step_for_items_takes_one_argument_more(count: int, takes_context: bool) -> None:
    """With for_each the second argument is the item."""
    functions: dict[int, Callable[..., Any]] = {2: lambda state, item: None, 3: lambda state, item, ctx: None}
    step: Step[Any] = Step("a", functions[count], for_each="items", into="out")
    assert step.takes_context is takes_context


def generator(state: Any) -> Any:
    yield 1


async def async_generator(state: Any) -> Any:
    yield 1


@pytest.mark.parametrize(
    "function, options, problem",
    [
        (lambda: None, {}, "takes 0 positional arguments"),
        (lambda a, b, c: None, {}, "takes 3 positional arguments"),
        (lambda a: None, {"for_each": "items", "into": "out"}, "takes 1 positional arguments"),
        (lambda *states: None, {}, r"takes \*states"),
        (lambda state, *, who: None, {}, "needs the keyword 'who'"),
        (lambda state, i=0: None, {}, r"keyword-only: `\*, i="),
        (lambda state, ctx, i=0: None, {}, r"keyword-only: `\*, i="),
        (lambda state, item, i=0: None, {"for_each": "items", "into": "out"}, r"keyword-only: `\*, i="),
        (generator, {}, "is a generator"),
        (async_generator, {}, "is a generator"),
        (7, {}, "must be a function, not int"),
        (min, {}, "does not tell its parameters"),
    ],
)
def test_another_number_of_arguments_is_refused(function: Any, options: dict[str, Any], problem: str) -> None:
    """It is a TypeError, at once, that names the step."""
    with pytest.raises(TypeError, match=problem) as caught:
        Step("charge", function, **options)
    assert "'charge'" in str(caught.value)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"version": 0}, "version is 0"),
        ({"version": True}, "version is True"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"retry": 3}, "retry must be a Retry"),
        ({"depends_on": "price"}, "depends_on must be a list"),
        ({"depends_on": [1]}, "depends_on must be str"),
        ({"aliases": "old"}, "aliases must be a list"),
        ({"aliases": ["a/b"]}, "aliases 'a/b'"),
        ({"waits_for": ""}, "waits_for must be a name"),
        ({"waits_for": "milepost.cancel"}, "cancels the workflow"),
        ({"waits_for": "x" * 257}, "at most 256 bytes"),
        ({"into": "out"}, "into is for steps with for_each"),
        ({"key": str}, "key is for steps with for_each"),
        ({"at_most_once": True, "retry": Retry(attempts=2)}, "retry does not go with at_most_once"),
        ({"at_most_once": True, "checkpoint": False}, "checkpoint=False does not go with at_most_once"),
        ({"waits_for": "x", "checkpoint": False}, "checkpoint=False does not go with waits_for"),
        ({"repeat_while": bool, "checkpoint": False}, "checkpoint=False does not go with repeat_while"),
        ({"repeat_while": bool, "waits_for": "x"}, "waits_for does not go with repeat_while"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], problem: str) -> None:
    """The message names the step and the option."""
    with pytest.raises((TypeError, ValueError), match=problem) as caught:
        Step("charge", takes_state, **options)
    assert "'charge'" in str(caught.value)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({}, "for_each needs into"),
        ({"into": "out", "repeat_while": bool}, "repeat_while does not go with for_each"),
        ({"into": "out", "waits_for": "x"}, "waits_for does not go with for_each"),
    ],
)
def test_options_of_a_step_for_items(options: dict[str, Any], problem: str) -> None:
    """for_each says where the results go, and does not mix with loops and waiting."""
    with pytest.raises(ValueError, match=problem):
        Step("charge", takes_both, for_each="items", **options)


@pytest.mark.parametrize("step_id", ["", "x" * 257, "a/b", "a[1]", "a#1", "a:b", "a\nb", "\ud800", "ä" * 129])
def test_ids_that_would_not_be_told_apart_are_refused(step_id: str) -> None:
    """Ids end up in names of scopes and records, where these characters part them from what follows."""
    with pytest.raises(ValueError, match="step"):
        Step(step_id, takes_state)


def test_an_id_is_taken_once() -> None:
    """Also as an alias: what was finished under a name must belong to one step."""
    wf = workflow()
    wf.step(id="a", aliases=["old"])(takes_state)
    for name in ("a", "old"):
        with pytest.raises(ValueError, match=f"'{name}' is an id or alias of step 'a'"):
            wf.step(id=name)(takes_state)
        with pytest.raises(ValueError, match=f"'{name}' is an id or alias of step 'a'"):
            wf.step(id="new", aliases=[name])(takes_state)
    with pytest.raises(ValueError, match="a name twice"):
        wf.step(id="c", aliases=["c"])(takes_state)


def test_a_dependency_may_be_declared_later_but_must_exist() -> None:
    """Dependencies are checked when the definition is used first."""
    wf = workflow()
    wf.step(id="a", depends_on=["b"])(takes_state)
    wf.step(id="b", depends_on=[])(takes_state)
    assert dict(wf.definition.dependencies) == {"a": ("b",), "b": ()}
    other = workflow()
    other.step(id="a", depends_on=["nobody"])(takes_state)
    with pytest.raises(ValueError, match="'a': depends_on names 'nobody'"):
        other.bind(InMemoryStore())


def test_without_depends_on_a_step_follows_the_one_before() -> None:
    """And it is not the order of the names in depends_on that counts."""
    wf = workflow()
    for step_id in ("a", "b", "c"):
        wf.step(id=step_id)(takes_state)
    wf.step(id="d", depends_on=["c", "a", "c"])(takes_state)
    assert dict(wf.definition.dependencies) == {"a": (), "b": ("a",), "c": ("b",), "d": ("a", "c")}
    assert dict(wf.definition.dependents) == {"a": ("b", "d"), "b": ("c",), "c": ("d",), "d": ()}


def test_a_circle_is_refused_and_shown() -> None:
    """The message goes once round."""
    wf = workflow()
    wf.step(id="free", depends_on=[])(takes_state)
    wf.step(id="a", depends_on=["c", "free"])(takes_state)
    wf.step(id="b", depends_on=["a"])(takes_state)
    wf.step(id="c", depends_on=["b"])(takes_state)
    with pytest.raises(ValueError, match=r"in a circle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)"):
        _ = wf.definition


def test_a_workflow_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="has no steps"):
        _ = workflow().definition


def test_no_step_joins_a_definition_in_use() -> None:
    """Two hosts that ran different parts of one definition would have the same fingerprint otherwise."""
    wf = workflow()
    wf.step(takes_state)
    assert wf.definition is wf.definition
    with pytest.raises(RuntimeError, match="in use"):
        wf.step(takes_both)


def test_a_workflow_is_no_child_of_its_own() -> None:
    wf = workflow()
    wf.step(id="a", children=[wf])(takes_state)
    with pytest.raises(ValueError, match="a child of its own"):
        _ = wf.definition


@pytest.mark.parametrize("kind", [int, list, str, tuple[int, str], pydantic.RootModel[int], dict[int, str]])
def test_a_state_of_another_type_is_refused(kind: Any) -> None:
    """When the workflow is made, not when it runs."""
    with pytest.raises(TypeError, match=r"state|root model"):
        Workflow("order", kind)


def test_a_dataclass_that_cannot_be_made_of_its_fields_is_refused() -> None:
    @dataclass
    class Odd:
        total: int

        def __init__(self, secret: str) -> None:
            self.total = len(secret)

    with pytest.raises(TypeError, match="its constructor wants 'secret'"):
        Workflow("order", Odd)


@pytest.mark.parametrize("kind", [Order, OrderDict, OrderModel])
def test_entries_that_are_no_fields_are_refused(kind: Any) -> None:
    """for_each, into and reducers name fields of a declared type."""
    wf: Workflow[Any] = Workflow("order", kind)
    with pytest.raises(ValueError, match="for_each: 'item' is no field"):
        wf.step(id="a", for_each="item", into="items")(takes_both)
    with pytest.raises(ValueError, match="into: 'nowhere' is no field"):
        wf.step(id="a", for_each="items", into="nowhere")(takes_both)
    with pytest.raises(ValueError, match="reducers: 'nothing' is no field"):
        Workflow("order", kind, reducers={"nothing": append})


def test_reducers_come_from_annotations_and_arguments() -> None:
    """What the workflow says goes before what the annotation says."""
    mine = Reducer("mine", lambda base, left, right: right)
    assert Workflow("order", Order).reducers == {"log": append}
    assert Workflow("order", OrderModel).reducers == {"log": append}
    assert Workflow("order", OrderDict).reducers == {"seen": union}
    assert Workflow("order", Order, reducers={"log": mine, "total": mine}).reducers == {"log": mine, "total": mine}
    with pytest.raises(TypeError, match="the reducer of 'total' is no function"):
        Workflow("order", Order, reducers={"total": 7})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb"])
def test_names_that_no_store_takes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Workflow(name, dict)


def test_a_function_without_a_name_of_its_own_needs_an_id() -> None:
    for function in (lambda state: None, functools.partial(takes_state)):
        with pytest.raises(TypeError, match="needs id="):
            workflow().step(function)


def test_a_model_of_a_library_that_is_too_old_is_refused() -> None:
    """When the workflow is made, not when the first state is read."""

    class Old(pydantic.BaseModel):
        total: int

        @classmethod
        def model_validate(cls, obj: Any) -> Any:  # type: ignore[override]
            return obj

    with pytest.raises(TypeError, match=r"pydantic 2\.11 or newer"):
        Workflow("order", Old)


def test_the_options_of_a_step_are_those_of_the_decorator() -> None:
    """The keywords that type checkers see are the fields that there are."""
    fields = {field.name for field in dataclasses.fields(Step) if field.init}
    assert set(StepOptions.__annotations__) == fields - {"execute"}


def test_the_options_of_bind_are_those_of_a_runner() -> None:
    """The keywords that type checkers see are the settings that there are."""
    assert set(BindOptions.__annotations__) == set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"timeout_s": "3"}, "step 'price': timeout_s must be a number, not str"),
        ({"retries": 3}, "step 'price': there is no option 'retries'; there are id, checkpoint, "),
        ({"retry": 3}, "step 'price': retry must be a Retry, not int"),
        ({"checkpoint": "no"}, "step 'price': checkpoint must be True or False, not 'no'"),
        ({"at_most_once": 1}, "step 'price': at_most_once must be True or False, not 1"),
        ({"repeat_while": True}, "step 'price': repeat_while must be a function, not True"),
        ({"for_each": "items", "into": "log", "key": "id"}, "step 'price': key must be a function, not 'id'"),
    ],
)
def test_options_of_another_type_are_refused_by_name(options: dict[str, Any], problem: str) -> None:
    def price(state: dict[str, Any]) -> None: ...

    def price_item(state: dict[str, Any], item: Any) -> None: ...

    function: Any = price_item if "for_each" in options else price
    with pytest.raises(TypeError, match=problem):
        workflow().step(**{"id": "price", **options})(function)


def test_a_step_that_is_given_no_function_says_how_to_name_it() -> None:
    with pytest.raises(TypeError, match=r"a step is a function, not str; options are named: step\(id=…\)"):
        workflow().step("price")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"lease_ttl": 30}, "workflow 'order': bind has no option 'lease_ttl'; there are lease_ttl_s, "),
        ({"lease_ttl_s": "30"}, "lease_ttl_s must be a number, not str"),
        ({"grace_s": None}, "grace_s must be a number, not NoneType"),
    ],
)
def test_options_of_bind_are_refused_by_name(options: dict[str, Any], problem: str) -> None:
    made = workflow()
    made.step(lambda state: None, id="price")
    with pytest.raises(TypeError, match=problem):
        made.bind(InMemoryStore(), **options)
    with pytest.raises(ValueError, match=r"max_concurrency is 2\.5; it must be an int"):
        made.bind(InMemoryStore(), max_concurrency=2.5)  # type: ignore[call-overload]
