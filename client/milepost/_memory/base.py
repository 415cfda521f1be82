"""What all parts of the in-memory store stand on: what it holds, the lock around it, and what every change does.

The lock is held by whoever calls a method that begins with an underscore.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from typing_extensions import override

from milepost._failures import located
from milepost._memory.checks import check_texts
from milepost._memory.events import EventLog
from milepost._memory.leases import LeaseTable
from milepost._memory.rows import Row, Stub, Workflow
from milepost.codecs import Codec
from milepost.errors import MilepostError, WorkflowNotFoundError
from milepost.types import WatchEvent, WatchEventKind

CALL_IDS: Final = ("workflow_id", "scope", "checkpoint_id")
P = ParamSpec("P")
ResultT = TypeVar("ResultT")
StoreT = TypeVar("StoreT", bound="MemoryBase")


def names_call(
    operation: Callable[Concatenate[StoreT, P], ResultT],
) -> Callable[Concatenate[StoreT, P], ResultT]:
    """Give the errors of an operation the ids that it was called with: a client's errors have those of the request."""
    signature = inspect.signature(operation)

    @functools.wraps(operation)
    def named(self: StoreT, /, *args: P.args, **options: P.kwargs) -> ResultT:
        try:
            return operation(self, *args, **options)
        except MilepostError as error:
            asked = signature.bind(self, *args, **options).arguments
            item = asked.get("item")
            ids = {name: getattr(item, name, None) or asked.get(name) or "" for name in CALL_IDS}
            raise located(error, self.namespace, **ids) from error.__cause__

    return named


class MemoryBase:
    """The tables of one namespace, and the steps that every operation shares."""

    def __init__(
        self,
        *,
        namespace: str,
        codec: Codec,
        clock: Callable[[], datetime],
    ) -> None:
        check_texts(namespace=namespace)
        self.namespace = namespace
        self.codec = codec
        self._clock = clock
        self._lock = threading.RLock()
        self._workflows: dict[str, Workflow] = {}
        self._stubs: dict[tuple[str, str, str], Stub] = {}
        self._incarnations = 0
        self._leases = LeaseTable(namespace, clock)
        self._log = EventLog(namespace)
        self._manifests: dict[str, str] = {}

    @override
    def __str__(self) -> str:
        return f"namespace={self.namespace!r}, workflows={len(self._workflows)}, codec={self.codec.name!r}"

    def _changed(self, workflow: Workflow, kind: WatchEventKind, *, row: Row | None = None, **more: Any) -> None:
        """Raise the revision and tell watchers: every change does both, so that they can see a gap."""
        workflow.revision += 1
        self._log.append(self._event(workflow, kind, row=row, **more))

    def _event(self, workflow: Workflow, kind: WatchEventKind, *, row: Row | None = None, **more: Any) -> WatchEvent:
        if row is not None:
            more |= {
                "scope": row.scope,
                "checkpoint_id": row.checkpoint_id,
                "sequence": row.sequence,
                "current_step": row.current_step,
                "status": row.status,
            }
        return WatchEvent(
            kind=kind,
            workflow_id=workflow.workflow_id,
            incarnation=workflow.incarnation,
            revision=workflow.revision,
            definition=workflow.definition,
            **more,
        )

    def _create(self, workflow_id: str) -> Workflow:
        self._incarnations += 1
        workflow = Workflow(workflow_id, f"memory-{self._incarnations}", self._clock())
        self._workflows[workflow_id] = workflow
        return workflow

    def _require(self, workflow_id: str) -> Workflow:
        workflow = self._workflows.get(workflow_id)
        if workflow is None or not workflow.is_visible:
            raise WorkflowNotFoundError(
                f"there is no workflow {workflow_id!r} in namespace {self.namespace!r}",
                reason="WORKFLOW_NOT_FOUND",
                metadata={"namespace": self.namespace, "workflow_id": workflow_id},
            )
        return workflow
