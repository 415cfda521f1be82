"""A payment that must not be made twice, and a provider that does not answer. Needs a server: `make run`."""

import time
from typing import Any

from milepost import Client, Context, StepFailedError, StepOutcomeUnknownError, Workflow

charges: dict[str, int] = {}
"""What the payment provider has: by idempotency key, the amount that was taken."""

order = Workflow("paid-order", dict[str, Any])


@order.step
def price(state: dict[str, Any]) -> dict[str, Any]:
    return {"total": 14 * state["items"]}


@order.step(at_most_once=True)
def charge(state: dict[str, Any], context: Context) -> dict[str, Any]:
    charges[context.idempotency_key] = state["total"]
    raise ConnectionError("the provider took the money, and its answer was lost")


@order.step
def ship(state: dict[str, Any]) -> dict[str, Any]:
    return {"is_shipped": True}


with Client("127.0.0.1:7450") as client:
    runner = order.bind(client)
    workflow_id = f"paid-order-{time.time_ns()}"
    try:
        runner.run(workflow_id, {"items": 3})
    except StepFailedError as error:
        print("failed:", error.step)
    try:
        runner.resume(workflow_id)
    except StepOutcomeUnknownError as error:
        print("not repeated:", error.step)

    # Only the provider knows. A person or a program asks it, and tells what it said.
    taken = sum(charges.values())
    runner.resolve(workflow_id, "charge", "done", {"taken": taken})
    run = runner.resume(workflow_id)
    print(run.status, run.state["taken"], run.state["is_shipped"], "charges:", len(charges))
