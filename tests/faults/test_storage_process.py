"""The storage process dies, hangs or is left alone, while its server and the clients go on as promised."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from milepost import Client, MilepostError, OutcomeUnknownError, RetryPolicy, Saved, UnavailableError
from milepost_server.storage.verify import verify_store
from tests.support.killable_server import KillableServer
from tests.support.save_history import Outcome, check
from tests.support.saving_clients import SHARED_WORKFLOWS, SavingClients
from tests.support.stopped_process import stopped
from tests.support.store_views import ClientView

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENT = RetryPolicy(attempts_max=1_000, backoff_max_s=0.1)
ONCE = RetryPolicy(attempts_max=1)
CLIENT_COUNT = 8
KILL_COUNT = 5
SEED = 20_261_124

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the children of a process are read from /proc"),
]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableServer]:
    with KillableServer(tmp_path_factory.mktemp("p")) as server:
        server.start()
        yield server


class Health:
    """What the server says of itself, as it changes."""

    def __init__(self, channel: grpc.Channel) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        self._answers = iter(stub.Watch(health_pb2.HealthCheckRequest(), timeout=100))

    def wait_for(self, *statuses: int) -> None:
        """Return when the server has said these, one after another."""
        for status in statuses:
            while next(self._answers).status != status:
                pass


@pytest.fixture
def health(server: KillableServer) -> Iterator[Health]:
    with grpc.insecure_channel(server.target) as channel:
        health = Health(channel)
        health.wait_for(SERVING)
        yield health


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def save_until(stop: threading.Event, target: str) -> int:
    """Load again and again, as one who retries; return how often that was answered."""
    count = 0
    with Client(target, timeout_s=30, retry=PATIENT) as client:
        client.save("read", state={"x": 1}, checkpoint_id="c")
        while not stop.is_set():
            assert client.load("read").state == {"x": 1}
            count += 1
    return count


@pytest.mark.timeout(180)
def test_the_server_goes_on_when_its_storage_is_killed_under_saves_and_loads(
    server: KillableServer, health: Health
) -> None:
    clients = SavingClients(server.target, CLIENT_COUNT, SEED)
    stop = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        with clients:
            loading = [threads.submit(save_until, stop, server.target) for _ in range(2)]
            try:
                for _ in range(KILL_COUNT):
                    # Not a wait for an effect: it lets some saves be at hand.
                    clients.stopping.wait(0.2)
                    os.kill(server.storage_pid, signal.SIGKILL)
                    health.wait_for(NOT_SERVING, SERVING)
            finally:
                stop.set()
        assert all(each.result() for each in loading)
    with Client(server.target) as client:
        assert check(clients.history.snapshot(), ClientView(client)) == []
        assert client.load(SHARED_WORKFLOWS[0]).checkpoint_id
    assert clients.history.counts()[Outcome.ACKNOWLEDGED] > KILL_COUNT * CLIENT_COUNT
    assert server.stop() == 0
    assert verify_store(server.data_dir).problems == []


def test_a_save_at_hand_when_the_storage_dies_is_settled_by_sending_it_again(
    server: KillableServer, health: Health
) -> None:
    def save(retry: RetryPolicy) -> Saved:
        with Client(server.target, timeout_s=60, retry=retry) as client:
            return client.save("w", state={"x": 1}, checkpoint_id="c")

    with ThreadPoolExecutor(2) as threads:
        pid = server.storage_pid
        os.kill(pid, signal.SIGSTOP)
        once: Future[Saved] = threads.submit(save, ONCE)
        patient: Future[Saved] = threads.submit(save, PATIENT)
        with pytest.raises(TimeoutError):
            once.result(timeout=0.5)
        os.kill(pid, signal.SIGKILL)
        error = once.exception(timeout=60)
        # Unknown for what the storage had been sent, refused for what was queued behind it.
        assert isinstance(error, OutcomeUnknownError | UnavailableError), error
        assert patient.result(timeout=60).checkpoint_id == "c"
    health.wait_for(NOT_SERVING, SERVING)
    with Client(server.target) as client:
        again = client.save("w", state={"x": 1}, checkpoint_id="c")
        assert (again.sequence, again.replayed) == (1, True)
        assert [each.checkpoint_id for each in client.list("w")] == ["c"]
    assert server.stop() == 0
    assert verify_store(server.data_dir).problems == []


def test_calls_meet_their_deadline_while_the_storage_hangs_and_nothing_is_lost(server: KillableServer) -> None:
    with Client(server.target, timeout_s=0.5, retry=ONCE) as client:
        client.save("w", state={"x": 1}, checkpoint_id="a")
        pid = server.storage_pid
        os.kill(pid, signal.SIGSTOP)
        for call in (lambda: client.save("w", state={"x": 2}, checkpoint_id="b"), lambda: client.load("w")):
            with pytest.raises(MilepostError) as ended:
                call()
            assert "DEADLINE" in repr(ended.value) or "deadline" in str(ended.value)
        os.kill(pid, signal.SIGCONT)
    with Client(server.target) as client:
        client.save("w", state={"x": 2}, checkpoint_id="b")
        assert [each.checkpoint_id for each in client.list("w")] == ["b", "a"]
        assert client.load("w").state == {"x": 2}
    assert server.storage_pid == pid
    assert server.stop() == 0
    assert verify_store(server.data_dir).problems == []


def test_health_tells_while_the_storage_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILEPOST_SERVER__QUEUE__COMMIT_WAIT_MAX_S", "0.5")
    with KillableServer(tmp_path) as server, ThreadPoolExecutor(1) as threads:
        server.start()
        with grpc.insecure_channel(server.target) as channel, Client(server.target, timeout_s=60) as client:
            health = Health(channel)
            health.wait_for(SERVING)
            client.save("w", state={"x": 1})
            with stopped(server.storage_pid):
                saving = threads.submit(client.save, "w", state={"x": 2})
                health.wait_for(NOT_SERVING)
                assert not saving.done()
            assert saving.result(timeout=60).sequence == 2
            health.wait_for(SERVING)
        assert server.stop() == 0


@pytest.mark.parametrize("is_asked", [False, True], ids=["idle", "reads"])
def test_health_tells_while_the_storage_hangs_that_is_asked_for_nothing_or_for_reads_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    monkeypatch.setenv("MILEPOST_SERVER__QUEUE__COMMIT_WAIT_MAX_S", "0.5")
    monkeypatch.setenv("MILEPOST_SERVER__QUEUE__PROBE_INTERVAL_S", "0.2")
    monkeypatch.setenv("MILEPOST_SERVER__QUEUE__SWEEP_INTERVAL_S", "1000")
    with KillableServer(tmp_path) as server, ThreadPoolExecutor(1) as threads:
        server.start()
        with grpc.insecure_channel(server.target) as channel, Client(server.target, timeout_s=60) as client:
            health = Health(channel)
            health.wait_for(SERVING)
            client.save("w", state={"x": 1})
            with stopped(server.storage_pid):
                loading = threads.submit(client.load, "w") if is_asked else None
                health.wait_for(NOT_SERVING)
            assert loading is None or loading.result(timeout=60).state == {"x": 1}
            health.wait_for(SERVING)
        assert server.stop() == 0
        assert "the storage has not answered a read for 0.5 s" in server.log.read_text()


def require_direct_reads(path: Path) -> None:
    """Skip where files cannot be read past the kernel's memory: a file system in memory may not know how."""
    path.touch()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("needs a file system with O_DIRECT")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to make a system call slow")
