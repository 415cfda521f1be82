"""What has changed between the definition a workflow was started under and the one at hand, and who may go on.

The principle of `compatible`: nothing that is finished was touched, and every step that is not can still run once,
after all it depends on. So a finished step may not be gone or of another version, no unfinished step may come before a
finished one, and whatever else changed is free. A step that has begun, since some of its items or turns are finished or
it was started at most once, is treated like a finished one, and the way it runs may not change either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from milepost.errors import DefinitionChangedError
from milepost.runner.definition import Definition
from milepost.runner.manifest import Manifest, StepEntry
from milepost.runner.settings import ChangePolicy

__all__ = ["Changes", "compare"]

_NAMES_MAX: Final = 20
"""Steps of a kind that a message or a checkpoint's metadata names."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The differences, and what follows from them."""

    definition: str
    """Name of the definition at hand."""
    old_fingerprint: str
    new_fingerprint: str
    added: tuple[str, ...] = ()
    """Steps that are new, in the order of declaration."""
    removed: tuple[str, ...] = ()
    """Steps that are gone, by their old ids."""
    changed: tuple[str, ...] = ()
    """Steps whose version, dependencies, kind or children differ, by their new ids."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Old id to new id."""
    finished: frozenset[str] = frozenset()
    """Steps of the definition at hand that count as finished."""
    newly_named: tuple[str, ...] = ()
    """Those of them that the store knows by an old id only. The next checkpoint adds them to its completed steps, so
    that later definitions need the alias no more."""
    problems: tuple[str, ...] = ()
    """Why `compatible` does not let it go on, a clause each."""
    is_other: bool = False
    """It belongs to a definition of another name: no policy lets it go on."""

    @property
    def is_same(self) -> bool:
        """Nothing has changed."""
        return self.old_fingerprint == self.new_fingerprint

    def allows(self, policy: ChangePolicy) -> bool:
        """Tell whether a run may go on."""
        if self.is_same:
            return True
        match policy:
            case "fail":
                return False
            case "compatible":
                return not self.problems
            case "force":
                return not self.is_other

    @property
    def difference(self) -> str:
        """What differs, in a clause."""
        kinds = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        parts = [f"{kind} {_listed(names)}" for kind, names in kinds if names]
        parts += [f"renamed {old!r} to {new!r}" for old, new in list(self.renamed.items())[:_NAMES_MAX]]
        return ", ".join(parts) or "the order of the steps changed"

    def error(self, policy: ChangePolicy, workflow_id: str) -> DefinitionChangedError:
        """Return what to raise where the policy does not let it go on."""
        if self.problems:
            reason = "; ".join(self.problems[:_NAMES_MAX])
        else:
            reason = f"{self.difference}; on_change='compatible' would go on with it"
        return DefinitionChangedError(
            f"Workflow {workflow_id!r} was started under another definition of {self.definition!r} "
            f"and is not resumed (on_change={policy!r}): {reason}.",
            workflow_id=workflow_id,
            added=self.added,
            removed=self.removed,
            changed=self.changed,
            problems=self.problems,
        )

    def to_metadata(self) -> dict[str, Any]:
        """Return a bounded summary, for the checkpoint that a forced resume saves next."""
        found: dict[str, Any] = {"from": self.old_fingerprint}
        for kind in ("added", "removed", "changed"):
            if names := getattr(self, kind):
                found[kind] = list(names[:_NAMES_MAX])
        if self.renamed:
            found["renamed"] = dict(list(self.renamed.items())[:_NAMES_MAX])
        return found


