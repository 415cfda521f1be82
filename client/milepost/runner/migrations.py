"""States of an earlier schema, brought up to the declared one, once, when a run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from typing_extensions import override

from milepost.errors import StateSchemaError

__all__ = ["Migration", "Migrations"]

Migration: TypeAlias = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Gets the entries of one version and answers those of the next: the same dict, edited (None), or another."""


class Migrations:
    """The way from each earlier schema version to the declared one, a version at a time.

    Args:
        schema_version: The declared version, from 1.
        steps: `{1: fn}` or `[(1, fn)]`: `fn` brings a state of version 1 to version 2. Early ones may be left out once
            no state of theirs is left.
        workflow: For errors.

    Raises:
        ValueError: A version is out of range, comes twice, or is missing in between.
        TypeError: Something is no function, or no int.
    """

    def __init__(
        self,
        schema_version: int,
        steps: Mapping[int, Migration] | Sequence[tuple[int, Migration]] = (),
        *,
        workflow: str = "",
    ) -> None:
        where = f"workflow {workflow!r}"
        if type(schema_version) is not int or schema_version < 1:
            raise ValueError(f"{where}: schema_version is {schema_version!r}; it must be an int of at least 1")
        self.schema_version = schema_version
        """The declared version."""
        self._by_version: dict[int, Migration] = {}
        for version, migrate in steps.items() if isinstance(steps, Mapping) else steps:
            if type(version) is not int or not callable(migrate):
                raise TypeError(f"{where}: migrations are {{from_version: function}}")
            if not 1 <= version < schema_version:
                raise ValueError(
                    f"{where}: a migration from version {version} does not lead to schema_version {schema_version}"
                )
            if version in self._by_version:
                raise ValueError(f"{where}: there are two migrations from version {version}")
            self._by_version[version] = migrate
        if self._by_version:
            expected = range(min(self._by_version), schema_version)
            if missing := [version for version in expected if version not in self._by_version]:
                raise ValueError(f"{where}: there is no migration from version {missing[0]}")

    def problem(self, from_version: int) -> str | None:
        """Return why a state of a version cannot be read, a sentence; None where it can."""
        if from_version > self.schema_version:
            return (
                f"the state has schema version {from_version}, later than {self.schema_version}, "
                "which this definition declares"
            )
        if from_version < self.schema_version and from_version not in self._by_version:
            return f"there is no migration from schema version {from_version} to {self.schema_version}"
        return None

    def migrate(self, entries: dict[str, Any], from_version: int) -> dict[str, Any]:
        """Return the entries as the declared version has them. The dict that is given may be changed.

        Raises:
            StateSchemaError: There is no way from that version, or a migration raised; that is the cause.
        """
        if (problem := self.problem(from_version)) is not None:
            raise StateSchemaError(f"The state cannot be read: {problem}.")
        for version in range(from_version, self.schema_version):
            step = f"the migration from version {version} to {version + 1}"
            try:
                answer = self._by_version[version](entries)
            except Exception as error:
                raise StateSchemaError(f"The state cannot be read: {step} raised {type(error).__name__}.") from error
            if answer is not None:
                if not isinstance(answer, dict):
                    raise StateSchemaError(
                        f"The state cannot be read: {step} answered {type(answer).__name__}, not a dict or None."
                    )
                entries = answer
        return entries

    @override
    def __repr__(self) -> str:
        return f"Migrations(schema_version={self.schema_version}, from_versions={sorted(self._by_version)})"
