"""What each method of the saver asks the server and makes of the answers, without sending anything.

An exchange is a generator: it yields (method, request), is sent the response or thrown the error, and returns what the
method returns. The saver's blocking and asyncio methods run the same exchanges.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar, cast

from google.protobuf.message import Message
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from milepost import _calls, _compression
from milepost._calls import Method
from milepost._failures import ids_of
from milepost._texts import build, require_unicode
from milepost.adapters.langgraph import encoding
from milepost.adapters.langgraph.addresses import Address
from milepost.adapters.langgraph.encoding import HEADER_KEY, Encoded
from milepost.adapters.langgraph.known import KnownChannel, KnownCheckpoint, KnownCheckpoints
from milepost.adapters.langgraph.put import NO_FENCE, Fence, PutDraft, is_given_once
from milepost.adapters.langgraph.walks import DeltaWalk
from milepost.errors import (
    BaseNotFoundError,
    LeaseHeldError,
    LimitExceededError,
    MilepostError,
    NotFoundError,
    WorkflowNotFoundError,
)
from milepost.types import new_checkpoint_id
from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb

ResultT = TypeVar("ResultT")
Exchange: TypeAlias = Generator[tuple[Method[Any], Message], Any, ResultT]

PAGE_SIZE_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Exchanges:
    """The exchanges of one saver."""

    namespace: str
    serde: SerializerProtocol
    known: KnownCheckpoints
    compress_over_bytes: int | None

    # Writing.

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        fence: Fence = NO_FENCE,
    ) -> Exchange[RunnableConfig]:
        """Store a checkpoint: one Save, of what its base is not known to hold."""
        address = Address.of(config)
        scope = (address.thread_id, address.scope)
        draft = PutDraft(
            address,
            config,
            checkpoint,
            metadata,
            new_versions,
            namespace=self.namespace,
            serde=self.serde,
            compress_over_bytes=self.compress_over_bytes,
            base=self.known.recall(scope, address.checkpoint_id),
            fence=fence,
        )
        try:
            try:
                response = yield _calls.SAVE, draft.request
            except BaseNotFoundError:
                if not draft.is_incremental:
                    raise
                self.known.forget(scope, draft.request.base_checkpoint_id)
                response = yield _calls.SAVE, draft.in_full()
        except LimitExceededError as error:
            raise _naming_largest(error, draft.sizes) from error
        self.known.remember(scope, draft.known(response))
        return address.config(checkpoint["id"])

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
        fence: Fence = NO_FENCE,
    ) -> Exchange[None]:
        """Store what a task wrote: one AppendRecords, also before the checkpoint is there."""
        if not writes:
            return
        address = Address.of(config)
        sizes: dict[str, int] = {}
        request = build(
            pb.AppendRecordsRequest,
            namespace=self.namespace,
            workflow_id=address.thread_id,
            scope=address.scope,
            checkpoint_id=address.checkpoint_id,
            lease_token=fence.lease_token,
        )
        where = f"thread {address.thread_id!r}, what task {task_id!r} writes"
        # Special writes have one place each. Of two in a list, as a node's second answer makes them, the last counts.
        placed = {WRITES_IDX_MAP.get(channel, place): (channel, value) for place, (channel, value) in enumerate(writes)}
        ids = ids_of(request)
        require_unicode("task_id", task_id, **ids)
        require_unicode("task_path", task_path, **ids)
        for index, (channel, value) in placed.items():
            require_unicode("channel", channel, **ids)
            encoded = encoding.encode(self.serde, value, where, channel, self.compress_over_bytes)
            sizes[channel] = sizes.get(channel, 0) + encoded.size_bytes
            record = request.records.add(
                task_id=task_id,
                index=index,
                path=task_path,
                name=channel,
                # Each write by itself: one list may hold results, of which the first wins, and a resume value.
                overwrite=index < 0,
            )
            encoded.write_to(record.value)
        try:
            yield _calls.APPEND_RECORDS, request
        except LimitExceededError as error:
            raise _naming_largest(error, sizes) from error

    # Reading.

    def get_tuple(self, config: RunnableConfig) -> Exchange[CheckpointTuple | None]:
        """Read a checkpoint: one Load."""
        address = Address.of(config)
        found = yield from self.load(address)
        if found is None:
            return None
        result = self.read(found)
        self.known.remember((address.thread_id, address.scope), _known(found, result.checkpoint))
        return result

    def get_delta_channel_history(
        self, config: RunnableConfig, channels: Sequence[str]
    ) -> Exchange[Mapping[str, DeltaChannelHistory]]:
        """Read what was written to channels since the nearest ancestor that stores them, and what that stores.

        One List for each page of ancestors, which carries their writes and no state, and one Load for each ancestor
        where a channel is found stored: one, as a rule. Where the target is not known, which it is when it was just
        loaded, there is a Load before; where a channel is met that is not stored and has no need of ancestors, its
        history is asked for, so that the ancestors need not be tried one by one.
        """
        walk = DeltaWalk(channels)
        address = Address.of(config)
        if not channels:
            return walk.result()
        target = self.known.exactly((address.thread_id, address.scope), address.checkpoint_id)
        if target is None:
            loaded = yield from self.load(address, with_state=False, with_records=False)
            if loaded is None:
                return walk.result()
            sequence, parent_id = loaded.sequence, "" if loaded.parent_pruned else loaded.parent_id
        else:
            sequence, parent_id = target.sequence, target.parent_id
        # At the target's parent: what is beside the target belongs to the step after it.
        walk.start(parent_id)
        request = build(
            pb.ListRequest,
            namespace=self.namespace,
            workflow_id=address.thread_id,
            scope=address.scope,
            page_size=PAGE_SIZE_MAX,
            before_sequence=sequence,
            include_records=True,
            accept_compression=_compression.accepted(),
        )
        while walk.goes_on():
            response = yield _calls.LIST, request
            for ancestor in walk.ancestors(response.checkpoints):
                _compression.require_bounded(ancestor)
                writes = self._writes(ancestor, walk.remaining)
                asked = walk.maybe_stored(ancestor)
                stored = yield from self._stored(ancestor, asked)
                if absent := [channel for channel in asked if channel not in stored]:
                    walk.skip_until(absent, (yield from self._removals(ancestor, absent)))
                walk.visit(ancestor, stored, writes)
                if not walk.goes_on():
                    break
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        return walk.result()

    def _stored(self, found: checkpoint_pb2.Checkpoint, channels: Sequence[str]) -> Exchange[dict[str, Any]]:
        """Read those of some channels that a checkpoint stores."""
        if not channels:
            return {}
        keys = {encoding.entry_key(channel): channel for channel in channels}
        at = Address(found.workflow_id, found.scope, found.checkpoint_id)
        loaded = yield from self.load(at, entry_keys=list(keys), with_records=False)
        if loaded is None:
            return {}
        _compression.require_bounded(loaded)
        return {
            channel: encoding.decode(self.serde, loaded.state[key], _where(found), channel)
            for key, channel in keys.items()
            if key in loaded.state
        }

    def _removals(self, found: checkpoint_pb2.Checkpoint, channels: Sequence[str]) -> Exchange[dict[str, str]]:
        """Find where channels that a checkpoint does not store lost their value; one that never had any is left out."""
        removals: dict[str, str] = {}
        request = build(
            pb.GetEntryHistoryRequest,
            namespace=self.namespace,
            workflow_id=found.workflow_id,
            scope=found.scope,
            checkpoint_id=found.checkpoint_id,
            entry_keys=[encoding.entry_key(channel) for channel in channels],
            accept_compression=_compression.accepted(),
        )
        while True:
            response = yield _calls.GET_ENTRY_HISTORY, request
            for version in response.versions:
                removals.setdefault(encoding.channel_name(version.entry_key), version.checkpoint_id)
            if len(removals) == len(channels) or not response.next_page_token:
                return removals
            request.page_token = response.next_page_token

    # Deleting and copying.

    def delete_thread(self, thread_id: str, fence: Fence = NO_FENCE) -> Exchange[None]:
        """Delete a thread with all its namespaces: one DeleteWorkflow."""
        request = build(
            pb.DeleteWorkflowRequest, namespace=self.namespace, workflow_id=thread_id, lease_token=fence.lease_token
        )
        yield _calls.DELETE_WORKFLOW, request
        self.known.forget_thread(thread_id)

    def delete_for_runs(self, run_ids: Iterable[str]) -> Exchange[None]:
        """Delete the checkpoints of runs in every thread: one DeleteCheckpoints for 100 runs, repeated until done."""
        wanted = [str(run_id) for run_id in run_ids]
        for start in range(0, len(wanted), _calls.RUNS_MAX):
            request = build(
                pb.DeleteCheckpointsRequest, namespace=self.namespace, run_ids=wanted[start : start + _calls.RUNS_MAX]
            )
            yield from _until_done(_calls.DELETE_CHECKPOINTS, request)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> Exchange[None]:
        """Copy a thread as it is at one moment: a List of its newest checkpoint, and a fork of all up to that."""
        listing = build(pb.ListRequest, namespace=self.namespace, workflow_id=source_thread_id, page_size=1)
        try:
            response = yield _calls.LIST, listing
        except WorkflowNotFoundError:
            return
        if not response.checkpoints:
            return
        newest = response.checkpoints[0]
        fork = build(
            pb.ForkWorkflowRequest,
            namespace=self.namespace,
            workflow_id=source_thread_id,
            scope=newest.scope,
            checkpoint_id=newest.checkpoint_id,
            target_workflow_id=target_thread_id,
            mode=pb.FORK_MODE_ALL_UP_TO,
            fork_id=new_checkpoint_id(),
        )
        yield _calls.FORK_WORKFLOW, fork

    def prune(self, thread_id: str, keep_last: int, fence: Fence = NO_FENCE) -> Exchange[None]:
        """Delete a thread's old checkpoints, and the namespaces of subgraph calls that started from one of these."""
        before = yield from self._roots_and_calls(thread_id)
        request = build(pb.PruneWorkflowRequest, namespace=self.namespace, workflow_id=thread_id, keep_last=keep_last)
        try:
            yield from _until_done(_calls.PRUNE_WORKFLOW, request)
        except WorkflowNotFoundError:
            return
        if not before.calls:
            return
        after = yield from self._roots_and_calls(thread_id)
        for scope in after.calls_without_root(before):
            checkpoint_ids = after.calls[scope]
            for start in range(0, len(checkpoint_ids), _calls.ITEMS_MAX):
                deletion = build(
                    pb.DeleteCheckpointsRequest,
                    namespace=self.namespace,
                    workflow_id=thread_id,
                    scope=scope,
                    checkpoint_ids=checkpoint_ids[start : start + _calls.ITEMS_MAX],
                    lease_token=fence.lease_token,
                )
                try:
                    yield from _until_done(_calls.DELETE_CHECKPOINTS, deletion)
                except LeaseHeldError:
                    # Somebody advances the thread. The next time will do.
                    return

    # Steps of the above.

    def load(
        self,
        address: Address,
        *,
        entry_keys: Sequence[str] = (),
        with_state: bool = True,
        with_records: bool = True,
    ) -> Exchange[checkpoint_pb2.Checkpoint | None]:
        """Load one checkpoint, the newest where the address names none; None where there is none."""
        request = build(
            pb.LoadRequest,
            namespace=self.namespace,
            workflow_id=address.thread_id,
            scope=address.scope,
            checkpoint_id=address.checkpoint_id or None,
            entry_keys=entry_keys,
            omit_state=not with_state,
            omit_records=not with_records,
            accept_compression=_compression.accepted(),
        )
        try:
            response = yield _calls.LOAD, request
        except NotFoundError:
            return None
        return cast("checkpoint_pb2.Checkpoint", response.checkpoint)

    def read(self, found: checkpoint_pb2.Checkpoint) -> CheckpointTuple:
        """Return a checkpoint, loaded with state and records, as LangGraph sees it."""
        _compression.require_bounded(found)
        header, where, state = self._header(found), _where(found), found.state
        values = {
            (channel := encoding.channel_name(key)): encoding.decode(self.serde, state[key], where, channel)
            for key in sorted(state)
            if key != HEADER_KEY
        }
        metadata = header.get("metadata")
        if metadata is None:
            metadata = json.loads(found.metadata) if found.metadata else {}
        address = Address(found.workflow_id, found.scope, found.checkpoint_id)
        # A parent that was pruned cannot be read, and LangGraph takes one that it is told of as there.
        has_parent = found.parent_id and not found.parent_pruned
        return CheckpointTuple(
            config=address.config(found.checkpoint_id),
            checkpoint=cast("Checkpoint", {**header["checkpoint"], "channel_values": values}),
            metadata=cast("CheckpointMetadata", metadata),
            parent_config=address.config(found.parent_id) if has_parent else None,
            pending_writes=self._writes(found),
        )

    def _header(self, found: checkpoint_pb2.Checkpoint) -> dict[str, Any]:
        if HEADER_KEY not in found.state:
            raise MilepostError(
                f"{_where(found)} was not saved by LangGraph: it has no entry {HEADER_KEY!r}. Keep threads and other "
                "workflows apart, by their ids or in namespaces of their own.",
                namespace=found.namespace,
                workflow_id=found.workflow_id,
                scope=found.scope,
                checkpoint_id=found.checkpoint_id,
            )
        header: dict[str, Any] = encoding.decode(self.serde, found.state[HEADER_KEY], _where(found), HEADER_KEY)
        return header

    def _writes(self, found: checkpoint_pb2.Checkpoint, channels: Iterable[str] | None = None) -> list[PendingWrite]:
        """Return the writes beside a checkpoint, in the server's order: (path, task_id, index)."""
        wanted = None if channels is None else frozenset(channels)
        where = f"{_where(found)}, what a task wrote"
        return [
            (record.task_id, record.name, encoding.decode(self.serde, record.value, where, record.name))
            for record in found.records
            if wanted is None or record.name in wanted
        ]

    def _roots_and_calls(self, thread_id: str) -> Exchange[RootsAndCalls]:
        """Read which root checkpoints and which calls of subgraphs a thread has."""
        found = RootsAndCalls()
        request = build(pb.ListRequest, namespace=self.namespace, workflow_id=thread_id, page_size=PAGE_SIZE_MAX)
        while True:
            try:
                response = yield _calls.LIST, request
            except WorkflowNotFoundError:
                return found
            for checkpoint in response.checkpoints:
                found.add(checkpoint)
            if not response.next_page_token:
                return found
            request.page_token = response.next_page_token


