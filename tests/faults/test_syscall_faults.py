"""G1, G2, G7: whatever system call of a commit fails, and at whichever the process dies, what was acknowledged is
there and nothing is half there.

A process runs a fixed script of batches under strace, which makes the N-th call on `data.mdb` fail, for N = 1, 2, 3…
until a run meets no fault.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest

from milepost_server.storage.verify import verify_store
from tests.support.fault_engines import open_on
from tests.support.killable_server import REPOSITORY
from tests.support.scripted_commands import batches, run_script, show

RUN_DEADLINE_S = 60.0
CALLS_MAX = 200
"""A script that makes more calls of one kind than this is not what this test was made for."""
SYSCALLS = ("fdatasync", "writev", "pwrite64")
ERRORS = [
    ("fdatasync", "error=EIO"),
    ("writev", "error=EIO"),
    ("writev", "error=ENOSPC"),
    ("writev", "retval=100"),
    ("pwrite64", "error=EIO"),
    ("pwrite64", "error=ENOSPC"),
    ("pwrite64", "retval=100"),
]
TOLD = {"NOT_COMMITTED"}

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to make system calls fail")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), needs_strace]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "data"
    open_on(path).close()
    return path


@pytest.fixture(scope="module")
def right_shows(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the store shows after 0, 1, 2… batches of the script."""
    shows: list[str] = []
    directory = tmp_path_factory.mktemp("right")
    for count in range(len(batches()) + 1):
        data_dir = directory / str(count)
        shutil.copytree(empty_store, data_dir)
        events = cast("Generator[dict[str, Any], None, None]", run_script(data_dir))
        for _ in range(count):
            assert next(events)["event"] == "acknowledged"
        # The script is broken off, which closes its engine.
        events.close()
        shows.append(shown_by(data_dir))
    return shows


def shown_by(data_dir: Path) -> str:
    engine = open_on(data_dir)
    try:
        return show(engine)
    finally:
        engine.close()


def run_under_fault(
    data_dir: Path, syscall: str, fault: str, when: str, *, is_any_file: bool = False
) -> tuple[list[dict[str, Any]], int, bool]:
    """Return what the script told, its exit code, and whether it met the fault."""
    log = data_dir.with_suffix(".strace")
    only = () if is_any_file else ("-P", str(data_dir / "store" / "data.mdb"))
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", str(log), *only),
            *("-e", f"trace={','.join({*SYSCALLS, syscall})}", "-e", f"inject={syscall}:{fault}:when={when}"),
            *(sys.executable, "-m", "tests.support.scripted_commands", str(data_dir)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=RUN_DEADLINE_S,
        check=False,
    )
    trace = log.read_text(errors="replace")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode <= 0 or not done.stderr, done.stderr.decode()
    return events, done.returncode, "(INJECTED)" in trace or "SIGKILL" in trace


@pytest.mark.parametrize("syscall,fault", ERRORS, ids=[f"{call}-{fault}" for call, fault in ERRORS])
def test_a_call_that_fails_once_is_told_and_costs_nothing(
    syscall: str, fault: str, empty_store: Path, right_shows: list[str], tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()
    for number in range(1, CALLS_MAX):
        data_dir = tmp_path / str(number)
        shutil.copytree(empty_store, data_dir)

        events, code, is_met = run_under_fault(data_dir, syscall, fault, str(number))

        assert code == 0
        if not is_met:
            break
        seen.update(event["event"] for event in events if event["event"] != "acknowledged")
        check_events(events, right_shows)
        assert shown_by(data_dir) == right_shows[-1]
        assert verify_store(data_dir).problems == []
    else:
        raise AssertionError("every run met a fault")
    assert seen["refused"] + seen["unknown"] > 0
    if syscall == "pwrite64":
        # One of its calls writes the meta page.
        assert seen["unknown"] > 0
        assert seen["reopened"] == seen["unknown"]
    else:
        assert seen["unknown"] == 0


def check_events(events: list[dict[str, Any]], right_shows: list[str]) -> None:
    """Hold what a script told against what it may tell."""
    for event in events:
        kind, before, after = event["event"], *_around(event, right_shows)
        if kind == "refused":
            assert event["reasons"] == sorted(TOLD)
            assert event["shown"] == before
        elif kind == "unknown":
            assert event["read"] == "NOT_SERVING"
        elif kind == "reopened":
            assert event["shown"] in {before, after}
        elif kind == "end":
            assert event["shown"] == right_shows[-1]
        else:
            assert kind == "acknowledged"


def _around(event: dict[str, Any], right_shows: list[str]) -> tuple[str, str]:
    number = event.get("batch", 1)
    return right_shows[number - 1], right_shows[number]


@pytest.mark.parametrize("syscall", SYSCALLS)
def test_a_process_that_dies_at_a_call_leaves_all_or_nothing_of_a_batch(
    syscall: str, empty_store: Path, right_shows: list[str], tmp_path: Path
) -> None:
    ends: Counter[str] = Counter()
    for number in range(1, CALLS_MAX):
        data_dir = tmp_path / str(number)
        shutil.copytree(empty_store, data_dir)

        events, code, is_met = run_under_fault(data_dir, syscall, "signal=SIGKILL", str(number))

        if not is_met:
            assert code == 0
            break
        assert code != 0
        acknowledged = len(events)
        assert all(event["event"] == "acknowledged" for event in events)
        assert verify_store(data_dir).problems == []
        shown = shown_by(data_dir)
        assert shown in {right_shows[acknowledged], right_shows[acknowledged + 1]}
        ends["stored" if shown == right_shows[acknowledged + 1] else "not stored"] += 1
    else:
        raise AssertionError("every run met a fault")
    assert ends["not stored"] > 0


@pytest.mark.parametrize("syscall", ["mkdir", "pwrite64", "fdatasync", "fsync", "rename"])
def test_a_creation_that_is_cut_short_at_any_call_is_made_again(syscall: str, tmp_path: Path) -> None:
    for number in range(1, CALLS_MAX):
        data_dir = tmp_path / str(number)

        events, code, is_met = run_under_fault(data_dir, syscall, "signal=SIGKILL", str(number), is_any_file=True)

        if not is_met or events:
            # Beyond the creation: what follows is for the other tests.
            break
        assert code != 0
        open_on(data_dir).close()
        assert sorted(path.name for path in data_dir.iterdir()) == ["LOCK", "store"]
        assert verify_store(data_dir).problems == []
    assert number > 1, "the creation makes no such call"


def test_storage_that_stays_broken_is_told_again_until_it_is_back(
    empty_store: Path, right_shows: list[str], tmp_path: Path
) -> None:
    """Meta pages fail for a while: reads stop, reopening fails, and all goes on once a commit can be flushed."""
    met_repeated_failure = False
    for number in range(1, 12):
        data_dir = tmp_path / str(number)
        shutil.copytree(empty_store, data_dir)

        events, code, _ = run_under_fault(data_dir, "pwrite64", "error=EIO", f"{number}..{number + 5}")

        assert code == 0
        for event in events:
            if event["event"] == "not reopened":
                met_repeated_failure = True
                assert event["read"] in {"NOT_SERVING", "answered"}
        assert all(event["event"] != "given up" for event in events)
        check_events([event for event in events if event["event"] != "not reopened"], right_shows)
        assert shown_by(data_dir) == right_shows[-1]
        assert verify_store(data_dir).problems == []
    assert met_repeated_failure
