"""The in-memory stores give a server's answers and a server's errors, to whatever is asked of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import pytest

from milepost import AsyncInMemoryStore, InMemoryStore, MilepostError, Record, SaveItem
from milepost.testing import LocalServer, local_server
from milepost.testing._contract_support import BlockingStore

MALFORMED: Final = {"lone-surrogate": "a\ud800", "nul": "a\0b", "empty": "", "long": "x" * 3_000}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as server:
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