class RootsAndCalls:
    """The root checkpoints of a thread, and its subgraphs' calls.

    Each call of a subgraph has a namespace of its own, "node:task id", to which nothing is saved once it is over. Kept
    for ever, their heads would pile up. A subgraph that keeps its state between calls has a namespace without a task.
    """

    def __init__(self) -> None:
        self.roots: set[str] = set()
        self.calls: dict[str, list[str]] = {}
        self.started_from: dict[str, str] = {}

    def add(self, found: checkpoint_pb2.Checkpoint) -> None:
        """Take note of one checkpoint, listed newest first."""
        if not found.scope:
            self.roots.add(found.checkpoint_id)
        elif ":" in found.scope:
            self.calls.setdefault(found.scope, []).append(found.checkpoint_id)
            if found.scope not in self.started_from:
                parents = json.loads(found.metadata).get("parents") if found.metadata else None
                root = parents.get("") if isinstance(parents, dict) else None
                self.started_from[found.scope] = root if isinstance(root, str) else ""

    def calls_without_root(self, before: RootsAndCalls) -> list[str]:
        """Return the calls whose root checkpoint went between two looks, or earlier.

        One that was never there may be yet to come, since a call saves in the background and can be there first. Ids
        rise with time, so it is not older than all that are there.
        """
        pruned, oldest = before.roots - self.roots, min(self.roots, default="")
        return [
            scope
            for scope in self.calls
            if (root := self.started_from[scope]) and (root in pruned or (root not in self.roots and root < oldest))
        ]


