"""Resolved states that the writer keeps from command to command."""

from __future__ import annotations

from collections import OrderedDict

from milepost_server.storage.port import ResolvedState

RESOLVED_ITEMS_MAX = 100_000
"""Entries and steps that the writer keeps resolved, over all states."""


class ResolvedStates:
    """The states that the writer resolved last, by node.

    A node never changes and its number is never given again, so what is kept here is right for as long as it is kept; a
    state moves on from a node to the one built on it, which costs the change and not the state.
    """

    def __init__(self, items_max: int = RESOLVED_ITEMS_MAX) -> None:
        self._items_max = items_max
        self._item_count = 0
        self._states: OrderedDict[int, ResolvedState] = OrderedDict()

    def get(self, node_id: int) -> ResolvedState | None:
        """Return a state that is kept."""
        state = self._states.get(node_id)
        if state is not None:
            self._states.move_to_end(node_id)
        return state

    def take(self, node_id: int) -> ResolvedState | None:
        """Return a state and keep it no longer, so that it may be changed."""
        state = self._states.pop(node_id, None)
        if state is not None:
            self._item_count -= _weight(state)
        return state

    def keep(self, node_id: int, state: ResolvedState) -> None:
        """Keep a state, and let go of the longest unused ones beyond the bound."""
        self.take(node_id)
        self._states[node_id] = state
        self._item_count += _weight(state)
        while self._item_count > self._items_max and len(self._states) > 1:
            _, oldest = self._states.popitem(last=False)
            self._item_count -= _weight(oldest)


def _weight(state: ResolvedState) -> int:
    return len(state.entries) + len(state.steps) + 1
