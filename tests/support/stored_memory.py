"""An in-memory store that the command line can read: values as they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from milepost import JSON, Codec, InMemoryStore
from milepost.cli.store import StoredCheckpoint, StoredCodec, StoredRecord, StoredValue


class MemoryStore(InMemoryStore):
    """The in-memory store, with values as they are stored. With `codec=JSON` programs can use it meanwhile."""

    def __init__(
        self, clock: Callable[[], datetime] = lambda: datetime.now(UTC), *, codec: Codec | None = None
    ) -> None:
        super().__init__(codec=codec or StoredCodec(), clock=clock)

    def load_stored(
        self,
        workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        sequence: int | None = None,
        scope: str = "",
        entries: Iterable[str] | None = None,
        with_state: bool = True,
        with_records: bool = True,
    ) -> StoredCheckpoint:
        found = self.load(
            workflow_id,
            checkpoint_id=checkpoint_id,
            sequence=sequence,
            scope=scope,
            entries=entries,
            with_state=with_state,
        )
        return StoredCheckpoint(
            header=found,
            metadata=json.dumps(dict(found.metadata)) if found.metadata else "",
            entries={key: stored(value) for key, value in found.state.items()} if with_state else {},
            records=[
                StoredRecord(task_id=r.task_id, index=r.index, path=r.path, name=r.name, value=stored(r.value))
                for r in (found.records if with_records else ())
            ],
        )


def stored(value: Any) -> StoredValue:
    """Return a value as JSON text, where it is not stored text already."""
    if isinstance(value, StoredValue):
        return value
    text = JSON.encode(value)
    return StoredValue(text.encode() if isinstance(text, str) else text)
