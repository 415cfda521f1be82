"""The command that asks, before a deployment, which workflows the build at hand could not go on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

import click

from milepost.cli.failures import ExitCode
from milepost.cli.imports import find_workflow
from milepost.cli.rendering import count, printable
from milepost.cli.session import TEXT, Session, pass_session, setting_options
from milepost.cli.store import Store, StoredCheckpoint, StoredRecord
from milepost.errors import DefinitionNotFoundError, NotFoundError
from milepost.runner.changes import compare
from milepost.runner.manifest import Manifest
from milepost.runner.run_state import BRANCH, METADATA_KEY, STARTED
from milepost.runner.settings import ChangePolicy
from milepost.runner.workflow import Workflow
from milepost.types import Checkpoint, Status, WorkflowInfo

LIVE: Final = (Status.RUNNING, Status.WAITING, Status.SUSPENDED, Status.FAILED)
"""Statuses that a workflow is resumed from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why one workflow could not go on."""

    workflow_id: str
    scope: str
    status: Status
    current_step: str
    problems: Sequence[str]


@click.command()
@click.argument("definition", type=TEXT, metavar="MODULE:WORKFLOW")
@click.option(
    "--on-change",
    type=click.Choice(get_args(ChangePolicy)),
    default="fail",
    help="What bind(on_change=…) is in the build; default: fail.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice([status.value for status in LIVE]),
    multiple=True,
    help="Only with this status; repeatable. Default: all that a workflow is resumed from.",
)
@setting_options(hidden=True)
@pass_session
def check(session: Session, *, definition: str, on_change: str, statuses: tuple[str, ...]) -> None:
    """List the unfinished workflows that could not be resumed under the definition WORKFLOW of MODULE, and why.

    MODULE is imported, from the current directory before any other place, which runs its code: use this with code that
    you trust. No step is run, and no state is read: only definitions and schema versions are compared. Exits with 1
    where there is such a workflow.
    """
    workflow = find_workflow(session, definition)
    output = session.output()
    checked = 0
    blocked = 0
    with session.store() as store:
        manifests = _Manifests(store)
        live = store.workflows(
            definition=workflow.name, status=[Status(one) for one in statuses] or list(LIVE), page_size=1_000
        )
        for info in live:
            checked += 1
            found = list(_obstacles(store, manifests, workflow, info, cast("ChangePolicy", on_change)))
            blocked += bool(found)
            for obstacle in found:
                if session.as_json:
                    output.document(_document(obstacle))
                    continue
                where = obstacle.workflow_id + (f", scope {obstacle.scope!r}" if obstacle.scope else "")
                step = f" after {obstacle.current_step!r}" if obstacle.current_step else ""
                output.line((printable(where), "bold"), f"  {obstacle.status.value}{printable(step)}")
                for problem in obstacle.problems:
                    output.line(f"  {printable(problem)}")
    name = printable(repr(workflow.name))
    if blocked:
        session.note(f"{blocked} of {count(checked, 'unfinished workflow')} of {name} could not be resumed")
        output.flush()
        click.get_current_context().exit(ExitCode.NEGATIVE)
    what = f"all {count(checked, 'unfinished workflow')} of {name} could be resumed"
    session.note(what if checked else f"{name} has no unfinished workflows")


class _Manifests:
    """Manifests by fingerprint, each read once: many workflows have few definitions."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, Manifest | None] = {}

    def get(self, fingerprint: str) -> Manifest | None:
        if fingerprint not in self._read:
            try:
                self._read[fingerprint] = Manifest.read(self._store.definition_manifest(fingerprint))
            except DefinitionNotFoundError:
                self._read[fingerprint] = None
        return self._read[fingerprint]


