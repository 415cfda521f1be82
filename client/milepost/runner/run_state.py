"""What a run keeps beside the user's state: a little JSON in each checkpoint's metadata, and records on the head.

Metadata lies under one key, so that filters of other programs never meet it; entries of the state are the user's alone.
Records say what has happened since the head was saved. Each is on one checkpoint and means nothing once there is a
newer head, so nothing has to be cleaned up:

    branch:<step>[<key>]   a step or item of a stage that is finished, and what it left
    started:<step>[<key>]  an at-most-once step was begun: unless its branch is finished too, nobody knows how it ended
    failure:<step>[<key>]  why the checkpoint is FAILED
    resume:<run id>        somebody went on from here
    left:<run id>          and stopped on purpose, so that it is no crash

Each value names the workflow that wrote it: a fork copies records with their checkpoint, and begins without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from milepost.types import Checkpoint, Record

METADATA_KEY: Final = "milepost"
METADATA_VERSION: Final = 1
BRANCH: Final = "branch:"
STARTED: Final = "started:"
FAILURE: Final = "failure:"
RESUME: Final = "resume:"
LEFT: Final = "left:"

FailureKind: TypeAlias = Literal[
    "error", "timeout", "abandoned", "deadline", "unknown", "crash_limit", "too_large", "final"
]
"""Why a checkpoint is FAILED. After the last four a resume is refused until somebody resolves the step."""

FINAL: Final[frozenset[str]] = frozenset({"crash_limit", "too_large", "final"})
"""Kinds that stand until their own step is resolved. (An unknown outcome is told by the mark that the step began.)"""
NEEDS_RESOLVE: Final[frozenset[str]] = FINAL | {"unknown"}


@dataclass(slots=True, kw_only=True)
class RunState:
    """What each checkpoint of a run carries in its metadata."""

    first: str
    """Id of the scope's first checkpoint: tells a workflow from one that was deleted and made again."""
    input: str
    """Digest of the first state."""
    input_schema: int = 1
    """Schema version that digest was made under."""
    schema: int = 1
    """Schema version of the checkpoint's state."""
    deadline: float | None = None
    """When the workflow has to be finished: seconds since 1970."""
    waiting_for: str = ""
    """Signal that a WAITING checkpoint waits for."""
    iterations: dict[str, int] = field(default_factory=dict)
    """How often each unfinished loop has run."""
    changed: dict[str, Any] | None = None
    """What a definition had changed in when a resume was forced."""
    traceparent: str = ""
    """The span of the run that saved it, where it was traced."""

    def to_metadata(self) -> dict[str, Any]:
        """Return the metadata of the next checkpoint."""
        content: dict[str, Any] = {
            "v": METADATA_VERSION,
            "first": self.first,
            "input": self.input,
            "schema": self.schema,
        }
        if self.input_schema != self.schema:
            content["input_schema"] = self.input_schema
        if self.deadline is not None:
            content["deadline"] = self.deadline
        if self.waiting_for:
            content["waiting_for"] = self.waiting_for
        if self.iterations:
            content["iterations"] = dict(self.iterations)
        if self.changed:
            content["changed"] = self.changed
        if self.traceparent:
            content["traceparent"] = self.traceparent
        return {METADATA_KEY: content}


def has_run_state(checkpoint: Checkpoint) -> bool:
    """Tell whether a runner has saved a checkpoint."""
    return isinstance(checkpoint.metadata.get(METADATA_KEY), Mapping)


