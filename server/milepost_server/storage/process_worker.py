"""The storage process: one LMDB engine, serving the server that started it over inherited sockets.

Run by `milepost_server.storage_process`. The first socket carries batches of commands, answered in order by the main
thread, which owns every write: it takes all that have come, runs them as one commit and answers them together, while
the next ones come. How much that can be is bounded by the server, which has no more under way than one commit may take.
Each other socket carries queries, answered by a thread of its own.

It ends when the server has closed the first socket, and at once when its stdin ends, whose other end the server holds
as long as it lives: what it has not committed by then nobody was told of.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from milepost_server import log_setup, malloc
from milepost_server.errors import StorageFailedError, StoreError, internal_error
from milepost_server.limits import MIB, Limits
from milepost_server.model import (
    EncodedLoadAnswer,
    EncodedLoadQuery,
    EntryHistoryQuery,
    ListQuery,
    ListSignalsQuery,
    ListWorkflowsQuery,
    LoadQuery,
    ProbeQuery,
)
from milepost_server.storage import encoded, frames
from milepost_server.storage.encoded import CallCodec
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.lmdb_env import DataDirError
from milepost_server.storage.port import Engine

EXIT_ORPHANED = 3
"""The server has gone without a word. Nobody sees the number but a tracer."""


GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that are meant for the server, which ends this process when it has drained."""


ANSWER_BYTES_MAX = 8 * MIB
"""Size of the loads that one frame answers, about: the server holds a frame twice while it reads it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with, as one JSON argument."""

    data_dir: str
    limits: Limits
    map_size_bytes: int
    map_size_max_bytes: int
    low_disk_bytes: int
    log_level: int
    log_format: str
    server_pid: int
    command_fd: int
    query_fds: tuple[int, ...]


def main(make_codec: Callable[[Limits], CallCodec]) -> None:
    """Serve until the server has gone.

    Args:
        make_codec: Makes the codec of the calls that come as bytes, once the settings are known.
    """
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    # What is sent to the whole group of processes (a terminal's Ctrl-C) reaches this one too. It is the server that
    # decides when to end; until here `ProcessEngine` has had these signals blocked.
    for each in GROUP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True, name="orphan-watch").start()
    log_setup.set_up_logging(settings.log_level, settings.log_format)
    connection = socket.socket(fileno=settings.command_fd)
    try:
        engine = LmdbEngine.open(
            Path(settings.data_dir),
            limits=settings.limits,
            map_size_bytes=settings.map_size_bytes,
            map_size_max_bytes=settings.map_size_max_bytes,
            low_disk_bytes=settings.low_disk_bytes,
            server_pid=settings.server_pid,
        )
    except DataDirError as error:
        frames.send(connection, [frames.StartFailed(str(error))])
        return
    queries = [socket.socket(fileno=number) for number in settings.query_fds]
    codec = make_codec(settings.limits)
    malloc.give_back()
    serve(engine, connection, queries, codec)


def serve(engine: Engine, commands: socket.socket, queries: Sequence[socket.socket], codec: CallCodec) -> None:
    """Serve an open engine until the other end of the commands is closed, then close it."""
    for connection in queries:
        threading.Thread(target=_serve_queries, args=(engine, codec, connection), daemon=True, name="queries").start()
    frames.send(commands, [frames.Ready()])
    _serve_commands(engine, codec, commands)
    engine.close()


def _end_with_the_server() -> None:
    # Nothing is ever sent: the end comes when the kernel has closed the server's end. `prctl(PR_SET_PDEATHSIG)` would
    # not do: it means the thread that started this process, and is known to Linux only.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(EXIT_ORPHANED)


def _serve_commands(engine: Engine, codec: CallCodec, connection: socket.socket) -> None:
    reader = frames.FrameReader(connection)
    failure: StorageFailedError | None = None
    while True:
        try:
            commands = reader.take()
            if failure is not None:
                # Nothing is begun on storage that has failed, also what was on its way when it did.
                raise failure
            outcomes: Sequence[Any] = encoded.execute(engine, codec, commands)
        except EOFError:
            return
        except StorageFailedError as error:
            failure = error.with_traceback(None)
            outcomes = [frames.StorageFailed(str(error))]
        try:
            frames.send(connection, outcomes)
        except ConnectionError:
            return


def _serve_queries(engine: Engine, codec: CallCodec, connection: socket.socket) -> None:
    reader = frames.FrameReader(connection)
    with connection:
        while True:
            try:
                frames.send(connection, _answers(engine, codec, reader.take()))
            except (EOFError, ConnectionError):
                return


def _answers(engine: Engine, codec: CallCodec, queries: Sequence[Any]) -> list[Any]:
    """Answer what was asked in one frame, up to a size: the rest is postponed, but never the first."""
    answers: list[Any] = []
    size_bytes = 0
    for query in queries:
        if size_bytes > ANSWER_BYTES_MAX:
            answers.append(frames.Postponed())
            continue
        answer = _answer(engine, codec, query)
        if isinstance(answer, EncodedLoadAnswer):
            size_bytes += len(answer.body)
        answers.append(answer)
    return answers


def _answer(engine: Engine, codec: CallCodec, query: Any) -> Any:
    try:
        match query:
            case EncodedLoadQuery():
                return encoded.load(engine, codec, query, is_long=False)
            case ProbeQuery():
                return engine.probe()
            case LoadQuery():
                return engine.load(query)
            case ListQuery():
                return engine.list_checkpoints(query)
            case frames.WorkflowQuery():
                return engine.get_workflow(query.namespace, query.workflow_id)
            case frames.LeaseQuery():
                return engine.get_lease(query.namespace, query.workflow_id)
            case ListSignalsQuery():
                return engine.list_signals(query)
            case frames.DefinitionQuery():
                return engine.get_definition(query.namespace, query.fingerprint)
            case ListWorkflowsQuery():
                return engine.list_workflows(query)
            case EntryHistoryQuery():
                return engine.entry_history(query)
            case _:
                return frames.StatisticsAnswer(dict(engine.statistics()))
    except StoreError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a defect must not leave the asker without an answer
        return internal_error(
            logging.getLogger(__name__), f"{type(query).__name__} ended in an unexpected error", error
        )
