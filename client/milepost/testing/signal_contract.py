"""The part of the store contract about signals and definitions: what comes to a workflow from outside."""

# ruff: noqa: D102  the name of a test is its sentence

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from milepost.errors import (
    CodecError,
    DefinitionNotFoundError,
    InvalidRequestError,
    LimitExceededError,
    MilepostError,
    SignalExistsError,
    WorkflowNotFoundError,
)
from milepost.protocols import CheckpointStore, SupportsSignals
from milepost.testing._contract_support import W, able, chain, save_item
from milepost.types import CANCEL_SIGNAL, PendingSignal

MANIFEST = '{"steps": [{"id": "price", "version": 1}],\n "name": "ä"}'
NOISE = random.Random(0).randbytes(80_000)  # noqa: S311  too large for a signal, however it is compressed
FINGERPRINT = hashlib.sha256(MANIFEST.encode()).hexdigest()


class SignalContract:
    """What a store with signals and definitions does. A part of `StoreContract`."""

    def test_signals_wait_in_the_order_they_came(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        chain(store, 1)
        sent = signals.send_signal(W, "approval", {"by": ["me"], "sum": Decimal("1.10")}, signal_id="z")
        assert (sent.signal_id, sent.replayed, sent.consumed) == ("z", False, False)
        signals.send_signal(W, CANCEL_SIGNAL, signal_id="a")
        signals.send_signal(W, "approval", (1, b"\0"), signal_id="m")
        found = list(signals.signals(W))
        assert [(one.signal_id, one.name) for one in found] == [
            ("z", "approval"),
            ("a", CANCEL_SIGNAL),
            ("m", "approval"),
        ]
        assert [one.value for one in found] == [{"by": ["me"], "sum": Decimal("1.10")}, None, (1, b"\0")]
        assert all(one.create_time.tzinfo is not None for one in found)
        assert [one.signal_id for one in signals.signals(W, name="approval")] == ["z", "m"]
        assert list(signals.signals(W, name="other")) == []

    def test_signals_without_an_id_are_each_their_own(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        chain(store, 1)
        first, second = signals.send_signal(W, "go"), signals.send_signal(W, "go")
        assert first.signal_id
        assert first.signal_id != second.signal_id
        assert second.revision > first.revision

    def test_a_save_consumes_the_signals_it_names(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        (first,) = chain(store, 1)
        for signal_id in ("s1", "s2", "s3"):
            signals.send_signal(W, "go", signal_id=signal_id)
        saved = store.save(W, state={"n": 2}, after=first, consumed_signals=["s3", "s1", "unknown"])
        assert saved.pending_signals == (PendingSignal(signal_id="s2", name="go"),)
        assert saved.pending_signal_count == 1
        assert [one.signal_id for one in signals.signals(W)] == ["s2"]

    def test_answers_say_what_is_pending(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        store.save("quiet", state={})
        (first,) = chain(store, 1)
        assert (first.pending_signals, store.load(W).pending_signals) == ((), ())
        token = able(store, "acquire_lease")(W).token
        signals.send_signal(W, "go", signal_id="s1")
        pending = (PendingSignal(signal_id="s1", name="go"),)
        loaded = store.load(W)
        assert (loaded.pending_signals, loaded.pending_signal_count) == (pending, 1)
        assert loaded.revision == able(store, "workflow")(W).revision
        renewal = able(store, "renew_lease")(W, token)
        assert (renewal.pending_signals, renewal.pending_signal_count) == (pending, 1)
        saved = store.save(W, state={"n": 2}, after=first, lease_token=token)
        assert (saved.pending_signals, saved.pending_signal_count) == (pending, 1)
        workflows = able(store, "workflows")
        assert [one.pending_signal_count for one in workflows()] == [1, 0]
        assert [one.workflow_id for one in workflows(has_pending_signals=True)] == [W]
        assert [one.workflow_id for one in workflows(has_pending_signals=False)] == ["quiet"]

    def test_of_very_many_pending_signals_answers_name_the_oldest(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        (first,) = chain(store, 1)
        for number in range(105):
            signals.send_signal(W, "go", signal_id=f"s{number}")
        saved = store.save(W, state={"n": 2}, after=first)
        assert saved.pending_signal_count == 105
        assert [one.signal_id for one in saved.pending_signals] == [f"s{number}" for number in range(100)]
        assert len(list(signals.signals(W))) == 105

    def test_a_signal_is_sent_once_also_after_it_was_consumed(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        chain(store, 1)
        signals.send_signal(W, "go", {"n": 1}, signal_id="s1")
        again = signals.send_signal(W, "go", {"n": 1}, signal_id="s1")
        assert (again.replayed, again.consumed) == (True, False)
        for name, value in (("stop", {"n": 1}), ("go", {"n": 2}), ("go", None)):
            with pytest.raises(SignalExistsError) as caught:
                signals.send_signal(W, name, value, signal_id="s1")
            assert (caught.value.workflow_id, caught.value.signal_id) == (W, "s1")
        store.save(W, state={}, consumed_signals=["s1"])
        late = signals.send_signal(W, "go", {"n": 1}, signal_id="s1")
        assert (late.replayed, late.consumed) == (True, True)
        with pytest.raises(SignalExistsError):
            signals.send_signal(W, "go", {"n": 2}, signal_id="s1")
        assert list(signals.signals(W)) == []

    def test_consumed_signals_are_not_content(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        save_item(store, "c1")
        signals.send_signal(W, "go", signal_id="s1")
        again = store.save(W, state={"n": 1}, checkpoint_id="c1", current_step="a", consumed_signals=["s1"])
        assert again.replayed
        assert [one.signal_id for one in signals.signals(W)] == ["s1"]

    def test_a_signal_needs_a_workflow_and_no_lease(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        with pytest.raises(WorkflowNotFoundError):
            signals.send_signal(W, "go")
        with pytest.raises(WorkflowNotFoundError):
            list(signals.signals(W))
        chain(store, 1)
        able(store, "acquire_lease")(W)
        assert not signals.send_signal(W, "go").replayed

    def test_signals_stay_when_checkpoints_go_and_go_with_their_workflow(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        chain(store, 3)
        signals.send_signal(W, "go", signal_id="s1")
        able(store, "prune")(W)
        able(store, "delete_checkpoints")(W, ["c3"])
        assert [one.signal_id for one in signals.signals(W)] == ["s1"]
        able(store, "delete")(W)
        store.save(W, state={})
        assert list(signals.signals(W)) == []
        assert not signals.send_signal(W, "go", signal_id="s1").replayed

    def test_a_fork_has_no_signals_and_no_lease(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        chain(store, 1)
        able(store, "acquire_lease")(W)
        signals.send_signal(W, "go")
        able(store, "fork")(W, "fork")
        assert list(signals.signals("fork")) == []
        assert store.save("fork", state={}).sequence == 2

    def test_malformed_signals_are_refused(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        chain(store, 1)
        malformed: list[Callable[[], object]] = [
            lambda: signals.send_signal(W, ""),
            lambda: signals.send_signal(W, "n" * 257),
            lambda: signals.send_signal(W, "go", signal_id=""),
            lambda: signals.send_signal(W, "go", signal_id="s" * 257),
            lambda: signals.send_signal(W, "go", NOISE),
            lambda: store.save(W, state={}, consumed_signals=[f"s{number}" for number in range(1_001)]),
        ]
        for send in malformed:
            with pytest.raises(InvalidRequestError):
                send()
        with pytest.raises(CodecError):
            signals.send_signal(W, "go", object())
        assert list(signals.signals(W)) == []

    def test_no_repr_and_no_error_shows_the_value_of_a_signal(self, store: CheckpointStore) -> None:
        signals = with_signals(store)
        chain(store, 1)
        canary = "canary-7351"
        shown = [repr(signals.send_signal(W, "go", canary, signal_id="s1")), repr(list(signals.signals(W)))]
        shown += [repr(store.load(W))]
        failing: list[Callable[[], object]] = [
            lambda: signals.send_signal(W, "go", canary * 2, signal_id="s1"),
            lambda: signals.send_signal(W, "go", [canary, object()]),
            lambda: signals.send_signal(W, "go", [canary, NOISE]),
        ]
        for call in failing:
            with pytest.raises(MilepostError) as caught:
                call()
            shown += [str(caught.value), repr(caught.value.metadata)]
        assert not [text for text in shown if canary in text]

    # Definitions.

    def test_a_manifest_is_stored_once_and_read_as_it_was_sent(self, store: CheckpointStore) -> None:
        manifest: Any = able(store, "definition_manifest")
        with pytest.raises(DefinitionNotFoundError) as caught:
            manifest(FINGERPRINT)
        assert caught.value.fingerprint == FINGERPRINT
        saves = [
            store.save(W, state={"n": n}, definition="orders", fingerprint=FINGERPRINT, manifest=text)
            for n, text in ((1, MANIFEST), (2, ""), (3, MANIFEST))
        ]
        assert [saved.sequence for saved in saves] == [1, 2, 3]
        assert manifest(FINGERPRINT) == MANIFEST
        able(store, "delete")(W)
        assert manifest(FINGERPRINT) == MANIFEST

    def test_a_manifest_is_not_content(self, store: CheckpointStore) -> None:
        able(store, "definition_manifest")
        content: dict[str, Any] = {"state": {}, "checkpoint_id": "c1", "fingerprint": FINGERPRINT}
        store.save(W, **content)
        assert store.save(W, **content, manifest=MANIFEST).replayed

    def test_a_manifest_that_is_not_what_its_fingerprint_says_is_refused(self, store: CheckpointStore) -> None:
        able(store, "definition_manifest")
        no_json = "no json"
        large = '"' + "x" * 1024 * 1024 + '"'
        wrong: list[tuple[str, str, type[MilepostError]]] = [
            (MANIFEST + " ", FINGERPRINT, InvalidRequestError),
            (MANIFEST, "", InvalidRequestError),
            (no_json, hashlib.sha256(no_json.encode()).hexdigest(), InvalidRequestError),
            (large, hashlib.sha256(large.encode()).hexdigest(), LimitExceededError),
        ]
        for text, fingerprint, kind in wrong:
            with pytest.raises(kind):
                store.save(W, state={}, fingerprint=fingerprint, manifest=text)
        with pytest.raises(WorkflowNotFoundError):
            store.load(W)

    def test_workflows_are_found_by_the_fingerprint_of_their_head(self, store: CheckpointStore) -> None:
        workflows = able(store, "workflows")
        store.save("a", state={"n": 1}, fingerprint="old")
        store.save("a", state={"n": 2}, fingerprint="new")
        store.save("b", state={}, fingerprint="old")
        assert [one.fingerprint for one in workflows()] == ["new", "old"]
        assert [one.workflow_id for one in workflows(fingerprint="old")] == ["b"]
        assert able(store, "workflow")("a").fingerprint == "new"


def with_signals(store: CheckpointStore) -> SupportsSignals:
    """Return the store as one that has signals; skip the test where it has none."""
    able(store, "send_signal")
    return store  # type: ignore[return-value]  # it has the methods
