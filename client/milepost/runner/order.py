"""What is asked of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isinf, isnan
from typing import Generic, Literal, TypeVar

from milepost.runner.settings import require_number

__all__ = ["Order"]

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Generic[S]):
    """What is asked of a run."""

    workflow_id: str
    kind: Literal["run", "start", "resume"] = "run"
    state: S | None = field(default=None, repr=False)
    """The input; None: resume."""
    deadline_s: float | None = None
    """Time for the whole workflow from now on, in seconds; None: as before."""
    lease_wait_s: float | None = None
    """Longest wait for a lease that is held; None: as long as it can live without a renewal."""
    scope: str = ""
    """A child's scope; "" is the root."""
    is_nested: bool = False
    """It runs under its parent's lease."""
    lease_token: int = 0
    """That lease."""
    deadline: float | None = None
    """The root's deadline, for a child, in seconds since 1970."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "lease_wait_s"):
            value = getattr(self, name)
            if value is None:
                continue
            require_number(name, value)
            if isnan(value) or (name == "deadline_s" and isinf(value)):
                raise ValueError(f"{name} is {value!r}; it must be a number of seconds, or None")
