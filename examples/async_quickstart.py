"""Save a checkpoint after each step of many workflows at once, on one event loop. Needs a server: `make run`."""

import asyncio

from milepost import AsyncClient, Status

STEPS = ("reserve", "charge", "ship")


async def run_order(client: AsyncClient, workflow_id: str) -> None:
    """Go through the steps; each checkpoint is on disk before the next step begins."""
    done: list[str] = []
    saved = await client.save(workflow_id, state={"done": done}, after="start")
    for step in STEPS:
        done.append(step)
        status = Status.COMPLETED if step == STEPS[-1] else Status.RUNNING
        saved = await client.save(workflow_id, state={"done": done}, current_step=step, after=saved, status=status)


async def main() -> None:
    """Run twenty workflows side by side, list them, and delete them."""
    async with AsyncClient("127.0.0.1:7450") as client:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(run_order(client, f"async-order-{number}"))
        completed = [each async for each in client.workflows(prefix="async-order-", status=Status.COMPLETED)]
        print(f"{len(completed)} workflows completed, {sum(each.checkpoint_count for each in completed)} checkpoints")
        for each in completed:
            await client.delete(each.workflow_id)


asyncio.run(main())