def _obstacles(
    store: Store, manifests: _Manifests, workflow: Workflow[Any], info: WorkflowInfo, policy: ChangePolicy
) -> Iterator[Obstacle]:
    """Yield what stands in a workflow's way: of the workflow itself, then of the children that are in progress."""
    for scope, definition in _scopes(store, workflow, info):
        try:
            stored = store.load_stored(info.workflow_id, scope=scope, with_state=False)
        except NotFoundError:
            continue  # deleted since it was listed
        problems = _problems(stored, manifests, definition, policy)
        if problems and stored.header.status in LIVE:
            yield Obstacle(
                workflow_id=info.workflow_id,
                scope=scope,
                status=stored.header.status,
                current_step=stored.header.current_step,
                problems=problems,
            )


def _scopes(store: Store, workflow: Workflow[Any], info: WorkflowInfo) -> Iterator[tuple[str, Workflow[Any]]]:
    """Yield the scopes whose definition is known: the root, and those that a step with declared children runs."""
    yield "", workflow
    if info.scope_count < 2 or not any(step.children for step in workflow.steps.values()):
        return
    known: dict[str, Workflow[Any] | None] = {"": workflow}
    for checkpoint in store.list(info.workflow_id, scope=None, newest_first=True):
        if checkpoint.scope not in known:
            child = known[checkpoint.scope] = _child_of(workflow, checkpoint)
            if child is not None:
                yield checkpoint.scope, child
        if len(known) > info.scope_count:
            return


def _child_of(workflow: Workflow[Any], checkpoint: Checkpoint) -> Workflow[Any] | None:
    """Return the definition of a nested run, where its step declares just one child at each level."""
    found = workflow
    for part in checkpoint.scope.split("/"):
        step_id = part.partition("[")[0].partition("#")[0].partition(":")[0]
        step = found.steps.get(step_id) or next((one for one in found.steps.values() if step_id in one.aliases), None)
        if step is None or len(step.children) != 1:
            return None
        found = step.children[0]
    return found


def _problems(
    stored: StoredCheckpoint, manifests: _Manifests, workflow: Workflow[Any], policy: ChangePolicy
) -> Sequence[str]:
    head = stored.header
    kept = _kept(stored.metadata)
    problems: list[str] = []
    if (problem := workflow.migrations.problem(int(kept.get("schema", 1)))) is not None:
        problems.append(problem)
    if not head.fingerprint or head.fingerprint == workflow.definition.manifest.fingerprint:
        return problems
    manifest = manifests.get(head.fingerprint)
    if manifest is None:
        if policy != "force":
            problems.append(f"the manifest of its definition ({head.fingerprint[:12]}) is not in the store")
        return problems
    begun = _begun(stored.records, head.workflow_id) | set(kept.get("iterations") or ())
    changes = compare(manifest, workflow.definition, head.completed_steps, begun)
    if not changes.allows(policy):
        problems += changes.problems or [changes.difference]
    return problems


def _kept(metadata: str) -> Mapping[str, Any]:
    """Return what the runner keeps in a checkpoint's metadata."""
    found = json.loads(metadata) if metadata else {}
    kept = found.get(METADATA_KEY) if isinstance(found, dict) else None
    return kept if isinstance(kept, dict) else {}


def _begun(records: Sequence[StoredRecord], workflow_id: str) -> set[str]:
    """Return the steps that have finished branches, or a mark of a start at most once."""
    found: set[str] = set()
    for record in records:
        kind, colon, task = record.task_id.partition(":")
        # A fork has the records of the workflow it was made from: they say nothing about it.
        if kind + colon in {BRANCH, STARTED} and _owner(record) in {workflow_id, None}:
            found.add(task.partition("[")[0])
    return found


def _owner(record: StoredRecord) -> str | None:
    """Return the workflow that wrote a record; None where its codec hides it."""
    if not record.value.is_json:
        return None
    value = json.loads(record.value.text)
    owner = value.get("workflow") if isinstance(value, dict) else None
    return owner if isinstance(owner, str) else None


def _document(obstacle: Obstacle) -> dict[str, Any]:
    return {
        "workflow_id": obstacle.workflow_id,
        "scope": obstacle.scope,
        "status": obstacle.status.value,
        "current_step": obstacle.current_step,
        "problems": list(obstacle.problems),
    }
