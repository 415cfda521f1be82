"""The part of the store contract about watching: every change is told, in order, without a gap."""

# ruff: noqa: D102  the name of a test is its sentence

from __future__ import annotations

import threading
from itertools import islice
from types import TracebackType
from typing import Any, Self

import pytest

from milepost.errors import InvalidRequestError, WatchCompactedError
from milepost.protocols import CheckpointStore, WatchStream
from milepost.testing._contract_support import EVENT_WAIT_S, BlockingBlock, W, able, chain
from milepost.types import Record, Status, WatchEvent, WatchEventKind


class WatchContract:
    """What a store that can be watched does. A part of `StoreContract`."""

    def test_a_watch_begins_by_telling_where_the_workflow_stands(self, store: CheckpointStore) -> None:
        store.save(W, state={}, checkpoint_id="c1", current_step="price", status=Status.WAITING, definition="orders")
        info = able(store, "workflow")(W)
        with watch(store, W) as events:
            started = next(events)
        assert started.kind is WatchEventKind.STARTED
        assert (started.workflow_id, started.incarnation, started.revision) == (W, info.incarnation, info.revision)
        assert (started.checkpoint_id, started.sequence, started.current_step) == ("c1", 1, "price")
        assert (started.status, started.definition) == (Status.WAITING, "orders")

    def test_a_workflow_that_does_not_exist_yet_can_be_watched(self, store: CheckpointStore) -> None:
        with watch(store, W) as events:
            started = next(events)
            assert (started.kind, started.workflow_id, started.incarnation) == (WatchEventKind.STARTED, W, "")
            assert started.status is None
            store.save(W, state={}, checkpoint_id="c1")
            saved = next(events)
        assert (saved.kind, saved.checkpoint_id, saved.sequence) == (WatchEventKind.SAVED, "c1", 1)
        assert saved.incarnation == able(store, "workflow")(W).incarnation

    def test_each_change_is_an_event(self, store: CheckpointStore) -> None:
        (first,) = chain(store, 1)
        with watch(store, W) as events:
            revisions = [next(events).revision]
            store.save(
                W, state={"n": 2}, after=first, checkpoint_id="c2", current_step="a", status=Status.FAILED, scope=""
            )
            store.save(W, state={"n": 7}, checkpoint_id="k", scope="child")
            store.save(W, state={"n": 3}, checkpoint_id="c2", replace=True)
            able(store, "append_records")(W, "c2", [Record(value=1)])
            able(store, "send_signal")(W, "go", signal_id="s1")
            token = able(store, "acquire_lease")(W, holder="me").token
            store.save(W, state={"n": 4}, checkpoint_id="c4", lease_token=token, release_lease=True)
            able(store, "acquire_lease")(W, holder="you")
            able(store, "break_lease")(W)
            able(store, "prune")(W)
            able(store, "delete_checkpoints")(W, ["c4"])
            able(store, "delete")(W)
            told = [*islice(events, 12)]
        revisions += [event.revision for event in told]
        assert revisions == [*range(revisions[0], revisions[0] + 13)]
        assert {(event.workflow_id, event.incarnation) for event in told} == {(W, told[0].incarnation)}
        kind = WatchEventKind
        assert [event.kind for event in told] == [
            kind.SAVED,
            kind.SAVED,
            kind.REPLACED,
            kind.RECORDS_APPENDED,
            kind.SIGNAL_SENT,
            kind.LEASE_GRANTED,
            kind.SAVED,
            kind.LEASE_GRANTED,
            kind.LEASE_RELEASED,
            kind.CHANGED,
            kind.CHECKPOINTS_DELETED,
            kind.WORKFLOW_DELETED,
        ]
        saved, child, replaced, recorded, sent, granted, released = told[:7]
        assert (saved.scope, saved.checkpoint_id, saved.sequence, saved.current_step) == ("", "c2", 2, "a")
        assert (saved.status, saved.lease_released) == (Status.FAILED, False)
        assert (child.scope, child.checkpoint_id, child.sequence) == ("child", "k", 3)
        assert (replaced.checkpoint_id, replaced.sequence, replaced.status) == ("c2", 2, Status.RUNNING)
        assert recorded.checkpoint_id == "c2"
        assert (sent.signal_name, sent.signal_id) == ("go", "s1")
        assert granted.holder == "me"
        assert (released.checkpoint_id, released.lease_released) == ("c4", True)

    def test_other_workflows_are_not_told_of(self, store: CheckpointStore) -> None:
        chain(store, 1)
        with watch(store, W) as events:
            next(events)
            store.save("other", state={})
            store.save(W, state={}, checkpoint_id="mine")
            assert next(events).checkpoint_id == "mine"

    def test_all_workflows_can_be_watched(self, store: CheckpointStore) -> None:
        chain(store, 1)
        with watch(store) as events:
            started = next(events)
            assert (started.kind, started.workflow_id, started.revision) == (WatchEventKind.STARTED, "", 0)
            store.save("a", state={}, checkpoint_id="a1")
            store.save("b", state={}, checkpoint_id="b1")
            assert [(event.workflow_id, event.checkpoint_id) for event in islice(events, 2)] == [
                ("a", "a1"),
                ("b", "b1"),
            ]

    def test_a_watch_may_see_one_definition_alone(self, store: CheckpointStore) -> None:
        with watch(store, definition="orders") as events:
            next(events)
            store.save("a", state={}, definition="invoices")
            store.save("b", state={}, definition="orders")
            store.save("b", state={"n": 1})
            assert [(event.workflow_id, event.definition) for event in islice(events, 2)] == [("b", "orders")] * 2

    def test_a_watch_goes_on_where_another_ended(self, store: CheckpointStore) -> None:
        chain(store, 1)
        with watch(store, W) as events:
            seen = next(events)
        store.save(W, state={}, checkpoint_id="meanwhile")
        info = able(store, "workflow")(W)
        store.save(W, state={}, checkpoint_id="later")
        with watch(store, W, after=seen) as events:
            started = next(events)
            assert (started.kind, started.revision) == (WatchEventKind.STARTED, seen.revision)
            store.save(W, state={}, checkpoint_id="new")
            found = [*islice(events, 3)]
        assert [event.checkpoint_id for event in found] == ["meanwhile", "later", "new"]
        assert [event.revision for event in found] == [*range(seen.revision + 1, seen.revision + 4)]
        for after in (info, found[0], (found[0].incarnation, found[0].revision)):
            with watch(store, W, after=after) as events:
                next(events)
                assert [event.checkpoint_id for event in islice(events, 2)] == ["later", "new"]

    def test_what_happened_to_another_incarnation_is_not_kept(self, store: CheckpointStore) -> None:
        chain(store, 1)
        with watch(store, W, after=("never-was", 3)) as events, pytest.raises(WatchCompactedError) as caught:
            next(events)
        assert (caught.value.workflow_id, caught.value.revision) == (W, 3)

    def test_only_one_workflow_can_be_watched_after_a_revision(self, store: CheckpointStore) -> None:
        chain(store, 1)
        info = able(store, "workflow")(W)
        with pytest.raises(InvalidRequestError), watch(store, after=info) as events:
            next(events)
        with pytest.raises(InvalidRequestError), watch(store, W, after=("", 1)) as events:
            next(events)

    def test_a_closed_watch_has_ended(self, store: CheckpointStore) -> None:
        chain(store, 1)
        events = watch(store, W)
        next(events)
        events.close()
        assert list(events) == []
        events.close()
        unopened = watch(store, W)
        unopened.close()
        assert list(unopened) == []

    def test_an_event_shows_no_value(self, store: CheckpointStore) -> None:
        canary = "canary-7351"
        store.save(W, state={"secret": canary}, metadata={"m": canary})
        with watch(store, W) as events:
            shown = [repr(next(events))]
            store.save(W, state={"secret": canary * 2})
            able(store, "send_signal")(W, "go", canary)
            shown += [repr(event) for event in islice(events, 2)]
        assert not [text for text in shown if canary in text]


def watch(store: CheckpointStore, workflow_id: str = "", **options: Any) -> WatchStream:
    """Watch a store, with a deadline for each event; skip the test where it cannot be watched."""
    return ImpatientStream(able(store, "watch")(workflow_id, **options))


class ImpatientStream:
    """A stream that fails the test when the next event does not come."""

    def __init__(self, inner: WatchStream) -> None:
        self._inner = inner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        if isinstance(self._inner, BlockingBlock):
            # Has a deadline of its own, and cannot be closed by another thread.
            return next(self._inner)  # type: ignore[no-any-return]
        too_late = threading.Timer(EVENT_WAIT_S, self._inner.close)
        too_late.start()
        try:
            return next(self._inner)
        except StopIteration:
            if too_late.finished.is_set():
                pytest.fail(f"no event came within {EVENT_WAIT_S:g} s")
            raise
        finally:
            too_late.cancel()

    def close(self) -> None:
        """End it."""
        self._inner.close()
