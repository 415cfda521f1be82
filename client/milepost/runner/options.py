"""The options of `Workflow.bind`, as keywords."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict

from milepost.runner.settings import ChangePolicy, Durability

__all__ = ["BindOptions"]


class BindOptions(TypedDict, total=False):
    """`Settings` says what each means, and has the defaults."""

    lease_ttl_s: float
    on_change: ChangePolicy
    durability: Durability
    max_concurrency: int
    grace_s: float
    outage_limit_s: float
    crash_limit: int
    on_save_error: Literal["fail", "continue"]
    record_error_text: bool
    redact: Callable[[str], str] | None
    unfenced: bool
    queue_items_max: int
    holder: str
