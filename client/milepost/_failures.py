"""Failed calls: what gRPC or an item of a batch tells of one, and the error that its caller sees. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message

from milepost._retry import Attempts, Failure
from milepost._status import Details, read_details
from milepost._texts import IDS
from milepost.errors import Code, MilepostError, NotFoundError, OutcomeUnknownError, error_class
from milepost.v1 import checkpoint_store_pb2 as pb
from milepost.v1 import error_reason_pb2

if TYPE_CHECKING:
    from milepost._calls import Method

SHOWN_ID_CHARACTERS_MAX: Final = 128

ErrorT = TypeVar("ErrorT", bound=MilepostError)


def read_failure(error: grpc.RpcError) -> Failure:
    """Return what a failed call tells, of either half of gRPC."""
    call = cast("grpc.Call", error)
    details = read_details(cast("Sequence[tuple[str, str | bytes]] | None", call.trailing_metadata()))
    return Failure(call.code().value[0], call.details() or "", details, cause=error)


def read_item_error(error: pb.ItemError) -> Failure:
    """Return what the error of a batch's item tells."""
    try:
        reason = error_reason_pb2.ErrorReason.Name(error.reason) if error.reason else ""
    except ValueError:
        reason = f"UNKNOWN_REASON_{error.reason}"
    metadata, message = dict(error.metadata), error.message
    at, found, field = metadata.get("field", "").partition("].")
    if found and at.startswith("items["):
        # Its place in a request that the caller never saw.
        metadata["field"], message = field, message.replace(f"{at}].", "")
    # The one reason that comes with RetryInfo where its code alone does not invite to try again.
    retry_after_s = 0.0 if reason == "QUEUE_FULL" else None
    return Failure(error.code, message, Details(reason, metadata, retry_after_s))


def to_error(
    method: Method[Any],
    request: Message,
    failure: Failure,
    *,
    outcome_unknown: bool,
    attempts: Attempts | None = None,
    target: str = "",
) -> MilepostError:
    """Return the error that a caller sees for a call that is given up; its cause is what gRPC raised.

    Args:
        method: What was called.
        request: With what; only its ids are read.
        failure: The last attempt.
        outcome_unknown: An attempt may have taken effect.
        attempts: All of them, for the message.
        target: The server, for the message.
    """
    name = _code_name(failure.code)
    said = f"{failure.text.rstrip('.') or 'no message'} ({failure.details.reason or name})"
    tries = ""
    if attempts is not None and (attempts.count > 1 or failure.is_retryable):
        plural = "s" if attempts.count > 1 else ""
        tries = f", after {attempts.count} attempt{plural} in {attempts.elapsed_s:.1f} s"
    metadata = dict(failure.details.metadata)
    if failure.details.violations:
        metadata.setdefault("field", failure.details.violations[0][0])
    fields: dict[str, Any] = {"reason": failure.details.reason, "metadata": metadata, **ids_of(request)}
    if outcome_unknown and method.mutates:
        kind: type[MilepostError] = OutcomeUnknownError
        same = " with the same checkpoint_id" if fields["checkpoint_id"] and method.name == "Save" else ""
        said = f"it may or may not have taken effect: {said}{tries}. Make the same call again{same} to learn which."
    else:
        kind = error_class(failure.code, failure.details.reason)
        if issubclass(kind, NotFoundError) and not failure.is_ours:
            # Something between here and the server does not know it. That must not look like a new workflow.
            kind = MilepostError
        advice = _ADVICE.get(failure.code, "") if not failure.is_ours else ""
        said = f"{said}{tries}.{advice.format(target=target)}"
    error = kind(f"{asked(method, request)}: {said}", **fields)
    error.__cause__ = failure.cause
    return error


_ADVICE: Final[Mapping[int, str]] = {
    Code.UNAVAILABLE: " Is milepost-server running at {target}?",
    Code.UNIMPLEMENTED: " The server at {target} is older than this client, or is not a milepost-server.",
    Code.NOT_FOUND: " This is not the answer of a milepost-server; what is at {target}?",
}


def _code_name(code: int) -> str:
    try:
        return Code(code).name
    except ValueError:
        return f"code {code}"


_VERBS: Final[Mapping[str, str]] = {
    "Save": "save of",
    "Load": "load of",
    "List": "list of",
    "AppendRecords": "append_records to",
    "GetEntryHistory": "entry_history of",
    "GetWorkflow": "read of",
    "ForkWorkflow": "fork of",
    "DeleteWorkflow": "delete of",
    "DeleteCheckpoints": "delete_checkpoints of",
    "PruneWorkflow": "prune of",
    "AcquireLease": "acquire_lease of",
    "RenewLease": "renew_lease of",
    "ReleaseLease": "release_lease of",
    "GetLease": "get_lease of",
    "SendSignal": "send_signal to",
    "ListSignals": "signals of",
    "Watch": "watch of",
}


_VERBS_ALONE: Final[Mapping[str, str]] = {
    "ListWorkflows": "workflows",
    "Watch": "watch",
    "GetDefinition": "definition_manifest",
    "Check": "ping",
}


def asked(method: Method[Any], request: Message) -> str:
    """Say in a few words what was asked: `save of workflow 'w1', checkpoint '…'`."""
    ids = ids_of(request)
    if method.name == "BatchSave":
        return f"save_all of {len(request.items)} items"  # type: ignore[attr-defined]  # a BatchSaveRequest
    if not ids["workflow_id"] or method.name not in _VERBS:
        return _VERBS_ALONE.get(method.name, method.name)
    text = f"{_VERBS[method.name]} workflow {_quoted(ids['workflow_id'])}"
    if ids["scope"]:
        text += f", scope {_quoted(ids['scope'])}"
    if ids["checkpoint_id"]:
        text += f", checkpoint {_quoted(ids['checkpoint_id'])}"
    return text


def _quoted(name: str) -> str:
    """Return an id for a message, its end cut off where it is long; the error has it whole."""
    return repr(name) if len(name) <= SHOWN_ID_CHARACTERS_MAX else f"{name[:SHOWN_ID_CHARACTERS_MAX]!r}…"


def ids_of(request: Message) -> dict[str, str]:
    """Return what errors name of a call."""
    return {name: getattr(request, name, "") for name in IDS}


@contextmanager
def locating(namespace: str, workflow_id: str, scope: str = "", checkpoint_id: str = "") -> Iterator[None]:
    """Give the errors of a part of an answer its ids."""
    try:
        yield
    except MilepostError as error:
        raise located(error, namespace, workflow_id, scope, checkpoint_id) from error.__cause__


def located(error: ErrorT, namespace: str, workflow_id: str, scope: str = "", checkpoint_id: str = "") -> ErrorT:
    """Return an error of a part of a call with the ids of the call."""
    error.namespace, error.workflow_id = namespace, workflow_id
    error.scope, error.checkpoint_id = scope, checkpoint_id
    return error
