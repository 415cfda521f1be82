"""How a codec says no: an error that collects the path of the culprit while it leaves the recursion.

Used inside the codecs alone; callers get the `CodecError` that `at` makes of it.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from typing import Final

from milepost.errors import CodecError

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_TRAIL_MAX: Final = 32
"""Steps of a path that a message shows."""


def child_path(path: str, key: str | int) -> str:
    """Return the path of an item: `$.a`, `$.a[3]`, `$["a b"]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if _PLAIN_KEY.match(key):
        return f"{path}.{key}"
    return f"{path}[{json.dumps(key)}]"


class RefusedError(Exception):
    """A value or a stored text that cannot pass; collects its path while it leaves the recursion."""

    def __init__(
        self, reason: str, value: object, *, found: str = "", at_parent: bool = False, deep: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.found = found or type_name(type(value))
        self._at_parent = at_parent
        self._deep = deep
        self._trail: list[tuple[str | int, int]] = []

    def passes(self, key: object, container: object) -> None:
        """Note on the way out that it came from `container[key]`."""
        if self._at_parent:
            self._at_parent = False
        elif isinstance(key, str | int):
            self._trail.append((key, id(container)))

    def at(self, path: str, codec: str, *, reading: bool = False) -> CodecError:
        """Return the public error."""
        reason = self.reason
        trail = self._trail[::-1]
        if self._deep:
            seen: set[int] = set()
            for length, (_, container) in enumerate(trail):
                if container in seen:
                    reason, trail = "contains itself", trail[:length]
                    break
                seen.add(container)
        for key, _ in trail[:_TRAIL_MAX]:
            path = child_path(path, key)
        if len(trail) > _TRAIL_MAX:
            path += "…"
        verb = "decode" if reading else "encode"
        return CodecError(f"codec {codec!r} cannot {verb} {path}: {self.found} {reason}", path=path, type=self.found)


def type_name(kind: type) -> str:
    """Return how errors name a type: builtins by their name, others with their module."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def advice_for(kind: type) -> str:
    """Return why a type has no exact form, and what to do."""
    for base, advice in _ADVICE:
        if issubclass(kind, base):
            return advice
    if dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields"):
        return "is a class of fields: register it with the codec, or name it in the declared type of a workflow's state"
    return "has no exact form in this codec"


# Subclasses come before what they derive from.
_ADVICE: Final[tuple[tuple[type, str], ...]] = (
    (enum.Enum, "is an enum: register it with the codec"),
    (bytearray, "would come back as bytes: convert it with bytes()"),
    (memoryview, "would come back as bytes: convert it with bytes()"),
    *(
        (
            base,
            f"would come back as {base.__name__}: convert it, or register it where it is a class of fields",
        )
        for base in (dict, list, tuple, str, int, float, bytes, set, frozenset)
    ),
)
