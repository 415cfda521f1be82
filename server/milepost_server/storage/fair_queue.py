"""A bounded queue in which namespaces take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from milepost_server.shared_bounds import SharedBound

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """Holds what waits: served namespace by namespace in turn, within each the oldest first.

    Args:
        bound: Counts what waits here, and nothing else.
    """

    def __init__(self, bound: SharedBound) -> None:
        self._bound = bound
        self._lines: OrderedDict[str, deque[_T]] = OrderedDict()
        """By namespace, in the order of their turns; none that is empty."""

    def __len__(self) -> int:
        return self._bound.total

    def put(self, namespace: str, item: _T) -> None:
        """Add an item at the end of a namespace's line, if there is room.

        Raises:
            ResourceError: It is full; see `SharedBound.take`.
        """
        self._bound.take(namespace)
        self._append(namespace, item)

    def add(self, namespace: str, item: _T) -> None:
        """Add an item at the end of a namespace's line, whether there is room or not."""
        self._bound.count(namespace)
        self._append(namespace, item)

    def put_back(self, namespace: str, item: _T) -> None:
        """Have an item that was taken out be the next, whether there is room or not."""
        self._bound.count(namespace)
        self._lines.setdefault(namespace, deque()).appendleft(item)
        self._lines.move_to_end(namespace, last=False)

    def _append(self, namespace: str, item: _T) -> None:
        line = self._lines.get(namespace)
        if line is None:
            line = self._lines[namespace] = deque()
        line.append(item)

    def pop(self) -> tuple[str, _T]:
        """Take out the item whose turn it is, with its namespace. There must be one."""
        namespace, line = next(iter(self._lines.items()))
        item = line.popleft()
        if line:
            self._lines.move_to_end(namespace)
        else:
            del self._lines[namespace]
        self._bound.give_back(namespace)
        return namespace, item
