"""The operations of the store: what each call does with commands, queries, slices, locks and tokens.

Called by the gRPC layer with requests already checked and translated; knows neither gRPC nor an engine's kind.
Every decision about stored things is made in the commit, by `rules`; here is only what spans more than one commit
or read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple, TypeVar, cast

import msgspec

from milepost_server.answer_pages import Growth, cut_entry_history, cut_list, cut_signals
from milepost_server.config import QueueConfig
from milepost_server.errors import InvalidFieldError, OutcomeUnknownError, StoreError, UnavailableError
from milepost_server.lease_service import LeaseService
from milepost_server.limits import Limits
from milepost_server.locks import Key, KeyedLocks
from milepost_server.model import (
    AbandonForkCommand,
    Answer,
    AppendRecordsAnswer,
    AppendRecordsCommand,
    BulkAnswer,
    Command,
    DefinitionAnswer,
    DeleteIdsCommand,
    DeleteRunCommand,
    DeleteWorkflowAnswer,
    DeleteWorkflowCommand,
    EncodedBatchSaveAnswer,
    EncodedBatchSaveCommand,
    EncodedLoadQuery,
    EncodedSaveAnswer,
    EncodedSaveCommand,
    EntryHistoryAnswer,
    EntryHistoryQuery,
    ForkAnswer,
    ForkCommand,
    ItemKey,
    ListAnswer,
    ListQuery,
    ListSignalsAnswer,
    ListSignalsQuery,
    ListWorkflowsAnswer,
    ListWorkflowsQuery,
    LongLoad,
    PruneCommand,
    SendSignalAnswer,
    SendSignalCommand,
    WorkflowAnswer,
)
from milepost_server.storage.port import Engine
from milepost_server.store_queue import StoreQueue
from milepost_server.tokens import Token, decode_token, encode_token, hash_query
from milepost_server.watch_service import WatchService

_logger = logging.getLogger(__name__)

IDS_PER_SLICE: Final = 250
"""Checkpoints that one transaction of DeleteCheckpoints deletes."""
SLICES_PER_CALL: Final = 16
"""Transactions that one DeleteCheckpoints or PruneWorkflow runs before it answers how far it came."""

_A = TypeVar("_A", bound=Answer)
_T = TypeVar("_T")
_replace = msgspec.structs.replace


class FailedItems(NamedTuple):
    """Items of a batch that have one error together."""

    item_count: int
    error: StoreError


class CheckpointService:
    """What the store can do, for any front.

    Args:
        queue: Runs commands and reads; closed by its owner.
        engine: Is only read from here.
        limits: The same that the engine has.
        config: How many may wait for leases, and watch; how much one commit may take.
    """

    def __init__(
        self,
        queue: StoreQueue,
        engine: Engine,
        *,
        limits: Limits,
        config: QueueConfig,
    ) -> None:
        self.leases = LeaseService(queue, engine, waits_max=config.lease_waits_max)
        self.watches = WatchService(
            queue,
            engine,
            watches_max=config.watches_max,
            events_kept_max=config.watch_events_kept_max,
            events_waiting_max=config.watch_events_waiting_max,
        )
        self._queue = queue
        self._engine = engine
        self._limits = limits
        self._config = config
        self._locks = KeyedLocks()
        self._forks: set[asyncio.Task[ForkAnswer]] = set()

    @property
    def limits(self) -> Limits:
        """The bounds that requests are held to."""
        return self._limits

    def begin_drain(self) -> None:
        """End what would wait longer than a drain should take."""
        self.leases.end_waits()
        self.watches.end_watches()

    async def close(self) -> None:
        """Wait until forks whose callers have gone are thrown away."""
        if self._forks:
            await asyncio.wait(self._forks)

    # Writing.

    async def save(self, body: bytes, *, namespace: str) -> bytes:
        """Store one checkpoint. Cancelling may or may not come before the commit.

        Args:
            body: The request as it came; it is read and checked where it is run.
            namespace: Whose turn it takes in the queue.
        """
        return (await self._run(EncodedSaveCommand(body, len(body)), namespace, EncodedSaveAnswer)).body

    async def batch_save(self, items: Sequence[memoryview], *, namespace: str) -> list[bytes | FailedItems]:
        """Store many checkpoints in order, and return what became of them: encoded results, and what was not run.

        An item that builds on a failed earlier one of the same scope (names it as parent, base or expected head) is
        refused with `PREDECESSOR_FAILED` and not stored. All are run, also when the caller has gone.

        Args:
            items: The encoded Saves; each is read and checked where it is run.
            namespace: Whose turns they take in the queue.

        Raises:
            StoreError: Nothing of the whole call was started.
        """
        return await self._queue.submit_series(
            self._save_slices(items),
            namespace=namespace,
            command_count=len(items),
            size_bytes=sum(map(len, items)),
        )

    async def append_records(self, command: AppendRecordsCommand) -> AppendRecordsAnswer:
        """Append records to a checkpoint id."""
        return await self._run(command, command.namespace, AppendRecordsAnswer)

    async def fork(self, command: ForkCommand) -> ForkAnswer:
        """Make a workflow of another's history. A fork whose caller goes away is thrown away."""
        gone = asyncio.Event()
        task = asyncio.create_task(self._fork_slices(command, gone))
        self._forks.add(task)
        task.add_done_callback(self._forks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The task ends by itself, between two slices, and abandons what it made.
            gone.set()
            task.add_done_callback(_note_end)
            raise

    async def delete_workflow(self, command: DeleteWorkflowCommand) -> DeleteWorkflowAnswer:
        """Delete a workflow. Waits for a fork that is being made of it."""
        async with self._locks.hold(
            shared=[_gate(command.namespace)], exclusive=[(command.namespace, command.workflow_id)]
        ):
            return await self._run(command, command.namespace, DeleteWorkflowAnswer)

    async def delete_ids(self, command: DeleteIdsCommand) -> int:
        """Delete checkpoints by id and return how many there were."""
        deleted = 0
        async with self._locks.hold(
            shared=[_gate(command.namespace)], exclusive=[(command.namespace, command.workflow_id)]
        ):
            for start in range(0, len(command.checkpoint_ids), IDS_PER_SLICE):
                ids = command.checkpoint_ids[start : start + IDS_PER_SLICE]
                answer = await self._run(_replace(command, checkpoint_ids=ids), command.namespace, BulkAnswer)
                deleted += answer.deleted
        return deleted

    async def delete_runs(
        self,
        namespace: str,
        workflow_id: str,
        run_ids: Sequence[str],
        *,
        continue_token: str,
        lease_token: int,
        size_bytes: int,
    ) -> tuple[int, str]:
        """Delete the checkpoints of executions, for a bounded number of commits.

        Returns:
            How many were deleted, and the token with which to go on, "" when done.
        """
        query_hash = hash_query(namespace, workflow_id, list(run_ids))
        number, row_id_end, position = 0, 0, cast("tuple[int, ...]", ())
        if continue_token:
            token = decode_token(
                "continue_token",
                continue_token,
                kind="delete_runs",
                query_hash=query_hash,
                position_lengths=(2, 4),
            )
            number, row_id_end, *after = token.position
            position = tuple(after)
        deleted = 0
        # Deleting in every workflow of the namespace must not take away what any fork is copying.
        shared: list[Key] = [_gate(namespace)] if workflow_id else []
        exclusive: list[Key] = [(namespace, workflow_id)] if workflow_id else [_gate(namespace)]
        async with self._locks.hold(shared=shared, exclusive=exclusive):
            for _ in range(SLICES_PER_CALL):
                if number >= len(run_ids):
                    break
                answer = await self._run(
                    DeleteRunCommand(
                        namespace=namespace,
                        workflow_id=workflow_id,
                        run_id=run_ids[number],
                        position=position,
                        row_id_end=row_id_end,
                        lease_token=lease_token,
                        size_bytes=size_bytes,
                    ),
                    namespace,
                    BulkAnswer,
                )
                deleted += answer.deleted
                row_id_end = answer.row_id_end
                position = answer.position or ()
                if answer.position is None:
                    number += 1
        if number >= len(run_ids):
            return deleted, ""
        token = Token(kind="delete_runs", query_hash=query_hash, position=(number, row_id_end, *position))
        return deleted, encode_token(token)

    async def prune(self, command: PruneCommand, *, continue_token: str) -> tuple[int, str]:
        """Delete what is old in a workflow, for a bounded number of commits.

        Returns:
            How many were deleted (or found, in a dry run), and the token with which to go on, "" when done.
        """
        query_hash = hash_query(command.namespace, command.workflow_id, command.keep_last, command.is_dry_run)
        if continue_token:
            token = decode_token(
                "continue_token", continue_token, kind="prune", query_hash=query_hash, position_lengths=(4, 7)
            )
            command = _replace(command, position=token.position, needs=token.needs)
        deleted = 0
        async with self._locks.hold(
            shared=[_gate(command.namespace)], exclusive=[(command.namespace, command.workflow_id)]
        ):
            for _ in range(SLICES_PER_CALL):
                answer = await self._run(command, command.namespace, BulkAnswer)
                deleted += answer.deleted
                if answer.position is None:
                    return deleted, ""
                command = _replace(command, position=answer.position, needs=answer.needs)
        token = Token(kind="prune", query_hash=query_hash, position=command.position, needs=command.needs)
        return deleted, encode_token(token)

    # Reading.

    async def load(self, body: bytes, *, namespace: str) -> bytes:
        """Read one checkpoint. The request is read and checked where it is run; a namespace is whose turn it takes.

        One that looks for a status does so in turns, each behind the other long reads that wait, until it has found
        one, no checkpoint is left, or its caller has gone.
        """
        query = EncodedLoadQuery(body)
        answer = await self._queue.load(query, namespace=namespace)
        while isinstance(answer, LongLoad):
            answer = await self._queue.load_long(query, answer.position, namespace=namespace)
        return answer.body

    async def get_workflow(self, namespace: str, workflow_id: str) -> WorkflowAnswer:
        """Read one workflow, and the lease that is live."""
        engine = self._engine
        return await self._queue.scan(lambda: engine.get_workflow(namespace, workflow_id), namespace=namespace)

    async def send_signal(self, command: SendSignalCommand) -> SendSignalAnswer:
        """Store a signal."""
        return await self._run(command, command.namespace, SendSignalAnswer)

    async def list_signals(
        self, query: ListSignalsQuery, *, page_token: str, growth: Growth
    ) -> tuple[ListSignalsAnswer, str]:
        """Read one page of pending signals, and return it with the token of the next, "" after the last."""
        query_hash = hash_query(query.namespace, query.workflow_id, query.name)
        if page_token:
            token = decode_token("page_token", page_token, kind="signals", query_hash=query_hash)
            query = _replace(query, incarnation=token.incarnation, after_number=token.position[0])
        engine = self._engine
        answer = await self._queue.scan(lambda: engine.list_signals(query), namespace=query.namespace)
        answer = cut_signals(answer, growth, query.bytes_max)
        if answer.position is None:
            return answer, ""
        token = Token(
            kind="signals",
            query_hash=query_hash,
            position=(answer.position,),
            incarnation=answer.workflow.incarnation,
        )
        return answer, encode_token(token)

    async def get_definition(self, namespace: str, fingerprint: str) -> DefinitionAnswer:
        """Read a definition's manifest."""
        engine = self._engine
        return await self._queue.scan(lambda: engine.get_definition(namespace, fingerprint), namespace=namespace)

    async def list_checkpoints(self, query: ListQuery, *, page_token: str, growth: Growth) -> tuple[ListAnswer, str]:
        """Read one page of a workflow's checkpoints, and return it with the token of the next, "" after the last."""
        query_hash = _hash_list(query)
        if page_token:
            token = decode_token("page_token", page_token, kind="list", query_hash=query_hash)
            query = _replace(
                query,
                incarnation=token.incarnation,
                position=token.position[0],
                sequence_max=token.bound,
            )
        engine = self._engine
        answer = await self._queue.scan(lambda: engine.list_checkpoints(query), namespace=query.namespace)
        answer = cut_list(answer, growth, query.bytes_max)
        if answer.position is None:
            return answer, ""
        token = Token(
            kind="list",
            query_hash=query_hash,
            position=(answer.position,),
            incarnation=answer.workflow.incarnation,
            bound=answer.sequence_max,
        )
        return answer, encode_token(token)

    async def list_workflows(self, query: ListWorkflowsQuery, *, page_token: str) -> tuple[ListWorkflowsAnswer, str]:
        """Read one page of a namespace's workflows, and return it with the token of the next, "" after the last."""
        query_hash = hash_query(
            query.namespace,
            query.prefix,
            sorted(query.statuses),
            sorted(query.labels.items()),
            query.definition,
            query.updated_from_ms,
            query.updated_before_ms,
            query.is_leased,
            query.has_pending_signals,
            query.fingerprint,
        )
        if page_token:
            token = decode_token(
                "page_token", page_token, kind="workflows", query_hash=query_hash, position_lengths=(0,)
            )
            query = _replace(query, after_workflow_id=token.after)
        engine = self._engine
        answer = await self._queue.scan(lambda: engine.list_workflows(query), namespace=query.namespace)
        if answer.after_workflow_id is None:
            return answer, ""
        token = Token(kind="workflows", query_hash=query_hash, after=answer.after_workflow_id)
        return answer, encode_token(token)

    async def entry_history(
        self, query: EntryHistoryQuery, *, page_token: str, growth: Growth
    ) -> tuple[EntryHistoryAnswer, str]:
        """Read one page of what entries were, and return it with the token of the next, "" after the last."""
        query_hash = hash_query(
            query.namespace, query.workflow_id, query.scope, query.checkpoint_id, list(query.entry_keys)
        )
        if page_token:
            token = decode_token("page_token", page_token, kind="history", query_hash=query_hash)
            query = _replace(query, incarnation=token.incarnation, position=token.position[0])
        engine = self._engine
        answer = await self._queue.scan(lambda: engine.entry_history(query), namespace=query.namespace)
        answer = cut_entry_history(answer, growth, query.bytes_max)
        if answer.position is None:
            return answer, ""
        token = Token(
            kind="history",
            query_hash=query_hash,
            position=(answer.position,),
            incarnation=answer.workflow.incarnation,
        )
        return answer, encode_token(token)

    # Steps of the operations above.

    async def _run(self, command: Command, namespace: str, kind: type[_A]) -> _A:
        answer = await self._queue.submit(command, namespace=namespace)
        assert isinstance(answer, kind)
        return answer

    def _save_slices(
        self, items: Sequence[memoryview]
    ) -> Generator[Command, Answer | StoreError, list[bytes | FailedItems]]:
        """Yield the commands of a BatchSave, each of what one commit may take; take in their outcomes."""
        results: list[bytes | FailedItems] = []
        failed: dict[ItemKey, int] = {}
        start = 0
        while start < len(items):
            end = self._slice_end(items, start)
            taken = tuple(map(bytes, items[start:end]))
            outcome = yield EncodedBatchSaveCommand(taken, sum(map(len, taken)), start, failed)
            if isinstance(outcome, StoreError):
                if isinstance(outcome, InvalidFieldError) and start == 0:
                    raise outcome
                # Which ids have failed is not known, so nothing that may build on them is started.
                results += [FailedItems(end - start, outcome), FailedItems(len(items) - end, _not_started(outcome))]
                break
            answer = cast("EncodedBatchSaveAnswer", outcome)
            results.append(answer.body)
            failed = answer.failed
            start = end
        return results

    def _slice_end(self, items: Sequence[memoryview], start: int) -> int:
        """Return where a slice ends: at what one commit may take. An item that is larger is a slice of its own."""
        end_max = min(len(items), start + self._config.batch_commands_max)
        left_bytes = self._config.alone_bytes
        end = start
        while end < end_max and (end == start or len(items[end]) <= left_bytes):
            left_bytes -= len(items[end])
            end += 1
        return end

    async def _fork_slices(self, command: ForkCommand, gone: asyncio.Event) -> ForkAnswer:
        namespace = command.namespace
        async with self._locks.hold(
            shared=[_gate(namespace), (namespace, command.workflow_id)],
            exclusive=[(namespace, command.target_workflow_id)],
        ):
            position: tuple[int, ...] = ()
            try:
                while not gone.is_set():
                    answer = await self._run(_replace(command, position=position), namespace, ForkAnswer)
                    if answer.position is None:
                        return answer
                    position = answer.position
                raise asyncio.CancelledError
            except BaseException:
                if position:
                    await self._abandon_fork(namespace, position[0])
                raise

    async def _abandon_fork(self, namespace: str, target_internal_id: int) -> None:
        try:
            await self._run(AbandonForkCommand(target_internal_id=target_internal_id), namespace, BulkAnswer)
        except StoreError as error:
            # It is invisible, and thrown away at the next start at the latest.
            _logger.warning("an unfinished fork could not be thrown away now: %s", error.message)


def _gate(namespace: str) -> Key:
    """Return the lock that stands for all workflows of a namespace. Sorts before each of them."""
    return (namespace,)


def _not_started(error: StoreError) -> StoreError:
    """Return what is told of the items that would have come after a failure of the whole slice before them."""
    if not isinstance(error, OutcomeUnknownError):
        return error
    return UnavailableError("NOT_SERVING", "the storage failed before this item was started; send the same call again")


def _hash_list(query: ListQuery) -> bytes:
    wanted, selection = query.filter, query.selection
    contains = wanted.metadata_contains
    return hash_query(
        query.namespace,
        query.workflow_id,
        query.scope,
        query.newest_first,
        query.sequence_max,
        sorted(wanted.statuses),
        wanted.current_step,
        wanted.before_checkpoint_id,
        msgspec.json.encode(contains, order="sorted") if contains is not None else None,
        wanted.run_id,
        selection.with_state,
        selection.with_records,
    )


def _note_end(task: asyncio.Task[ForkAnswer]) -> None:
    """Look at the outcome of a fork that nobody waits for, so that only what is unexpected is logged."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, StoreError):
        _logger.error("an abandoned fork ended in an unexpected error", exc_info=error)
