"""The commands about leases, signals and watching, over an in-memory store."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from milepost.cli.app import cli
from milepost.cli.failures import ExitCode
from milepost.cli.session import Session
from milepost.types import CANCEL_SIGNAL, WatchAfter, WatchEvent
from tests.support.stored_memory import MemoryStore
from tests.unit.client.test_cli_commands import NOW, START, Run, documents, runner_for, value

DOCUMENTED = {"kind", "workflow_id", "incarnation", "revision", "scope", "checkpoint_id", "sequence", "current_step"}
DOCUMENTED |= {"status", "definition", "signal_name", "signal_id", "holder", "lease_released"}


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(lambda: START)
    store.save("order-7", state={"total": value("42")}, current_step="price", checkpoint_id="c1", fingerprint="f1")
    store.save("order-8", state={}, checkpoint_id="d1")
    return store


@pytest.fixture
def run(store: MemoryStore) -> Run:
    return runner_for(lambda: Session(connect=lambda settings: store, now=lambda: NOW, can_ask=lambda: False))


@pytest.fixture
def run_and_ask(store: MemoryStore) -> Run:
    return runner_for(lambda: Session(connect=lambda settings: store, now=lambda: NOW, can_ask=lambda: True))


# lease


def test_a_lease_is_shown_without_its_token(run: Run, store: MemoryStore) -> None:
    token = store.acquire_lease("order-7", ttl_s=30, holder="web-3:4711").token
    shown = run("lease", "show", "order-7")
    assert shown.stdout == (
        "workflow      order-7\n"
        "held by       web-3:4711, for another 30.0 s of 30 s\n"
        "granted       2026-01-01 00:00:00 UTC (5m ago)\n"
    )
    (document,) = documents(run("lease", "show", "order-7", "--json"))
    assert document == {
        "namespace": "default",
        "workflow_id": "order-7",
        "holder": "web-3:4711",
        "ttl_s": 30.0,
        "remaining_s": 30.0,
        "grant_time": "2026-01-01T00:00:00Z",
    }
    assert str(token) not in shown.stdout


@pytest.mark.parametrize("command", [["show"], ["break", "--yes"]])
def test_no_lease_is_exit_1(run: Run, command: list[str]) -> None:
    result = run("lease", *command, "order-7")
    assert (result.exit_code, result.stdout) == (ExitCode.NEGATIVE, "")
    assert "is not leased" in result.stderr


def test_a_lease_is_broken_only_after_a_yes(run: Run, run_and_ask: Run, store: MemoryStore) -> None:
    store.acquire_lease("order-7", holder="web-3")
    assert run("lease", "break", "order-7").exit_code == ExitCode.USAGE
    no = run_and_ask("lease", "break", "order-7", input="n\n")
    assert no.exit_code == ExitCode.NEGATIVE
    assert "from web-3, for another 30.0 s of 30 s?" in no.stderr
    assert "the lease was left alone" in no.stderr
    assert store.get_lease("order-7") is not None
    yes = run_and_ask("lease", "break", "order-7", input="y\n")
    assert yes.stdout == "broke the lease of order-7, held by web-3\n"
    assert store.get_lease("order-7") is None


def test_what_a_lease_keeps_from_being_deleted_says_who_holds_it(run: Run, store: MemoryStore) -> None:
    store.acquire_lease("order-7", holder="web-3")
    result = run("delete", "order-7", "--yes")
    assert result.exit_code == ExitCode.CONFLICT
    assert "held by 'web-3'" in result.stderr
    assert "milepost lease show" in result.stderr


# signal, cancel, signals


def test_a_signal_is_sent_and_listed(run: Run, store: MemoryStore) -> None:
    sent = run("signal", "order-7", "approval", "--value", '{"by":  "me", "sum": 1.10}', "--id", "s1")
    assert sent.stdout == "sent approval to order-7: signal s1\n"
    again = run("signal", "order-7", "approval", "--value", '{"by": "me", "sum": 1.10}', "--id", "s1")
    assert again.stdout == "sent approval to order-7: signal s1 (it was there already)\n"
    listed = run("signals", "order-7")
    assert listed.stdout == ('approval  s1  2026-01-01 00:00:00 UTC (5m ago)  {"by":"me","sum":1.10}\n'), (
        "the text as it was sent"
    )
    (document,) = documents(run("signals", "order-7", "--json"))
    assert (document["name"], document["value"]) == ("approval", {"json": {"by": "me", "sum": 1.1}})
    store.save("order-7", state={}, consumed_signals=["s1"])
    late = run("signal", "order-7", "approval", "--value", '{"by":"me","sum":1.10}', "--id", "s1")
    assert late.stdout.endswith("(it was taken in already)\n")
    assert run("signals", "order-7").stderr == "no signals wait\n"


def test_a_signal_may_have_no_value(run: Run) -> None:
    (sent,) = documents(run("signal", "order-7", "go", "--id", "s1", "--json"))
    assert sent == {
        "workflow_id": "order-7",
        "signal_id": "s1",
        "name": "go",
        "replayed": False,
        "consumed": False,
        "revision": 2,
    }
    (listed,) = documents(run("signals", "order-7", "--json"))
    assert listed["value"] is None


def test_a_signal_that_cannot_be_sent_is_refused(run: Run) -> None:
    assert run("signal", "order-7", "go", "--value", "{no json").exit_code == ExitCode.USAGE
    assert run("signal", "order-9", "go").exit_code == ExitCode.NEGATIVE
    run("signal", "order-7", "go", "--id", "s1")
    assert run("signal", "order-7", "stop", "--id", "s1").exit_code == ExitCode.CONFLICT


def test_cancel_sends_the_signal_that_runners_obey_after_a_yes(run: Run, run_and_ask: Run, store: MemoryStore) -> None:
    assert run("cancel", "order-7").exit_code == ExitCode.USAGE
    no = run_and_ask("cancel", "order-7", input="n\n")
    assert "Cancel workflow 'order-7', which is running?" in no.stderr
    assert "nothing was sent" in no.stderr
    assert list(store.signals("order-7")) == []
    assert run("cancel", "order-7", "--yes").exit_code == 0
    assert [one.name for one in store.signals("order-7")] == [CANCEL_SIGNAL]
    assert run("cancel", "order-9", "--yes").exit_code == ExitCode.NEGATIVE


# workflows and stats


@pytest.mark.parametrize(
    "args, found",
    [
        (["--leased"], ["order-7"]),
        (["--unleased"], ["order-8"]),
        (["--pending"], ["order-8"]),
        (["--no-pending"], ["order-7"]),
        (["--fingerprint", "f1"], ["order-7"]),
        (["--fingerprint", "f2"], []),
    ],
)
def test_workflows_are_found_by_lease_signals_and_fingerprint(
    run: Run, store: MemoryStore, args: list[str], found: list[str]
) -> None:
    store.acquire_lease("order-7", holder="web-3")
    store.send_signal("order-8", "go")
    assert [one["workflow_id"] for one in documents(run("workflows", "--json", *args))] == found
    if not found:
        assert "no such workflows" in run("workflows", *args).stderr


def test_workflows_and_stats_tell_lease_and_signals(run: Run, store: MemoryStore) -> None:
    store.acquire_lease("order-7", holder="web-3")
    store.send_signal("order-7", "go")
    _, leased, free = run("workflows").stdout.splitlines()
    assert leased.split()[-3:] == ["web-3", "1", "5m"]
    assert free.split()[-2:] == ["0", "5m"]
    told = run("stats", "order-7").stdout
    assert "lease         web-3, for another 30.0 s of 30 s\n" in told
    assert "signals       1 pending\n" in told
    assert "lease" not in run("stats", "order-8").stdout


# watch


class WatchedStore(MemoryStore):
    """A store whose watch is interrupted once everything that was scripted has been told."""

    def watch(self, workflow_id: str = "", *, after: WatchAfter = None, definition: str | None = None):  # type: ignore[no-untyped-def]  # its own kind of stream
        return InterruptedWatch(self, super().watch(workflow_id, after=after, definition=definition))


class InterruptedWatch:
    def __init__(self, store: WatchedStore, inner: Iterator[WatchEvent]) -> None:
        self._store = store
        self._inner = inner
        self.is_closed = False

    def __enter__(self) -> InterruptedWatch:
        return self

    def __exit__(self, *error: object) -> None:
        self.is_closed = True

    def __iter__(self) -> Iterator[WatchEvent]:
        yield next(self._inner)
        token = self._store.acquire_lease("order-7", holder="web-3\x1b[2J").token
        self._store.send_signal("order-7", "go", signal_id="s1")
        self._store.save(
            "order-7", state={}, checkpoint_id="c2", current_step="charge", lease_token=token, release_lease=True
        )
        self._store.save("order-7", state={}, checkpoint_id="k", scope="child")
        for _ in range(4):
            yield next(self._inner)
        raise KeyboardInterrupt


def watched(*args: str) -> str:
    store = WatchedStore(lambda: START)
    store.save("order-7", state={}, checkpoint_id="c1", current_step="price")
    session = Session(connect=lambda settings: store, now=lambda: NOW)
    result = CliRunner().invoke(cli, ["watch", *args], obj=session)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_a_watch_writes_a_line_for_each_event_and_ends_well_with_ctrl_c() -> None:
    assert watched("order-7").splitlines() == [
        "00:05:00  order-7  started  c1  sequence 1  price  running",
        "00:05:00  order-7  lease granted  web-3\\u001b[2J",
        "00:05:00  order-7  signal sent  go  s1",
        "00:05:00  order-7  saved  c2  sequence 2  charge  running  (lease released)",
        "00:05:00  order-7  saved  child/k  sequence 3  running",
    ]


def test_a_watch_of_all_workflows_says_so() -> None:
    assert watched().splitlines()[0] == "00:05:00  (all)  started"


def test_a_watch_for_programs_has_every_field() -> None:
    events = [json.loads(line) for line in watched("order-7", "--json").splitlines()]
    assert {frozenset(event) for event in events} == {frozenset(DOCUMENTED)}
    assert [event["kind"] for event in events] == ["started", "lease_granted", "signal_sent", "saved", "saved"]
    assert [event["revision"] for event in events] == [1, 2, 3, 4, 5]
    assert (events[3]["lease_released"], events[3]["status"], events[1]["status"]) == (True, "running", None)
