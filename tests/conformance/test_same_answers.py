"""The in-memory stores give a server's answers and a server's errors, to whatever is asked of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost import AsyncInMemoryStore, InMemoryStore, MilepostError, Record, Saved, SaveItem, Status, _calls
from milepost.codecs import JSON
from milepost.errors import CheckpointExistsError, CodecError, PredecessorFailedError
from milepost.testing import LocalServer, local_server
from milepost.testing._contract_support import BlockingStore

MALFORMED: Final = {"lone-surrogate": "a\ud800", "nul": "a\0b", "empty": "", "long": "x" * 3_000}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    # Each example has a namespace of its own.
    with local_server(env={"MILEPOST_SERVER__LIMITS__NAMESPACES_MAX": "1000000"}) as server:
        yield server


@pytest.fixture
def stores(server: LocalServer) -> Iterator[dict[str, Any]]:
    """Give an empty store of each kind, all of one namespace's name."""
    server.namespace = f"test-{next(_numbers)}"
    async_server_namespace = f"{server.namespace}-async"
    with server.client() as client:
        memory = InMemoryStore(namespace=server.namespace)
        server.namespace = async_server_namespace
        with (
            BlockingStore(server.async_client()) as async_client,
            BlockingStore(AsyncInMemoryStore(namespace=async_server_namespace)) as async_memory,
        ):
            yield {"Client": client, "InMemory": memory, "AsyncClient": async_client, "AsyncInMemory": async_memory}


