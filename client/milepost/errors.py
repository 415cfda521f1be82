"""What can go wrong, one class for each thing a caller would do differently.

    MilepostError
    ├── NotFoundError (LookupError)
    │   ├── WorkflowNotFoundError
    │   ├── CheckpointNotFoundError
    │   └── DefinitionNotFoundError
    ├── ConflictError
    │   ├── HeadMovedError
    │   ├── WorkflowExistsError
    │   ├── CheckpointExistsError
    │   ├── CheckpointDeletedError
    │   ├── ParentNotFoundError
    │   ├── BaseNotFoundError
    │   ├── DefinitionMismatchError
    │   ├── DigestMismatchError
    │   ├── InputMismatchError
    │   ├── PredecessorFailedError
    │   ├── SignalExistsError
    │   ├── PageExpiredError
    │   └── WatchCompactedError
    ├── LeaseError
    │   ├── LeaseHeldError
    │   └── LeaseLostError
    ├── InvalidRequestError (ValueError)
    │   └── LimitExceededError
    ├── CapacityError
    │   ├── QueueFullError
    │   ├── StoreFullError
    │   ├── QuotaExceededError
    │   └── WatchTooSlowError
    ├── UnavailableError (ConnectionError)
    ├── DeadlineError (TimeoutError)
    ├── OutcomeUnknownError
    ├── DataLossError
    ├── InternalError
    ├── AuthError
    ├── CodecError
    ├── StateNotLoadedError
    ├── StateSchemaError
    ├── ClientForkedError (RuntimeError)
    └── WorkflowError
        ├── StepFailedError
        │   └── StepTimeoutError (TimeoutError)
        ├── StepOutcomeUnknownError
        ├── DefinitionChangedError
        ├── WorkflowCancelledError
        ├── WorkflowDeadlineError (TimeoutError)
        └── StateConflictError

Every error takes a message and the same keyword fields, so it can be made from an answer of the server, by the
in-memory stores and by tests alike; what belongs to one class is a property over `metadata`. All of them survive
pickle and copy. A message carries ids, names and sizes, never a value of the state and never a token.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from typing_extensions import Unpack, override

__all__ = [
    "AuthError",
    "BaseNotFoundError",
    "CapacityError",
    "CheckpointDeletedError",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "ClientForkedError",
    "CodecError",
    "ConflictError",
    "DataLossError",
    "DeadlineError",
    "DefinitionChangedError",
    "DefinitionMismatchError",
    "DefinitionNotFoundError",
    "DigestMismatchError",
    "HeadMovedError",
    "InputMismatchError",
    "InternalError",
    "InvalidRequestError",
    "LeaseError",
    "LeaseHeldError",
    "LeaseLostError",
    "LimitExceededError",
    "MilepostError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PageExpiredError",
    "ParentNotFoundError",
    "PredecessorFailedError",
    "QueueFullError",
    "QuotaExceededError",
    "SignalExistsError",
    "StateConflictError",
    "StateNotLoadedError",
    "StateSchemaError",
    "StepFailedError",
    "StepOutcomeUnknownError",
    "StepTimeoutError",
    "StoreFullError",
    "UnavailableError",
    "WatchCompactedError",
    "WatchTooSlowError",
    "WorkflowCancelledError",
    "WorkflowDeadlineError",
    "WorkflowError",
    "WorkflowExistsError",
    "WorkflowNotFoundError",
]


class MilepostError(Exception):
    """Something went wrong; the base of every error of this package.

    Attributes:
        reason: Name of the wire's `ErrorReason`, "" where the error did not come from a server or store.
        namespace: Tenant boundary of the call, "" where there was none.
        workflow_id: The workflow that was asked for, "" where there was none.
        scope: The nested run that was asked for.
        checkpoint_id: The checkpoint that was asked for, "" where there was none.
        metadata: What the server says about it, by name; all of it text.
    """

    reason: str
    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str
    metadata: dict[str, str]

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        namespace: str = "",
        workflow_id: str = "",
        scope: str = "",
        checkpoint_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.namespace = namespace
        self.workflow_id = workflow_id
        self.scope = scope
        self.checkpoint_id = checkpoint_id
        self.metadata = dict(metadata or {})

    @property
    def message(self) -> str:
        """What happened, for people."""
        return str(self.args[0]) if self.args else ""

    @override
    def __str__(self) -> str:
        return self.message

    # BaseException would call the class with `args` alone, and OSError has its own idea of what its arguments are.
    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__.copy())

    def _text(self, key: str) -> str:
        return self.metadata.get(key, "")

    def _number(self, key: str) -> int | None:
        text = self.metadata.get(key, "")
        try:
            return int(text)
        except ValueError:
            return None


def _restore(kind: type[MilepostError], args: tuple[Any, ...], fields: dict[str, Any]) -> MilepostError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class NotFoundError(MilepostError, LookupError):
    """The server answered, and what was asked for is not there. Never used for an outage."""


class WorkflowNotFoundError(NotFoundError):
    """There is no such workflow: nothing was saved under this id, or it was deleted."""


class CheckpointNotFoundError(NotFoundError):
    """The workflow exists; the checkpoint does not, in that scope."""


class DefinitionNotFoundError(NotFoundError):
    """No manifest was stored under this fingerprint."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint that was asked for."""
        return self._text("fingerprint")


