"""A list of checkpoints, of one thread or of all, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from milepost import _calls, _compression
from milepost._texts import build
from milepost.adapters.langgraph import encoding
from milepost.adapters.langgraph.addresses import Address
from milepost.adapters.langgraph.exchanges import PAGE_SIZE_MAX, Exchange, Exchanges
from milepost.adapters.langgraph.put import DEFINITION
from milepost.errors import WorkflowNotFoundError
from milepost.v1 import checkpoint_pb2
from milepost.v1 import checkpoint_store_pb2 as pb


class Listing:
    """One call of `list`: asks for the next page whenever somebody wants it."""

    def __init__(
        self,
        exchanges: Exchanges,
        config: RunnableConfig | None,
        wanted: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> None:
        """Begin a list; asks nothing yet.

        Args:
            exchanges: The saver's.
            config: The thread, with a namespace or without, and perhaps one checkpoint; None: every thread.
            wanted: What the metadata has to contain.
            before: Only ids that sort before this config's.
            limit: Most checkpoints in all.
        """
        self._exchanges = exchanges
        configurable = config["configurable"] if config is not None else {}
        self._checkpoint_id = str(configurable.get("checkpoint_id") or "")
        before_id = "" if before is None else str(before["configurable"].get("checkpoint_id") or "")
        self._left = limit
        page_size = 0 if limit is None else min(max(limit, 0), PAGE_SIZE_MAX)
        if self._checkpoint_id:
            # The server has no such filter. Ids that sort below it are passed over without their state.
            just_behind = f"{self._checkpoint_id}~"
            before_id = min(before_id, just_behind) if before_id else just_behind
            page_size = PAGE_SIZE_MAX
        self._request = build(
            pb.ListRequest,
            namespace=exchanges.namespace,
            workflow_id=str(configurable.get("thread_id", "")),
            scope=configurable.get("checkpoint_ns"),
            page_size=page_size,
            before_checkpoint_id=before_id or None,
            metadata_contains=encoding.filter_to_json(wanted) if wanted else "",
            include_state=not self._checkpoint_id,
            include_records=not self._checkpoint_id,
            accept_compression=_compression.accepted(),
        )
        self._threads: list[str] = []
        self._thread_token: str | None = None
        if "thread_id" in configurable:
            self._threads.append(str(configurable["thread_id"]))
        else:
            self._thread_token = ""
        self._is_in_thread = False

    def next_page(self) -> Exchange[Iterable[CheckpointTuple] | None]:
        """Read the next page, which may be empty; None when there is no more.

        Its checkpoints are decoded one at a time, as they are taken: a page has no bound of its own decompressed.
        """
        if self._left is not None and self._left <= 0:
            return None
        if not self._is_in_thread:
            if not self._threads and self._thread_token is not None:
                yield from self._read_threads(self._thread_token)
            if not self._threads:
                return None if self._thread_token is None else ()
            self._request.workflow_id = self._threads.pop(0)
            self._request.page_token = ""
        try:
            response = yield _calls.LIST, self._request
        except WorkflowNotFoundError:
            self._is_in_thread = False
            return ()
        self._request.page_token = response.next_page_token
        self._is_in_thread = bool(response.next_page_token)
        taken: list[checkpoint_pb2.Checkpoint] = []
        for found in response.checkpoints[: self._left]:
            if not self._checkpoint_id:
                taken.append(found)
            elif found.checkpoint_id == self._checkpoint_id:
                at = Address(found.workflow_id, found.scope, found.checkpoint_id)
                loaded = yield from self._exchanges.load(at)
                taken += [] if loaded is None else [loaded]
        if self._left is not None:
            self._left -= len(taken)
        return map(self._exchanges.read, taken)

    def _read_threads(self, page_token: str) -> Exchange[None]:
        request = build(
            pb.ListWorkflowsRequest,
            namespace=self._exchanges.namespace,
            definition=DEFINITION,
            page_size=PAGE_SIZE_MAX,
            page_token=page_token,
        )
        response = yield _calls.LIST_WORKFLOWS, request
        self._threads = [found.workflow_id for found in response.workflows]
        self._thread_token = response.next_page_token or None
