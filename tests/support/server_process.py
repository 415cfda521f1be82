"""A real server in a process of its own: start on a free port, stop, kill, start again, read its logs.

    with ServerProcess(tmp_path / "data") as server:
        channel = grpc.insecure_channel(server.target)

Leaving the block kills what still runs, and proves the store sound. Nothing here waits by sleeping: the server says on
stdout when it listens.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from milepost_server.storage.verify import verify_store

LISTENING = "milepost-server listening on "
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


class StartFailedError(Exception):
    """The server ended before it listened."""

    def __init__(self, exit_code: int, stderr: str) -> None:
        super().__init__(f"exit code {exit_code}: {stderr}")
        self.exit_code = exit_code
        self.stderr = stderr


class ServerProcess:
    """One server, started as a user starts it.

    Args:
        data_dir: Kept over restarts.
        listen: Addresses; each start of port 0 may give another port.
        arguments: More of the command line.
        environment: Added to that of the tests.
        wrapper: Put before the command: `strace …`, say.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        listen: Sequence[str] = ("127.0.0.1:0",),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self.listen = tuple(listen)
        self.arguments = tuple(arguments)
        self.environment = dict(environment or {})
        self.wrapper = tuple(wrapper)
        self.addresses: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        # Whatever a test of a server did, killed at its end as it is, the store must be sound.
        if kind is None and (self.data_dir / "store").exists():
            assert verify_store(self.data_dir).problems == []

    @property
    def target(self) -> str:
        """Its first address, as a gRPC channel takes it."""
        return self.addresses[0]

    @property
    def pid(self) -> int:
        """Of the process, or of its wrapper."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def stdout(self) -> str:
        """What it has written to stdout since its last start."""
        return "".join(self._stdout)

    @property
    def stderr(self) -> str:
        """What it has logged since its last start; whole once it has ended."""
        return "".join(self._stderr)

    def start(self) -> None:
        """Start it and return when it listens on every address.

        Raises:
            StartFailedError: It ended instead.
        """
        assert not self.is_running
        self._stdout, self._stderr, self.addresses = [], [], []
        self._lines = queue.SimpleQueue()
        command = [
            *self.wrapper,
            *(sys.executable, "-m", "milepost_server", "serve", "--data-dir", str(self.data_dir)),
            *(part for address in self.listen for part in ("--listen", address)),
            *self.arguments,
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        while len(self.addresses) < len(self.listen):
            try:
                line = self._lines.get(timeout=START_TIMEOUT_S)
            except queue.Empty:
                self.kill()
                raise StartFailedError(0, f"not listening after {START_TIMEOUT_S} s: {self.stderr}") from None
            if line is None:
                raise StartFailedError(self.wait(), self.stderr)
            if line.startswith(LISTENING):
                self.addresses.append(line.removeprefix(LISTENING).strip())

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Return its exit code when it has ended."""
        assert self._process is not None
        code = self._process.wait(STOP_TIMEOUT_S)
        for reader in self._readers:
            reader.join(STOP_TIMEOUT_S)
        return code

    def stop(self) -> int:
        """Ask it to drain, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it at once, as a crash would. No error if it has ended."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self.wait()

    def restart(self) -> None:
        """Kill it and start it again on the same data."""
        self.kill()
        self.start()

    def _read_stdout(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        lines = self._lines
        with self._process.stdout as stream:
            for line in stream:
                self._stdout.append(line)
                lines.put(line)
        lines.put(None)

    def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self._stderr.append(line)
