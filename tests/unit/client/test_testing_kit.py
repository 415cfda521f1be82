"""The testing kit: a clock that stands still, and a server process that can be watched, killed and restarted.

A small stand-in for the server's program takes part here, so that every way it may fail can be had at will; the real
one is behind the client's contract suite.
"""

from __future__ import annotations

import os
import signal
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from milepost.testing import FakeClock, LocalServer, LocalServerError, local_server

pytest_plugins = ["pytester"]

STAND_IN = """
import os, pathlib, signal, socket, sys, threading

def main():
    options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    host, port = options["--listen"].rsplit(":", 1)
    listener = socket.create_server((host, int(port)))
    data = pathlib.Path(options["--data-dir"])
    data.mkdir(parents=True, exist_ok=True)
    runs = data / "runs"
    runs.write_text(runs.read_text() + "run\\n" if runs.exists() else "run\\n")
    seen = os.environ.get("EXTRA", ""), os.environ.get("MILEPOST_TOKEN_FILE", "")
    print("starting", *seen, file=sys.stderr, flush=True)
    behaviour = options.get("--behave", "")
    if behaviour == "die":
        print("milepost-server: cannot open the data directory", file=sys.stderr)
        sys.exit(3)
    if behaviour == "silent":
        threading.Event().wait()
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if behaviour == "chatty":
        print("x" * 1_000_000, file=sys.stderr)
        print("x" * 1_000_000)
    print("milepost-server listening on 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
    threading.Event().wait()

main()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for the server's program before the real one, for this test's child processes."""
    package = tmp_path / "programs" / "milepost_server"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return tmp_path / "data"


def alive(server: LocalServer) -> bool:
    return server.is_running


def behave(how: str) -> tuple[str, str]:
    return ("--behave", how)


def test_a_server_runs_while_the_block_lasts(stand_in: Path) -> None:
    with local_server(data_dir=stand_in) as server:
        assert alive(server)
        assert server.target.startswith("127.0.0.1:")
        assert not server.target.endswith(":0")
        os.kill(server.pid, 0)
        pid = server.pid
    assert not alive(server)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_its_data_is_temporary_unless_said(stand_in: Path) -> None:
    with local_server() as server:
        data_dir = server.data_dir
        assert (data_dir / "runs").exists()
    assert not data_dir.exists()
    with local_server(data_dir=stand_in):
        pass
    assert (stand_in / "runs").exists()


def test_kill_and_restart_keep_data_and_address(stand_in: Path) -> None:
    with local_server(data_dir=stand_in) as server:
        target, pid = server.target, server.pid
        server.kill()
        assert not alive(server)
        server.kill()
        server.restart()
        assert alive(server)
        assert (server.target, server.pid != pid) == (target, True)
        server.restart()
        assert (stand_in / "runs").read_text() == "run\n" * 3


def test_a_taken_port_is_left_to_who_has_it(stand_in: Path) -> None:
    with local_server(data_dir=stand_in) as first:
        first.kill()
        with local_server(args=(), data_dir=stand_in.with_name("other")) as second:
            second._address = first.target
            second.restart()
            taken = first.target
            first.restart()
            assert first.target != taken
            assert second.target == taken


def test_stop_tells_the_exit_status(stand_in: Path) -> None:
    with local_server() as server:
        assert server.stop() == 0
    with local_server() as server:
        os.kill(server.pid, signal.SIGKILL)
        assert server.stop() == -signal.SIGKILL


def test_a_server_that_does_not_stop_is_killed_and_told(stand_in: Path) -> None:
    with local_server(args=behave("stubborn")) as server:
        with pytest.raises(LocalServerError, match="SIGTERM"):
            server.stop(timeout_s=0.05)
        assert not server.is_running


def test_a_server_that_dies_at_its_start_shows_why(stand_in: Path) -> None:
    with (
        pytest.raises(LocalServerError, match="cannot open the data directory") as caught,
        local_server(args=behave("die")),
    ):
        pass
    assert caught.value.status == 3
    assert "starting" in caught.value.logs