def calls_with(text: str) -> dict[str, Callable[[Any], object]]:
    """Return one call for each text that a caller gives, named by the argument."""

    def record(**texts: str) -> list[Record]:
        fields: dict[str, Any] = {"task_id": "t", "value": 1, **texts}
        return [Record(**fields)]

    def first_event(store: Any, workflow_id: str, **options: Any) -> object:
        with store.watch(workflow_id, **options) as watch:
            return next(iter(watch)).kind

    def saved(workflow_id: str, store: Any, **options: Any) -> object:
        return store.save(workflow_id, state={}, **options).sequence

    def appended(store: Any, records: list[Record]) -> object:
        return store.append_records("w", "c", records)

    def listed(store: Any, **options: Any) -> object:
        return len([*store.list("w", **options)])

    def found_workflows(store: Any, **options: Any) -> object:
        return len([*store.workflows(**options)])

    calls: dict[str, Callable[[Any], object]] = {
        "save workflow_id": lambda s: s.save(text, state={}),
        "save state key": lambda s: s.save("w1", state={text: 1}),
        "save state value": lambda s: s.save("w1", state={"key": [text]}),
        "save labels key": lambda s: s.save("w1", state={}, labels={text: "x"}),
        "save labels value": lambda s: s.save("w1", state={}, labels={"x": text}),
        "save metadata key": lambda s: s.save("w1", state={}, metadata={text: 1}),
        "save metadata value": lambda s: s.save("w1", state={}, metadata={"x": [text]}),
        "save record value": lambda s: s.save("w1", state={}, records=record(value=text)),
        "save_all workflow_id": lambda s: s.save_all([SaveItem(workflow_id=text, state={}, checkpoint_id="c")])[0],
        "save_all labels": lambda s: s.save_all([SaveItem(workflow_id="w1", state={}, labels={"x": text})])[0],
        "load workflow_id": lambda s: s.load(text),
        "load checkpoint_id": lambda s: s.load("w", checkpoint_id=text),
        "load scope": lambda s: s.load("w", scope=text).sequence,
        "load entries": lambda s: s.load("w", entries=[text]).state,
        "list workflow_id": lambda s: len([*s.list(text)]),
        "list metadata_contains": lambda s: len([*s.list("w", metadata_contains={"k": text})]),
        "append workflow_id": lambda s: s.append_records(text, "c", record()),
        "append checkpoint_id": lambda s: s.append_records("w", text, record()),
        "append scope": lambda s: s.append_records("w", "c", record(), scope=text),
        "append twice": lambda s: s.append_records("w", "c", record() + record(name=text)),
        "save twice": lambda s: s.save("w", state={}, records=record() + record(name=text)),
        "append value": lambda s: s.append_records("w", "c", record(value=text)),
        "history workflow_id": lambda s: len([*s.entry_history(text, "a")]),
        "history entries": lambda s: len([*s.entry_history("w", text)]),
        "history list of entries": lambda s: len([*s.entry_history("w", ["a", text])]),
        "history scope": lambda s: len([*s.entry_history("w", "a", scope=text)]),
        "history checkpoint_id": lambda s: len([*s.entry_history("w", "a", checkpoint_id=text)]),
        "workflows labels key": lambda s: len([*s.workflows(labels={text: "x"})]),
        "workflows labels value": lambda s: len([*s.workflows(labels={"x": text})]),
        "workflow": lambda s: s.workflow(text),
        "fork source": lambda s: s.fork(text, "new"),
        "fork target": lambda s: s.fork("w", text),
        "fork checkpoint_id": lambda s: s.fork("w", "new", checkpoint_id=text),
        "fork scope": lambda s: s.fork("w", "new2", scope=text).workflow_id,
        "fork fork_id": lambda s: s.fork("w", "new3", fork_id=text).workflow_id,
        "delete": lambda s: s.delete(text),
        "delete_checkpoints workflow_id": lambda s: s.delete_checkpoints(text, ["x"]),
        "delete_checkpoints ids": lambda s: s.delete_checkpoints("w", ["x", text]),
        "delete_checkpoints run_ids": lambda s: s.delete_checkpoints("w", run_ids=["x", text]),
        "delete_checkpoints scope": lambda s: s.delete_checkpoints("w", ["x"], scope=text),
        "prune": lambda s: s.prune(text),
        "acquire workflow_id": lambda s: s.acquire_lease(text),
        "acquire holder": lambda s: s.acquire_lease("w2", holder=text).holder,
        "acquire request_id": lambda s: s.acquire_lease("w3", request_id=text).ttl_s,
        "renew": lambda s: s.renew_lease(text, 1),
        "release": lambda s: s.release_lease(text, 1),
        "break": lambda s: s.break_lease(text),
        "get_lease": lambda s: s.get_lease(text),
        "signal workflow_id": lambda s: s.send_signal(text, "name"),
        "signal name": lambda s: s.send_signal("w", text).replayed,
        "signal id": lambda s: s.send_signal("w", "name", signal_id=text).replayed,
        "signal value": lambda s: s.send_signal("w", "name", text).replayed,
        "signals workflow_id": lambda s: len([*s.signals(text)]),
        "signals name": lambda s: len([*s.signals("w", name=text)]),
        "definition_manifest": lambda s: s.definition_manifest(text),
        "watch workflow_id": lambda s: first_event(s, text),
        "watch definition": lambda s: first_event(s, "w", definition=text),
    }
    for name in ("scope", "checkpoint_id", "current_step", "definition", "fingerprint", "run_id", "manifest"):
        calls[f"save {name}"] = functools.partial(saved, f"of-{name}", **{name: text})
    for name in ("completed_steps", "history_entries", "consumed_signals"):
        calls[f"save {name}"] = functools.partial(saved, f"of-{name}", **{name: ["x", text]})
    for name in ("task_id", "path", "name"):
        calls[f"save record {name}"] = functools.partial(saved, "w", records=record(**{name: text}))
        calls[f"append record {name}"] = functools.partial(appended, records=record(**{name: text}))
    for name in ("scope", "current_step", "before", "run_id"):
        calls[f"list {name}"] = functools.partial(listed, **{name: text})
    for name in ("prefix", "definition", "fingerprint"):
        calls[f"workflows {name}"] = functools.partial(found_workflows, **{name: text})
    return calls


def outcome(call: Callable[[], object]) -> object:
    """Return what a call gave: the answer, or what its caller can tell of the error."""
    try:
        answer = call()
    except MilepostError as error:
        answer = error
    except (TypeError, ValueError) as error:
        return type(error).__name__
    if not isinstance(answer, MilepostError):
        return answer if isinstance(answer, (int, str, list, dict, type(None))) else type(answer).__name__
    told = {key: value for key, value in answer.metadata.items() if key not in {"rule", "found"}}
    # An id that the store or the client has made differs.
    checkpoint_id = answer.checkpoint_id if len(answer.checkpoint_id) != 36 else "made"
    return (
        (type(answer).__name__, answer.reason, told, getattr(answer, "path", "")),
        (answer.workflow_id, answer.scope, checkpoint_id),
    )


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_each_text_of_each_call_is_refused_alike(stores: dict[str, Any], text: str) -> None:
    """Whatever a server refuses is refused in memory too, and named by its field."""
    for store in stores.values():
        store.save("w", state={"a": 1}, checkpoint_id="c")
    for name, call in calls_with(text).items():
        found = {kind: outcome(lambda: call(store)) for kind, store in stores.items()}  # noqa: B023
        expected = found["Client"]
        assert found == dict.fromkeys(found, expected), name


