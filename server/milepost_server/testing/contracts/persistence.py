"""Contract of engines that keep their store: everything answered is there when it is opened again."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from milepost_server.errors import StoreError
from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import ProbeAnswer, ProbeCommand
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import LEASE_TTL_MS, ManualClock, Store, is_found, record, refused
from milepost_server.testing.contracts.base import ContractBase, OpenStore

Restart = Callable[[Engine], Engine]


class PersistenceContract(ContractBase):
    """An engine's own test class gives `restart_engine`."""

    @pytest.fixture
    def restart_engine(self) -> Restart:
        """Return a function that closes an engine and opens its store again."""
        raise NotImplementedError

    @pytest.fixture
    def restart(self, restart_engine: Restart) -> Callable[[Store], None]:
        """Return a function that gives a store its engine opened anew."""

        def restart(store: Store) -> None:
            store.engine = restart_engine(store.engine)

        return restart

    def test_what_was_answered_is_there_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        store.save("w", "a", {"x": 1}, steps_added=("one",), labels={"l": "1"}, metadata='{"m": 1}')
        store.save("w", "b", {"y": 2}, base_checkpoint_id="a", steps_added=("two",), records=(record("t"),))
        store.save("w", "c", scope="s")
        before = [store.load("w", "a"), store.load("w", "b"), store.load("w", scope="s")], store.get_workflow("w")
        restart(store)
        after = [store.load("w", "a"), store.load("w", "b"), store.load("w", scope="s")], store.get_workflow("w")
        assert after == before

    def test_a_replay_is_known_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        first = store.save("w", "a", {"x": 1})
        restart(store)
        again = store.save("w", "a", {"x": 1})
        assert (again.is_replayed, again.sequence) == (True, first.sequence)

    def test_a_stub_is_known_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        restart(store)
        with refused("CHECKPOINT_DELETED"):
            store.save("w", "a")

    def test_a_lease_gets_its_full_time_after_a_restart(
        self, store: Store, restart: Callable[[Store], None], lease_clock: ManualClock
    ) -> None:
        expired = store.acquire("v").lease.token
        lease_clock.advance(LEASE_TTL_MS)
        token = store.acquire("w").lease.token
        lease_clock.advance(LEASE_TTL_MS - 1)
        restart(store)
        lease_clock.advance(LEASE_TTL_MS - 1)
        for workflow_id in ("v", "w"):
            with refused("LEASE_HELD"):
                store.acquire(workflow_id)
        store.renew("w", token)
        lease_clock.advance(1)
        assert store.acquire("v").lease.token > expired
        with refused("LEASE_HELD"):
            store.acquire("w")

    def test_no_token_is_given_again_after_a_restart(
        self, store: Store, restart: Callable[[Store], None], clock: ManualClock
    ) -> None:
        seen = [0]
        for number in range(4):
            store.save("w", str(number))
            seen.append(store.acquire("w").lease.token)
            store.delete_workflow("w", lease_token=seen[-1])
            clock.advance(2 * DEFAULT_LIMITS.replay_window_ms)
            store.sweep()
            restart(store)
            assert store.count("names") == 0
        assert seen == sorted(set(seen))
        for token in seen[1:]:
            with refused("LEASE_LOST"):
                store.save("w", "late", lease_token=token)

    def test_the_same_request_has_its_lease_after_a_restart(
        self, store: Store, restart: Callable[[Store], None]
    ) -> None:
        token = store.acquire("w", request_id="r").lease.token
        restart(store)
        assert store.acquire("w", request_id="r").lease.token == token

    def test_sequences_go_on_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "b")
        restart(store)
        assert store.save("w", "c", expected_head="a").sequence == 3

    def test_incarnations_do_not_repeat_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        seen = set()
        for number in range(4):
            store.save("w", str(number))
            seen.add(store.get_workflow("w").incarnation)
            store.delete_workflow("w")
            restart(store)
        assert len(seen) == 4

    def test_a_chain_goes_on_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        store.save("w", "0", {"x": 0, "y": 0}, steps_added=("s0",))
        for number in range(1, 30):
            store.save("w", str(number), {"x": number}, base_checkpoint_id=str(number - 1), steps_added=(f"s{number}",))
            if number % 7 == 0:
                restart(store)
        assert store.state("w") == {"x": 29, "y": 0}
        assert store.load("w").steps == tuple(f"s{number}" for number in range(30))

    def test_a_sweep_goes_on_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        for number in range(50):
            store.save("w", str(number), {"x": number}, records=(record("t"),))
        store.delete_workflow("w")
        restart(store)
        store.sweep(rows_max=20)
        restart(store)
        store.sweep(rows_max=20)
        assert (store.count("checkpoints"), store.count("values"), store.count("records")) == (0, 0, 0)

    def test_waiting_records_are_dropped_in_time_after_a_restart(
        self, store: Store, restart: Callable[[Store], None], clock: ManualClock
    ) -> None:
        store.append("w", "a", record("t"))
        restart(store)
        clock.advance(DEFAULT_LIMITS.waiting_records_ttl_ms)
        store.sweep()
        assert store.count("records") == 0

    def test_stubs_expire_after_a_restart(
        self, store: Store, restart: Callable[[Store], None], clock: ManualClock
    ) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        restart(store)
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert store.save("w", "a").sequence == 3

    def test_a_fork_cut_short_is_thrown_away_at_the_next_start(
        self, open_store: OpenStore, restart: Callable[[Store], None]
    ) -> None:
        store = open_store(msgspec.structs.replace(DEFAULT_LIMITS, slice_rows_max=20))
        store.save_line("w", *(str(number) for number in range(20)))
        answer = store.fork_slice("w", "v")
        assert answer.position is not None
        restart(store)
        with pytest.raises(StoreError):
            store.fork_slice("w", "v", position=answer.position)
        store.sweep()
        assert not is_found(store, "v")
        assert store.count("checkpoints") == 20
        store.fork("w", "v")
        assert len(store.ids("v")) == 20

    def test_pages_go_on_after_a_restart(self, store: Store, restart: Callable[[Store], None]) -> None:
        store.save_line("w", *"abcd")
        first = store.page("w", page_size=2)
        restart(store)
        second = store.ids(
            "w",
            position=first.position,
            sequence_max=first.sequence_max,
            incarnation=first.workflow.incarnation,
        )
        assert second == ["b", "a"]

    def test_an_engine_that_is_reopened_goes_on(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.engine.reopen()
        store.run(ProbeCommand(), ProbeAnswer)
        assert store.save("w", "b", {"y": 1}, base_checkpoint_id="a").sequence == 2
        assert store.state("w") == {"x": 1, "y": 1}
