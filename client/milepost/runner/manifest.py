"""What a definition consists of, as the store keeps it, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from typing_extensions import override

from milepost.errors import InvalidRequestError

__all__ = ["Manifest", "StepEntry"]

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class StepEntry:
    """A step, as a manifest has it."""

    id: str
    version: int = 1
    depends_on: tuple[str, ...] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)
    """How it runs, where that differs from a plain step: `for_each`, `into`, `repeats`, `waits_for`, `at_most_once`."""
    children: tuple[Manifest, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest's text has of it."""
        found: dict[str, Any] = {"id": self.id, "version": self.version, "depends_on": list(self.depends_on)}
        found.update(self.traits)
        if self.children:
            found["children"] = [child.to_json() for child in self.children]
        return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """Name and steps of a definition. Aliases are no part of it, nor is the schema version of the state.

    The text is canonical JSON: equal definitions have equal texts on every host and in every release of one format.
    """

    name: str
    steps: Mapping[str, StepEntry] = field(repr=False)
    """By id, in the order of declaration."""
    text: str = field(init=False, repr=False, compare=False)
    """Canonical JSON."""
    fingerprint: str = field(init=False)
    """SHA-256 of the text's UTF-8, in lower-case hexadecimal."""

    def __post_init__(self) -> None:
        text = json.dumps(self.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "fingerprint", hashlib.sha256(text.encode("utf-8")).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """Return what the text says, as plain values."""
        return {"format": FORMAT, "name": self.name, "steps": [step.to_json() for step in self.steps.values()]}

    @classmethod
    def read(cls, text: str) -> Manifest:
        """Return the manifest that a text is of.

        Raises:
            InvalidRequestError: The text is none, or of a later format.
        """
        try:
            return _read(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequestError(f"the stored manifest cannot be read ({type(error).__name__})") from error

    @override
    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _read(tree: Any) -> Manifest:
    if tree["format"] != FORMAT:
        raise ValueError("unknown format")
    steps: dict[str, StepEntry] = {}
    for one in tree["steps"]:
        own = {"id", "version", "depends_on", "children"}
        steps[one["id"]] = StepEntry(
            one["id"],
            int(one["version"]),
            tuple(one["depends_on"]),
            {key: value for key, value in one.items() if key not in own},
            tuple(_read(child) for child in one.get("children", ())),
        )
    return Manifest(tree["name"], steps)
