"""The examples run as they are, but for the address of the server, and print what the README shows."""

from __future__ import annotations

import os
import re
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


def test_a_workflow_that_is_killed_says_the_second_time_what_is_done(server: LocalServer) -> None:
    """It is killed when it has told that the second step has begun; then the README has what the second run says."""
    source = (EXAMPLES / "first_workflow.py").read_text(encoding="utf-8").replace(DEFAULT_LISTEN, server.target)
    command = [sys.executable, "-c", source]
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stderr is not None
        told = [next(first.stderr) for _ in range(3)]
        first.kill()
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)

    shown = next(block for block in text_blocks() if block.startswith("$ ")).splitlines(keepends=True)
    lines = [normal(line) for line in shown if not line.startswith("$ ")]
    assert lines == [normal(line) for line in [*told, *second.stderr.splitlines(keepends=True), second.stdout]]


def normal(line: str) -> str:
    line = re.sub(r"held by \S+, \d+ s left", "held by HOST, N s left", line)
    return re.sub(r"after [\d.]+ s", "after N s", line)


@pytest.mark.parametrize(
    "name, shown",
    [
        (
            "parallel_branches.py",
            "['in stock', 'credit is good'] [15, 12] 27\n1 the input\n2 check_credit\n3 price\n4 add_up\n",
        ),
        (
            "human_approval.py",
            "please look at 120 for a chair\nwaiting for decision\ncompleted Ada 120\n",
        ),
        ("payment_once.py", "failed: charge\nnot repeated: charge\ncompleted 42 True charges: 1\n"),
    ],
)
def test_a_workflow_prints_what_it_did(name: str, shown: str, server: LocalServer) -> None:
    assert run_example(name, server) == shown


@pytest.mark.parametrize(
    "name, shown",
    [
        ("two_workers.py", "both have the result of one of them: True\n"),
        (
            "worker_fleet.py",
            "12 of 12 completed, though one of three workers was killed\nthe others ended with [0, 0]\n",
        ),
    ],
)
def test_workers_share_workflows(name: str, shown: str, server: LocalServer, tmp_path: Path) -> None:
    """These start themselves again as processes, so they run from a file."""
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert DEFAULT_LISTEN in source
    file = tmp_path / name
    file.write_text(source.replace(DEFAULT_LISTEN, server.target), encoding="utf-8")

    assert run(str(file)) == shown


def test_a_job_whose_worker_and_server_are_killed_is_finished_by_another_worker() -> None:
    lines = run(str(EXAMPLES / "crash_and_resume.py")).splitlines()

    assert [re.sub(r"\d+", "0", line.strip()) for line in lines if "kill -9" in line] == [
        "kill -0 0",
        "kill -0 the server; another one starts on its data",
    ]
    facts = [line for line in lines if re.match(r"yes  |NO   ", line)]
    assert len(facts) == 4
    assert all(line.startswith("yes  ") for line in facts)
    shapes = {re.sub(r"\d+", "0", line) for line in lines}
    shown = next(block for block in text_blocks() if "yes  " in block)
    for line in shown.splitlines():
        assert line.strip() == "..." or re.sub(r"\d+", "0", line) in shapes, line


def test_a_killed_agent_does_not_run_its_finished_tools_again() -> None:
    lines = run(str(EXAMPLES / "langgraph_agent.py")).splitlines()

    assert lines[-1] == "the tools did: weather Lima, weather Oslo, book Lima"
    assert lines[-2] == "  Done: booked Lima."


def text_blocks() -> list[str]:
    """Return what the README shows of output."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
