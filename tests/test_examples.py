"""The examples run as they are, but for the address of the server, and print what the README shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.testing import LocalServer, local_server
from milepost_server.config import DEFAULT_LISTEN

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with local_server() as running:
        yield running


def run(*arguments: str) -> str:
    """Run Python and return what it printed; it must succeed without a word on stderr but gRPC's own."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_example(name: str, server: LocalServer) -> str:
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert DEFAULT_LISTEN in source
    return run("-c", source.replace(DEFAULT_LISTEN, server.target))


def test_the_quickstart_can_be_run_again_and_again(server: LocalServer) -> None:
    first = run_example("quickstart.py", server)

    assert first == "2 charge {'items': 3, 'paid': True}\n['charge', 'reserve']\n"
    assert run_example("quickstart.py", server) == first
    with server.client() as client:
        assert client.workflow("order-7").last_sequence == 2


def test_the_async_quickstart_runs_many_workflows(server: LocalServer) -> None:
    for _ in range(2):
        assert run_example("async_quickstart.py", server) == "20 workflows completed, 80 checkpoints\n"


def test_a_killed_job_goes_on_behind_its_last_finished_step() -> None:
    lines = run(str(EXAMPLES / "crash_and_resume.py")).splitlines()

    facts = [line for line in lines if re.match(r"yes  |NO   ", line)]
    assert len(facts) == 5
    assert all(line.startswith("yes  ") for line in facts)
    shapes = {re.sub(r"\d+", "0", line) for line in lines}
    for line in shown_in_the_readme():
        assert re.sub(r"\d+", "0", line) in shapes, line


def shown_in_the_readme() -> list[str]:
    """Return the lines of the demonstration that the README shows."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(
        block for block in re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "yes  " in block
    )
    return [line for line in block.splitlines() if line.strip() != "..."]


def test_a_workflow_that_was_killed_goes_on(server: LocalServer) -> None:
    """What was finished before the kill is not run again, and after the end nothing is."""
    source = (EXAMPLES / "workflow.py").read_text(encoding="utf-8").replace(DEFAULT_LISTEN, server.target)
    killed = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "DIE_IN": "ship"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "price\ncharge\nship\n")
    assert run_example("workflow.py", server) == "ship\ncompleted (resumed) 19.0 paid\n"
    assert run_example("workflow.py", server) == "completed (resumed) 19.0 paid\n"
