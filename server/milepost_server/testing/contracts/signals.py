"""Contract of signals and manifests: once, in order, until a Save takes them in."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

import msgspec
import pytest

from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.testing.builders import (
    LEASE_TTL_MS,
    ManualClock,
    Store,
    data_value,
    json_value,
    manifest_of,
    refused,
)
from milepost_server.testing.contracts.base import ContractBase, OpenStore

FEW = msgspec.structs.replace(DEFAULT_LIMITS, pending_signals_max=3, pending_signals_shown_max=2, manifests_max=2)


class SendingContract(ContractBase):
    """Sending signals."""

    def test_a_signal_is_pending_until_it_is_consumed(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        assert store.pending("w") == []
        sent = store.send("w", "s1", "approve", json_value({"by": "ann"}))
        assert (sent.is_replayed, sent.is_consumed, sent.revision) == (False, False, 2)
        (signal,) = store.signals("w")
        assert (signal.signal_id, signal.name, signal.create_time_ms) == ("s1", "approve", clock.now_ms)
        assert signal.value == json_value({"by": "ann"})
        assert (store.pending("w"), store.get_workflow("w").pending_signal_count) == (["s1"], 1)
        saved = store.save("w", "b", consumed_signals=("s1",))
        assert (saved.pending_signal_count, saved.pending_signals) == (0, ())
        assert (store.pending("w"), store.signals("w"), store.count("signals")) == ([], [], 0)

    def test_a_workflow_that_has_no_checkpoint_yet_takes_none(self, store: Store) -> None:
        store.acquire("leased")
        for workflow_id in ("nowhere", "leased"):
            with refused("WORKFLOW_NOT_FOUND"):
                store.send(workflow_id, "s1")

    @pytest.mark.parametrize("size_bytes", [0, 1, 479, 480, 481, 5_000, 65_536])
    def test_values_of_any_size_come_back_as_they_were_sent(self, store: Store, size_bytes: int) -> None:
        store.save("w", "a")
        value = data_value(b"v" * size_bytes, "raw", 0)
        store.send("w", "s1", value=value)
        store.send("w", "s2")
        assert [signal.value for signal in store.signals("w")] == [value, None]
        store.save("w", "b", consumed_signals=("s1", "s2"))
        assert store.count("signals") == 0

    def test_the_same_signal_is_stored_once(self, store: Store) -> None:
        store.save("w", "a")
        first = store.send("w", "s1", "approve", json_value(1))
        again = store.send("w", "s1", "approve", json_value(1))
        assert (again.is_replayed, again.is_consumed, again.revision) == (True, False, first.revision)
        assert store.pending("w") == ["s1"]

    def test_another_signal_of_the_same_id_is_refused(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1", "approve", json_value(1))
        for name, value in (("approve", json_value(2)), ("reject", json_value(1)), ("approve", None)):
            with refused("SIGNAL_EXISTS") as refusal:
                store.send("w", "s1", name, value)
            assert refusal.error.metadata == {"signal_id": "s1"}
        store.save("w", "b", consumed_signals=("s1",))
        with refused("SIGNAL_EXISTS"):
            store.send("w", "s1", "approve", json_value(2))

    def test_a_retry_is_known_also_after_the_signal_was_consumed(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1")
        store.save("w", "b", consumed_signals=("s1",))
        again = store.send("w", "s1")
        assert (again.is_replayed, again.is_consumed) == (True, True)
        assert store.pending("w") == []

    def test_a_consumed_id_is_forgotten_after_the_replay_window(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        store.send("w", "s1")
        store.send("w", "s2")
        clock.advance(1_000)
        store.save("w", "b", consumed_signals=("s1",))
        clock.advance(DEFAULT_LIMITS.replay_window_ms - 1)
        store.sweep()
        assert store.send("w", "s1").is_replayed is True
        clock.advance(1)
        store.sweep()
        assert store.count("signal_ids") == 1
        assert store.send("w", "s1").is_replayed is False
        assert store.send("w", "s2").is_replayed is True
        assert store.pending("w") == ["s2", "s1"]

    def test_a_signal_needs_no_lease_and_ends_none(self, store: Store, lease_clock: ManualClock) -> None:
        store.save("w", "a")
        token = store.acquire("w").lease.token
        store.send("w", "s1")
        lease_clock.advance(LEASE_TTL_MS)
        store.send("w", "s2")
        renewed = store.renew("w", token)
        assert [each.signal_id for each in renewed.pending_signals] == ["s1", "s2"]
        assert renewed.pending_signal_count == 2

    def test_no_more_than_so_many_are_pending(self, open_store: OpenStore) -> None:
        store = open_store(FEW)
        store.save("w", "a")
        for number in range(3):
            store.send("w", f"s{number}")
        with refused("QUOTA_EXCEEDED") as refusal:
            store.send("w", "s3")
        assert refusal.error.metadata["limit"] == "pending_signals_max"
        assert store.send("w", "s1").is_replayed is True
        store.save("w", "b", consumed_signals=("s1",))
        store.send("w", "s3")
        assert store.pending("w") == ["s0", "s2"], "as many as are told"
        assert [signal.signal_id for signal in store.signals("w")] == ["s0", "s2", "s3"]
        assert store.load_answer("w").workflow.pending_signal_count == 3

    def test_signals_of_workflows_do_not_meet(self, store: Store) -> None:
        for workflow_id in ("v", "w"):
            store.save(workflow_id, "a")
        store.send("v", "s1", "one")
        assert store.send("w", "s1", "two").is_replayed is False
        store.save("v", "b", consumed_signals=("s1",))
        assert (store.pending("v"), store.pending("w")) == ([], ["s1"])

    def test_workflows_are_found_by_whether_signals_are_pending(self, store: Store) -> None:
        for workflow_id in ("u", "v", "w"):
            store.save(workflow_id, "a")
        store.send("v", "s1")
        assert store.workflow_ids(has_pending_signals=True) == ["v"]
        assert store.workflow_ids(has_pending_signals=False) == ["u", "w"]
        store.save("v", "b", consumed_signals=("s1",))
        assert store.workflow_ids(has_pending_signals=True) == []


class ConsumingContract(ContractBase):
    """Taking signals in."""

    def test_a_save_tells_what_is_pending_after_it(self, store: Store) -> None:
        store.save("w", "a")
        for number in range(3):
            store.send("w", f"s{number}", "approve")
        saved = store.save("w", "b", consumed_signals=("s1",))
        assert [(each.signal_id, each.name) for each in saved.pending_signals] == [("s0", "approve"), ("s2", "approve")]
        assert saved.pending_signal_count == 2
        replaced = store.save("w", "b", {"x": 1}, is_replace=True, consumed_signals=("s0",))
        assert [each.signal_id for each in replaced.pending_signals] == ["s2"]

    def test_ids_that_are_not_pending_are_passed_over(self, store: Store) -> None:
        store.save("w", "a", consumed_signals=("s0",))
        store.send("w", "s1")
        store.save("w", "b", consumed_signals=("nowhere", "s1", "s1"))
        store.save("w", "c", consumed_signals=("s1",))
        assert store.get_workflow("w").pending_signal_count == 0
        store.send("w", "s2")
        assert store.save("w", "d", consumed_signals=("s1",)).pending_signal_count == 1
        assert store.send("w", "s0").is_replayed is False, "a signal is not consumed before it comes"

    def test_what_a_save_consumes_is_not_its_content(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1")
        store.save("w", "b", {"x": 1})
        again = store.save("w", "b", {"x": 1}, consumed_signals=("s1",))
        assert (again.is_replayed, again.pending_signal_count) == (True, 1)
        assert store.pending("w") == ["s1"], "a replay writes nothing"

    def test_a_refused_save_consumes_nothing(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1")
        with refused("HEAD_MOVED"):
            store.save("w", "b", expected_head="", consumed_signals=("s1",))
        assert store.pending("w") == ["s1"]
        assert store.send("w", "s1").is_consumed is False

    def test_a_save_in_a_scope_consumes_too(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1")
        assert store.save("w", "b", scope="s", consumed_signals=("s1",)).pending_signal_count == 0

    def test_signals_outlive_heads_and_prunes(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1")
        store.save("w", "b")
        store.prune("w", 1)
        store.delete_ids("w", "b")
        assert store.get_workflow("w").pending_signal_count == 1
        store.save("w", "c")
        assert store.pending("w") == ["s1"]

    def test_a_delete_drops_them_and_a_new_workflow_knows_nothing_of_them(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1", value=data_value(b"v" * 10_000))
        store.send("w", "s2")
        store.save("w", "b", consumed_signals=("s2",))
        store.delete_workflow("w")
        store.save("w", "c")
        assert (store.pending("w"), store.get_workflow("w").pending_signal_count) == ([], 0)
        assert store.send("w", "s1", "another").is_replayed is False
        store.sweep()
        assert (store.count("signals"), store.count("signal_ids")) == (1, 1)

    def test_a_fork_takes_none_along(self, store: Store) -> None:
        store.save("w", "a")
        store.send("w", "s1")
        store.fork("w", "v")
        assert (store.pending("v"), store.get_workflow("v").pending_signal_count) == ([], 0)
        assert store.send("v", "s1", "another").is_replayed is False


class ListingSignalsContract(ContractBase):
    """Reading signals."""

    def test_they_are_listed_in_the_order_they_came_page_by_page(self, store: Store) -> None:
        store.save("w", "a")
        for number in (3, 1, 2, 0):
            store.send("w", f"s{number}", f"n{number % 2}")
        found: list[str] = []
        after: int | None = 0
        while after is not None:
            page = store.list_signals("w", page_size=2, after_number=after)
            found += [signal.signal_id for signal in page.signals]
            after = page.position
        assert found == ["s3", "s1", "s2", "s0"]
        assert [signal.signal_id for signal in store.signals("w", name="n1")] == ["s3", "s1"]
        assert store.signals("w", name="nothing") == []

    def test_a_page_is_bounded_in_bytes_but_never_empty(self, store: Store) -> None:
        store.save("w", "a")
        for number in range(4):
            store.send("w", f"s{number}", value=data_value(b"v" * 3_000))
        page = store.list_signals("w", bytes_max=8_000)
        assert ([signal.signal_id for signal in page.signals], page.position) == (["s0", "s1"], 2)
        assert len(store.list_signals("w", bytes_max=1).signals) == 1

    def test_a_page_of_a_workflow_that_was_made_again_is_refused(self, store: Store) -> None:
        store.save("w", "a")
        incarnation = store.get_workflow("w").incarnation
        store.delete_workflow("w")
        with refused("WORKFLOW_NOT_FOUND"):
            store.list_signals("w")
        store.save("w", "b")
        with refused("PAGE_EXPIRED"):
            store.list_signals("w", incarnation=incarnation)


class ManifestContract(ContractBase):
    """Manifests of definitions."""

    @pytest.mark.parametrize("size_bytes", [2, 600, 5_000, 1_000_000])
    def test_a_manifest_is_read_by_its_fingerprint(self, store: Store, size_bytes: int) -> None:
        text, fingerprint = manifest_of("m" * size_bytes)
        with refused("DEFINITION_NOT_FOUND"):
            store.definition(fingerprint)
        store.save("w", "a", manifest=text, fingerprint=fingerprint)
        assert store.definition(fingerprint) == text
        with refused("DEFINITION_NOT_FOUND") as refusal:
            store.definition(fingerprint, namespace="other")
        assert refusal.error.metadata == {"fingerprint": fingerprint}

    def test_it_is_stored_once_and_stays(self, store: Store) -> None:
        text, fingerprint = manifest_of({"steps": ["a"]})
        for workflow_id in ("v", "w"):
            store.save(workflow_id, "a", manifest=text, fingerprint=fingerprint)
            store.save(workflow_id, "b", manifest=text, fingerprint=fingerprint)
        assert store.count("manifests") == 1
        for workflow_id in ("v", "w"):
            store.delete_workflow(workflow_id)
        store.sweep()
        assert store.definition(fingerprint) == text

    def test_it_is_not_content(self, store: Store) -> None:
        text, fingerprint = manifest_of({})
        store.save("w", "a", fingerprint=fingerprint)
        assert store.save("w", "a", fingerprint=fingerprint, manifest=text).is_replayed is True

    def test_a_replace_brings_one_too(self, store: Store) -> None:
        text, fingerprint = manifest_of({})
        store.save("w", "a")
        store.save("w", "a", {"x": 1}, is_replace=True, fingerprint=fingerprint, manifest=text)
        assert store.definition(fingerprint) == text

    def test_a_namespace_has_no_more_than_so_many(self, open_store: OpenStore) -> None:
        store = open_store(FEW)
        for number in range(2):
            text, fingerprint = manifest_of(number)
            store.save("w", str(number), manifest=text, fingerprint=fingerprint)
        text, fingerprint = manifest_of(2)
        with refused("QUOTA_EXCEEDED") as refusal:
            store.save("w", "2", manifest=text, fingerprint=fingerprint)
        assert refusal.error.metadata["limit"] == "manifests_max"
        assert store.ids("w") == ["1", "0"]
        store.save("w", "2", manifest=text, fingerprint=fingerprint, namespace="other")
        store.save("w", "2", fingerprint=fingerprint)

    def test_workflows_are_found_by_the_fingerprint_of_their_root_head(self, store: Store) -> None:
        store.save("v", "a", fingerprint="f1")
        store.save("w", "a", fingerprint="f1")
        store.save("w", "b", fingerprint="f2")
        store.save("w", "c", fingerprint="f3", scope="s")
        assert store.workflow_ids(fingerprint="f1") == ["v"]
        assert store.workflow_ids(fingerprint="f2") == ["w"]
        assert store.workflow_ids(fingerprint="f3") == []
        assert store.get_workflow("w").fingerprint == "f2"
        store.delete_ids("w", "b")
        assert store.workflow_ids(fingerprint="f1") == ["v", "w"]
        store.save("v", "a", is_replace=True, fingerprint="f4")
        assert store.workflow_ids(fingerprint="f4") == ["v"]
        store.fork("w", "x")
        assert store.workflow_ids(fingerprint="f1") == ["w", "x"]


class SignalsContract(SendingContract, ConsumingContract, ListingSignalsContract, ManifestContract):
    """All of it."""
