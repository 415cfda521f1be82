"""Fixtures of the fault tests: a data directory that is proved sound after the test, and engines on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.verify import verify_store
from tests.support.fault_engines import OpenEngine, opener


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """Return a place for a data directory; whatever store is there after the test must be sound."""
    path = tmp_path / "data"
    yield path
    if (path / "store").exists():
        assert verify_store(path).problems == []


@pytest.fixture
def open_engine(data_dir: Path) -> Iterator[OpenEngine]:
    """Return a function that opens an engine on `data_dir`; what the test leaves open is closed."""
    engines: list[LmdbEngine] = []
    yield opener(data_dir, engines)
    for engine in engines:
        engine.close()
