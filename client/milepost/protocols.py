"""What a store of checkpoints can do, for code that should not care which one it has.

`Client` and `InMemoryStore` are a `CheckpointStore`; `AsyncClient` and `AsyncInMemoryStore` an `AsyncCheckpointStore`.
`isinstance` looks at the names of the methods alone; a type checker looks at everything.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from milepost.types import After, Checkpoint, Record, RecordOutcome, Saved, Status

__all__ = ["AsyncCheckpointStore", "AsyncSupportsRecords", "CheckpointStore", "SupportsRecords"]


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
    ) -> builtins.list[RecordOutcome]:
        """Append records to a checkpoint, also before that checkpoint exists."""
        ...
