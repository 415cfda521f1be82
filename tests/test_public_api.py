"""The public names, one by one: adding one is a decision, and removing one breaks somebody's program."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

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


def test_public_names_have_public_homes() -> None:
    homes = {getattr(milepost, name).__module__ for name in PUBLIC if isinstance(getattr(milepost, name), type)}
    assert [home for home in homes if "._" in home] == []


def test_type_checkers_and_programs_find_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(milepost))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == milepost._NAMES
    assert milepost._NAMES.keys() == set(PUBLIC)


def test_a_client_does_not_load_the_runner() -> None:
    """Nor does the package load a client for whoever wants the wire's messages alone."""
    for code, missing in (
        ("from milepost import Client", "milepost.runner"),
        ("import milepost.v1.checkpoint_pb2", "grpc"),
    ):
        check = f"import sys; {code}; sys.exit({missing!r} in sys.modules)"
        assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0, code


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
