"""What a call of `run`, `start` or `resume` hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

__all__ = ["Run", "RunStatus"]

S = TypeVar("S")

RunStatus: TypeAlias = Literal["completed", "waiting", "suspended"]


@dataclass(frozen=True, slots=True)
class Run(Generic[S]):
    """Where a workflow stands now that the call has ended. What it says is stored durably."""

    workflow_id: str
    """The workflow."""
    state: S = field(repr=False)
    """Its state: the result, where it is completed."""
    status: RunStatus
    """completed: every step is finished. waiting: it goes on when a signal comes. suspended: the runner was asked to
    stop, and somebody else may go on."""
    checkpoint_id: str
    """The checkpoint that holds the state."""
    sequence: int
    """That checkpoint's sequence."""
    resumed: bool = False
    """The workflow existed before the call."""
    waiting_for: str = ""
    """The signal it waits for; "" unless it waits."""
