"""A real `milepost-server` process for the time of a test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from typing_extensions import override

from milepost import AsyncClient, Client
from milepost.codecs import JSON, Codec

READY_PREFIX: Final = "milepost-server listening on "
LOG_LINES_MAX: Final = 10_000
"""Lines of the server's log that are kept, the newest."""
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 30.0


class LocalServerError(RuntimeError):
    """The server did not start, or did not stop. The message ends with its log.

    Attributes:
        status: Its exit status; None where it was still running.
        logs: What it wrote to stderr.
    """

    def __init__(self, message: str, *, status: int | None = None, logs: str = "") -> None:
        super().__init__(message, status, logs)
        self.status = status
        self.logs = logs

    @override
    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.logs}" if self.logs else str(self.args[0])


class LocalServer:
    """A server process on this machine. Made by `local_server()` and by the fixture `milepost_server`."""

    def __init__(self, data_dir: Path, *, args: Sequence[str], env: Mapping[str, str], start_timeout_s: float) -> None:
        self.data_dir = data_dir
        """Where it keeps its store."""
        self.namespace = "default"
        """The namespace of `client()`; the fixture `milepost_server` gives each test one of its own."""
        self._args = tuple(args)
        self._env = dict(env)
        self._start_timeout_s = start_timeout_s
        self._address = "127.0.0.1:0"
        self._process: _Process | None = None
        self._logs: deque[str] = deque(maxlen=LOG_LINES_MAX)

    @override
    def __repr__(self) -> str:
        state = f"pid={self.pid}" if self.is_running else "not running"
        return f"LocalServer({self._address!r}, {state})"

    @property
    def target(self) -> str:
        """Address for a client; stays the same over `restart()` if nobody took the port meanwhile."""
        return self._address

    @property
    def pid(self) -> int:
        """Process id of the running server, or of the last one."""
        if self._process is None:
            raise LocalServerError("the server was never started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.is_running

    def client(self, *, codec: Codec = JSON, timeout_s: float = 30.0) -> Client:
        """Make a client of this server, in `namespace`. Close it, or use it in a `with`."""
        return Client(self.target, namespace=self.namespace, codec=codec, timeout_s=timeout_s)

    def async_client(self, *, codec: Codec = JSON, timeout_s: float = 30.0) -> AsyncClient:
        """Make an async client of this server, in `namespace`. Close it, or use it in an `async with`."""
        return AsyncClient(self.target, namespace=self.namespace, codec=codec, timeout_s=timeout_s)

    def logs(self) -> str:
        """Return the end of what it, and those before a `restart()`, wrote to stderr."""
        return "".join(list(self._logs))

    def start(self) -> None:
        """Start it, and return when it serves.

        Raises:
            LocalServerError: It is running already, ended at once, or did not serve in time.
        """
        if self.is_running:
            raise LocalServerError("the server is running already")
        command = [sys.executable, "-m", "milepost_server", "serve", "--listen", self._address]
        self._process = _Process([*command, "--data-dir", str(self.data_dir), *self._args], self._env, self._logs)
        try:
            self._address = self._process.wait_until_ready(self._start_timeout_s)
        except BaseException:
            self._process.kill()
            raise

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would. Returns when it is gone."""
        if self._process is not None:
            self._process.kill()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end with SIGTERM; return its exit status, 0 when it drained and closed its store.

        Raises:
            LocalServerError: It did not end in time, and was killed.
        """
        if self._process is None:
            raise LocalServerError("the server was never started")
        return self._process.stop(timeout_s)

    def restart(self) -> None:
        """Start it again on the same data, after `stop()` if it is running; return when it serves."""
        if self.is_running:
            self.stop()
        try:
            self.start()
        except LocalServerError:
            if self._address.endswith(":0"):
                raise
            # Somebody may have taken the port. Any other reason fails again, and is told then.
            self._address = "127.0.0.1:0"
            self.start()


@contextlib.contextmanager
def local_server(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[LocalServer]:
    """Run a server on a free port of the loopback interface while the `with` block lasts.

    It runs in this Python's environment and sees none of its `MILEPOST_…` variables.

    Args:
        data_dir: Where it keeps its store; default: a temporary directory, removed at the end.
        args: Further arguments of `milepost-server serve`.
        env: Further environment variables of the process.
        start_timeout_s: How long it may take to serve, in seconds.

    Raises:
        LocalServerError: The extra `server` is not installed, or the server did not start; the message has its log.
    """
    if importlib.util.find_spec("milepost_server") is None:
        raise LocalServerError('the server is not installed: pip install "milepost[server]"')
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MILEPOST_")}
    variables |= env or {}
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            # The server may be writing while it is killed; what it leaves is of no interest.
            scratch = tempfile.TemporaryDirectory(prefix="milepost-test-", ignore_cleanup_errors=True)
            data_dir = Path(stack.enter_context(scratch)) / "data"
        server = LocalServer(Path(data_dir), args=args, env=variables, start_timeout_s=start_timeout_s)
        stack.callback(_end, server)
        server.start()
        yield server


def _end(server: LocalServer) -> None:
    if server.is_running:
        # A test that wants to know how it stops calls stop() itself; here it only has to be gone.
        with contextlib.suppress(LocalServerError):
            server.stop(timeout_s=10.0)


class _Process:
    """One run of the program. Its pipes are read by two threads to their end, so that it never waits for a reader."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], logs: deque[str]) -> None:
        self._logs = logs
        self._output: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._popen = subprocess.Popen(  # noqa: S603  this Python, and a module of this project
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(env),
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_output, args=(self._popen.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(self._popen.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def wait_until_ready(self, timeout_s: float) -> str:
        """Return the address it listens on."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._output.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise LocalServerError(
                    f"the server did not say within {timeout_s:g} s that it listens", logs=self._log_after_end()
                ) from None
            if line is None:
                self.kill()
                status = self._popen.returncode
                raise LocalServerError(
                    f"the server ended at its start with status {status}", status=status, logs=self._log()
                )
            if line.startswith(READY_PREFIX):
                return line.removeprefix(READY_PREFIX).strip()

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._close()

    def stop(self, timeout_s: float) -> int:
        self._popen.terminate()
        try:
            status = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LocalServerError(
                f"the server did not end within {timeout_s:g} s of SIGTERM and was killed", logs=self._log_after_end()
            ) from None
        self._close()
        return status

    def _log_after_end(self) -> str:
        self.kill()
        return self._log()

    def _log(self) -> str:
        return "".join(list(self._logs))

    def _close(self) -> None:
        # The pipes end with the process, unless a child of it holds them: then the threads are left to it.
        for reader in self._readers:
            reader.join(timeout=5.0)

    def _read_output(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._output.put(line)
        self._output.put(None)

    def _read_log(self, pipe: IO[str]) -> None:
        with pipe:
            self._logs.extend(pipe)
