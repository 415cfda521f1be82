"""The client as the command line uses it: values come and go as they are stored, undecoded.

A tool that shows what is there must not need the codec of the program that wrote it, and must not change what it
copies. `StoreClient` is the client of the package with one more way to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from milepost import Client, _calls, _compression
from milepost.cli import json_text
from milepost.codecs import JSON
from milepost.errors import DeadlineError, MilepostError, UnavailableError
from milepost.protocols import WatchStream
from milepost.types import (
    After,
    Checkpoint,
    LeaseInfo,
    Saved,
    Signal,
    SignalSent,
    Status,
    WatchAfter,
    WorkflowInfo,
)
from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb

REACH_TIMEOUT_S: Final = 2.0
"""How long a command looks for its server before it says that there is none: one that is just starting is found."""


@dataclass(frozen=True, slots=True)
class StoredValue:
    """The content of one entry or record, as stored, uncompressed."""

    content: bytes = field(repr=False)
    codec: str = "json"
    is_json: bool = True
    """The content is JSON text."""

    @property
    def text(self) -> str:
        """The JSON text."""
        return self.content.decode("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """One record, its value as stored."""

    task_id: str
    index: int
    path: str
    name: str
    value: StoredValue = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """One checkpoint, its values as stored."""

    header: Checkpoint
    """All but state and records."""
    metadata: str = field(default="", repr=False)
    """The JSON text of the metadata; "" where none was saved."""
    entries: Mapping[str, StoredValue] = field(default_factory=dict, repr=False)
    """The state by entry key, in the order of the keys; empty where it was left out."""
    records: Sequence[StoredRecord] = field(default=(), repr=False)


class Store(Protocol):
    """What the commands call; the methods mean what those of `Client` mean."""

    @property
    def namespace(self) -> str:
        """Tenant boundary of every call."""
        ...

    def ping(self) -> None:
        """Return when the server says that it serves."""
        ...

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
        """Read one checkpoint, the head unless told otherwise, with its values as stored."""
        ...

    def list(
        self,
        workflow_id: str,
        *,
        scope: str | None = "",
        newest_first: bool = True,
        limit: int | None = None,
        status: Status | Iterable[Status] | None = None,
        current_step: str | None = None,
        run_id: str | None = None,
        page_size: int | None = None,
    ) -> Iterator[Checkpoint]:
        """Read checkpoints without state or records, a page at a time."""
        ...

    def workflows(
        self,
        *,
        prefix: str = "",
        status: Status | Iterable[Status] | None = None,
        labels: Mapping[str, str] | None = None,
        definition: str | None = None,
        is_leased: bool | None = None,
        has_pending_signals: bool | None = None,
        fingerprint: str | None = None,
        limit: int | None = None,
        page_size: int | None = None,
    ) -> Iterator[WorkflowInfo]:
        """Read the workflows of the namespace, a page at a time."""
        ...

    def workflow(self, workflow_id: str) -> WorkflowInfo:
        """Read what is known of one workflow."""
        ...

    def definition_manifest(self, fingerprint: str) -> str:
        """Read a definition's manifest: JSON text as it was first sent."""
        ...

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
        run_id: str = "",
    ) -> Saved:
        """Store one checkpoint; values of the state are `StoredValue`."""
        ...

    def fork(
        self,
        workflow_id: str,
        new_workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        scope: str = "",
        all_scopes: bool = False,
    ) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint."""
        ...

    def delete(self, workflow_id: str) -> bool:
        """Delete a workflow; return whether there was one."""
        ...

    def delete_checkpoints(
        self, workflow_id: str, checkpoint_ids: Iterable[str] = (), *, run_ids: Iterable[str] = (), scope: str = ""
    ) -> int:
        """Delete checkpoints by id or by run; return how many were deleted."""
        ...

    def prune(self, workflow_id: str, *, keep_last: int = 1, dry_run: bool = False) -> int:
        """Delete old checkpoints; return how many were deleted."""
        ...

    def get_lease(self, workflow_id: str) -> LeaseInfo | None:
        """Read who holds the lease."""
        ...

    def break_lease(self, workflow_id: str) -> bool:
        """Take the lease away from whoever holds it; return whether there was one."""
        ...

    def send_signal(
        self, workflow_id: str, name: str, value: object = None, *, signal_id: str | None = None
    ) -> SignalSent:
        """Send a signal; its value is a `StoredValue`."""
        ...

    def signals(self, workflow_id: str, *, name: str | None = None, page_size: int | None = None) -> Iterator[Signal]:
        """Read the signals that wait; their values are `StoredValue`."""
        ...

    def watch(self, workflow_id: str = "", *, after: WatchAfter = None, definition: str | None = None) -> WatchStream:
        """Follow what changes."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class StoredCodec:
    """Hands JSON values through as `StoredValue`, both ways; anything else is encoded as JSON."""

    @property
    def name(self) -> str:
        """Name stored with every value."""
        return "json"

    def encode(self, value: object, path: str = "$") -> str | bytes:
        """Return the text of a `StoredValue` unchanged."""
        return value.text if isinstance(value, StoredValue) else JSON.encode(value, path)

    def decode(self, content: str | bytes, path: str = "$") -> Any:
        """Return the content as it is."""
        return StoredValue(content.encode("utf-8") if isinstance(content, str) else content)


