"""What the in-memory store refuses before it looks at what is stored: texts, sizes, shapes. The limits are a server's.

An error names the field as the wire does; `names_call` adds the ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from milepost._calls import encode_metadata
from milepost._memory.rows import Row
from milepost._texts import check_text, list_of_texts, not_unicode, shown
from milepost.errors import ERROR_CLASSES, InvalidRequestError, LimitExceededError
from milepost.types import Record, SaveItem, Status
from milepost.v1 import checkpoint_pb2 as pb

ENTRIES_MAX: Final = 10_000
STATE_BYTES_MAX: Final = 16 * 1024 * 1024 - 64 * 1024
ENTRY_OVERHEAD_BYTES: Final = 24
"""What an entry counts beside its key and its value."""
COMPLETED_STEPS_MAX: Final = 100_000
COMPLETED_STEPS_BYTES_MAX: Final = 4 * 1024 * 1024
METADATA_BYTES_MAX: Final = 64 * 1024
METADATA_DEPTH_MAX: Final = 32
METADATA_FILTER_ITEMS_MAX: Final = 100
HISTORY_ENTRIES_MAX: Final = 1_000
HISTORY_ENTRIES_BYTES_MAX: Final = 64 * 1024
HISTORY_KEYS_MAX: Final = 100
LABELS_MAX: Final = 16
MANIFEST_BYTES_MAX: Final = 1024 * 1024
CONSUMED_SIGNALS_MAX: Final = 1_000
WAITING_RECORDS_MAX: Final = 1_000
RECORDS_MAX: Final = 10_000
RECORDS_BYTES_MAX: Final = STATE_BYTES_MAX
# A reason comes with one code only.
CLASS_BY_REASON: Final = {reason: kind for (_, reason), kind in ERROR_CLASSES.items() if reason}

_LONG: Final = ("workflow_id_bytes_max", 1_024)
SHORT_BYTES_MAX: Final = 256
_SHORT: Final = ("checkpoint_id_bytes_max", SHORT_BYTES_MAX)
_HOLDER: Final = ("lease_holder_bytes_max", 256)
_RECORD_KEY: Final = ("record_key_bytes_max", 1_024)
_LIMITS: Final[Mapping[str, tuple[str, int]]] = {
    "namespace": ("namespace_bytes_max", 128),
    "workflow_id": _LONG,
    "target_workflow_id": _LONG,
    "workflow_id_prefix": _LONG,
    "scope": _LONG,
    "entry_keys": _LONG,
    "history_entries": _LONG,
    "holder": _HOLDER,
    "request_id": _HOLDER,
    "labels key": ("label_key_bytes_max", 64),
    "labels": ("label_value_bytes_max", 256),
    "task_id": _RECORD_KEY,
    "path": _RECORD_KEY,
    "record name": _RECORD_KEY,
}
"""By field, the limit and its bytes; those of other fields are as long as a checkpoint id."""
_MAY_BE_EMPTY: Final = frozenset(
    {
        "scope",
        "workflow_id_prefix",
        "current_step",
        "before_checkpoint_id",
        "definition",
        "fingerprint",
        "run_id",
        "fork_id",
        "holder",
        "request_id",
        "labels",
        "task_id",
        "path",
        "record name",
    }
)


def check_texts(**fields: str | list[str] | tuple[str, ...] | Mapping[str, str] | None) -> None:
    """Refuse the first text that a server would refuse. None is an absent one.

    Raises:
        InvalidRequestError: It is empty where it must not be, has a NUL or a lone surrogate.
        LimitExceededError: It is too long.
    """
    for name, value in fields.items():
        if value is None or (value == "" and name in _MAY_BE_EMPTY):
            continue
        if isinstance(value, Mapping):
            for key, text in value.items():
                _check_text(f"{name} key", f"{name} key", key)
                _check_text(name, f"{name}[{shown(key)}]", text)
        elif isinstance(value, list | tuple):
            for number, text in enumerate(value):
                _check_text(name, f"{name}[{number}]", text)
        else:
            _check_text(name, name, value)


def _check_text(name: str, path: str, text: str) -> None:
    limit, bytes_max = _LIMITS.get(name, _SHORT)
    check_text(path, text, limit=limit, bytes_max=bytes_max, may_be_empty=name in _MAY_BE_EMPTY)


def check_count(
    field: str,
    found: int,
    *,
    limit: str,
    allowed: int,
    unit: str = "items",
    reason: str = "LIMIT_EXCEEDED",
) -> None:
    """Refuse what is more than allowed.

    Raises:
        LimitExceededError: It is.
    """
    if found > allowed:
        raise LimitExceededError(
            f"{field}: {found} {unit}, at most {allowed} are allowed ({limit})",
            reason=reason,
            metadata={"field": field, **limit_metadata(limit, allowed, found, unit)},
        )


def limit_metadata(limit: str, allowed: int, found: int, unit: str) -> dict[str, str]:
    return {"limit": limit, "allowed": str(allowed), "found": str(found), "unit": unit}


def check_manifest(manifest: str, fingerprint: str) -> None:
    """Refuse a manifest that is not what the fingerprint stands for.

    Raises:
        LimitExceededError: It is too large.
        InvalidRequestError: It is no JSON, or the fingerprint is that of another.
    """
    if not manifest:
        return
    try:
        encoded = manifest.encode()
    except UnicodeEncodeError:
        raise not_unicode("manifest", manifest) from None
    check_count("manifest", len(encoded), limit="manifest_bytes_max", allowed=MANIFEST_BYTES_MAX, unit="bytes")
    problem = "" if sha256(encoded).hexdigest() == fingerprint else "its SHA-256 is not the fingerprint"
    try:
        json.loads(manifest)
    except ValueError:
        problem = "it is not JSON"
    if problem:
        raise InvalidRequestError(f"manifest: {problem}", reason="INVALID_FIELD", metadata={"field": "manifest"})


def check_metadata(text: str, field: str = "metadata") -> None:
    """Refuse metadata that is too large, or nested too deep.

    Raises:
        LimitExceededError: It is.
    """
    size_bytes = len(text.encode())
    for limit, allowed, found, unit in (
        ("metadata_bytes_max", METADATA_BYTES_MAX, size_bytes, "bytes"),
        ("metadata_depth_max", METADATA_DEPTH_MAX, _depth(json.loads(text or "0")), "levels"),
    ):
        check_count(field, found, limit=limit, allowed=allowed, unit=unit)


def _depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 0:
        raise ValueError(f"limit is at least 0, not {limit}")


def status_set(status: Status | Iterable[Status] | None) -> frozenset[Status]:
    if status is None:
        return frozenset()
    return frozenset(Status(s) for s in ([status] if isinstance(status, str) else status))


def check_item(item: SaveItem) -> None:
    """Refuse what a server would refuse of a save by itself, but for its state, its metadata and its records.

    Raises:
        InvalidRequestError: It is malformed, or (LimitExceededError) too large.
    """
    consumed = list_of_texts(item.consumed_signals, "consumed_signals")
    history = list_of_texts(item.history_entries, "history_entries")
    check_texts(
        workflow_id=item.workflow_id,
        scope=item.scope,
        checkpoint_id=item.checkpoint_id,
        current_step=item.current_step,
        definition=item.definition,
        fingerprint=item.fingerprint,
        run_id=item.run_id,
        consumed_signals=consumed,
        completed_steps_added=list_of_texts(item.completed_steps, "completed_steps"),
        labels=item.labels,
        history_entries=history,
    )
    history_bytes = sum(len(key.encode()) for key in history)
    for field, limit, allowed, found, unit in (
        ("consumed_signals", "consumed_signals_max", CONSUMED_SIGNALS_MAX, len(consumed), "items"),
        ("labels", "labels_max", LABELS_MAX, len(item.labels or ()), "items"),
        ("history_entries", "history_entries_max", HISTORY_ENTRIES_MAX, len(history), "items"),
        ("history_entries", "history_entries_bytes_max", HISTORY_ENTRIES_BYTES_MAX, history_bytes, "bytes"),
    ):
        check_count(field, found, limit=limit, allowed=allowed, unit=unit)
    check_token(item.lease_token, is_needed=item.release_lease)
    check_manifest(item.manifest, item.fingerprint)


def check_sequence(field: str, sequence: int | None) -> None:
    """Refuse a sequence that no checkpoint has.

    Raises:
        InvalidRequestError: It is below 1.
    """
    if sequence is not None and sequence < 1:
        raise InvalidRequestError(
            f"{field}: must be at least 1, not {sequence}", reason="INVALID_FIELD", metadata={"field": field}
        )


def check_token(token: int, *, is_needed: bool = False, is_allowed: bool = True) -> None:
    """Refuse a lease token that can never have been granted for the call.

    Raises:
        InvalidRequestError: It is negative, 0 where one is needed, or another where none is allowed.
    """
    if token < 0 or (is_needed and not token) or (token and not is_allowed):
        rule = "must be a token that was granted" if is_allowed else "must be 0 without workflow_id"
        raise InvalidRequestError(f"lease_token: {rule}", reason="INVALID_FIELD", metadata={"field": "lease_token"})


def line_of(item: SaveItem, namespace: str) -> tuple[str | None, str | None]:
    """Return parent and expected head; `None` where they are not fixed."""
    after = item.after
    if after is None:
        return None, None
    if after == "start":
        return "", ""
    its_namespace = namespace if isinstance(after, SaveItem) else after.namespace
    if (its_namespace, after.workflow_id, after.scope) != (namespace, item.workflow_id, item.scope):
        raise InvalidRequestError(
            f"after names a checkpoint of workflow {after.workflow_id!r}, scope {after.scope!r}, namespace "
            f"{its_namespace!r}",
            reason="INVALID_FIELD",
            metadata={"field": "parent_id"},
        )
    return after.checkpoint_id, after.checkpoint_id


def check_content(row: Row) -> None:
    """Refuse a checkpoint that is larger than one Load can answer.

    Raises:
        LimitExceededError: It is.
    """
    steps = "completed_steps_added"
    for field, limit, allowed, found, unit in (
        (steps, "completed_steps_max", COMPLETED_STEPS_MAX, row.steps.count, "steps"),
        (steps, "completed_steps_bytes_max", COMPLETED_STEPS_BYTES_MAX, row.steps.size_bytes, "bytes"),
    ):
        check_count(field, found, limit=limit, allowed=allowed, unit=unit)
    reason = "STATE_TOO_LARGE"
    check_count("state", row.size_bytes, limit="state_bytes_max", allowed=STATE_BYTES_MAX, unit="bytes", reason=reason)


def check_sent_records(records: Sequence[Record]) -> None:
    """Refuse records that a server would refuse by themselves.

    Raises:
        InvalidRequestError: A text of one is malformed, or two have the same key.
    """
    keys: set[tuple[str, int]] = set()
    for number, record in enumerate(records):
        path = f"records[{number}]"
        _check_text("task_id", f"{path}.task_id", record.task_id)
        _check_text("path", f"{path}.path", record.path)
        _check_text("record name", f"{path}.name", record.name)
        key = (record.task_id, record.index)
        if key in keys:
            raise InvalidRequestError(
                f"{path}: must have a (task_id, index) of its own",
                reason="INVALID_FIELD",
                metadata={"field": path},
            )
        keys.add(key)


def check_records(records: Mapping[tuple[str, int], pb.Record]) -> None:
    """Refuse more records beside one checkpoint than a server keeps.

    Raises:
        LimitExceededError: They are too many, or too large.
    """
    size_bytes = sum(record.ByteSize() for record in records.values())
    for limit, allowed, found, unit in (
        ("records_max", RECORDS_MAX, len(records), "records"),
        ("records_bytes_max", RECORDS_BYTES_MAX, size_bytes, "bytes"),
    ):
        check_count("records", found, limit=limit, allowed=allowed, unit=unit)


def metadata_filter(wanted: Mapping[str, Any]) -> object:
    """Return what metadata must contain, for `contains_metadata`.

    Raises:
        CodecError: It has no form in JSON.
        LimitExceededError: It is too large, or nested too deep, or has too many arrays and objects in arrays.
    """
    field = "metadata_contains"
    text = encode_metadata(wanted)
    check_metadata(text, field)
    contained: object = json.loads(text)
    allowed = METADATA_FILTER_ITEMS_MAX
    check_count(field, _filter_items(contained), limit="metadata_filter_items_max", allowed=allowed)
    return contained


def _filter_items(contained: object) -> int:
    if isinstance(contained, dict):
        return sum(map(_filter_items, contained.values()))
    if isinstance(contained, list):
        return sum(isinstance(each, list | dict) + _filter_items(each) for each in contained)
    return 0


def contains_metadata(text: str, contained: object) -> bool:
    return _contains(json.loads(text) if text else {}, contained)


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
