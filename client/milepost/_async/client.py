"""The client: one method for each operation, and one place, `_call`, through which everything is sent.

What is sent and what an answer means is decided in `_calls`, what follows a failure in `_retry`. Here is only what has
to wait: channels, attempts, pages.
"""

from __future__ import annotations

import builtins
import logging
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from typing_extensions import override

from milepost import _calls, _compression, _config, _failures, _lease_calls, _signal_calls, _telemetry, _watch
from milepost._async import _compat
from milepost._async.lease import AsyncLease
from milepost._async.watch import AsyncWatch
from milepost._batch import SaveAll
from milepost._calls import Method
from milepost._config import TLS
from milepost._leases import RELEASE_S, TTL_S, default_holder
from milepost._retry import NO_TIME_LEFT, Attempts, Failure, RetryPolicy
from milepost._save_draft import SaveDraft
from milepost._state import DigestMemory
from milepost._texts import build
from milepost.codecs import JSON, Codec
from milepost.errors import BaseNotFoundError, ClientForkedError, LeaseHeldError, MilepostError, UnavailableError
from milepost.types import (
    After,
    Checkpoint,
    EntryVersion,
    LeaseInfo,
    LeaseRenewal,
    Record,
    RecordOutcome,
    Saved,
    SaveItem,
    Signal,
    SignalSent,
    Status,
    WatchAfter,
    WorkflowInfo,
    new_checkpoint_id,
)
from milepost.v1 import checkpoint_store_pb2 as pb

logger = logging.getLogger("milepost.client")
logger.addHandler(logging.NullHandler())

TIMEOUT_S_MAX: Final = 10**9
"""Most seconds of a call: some 30 years. gRPC overflows above, and takes an endless time for one that is over."""

T = TypeVar("T")
ResponseT = TypeVar("ResponseT")


