"""Two processes run the same workflow at the same time; each step runs once. Needs a server: `make run`."""

import os
import subprocess
import sys
import time
from typing import Any

from milepost import Client, Context, Workflow

report = Workflow("report", dict[str, Any])


def work(state: dict[str, Any], context: Context) -> dict[str, Any]:
    time.sleep(0.1)
    return {context.step: os.getpid()}


for name in ("collect", "compute", "publish"):
    report.step(work, id=name)


def run_it(workflow_id: str) -> None:
    """Run the workflow, or wait for whoever does, and print who did what."""
    with Client("127.0.0.1:7450") as client:
        print(report.bind(client, lease_ttl_s=5.0).run(workflow_id, {}).state)


if len(sys.argv) == 2:
    run_it(sys.argv[1])
else:
    new_id = f"report-{time.time_ns()}"
    command = [sys.executable, __file__, new_id]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0] for process in workers}
    pids = {process.pid for process in workers}
    (result,) = said
    print("both have the result of one of them:", sum(str(pid) in result for pid in pids) == 1)
