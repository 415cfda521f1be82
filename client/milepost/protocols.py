"""What a store can do, for code that should not care which one it has.

Small protocols for single abilities, and `WorkflowStore`, which is all of them together: what running workflows takes.
`Client` and `InMemoryStore` are a `WorkflowStore`; `AsyncClient` and `AsyncInMemoryStore` an `AsyncWorkflowStore`.
`isinstance` looks at the names of the methods alone; a type checker looks at everything.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from milepost.types import (
    After,
    Checkpoint,
    LeaseInfo,
    LeaseRenewal,
    Record,
    RecordOutcome,
    Saved,
    Signal,
    SignalSent,
    Status,
    WatchAfter,
    WatchEvent,
    WorkflowInfo,
)

__all__ = [
    "AsyncCheckpointStore",
    "AsyncSupportsDefinitions",
    "AsyncSupportsLeases",
    "AsyncSupportsRecords",
    "AsyncSupportsSignals",
    "AsyncSupportsWatch",
    "AsyncSupportsWorkflows",
    "AsyncWatchStream",
    "AsyncWorkflowStore",
    "CheckpointStore",
    "SupportsDefinitions",
    "SupportsLeases",
    "SupportsRecords",
    "SupportsSignals",
    "SupportsWatch",
    "SupportsWorkflows",
    "WatchStream",
    "WorkflowStore",
]


@runtime_checkable
class CheckpointStore(Protocol):
    """Save, load, list. The methods mean what those of `Client` mean."""

    def save(
        self,
        workflow_id: str,
        *,
        state: Mapping[str, Any],
        current_step: str = "",
        after: After = None,
        checkpoint_id: str | None = None,
        status: Status = Status.RUNNING,
        metadata: Mapping[str, Any] | None = None,
        scope: str = "",
        completed_steps: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        definition: str = "",
        fingerprint: str = "",
        run_id: str = "",
        records: Sequence[Record] = (),
        history_entries: Sequence[str] = (),
        replace: bool = False,
        lease_token: int = 0,
        release_lease: bool = False,
        consumed_signals: Sequence[str] = (),
        manifest: str = "",
    ) -> Saved:
        """Store one checkpoint, durably and once."""
        ...

    def load(
        self,
        workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        sequence: int | None = None,
        latest_with_status: Status | Iterable[Status] | None = None,
        scope: str = "",
        entries: Iterable[str] | None = None,
        with_state: bool = True,
    ) -> Checkpoint:
        """Read one checkpoint, the head unless told otherwise."""
        ...

    def list(
        self,
        workflow_id: str,
        *,
        scope: str | None = "",
        newest_first: bool = True,
        limit: int | None = None,
        with_state: bool = False,
    ) -> Iterator[Checkpoint]:
        """Read checkpoints in the order of their sequence, a page at a time."""
        ...


@runtime_checkable
class AsyncCheckpointStore(Protocol):
    """Save, load, list. The methods mean what those of `AsyncClient` mean."""

    async def save(
        self,
        workflow_id: str,
        *,
        state: Mapping[str, Any],
        current_step: str = "",
        after: After = None,
        checkpoint_id: str | None = None,
        status: Status = Status.RUNNING,
        metadata: Mapping[str, Any] | None = None,
        scope: str = "",
        completed_steps: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        definition: str = "",
        fingerprint: str = "",
        run_id: str = "",
        records: Sequence[Record] = (),
        history_entries: Sequence[str] = (),
        replace: bool = False,
        lease_token: int = 0,
        release_lease: bool = False,
        consumed_signals: Sequence[str] = (),
        manifest: str = "",
    ) -> Saved:
        """Store one checkpoint, durably and once."""
        ...

    async def load(
        self,
        workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        sequence: int | None = None,
        latest_with_status: Status | Iterable[Status] | None = None,
        scope: str = "",
        entries: Iterable[str] | None = None,
        with_state: bool = True,
    ) -> Checkpoint:
        """Read one checkpoint, the head unless told otherwise."""
        ...

    def list(
        self,
        workflow_id: str,
        *,
        scope: str | None = "",
        newest_first: bool = True,
        limit: int | None = None,
        with_state: bool = False,
    ) -> AsyncIterator[Checkpoint]:
        """Read checkpoints in the order of their sequence, a page at a time."""
        ...


@runtime_checkable
class SupportsRecords(CheckpointStore, Protocol):
    """A store that keeps small items beside a checkpoint."""

    def append_records(
        self,
        workflow_id: str,
        checkpoint_id: str,
        records: Sequence[Record],
        *,
        scope: str = "",
        require_checkpoint: bool = False,
        lease_token: int = 0,
    ) -> builtins.list[RecordOutcome]:
        """Append records to a checkpoint, also before that checkpoint exists."""
        ...


@runtime_checkable
class AsyncSupportsRecords(AsyncCheckpointStore, Protocol):
    """A store that keeps small items beside a checkpoint."""

    async def append_records(
        self,
        workflow_id: str,
        checkpoint_id: str,
        records: Sequence[Record],
        *,
        scope: str = "",
        require_checkpoint: bool = False,
        lease_token: int = 0,
    ) -> builtins.list[RecordOutcome]:
        """Append records to a checkpoint, also before that checkpoint exists."""
        ...


@runtime_checkable
class SupportsLeases(Protocol):
    """A store that gives out the exclusive right to advance a workflow."""

    def acquire_lease(
        self,
        workflow_id: str,
        *,
        ttl_s: float = 30.0,
        wait_s: float = 0.0,
        holder: str | None = None,
        request_id: str | None = None,
    ) -> LeaseInfo:
        """Take the lease, or wait for it; the answer has its token.

        Where it is interrupted, it gives back what it was granted: nobody else knows the token.
        """
        ...

    def renew_lease(self, workflow_id: str, token: int) -> LeaseRenewal:
        """Keep the lease for another ttl."""
        ...

    def release_lease(self, workflow_id: str, token: int) -> bool:
        """Give the lease back; tell whether the token still held it."""
        ...

    def break_lease(self, workflow_id: str) -> bool:
        """Take the lease away from whoever holds it; tell whether there was one."""
        ...

    def get_lease(self, workflow_id: str) -> LeaseInfo | None:
        """Read who holds the lease, without its token."""
        ...


@runtime_checkable
class SupportsSignals(Protocol):
    """A store that keeps messages to workflows until a save consumes them."""

    def send_signal(
        self, workflow_id: str, name: str, value: object = None, *, signal_id: str | None = None
    ) -> SignalSent:
        """Send a signal, durably and once."""
        ...

    def signals(self, workflow_id: str, *, name: str | None = None) -> Iterator[Signal]:
        """Read the signals that no save has consumed yet, in the order they came."""
        ...


@runtime_checkable
class SupportsWorkflows(Protocol):
    """A store that tells which workflows it has, and forks them."""

    def workflows(
        self,
        *,
        prefix: str = "",
        status: Status | Iterable[Status] | None = None,
        labels: Mapping[str, str] | None = None,
        definition: str | None = None,
        updated_from: datetime | None = None,
        updated_before: datetime | None = None,
        is_leased: bool | None = None,
        has_pending_signals: bool | None = None,
        fingerprint: str | None = None,
        limit: int | None = None,
    ) -> Iterator[WorkflowInfo]:
        """Read the workflows that match, by id."""
        ...

    def workflow(self, workflow_id: str) -> WorkflowInfo:
        """Read what is known of one workflow."""
        ...

    def fork(
        self,
        workflow_id: str,
        new_workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        scope: str = "",
        all_scopes: bool = False,
        fork_id: str | None = None,
    ) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint."""
        ...


