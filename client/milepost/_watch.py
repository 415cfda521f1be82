"""Where a watch goes on: what both halves of the client and the in-memory stores make of `after`. Sans-IO."""

from __future__ import annotations

from milepost.errors import InvalidRequestError
from milepost.types import WatchAfter


def watch_position(after: WatchAfter) -> tuple[str, int] | None:
    """Return the (incarnation, revision) that a watch goes on after; None: from now on.

    Raises:
        InvalidRequestError: It is that of a workflow that does not exist.
    """
    if after is None:
        return None
    incarnation, revision = after if isinstance(after, tuple) else (after.incarnation, after.revision)
    if not incarnation:
        raise InvalidRequestError(
            "after: names no incarnation, so there is nothing to go on after; watch from now on instead",
            reason="INVALID_FIELD",
            metadata={"field": "after_incarnation"},
        )
    return incarnation, revision