class ConflictError(MilepostError):
    """What the store holds does not allow the call. Sending it again unchanged gives the same answer."""


class HeadMovedError(ConflictError):
    """Somebody else saved first: the head is not the checkpoint given as `after`."""

    @property
    def expected_head(self) -> str:
        """The checkpoint id that the head was expected to be; "" means that there should have been none."""
        return self._text("expected_head")

    @property
    def head_checkpoint_id(self) -> str:
        """The real head; "" where the scope has none."""
        return self._text("head_checkpoint_id")

    @property
    def head_sequence(self) -> int | None:
        """Sequence of the real head, if the server said it."""
        return self._number("head_sequence")


class WorkflowExistsError(ConflictError):
    """The target of a fork exists already."""


class CheckpointExistsError(ConflictError):
    """The checkpoint id is taken by other content."""

    @property
    def sequence(self) -> int | None:
        """Sequence of the checkpoint that has the id."""
        return self._number("sequence")


class CheckpointDeletedError(ConflictError):
    """The id was saved before and has been deleted or pruned since; nothing was written."""


class ParentNotFoundError(ConflictError):
    """The parent was never saved in this scope."""

    @property
    def parent_id(self) -> str:
        """The parent that was named."""
        return self._text("parent_id")


class BaseNotFoundError(ConflictError):
    """The base of an incremental save is gone. The client then sends the state in full, so callers rarely see this."""


class DefinitionMismatchError(ConflictError):
    """The workflow belongs to another definition."""

    @property
    def definition(self) -> str:
        """The definition that the workflow belongs to."""
        return self._text("definition")

    @property
    def found(self) -> str:
        """The definition that the call named."""
        return self._text("found")


class DigestMismatchError(ConflictError):
    """A replace named content that is not the stored one."""


class InputMismatchError(ConflictError):
    """The workflow was started with another input.

    To go on with it, pass no state; to run another one, take a new id.
    """


class PredecessorFailedError(ConflictError):
    """In a `save_all`, an earlier item that this one builds on failed; this one was not stored."""


class SignalExistsError(ConflictError):
    """The signal id is taken by a signal of another name or value."""

    @property
    def signal_id(self) -> str:
        """The id that is taken."""
        return self._text("signal_id")


class PageExpiredError(ConflictError):
    """The workflow was deleted and made again while it was being listed; list it anew."""


class WatchCompactedError(ConflictError):
    """What happened since the given revision is not kept any more: read the workflow and watch on from there."""

    @property
    def revision(self) -> int | None:
        """The revision that the watch was to go on after."""
        return self._number("revision")


class LeaseError(MilepostError):
    """The call needs the workflow's lease, and does not have it. Nothing was changed."""


class LeaseHeldError(LeaseError):
    """Somebody else holds the workflow's lease."""

    @property
    def holder(self) -> str:
        """Who holds it, as they call themselves."""
        return self._text("holder")

    @property
    def remaining_s(self) -> float | None:
        """How long it still runs unless it is renewed, in seconds, if the server said it."""
        remaining_ms = self._number("remaining_ms")
        return None if remaining_ms is None else remaining_ms / 1_000


class LeaseLostError(LeaseError):
    """The token is not that of the workflow's newest lease: another was granted since, or it was released or broken.

    Whoever gets this has to stop: somebody else may be advancing the workflow.
    """