class WatchStream(Protocol):
    """Events as they come, without an end. May be closed from any thread."""

    def __iter__(self) -> Self:
        """Return itself."""
        ...

    def __next__(self) -> WatchEvent:
        """Wait for the next event."""
        ...

    def close(self) -> None:
        """End it: who waits for the next event gets the end of the iteration."""
        ...

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        ...


@runtime_checkable
class SupportsWatch(Protocol):
    """A store that tells what changes as it changes."""

    def watch(self, workflow_id: str = "", *, after: WatchAfter = None, definition: str | None = None) -> WatchStream:
        """Follow one workflow, or all of the namespace."""
        ...


@runtime_checkable
class SupportsDefinitions(Protocol):
    """A store that keeps the manifests that saves bring."""

    def definition_manifest(self, fingerprint: str) -> str:
        """Read a definition's manifest: JSON text as it was first sent."""
        ...


@runtime_checkable
class WorkflowStore(
    SupportsRecords,
    SupportsLeases,
    SupportsSignals,
    SupportsWorkflows,
    SupportsWatch,
    SupportsDefinitions,
    Protocol,
):
    """Everything that running workflows takes."""


@runtime_checkable
class AsyncSupportsLeases(Protocol):
    """A store that gives out the exclusive right to advance a workflow."""

    async def acquire_lease(
        self,
        workflow_id: str,
        *,
        ttl_s: float = 30.0,
        wait_s: float = 0.0,
        holder: str | None = None,
        request_id: str | None = None,
    ) -> LeaseInfo:
        """Take the lease, or wait for it; the answer has its token.

        Where it is cancelled, it gives back what it was granted: nobody else knows the token.
        """
        ...

    async def renew_lease(self, workflow_id: str, token: int) -> LeaseRenewal:
        """Keep the lease for another ttl."""
        ...

    async def release_lease(self, workflow_id: str, token: int) -> bool:
        """Give the lease back; tell whether the token still held it."""
        ...

    async def break_lease(self, workflow_id: str) -> bool:
        """Take the lease away from whoever holds it; tell whether there was one."""
        ...

    async def get_lease(self, workflow_id: str) -> LeaseInfo | None:
        """Read who holds the lease, without its token."""
        ...