@pytest.mark.parametrize(
    "contained",
    [
        {"k": "x" * 65_536},
        {"k": json.loads("[" * 40 + "]" * 40)},
        {"k": [{}] * 101},
        {"k": {1}},
    ],
    ids=["large", "deep", "many items", "no JSON"],
)
def test_a_filter_is_refused_alike_before_anything_is_looked_at(
    stores: dict[str, Any], contained: dict[str, Any]
) -> None:
    def listed(store: Any) -> object:
        return outcome(lambda: [*store.list("none", metadata_contains=contained)])

    found = {kind: listed(store) for kind, store in stores.items()}
    expected = found["Client"]
    assert "Limit" in str(expected) or "Codec" in str(expected)
    assert found == dict.fromkeys(found, expected)


def test_a_text_that_is_no_unicode_is_told_by_its_field(stores: dict[str, Any]) -> None:
    """Half of a surrogate pair has no form on the wire, whichever argument has it; nothing else is raised."""
    for store in stores.values():
        store.save("w", state={"a": 1}, checkpoint_id="c")
        for name, call in calls_with("a\ud800").items():
            with pytest.raises(MilepostError) as caught:
                raise cast("MilepostError", call(store))  # save_all returns its errors
            error = caught.value
            assert error.metadata.get("field") or getattr(error, "path", ""), name
            assert "surrogate" in str(error), name
            assert str(error).isprintable(), name


def test_an_item_builds_on_the_checkpoint_that_it_names_and_on_no_other_of_that_id(stores: dict[str, Any]) -> None:
    for store in stores.values():
        first = SaveItem(workflow_id="w", state={"a": 1, "b": 1}, checkpoint_id="c1", after="start")
        other = SaveItem(workflow_id="v", state={"a": 2, "b": 1}, checkpoint_id="c1", after="start")
        second = SaveItem(workflow_id="w", state={"a": 2, "b": 2}, checkpoint_id="c2", after=first)
        assert [type(result) for result in store.save_all([first, other, second])] == [Saved] * 3
        assert store.load("w").state == {"a": 2, "b": 2}


