"""One Save: what is sent, as an increment where that is shorter, and what its answer means. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping

from milepost import _state
from milepost._calls import STATUS_TO_WIRE, encode_metadata, read_pending, read_time, records_to_wire
from milepost._failures import ids_of, located
from milepost._state import DigestMemory, EncodedState
from milepost._texts import build, list_of_texts
from milepost.codecs import Codec
from milepost.errors import CodecError, InvalidRequestError
from milepost.types import Saved, SaveItem
from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb


class SaveDraft:
    """One Save: its request, incremental where that is shorter, and how to turn it into one in full."""

    __slots__ = ("_encoded", "_memory", "has_predecessor", "is_incremental", "item", "outcome_unknown", "request")

    def __init__(
        self,
        item: SaveItem,
        *,
        namespace: str,
        codec: Codec,
        compress_over_bytes: int | None,
        memory: DigestMemory,
        base_digests: Mapping[str, bytes] | None = None,
    ) -> None:
        """Encode a save.

        Args:
            item: What to save.
            namespace: Where.
            codec: For the state and the records.
            compress_over_bytes: Values larger than this may be compressed.
            memory: Digests of what was saved before.
            base_digests: Digests of the checkpoint that `item.after` names, where the memory cannot have them yet.

        Raises:
            CodecError: A value of the state, of a record or of metadata cannot be encoded.
            InvalidRequestError: `after` belongs to another workflow, scope or namespace; an entry key is malformed.
        """
        self.item = item
        self._memory = memory
        self.outcome_unknown = False
        self.has_predecessor = item.after is not None
        try:
            self._encoded = _state.encode_state(item.state, codec, compress_over_bytes=compress_over_bytes)
            request = build(
                pb.SaveRequest,
                namespace=namespace,
                workflow_id=item.workflow_id,
                scope=item.scope,
                checkpoint_id=item.checkpoint_id,
                current_step=item.current_step,
                completed_steps_added=list_of_texts(item.completed_steps, "completed_steps"),
                status=STATUS_TO_WIRE[item.status],
                metadata="" if item.metadata is None else encode_metadata(item.metadata),
                labels=item.labels,
                definition=item.definition,
                fingerprint=item.fingerprint,
                run_id=item.run_id,
                records=records_to_wire(item.records, codec, compress_over_bytes),
                history_entries=list_of_texts(item.history_entries, "history_entries"),
                on_conflict=pb.ON_CONFLICT_REPLACE if item.replace else pb.ON_CONFLICT_UNSPECIFIED,
                lease_token=item.lease_token,
                release_lease=item.release_lease,
                consumed_signals=list_of_texts(item.consumed_signals, "consumed_signals"),
                manifest=item.manifest,
            )
        except (CodecError, InvalidRequestError) as error:
            raise located(error, namespace, item.workflow_id, item.scope, item.checkpoint_id) from error.__cause__
        increment = None
        if item.after == "start":
            request.parent_id = request.expected_head = ""
        elif item.after is not None:
            after = item.after
            its_namespace = namespace if isinstance(after, SaveItem) else after.namespace
            if (its_namespace, after.workflow_id, after.scope) != (namespace, item.workflow_id, item.scope):
                raise InvalidRequestError(
                    f"save of workflow {item.workflow_id!r} (scope {item.scope!r}, namespace {namespace!r}): `after` "
                    f"is checkpoint {after.checkpoint_id!r} of workflow {after.workflow_id!r} (scope {after.scope!r}, "
                    f"namespace {its_namespace!r}). A line of checkpoints stays in one of each; fork() starts another.",
                    reason="INVALID_FIELD",
                    metadata={"field": "parent_id"},
                    **ids_of(request),
                )
            request.parent_id = request.expected_head = after.checkpoint_id
            # Replaced content could differ from what the increment was made against, so a replace is always in full.
            if not item.replace:
                known = memory.recall(namespace, item.workflow_id, item.scope, after.checkpoint_id)
                if base_digests is not None:
                    increment = _state.plan_increment(self._encoded, base_digests)
                elif known is not None:
                    increment = _state.plan_increment(self._encoded, known.digests)
                    if increment is not None:
                        request.base_digest = known.content_digest
        self.request = request
        self.is_incremental = increment is not None
        if increment is None:
            _put_state(request, self._encoded.values)
        else:
            # The base is always the parent: `completed_steps_added` counts from the base, so another one would make
            # the increment and the full save two different checkpoints.
            request.base_checkpoint_id = request.parent_id
            _put_state(request, increment.values)
            request.removed_keys.extend(increment.removed_keys)

    @property
    def encoded(self) -> EncodedState:
        """The encoded state."""
        return self._encoded

    def expect_base(self) -> None:
        """Let the server refuse an increment whose base is not what the memory has of it."""
        request = self.request
        if self.is_incremental and not request.HasField("base_digest"):
            base_id = request.base_checkpoint_id
            known = self._memory.recall(request.namespace, request.workflow_id, request.scope, base_id)
            if known is not None:
                request.base_digest = known.content_digest

    def in_full(self) -> pb.SaveRequest:
        """Turn the request into the full save of the same checkpoint, because its base is gone."""
        request = self.request
        self._memory.forget(request.namespace, request.workflow_id, request.scope, request.base_checkpoint_id)
        request.ClearField("base_checkpoint_id")
        request.ClearField("base_digest")
        request.ClearField("removed_keys")
        request.ClearField("state")
        _put_state(request, self._encoded.values)
        self.is_incremental = False
        return request

    def saved(self, response: pb.SaveResponse) -> Saved:
        """Read the answer, and remember what is stored now."""
        request = self.request
        self._memory.remember(
            request.namespace,
            request.workflow_id,
            request.scope,
            response.checkpoint_id,
            digests=self._encoded.digests,
            content_digest=response.digest,
        )
        return Saved(
            namespace=request.namespace,
            workflow_id=request.workflow_id,
            scope=request.scope,
            checkpoint_id=response.checkpoint_id,
            parent_id=response.parent_id,
            sequence=response.sequence,
            head_checkpoint_id=response.head_checkpoint_id,
            replayed=response.replayed,
            create_time=read_time(response.create_time),
            digest=response.digest,
            revision=response.revision,
            lease_remaining_s=response.lease_remaining_ms / 1_000,
            pending_signals=read_pending(response),
            pending_signal_count=response.pending_signal_count,
        )


def _put_state(request: pb.SaveRequest, values: Mapping[str, checkpoint_pb2.Value]) -> None:
    state = request.state
    for key, value in values.items():
        state[key].CopyFrom(value)