class AsyncClient:
    """Saves and loads checkpoints at a milepost server. Safe to share; makes no connection before its first call.

    Every call has a timeout and is sent again inside it when the server is unreachable or overloaded, always with the
    same ids, so that nothing is stored twice. What was acknowledged is on the server's disk.

    Errors common to all calls: `UnavailableError`, `DeadlineError`, `AuthError`, `CapacityError`, `InternalError`, and
    for calls that change something `OutcomeUnknownError`, where an answer was lost and the time is over.

    A client that was used cannot be used in a process forked later; one that was not, can.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        namespace: str | None = None,
        token: str | None = None,
        tls: TLS | None = None,
        timeout_s: float = 30.0,
        codec: Codec = JSON,
        compress_over_bytes: int | None = _compression.COMPRESS_OVER_BYTES,
        retry: RetryPolicy | None = None,
        interceptors: Sequence[_compat.Interceptor] = (),
        instrument: bool | None = None,
        insecure: bool = False,
    ) -> None:
        """Make a client.

        Args:
            target: `host:port` or `unix:PATH`; default: MILEPOST_TARGET, else 127.0.0.1:7450.
            namespace: Tenant boundary of every call; default: MILEPOST_NAMESPACE, else "default".
            token: Bearer token; default: the content of the file MILEPOST_TOKEN_FILE, read again when it changes.
            tls: How to trust the server; None: no encryption.
            timeout_s: For each call that is not given its own, in seconds, all its attempts included.
            codec: How values are encoded.
            compress_over_bytes: Values larger than this are compressed where that pays and the extra `zstd` is
                installed; None: never.
            retry: When a failed call is sent again.
            interceptors: gRPC interceptors, outermost first. A runner's heartbeats pass through them too, in a thread
                of their own and, where they are asyncio's, on an event loop of that thread: what they keep for a loop,
                such as a lock or a session, has to be kept for each.
            instrument: Trace calls with OpenTelemetry; None: if the extra `otel` is installed and configured.
            insecure: Send a token without `tls` to another machine, because something else encrypts the connection.

        Raises:
            ValueError: An argument does not make sense, or a token would travel in clear text.
        """
        _check_timeout(timeout_s)
        self._endpoint = _config.resolve(target, namespace, token, tls, insecure=insecure)
        self._namespace = self._endpoint.namespace
        self._token = self._endpoint.token
        self._timeout_s = timeout_s
        self._codec = codec
        self._compress_over_bytes = compress_over_bytes
        self._retry = retry or RetryPolicy()
        self._interceptors = tuple(interceptors)
        self._instrument = instrument
        self._digests = DigestMemory()
        # Tests put their own in place of these.
        self._clock: Callable[[], float] = time.monotonic
        self._random: Callable[[], float] = random.random
        self._sleep = _compat.sleep
        # Guards the three below; held for moments only, never while waiting.
        self._lock = threading.Lock()
        self._connections: dict[_compat.Home, _Connection] = {}
        self._owner_pid: int | None = None
        self._is_closed = False

    @property
    def target(self) -> str:
        """The server's address."""
        return self._endpoint.target

    @property
    def namespace(self) -> str:
        """Tenant boundary of every call."""
        return self._namespace

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
        timeout_s: float | None = None,
    ) -> Saved:
        """Store one checkpoint: when this returns it is on the server's disk, once, however often it was sent.

        Only what changed since `after` travels, where the client knows it; the stored checkpoint is whole either way.

        Args:
            workflow_id: The run; its first save creates it. At most 1,024 bytes.
            state: The whole state, by entry; at most 10,000 entries, 16 MiB a call.
            current_step: The step that is finished with this checkpoint; "" at the start.
            after: The checkpoint this one follows. It is stored only if that is still the head: if somebody else saved
                in between, HeadMovedError. "start": it must be the first. None: an unconditional append to whatever
                is the head, which overtakes other writers silently.
            checkpoint_id: Unique in (workflow, scope); default: a new UUIDv7. Give your own to make a save repeatable
                beyond this call.
            status: Where the workflow stands.
            metadata: Small JSON for filters and people; at most 64 KiB.
            scope: A nested run inside the workflow; "" is the root.
            completed_steps: Steps finished since the checkpoint before this one, in order.
            labels: Replace the workflow's labels, if given; at most 16.
            definition: Name of the workflow's definition; the first one binds the workflow to it.
            fingerprint: Digest of that definition's manifest.
            run_id: The execution that saves.
            records: Stored with the checkpoint, at the same moment.
            history_entries: Entries whose meaning needs ancestors, which pruning then keeps.
            replace: Put this content in the place of what the checkpoint_id holds, if it holds other content.
            lease_token: The token of the workflow's lease, which this save renews. While a lease is live, nothing is
                saved without it.
            release_lease: Release that lease with this save.
            consumed_signals: Ids of signals that this checkpoint has taken in; they are pending no more. At most 1,000.
            manifest: The definition's manifest, JSON text whose SHA-256 in hexadecimal is `fingerprint`; at most 1 MiB.
                It is stored once, so only the first save under a fingerprint needs it.
            timeout_s: For the whole call, in seconds; default: the client's.

        Raises:
            HeadMovedError: `after` is not the head any more; it names the real one.
            LeaseHeldError: Somebody else's lease is live, and no token was given.
            LeaseLostError: The token is not that of the newest lease. Nothing was stored; stop.
            CheckpointExistsError: The id is taken by other content.
            CheckpointDeletedError: The id was stored before and has been deleted since.
            LimitExceededError: Something is too large; nothing was stored.
            CodecError: A value has no exact encoded form.
            OutcomeUnknownError: It may or may not be stored. Save again with its `checkpoint_id` to learn which.
        """
        item = SaveItem(
            workflow_id=workflow_id,
            state=state,
            current_step=current_step,
            after=after,
            checkpoint_id=new_checkpoint_id() if checkpoint_id is None else checkpoint_id,
            status=status,
            metadata=metadata,
            scope=scope,
            completed_steps=completed_steps,
            labels=labels,
            definition=definition,
            fingerprint=fingerprint,
            run_id=run_id,
            records=records,
            history_entries=history_entries,
            replace=replace,
            lease_token=lease_token,
            release_lease=release_lease,
            consumed_signals=consumed_signals,
            manifest=manifest,
        )
        attempts = self._attempts(timeout_s)
        draft = SaveDraft(
            item,
            namespace=self._namespace,
            codec=self._codec,
            compress_over_bytes=self._compress_over_bytes,
            memory=self._digests,
        )
        try:
            response = await self._call(_calls.SAVE, draft.request, attempts)
        except BaseNotFoundError:
            if not draft.is_incremental:
                raise
            # The same checkpoint under the same id, in full: what an earlier attempt may have stored is replayed.
            response = await self._call(_calls.SAVE, draft.in_full(), attempts)
        return draft.saved(response)

    async def save_all(
        self, items: Iterable[SaveItem], *, timeout_s: float | None = None
    ) -> builtins.list[Saved | MilepostError]:
        """Store many checkpoints in few calls; not atomic.

        Items of one workflow are stored in order; `after` may name an earlier item. Of several items under one id a
        later one builds on the last before it: where that one failed it fails with PredecessorFailedError, also if one
        under the same id was stored before.

        Args:
            items: What to save.
            timeout_s: For each part that is sent as one call (up to 1,000 items), in seconds; default: the client's.

        Returns:
            For each item, in order, what became of it, or the error that `save` would have raised. Errors are
            returned, not raised, since other items may be stored.
        """
        self._refuse_fork()
        batch = SaveAll(
            items,
            namespace=self._namespace,
            codec=self._codec,
            compress_over_bytes=self._compress_over_bytes,
            memory=self._digests,
        )
        attempts: Attempts | None = None
        while (request := batch.next_request()) is not None:
            attempts = attempts or self._attempts(timeout_s)
            try:
                response = await self._call(_calls.BATCH_SAVE, request, attempts)
            except MilepostError as error:
                batch.fail(error)
                break
            failure = batch.take(response, attempts)
            if failure is not None:
                pause_s = attempts.after(failure)
                if pause_s is None:
                    batch.give_up(failure, attempts)
                else:
                    await self._sleep(pause_s)
            if batch.part_is_settled:
                attempts = None
        return batch.results

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
        timeout_s: float | None = None,
    ) -> Checkpoint:
        """Read one checkpoint with its records: the head, unless told otherwise.

        Sees every save that was acknowledged before the call.

        Args:
            workflow_id: The run.
            checkpoint_id: This one. At most one of this, `sequence` and `latest_with_status`.
            sequence: The one with this sequence.
            latest_with_status: The newest with this status, or with one of these.
            scope: The nested run; "" is the root.
            entries: Only these entries of the state; those it lacks are left out.
            with_state: False leaves out the state: `.state` then raises StateNotLoadedError.
            timeout_s: For the whole call, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such workflow. Never raised for an outage.
            CheckpointNotFoundError: The workflow has no such checkpoint in this scope.
            CodecError: A value was stored by another codec.
            DataLossError: The stored record is damaged.
        """
        request = _calls.load_request(
            self._namespace,
            workflow_id,
            checkpoint_id=checkpoint_id,
            sequence=sequence,
            latest_with_status=latest_with_status,
            scope=scope,
            entries=entries,
            with_state=with_state,
        )
        response = await self._call(_calls.LOAD, request, self._attempts(timeout_s))
        return _calls.read_checkpoint(
            response.checkpoint, self._codec, with_state=not request.omit_state, loaded=response
        )

    def list(
        self,
        workflow_id: str,
        *,
        scope: str | None = "",
        newest_first: bool = True,
        limit: int | None = None,
        with_state: bool = False,
        with_records: bool = False,
        status: Status | Iterable[Status] | None = None,
        current_step: str | None = None,
        before: Checkpoint | Saved | int | str | None = None,
        metadata_contains: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Checkpoint]:
        """Read checkpoints of one workflow, a page at a time, each page when it is needed.

        Args:
            workflow_id: The run.
            scope: The nested run; "" is the root, None all of them.
            newest_first: By falling sequence; else by rising sequence, up to the highest there was at the first page.
            limit: Most checkpoints in all; None: no end.
            with_state: Read the states too; else `.state` raises StateNotLoadedError.
            with_records: Read the records too.
            status: Only with this status, or with one of these.
            current_step: Only of this step.
            before: Only checkpoints before this one: a checkpoint or a sequence by order, or a checkpoint id compared
                bytewise, which need not exist.
            metadata_contains: Only those whose metadata contains this, with the meaning of PostgreSQL's `@>`.
            run_id: Only of this execution.
            page_size: Most checkpoints of one call, at most 1,000; default: 50.
            timeout_s: For each page, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
            PageExpiredError: The workflow was deleted and made again between two pages.
        """
        request = _calls.list_request(
            self._namespace,
            workflow_id,
            scope=scope,
            newest_first=newest_first,
            limit=limit,
            with_state=with_state,
            with_records=with_records,
            status=status,
            current_step=current_step,
            before=before,
            metadata_contains=metadata_contains,
            run_id=run_id,
            page_size=page_size,
        )
        return self._pages(
            _calls.LIST,
            request,
            lambda page: (_calls.read_checkpoint(c, self._codec, with_state=with_state) for c in page.checkpoints),
            limit,
            timeout_s,
        )

    async def append_records(
        self,
        workflow_id: str,
        checkpoint_id: str,
        records: Sequence[Record],
        *,
        scope: str = "",
        require_checkpoint: bool = False,
        lease_token: int = 0,
        timeout_s: float | None = None,
    ) -> builtins.list[RecordOutcome]:
        """Append records to a checkpoint, durably, also before that checkpoint exists.

        Args:
            workflow_id: The run; need not exist yet.
            checkpoint_id: The checkpoint they belong to.
            records: What to append, at most 10,000 and 16 MiB less 64 KiB a checkpoint.
            scope: The nested run; "" is the root.
            require_checkpoint: Refuse records whose checkpoint does not exist.
            lease_token: The token of the workflow's lease, as for a save; renews it too.
            timeout_s: For the whole call, in seconds; default: the client's.

        Returns:
            What became of each record, in order. A record sent twice, because an answer was lost, is `existing`.

        Raises:
            CheckpointNotFoundError: `require_checkpoint`, and there is none.
            CheckpointDeletedError: The checkpoint was there and has been deleted.
            LeaseHeldError: Somebody else's lease is live, and no token was given.
            LeaseLostError: The token is not that of the newest lease.
            QuotaExceededError: Too many records wait for a checkpoint that does not come.
        """
        request = _calls.append_records_request(
            self._namespace,
            workflow_id,
            checkpoint_id,
            records,
            codec=self._codec,
            compress_over_bytes=self._compress_over_bytes,
            scope=scope,
            require_checkpoint=require_checkpoint,
            lease_token=lease_token,
        )
        if not request.records:
            return []
        response = await self._call(_calls.APPEND_RECORDS, request, self._attempts(timeout_s))
        return _calls.read_outcomes(response.outcomes)

    def entry_history(
        self,
        workflow_id: str,
        entries: str | Iterable[str],
        *,
        scope: str = "",
        checkpoint_id: str | None = None,
        limit: int | None = None,
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[EntryVersion]:
        """Read the values that entries had along a checkpoint's line of ancestors, newest first.

        Args:
            workflow_id: The run.
            entries: One entry key or up to 100.
            scope: The nested run; "" is the root.
            checkpoint_id: Where to start; default: the head.
            limit: Most versions in all; None: no end.
            page_size: Most versions of one call, at most 1,000; default: 50.
            timeout_s: For each page, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
            CheckpointNotFoundError: The workflow has no such checkpoint in this scope.
        """
        request = _calls.entry_history_request(
            self._namespace,
            workflow_id,
            entries,
            scope=scope,
            checkpoint_id=checkpoint_id,
            limit=limit,
            page_size=page_size,
        )
        return self._pages(
            _calls.GET_ENTRY_HISTORY,
            request,
            lambda page: (_calls.read_entry_version(v, self._codec, request) for v in page.versions),
            limit,
            timeout_s,
        )

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
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[WorkflowInfo]:
        """Read the workflows of the namespace by workflow_id, without reading any state.

        Args:
            prefix: Only ids that start with this.
            status: Only with this status, or with one of these.
            labels: Only those that have all of these labels.
            definition: Only of this definition.
            updated_from: Only those updated at this time or later; with a time zone.
            updated_before: Only those updated before this time; with a time zone.
            is_leased: Only those whose lease is live (True), or is not (False).
            has_pending_signals: Only those that have pending signals (True), or have none (False).
            fingerprint: Only those whose root head was saved under this fingerprint.
            limit: Most workflows in all; None: no end.
            page_size: Most workflows of one call, at most 1,000; default: 50.
            timeout_s: For each page, in seconds; default: the client's.
        """
        request = _calls.list_workflows_request(
            self._namespace,
            prefix=prefix,
            status=status,
            labels=labels,
            definition=definition,
            updated_from=updated_from,
            updated_before=updated_before,
            is_leased=is_leased,
            has_pending_signals=has_pending_signals,
            fingerprint=fingerprint,
            limit=limit,
            page_size=page_size,
        )
        return self._pages(
            _calls.LIST_WORKFLOWS,
            request,
            lambda page: (_calls.read_workflow(w) for w in page.workflows),
            limit,
            timeout_s,
        )

    async def workflow(self, workflow_id: str, *, timeout_s: float | None = None) -> WorkflowInfo:
        """Read what is known of one workflow, without reading its state.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
        """
        request = build(pb.GetWorkflowRequest, namespace=self._namespace, workflow_id=workflow_id)
        response = await self._call(_calls.GET_WORKFLOW, request, self._attempts(timeout_s))
        return _calls.read_workflow(response.workflow)

    async def fork(
        self,
        workflow_id: str,
        new_workflow_id: str,
        *,
        checkpoint_id: str | None = None,
        scope: str = "",
        all_scopes: bool = False,
        fork_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint. What is stored is shared, not copied.

        Args:
            workflow_id: The source; it stays as it is.
            new_workflow_id: The new workflow; must not exist.
            checkpoint_id: The last checkpoint the new one has; default: the head.
            scope: The checkpoint's scope; "" is the root.
            all_scopes: Take every checkpoint of every scope up to that one's sequence; else its line of ancestors.
            fork_id: A fork with the same id is made once; default: a new one, so each call is its own fork.
            timeout_s: For the whole call, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such source.
            CheckpointNotFoundError: The source has no such checkpoint in this scope.
            WorkflowExistsError: The new workflow exists already.
        """
        request = build(
            pb.ForkWorkflowRequest,
            namespace=self._namespace,
            workflow_id=workflow_id,
            scope=scope,
            checkpoint_id=checkpoint_id,
            target_workflow_id=new_workflow_id,
            mode=pb.FORK_MODE_ALL_UP_TO if all_scopes else pb.FORK_MODE_ANCESTORS,
            fork_id=new_checkpoint_id() if fork_id is None else fork_id,
        )
        response = await self._call(_calls.FORK_WORKFLOW, request, self._attempts(timeout_s))
        return _calls.read_workflow(response.workflow)

    async def delete(self, workflow_id: str, *, lease_token: int = 0, timeout_s: float | None = None) -> bool:
        """Delete a workflow with all its scopes, durably; return whether there was one.

        An answer lost on the way and a second attempt give False, though it was this call that deleted it.

        Args:
            workflow_id: The run.
            lease_token: The token of its lease, which goes with it. While a lease is live, nothing is deleted without.
            timeout_s: For the whole call, in seconds; default: the client's.

        Raises:
            LeaseHeldError: Somebody else's lease is live, and no token was given.
            LeaseLostError: The token is not that of the newest lease.
        """
        request = build(
            pb.DeleteWorkflowRequest, namespace=self._namespace, workflow_id=workflow_id, lease_token=lease_token
        )
        response = await self._call(_calls.DELETE_WORKFLOW, request, self._attempts(timeout_s))
        return response.existed

    async def delete_checkpoints(
        self,
        workflow_id: str,
        checkpoint_ids: Iterable[str] = (),
        *,
        run_ids: Iterable[str] = (),
        scope: str = "",
        lease_token: int = 0,
        timeout_s: float | None = None,
    ) -> int:
        """Delete checkpoints by id, or all of some executions; return how many were deleted.

        Calls the server until nothing is left; not atomic. Ids that do not exist are passed over. Checkpoints saved
        after the call began are not touched.

        Args:
            workflow_id: The run. May be "" with `run_ids`: every workflow of the namespace.
            checkpoint_ids: These checkpoints of `scope`.
            run_ids: The checkpoints of these executions, in every scope.
            scope: The nested run that `checkpoint_ids` are in; "" is the root.
            lease_token: The token of the workflow's lease. While a lease is live, nothing is deleted without it; with
                `run_ids` over the namespace, workflows whose lease is live are passed over.
            timeout_s: For each call to the server, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
            LeaseHeldError: Somebody else's lease is live, and no token was given.
            LeaseLostError: The token is not that of the newest lease.
        """
        deleted = 0
        for request in _calls.delete_requests(
            self._namespace, workflow_id, checkpoint_ids, run_ids, scope=scope, lease_token=lease_token
        ):
            while True:
                response = await self._call(_calls.DELETE_CHECKPOINTS, request, self._attempts(timeout_s))
                deleted += response.deleted
                if response.done:
                    break
                request.continue_token = response.continue_token
        return deleted

    async def prune(
        self, workflow_id: str, *, keep_last: int = 1, dry_run: bool = False, timeout_s: float | None = None
    ) -> int:
        """Delete old checkpoints; return how many were deleted.

        Keeps every scope's head, the last ones of every scope, and all that a kept checkpoint needs. Calls the server
        until nothing is left; not atomic.

        Args:
            workflow_id: The run.
            keep_last: How many checkpoints to keep in every scope, at least 1.
            dry_run: Count, and delete nothing.
            timeout_s: For each call to the server, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
        """
        if keep_last < 1:
            raise ValueError(f"keep_last is at least 1, not {keep_last}; delete() removes a whole workflow")
        request = build(
            pb.PruneWorkflowRequest,
            namespace=self._namespace,
            workflow_id=workflow_id,
            keep_last=keep_last,
            dry_run=dry_run,
        )
        deleted = 0
        while True:
            response = await self._call(_calls.PRUNE_WORKFLOW, request, self._attempts(timeout_s))
            deleted += response.deleted
            if response.done:
                return deleted
            request.continue_token = response.continue_token

    async def acquire_lease(
        self,
        workflow_id: str,
        *,
        ttl_s: float = TTL_S,
        wait_s: float = 0.0,
        holder: str | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> LeaseInfo:
        """Take the exclusive right to advance a workflow, or wait for it; durable when it returns.

        Count the ttl from before the call, and keep it with `renew_lease`; `lease()` does both by itself.

        Where the wait for the answer is cut off (the task is cancelled, or Ctrl-C), a lease that may have been granted
        is given back first, which takes 5 seconds at most; what cannot be given back runs out by itself.

        Args:
            workflow_id: The run; need not exist yet. The lease covers all its scopes.
            ttl_s: How long it runs without a renewal, 1 to 3,600 seconds.
            wait_s: How long to wait while somebody else holds it, in seconds; any length.
            holder: Who takes it, a label for people, at most 256 bytes; default: `host:pid`.
            request_id: The same id is answered with the same lease, while that is the newest; default: a new one, so
                that the client's own attempts are one request and every call is another.
            timeout_s: For each call to the server beside the wait, in seconds; default: the client's.

        Returns:
            The lease with its token.

        Raises:
            LeaseHeldError: Somebody else holds it and the wait is over; names the holder and the time it still runs.
        """
        request = _lease_calls.acquire_request(
            self._namespace,
            workflow_id,
            ttl_s=ttl_s,
            wait_s=wait_s,
            holder=default_holder() if holder is None else holder,
            request_id=new_checkpoint_id() if request_id is None else request_id,
        )
        try:
            response = await self._wait_for_lease(request, wait_s, self._timeout_s if timeout_s is None else timeout_s)
        except BaseException as error:
            if _compat.is_cut_off(error):
                await _compat.to_its_end(lambda: self._give_back_unseen(request))
            raise
        return _calls.read_lease(response.lease, self._namespace, workflow_id)

    async def _wait_for_lease(
        self, request: pb.AcquireLeaseRequest, wait_s: float, timeout_s: float
    ) -> pb.AcquireLeaseResponse:
        left_s = wait_s
        while True:
            # No longer than the timeout, so that a second attempt has time for a wait as long as the first.
            part_s = min(left_s, timeout_s, _lease_calls.WAIT_S_MAX)
            request.wait_ms = round(part_s * 1_000)
            try:
                return await self._call(_calls.ACQUIRE_LEASE, request, self._attempts(part_s + timeout_s))
            except LeaseHeldError:
                # By parts, not by the clock: a server that refuses at once is not asked without a pause.
                left_s -= part_s
                if left_s <= 0:
                    raise

    async def _give_back_unseen(self, request: pb.AcquireLeaseRequest) -> None:
        """Give back a lease that may have been granted though its answer was cut off: the same request has the same."""
        request.wait_ms = 0
        try:
            attempts = self._attempts(RELEASE_S)
            granted = await self._call(_calls.ACQUIRE_LEASE, request, attempts)
            release = build(
                pb.ReleaseLeaseRequest,
                namespace=self._namespace,
                workflow_id=request.workflow_id,
                lease_token=granted.lease.token,
            )
            await self._call(_calls.RELEASE_LEASE, release, attempts)
        except LeaseHeldError:
            pass  # It was not granted.
        # Whatever keeps it back, an interceptor's own error too, must not take the place of what cut the wait off.
        except Exception as failure:  # noqa: BLE001
            logger.warning(
                "lease of workflow %r may have been granted and could not be released: %r", request.workflow_id, failure
            )

    async def renew_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> LeaseRenewal:
        """Let a lease run its full ttl again; tell which signals are pending.

        The newest token may do so also after the ttl is over, until anyone else acts.

        Raises:
            LeaseLostError: The token is not that of the newest lease.
        """
        request = build(pb.RenewLeaseRequest, namespace=self._namespace, workflow_id=workflow_id, lease_token=token)
        response = await self._call(_calls.RENEW_LEASE, request, self._attempts(timeout_s))
        return _lease_calls.renewal(response, self._namespace, workflow_id)

    async def release_lease(self, workflow_id: str, token: int, *, timeout_s: float | None = None) -> bool:
        """Give a lease back; return whether the token still held it.

        An answer lost on the way and a second attempt give False, though it was this call that released it.
        """
        request = build(pb.ReleaseLeaseRequest, namespace=self._namespace, workflow_id=workflow_id, lease_token=token)
        return (await self._call(_calls.RELEASE_LEASE, request, self._attempts(timeout_s))).released

    async def break_lease(self, workflow_id: str, *, timeout_s: float | None = None) -> bool:
        """Take the lease away from whoever holds it; return whether there was one.

        For people who know that the holder is gone or stuck: its token is refused from now on.
        """
        request = build(pb.ReleaseLeaseRequest, namespace=self._namespace, workflow_id=workflow_id, force=True)
        return (await self._call(_calls.RELEASE_LEASE, request, self._attempts(timeout_s))).released

    async def get_lease(self, workflow_id: str, *, timeout_s: float | None = None) -> LeaseInfo | None:
        """Read who holds a workflow's lease, without its token; None where there is none.

        A lease that has run out is still told, with nothing remaining, while nobody else has acted.
        """
        request = build(pb.GetLeaseRequest, namespace=self._namespace, workflow_id=workflow_id)
        response = await self._call(_calls.GET_LEASE, request, self._attempts(timeout_s))
        return _lease_calls.lease(response, self._namespace, workflow_id)

    def lease(
        self, workflow_id: str, *, ttl_s: float = TTL_S, wait_s: float = 0.0, holder: str | None = None
    ) -> AsyncLease:
        """Return a lease for a `with` block: taken when it begins, renewed beside it, released at its end.

        Pass its `token` to every save in the block. A lease that is lost raises LeaseLostError at the end of the
        block, and where the block calls `check()`; an outage of the server is not a loss.

        Args:
            workflow_id: The run; need not exist yet.
            ttl_s: How long it outlives this process, 1 to 3,600 seconds.
            wait_s: How long to wait while somebody else holds it, in seconds; then the block raises LeaseHeldError.
            holder: Who takes it, a label for people; default: `host:pid`.
        """
        return AsyncLease(self, workflow_id, ttl_s=ttl_s, wait_s=wait_s, holder=holder, clock=self._clock)

    async def send_signal(
        self,
        workflow_id: str,
        name: str,
        value: object = None,
        *,
        signal_id: str | None = None,
        timeout_s: float | None = None,
    ) -> SignalSent:
        """Send a signal to a workflow, durably and once. It stays pending until a save consumes it; needs no lease.

        Args:
            workflow_id: The run; must have a checkpoint.
            name: What it is, for the workflow; `CANCEL_SIGNAL` asks it to stop. 1 to 256 bytes.
            value: Its content, at most 64 KiB encoded; None: none.
            signal_id: The same id is sent once, also for 7 days after it was consumed; default: a new one, so that
                every call is a signal of its own.
            timeout_s: For the whole call, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
            SignalExistsError: The id is taken by another name or value.
            QuotaExceededError: Too many signals are pending.
        """
        signal_id = new_checkpoint_id() if signal_id is None else signal_id
        request = _signal_calls.send_request(
            self._namespace,
            workflow_id,
            name,
            value,
            signal_id=signal_id,
            codec=self._codec,
            compress_over_bytes=self._compress_over_bytes,
        )
        response = await self._call(_calls.SEND_SIGNAL, request, self._attempts(timeout_s))
        return SignalSent(
            signal_id=signal_id,
            replayed=response.replayed,
            consumed=response.consumed,
            revision=response.revision,
        )

    def signals(
        self,
        workflow_id: str,
        *,
        name: str | None = None,
        page_size: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Signal]:
        """Read the signals that no save has consumed yet, in the order they came, a page at a time.

        Args:
            workflow_id: The run.
            name: Only signals of this name.
            page_size: Most signals of one call, at most 1,000; default: 50.
            timeout_s: For each page, in seconds; default: the client's.

        Raises:
            WorkflowNotFoundError: There is no such workflow.
        """
        request = _signal_calls.list_request(self._namespace, workflow_id, name=name, page_size=page_size)
        return self._pages(
            _calls.LIST_SIGNALS,
            request,
            lambda page: (_signal_calls.read_signal(s, self._codec, request) for s in page.signals),
            None,
            timeout_s,
        )

    def watch(self, workflow_id: str = "", *, after: WatchAfter = None, definition: str | None = None) -> AsyncWatch:
        """Follow what changes, event by event, without an end; close it to end it.

        The watch begins with its first event, of the kind STARTED: what happens after that is told. A stream that
        breaks is opened again, within the client's retry policy and its timeout. One workflow is then followed without
        a gap; over a namespace STARTED comes again, and what happened meanwhile is not told.

        Args:
            workflow_id: The run; need not exist yet. "": every workflow of the namespace.
            after: Go on after this event, or after the workflow as it was read; None: from now on. Only for one
                workflow.
            definition: Only workflows of this definition.

        Raises:
            WatchCompactedError: What came since `after`, or during an outage, is not kept any more.
            WatchTooSlowError: Events came faster than they were read.
        """
        return AsyncWatch(
            self,
            _watch.WatchProgress(self._namespace, workflow_id, after=after, definition=definition),
        )

    async def definition_manifest(self, fingerprint: str, *, timeout_s: float | None = None) -> str:
        """Read a definition's manifest by its fingerprint: JSON text as it was first sent.

        Raises:
            DefinitionNotFoundError: No save has brought it.
        """
        request = build(pb.GetDefinitionRequest, namespace=self._namespace, fingerprint=fingerprint)
        return (await self._call(_calls.GET_DEFINITION, request, self._attempts(timeout_s))).manifest

    async def ping(self, *, timeout_s: float | None = None) -> None:
        """Return when the server says that it serves.

        Raises:
            UnavailableError: It cannot be reached, or says that it does not serve.
        """
        answer = await self._call(_calls.CHECK_HEALTH, _calls.HEALTH_REQUEST, self._attempts(timeout_s))
        if answer != _calls.HEALTH_SERVING:
            raise UnavailableError(f"ping: the server at {self.target} is there and does not serve now.")

    async def close(self) -> None:
        """Close the connections; calls under way are cancelled. A closed client is not opened again."""
        self._is_closed = True
        if self._owner_pid not in {None, os.getpid()}:
            # They belong to the parent process; closing a copy of them could hang.
            return
        with self._lock:
            connections, self._connections = self._connections, {}
        # Those of other loops close when they are dropped: only their own loop could wait for them.
        mine = connections.get(_compat.home()) if connections else None
        if mine is not None:
            await mine.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r}, namespace={self._namespace!r})"

    @override
    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds connections and cannot be pickled: make one in each process")

    def _attempts(self, timeout_s: float | None) -> Attempts:
        self._refuse_fork()
        if timeout_s is None:
            timeout_s = self._timeout_s
        else:
            _check_timeout(timeout_s)
        return Attempts(self._retry, timeout_s, self._clock, self._random)

    async def _call(self, method: Method[ResponseT], request: Message, attempts: Attempts) -> ResponseT:
        """Send one request until it is answered or given up."""
        payload = _calls.encode(method, request)
        failure = NO_TIME_LEFT
        while attempts.remaining_s > 0:
            answer = await self._attempt(method, payload, attempts.remaining_s)
            if not isinstance(answer, Failure):
                return answer
            failure = answer
            pause_s = attempts.after(failure, twin_is_known=method.finds_twin)
            if pause_s is None:
                break
            logger.debug(
                "%s: attempt %d failed (%s %s), the next one follows in %.3f s",
                method.name,
                attempts.count,
                failure.code,
                failure.details.reason,
                pause_s,
            )
            await self._sleep(pause_s)
        raise _failures.to_error(
            method,
            request,
            failure,
            outcome_unknown=attempts.outcome_unknown,
            attempts=attempts,
            target=self.target,
        )

    async def _attempt(self, method: Method[ResponseT], payload: bytes, timeout_s: float) -> ResponseT | Failure:
        """Send an encoded request once; return the answer or the failure."""
        if timeout_s <= 0:
            # gRPC would answer as if the call had been sent, and its outcome were open.
            return NO_TIME_LEFT
        send = self._sender(method)
        try:
            return await _compat.answer(send(payload, timeout=timeout_s, metadata=self._token.metadata()))
        except grpc.RpcError as error:
            return _failures.read_failure(error)

    async def _pages(
        self,
        method: Method[Any],
        request: Any,
        read: Callable[[Any], Iterable[T]],
        limit: int | None,
        timeout_s: float | None,
    ) -> AsyncIterator[T]:
        """Ask for pages while somebody wants them; a page may be empty and still have a next one."""
        left = limit
        while left is None or left > 0:
            page = await self._call(method, request, self._attempts(timeout_s))
            for item in read(page):
                yield item
                if left is not None:
                    left -= 1
                    if left <= 0:
                        return
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _sender(self, method: Method[ResponseT]) -> grpc.aio.UnaryUnaryMultiCallable[bytes, ResponseT]:
        connection = self._connections.get(_compat.home())
        if connection is None or self._owner_pid != os.getpid():
            connection = self._open()
        return connection.sender(method)

    def _open_stream(self, method: Method[ResponseT], payload: bytes) -> _compat.Stream[ResponseT]:
        """Send one request that is answered by a stream."""
        connection = self._connections.get(_compat.home())
        if connection is None or self._owner_pid != os.getpid():
            connection = self._open()
        send: grpc.aio.UnaryStreamMultiCallable[bytes, ResponseT]
        send = connection.streams.unary_stream(method.path, None, method.read)
        metadata = self._token.metadata()
        span = _telemetry.StreamSpan(method.path) if connection.is_traced else None
        if span is not None:
            metadata = (*(metadata or ()), *span.metadata())
        return _compat.Stream(send(payload, metadata=metadata), span)

    def _refuse_fork(self) -> None:
        """Refuse to go on in a child; before any lock, which a thread of the parent may have held when it forked."""
        owner_pid, pid = self._owner_pid, os.getpid()
        if owner_pid not in {None, pid}:
            raise ClientForkedError(
                f"{self!r} was used in process {owner_pid} before it forked this one, {pid}: make a new client in the "
                "child.",
                owner_pid=owner_pid,
                pid=pid,
            )

    def _open(self) -> _Connection:
        self._refuse_fork()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"{self!r} is closed")
            if self._owner_pid is None:
                _compat.require_usable(os.getpid())
                self._owner_pid = os.getpid()
            here = _compat.home()
            connection = self._connections.get(here)
            if connection is None:
                for other in [place for place in self._connections if _compat.is_gone(place)]:
                    del self._connections[other]
                connection = self._connections[here] = self._connect()
            return connection

    def _connect(self) -> _Connection:
        tls = self._endpoint.tls
        is_traced = _telemetry.wants_tracing(self._instrument)
        channel, streams = _compat.open_channel(
            self.target,
            None if tls is None else tls.credentials(),
            _config.CHANNEL_OPTIONS + (() if tls is None else tls.channel_options()),
            self._interceptors,
            traced=is_traced,
        )
        return _Connection(channel, streams, is_traced=is_traced)


class _Connection:
    """One channel, and what sends each method over it: making that anew for each call would cost a tenth of it."""

    __slots__ = ("_senders", "channel", "is_traced", "streams")

    def __init__(self, channel: grpc.aio.Channel, streams: grpc.aio.Channel, *, is_traced: bool) -> None:
        self.channel = channel
        self.is_traced = is_traced
        self.streams = streams
        self._senders: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, Any]] = {}

    def sender(self, method: Method[ResponseT]) -> grpc.aio.UnaryUnaryMultiCallable[bytes, ResponseT]:
        sender = self._senders.get(method.name)
        if sender is None:
            # Requests are encoded before: once, however often they are sent.
            sender = self.channel.unary_unary(method.path, None, method.read)
            self._senders[method.name] = sender
        return sender


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise ValueError(f"timeout_s is a number of seconds above 0 and at most {TIMEOUT_S_MAX}, not {timeout_s}")
