"""Charge an order, then ship it. Kill it while it ships, and run it again. Needs a server: `make run`."""

import time
from typing import Any

from milepost import Client, Workflow

order = Workflow("order", dict[str, Any])


@order.step
def charge(state: dict[str, Any]) -> dict[str, Any]:
    return {"paid": 14 * state["items"]}


@order.step
def ship(state: dict[str, Any]) -> dict[str, Any]:
    time.sleep(3)
    return {"shipped": state["items"]}


print(order.bind(Client("127.0.0.1:7450"), lease_ttl_s=5).run("order-8", {"items": 3}, progress=True).state)
