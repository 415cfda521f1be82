"""Bounds that namespaces share, and the queue in which they take turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost_server.errors import ResourceError
from milepost_server.shared_bounds import SharedBound
from milepost_server.storage.fair_queue import FairQueue


def make_bound(allowed: int) -> SharedBound:
    return SharedBound("queue.things_max", allowed, what="things wait", unit="things", retry_after_s=0.5)


def fill(bound: SharedBound, namespace: str) -> int:
    """Take until it is refused, and return how often it was not."""
    count = 0
    while True:
        try:
            bound.take(namespace)
        except ResourceError:
            return count
        count += 1


def test_each_namespace_may_have_half_of_what_the_others_leave() -> None:
    bound = make_bound(100)
    assert [fill(bound, name) for name in "abc"] == [50, 25, 13]
    assert bound.total == 88


def test_what_the_first_has_too_much_it_does_not_get_again() -> None:
    bound = make_bound(100)
    assert [fill(bound, name) for name in "ab"] == [50, 25]
    for _ in range(20):
        bound.give_back("a")
    assert [fill(bound, name) for name in "ba"] == [10, 3]


def test_a_refusal_names_the_limit_the_share_and_the_namespace() -> None:
    bound = make_bound(10)
    fill(bound, "a")
    with pytest.raises(ResourceError, match=r"6 things wait, at most 5 .* half of what the others leave") as refused:
        bound.take("a")
    error = refused.value
    assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 0.5)
    assert error.metadata == {
        "limit": "queue.things_max",
        "allowed": "5",
        "found": "6",
        "unit": "things",
        "namespace": "a",
    }
    for name in "bcdef":
        fill(bound, name)
    with pytest.raises(ResourceError, match=r"11 things wait, at most 10 .* all namespaces together"):
        bound.take("g")


def test_the_first_always_fits_unless_nothing_is_allowed() -> None:
    bound = make_bound(10)
    bound.take("a", 1_000)
    assert fill(bound, "b") == 0
    bound.give_back("a", 1_000)
    assert fill(bound, "b") == 5
    assert fill(make_bound(1), "a") == 1
    assert fill(make_bound(0), "a") == 0


def test_what_is_cleared_counts_no_more() -> None:
    bound = make_bound(4)
    assert fill(bound, "a") == 2
    bound.clear()
    assert (bound.total, fill(bound, "a")) == (0, 2)


@given(
    allowed=st.integers(1, 40),
    steps=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-3, 12)), max_size=60),
)
def test_counts_add_up_whatever_comes_and_nobody_starves(allowed: int, steps: list[tuple[str, int]]) -> None:
    """Negative amounts give back. One that has nothing is refused only where the bound has no room for it."""
    bound = make_bound(allowed)
    held = dict.fromkeys("abcd", 0)
    for name, amount in steps:
        if amount <= 0:
            given_back = min(-amount, held[name])
            if given_back:
                bound.give_back(name, given_back)
                held[name] -= given_back
            continue
        total = sum(held.values())
        try:
            bound.take(name, amount)
        except ResourceError:
            assert held[name] or total + amount > allowed
            continue
        held[name] += amount
        assert not total or total + amount <= allowed
    assert bound.total == sum(held.values())


def drain(queue: FairQueue[str]) -> list[str]:
    items = []
    while queue:
        namespace, item = queue.pop()
        assert item.startswith(namespace)
        items.append(item)
    return items


def test_namespaces_take_turns_and_each_is_served_in_its_order() -> None:
    queue: FairQueue[str] = FairQueue(make_bound(100))
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    assert len(queue) == 6
    assert drain(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_full_queue_refuses_and_takes_back_all_the_same() -> None:
    queue: FairQueue[str] = FairQueue(make_bound(2))
    queue.put("a", "a1")
    with pytest.raises(ResourceError):
        queue.put("a", "a2")
    queue.pop()
    queue.put("b", "b1")
    queue.put("c", "c1")
    queue.add("a", "a1")
    assert len(queue) == 3
    taken = [queue.pop() for _ in range(2)]
    for each in reversed(taken):
        queue.put_back(*each)
    assert drain(queue) == ["b1", "c1", "a1"]
    queue.put("a", "a2")
    assert drain(queue) == ["a2"]