class InvalidRequestError(MilepostError, ValueError):
    """A field of the call is malformed."""

    @property
    def field(self) -> str:
        """The field, as the wire names it; "" where none was named."""
        return self._text("field")


class LimitExceededError(InvalidRequestError):
    """Something is larger, longer, deeper or more than allowed; nothing was stored."""

    @property
    def limit(self) -> str:
        """Name of the limit."""
        return self._text("limit")

    @property
    def allowed(self) -> int | None:
        """The most that is allowed, in `unit`."""
        return self._number("allowed")

    @property
    def found(self) -> int | None:
        """What the call had, in `unit`."""
        return self._number("found")

    @property
    def unit(self) -> str:
        """What `allowed` and `found` count."""
        return self._text("unit")


class CapacityError(MilepostError):
    """The server has no room for the call; nothing was stored."""

    @property
    def limit(self) -> str:
        """Name of the limit that was reached."""
        return self._text("limit")

    @property
    def allowed(self) -> int | None:
        """The most that is allowed, in `unit`."""
        return self._number("allowed")

    @property
    def found(self) -> int | None:
        """What there is, in `unit`."""
        return self._number("found")

    @property
    def unit(self) -> str:
        """What `allowed` and `found` count."""
        return self._text("unit")


class QueueFullError(CapacityError):
    """Too many calls wait at the server; the client has sent this one again until its time was up."""


class StoreFullError(CapacityError):
    """The disk is low or the database has its largest size. Deleting and pruning still work."""


class QuotaExceededError(CapacityError):
    """A count allowed to the workflow or to the store is used up."""


class WatchTooSlowError(CapacityError):
    """Events came faster than the watcher read them. Watch on from the last one that was seen."""


class UnavailableError(MilepostError, ConnectionError):
    """The server cannot be reached or does not serve now. Nothing was stored by this call."""


class DeadlineError(MilepostError, TimeoutError):
    """The time given to the call was over before an answer came. Nothing was stored by this call."""


class OutcomeUnknownError(MilepostError):
    """The call may or may not have taken effect: the answer to an attempt was lost.

    Make the same call again to learn which; for a save, with this `checkpoint_id` and the same arguments: it is
    stored once, however often it is sent. Or load that checkpoint.
    """


class DataLossError(MilepostError):
    """A stored record is damaged. The server never answers other bytes in its place."""

    @property
    def table(self) -> str:
        """Where the record is kept."""
        return self._text("table")

    @property
    def key(self) -> str:
        """Key of the record, in hexadecimal."""
        return self._text("key")


class InternalError(MilepostError):
    """A defect of the server; its log has the traceback under `error_id`."""

    @property
    def error_id(self) -> str:
        """What to look for in the server's log."""
        return self._text("error_id")


class AuthError(MilepostError):
    """The server does not know the caller, or does not let it do this."""


class CodecError(MilepostError):
    """A value cannot be encoded, or what is stored cannot be decoded, without changing it.

    Attributes:
        path: Where the value is, for example `state["orders"][3].total`.
        type: Name of its type, or of the codec or tag that is not known.
    """

    path: str
    type: str

    def __init__(
        self,
        message: str = "",
        *,
        path: str = "",
        type: str = "",  # noqa: A002 - the name that a reader of the error expects
        reason: str = "",
        namespace: str = "",
        workflow_id: str = "",
        scope: str = "",
        checkpoint_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            message,
            reason=reason,
            namespace=namespace,
            workflow_id=workflow_id,
            scope=scope,
            checkpoint_id=checkpoint_id,
            metadata=metadata,
        )
        self.path = path
        self.type = type


class StateNotLoadedError(MilepostError):
    """The checkpoint was listed or loaded without its state."""


class StateSchemaError(MilepostError):
    """A stored state does not fit the type that was asked for."""


class ClientForkedError(MilepostError, RuntimeError):
    """The client was used before the process forked; make a new one in the child.

    Attributes:
        owner_pid: The process that used the client first.
        pid: This process.
    """

    owner_pid: int
    pid: int

    def __init__(self, message: str = "", *, owner_pid: int = 0, pid: int = 0) -> None:
        super().__init__(message)
        self.owner_pid = owner_pid
        self.pid = pid


class ErrorFields(TypedDict, total=False):
    """The keyword fields that every error takes."""

    reason: str
    namespace: str
    workflow_id: str
    scope: str
    checkpoint_id: str
    metadata: Mapping[str, str] | None


