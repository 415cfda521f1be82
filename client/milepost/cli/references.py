"""What a person calls a checkpoint, and which one that is.

head            the newest checkpoint of the scope
head~2          two steps back from it, along the line of parents
7               the checkpoint with sequence 7, or else with the id "7"
0199c2f4-5d…    the id, or a beginning of it that fits no other id of the scope
id:head         the id "head", where an id looks like one of the above
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from milepost.cli.store import Store, StoredCheckpoint
from milepost.errors import CheckpointNotFoundError, InvalidRequestError
from milepost.types import Checkpoint

PREFIX_CHARACTERS_MIN: Final = 4
"""Shorter beginnings of an id are not looked for: they fit by accident."""
PAGE_SIZE: Final = 1_000

_ANCESTOR: Final = re.compile(r"head(?:~(\d{1,9}))?", re.ASCII)
_SEQUENCE: Final = re.compile(r"\d{1,18}", re.ASCII)


def find_checkpoint(store: Store, workflow_id: str, reference: str, *, scope: str = "") -> Checkpoint:
    """Return the checkpoint that a reference names, without its state.

    Raises:
        WorkflowNotFoundError: There is no such workflow.
        CheckpointNotFoundError: Nothing in this scope fits.
        InvalidRequestError: More than one id begins like this.
    """
    if reference.startswith("id:"):
        return _header(store, workflow_id, scope, checkpoint_id=reference.removeprefix("id:"))
    match = _ANCESTOR.fullmatch(reference)
    if match is not None:
        return _ancestor(store, workflow_id, scope, int(match[1] or 0))
    if _SEQUENCE.fullmatch(reference):
        try:
            return _header(store, workflow_id, scope, sequence=int(reference))
        except CheckpointNotFoundError:
            pass
    try:
        return _header(store, workflow_id, scope, checkpoint_id=reference)
    except CheckpointNotFoundError:
        prefix = reference.rstrip("…")
        if len(prefix) < PREFIX_CHARACTERS_MIN or _SEQUENCE.fullmatch(reference):
            raise _nothing(workflow_id, scope, f"no checkpoint {reference!r}", reference) from None
    return _by_prefix(store, workflow_id, scope, prefix)


def load_checkpoint(
    store: Store, workflow_id: str, reference: str, *, scope: str = "", entries: tuple[str, ...] = ()
) -> StoredCheckpoint:
    """Return the checkpoint that a reference names, with its state (or only these entries) and records."""
    # The head in one call; everything else is found first, and then read by its id.
    checkpoint_id = None
    if reference != "head":
        checkpoint_id = find_checkpoint(store, workflow_id, reference, scope=scope).checkpoint_id
    return store.load_stored(workflow_id, checkpoint_id=checkpoint_id, scope=scope, entries=entries or None)


def _header(
    store: Store, workflow_id: str, scope: str, *, checkpoint_id: str | None = None, sequence: int | None = None
) -> Checkpoint:
    found = store.load_stored(
        workflow_id,
        checkpoint_id=checkpoint_id,
        sequence=sequence,
        scope=scope,
        with_state=False,
        with_records=False,
    )
    return found.header


def _ancestor(store: Store, workflow_id: str, scope: str, distance: int) -> Checkpoint:
    if distance == 0:
        return _header(store, workflow_id, scope)
    # A parent has a lower sequence than its child, so one pass from the newest on meets the whole line in order.
    wanted: str | None = None
    passed = 0
    for checkpoint in store.list(workflow_id, scope=scope, page_size=min(distance + 1, PAGE_SIZE)):
        if wanted is not None and checkpoint.checkpoint_id != wanted:
            continue
        if passed == distance:
            return checkpoint
        if not checkpoint.parent_id or checkpoint.parent_pruned:
            break
        passed += 1
        wanted = checkpoint.parent_id
    raise _nothing(workflow_id, scope, f"no checkpoint head~{distance}: the line has {passed} before its head", "")


def _by_prefix(store: Store, workflow_id: str, scope: str, prefix: str) -> Checkpoint:
    listed = store.list(workflow_id, scope=scope, page_size=PAGE_SIZE)
    found = list(islice((c for c in listed if c.checkpoint_id.startswith(prefix)), 2))
    if not found:
        raise _nothing(workflow_id, scope, f"no checkpoint whose id is or begins with {prefix!r}", prefix)
    if len(found) > 1:
        raise InvalidRequestError(
            f"more than one checkpoint id of workflow {workflow_id!r} begins with {prefix!r}: "
            f"{found[0].checkpoint_id!r}, {found[1].checkpoint_id!r}",
            workflow_id=workflow_id,
            scope=scope,
        )
    return found[0]


def _nothing(workflow_id: str, scope: str, what: str, checkpoint_id: str) -> CheckpointNotFoundError:
    where = f" in scope {scope!r}" if scope else " in the root scope"
    return CheckpointNotFoundError(
        f"workflow {workflow_id!r} has {what}{where}",
        workflow_id=workflow_id,
        scope=scope,
        checkpoint_id=checkpoint_id,
    )
