"""Decide what follows a failed attempt: another one after a while, or an error. Reads no clock and never waits.

The caller makes an `Attempts` for each call, sends, and on a failure asks `after()`. Two questions are kept apart:
whether it makes sense to send again (`is_retryable`), and whether what was sent may have taken effect although no
answer came (`may_have_taken_effect`). The second is what an honest error depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from milepost._status import NOTHING, Details
from milepost.errors import Code

# gRPC refuses a call with these words before anything of it is on the wire. Where a release words it differently, the
# outcome counts as unknown: less exact, never wrong.
NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed", "Name resolution failure")

LEASE_REASONS = frozenset({"LEASE_HELD", "LEASE_LOST"})
FINAL = frozenset({Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.ABORTED, Code.FAILED_PRECONDITION})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When the client sends a call again: always inside the call's own timeout, always with the same ids."""

    attempts_max: int = 10
    """Most attempts of one call, the first included. 1 means never again."""
    backoff_initial_s: float = 0.05
    """Longest pause before the second attempt; the pause is drawn between nothing and this (full jitter)."""
    backoff_multiplier: float = 2.0
    """What the longest pause grows by with each attempt."""
    backoff_max_s: float = 2.0
    """What the longest pause never exceeds."""

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise ValueError(f"attempts_max is at least 1, not {self.attempts_max}")
        if self.backoff_initial_s < 0 or self.backoff_max_s < 0 or self.backoff_multiplier < 1:
            raise ValueError("backoff_initial_s and backoff_max_s are at least 0, backoff_multiplier at least 1")

    def pause_max_s(self, attempt: int) -> float:
        """Return the longest pause after attempt number `attempt`, counted from 1."""
        # The exponent is bounded so that a large attempts_max cannot overflow the float.
        grown = self.backoff_initial_s * self.backoff_multiplier ** min(attempt - 1, 64)
        return min(self.backoff_max_s, grown)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, as gRPC tells it."""

    code: int
    text: str = ""
    details: Details = NOTHING
    was_sent: bool = True
    """Something of it may be on the wire."""
    cause: BaseException | None = field(default=None, repr=False, compare=False)
    """What gRPC raised."""

    @property
    def is_ours(self) -> bool:
        """A milepost server said this, not the transport or something in between."""
        return bool(self.details.reason)

    @property
    def is_retryable(self) -> bool:
        """Sending the same call again may go better."""
        if self.code == Code.UNAVAILABLE:
            return True
        if self.code == Code.RESOURCE_EXHAUSTED:
            return self.details.retry_after_s is not None
        return self.code == Code.UNKNOWN and self.details.reason == "OUTCOME_UNKNOWN"

    @property
    def is_final(self) -> bool:
        """The rules have looked at the call and refused it.

        They look for a stored twin first, so nothing of an earlier attempt with the same ids is stored either. Two
        refusals come before that look: a base that is gone, without which a twin cannot be told, and a predecessor
        that failed.
        """
        return (
            self.code in FINAL and self.is_ours and self.details.reason not in {"BASE_NOT_FOUND", "PREDECESSOR_FAILED"}
        )

    @property
    def may_have_taken_effect(self) -> bool:
        """The server may have done what was asked, although no answer says so."""
        if not self.was_sent:
            return False
        if self.code in {Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN}:
            return True
        if self.code == Code.UNAVAILABLE:
            return not self.is_ours and not self.text.startswith(NEVER_SENT)
        # A connection that breaks in the middle of a call can look like this.
        return self.code == Code.INTERNAL and not self.is_ours


NO_TIME_LEFT: Final = Failure(Code.DEADLINE_EXCEEDED, "no time was left to send it", was_sent=False)


class Attempts:
    """The attempts of one call."""

    __slots__ = ("_clock", "_deadline", "_policy", "_random", "_started", "count", "outcome_unknown")

    def __init__(
        self, policy: RetryPolicy, timeout_s: float, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._random = random
        self._started = clock()
        self._deadline = self._started + timeout_s
        self.count = 0
        self.outcome_unknown = False

    @property
    def remaining_s(self) -> float:
        """Time left for the next attempt; not positive when it is over."""
        return self._deadline - self._clock()

    @property
    def elapsed_s(self) -> float:
        """Time since the call began."""
        return self._clock() - self._started

    def after(self, failure: Failure, *, twin_is_known: bool = True) -> float | None:
        """Take note of a failed attempt; return the pause before the next one, or None to give up.

        Args:
            failure: The attempt.
            twin_is_known: A refusal because of the lease would come only after a look for what was stored before.
        """
        self.count += 1
        if failure.is_final:
            if twin_is_known or failure.details.reason not in LEASE_REASONS:
                self.outcome_unknown = False
        elif failure.may_have_taken_effect:
            self.outcome_unknown = True
        if not failure.is_retryable or self.count >= self._policy.attempts_max:
            return None
        pause_s = self._random() * self._policy.pause_max_s(self.count)
        if failure.details.retry_after_s is not None:
            # The server's hint is a least; jitter on top keeps a crowd from coming back at the same moment.
            pause_s += failure.details.retry_after_s
        return pause_s if pause_s < self.remaining_s else None
