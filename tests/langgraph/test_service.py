"""The service of the documentation, with four workers."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from milepost.testing import LocalServer

ROOT = Path(__file__).parents[2]
START_S = 60.0


@pytest.fixture
def url(server: LocalServer, namespace: str) -> Iterator[str]:
    environment = {
        **os.environ,
        "MILEPOST_TARGET": server.target,
        "MILEPOST_NAMESPACE": namespace,
        "ANSWER_S": "0.5",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "uvicorn", "--port", "0", "--workers", "4", "examples.langgraph_service:app"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as service:
        watchdog = threading.Timer(START_S, service.kill)
        watchdog.start()
        assert service.stderr is not None
        address, ready = "", 0
        for line in service.stderr:
            if (found := re.search(r"running on (http://\S+)", line)) is not None:
                address = found[1]
            ready += "startup complete" in line
            if ready == 4:
                break
        watchdog.cancel()
        drain = threading.Thread(target=service.stderr.read, daemon=True)
        drain.start()
        try:
            assert ready == 4
            yield address
        finally:
            service.terminate()
            service.wait(30)
            drain.join(30)


@pytest.mark.slow
async def test_of_two_requests_for_a_conversation_one_is_answered_and_one_refused(url: str) -> None:
    # A connection for each request, so that they reach whichever worker is free.
    async def say(thread: str, text: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as client:
            return await client.post(f"{url}/conversations/{thread}", params={"text": text})

    answers: list[httpx.Response] = []
    for turn in range(3):
        answers = await asyncio.gather(*(say("c1", f"question {turn}") for _ in range(6)), say("c2", "other"))
        assert sorted(each.status_code for each in answers[:6]) == [200, 409, 409, 409, 409, 409]
        assert answers[6].status_code == 200
        said = next(each.json()["said"] for each in answers if each.status_code == 200)
        # Not one word of those that were refused.
        assert [word.split(" from")[0] for word in said] == [
            word for n in range(turn + 1) for word in (f"question {n}", f"answer {2 * n + 1}")
        ]
    assert "is being answered by" in next(each.json()["detail"] for each in answers if each.status_code == 409)
