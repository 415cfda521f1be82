"""What the in-memory store refuses before it looks at what is stored: ids, sizes, shapes. The limits are a server's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final

from milepost._calls import encode_metadata
from milepost.errors import ERROR_CLASSES, InvalidRequestError, LimitExceededError
from milepost.types import SaveItem, Status
from milepost.v1 import checkpoint_pb2 as pb

REPLAY_WINDOW: Final = timedelta(days=7)
"""How long what was deleted or consumed is known, so that a late retry cannot bring it back."""
WORKFLOW_ID_BYTES_MAX: Final = 1_024
SHORT_ID_BYTES_MAX: Final = 256
NAMESPACE_BYTES_MAX: Final = 128
ENTRIES_MAX: Final = 10_000
STATE_BYTES_MAX: Final = 16 * 1024 * 1024 - 64 * 1024
METADATA_BYTES_MAX: Final = 64 * 1024
LABELS_MAX: Final = 16
MANIFEST_BYTES_MAX: Final = 1024 * 1024
CONSUMED_SIGNALS_MAX: Final = 1_000
WAITING_RECORDS_MAX: Final = 1_000
RECORDS_MAX: Final = 10_000
RECORDS_BYTES_MAX: Final = STATE_BYTES_MAX
# A reason comes with one code only.
CLASS_BY_REASON: Final = {reason: kind for (_, reason), kind in ERROR_CLASSES.items() if reason}


def check_id(name: str, value: object, bytes_max: int, *, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be text", metadata={"field": name})
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{name} has a lone surrogate", metadata={"field": name}) from None
    if not size and not may_be_empty:
        raise InvalidRequestError(f"{name} is empty", reason="INVALID_FIELD", metadata={"field": name})
    if "\0" in value:
        raise InvalidRequestError(f"{name} has a NUL", reason="INVALID_FIELD", metadata={"field": name})
    if size > bytes_max:
        raise LimitExceededError(
            f"{name} has {size} bytes; at most {bytes_max} are allowed",
            reason="LIMIT_EXCEEDED",
            metadata={"field": name, **limit_metadata(f"{name}_bytes_max", bytes_max, size, "bytes")},
        )


def check_size(name: str, found: int, *, limit: str, allowed: int, workflow_id: str, unit: str = "bytes") -> None:
    """Refuse what is larger than allowed.

    Raises:
        LimitExceededError: It is.
    """
    if found > allowed:
        raise LimitExceededError(
            f"{name}: {found} {unit}; at most {allowed} are allowed ({limit})",
            reason="LIMIT_EXCEEDED",
            workflow_id=workflow_id,
            metadata={"field": name, **limit_metadata(limit, allowed, found, unit)},
        )


def check_manifest(item: SaveItem) -> None:
    """Refuse a manifest that is not what the fingerprint stands for.

    Raises:
        LimitExceededError: It is too large.
        InvalidRequestError: It is no JSON, or the fingerprint is that of another.
    """
    if not item.manifest:
        return
    encoded = item.manifest.encode()
    check_size(
        "manifest",
        len(encoded),
        limit="manifest_bytes_max",
        allowed=MANIFEST_BYTES_MAX,
        workflow_id=item.workflow_id,
    )
    problem = "" if sha256(encoded).hexdigest() == item.fingerprint else "its SHA-256 is not the fingerprint"
    try:
        json.loads(item.manifest)
    except ValueError:
        problem = "it is not JSON"
    if problem:
        raise InvalidRequestError(
            f"manifest: {problem}",
            reason="INVALID_FIELD",
            workflow_id=item.workflow_id,
            scope=item.scope,
            checkpoint_id=item.checkpoint_id,
            metadata={"field": "manifest"},
        )


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 0:
        raise ValueError(f"limit is at least 0, not {limit}")


def list_of_texts(texts: Iterable[str], name: str) -> list[str]:
    if isinstance(texts, str):
        # Each of its letters would be taken for one.
        raise TypeError(f"{name} is a list of strings, not one string")
    return list(texts)


def status_set(status: Status | Iterable[Status] | None) -> frozenset[Status]:
    if status is None:
        return frozenset()
    return frozenset(Status(s) for s in ([status] if isinstance(status, str) else status))


def check_item(item: SaveItem) -> None:
    check_id("workflow_id", item.workflow_id, WORKFLOW_ID_BYTES_MAX)
    check_id("scope", item.scope, WORKFLOW_ID_BYTES_MAX, may_be_empty=True)
    check_id("checkpoint_id", item.checkpoint_id, SHORT_ID_BYTES_MAX)
    for name in ("current_step", "definition", "fingerprint", "run_id"):
        check_id(name, getattr(item, name), SHORT_ID_BYTES_MAX, may_be_empty=True)
    for step in item.completed_steps:
        check_id("completed_steps_added", step, SHORT_ID_BYTES_MAX)
    if len(item.labels or {}) > LABELS_MAX:
        found = len(item.labels or {})
        raise limit_error(item, "labels", limit="labels_max", allowed=LABELS_MAX, found=found, unit="labels")
    check_size(
        "consumed_signals",
        len(list_of_texts(item.consumed_signals, "consumed_signals")),
        limit="consumed_signals_max",
        allowed=CONSUMED_SIGNALS_MAX,
        workflow_id=item.workflow_id,
        unit="signals",
    )
    if item.lease_token < 0 or (item.release_lease and not item.lease_token):
        raise InvalidRequestError(
            "lease_token is a token that was granted",
            reason="INVALID_FIELD",
            workflow_id=item.workflow_id,
            metadata={"field": "lease_token"},
        )
    check_manifest(item)


def limit_metadata(limit: str, allowed: int, found: int, unit: str) -> dict[str, str]:
    return {"limit": limit, "allowed": str(allowed), "found": str(found), "unit": unit}


def limit_error(
    item: SaveItem,
    name: str,
    *,
    limit: str,
    allowed: int,
    found: int,
    unit: str,
) -> LimitExceededError:
    return LimitExceededError(
        f"{name}: {found} {unit}; at most {allowed} are allowed ({limit})",
        reason="STATE_TOO_LARGE" if limit == "state_bytes_max" else "LIMIT_EXCEEDED",
        workflow_id=item.workflow_id,
        scope=item.scope,
        checkpoint_id=item.checkpoint_id,
        metadata={"field": name, **limit_metadata(limit, allowed, found, unit)},
    )


def line_of(item: SaveItem) -> tuple[str | None, str | None]:
    """Return parent and expected head; `None` where they are not fixed."""
    if item.after is None:
        return None, None
    if item.after == "start":
        return "", ""
    if (item.after.workflow_id, item.after.scope) != (item.workflow_id, item.scope):
        raise InvalidRequestError(
            f"after names a checkpoint of workflow {item.after.workflow_id!r}, scope {item.after.scope!r}",
            workflow_id=item.workflow_id,
            scope=item.scope,
            checkpoint_id=item.checkpoint_id,
            metadata={"field": "after"},
        )
    return item.after.checkpoint_id, item.after.checkpoint_id


def check_records(records: Mapping[tuple[str, int], pb.Record], workflow_id: str) -> None:
    size_bytes = sum(record.ByteSize() for record in records.values())
    for limit, allowed, found, unit in (
        ("records_max", RECORDS_MAX, len(records), "records"),
        ("records_bytes_max", RECORDS_BYTES_MAX, size_bytes, "bytes"),
    ):
        if found > allowed:
            raise LimitExceededError(
                f"records: {found} {unit}; at most {allowed} are allowed ({limit})",
                reason="LIMIT_EXCEEDED",
                workflow_id=workflow_id,
                metadata={"field": "records", **limit_metadata(limit, allowed, found, unit)},
            )


def metadata_contains(text: str, wanted: Mapping[str, Any]) -> bool:
    return _contains(json.loads(text) if text else {}, json.loads(encode_metadata(wanted)))


def _contains(container: object, contained: object) -> bool:
    """Tell whether one JSON value contains another, as PostgreSQL's `jsonb @>` has it."""
    if isinstance(contained, dict):
        return isinstance(container, dict) and all(
            key in container and _contains(container[key], value) for key, value in contained.items()
        )
    if isinstance(contained, list):
        return isinstance(container, list) and all(
            any(_contains(mine, theirs) for mine in container) for theirs in contained
        )
    if isinstance(container, bool) or isinstance(contained, bool):
        return container is contained
    return not isinstance(container, list | dict) and container == contained