def test_health_tells_of_an_idle_server_whose_disk_hangs_and_nothing_is_written_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_direct_reads(tmp_path / "probe")
    monkeypatch.setenv("MILEPOST_SERVER__QUEUE__COMMIT_WAIT_MAX_S", "0.5")
    monkeypatch.setenv("MILEPOST_SERVER__QUEUE__PROBE_INTERVAL_S", "0.2")
    store, trace = tmp_path / "data" / "store", tmp_path / "trace"
    wrapper = [
        *("strace", "-f", "-qq", "-o", str(trace), "-P", str(store / "IDENTITY"), "-P", str(store / "data.mdb")),
        *("-e", "trace=openat,readv,writev,pwrite64,fdatasync,fsync,msync"),
        *("-e", "inject=readv:delay_enter=2s:when=3"),
    ]
    with KillableServer(tmp_path, wrapper=wrapper) as server:
        server.start()
        with grpc.insecure_channel(server.target) as channel:
            Health(channel).wait_for(SERVING, NOT_SERVING, SERVING)
        _, first, probing = trace.read_text().partition("readv(")
        assert first
        assert probing.count("readv(") >= 2
        assert "O_DIRECT" in probing
        assert not {call for call in ("writev", "pwrite64", "fdatasync", "fsync", "msync") if f"{call}(" in probing}