def test_an_item_builds_on_nothing_that_failed_in_an_earlier_request(
    stores: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store has under that id is something else, and an increment on it would be neither's state."""
    monkeypatch.setattr(_calls, "ITEMS_MAX", 2)
    for store in stores.values():
        store.save("w", state={"a": "theirs", "b": 1}, checkpoint_id="c1", after="start")
        filler = SaveItem(workflow_id="v", state={})
        first = SaveItem(workflow_id="w", state={"a": "mine", "b": 1}, checkpoint_id="c1", after="start")
        second = SaveItem(workflow_id="w", state={"a": "mine", "b": 2}, checkpoint_id="c2", after=first)
        third = SaveItem(workflow_id="w", state={"a": "mine", "b": 3}, checkpoint_id="c3", after=second)
        _, *failed = store.save_all([filler, first, second, third])
        assert [type(error) for error in failed] == [
            CheckpointExistsError,
            PredecessorFailedError,
            PredecessorFailedError,
        ]
        assert failed[2].metadata == {"index": "3", "predecessor_index": "2"}
        assert store.load("w").state == {"a": "theirs", "b": 1}


@pytest.mark.parametrize("items_max", [1, 2, 3, 9])
def test_of_items_under_one_id_the_last_one_before_counts(
    stores: dict[str, Any], monkeypatch: pytest.MonkeyPatch, items_max: int
) -> None:
    """However they are spread over requests: if that one was stored the id has not failed, else it has."""
    monkeypatch.setattr(_calls, "ITEMS_MAX", items_max)

    def outcomes(
        store: Any, workflow_id: str, *items: tuple[str, dict[str, Any], int | str | None, dict[str, Any]]
    ) -> str:
        made: list[SaveItem] = []
        follows: Any
        for checkpoint_id, state, after, options in items:
            follows = made[after] if isinstance(after, int) else after
            made.append(
                SaveItem(workflow_id=workflow_id, state=state, checkpoint_id=checkpoint_id, after=follows, **options)
            )
        results = store.save_all(made)
        return " ".join(type(result).__name__.removesuffix("Error") for result in results)

    unsendable, replaces = {"labels": {"l": "\ud800"}}, {"replace": True}
    one, two, three = {"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 3}
    for store in stores.values():
        found = outcomes(store, "v", ("c1", one, "start", unsendable), ("c1", two, "start", {}), ("c2", three, 0, {}))
        assert found == "InvalidRequest Saved Saved"
        assert store.load("v").state == three
        found = outcomes(store, "w", ("c1", one, "start", {}), ("c1", two, "start", unsendable), ("c2", three, 0, {}))
        assert found == "Saved InvalidRequest PredecessorFailed"
        found = outcomes(
            store, "x", ("c1", one, "start", {}), ("c2", two, 0, {}), ("c1", two, "start", {}), ("c3", three, 0, {})
        )
        assert found == "Saved Saved CheckpointExists PredecessorFailed"
        found = outcomes(store, "y", ("c1", one, "start", {}), ("c1", two, None, replaces), ("c2", three, 0, {}))
        assert found == "Saved Saved Saved"
        assert store.load("y").state == three


class Fickle:
    """A codec that at some time cannot read what it wrote, as after a type was renamed."""

    name = "fickle"
    reads = True

    def encode(self, value: object, path: str = "$") -> bytes:
        return str(JSON.encode(value, path)).encode()

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        if not self.reads:
            raise CodecError(f"cannot decode {path}", path=path, type="order")
        return JSON.decode(content, path)


def test_a_value_that_cannot_be_read_is_told_with_where_it_is(server: LocalServer) -> None:
    """By each way to read one: a program that reads many checkpoints has to know which one it was."""
    codec, namespace = Fickle(), f"test-{next(_numbers)}"
    server.namespace = namespace
    with server.client(codec=codec) as client:
        for store in (client, InMemoryStore(namespace=namespace, codec=codec)):
            codec.reads = True
            records = [Record(task_id="t", value=1)]
            store.save("w", state={"a": 1}, checkpoint_id="c1", scope="s", records=records)
            store.send_signal("w", "n", 1, signal_id="s1")
            codec.reads = False
            reads: dict[str, Callable[[], Any]] = {
                "load": lambda: store.load("w", scope="s", checkpoint_id="c1"),  # noqa: B023
                "list": lambda: [*store.list("w", scope=None, with_state=True)],  # noqa: B023
                "list of records": lambda: [*store.list("w", scope=None, with_records=True)],  # noqa: B023
                "entry_history": lambda: [*store.entry_history("w", "a", scope="s")],  # noqa: B023
                "signals": lambda: [*store.signals("w")],  # noqa: B023
            }
            for name, read in reads.items():
                with pytest.raises(CodecError) as caught:
                    read()
                error = caught.value
                where = (error.namespace, error.workflow_id, error.scope, error.checkpoint_id)
                assert where == ((namespace, "w", "", "") if name == "signals" else (namespace, "w", "s", "c1")), name


# Random calls.

WORKFLOWS = st.sampled_from(["w", "v"])
SCOPES = st.sampled_from(["", "", "s"])
CHECKPOINTS = st.sampled_from(["c1", "c2", "c3", "c4"])
STATUSES = st.sampled_from([*Status])
STATES = st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, 1, 1.0, True, None, "x", [1], -0.0]), max_size=3)
RUNS = st.sampled_from(["", "r1", "r2"])
METADATA = st.sampled_from([None, {}, {"k": 1}, {"k": 1.0}, {"k": [1, {"x": True}]}, {"k": "1", "l": None}])
LABELS = st.sampled_from([None, {}, {"env": "a"}, {"env": "b", "team": ""}])
RECORDS = st.lists(
    st.builds(
        Record,
        task_id=st.sampled_from(["", "t"]),
        index=st.sampled_from([-1, 0, 1]),
        path=st.sampled_from(["", "p"]),
        name=st.sampled_from(["", "n"]),
        value=st.sampled_from([None, 1, "x"]),
        overwrite=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda record: (record.task_id, record.index),
)
# A number stands for what that number of an earlier call of the same run gave: a checkpoint, or a lease.
EARLIER = st.integers(0, 30).map(lambda number: ("saved", number))
TOKENS = st.sampled_from([0, 0, 0, 7]) | st.integers(0, 5).map(lambda number: ("token", number))
AFTER = st.sampled_from([None, "start", "start"]) | EARLIER

SAVE = {
    "workflow_id": WORKFLOWS,
    "state": STATES,
    "scope": SCOPES,
    "checkpoint_id": CHECKPOINTS,
    "after": AFTER,
}
SAVE_MORE = {
    "status": STATUSES,
    "current_step": st.sampled_from(["", "a", "b"]),
    "metadata": METADATA,
    "completed_steps": st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
    "labels": LABELS,
    "definition": st.sampled_from(["", "d", "e"]),
    "fingerprint": st.sampled_from(["", "f"]),
    "run_id": RUNS,
    "records": RECORDS,
    "history_entries": st.lists(st.sampled_from("abc"), max_size=2),
    "replace": st.booleans(),
    "lease_token": TOKENS,
    "consumed_signals": st.lists(st.sampled_from(["s1", "s2"]), max_size=2),
}


def calls_of(name: str, required: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), st.fixed_dictionaries(required, optional=optional or {}))


