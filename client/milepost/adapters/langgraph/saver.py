"""`MilepostSaver`: the checkpointer that LangGraph calls, for sync and async graphs alike."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, NamedTuple, NoReturn, Self, TypeVar

from google.protobuf.message import Message
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from typing_extensions import override

from milepost import TLS, RetryPolicy, _compression
from milepost._calls import Method
from milepost.adapters.langgraph.connections import Connections
from milepost.adapters.langgraph.exchanges import Exchange, Exchanges
from milepost.adapters.langgraph.exclusive import Exclusive, carries_lease, presented
from milepost.adapters.langgraph.known import KnownCheckpoints
from milepost.adapters.langgraph.listing import Listing
from milepost.adapters.langgraph.put import Fence
from milepost.adapters.langgraph.sizing import LARGE_BYTES, is_large
from milepost.errors import MilepostError

logger = logging.getLogger("milepost.langgraph")
logger.addHandler(logging.NullHandler())

ResultT = TypeVar("ResultT")


class MilepostSaver(BaseCheckpointSaver[str]):
    """Keeps the threads of LangGraph graphs at a milepost server. Safe to share between threads and event loops.

    A thread is a workflow, a checkpoint namespace a scope, a channel an entry, a pending write a record. What was
    acknowledged is on the server's disk. Sync and async methods have connections of their own, opened at the first
    call; neither runs through the other.

    Where LangGraph's contract says "the latest checkpoint", it is the one that was saved last: a clock that was set
    back does not make an old checkpoint the latest.

    The errors are those of `milepost.errors`: for all methods `UnavailableError`, `DeadlineError`, `AuthError` and
    `CapacityError`, and for those that change something `OutcomeUnknownError`. Calls are sent again inside `timeout_s`,
    and nothing is stored twice.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        namespace: str | None = None,
        serde: SerializerProtocol | None = None,
        token: str | None = None,
        tls: TLS | None = None,
        timeout_s: float = 30.0,
        compress_over_bytes: int | None = _compression.COMPRESS_OVER_BYTES,
        retry: RetryPolicy | None = None,
        insecure: bool = False,
    ) -> None:
        """Make a saver. Opens no connection.

        Args:
            target: `host:port` or `unix:PATH`; default: MILEPOST_TARGET, else 127.0.0.1:7450.
            namespace: Tenant boundary; default: MILEPOST_NAMESPACE, else "default".
            serde: Turns values into bytes; default: LangGraph's JsonPlusSerializer. Encryption belongs here: the server
                sees what this makes and the metadata, which is filtered on and never encrypted.
            token: Bearer token; default: the content of the file MILEPOST_TOKEN_FILE.
            tls: How to trust the server; None: no encryption.
            timeout_s: For each call, in seconds, all its attempts included.
            compress_over_bytes: Values larger than this are compressed where that pays and the extra `zstd` is
                installed; None: never.
            retry: When a failed call is sent again.
            insecure: Send a token without `tls` to another machine, because something else encrypts the connection.

        Raises:
            ValueError: An argument does not make sense, or a token would travel in clear text.
        """
        super().__init__(serde=serde)
        self._connections = Connections(
            target,
            {
                "namespace": namespace,
                "token": token,
                "tls": tls,
                "timeout_s": timeout_s,
                "retry": retry,
                "insecure": insecure,
            },
        )
        self._known = KnownCheckpoints()
        self._made = Exchanges(self.namespace, self.serde, self._known, compress_over_bytes)

    @property
    def target(self) -> str:
        """The server's address."""
        return self._connections.target

    @property
    def namespace(self) -> str:
        """Tenant boundary of every call."""
        return self._connections.namespace

    # Storage, blocking.

    @override
    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint durably; the config's checkpoint is its parent. The same id again replaces its content.

        Only channels that the parent is not known to hold are sent.

        Raises:
            CodecError: A channel's value cannot be serialised; names the channel and where in its value.
            LimitExceededError: The checkpoint is too large; names the largest channel. Nothing was stored.
            CheckpointDeletedError: The id was stored before and has been deleted since.
        """
        return self._run(self._exchanges.put(config, checkpoint, metadata, new_versions, self._fence(config)))

    @override
    @carries_lease
    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store durably what a task wrote beside a checkpoint, which may be saved later.

        Of results sent twice the first stays; errors, interrupts and resume values are replaced.

        Raises:
            CodecError: A value cannot be serialised; names its channel.
            LimitExceededError: Too much is written beside one checkpoint; names the largest channel.
        """
        self._run(self._exchanges.put_writes(config, writes, task_id, task_path, self._fence(config)))

    @override
    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Read the config's checkpoint with its pending writes, or the newest; None if it is not there.

        None is never the answer to an outage.
        """
        return self._run(self._exchanges.get_tuple(config))

    @override
    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Read checkpoints, newest first, a page at a time.

        Args:
            config: The thread. Without "checkpoint_ns" all its namespaces; "" is the root alone. None: every thread,
                one after the other, by their ids.
            filter: Only checkpoints whose metadata contains this, nested objects and lists too (PostgreSQL's `@>`).
            before: Only ids that sort before this config's, which need not exist.
            limit: Most checkpoints in all; None: no end.
        """
        listing = Listing(self._exchanges, config, filter, before, limit)
        while (page := self._run(listing.next_page())) is not None:
            yield from page

    @override
    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Read what was written to channels on the line of ancestors since one that stores them, and what it stores."""
        return self._run(self._exchanges.get_delta_channel_history(config, channels))

    @override
    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread with all its namespaces, durably. Not an error where there is none."""
        self._run(self._exchanges.delete_thread(str(thread_id), self._fence_of(str(thread_id))))

    @override
    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that runs saved, with their writes, in every thread and namespace. Not atomic.

        Threads that somebody has taken exclusively are passed over.
        """
        self._run(self._exchanges.delete_for_runs(run_ids))

    @override
    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread whole, as it is at one moment; what is stored is shared, not copied.

        Raises:
            WorkflowExistsError: There is a target thread already.
        """
        self._run(self._exchanges.copy_thread(str(source_thread_id), str(target_thread_id)))

    @override
    def prune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
    ) -> None:
        """Delete old checkpoints of threads. Not atomic; safe beside a run that appends to a thread.

        A checkpoint that stays can be read: ancestors that its DeltaChannels need stay too. The namespace of a
        subgraph's call goes with the root checkpoint it started from.

        Args:
            thread_ids: The threads; those that do not exist are passed over.
            strategy: "keep_latest" keeps the newest checkpoint of each namespace, "delete" nothing.
            keep_last: With "keep_latest": how many to keep in each namespace, at least 1.
        """
        self._run_all(self._prunes(thread_ids, strategy, keep_last))

    # Storage, asyncio.

    @override
    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Do what `put` does."""
        values = checkpoint["channel_values"]
        return await self._arun(
            self._exchanges.put(config, checkpoint, metadata, new_versions, self._fence(config)),
            *(values.get(channel) for channel in new_versions),
        )

    @override
    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Do what `put_writes` does."""
        await self._arun(
            self._exchanges.put_writes(config, writes, task_id, task_path, self._fence(config)),
            *(value for _, value in writes),
        )

    @override
    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Do what `get_tuple` does."""
        return await self._arun(self._exchanges.get_tuple(config))

    @override
    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Do what `list` does."""
        listing = Listing(self._exchanges, config, filter, before, limit)
        while (page := await self._arun(listing.next_page())) is not None:
            for found in page:
                yield found

    @override
    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Do what `get_delta_channel_history` does."""
        return await self._arun(self._exchanges.get_delta_channel_history(config, channels))

    @override
    async def adelete_thread(self, thread_id: str) -> None:
        """Do what `delete_thread` does."""
        await self._arun(self._exchanges.delete_thread(str(thread_id), self._fence_of(str(thread_id))))

    @override
    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do what `delete_for_runs` does."""
        await self._arun(self._exchanges.delete_for_runs(run_ids))

    @override
    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Do what `copy_thread` does."""
        await self._arun(self._exchanges.copy_thread(str(source_thread_id), str(target_thread_id)))

    @override
    async def aprune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
    ) -> None:
        """Do what `prune` does."""
        for exchange in self._prunes(thread_ids, strategy, keep_last):
            await self._arun(exchange)

    # One writer.

    def exclusive(
        self,
        thread_id: str,
        *,
        wait_s: float = 0.0,
        ttl_s: float = 30.0,
        holder: str | None = None,
        allow_forks: bool = False,
    ) -> Exclusive:
        """Return the exclusive right to advance a thread, for a `with` or an `async with` block around its runs.

        Whatever the block's graphs save presents it, also in the background; it renews itself. While it is held,
        nobody else can save to the thread or delete it: they get a LeaseHeldError that names the holder. A process
        that was cut off and overtaken gets a LeaseLostError, and nothing of it is stored.

        Args:
            thread_id: The thread; need not exist yet.
            wait_s: How long to wait while somebody else holds it, at most 60 seconds; then the block raises
                LeaseHeldError.
            ttl_s: How long it outlives this process, 1 to 3,600 seconds.
            holder: Who takes it, a label for people; default: `host:pid`.
            allow_forks: Also save behind a checkpoint that is not the newest of its namespace: time travel, forks and
                copies. Without it that is a HeadMovedError, so that a run on an old config cannot branch unnoticed.
        """
        return Exclusive(
            self._connections,
            str(thread_id),
            ttl_s=ttl_s,
            wait_s=wait_s,
            holder=holder,
            allow_forks=allow_forks,
        )

    # What LangGraph asks without storage.

    @override
    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version above `current` that no other put of the channel was given, also on another fork.

        The format is that of LangGraph's own savers, so threads can be moved here and back.
        """
        number = 0 if current is None else int(str(current).partition(".")[0])
        # From the operating system: a generator's state would be shared by processes forked from this one.
        return f"{number + 1:032}.{secrets.randbelow(10**16):016}"

    # Opening and closing.

    def close(self) -> None:
        """Close the connections of the sync methods."""
        self._connections.blocking.close()

    async def aclose(self) -> None:
        """Close the connections of the async methods on this event loop, and those of the sync ones."""
        await self._connections.asyncio.close()
        self._connections.blocking.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r}, namespace={self.namespace!r})"

    @override
    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds connections and cannot be pickled: make one in each process")

    def __copy__(self) -> Self:
        # LangGraph copies a saver to give it another serializer. The copy shares the connections, which __reduce__
        # would not let it.
        clone = type(self).__new__(type(self))
        clone.__dict__.update(self.__dict__)
        return clone

    # Running exchanges.

    @property
    def _exchanges(self) -> Exchanges:
        made = self._made
        if made.serde is not self.serde:
            # LangGraph gives a copy another serializer by setting the attribute.
            made = self._made = replace(made, serde=self.serde)
        return made

    def _fence(self, config: RunnableConfig) -> Fence:
        return self._fence_of(str(config["configurable"]["thread_id"]))

    def _fence_of(self, thread_id: str) -> Fence:
        return presented(self._connections, thread_id)

    def _prunes(self, thread_ids: Sequence[str], strategy: str, keep_last: int | None) -> Iterator[Exchange[None]]:
        if isinstance(thread_ids, str):
            raise TypeError("thread_ids is a list of thread ids, not one string")
        if strategy not in {"keep_latest", "delete"}:
            raise ValueError(f"strategy is 'keep_latest' or 'delete', not {strategy!r}")
        if keep_last is not None and (strategy == "delete" or keep_last < 1):
            raise ValueError("keep_last is at least 1 and belongs to the strategy 'keep_latest'")
        for thread_id in map(str, thread_ids):
            if strategy == "delete":
                yield self._exchanges.delete_thread(thread_id, self._fence_of(thread_id))
            else:
                yield self._exchanges.prune(thread_id, keep_last or 1, self._fence_of(thread_id))

    def _run_all(self, exchanges: Iterator[Exchange[None]]) -> None:
        for exchange in exchanges:
            self._run(exchange)

    def _run(self, exchange: Exchange[ResultT]) -> ResultT:
        """Run one exchange over the blocking connection."""
        send = self._connections.blocking.send
        step = _advance(exchange, None)
        while not isinstance(step, _Result):
            try:
                answer: Message | MilepostError = send(*step)
            except MilepostError as error:
                answer = error
            step = _advance(exchange, answer)
        result: ResultT = step.value
        return result

    async def _arun(self, exchange: Exchange[ResultT], *values: object) -> ResultT:
        """Run one exchange over the connection of the running event loop; what is large is not turned into bytes there.

        Args:
            exchange: What to run.
            values: What it serialises.
        """
        send = self._connections.asyncio.send
        sends_much = is_large(values)
        step = await _advance_beside(exchange, None) if sends_much else _advance(exchange, None)
        while not isinstance(step, _Result):
            try:
                answer: Message | MilepostError = await send(*step)
            except MilepostError as error:
                answer = error
            # What is refused because its base is gone is serialised once more, in full.
            if answer.ByteSize() > LARGE_BYTES if isinstance(answer, Message) else sends_much:
                step = await _advance_beside(exchange, answer)
            else:
                step = _advance(exchange, answer)
        result: ResultT = step.value
        return result


class _Result(NamedTuple, Generic[ResultT]):
    """The end of an exchange."""

    value: ResultT


def _advance(
    exchange: Exchange[ResultT], answer: Message | MilepostError | None
) -> tuple[Method[Any], Message] | _Result[ResultT]:
    """Hand an exchange an answer; return what it asks next, or its result."""
    try:
        return exchange.throw(answer) if isinstance(answer, MilepostError) else exchange.send(answer)
    except StopIteration as end:
        return _Result(end.value)


async def _advance_beside(
    exchange: Exchange[ResultT], answer: Message | MilepostError | None
) -> tuple[Method[Any], Message] | _Result[ResultT]:
    """Do that in a thread. Compressing lets go of the interpreter's lock, and so does hashing."""
    return await asyncio.to_thread(_advance, exchange, answer)
