"""The suite that every checkpoint store passes: subclass it, give it a store, run pytest.

    import pytest
    from milepost import InMemoryStore
    from milepost.testing.store_contract import StoreContract

    class TestInMemoryStore(StoreContract):
        @pytest.fixture
        def store(self):
            return InMemoryStore()

`AsyncStoreContract` runs the same tests on an async store: give it the fixture `async_store`. Abilities beyond save,
load and list are tested where the store has the method, else skipped.
"""

# ruff: noqa: D102  the name of a test is its sentence

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, TypeAlias, cast

import pytest
from typing_extensions import override

from milepost.errors import (
    CheckpointDeletedError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CodecError,
    DefinitionMismatchError,
    HeadMovedError,
    InvalidRequestError,
    MilepostError,
    NotFoundError,
    PredecessorFailedError,
    StateNotLoadedError,
    WorkflowExistsError,
    WorkflowNotFoundError,
)
from milepost.protocols import AsyncCheckpointStore, CheckpointStore

for _part in ("lease_contract", "signal_contract", "watch_contract"):
    pytest.register_assert_rewrite(f"milepost.testing.{_part}")

from milepost.testing._contract_support import (  # noqa: E402  asserts are rewritten at import
    BlockingStore,
    W,
    able,
    chain,
    save_item,
)
from milepost.testing.lease_contract import LeaseContract  # noqa: E402
from milepost.testing.signal_contract import SignalContract  # noqa: E402
from milepost.testing.watch_contract import WatchContract  # noqa: E402
from milepost.types import Record, RecordOutcome, Saved, SaveItem, Status, WorkflowInfo  # noqa: E402

AppendRecords: TypeAlias = Callable[..., list[RecordOutcome]]


