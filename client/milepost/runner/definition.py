"""A whole definition, checked: steps in their order, who waits for whom, and its manifest. Made at first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from milepost.runner.manifest import Manifest, StepEntry
from milepost.runner.step import Step

__all__ = ["Definition", "define"]


@dataclass(frozen=True, slots=True)
class Definition:
    """The steps of a workflow, with every dependency resolved. Make it with `define`."""

    name: str
    steps: Mapping[str, Step[Any]] = field(repr=False)
    """By id, in the order of declaration."""
    dependencies: Mapping[str, tuple[str, ...]] = field(repr=False)
    """By step: the steps that must be finished first."""
    dependents: Mapping[str, tuple[str, ...]] = field(repr=False)
    """By step: the steps that wait for it."""
    positions: Mapping[str, int] = field(repr=False)
    """By step: its place in the order of declaration, from 0."""
    manifest: Manifest

    @property
    def async_steps(self) -> tuple[str, ...]:
        """Ids of the steps that are awaited, which a sync runner cannot run."""
        return tuple(step.id for step in self.steps.values() if step.is_async)


def define(name: str, declared: Iterable[Step[Any]]) -> Definition:
    """Check steps together and resolve their dependencies.

    Raises:
        ValueError: There are none, an id or alias comes twice, or a dependency is unknown or leads in a circle.
    """
    steps = {step.id: step for step in declared}
    where = f"workflow {name!r}"
    if not steps:
        raise ValueError(f"{where} has no steps")
    dependencies: dict[str, tuple[str, ...]] = {}
    before: str | None = None
    for step in steps.values():
        found: tuple[str, ...]
        if step.depends_on is None:
            found = () if before is None else (before,)
        else:
            # Without doubles, in the order of declaration: the same set makes the same manifest.
            wanted = set(step.depends_on)
            if unknown := sorted(wanted - steps.keys()):
                raise ValueError(f"{where}, step {step.id!r}: depends_on names {unknown[0]!r}, which is no step")
            found = tuple(one for one in steps if one in wanted)
        dependencies[step.id] = found
        before = step.id
    _refuse_circle(dependencies, where)
    dependents: dict[str, list[str]] = {step_id: [] for step_id in steps}
    for step_id, awaited in dependencies.items():
        for one in awaited:
            dependents[one].append(step_id)
    return Definition(
        name=name,
        steps=MappingProxyType(steps),
        dependencies=MappingProxyType(dependencies),
        dependents=MappingProxyType({step_id: tuple(found) for step_id, found in dependents.items()}),
        positions=MappingProxyType({step_id: position for position, step_id in enumerate(steps)}),
        manifest=Manifest(name, {step_id: _entry(steps[step_id], dependencies[step_id]) for step_id in steps}),
    )


def _entry(step: Step[Any], dependencies: tuple[str, ...]) -> StepEntry:
    traits: dict[str, Any] = {}
    for name in ("for_each", "into", "waits_for"):
        if (value := getattr(step, name)) is not None:
            traits[name] = value
    if step.repeat_while is not None:
        traits["repeats"] = True
    if step.at_most_once:
        traits["at_most_once"] = True
    children = tuple(child.definition.manifest for child in step.children)
    return StepEntry(step.id, step.version, dependencies, traits, children)


def _refuse_circle(dependencies: Mapping[str, tuple[str, ...]], where: str) -> None:
    missing = {step_id: len(found) for step_id, found in dependencies.items()}
    dependents: dict[str, list[str]] = {step_id: [] for step_id in dependencies}
    for step_id, found in dependencies.items():
        for one in found:
            dependents[one].append(step_id)
    ready = [step_id for step_id, count in missing.items() if count == 0]
    while ready:
        step_id = ready.pop()
        del missing[step_id]
        for dependent in dependents[step_id]:
            missing[dependent] -= 1
            if missing[dependent] == 0:
                ready.append(dependent)
    if missing:
        # From any step that is left, going back through what is left comes round.
        trail = [next(iter(missing))]
        while trail[-1] not in trail[:-1]:
            trail.append(next(one for one in dependencies[trail[-1]] if one in missing))
        circle = trail[trail.index(trail[-1]) :]
        raise ValueError(f"{where}: depends_on leads in a circle: {' -> '.join(reversed(circle))}")
