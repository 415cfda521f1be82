"""Workflows of a namespace by status, so that asking for those that are live costs what is live, not what ever was.

Every workflow that readers see is in one *group* of its namespace: its status, and whether signals wait for it. A group
keeps workflow_ids in their order, so a walk over some groups merges them, and pages as a walk over all names does. A
workflow changes its group in the commit that changes its status; most Saves do not. Stores from before there was this
index get it when they are opened (`build_slice`).
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from milepost_server import rules
from milepost_server.errors import RecordDamagedError
from milepost_server.model import Status, WorkflowRow
from milepost_server.storage import keys, long_keys, records
from milepost_server.storage.lmdb_rows import NamespaceRow
from milepost_server.storage.port import NameRow

if TYPE_CHECKING:
    from milepost_server.storage.lmdb_write_transaction import LmdbWriteTransaction

_logger = logging.getLogger(__name__)

STATUSES = (0, *Status)
"""0: the root scope has no head."""


def group_of(workflow: WorkflowRow | None) -> int | None:
    """Return the group that a workflow is in; `None` for one that readers do not see, or that a fork is making."""
    if workflow is None or not workflow.revision or not rules.is_visible(workflow):
        return None
    return _group(workflow.status, workflow.pending_signal_count > 0)


def _group(status: int, has_pending_signals: bool) -> int:
    return 2 * status + has_pending_signals


def table_of(group: int) -> bytes:
    """Return the table of a group, as `long_keys` has it."""
    return keys.STATUS + bytes([group])


def all_tables() -> Iterator[bytes]:
    """Yield the tables of all groups."""
    return (table_of(_group(status, has_signals)) for status in STATUSES for has_signals in (False, True))


def move(txn: LmdbWriteTransaction, workflow: WorkflowRow, before: int | None, after: int | None) -> None:
    """Take a workflow out of the group that it was in, if any, and put it in another, if any."""
    name = workflow.workflow_id.encode()
    if before is not None:
        long_keys.remove(txn, workflow.namespace_id, name, table_of(before))
    if after is not None:
        key = long_keys.make(txn, workflow.namespace_id, name, txn.new_id, table_of(after))
        txn.put(key, records.seal(key, b""))


def walk(
    rows: long_keys.Rows,
    namespace_id: int,
    prefix: bytes,
    after: bytes | None,
    *,
    statuses: Iterable[int],
    has_pending_signals: bool | None,
) -> Iterator[bytes]:
    """Yield the workflow_ids with one of some statuses (none: any), bytewise, from the first one after `after`."""
    of_signals = (False, True) if has_pending_signals is None else (has_pending_signals,)
    tables = [table_of(_group(status, has_signals)) for status in statuses or STATUSES for has_signals in of_signals]
    return heapq.merge(*(_walk_group(rows, namespace_id, table, prefix, after) for table in tables))


def _walk_group(
    rows: long_keys.Rows, namespace_id: int, table: bytes, prefix: bytes, after: bytes | None
) -> Iterator[bytes]:
    for name, key, row in long_keys.walk(rows, namespace_id, prefix, after, table=table):
        records.unseal(key, row)
        yield name


def build_slice(txn: LmdbWriteTransaction, position: tuple[str, str], rows_max: int) -> tuple[str, str] | None:
    """Put the workflows of up to `rows_max` names in their groups.

    Args:
        txn: A transaction on a store whose index is whole up to `position` and has nothing beyond it.
        position: The namespace and workflow_id that the slice before this one came to; two "" for the first.
        rows_max: Names to look at.

    Returns:
        The position of the next slice; `None` when all is done.
    """
    namespace, after = position
    count = 0
    for key, row in txn.scan(keys.namespace(namespace), keys.prefix(keys.STORE, keys.NAMESPACE)):
        found = records.decode(key, row, NamespaceRow)
        for name, name_key, name_row in long_keys.walk(txn, found.namespace_id, b"", after.encode() or None):
            if count == rows_max:
                return found.name, after
            count += 1
            after = name.decode()
            try:
                internal_id = records.decode(name_key, name_row, NameRow).internal_id
                workflow = txn.get_workflow(internal_id) if internal_id else None
            except RecordDamagedError as error:
                # Whoever asks for the workflow itself is told; the others are not to wait for it.
                _logger.error("workflow %r is damaged and cannot be listed by its status: %s", after, error)
                continue
            if workflow is not None:
                move(txn, workflow, None, group_of(workflow))
        after = ""
    return None
