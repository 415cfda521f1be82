"""What LangGraph relies on and its conformance suite does not look at, for both halves of the saver."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from milepost import (
    CheckpointDeletedError,
    Client,
    CodecError,
    LimitExceededError,
    MilepostError,
    UnavailableError,
    WorkflowExistsError,
)
from milepost.adapters.langgraph import MilepostSaver
from milepost.testing import LocalServer
from tests.support.langgraph_checkpoints import checkpoint_id_of, config_of, make_checkpoint, metadata_of, put

Half = BaseCheckpointSaver[Any]


async def test_writes_of_parallel_tasks_are_all_kept(half: Half) -> None:
    config = await put(half, config_of("t"), {"x": 1})
    await asyncio.gather(*(half.aput_writes(config, [("x", task)], f"task-{task}") for task in range(8)))
    found = await half.aget_tuple(config)
    assert found is not None
    assert found.pending_writes == [(f"task-{task}", "x", task) for task in range(8)]


async def test_writes_may_come_before_their_checkpoint(half: Half) -> None:
    checkpoint = make_checkpoint({"x": 1})
    config = config_of("t", checkpoint_id=checkpoint["id"])
    await half.aput_writes(config, [("x", "early")], "task")
    assert await half.aget_tuple(config) is None
    await half.aput(config_of("t"), checkpoint, metadata_of(), {"x": 1})
    found = await half.aget_tuple(config)
    assert found is not None
    assert found.pending_writes == [("task", "x", "early")]


async def test_writes_are_read_in_the_order_of_path_task_and_position(half: Half) -> None:
    config = await put(half, config_of("t"), {"x": 1})
    await half.aput_writes(config, [("x", "c1"), ("x", "c2")], "task-a", "~3")
    await half.aput_writes(config, [("x", "b")], "task-b", "~2")
    await half.aput_writes(config, [("x", "a")], "task-c")
    found = await half.aget_tuple(config)
    assert found is not None
    assert [value for _, _, value in found.pending_writes or ()] == ["a", "b", "c1", "c2"]


async def test_of_results_the_first_stays_and_special_writes_are_replaced(half: Half) -> None:
    config = await put(half, config_of("t"), {"x": 1})
    await half.aput_writes(config, [("x", "first"), ("__resume__", "no")], "task")
    await half.aput_writes(config, [("x", "second"), ("__resume__", "yes"), ("y", "third")], "task")
    found = await half.aget_tuple(config)
    assert found is not None
    assert found.pending_writes == [("task", "__resume__", "yes"), ("task", "x", "first"), ("task", "y", "third")]


async def test_of_two_special_writes_in_one_list_the_last_counts(half: Half) -> None:
    config = await put(half, config_of("t"), {"x": 1})
    await half.aput_writes(config, [("__resume__", ["one"]), ("x", 1), ("__resume__", ["one", "two"])], "task")
    found = await half.aget_tuple(config)
    assert found is not None
    assert found.pending_writes == [("task", "__resume__", ["one", "two"]), ("task", "x", 1)]


async def test_list_without_a_namespace_reads_all_and_an_empty_one_the_root(half: Half) -> None:
    root = await put(half, config_of("t"), {"x": 1})
    nested = await put(half, config_of("t", "child:1"), {"x": 2})
    ids = [checkpoint_id_of(root), checkpoint_id_of(nested)]
    everything = [checkpoint_id_of(each.config) async for each in half.alist(config_of("t", None))]
    assert everything == ids[::-1]
    assert [checkpoint_id_of(each.config) async for each in half.alist(config_of("t", ""))] == ids[:1]
    assert [checkpoint_id_of(each.config) async for each in half.alist(config_of("t", "child:1"))] == ids[1:]


async def test_list_of_everything_reads_every_thread_and_no_other_workflow(
    half: Half, server: LocalServer, namespace: str
) -> None:
    for thread in ("a", "b", "c"):
        await put(half, config_of(thread), {"x": thread})
        await put(half, config_of(thread, "child:1"), {"x": thread})
    with Client(server.target, namespace=namespace) as client:
        client.save("not-a-thread", state={"x": 1}, after="start")
    found = [each async for each in half.alist(None)]
    assert [each.config["configurable"]["thread_id"] for each in found] == ["a", "a", "b", "b", "c", "c"]
    assert len([each async for each in half.alist(None, limit=3)]) == 3
    matching = [each async for each in half.alist(None, filter={"step": 7})]
    assert matching == []


async def test_list_goes_on_over_pages(half: Half) -> None:
    config = config_of("t")
    for step in range(60):
        config = await put(half, config, {"x": step}, {"x": f"{step + 1:032}.1"}, step=step)
    found = [each.metadata["step"] async for each in half.alist(config_of("t"))]
    assert found == list(range(59, -1, -1))
    assert [each.metadata["step"] async for each in half.alist(config_of("t"), limit=55)] == found[:55]
    assert [each async for each in half.alist(config_of("t"), limit=0)] == []


async def test_before_compares_ids_as_text_also_with_one_of_another_namespace(half: Half) -> None:
    first = await put(half, config_of("t", "child:1"), {"x": 1})
    between = await put(half, config_of("t"), {"x": 2})
    await put(half, config_of("t", "child:1", checkpoint_id_of(first)), {"x": 3})
    found = [each async for each in half.alist(config_of("t", "child:1"), before=between, limit=1)]
    assert [checkpoint_id_of(each.config) for each in found] == [checkpoint_id_of(first)]


async def test_a_checkpoint_id_narrows_a_list_to_one_in_any_namespace(half: Half) -> None:
    first = await put(half, config_of("t", "child:1"), {"x": 1}, step=1)
    second = await put(half, config_of("t", "child:1", checkpoint_id_of(first)), {"x": 2}, step=2)
    for scope in ("child:1", None):
        wanted = config_of("t", scope, checkpoint_id_of(first))
        assert [each.checkpoint["channel_values"] async for each in half.alist(wanted)] == [{"x": 1}]
        assert [each async for each in half.alist(wanted, filter={"step": 2})] == []
        assert [each async for each in half.alist(wanted, before=first)] == []
        assert len([each async for each in half.alist(wanted, before=second)]) == 1
    assert [each async for each in half.alist(config_of("t", "", checkpoint_id_of(first)))] == []


async def test_a_filter_matches_nested_metadata_by_containment(half: Half) -> None:
    config = await put(half, config_of("t"), {"x": 1}, user={"name": "ada", "tags": ["a", "b"]})
    wanted: dict[str, Any]
    for wanted in ({"user": {"name": "ada"}}, {"user": {"tags": ["b"]}}, {"step": 0, "source": "loop"}):
        assert [each.config async for each in half.alist(config_of("t"), filter=wanted)] == [config]
    for wanted in ({"user": {"name": "bob"}}, {"user": "ada"}, {"user": {"tags": ["c"]}}, {"step": 1}):
        assert [each async for each in half.alist(config_of("t"), filter=wanted)] == []


async def test_metadata_and_configurable_of_the_config_are_merged(half: Half) -> None:
    config = config_of("t")
    config["configurable"] |= {"user_id": "u1", "__private": 1, "langgraph_step": 3}
    config["metadata"] = {"run_id": "r1", "source": "not this"}
    await put(half, config, {"x": 1})
    found = await half.aget_tuple(config_of("t"))
    assert found is not None
    assert found.metadata == {"source": "loop", "step": 0, "parents": {}, "run_id": "r1", "user_id": "u1"}


async def test_metadata_that_json_has_no_word_for_comes_back_as_it_was(half: Half) -> None:
    odd: dict[str, Any] = {"when": frozenset({1}), "nan_free": 1.5, "numbers": {1: "one"}}
    await put(half, config_of("t"), {"x": 1}, **odd)
    found = await half.aget_tuple(config_of("t"))
    assert found is not None
    assert {key: found.metadata.get(key) for key in odd} == odd
    assert len([each async for each in half.alist(config_of("t"), filter={"nan_free": 1.5})]) == 1


@pytest.mark.parametrize("kind", [int, float, str])
async def test_forks_with_equal_versions_keep_their_own_values(half: Half, kind: type) -> None:
    """Versions that are bare numbers repeat on every fork; the values under them differ."""
    base = await put(half, config_of("t"), {"x": "base", "same": "s"}, {"x": kind(1), "same": kind(1)})
    one = await put(half, base, {"x": "one", "same": "s"}, {"x": kind(2), "same": kind(1)}, new=["x"])
    two = await put(half, base, {"x": "two", "same": "s"}, {"x": kind(2), "same": kind(1)}, new=["x"])
    three = await put(half, one, {"x": "three", "same": "s"}, {"x": kind(2), "same": kind(1)}, new=[])
    for config, value in ((base, "base"), (one, "one"), (two, "two"), (three, "three")):
        found = await half.aget_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"x": value, "same": "s"}


async def test_values_are_sent_that_new_versions_does_not_name_and_the_parent_has_not(half: Half) -> None:
    """`update_state(config, None, as_node="__copy__")` puts full values, no new versions, and the grandparent."""
    v1, v2 = half_versions(half)
    first = await put(half, config_of("t"), {"x": "old", "y": 1}, {"x": v1, "y": v1})
    second = await put(half, first, {"x": "new", "y": 1}, {"x": v2, "y": v1}, new=["x"])
    third = await put(half, second, {"x": "newer", "y": 1}, {"x": f"{v2}9", "y": v1}, new=["x"])
    copy = await put(half, first, {"x": "new", "y": 1}, {"x": v2, "y": v1}, new=[], source="fork")
    orphan = await put(half, config_of("t"), {"x": "newer", "y": 1}, {"x": f"{v2}9", "y": v1}, new=[], source="fork")
    for config, value in ((second, "new"), (third, "newer"), (copy, "new"), (orphan, "newer")):
        found = await half.aget_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"x": value, "y": 1}


async def test_a_saver_that_knows_nothing_puts_behind_a_thread_that_another_began(
    half: Half, server: LocalServer, namespace: str
) -> None:
    v1, v2 = half_versions(half)
    first = await put(half, config_of("t"), {"x": "a", "y": "b"}, {"x": v1, "y": v1})
    async with MilepostSaver(server.target, namespace=namespace) as other:
        second = await put(other, first, {"x": "c", "y": "b"}, {"x": v2, "y": v1}, new=["x"])
        found = await other.aget_tuple(second)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"x": "c", "y": "b"}
    assert found.parent_config == first


async def test_a_base_that_another_process_deleted_or_replaced_is_not_built_on(
    half: Half, server: LocalServer, namespace: str
) -> None:
    v1, v2 = half_versions(half)
    first = await put(half, config_of("t"), {"x": "a", "y": "b"}, {"x": v1, "y": v1})
    second = await put(half, first, {"x": "c", "y": "b"}, {"x": v2, "y": v1}, new=["x"])
    async with MilepostSaver(server.target, namespace=namespace) as other:
        await put(
            other, first, {"x": "replaced", "y": "replaced"}, {"x": v2, "y": v1}, checkpoint_id=checkpoint_id_of(second)
        )
    third = await put(half, second, {"x": "c", "y": "b"}, {"x": v2, "y": v1}, new=[])
    with Client(server.target, namespace=namespace) as client:
        client.delete_checkpoints("t", [checkpoint_id_of(third)])
    fourth = await put(half, third, {"x": "c", "y": "b"}, {"x": v2, "y": v1}, new=[])
    found = await half.aget_tuple(fourth)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"x": "c", "y": "b"}


async def test_a_channel_that_has_no_value_any_more_is_gone(half: Half) -> None:
    v1, v2 = half_versions(half)
    first = await put(half, config_of("t"), {"x": "a", "y": "b"}, {"x": v1, "y": v1})
    second = await put(half, first, {"y": "b"}, {"x": v2, "y": v1}, new=["x"])
    found = await half.aget_tuple(second)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"y": "b"}
    assert found.checkpoint["channel_versions"] == {"x": v2, "y": v1}


async def test_putting_an_id_again_replaces_it(half: Half) -> None:
    first = await put(half, config_of("t"), {"x": 1})
    again = await put(half, config_of("t"), {"x": 2}, checkpoint_id=checkpoint_id_of(first), step=5)
    assert again == first
    found = [each async for each in half.alist(config_of("t"))]
    assert [(each.checkpoint["channel_values"], each.metadata["step"]) for each in found] == [({"x": 2}, 5)]


async def test_names_and_values_that_other_stores_stumble_over(half: Half) -> None:
    thread = "ü" * 300 + "x" * 400
    scope = "|".join(f"node_{level}:{'0' * 36}" for level in range(15))
    values = {"__checkpoint__": 1, "__checkpoint__x": 2, "__checkpoint___": bytearray(b"3"), "a b\nc": "nul \0 in text"}
    config = await put(half, config_of(thread, scope), values, note="a\0b")
    await half.aput_writes(config, [("__checkpoint__", "nul \0")], "task")
    found = await half.aget_tuple(config_of(thread, scope))
    assert found is not None
    assert found.checkpoint["channel_values"] == values
    assert found.pending_writes == [("task", "__checkpoint__", "nul \0")]
    # LangGraph itself takes NUL out of metadata.
    assert found.metadata.get("note") == "ab"


async def test_the_newest_is_what_was_saved_last_whatever_the_clock_said(half: Half) -> None:
    first = await put(half, config_of("t"), {"x": 1}, checkpoint_id="1f0f0000-0000-6000-8000-000000000002")
    late = await put(half, first, {"x": 2}, checkpoint_id="1f0e0000-0000-6000-8000-000000000001")
    found = await half.aget_tuple(config_of("t"))
    assert found is not None
    assert found.config == late


async def test_a_thread_id_that_is_no_text_is_the_text_of_it(half: Half) -> None:
    config = config_of("7")
    config["configurable"]["thread_id"] = 7
    await put(half, config, {"x": 1})
    found = await half.aget_tuple(config_of("7"))
    assert found is not None
    await half.adelete_thread(7)  # type: ignore[arg-type]  # callers do
    assert await half.aget_tuple(config_of("7")) is None


# Refusals.


class Opaque:
    """Nothing that a serializer knows."""

    __slots__ = ()


async def test_what_cannot_be_serialised_is_told_with_its_channel_and_place(half: Half) -> None:
    values = {"good": 1, "orders": [{"id": 1}, {"id": 2, "socket": Opaque()}]}
    with pytest.raises(CodecError, match=r"channel 'orders'.*\[1\]\['socket'\] is a Opaque") as told:
        await put(half, config_of("t"), values)
    assert told.value.path == "[1]['socket']"
    config = await put(half, config_of("t"), {"x": 1})
    with pytest.raises(CodecError, match=r"task 'task' writes: channel 'orders'.*Opaque"):
        await half.aput_writes(config, [("x", 1), ("orders", [Opaque()])], "task")
    found = await half.aget_tuple(config)
    assert found is not None
    assert found.pending_writes == []


async def test_what_is_too_large_is_told_with_its_channel(half: Half) -> None:
    noise = os.urandom(17 * 1024 * 1024)  # does not compress
    with pytest.raises(LimitExceededError, match="'huge'"):
        await put(half, config_of("t"), {"small": 1, "huge": noise})
    assert await half.aget_tuple(config_of("t")) is None
    config = await put(half, config_of("t"), {"x": 1})
    with pytest.raises(LimitExceededError, match="'huge'"):
        await half.aput_writes(config, [("small", 1), ("huge", noise)], "task")


async def test_a_late_put_does_not_bring_a_deleted_checkpoint_back(half: Half) -> None:
    first = await put(half, config_of("t"), {"x": 1})
    await half.adelete_thread("t")
    with pytest.raises(CheckpointDeletedError):
        await put(half, config_of("t"), {"x": 1}, checkpoint_id=checkpoint_id_of(first))


async def test_a_workflow_that_is_no_thread_is_told_and_not_overwritten(
    half: Half, server: LocalServer, namespace: str
) -> None:
    with Client(server.target, namespace=namespace) as client:
        client.save("w", state={"x": 1}, after="start", definition="orders")
        with pytest.raises(MilepostError, match="was not saved by LangGraph"):
            await half.aget_tuple(config_of("w"))
        with pytest.raises(MilepostError, match="belongs to definition 'orders'"):
            await put(half, config_of("w"), {"x": 2})


async def test_an_outage_is_never_an_empty_thread() -> None:
    async with MilepostSaver("127.0.0.1:1", timeout_s=0.5) as saver:
        with pytest.raises(UnavailableError):
            await saver.aget_tuple(config_of("t"))
        with pytest.raises(UnavailableError):
            _ = [each async for each in saver.alist(config_of("t"))]
        with pytest.raises(UnavailableError):
            await asyncio.to_thread(saver.get_tuple, config_of("t"))


# Deleting, pruning, copying.


async def test_deleting_runs_reaches_every_thread_and_namespace(half: Half) -> None:
    await put(half, config_of("a"), {"x": 1}, run_id="r1")
    await put(half, config_of("b", "child:1"), {"x": 1}, run_id="r2")
    kept = await put(half, config_of("a"), {"x": 2}, run_id="r3")
    await half.adelete_for_runs(["r1", "r2", "never"])
    assert [each.config async for each in half.alist(None)] == [kept]


async def test_a_copy_is_whole_and_apart(half: Half) -> None:
    first = await put(half, config_of("a"), {"x": 1}, step=1)
    second = await put(half, first, {"x": 2}, step=2)
    await put(half, config_of("a", "child:1"), {"x": 3})
    await half.aput_writes(second, [("x", "w")], "task")
    await half.acopy_thread("a", "b")
    await put(half, second, {"x": 9}, step=9)
    copied = [each async for each in half.alist(config_of("b", None))]
    assert [each.checkpoint["channel_values"]["x"] for each in copied] == [3, 2, 1]
    assert [each.pending_writes for each in copied] == [[], [("task", "x", "w")], []]
    assert copied[1].parent_config == config_of("b", "", checkpoint_id_of(first))
    with pytest.raises(WorkflowExistsError):
        await half.acopy_thread("a", "b")
    await half.adelete_thread("a")
    found = await half.aget_tuple(config_of("b"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"x": 2}


async def test_pruning_keeps_as_many_as_asked_and_forgets_the_parent(half: Half) -> None:
    config = config_of("t")
    for step in range(6):
        config = await put(half, config, {"x": step}, step=step)
    options: dict[str, Any] = {"keep_last": 3}  # an extension
    await half.aprune(["t", "no such thread"], **options)
    left = [each async for each in half.alist(config_of("t"))]
    assert [each.metadata["step"] for each in left] == [5, 4, 3]
    assert left[-1].parent_config is None
    await half.aprune(["t"])
    assert [each.metadata["step"] async for each in half.alist(config_of("t"))] == [5]
    for options in ({"strategy": "other"}, {"keep_last": 0}, {"strategy": "delete", "keep_last": 1}):
        with pytest.raises(ValueError, match="keep"):
            await half.aprune(["t"], **options)
    with pytest.raises(TypeError):
        await half.aprune("t")


async def test_pruning_takes_the_subgraph_calls_of_pruned_roots_along(half: Half) -> None:
    roots = [config_of("t")]
    for step in range(3):
        roots.append(await put(half, roots[-1], {"x": step}, step=step))
        parents = {"": checkpoint_id_of(roots[-1])}
        await put(half, config_of("t", f"call:{step}"), {"y": step}, parents=parents)
        await put(half, config_of("t", "stateful"), {"z": step}, parents=parents)
    # A call whose root is saved after it, as runs in the background do.
    await put(half, config_of("t", "call:early"), {"y": 9}, parents={"": "1ffffffff-0000-6000-8000-000000000000"})
    await half.aprune(["t"])
    left = sorted(
        each.config["configurable"]["checkpoint_ns"] for each in [e async for e in half.alist(config_of("t", None))]
    )
    assert left == ["", "call:2", "call:early", "stateful"]


# DeltaChannels.


async def delta_chain(half: Half, steps: int, *, snapshot_at: int) -> list[Any]:
    """Put a chain in which channel "d" is stored at one step and written beside each; "x" is an ordinary one."""
    configs: list[Any] = [config_of("t")]
    for step in range(steps):
        versions = {"d": f"{step + 1:032}.5", "x": f"{step + 1:032}.5"}
        values: dict[str, Any] = {"x": step}
        counters: dict[str, Any] = {}
        if step == snapshot_at:
            values["d"] = _DeltaSnapshot(["seed"])
        else:
            counters = {"counters_since_delta_snapshot": {"d": (abs(step - snapshot_at), step)}}
        configs.append(await put(half, configs[-1], values, versions, step=step, **counters))
        await half.aput_writes(configs[-1], [("d", f"{step}a"), ("x", "no"), ("d", f"{step}b")], f"t{step}", "~1")
    return configs[1:]


async def test_delta_history_is_what_was_written_since_the_nearest_stored_value(half: Half) -> None:
    configs = await delta_chain(half, 6, snapshot_at=2)
    history = await half.aget_delta_channel_history(config=configs[5], channels=["d", "nothing"])
    assert history["d"]["seed"] == _DeltaSnapshot(["seed"])
    assert [value for _, _, value in history["d"]["writes"]] == ["2a", "2b", "3a", "3b", "4a", "4b"]
    assert history["nothing"] == {"writes": []}
    # The base class asks for one tuple after the other, and is what every saver has to agree with.
    assert history == await BaseCheckpointSaver.aget_delta_channel_history(
        half, config=configs[5], channels=["d", "nothing"]
    )
    early = await half.aget_delta_channel_history(config=configs[2], channels=["d"])
    assert "seed" not in early["d"]
    assert [value for _, _, value in early["d"]["writes"]] == ["0a", "0b", "1a", "1b"]
    assert await half.aget_delta_channel_history(config=configs[5], channels=[]) == {}
    assert await half.aget_delta_channel_history(config=config_of("none"), channels=["d"]) == {"d": {"writes": []}}


def test_delta_history_tries_few_ancestors(saver: MilepostSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel stored long ago, or written late and never stored, does not cost a call for each ancestor."""

    def chain(config: Any, numbers: range, **values: Any) -> Any:
        for number in numbers:
            versions = {"x": f"{number}.1", **dict.fromkeys(values, f"{number}.1")}
            checkpoint = make_checkpoint({"x": number, **values}, versions)
            config = saver.put(config, checkpoint, metadata_of(), {"x": f"{number}.1"})
        return config

    config = chain(config_of("t"), range(10, 20), old="stored")
    config = chain(config, range(20, 60))
    saver.put_writes(config, [("late", "written"), ("old", "more")], "task")
    config = chain(config, range(60, 61))
    sent: list[str] = []
    client = saver._connections.blocking
    send = client.send

    def noted(method: Any, request: Any) -> Any:
        sent.append(method.name)
        return send(method, request)

    monkeypatch.setattr(client, "send", noted)

    history = saver.get_delta_channel_history(config=config, channels=["late", "old"])

    assert history == {
        "late": {"writes": [("task", "late", "written")]},
        "old": {"writes": [("task", "old", "more")], "seed": "stored"},
    }
    assert history == BaseCheckpointSaver.get_delta_channel_history(saver, config=config, channels=["late", "old"])
    assert sent[:4] == ["List", "Load", "GetEntryHistory", "Load"]


