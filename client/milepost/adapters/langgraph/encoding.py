"""How what LangGraph saves becomes entries and records, and back. The server sees typed bytes and never what they mean.

A channel is an entry under its own name; everything else of a checkpoint is one entry more, `HEADER_KEY`. Types and
bytes are the serializer's, so whatever it does, encryption for one, stays between it and itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from langgraph.checkpoint.serde.base import SerializerProtocol

from milepost import _compression
from milepost.errors import CodecError
from milepost.v1 import checkpoint_pb2 as pb

HEADER_KEY: Final = "__checkpoint__"
"""The entry that holds a checkpoint without its channels' values."""
DIGEST_BYTES: Final = 16
STEP_BYTES_MAX: Final = 256
LEAVES_SEARCHED_MAX: Final = 10_000
"""How many parts of a value are tried to find the one that cannot be serialised."""


class Encoded(NamedTuple):
    """A value as it is sent and stored."""

    kind: str
    """The serializer's word for its bytes."""
    content: bytes
    compression: pb.Compression.ValueType
    size_bytes: int
    """Of what the serializer made, before it was compressed; as it is stored, where it was read."""

    @classmethod
    def of(cls, value: pb.Value) -> Encoded:
        """Return a value that was read."""
        is_json = value.HasField("json")
        content = value.json.encode() if is_json else value.data
        return cls("json" if is_json else value.codec, content, value.compression, len(content))

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for it. Costs a look at all of it."""
        kind = self.kind.encode()[:64]
        return blake2b(self.content, digest_size=DIGEST_BYTES, key=kind, salt=bytes((self.compression,))).digest()

    def write_to(self, value: pb.Value) -> None:
        """Fill a value of a request."""
        value.data = self.content
        value.codec = self.kind
        value.compression = self.compression


def encode(
    serde: SerializerProtocol, value: object, where: str, channel: str, compress_over_bytes: int | None
) -> Encoded:
    """Serialise one value, and compress it where that pays.

    Args:
        serde: The serializer.
        value: What to serialise.
        where: What it belongs to, for the error.
        channel: Its channel, for the error; or `HEADER_KEY`.
        compress_over_bytes: Values larger than this may be compressed.

    Raises:
        CodecError: It has no serialised form; `path` tells where in the value.
    """
    try:
        kind, dumped = serde.dumps_typed(value)
    # A serializer may raise anything at all for what it cannot take.
    except Exception as error:
        path, found = _find_unserializable(serde, value)
        raise CodecError(
            f"{where}: {_part(channel)} cannot be serialized: {path or 'its value'} is a {type(found).__qualname__} "
            f"({type(error).__name__}: {error})",
            path=path,
            type=type(found).__qualname__,
        ) from error
    # A bytearray is handed through as it is, and its owner may go on to change it.
    content = bytes(dumped)
    frame = _compression.compress(content, compress_over_bytes)
    if frame is None:
        return Encoded(kind, content, pb.COMPRESSION_UNSPECIFIED, len(content))
    return Encoded(kind, frame, pb.COMPRESSION_ZSTD, len(content))


def decode(serde: SerializerProtocol, value: pb.Value, where: str, channel: str) -> Any:
    """Read one value; the names are for the error.

    Raises:
        CodecError: The serializer cannot read it; or it is damaged or compressed in a way this process cannot undo.
    """
    kind, content, compression, _ = Encoded.of(value)
    if compression == pb.COMPRESSION_ZSTD:
        content = _compression.decompress(content, f"{where}: {_part(channel)}")
    elif compression != pb.COMPRESSION_UNSPECIFIED:
        what = f"{where}: {_part(channel)}"
        raise CodecError(f"{what} is compressed in a way this client does not know ({compression})", path=what)
    try:
        return serde.loads_typed((kind, content))
    except Exception as error:
        what = f"{where}: {_part(channel)}"
        raise CodecError(
            f"{what} cannot be read: it was serialized as {kind!r} ({type(error).__name__}: {error})",
            path=what,
            type=kind,
        ) from error


def _part(channel: str) -> str:
    return "its header" if channel == HEADER_KEY else f"channel {channel!r}"


def entry_key(channel: str) -> str:
    """Return the entry that a channel is stored under: its name, unless that could be taken for the header's."""
    return f"{channel}_" if channel.startswith(HEADER_KEY) else channel


def channel_name(key: str) -> str:
    """Return the channel that an entry stores."""
    return key[:-1] if key.startswith(HEADER_KEY) else key


def metadata_to_json(metadata: Mapping[str, Any]) -> tuple[str, bool]:
    """Return metadata as the JSON that can be filtered on, and whether that is all of it.

    What JSON has no word for is left out of the text and travels in the header alone.
    """
    try:
        text = _to_json(metadata)
    except (TypeError, ValueError, RecursionError):
        kept = {}
        for key, value in metadata.items():
            try:
                _to_json(value)
            except (TypeError, ValueError, RecursionError):
                continue
            kept[key] = value
        return _to_json(kept), False
    return text, json.loads(text) == metadata


def filter_to_json(wanted: Mapping[str, Any]) -> str:
    """Return a filter as JSON.

    Raises:
        CodecError: It holds something that metadata in JSON never equals.
    """
    try:
        return _to_json(wanted)
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"a filter is plain JSON: {error}", path="filter") from None


# Made once: `json.dumps` would make one for each call.
_to_text: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _to_json(value: object) -> str:
    if isinstance(value, Mapping):
        # json would quietly turn other keys into text, and then no filter on them would match as written.
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a key of type {type(key).__name__}")
    text = _to_text(value)
    # Half a surrogate pair is a str, and no text.
    text.encode()
    return text


def step_name(names: Iterable[str]) -> str:
    """Return the nodes that ran as the name of a step: as many as its limit has room for."""
    ordered = sorted(names)
    text = ", ".join(ordered)
    if len(text.encode("utf-8", "surrogatepass")) <= STEP_BYTES_MAX:
        return text
    shown: list[str] = []
    room = STEP_BYTES_MAX - len(" and 10000 more")
    for name in ordered:
        room -= len(name.encode("utf-8", "surrogatepass")) + 2
        if room < 0:
            break
        shown.append(name)
    more = f"and {len(ordered) - len(shown)} more"
    return f"{', '.join(shown)} {more}" if shown else f"{len(ordered)} nodes"


def _find_unserializable(serde: SerializerProtocol, value: object) -> tuple[str, object]:
    """Return where in a value the serializer fails, and what is there; the innermost part that fails by itself."""
    path, budget = "", LEAVES_SEARCHED_MAX
    while True:
        for step, part in _parts(value):
            budget -= 1
            if budget < 0:
                return path, value
            if not _is_serializable(serde, part):
                path, value = path + step, part
                break
        else:
            return path, value


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]", part
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield f"[{number}]", part
    elif isinstance(fields := getattr(value, "__dict__", None), dict):
        for name, part in fields.items():
            yield f".{name}", part


def _is_serializable(serde: SerializerProtocol, value: object) -> bool:
    try:
        serde.dumps_typed(value)
    # As in `dump`.
    except Exception:  # noqa: BLE001
        return False
    return True
