"""Checks of what a request says by itself, before anything is read from the store.

Pure functions, called while a request is translated. Each names the field at fault by its path. Bounds come from
`Limits`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

import msgspec
import zstandard

from milepost_server.errors import InvalidFieldError, LimitExceededError
from milepost_server.limits import Limits
from milepost_server.model import Compression, Record, Value, ValueKind, utf8_bytes
from milepost_server.rules import digest_manifest

FOUND_CHARACTERS_MAX: Final = 80
"""How much of a wrong value an error repeats."""
NUL: Final = "\0"
DECOMPRESSED_FACTOR: Final = 4
"""A whole request may decompress to this many times what one value may: a bound on the work of checking it."""

_CODEC = re.compile(r"[a-zA-Z0-9._+:-]*\Z")
# A JSON string: the quote, then runs without quote and backslash, with escapes between. Possessive, so that no
# input backtracks.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_BRACKET_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_local = threading.local()


# Identifiers and numbers.


def check_text(field: str, text: str, *, limit: str, bytes_max: int) -> None:
    """Check a text that may be empty: its length in bytes, and no NUL."""
    if len(text) * 4 > bytes_max:
        length = utf8_bytes(text)
        if length > bytes_max:
            raise LimitExceededError(field, limit=limit, allowed=bytes_max, found=length, unit="bytes")
    if NUL in text:
        # The text is not shown: it may be a label's, and errors are logged and traced by whoever gets them.
        raise InvalidFieldError(field, "must not contain NUL", f"one at character {text.index(NUL)}")


def check_name(field: str, text: str, *, limit: str, bytes_max: int) -> None:
    """Check a text that must not be empty."""
    if not text:
        raise InvalidFieldError(field, f"must be 1 to {bytes_max} bytes", '""')
    check_text(field, text, limit=limit, bytes_max=bytes_max)


def check_count(field: str, count: int, *, limit: str, allowed: int, unit: str = "items") -> None:
    """Check how many items a field has, or how large it is."""
    if count > allowed:
        raise LimitExceededError(field, limit=limit, allowed=allowed, found=count, unit=unit)


def page_size(field: str, asked: int, limits: Limits) -> int:
    """Return the page size that is meant: 0 is the default, more than the most is the most."""
    if asked < 0:
        raise InvalidFieldError(field, "must not be negative", asked)
    return min(asked, limits.page_size_max) or limits.page_size_default


def shown(text: object) -> str:
    """Return a value as an error may repeat it."""
    quoted = repr(text)
    return quoted if len(quoted) <= FOUND_CHARACTERS_MAX else quoted[:FOUND_CHARACTERS_MAX] + "…"


# JSON.


def json_depth(text: bytes) -> int:
    """Return how deep arrays and objects are nested in a JSON text. In one pass, whatever the depth."""
    brackets = _JSON_STRING.sub(b"", text).translate(_BRACKET_STEPS, _NOT_BRACKETS)
    return max(accumulate(memoryview(brackets).cast("b")), default=0)


def check_json(field: str, text: bytes, *, limit: str, depth_max: int) -> None:
    """Check that a text is JSON (RFC 8259) and not nested too deep."""
    # The depth first, and counted by ourselves: no bound of a parser or of the interpreter decides what is accepted.
    # Few brackets cannot be nested deep, which spares the exact count nearly always.
    if text.count(b"[") + text.count(b"{") > depth_max:
        depth = json_depth(text)
        if depth > depth_max:
            raise LimitExceededError(field, limit=limit, allowed=depth_max, found=depth, unit="levels")
    try:
        _decode_raw(text)
    except msgspec.DecodeError as error:
        raise InvalidFieldError(field, "must be valid JSON", str(error)) from None
    except RecursionError:
        raise LimitExceededError(field, limit=limit, allowed=depth_max, found=depth_max + 1, unit="levels") from None


def check_metadata(field: str, text: str, limits: Limits) -> None:
    """Check that a text is empty, or a JSON object within its size and depth."""
    if not text:
        return
    encoded = text.encode()
    check_count(field, len(encoded), limit="metadata_bytes_max", allowed=limits.metadata_bytes_max, unit="bytes")
    check_json(field, encoded, limit="metadata_depth_max", depth_max=limits.metadata_depth_max)
    if not encoded.lstrip(b" \t\r\n").startswith(b"{"):
        raise InvalidFieldError(field, "must be a JSON object", "other JSON")
    try:
        # Whole, since filters read it: a number that cannot be read would end every list that comes to it.
        msgspec.json.decode(encoded)
    except msgspec.MsgspecError as error:
        raise InvalidFieldError(field, "must be JSON that can be read", str(error)) from error


def check_manifest(field: str, text: str, fingerprint: str, limits: Limits) -> None:
    """Check that a definition's manifest is JSON within its size, and what its fingerprint stands for."""
    encoded = text.encode()
    check_count(field, len(encoded), limit="manifest_bytes_max", allowed=limits.manifest_bytes_max, unit="bytes")
    check_json(field, encoded, limit="json_depth_max", depth_max=limits.json_depth_max)
    if fingerprint != digest_manifest(text):
        raise InvalidFieldError(
            field, "must be a text whose SHA-256, in lower-case hexadecimal, is `fingerprint`", shown(fingerprint)
        )


# Values.


