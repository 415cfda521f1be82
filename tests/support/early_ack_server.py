"""The server with a seeded defect: it answers a batch at once and commits only every few batches.

Run as `python -m tests.support.early_ack_server serve …`. It exists to prove that the kill test would notice.
"""

from __future__ import annotations

import os
from typing import Any

from milepost_server import cli
from milepost_server.storage import lmdb_env
from milepost_server.storage.lmdb_engine import LmdbEngine

BATCHES_PER_COMMIT = 10


def breach() -> None:
    """Let what a batch wrote stay in an open transaction, which every tenth batch commits."""
    begin, commit = LmdbEngine._begin, LmdbEngine._commit
    open_txn: list[lmdb_env.Transaction] = []
    batch_count = 0

    def begin_late(engine: LmdbEngine) -> lmdb_env.Transaction:
        return open_txn.pop() if open_txn else begin(engine)

    def commit_late(engine: LmdbEngine, parent: lmdb_env.Transaction) -> None:
        nonlocal batch_count
        batch_count += 1
        if batch_count % BATCHES_PER_COMMIT:
            open_txn.append(parent)
        else:
            commit(engine, parent)

    patched: Any = LmdbEngine
    patched._begin = begin_late
    patched._commit = commit_late
    # What is open stays uncommitted, and LMDB would wait for it for ever.
    patched.close = lambda engine: os._exit(0)


if __name__ == "__main__":
    # The defect is seeded in this process, so the engine must be here too.
    os.environ["MILEPOST_SERVER__ENGINE_PROCESS"] = "false"
    breach()
    cli.main()
