"""What follows a failed attempt, decided without a clock and without waiting."""

from __future__ import annotations

import pytest

from milepost._retry import NO_TIME_LEFT, Attempts, Failure, RetryPolicy
from milepost._status import Details
from milepost.errors import Code


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def failure(code: Code, reason: str = "", *, text: str = "", retry_after_s: float | None = None) -> Failure:
    return Failure(code, text, Details(reason=reason, retry_after_s=retry_after_s))


@pytest.mark.parametrize(
    "failed, retryable, may_have_taken_effect",
    [
        (failure(Code.UNAVAILABLE), True, True),
        (failure(Code.UNAVAILABLE, text="Socket closed"), True, True),
        (failure(Code.UNAVAILABLE, text="failed to connect to all addresses; last error: …"), True, False),
        (failure(Code.UNAVAILABLE, text="DNS resolution failed for x"), True, False),
        (failure(Code.UNAVAILABLE, "NOT_COMMITTED"), True, False),
        (failure(Code.UNAVAILABLE, "NOT_SERVING"), True, False),
        (failure(Code.UNKNOWN, "OUTCOME_UNKNOWN"), True, True),
        (failure(Code.UNKNOWN), False, True),
        (failure(Code.DEADLINE_EXCEEDED), False, True),
        (failure(Code.CANCELLED), False, True),
        (failure(Code.INTERNAL), False, True),
        (failure(Code.INTERNAL, "INTERNAL_ERROR"), False, False),
        (failure(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=0.1), True, False),
        (failure(Code.RESOURCE_EXHAUSTED, "DISK_LOW"), False, False),
        (failure(Code.ABORTED, "HEAD_MOVED"), False, False),
        (failure(Code.INVALID_ARGUMENT, "INVALID_FIELD"), False, False),
        (failure(Code.DATA_LOSS, "RECORD_DAMAGED"), False, False),
        (failure(Code.UNAUTHENTICATED), False, False),
    ],
)
def test_what_a_failure_means(failed: Failure, retryable: bool, may_have_taken_effect: bool) -> None:
    assert failed.is_retryable is retryable
    assert failed.may_have_taken_effect is may_have_taken_effect


def attempts(policy: RetryPolicy, *, timeout_s: float = 30, draw: float = 1.0) -> tuple[Attempts, Clock]:
    clock = Clock()
    return Attempts(policy, timeout_s, clock, lambda: draw), clock


def test_pauses_grow_to_their_limit_and_are_drawn_below_it() -> None:
    policy = RetryPolicy(attempts_max=6, backoff_initial_s=0.1, backoff_multiplier=3, backoff_max_s=1)
    full, _ = attempts(policy)
    pauses = [full.after(failure(Code.UNAVAILABLE)) for _ in range(6)]
    assert pauses == [pytest.approx(p) for p in (0.1, 0.3, 0.9, 1.0, 1.0)] + [None]
    half, _ = attempts(policy, draw=0.5)
    assert half.after(failure(Code.UNAVAILABLE)) == pytest.approx(0.05)


def test_the_server_s_hint_is_a_least() -> None:
    tries, _ = attempts(RetryPolicy(backoff_initial_s=0.1), draw=0.5)
    hint = failure(Code.UNAVAILABLE, "NOT_SERVING", retry_after_s=2.0)
    assert tries.after(hint) == pytest.approx(2.05)


def test_a_pause_that_does_not_fit_the_deadline_ends_the_call() -> None:
    tries, clock = attempts(RetryPolicy(backoff_initial_s=0.5), timeout_s=10)
    clock.now += 9.4
    assert tries.after(failure(Code.UNAVAILABLE)) is not None
    clock.now += 0.2
    assert tries.after(failure(Code.UNAVAILABLE)) is None
    assert tries.remaining_s == pytest.approx(0.4)
    assert tries.elapsed_s == pytest.approx(9.6)


@pytest.mark.parametrize(
    "failures, unknown",
    [
        ([failure(Code.UNAVAILABLE)], True),
        ([failure(Code.UNAVAILABLE, "NOT_COMMITTED")], False),
        ([failure(Code.UNAVAILABLE), failure(Code.UNAVAILABLE, "NOT_SERVING")], True),
        ([failure(Code.UNAVAILABLE), failure(Code.ABORTED, "HEAD_MOVED")], False),
        ([failure(Code.UNAVAILABLE), failure(Code.FAILED_PRECONDITION, "BASE_NOT_FOUND")], True),
        ([failure(Code.UNAVAILABLE), failure(Code.ABORTED)], True),
        ([failure(Code.UNAVAILABLE), failure(Code.RESOURCE_EXHAUSTED, "DISK_LOW")], True),
        ([failure(Code.UNAVAILABLE), failure(Code.UNAUTHENTICATED)], True),
    ],
)
def test_only_a_refusal_by_the_rules_settles_what_a_lost_answer_left_open(
    failures: list[Failure], unknown: bool
) -> None:
    tries, _ = attempts(RetryPolicy())
    for one in failures:
        tries.after(one)
    assert tries.outcome_unknown is unknown


def test_one_attempt_means_no_retry() -> None:
    tries, _ = attempts(RetryPolicy(attempts_max=1))
    assert tries.after(failure(Code.UNAVAILABLE, "NOT_SERVING")) is None


def test_many_attempts_do_not_overflow() -> None:
    assert RetryPolicy(attempts_max=10**9).pause_max_s(10**9) == 2.0


@pytest.mark.parametrize("wrong", [{"attempts_max": 0}, {"backoff_initial_s": -1.0}, {"backoff_multiplier": 0.5}])
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]  # a dict of one of its fields


def test_what_was_never_sent_has_taken_no_effect() -> None:
    """Though its code is that of a call whose answer did not come in time."""
    attempts = Attempts(RetryPolicy(), 0.0, lambda: 0.0, lambda: 1.0)
    assert attempts.after(NO_TIME_LEFT) is None
    assert not attempts.outcome_unknown
