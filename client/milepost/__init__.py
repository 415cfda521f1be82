"""Durable checkpoints for workflows: the client of a milepost server, and what it hands out.

    from milepost import Client

    with Client("127.0.0.1:7450") as client:
        saved = client.save("order-7", state={"total": 42}, current_step="price", after="start")
        checkpoint = client.load("order-7")

A workflow is defined once and run, or resumed, by whoever has the store:

    order = Workflow("order", dict[str, Any])

    @order.step
    def price(state): ...

    order.bind(client).run("order-7", {"items": 3})

Names that are not in `__all__`, here or in the public modules, are private.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from milepost._async.client import AsyncClient
    from milepost._async.lease import AsyncLease
    from milepost._config import TLS
    from milepost._retry import RetryPolicy
    from milepost._sync.client import Client
    from milepost._sync.lease import Lease
    from milepost.codecs import JSON, Codec
    from milepost.errors import (
        AuthError,
        BaseNotFoundError,
        CapacityError,
        CheckpointDeletedError,
        CheckpointExistsError,
        CheckpointNotFoundError,
        ClientForkedError,
        CodecError,
        ConflictError,
        DataLossError,
        DeadlineError,
        DefinitionChangedError,
        DefinitionMismatchError,
        DefinitionNotFoundError,
        DigestMismatchError,
        HeadMovedError,
        InputMismatchError,
        InternalError,
        InvalidRequestError,
        LeaseError,
        LeaseHeldError,
        LeaseLostError,
        LimitExceededError,
        MilepostError,
        NotFoundError,
        OutcomeUnknownError,
        PageExpiredError,
        ParentNotFoundError,
        PredecessorFailedError,
        QueueFullError,
        QuotaExceededError,
        SignalExistsError,
        StateConflictError,
        StateNotLoadedError,
        StateSchemaError,
        StepFailedError,
        StepOutcomeUnknownError,
        StepTimeoutError,
        StoreFullError,
        UnavailableError,
        WatchCompactedError,
        WatchTooSlowError,
        WorkflowCancelledError,
        WorkflowDeadlineError,
        WorkflowError,
        WorkflowExistsError,
        WorkflowNotFoundError,
    )
    from milepost.memory import AsyncInMemoryStore, InMemoryStore
    from milepost.protocols import (
        AsyncCheckpointStore,
        AsyncSupportsDefinitions,
        AsyncSupportsLeases,
        AsyncSupportsRecords,
        AsyncSupportsSignals,
        AsyncSupportsWatch,
        AsyncSupportsWorkflows,
        AsyncWatchStream,
        AsyncWorkflowStore,
        CheckpointStore,
        SupportsDefinitions,
        SupportsLeases,
        SupportsRecords,
        SupportsSignals,
        SupportsWatch,
        SupportsWorkflows,
        WatchStream,
        WorkflowStore,
    )
    from milepost.runner import (
        DELETE,
        AsyncContext,
        AsyncRunner,
        Context,
        Reducer,
        Replace,
        Retry,
        Run,
        Runner,
        Step,
        StepCancelledError,
        Workflow,
        add,
        append,
        last,
        union,
    )
    from milepost.types import (
        CANCEL_SIGNAL,
        Checkpoint,
        EntryVersion,
        LeaseInfo,
        LeaseRenewal,
        PendingSignal,
        Record,
        RecordOutcome,
        Saved,
        SaveItem,
        Signal,
        SignalSent,
        Status,
        WatchEvent,
        WatchEventKind,
        WorkflowInfo,
        new_checkpoint_id,
    )

__all__ = [
    "CANCEL_SIGNAL",
    "DELETE",
    "JSON",
    "TLS",
    "AsyncCheckpointStore",
    "AsyncClient",
    "AsyncContext",
    "AsyncInMemoryStore",
    "AsyncLease",
    "AsyncRunner",
    "AsyncSupportsDefinitions",
    "AsyncSupportsLeases",
    "AsyncSupportsRecords",
    "AsyncSupportsSignals",
    "AsyncSupportsWatch",
    "AsyncSupportsWorkflows",
    "AsyncWatchStream",
    "AsyncWorkflowStore",
    "AuthError",
    "BaseNotFoundError",
    "CapacityError",
    "Checkpoint",
    "CheckpointDeletedError",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "CheckpointStore",
    "Client",
    "ClientForkedError",
    "Codec",
    "CodecError",
    "ConflictError",
    "Context",
    "DataLossError",
    "DeadlineError",
    "DefinitionChangedError",
    "DefinitionMismatchError",
    "DefinitionNotFoundError",
    "DigestMismatchError",
    "EntryVersion",
    "HeadMovedError",
    "InMemoryStore",
    "InputMismatchError",
    "InternalError",
    "InvalidRequestError",
    "Lease",
    "LeaseError",
    "LeaseHeldError",
    "LeaseInfo",
    "LeaseLostError",
    "LeaseRenewal",
    "LimitExceededError",
    "MilepostError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PageExpiredError",
    "ParentNotFoundError",
    "PendingSignal",
    "PredecessorFailedError",
    "QueueFullError",
    "QuotaExceededError",
    "Record",
    "RecordOutcome",
    "Reducer",
    "Replace",
    "Retry",
    "RetryPolicy",
    "Run",
    "Runner",
    "SaveItem",
    "Saved",
    "Signal",
    "SignalExistsError",
    "SignalSent",
    "StateConflictError",
    "StateNotLoadedError",
    "StateSchemaError",
    "Status",
    "Step",
    "StepCancelledError",
    "StepFailedError",
    "StepOutcomeUnknownError",
    "StepTimeoutError",
    "StoreFullError",
    "SupportsDefinitions",
    "SupportsLeases",
    "SupportsRecords",
    "SupportsSignals",
    "SupportsWatch",
    "SupportsWorkflows",
    "UnavailableError",
    "WatchCompactedError",
    "WatchEvent",
    "WatchEventKind",
    "WatchStream",
    "WatchTooSlowError",
    "Workflow",
    "WorkflowCancelledError",
    "WorkflowDeadlineError",
    "WorkflowError",
    "WorkflowExistsError",
    "WorkflowInfo",
    "WorkflowNotFoundError",
    "WorkflowStore",
    "add",
    "append",
    "last",
    "new_checkpoint_id",
    "union",
]

# Names are imported when they are first asked for: a program that has a client does not load the runner, and a server,
# which takes the wire's messages alone, neither. Type checkers read the imports above; a test compares the two.
_NAMES: Final[Mapping[str, str]] = {
    name: module
    for module, names in {
        "milepost._async.client": "AsyncClient",
        "milepost._async.lease": "AsyncLease",
        "milepost._config": "TLS",
        "milepost._retry": "RetryPolicy",
        "milepost._sync.client": "Client",
        "milepost._sync.lease": "Lease",
        "milepost.codecs": "JSON Codec",
        "milepost.errors": (
            "AuthError BaseNotFoundError CapacityError CheckpointDeletedError CheckpointExistsError "
            "CheckpointNotFoundError ClientForkedError CodecError ConflictError DataLossError DeadlineError "
            "DefinitionChangedError DefinitionMismatchError DefinitionNotFoundError DigestMismatchError "
            "HeadMovedError InputMismatchError InternalError InvalidRequestError LeaseError LeaseHeldError "
            "LeaseLostError LimitExceededError MilepostError NotFoundError OutcomeUnknownError PageExpiredError "
            "ParentNotFoundError PredecessorFailedError QueueFullError QuotaExceededError SignalExistsError "
            "StateConflictError StateNotLoadedError StateSchemaError StepFailedError StepOutcomeUnknownError "
            "StepTimeoutError StoreFullError UnavailableError WatchCompactedError WatchTooSlowError "
            "WorkflowCancelledError WorkflowDeadlineError WorkflowError WorkflowExistsError WorkflowNotFoundError"
        ),
        "milepost.memory": "AsyncInMemoryStore InMemoryStore",
        "milepost.protocols": (
            "AsyncCheckpointStore AsyncSupportsDefinitions AsyncSupportsLeases AsyncSupportsRecords "
            "AsyncSupportsSignals AsyncSupportsWatch AsyncSupportsWorkflows AsyncWatchStream AsyncWorkflowStore "
            "CheckpointStore SupportsDefinitions SupportsLeases SupportsRecords SupportsSignals SupportsWatch "
            "SupportsWorkflows WatchStream WorkflowStore"
        ),
        "milepost.runner": (
            "DELETE AsyncContext AsyncRunner Context Reducer Replace Retry Run Runner Step StepCancelledError "
            "Workflow add append last union"
        ),
        "milepost.types": (
            "CANCEL_SIGNAL Checkpoint EntryVersion LeaseInfo LeaseRenewal PendingSignal Record RecordOutcome Saved "
            "SaveItem Signal SignalSent Status WatchEvent WatchEventKind WorkflowInfo new_checkpoint_id"
        ),
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> object:
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(module), name)
    if isinstance(found, type) and "._" in found.__module__:
        # What lives in a private module shows under the name it is imported by, in tracebacks and in pickles.
        found.__module__ = __name__
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
