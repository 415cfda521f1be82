"""The processes that are measured: the server on a store of its own, and the no-op server.

Each ends with its `with` block, by its process id, whatever happens inside.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import psutil

from benchmarks import noop_server, payloads
from benchmarks.http2 import Connection

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
SERVER_READY_PREFIX = "milepost-server listening on "
ROOT = Path(__file__).resolve().parent.parent


class ServerError(Exception):
    """A server did not start or did not end as it should."""


@dataclass(frozen=True)
class ServerProcess:
    """A running server."""

    name: str
    address: str
    pid: int
    data_dir: Path | None = None

    def memory_bytes(self, field: str) -> int:
        """Return a size from the kernel's account, summed over the process and those that it started.

        Args:
            field: `VmRSS`, resident now, or `VmHWM`, resident at most so far. A page that two share counts twice.
        """
        return sum(_status_bytes(each.pid, field) for each in self._tree())

    def cpu_s(self) -> float:
        """Return the processor time that the process and those that it started have used, in seconds."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in self._tree()))

    def _tree(self) -> list[psutil.Process]:
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def commit_count(self) -> int:
        """Return how many transactions the store has committed; 0 where there is no store."""
        return self.store_facts().commits if self.data_dir is not None else 0

    def store_facts(self) -> StoreFacts:
        """Return the store's size and how many transactions were committed, read beside the running server."""
        assert self.data_dir is not None
        return store_facts(self.data_dir)


def _status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ServerError(f"the kernel does not tell {field} of a process")


@dataclass(frozen=True)
class StoreFacts:
    """What the database file tells of itself."""

    file_bytes: int
    commits: int


def store_facts(data_dir: Path) -> StoreFacts:
    """Return the size and the number of commits of a store. Only from another process than the one that serves it."""
    path = data_dir / "store"
    with contextlib.closing(lmdb.open(str(path), readonly=True, lock=False, create=False)) as env:
        return StoreFacts((path / "data.mdb").stat().st_size, env.info()["last_txnid"])


@contextlib.contextmanager
def scratch(directory: Path | None) -> Iterator[Path]:
    """Make a temporary directory for stores."""
    with tempfile.TemporaryDirectory(prefix="milepost-bench-", dir=directory, ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def real_server(data_dir: Path, settings: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """Run a server on a store that it makes or finds in `data_dir`, with default settings but for those given."""
    module = ("milepost_server", "serve", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir))
    with _running("milepost-server", module, SERVER_READY_PREFIX, data_dir, settings) as process:
        yield process


@contextlib.contextmanager
def noop_like(server: ServerProcess, store: Path | None = None) -> Iterator[ServerProcess]:
    """Run a no-op server whose answers are as large as those that a real one gives to the same requests.

    Args:
        server: The real one.
        store: A directory to be made, where it puts and commits each Save before it answers; nothing, if not given.
    """
    responses = []
    for method, requests in (("Save", payloads.saves(1)), ("Load", payloads.loads(1))):
        client = Connection(server.address, method)
        responses.append(client.call(next(requests)))
        client.close()
    save_response, load_response = responses
    module = (
        "benchmarks.noop_server",
        f"--save-response={save_response.hex()}",
        f"--load-response={load_response.hex()}",
        *(() if store is None else (f"--store={store}",)),
    )
    with _running("no-op server", module, noop_server.READY_PREFIX, None) as process:
        yield process


@contextlib.contextmanager
def _running(
    name: str,
    module: Sequence[str],
    ready_prefix: str,
    data_dir: Path | None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MILEPOST_", "OTEL_"))}
    environment |= settings or {}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        )
        try:
            address = _wait_until_ready(process, ready_prefix)
            if address is None:
                process.kill()
                process.wait()
                log.seek(0)
                raise ServerError(f"the {name} did not start:\n{log.read().decode(errors='replace')}")
            yield ServerProcess(name, address, process.pid, data_dir)
            if process.poll() is not None:
                raise ServerError(f"the {name} ended with status {process.returncode} while it was measured")
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], ready_prefix: str) -> str | None:
    """Return the address that a server says it listens on, or `None` if it does not."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    while select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        line = process.stdout.readline().decode()
        if not line:
            return None
        if line.startswith(ready_prefix):
            return line.removeprefix(ready_prefix).strip()
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
