"""A workflow that is killed half way, and goes on: run this twice, the first time with `DIE_IN=ship`."""

import os
import signal
from dataclasses import dataclass

from milepost import Client, Context, Workflow


@dataclass
class Order:
    cups: int
    total: float = 0.0
    receipt: str = ""


order = Workflow("order", Order)


@order.step
def price(state: Order) -> None:
    print("price")
    state.total = 9.5 * state.cups


@order.step
def charge(state: Order, ctx: Context) -> dict[str, object]:
    print("charge")
    # A payment service that takes a key books it once, however often it is asked.
    return {"receipt": f"{state.total} paid under {ctx.idempotency_key[:8]}"}


@order.step
def ship(state: Order) -> None:
    print("ship", flush=True)
    if os.environ.get("DIE_IN") == "ship":
        os.kill(os.getpid(), signal.SIGKILL)


with Client("127.0.0.1:7450") as client:
    # A host that dies keeps others waiting for no longer than its lease lives.
    run = order.bind(client, lease_ttl_s=2).run("order-71", Order(cups=2))
    print(run.status, "(resumed)" if run.resumed else "(started)", run.state.receipt.split(" under ")[0])
