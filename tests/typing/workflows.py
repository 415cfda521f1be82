"""Workflows as programs define and run them. Type-checked, never executed; a line marked `ignore` must be an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict, assert_type

import pydantic

from milepost import (
    DELETE,
    AsyncClient,
    AsyncContext,
    AsyncInMemoryStore,
    AsyncRunner,
    Checkpoint,
    CheckpointStore,
    Client,
    Context,
    DefinitionChangedError,
    InMemoryStore,
    InputMismatchError,
    MilepostError,
    Reducer,
    Replace,
    Retry,
    Run,
    Runner,
    SignalSent,
    StateConflictError,
    Step,
    StepFailedError,
    StepOutcomeUnknownError,
    StepTimeoutError,
    Workflow,
    WorkflowInfo,
    append,
    union,
)


@dataclass
class Order:
    items: list[str]
    total: float = 0.0
    quotes: list[float] = field(default_factory=list)
    log: Annotated[list[str], append] = field(default_factory=list)


class OrderDict(TypedDict):
    items: list[str]
    total: NotRequired[float]


class OrderModel(pydantic.BaseModel):
    items: list[str]
    total: float = 0.0


State = dict[str, Any]

orders = Workflow("order", Order)
dicts = Workflow("order", dict[str, Any], schema_version=2, migrations={1: lambda entries: None})
typed_dicts = Workflow("order", OrderDict, reducers={"items": append})
models = Workflow("order", OrderModel, siblings="cancel", migrations=[])


# A step takes the state, or the state and a context; what the decorator gives back is the function.


@orders.step
def price(state: Order) -> dict[str, object]:
    return {"total": 3.0}


@orders.step(retry=Retry(attempts=3, on=(OSError,)), timeout_s=5, depends_on=["price"], version=2)
def charge(state: Order, ctx: Context) -> None:
    assert_type(ctx.idempotency_key, str)
    assert_type(ctx.deadline, float | None)
    ctx.check()
    ctx.logger.info("charged")
    nested = ctx.run(models, OrderModel(items=state.items))
    assert_type(nested, Run[OrderModel])
    # A TypedDict needs its name: from a literal alone mypy cannot tell whether it is the state of the child.
    assert_type(ctx.run(typed_dicts, OrderDict(items=state.items)), Run[OrderDict])


@orders.step(for_each="items", into="quotes", key=str.lower)
def quote(state: Order, item: str) -> float:
    return float(len(item))


@orders.step(id="quote again", for_each="items", into="quotes")
def quote_again(state: Order, item: str, ctx: Context) -> float:
    return float(len(item))


@orders.step(repeat_while=lambda state: state.total < 10, max_iterations=20)
def grow(state: Order) -> Order:
    return Order(state.items, state.total + 1)


@orders.step(waits_for="approval", at_most_once=True, aliases=["approve"], children=[models])
async def ship(state: Order, ctx: AsyncContext) -> Mapping[str, object] | None:
    assert_type(await ctx.run(models, OrderModel(items=[])), Run[OrderModel])
    assert_type(await ctx.run(typed_dicts, OrderDict(items=[])), Run[OrderDict])
    return None


@dicts.step(checkpoint=False)
def patches(state: State) -> State:
    return {"gone": DELETE, "new": 1}


@dicts.step
def replaces(state: Mapping[str, Any]) -> Replace:
    return Replace({"only": 1})


@typed_dicts.step
def counts(state: OrderDict) -> OrderDict:
    return {"items": state["items"], "total": 1.0}


@models.step
def validates(state: OrderModel) -> OrderModel:
    return state.model_copy(update={"total": 1.0})


def functions_stay_functions() -> None:
    assert_type(price(Order([])), dict[str, object])
    assert_type(quote(Order([]), "x"), float)
    assert_type(counts({"items": []}), OrderDict)


dicts.add_step(Step("made by hand", patches, checkpoint=False, retry=Retry()))
orders.add_step(Step("by hand", price))
longest = Reducer("longest", lambda base, left, right: max(left, right, key=len))
Workflow("order", Order, reducers={"items": union, "total": longest, "log": lambda base, left, right: right})


def blocking(client: Client, store: CheckpointStore) -> None:
    runner = orders.bind(client, on_change="compatible", durability="pipelined", lease_ttl_s=10)
    assert_type(runner, Runner[Order])
    run = runner.run("order-7", Order(["x"]), deadline_s=60, lease_wait_s=0)
    assert_type(run, Run[Order])
    assert_type(run.state, Order)
    assert_type(run.resumed, bool)
    assert_type(runner.start("order-7", Order([])).state.total, float)
    assert_type(runner.submit("order-7", Order([]), deadline_s=60), bool)
    runner.submit("order-7", {"items": []})  # type: ignore[arg-type]
    assert_type(runner.resume("order-7").waiting_for, str)
    assert_type(runner.signal("order-7", "approval", {"by": "me"}), SignalSent)
    assert_type(runner.fork("order-7", "order-8"), WorkflowInfo)
    assert_type(runner.status("order-7"), WorkflowInfo)
    assert_type(runner.history("order-7"), Iterator[Checkpoint])
    runner.cancel("order-7")
    runner.resolve("order-7", "charge", "done", {"total": 1.0})
    assert_type(dicts.bind(InMemoryStore()).run("d", {"x": 1}).state, dict[str, Any])
    assert_type(typed_dicts.bind(store, unfenced=True).run("d", {"items": []}).state, OrderDict)
    assert_type(models.bind(client).run("d", OrderModel(items=[])).state, OrderModel)


async def asynchronous(client: AsyncClient) -> None:
    runner = orders.bind(client)
    assert_type(runner, AsyncRunner[Order])
    run = await runner.run("order-7", Order([]))
    assert_type(run, Run[Order])
    assert_type(await runner.resume("order-7"), Run[Order])
    assert_type(runner.history("order-7"), AsyncIterator[Checkpoint])
    assert_type(typed_dicts.bind(AsyncInMemoryStore()), AsyncRunner[OrderDict])
    await runner.cancel("order-7")


def handles_errors(runner: Runner[Order]) -> None:
    try:
        runner.run("order-7")
    except StepTimeoutError as error:
        assert_type(error.abandoned, bool)
    except StepFailedError as error:
        assert_type(error.attempts, int)
        assert_type(error.step, str)
    except DefinitionChangedError as error:
        assert_type(error.problems, tuple[str, ...])
    except StateConflictError as error:
        assert_type(error.steps, tuple[str, ...])
    except StepOutcomeUnknownError as error:
        assert_type(error.attempt_id, str)
    except InputMismatchError as error:
        assert_type(error.workflow_id, str)
    except MilepostError:
        pass


def is_refused(client: Client, runner: Runner[Order]) -> None:
    def takes_a_dict(state: State) -> None: ...

    def takes_nothing() -> None: ...

    orders.step(takes_a_dict)  # type: ignore[arg-type]
    orders.step(id="x")(takes_a_dict)  # type: ignore[arg-type]
    orders.step(takes_nothing)  # type: ignore[arg-type]
    orders.step(retries=3)  # type: ignore[call-overload]
    orders.step(retry=3)  # type: ignore[call-overload]
    orders.step(repeat_while=takes_a_dict)  # type: ignore[arg-type]
    dicts.add_step(Step("x", price))  # type: ignore[arg-type]
    Step("x", takes_nothing)  # type: ignore[arg-type]
    Workflow("order", Order(items=[]))  # type: ignore[arg-type]
    runner.run("order-7", {"items": []})  # type: ignore[arg-type]
    orders.bind(client, on_change="merge")  # type: ignore[call-overload]
    orders.bind(client, retries=3)  # type: ignore[call-overload]
    orders.bind(7)  # type: ignore[call-overload]
    runner.resolve("order-7", "charge", "again")  # type: ignore[arg-type]
    Retry(3)  # type: ignore[call-arg]
