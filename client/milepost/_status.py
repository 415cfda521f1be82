"""Read `grpc-status-details-bin`, the trailing metadata in which a server says more than a code and a text.

googleapis-common-protos has these messages too, but registers them in the pool that the whole process shares and drags
its own protobuf bounds along. The few fields needed are declared here, in a pool of their own, made at the first error.
Anything unreadable counts as absent: an error about an error would hide the error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

STATUS_KEY = "grpc-status-details-bin"
DOMAIN = "milepost"


@dataclass(frozen=True, slots=True)
class Details:
    """What a status says beside its code and message."""

    reason: str = ""
    """Name of the `ErrorReason`; "" where the error is none of milepost's."""
    metadata: dict[str, str] = field(default_factory=dict)
    """`ErrorInfo.metadata`, of milepost's domain alone."""
    retry_after_s: float | None = None
    """`RetryInfo.retry_delay`: the server invites to try again after this time."""
    violations: tuple[tuple[str, str], ...] = ()
    """`BadRequest`: (field path, description)."""


NOTHING = Details()


def read_details(trailers: Iterable[tuple[str, str | bytes]] | None) -> Details:
    """Return what the trailing metadata of a failed call says."""
    for key, value in trailers or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            try:
                return _read_status(value)
            except (message.DecodeError, UnicodeDecodeError):
                return NOTHING
    return NOTHING


def _read_status(encoded: bytes) -> Details:
    kinds = _message_classes()
    reason, metadata, retry_after_s, violations = "", {}, None, []
    for packed in kinds["Status"].FromString(encoded).details:
        name = packed.type_url.rpartition("/")[2]
        if name == "google.rpc.ErrorInfo":
            info = kinds["ErrorInfo"].FromString(packed.value)
            if info.domain == DOMAIN:
                reason, metadata = info.reason, {pair.key: pair.value for pair in info.metadata}
        elif name == "google.rpc.RetryInfo":
            delay = kinds["RetryInfo"].FromString(packed.value).retry_delay
            retry_after_s = max(0.0, delay.seconds + delay.nanos / 1e9)
        elif name == "google.rpc.BadRequest":
            found = kinds["BadRequest"].FromString(packed.value).field_violations
            violations = [(violation.field, violation.description) for violation in found]
    return Details(reason, metadata, retry_after_s, tuple(violations))


@functools.cache
def _message_classes() -> dict[str, Any]:
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="milepost/client/status.proto", package="milepost.client", syntax="proto3"
    )

    def add(message_name: str, *fields: tuple[int, str, Any]) -> None:
        declared = file.message_type.add(name=message_name)
        for number, name, declared_kind in fields:
            repeated = isinstance(declared_kind, list)
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            one = declared.field.add(name=name, number=number, label=label)
            kind = declared_kind[0] if repeated else declared_kind
            if isinstance(kind, str):
                one.type, one.type_name = field_type.TYPE_MESSAGE, f".milepost.client.{kind}"
            else:
                one.type = kind

    # Names and numbers of google/rpc/{status,error_details}.proto. Any, Duration and the entries of a map are declared
    # as what they are on the wire.
    add("Any", (1, "type_url", field_type.TYPE_STRING), (2, "value", field_type.TYPE_BYTES))
    add("Status", (3, "details", ["Any"]))
    add("Entry", (1, "key", field_type.TYPE_STRING), (2, "value", field_type.TYPE_STRING))
    add("ErrorInfo", (1, "reason", field_type.TYPE_STRING), (2, "domain", field_type.TYPE_STRING),
        (3, "metadata", ["Entry"]))  # fmt: skip
    add("Duration", (1, "seconds", field_type.TYPE_INT64), (2, "nanos", field_type.TYPE_INT32))
    add("RetryInfo", (1, "retry_delay", "Duration"))
    add("FieldViolation", (1, "field", field_type.TYPE_STRING), (2, "description", field_type.TYPE_STRING))
    add("BadRequest", (1, "field_violations", ["FieldViolation"]))

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"milepost.client.{name}"))
        for name in ("Status", "ErrorInfo", "RetryInfo", "BadRequest")
    }
