"""The engine in a process of its own keeps the contract.

Here the process is a thread, over the same sockets and frames, so that its clock and its files are in the test's hand.
The integration and fault tests run it as it is.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from socket import socket
from typing import cast

import pytest

from milepost_server.grpc_api.call_codec import PbCallCodec
from milepost_server.limits import Limits
from milepost_server.storage import process_engine, process_worker
from milepost_server.storage.lmdb_env import DataDirError
from milepost_server.storage.port import Engine
from milepost_server.storage.process_engine import ProcessEngine
from milepost_server.storage.verify import verify_store
from milepost_server.testing.builders import CountRows, ManualClock, Store
from milepost_server.testing.contracts.base import MakeEngine
from milepost_server.testing.contracts.persistence import Restart
from milepost_server.testing.engine_contract import EngineContract, PersistenceContract
from tests.support.lmdb_stores import MAP_SIZE_BYTES, LmdbStores, OpenEngine, count_table, lmdb_opener


class ThreadAsProcess:
    """What `ProcessEngine` wants of a `Popen`, of a thread that does the process's work."""

    stdin = None

    def __init__(self, engine: Engine, limits: Limits, connections: Sequence[socket]) -> None:
        commands, *queries = (each.dup() for each in connections)
        self._thread = threading.Thread(target=self._run, args=(engine, limits, commands, queries))
        self._thread.start()

    @staticmethod
    def _run(engine: Engine, limits: Limits, commands: socket, queries: Sequence[socket]) -> None:
        with commands:
            process_worker.serve(engine, commands, queries, PbCallCodec(limits))

    def wait(self, timeout_s: float) -> int:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()
        return 0


class ThreadedEngine(ProcessEngine):
    def __init__(self, data_dir: Path, limits: Limits, open_inner: OpenEngine) -> None:
        self._open_inner = open_inner
        super().__init__(
            process_worker.Settings(
                data_dir=str(data_dir),
                limits=limits,
                map_size_bytes=MAP_SIZE_BYTES,
                map_size_max_bytes=MAP_SIZE_BYTES,
                low_disk_bytes=0,
                log_level=0,
                log_format="text",
                server_pid=os.getpid(),
                command_fd=-1,
                query_fds=(),
            )
        )

    def _spawn(self, connections: Sequence[socket]) -> subprocess.Popen[bytes]:
        self.inner = self._open_inner(Path(self._settings.data_dir), self._settings.limits)
        return cast("subprocess.Popen[bytes]", ThreadAsProcess(self.inner, self._settings.limits, connections))


class TestProcessEngine(EngineContract, PersistenceContract):
    @pytest.fixture
    def stores(self, tmp_path: Path, clock: ManualClock, lease_clock: ManualClock) -> Iterator[LmdbStores]:
        open_inner = lmdb_opener(clock, lease_clock)
        stores = LmdbStores(tmp_path, lambda data_dir, limits: ThreadedEngine(data_dir, limits, open_inner))
        yield stores
        stores.close_and_verify()

    @pytest.fixture
    def make_engine(self, stores: LmdbStores) -> MakeEngine:
        return stores.make

    @pytest.fixture
    def restart_engine(self, stores: LmdbStores) -> Restart:
        return stores.restart

    @pytest.fixture
    def count_rows(self) -> CountRows:
        return lambda engine, what: count_table(cast(ThreadedEngine, engine).inner, what)


@pytest.mark.parametrize(
    "end, told",
    [
        ("sys.exit(7)", "ended with status 7 before it was ready; the log above tells why"),
        (
            "os.kill(os.getpid(), 9)",
            "was killed by SIGKILL (the kernel does so when memory runs out) before it was ready",
        ),
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV before it was ready"),
    ],
)
def test_a_process_that_ends_at_its_start_is_told_with_its_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, told: str
) -> None:
    (tmp_path / "ends_at_once.py").write_text(f"import os, sys\n{end}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process_engine, "WORKER_MODULE", "ends_at_once")
    with pytest.raises(DataDirError) as refused:
        ProcessEngine.open(tmp_path / "data")
    assert str(refused.value) == f"the storage process for {tmp_path / 'data'} {told}"


def test_a_process_serves_reopens_and_refuses_as_an_engine_does(tmp_path: Path) -> None:
    """The real process: the same answers, a start anew, and one line where it cannot start."""
    engine = ProcessEngine.open(tmp_path / "data", map_size_bytes=MAP_SIZE_BYTES, low_disk_bytes=0)
    try:
        store = Store(engine, lambda engine, what: engine.statistics()[what])
        store.save("w", "a", {"x": 1})
        with pytest.raises(DataDirError, match=f"is in use by process {os.getpid()}; stop that server or name another"):
            ProcessEngine.open(tmp_path / "data")
        engine.reopen()
        assert store.load("w", "a").row.checkpoint_id == "a"
    finally:
        engine.close()
    assert verify_store(tmp_path / "data").problems == []
