"""Which steps come next: all unfinished ones whose dependencies are finished, and nothing else.

A resume needs no memory of where a run stood, and a changed definition no second mechanism: both follow from the set
of finished steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any

from milepost.runner.definition import Definition
from milepost.runner.step import Step

__all__ = ["Frontier"]


class Frontier:
    """The steps that can run now, kept up to date as steps finish: each step and dependency is looked at once in all.

    Args:
        definition: The steps.
        completed: Ids of steps that are finished already; ids that the definition does not have are passed over.
    """

    def __init__(self, definition: Definition, completed: Iterable[str] = ()) -> None:
        self._definition = definition
        done = {step_id for step_id in completed if step_id in definition.steps}
        self._completed = done
        self._missing = {
            step_id: sum(one not in done for one in definition.dependencies[step_id])
            for step_id in definition.steps
            if step_id not in done
        }
        self._ready = [step_id for step_id, missing in self._missing.items() if missing == 0]

    @property
    def completed(self) -> AbstractSet[str]:
        """Ids of the finished steps. The set goes on changing."""
        return self._completed

    @property
    def is_finished(self) -> bool:
        """No step is left."""
        return not self._missing

    def stage(self) -> tuple[Step[Any], ...]:
        """Return the steps that can run now, in the order of their declaration; () when all are finished."""
        return tuple(self._definition.steps[step_id] for step_id in self._ready)

    def finish(self, step_ids: Iterable[str]) -> None:
        """Note steps as finished.

        Raises:
            ValueError: One of them could not run yet, or is finished already.
        """
        finished = set(step_ids)
        if unready := finished.difference(self._ready):
            raise ValueError(f"steps {sorted(unready)} were not ready")
        freed: list[str] = []
        for step_id in finished:
            del self._missing[step_id]
            self._completed.add(step_id)
            for dependent in self._definition.dependents[step_id]:
                # A step that a forced change put after a finished one is no longer waited for.
                if dependent in self._missing:
                    self._missing[dependent] -= 1
                    if self._missing[dependent] == 0:
                        freed.append(dependent)
        self._ready = [step_id for step_id in self._ready if step_id not in finished] + freed
        if len(self._ready) > 1:
            self._ready.sort(key=self._definition.positions.__getitem__)
