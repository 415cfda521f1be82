"""An LMDB environment as the server opens it, without anything around it: what a durable commit costs by itself."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import lmdb

from benchmarks import payloads

_MAP_BYTES = payloads.MIB * 4096


class BareStore(contextlib.AbstractContextManager["BareStore"]):
    """A database of numbered rows.

    Args:
        directory: Where; made by this.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._env = lmdb.open(
            str(directory), map_size=_MAP_BYTES, readahead=False, meminit=False, sync=True, metasync=True
        )
        self._number = 0

    def put(self, value: bytes) -> None:
        """Put a row, in a durable transaction of its own."""
        self._number += 1
        with self._env.begin(write=True) as txn:
            txn.put(self._number.to_bytes(8, "big"), value)

    def put_times(self, count: int) -> list[float]:
        """Put rows of 2 KB, one by one; return how long each took, in seconds."""
        times: list[float] = []
        value = payloads.incompressible(payloads.VALUE_BYTES, seed=self._number)
        for _ in range(count):
            start = time.perf_counter()
            self.put(value)
            times.append(time.perf_counter() - start)
        return times

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._env.close()
