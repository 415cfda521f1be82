"""What the store has of a run, read as its definition has it, and refused where it must not go on. Sans-IO.

**Invariant: only `WorkflowNotFoundError` means new.** Any other failure to load is the run's failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from milepost.codecs import Codec
from milepost.errors import CheckpointNotFoundError, DefinitionNotFoundError, WorkflowNotFoundError
from milepost.runner.changes import compare
from milepost.runner.events import Flow, LoadAncestor, LoadHead, LoadManifest
from milepost.runner.failures import Failures
from milepost.runner.manifest import Manifest
from milepost.runner.notices import Notices
from milepost.runner.order import Order
from milepost.runner.patches import Entries
from milepost.runner.run_state import HeadRecords, RunState, has_run_state, read_run_state
from milepost.runner.settings import Settings
from milepost.runner.workflow import Workflow
from milepost.types import Checkpoint

__all__ = ["StoredRun"]

S = TypeVar("S")

ANCESTORS_MAX: Final = 100
"""Checkpoints in a row that others have saved, behind which a run still finds its own."""


class StoredRun(Generic[S]):
    """One workflow in one scope, in the store.

    Args:
        order: What is asked of the run.
        codec: Encodes the entries, as the store does.
        notices: Learns of the signals that are pending.
    """

    def __init__(
        self,
        workflow: Workflow[S],
        order: Order[S],
        *,
        settings: Settings,
        codec: Codec,
        notices: Notices,
        failures: Failures,
    ) -> None:
        self.input = (
            None if order.state is None else Entries.of_state(order.state, workflow.state_type, codec, "the input")
        )
        """What the run brings to begin with, as entries; None: it resumes."""
        self._workflow = workflow
        self._order = order
        self._settings = settings
        self._codec = codec
        self._notices = notices
        self._failures = failures

    def load_head(self) -> Flow[Checkpoint | None]:
        """Return the head; None where there is none, and the run may begin one."""
        try:
            head: Checkpoint = yield LoadHead(self._order.scope)
        except WorkflowNotFoundError as error:
            if self._order.kind == "resume":
                raise
            if self.input is None:
                error.add_note("A run without a state resumes; give it one to start the workflow.")
                raise
            return None
        except CheckpointNotFoundError:
            # The workflow is there and this child has not begun. Without a scope it would be a damaged workflow.
            if not self._order.scope:
                raise
            return None
        self._notices.saw(head.pending_signals, head.pending_signal_count)
        return head

    def run_state(self, head: Checkpoint) -> Flow[RunState]:
        """Return what the run keeps: with the head, or where somebody else saved that, with its nearest ancestor.

        A save by hand in the middle must not change the keys of the steps that follow, nor lose a deadline.
        """
        found = head
        for _ in range(ANCESTORS_MAX):
            if has_run_state(found) or not found.parent_id or found.parent_pruned:
                break
            try:
                found = yield LoadAncestor(self._order.scope, found.parent_id)
            except CheckpointNotFoundError:
                break
        return read_run_state(found)

    def check_input(self, state: RunState) -> Flow[None]:
        """Refuse an input that is not the one the workflow was started with."""
        # An input of another schema says nothing about one of this schema.
        if self.input is None or state.input_schema != self._workflow.schema_version:
            return
        if self.input.digest() == state.input:
            return
        # It was saved by hand, or differs in the order of keys alone, which is no difference.
        try:
            first: Checkpoint = yield LoadAncestor(self._order.scope, state.first, with_state=True)
        except CheckpointNotFoundError:
            is_other = bool(state.input)
        else:
            is_first = bool(state.input) or not first.parent_id
            is_other = is_first and self._ordered(first.state) != self._ordered(self.input.values())
        if is_other:
            raise self._failures.other_input()

    def _ordered(self, state: Mapping[str, Any]) -> Entries:
        return Entries.of({key: _in_order(value) for key, value in state.items()}, self._codec)

    def check_definition(
        self, head: Checkpoint, state: RunState, records: HeadRecords
    ) -> Flow[tuple[frozenset[str], Sequence[str]]]:
        """Return the steps that count as finished, and those the store does not know as such.

        Raises:
            DefinitionChangedError: The definition has changed in what the settings do not allow.
        """
        fingerprint = self._workflow.definition.manifest.fingerprint
        completed = frozenset(head.completed_steps)
        # It was said on the checkpoint that followed the change.
        state.changed = None
        if not head.fingerprint or head.fingerprint == fingerprint:
            return completed, ()
        try:
            text: str = yield LoadManifest(head.fingerprint)
        except DefinitionNotFoundError:
            if self._settings.on_change != "force":
                raise
            return completed, ()
        begun = {task.partition("[")[0] for task in (*records.branches, *records.started)} | state.iterations.keys()
        changes = compare(Manifest.read(text), self._workflow.definition, head.completed_steps, begun)
        if not changes.allows(self._settings.on_change):
            raise changes.error(self._settings.on_change, self._order.workflow_id)
        if self._settings.on_change == "force":
            state.changed = changes.to_metadata()
        state.iterations = {changes.renamed.get(one, one): count for one, count in state.iterations.items()}
        return changes.finished, changes.newly_named

    def entries(self, head: Checkpoint, state: RunState) -> tuple[Entries, bool]:
        """Return the entries as this definition has them, and whether they were migrated."""
        values = head.state
        is_migrated = state.schema != self._workflow.schema_version
        if is_migrated:
            values = self._workflow.migrations.migrate(values, state.schema)
            state.schema = self._workflow.schema_version
        entries = Entries.of(values, self._codec)
        # A state that does not fit is the run's failure, not that of whichever step would get it first.
        self.state_of(entries, head.checkpoint_id)
        return entries, is_migrated

    def state_of(self, entries: Entries, checkpoint_id: str) -> S:
        """Return entries as a state of the declared type."""
        return self._workflow.state_type.from_entries(
            entries.values(), workflow_id=self._order.workflow_id, checkpoint_id=checkpoint_id
        )


def _in_order(value: Any) -> Any:
    """Return a value whose mappings have their keys in order, as far as plain containers reach."""
    if type(value) is dict:
        return {key: _in_order(value[key]) for key in sorted(value, key=repr)}
    if type(value) is list or type(value) is tuple:
        return type(value)(map(_in_order, value))
    return value
