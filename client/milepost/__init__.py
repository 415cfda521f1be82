"""Durable checkpoints for workflows: the client of a milepost server, and what it hands out.

    from milepost import Client

    with Client("127.0.0.1:7450") as client:
        saved = client.save("order-7", state={"total": 42}, current_step="price", after="start")
        checkpoint = client.load("order-7")

Names that are not in `__all__`, here or in the public modules, are private.
"""

from milepost._async.client import AsyncClient
from milepost._config import TLS
from milepost._retry import RetryPolicy
from milepost._sync.client import Client
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
    DefinitionMismatchError,
    DigestMismatchError,
    HeadMovedError,
    InternalError,
    InvalidRequestError,
    LimitExceededError,
    MilepostError,
    NotFoundError,
    OutcomeUnknownError,
    PageExpiredError,
    ParentNotFoundError,
    PredecessorFailedError,
    QueueFullError,
    QuotaExceededError,
    StateNotLoadedError,
    StateSchemaError,
    StoreFullError,
    UnavailableError,
    WorkflowExistsError,
    WorkflowNotFoundError,
)
from milepost.memory import AsyncInMemoryStore, InMemoryStore
from milepost.protocols import AsyncCheckpointStore, AsyncSupportsRecords, CheckpointStore, SupportsRecords
from milepost.types import (
    Checkpoint,
    EntryVersion,
    Record,
    RecordOutcome,
    Saved,
    SaveItem,
    Status,
    WorkflowInfo,
    new_checkpoint_id,
)

__all__ = [
    "JSON",
    "TLS",
    "AsyncCheckpointStore",
    "AsyncClient",
    "AsyncInMemoryStore",
    "AsyncSupportsRecords",
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
    "DataLossError",
    "DeadlineError",
    "DefinitionMismatchError",
    "DigestMismatchError",
    "EntryVersion",
    "HeadMovedError",
    "InMemoryStore",
    "InternalError",
    "InvalidRequestError",
    "LimitExceededError",
    "MilepostError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PageExpiredError",
    "ParentNotFoundError",
    "PredecessorFailedError",
    "QueueFullError",
    "QuotaExceededError",
    "Record",
    "RecordOutcome",
    "RetryPolicy",
    "SaveItem",
    "Saved",
    "StateNotLoadedError",
    "StateSchemaError",
    "Status",
    "StoreFullError",
    "SupportsRecords",
    "UnavailableError",
    "WorkflowExistsError",
    "WorkflowInfo",
    "WorkflowNotFoundError",
    "new_checkpoint_id",
]

# What lives in a private module shows under the name it is imported by, in tracebacks and in pickles.
for _public in (AsyncClient, Client, TLS, RetryPolicy):
    _public.__module__ = __name__
