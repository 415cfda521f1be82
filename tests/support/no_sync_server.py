"""The server with a seeded defect: it commits without flushing.

Run as `python -m tests.support.no_sync_server serve …`. The kernel keeps what a killed process wrote, so no SIGKILL
can show this defect; the order of system calls does, and this server proves that the check of that order would notice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lmdb

from milepost_server import cli
from milepost_server.storage import lmdb_env


def breach() -> None:
    """Open the environment with `sync=False`."""

    def open_without_sync(path: Path, map_size_bytes: int, lmdb_format: int) -> lmdb.Environment:
        return lmdb.open(str(path), map_size=map_size_bytes, sync=False, metasync=False, lib_version=lmdb_format)

    patched: Any = lmdb_env
    patched._open_lmdb = open_without_sync


if __name__ == "__main__":
    # The defect is seeded in this process, so the engine must be here too.
    os.environ["MILEPOST_SERVER__ENGINE_PROCESS"] = "false"
    breach()
    cli.main()