ITEMS = st.lists(st.fixed_dictionaries(SAVE, optional=SAVE_MORE), max_size=5)
ONE = {"workflow_id": WORKFLOWS}
CALLS = st.one_of(
    calls_of("save", SAVE, SAVE_MORE),
    calls_of("save", SAVE, SAVE_MORE),
    calls_of("save", SAVE, {**SAVE_MORE, "release_lease": st.booleans()}),
    calls_of("save_all", {"items": ITEMS}),
    calls_of(
        "load",
        ONE,
        {
            "scope": SCOPES,
            "checkpoint_id": CHECKPOINTS,
            "entries": st.lists(st.sampled_from("abc"), max_size=2),
            "with_state": st.booleans(),
        },
    ),
    calls_of("load", {**ONE, "sequence": st.integers(0, 5)}, {"scope": SCOPES}),
    calls_of("load", {**ONE, "latest_with_status": STATUSES}, {"scope": SCOPES}),
    calls_of(
        "list",
        ONE,
        {
            "scope": st.none() | SCOPES,
            "newest_first": st.booleans(),
            "limit": st.integers(0, 3),
            "with_state": st.booleans(),
            "with_records": st.booleans(),
            "status": STATUSES,
            "current_step": st.sampled_from(["", "a"]),
            "before": st.integers(1, 5) | CHECKPOINTS,
            "metadata_contains": METADATA,
            "run_id": RUNS,
            "page_size": st.integers(1, 2),
        },
    ),
    calls_of(
        "entry_history",
        {**ONE, "entries": st.lists(st.sampled_from("abc"), min_size=1, max_size=2)},
        {"scope": SCOPES, "checkpoint_id": CHECKPOINTS, "limit": st.integers(0, 3), "page_size": st.integers(1, 2)},
    ),
    calls_of(
        "workflows",
        {},
        {
            "prefix": st.sampled_from(["", "w"]),
            "status": STATUSES,
            "labels": LABELS.filter(lambda labels: labels is not None),
            "definition": st.sampled_from(["", "d"]),
            "is_leased": st.booleans(),
            "has_pending_signals": st.booleans(),
            "fingerprint": st.sampled_from(["", "f"]),
            "limit": st.integers(0, 2),
        },
    ),
    calls_of("workflow", ONE),
    calls_of(
        "fork",
        {**ONE, "new_workflow_id": st.sampled_from(["w", "v", "u"]), "fork_id": st.sampled_from(["", "f1"])},
        {"checkpoint_id": CHECKPOINTS, "scope": SCOPES, "all_scopes": st.booleans()},
    ),
    calls_of("delete", {"workflow_id": st.sampled_from(["w", "v", "u"])}, {"lease_token": TOKENS}),
    calls_of(
        "delete_checkpoints",
        {**ONE, "checkpoint_ids": st.lists(CHECKPOINTS, min_size=1, max_size=2)},
        {"run_ids": st.lists(st.sampled_from(["r1", "r2"]), max_size=2), "scope": SCOPES, "lease_token": TOKENS},
    ),
    calls_of(
        "delete_checkpoints",
        {"workflow_id": st.sampled_from(["", "w"]), "run_ids": st.lists(st.sampled_from(["r1", "r2"]), max_size=2)},
        {"lease_token": TOKENS},
    ),
    calls_of("prune", ONE, {"keep_last": st.integers(1, 2), "dry_run": st.booleans()}),
    calls_of(
        "append_records",
        {**ONE, "checkpoint_id": CHECKPOINTS, "records": RECORDS},
        {"scope": SCOPES, "require_checkpoint": st.booleans(), "lease_token": TOKENS},
    ),
    calls_of("acquire_lease", {**ONE, "holder": st.just("h"), "request_id": st.sampled_from(["", "q"])}),
    calls_of("renew_lease", {**ONE, "token": TOKENS}),
    calls_of("release_lease", {**ONE, "token": TOKENS}),
    calls_of("break_lease", ONE),
    calls_of("get_lease", ONE),
    calls_of(
        "send_signal",
        {**ONE, "name": st.sampled_from(["n", "m"]), "signal_id": st.sampled_from(["s1", "s2"])},
        {"value": st.sampled_from([None, 1, "x"])},
    ),
    calls_of("signals", ONE, {"name": st.sampled_from(["n", "m"]), "page_size": st.just(1)}),
)