class StoreClient(Client):
    """A client that reads and writes values as they are stored. Make it with `codec=StoredCodec()`."""

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
        """Read one checkpoint, the head unless told otherwise, with its values as stored.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
            CheckpointNotFoundError: The workflow has no such checkpoint in this scope.
        """
        request = _calls.load_request(
            self.namespace,
            workflow_id,
            checkpoint_id=checkpoint_id,
            sequence=sequence,
            latest_with_status=None,
            scope=scope,
            entries=entries,
            with_state=with_state,
        )
        request.omit_records = not with_records
        return read_stored(self._call(_calls.LOAD, request, self._attempts(None)))

    def require_reachable(self) -> None:
        """Return when something answers at the target, whatever it says.

        Raises:
            UnavailableError: Nothing does, within `REACH_TIMEOUT_S`.
        """
        timeout_s = min(REACH_TIMEOUT_S, self._timeout_s)
        try:
            self.ping(timeout_s=timeout_s)
        except DeadlineError as error:
            raise UnavailableError(f"no answer within {timeout_s:g} s") from error
        except UnavailableError as error:
            # Without a cause it is the server's own word that it does not serve: what it can still do, the command
            # will see. Reading goes on after an I/O fault, for one.
            if error.__cause__ is not None and not error.reason:
                raise
        except MilepostError:
            # It answers; a server without a health service is one, too.
            return


def read_stored(response: pb.LoadResponse) -> StoredCheckpoint:
    """Return the checkpoint of an answer.

    Raises:
        CodecError: A value is compressed in a way that this installation cannot undo, or all are too large then.
    """
    found = response.checkpoint
    _compression.require_bounded(found)
    entries = {key: _read_value(found.state[key], key) for key in sorted(found.state)}
    records = tuple(
        StoredRecord(
            task_id=record.task_id,
            index=record.index,
            path=record.path,
            name=record.name,
            value=_read_value(record.value, f"record({record.task_id!r}, {record.index})"),
        )
        for record in found.records
    )
    found.ClearField("state")
    found.ClearField("records")
    header = _calls.read_checkpoint(found, StoredCodec(), with_state=False, loaded=response)
    return StoredCheckpoint(header=header, metadata=found.metadata, entries=entries, records=records)


def _read_value(value: checkpoint_pb2.Value, path: str) -> StoredValue:
    if value.WhichOneof("content") == "json":
        return StoredValue(value.json.encode("utf-8"))
    content = value.data
    if value.compression == checkpoint_pb2.COMPRESSION_ZSTD:
        content = _compression.decompress(content, path)
    if value.codec == "json" and _is_json(content):
        return StoredValue(content)
    return StoredValue(content, value.codec, is_json=False)


def _is_json(content: bytes) -> bool:
    # The server looks into `json` only: data that calls itself JSON may be anything.
    try:
        json_text.parse(content.decode("utf-8"))
    except ValueError:
        return False
    return True
