"""Names of any length in bytewise order, in a store whose keys end at 511 bytes.

A name is kept under its owner's number and a table: a letter, or a letter and one byte more. One longer than a segment
goes on under a branch: the row at its first segment, marked by one more byte, names the number that owns what follows,
in the same table. A plain name is never as long as a branch row's key, so the two cannot meet, and the order of the
rows is the order of the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from milepost_server.storage import keys, records
from milepost_server.storage.lmdb_rows import NameBranch

SEGMENT_BYTES = 480
BRANCH_MARK = b"\x01"


class Rows(Protocol):
    """What reading needs of a transaction."""

    def get(self, key: bytes) -> bytes | None:
        """Return a row."""

    def scan(self, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows from `start` on, in order, as long as their keys start with `prefix`."""


class WritableRows(Rows, Protocol):
    """What writing needs of a transaction."""

    def put(self, key: bytes, row: bytes) -> None:
        """Store a row."""

    def delete(self, key: bytes) -> bool:
        """Remove a row; tell whether there was one."""


def _start(owner: int, table: bytes) -> bytes:
    return owner.to_bytes(8, "big") + table


def find(rows: Rows, owner: int, name: bytes) -> bytes | None:
    """Return the key under which a name is kept, whether or not it is there; `None` if its branch is missing."""
    while len(name) > SEGMENT_BYTES:
        branch_key = _start(owner, keys.NAME) + name[:SEGMENT_BYTES] + BRANCH_MARK
        row = rows.get(branch_key)
        if row is None:
            return None
        owner = records.decode(branch_key, row, NameBranch).branch_id
        name = name[SEGMENT_BYTES:]
    return _start(owner, keys.NAME) + name


def make(rows: WritableRows, owner: int, name: bytes, new_id: Callable[[], int], table: bytes = keys.NAME) -> bytes:
    """Return the key under which a name is kept, making the branches that it needs."""
    while len(name) > SEGMENT_BYTES:
        branch_key = _start(owner, table) + name[:SEGMENT_BYTES] + BRANCH_MARK
        row = rows.get(branch_key)
        if row is None:
            owner = new_id()
            rows.put(branch_key, records.encode(branch_key, NameBranch(owner)))
        else:
            owner = records.decode(branch_key, row, NameBranch).branch_id
        name = name[SEGMENT_BYTES:]
    return _start(owner, table) + name


def remove(rows: WritableRows, owner: int, name: bytes, table: bytes = keys.NAME) -> None:
    """Remove a name, and the branches that nothing is under any more."""
    branch_keys: list[bytes] = []
    while len(name) > SEGMENT_BYTES:
        branch_key = _start(owner, table) + name[:SEGMENT_BYTES] + BRANCH_MARK
        row = rows.get(branch_key)
        if row is None:
            return
        branch_keys.append(branch_key)
        owner = records.decode(branch_key, row, NameBranch).branch_id
        name = name[SEGMENT_BYTES:]
    rows.delete(_start(owner, table) + name)
    for branch_key in reversed(branch_keys):
        start = _start(owner, table)
        if next(rows.scan(start, start), None) is not None:
            return
        rows.delete(branch_key)
        owner = keys.owner_of(branch_key)


def walk(
    rows: Rows, owner: int, wanted: bytes, after: bytes | None, *, table: bytes = keys.NAME, consumed: bytes = b""
) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (name, key, row) of the names that start with `wanted`, bytewise, from the first one after `after`."""
    start = _start(owner, table)
    bound = max(wanted, after) if after is not None else wanted
    rest = bound[len(consumed) :] if bound.startswith(consumed) else b""
    for key, row in rows.scan(start + rest[:SEGMENT_BYTES], start):
        segment = key[len(start) :]
        if len(segment) > SEGMENT_BYTES:
            name = consumed + segment[:SEGMENT_BYTES]
            if not (name.startswith(wanted) or wanted.startswith(name)):
                if name > wanted:
                    return
                continue
            if after is not None and name < after[: len(name)]:
                continue
            branch = records.decode(key, row, NameBranch)
            yield from walk(rows, branch.branch_id, wanted, after, table=table, consumed=name)
            continue
        name = consumed + segment
        if not name.startswith(wanted):
            if name > wanted:
                return
            continue
        if after is None or name > after:
            yield name, key, row
