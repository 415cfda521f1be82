"""Decoded rows that the writer keeps from command to command.

There is one writer, so what it has read or written is what is stored, as long as it forgets all when something that it
wrote is undone. Only rows that the next command of the same workflow asks for again are worth it; readers have their
own snapshots and none of this.
"""

from __future__ import annotations

from itertools import islice

from milepost_server.model import CheckpointRow, ScopeRow, WorkflowRow
from milepost_server.storage.lmdb_rows import NamespaceRow, NodeHead
from milepost_server.storage.port import NameRow

KINDS = frozenset((NamespaceRow, NameRow, WorkflowRow, ScopeRow, CheckpointRow, NodeHead, int))
"""What is kept; the integer leads from a sequence to its checkpoint."""
ROWS_MAX = 4096
ROW_BYTES_MAX = 1024
"""A larger row is read again every time. Both bound the memory to a few MiB."""


class RowCache:
    """Rows by key, the oldest of which go first."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._rows: dict[bytes, object] = {}
        self.get = self._rows.get
        """Return the value of a row that is kept, or `None`."""

    def keep(self, key: bytes, value: object, size_bytes: int) -> None:
        """Keep what is stored under a key, if it is worth it."""
        rows = self._rows
        # Out of its place, so that what is written often stays.
        rows.pop(key, None)
        if type(value) not in KINDS or size_bytes > ROW_BYTES_MAX:
            return
        if len(rows) >= self._rows_max:
            # The oldest quarter at once, which costs less than one at a time; a dict is in the order of insertion.
            for each in list(islice(rows, self._rows_max // 4)):
                del rows[each]
        rows[key] = value

    def forget(self, key: bytes) -> None:
        """Forget one row: it is about to be something else."""
        self._rows.pop(key, None)

    def clear(self) -> None:
        """Forget all: something was undone."""
        self._rows.clear()
