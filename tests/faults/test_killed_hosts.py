"""A host that is killed in the middle of a workflow: another one goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from milepost import Client
from milepost.testing import local_server
from milepost.types import Status
from tests.support.workflow_host import WORKFLOW_ID

ROOT = Path(__file__).parents[2]


def host(target: str, folder: Path, mode: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.support.workflow_host", target, str(folder), mode], cwd=ROOT)


@pytest.mark.slow
def test_another_host_goes_on_where_a_killed_one_was(tmp_path: Path) -> None:
    """After one ttl, without repeating what was saved; the step in progress runs again under the same key."""
    with local_server() as server:
        first = host(server.target, tmp_path, "hang")
        try:
            give_up_at = time.monotonic() + 30
            while not (tmp_path / "charging").exists():
                assert first.poll() is None
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
        finally:
            first.kill()
            first.wait(10)
        with Client(server.target) as client:
            head = client.load(WORKFLOW_ID)
            assert (head.status, head.current_step) == (Status.RUNNING, "reserve")
            second = host(server.target, tmp_path, "finish")
            assert second.wait(60) == 0
            assert client.load(WORKFLOW_ID).status is Status.COMPLETED
    assert (tmp_path / "result").read_text(encoding="utf-8") == "completed True ['A', 'B']"
    effects = (tmp_path / "effects").read_text(encoding="utf-8").splitlines()
    assert sorted(effects[:3]) == ["price", "reserve a", "reserve b"]
    charges = effects[3:5]
    assert charges[0] == charges[1]
    assert charges[0].startswith("charge ")
    assert effects[5:] == ["ship"]
