"""A process that runs workflows with DBOS on SQLite, one for each line it reads, and answers how long each took.

Started by `benchmarks.runner` where the package `dbos` is installed.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any


def main() -> None:
    """Serve lines until there are no more."""
    file, steps, value_chars = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
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

    @dbos.step()  # type: ignore[untyped-decorator]  # see above
    def step(number: int) -> str:
        return f"{number:04d}" * (value_chars // 4)

    @dbos.workflow()  # type: ignore[untyped-decorator]  # see above
    def workflow(count: int) -> int:
        for number in range(count):
            step(number)
        return count

    dbos.launch()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        start = time.perf_counter()
        workflow(steps)
        sys.stdout.write(f"{time.perf_counter() - start}\n")
        sys.stdout.flush()
    dbos.destroy()


if __name__ == "__main__":
    main()
