"""Dataclasses, enums and pydantic models inside a declared state: plain values in the store, and instances again.

What is built is what the state's own annotations name, so no type has to be registered with a codec for being part of
a declared one. A dataclass becomes a mapping of its fields, an enum member its value, a pydantic model what it dumps.
Where an annotation leaves open which type is meant, as `Card | Cash` does, values stay as they are, and the codec
decides.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Union, get_args, get_origin

import typing_extensions

__all__ = ["Conversion", "conversion", "mentions_enum", "plain_enums"]

_KINDS_MAX: Final = 1_024


class Conversion:
    """How values of one annotation are stored. Values that are not of it pass unchanged; who reads checks the types."""

    def __init__(self, lower: Callable[[Any], Any], lift: Callable[[Any], Any]) -> None:
        self.lower = lower
        """Makes plain values of instances."""
        self.lift = lift
        """Makes instances of plain values."""


@functools.lru_cache(_KINDS_MAX)
def conversion(hint: Any) -> Conversion | None:
    """Return how values of an annotation are stored; None where they need no conversion."""
    if inspect.isclass(hint) and not get_args(hint):
        if issubclass(hint, enum.Enum):
            return _of_enum(hint)
        if hasattr(hint, "model_validate") and hasattr(hint, "model_fields"):
            return _of_model(hint)
        if dataclasses.is_dataclass(hint):
            return _of_fields(hint, _dataclass_hints, _is_exactly(hint), _make_dataclass)
        if typing_extensions.is_typeddict(hint):
            return _of_fields(hint, _typed_dict_hints, lambda value: type(value) is dict, lambda _, got: got)
        return None
    origin, args = get_origin(hint), get_args(hint)
    if origin in {typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired}:
        return conversion(args[0])
    if origin in {Union, types.UnionType}:
        # With one type beside None it is clear which one a value is of.
        others = [arg for arg in args if arg is not type(None)]
        return conversion(others[0]) if len(others) == 1 else None
    if not inspect.isclass(origin):
        return None
    if issubclass(origin, tuple) and not (len(args) == 2 and args[1] is Ellipsis):
        return _of_pair([conversion(arg) for arg in args])
    if issubclass(origin, Mapping) and len(args) == 2:
        return _of_values(conversion(args[1]))
    if issubclass(origin, Sequence) and args:
        return _of_items(conversion(args[0]))
    if issubclass(origin, (set, frozenset)) and inspect.isclass(args[0]) and issubclass(args[0], enum.Enum):
        # Of the others the plain form, a mapping, cannot be in a set.
        return _of_items(conversion(args[0]))
    return None


def mentions_enum(hint: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Tell whether an annotation, or a model's field at any depth, names an enum."""
    if inspect.isclass(hint) and not get_args(hint):
        if issubclass(hint, enum.Enum):
            return True
        if hint in seen:
            return False
        seen |= {hint}
        fields = getattr(hint, "model_fields", None)
        if isinstance(fields, Mapping):
            return any(mentions_enum(field.annotation, seen) for field in fields.values())
        if dataclasses.is_dataclass(hint):
            return any(mentions_enum(one, seen) for one in _dataclass_hints(hint).values())
        return False
    return any(mentions_enum(arg, seen) for arg in get_args(hint))


def plain_enums(value: Any) -> Any:
    """Return a value of plain containers with the values of enum members in their place."""
    if isinstance(value, enum.Enum):
        return value.value
    kind = type(value)
    if kind is dict:
        return {plain_enums(key): plain_enums(item) for key, item in value.items()}
    if kind in {list, tuple, set, frozenset}:
        return kind(plain_enums(item) for item in value)
    return value


def _of_enum(kind: type[enum.Enum]) -> Conversion:
    def lift(value: Any) -> Any:
        try:
            return kind(value)
        except (ValueError, TypeError):
            return value

    return Conversion(lambda value: value.value if type(value) is kind else value, lift)


def _of_model(kind: Any) -> Conversion:
    has_enums = mentions_enum(kind)

    def lower(value: Any) -> Any:
        if type(value) is not kind:
            return value
        dumped = value.model_dump(by_alias=False, round_trip=True, warnings=False)
        return plain_enums(dumped) if has_enums else dumped

    def lift(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        try:
            return kind.model_validate(value, by_alias=False, by_name=True)
        except ValueError:
            return value

    return Conversion(lower, lift)


def _of_fields(
    kind: Any,
    hints_of: Callable[[Any], Mapping[str, Any]],
    is_instance: Callable[[Any], bool],
    make: Callable[[Any, dict[str, Any]], Any],
) -> Conversion:
    is_class = dataclasses.is_dataclass(kind)

    @functools.cache  # at first use: a type may contain itself
    def fields() -> Mapping[str, Conversion | None]:
        return {name: conversion(hint) for name, hint in hints_of(kind).items()}

    def lower(value: Any) -> Any:
        if not is_instance(value):
            return value
        got = {name: getattr(value, name) for name in fields()} if is_class else value
        return {name: _lowered(fields().get(name), item) for name, item in got.items()}

    def lift(value: Any) -> Any:
        if type(value) is not dict or not value.keys() <= fields().keys():
            return value
        return make(kind, {name: _lifted(fields()[name], item) for name, item in value.items()})

    return Conversion(lower, lift)


def _make_dataclass(kind: Any, got: dict[str, Any]) -> Any:
    set_later = [field.name for field in dataclasses.fields(kind) if not field.init and field.name in got]
    try:
        made = kind(**{name: value for name, value in got.items() if name not in set_later})
    except (TypeError, ValueError):
        return got  # who reads says that it is none
    for name in set_later:
        object.__setattr__(made, name, got[name])
    return made


def _is_exactly(kind: Any) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


def _dataclass_hints(kind: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _typed_dict_hints(kind: Any) -> Mapping[str, Any]:
    return typing_extensions.get_type_hints(kind)


def _of_items(item: Conversion | None) -> Conversion | None:
    if item is None:
        return None

    def each(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def convert(value: Any) -> Any:
            kind = type(value)
            return kind(map(change, value)) if kind in {list, tuple, set, frozenset} else value

        return convert

    return Conversion(each(item.lower), each(item.lift))


def _of_values(item: Conversion | None) -> Conversion | None:
    if item is None:
        return None

    def each(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def convert(value: Any) -> Any:
            return {key: change(one) for key, one in value.items()} if type(value) is dict else value

        return convert

    return Conversion(each(item.lower), each(item.lift))


def _of_pair(items: Sequence[Conversion | None]) -> Conversion | None:
    if not any(items):
        return None

    def each(changes: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        def convert(value: Any) -> Any:
            if type(value) is not tuple or len(value) != len(changes):
                return value
            return tuple(change(one) for change, one in zip(changes, value, strict=True))

        return convert

    found = [item or Conversion(_same, _same) for item in items]
    return Conversion(each([item.lower for item in found]), each([item.lift for item in found]))


def _same(value: Any) -> Any:
    return value


def _lowered(found: Conversion | None, value: Any) -> Any:
    return value if found is None else found.lower(value)


def _lifted(found: Conversion | None, value: Any) -> Any:
    return value if found is None else found.lift(value)
