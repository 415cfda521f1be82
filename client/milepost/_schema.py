"""Read a state, a dict of entries, as the type a program declares for it.

One top-level field is one entry, by its Python name. The codec has made the values, so nothing is converted here for
dicts, TypedDicts and dataclasses: what does not fit is an error. A pydantic model validates by its own rules. Pydantic
is recognised, never imported.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import typing_extensions

from milepost._nested_types import Conversion, conversion
from milepost.errors import StateSchemaError

T = TypeVar("T")


def read_state(state: dict[str, Any], kind: type[T], *, workflow_id: str = "", checkpoint_id: str = "") -> T:
    """Return `state` as a `kind`: dict, TypedDict, dataclass or pydantic model.

    Raises:
        StateSchemaError: An entry is missing, unknown, or not of the declared type. Names entries and types alone.
        TypeError: `kind` is none of these.
    """

    def refuse(problem: str) -> StateSchemaError:
        return StateSchemaError(
            f"The state of workflow {workflow_id!r} (checkpoint {checkpoint_id!r}) is no {kind.__name__}: {problem}.",
            workflow_id=workflow_id,
            checkpoint_id=checkpoint_id,
        )

    if kind is dict or get_origin(kind) is dict or kind is Mapping or get_origin(kind) is Mapping:
        return cast("T", state)
    if typing_extensions.is_typeddict(kind):
        hints, required, conversions = _declared_keys(cast("Any", kind))
        state = _lifted(state, conversions)
        _check(state, hints, required, refuse)
        return cast("T", state)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(state, kind, refuse)
    if hasattr(kind, "model_validate") and hasattr(kind, "model_fields"):
        return _read_model(state, kind, refuse)
    raise TypeError(f"a state is read as dict, TypedDict, dataclass or pydantic model, not as {kind!r}")


class _Refuse(typing.Protocol):
    def __call__(self, problem: str) -> StateSchemaError: ...


_KINDS_MAX: Final = 256
"""Types whose hints are kept: reading them again would cost more than checking a state."""


@functools.lru_cache(_KINDS_MAX)
def _declared_keys(kind: Any) -> tuple[dict[str, Any], frozenset[str], dict[str, Conversion]]:
    """Return the keys of a TypedDict with their types, those it must have, and conversions.

    Its own `__required_keys__` overlooks the marks of annotations that are text, as all are under
    `from __future__ import annotations`.
    """
    required = set(kind.__required_keys__)
    for key, hint in typing_extensions.get_type_hints(kind, include_extras=True).items():
        mark: Any = get_origin(hint)
        if mark is typing_extensions.NotRequired:
            required.discard(key)
        elif mark is typing_extensions.Required:
            required.add(key)
    hints = typing_extensions.get_type_hints(kind)
    return hints, frozenset(required), _conversions(hints)


@functools.lru_cache(_KINDS_MAX)
def _declared_fields(kind: Any) -> tuple[dict[str, Any], frozenset[str], frozenset[str], dict[str, Conversion]]:
    """Return the fields of a dataclass with their types, those without a default, those set later, and conversions."""
    fields = dataclasses.fields(kind)
    hints = typing.get_type_hints(kind)
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    hints = {f.name: hints[f.name] for f in fields}
    set_later = frozenset(f.name for f in fields if not f.init)
    return hints, frozenset(required), set_later, _conversions(hints)


def conversions_of(kind: Any) -> Mapping[str, Conversion]:
    """Return how the fields of a TypedDict or dataclass are stored, those alone that need it, by name."""
    return _declared_keys(kind)[2] if typing_extensions.is_typeddict(kind) else _declared_fields(kind)[3]


def _conversions(hints: Mapping[str, Any]) -> dict[str, Conversion]:
    found = {name: conversion(hint) for name, hint in hints.items()}
    return {name: one for name, one in found.items() if one is not None}


def _lifted(state: dict[str, Any], conversions: Mapping[str, Conversion]) -> dict[str, Any]:
    if not conversions:
        return state
    return {name: conversions[name].lift(value) if name in conversions else value for name, value in state.items()}


def _read_dataclass(state: dict[str, Any], kind: type[T], refuse: _Refuse) -> T:
    hints, required, set_later, conversions = _declared_fields(cast("Any", kind))
    state = _lifted(state, conversions)
    _check(state, hints, required, refuse)
    if not set_later:
        return kind(**state)
    made = kind(**{name: value for name, value in state.items() if name not in set_later})
    for name in set_later & state.keys():
        object.__setattr__(made, name, state[name])
    return made


def _read_model(state: dict[str, Any], kind: type[T], refuse: _Refuse) -> T:
    model = cast("Any", kind)
    if unknown := sorted(state.keys() - model.model_fields.keys()):
        raise refuse(f"it has the unknown entries {', '.join(map(repr, unknown))}")
    try:
        # Entries have Python names, never aliases.
        return cast("T", model.model_validate(state, by_alias=False, by_name=True))
    except ValueError as error:
        # Not chained: pydantic's own message quotes the values.
        if not hasattr(error, "errors"):
            raise refuse(f"a validator failed ({type(error).__name__})") from None
        details = error.errors(include_input=False, include_context=False, include_url=False)
        problems = [f"{'.'.join(map(str, d['loc']))} ({d['type']})" for d in details]
    raise refuse(f"invalid are {', '.join(problems)}")


def _check(
    state: Mapping[str, Any], hints: Mapping[str, Any], required: typing.AbstractSet[str], refuse: _Refuse
) -> None:
    if missing := sorted(required - state.keys()):
        raise refuse(f"it lacks the entries {', '.join(map(repr, missing))}")
    if unknown := sorted(state.keys() - hints.keys()):
        raise refuse(f"it has the unknown entries {', '.join(map(repr, unknown))}")
    for name, value in state.items():
        if not _fits(value, hints[name]):
            raise refuse(f"entry {name!r} is {type(value).__name__}, declared as {_name(hints[name])}")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value has the declared type; a form that is not understood here fits."""
    if hint is Any:
        return True
    if hint is None:
        return value is None
    if isinstance(hint, typing.NewType):
        return _fits(value, hint.__supertype__)
    origin, args = get_origin(hint), get_args(hint)
    if origin is None:
        if typing_extensions.is_typeddict(hint):
            return isinstance(value, dict)
        if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
            # The numeric tower, as type checkers see it; a bool passes as int in Python, and so does it here.
            if not isinstance(value, (int, float) if hint is float else hint):
                return False
            return not dataclasses.is_dataclass(hint) or _fields_fit(value, hint)
        return True
    if origin in {typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired}:
        return _fits(value, args[0])
    if origin in {Union, types.UnionType}:
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    return not isinstance(origin, type) or (isinstance(value, origin) and _items_fit(value, origin, args))


def _fields_fit(value: Any, kind: Any) -> bool:
    try:
        hints = _declared_fields(kind)[0]
    except NameError:
        return True  # annotations that cannot be read here say nothing
    return all(_fits(getattr(value, name), hint) for name, hint in hints.items())


def _items_fit(value: Any, origin: type, args: tuple[Any, ...]) -> bool:
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if issubclass(origin, Mapping) and len(args) == 2:
        return all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if issubclass(origin, (Sequence, set, frozenset)) and len(args) == 1:
        return all(_fits(item, args[0]) for item in value)
    return True
