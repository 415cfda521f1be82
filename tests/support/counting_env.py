"""Counts the rows that an LMDB engine's queries and commands read, where they come out of LMDB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from milepost_server.storage.lmdb_env import Cursor, LmdbEnv, Transaction


class RowCount:
    """How many rows were read."""

    def __init__(self) -> None:
        self.rows_of_transactions: list[int] = []

    @property
    def rows(self) -> int:
        """In all transactions together."""
        return sum(self.rows_of_transactions)

    def begin(self) -> None:
        """Count another transaction."""
        self.rows_of_transactions.append(0)

    def add(self) -> None:
        """Count a row of the newest transaction."""
        self.rows_of_transactions[-1] += 1


class _CountingCursor:
    def __init__(self, cursor: Cursor, count: RowCount) -> None:
        self._cursor = cursor
        self._count = count

    def __enter__(self) -> _CountingCursor:
        self._cursor.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._cursor.__exit__(*details)

    def set_range(self, key: bytes) -> bool:
        return self._cursor.set_range(key)

    def last(self) -> bool:
        return self._cursor.last()

    def prev(self) -> bool:
        self._count.add()
        return self._cursor.prev()

    def key(self) -> bytes:
        return self._cursor.key()

    def iternext(self, *, keys: bool, values: bool) -> Iterator[tuple[bytes, bytes]]:
        for item in self._cursor.iternext(keys=keys, values=values):
            self._count.add()
            yield item


class _CountingTransaction:
    def __init__(self, txn: Transaction, count: RowCount) -> None:
        self._txn = txn
        self._count = count
        count.begin()

    def get(self, key: bytes) -> bytes | None:
        self._count.add()
        return self._txn.get(key)

    def cursor(self) -> _CountingCursor:
        return _CountingCursor(self._txn.cursor(), self._count)

    def put(self, key: bytes, value: bytes, *, append: bool = False) -> bool:
        return self._txn.put(key, value, append=append)

    def delete(self, key: bytes) -> bool:
        return self._txn.delete(key)

    def commit(self) -> None:
        self._txn.commit()

    def abort(self) -> None:
        self._txn.abort()


@contextmanager
def counting_rows() -> Iterator[RowCount]:
    """Count what is read by queries and commands that begin within the block, each in a transaction of its own."""
    count = RowCount()
    begin_read = LmdbEnv.begin_read
    begin_write = LmdbEnv.begin_write

    def begin_command(env: LmdbEnv, parent: Transaction | None = None) -> Transaction:
        txn = begin_write(env, parent)
        return txn if parent is None else cast("Transaction", _CountingTransaction(txn, count))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LmdbEnv, "begin_read", lambda env: _CountingTransaction(begin_read(env), count))
        patch.setattr(LmdbEnv, "begin_write", begin_command)
        yield count
