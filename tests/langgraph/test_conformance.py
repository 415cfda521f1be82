"""LangGraph's official conformance suite, on a real server, for the async half and for the blocking one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.report import ProgressCallbacks

from milepost.adapters.langgraph import MilepostSaver
from milepost.testing import LocalServer
from tests.support.langgraph_shim import BlockingHalf

TESTS = {
    "put": 17,
    "put_writes": 10,
    "get_tuple": 10,
    "list": 16,
    "delete_thread": 5,
    "delete_for_runs": 7,
    "copy_thread": 8,
    "prune": 8,
}
"""How many tests the suite, in the version that is pinned, has for each capability: 81."""


@pytest.mark.parametrize("half", ["asyncio", "blocking"])
async def test_every_capability_is_detected_and_passes(half: str, server: LocalServer, namespace: str) -> None:
    # A saver that lacks a capability is called FULL by the suite: it looks at those alone that it detects.
    async def make() -> AsyncIterator[BaseCheckpointSaver[Any]]:
        async with MilepostSaver(server.target, namespace=namespace) as saver:
            yield saver if half == "asyncio" else BlockingHalf(saver)

    report = await validate(checkpointer_test(name=f"MilepostSaver ({half})")(make), progress=ProgressCallbacks.quiet())

    report.print_report()
    results = report.results
    failures = {name: found.failures for name, found in results.items() if found.failures}
    assert failures == {}
    assert {name: found.tests_passed for name, found in results.items() if found.detected} == TESTS
    assert report.passed_all()
    assert report.passed_all_base()
