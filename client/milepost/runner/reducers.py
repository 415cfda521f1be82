"""How the differences that branches made in one entry become one value.

A reducer is a three-way merge: `reducer(base, left, right)` answers the value that has both differences, of what was
there before the branches (`None` where there was nothing) to `left` and to `right`. Branches are folded in the order of
their declaration: `left` is what is merged so far. An entry that a single branch changed needs no reducer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Reducer", "add", "append", "last", "union"]


@dataclass(frozen=True, slots=True)
class Reducer:
    """A named three-way merge, for `Annotated[list[str], append]` or `Workflow(reducers={"log": append})`.

    `merge` gets copies of its own and must depend on them alone. What it raises becomes a `StateConflictError`.
    """

    name: str
    merge: Callable[[Any, Any, Any], Any]

    def __call__(self, base: Any, left: Any, right: Any) -> Any:
        """Return the merged value."""
        return self.merge(base, left, right)


def _append(base: Any, left: Any, right: Any) -> Any:
    kind = type(left)
    if kind not in {list, tuple} or type(right) is not kind or not (base is None or type(base) is kind):
        raise TypeError("append merges lists, or tuples, of one type")
    start = 0 if base is None else len(base)
    for one in (left, right):
        if base is not None and one[:start] != base:
            raise ValueError("append merges what was added at the end; a branch changed what was there before")
    return left + right[start:]


def _add(base: Any, left: Any, right: Any) -> Any:
    return left + right if base is None else left + right - base


def _union(base: Any, left: Any, right: Any) -> Any:
    if isinstance(left, (set, frozenset)) and type(right) is type(left):
        before = type(left)() if base is None else base
        return (left | right) - ((before - left) | (before - right))
    if type(left) is not dict or type(right) is not dict:
        raise TypeError("union merges sets, or dicts")
    before = {} if base is None else base
    merged = dict(left)
    for key in before.keys() | right.keys():
        was, here, there = (one.get(key, _ABSENT) for one in (before, left, right))
        if there in (was, here):
            continue
        if here != was:
            raise ValueError("union found a key that two branches changed in different ways")
        if there is _ABSENT:
            merged.pop(key, None)
        else:
            merged[key] = there
    return merged


def _last(_base: Any, _left: Any, right: Any) -> Any:
    return right


_ABSENT: Final[Any] = object()

append: Final = Reducer("append", _append)
"""Lists and tuples: what each branch added at the end, one after the other. Changing what was there is a conflict."""
add: Final = Reducer("add", _add)
"""Numbers, and what else has + and -: the sum of the differences."""
union: Final = Reducer("union", _union)
"""Sets, and dicts by key: what each branch put in or took out. A key with two different new values is a conflict."""
last: Final = Reducer("last", _last)
"""The branch that is declared last wins, also where it removed the entry."""


def checked(reducers: Mapping[str, object], workflow: str) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """Return reducers by entry.

    Raises:
        TypeError: One of them cannot be called.
    """
    found: dict[str, Callable[[Any, Any, Any], Any]] = {}
    for entry, reducer in reducers.items():
        if not callable(reducer):
            raise TypeError(f"workflow {workflow!r}: the reducer of {entry!r} is no function of (base, left, right)")
        found[entry] = reducer
    return found
