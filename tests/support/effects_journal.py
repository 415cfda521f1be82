"""What steps did to the outside world, in a file that milepost knows nothing of.

A line is one `write` to a file opened with O_APPEND, flushed before the step goes on, so those of several processes
never mix. Linux cuts a write at the end of a page where its process is killed just then: such a line counts as not
written, since its step did not go on. Each line begins with its newline, so that a cut one spoils no other.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Effect:
    """One line."""

    what: str
    """effect, or whatever else the worker tells."""
    step: str = ""
    """The step, with its item: `pack[2]`."""
    workflow_id: str = ""
    key: str = ""
    """The idempotency key that the step was given."""
    attempt: int = 0
    note: str = ""
    pid: int = 0
    time: float = 0.0
    """When, by a clock that all processes of the machine share and that never steps."""


class EffectsJournal:
    """The file. Safe for threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(
        self, what: str, step: str = "", *, workflow_id: str = "", key: str = "", attempt: int = 0, note: str = ""
    ) -> None:
        """Append a line; it is on disk on return."""
        effect = Effect(what, step, workflow_id, key, attempt, note, os.getpid(), time.monotonic())
        line = b"\n" + json.dumps(asdict(effect)).encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            assert os.write(file, line) == len(line)
            os.fsync(file)
        finally:
            os.close(file)

    def read(self, *, workflow_id: str | None = None, what: str | None = None) -> list[Effect]:
        """Return the lines in the order they were written, of one workflow and kind if so asked."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        effects = [Effect(**json.loads(line)) for line in lines if line.endswith("}")]
        return [
            effect for effect in effects if workflow_id in {None, effect.workflow_id} and what in {None, effect.what}
        ]
