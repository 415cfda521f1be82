"""The `milepost` command as a user starts it, against a real server."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milepost import Client, LeaseLostError, Record, SaveItem, StepFailedError, Workflow
from milepost.codecs import JSON
from tests.support.server_process import ServerProcess

COMMAND = [sys.executable, "-m", "milepost"]


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A namespace for each test."""
    return str(request.node.name)[:100]


@pytest.fixture
def client(server: ServerProcess, namespace: str) -> Iterator[Client]:
    with Client(server.target, namespace=namespace) as client:
        yield client


@pytest.fixture
def environment(server: ServerProcess, namespace: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MILEPOST_")}
    return kept | {"MILEPOST_TARGET": server.target, "MILEPOST_NAMESPACE": namespace, "PYTHONUTF8": "1"}


def milepost(environment: dict[str, str], *args: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        input=stdin,
        env=environment | more,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def answer(environment: dict[str, str], *args: str, stdin: str = "") -> Any:
    done = milepost(environment, "--json", *args, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_first_session(environment: dict[str, str], client: Client) -> None:
    state = '{"total": 42.10, "items": [{"sku": "a"}]}'
    saved = answer(environment, "save", "w", "--state", "-", "--step", "price", "--after", "start", stdin=state)[0]
    answer(environment, "save", "w", "--entry", "total=43.0", "--after", saved["checkpoint_id"], "--step", "charge")
    assert [c["current_step"] for c in answer(environment, "history", "w")] == ["charge", "price"]
    assert [w["checkpoint_count"] for w in answer(environment, "workflows")] == [2]
    assert client.load("w", sequence=1).state == {"total": 42.1, "items": [{"sku": "a"}]}
    differing = milepost(environment, "diff", "w")
    assert differing.returncode == 1
    assert '  - items  [{"sku":"a"}]\n  ~ total  42.10 → 43.0\n' in differing.stdout
    assert answer(environment, "fork", "w", "copy", "--at", "1")[0]["checkpoint_count"] == 1
    assert answer(environment, "prune", "w", "--keep", "1", "--yes")[0]["deleted"] == 1
    assert "(pruned)" in milepost(environment, "history", "w").stdout
    assert answer(environment, "stats")[0]["workflow_count"] == 2
    assert answer(environment, "delete", "copy", "--yes")[0]["existed"]
    assert milepost(environment, "show", "copy").returncode == 1


def test_what_a_program_saved_is_shown_without_its_codec(environment: dict[str, str], client: Client) -> None:
    class Upper:
        name = "upper"

        def encode(self, value: object, path: str = "$") -> bytes:
            return str(value).upper().encode()

        def decode(self, content: str | bytes, path: str = "$") -> str:
            raise AssertionError

    with Client(client.target, namespace=client.namespace, codec=Upper()) as other:
        other.save("w", state={"x": "abc"}, records=[Record(task_id="t", value="r")], metadata={"by": "me"})
    shown = milepost(environment, "show", "w").stdout
    assert "  x  upper, 3 B\n    41 42 43\n" in shown
    assert "  task 't', index 0  upper, 1 B\n    52\n" in shown
    assert milepost(environment, "show", "w", "--entry", "x", "--raw").stdout == "ABC"


def test_large_values_are_shown_whole(environment: dict[str, str], client: Client) -> None:
    # Large enough to be compressed on its way in, and on its way out where this installation can undo that.
    client.save("w", state={"text": "word " * 10_000})
    raw = milepost(environment, "show", "w", "--entry", "text", "--raw").stdout
    assert JSON.decode(raw) == "word " * 10_000


@pytest.mark.slow
def test_a_scope_is_reached_by_its_name(environment: dict[str, str], client: Client) -> None:
    client.save("w", state={})
    client.save("w", state={"x": 1}, scope="child", checkpoint_id="k")
    assert answer(environment, "show", "w", "--scope", "child")[0]["state"] == {"x": {"json": 1}}
    listed = answer(environment, "history", "w", "--all-scopes")
    assert [(c["scope"], c["is_head"]) for c in listed] == [("child", True), ("", True)]
    assert answer(environment, "delete", "w", "--scope", "child", "--checkpoint", "k", "--yes")[0]["deleted"] == 1


def test_a_lost_race_is_exit_4(environment: dict[str, str], client: Client) -> None:
    first = client.save("w", state={})
    client.save("w", state={"x": 1})
    done = milepost(environment, "save", "w", "--entry", "x=2", "--after", first.checkpoint_id)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: save of workflow 'w'")


def test_destruction_without_a_terminal_or_yes_is_refused(environment: dict[str, str], client: Client) -> None:
    client.save("w", state={})
    done = milepost(environment, "delete", "w", stdin="y\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert client.load("w").sequence == 1


def many(client: Client, count: int) -> None:
    client.save_all([SaveItem(workflow_id="w", state={"n": n}, checkpoint_id=f"c{n:05}") for n in range(count)])


def test_a_reader_that_stops_reading_is_no_error(environment: dict[str, str], client: Client) -> None:
    many(client, 3_000)
    process = subprocess.Popen(
        [*COMMAND, "history", "w"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(30)) == (b"", 141)


@pytest.mark.slow
def test_a_long_history_has_every_row_once(environment: dict[str, str], client: Client) -> None:
    many(client, 2_500)
    rows = milepost(environment, "history", "w", "--oldest-first").stdout.splitlines()[1:]
    assert [int(row.split()[0]) for row in rows] == list(range(1, 2_501))
    assert answer(environment, "show", "w", "head~0")[0]["sequence"] == 2_500
    assert answer(environment, "show", "w", "head~2400")[0]["sequence"] == 100


@pytest.mark.slow
def test_no_server_is_told_within_seconds(environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        done = milepost(environment, "--target", target, "workflows")
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == f"error: no milepost-server answers at {target}: Connection refused"
    assert time.monotonic() - started < 10


def test_ctrl_c_ends_it_quietly(environment: dict[str, str]) -> None:
    with socket.socket() as silent:
        # Connections are taken by the kernel and never answered.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        process = subprocess.Popen(
            [*COMMAND, "-t", f"127.0.0.1:{silent.getsockname()[1]}", "workflows"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,  # noqa: PLW1509 - no threads yet in the child
        )
        silent.accept()[0].close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_watch_tells_each_change_at_once_and_ends_well_with_ctrl_c(
    environment: dict[str, str], client: Client
) -> None:
    client.save("w", state={}, current_step="price", checkpoint_id="c1")
    with subprocess.Popen(
        [*COMMAND, "--json", "watch", "w"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,  # noqa: PLW1509 - as above
    ) as process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        client.send_signal("w", "go", signal_id="s1")
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert (started["kind"], started["checkpoint_id"]) == ("started", "c1")
    assert (told["kind"], told["signal_name"], told["revision"]) == ("signal_sent", "go", started["revision"] + 1)


@pytest.mark.slow
def test_a_watch_ends_with_its_reader_though_nothing_happens(environment: dict[str, str]) -> None:
    """`milepost watch | head -1` would wait for a second event, which may never come."""
    with subprocess.Popen([*COMMAND, "watch"], env=environment, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert b"started" in watching.stdout.readline()
        watching.stdout.close()
        try:
            assert watching.wait(30) == 141
        finally:
            watching.kill()


@pytest.mark.slow
@pytest.mark.parametrize("command,status", [("workflows", 0), ("show nothing", 1), ("--help", 0)])
def test_streams_that_were_closed_are_done_without(environment: dict[str, str], command: str, status: int) -> None:
    line = f'"$0" -m milepost {command} >&- 2>&-'
    assert subprocess.run(["sh", "-c", line, sys.executable], env=environment, check=False).returncode == status


@pytest.mark.slow
@pytest.mark.parametrize("command", ["workflows", "--help", "--version"])
def test_a_full_disk_behind_the_output_is_a_line(environment: dict[str, str], command: str, client: Client) -> None:
    client.save("w", state={})
    line = f'"$0" -m milepost {command} >/dev/full'
    done = subprocess.run(["sh", "-c", line, sys.executable], env=environment, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (5, b"error: [Errno 28] No space left on device\n")


def test_a_lease_and_signals_from_the_shell(environment: dict[str, str], client: Client) -> None:
    client.save("w", state={})
    token = client.acquire_lease("w", holder="web-3").token
    assert answer(environment, "lease", "show", "w")[0]["holder"] == "web-3"
    refused = milepost(environment, "delete", "w", "--yes")
    assert refused.returncode == 4
    assert "web-3" in refused.stderr
    assert answer(environment, "lease", "break", "w", "--yes")[0]["broken"] is True
    answer(environment, "signal", "w", "approval", "--value", '{"sum": 1.10}', "--id", "s1")
    assert answer(environment, "cancel", "w", "--yes")[0]["name"] == "milepost.cancel"
    assert [one["name"] for one in answer(environment, "signals", "w")] == ["approval", "milepost.cancel"]
    assert [one["pending_signal_count"] for one in answer(environment, "workflows", "--pending", "--unleased")] == [2]
    assert [(one.name, one.value) for one in client.signals("w")] == [
        ("approval", {"sum": 1.1}),
        ("milepost.cancel", None),
    ]
    with pytest.raises(LeaseLostError):
        client.save("w", state={}, lease_token=token)


def on_a_terminal(environment: dict[str, str], *args: str) -> str:
    """Run with a terminal as its output; return what came there."""
    ours, theirs = pty.openpty()
    try:
        terminal = {"TERM": "xterm-256color", "COLUMNS": "120"}
        with subprocess.Popen([*COMMAND, *args], env=environment | terminal, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            theirs = -1
            seen = b""
            try:
                while chunk := os.read(ours, 65_536):
                    seen += chunk
            except OSError:
                # Linux's way to say that the other side is closed.
                pass
            process.wait(30)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    return seen.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_terminal_gets_colours_and_short_ids_that_work(environment: dict[str, str], client: Client) -> None:
    saved = client.save("w", state={"n": 1})
    shown = on_a_terminal(environment, "history", "w")
    assert "\x1b[34mrunning" in shown
    assert saved.checkpoint_id not in shown
    plain = on_a_terminal(environment | {"NO_COLOR": "1"}, "history", "w")
    short = plain.splitlines()[1].split()[1].partition("\x1b")[0]
    assert short == f"{saved.checkpoint_id[:16]}…"
    assert answer(environment, "show", "w", short)[0]["checkpoint_id"] == saved.checkpoint_id
    assert "\x1b[3" not in on_a_terminal(environment, "--no-color", "history", "w")


@pytest.mark.slow
def test_a_terminal_is_not_driven_by_data(environment: dict[str, str], client: Client) -> None:
    evil = "\x1b]0;owned\x07[red]"
    client.save("w", state={"x": evil}, current_step=evil)
    for args in (["workflows"], ["show", "w"], ["history", "w"], ["show", "w", evil]):
        assert "\x1b]" not in on_a_terminal(environment, *args)
    with Client(client.target, namespace=client.namespace) as other:
        other.save("raw", state={"x": 1})
    assert on_a_terminal(environment, "show", "raw", "--entry", "x", "--raw") == "1"


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('no click', name='click')\n")
    done = subprocess.run(
        [*COMMAND, "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'error: the command line needs click: pip install "milepost[cli]"\n'


def test_a_step_of_unknown_outcome_is_resolved_by_hand(
    environment: dict[str, str], client: Client, tmp_path: Path
) -> None:
    """The program that knows what happened is a person, who has the definition at hand and nothing else."""
    order = Workflow("order", dict[str, Any])

    @order.step(at_most_once=True)
    def charge(state: dict[str, Any]) -> None:
        raise ConnectionError

    with pytest.raises(StepFailedError):
        order.bind(client).run("order-7", {"total": 42})
    source = """
from typing import Any
from milepost import Workflow

order = Workflow("order", dict[str, Any])

@order.step(at_most_once=True)
def charge(state): raise AssertionError
"""
    (tmp_path / "shop_of_test.py").write_text(source, encoding="utf-8")
    command = ["resolve", "order-7", "charge", "done", "--workflow", "shop_of_test:order"]
    there = environment | {"PYTHONPATH": str(tmp_path)}
    refused = milepost(there, *command)
    assert (refused.returncode, refused.stdout) == (2, "")
    done = milepost(there, *command, "--value", '{"receipt": "r-7"}', "--yes")
    assert done.returncode == 0
    assert done.stdout.startswith("resolved step 'charge' of workflow 'order-7' as done: it is completed, checkpoint ")
    assert done.stderr == "importing shop_of_test, which runs its code\n"
    assert order.bind(client).run("order-7").state == {"total": 42, "receipt": "r-7"}
