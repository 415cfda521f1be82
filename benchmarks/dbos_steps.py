"""A process that runs workflows with DBOS on SQLite as the lines it reads say, and answers how long each line took.

A line is `<way> <many> <steps>`: `one` workflow, called; many at once, started by `DBOS.start_workflow`, which runs
them in `threads`; or many async ones, started by its twin for `asyncio`. Everything else is as DBOS has it by default.
Started by `benchmarks.runner` where the package `dbos` is installed.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Serve lines until there are no more."""
    file, value_chars = sys.argv[1], int(sys.argv[2])
    # Imported by name: it is an optional package, and its types are of no use here.
    dbos: Any = importlib.import_module("dbos").DBOS
    dbos(
        config={
            "name": "steps",
            "system_database_url": f"sqlite:///{file}",
            "log_level": "ERROR",
            "run_admin_server": False,
        }
    )

    def value_of(number: int) -> str:
        return f"{number:04d}" * (value_chars // 4)

    @dbos.step()  # type: ignore[untyped-decorator]  # see above
    def step(number: int) -> str:
        return value_of(number)

    @dbos.step()  # type: ignore[untyped-decorator]  # see above
    async def async_step(number: int) -> str:
        return value_of(number)

    @dbos.workflow()  # type: ignore[untyped-decorator]  # see above
    def workflow(count: int) -> int:
        for number in range(count):
            step(number)
        return count

    @dbos.workflow()  # type: ignore[untyped-decorator]  # see above
    async def async_workflow(count: int) -> int:
        for number in range(count):
            await async_step(number)
        return count

    def one(_: int, steps: int) -> None:
        workflow(steps)

    def threads(many: int, steps: int) -> None:
        for handle in [dbos.start_workflow(workflow, steps) for _ in range(many)]:
            handle.get_result()

    async def on_loop(many: int, steps: int) -> None:
        handles = [await dbos.start_workflow_async(async_workflow, steps) for _ in range(many)]
        await asyncio.gather(*(handle.get_result() for handle in handles))

    ways: dict[str, Callable[[int, int], None]] = {
        "one": one,
        "threads": threads,
        "asyncio": lambda many, steps: asyncio.run(on_loop(many, steps)),
    }
    dbos.launch()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        way, many, steps = line.split()
        start = time.perf_counter()
        ways[way](int(many), int(steps))
        sys.stdout.write(f"{time.perf_counter() - start}\n")
        sys.stdout.flush()
    dbos.destroy()


if __name__ == "__main__":
    main()
