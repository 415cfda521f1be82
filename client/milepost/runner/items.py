"""The state and the item that each call of a `for_each` step gets, without reading the whole list for each of them.

Every call gets a state, a list and an item of its own. What is shared between the calls of a long list are the *other*
items in it: reading them anew for each would make the cost of a list grow with the square of its length. No call gets
one of the shared ones as its item, so what a step does to its item reaches nobody.
"""

from __future__ import annotations

import copy
from typing import Any, Final, TypeVar

from milepost.runner.patches import Entries
from milepost.runner.state_type import StateType

__all__ = ["SHARED_FROM", "state_and_item"]

S = TypeVar("S")

SHARED_FROM: Final = 32
"""Items from which on the list is shared; shorter ones are read for each call."""


def state_and_item(entries: Entries, state_type: StateType[S], entry: str, index: int) -> tuple[S, Any]:
    """Return what one call gets.

    Args:
        entries: The state that the stage began with.
        state_type: Its declared type.
        entry: The entry with the items.
        index: The item's place in it.
    """
    kept: _Pristine | None = entries.kept_for_items
    if kept is None or kept.entry != entry:
        state = entries.state_as(state_type)
        items = state_type.value_in(state, entry)
        if len(items) < SHARED_FROM:
            return state, items[index]
        # Two calls may both come to this at once: either's will do.
        kept = entries.kept_for_items = _Pristine(entry, state, items, entries.state_as(state_type), state_type)
    return kept.take(index)


class _Pristine:
    """A state that no step ever gets, to make others of."""

    __slots__ = ("_items", "_others", "_state", "entry")

    def __init__(self, entry: str, state: Any, items: Any, other: Any, state_type: StateType[Any]) -> None:
        self.entry = entry
        self._state = state
        self._items = items
        # A second reading: an item that a step changes by way of the list is nobody's own item.
        self._others = state_type.value_in(other, entry)

    def take(self, index: int) -> tuple[Any, Any]:
        own = copy.deepcopy(self._items[index])
        items = [*self._others[:index], own, *self._others[index + 1 :]]
        # Wherever the copy comes upon the pristine list, it takes this one.
        memo: dict[int, Any] = {id(self._items): type(self._items)(items)}
        return copy.deepcopy(self._state, memo), own
