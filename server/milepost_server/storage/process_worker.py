"""The storage process: one LMDB engine, serving the server that started it over inherited sockets.

Run as `python -m milepost_server.storage.process_worker`, by `process_engine` only. The first socket carries batches of commands, answered
in order by the main thread, which owns every write; each other one carries queries, answered by a thread of its own. It ends when the
server has closed the first socket, and with the server if that dies: what it has not committed by then nobody was told of.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from milepost_server.errors import StorageFailedError, StoreError
from milepost_server.limits import Limits
from milepost_server.model import EntryHistoryQuery, ListQuery, ListWorkflowsQuery, LoadQuery
from milepost_server.storage import frames
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.lmdb_env import DataDirError
from milepost_server.storage.port import Engine

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2): have the kernel send this process a signal when its parent has died."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with, as one JSON argument."""

    data_dir: str
    limits: Limits
    map_size_bytes: int
    map_size_max_bytes: int
    low_disk_bytes: int
    log_level: int
    parent_pid: int
    command_fd: int
    query_fds: tuple[int, ...]


def main() -> None:
    """Serve until the server has gone."""
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    _die_with(settings.parent_pid)
    # A terminal's Ctrl-C reaches this process too; it is the server that decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s %(message)s")
    connection = socket.socket(fileno=settings.command_fd)
    try:
        engine = LmdbEngine.open(
            Path(settings.data_dir),
            limits=settings.limits,
            map_size_bytes=settings.map_size_bytes,
            map_size_max_bytes=settings.map_size_max_bytes,
            low_disk_bytes=settings.low_disk_bytes,
            server_pid=settings.parent_pid,
        )
    except DataDirError as error:
        frames.send(connection, [frames.StartFailed(str(error))])
        return
    for number in settings.query_fds:
        threading.Thread(
            target=_serve_queries, args=(engine, socket.socket(fileno=number)), daemon=True, name=f"queries-{number}"
        ).start()
    frames.send(connection, [frames.Ready()])
    _serve_commands(engine, connection)
    engine.close()


def _die_with(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        # It died before the kernel was asked.
        sys.exit(1)


def _serve_commands(engine: Engine, connection: socket.socket) -> None:
    while True:
        try:
            commands = frames.receive(connection)
            outcomes: Sequence[Any] = engine.execute(commands)
        except EOFError:
            return
        except StorageFailedError as error:
            outcomes = [frames.StorageFailed(str(error))]
        try:
            frames.send(connection, outcomes)
        except ConnectionError:
            return


def _serve_queries(engine: Engine, connection: socket.socket) -> None:
    while True:
        try:
            queries = frames.receive(connection)
            frames.send(connection, [_answer(engine, query) for query in queries])
        except (EOFError, ConnectionError):
            return


def _answer(engine: Engine, query: Any) -> Any:
    try:
        match query:
            case LoadQuery():
                return engine.load(query)
            case ListQuery():
                return engine.list_checkpoints(query)
            case frames.WorkflowQuery():
                return engine.get_workflow(query.namespace, query.workflow_id)
            case ListWorkflowsQuery():
                return engine.list_workflows(query)
            case EntryHistoryQuery():
                return engine.entry_history(query)
            case _:
                return frames.StatisticsAnswer(dict(engine.statistics()))
    except StoreError as error:
        return error
    except Exception:
        # The edge of the process: a defect must not leave the asker without an answer.
        logging.getLogger(__name__).exception("%s ended in an unexpected error", type(query).__name__)
        return StoreError("INTERNAL_ERROR", "the server failed at this call; its log has the traceback")


if __name__ == "__main__":
    main()