@runtime_checkable
class AsyncSupportsSignals(Protocol):
    """A store that keeps messages to workflows until a save consumes them."""

    async def send_signal(
        self, workflow_id: str, name: str, value: object = None, *, signal_id: str | None = None
    ) -> SignalSent:
        """Send a signal, durably and once."""
        ...

    def signals(self, workflow_id: str, *, name: str | None = None) -> AsyncIterator[Signal]:
        """Read the signals that no save has consumed yet, in the order they came."""
        ...


@runtime_checkable
class AsyncSupportsWorkflows(Protocol):
    """A store that tells which workflows it has, and forks them."""

    def workflows(
        self,
        *,
        prefix: str = "",
        status: Status | Iterable[Status] | None = None,
        labels: Mapping[str, str] | None = None,
        definition: str | None = None,
        updated_from: datetime | None = None,
        updated_before: datetime | None = None,
        is_leased: bool | None = None,
        has_pending_signals: bool | None = None,
        fingerprint: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[WorkflowInfo]:
        """Read the workflows that match, by id."""
        ...

    async def workflow(self, workflow_id: str) -> WorkflowInfo:
        """Read what is known of one workflow."""
        ...

    async def fork(
        self,
        workflow_id: str,
        new_workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        scope: str = "",
        all_scopes: bool = False,
        fork_id: str | None = None,
    ) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint."""
        ...


class AsyncWatchStream(Protocol):
    """Events as they come, without an end. May be closed by any task of its loop."""

    def __aiter__(self) -> Self:
        """Return itself."""
        ...

    async def __anext__(self) -> WatchEvent:
        """Wait for the next event."""
        ...

    async def aclose(self) -> None:
        """End it: who waits for the next event gets the end of the iteration."""
        ...

    async def __aenter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        ...


@runtime_checkable
class AsyncSupportsWatch(Protocol):
    """A store that tells what changes as it changes."""

    def watch(
        self, workflow_id: str = "", *, after: WatchAfter = None, definition: str | None = None
    ) -> AsyncWatchStream:
        """Follow one workflow, or all of the namespace."""
        ...


@runtime_checkable
class AsyncSupportsDefinitions(Protocol):
    """A store that keeps the manifests that saves bring."""

    async def definition_manifest(self, fingerprint: str) -> str:
        """Read a definition's manifest: JSON text as it was first sent."""
        ...


@runtime_checkable
class AsyncWorkflowStore(
    AsyncSupportsRecords,
    AsyncSupportsLeases,
    AsyncSupportsSignals,
    AsyncSupportsWorkflows,
    AsyncSupportsWatch,
    AsyncSupportsDefinitions,
    Protocol,
):
    """Everything that running workflows takes."""