def _known(found: checkpoint_pb2.Checkpoint, checkpoint: Checkpoint) -> KnownCheckpoint:
    """Return what is known of a checkpoint that was loaded."""
    versions = checkpoint["channel_versions"]
    channels: dict[str, KnownChannel] = {}
    for key, value in found.state.items():
        if key != HEADER_KEY:
            channel = encoding.channel_name(key)
            version = versions.get(channel)
            # Where the version will do as proof, the bytes are not worth another look.
            digest = b"" if is_given_once(version) else Encoded.of(value).digest
            channels[channel] = KnownChannel(version, digest)
    # A copy: LangGraph goes on with the checkpoint that it was handed, and changes this in place.
    seen = {node: dict(versions) for node, versions in checkpoint["versions_seen"].items()}
    parent_id = "" if found.parent_pruned else found.parent_id
    return KnownCheckpoint(found.checkpoint_id, found.digest, channels, seen, found.sequence, parent_id)


def _where(found: checkpoint_pb2.Checkpoint) -> str:
    return f"thread {found.workflow_id!r}, checkpoint {found.checkpoint_id!r}"


def _until_done(method: Method[Any], request: Any) -> Exchange[None]:
    """Repeat a call of bounded steps until nothing is left."""
    while True:
        response = yield method, request
        if response.done:
            return
        request.continue_token = response.continue_token


def _naming_largest(error: LimitExceededError, sizes: Mapping[str, int]) -> LimitExceededError:
    """Return the same refusal with the channel that has most to do with it."""
    if not sizes:
        return error
    channel = max(sizes, key=lambda each: sizes[each])
    return LimitExceededError(
        f"{error.message} The largest channel is {channel!r} with {sizes[channel]} bytes as serialized.",
        reason=error.reason,
        namespace=error.namespace,
        workflow_id=error.workflow_id,
        scope=error.scope,
        checkpoint_id=error.checkpoint_id,
        metadata={**error.metadata, "channel": channel},
    )