# Moments, digests and names that each store makes for itself; what is left of a lease is compared as live or not.
OWN_FIELDS: Final = {"create_time", "update_time", "grant_time", "digest", "incarnation", "stored_bytes", "namespace"}
OWN_METADATA: Final = {"digest", "found", "rule", "remaining_ms", "namespace"}


class Run:
    """One store, and what its calls have given so far."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._saves: list[Saved] = []
        self._tokens: list[int] = []

    def call(self, name: str, arguments: dict[str, Any]) -> object:
        arguments = {key: self._resolved(value) for key, value in arguments.items()}
        if name == "save_all":
            arguments = {"items": self._items(arguments["items"])}
        try:
            answer = getattr(self._store, name)(**arguments)
            return self._comparable(list(answer) if isinstance(answer, Iterator) else answer)
        except (MilepostError, ValueError, TypeError) as error:
            return self._comparable(error)

    def _items(self, items: list[dict[str, Any]]) -> list[SaveItem]:
        made: list[SaveItem] = []
        for item in items:
            fields = {key: self._resolved(value) for key, value in item.items()}
            match item["after"]:
                case ("saved", int(number)) if made and number % 2:
                    # An item of this call, also one of another workflow.
                    fields["after"] = made[number // 2 % len(made)]
            made.append(SaveItem(**fields))
        return made

    def _resolved(self, value: Any) -> Any:
        match value:
            case ("saved", int(number)):
                return self._saves[number % len(self._saves)] if self._saves else "start"
            case ("token", int(number)):
                return self._tokens[-1 - number % len(self._tokens)] if self._tokens else 0
            case _:
                return value

    def _comparable(self, value: object) -> object:
        if isinstance(value, Saved):
            self._saves.append(value)
        if isinstance(value, list | tuple):
            return [self._comparable(item) for item in value]
        if isinstance(value, MilepostError):
            told = {key: text for key, text in value.metadata.items() if text and key not in OWN_METADATA}
            return type(value).__name__, value.reason, told, value.workflow_id, value.scope, value.checkpoint_id
        if isinstance(value, dict):
            return {key: self._comparable(item) for key, item in value.items()}
        if isinstance(value, Exception):
            return type(value).__name__
        if not dataclasses.is_dataclass(value):
            return repr(value)
        found: dict[str, object] = {"type": type(value).__name__}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.name == "token":
                if item and item not in self._tokens:
                    self._tokens.append(item)
                found["token"] = self._tokens.index(item) if item else None
            elif field.name in {"remaining_s", "lease_remaining_s"}:
                found[field.name] = item > 0
            elif field.name not in OWN_FIELDS:
                found[field.name] = self._comparable(item)
        return found


@settings(max_examples=30, derandomize=True, deadline=None)
@given(calls=st.lists(CALLS, min_size=5, max_size=30))
def test_some_calls_are_answered_alike(server: LocalServer, calls: list[tuple[str, dict[str, Any]]]) -> None:
    """The same few lists of calls each time, so that what differs much is seen at once."""
    require_alike(server, calls)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(calls=st.lists(CALLS, min_size=5, max_size=30))
def test_random_calls_are_answered_alike(server: LocalServer, calls: list[tuple[str, dict[str, Any]]]) -> None:
    """Whatever was asked before, a server and the in-memory store give the same answers and the same errors."""
    require_alike(server, calls)


def require_alike(server: LocalServer, calls: list[tuple[str, dict[str, Any]]]) -> None:
    server.namespace = f"random-{next(_numbers)}"
    with server.client() as client, pytest.MonkeyPatch.context() as patch:
        # So that a save_all is more than one request.
        patch.setattr(_calls, "ITEMS_MAX", 2)
        on_server, in_memory = Run(client), Run(InMemoryStore(namespace=server.namespace))
        for number, (name, arguments) in enumerate(calls):
            expected, found = on_server.call(name, arguments), in_memory.call(name, arguments)
            assert found == expected, f"call {number}: {name}({arguments})"