class WorkflowError(MilepostError):
    """A run of a workflow did not reach its end. What was saved before stays, and the run can be resumed from there.

    Attributes:
        step: The step it is about, "" where it is about none.
        save_error: Why this end of the run could not be stored, where it should have been and is not: then the workflow
            still counts as running, and whoever serves it takes it up again. None: it is stored, or nothing was to be.
    """

    step: str
    save_error: MilepostError | None

    def __init__(self, message: str = "", *, step: str = "", **fields: Unpack[ErrorFields]) -> None:
        super().__init__(message, **fields)
        self.step = step
        self.save_error = None


class StepFailedError(WorkflowError):
    """A step raised in its last attempt; what it raised is the cause, a group where several branches failed.

    Attributes:
        attempts: How often the step was tried.
    """

    attempts: int

    def __init__(self, message: str = "", *, step: str = "", attempts: int = 0, **fields: Unpack[ErrorFields]) -> None:
        super().__init__(message, step=step, **fields)
        self.attempts = attempts


class StepTimeoutError(StepFailedError, TimeoutError):
    """A step took longer than its `timeout_s`, in its last attempt.

    Attributes:
        timeout_s: What the step was given, in seconds.
        abandoned: Its thread went on past the grace time and may still be running; its result is discarded.
    """

    timeout_s: float
    abandoned: bool

    def __init__(
        self,
        message: str = "",
        *,
        step: str = "",
        attempts: int = 0,
        timeout_s: float = 0.0,
        abandoned: bool = False,
        **fields: Unpack[ErrorFields],
    ) -> None:
        super().__init__(message, step=step, attempts=attempts, **fields)
        self.timeout_s = timeout_s
        self.abandoned = abandoned


class StepOutcomeUnknownError(WorkflowError):
    """A step with `at_most_once` was started and its result is not known, so it is not run again.

    Find out what happened, then say so: `runner.resolve(workflow_id, step, …)`.

    Attributes:
        item_key: The item, where the step runs once for each; else None.
        attempt_id: Names the attempt whose outcome is unknown.
    """

    item_key: str | None
    attempt_id: str

    def __init__(
        self,
        message: str = "",
        *,
        step: str = "",
        item_key: str | None = None,
        attempt_id: str = "",
        **fields: Unpack[ErrorFields],
    ) -> None:
        super().__init__(message, step=step, **fields)
        self.item_key = item_key
        self.attempt_id = attempt_id


class DefinitionChangedError(WorkflowError):
    """The workflow was started under another definition, and `on_change` does not let this one go on with it.

    Attributes:
        added: Steps that this definition has and that one had not.
        removed: Steps that it has no more.
        changed: Steps that both have, with a difference.
        problems: Why it cannot go on, a sentence each.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    problems: tuple[str, ...]

    def __init__(
        self,
        message: str = "",
        *,
        step: str = "",
        added: Iterable[str] = (),
        removed: Iterable[str] = (),
        changed: Iterable[str] = (),
        problems: Iterable[str] = (),
        **fields: Unpack[ErrorFields],
    ) -> None:
        super().__init__(message, step=step, **fields)
        self.added = tuple(added)
        self.removed = tuple(removed)
        self.changed = tuple(changed)
        self.problems = tuple(problems)


class WorkflowCancelledError(WorkflowError):
    """The workflow was cancelled; it is stored as such and does not go on."""


class WorkflowDeadlineError(WorkflowError, TimeoutError):
    """The time given to the whole workflow was over before it was finished."""


class StateConflictError(WorkflowError):
    """Steps that ran side by side left different values in one entry, and nothing says how to merge them.

    Attributes:
        entry: The entry.
        steps: The steps, in the order of their declaration.
    """

    entry: str
    steps: tuple[str, ...]

    def __init__(
        self,
        message: str = "",
        *,
        step: str = "",
        entry: str = "",
        steps: Iterable[str] = (),
        **fields: Unpack[ErrorFields],
    ) -> None:
        super().__init__(message, step=step, **fields)
        self.entry = entry
        self.steps = tuple(steps)


class Code(enum.IntEnum):
    """The gRPC codes, by number, so that this module needs no gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# THE table: what the wire says -> what Python raises. A pair with the reason "" stands for every reason that this
