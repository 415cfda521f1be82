"""The LMDB engine in a process of its own, behind the same port.

Two things in one interpreter would wait for one another at every touch of the database: py-lmdb lets go of the
interpreter's lock for each row, and the event loop takes it. Apart, the server's process does the network and this
one's the storage, each on its own core; a batch crosses once. It also puts a wall between a client's connection and
whatever the storage may die of (a file cut under the map, a failing disk): the batch at hand is then of unknown
outcome, and `reopen` starts the process anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from milepost_server.errors import StorageFailedError, StoreError, UnavailableError
from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.model import (
    Answer,
    Command,
    DefinitionAnswer,
    EntryHistoryAnswer,
    EntryHistoryQuery,
    LeaseQueryAnswer,
    ListAnswer,
    ListQuery,
    ListSignalsAnswer,
    ListSignalsQuery,
    ListWorkflowsAnswer,
    ListWorkflowsQuery,
    LoadAnswer,
    LoadQuery,
    LongLoad,
    ProbeAnswer,
    ProbeCommand,
    ProbeQuery,
    WorkflowAnswer,
)
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage import frames
from milepost_server.storage.lmdb_engine import LOW_DISK_DEFAULT_BYTES
from milepost_server.storage.lmdb_env import MAP_SIZE_DEFAULT_BYTES, MAP_SIZE_MAX_BYTES, DataDirError
from milepost_server.storage.port import CommandLane, LoadLane
from milepost_server.storage.process_lanes import ProcessCommandLane, ProcessLoadLane
from milepost_server.storage.process_worker import GROUP_SIGNALS, Settings

WORKER_MODULE = "milepost_server.storage_process"
SCAN_CONNECTIONS = 2
"""As many as the server has threads that read by default; a third would wait for one of the two."""
FRAME_LOADS_MAX = 32
"""Loads that are asked for and answered together."""
QUERY_WAIT_S = 30.0
"""How long a scan may wait for a connection while others use them all."""
STOP_TIMEOUT_S = 30.0
"""How long the process may take to finish its last commit when it is told to end."""
ENDING_WAIT_S = 0.1
"""How long the event loop waits for the exit of a process that has closed its connection: the kernel does both."""
_SIGNAL_NAMES = {each.value: each.name for each in signal.Signals}

_logger = logging.getLogger(__name__)


class ProcessEngine:
    """A store in a data directory, kept by another process. Implements `Engine`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queries: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        """The connections that no scan uses just now."""
        self._on_failure: Callable[[], None] = lambda: None
        """Told when the process has ended while nothing was asked of it."""
        self._start()

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        limits: Limits = DEFAULT_LIMITS,
        map_size_bytes: int = MAP_SIZE_DEFAULT_BYTES,
        map_size_max_bytes: int = MAP_SIZE_MAX_BYTES,
        low_disk_bytes: int = LOW_DISK_DEFAULT_BYTES,
        log_format: str = "text",
    ) -> ProcessEngine:
        """Start the process and have it open a data directory's store.

        Arguments and errors are those of `LmdbEngine.open`, and the format of the process's log, which goes to stderr.
        """
        return cls(
            Settings(
                data_dir=str(data_dir),
                limits=limits,
                map_size_bytes=map_size_bytes,
                map_size_max_bytes=map_size_max_bytes,
                low_disk_bytes=low_disk_bytes,
                log_level=_logger.getEffectiveLevel(),
                log_format=log_format,
                server_pid=os.getpid(),
                command_fd=-1,
                query_fds=(),
            )
        )

    def _start(self) -> None:
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            pairs.extend(socket.socketpair() for _ in range(2 + SCAN_CONNECTIONS))
            self._process = self._spawn([theirs for _, theirs in pairs])
        except OSError as error:
            for mine, _ in pairs:
                mine.close()
            raise DataDirError(f"the storage process cannot be started: {error}") from error
        finally:
            for _, theirs in pairs:
                theirs.close()
        self._commands = pairs[0][0]
        self._loads = pairs[1][0]
        self._is_loads_given = False
        for mine, _ in pairs[2:]:
            self._queries.put(mine)
        try:
            first = frames.receive(self._commands)[0]
        except EOFError:
            self._stop()
            # A signal leaves no line of its own.
            where = "; the log above tells why" if self._process.returncode >= 0 else ""
            raise DataDirError(
                f"the storage process for {self._settings.data_dir} {self._ending()} before it was ready{where}"
            ) from None
        if isinstance(first, frames.StartFailed):
            self._stop()
            raise DataDirError(first.message)

    def _spawn(self, connections: Sequence[socket.socket]) -> subprocess.Popen[bytes]:
        numbers = [each.fileno() for each in connections]
        settings = msgspec.structs.replace(self._settings, command_fd=numbers[0], query_fds=tuple(numbers[1:]))
        # It starts with these signals blocked, until it has come so far as to ignore them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
        try:
            return subprocess.Popen(  # noqa: S603 - our own module, with settings of our own making
                [sys.executable, "-m", WORKER_MODULE, msgspec.json.encode(settings).decode()],
                pass_fds=numbers,
                # Held open, never written: it ends with this process, however that ends, and so tells the other one.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _stop(self) -> None:
        self._commands.close()
        if self._is_loads_given:
            # It is the event loop's, which learns in this way that it has ended.
            with contextlib.suppress(OSError):
                self._loads.shutdown(socket.SHUT_RDWR)
        else:
            self._is_loads_given = True
            self._loads.close()
        while not self._queries.empty():
            self._queries.get_nowait().close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _logger.error("the storage process did not end within %g s; it is killed", STOP_TIMEOUT_S)
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _ending(self) -> str:
        """Return how the process ended, whose connection has closed."""
        try:
            code = self._process.wait(ENDING_WAIT_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"ended with status {code}"
        killed = f"was killed by {_SIGNAL_NAMES.get(-code, f'signal {-code}')}"
        return f"{killed} (the kernel does so when memory runs out)" if code == -signal.SIGKILL else killed

    # Writing.

    def execute(self, commands: Sequence[Command]) -> Sequence[Answer | StoreError]:
        """See `Engine`."""
        if not commands:
            return []
        # No deadline here: a commit takes as long as its disk, and to give up waiting would not take it back.
        try:
            frames.send(self._commands, commands)
            outcomes = frames.receive(self._commands)
        except (EOFError, OSError) as error:
            raise frames.process_lost(self._ending()) from error
        return cast("list[Answer | StoreError]", frames.outcomes_of(outcomes))

    def reopen(self) -> None:
        """See `Engine`."""
        self._stop()
        try:
            self._start()
        except DataDirError as error:
            raise StorageFailedError(str(error)) from error
        for result in self.execute([ProbeCommand()]):
            if isinstance(result, StoreError):
                raise StorageFailedError(f"the store was reopened, but a commit fails: {result}") from result

    # Reading.

    def _ask(self, queries: Sequence[Any]) -> list[Any]:
        try:
            connection = self._queries.get(timeout=QUERY_WAIT_S)
        except queue.Empty:
            raise UnavailableError("NOT_SERVING", "too many long reads are at work; send the same call again") from None
        process = self._process
        try:
            frames.send(connection, queries)
            answers = frames.receive(connection)
        except (EOFError, OSError) as error:
            # Not put back: the successor of the process brings connections of its own.
            connection.close()
            raise StorageFailedError("the storage process ended") from error
        except BaseException:
            # Whatever it was, the connection is in an unknown state.
            connection.close()
            raise
        if process is self._process:
            self._queries.put(connection)
        else:
            connection.close()
        return answers

    def _ask_one(self, query: Any) -> Any:
        answer = self._ask([query])[0]
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def load(self, query: LoadQuery) -> LoadAnswer | LongLoad:
        """See `Engine`."""
        return cast("LoadAnswer | LongLoad", self._ask_one(query))

    def command_lane(self, loop: asyncio.AbstractEventLoop) -> CommandLane:
        """See `Engine`. From now on `execute` is not to be called, but in `reopen`."""
        return ProcessCommandLane(
            loop,
            lambda: self._commands,
            self.reopen,
            ending=self._ending,
            on_failure=lambda: self._on_failure(),
        )

    def load_lane(
        self, loop: asyncio.AbstractEventLoop, *, bound: SharedBound, on_failure: Callable[[], None]
    ) -> LoadLane:
        """See `Engine`."""
        self._on_failure = on_failure
        return ProcessLoadLane(
            loop,
            self._give_loads,
            bound=bound,
            frame_loads_max=FRAME_LOADS_MAX,
            on_failure=on_failure,
        )

    def _give_loads(self) -> socket.socket:
        if self._is_loads_given:
            raise ConnectionError("the storage process has not been started again yet")
        self._is_loads_given = True
        return self._loads

    def list_checkpoints(self, query: ListQuery) -> ListAnswer:
        """See `Engine`."""
        return cast("ListAnswer", self._ask_one(query))

    def get_workflow(self, namespace: str, workflow_id: str) -> WorkflowAnswer:
        """See `Engine`."""
        return cast("WorkflowAnswer", self._ask_one(frames.WorkflowQuery(namespace, workflow_id)))

    def list_signals(self, query: ListSignalsQuery) -> ListSignalsAnswer:
        """See `Engine`."""
        return cast("ListSignalsAnswer", self._ask_one(query))

    def get_definition(self, namespace: str, fingerprint: str) -> DefinitionAnswer:
        """See `Engine`."""
        return cast("DefinitionAnswer", self._ask_one(frames.DefinitionQuery(namespace, fingerprint)))

    def get_lease(self, namespace: str, workflow_id: str) -> LeaseQueryAnswer:
        """See `Engine`."""
        return cast("LeaseQueryAnswer", self._ask_one(frames.LeaseQuery(namespace, workflow_id)))

    def list_workflows(self, query: ListWorkflowsQuery) -> ListWorkflowsAnswer:
        """See `Engine`."""
        return cast("ListWorkflowsAnswer", self._ask_one(query))

    def entry_history(self, query: EntryHistoryQuery) -> EntryHistoryAnswer:
        """See `Engine`."""
        return cast("EntryHistoryAnswer", self._ask_one(query))

    def probe(self) -> ProbeAnswer:
        """See `Engine`."""
        return cast("ProbeAnswer", self._ask_one(ProbeQuery()))

    def statistics(self) -> Mapping[str, int]:
        """See `Engine`."""
        return cast("frames.StatisticsAnswer", self._ask_one(frames.StatisticsQuery())).counts

    def close(self) -> None:
        """See `Engine`."""
        self._stop()