def read_run_state(checkpoint: Checkpoint) -> RunState:
    """Read what a checkpoint carries; one that no runner has saved begins a run of its own."""
    if not has_run_state(checkpoint):
        return RunState(first=checkpoint.checkpoint_id, input="")
    content: Mapping[str, Any] = checkpoint.metadata[METADATA_KEY]
    schema = int(content.get("schema", 1))
    deadline = content.get("deadline")
    return RunState(
        first=str(content.get("first") or checkpoint.checkpoint_id),
        input=str(content.get("input", "")),
        input_schema=int(content.get("input_schema", schema)),
        schema=schema,
        deadline=None if deadline is None else float(deadline),
        waiting_for=str(content.get("waiting_for", "")),
        iterations={str(step): int(count) for step, count in dict(content.get("iterations") or {}).items()},
        changed=content.get("changed"),
        traceparent=str(content.get("traceparent", "")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a step failed, as it is kept."""

    step: str
    item_key: str | None = None
    """The item, where the step runs for each and it is about one."""
    kind: FailureKind
    type: str
    """Name of the exception's type."""
    text: str = field(default="", repr=False)
    """What it said, redacted and cut."""
    attempts: int = 1
    time: str = ""
    """When, in ISO 8601."""


@dataclass(frozen=True, slots=True)
class HeadRecords:
    """What the records of the head say, those of another workflow left out."""

    branches: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """By task (`<step>` or `<step>[<key>]`): what a finished branch left, as it was recorded."""
    started: Mapping[str, str] = field(default_factory=dict)
    """By task: the attempt id of an at-most-once step that was begun."""
    failures: tuple[Failure, ...] = ()
    resumes: frozenset[str] = frozenset()
    """Runs that went on from here and have not said that they left."""
    are_copied: bool = False
    """There are some of the workflow that this one is a fork of: in their place none of its own can be kept."""


def read_head_records(records: Iterable[Record], workflow_id: str) -> HeadRecords:
    """Sort the records of a head by what they are."""
    branches: dict[str, Any] = {}
    started: dict[str, str] = {}
    failures: list[Failure] = []
    resumes: set[str] = set()
    left: set[str] = set()
    are_copied = False
    for record in records:
        value = record.value
        if not isinstance(value, Mapping) or value.get("workflow") != workflow_id:
            are_copied = are_copied or record.task_id.startswith((BRANCH, STARTED))
            continue
        kind, _, task = record.task_id.partition(":")
        match f"{kind}:":
            case "branch:":
                branches[task] = value.get("left")
            case "started:":
                started[task] = str(value.get("attempt_id", ""))
            case "failure:":
                failures.append(
                    Failure(
                        step=record.name,
                        # An item's key may be empty too: only its task tells that there is one.
                        item_key=str(value.get("item_key", "")) if "[" in task else None,
                        kind=value.get("kind", "error"),
                        type=str(value.get("type", "")),
                        text=str(value.get("text", "")),
                        attempts=int(value.get("attempts", 1)),
                        time=str(value.get("time", "")),
                    )
                )
            case "resume:":
                resumes.add(task)
            case "left:":
                left.add(task)
            case _:
                pass  # Somebody else's.
    return HeadRecords(branches, started, tuple(failures), frozenset(resumes - left), are_copied)


def branch_record(workflow_id: str, task: str, step: str, left: object) -> Record:
    """Make the record of a finished branch."""
    return Record(task_id=BRANCH + task, name=step, value={"workflow": workflow_id, "left": left})


def started_record(workflow_id: str, task: str, step: str, attempt_id: str) -> Record:
    """Make the mark that an at-most-once step begins."""
    return Record(task_id=STARTED + task, name=step, value={"workflow": workflow_id, "attempt_id": attempt_id})


def failure_record(workflow_id: str, task: str, failure: Failure) -> Record:
    """Make the record of a failure."""
    value = {
        "workflow": workflow_id,
        "item_key": failure.item_key or "",
        "kind": failure.kind,
        "type": failure.type,
        "text": failure.text,
        "attempts": failure.attempts,
        "time": failure.time,
    }
    return Record(task_id=FAILURE + task, name=failure.step, value=value)


def resume_record(workflow_id: str, run_id: str) -> Record:
    """Make the mark that a run goes on from here."""
    return Record(task_id=RESUME + run_id, value={"workflow": workflow_id})


def left_record(workflow_id: str, run_id: str) -> Record:
    """Make the mark that a run stopped on purpose."""
    return Record(task_id=LEFT + run_id, value={"workflow": workflow_id})