def test_a_server_that_never_says_it_listens_is_given_up(stand_in: Path) -> None:
    with pytest.raises(LocalServerError, match="did not say"), local_server(args=behave("silent"), start_timeout_s=0.5):
        pass


def test_a_server_that_writes_much_is_not_held_up(stand_in: Path) -> None:
    with local_server(args=behave("chatty")) as server:
        assert server.stop() == 0
        assert len(server.logs()) > 1_000_000


def test_the_environment_of_the_tests_does_not_reach_the_server(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILEPOST_TOKEN_FILE", "leaked")
    with local_server(env={"EXTRA": "given"}) as server:
        server.stop()
        assert "starting given" in server.logs()
        assert "leaked" not in server.logs()


def test_a_missing_server_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LocalServerError, match=r"milepost\[server\]"), local_server():
        pass


def test_a_server_object_tells_its_state(stand_in: Path) -> None:
    server = LocalServer(stand_in, args=(), env=dict(os.environ), start_timeout_s=30)
    assert "not running" in repr(server)
    with pytest.raises(LocalServerError, match="never started"):
        _ = server.pid
    with pytest.raises(LocalServerError, match="never started"):
        server.stop()
    server.start()
    try:
        assert str(server.pid) in repr(server)
        with pytest.raises(LocalServerError, match="already"):
            server.start()
        with server.client() as client:
            assert (client.target, client.namespace) == (server.target, "default")
    finally:
        server.kill()


def test_a_fake_clock_moves_when_told() -> None:
    clock = FakeClock(datetime(2024, 1, 1, tzinfo=UTC))
    start = clock()
    clock.advance(1.5)
    clock.sleep(2)
    clock.sleep(-1)
    assert clock.now() - start == timedelta(seconds=3.5)
    assert clock.monotonic() == 3.5
    assert repr(clock) == "FakeClock(2024-01-01T00:00:03.500000+00:00)"
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="time zone"):
        FakeClock(datetime(2024, 1, 1))  # noqa: DTZ001


async def test_a_fake_clock_sleeps_without_waiting() -> None:
    clock = FakeClock()
    await clock.async_sleep(3_600)
    assert clock.monotonic() == 3_600


def run_plugin(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(body)
    return pytester.runpytest_subprocess("-p", "milepost.testing.pytest_plugin", "-q", "-p", "no:cacheprovider")


def test_the_plugin_gives_each_test_a_store_of_its_own(pytester: pytest.Pytester) -> None:
    result = run_plugin(
        pytester,
        """
        import pytest
        from milepost.errors import WorkflowNotFoundError

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it(milepost_store, turn):
            with pytest.raises(WorkflowNotFoundError):
                milepost_store.load("w")
            milepost_store.save("w", state={"n": turn})
        """,
    )
    result.assert_outcomes(passed=2)


def test_the_plugin_keeps_one_server_and_revives_it(pytester: pytest.Pytester, stand_in: Path) -> None:
    result = run_plugin(
        pytester,
        """
        seen = []

        def test_first(milepost_server):
            seen.append((milepost_server.pid, milepost_server.client().namespace))

        def test_second(milepost_server):
            seen.append((milepost_server.pid, milepost_server.client().namespace))
            assert seen[0][0] == seen[1][0]
            assert seen[0][1] != seen[1][1]
            milepost_server.kill()

        def test_third(milepost_server):
            assert milepost_server.is_running
            assert milepost_server.pid != seen[0][0]
        """,
    )
    result.assert_outcomes(passed=3)


@pytest.mark.slow
def test_the_contract_fails_a_store_that_forgets(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\n")
    result = run_plugin(
        pytester,
        """
        import pytest
        from milepost.memory import InMemoryStore
        from milepost.testing.store_contract import StoreContract

        class Forgetful(InMemoryStore):
            def save(self, workflow_id, **options):
                options["checkpoint_id"] = None
                return super().save(workflow_id, **options)

        class TestForgetful(StoreContract):
            @pytest.fixture
            def store(self):
                return Forgetful()
        """,
    )
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] > 5
    assert "test_the_same_save_again_is_answered_as_the_first_time" in result.stdout.str()
