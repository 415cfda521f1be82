"""What the storage process is made of."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import sys
import milepost_server.storage_process
print("\\n".join(sys.modules))
"""


@pytest.fixture(scope="module")
def loaded_modules() -> frozenset[str]:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=60)
    return frozenset(done.stdout.split())


@pytest.mark.parametrize("large", ["asyncio", "grpc", "ssl", "_hashlib", "multiprocessing", "opentelemetry"])
def test_the_storage_process_loads_nothing_large_that_it_does_not_use(
    loaded_modules: frozenset[str], large: str
) -> None:
    """A megabyte or more each, resident in every server that does nothing."""
    assert "milepost_server.storage.lmdb_engine" in loaded_modules
    assert large not in loaded_modules
