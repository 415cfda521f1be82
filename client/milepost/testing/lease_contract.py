"""The part of the store contract about leases: one holder at a time, known by its token."""

# ruff: noqa: D102  the name of a test is its sentence

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from milepost.errors import InvalidRequestError, LeaseHeldError, LeaseLostError, MilepostError
from milepost.protocols import CheckpointStore, SupportsLeases
from milepost.testing._contract_support import W, able, chain, save_item
from milepost.types import Record, Saved, SaveItem


class LeaseContract:
    """What a store with leases does. A part of `StoreContract`."""

    @pytest.fixture
    def pass_time(self) -> Callable[[float], None]:
        """Let time pass for the store, in seconds. Override it where the store has a clock of its own."""
        return time.sleep

    def test_a_lease_is_told_to_its_holder_with_a_token_and_to_others_without(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        mine = leases.acquire_lease(W, ttl_s=20, holder="web-3:4711")
        assert (mine.workflow_id, mine.holder, mine.ttl_s) == (W, "web-3:4711", 20.0)
        assert mine.token > 0
        assert 0 < mine.remaining_s <= 20
        assert mine.grant_time.tzinfo is not None
        told = leases.get_lease(W)
        assert told is not None
        assert (told.token, told.holder, told.ttl_s, told.grant_time) == (0, "web-3:4711", 20.0, mine.grant_time)
        assert leases.get_lease("other") is None

    def test_while_a_lease_is_live_nothing_is_changed_without_it(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        chain(store, 2)
        leases.acquire_lease(W, ttl_s=20, holder="web-3")
        changes: list[Callable[[], object]] = [
            lambda: store.save(W, state={"n": 3}),
            lambda: store.save(W, state={"n": 20}, checkpoint_id="c2", replace=True),
            lambda: able(store, "append_records")(W, "c2", [Record(value=1)]),
            lambda: able(store, "delete_checkpoints")(W, ["c1"]),
            lambda: able(store, "delete")(W),
            lambda: leases.acquire_lease(W),
        ]
        for change in changes:
            with pytest.raises(LeaseHeldError) as caught:
                change()
            assert (caught.value.workflow_id, caught.value.holder, caught.value.reason) == (W, "web-3", "LEASE_HELD")
            assert 0 < (caught.value.remaining_s or 0) <= 20
        assert store.load(W).state == {"n": 2}
        assert store.load(W).record_count == 0
        assert store.save("other", state={}).sequence == 1

    def test_its_holder_changes_what_he_wants(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        token = leases.acquire_lease(W, ttl_s=20).token
        first = store.save(W, state={"n": 1}, after="start", checkpoint_id="c1", lease_token=token)
        second = store.save(W, state={"n": 2}, after=first, checkpoint_id="c2", lease_token=token, scope="")
        assert 0 < second.lease_remaining_s <= 20
        able(store, "append_records")(W, "c2", [Record(value=1)], lease_token=token)
        assert store.load(W).record_count == 1
        assert able(store, "delete_checkpoints")(W, ["c1"], lease_token=token) == 1
        assert able(store, "delete")(W, lease_token=token) is True
        assert leases.get_lease(W) is None

    def test_only_the_newest_token_is_good(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        chain(store, 1)
        old = leases.acquire_lease(W).token
        assert leases.release_lease(W, old) is True
        with pytest.raises(LeaseLostError):
            store.save(W, state={"n": 2}, lease_token=old)
        new = leases.acquire_lease(W).token
        assert new > old
        for token in (old, new + 1):
            changes: list[Callable[[], object]] = [
                lambda token=token: store.save(W, state={"n": 2}, lease_token=token),  # type: ignore[misc]
                lambda token=token: able(store, "append_records")(W, "c1", [Record()], lease_token=token),  # type: ignore[misc]
                lambda token=token: able(store, "delete_checkpoints")(W, ["c1"], lease_token=token),  # type: ignore[misc]
                lambda token=token: able(store, "delete")(W, lease_token=token),  # type: ignore[misc]
                lambda token=token: leases.renew_lease(W, token),  # type: ignore[misc]
            ]
            for change in changes:
                with pytest.raises(LeaseLostError) as caught:
                    change()
                assert (caught.value.workflow_id, caught.value.reason) == (W, "LEASE_LOST")
            assert leases.release_lease(W, token) is False
        assert leases.renew_lease(W, new).lease.token == new
        assert store.load(W).state == {"n": 1}

    def test_a_broken_lease_is_lost_to_its_holder(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        assert leases.break_lease(W) is False
        token = leases.acquire_lease(W).token
        assert leases.break_lease(W) is True
        assert leases.get_lease(W) is None
        with pytest.raises(LeaseLostError):
            store.save(W, state={}, lease_token=token)
        assert store.save(W, state={}).sequence == 1

    def test_the_same_request_for_a_lease_gets_the_same_lease(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        first = leases.acquire_lease(W, request_id="r1", holder="me")
        assert leases.acquire_lease(W, request_id="r1", holder="me").token == first.token
        with pytest.raises(LeaseHeldError):
            leases.acquire_lease(W, request_id="r2", holder="me")
        leases.release_lease(W, first.token)
        assert leases.acquire_lease(W, request_id="r1").token > first.token

    def test_a_save_may_release_the_lease(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        token = leases.acquire_lease(W).token
        last = store.save(W, state={"n": 1}, checkpoint_id="c1", lease_token=token, release_lease=True)
        assert last.lease_remaining_s == 0
        assert leases.get_lease(W) is None
        again = store.save(W, state={"n": 1}, checkpoint_id="c1", lease_token=token, release_lease=True)
        assert (again.replayed, again.sequence, again.lease_remaining_s) == (True, 1, 0)

    def test_a_replay_is_answered_whoever_has_the_lease(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        token = leases.acquire_lease(W).token
        store.save(W, state={"n": 1}, checkpoint_id="c1", current_step="a", lease_token=token)
        leases.break_lease(W)
        leases.acquire_lease(W)
        assert store.save(W, state={"n": 1}, checkpoint_id="c1", current_step="a", lease_token=token).replayed
        assert save_item(store, "c1").replayed

    def test_a_lost_lease_is_told_before_a_moved_head(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        first, _ = chain(store, 2)
        token = leases.acquire_lease(W).token
        leases.break_lease(W)
        with pytest.raises(LeaseLostError):
            store.save(W, state={"n": 9}, after=first, lease_token=token)

    def test_saves_in_a_batch_each_bring_their_own_token(self, store: CheckpointStore) -> None:
        save_all: Any = able(store, "save_all")
        token = with_leases(store).acquire_lease(W, ttl_s=20, holder="me").token
        first = SaveItem(workflow_id=W, state={"n": 1}, lease_token=token)
        results = save_all(
            [
                first,
                SaveItem(workflow_id=W, state={"n": 2}),
                SaveItem(workflow_id="other", state={"n": 3}),
                SaveItem(workflow_id="other", state={"n": 4}, lease_token=token),
                SaveItem(workflow_id=W, state={"n": 5}, after=first, lease_token=token, release_lease=True),
                SaveItem(workflow_id=W, state={"n": 6}),
            ]
        )
        kinds = [type(result) for result in results]
        assert kinds == [Saved, LeaseHeldError, Saved, LeaseLostError, Saved, Saved]
        assert (results[1].holder, results[3].workflow_id) == ("me", "other")
        assert 0 < results[0].lease_remaining_s <= 20
        assert (results[4].lease_remaining_s, results[5].sequence) == (0, 3)

    def test_a_lease_covers_all_scopes(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        token = leases.acquire_lease(W).token
        with pytest.raises(LeaseHeldError):
            store.save(W, state={}, scope="child")
        assert store.save(W, state={}, scope="child", lease_token=token).sequence == 1

    def test_the_lease_of_a_workflow_that_does_not_exist_yet_guards_its_name(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        chain(store, 1)
        token = leases.acquire_lease("new").token
        delete, fork = able(store, "delete"), able(store, "fork")
        with pytest.raises(LeaseHeldError):
            delete("new")
        with pytest.raises(LeaseHeldError):
            fork(W, "new")
        assert delete("new", lease_token=token) is False
        assert leases.get_lease("new") is None
        assert delete("new", lease_token=token) is False
        assert fork(W, "new").workflow_id == "new"

    def test_pruning_needs_no_lease(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        chain(store, 3)
        token = leases.acquire_lease(W).token
        assert able(store, "prune")(W) == 2
        assert leases.renew_lease(W, token).lease.token == token

    def test_after_its_time_a_lease_goes_on_until_anyone_else_acts(
        self, store: CheckpointStore, pass_time: Callable[[float], None]
    ) -> None:
        leases = with_leases(store)
        names = ("saves", "renews", "overtaken", "unleased")
        tokens = {name: leases.acquire_lease(name, ttl_s=1, holder="old").token for name in names}
        store.save("unleased", state={"n": 1}, lease_token=tokens["unleased"])
        pass_time(1.1)
        expired = leases.get_lease("saves")
        assert expired is not None
        assert expired.remaining_s == 0
        saved = store.save("saves", state={}, lease_token=tokens["saves"])
        assert 0 < saved.lease_remaining_s <= 1
        assert leases.renew_lease("renews", tokens["renews"]).lease.remaining_s > 0
        assert able(store, "workflow")("unleased").lease is None
        assert leases.acquire_lease("overtaken", holder="new").holder == "new"
        with pytest.raises(LeaseLostError):
            leases.renew_lease("overtaken", tokens["overtaken"])
        store.save("unleased", state={"n": 2})
        with pytest.raises(LeaseLostError):
            store.save("unleased", state={"n": 3}, lease_token=tokens["unleased"])

    def test_who_waits_gets_the_lease_when_it_has_run_out(
        self, store: CheckpointStore, pass_time: Callable[[float], None]
    ) -> None:
        leases = with_leases(store)
        old = leases.acquire_lease(W, ttl_s=1)
        with pytest.raises(LeaseHeldError):
            leases.acquire_lease(W, wait_s=0.05)
        pass_time(0.8)
        assert leases.acquire_lease(W, wait_s=10).token > old.token

    @pytest.mark.parametrize("ttl_s", [0, -1, 0.2, 3601, 1e9, math.inf, math.nan])
    def test_a_ttl_out_of_bounds_is_refused(self, store: CheckpointStore, ttl_s: float) -> None:
        leases = with_leases(store)
        with pytest.raises(InvalidRequestError):
            leases.acquire_lease(W, ttl_s=ttl_s)
        assert leases.get_lease(W) is None

    def test_a_block_has_the_lease_for_its_length(self, store: CheckpointStore) -> None:
        lease: Any = able(store, "lease")
        with lease(W, holder="me") as held:
            assert (held.info.holder, held.is_valid, held.lost) == ("me", True, False)
            held.check()
            with pytest.raises(LeaseHeldError):
                store.save(W, state={})
            store.save(W, state={}, lease_token=held.token)
        assert with_leases(store).get_lease(W) is None
        with pytest.raises(ValueError, match="mine"), lease(W):
            raise ValueError("mine")
        assert with_leases(store).get_lease(W) is None

    def test_a_block_begins_only_with_the_lease(self, store: CheckpointStore) -> None:
        lease: Any = able(store, "lease")
        with lease(W, holder="first"):
            with pytest.raises(LeaseHeldError) as caught, lease(W):
                pytest.fail("the block ran without the lease")
            assert caught.value.holder == "first"

    def test_a_workflow_tells_its_lease(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        for name in ("a", "b"):
            store.save(name, state={})
        leases.acquire_lease("a", holder="me", ttl_s=20)
        workflow, workflows = able(store, "workflow"), able(store, "workflows")
        told = workflow("a").lease
        assert (told.token, told.holder, told.workflow_id, told.ttl_s) == (0, "me", "a", 20.0)
        assert workflow("b").lease is None
        assert [one.workflow_id for one in workflows(is_leased=True)] == ["a"]
        assert [one.workflow_id for one in workflows(is_leased=False)] == ["b"]
        assert [one.lease is not None for one in workflows()] == [True, False]

    def test_no_repr_and_no_error_shows_a_token(self, store: CheckpointStore) -> None:
        leases = with_leases(store)
        info = leases.acquire_lease(W)
        assert "token" not in repr(info) + repr(leases.renew_lease(W, info.token)) + repr(leases.get_lease(W))
        shown: list[str] = []
        refused: list[Callable[[], object]] = [
            lambda: leases.acquire_lease(W),
            lambda: leases.renew_lease(W, info.token + 1),
        ]
        for call in refused:
            with pytest.raises(MilepostError) as caught:
                call()
            shown += [str(caught.value), *caught.value.metadata, *caught.value.metadata.values()]
        # A small number would be found in times and ids too.
        assert not [text for text in shown if re.search(rf"(?<![-\w.]){info.token}(?![-\w.])", text)]


def with_leases(store: CheckpointStore) -> SupportsLeases:
    """Return the store as one that has leases; skip the test where it has none."""
    able(store, "acquire_lease")
    return store  # type: ignore[return-value]  # it has the methods