class StoreContract(LeaseContract, SignalContract, WatchContract):
    """What any checkpoint store does. Override the fixture `store` with an empty one."""

    @pytest.fixture
    def store(self) -> CheckpointStore:
        """Give an empty store."""
        raise NotImplementedError("override the fixture `store`")

    # Save and load.

    def test_what_was_saved_is_loaded_with_its_types(self, store: CheckpointStore) -> None:
        state = {
            "none": None,
            "flag": True,
            "int": -7,
            "large": 3**200,
            "float": 0.1,
            "infinite": -math.inf,
            "text": "naïve\n\u2028🙂",
            "bytes": b"\0\xff",
            "tuple": (1, ("a", [2.5])),
            "set": {1, "a", (2,)},
            "frozen": frozenset({"x"}),
            "nested": {"a": [{"b": None}, []], "": {}},
            "escaped": {"$milepost": ["tuple", []]},
            "moment": dt.datetime(2024, 5, 1, 10, 30, 0, 123456, tzinfo=dt.UTC),
            "naive": dt.datetime(2024, 5, 1, 10, 30),  # noqa: DTZ001  naive datetimes stay naive
            "day": dt.date(2024, 2, 29),
            "time": dt.time(23, 59, 1),
            "span": dt.timedelta(days=-1, microseconds=5),
            "price": Decimal("1.10"),
            "id": uuid.UUID(int=7),
        }
        store.save(W, state=state)
        loaded = store.load(W).state
        assert loaded == state
        assert {key: type(value) for key, value in loaded.items()} == {k: type(v) for k, v in state.items()}
        assert str(loaded["price"]) == "1.10"

    def test_large_values_come_back_and_may_change(self, store: CheckpointStore) -> None:
        text = "the same words again and again " * 10_000
        first = store.save(W, state={"text": text, "noise": bytes(range(256)) * 100}, after="start")
        store.save(W, state={"text": text, "noise": b""}, after=first, records=[Record(value=text)])
        assert store.load(W).state == {"text": text, "noise": b""}
        assert store.load(W).records[0].value == text
        assert store.load(W, sequence=1).state["noise"] == bytes(range(256)) * 100

    def test_a_status_is_told_by_its_text_too(self, store: CheckpointStore) -> None:
        store.save(W, state={}, status=Status.COMPLETED)
        assert store.load(W, latest_with_status=cast("Status", "completed")).status is Status.COMPLETED
        with pytest.raises(ValueError, match="a status is one of running"):
            store.load(W, latest_with_status=cast("Status", "done"))

    def test_an_id_that_is_no_text_is_told_as_such(self, store: CheckpointStore) -> None:
        number = cast("str", 7)
        wrong_calls: list[Callable[[], object]] = [
            lambda: store.load(number),
            lambda: store.save(number, state={}),
            lambda: [*store.list(number)],
        ]
        for call in wrong_calls:
            with pytest.raises(TypeError, match="workflow_id is a str, not int"):
                call()

    def test_an_empty_state_is_a_state(self, store: CheckpointStore) -> None:
        store.save(W, state={})
        assert store.load(W).state == {}
        assert store.load(W).entry_count == 0

    def test_every_field_of_a_save_is_loaded(self, store: CheckpointStore) -> None:
        saved = store.save(
            W,
            state={"total": 42},
            current_step="price",
            after="start",
            checkpoint_id="c1",
            status=Status.WAITING,
            metadata={"region": "eu", "tries": [1, 2.5, None, {"deep": True}]},
            completed_steps=["load", "price"],
            labels={"team": "shop"},
            definition="orders",
            fingerprint="f1",
            run_id="r1",
            records=[Record(task_id="t", index=-1, value=(1,), name="n", path="p")],
            history_entries=["total"],
        )
        assert (saved.workflow_id, saved.scope, saved.checkpoint_id) == (W, "", "c1")
        assert (saved.sequence, saved.parent_id, saved.head_checkpoint_id) == (1, "", "c1")
        assert not saved.replayed
        found = store.load(W)
        assert found.state == {"total": 42}
        assert (found.workflow_id, found.scope, found.checkpoint_id, found.sequence) == (W, "", "c1", 1)
        assert (found.current_step, found.status) == ("price", Status.WAITING)
        assert (found.completed_steps, found.completed_step_count) == (("load", "price"), 2)
        assert found.metadata == {"region": "eu", "tries": [1, 2.5, None, {"deep": True}]}
        assert (found.definition, found.fingerprint, found.run_id) == ("orders", "f1", "r1")
        assert found.history_entries == ("total",)
        assert found.records == (Record(task_id="t", index=-1, value=(1,), name="n", path="p"),)
        assert (found.entry_count, found.record_count, found.head_checkpoint_id) == (1, 1, "c1")
        assert found.create_time == saved.create_time
        assert found.create_time.tzinfo is not None
        assert found.digest == saved.digest
        assert not found.state_omitted

    def test_a_chain_of_saves_counts_up_and_names_parents(self, store: CheckpointStore) -> None:
        saves = chain(store, 3)
        assert [saved.sequence for saved in saves] == [1, 2, 3]
        assert [saved.parent_id for saved in saves] == ["", "c1", "c2"]
        assert store.load(W).state == {"n": 3}

    def test_the_server_gives_ids_apart_where_the_caller_gives_none(self, store: CheckpointStore) -> None:
        first, second = store.save(W, state={}), store.save(W, state={})
        assert first.checkpoint_id
        assert first.checkpoint_id != second.checkpoint_id
        assert not second.replayed

    def test_without_after_a_save_goes_on_from_the_head(self, store: CheckpointStore) -> None:
        chain(store, 2)
        assert store.save(W, state={"n": 9}).parent_id == "c2"

    def test_a_loaded_checkpoint_and_a_listed_one_can_be_followed(self, store: CheckpointStore) -> None:
        chain(store, 1)
        second = store.save(W, state={"n": 2}, after=store.load(W))
        (head,) = store.list(W, limit=1)
        third = store.save(W, state={"n": 3}, after=head)
        assert third.parent_id == second.checkpoint_id

    def test_an_entry_that_is_left_out_is_gone(self, store: CheckpointStore) -> None:
        first = store.save(W, state={"a": 1, "b": [2], "c": "3"}, after="start")
        second = store.save(W, state={"a": 1, "c": "4", "d": None}, after=first)
        assert store.load(W).state == {"a": 1, "c": "4", "d": None}
        assert store.load(W, checkpoint_id=first.checkpoint_id).state == {"a": 1, "b": [2], "c": "3"}
        store.save(W, state={}, after=second)
        assert store.load(W).state == {}

    def test_completed_steps_grow_in_order_and_without_doubles(self, store: CheckpointStore) -> None:
        first = store.save(W, state={}, after="start", completed_steps=["a"])
        second = store.save(W, state={}, after=first, completed_steps=["c", "b", "c", "a"])
        store.save(W, state={}, after=second)
        assert store.load(W).completed_steps == ("a", "c", "b")
        assert store.load(W, sequence=1).completed_steps == ("a",)
        assert [(one.completed_steps, one.completed_step_count) for one in store.list(W)] == [
            ((), 3),
            ((), 3),
            ((), 1),
        ]

    def test_scopes_have_heads_of_their_own_and_share_the_sequence(self, store: CheckpointStore) -> None:
        store.save(W, state={"n": 1}, after="start", checkpoint_id="c")
        child = store.save(W, state={"n": 2}, after="start", checkpoint_id="c", scope="child:1")
        assert child.sequence == 2
        assert store.load(W).state == {"n": 1}
        assert store.load(W, scope="child:1").state == {"n": 2}
        with pytest.raises(CheckpointNotFoundError):
            store.load(W, sequence=2)
        with pytest.raises(CheckpointNotFoundError):
            store.load(W, scope="child:2")

    def test_workflows_do_not_see_each_other(self, store: CheckpointStore) -> None:
        store.save("a", state={"n": 1}, checkpoint_id="c", after="start")
        store.save("b", state={"n": 2}, checkpoint_id="c", after="start")
        assert (store.load("a").state, store.load("b").state) == ({"n": 1}, {"n": 2})
        assert store.load("b").sequence == 1

    @pytest.mark.parametrize("workflow_id", ["ä/b c:#?%00", "🙂" * 256, " ", "../..", "x" * 1024])
    def test_any_text_up_to_its_limit_is_a_workflow_id(self, store: CheckpointStore, workflow_id: str) -> None:
        store.save(workflow_id, state={"n": 1})
        assert store.load(workflow_id).workflow_id == workflow_id

    # No live object is shared.

    def test_what_the_caller_changes_later_is_not_in_the_store(self, store: CheckpointStore) -> None:
        inner = [1]
        state: dict[str, Any] = {"list": inner, "dict": {"a": inner}}
        metadata = {"m": [1]}
        store.save(W, state=state, metadata=metadata)
        inner.append(2)
        state["new"] = 1
        metadata["m"].append(2)
        assert store.load(W).state == {"list": [1], "dict": {"a": [1]}}
        assert store.load(W).metadata == {"m": [1]}

    def test_what_a_reader_changes_is_not_in_the_store(self, store: CheckpointStore) -> None:
        store.save(W, state={"list": [1]}, metadata={"m": [1]})
        loaded = store.load(W)
        loaded.state["list"].append(2)
        cast("dict[str, Any]", loaded.metadata)["m"].append(2)
        assert store.load(W).state == {"list": [1]}
        assert store.load(W).metadata == {"m": [1]}

    # Replay, conflict, preconditions.

    def test_the_same_save_again_is_answered_as_the_first_time(self, store: CheckpointStore) -> None:
        first = save_item(store, "c1", after="start")
        again = save_item(store, "c1", after="start")
        assert again.replayed
        assert (again.sequence, again.checkpoint_id, again.create_time) == (1, "c1", first.create_time)
        assert len(list(store.list(W))) == 1

    def test_a_replay_tells_the_present_head_and_changes_nothing(self, store: CheckpointStore) -> None:
        first = save_item(store, "c1", after="start")
        save_item(store, "c2", after=first, n=2)
        again = save_item(store, "c1", after="start")
        assert (again.replayed, again.sequence, again.head_checkpoint_id) == (True, 1, "c2")
        assert store.load(W).checkpoint_id == "c2"

    def test_an_unconditional_save_is_replayed_after_the_head_moved_on(self, store: CheckpointStore) -> None:
        save_item(store, "c1")
        save_item(store, "c2", n=2)
        again = save_item(store, "c1")
        assert (again.replayed, again.sequence, again.parent_id) == (True, 1, "")

    def test_another_state_under_a_taken_id_is_refused(self, store: CheckpointStore) -> None:
        save_item(store, "c1", after="start")
        with pytest.raises(CheckpointExistsError) as caught:
            save_item(store, "c1", after="start", n=2)
        assert caught.value.sequence == 1
        assert (caught.value.workflow_id, caught.value.checkpoint_id) == (W, "c1")
        assert caught.value.reason == "CHECKPOINT_EXISTS"
        assert store.load(W).state == {"n": 1}

    @pytest.mark.parametrize(
        "other",
        [
            {"current_step": "b"},
            {"status": Status.FAILED},
            {"metadata": {"k": 1}},
            {"completed_steps": ["s"]},
            {"fingerprint": "f"},
            {"state": {"n": 1.0}},
            {"state": {"n": 1, "m": 1}},
        ],
        ids=lambda other: "-".join(other),
    )
    def test_each_part_of_the_content_counts(self, store: CheckpointStore, other: dict[str, Any]) -> None:
        content: dict[str, Any] = {"state": {"n": 1}, "checkpoint_id": "c1", "after": "start"}
        store.save(W, **content)
        with pytest.raises(CheckpointExistsError):
            store.save(W, **{**content, **other})

    def test_replace_puts_other_content_in_its_place(self, store: CheckpointStore) -> None:
        first, _, third = chain(store, 3)
        replaced = store.save(
            W, state={"n": 20}, after=None, checkpoint_id="c2", replace=True, metadata={"again": True}
        )
        assert (replaced.sequence, replaced.replayed, replaced.parent_id) == (2, False, first.checkpoint_id)
        assert store.load(W, checkpoint_id="c2").state == {"n": 20}
        assert store.load(W).checkpoint_id == third.checkpoint_id
        assert store.load(W).state == {"n": 3}

    def test_replace_of_the_same_content_is_a_replay(self, store: CheckpointStore) -> None:
        store.save(W, state={"n": 1}, checkpoint_id="c1", replace=True)
        assert store.save(W, state={"n": 1}, checkpoint_id="c1", replace=True).replayed

    def test_who_saves_after_a_stale_checkpoint_learns_the_real_head(self, store: CheckpointStore) -> None:
        first, second = chain(store, 2)
        with pytest.raises(HeadMovedError) as caught:
            store.save(W, state={"n": 9}, after=first)
        assert caught.value.expected_head == first.checkpoint_id
        assert caught.value.head_checkpoint_id == second.checkpoint_id
        assert caught.value.head_sequence == 2
        assert caught.value.workflow_id == W
        assert store.load(W).state == {"n": 2}

    def test_start_is_refused_where_there_is_a_head(self, store: CheckpointStore) -> None:
        chain(store, 1)
        with pytest.raises(HeadMovedError) as caught:
            store.save(W, state={"n": 9}, after="start")
        assert (caught.value.expected_head, caught.value.head_checkpoint_id) == ("", "c1")

    def test_a_predecessor_that_is_nowhere_is_a_conflict(self, store: CheckpointStore) -> None:
        (first,) = chain(store, 1)
        with pytest.raises(InvalidRequestError):
            store.save("other", state={}, after=first)
        with pytest.raises(InvalidRequestError):
            store.save(W, state={}, after=first, scope="child")

    def test_another_definition_is_refused(self, store: CheckpointStore) -> None:
        store.save(W, state={}, definition="orders")
        store.save(W, state={})
        with pytest.raises(DefinitionMismatchError) as caught:
            store.save(W, state={}, definition="invoices")
        assert (caught.value.definition, caught.value.found) == ("orders", "invoices")

    # Refusals leave nothing behind.

    def test_a_value_without_an_exact_form_is_refused_with_its_path(self, store: CheckpointStore) -> None:
        with pytest.raises(CodecError) as caught:
            store.save(W, state={"ok": 1, "a": [0, {"b": object()}]})
        assert caught.value.path == "$.a[1].b"
        assert caught.value.type == "object"
        with pytest.raises(WorkflowNotFoundError):
            store.load(W)

    @pytest.mark.parametrize("key", ["", "a\0b", "k" * 1025, "ä" * 513, "\ud800"], ids=ascii)
    def test_a_malformed_entry_key_is_refused(self, store: CheckpointStore, key: str) -> None:
        with pytest.raises(InvalidRequestError):
            store.save(W, state={key: 1})
        with pytest.raises(WorkflowNotFoundError):
            store.load(W)

    @pytest.mark.parametrize("key", ["k" * 1024, "ä" * 512, " ", "$milepost", "a.b[0]"], ids=ascii)
    def test_any_other_text_is_an_entry_key(self, store: CheckpointStore, key: str) -> None:
        store.save(W, state={key: 1})
        assert store.load(W).state == {key: 1}

    @pytest.mark.parametrize("workflow_id", ["", "x" * 1025, "a\0b"], ids=["empty", "long", "nul"])
    def test_a_malformed_workflow_id_is_refused(self, store: CheckpointStore, workflow_id: str) -> None:
        with pytest.raises(InvalidRequestError):
            store.save(workflow_id, state={})

    def test_a_malformed_checkpoint_id_is_refused(self, store: CheckpointStore) -> None:
        for checkpoint_id in ("", "x" * 257, "a\0b"):
            with pytest.raises(InvalidRequestError):
                store.save(W, state={}, checkpoint_id=checkpoint_id)

    @pytest.mark.parametrize("value", [object(), float("nan"), "\ud800"], ids=["object", "nan", "surrogate"])
    def test_metadata_is_plain_json(self, store: CheckpointStore, value: object) -> None:
        with pytest.raises(CodecError):
            store.save(W, state={}, metadata={"k": value})

    # Load.

    def test_what_was_never_saved_is_not_found(self, store: CheckpointStore) -> None:
        with pytest.raises(WorkflowNotFoundError) as caught:
            store.load(W)
        assert isinstance(caught.value, NotFoundError)
        assert isinstance(caught.value, LookupError)
        assert caught.value.workflow_id == W

    def test_a_checkpoint_is_loaded_by_id_or_by_sequence(self, store: CheckpointStore) -> None:
        chain(store, 3)
        assert store.load(W, checkpoint_id="c2").state == {"n": 2}
        assert store.load(W, sequence=1).state == {"n": 1}
        with pytest.raises(CheckpointNotFoundError):
            store.load(W, checkpoint_id="c9")
        with pytest.raises(CheckpointNotFoundError):
            store.load(W, sequence=9)
        with pytest.raises(InvalidRequestError):
            store.load(W, checkpoint_id="c2", sequence=2)

    def test_the_newest_checkpoint_with_a_status_is_loaded(self, store: CheckpointStore) -> None:
        for number, status in enumerate([Status.RUNNING, Status.WAITING, Status.WAITING, Status.FAILED], 1):
            store.save(W, state={"n": number}, status=status)
        assert store.load(W, latest_with_status=Status.WAITING).state == {"n": 3}
        assert store.load(W, latest_with_status=[Status.RUNNING, Status.WAITING]).state == {"n": 3}
        with pytest.raises(CheckpointNotFoundError):
            store.load(W, latest_with_status=Status.COMPLETED)

    def test_only_the_entries_asked_for_are_loaded(self, store: CheckpointStore) -> None:
        store.save(W, state={"a": 1, "b": 2, "c": 3})
        some = store.load(W, entries=["c", "a", "missing"])
        assert some.state == {"a": 1, "c": 3}
        assert some.state_omitted
        assert some.entry_count == 3

    def test_a_state_that_was_not_loaded_is_never_empty(self, store: CheckpointStore) -> None:
        store.save(W, state={"a": 1})
        without = store.load(W, with_state=False)
        assert without.state_omitted
        with pytest.raises(StateNotLoadedError):
            _ = without.state
        for listed in store.list(W):
            with pytest.raises(StateNotLoadedError):
                _ = listed.state

    # List.

    def test_a_list_is_newest_first_unless_told_otherwise(self, store: CheckpointStore) -> None:
        chain(store, 3)
        assert [one.sequence for one in store.list(W)] == [3, 2, 1]
        assert [one.sequence for one in store.list(W, newest_first=False)] == [1, 2, 3]
        assert [one.sequence for one in store.list(W, limit=2)] == [3, 2]
        assert list(store.list(W, limit=0)) == []
        assert [one.state for one in store.list(W, with_state=True)] == [{"n": 3}, {"n": 2}, {"n": 1}]

    def test_a_long_history_is_listed_whole(self, store: CheckpointStore) -> None:
        chain(store, 120)
        assert [one.sequence for one in store.list(W)] == list(range(120, 0, -1))
        assert [one.state["n"] for one in store.list(W, newest_first=False, with_state=True)] == [*range(1, 121)]
        assert [one.sequence for one in store.list(W, limit=60)] == list(range(120, 60, -1))

    def test_a_list_has_one_scope_or_all(self, store: CheckpointStore) -> None:
        store.save(W, state={}, scope="")
        store.save(W, state={}, scope="child")
        store.save(W, state={}, scope="")
        assert [one.sequence for one in store.list(W)] == [3, 1]
        assert [one.sequence for one in store.list(W, scope="child")] == [2]
        assert [(one.sequence, one.scope) for one in store.list(W, scope=None)] == [(3, ""), (2, "child"), (1, "")]
        assert list(store.list(W, scope="unknown")) == []

    def test_the_list_of_an_unknown_workflow_is_an_error(self, store: CheckpointStore) -> None:
        with pytest.raises(WorkflowNotFoundError):
            list(store.list(W))

    def test_a_list_is_filtered(self, store: CheckpointStore) -> None:
        able(store, "workflows")
        every: Any = store
        store.save(W, state={}, checkpoint_id="a", current_step="x", run_id="r1", metadata={"k": {"v": 1, "w": 2}})
        store.save(W, state={}, checkpoint_id="b", current_step="y", run_id="r2", status=Status.FAILED)
        store.save(W, state={}, checkpoint_id="c", current_step="x", run_id="r2", metadata={"k": {"v": 2}})

        def ids(**filters: Any) -> list[str]:
            return [one.checkpoint_id for one in every.list(W, **filters)]

        assert ids(status=Status.FAILED) == ["b"]
        assert ids(status=[Status.FAILED, Status.RUNNING]) == ["c", "b", "a"]
        assert ids(current_step="x") == ["c", "a"]
        assert ids(run_id="r2") == ["c", "b"]
        assert ids(metadata_contains={"k": {"v": 1}}) == ["a"]
        assert ids(metadata_contains={}) == ["c", "b", "a"]
        assert ids(before=3) == ["b", "a"]
        assert ids(before="b") == ["a"]
        assert ids(before=store.load(W)) == ["b", "a"]
        assert ids(run_id="r2", current_step="x", limit=1) == ["c"]

    # Records.

    def test_records_come_back_in_order_and_the_first_one_wins(self, store: CheckpointStore) -> None:
        append: AppendRecords = able(store, "append_records")
        chain(store, 1)
        records = [
            Record(task_id="b", index=0, value={"x": (1,)}, path="1"),
            Record(task_id="a", index=1, value="second", path="2"),
            Record(task_id="a", index=-1, value="first", path="2"),
        ]
        assert append(W, "c1", records) == [RecordOutcome.CREATED] * 3
        assert append(W, "c1", [Record(task_id="b", index=0, value="late")]) == [RecordOutcome.EXISTING]
        found = store.load(W)
        assert [(one.path, one.task_id, one.index) for one in found.records] == [
            ("1", "b", 0),
            ("2", "a", -1),
            ("2", "a", 1),
        ]
        assert found.records[0].value == {"x": (1,)}
        assert append(W, "c1", [Record(task_id="b", index=0, value="new", overwrite=True)]) == [
            RecordOutcome.OVERWRITTEN
        ]
        assert {one.value for one in store.load(W).records} == {"new", "first", "second"}
        assert store.load(W).record_count == 3
        assert append(W, "c1", []) == []

    def test_records_may_come_before_their_checkpoint(self, store: CheckpointStore) -> None:
        append: AppendRecords = able(store, "append_records")
        append(W, "c1", [Record(task_id="a", value=1)])
        with pytest.raises(WorkflowNotFoundError):
            store.load(W)
        save_item(store, "c1", after="start")
        assert [one.value for one in store.load(W).records] == [1]

    def test_records_can_insist_on_their_checkpoint(self, store: CheckpointStore) -> None:
        append: AppendRecords = able(store, "append_records")
        chain(store, 1)
        with pytest.raises(CheckpointNotFoundError):
            append(W, "c2", [Record(value=1)], require_checkpoint=True)
        with pytest.raises(CheckpointNotFoundError):
            append(W, "c1", [Record(value=1)], require_checkpoint=True, scope="child")
        assert append(W, "c1", [Record(value=1)], require_checkpoint=True) == [RecordOutcome.CREATED]

    def test_records_are_not_content(self, store: CheckpointStore) -> None:
        able(store, "append_records")
        store.save(W, state={}, checkpoint_id="c1", after="start", records=[Record(value=1)])
        again = store.save(W, state={}, checkpoint_id="c1", after="start", records=[Record(value=2)])
        assert again.replayed
        assert [one.value for one in store.load(W).records] == [1]

    def test_a_list_has_records_on_request(self, store: CheckpointStore) -> None:
        able(store, "append_records")
        every: Any = store
        store.save(W, state={}, records=[Record(value=1)])
        (plain,), (full,) = every.list(W), every.list(W, with_records=True)
        assert (plain.records, plain.record_count) == ((), 1)
        assert [one.value for one in full.records] == [1]

    # Several at once.

    def test_many_are_saved_in_order_with_a_result_each(self, store: CheckpointStore) -> None:
        save_all: Any = able(store, "save_all")
        first = SaveItem(workflow_id=W, state={"n": 1}, after="start")
        second = SaveItem(workflow_id=W, state={"n": 2}, after=first)
        refused = SaveItem(workflow_id=W, state={"n": 3}, after="start")
        follower = SaveItem(workflow_id=W, state={"n": 4}, after=refused)
        other = SaveItem(workflow_id="other", state={"n": 5}, after="start")
        results: list[Saved | MilepostError] = save_all([first, second, refused, follower, other])
        assert [type(result) for result in results] == [
            Saved,
            Saved,
            HeadMovedError,
            PredecessorFailedError,
            Saved,
        ]
        assert store.load(W).state == {"n": 2}
        assert store.load("other").state == {"n": 5}

    # Workflows.

    def test_workflows_are_listed_by_id_and_filtered(self, store: CheckpointStore) -> None:
        workflows: Callable[..., Iterator[WorkflowInfo]] = able(store, "workflows")
        for workflow_id, status in (("b1", Status.FAILED), ("a2", Status.RUNNING), ("a1", Status.COMPLETED)):
            store.save(workflow_id, state={}, status=status, labels={"first": workflow_id[0]}, definition="d")

        def ids(**filters: Any) -> list[str]:
            return [info.workflow_id for info in workflows(**filters)]

        assert ids() == ["a1", "a2", "b1"]
        assert ids(prefix="a") == ["a1", "a2"]
        assert ids(status=Status.FAILED) == ["b1"]
        assert ids(status=[Status.FAILED, Status.RUNNING]) == ["a2", "b1"]
        assert ids(labels={"first": "a"}) == ["a1", "a2"]
        assert ids(definition="e") == []
        assert ids(limit=1) == ["a1"]
        moment = store.load("a1").create_time
        assert "a1" in ids(updated_from=moment - dt.timedelta(hours=1))
        assert ids(updated_from=moment + dt.timedelta(hours=1)) == []
        assert ids(updated_before=moment - dt.timedelta(hours=1)) == []

    def test_what_is_known_of_a_workflow_follows_its_root_scope(self, store: CheckpointStore) -> None:
        workflow: Callable[[str], WorkflowInfo] = able(store, "workflow")
        with pytest.raises(WorkflowNotFoundError):
            workflow(W)
        store.save(W, state={}, checkpoint_id="c1", current_step="a", labels={"k": "v"}, definition="d")
        store.save(W, state={}, checkpoint_id="c2", scope="child", status=Status.COMPLETED, current_step="z")
        info = workflow(W)
        assert (info.status, info.current_step, info.head_checkpoint_id) == (Status.RUNNING, "a", "c1")
        assert (info.head_sequence, info.last_sequence) == (1, 2)
        assert (info.checkpoint_count, info.scope_count) == (2, 2)
        assert (info.labels, info.definition) == ({"k": "v"}, "d")
        assert info.forked_from_workflow_id == ""
        store.save(W, state={}, status=Status.COMPLETED, labels={"other": "x"})
        later = workflow(W)
        assert (later.status, later.labels) == (Status.COMPLETED, {"other": "x"})
        assert later.revision > info.revision
        assert later.incarnation == info.incarnation

    def test_entry_history_tells_when_a_value_came_and_went(self, store: CheckpointStore) -> None:
        history: Any = able(store, "entry_history")
        states: list[dict[str, Any]] = [{"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 2}, {"a": 2, "b": 1}]
        after: Any = "start"
        for number, state in enumerate(states, 1):
            after = store.save(W, state=state, after=after, checkpoint_id=f"c{number}")

        def told(*args: Any, **options: Any) -> list[tuple[str, int, Any]]:
            return [(one.entry_key, one.sequence, one.value) for one in history(W, *args, **options)]

        assert told("a") == [("a", 3, 2), ("a", 1, 1)]
        assert told("b") == [("b", 4, 1), ("b", 3, None), ("b", 2, 1), ("b", 1, 0)]
        assert [one.removed for one in history(W, "b")] == [False, True, False, False]
        assert sorted(told(["a", "b"], checkpoint_id="c2")) == [("a", 1, 1), ("b", 1, 0), ("b", 2, 1)]
        assert told("b", limit=1) == [("b", 4, 1)]
        assert told("missing") == []
        with pytest.raises(CheckpointNotFoundError):
            told("a", checkpoint_id="c9")

    # Fork.

    def test_a_fork_has_the_line_up_to_its_checkpoint(self, store: CheckpointStore) -> None:
        fork: Any = able(store, "fork")
        first, _, _ = chain(store, 3)
        info = fork(W, "fork", checkpoint_id="c2")
        assert (info.workflow_id, info.forked_from_workflow_id, info.head_checkpoint_id) == ("fork", W, "c2")
        assert [one.state for one in store.list("fork", with_state=True)] == [{"n": 2}, {"n": 1}]
        assert store.load("fork", sequence=1).create_time == first.create_time
        store.save("fork", state={"n": 30}, after=store.load("fork"))
        assert (store.load(W).state, store.load("fork").state) == ({"n": 3}, {"n": 30})
        assert store.load("fork").sequence == 3

    def test_a_fork_needs_a_source_and_a_free_name(self, store: CheckpointStore) -> None:
        fork: Any = able(store, "fork")
        with pytest.raises(WorkflowNotFoundError):
            fork(W, "fork")
        chain(store, 1)
        with pytest.raises(CheckpointNotFoundError):
            fork(W, "fork", checkpoint_id="c9")
        fork(W, "fork")
        with pytest.raises(WorkflowExistsError):
            fork(W, "fork")

    def test_a_fork_with_the_same_id_is_made_once(self, store: CheckpointStore) -> None:
        fork: Any = able(store, "fork")
        chain(store, 1)
        first = fork(W, "fork", fork_id="f1")
        store.save("fork", state={"n": 5})
        assert fork(W, "fork", fork_id="f1").incarnation == first.incarnation
        assert store.load("fork").state == {"n": 5}

    def test_a_fork_can_take_all_scopes_along(self, store: CheckpointStore) -> None:
        fork: Any = able(store, "fork")
        store.save(W, state={"n": 1}, checkpoint_id="a")
        store.save(W, state={"n": 2}, checkpoint_id="b", scope="child", records=[Record(value=7)])
        store.save(W, state={"n": 3}, checkpoint_id="c")
        store.save(W, state={"n": 4}, checkpoint_id="d", scope="child")
        fork(W, "line", checkpoint_id="c")
        fork(W, "all", checkpoint_id="c", all_scopes=True)
        assert [one.checkpoint_id for one in store.list("line", scope=None)] == ["c", "a"]
        assert [one.checkpoint_id for one in store.list("all", scope=None)] == ["c", "b", "a"]
        assert [one.value for one in store.load("all", scope="child").records] == [7]

    # Delete and prune.

    def test_a_deleted_workflow_is_gone_and_can_be_made_again(self, store: CheckpointStore) -> None:
        delete: Callable[[str], bool] = able(store, "delete")
        assert delete(W) is False
        chain(store, 2)
        assert delete(W) is True
        with pytest.raises(WorkflowNotFoundError):
            store.load(W)
        assert delete(W) is False
        made = store.save(W, state={"n": 7}, after="start", checkpoint_id="new")
        assert (made.sequence, made.replayed) == (1, False)
        assert [one.checkpoint_id for one in store.list(W)] == ["new"]

    def test_a_late_retry_does_not_bring_back_what_was_deleted(self, store: CheckpointStore) -> None:
        delete: Callable[[str], bool] = able(store, "delete")
        append: AppendRecords = able(store, "append_records")
        save_item(store, "c1", after="start")
        delete(W)
        with pytest.raises(CheckpointDeletedError) as caught:
            save_item(store, "c1", after="start")
        assert (caught.value.workflow_id, caught.value.checkpoint_id) == (W, "c1")
        with pytest.raises(CheckpointDeletedError):
            append(W, "c1", [Record(value=1)])
        with pytest.raises(WorkflowNotFoundError):
            store.load(W)

    def test_checkpoints_are_deleted_by_id(self, store: CheckpointStore) -> None:
        delete: Any = able(store, "delete_checkpoints")
        chain(store, 3)
        assert delete(W, ["c2", "missing", "c2"]) == 1
        assert [one.checkpoint_id for one in store.list(W)] == ["c3", "c1"]
        assert store.load(W).parent_pruned
        with pytest.raises(CheckpointDeletedError):
            save_item(store, "c2", n=2)
        assert delete(W, ["c3"]) == 1
        assert store.load(W).state == {"n": 1}
        assert store.save(W, state={}, checkpoint_id="c4").sequence == 4
        with pytest.raises(WorkflowNotFoundError):
            delete("unknown", ["c1"])

    def test_checkpoints_are_deleted_by_run(self, store: CheckpointStore) -> None:
        delete: Any = able(store, "delete_checkpoints")
        for workflow_id, run_id, scope in ((W, "r1", ""), (W, "r2", ""), (W, "r1", "child"), ("v", "r1", "")):
            store.save(workflow_id, state={}, run_id=run_id, scope=scope)
        assert delete(W, run_ids=["r1"]) == 2
        assert [one.run_id for one in store.list(W, scope=None)] == ["r2"]
        assert delete("", run_ids=["r1", "r2"]) == 2
        assert list(store.list("v")) == []

    def test_prune_keeps_the_newest_of_every_scope(self, store: CheckpointStore) -> None:
        prune: Any = able(store, "prune")
        with pytest.raises(WorkflowNotFoundError):
            prune(W)
        chain(store, 4)
        store.save(W, state={"n": 5}, scope="child")
        assert prune(W, keep_last=2, dry_run=True) == 2
        assert prune(W, keep_last=2) == 2
        assert [one.sequence for one in store.list(W, scope=None)] == [5, 4, 3]
        assert store.load(W, sequence=3).parent_pruned
        assert store.load(W, sequence=3).state == {"n": 3}
        assert prune(W, keep_last=2) == 0
        assert prune(W) == 1
        with pytest.raises(ValueError, match="keep_last"):
            prune(W, keep_last=0)

    def test_prune_keeps_ancestors_that_bring_history_entries(self, store: CheckpointStore) -> None:
        prune: Any = able(store, "prune")
        after: Any = "start"
        for number, state in enumerate([{"log": 0}, {"log": 1}, {"x": 1}, {"x": 2}], 1):
            history = ["log"] if number == 4 else []
            after = store.save(W, state=state, after=after, checkpoint_id=f"c{number}", history_entries=history)
        assert prune(W) == 1
        assert [one.checkpoint_id for one in store.list(W)] == ["c4", "c3", "c2"]

    def test_steps_and_saves_go_on_after_a_prune(self, store: CheckpointStore) -> None:
        prune: Any = able(store, "prune")
        after: Any = "start"
        for step in "abc":
            after = store.save(W, state={"s": step}, after=after, completed_steps=[step])
        prune(W)
        last = store.save(W, state={"s": "d"}, after=after, completed_steps=["d"])
        assert store.load(W).completed_steps == ("a", "b", "c", "d")
        assert last.sequence == 4

    # Nothing shows a value.

    def test_no_repr_and_no_error_shows_a_value(self, store: CheckpointStore) -> None:
        canary = "canary-7351"
        saved = store.save(
            W,
            state={"secret": canary},
            metadata={"m": canary},
            after="start",
            checkpoint_id="c1",
            records=[Record(value=canary)],
        )
        shown = [repr(store), repr(saved), repr(store.load(W)), *map(repr, store.list(W, with_state=True))]
        failing: list[Callable[[], object]] = [
            lambda: store.save(W, state={"secret": canary * 2}, after="start", checkpoint_id="c1"),
            lambda: store.save(W, state={"secret": canary}, after="start"),
            lambda: store.save(W, state={"secret": [canary, object()]}),
        ]
        for call in failing:
            with pytest.raises(MilepostError) as caught:
                call()
            shown += [str(caught.value), repr(caught.value), repr(caught.value.metadata)]
        assert not [text for text in shown if canary in text]


class AsyncStoreContract(StoreContract):
    """The same for an async store. Override the fixture `async_store` with an empty one, made without awaiting."""

    @pytest.fixture
    def async_store(self) -> AsyncCheckpointStore:
        """Give an empty async store."""
        raise NotImplementedError("override the fixture `async_store`")

    @pytest.fixture
    @override
    def store(self, async_store: AsyncCheckpointStore) -> Iterator[CheckpointStore]:
        """Give the async store in blocking clothes."""
        with BlockingStore(async_store) as store:
            yield cast("CheckpointStore", store)