async def test_delta_history_follows_the_line_and_not_its_siblings(half: Half) -> None:
    configs = await delta_chain(half, 4, snapshot_at=0)
    fork = await put(
        half, configs[1], {"x": "f"}, {"d": "2.1", "x": "3.9"}, counters_since_delta_snapshot={"d": [2, 2]}
    )
    await half.aput_writes(fork, [("d", "forked")], "tf", "~1")
    end = await put(half, fork, {"x": "g"}, {"d": "3.1", "x": "4.9"}, counters_since_delta_snapshot={"d": [3, 3]})
    history = await half.aget_delta_channel_history(config=end, channels=["d"])
    assert [value for _, _, value in history["d"]["writes"]] == ["0a", "0b", "1a", "1b", "forked"]
    latest = await half.aget_delta_channel_history(config=config_of("t"), channels=["d"])
    assert latest == history


async def test_pruning_keeps_what_a_delta_channel_needs_and_no_more(half: Half) -> None:
    configs = await delta_chain(half, 8, snapshot_at=5)
    before = await half.aget_delta_channel_history(config=configs[7], channels=["d"])
    await half.aprune(["t"])
    left = [each.metadata["step"] async for each in half.alist(config_of("t"))]
    assert left == [7, 6, 5]
    assert await half.aget_delta_channel_history(config=config_of("t"), channels=["d"]) == before
    # One that was never written needs nobody.
    await put(half, configs[7], {"x": 8, "d": _DeltaSnapshot([])}, {"x": "9.5", "d": "9.5"}, step=8)
    await put(half, config_of("t"), {"x": 9, "d": 1}, step=9, counters_since_delta_snapshot={"idle": (0, 9)})
    await half.aprune(["t"])
    assert [each.metadata["step"] async for each in half.alist(config_of("t"))] == [9]


async def test_a_copied_thread_has_the_delta_history_of_its_source(half: Half) -> None:
    configs = await delta_chain(half, 5, snapshot_at=1)
    await half.acopy_thread("t", "u")
    source = await half.aget_delta_channel_history(config=configs[-1], channels=["d"])
    assert await half.aget_delta_channel_history(config=config_of("u"), channels=["d"]) == source


def half_versions(half: Half) -> tuple[str, str]:
    """Return two versions that follow each other, as the saver gives them."""
    saver = getattr(half, "saver", half)
    first = saver.get_next_version(None, None)
    return first, saver.get_next_version(first, None)
