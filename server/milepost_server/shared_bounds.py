"""Bounds that all namespaces share, so that none of them can take what the others need."""

from __future__ import annotations

from milepost_server.errors import ResourceError


class SharedBound:
    """Counts what waits, or is open, over all namespaces. One namespace may have half of what the others leave.

    So one that is alone has half of the bound, and there is room for one that comes. It needs no list of who takes
    part, and no turns: what the first holds too much once others have come, it gives back and does not get again.

    Args:
        limit: Name of the setting.
        allowed: What it is set to.
        what: What is counted, for the refusal: "calls that wait for a lease", say.
        unit: "calls", "bytes" and the like.
        reason: Of the refusal.
        retry_after_s: What a caller is told to wait, where waiting helps.
    """

    __slots__ = ("_allowed", "_held", "_limit", "_reason", "_retry_after_s", "_total", "_unit", "_what")

    def __init__(
        self,
        limit: str,
        allowed: int,
        *,
        what: str,
        unit: str = "calls",
        reason: str = "QUEUE_FULL",
        retry_after_s: float | None = None,
    ) -> None:
        self._limit = limit
        self._allowed = allowed
        self._what = what
        self._unit = unit
        self._reason = reason
        self._retry_after_s = retry_after_s
        self._total = 0
        self._held: dict[str, int] = {}
        """By namespace; none that has nothing."""

    @property
    def total(self) -> int:
        """What all namespaces hold together."""
        return self._total

    def take(self, namespace: str, amount: int = 1) -> None:
        """Count an amount. The first fits, however large it is, unless the bound is 0.

        Raises:
            ResourceError: All namespaces together, or this one, would have too much; nothing was counted.
        """
        total = self._total
        held = self._held.get(namespace, 0)
        if total + amount > self._allowed and (total or not self._allowed):
            raise self._refusal(namespace, self._allowed, total + amount, "for all namespaces together")
        if held and held >= self._allowed - total:
            share = (self._allowed - (total - held) + 1) // 2
            raise self._refusal(namespace, share, held + amount, "for one namespace: half of what the others leave")
        self._held[namespace] = held + amount
        self._total = total + amount

    def count(self, namespace: str, amount: int = 1) -> None:
        """Count an amount, whether there is room or not."""
        self._held[namespace] = self._held.get(namespace, 0) + amount
        self._total += amount

    def give_back(self, namespace: str, amount: int = 1) -> None:
        """Count an amount no more."""
        held = self._held[namespace] - amount
        if held:
            self._held[namespace] = held
        else:
            del self._held[namespace]
        self._total -= amount

    def clear(self) -> None:
        """Count nothing any more."""
        self._total = 0
        self._held.clear()

    def _refusal(self, namespace: str, allowed: int, found: int, whose: str) -> ResourceError:
        then = "" if self._retry_after_s is None else "; try again shortly"
        return ResourceError(
            self._reason,
            f"{found} {self._what}, at most {allowed} are allowed now {whose} ({self._limit}, of namespace "
            f"{namespace!r}){then}",
            {
                "limit": self._limit,
                "allowed": allowed,
                "found": found,
                "unit": self._unit,
                "namespace": namespace,
            },
            retry_after_s=self._retry_after_s,
        )
