"""A workflow of ten steps: a sequence, two groups side by side, a step for each of three items, one without checkpoint.

Each step writes its effect to a journal. The result tells by `trail` which steps ran in the life of the workflow and in
what order, so that one left out, or one whose effect on the state was taken twice, shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from milepost import Workflow, append
from tests.support.boundaries import Boundaries
from tests.support.effects_journal import EffectsJournal

ITEMS = ["apple", "pear", "plum"]
SEQUENCE = (
    ("receive",),
    ("stock", "credit", "address"),
    ("price",),
    ("reserve", "hold"),
    ("pack[0]", "pack[1]", "pack[2]"),
    ("label",),
    ("ship",),
)
"""The effects, in the stages they have."""
EFFECTS = tuple(effect for stage in SEQUENCE for effect in stage)


class Order(TypedDict):
    """The state."""

    items: list[str]
    trail: Annotated[list[str], append]
    packed: list[str]
    total: int


INPUT: Order = {"items": ITEMS, "trail": [], "packed": [], "total": 0}
RESULT: Order = {
    "items": ITEMS,
    "trail": ["receive", "stock", "credit", "address", "price", "reserve", "hold", "label", "ship"],
    "packed": ["apple in a box", "pear in a box", "plum in a box"],
    "total": 42,
}


def ten_steps(journal: EffectsJournal, boundaries: Boundaries, *, is_async: bool) -> Workflow[Order]:
    """Return the definition; half of its steps are async where it is to be so."""
    workflow = Workflow("ten-steps", Order)

    def effect(context: Any) -> None:
        name = context.step if context.item_key is None else f"{context.step}[{context.item_key}]"
        boundaries.reach(f"before {name}")
        journal.write(
            "effect", name, workflow_id=context.workflow_id, key=context.idempotency_key, attempt=context.attempt
        )
        boundaries.reach(f"after {name}")

    def plain(step: str, **changes: Any) -> Callable[[Order, Any], dict[str, object]]:
        def execute(state: Order, context: Any) -> dict[str, object]:
            effect(context)
            return {"trail": [*state["trail"], step], **changes}

        async def execute_async(state: Order, context: Any) -> dict[str, object]:
            await asyncio.sleep(0)
            return execute(state, context)

        # Every second one, so that groups have both kinds side by side.
        return execute_async if is_async and len(workflow.steps) % 2 else execute  # type: ignore[return-value]  # either

    def pack(state: Order, item: str, context: Any) -> str:
        effect(context)
        return f"{item} in a box"

    def add(step: str, depends_on: list[str] | None = None, *, checkpoint: bool = True, **changes: Any) -> None:
        workflow.step(plain(step, **changes), id=step, depends_on=depends_on, checkpoint=checkpoint)

    add("receive")
    for check in ("stock", "credit", "address"):
        add(check, ["receive"])
    add("price", ["stock", "credit", "address"], total=42)
    add("reserve", ["price"])
    add("hold", ["price"])
    workflow.step(pack, depends_on=["reserve", "hold"], for_each="items", into="packed")
    add("label", checkpoint=False)
    add("ship")
    return workflow
