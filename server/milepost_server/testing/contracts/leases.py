"""Contract of leases: who may change a workflow, until when, and that no token is ever good twice."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from milepost_server.errors import StoreError
from milepost_server.limits import DAY_MS, DEFAULT_LIMITS, HOUR_MS
from milepost_server.model import LeaseAnswer, SaveAnswer
from milepost_server.testing.builders import (
    LEASE_TTL_MS,
    ManualClock,
    Store,
    acquire_lease,
    is_found,
    record,
    refused,
    release_lease,
    save,
)
from milepost_server.testing.contracts.base import ContractBase, OpenStore

Change = Callable[[Store, int], object]

CHANGES: dict[str, Change] = {
    "save": lambda store, token: store.save("w", "new", lease_token=token),
    "save in a scope": lambda store, token: store.save("w", "new", scope="s", lease_token=token),
    "replace": lambda store, token: store.save("w", "a", {"x": 2}, is_replace=True, lease_token=token),
    "append": lambda store, token: store.append("w", "a", record("t"), lease_token=token),
    "append before the checkpoint": lambda store, token: store.append("w", "new", record("t"), lease_token=token),
    "delete ids": lambda store, token: store.delete_ids("w", "a", lease_token=token),
    "delete run": lambda store, token: store.delete_run("run", workflow_id="w", lease_token=token),
    "delete workflow": lambda store, token: store.delete_workflow("w", lease_token=token),
}


each_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def save_first(store: Store) -> None:
    """Store what every one of `CHANGES` can be made to."""
    store.save("w", "z")
    store.save("w", "a", {"x": 1}, run_id="run")


class GrantContract(ContractBase):
    """Granting, renewing, releasing, breaking."""

    def test_a_lease_is_granted_once(self, store: Store, clock: ManualClock) -> None:
        granted = store.acquire("w", holder="web-1")
        assert (granted.lease.holder, granted.lease.ttl_ms) == ("web-1", LEASE_TTL_MS)
        assert (granted.lease.remaining_ms, granted.lease.grant_time_ms) == (LEASE_TTL_MS, clock.now_ms)
        assert (granted.lease.token > 0, granted.is_replayed) == (True, False)
        with refused("LEASE_HELD") as refusal:
            store.acquire("w", holder="web-2")
        assert refusal.error.metadata == {"workflow_id": "w", "holder": "web-1", "remaining_ms": str(LEASE_TTL_MS)}

    def test_the_same_holder_is_still_another(self, store: Store) -> None:
        store.acquire("w", holder="h")
        with refused("LEASE_HELD"):
            store.acquire("w", holder="h")

    def test_the_refusal_tells_how_long_it_still_runs(self, store: Store, lease_clock: ManualClock) -> None:
        store.acquire("w")
        lease_clock.advance(3_000)
        with refused("LEASE_HELD") as refusal:
            store.acquire("w")
        assert refusal.error.metadata["remaining_ms"] == str(LEASE_TTL_MS - 3_000)

    def test_an_expired_lease_is_granted_anew(self, store: Store, lease_clock: ManualClock) -> None:
        first = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS - 1)
        with refused("LEASE_HELD"):
            store.acquire("w")
        lease_clock.advance(1)
        assert store.acquire("w").lease.token > first
        with refused("LEASE_LOST"):
            store.renew("w", first)

    def test_the_wall_clock_has_no_say(self, store: Store, clock: ManualClock) -> None:
        store.acquire("w")
        clock.advance(HOUR_MS)
        with refused("LEASE_HELD"):
            store.acquire("w")
        clock.advance(-2 * HOUR_MS)
        with refused("LEASE_HELD"):
            store.acquire("w")

    def test_the_same_request_is_answered_with_its_lease(self, store: Store, lease_clock: ManualClock) -> None:
        first = store.acquire("w", request_id="r")
        lease_clock.advance(4_000)
        again = store.acquire("w", request_id="r")
        assert (again.lease.token, again.is_replayed) == (first.lease.token, True)
        assert again.lease.remaining_ms == LEASE_TTL_MS - 4_000, "a replay renews nothing"
        with refused("LEASE_HELD"):
            store.acquire("w", request_id="other")

    def test_the_same_request_is_another_once_its_lease_has_gone(self, store: Store) -> None:
        first = store.acquire("w", request_id="r").lease.token
        store.release("w", first)
        again = store.acquire("w", request_id="r")
        assert (again.lease.token > first, again.is_replayed) == (True, False)

    def test_requests_without_an_id_are_never_the_same(self, store: Store) -> None:
        store.acquire("w", request_id="")
        with refused("LEASE_HELD"):
            store.acquire("w", request_id="")

    def test_a_renewed_lease_runs_its_full_time(self, store: Store, lease_clock: ManualClock) -> None:
        token = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS - 1)
        renewed = store.renew("w", token)
        assert (renewed.lease.token, renewed.lease.remaining_ms) == (token, LEASE_TTL_MS)
        lease_clock.advance(LEASE_TTL_MS - 1)
        with refused("LEASE_HELD"):
            store.acquire("w")

    def test_the_newest_token_may_renew_after_its_time(self, store: Store, lease_clock: ManualClock) -> None:
        token = store.acquire("w").lease.token
        lease_clock.advance(100 * LEASE_TTL_MS)
        assert store.renew("w", token).lease.remaining_ms == LEASE_TTL_MS
        with refused("LEASE_HELD"):
            store.acquire("w")

    @pytest.mark.parametrize("step", [-1, 1, 1 << 32])
    def test_no_other_token_is_good(self, store: Store, step: int) -> None:
        store.release("w", store.acquire("w").lease.token)
        token = store.acquire("w").lease.token
        with refused("LEASE_LOST"):
            store.renew("w", token + step)
        with refused("LEASE_LOST"):
            store.save("w", "a", lease_token=token + step)
        assert store.release("w", token + step) is False
        assert not is_found(store, "w")

    def test_a_token_is_good_for_its_workflow_alone(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        assert store.acquire("v").lease.token != token
        with refused("LEASE_LOST"):
            store.save("v", "a", lease_token=token)

    def test_a_token_without_any_lease_is_lost(self, store: Store) -> None:
        store.save("w", "a")
        for workflow_id in ("w", "nowhere"):
            with refused("LEASE_LOST"):
                store.save(workflow_id, "b", lease_token=1)
            with refused("LEASE_LOST"):
                store.renew(workflow_id, 1)

    def test_a_released_lease_is_free_and_its_token_good_for_nothing(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        assert store.release("w", token) is True
        assert store.release("w", token) is False
        with refused("LEASE_LOST"):
            store.renew("w", token)
        assert store.acquire("w").lease.token > token

    def test_a_broken_lease_is_free_and_its_token_good_for_nothing(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        assert store.release("w", force=True) is True
        assert store.release("w", force=True) is False
        with refused("LEASE_LOST"):
            store.save("w", "a", lease_token=token)
        store.save("w", "a")

    def test_a_late_release_ends_nobody_elses_lease(self, store: Store, lease_clock: ManualClock) -> None:
        first = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS)
        second = store.acquire("w").lease.token
        assert store.release("w", first) is False
        store.renew("w", second)

    def test_tokens_only_grow_whatever_is_deleted(self, store: Store, clock: ManualClock) -> None:
        seen = [0]
        for number in range(4):
            seen.append(store.acquire("w").lease.token)
            store.save("w", str(number), lease_token=seen[-1])
            store.delete_workflow("w", lease_token=seen[-1])
            clock.advance(10 * DAY_MS)
            store.sweep()
            assert store.count("names") == 0
        assert seen == sorted(set(seen))

    def test_namespaces_do_not_meet(self, store: Store) -> None:
        store.acquire("w")
        assert store.acquire("w", namespace="other").is_replayed is False
        store.save("w", "a", namespace="third")

    def test_a_lease_runs_out_in_its_own_batch_too(self, store: Store) -> None:
        answers = store.engine.execute(
            [acquire_lease("w", request_id="r"), save("w", "a"), acquire_lease("w", request_id="r"), acquire_lease("w")]
        )
        granted, held, again, other = answers
        assert isinstance(granted, LeaseAnswer)
        assert isinstance(again, LeaseAnswer)
        assert isinstance(held, StoreError)
        assert isinstance(other, StoreError)
        assert (held.reason, other.reason, again.lease.token) == ("LEASE_HELD", "LEASE_HELD", granted.lease.token)

    def test_a_release_frees_the_lease_for_the_rest_of_its_batch(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        _, saved, granted = store.engine.execute([release_lease("w", token), save("w", "a"), acquire_lease("w")])
        assert isinstance(saved, SaveAnswer)
        assert isinstance(granted, LeaseAnswer)

    def test_the_namespaces_of_leases_are_bounded(self, open_store: OpenStore) -> None:
        store = open_store(msgspec.structs.replace(DEFAULT_LIMITS, namespaces_max=1))
        store.acquire("w")
        with refused("QUOTA_EXCEEDED"):
            store.acquire("w", namespace="other")


class FenceContract(ContractBase):
    """What a lease guards."""

    @each_change
    def test_a_change_without_the_token_is_refused(self, store: Store, change: Change) -> None:
        save_first(store)
        store.acquire("w", holder="web-1")
        before = store.get_workflow("w"), store.ids("w")
        with refused("LEASE_HELD") as refusal:
            change(store, 0)
        assert refusal.error.metadata["holder"] == "web-1"
        assert (store.get_workflow("w"), store.ids("w")) == before

    @each_change
    def test_a_change_with_the_token_is_made(self, store: Store, change: Change) -> None:
        save_first(store)
        change(store, store.acquire("w").lease.token)
        assert not is_found(store, "w") or store.get_workflow("w").revision > 3

    @each_change
    def test_a_change_with_an_older_token_is_refused_for_ever(
        self, store: Store, change: Change, lease_clock: ManualClock
    ) -> None:
        save_first(store)
        old = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS)
        new = store.acquire("w").lease.token
        with refused("LEASE_LOST"):
            change(store, old)
        store.release("w", new)
        with refused("LEASE_LOST"):
            change(store, old)
        store.acquire("w")
        with refused("LEASE_LOST"):
            change(store, old)

    @each_change
    def test_a_change_after_the_time_is_the_holders_still(
        self, store: Store, change: Change, lease_clock: ManualClock
    ) -> None:
        save_first(store)
        token = store.acquire("w").lease.token
        lease_clock.advance(100 * LEASE_TTL_MS)
        change(store, token)

    @each_change
    def test_a_change_by_another_ends_an_expired_lease(
        self, store: Store, change: Change, lease_clock: ManualClock
    ) -> None:
        save_first(store)
        token = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS)
        change(store, 0)
        assert store.get_lease("w") is None
        with refused("LEASE_LOST"):
            store.renew("w", token)
        with refused("LEASE_LOST"):
            store.save("w", "late", lease_token=token)

    def test_a_refused_change_by_another_ends_no_lease(self, store: Store, lease_clock: ManualClock) -> None:
        store.save("w", "a")
        token = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS)
        with refused("HEAD_MOVED"):
            store.save("w", "b", expected_head="")
        with refused("RECORD_CHECKPOINT_MISSING"):
            store.append("w", "nowhere", record("t"), require_checkpoint=True)
        assert store.delete_ids("w", "nowhere") == 0
        store.renew("w", token)

    def test_a_change_that_changes_nothing_ends_no_lease(self, store: Store, lease_clock: ManualClock) -> None:
        store.save("w", "a", records=(record("t"),))
        token = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS)
        store.save("w", "a", records=(record("t"),))
        store.append("w", "a", record("t"))
        store.renew("w", token)

    @pytest.mark.parametrize("kind", ["save", "replace", "append"])
    def test_saves_and_records_renew(self, store: Store, lease_clock: ManualClock, kind: str) -> None:
        save_first(store)
        token = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS - 1)
        CHANGES[kind](store, token)
        lease_clock.advance(LEASE_TTL_MS - 1)
        with refused("LEASE_HELD"):
            store.acquire("w")

    def test_a_save_tells_how_long_its_lease_runs(self, store: Store, lease_clock: ManualClock) -> None:
        token = store.acquire("w").lease.token
        lease_clock.advance(1_000)
        assert store.save("w", "a", lease_token=token).lease_remaining_ms == LEASE_TTL_MS
        assert store.save("w", "b", lease_token=token, release_lease=True).lease_remaining_ms == 0
        assert store.save("w", "c").lease_remaining_ms == 0

    def test_a_refused_save_renews_nothing(self, store: Store, lease_clock: ManualClock) -> None:
        store.save("w", "a")
        token = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS - 1)
        with refused("HEAD_MOVED"):
            store.save("w", "b", expected_head="", lease_token=token)
        lease_clock.advance(1)
        assert store.acquire("w").lease.token > token

    def test_a_save_releases_its_lease_in_its_own_commit(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        before = store.save("w", "a", lease_token=token).revision
        assert store.save("w", "b", lease_token=token, release_lease=True).revision == before + 1
        assert store.get_lease("w") is None
        with refused("LEASE_LOST"):
            store.save("w", "c", lease_token=token)
        store.save("w", "c")

    def test_a_refused_save_releases_nothing(self, store: Store) -> None:
        store.save("w", "a")
        token = store.acquire("w").lease.token
        with refused("HEAD_MOVED"):
            store.save("w", "b", expected_head="", lease_token=token, release_lease=True)
        store.renew("w", token)

    def test_a_replay_is_answered_whoever_holds_the_lease(self, store: Store, lease_clock: ManualClock) -> None:
        token = store.acquire("w").lease.token
        first = store.save("w", "a", {"x": 1}, lease_token=token, release_lease=True)
        store.acquire("w")
        again = store.save("w", "a", {"x": 1}, lease_token=token, release_lease=True)
        assert (again.is_replayed, again.sequence, again.lease_remaining_ms) == (True, first.sequence, 0)
        lease_clock.advance(LEASE_TTL_MS)
        store.save("w", "a", {"x": 1})
        assert store.get_lease("w") is not None, "nor does a replay end a lease"

    def test_a_replay_renews_nothing(self, store: Store, lease_clock: ManualClock) -> None:
        token = store.acquire("w").lease.token
        store.save("w", "a", {"x": 1}, lease_token=token)
        lease_clock.advance(LEASE_TTL_MS - 1_000)
        assert store.save("w", "a", {"x": 1}, lease_token=token).lease_remaining_ms == 1_000
        lease_clock.advance(1_000)
        assert store.acquire("w").lease.token > token

    def test_a_deleted_checkpoint_is_told_before_the_lease(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        store.acquire("w")
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a")

    def test_a_lease_is_told_before_a_moved_head(self, store: Store) -> None:
        store.save("w", "a")
        store.acquire("w")
        with refused("LEASE_HELD"):
            store.save("w", "b", expected_head="")

    def test_prune_and_reads_need_no_lease(self, store: Store, lease_clock: ManualClock) -> None:
        store.save_line("w", "a", "b", "c")
        token = store.acquire("w").lease.token
        assert store.prune("w", 1) == 2
        assert store.head("w") == "c"
        lease_clock.advance(LEASE_TTL_MS)
        store.save("w", "d", lease_token=token)
        assert store.prune("w", 1) == 1
        store.renew("w", token)

    def test_a_lease_may_come_before_its_workflow(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        assert not is_found(store, "w")
        with refused("LEASE_HELD"):
            store.save("w", "a")
        store.save("w", "a", lease_token=token)
        assert store.shown_lease("w") is not None

    def test_a_delete_ends_the_lease_with_the_workflow(self, store: Store) -> None:
        store.save("w", "a")
        token = store.acquire("w").lease.token
        store.delete_workflow("w", lease_token=token)
        assert store.get_lease("w") is None
        with refused("LEASE_LOST"):
            store.save("w", "b", lease_token=token)
        assert store.delete_workflow("w", lease_token=token).existed is False, "to delete again is no error"
        store.save("w", "b")
        with refused("LEASE_LOST"):
            store.delete_workflow("w", lease_token=token)

    def test_a_workflow_that_is_not_there_is_guarded_too(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        with refused("LEASE_HELD"):
            store.delete_workflow("w")
        assert store.delete_workflow("w", lease_token=token).existed is False
        assert (store.get_lease("w"), store.count("names")) == (None, 0)

    def test_a_delete_over_a_namespace_passes_over_what_is_leased(self, store: Store, lease_clock: ManualClock) -> None:
        for workflow_id in "uvw":
            store.save(workflow_id, "a", run_id="run")
            store.save(workflow_id, "b")
        store.acquire("u")
        lease_clock.advance(LEASE_TTL_MS)
        token = store.acquire("v").lease.token
        assert store.delete_run("run") == 2
        assert [store.ids(workflow_id) for workflow_id in "uvw"] == [["b"], ["b", "a"], ["b"]]
        assert store.get_lease("u") is None
        store.renew("v", token)

    def test_a_fork_takes_no_lease_along(self, store: Store) -> None:
        store.save("w", "a")
        token = store.acquire("w").lease.token
        store.fork("w", "v")
        assert store.shown_lease("v") is None
        with refused("LEASE_LOST"):
            store.save("v", "b", lease_token=token)
        store.save("v", "b")

    def test_a_fork_is_not_made_under_a_name_that_is_leased(self, store: Store, lease_clock: ManualClock) -> None:
        store.save("w", "a")
        token = store.acquire("v").lease.token
        with refused("LEASE_HELD"):
            store.fork("w", "v")
        lease_clock.advance(LEASE_TTL_MS)
        store.fork("w", "v")
        with refused("LEASE_LOST"):
            store.save("v", "b", lease_token=token)


class ShownLeaseContract(ContractBase):
    """What readers are told of leases, and what is left behind of them."""

    def test_readers_are_told_all_but_the_token(self, store: Store, lease_clock: ManualClock) -> None:
        store.save("w", "a")
        assert (store.get_lease("w"), store.shown_lease("w"), store.get_lease("nowhere")) == (None, None, None)
        store.acquire("w", holder="web-1")
        lease_clock.advance(1_000)
        shown = store.get_lease("w")
        assert shown is not None
        assert (shown.token, shown.holder, shown.remaining_ms) == (0, "web-1", LEASE_TTL_MS - 1_000)
        assert store.shown_lease("w") == shown

    def test_an_expired_lease_is_shown_as_that(self, store: Store, lease_clock: ManualClock) -> None:
        store.save("w", "a")
        store.acquire("w")
        lease_clock.advance(LEASE_TTL_MS)
        shown = store.get_lease("w")
        assert shown is not None
        assert shown.remaining_ms == 0
        assert store.shown_lease("w") is None

    def test_workflows_are_found_by_whether_they_are_leased(self, store: Store, lease_clock: ManualClock) -> None:
        for workflow_id in "tuvw":
            store.save(workflow_id, "a")
        store.acquire("u", ttl_ms=1_000)
        store.acquire("w")
        assert store.workflow_ids(is_leased=True) == ["u", "w"]
        assert store.workflow_ids(is_leased=False) == ["t", "v"]
        lease_clock.advance(1_000)
        assert store.workflow_ids(is_leased=True) == ["w"]
        assert store.workflow_ids(is_leased=False) == ["t", "u", "v"]
        assert [each.lease is not None for each in store.list_workflows().workflows] == [False, False, False, True]

    def test_grants_and_releases_raise_the_revision_and_renewals_do_not(self, store: Store) -> None:
        store.save("w", "a")
        revisions = [store.get_workflow("w").revision]
        granted = store.acquire("w", request_id="r")
        revisions.append(store.get_workflow("w").revision)
        assert granted.change is not None
        assert granted.change.revision == revisions[-1]
        store.acquire("w", request_id="r")
        store.renew("w", granted.lease.token)
        assert store.get_workflow("w").revision == revisions[-1]
        store.release("w", granted.lease.token)
        store.release("w", granted.lease.token)
        revisions.append(store.get_workflow("w").revision)
        assert revisions == [1, 2, 3]

    def test_the_name_of_a_lease_goes_with_it(self, store: Store) -> None:
        token = store.acquire("w").lease.token
        assert (store.count("names"), store.count("leases")) == (1, 1)
        store.release("w", token)
        assert (store.count("names"), store.count("leases")) == (0, 0)

    def test_the_name_of_a_lease_stays_for_its_stubs(self, store: Store, clock: ManualClock) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        store.release("w", store.acquire("w").lease.token)
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a")
        token = store.acquire("w").lease.token
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert (store.count("names"), store.count("ids")) == (1, 0)
        store.save("w", "a", lease_token=token)

    def test_the_lease_of_a_workflow_that_never_comes_is_forgotten(
        self, store: Store, clock: ManualClock, lease_clock: ManualClock
    ) -> None:
        store.acquire("w")
        token = store.acquire("v").lease.token
        lease_clock.advance(LEASE_TTL_MS)
        clock.advance(DEFAULT_LIMITS.unused_lease_ttl_ms - 1)
        store.sweep()
        assert store.count("leases") == 2
        store.renew("v", token)
        clock.advance(1)
        store.sweep()
        assert (store.count("leases"), store.count("names")) == (1, 1)
        store.renew("v", token)
        lease_clock.advance(LEASE_TTL_MS)
        clock.advance(DEFAULT_LIMITS.unused_lease_ttl_ms)
        store.sweep()
        assert (store.count("leases"), store.count("names")) == (0, 0)

    def test_the_lease_of_a_workflow_is_kept(self, store: Store, clock: ManualClock, lease_clock: ManualClock) -> None:
        token = store.acquire("w").lease.token
        store.save("w", "a", lease_token=token)
        lease_clock.advance(10 * DAY_MS)
        clock.advance(10 * DAY_MS)
        store.sweep()
        store.save("w", "b", lease_token=token)

    def test_the_lease_of_records_that_were_dropped_is_forgotten(
        self, store: Store, clock: ManualClock, lease_clock: ManualClock
    ) -> None:
        token = store.acquire("w").lease.token
        store.append("w", "a", record("t"), lease_token=token)
        store.release("w", token)
        store.acquire("w")
        lease_clock.advance(LEASE_TTL_MS)
        for _ in range(3):
            clock.advance(DAY_MS)
            store.sweep()
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert (store.count("leases"), store.count("names"), store.count("workflows")) == (0, 0, 0)


class LeasesContract(GrantContract, FenceContract, ShownLeaseContract):
    """All of it."""
