"""Whether a value has a declared type, made into functions once: a state is checked at every step.

A form that is not understood here fits everything; so does `Any`, for which there is no function at all.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin

import typing_extensions

__all__ = ["Check", "check_of"]

Check: TypeAlias = Callable[[Any], bool]

_HINTS_MAX: Final = 4_096


def check_of(hint: Any) -> Check | None:
    """Return what tells whether a value is of an annotation; None where every value is."""
    try:
        return _check_of(hint)
    except TypeError:
        return _made(hint)  # one that cannot be hashed, for it holds a list


@functools.lru_cache(_HINTS_MAX)
def _check_of(hint: Any) -> Check | None:
    return _made(hint)


def _made(hint: Any) -> Check | None:
    if hint is Any:
        return None
    if hint is None:
        return lambda value: value is None
    if isinstance(hint, typing.NewType):
        return check_of(hint.__supertype__)
    origin, args = get_origin(hint), get_args(hint)
    if origin is None:
        return _of_class(hint)
    if origin in {typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired}:
        return check_of(args[0])
    if origin in {Union, types.UnionType}:
        return _of_union([check_of(arg) for arg in args])
    if origin is Literal:
        return lambda value: any(value == arg and type(value) is type(arg) for arg in args)
    return _of_container(origin, args) if isinstance(origin, type) else None


def _of_class(hint: Any) -> Check | None:
    if typing_extensions.is_typeddict(hint):
        return lambda value: isinstance(value, dict)
    if not isinstance(hint, type) or getattr(hint, "_is_protocol", False):
        return None
    if hint is float:
        # The numeric tower, as type checkers see it; a bool passes as int in Python, and so does it here.
        return lambda value: isinstance(value, (int, float))
    if not dataclasses.is_dataclass(hint):
        return lambda value: isinstance(value, hint)

    @functools.cache  # at first use: a type may contain itself
    def fields() -> Mapping[str, Check]:
        try:
            hints = typing.get_type_hints(hint)
        except NameError:
            return {}  # annotations that cannot be read here say nothing
        found = {field.name: check_of(hints[field.name]) for field in dataclasses.fields(hint)}
        return {name: check for name, check in found.items() if check is not None}

    return lambda value: (
        isinstance(value, hint) and all(check(getattr(value, name)) for name, check in fields().items())
    )


def _of_union(checks: Sequence[Check | None]) -> Check | None:
    known = [check for check in checks if check is not None]
    if len(known) < len(checks):
        return None
    return lambda value: any(check(value) for check in known)


def _of_container(origin: type, args: tuple[Any, ...]) -> Check:
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        checks = [check_of(arg) for arg in args]
        return lambda value: (
            isinstance(value, tuple)
            and len(value) == len(checks)
            and all(check is None or check(item) for check, item in zip(checks, value, strict=True))
        )
    if issubclass(origin, Mapping) and len(args) == 2:
        of_key, of_value = check_of(args[0]), check_of(args[1])
        return lambda value: isinstance(value, origin) and _all(of_key, value.keys()) and _all(of_value, value.values())
    if origin is tuple or (issubclass(origin, (Sequence, set, frozenset)) and len(args) == 1):
        of_item = check_of(args[0])
        return lambda value: isinstance(value, origin) and _all(of_item, value)
    return lambda value: isinstance(value, origin)


def _all(check: Check | None, values: Iterable[Any]) -> bool:
    return check is None or all(map(check, values))
