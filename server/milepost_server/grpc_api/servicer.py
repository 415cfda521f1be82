"""The methods of `milepost.v1.CheckpointStore`: message in, service, message out. They decide nothing.

Save, BatchSave and Load, by which most comes, do not look into their messages: these cross to the engine as bytes,
and are read, checked and written there.

Large messages are translated in a thread, so that one caller's megabytes do not hold up the others. A future of the
committer only carries an answer: a call that is cancelled stops waiting, and its commit goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Final, TypeVar

from milepost.v1 import checkpoint_store_pb2 as pb
from milepost_server.grpc_api import read_requests, write_answers
from milepost_server.grpc_api.call_codec import peek_namespace, split_batch
from milepost_server.grpc_api.handlers import Context
from milepost_server.grpc_api.status import to_item_error
from milepost_server.grpc_api.write_answers import ValueWriter
from milepost_server.model import DeleteIdsCommand
from milepost_server.service import CheckpointService, FailedItems

_T = TypeVar("_T")

ANSWER_MARGIN_S: Final = 0.1
"""How long before its deadline a call that waits for something gives up, to say so."""


ENCODED_METHODS: Final = frozenset({"Save", "BatchSave", "Load"})
"""Methods that take and return bytes."""


class CheckpointStoreServicer:
    """Carries calls to the service and its answers back."""

    def __init__(self, service: CheckpointService) -> None:
        self._service = service
        self._limits = service.limits

    async def Save(self, request: bytes, context: Context) -> bytes:
        """Store one checkpoint."""
        return await self._service.save(request, namespace=peek_namespace(request))

    async def BatchSave(self, request: bytes, context: Context) -> bytes:
        """Store many checkpoints."""
        items = split_batch(request, self._limits)
        results = await self._service.batch_save(items, namespace=peek_namespace(items[0]))
        # Results of one list after the other are those of the whole.
        return b"".join(
            pb.BatchSaveResponse(
                results=[pb.BatchSaveResult(error=to_item_error(each.error))] * each.item_count
            ).SerializeToString()
            if isinstance(each, FailedItems)
            else each
            for each in results
        )

    async def Load(self, request: bytes, context: Context) -> bytes:
        """Read one checkpoint."""
        return await self._service.load(request, namespace=peek_namespace(request))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        """Read one page of a workflow's checkpoints."""
        query, accepted = read_requests.list_from_pb(request, self._limits)
        values = ValueWriter(accepted, self._limits)
        answer, token = await self._service.list_checkpoints(query, page_token=request.page_token, growth=values.growth)
        if write_answers.is_large(answer.checkpoints):
            return await asyncio.to_thread(write_answers.list_to_pb, answer, query, token, values)
        return write_answers.list_to_pb(answer, query, token, values)

    async def AppendRecords(self, request: pb.AppendRecordsRequest, context: Context) -> pb.AppendRecordsResponse:
        """Append records to a checkpoint id."""
        command = await _translate(
            request.ByteSize(), lambda: read_requests.append_records_from_pb(request, self._limits)
        )
        return write_answers.append_records_to_pb(await self._service.append_records(command))

    async def GetEntryHistory(self, request: pb.GetEntryHistoryRequest, context: Context) -> pb.GetEntryHistoryResponse:
        """Read one page of what entries were."""
        query, accepted = read_requests.entry_history_from_pb(request, self._limits)
        values = ValueWriter(accepted, self._limits)
        answer, token = await self._service.entry_history(query, page_token=request.page_token, growth=values.growth)
        size_bytes = sum(len(version.value.payload) for version in answer.versions if version.value is not None)
        return await _translate(size_bytes, lambda: write_answers.entry_history_to_pb(answer, token, values))

    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, context: Context) -> pb.ListWorkflowsResponse:
        """Read one page of a namespace's workflows."""
        query = read_requests.list_workflows_from_pb(request, self._limits)
        answer, token = await self._service.list_workflows(query, page_token=request.page_token)
        return pb.ListWorkflowsResponse(
            workflows=[write_answers.workflow_to_pb(each.workflow, each.lease) for each in answer.workflows],
            next_page_token=token,
        )

    async def GetWorkflow(self, request: pb.GetWorkflowRequest, context: Context) -> pb.GetWorkflowResponse:
        """Read one workflow."""
        namespace, workflow_id = read_requests.workflow_address_from_pb(request, self._limits)
        answer = await self._service.get_workflow(namespace, workflow_id)
        return pb.GetWorkflowResponse(workflow=write_answers.workflow_to_pb(answer.workflow, answer.lease))

    async def ForkWorkflow(self, request: pb.ForkWorkflowRequest, context: Context) -> pb.ForkWorkflowResponse:
        """Make a workflow of another's history."""
        answer = await self._service.fork(read_requests.fork_from_pb(request, self._limits))
        assert answer.workflow is not None
        return pb.ForkWorkflowResponse(
            workflow=write_answers.workflow_to_pb(answer.workflow), replayed=answer.is_replayed
        )

    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest, context: Context) -> pb.DeleteWorkflowResponse:
        """Delete a workflow."""
        answer = await self._service.delete_workflow(read_requests.delete_workflow_from_pb(request, self._limits))
        return pb.DeleteWorkflowResponse(existed=answer.existed, checkpoint_count=answer.checkpoint_count)

    async def DeleteCheckpoints(
        self, request: pb.DeleteCheckpointsRequest, context: Context
    ) -> pb.DeleteCheckpointsResponse:
        """Delete checkpoints by id or by execution."""
        wanted = read_requests.delete_checkpoints_from_pb(request, self._limits)
        if isinstance(wanted, DeleteIdsCommand):
            return pb.DeleteCheckpointsResponse(deleted=await self._service.delete_ids(wanted), done=True)
        deleted, token = await self._service.delete_runs(
            wanted.namespace,
            wanted.workflow_id,
            wanted.run_ids,
            continue_token=wanted.continue_token,
            lease_token=wanted.lease_token,
            size_bytes=wanted.size_bytes,
        )
        return pb.DeleteCheckpointsResponse(deleted=deleted, done=not token, continue_token=token)

    async def PruneWorkflow(self, request: pb.PruneWorkflowRequest, context: Context) -> pb.PruneWorkflowResponse:
        """Delete what is old in a workflow."""
        command = read_requests.prune_from_pb(request, self._limits)
        deleted, token = await self._service.prune(command, continue_token=request.continue_token)
        return pb.PruneWorkflowResponse(deleted=deleted, done=not token, continue_token=token)

    async def AcquireLease(self, request: pb.AcquireLeaseRequest, context: Context) -> pb.AcquireLeaseResponse:
        """Take a lease, or wait for it."""
        command, wait_ms = read_requests.acquire_lease_from_pb(request, self._limits)
        answer = await self._service.leases.acquire(command, wait_s=_within_deadline(wait_ms / 1000, context))
        return pb.AcquireLeaseResponse(lease=write_answers.lease_to_pb(answer.lease), replayed=answer.is_replayed)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        """Keep a lease."""
        answer = await self._service.leases.renew(read_requests.renew_lease_from_pb(request, self._limits))
        return pb.RenewLeaseResponse(
            lease=write_answers.lease_to_pb(answer.lease),
            pending_signals=write_answers.pending_signals_to_pb(answer.pending_signals),
            pending_signal_count=answer.pending_signal_count,
        )

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: Context) -> pb.ReleaseLeaseResponse:
        """Give a lease back, or take it away."""
        answer = await self._service.leases.release(read_requests.release_lease_from_pb(request, self._limits))
        return pb.ReleaseLeaseResponse(released=answer.released)

    async def GetLease(self, request: pb.GetLeaseRequest, context: Context) -> pb.GetLeaseResponse:
        """Read who has a lease."""
        namespace, workflow_id = read_requests.workflow_address_from_pb(request, self._limits)
        lease = await self._service.leases.get(namespace, workflow_id)
        return pb.GetLeaseResponse(lease=write_answers.lease_to_pb(lease) if lease is not None else None)

    async def SendSignal(self, request: pb.SendSignalRequest, context: Context) -> pb.SendSignalResponse:
        """Send a signal to a workflow."""
        answer = await self._service.send_signal(read_requests.send_signal_from_pb(request, self._limits))
        return pb.SendSignalResponse(replayed=answer.is_replayed, consumed=answer.is_consumed, revision=answer.revision)

    async def ListSignals(self, request: pb.ListSignalsRequest, context: Context) -> pb.ListSignalsResponse:
        """Read one page of a workflow's pending signals."""
        query, accepted = read_requests.list_signals_from_pb(request, self._limits)
        values = ValueWriter(accepted, self._limits)
        answer, token = await self._service.list_signals(query, page_token=request.page_token, growth=values.growth)
        size_bytes = sum(len(each.value.payload) for each in answer.signals if each.value is not None)
        return await _translate(size_bytes, lambda: write_answers.list_signals_to_pb(answer, token, values))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:
        """Tell of changes as they come, until the caller has enough."""
        query = read_requests.watch_from_pb(request, self._limits)
        # Not a generator: one that is cut off while it is not running is closed whenever it is collected.
        async with aclosing(self._service.watches.watch(query)) as events:
            async for event in events:
                await context.write(write_answers.watch_event_to_pb(event))

    async def GetDefinition(self, request: pb.GetDefinitionRequest, context: Context) -> pb.GetDefinitionResponse:
        """Read a definition's manifest."""
        namespace, fingerprint = read_requests.get_definition_from_pb(request, self._limits)
        answer = await self._service.get_definition(namespace, fingerprint)
        return pb.GetDefinitionResponse(manifest=answer.manifest)


def _within_deadline(wait_s: float, context: Context) -> float:
    """Return how long a call may wait so that its answer, also a refusal, still comes within its deadline."""
    left_s: float | None = context.time_remaining()
    return wait_s if left_s is None else max(0.0, min(wait_s, left_s - ANSWER_MARGIN_S))


async def _translate(size_bytes: int, function: Callable[[], _T]) -> _T:
    """Run a translation here or, where there is much of it, in a thread."""
    if size_bytes > write_answers.INLINE_BYTES_MAX:
        return await asyncio.to_thread(function)
    return function()
