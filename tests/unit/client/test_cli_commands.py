"""The commands over an in-memory store, and over a real connection where the server says what a store cannot."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from milepost import Record, Status
from milepost.cli.app import cli
from milepost.cli.failures import ExitCode, unreachable
from milepost.cli.session import Session, Settings, connect
from milepost.cli.store import StoredValue
from milepost.codecs import JSON
from milepost.errors import UnavailableError
from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.scripted_server import Abort, ScriptedServer, scripted_server
from tests.support.stored_memory import MemoryStore

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(minutes=5)


def value(text: str) -> StoredValue:
    return StoredValue(text.encode())


@pytest.fixture
def store() -> MemoryStore:
    """Three checkpoints of `order-7`: c1, c2, c3; the last one has two records."""
    store = MemoryStore(lambda: START)
    one = store.save(
        "order-7",
        state={"total": value("42.10"), "draft": value("true")},
        current_step="price",
        completed_steps=["price"],
        after="start",
        checkpoint_id="c1",
        labels={"team": "red"},
        metadata={"by": "me"},
    )
    two = store.save("order-7", state={"total": value("42.10")}, current_step="hold", after=one, checkpoint_id="c2")
    store.save(
        "order-7",
        state={"total": value('{"amount": 43}'), "note": value('"hi"')},
        current_step="charge",
        completed_steps=["charge"],
        after=two,
        checkpoint_id="c3",
        status=Status.COMPLETED,
        run_id="r1",
        records=[Record(task_id="t", value=1), Record(task_id="t", index=1, name="n", value="x")],
    )
    return store


Run = Callable[..., Result]


def runner_for(session: Callable[[], Session]) -> Run:
    def run(*args: str, **options: Any) -> Result:
        result = CliRunner().invoke(cli, args, obj=session(), **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def run(store: MemoryStore) -> Run:
    return runner_for(lambda: Session(connect=lambda settings: store, now=lambda: NOW, can_ask=lambda: False))


@pytest.fixture
def run_and_ask(store: MemoryStore) -> Run:
    return runner_for(lambda: Session(connect=lambda settings: store, now=lambda: NOW, can_ask=lambda: True))


def documents(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# workflows


def test_workflows_are_a_table(run: Run) -> None:
    header, row = run("workflows").stdout.splitlines()
    assert header.split() == [
        *("workflow", "status", "step", "checkpoints", "head", "size", "lease", "signals", "updated")
    ]
    assert row.split()[:5] == ["order-7", "completed", "charge", "3", "c3"]
    assert row.endswith("5m")


def test_workflows_are_json_lines(run: Run, store: MemoryStore) -> None:
    store.save("order-8", state={})
    one, other = documents(run("workflows", "order", "--json"))
    assert (one["workflow_id"], other["workflow_id"]) == ("order-7", "order-8")
    assert set(one) == {
        "namespace",
        "workflow_id",
        "status",
        "current_step",
        "definition",
        "labels",
        "head_checkpoint_id",
        "head_sequence",
        "last_sequence",
        "checkpoint_count",
        "scope_count",
        "stored_bytes",
        "create_time",
        "update_time",
        "revision",
        "incarnation",
        "forked_from_workflow_id",
        "lease",
        "pending_signal_count",
        "fingerprint",
    }
    assert one["update_time"] == "2026-01-01T00:00:00Z"
    assert one["labels"] == {"team": "red"}


@pytest.mark.parametrize(
    "args, found",
    [
        (["--label", "team=red"], 1),
        (["--label", "team=blue"], 0),
        (["--status", "completed", "--status", "failed"], 1),
        (["--status", "running"], 0),
        (["order-"], 1),
        (["other"], 0),
    ],
)
def test_workflows_are_filtered(run: Run, args: list[str], found: int) -> None:
    assert len(documents(run("workflows", "--json", *args))) == found


def test_no_workflows_is_an_answer_and_leaves_stdout_empty(run: Run) -> None:
    result = run("workflows", "other")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no such workflows in namespace 'default'" in result.stderr


# history


def test_history_marks_the_head(run: Run) -> None:
    header, *rows = run("history", "order-7").stdout.splitlines()
    assert header.split() == [
        "seq",
        "checkpoint",
        "parent",
        "step",
        "status",
        "steps",
        "entries",
        "size",
        "records",
        "age",
    ]
    assert rows[0].split()[:6] == ["3", "c3", "(head)", "c2", "charge", "completed"]
    assert [row.split()[0] for row in rows] == ["3", "2", "1"]
    assert "".join(rows).count("(head)") == 1


@pytest.mark.parametrize("args", [["--oldest-first"], ["--step", "charge"], ["--status", "completed"]])
def test_history_knows_the_head_whatever_is_listed(run: Run, args: list[str]) -> None:
    listed = documents(run("history", "order-7", "--json", *args))
    assert [c["checkpoint_id"] for c in listed if c["is_head"]] == ["c3"]


def test_history_marks_a_pruned_parent(run: Run, store: MemoryStore) -> None:
    store.prune("order-7", keep_last=1)
    result = run("history", "order-7")
    assert "c2 (pruned)" in result.stdout
    (checkpoint,) = documents(run("history", "order-7", "--json"))
    assert checkpoint["parent_pruned"]


def test_history_of_all_scopes_has_a_head_in_each(run: Run, store: MemoryStore) -> None:
    store.save("order-7", state={}, scope="child", checkpoint_id="k1")
    listed = documents(run("history", "order-7", "--all-scopes", "--json"))
    assert [(c["scope"], c["checkpoint_id"]) for c in listed if c["is_head"]] == [("child", "k1"), ("", "c3")]
    assert "scope" in run("history", "order-7", "--all-scopes").stdout.splitlines()[0]
    assert len(documents(run("history", "order-7", "--scope", "child", "--json"))) == 1


def test_history_shows_the_metadata_that_is_asked_for(run: Run, store: MemoryStore) -> None:
    store.save("w", state={}, after="start", metadata={"source": "input", "step": -1, "parents": {"": "x"}})
    store.save("w", state={}, metadata={"source": "loop"})
    header, *rows = run(
        "history", "w", "--metadata", "source", "--metadata", "step", "--metadata", "parents"
    ).stdout.splitlines()
    at = {name: header.index(name) for name in ("source", "parents", "status")}
    assert [row[at["source"] :].split()[0] for row in rows] == ["loop", "input"]
    assert [row[at["parents"] : at["status"]].strip() for row in rows] == ["", '{"": "x"}']


def test_history_stops_at_the_limit(run: Run) -> None:
    assert len(documents(run("history", "order-7", "--limit", "2", "--json"))) == 2


# show


def test_show_has_everything(run: Run) -> None:
    text = run("show", "order-7").stdout
    for part in (
        "checkpoint    c3 (head)",
        "status        completed",
        "run           r1",
        "2026-01-01 00:00:00 UTC (5m ago)",
        "     2  charge",
        '    {"amount": 43}',
        "  task 't', index 1, name 'n'  json, 3 B",
    ):
        assert part in text


@pytest.mark.parametrize(
    "reference, found",
    [("head", "c3"), ("head~0", "c3"), ("head~2", "c1"), ("2", "c2"), ("c2", "c2"), ("id:c1", "c1")],
)
def test_a_checkpoint_is_named_in_several_ways(run: Run, reference: str, found: str) -> None:
    (document,) = documents(run("show", "order-7", reference, "--json"))
    assert document["checkpoint_id"] == found


def test_a_beginning_of_an_id_names_it_if_no_other_fits(run: Run, store: MemoryStore) -> None:
    store.save("w", state={}, checkpoint_id="0199c2f4-5d3a-7001")
    store.save("w", state={}, checkpoint_id="0199c2f4-5d3a-7002")
    (document,) = documents(run("show", "w", "0199c2f4-5d3a-7002", "--json"))
    assert document["sequence"] == 2
    ambiguous = run("show", "w", "0199c2f4-5d")
    assert (ambiguous.exit_code, "more than one" in ambiguous.stderr) == (ExitCode.USAGE, True)
    store.delete_checkpoints("w", ["0199c2f4-5d3a-7001"])
    assert documents(run("show", "w", "0199c2f4-5d…", "--json"))[0]["sequence"] == 2


def test_an_id_of_digits_is_found_where_no_sequence_is(run: Run, store: MemoryStore) -> None:
    store.save("w", state={}, checkpoint_id="77")
    store.save("w", state={}, checkpoint_id="1")
    assert documents(run("show", "w", "77", "--json"))[0]["sequence"] == 1
    assert documents(run("show", "w", "1", "--json"))[0]["checkpoint_id"] == "77"
    assert documents(run("show", "w", "id:1", "--json"))[0]["sequence"] == 2


def test_head_goes_back_along_parents_not_sequences(run: Run, store: MemoryStore) -> None:
    for scope in ("", "child"):
        store.save("w", state={}, scope=scope, checkpoint_id=f"{scope}1")
        store.save("w", state={}, scope=scope, checkpoint_id=f"{scope}2")
    store.save("w", state={}, checkpoint_id="3")
    assert documents(run("show", "w", "head~1", "--json"))[0]["checkpoint_id"] == "2"
    missing = run("show", "w", "head~3")
    assert (missing.exit_code, "has 2 before its head" in missing.stderr) == (ExitCode.NEGATIVE, True)


@pytest.mark.parametrize(
    "args", [["nope"], ["order-7", "c9"], ["order-7", "9"], ["order-7", "--entry", "x"], ["order-7", "--scope", "s"]]
)
def test_what_is_not_there_is_exit_1_and_a_line(run: Run, args: list[str]) -> None:
    result = run("show", *args)
    assert (result.exit_code, result.stdout) == (ExitCode.NEGATIVE, "")
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_one_entry_is_shown_alone(run: Run) -> None:
    assert run("show", "order-7", "--entry", "note").stdout == '  note  json, 4 B\n    "hi"\n'


def test_raw_writes_the_stored_bytes(run: Run) -> None:
    assert run("show", "order-7", "c1", "--entry", "total", "--raw").stdout_bytes == b"42.10"


@pytest.mark.parametrize("args", [["--raw"], ["--raw", "--entry", "a", "--entry", "b"], ["1", "--sequence", "1"]])
def test_options_that_contradict_are_refused(run: Run, args: list[str]) -> None:
    assert run("show", "order-7", *args).exit_code == ExitCode.USAGE


def test_show_as_json_has_the_words_of_the_protocol(run: Run) -> None:
    (document,) = documents(run("--json", "show", "order-7", "c1"))
    assert document["state"] == {"draft": {"json": True}, "total": {"json": 42.1}}
    assert document["metadata"] == {"by": "me"}
    assert document["completed_steps"] == ["price"]
    assert (document["is_head"], document["head_checkpoint_id"]) == (False, "c3")
    fields = {field.name for field in checkpoint_pb2.Checkpoint.DESCRIPTOR.fields}
    assert fields - set(document) == set()
    assert set(document) - fields == {"is_head", "head_checkpoint_id"}
    # Numbers keep the form in which they were saved.
    assert '"json": 42.10' in run("--json", "show", "order-7", "c1").stdout


# diff


def test_equal_checkpoints_are_exit_0_and_silence(run: Run) -> None:
    result = run("diff", "order-7", "c3", "head")
    assert (result.exit_code, result.stdout) == (0, "")


def test_without_names_the_last_step_is_shown(run: Run) -> None:
    result = run("diff", "order-7")
    assert result.exit_code == ExitCode.NEGATIVE
    assert result.stdout.splitlines() == [
        "--- order-7 2 c2",
        "+++ order-7 3 c3",
        "~ step  hold → charge",
        "~ status  running → completed",
        "completed steps",
        "  + charge",
        "entries",
        '  + note  "hi"',
        '  ~ total  42.10 → {"amount":43}',
    ]


def test_a_diff_between_workflows_is_json_too(run: Run, store: MemoryStore) -> None:
    store.fork("order-7", "copy", checkpoint_id="c1")
    (document,) = documents(run("diff", "order-7", "1", "head", "--other-workflow", "copy", "--json"))
    assert document["equal"]
    (document,) = documents(run("diff", "order-7", "1", "2", "--json"))
    assert document["entries"] == [
        {"entry_key": "draft", "change": "removed", "before": {"json": True}, "after": None, "places": []}
    ]
    assert document["metadata"] == [{"path": "$.by", "change": "removed", "before": "me"}]


# stats


def test_stats_of_one_workflow(run: Run) -> None:
    text = run("stats", "order-7").stdout
    assert "checkpoints   3 in 1 scope" in text
    assert "labels        team=red" in text
    assert documents(run("stats", "order-7", "--json")) == documents(run("workflows", "--json"))


def test_stats_of_a_namespace(run: Run, store: MemoryStore) -> None:
    store.save("w", state={})
    (document,) = documents(run("stats", "--json"))
    assert document["by_status"]["completed"]["checkpoint_count"] == 3
    assert (document["workflow_count"], document["checkpoint_count"]) == (2, 4)
    assert run("stats").stdout.splitlines()[-1].split()[:3] == ["all", "2", "4"]


# save


def test_save_takes_entries_as_they_are_written(run: Run, store: MemoryStore) -> None:
    result = run(
        *("save", "w", "--entry", 'a={"x": 1.10}', "--entry", 'b={"$milepost":["tuple",[1]]}', "--step", "s"),
        *("--status", "waiting", "--metadata", '{"m": 1}', "--label", "k=v", "--id", "c", "--after", "start"),
    )
    assert result.stdout == "saved w: checkpoint c, sequence 1\n"
    saved = store.load("w")
    assert (saved.state["a"].text, saved.state["b"].text) == ('{"x":1.10}', '{"$milepost":["tuple",[1]]}')
    assert (saved.current_step, saved.status, saved.metadata) == ("s", Status.WAITING, {"m": 1})
    assert store.workflow("w").labels == {"k": "v"}
    # A tag that was copied from `show` means what it meant there.
    assert JSON.decode(saved.state["b"].content) == (1,)


def test_a_state_comes_from_stdin_and_entries_go_on_top(run: Run, store: MemoryStore) -> None:
    run("save", "w", "--state", "-", "--entry", "b=3", input='{"a": 1,\n "b": 2}')
    assert {key: found.text for key, found in store.load("w").state.items()} == {"a": "1", "b": "3"}


def test_a_state_comes_from_a_file(run: Run, store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert run("save", "w", "--state", str(tmp_path / "state.json")).exit_code == 0
    assert store.load("w").state == {}


def test_what_was_shown_can_be_saved_again(run: Run, store: MemoryStore) -> None:
    (document,) = documents(run("show", "order-7", "c1", "--json"))
    state = json.dumps({key: entry["json"] for key, entry in document["state"].items()})
    run("save", "copy", "--state", "-", input=state)
    assert store.load("copy").state["draft"] == value("true")


def test_the_same_save_twice_is_one_checkpoint(run: Run) -> None:
    args = ("save", "order-7", "--entry", "a=1", "--id", "c4", "--after", "c3", "--json")
    (one,), (other,) = documents(run(*args)), documents(run(*args))
    assert (one["sequence"], one["replayed"]) == (4, False)
    assert (other["sequence"], other["replayed"]) == (4, True)


def test_a_head_that_moved_is_a_conflict(run: Run) -> None:
    for after in ("c2", "start", "head~1"):
        result = run("save", "order-7", "--entry", "a=1", "--after", after)
        assert (result.exit_code, result.stdout) == (ExitCode.CONFLICT, "")
        assert "hint: somebody saved in between" in result.stderr
        assert ("at sequence 3, not none;" in result.stderr) is (after == "start")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--entry", "a"],
        ["--entry", "a=text"],
        ["--entry", "a=NaN"],
        ["--entry", "=1"],
        ["--entry", "a=1", "--entry", "a=2"],
        ["--metadata", "[1]", "--entry", "a=1"],
        ["--metadata", "{", "--entry", "a=1"],
        ["--label", "k", "--entry", "a=1"],
        ["--status", "done", "--entry", "a=1"],
        ["--state", "-"],
    ],
)
def test_bad_input_saves_nothing(run: Run, store: MemoryStore, args: list[str]) -> None:
    result = run("save", "w", *args, input="[1]")
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert [info.workflow_id for info in store.workflows()] == ["order-7"]


def test_a_text_without_quotes_is_told_how_to_be_written(run: Run) -> None:
    assert "--entry 'a=\"text\"'" in run("save", "w", "--entry", "a=text").stderr


# fork, prune, delete


def test_fork_takes_the_line_up_to_a_checkpoint(run: Run, store: MemoryStore) -> None:
    assert run("fork", "order-7", "copy", "--at", "2").stdout == "forked order-7 to copy: 2 checkpoints\n"
    assert store.load("copy").current_step == "hold"
    assert run("fork", "order-7", "copy").exit_code == ExitCode.CONFLICT


def test_prune_without_a_terminal_or_yes_is_refused(run: Run, store: MemoryStore) -> None:
    result = run("prune", "order-7", "--keep", "1")
    assert result.exit_code == ExitCode.USAGE
    assert "Delete 2 checkpoints of workflow 'order-7'" in result.stderr
    assert "--yes" in result.stderr
    assert len(list(store.list("order-7"))) == 3


def test_prune_counts_first_and_deletes_on_yes(run: Run, store: MemoryStore) -> None:
    assert run("prune", "order-7", "--keep", "1", "--dry-run").stdout == "would delete 2 checkpoints of order-7\n"
    assert len(list(store.list("order-7"))) == 3
    assert documents(run("prune", "order-7", "--keep", "1", "--yes", "--json")) == [
        {"workflow_id": "order-7", "keep_last": 1, "dry_run": False, "deleted": 2}
    ]


def test_nothing_to_prune_asks_nothing(run: Run) -> None:
    assert run("prune", "order-7", "--keep", "3").stdout == "deleted 0 checkpoints of order-7\n"


@pytest.mark.parametrize("answer, exit_code, left", [("y\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1)])
def test_delete_asks_and_does_as_told(
    run_and_ask: Run, store: MemoryStore, answer: str, exit_code: int, left: int
) -> None:
    result = run_and_ask("delete", "order-7", input=answer)
    assert result.exit_code == exit_code
    assert "Delete workflow 'order-7' with 3 checkpoints in 1 scope?" in result.stderr
    assert len(list(store.workflows())) == left


def test_a_question_that_meets_the_end_of_input_is_not_confirmed(run_and_ask: Run, store: MemoryStore) -> None:
    result = run_and_ask("delete", "order-7", input="")
    assert (result.exit_code, result.stdout) == (ExitCode.INTERRUPTED, "")
    assert result.stderr.endswith("\nerror: not confirmed: nothing was deleted\n")
    assert store.load("order-7").sequence == 3


def test_delete_of_nothing_is_exit_1(run: Run) -> None:
    assert run("delete", "nope", "--yes").exit_code == ExitCode.NEGATIVE


def test_single_checkpoints_are_deleted(run: Run, store: MemoryStore) -> None:
    result = run("delete", "order-7", "--checkpoint", "c1", "--checkpoint", "2", "--yes")
    assert result.stdout == "deleted 2 checkpoints of order-7\n"
    assert [c.checkpoint_id for c in store.list("order-7")] == ["c3"]


def test_one_misspelt_checkpoint_deletes_none(run: Run, store: MemoryStore) -> None:
    assert run("delete", "order-7", "--checkpoint", "c1", "--checkpoint", "x9", "--yes").exit_code == ExitCode.NEGATIVE
    assert len(list(store.list("order-7"))) == 3


def test_a_run_is_deleted_after_counting_it(run: Run, run_and_ask: Run, store: MemoryStore) -> None:
    result = run_and_ask("delete", "order-7", "--run", "r1", input="n\n")
    assert "1 checkpoint of run 'r1'" in result.stderr
    assert run("delete", "order-7", "--run", "r1", "--yes").exit_code == 0
    assert run("delete", "order-7", "--run", "r1", "--yes").exit_code == ExitCode.NEGATIVE
    assert [c.checkpoint_id for c in store.list("order-7")] == ["c2", "c1"]


def test_a_scope_alone_deletes_nothing(run: Run) -> None:
    assert run("delete", "order-7", "--scope", "child", "--yes").exit_code == ExitCode.USAGE


# what data cannot do


def test_ids_steps_and_values_cannot_drive_a_terminal(run: Run, store: MemoryStore) -> None:
    evil = "\x1b]0;x\x07\u202e[red]"
    store.save(evil, state={evil: value(json.dumps(evil, ensure_ascii=False))}, current_step=evil)
    store.save(
        evil, state={evil: value("1")}, metadata={evil: evil}, records=[Record(task_id=evil, name=evil, value=evil)]
    )
    for args in (
        ["workflows"],
        ["workflows", "--json"],
        ["history", evil],
        ["show", evil],
        ["show", evil, "--json"],
        ["show", evil, "nope"],
        ["diff", evil],
        ["diff", evil, "--json"],
        ["stats", evil],
        ["save", evil, "--entry", "a=1"],
        ["save", evil, "--entry", f"a={evil}"],
        ["save", evil, "--entry", evil],
        ["fork", evil, "order-7"],
        ["prune", evil, "--keep", "1"],
        ["delete", evil, "--checkpoint", "head"],
        ["delete", evil],
        [evil],
    ):
        result = run(*args)
        assert not set("\x1b\x07\u202e") & set(result.stdout + result.stderr), args


# the connection


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def run_at(server: ScriptedServer) -> Run:
    return runner_for(lambda: Session(connect=connect, now=lambda: NOW, settings=Settings(target=server.target)))


def opaque(**values: checkpoint_pb2.Value) -> pb.LoadResponse:
    found = checkpoint_pb2.Checkpoint(
        workflow_id="w", checkpoint_id="c", sequence=1, status=checkpoint_pb2.STATUS_RUNNING, state=values
    )
    return pb.LoadResponse(checkpoint=found, head_checkpoint_id="c")


def test_an_opaque_value_is_shown_by_codec_size_and_first_bytes(server: ScriptedServer, run_at: Run) -> None:
    server.on("Load", opaque(blob=checkpoint_pb2.Value(data=b"\x80\x04", codec="pickle:x")))
    assert "  blob  pickle:x, 2 B\n    80 04\n" in run_at("show", "w").stdout


def test_opaque_data_is_base64_in_json_and_itself_when_raw(server: ScriptedServer, run_at: Run) -> None:
    answer = opaque(blob=checkpoint_pb2.Value(data=b"\x80\xff\n", codec="p"))
    server.on("Load", answer, answer)
    (document,) = documents(run_at("show", "w", "--json"))
    assert document["state"]["blob"] == {"data": base64.b64encode(b"\x80\xff\n").decode(), "codec": "p"}
    assert run_at("show", "w", "--entry", "blob", "--raw").stdout_bytes == b"\x80\xff\n"


def test_data_that_only_calls_itself_json_is_opaque(server: ScriptedServer, run_at: Run) -> None:
    server.on(
        "Load",
        opaque(good=checkpoint_pb2.Value(data=b"[1]", codec="json"), bad=checkpoint_pb2.Value(data=b"[", codec="json")),
    )
    (document,) = documents(run_at("show", "w", "--json"))
    assert document["state"] == {"good": {"json": [1]}, "bad": {"data": "Ww==", "codec": "json"}}


@pytest.mark.parametrize(
    "answer, exit_code",
    [
        (Abort(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND"), ExitCode.NEGATIVE),
        (Abort(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), ExitCode.USAGE),
        (Abort(grpc.StatusCode.PERMISSION_DENIED), ExitCode.USAGE),
        (Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL"), ExitCode.UNAVAILABLE),
        (Abort(grpc.StatusCode.FAILED_PRECONDITION, "PARENT_NOT_FOUND"), ExitCode.CONFLICT),
        (Abort(grpc.StatusCode.ABORTED, "HEAD_MOVED"), ExitCode.CONFLICT),
        (Abort(grpc.StatusCode.DATA_LOSS, "RECORD_DAMAGED"), ExitCode.BROKEN),
        (Abort(grpc.StatusCode.INTERNAL, "INTERNAL_ERROR"), ExitCode.BROKEN),
        (Abort(grpc.StatusCode.UNIMPLEMENTED), ExitCode.BROKEN),
        (Abort(grpc.StatusCode.NOT_FOUND, "", "a proxy"), ExitCode.BROKEN),
    ],
)
def test_every_failure_has_its_exit_code_and_a_line(
    server: ScriptedServer, run_at: Run, answer: Abort, exit_code: ExitCode
) -> None:
    server.on("Save", answer)
    result = run_at("save", "w", "--entry", "a=1")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("error: ") == 1


def test_a_server_that_does_not_serve_is_still_asked(server: ScriptedServer, run_at: Run) -> None:
    server.on("Check", health(b"\x08\x02")).on("ListWorkflows", pb.ListWorkflowsResponse())
    assert run_at("workflows").exit_code == 0


def test_health_tells_whether_the_server_serves(server: ScriptedServer, run_at: Run) -> None:
    server.on("Check", *[health(b"\x08\x01")] * 4)
    serving = run_at("health")
    assert (serving.exit_code, serving.stdout) == (0, f"the server at {server.target} serves\n")
    assert documents(run_at("health", "--json")) == [{"target": server.target, "serving": True}]


def test_health_of_a_server_that_does_not_serve_is_no(server: ScriptedServer, run_at: Run) -> None:
    server.on("Check", *[health(b"\x08\x02")] * 2)
    result = run_at("health")
    assert (result.exit_code, result.stdout) == (ExitCode.UNAVAILABLE, "")
    assert "does not serve now" in result.stderr
    server.stop()
    assert run_at("--timeout", "0.3", "health").exit_code == ExitCode.UNAVAILABLE


def health(answer: bytes) -> Any:
    return lambda request, context: answer


def test_no_server_is_told_soon_with_the_target_that_was_tried(server: ScriptedServer, run_at: Run) -> None:
    server.stop()
    result = run_at("--timeout", "0.3", "workflows")
    assert result.exit_code == ExitCode.UNAVAILABLE
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: no milepost-server answers at {server.target}: ")
    assert "make run" in second
    assert "--target" in second


@pytest.mark.parametrize(
    "said, told",
    [
        (
            "last error: UNKNOWN: ipv4:127.0.0.1:9: Failed to connect to remote host: Connection refused",
            "Connection refused",
        ),
        (
            "errors resolving a:1: [field:hostname lookup error:address lookup failed for a:1: Domain name not found]",
            "Domain name not found",
        ),
        (
            "last error: UNKNOWN: ipv4:1.1.1.1:9: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: OK",
            "Tls handshake failed",
        ),
        ("connect failed: addr: unix:/n error: No such file or directory", "No such file or directory"),
        ("Socket closed", "Socket closed"),
    ],
)
def test_why_nothing_answers_is_told_without_the_words_around_it(said: str, told: str) -> None:
    failure = unreachable(
        UnavailableError(f"ping: {said} (UNAVAILABLE), after 5 attempts in 0.6 s. Is it running?"), "a:1"
    )
    assert failure.message == f"no milepost-server answers at a:1: {told}"
    assert ("--tls" in failure.hint) is ("handshake" in said)


@pytest.mark.parametrize("option", ["--target", "--namespace"])
def test_an_option_that_is_empty_is_refused(run_at: Run, option: str) -> None:
    result = run_at("delete", "w", "--yes", option, "")
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")


def test_a_token_goes_to_the_server_and_nowhere_else(
    server: ScriptedServer, run_at: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("canary-token")
    monkeypatch.setenv("MILEPOST_TOKEN_FILE", str(tmp_path / "token"))
    server.on("ListWorkflows", Abort(grpc.StatusCode.UNAUTHENTICATED))
    result = run_at("workflows")
    assert result.exit_code == ExitCode.USAGE
    assert server.servicer.metadata[-1]["authorization"] == "Bearer canary-token"
    assert "canary" not in result.output + result.stderr
    elsewhere = run_at("--target", "example.com:1", "workflows")
    assert (elsewhere.exit_code, "--tls" in elsewhere.stderr) == (ExitCode.USAGE, True)
    assert "canary" not in elsewhere.output + elsewhere.stderr


def test_a_token_file_that_is_not_there_is_named(run_at: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MILEPOST_TOKEN_FILE", str(tmp_path / "nope"))
    result = run_at("workflows")
    assert (result.exit_code, "nope" in result.stderr) == (ExitCode.USAGE, True)


def test_options_stand_before_or_after_the_command(server: ScriptedServer, run_at: Run) -> None:
    server.on("ListWorkflows", pb.ListWorkflowsResponse(), pb.ListWorkflowsResponse())
    run_at("--namespace", "a", "workflows")
    run_at("-n", "a", "workflows", "-n", "b", "--target", server.target)
    assert [request.namespace for request in server.asked("ListWorkflows")] == ["a", "b"]


# the edge


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(cli.commands))])
def test_every_command_has_help(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize("group, columns", [(["lease"], 60), ([], 60), ([], 80)])
def test_the_list_of_commands_cuts_no_summary(run: Run, group: list[str], columns: int) -> None:
    text = run(*group, "--help", terminal_width=columns).stdout
    listed = text[text.index("Commands:") :]
    summaries = [command.get_short_help_str(1_000) for command in (cli.commands["lease"], *cli.commands.values())]
    assert "..." not in listed
    assert group or all(summary in " ".join(listed.split()) for summary in summaries)


def test_help_lists_the_exit_codes(run: Run) -> None:
    text = run("--help").stdout
    listed = {int(line.split()[0]) for line in text.splitlines() if line.strip()[:1].isdigit() and "its" not in line}
    assert listed == {code.value for code in ExitCode if code is not ExitCode.READER_GONE}


def test_a_defect_is_a_line_too(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def broken(*args: object, **options: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(store, "workflow", broken)
    result = run("stats", "w")
    assert result.exit_code == ExitCode.BROKEN
    assert result.stderr.startswith("error: a defect of this tool: KeyError: 'x'\n")
    assert "Traceback" not in result.stderr
    assert "Traceback" in run("--traceback", "stats", "w").stderr


def test_ctrl_c_is_quiet(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "workflow", interrupted)
    result = run("stats", "w")
    assert (result.exit_code, result.output) == (ExitCode.INTERRUPTED, "")
