"""Steps that depend on the same step run side by side, and so do the items of one step. Needs a server: `make run`."""

from typing import Annotated, TypedDict

from milepost import Client, Workflow, append


class Order(TypedDict):
    items: list[str]
    notes: Annotated[list[str], append]
    prices: list[int]
    total: int


order = Workflow("parallel-order", Order)


@order.step(depends_on=[])
def check_stock(state: Order) -> dict[str, object]:
    return {"notes": [*state["notes"], "in stock"]}


@order.step(depends_on=[])
def check_credit(state: Order) -> dict[str, object]:
    return {"notes": [*state["notes"], "credit is good"]}


@order.step(depends_on=["check_stock", "check_credit"], for_each="items", into="prices")
def price(state: Order, item: str) -> int:
    return 3 * len(item)


@order.step
def add_up(state: Order) -> dict[str, object]:
    return {"total": sum(state["prices"])}


with Client("127.0.0.1:7450") as client:
    runner = order.bind(client, max_concurrency=4)
    run = runner.run("parallel-order-1", {"items": ["apple", "pear"], "notes": [], "prices": [], "total": 0})
    print(run.state["notes"], run.state["prices"], run.state["total"])
    for checkpoint in runner.history("parallel-order-1", newest_first=False):
        print(checkpoint.sequence, checkpoint.current_step or "the input")
