"""What a failure means to the shell and to the person in front of it: an exit code, one line, a hint."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from milepost.errors import (
    AuthError,
    CapacityError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CodecError,
    ConflictError,
    DeadlineError,
    DefinitionChangedError,
    HeadMovedError,
    InvalidRequestError,
    LeaseError,
    LeaseHeldError,
    MilepostError,
    NotFoundError,
    OutcomeUnknownError,
    StateSchemaError,
    StoreFullError,
    UnavailableError,
    WatchCompactedError,
    WatchTooSlowError,
    WorkflowError,
    WorkflowNotFoundError,
)


class ExitCode(enum.IntEnum):
    """What a script decides by; `milepost --help` lists them."""

    OK = 0
    NEGATIVE = 1
    """The answer is no: not found, different, not confirmed."""
    USAGE = 2
    """The command line, its input or its token will not do."""
    UNAVAILABLE = 3
    """No server, or one that cannot do it now; the same command may work later."""
    CONFLICT = 4
    """What the store holds does not allow it."""
    BROKEN = 5
    """Damaged data or a defect."""
    INTERRUPTED = 130
    """Ctrl-C."""
    READER_GONE = 141
    """Whatever read the output stopped reading, as `head` does."""


EXIT_CODES_HELP: Final = """\b
Exit codes:
  0    done; for diff: equal
  1    the answer is no: not found, different, not confirmed
  2    usage, bad input, or a token that does not allow it
  3    the server cannot be reached, is unavailable or full
  4    conflict: the head moved, the id is taken, somebody holds the lease, and the like
  5    damaged data, or a defect in server or tool
  130  Ctrl-C
"""

_CAUSE: Final = re.compile(r"(?:^|.*?: )([^:;(\[\]]+?)[\].]* \(", re.DOTALL)
"""What a person acts on of what gRPC says at length: the last words before what is in parentheses."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a failure is reported."""

    exit_code: ExitCode
    message: str
    hint: str = ""


def explain(error: MilepostError, target: str) -> Failure:
    """Return how an error of the client is reported.

    Args:
        error: What the client raised.
        target: The server it was meant for.
    """
    return Failure(_exit_code(error), error.message or type(error).__name__, _hint(error, target))


def unreachable(error: MilepostError, target: str) -> Failure:
    """Return how it is reported that nothing answers at the target."""
    match = _CAUSE.match(error.message)
    why = match[1] if match else error.message
    hint = "start one with `make run` or `milepost-server serve`, or name another with --target or MILEPOST_TARGET"
    if "handshake" in why:
        hint = "does that server speak TLS? Where it does not, leave out --tls, --ca-file, --cert-file and --key-file"
    return Failure(ExitCode.UNAVAILABLE, f"no milepost-server answers at {target}: {why}", hint)


def _exit_code(error: MilepostError) -> ExitCode:
    match error:
        case NotFoundError():
            return ExitCode.NEGATIVE
        case InvalidRequestError() | CodecError() | AuthError():
            return ExitCode.USAGE
        case UnavailableError() | DeadlineError() | CapacityError() | OutcomeUnknownError():
            return ExitCode.UNAVAILABLE
        case ConflictError() | LeaseError() | WorkflowError() | StateSchemaError():
            return ExitCode.CONFLICT
        case _:
            return ExitCode.BROKEN


def _hint(error: MilepostError, target: str) -> str:
    match error:
        case WorkflowNotFoundError():
            namespace = error.namespace or "default"
            return f"`milepost workflows` lists those of namespace {namespace!r} at {target}; --namespace names another"
        case CheckpointNotFoundError():
            return "`milepost history WORKFLOW --all-scopes` lists what there is; --scope names a nested run"
        case HeadMovedError():
            return "somebody saved in between: look at `milepost show WORKFLOW`, then save --after that head"
        case CheckpointExistsError():
            return "`milepost show WORKFLOW id:ID` tells what is there; without --id the save gets a new id"
        case LeaseHeldError():
            return "`milepost lease show WORKFLOW` tells how long; `milepost lease break` takes it from who is gone"
        case DefinitionChangedError():
            return "`milepost check` tells what stands in the way; --on-change allows more"
        case WatchCompactedError() | WatchTooSlowError():
            return "events were missed: look at `milepost show WORKFLOW`, then watch again"
        case StoreFullError():
            return "deleting and pruning still work: `milepost prune`, `milepost delete`"
        case UnavailableError() | DeadlineError():
            return f"the server at {target} may be starting or draining; try again, or give it longer with --timeout"
        case AuthError():
            return "the token is read from the file that MILEPOST_TOKEN_FILE names"
        case _:
            return ""
