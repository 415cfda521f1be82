"""Save many checkpoints in few calls: which go into the next request, and what each answer means. Sans-IO.

A batch is not atomic, and its items fail one by one. An item that failed for a passing reason is sent again, unless a
later item of the same line has been stored meanwhile: without `after` nothing else would keep the two in order.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from milepost import _calls, _failures
from milepost._config import MESSAGE_BYTES_MAX
from milepost._retry import Attempts, Failure
from milepost._save_draft import SaveDraft
from milepost._state import DigestMemory
from milepost.codecs import Codec
from milepost.errors import MilepostError, OutcomeUnknownError, PredecessorFailedError, UnavailableError
from milepost.types import Checkpoint, Saved, SaveItem
from milepost.v1 import checkpoint_store_pb2 as pb

_ITEM_BYTES_EXTRA = 64
"""What an item costs in a batch beside its own bytes, at most; the digest of its base comes late."""


Key: TypeAlias = tuple[str, str, str]
"""What a checkpoint is known by: workflow, scope, id."""


class SaveAll:
    """The state of one `save_all`. Ask `next_request()`, send it, hand back the answer with `take()` or `fail()`."""

    def __init__(
        self,
        items: Iterable[SaveItem],
        *,
        namespace: str,
        codec: Codec,
        compress_over_bytes: int | None,
        memory: DigestMemory,
    ) -> None:
        self._items = iter(items)
        self._namespace = namespace
        self._codec = codec
        self._compress_over_bytes = compress_over_bytes
        self._memory = memory
        self._results: list[Saved | MilepostError | None] = []
        # Encoded, and not yet in a request: (position, draft, bytes).
        self._waiting: deque[tuple[int, SaveDraft, int]] = deque()
        # In the request that is being sent.
        self._pending: dict[int, SaveDraft] = {}
        # Of the items that have no result yet, for those that name them as `after`. What is stored is in the memory,
        # with the digest by which the server sees whether it is still that.
        self._digests: dict[Key, Mapping[str, bytes]] = {}
        # Where the items of each id are. Of several the last one before an item is what that builds on; where it has
        # failed, nothing may be built on what the store has under the id instead.
        self._positions: dict[Key, list[int]] = {}
        self._stopped: MilepostError | None = None

    @property
    def results(self) -> list[Saved | MilepostError]:
        """One result an item, in order; complete when there is no next request."""
        return [result for result in self._results if result is not None]

    def next_request(self) -> pb.BatchSaveRequest | None:
        """Return what to send: what is to be sent again, or the next items. None: there is nothing left."""
        if not self._pending:
            self._fill()
        if not self._pending:
            return None
        for draft in self._pending.values():
            if isinstance(draft.item.after, SaveItem) and _key(draft.item.after) not in self._digests:
                # It was stored by an earlier request, and may have been replaced since.
                draft.expect_base()
        return pb.BatchSaveRequest(items=[draft.request for draft in self._pending.values()])

    @property
    def part_is_settled(self) -> bool:
        """Everything that was sent has its result: the next request is a part of its own, with its own time."""
        return not self._pending

    def take(self, response: pb.BatchSaveResponse, attempts: Attempts) -> Failure | None:
        """Take note of an answer; return a failure where items are to be sent again after a pause."""
        sent, self._pending = self._pending, {}
        if attempts.outcome_unknown:
            # An earlier answer to the same items was lost.
            for draft in sent.values():
                draft.outcome_unknown = True
        if len(response.results) != len(sent):
            self._pending = sent
            self.fail(MilepostError(f"the server answered {len(response.results)} results for {len(sent)} items"))
            return None
        passing: Failure | None = None
        failures: dict[int, Failure] = {}
        stored_lines: set[tuple[str, str]] = set()
        # From the last to the first, to know of each failed item whether something after it was stored.
        for (position, draft), result in reversed(list(zip(sent.items(), response.results, strict=True))):
            if result.WhichOneof("outcome") == "saved":
                self._take_result(position, draft.item, draft.saved(result.saved))
                stored_lines.add((draft.request.workflow_id, draft.request.scope))
                continue
            failure = _failures.read_item_error(result.error)
            draft.outcome_unknown |= failure.may_have_taken_effect
            overtaken = not draft.has_predecessor and (draft.request.workflow_id, draft.request.scope) in stored_lines
            if failure.is_retryable and not overtaken:
                passing = failure
                self._pending[position] = draft
            elif failure.details.reason == "BASE_NOT_FOUND" and draft.is_incremental and not overtaken:
                draft.in_full()
                self._pending[position] = draft
            failures[position] = failure
        self._keep_successors(sent, failures)
        for position, failure in sorted(failures.items()):
            if position not in self._pending:
                self._settle(position, sent[position], failure)
        self._pending = dict(sorted(self._pending.items()))
        return passing

    def _keep_successors(self, sent: dict[int, SaveDraft], failures: dict[int, Failure]) -> None:
        """Send those again, too, that failed because an item they build on is sent again."""
        again = {_key(draft.item) for draft in self._pending.values()}
        for position in sorted(failures):
            item = sent[position].item
            parent = (item.workflow_id, item.scope, sent[position].request.parent_id)
            if failures[position].details.reason == "PREDECESSOR_FAILED" and parent in again:
                self._pending[position] = sent[position]
                again.add(_key(item))

    def give_up(self, failure: Failure, attempts: Attempts) -> None:
        """End the items that were to be sent again: their time, or their number of attempts, is over."""
        for position, draft in self._pending.items():
            self._settle(position, draft, failure, attempts)
        self._pending = {}

    def fail(self, error: MilepostError) -> None:
        """End all that is left: the call itself failed, and a further one would wait as long for the same."""
        for position, draft in self._pending.items():
            self._take_result(position, draft.item, _about(error, draft.item, self._namespace, draft.outcome_unknown))
        self._pending = {}
        self._stopped = UnavailableError(f"not sent, because an earlier part of the same save_all failed: {error}")
        self._stopped.__cause__ = error
        for position, draft, _ in self._waiting:
            self._results[position] = _about(self._stopped, draft.item, self._namespace)
        self._waiting.clear()
        while self._encode_next():
            pass

    def _settle(self, position: int, draft: SaveDraft, failure: Failure, attempts: Attempts | None = None) -> None:
        unknown = draft.outcome_unknown and not failure.is_final
        error = _failures.to_error(_calls.SAVE, draft.request, failure, outcome_unknown=unknown, attempts=attempts)
        if failure.details.reason == "PREDECESSOR_FAILED" and not unknown:
            # The server counts the items of one request.
            error = self._predecessor_error(position, draft.item) or error
        self._take_result(position, draft.item, error)

    def _take_result(self, position: int, item: SaveItem, result: Saved | MilepostError) -> None:
        self._results[position] = result
        self._digests.pop(_key(item), None)

    def _predecessor_error(self, position: int, item: SaveItem) -> PredecessorFailedError | None:
        """Return the error of an item that builds on one that failed; None where it does not."""
        if item.after is None or isinstance(item.after, str):
            return None
        before = [at for at in self._positions.get(_key(item.after), ()) if at < position]
        if not before or not isinstance(self._results[failed := before[-1]], MilepostError):
            return None
        return PredecessorFailedError(
            f"save of workflow {item.workflow_id!r}, checkpoint {item.checkpoint_id!r}: item {position} builds on item "
            f"{failed}, which failed.",
            reason="PREDECESSOR_FAILED",
            namespace=self._namespace,
            workflow_id=item.workflow_id,
            scope=item.scope,
            checkpoint_id=item.checkpoint_id,
            metadata={"index": str(position), "predecessor_index": str(failed)},
        )

    def _fill(self) -> None:
        size_bytes = 0
        while len(self._pending) < _calls.ITEMS_MAX:
            if not self._waiting and not self._encode_next():
                break
            if not self._waiting:
                continue
            position, draft, item_bytes = self._waiting[0]
            if self._pending and size_bytes + item_bytes > _calls.BATCH_BYTES:
                break
            self._waiting.popleft()
            if error := self._predecessor_error(position, draft.item):
                # The server does not know of it, since it failed in an earlier request.
                self._take_result(position, draft.item, error)
                continue
            self._pending[position] = draft
            size_bytes += item_bytes

    def _encode_next(self) -> bool:
        """Encode one more item, if there is one; one that cannot be sent has its result at once."""
        item = next(self._items, None)
        if item is None:
            return False
        position = len(self._results)
        self._results.append(None)
        self._positions.setdefault(_key(item), []).append(position)
        if self._stopped is not None:
            self._results[position] = _about(self._stopped, item, self._namespace)
            return True
        base = self._digests.get(_key(item.after)) if isinstance(item.after, SaveItem) else None
        try:
            draft = SaveDraft(
                item,
                namespace=self._namespace,
                codec=self._codec,
                compress_over_bytes=self._compress_over_bytes,
                memory=self._memory,
                base_digests=base,
            )
            item_bytes = draft.request.ByteSize() + _ITEM_BYTES_EXTRA
            if item_bytes > MESSAGE_BYTES_MAX:
                _calls.encode(_calls.SAVE, draft.request)
        except MilepostError as error:
            self._take_result(position, item, error)
            return True
        self._digests[_key(item)] = draft.encoded.digests
        self._waiting.append((position, draft, item_bytes))
        return True


def _key(item: SaveItem | Saved | Checkpoint) -> Key:
    return item.workflow_id, item.scope, item.checkpoint_id


def _about(error: MilepostError, item: SaveItem, namespace: str, outcome_unknown: bool = False) -> MilepostError:
    """Return the error of a whole call as the error of one of its items."""
    own = OutcomeUnknownError(reason=error.reason, metadata=error.metadata) if outcome_unknown else copy.copy(error)
    own.__cause__ = error.__cause__ or error
    own.namespace, own.workflow_id = namespace, item.workflow_id
    own.scope, own.checkpoint_id = item.scope, item.checkpoint_id
    own.args = (f"save of workflow {item.workflow_id!r}, checkpoint {item.checkpoint_id!r}, in {error.message}",)
    return own
