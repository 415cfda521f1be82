"""Types that a program registers with a codec: how their fields are read, and how an instance is built from them.

Only what was registered is ever built, through its own constructor. Pydantic is recognised, never imported.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from milepost._refusals import RefusedError, type_name


class ObjectType(NamedTuple):
    """A registered class: how fields are read from an instance, and an instance is built from fields."""

    cls: type
    name: str
    fields: frozenset[str]
    read: Callable[[Any], Mapping[str, object]]
    make: Callable[[dict[str, Any]], Any]
    takes_more_fields: bool = False

    def build(self, fields: dict[str, Any]) -> Any:
        """Return a new instance; fields that are missing take their defaults."""
        unknown = sorted(fields.keys() - self.fields)
        if unknown and not self.takes_more_fields:
            raise RefusedError(f"has no field {unknown[0]!r}", None, found=self.name)
        try:
            return self.make(fields)
        except (TypeError, ValueError) as error:
            # Its text is left out: a validation error quotes the value.
            reason = f"is not built by these fields ({type(error).__name__})"
            raise RefusedError(reason, None, found=self.name) from None


def describe(cls: type, name: str) -> ObjectType:
    """Return how a class is stored under a name.

    Raises:
        TypeError: It is no dataclass, pydantic model or named tuple, or cannot be built from its fields.
    """
    if isinstance(getattr(cls, "model_fields", None), Mapping) and hasattr(cls, "model_validate"):
        return _describe_pydantic(cls, name)
    if dataclasses.is_dataclass(cls):
        return _describe_dataclass(cls, name)
    fields = getattr(cls, "_fields", None)
    if issubclass(cls, tuple) and isinstance(fields, tuple):
        return ObjectType(cls, name, frozenset(fields), lambda value: value._asdict(), lambda got: cls(**got))
    raise TypeError(f"{type_name(cls)} cannot be registered: it is no enum, dataclass, pydantic model or named tuple")


def _describe_dataclass(cls: type, name: str) -> ObjectType:
    fields = dataclasses.fields(cls)
    taken = [field.name for field in fields if field.init]
    later = [field.name for field in fields if not field.init]
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in taken:
            raise TypeError(
                f"{type_name(cls)} cannot be registered: its constructor wants {parameter.name!r}, which is no field"
            )

    def read(value: Any) -> Mapping[str, object]:
        return {field.name: getattr(value, field.name) for field in fields}

    def make(got: dict[str, Any]) -> Any:
        made = cls(**{key: got[key] for key in taken if key in got})
        for key in later:
            if key in got:
                object.__setattr__(made, key, got[key])  # also where the class is frozen
        return made

    return ObjectType(cls, name, frozenset(field.name for field in fields), read, make)


def _describe_pydantic(cls: Any, name: str) -> ObjectType:
    config: Mapping[str, object] = cls.model_config
    by_name = bool(config.get("populate_by_name") or config.get("validate_by_name"))
    accepted: dict[str, str] = {}
    for field, info in cls.model_fields.items():
        alias = info.validation_alias or info.alias
        if not by_name and alias is not None and not isinstance(alias, str):
            raise TypeError(
                f"{type_name(cls)} cannot be registered: {field!r} has an alias that is no plain name; "
                "set populate_by_name in its model_config"
            )
        accepted[field] = field if by_name or alias is None else alias
    is_root = bool(getattr(cls, "__pydantic_root_model__", False))

    def read(value: Any) -> Mapping[str, object]:
        extra = value.__pydantic_extra__ or {}
        return {**{field: getattr(value, field) for field in accepted}, **extra}

    def make(got: dict[str, Any]) -> Any:
        if is_root:
            return cls.model_validate(got["root"]) if "root" in got else cls()
        return cls.model_validate({accepted.get(key, key): item for key, item in got.items()})

    more = config.get("extra") == "allow"
    return ObjectType(cls, name, frozenset(accepted), read, make, takes_more_fields=more)
