"""A real server process that a test may kill at any moment, start again on the same data, or start with a seeded
defect."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
START_DEADLINE_S: Final = 60.0
END_DEADLINE_S: Final = 30.0
POLL_S: Final = 0.01
SERVER: Final = ("-m", "milepost_server")
EARLY_ACK_SERVER: Final = ("-m", "tests.support.early_ack_server")
"""The same server, made to acknowledge before it commits."""
NO_SYNC_SERVER: Final = ("-m", "tests.support.no_sync_server")
"""The same server, made to commit without a flush."""
NO_FENCE_SERVER: Final = ("-m", "tests.support.no_fence_server")
"""The same server, made to ask nobody for a lease's token."""


class KillableServer:
    """One server after another on one data directory and one address.

    Args:
        directory: Gets the data directory `data`, the socket `s` and the log `server.log`. Its path must be short, for
            the socket.
        program: How Python is told what to run.
        wrapper: What the process is started under, such as strace.
    """

    def __init__(self, directory: Path, *, program: Sequence[str] = SERVER, wrapper: Sequence[str] = ()) -> None:
        self.data_dir = directory / "data"
        self.target = f"unix:{directory / 's'}"
        self.log = directory / "server.log"
        self._program = program
        self._wrapper = wrapper
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> None:
        """Start a server and return once it serves."""
        arguments = ["serve", "--data-dir", str(self.data_dir), "--listen", self.target, "--low-disk-bytes", "0"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, sys.executable, *self._program, *arguments, *flags],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                # Its own group, so that what a wrapper started ends with it.
                start_new_session=True,
            )
        self._wait_until_serving(self._process)

    def _wait_until_serving(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        deadline = time.monotonic() + START_DEADLINE_S
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and selector.select(deadline - time.monotonic()):
                read = os.read(process.stdout.fileno(), 4096)
                if not read:
                    break
                line += read
        if not line.startswith(b"milepost-server listening on "):
            self.kill()
            raise AssertionError(f"the server does not serve, said {line!r}; its log: {self.log.read_text()[-2000:]}")

    @property
    def storage_pid(self) -> int:
        """Of the process that its engine is in. Linux only."""
        assert self._process is not None, "no server was started"
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        (pid,) = {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
        return pid

    def end_by(self, number: signal.Signals, *, is_group: bool) -> int:
        """Send a signal to the server alone, or to all its processes as a terminal does; return the exit code."""
        process = self._process
        assert process is not None, "no server was started"
        if is_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        code = process.wait(END_DEADLINE_S)
        self._process = None
        if process.stdout is not None:
            process.stdout.close()
        return code

    def kill(self) -> None:
        """End the server by SIGKILL, wherever it is, and return once it is gone."""
        self._end(signal.SIGKILL)

    def kill_front(self) -> None:
        """End only the process that was started, by SIGKILL; return once its engine has let go of the store."""
        assert self._process is not None, "no server was started"
        group_id = self._process.pid
        self._process.kill()
        try:
            self._wait_until_released()
        except AssertionError:
            os.killpg(group_id, signal.SIGKILL)
            raise
        finally:
            self._end(signal.SIGKILL)

    def _wait_until_released(self) -> None:
        deadline = time.monotonic() + END_DEADLINE_S
        with (self.data_dir / "LOCK").open("rb") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    assert time.monotonic() < deadline, "the engine outlives its server"
                    time.sleep(POLL_S)

    def stop(self) -> int:
        """End the server by SIGTERM and return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process = self._process
        assert process is not None, "no server was started"
        self._process = None
        # A wrapper passes signals on or dies with what it wraps: the whole group is this object's own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            code = process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(END_DEADLINE_S)
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
        return code

    def __enter__(self) -> KillableServer:
        return self

    def __exit__(self, *details: object) -> None:
        if self._process is not None:
            self.kill()
