"""The declared type of a workflow's state: one top-level field is one entry, and back again.

dict, TypedDict, dataclass and pydantic models. Pydantic is recognised, never imported.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, Generic, TypeVar, cast, get_args, get_origin

import typing_extensions
from typing_extensions import override

from milepost import _schema
from milepost._nested_types import Conversion, conversion, mentions_enum, plain_enums
from milepost.errors import StateSchemaError
from milepost.runner.reducers import Reducer

__all__ = ["DELETE", "Delete", "Replace", "StateType"]

S = TypeVar("S")
R = TypeVar("R")


_PLAIN: Final = frozenset({bool, int, float, str, bytes, list, dict, tuple, set, frozenset})


class Delete:
    """The type of `DELETE`."""

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return "DELETE"

    @override
    def __reduce__(self) -> str:
        return "DELETE"


DELETE: Final = Delete()
"""In a mapping that a step returns: remove this entry."""


@dataclasses.dataclass(frozen=True, slots=True)
class Replace:
    """Returned by a step: these are all entries of the new state; the others are removed. For dict states."""

    values: Mapping[str, Any] = dataclasses.field(repr=False)


class StateType(Generic[S]):
    """How instances of the declared type become entries, and entries an instance.

    Args:
        kind: `dict[str, Any]`, a TypedDict, a dataclass or a pydantic model.

    Raises:
        TypeError: It is none of these, or cannot be made from its own fields.
    """

    def __init__(self, kind: type[S]) -> None:
        self._kind: Any = kind
        self.fields: frozenset[str] | None = None
        """Names of the declared fields; None: any."""
        self.is_mapping = True
        """A step gets a dict; otherwise an instance of a class."""
        self._hidden: tuple[str, ...] = ()
        self._is_model = False
        self._has_enums = False
        self._names: tuple[str, ...] = ()
        self._conversions: Mapping[str, Conversion] = {}
        self._warned: set[str] = set()
        origin = get_origin(kind) or kind
        if origin is dict:
            args = get_args(kind)
            if args and args[0] not in {str, Any}:
                raise TypeError(f"a state's keys are str: declare dict[str, …], not {kind!r}")
        elif typing_extensions.is_typeddict(kind):
            self._conversions = self._resolved(lambda: _schema.conversions_of(kind))
            self.fields = frozenset(typing_extensions.get_type_hints(kind))
        elif hasattr(kind, "model_validate") and hasattr(kind, "model_fields"):
            self._use_model(kind)
        elif dataclasses.is_dataclass(kind):
            self._use_dataclass(kind)
        else:
            raise TypeError(
                f"a state is declared as dict[str, Any], TypedDict, dataclass or pydantic model, not as {kind!r}"
            )

    def _resolved(self, read: Callable[[], R]) -> R:
        try:
            return read()
        except NameError as error:
            raise TypeError(
                f"{self.name} cannot be a state: its annotations name {error.name!r}, which its module does not have"
            ) from error

    def _use_model(self, kind: Any) -> None:
        self.is_mapping = False
        self._is_model = True
        if getattr(kind, "__pydantic_root_model__", False):
            raise TypeError(f"{kind.__name__} is a root model: it has no fields that could be entries")
        if "by_name" not in inspect.signature(kind.model_validate).parameters:
            raise TypeError(f"{kind.__name__} cannot be a state: pydantic 2.11 or newer is needed to read it by name")
        self._names = tuple(kind.model_fields)
        self.fields = frozenset(self._names)
        self._has_enums = mentions_enum(kind)
        self._hidden = tuple(name for name, field in kind.model_fields.items() if field.exclude)

    def _use_dataclass(self, kind: Any) -> None:
        self.is_mapping = False
        self._conversions = self._resolved(lambda: _schema.conversions_of(kind))
        self._names = tuple(field.name for field in dataclasses.fields(kind))
        self.fields = frozenset(self._names)
        for parameter in inspect.signature(kind).parameters.values():
            if parameter.default is parameter.empty and parameter.name not in self.fields:
                raise TypeError(
                    f"{kind.__name__} cannot be a state: its constructor wants {parameter.name!r}, which is no field"
                )

    @property
    def name(self) -> str:
        """What errors call it."""
        return self._kind.__name__ if inspect.isclass(self._kind) else str(self._kind)

    @property
    def hides_fields(self) -> bool:
        """There are fields that the type keeps out of what is stored, so they must not be changed."""
        return bool(self._hidden)

    def reducers(self) -> dict[str, Reducer]:
        """Return the reducers that the fields' annotations name, by field."""
        if self.fields is None:
            return {}
        found: dict[str, Reducer] = {}
        hints = self._resolved(lambda: typing_extensions.get_type_hints(self._kind, include_extras=True))
        for name, hint in hints.items():
            for mark in _marks(hint):
                if isinstance(mark, Reducer) and name in self.fields:
                    found[name] = mark
        return found

    def is_state(self, value: object) -> bool:
        """Tell whether a step's answer is a whole state of this type. A mapping never is: it is a patch."""
        return not self.is_mapping and type(value) is self._kind

    def to_entries(self, state: S) -> dict[str, Any]:
        """Return the entries. Their values may be the state's own objects.

        Raises:
            TypeError: It is no instance of the declared type.
            StateSchemaError: It has been given attributes that are no fields.
        """
        if self.is_mapping:
            if not isinstance(state, Mapping):
                raise TypeError(f"the state is {type(state).__name__}; the workflow declares {self.name}")
            return self._lowered(dict(state))
        if type(state) is not self._kind:
            raise TypeError(f"the state is {type(state).__name__}; the workflow declares {self.name}")
        if self._is_model:
            dumped = self._dumped(state)
            private = getattr(state, "__pydantic_private__", None)
            if private and any(type(private[name]) in _PLAIN for name in private.keys() - self._warned):
                self._warn_of_lost_by_model(private, dumped)
            return dumped
        entries = self._lowered({name: getattr(state, name) for name in self._names})
        if len(getattr(state, "__dict__", ())) > len(self._names):
            self._refuse_unknown(state, entries)
        return entries

    def _warn_of_lost_by_model(self, kept: Mapping[str, Any], entries: dict[str, Any]) -> None:
        try:
            made: Any = self.from_entries(dict(entries))
        except StateSchemaError:
            return  # What is wrong with it is told where it is read back.
        self._warn_of_lost(kept, made.__pydantic_private__ or {})

    def _warn_of_lost(self, kept: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Warn, once for each, of data in attributes that are no fields: the next step does not get them."""
        for name, value in kept.items():
            is_lost = type(value) in _PLAIN and (name not in made or not _is_equal(made[name], value))
            if is_lost and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"{self.name}.{name} is no field, so what it holds is not stored: each step gets it as the class "
                    "makes it; make it a field if it belongs to the state",
                    stacklevel=2,
                )

    def _refuse_unknown(self, state: S, entries: dict[str, Any]) -> None:
        """Raise where attributes would be lost that are no fields: not what the class itself keeps beside them."""
        kind: Any = self._kind
        names = self._names
        beside = [name for name in vars(state) if name not in names and not hasattr(kind, name)]
        if not beside:
            return
        made = vars(self.from_entries(dict(entries)))
        self._warn_of_lost({name: vars(state)[name] for name in beside if name.startswith("_")}, made)
        unknown = [name for name in beside if name not in made and not name.startswith("_")]
        if unknown:
            raise StateSchemaError(f"{self.name} has no fields {', '.join(map(repr, unknown))}")

    def with_changes(self, state: S, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a state with a mapping laid on it. A pydantic model validates it by its own rules.

        Raises:
            StateSchemaError: An entry is not declared, a field of a class would be removed, or a model refuses.
        """
        removed = [key for key, value in changes.items() if value is DELETE]
        if self.fields is not None and (unknown := [key for key in changes if key not in self.fields]):
            raise StateSchemaError(f"{self.name} has no entries {', '.join(map(repr, unknown))}")
        if removed and not self.is_mapping:
            raise StateSchemaError(
                f"{', '.join(map(repr, removed))} cannot be removed: {self.name} is a class; set another value"
            )
        if self._is_model:
            changed = self._dumped(cast("Any", state).model_copy(update=dict(changes)))
            return self._dumped(self.from_entries(changed))
        entries = self.to_entries(state)
        entries.update(self._lowered(dict(changes)))
        for key in removed:
            del entries[key]
        return entries

    def from_entries(
        self,
        entries: dict[str, Any],
        *,
        workflow_id: str = "",
        checkpoint_id: str = "",
        unchecked: Container[str] = (),
    ) -> S:
        """Return the state that entries stand for. A dict is returned as it is.

        Args:
            entries: The values by key.
            workflow_id: For errors.
            checkpoint_id: For errors.
            unchecked: Entries whose types are known to be right.

        Raises:
            StateSchemaError: An entry is missing, unknown, or not of the declared type.
        """
        return cast(
            "S",
            _schema.read_state(
                entries, self._kind, workflow_id=workflow_id, checkpoint_id=checkpoint_id, unchecked=unchecked
            ),
        )

    def differing_field(self, left: S, read_back: S) -> str | None:
        """Return a field that differs between a state and what reading it back made; None where there is none.

        For classes only: their constructor may have changed what the codec gave back.
        """
        if self.is_mapping:
            before, after = cast("Mapping[str, Any]", left), cast("Mapping[str, Any]", read_back)
            names = (name for name in self._conversions if name in before)
            return next((name for name in names if not _is_equal(before[name], after[name])), None)
        for name in self._names:
            if not _is_equal(getattr(left, name), getattr(read_back, name)):
                return name
        return None

    def value_in(self, state: S, entry: str) -> Any:
        """Return one entry of a state, as steps see it."""
        return cast("Any", state)[entry] if self.is_mapping else getattr(state, entry)

    def value_of(self, result: object) -> object:
        """Return the result of one item as it goes into its entry: as it would be in a state."""
        if self.fields is None:
            return result
        found = conversion(cast("Any", type(result)))
        return result if found is None else found.lower(result)

    def _dumped(self, state: Any) -> dict[str, Any]:
        # Python names and Python values. `round_trip` leaves out what is computed, which would not be read back.
        dumped: dict[str, Any] = state.model_dump(by_alias=False, round_trip=True, warnings=False)
        return plain_enums(dumped) if self._has_enums else dumped

    def _lowered(self, entries: dict[str, Any]) -> dict[str, Any]:
        for name, found in self._conversions.items():
            if name in entries:
                entries[name] = found.lower(entries[name])
        return entries

    @override
    def __repr__(self) -> str:
        return f"StateType({self.name})"


def _is_equal(one: Any, other: Any) -> bool:
    # By value: a model makes a float of 3, and every later step gets that.
    return bool(one == other or (one != one and other != other))  # noqa: PLR0124  NaN


def _marks(hint: Any) -> list[Any]:
    """Return what `Annotated` says beside a type, also inside `Required` and the like."""
    if hasattr(hint, "__metadata__"):
        return [*_marks(hint.__origin__), *hint.__metadata__]
    if get_origin(hint) in {typing_extensions.Required, typing_extensions.NotRequired, typing_extensions.ReadOnly}:
        return _marks(get_args(hint)[0])
    return []
