"""The engine in memory: the model that other engines are compared to, and a store for tests that need no disk.

Nothing survives the process. One lock makes batches visible whole. `memory_check` proves that what is stored fits
together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from milepost_server.errors import StoreError, internal_error
from milepost_server.limits import DEFAULT_LIMITS, Limits
from milepost_server.model import (
    Answer,
    BatchSaveCommand,
    Command,
    DefinitionAnswer,
    EntryHistoryAnswer,
    EntryHistoryQuery,
    LeaseQueryAnswer,
    ListAnswer,
    ListQuery,
    ListSignalsAnswer,
    ListSignalsQuery,
    ListWorkflowsAnswer,
    ListWorkflowsQuery,
    LoadAnswer,
    LoadQuery,
    LongLoad,
    ProbeAnswer,
    WorkflowAnswer,
)
from milepost_server.storage import commands, queries, read_slices
from milepost_server.storage.lease_timers import LeaseTimers, boot_clock_ms
from milepost_server.storage.memory_transaction import MemoryTransaction, Tables
from milepost_server.storage.port import CommandLane, LoadLane

if TYPE_CHECKING:
    # Not imported at run time: the storage process does without an event loop, and it is large.
    from asyncio import AbstractEventLoop

    from milepost_server.shared_bounds import SharedBound


_logger = logging.getLogger(__name__)

_V = TypeVar("_V")
_P = ParamSpec("_P")


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryEngine:
    """A store in memory. Nothing of it survives the process."""

    def __init__(
        self,
        *,
        limits: Limits = DEFAULT_LIMITS,
        clock_ms: Callable[[], int] = _wall_clock_ms,
        lease_clock_ms: Callable[[], int] = boot_clock_ms,
    ) -> None:
        """Make an empty store.

        Args:
            limits: Bounds of what is stored.
            clock_ms: The time, in milliseconds since the epoch.
            lease_clock_ms: The time in which leases run, in milliseconds that only grow.
        """
        self._timers = LeaseTimers(lease_clock_ms)
        self._limits = limits
        self._clock_ms = clock_ms
        self._tables = Tables()
        # Held for a whole batch and for a whole read, so that a read sees only finished batches.
        self._lock = threading.Lock()

    def execute(self, batch: Sequence[Command]) -> Sequence[Answer | StoreError]:
        """Run commands in order; each sees what those before it did, and one that fails leaves nothing."""
        with self._lock:
            txn = MemoryTransaction(self._tables, self._limits, self._clock_ms(), self._timers)
            try:
                return [self._run(txn, command) for command in batch]
            except BaseException:
                txn.rollback(0)
                raise

    def _run(self, txn: MemoryTransaction, command: Command) -> Answer | StoreError:
        if isinstance(command, BatchSaveCommand):
            return commands.save_items(command, partial(self._run, txn))
        mark = txn.mark()
        try:
            return commands.run(txn, command, self._limits)
        except StoreError as error:
            txn.rollback(mark)
            return error
        except Exception as error:  # noqa: BLE001 - a defect: it must not take the other commands of the batch along
            txn.rollback(mark)
            what = f"{type(command).__name__} ended in an unexpected error; nothing of it is stored"
            return internal_error(_logger, what, error)

    def reopen(self) -> None:
        """Do nothing: this store never fails."""

    def load(self, query: LoadQuery) -> LoadAnswer | LongLoad:
        """Read one checkpoint."""
        return read_slices.load(lambda part: self._read(queries.load, part, self._limits), query, self._limits)

    def command_lane(self, loop: AbstractEventLoop) -> CommandLane | None:
        """See `Engine`."""
        return None

    def load_lane(
        self, loop: AbstractEventLoop, *, bound: SharedBound, on_failure: Callable[[], None]
    ) -> LoadLane | None:
        """See `Engine`."""
        return None

    def list_checkpoints(self, query: ListQuery) -> ListAnswer:
        """Read one page of a workflow's checkpoints."""
        return self._read(queries.list_checkpoints, query)

    def get_workflow(self, namespace: str, workflow_id: str) -> WorkflowAnswer:
        """Read one workflow."""
        return self._read(queries.get_workflow, namespace, workflow_id)

    def list_signals(self, query: ListSignalsQuery) -> ListSignalsAnswer:
        """Read one page of a workflow's pending signals."""
        return self._read(queries.list_signals, query)

    def get_definition(self, namespace: str, fingerprint: str) -> DefinitionAnswer:
        """Read the manifest of a fingerprint."""
        return self._read(queries.get_definition, namespace, fingerprint)

    def get_lease(self, namespace: str, workflow_id: str) -> LeaseQueryAnswer:
        """Read a workflow's lease, without its token."""
        return self._read(queries.get_lease, namespace, workflow_id)

    def list_workflows(self, query: ListWorkflowsQuery) -> ListWorkflowsAnswer:
        """Read one page of a namespace's workflows."""
        return self._read(queries.list_workflows, query)

    def entry_history(self, query: EntryHistoryQuery) -> EntryHistoryAnswer:
        """Read one page of what entries were."""
        return self._read(queries.entry_history, query)

    def _read(self, read: Callable[Concatenate[MemoryTransaction, _P], _V], *args: _P.args, **kwargs: _P.kwargs) -> _V:
        with self._lock:
            txn = MemoryTransaction(self._tables, self._limits, self._clock_ms(), self._timers)
            return read(txn, *args, **kwargs)

    def probe(self) -> ProbeAnswer:
        """Return at once, unless the store is at work."""
        with self._lock:
            return ProbeAnswer()

    def statistics(self) -> Mapping[str, int]:
        """Return counts of what is stored; nothing here was discarded and not yet freed."""
        with self._lock:
            tables = self._tables
            return {
                "namespaces": len(tables.namespaces),
                "names": len(tables.names),
                "workflows": len(tables.workflows),
                "checkpoints": sum(map(len, tables.checkpoints.values())),
                "ids": sum(map(len, tables.ids.values())),
                "nodes": len(tables.nodes),
                "values": len(tables.values),
                "leases": len(tables.leases),
                "signals": sum(map(len, tables.signals.values())),
                "signal_ids": sum(map(len, tables.signal_ids.values())),
                "manifests": sum(map(len, tables.manifests.values())),
                "records": sum(len(group) for groups in tables.records.values() for group in groups.values()),
            }

    def inspect(self, look: Callable[[Tables], _V]) -> _V:
        """Return what `look` makes of the tables, which it must not change; for checks."""
        with self._lock:
            return look(self._tables)

    def close(self) -> None:
        """Do nothing; the store goes with the object."""
