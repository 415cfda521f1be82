"""A host of a workflow, as a process of its own: `python -m tests.support.workflow_host TARGET FOLDER MODE`.

Each step writes a line to FOLDER/effects; the step `charge` waits in the mode "hang", until the process is killed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from milepost import Client
from milepost.runner import Workflow

WORKFLOW_ID = "order-7"


def main(target: str, folder: Path, mode: str) -> None:
    """Run the workflow once, and write its result."""
    workflow = Workflow("order", dict[str, Any])

    def effect(text: str) -> None:
        with (folder / "effects").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    @workflow.step
    def price(state: dict[str, Any]) -> dict[str, Any]:
        effect("price")
        return {"total": 42}

    @workflow.step(for_each="items", into="reserved")
    def reserve(state: dict[str, Any], item: str) -> str:
        effect(f"reserve {item}")
        return item.upper()

    @workflow.step
    def charge(state: dict[str, Any], ctx: Any) -> dict[str, Any]:
        effect(f"charge {ctx.idempotency_key}")
        (folder / "charging").touch()
        if mode == "hang":
            time.sleep(600)
        return {"charged": True}

    @workflow.step
    def ship(state: dict[str, Any]) -> dict[str, Any]:
        effect("ship")
        return {"shipped": True}

    with Client(target) as client:
        run = workflow.bind(client, lease_ttl_s=1.0).run(WORKFLOW_ID, {"items": ["a", "b"]})
    (folder / "result").write_text(f"{run.status} {run.resumed} {run.state['reserved']}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
