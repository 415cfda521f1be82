"""Workers that take up whatever nobody runs, and the program that hands them work. Needs a server: `make run`.

python worker_fleet.py serve      on each host, as many as you like
python worker_fleet.py submit     hands over twelve workflows
python worker_fleet.py            both: three workers, one of which is killed at work
"""

import subprocess
import sys
import time
from typing import Any

from milepost import Client, Context, Status, Workflow

TARGET = "127.0.0.1:7450"
THUMBNAILS = 12

thumbnail = Workflow("thumbnail", dict[str, Any])


def work(state: dict[str, Any], context: Context) -> dict[str, Any]:
    time.sleep(0.2)
    return {context.step: True}


for name in ("fetch", "scale", "store"):
    thumbnail.step(work, id=name)


def serve() -> None:
    """Run what nobody runs until SIGTERM or Ctrl-C; steps that run then are finished and saved."""
    with Client(TARGET) as client:
        thumbnail.bind(client, lease_ttl_s=1.0).serve(max_concurrency=2, poll_s=0.5, handle_signals=True)


def submit(batch: str) -> None:
    """Store the input of each workflow. That is all it takes: workers of the definition hear of it."""
    with Client(TARGET) as client:
        runner = thumbnail.bind(client)
        for number in range(THUMBNAILS):
            runner.submit(f"{batch}-{number}", {"number": number})


def wait_until_completed(batch: str) -> int:
    """Wait until all of a batch are completed, and return how many are."""
    deadline = time.monotonic() + 60
    with Client(TARGET) as client:
        while True:
            completed = list(client.workflows(prefix=batch, status=Status.COMPLETED))
            if len(completed) == THUMBNAILS or time.monotonic() > deadline:
                return len(completed)
            time.sleep(0.1)


def run_fleet() -> None:
    """Three workers, twelve workflows, one `kill -9`."""
    batch = f"thumbnail-{time.time_ns()}"
    workers = [subprocess.Popen([sys.executable, __file__, "serve"]) for _ in range(3)]
    try:
        submit(batch)
        time.sleep(1.0)
        workers[0].kill()
        print(f"{wait_until_completed(batch)} of {THUMBNAILS} completed, though one of three workers was killed")
    finally:
        for worker in workers:
            worker.terminate()
        statuses = [worker.wait() for worker in workers]
    print("the others ended with", statuses[1:])


match sys.argv[1:]:
    case ["serve"]:
        serve()
    case ["submit"]:
        submit(f"thumbnail-{time.time_ns()}")
    case _:
        run_fleet()
