"""The errors of the store: what can go wrong, told in the words of the protocol.

Every refusal is a `StoreError` with a `reason` (a name of the protocol's `ErrorReason`), a message for people and the
metadata that programs read. The gRPC layer turns reasons into status codes by one table; nothing here knows gRPC.

    StoreError
    ├── InvalidFieldError        malformed field
    │   └── LimitExceededError   a field past its limit
    ├── NotFoundError            no such workflow or checkpoint
    ├── PreconditionError        the store is not in the state the call needs
    ├── ResourceError            a queue, a disk or a quota is full
    ├── UnavailableError         nothing was stored; the same call may be sent again
    ├── OutcomeUnknownError      the commit may or may not be on disk
    └── RecordDamagedError       a stored record is not what was written
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import ClassVar


class StoreError(Exception):
    """A refusal of the store.

    Attributes:
        reason: Name of a value of the protocol's `ErrorReason`.
        message: One sentence or two for people: what was asked, what was found, what to do.
        metadata: What a program may want to know; keys per reason are listed in `error_reason.proto`.
        retry_after_s: Seconds after which the same call may succeed; `None` where waiting does not help.
        field: Path of the request field at fault, or "".
    """

    retry_after_default_s: ClassVar[float | None] = None

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, object] | None = None,
        *,
        retry_after_s: float | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after_s = retry_after_s if retry_after_s is not None else self.retry_after_default_s
        self.field = field


class InvalidFieldError(StoreError):
    """A field is malformed: the caller must change the request."""

    def __init__(self, field: str, rule: str, found: object, *, reason: str = "INVALID_FIELD") -> None:
        super().__init__(
            reason,
            f"{field}: {rule}; found {found}",
            {"field": field, "rule": rule, "found": found},
            field=field,
        )


class LimitExceededError(InvalidFieldError):
    """A field is larger, longer, deeper or more than allowed."""

    def __init__(
        self, field: str, *, limit: str, allowed: int, found: int, unit: str, reason: str = "LIMIT_EXCEEDED"
    ) -> None:
        StoreError.__init__(
            self,
            reason,
            f"{field}: {found} {unit}, at most {allowed} are allowed ({limit})",
            {"field": field, "limit": limit, "allowed": allowed, "found": found, "unit": unit},
            field=field,
        )


class NotFoundError(StoreError):
    """There is no such workflow or checkpoint. Never used for any other failure."""


class PreconditionError(StoreError):
    """The store is not in the state that the call asks for; nothing was written."""


class ResourceError(StoreError):
    """A queue, a disk or a quota is full; nothing was written."""


class UnavailableError(StoreError):
    """Nothing of the call was stored, and the same call may be sent again."""

    retry_after_default_s = 0.2


class OutcomeUnknownError(StoreError):
    """The commit may or may not be on disk; sending the same call again, with the same ids, tells which."""

    def __init__(self, message: str) -> None:
        super().__init__("OUTCOME_UNKNOWN", message)


class RecordDamagedError(StoreError):
    """A stored record is not what was written, or is missing where another needs it."""

    def __init__(self, table: str, key: bytes, what: str) -> None:
        super().__init__(
            "RECORD_DAMAGED",
            f"a stored record of table {table} is damaged ({what}); key {key.hex()}",
            {"table": table, "key": key.hex()},
        )


class StorageFailedError(Exception):
    """The engine can serve neither reads nor writes until it is reopened. Never leaves the storage layer's front."""


def internal_error(logger: logging.Logger, what: str, error: BaseException) -> StoreError:
    """Log a defect with its traceback, and return what callers are told of it: an id that the log has too."""
    error_id = os.urandom(16).hex()
    logger.error("%s, error_id %s", what, error_id, exc_info=error)
    return StoreError(
        "INTERNAL_ERROR",
        f"the server failed at this call; its log has the traceback under {error_id}",
        {"error_id": error_id},
    )


def queue_full(message: str, *, limit: str, allowed: int, found: int, unit: str, retry_after_s: float) -> ResourceError:
    """Return the refusal of a queue that is full: the same call may succeed after a while."""
    return ResourceError(
        "QUEUE_FULL",
        message,
        {"limit": limit, "allowed": allowed, "found": found, "unit": unit},
        retry_after_s=retry_after_s,
    )
