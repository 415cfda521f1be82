"""What a runner is told once, and what it reads time and chance from."""

from __future__ import annotations

import numbers
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from milepost.types import new_checkpoint_id

__all__ = ["ChangePolicy", "Durability", "Environment", "Settings"]

ChangePolicy: TypeAlias = Literal["fail", "compatible", "force"]
Durability: TypeAlias = Literal["sync", "pipelined", "exit"]

LEASE_WAIT_MAX_S: Final = 60.0
"""The longest wait for a lease that a store takes in one call."""
TEXT_CHARACTERS_MAX: Final = 2_000
"""Of what an exception said; the rest is cut."""
MOVED_CLOCK_CHECK_S: Final = 0.01
"""How often a wait looks at a clock that a test moves."""


def require_number(what: str, value: object) -> None:
    """Raise TypeError where a value cannot be compared with numbers, before a comparison says so less clearly."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be a number, not {type(value).__name__}")


def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a runner runs. Durations are in seconds."""

    lease_ttl_s: float = 30.0
    """How long a lease lives without a renewal: the longest a crashed host keeps others waiting."""
    on_change: ChangePolicy = "fail"
    """What happens when a workflow was started under another definition."""
    durability: Durability = "sync"
    """sync: each step is durable before the next one starts. pipelined: the next one starts meanwhile, and `run`
    returns when all are durable. exit: only the outcome is saved, and what must be before a step that may run once."""
    max_concurrency: int = 8
    """Most steps and items of one stage that run at once."""
    grace_s: float = 10.0
    """How long a step that was asked to end may take before it is given up."""
    outage_limit_s: float = 300.0
    """How long a run waits for a store that does not answer."""
    crash_limit: int = 5
    """Resumes without progress after which a workflow is failed, until somebody resolves it."""
    on_save_error: Literal["fail", "continue"] = "fail"
    """continue: a step whose save failed goes with the next save. The outcome is always saved, or the run fails."""
    record_error_text: bool = False
    """Let logs and errors quote what a step's exception said. What is stored always has it, after `redact`."""
    redact: Callable[[str], str] | None = field(default=None, repr=False)
    """Takes secrets out of what an exception said, before it is stored or quoted."""
    unfenced: bool = False
    """Run without a lease: nothing keeps two hosts from running one workflow at once."""
    queue_items_max: int = 16
    """Checkpoints on their way while a pipelined run goes on."""
    holder: str = field(default_factory=_holder)
    """What others see as the holder of the lease."""

    def __post_init__(self) -> None:
        for name in ("lease_ttl_s", "outage_limit_s", "grace_s"):
            require_number(name, getattr(self, name))
        for name in ("lease_ttl_s", "outage_limit_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be above 0 and finite")
        if not 1 <= self.lease_ttl_s <= 3_600:
            raise ValueError(f"lease_ttl_s is {self.lease_ttl_s!r}; it must be 1 to 3,600")
        if not 0 <= self.grace_s < float("inf"):
            raise ValueError(f"grace_s is {self.grace_s!r}; it must be at least 0 and finite")
        for name in ("max_concurrency", "crash_limit", "queue_items_max"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be an int of at least 1")
        for name, allowed in (
            ("on_change", ("fail", "compatible", "force")),
            ("durability", ("sync", "pipelined", "exit")),
            ("on_save_error", ("fail", "continue")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")

    @property
    def lease_margin_s(self) -> float:
        """How long before its end a lease is no longer relied on: answers and clocks are not exact."""
        return min(3.0, self.lease_ttl_s / 10)

    def quoted(self, error: BaseException) -> str:
        """Return what may be stored of what an exception said: always something, whatever it or `redact` does.

        Never more than `TEXT_CHARACTERS_MAX`, since it goes into records, logs and other errors.
        """
        try:
            text = str(error)
            if self.redact is not None:
                text = self.redact(text)
            # Texts of the operating system may hold what is no Unicode.
            return text.encode("utf-8", "backslashreplace").decode("utf-8")[:TEXT_CHARACTERS_MAX]
        except Exception as problem:  # noqa: BLE001  a failure is stored even where its text cannot be told
            return f"(its text cannot be told: {type(problem).__name__})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Time and chance, for tests to put their own in place."""

    clock: Callable[[], float] = time.monotonic
    """Seconds of a clock that never steps."""
    wall_clock: Callable[[], float] = time.time
    """Seconds since 1970, for deadlines and for people."""
    sleep: Callable[[float], None] | None = None
    """Waits while nothing else can happen; None: wait for real. A test's clock moves itself on here."""
    random: Callable[[], float] = random.random
    """Draws from 0 up to 1."""
    new_id: Callable[[], str] = new_checkpoint_id
    """Makes ids of checkpoints, runs and attempts."""