def compare(old: Manifest, new: Definition, completed: Iterable[str], begun: Iterable[str] = ()) -> Changes:
    """Return what changed.

    Args:
        old: What the workflow's head was saved under.
        new: The definition at hand.
        completed: Ids of the steps that are finished, as the store has them.
        begun: Ids, as in `old`, of unfinished steps that left something which a resume uses: finished items or turns,
            or the mark of a start at most once.
    """
    done = set(completed)
    if old.fingerprint == new.manifest.fingerprint:
        return Changes(new.name, old.fingerprint, new.manifest.fingerprint, finished=frozenset(done & new.steps.keys()))
    renamed = _renames(old, new)
    # By old id: the step that it is now.
    now: dict[str, StepEntry] = {
        old_id: new.manifest.steps[renamed.get(old_id, old_id)]
        for old_id in old.steps
        if old_id in renamed or (old_id in new.steps and old_id not in renamed.values())
    }
    kept = {step.id for step in now.values()}
    reused = tuple(step_id for step_id in new.steps if step_id not in kept and step_id in done - old.steps.keys())
    finished = frozenset({now[old_id].id for old_id in now if old_id in done} | set(reused))
    problems = [f"{step_id!r} is a new step, but one of this id was finished before" for step_id in reused]
    for old_id, entry in old.steps.items():
        if old_id in done:
            problems += _touched(entry, now.get(old_id), "finished")
        elif old_id in begun:
            problems += _touched(entry, now.get(old_id), "begun")
    begun_now = {now[old_id].id for old_id in begun if old_id in now}
    added = tuple(step_id for step_id in new.steps if step_id not in kept)
    before = {step.id: _mapped(old.steps[old_id].depends_on, now) for old_id, step in now.items()}
    for step_id in new.steps:
        if step_id in finished or step_id in begun_now:
            state = "finished" if step_id in finished else "begun"
            for one in new.dependencies[step_id]:
                # What came before it already, as a forced change may have left it, is nothing new.
                if one not in finished and one not in before.get(step_id, ()):
                    verb = "was put" if one in added else "now comes"
                    problems.append(
                        f"step {one!r}, which is not finished, {verb} before step {step_id!r}, which is {state}"
                    )
    is_other = old.name != new.name
    if is_other:
        problems.insert(0, f"it belongs to the definition {old.name!r}")
    return Changes(
        definition=new.name,
        old_fingerprint=old.fingerprint,
        new_fingerprint=new.manifest.fingerprint,
        added=added,
        removed=tuple(old_id for old_id in old.steps if old_id not in now),
        changed=tuple(step.id for old_id, step in now.items() if _differs(old.steps[old_id], step, now)),
        renamed={old_id: new_id for old_id, new_id in renamed.items() if old_id in now},
        finished=finished,
        newly_named=tuple(step_id for step_id in new.steps if step_id in finished and step_id not in done),
        problems=tuple(problems),
        is_other=is_other,
    )


def _renames(old: Manifest, new: Definition) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for step in new.steps.values():
        if step.id not in old.steps:
            earlier = next((alias for alias in step.aliases if alias in old.steps), None)
            if earlier is not None:
                renamed[earlier] = step.id
    return renamed


def _touched(was: StepEntry, step: StepEntry | None, state: str) -> list[str]:
    """Return what was done to a step that must stay as it is."""
    if step is None:
        return [f"step {was.id!r} is {state}, and the definition has it no more"]
    if was.version != step.version:
        return [f"step {step.id!r} is {state} in version {was.version}, and is version {step.version} now"]
    if state == "begun" and dict(was.traits) != dict(step.traits):
        return [f"step {step.id!r} is {state}, and runs in another way now"]
    return []


def _mapped(step_ids: Iterable[str], now: Mapping[str, StepEntry]) -> frozenset[str]:
    return frozenset(now[one].id for one in step_ids if one in now)


def _differs(was: StepEntry, step: StepEntry, now: Mapping[str, StepEntry]) -> bool:
    return (
        was.version != step.version
        or dict(was.traits) != dict(step.traits)
        or {now[one].id if one in now else None for one in was.depends_on} != set(step.depends_on)
        or [child.fingerprint for child in was.children] != [child.fingerprint for child in step.children]
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMES_MAX]))
    return shown if len(names) <= _NAMES_MAX else f"{shown} and {len(names) - _NAMES_MAX} more"
