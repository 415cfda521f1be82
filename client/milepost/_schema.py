"""Read a state, a dict of entries, as the type a program declares for it.

One top-level field is one entry, by its Python name. The codec has made the values, so nothing is converted here for
dicts, TypedDicts and dataclasses: what does not fit is an error. A pydantic model validates by its own rules. Pydantic
is recognised, never imported.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, TypeAlias, TypeVar, cast, get_args, get_origin

import typing_extensions

from milepost._nested_types import Conversion, conversion
from milepost._type_checks import Check, check_of
from milepost.errors import StateSchemaError

T = TypeVar("T")


def read_state(
    state: dict[str, Any],
    kind: type[T],
    *,
    workflow_id: str = "",
    checkpoint_id: str = "",
    unchecked: Container[str] = (),
) -> T:
    """Return `state` as a `kind`: dict, TypedDict, dataclass or pydantic model.

    Args:
        state: The entries.
        kind: The type.
        workflow_id: For errors.
        checkpoint_id: For errors.
        unchecked: Entries whose types are known to be right. A pydantic model checks them all the same.

    Raises:
        StateSchemaError: An entry is missing, unknown, or not of the declared type. Names entries and types alone.
        TypeError: `kind` is none of these.
    """

    def refuse(problem: str) -> StateSchemaError:
        of = f" of workflow {workflow_id!r} (checkpoint {checkpoint_id!r})" if workflow_id else ""
        return StateSchemaError(
            f"The state{of} is no {kind.__name__}: {problem}.",
            workflow_id=workflow_id,
            checkpoint_id=checkpoint_id,
        )

    return cast("T", _reader_of(cast("Any", kind))(state, kind, refuse, unchecked))


class _Refuse(typing.Protocol):
    def __call__(self, problem: str) -> StateSchemaError: ...


_Reader: TypeAlias = Callable[[dict[str, Any], Any, _Refuse, Container[str]], Any]

_KINDS_MAX: Final = 256
"""Types of which is kept how they are read: to find that out again would cost more than checking a state."""


@functools.lru_cache(_KINDS_MAX)
def _reader_of(kind: Any) -> _Reader:
    if kind is dict or get_origin(kind) is dict or kind is Mapping or get_origin(kind) is Mapping:
        return _read_dict
    if typing_extensions.is_typeddict(kind):
        return _read_typed_dict
    if dataclasses.is_dataclass(kind):
        return _read_dataclass
    if hasattr(kind, "model_validate") and hasattr(kind, "model_fields"):
        return _read_model
    raise TypeError(f"a state is read as dict, TypedDict, dataclass or pydantic model, not as {kind!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Declared:
    """What a TypedDict or dataclass says of its fields."""

    hints: Mapping[str, Any]
    required: frozenset[str]
    set_later: frozenset[str] = frozenset()
    """Fields that the constructor does not take."""
    conversions: Mapping[str, Conversion] = dataclasses.field(init=False)
    """How fields are stored, those alone that need it."""
    checks: Mapping[str, Check] = dataclasses.field(init=False)
    """Whether a value fits, for fields that do not take everything."""

    def __post_init__(self) -> None:
        conversions = {name: conversion(hint) for name, hint in self.hints.items()}
        checks = {name: check_of(hint) for name, hint in self.hints.items()}
        object.__setattr__(self, "conversions", {name: one for name, one in conversions.items() if one is not None})
        object.__setattr__(self, "checks", {name: one for name, one in checks.items() if one is not None})


@functools.lru_cache(_KINDS_MAX)
def _declared_keys(kind: Any) -> _Declared:
    """Return the keys of a TypedDict.

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
    return _Declared(typing_extensions.get_type_hints(kind), frozenset(required))


@functools.lru_cache(_KINDS_MAX)
def _declared_fields(kind: Any) -> _Declared:
    """Return the fields of a dataclass."""
    fields = dataclasses.fields(kind)
    hints = typing.get_type_hints(kind)
    return _Declared(
        {f.name: hints[f.name] for f in fields},
        frozenset(
            f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ),
        frozenset(f.name for f in fields if not f.init),
    )


def conversions_of(kind: Any) -> Mapping[str, Conversion]:
    """Return how the fields of a TypedDict or dataclass are stored, those alone that need it, by name."""
    declared = _declared_keys(kind) if typing_extensions.is_typeddict(kind) else _declared_fields(kind)
    return declared.conversions


def _lifted(state: dict[str, Any], conversions: Mapping[str, Conversion]) -> dict[str, Any]:
    if not conversions:
        return state
    return {name: conversions[name].lift(value) if name in conversions else value for name, value in state.items()}


def _read_dict(state: dict[str, Any], _kind: Any, _refuse: _Refuse, _unchecked: Container[str]) -> dict[str, Any]:
    return state


def _read_typed_dict(state: dict[str, Any], kind: Any, refuse: _Refuse, unchecked: Container[str]) -> dict[str, Any]:
    declared = _declared_keys(kind)
    state = _lifted(state, declared.conversions)
    _check(state, declared, refuse, unchecked)
    return state


def _read_dataclass(state: dict[str, Any], kind: Any, refuse: _Refuse, unchecked: Container[str]) -> Any:
    declared = _declared_fields(kind)
    state = _lifted(state, declared.conversions)
    _check(state, declared, refuse, unchecked)
    if not declared.set_later:
        return kind(**state)
    made = kind(**{name: value for name, value in state.items() if name not in declared.set_later})
    for name in declared.set_later & state.keys():
        object.__setattr__(made, name, state[name])
    return made


def _read_model(state: dict[str, Any], kind: Any, refuse: _Refuse, _unchecked: Container[str]) -> Any:
    if unknown := sorted(state.keys() - kind.model_fields.keys()):
        raise refuse(f"it has the unknown entries {', '.join(map(repr, unknown))}")
    try:
        # Entries have Python names, never aliases.
        return kind.model_validate(state, by_alias=False, by_name=True)
    except ValueError as error:
        # Not chained: pydantic's own message quotes the values.
        if not hasattr(error, "errors"):
            raise refuse(f"a validator failed ({type(error).__name__})") from None
        details = error.errors(include_input=False, include_context=False, include_url=False)
        problems = [f"{'.'.join(map(str, d['loc']))} ({d['type']})" for d in details]
    raise refuse(f"invalid are {', '.join(problems)}")


def _check(state: Mapping[str, Any], declared: _Declared, refuse: _Refuse, unchecked: Container[str]) -> None:
    if missing := sorted(declared.required - state.keys()):
        raise refuse(f"it lacks the entries {', '.join(map(repr, missing))}")
    if unknown := sorted(state.keys() - declared.hints.keys()):
        raise refuse(f"it has the unknown entries {', '.join(map(repr, unknown))}")
    for name, check in declared.checks.items():
        if name in state and name not in unchecked and not check(state[name]):
            hint = _name(declared.hints[name])
            raise refuse(f"entry {name!r} is {type(state[name]).__name__}, declared as {hint}")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
