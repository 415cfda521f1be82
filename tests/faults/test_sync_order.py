"""G1: a commit is flushed before its acknowledgement is sent. Killing a process cannot show this, the order of its
system calls can."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from milepost import Client
from tests.support.killable_server import EARLY_ACK_SERVER, NO_SYNC_SERVER, SERVER, KillableServer
from tests.support.sync_trace import why_not_durable, wrapper

MARKER = "marker-of-the-traced-save"

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to see system calls")
pytestmark = [pytest.mark.slow, needs_strace]


def trace_one_save(directory: Path, program: Sequence[str]) -> Path:
    """Save twice to a traced server and return the trace; the second Save has the marker."""
    log = directory / "trace"
    with KillableServer(directory, program=program, wrapper=wrapper(log)) as server:
        server.start()
        with Client(server.target) as client:
            first = client.save("w", state={"a": 1})
            client.save("w", state={"a": 2}, after=first, checkpoint_id=MARKER)
        server.stop()
    return log


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t")


def test_data_and_meta_page_are_flushed_before_the_answer_is_sent(directory: Path) -> None:
    assert why_not_durable(trace_one_save(directory, SERVER), MARKER) == ""


@pytest.mark.parametrize("program", [EARLY_ACK_SERVER, NO_SYNC_SERVER], ids=["acknowledges early", "does not flush"])
def test_the_check_catches_a_server_that_is_not_durable(program: Sequence[str], directory: Path) -> None:
    assert "flushed before the answer" in why_not_durable(trace_one_save(directory, program), MARKER)
