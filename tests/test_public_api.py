"""The public names, one by one: adding one is a decision, and removing one breaks somebody's program."""

from __future__ import annotations

import inspect

import milepost

PUBLIC = [
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
METHODS = [
    "acquire_lease",
    "append_records",
    "break_lease",
    "close",
    "definition_manifest",
    "delete",
    "delete_checkpoints",
    "entry_history",
    "fork",
    "get_lease",
    "lease",
    "list",
    "load",
    "namespace",
    "ping",
    "prune",
    "release_lease",
    "renew_lease",
    "save",
    "save_all",
    "send_signal",
    "signals",
    "target",
    "watch",
    "workflow",
    "workflows",
]


def test_the_public_names_are_these() -> None:
    assert sorted(milepost.__all__) == sorted(PUBLIC)


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in milepost.__all__ if not hasattr(milepost, name)] == []


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    for kind in (milepost.Client, milepost.AsyncClient):
        assert sorted(name for name in vars(kind) if not name.startswith("_")) == METHODS
    for name in METHODS:
        sync_half, async_half = getattr(milepost.Client, name), getattr(milepost.AsyncClient, name)
        if callable(sync_half):
            expected = inspect.signature(async_half).parameters
            assert inspect.signature(sync_half).parameters == expected, name


def test_clients_and_in_memory_stores_are_stores() -> None:
    for kind in (milepost.Client, milepost.InMemoryStore):
        assert isinstance(kind(), milepost.CheckpointStore)
        assert isinstance(kind(), milepost.WorkflowStore)
    for async_kind in (milepost.AsyncClient, milepost.AsyncInMemoryStore):
        assert isinstance(async_kind(), milepost.AsyncCheckpointStore)
        assert isinstance(async_kind(), milepost.AsyncWorkflowStore)
