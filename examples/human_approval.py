"""A workflow that waits for a person, without a process that waits. Needs a server: `make run`."""

import time
from typing import Any

from milepost import Client, Context, Workflow

expense = Workflow("expense", dict[str, Any])


@expense.step
def ask(state: dict[str, Any]) -> None:
    print(f"please look at {state['amount']} for {state['what']}")


@expense.step(waits_for="decision")
def decide(state: dict[str, Any], context: Context) -> dict[str, Any]:
    return {"is_approved": context.signal["is_approved"], "decided_by": context.signal["by"]}


@expense.step
def pay(state: dict[str, Any]) -> dict[str, Any]:
    return {"paid": state["amount"] if state["is_approved"] else 0}


with Client("127.0.0.1:7450") as client:
    runner = expense.bind(client)
    workflow_id = f"expense-{time.time_ns()}"
    run = runner.run(workflow_id, {"what": "a chair", "amount": 120})
    print(run.status, "for", run.waiting_for or "nothing")

    # A week later, in another process, on another machine:
    runner.signal(workflow_id, "decision", {"is_approved": True, "by": "Ada"}, signal_id="the-decision")
    run = runner.resume(workflow_id)
    print(run.status, run.state["decided_by"], run.state["paid"])