def test_storage_that_is_killed_again_and_again_is_started_ever_less_often_and_the_log_says_why(
    server: KillableServer, health: Health
) -> None:
    for _ in range(4):
        os.kill(server.storage_pid, signal.SIGKILL)
        health.wait_for(NOT_SERVING, SERVING)
    log = server.log.read_text()
    assert log.count("the storage process was killed by SIGKILL (the kernel does so when memory runs out)") >= 4
    assert [f"next try in {wait} s" in log for wait in (0.1, 0.2, 0.4, 0.8)] == [True, True, True, False]
    assert "failed 4 times in" in log


def test_a_server_whose_storage_hangs_ends_when_it_is_told_to_and_loses_nothing(tmp_path: Path) -> None:
    program = ("-c", "from milepost_server import cli; cli.STORAGE_GRACE_S = 1.0; cli.main()")
    with KillableServer(tmp_path, program=program) as server:
        server.start("--drain-grace-s", "0.5")
        with Client(server.target, timeout_s=0.5, retry=ONCE) as client:
            client.save("w", state={"x": 1}, checkpoint_id="a")
            with stopped(server.storage_pid):
                with pytest.raises(MilepostError):
                    client.save("w", state={"x": 2}, checkpoint_id="b")
                assert server.end_by(signal.SIGTERM, is_group=False) == 1
        assert "the storage does not answer" in server.log.read_text()
        server.start()
        with Client(server.target) as client:
            assert client.load("w", checkpoint_id="a").state == {"x": 1}


@pytest.mark.parametrize("is_reopened", [False, True], ids=["first", "reopened"])
def test_a_server_that_is_killed_leaves_no_storage_process_and_can_start_at_once(
    server: KillableServer, health: Health, is_reopened: bool
) -> None:
    if is_reopened:
        os.kill(server.storage_pid, signal.SIGKILL)
        health.wait_for(NOT_SERVING, SERVING)
    with Client(server.target) as client:
        client.save("w", state={"x": 1})
    pid = server.storage_pid
    assert server.end_by(signal.SIGKILL, is_group=False) == -signal.SIGKILL
    server.start()
    assert not is_alive(pid)
    with Client(server.target) as client:
        assert client.load("w").state == {"x": 1}


@pytest.mark.parametrize("is_reopened", [False, True], ids=["first", "reopened"])
@pytest.mark.parametrize("is_group", [False, True], ids=["server", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_whether_or_not_the_storage_gets_it_too(
    server: KillableServer, health: Health, number: signal.Signals, is_group: bool, is_reopened: bool
) -> None:
    if is_reopened:
        os.kill(server.storage_pid, signal.SIGKILL)
        health.wait_for(NOT_SERVING, SERVING)
    with Client(server.target) as client:
        client.save("w", state={"x": 1})
    pid = server.storage_pid
    assert server.end_by(number, is_group=is_group) == 0
    assert not is_alive(pid)
    assert "Traceback" not in server.log.read_text()
    assert verify_store(server.data_dir).problems == []
