"""When a failed step is tried again, and how long after."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from milepost.runner.settings import require_number

__all__ = ["NO_RETRY", "Retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a step is tried, and how long the run waits between two attempts.

    The default is one attempt: whether a step may be repeated is for its author to say.

    Raises:
        ValueError: A number is out of range.
        TypeError: `on` or `give_up_on` holds something that is no exception class.
    """

    attempts: int = 1
    """How often the step is tried in all, at least 1."""
    initial_s: float = 1.0
    """Wait after the first failure, in seconds."""
    factor: float = 2.0
    """Each further wait is this many times the one before; at least 1."""
    max_s: float = 60.0
    """No wait is longer than this, jitter aside."""
    jitter: float = 0.2
    """A wait is lengthened or shortened by up to this part of it, 0 to 1, so that many runs do not move in step."""
    on: tuple[type[BaseException], ...] = (Exception,)
    """What is worth another attempt."""
    give_up_on: tuple[type[BaseException], ...] = ()
    """What is not, though it is one of `on`."""

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ValueError(f"Retry: attempts is {self.attempts!r}; a step is tried at least once")
        for name, least, most in (
            ("initial_s", 0.0, math.inf),
            ("factor", 1.0, math.inf),
            ("max_s", 0.0, math.inf),
            ("jitter", 0.0, 1.0),
        ):
            value = getattr(self, name)
            require_number(f"Retry: {name}", value)
            if not least <= value <= most or math.isinf(value):
                range_ = f"{least:g} to {most:g}" if math.isfinite(most) else f"at least {least:g}, and finite"
                raise ValueError(f"Retry: {name} is {value!r}; it must be {range_}")
        for name in ("on", "give_up_on"):
            kinds = getattr(self, name)
            if not isinstance(kinds, tuple) or not all(
                isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
            ):
                raise TypeError(f"Retry: {name} must be a tuple of exception classes, for example ({name}=(OSError,))")

    def allows(self, error: BaseException, attempts: int) -> bool:
        """Tell whether another attempt follows `error`, which the attempt number `attempts` (from 1) raised."""
        return attempts < self.attempts and isinstance(error, self.on) and not isinstance(error, self.give_up_on)

    def delay_s(self, failed_attempts: int, random: Callable[[], float]) -> float:
        """Return the wait before the next attempt, in seconds.

        Args:
            failed_attempts: How many have failed, at least 1.
            random: Draws from 0 up to 1; called once.
        """
        try:
            delay_s = min(self.initial_s * self.factor ** (failed_attempts - 1), self.max_s)
        except OverflowError:
            delay_s = self.max_s
        return delay_s * (1.0 + self.jitter * (2.0 * random() - 1.0))


NO_RETRY: Final = Retry()