# version does not know, so an older client meets a newer server with the nearest base class.
ERROR_CLASSES: Mapping[tuple[int, str], type[MilepostError]] = {
    (Code.INVALID_ARGUMENT, ""): InvalidRequestError,
    (Code.INVALID_ARGUMENT, "INVALID_FIELD"): InvalidRequestError,
    (Code.INVALID_ARGUMENT, "LIMIT_EXCEEDED"): LimitExceededError,
    (Code.INVALID_ARGUMENT, "STATE_TOO_LARGE"): LimitExceededError,
    (Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"): InvalidRequestError,
    (Code.INVALID_ARGUMENT, "PAGE_TOKEN_MISMATCH"): InvalidRequestError,
    (Code.NOT_FOUND, ""): NotFoundError,
    (Code.NOT_FOUND, "WORKFLOW_NOT_FOUND"): WorkflowNotFoundError,
    (Code.NOT_FOUND, "CHECKPOINT_NOT_FOUND"): CheckpointNotFoundError,
    (Code.NOT_FOUND, "DEFINITION_NOT_FOUND"): DefinitionNotFoundError,
    (Code.ALREADY_EXISTS, ""): ConflictError,
    (Code.ALREADY_EXISTS, "CHECKPOINT_EXISTS"): CheckpointExistsError,
    (Code.ALREADY_EXISTS, "WORKFLOW_EXISTS"): WorkflowExistsError,
    (Code.ALREADY_EXISTS, "SIGNAL_EXISTS"): SignalExistsError,
    (Code.ABORTED, ""): ConflictError,
    (Code.ABORTED, "HEAD_MOVED"): HeadMovedError,
    (Code.ABORTED, "PAGE_EXPIRED"): PageExpiredError,
    (Code.ABORTED, "DIGEST_MISMATCH"): DigestMismatchError,
    (Code.ABORTED, "LEASE_HELD"): LeaseHeldError,
    (Code.ABORTED, "LEASE_LOST"): LeaseLostError,
    (Code.FAILED_PRECONDITION, ""): ConflictError,
    (Code.FAILED_PRECONDITION, "BASE_NOT_FOUND"): BaseNotFoundError,
    (Code.FAILED_PRECONDITION, "PARENT_NOT_FOUND"): ParentNotFoundError,
    (Code.FAILED_PRECONDITION, "CHECKPOINT_DELETED"): CheckpointDeletedError,
    (Code.FAILED_PRECONDITION, "DEFINITION_MISMATCH"): DefinitionMismatchError,
    (Code.FAILED_PRECONDITION, "PREDECESSOR_FAILED"): PredecessorFailedError,
    (Code.FAILED_PRECONDITION, "RECORD_CHECKPOINT_MISSING"): CheckpointNotFoundError,
    (Code.RESOURCE_EXHAUSTED, ""): CapacityError,
    (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"): QueueFullError,
    (Code.RESOURCE_EXHAUSTED, "DISK_LOW"): StoreFullError,
    (Code.RESOURCE_EXHAUSTED, "STORE_FULL"): StoreFullError,
    (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"): QuotaExceededError,
    (Code.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW"): WatchTooSlowError,
    (Code.UNAVAILABLE, ""): UnavailableError,
    (Code.UNAVAILABLE, "NOT_COMMITTED"): UnavailableError,
    (Code.UNAVAILABLE, "NOT_SERVING"): UnavailableError,
    (Code.UNKNOWN, "OUTCOME_UNKNOWN"): OutcomeUnknownError,
    (Code.DATA_LOSS, ""): DataLossError,
    (Code.DATA_LOSS, "RECORD_DAMAGED"): DataLossError,
    (Code.INTERNAL, ""): InternalError,
    (Code.INTERNAL, "INTERNAL_ERROR"): InternalError,
    (Code.DEADLINE_EXCEEDED, ""): DeadlineError,
    (Code.CANCELLED, ""): UnavailableError,
    (Code.OUT_OF_RANGE, ""): InvalidRequestError,
    (Code.OUT_OF_RANGE, "WATCH_COMPACTED"): WatchCompactedError,
    (Code.UNAUTHENTICATED, ""): AuthError,
    (Code.PERMISSION_DENIED, ""): AuthError,
}


def error_class(code: int, reason: str) -> type[MilepostError]:
    """Return the class for a gRPC code and an `ErrorReason` name ("" for none)."""
    found = ERROR_CLASSES.get((code, reason)) or ERROR_CLASSES.get((code, ""))
    return found or MilepostError