def check_value(field: str, value: Value, limits: Limits) -> None:
    """Check one value: JSON that is JSON, data with a codec and compression that can be what they say."""
    if value.kind == ValueKind.JSON:
        if value.codec not in {"", "json"}:
            raise InvalidFieldError(f"{field}.codec", 'must be empty or "json" beside `json`', shown(value.codec))
        if value.compression:
            raise InvalidFieldError(f"{field}.compression", "must be unspecified beside `json`", value.compression)
        check_json(f"{field}.json", value.payload, limit="json_depth_max", depth_max=limits.json_depth_max)
        return
    if value.codec:
        if len(value.codec) > limits.codec_bytes_max:
            raise LimitExceededError(
                f"{field}.codec",
                limit="codec_bytes_max",
                allowed=limits.codec_bytes_max,
                found=len(value.codec.encode()),
                unit="bytes",
            )
        if not _CODEC.match(value.codec):
            raise InvalidFieldError(
                f"{field}.codec", "must be of the characters a-z A-Z 0-9 . _ + - :", shown(value.codec)
            )
    if value.compression == Compression.ZSTD:
        content = decompress_zstd(f"{field}.data", value.payload, limits)
        if value.codec == "json":
            # Such a value is answered as `json` to a caller that cannot decompress, so it must be what it says.
            check_json(f"{field}.data", content, limit="json_depth_max", depth_max=limits.json_depth_max)
            if not _is_utf8(content):
                raise InvalidFieldError(f"{field}.data", "must be UTF-8 with codec json", "other bytes")
    elif value.compression:
        raise InvalidFieldError(f"{field}.compression", "must be a known compression", value.compression)


def check_values(fields: Mapping[str, Value], limits: Limits) -> None:
    """Check the values of a whole request, by field path, and what they decompress to together."""
    allowed = limits.value_decompressed_bytes_max * DECOMPRESSED_FACTOR
    total = 0
    for field, value in fields.items():
        if value.compression == Compression.ZSTD:
            total += zstd_content_size(f"{field}.data", value.payload, limits)
            if total > allowed:
                raise LimitExceededError(
                    f"{field}.data",
                    limit="value_decompressed_bytes_max",
                    allowed=allowed,
                    found=total,
                    unit="bytes decompressed in one request",
                )
    for field, value in fields.items():
        check_value(field, value, limits)


def zstd_content_size(field: str, payload: bytes, limits: Limits) -> int:
    """Return the size that a zstd frame says it has when decompressed."""
    try:
        size = zstandard.frame_content_size(payload) if payload.startswith(_ZSTD_MAGIC) else None
    except zstandard.ZstdError:
        size = None
    if size is None or size < 0:
        raise InvalidFieldError(field, "must be one zstd frame that states its content size", "other bytes")
    check_count(
        field,
        size,
        limit="value_decompressed_bytes_max",
        allowed=limits.value_decompressed_bytes_max,
        unit="bytes decompressed",
    )
    return size


def decompress_zstd(field: str, payload: bytes, limits: Limits) -> bytes:
    """Return what a zstd frame holds, having checked that it is one whole frame of the size it states."""
    size = zstd_content_size(field, payload, limits)
    decompressor = _zstd_decompressor()
    try:
        if size == 0:
            # For a stated size of 0 the one-shot call looks at nothing. A frame of nothing is short.
            stream = decompressor.decompressobj()
            if len(payload) > 64 or stream.decompress(payload) or not stream.eof or stream.unused_data:
                raise zstandard.ZstdError("not an empty frame")
            return b""
        return decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidFieldError(field, "must be one whole zstd frame", shown(str(error))) from None


def _zstd_decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's own: two threads must not share one, and making one costs more than using it."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return decompressor


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


# Parts of requests.


def check_records(field: str, records: Sequence[Record], limits: Limits) -> None:
    """Check records that come in one call: their texts, and that no two have the same key."""
    check_count(field, len(records), limit="records_max", allowed=limits.records_max)
    keys: set[tuple[str, int]] = set()
    total = 0
    for number, record in enumerate(records):
        for name, text in (("task_id", record.task_id), ("path", record.path), ("name", record.name)):
            check_text(
                f"{field}[{number}].{name}",
                text,
                limit="record_key_bytes_max",
                bytes_max=limits.record_key_bytes_max,
            )
        key = (record.task_id, record.index)
        if key in keys:
            raise InvalidFieldError(
                f"{field}[{number}]",
                "must have a (task_id, index) of its own",
                f"{shown(record.task_id)}, {record.index}",
            )
        keys.add(key)
        total += record.size_bytes
    check_count(field, total, limit="records_bytes_max", allowed=limits.records_bytes_max, unit="bytes")


def check_labels(field: str, labels: Mapping[str, str], limits: Limits) -> None:
    """Check the labels of a workflow."""
    check_count(field, len(labels), limit="labels_max", allowed=limits.labels_max)
    for key, value in labels.items():
        check_name(f"{field} key", key, limit="label_key_bytes_max", bytes_max=limits.label_key_bytes_max)
        check_text(
            f"{field}[{shown(key)}]", value, limit="label_value_bytes_max", bytes_max=limits.label_value_bytes_max
        )


def check_steps(field: str, steps: Sequence[str], limits: Limits) -> None:
    """Check the completed steps of one call."""
    check_count(field, len(steps), limit="completed_steps_max", allowed=limits.completed_steps_max)
    total = 0
    for number, step in enumerate(steps):
        check_name(
            f"{field}[{number}]", step, limit="checkpoint_id_bytes_max", bytes_max=limits.checkpoint_id_bytes_max
        )
        total += utf8_bytes(step)
    check_count(
        field,
        total,
        limit="completed_steps_bytes_max",
        allowed=limits.completed_steps_bytes_max,
        unit="bytes",
    )
