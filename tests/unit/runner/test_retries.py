"""When a step is tried again, and after how long."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.runner import Retry


def test_once_is_the_default() -> None:
    """Whether a step may be repeated is for its author to say."""
    assert not Retry().allows(OSError(), 1)


def test_errors_decide() -> None:
    """`give_up_on` goes before `on`; an interrupt of the program is never retried."""
    retry = Retry(attempts=3, on=(OSError, KeyError), give_up_on=(FileNotFoundError,))
    assert [retry.allows(OSError(), number) for number in (1, 2, 3)] == [True, True, False]
    assert retry.allows(ConnectionError(), 1)
    assert not retry.allows(FileNotFoundError(), 1)
    assert not retry.allows(ValueError(), 1)
    assert not Retry(attempts=3).allows(KeyboardInterrupt(), 1)


def test_waits_grow_up_to_the_longest() -> None:
    retry = Retry(attempts=9, initial_s=1.0, factor=3.0, max_s=10.0, jitter=0.0)
    assert [retry.delay_s(failed, lambda: 0.5) for failed in (1, 2, 3, 4, 5_000)] == [1.0, 3.0, 9.0, 10.0, 10.0]


@given(failed=st.integers(1, 10_000), drawn=st.floats(0, 1, exclude_max=True), jitter=st.floats(0, 1))
def test_jitter_stays_in_its_part(failed: int, drawn: float, jitter: float) -> None:
    """A wait differs from the plain one by no more than that part of it, and is never negative."""
    plain = Retry(attempts=2, jitter=0.0).delay_s(failed, lambda: drawn)
    delay_s = Retry(attempts=2, jitter=jitter).delay_s(failed, lambda: drawn)
    assert abs(delay_s - plain) <= plain * jitter + 1e-9
    assert delay_s >= 0


@pytest.mark.parametrize(
    "options, name",
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": 2.0}, "attempts"),
        ({"initial_s": -1.0}, "initial_s"),
        ({"max_s": float("inf")}, "max_s"),
        ({"factor": 0.5}, "factor"),
        ({"jitter": 1.5}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
        ({"on": OSError}, "on"),
        ({"give_up_on": ("OSError",)}, "give_up_on"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"Retry: {name}"):
        Retry(**options)
