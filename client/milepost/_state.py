"""State encoding: from a mapping of Python values to the entries of a Save, and back.

Called by the clients on every save and load, and by the in-memory stores. Digests of what was saved are kept
in a bounded memory, so that the next save of a workflow sends only entries that differ. That memory is an
optimisation alone: it never chooses a parent, and losing it costs bytes, not correctness.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from typing_extensions import override

from milepost import _compression
from milepost._refusals import child_path, type_name
from milepost._texts import check_text, shown
from milepost.codecs import JSON, Codec
from milepost.errors import CodecError, InvalidRequestError
from milepost.v1 import checkpoint_pb2 as pb

ENTRY_KEY_BYTES_MAX: Final = 1_024
DIGEST_BYTES: Final = 16
DIGESTS_MAX: Final = 65_536
"""Entry digests that a `DigestMemory` holds by default, over all workflows: about 10 MB."""


class _Content(NamedTuple):
    """An encoded value before compression."""

    content: bytes
    is_json: bool


class EncodedValue:
    """A value that is encoded already, by the codec of the store it goes to: what the runner keeps between two saves.

    Takes the place of a value in a state that is saved. It is encoded and digested once, however often it is saved.
    """

    __slots__ = ("_content", "_digest", "_uncompressed", "codec_name")

    def __init__(self, content: str | bytes, codec_name: str) -> None:
        if isinstance(content, str):
            self._content = _Content(content.encode("utf-8"), is_json=True)
        else:
            self._content = _Content(content, is_json=codec_name == "json")
        self._digest: bytes | None = None
        self._uncompressed: pb.Value | None = None
        self.codec_name = codec_name

    @property
    def content(self) -> _Content:
        """What is stored, before compression."""
        return self._content

    def digest(self) -> bytes:
        """Return what stands for the content."""
        if self._digest is None:
            self._digest = _digest(self._content, self.codec_name)
        return self._digest

    def uncompressed(self) -> pb.Value:
        """Return what a store that compresses nothing is sent: always the same object, which is not to be changed.

        So an in-memory store holds a value once, however many checkpoints it is in.
        """
        if self._uncompressed is None:
            self._uncompressed = _value(self._content, self.codec_name, None)
        return self._uncompressed

    @override
    def __repr__(self) -> str:
        return f"EncodedValue(codec_name={self.codec_name!r}, size_bytes={len(self._content.content)})"


@dataclass(frozen=True, slots=True)
class EncodedState:
    """One state, encoded once: what to send, and the digests to compare with.

    Compression waits until a value is asked for: an incremental save never compresses what it does not send.
    """

    digests: Mapping[str, bytes]
    """By entry key: 16 bytes that stand for the value, whether or not it will be compressed."""
    size_bytes: int
    """Keys and values as encoded, before compression."""
    _contents: Mapping[str, _Content] = field(repr=False)
    _codec_name: str
    _compress_over_bytes: int | None
    _values: dict[str, pb.Value] = field(default_factory=dict, repr=False, compare=False)

    @property
    def values(self) -> dict[str, pb.Value]:
        """Every entry, as a Save in full sends it."""
        return self.values_of(self._contents)

    def values_of(self, keys: Iterable[str]) -> dict[str, pb.Value]:
        """Return the entries of these keys; each value is made once and is not to be changed."""
        made = self._values
        for key in keys:
            if key not in made:
                made[key] = _value(self._contents[key], self._codec_name, self._compress_over_bytes)
        return {key: made[key] for key in keys}

    @override
    def __repr__(self) -> str:
        name = self._codec_name
        return f"EncodedState(entries={len(self.digests)}, size_bytes={self.size_bytes}, codec={name!r})"


class Increment(NamedTuple):
    """What an incremental Save sends beside its base."""

    values: dict[str, pb.Value]
    removed_keys: tuple[str, ...]

    @override
    def __repr__(self) -> str:
        return f"Increment(values={len(self.values)}, removed_keys={len(self.removed_keys)})"


def encode_state(
    state: Mapping[str, Any],
    codec: Codec = JSON,
    *,
    compress_over_bytes: int | None = _compression.COMPRESS_OVER_BYTES,
) -> EncodedState:
    """Encode every entry, keeping no reference to any object of the state.

    Args:
        state: The entries by key.
        codec: Encodes each value.
        compress_over_bytes: Values larger than this are sent compressed where that saves a tenth; `None`:
        never.

    Raises:
        InvalidRequestError: An entry key is no text, is empty, has a NUL, or (LimitExceededError) is too long.
        CodecError: A value has no exact form; `path` begins with the entry key.
    """
    contents: dict[str, _Content] = {}
    digests: dict[str, bytes] = {}
    values: dict[str, pb.Value] = {}
    size_bytes = 0
    codec_name = codec.name
    for key, value in state.items():
        key_bytes = _key_bytes(key)
        if type(value) is EncodedValue and value.codec_name == codec_name:
            encoded = value.content
            digests[key] = value.digest()
            if compress_over_bytes is None:
                values[key] = value.uncompressed()
        else:
            encoded = _encode(value, codec, child_path("$", key))
            digests[key] = _digest(encoded, codec_name)
        contents[key] = encoded
        size_bytes += key_bytes + len(encoded.content)
    return EncodedState(digests, size_bytes, contents, codec_name, compress_over_bytes, values)


def encode_value(
    value: object,
    codec: Codec = JSON,
    *,
    compress_over_bytes: int | None = _compression.COMPRESS_OVER_BYTES,
    path: str = "$",
) -> pb.Value:
    """Encode one value, a record's for example."""
    return _value(_encode(value, codec, path), codec.name, compress_over_bytes)


def decode_value(value: pb.Value, codec: Codec = JSON, path: str = "$") -> Any:
    """Return the Python value.

    Text, and data of the codec "json", is read as JSON whatever codec is given: anyone may have written it.

    Raises:
        CodecError: The value was encoded by another codec, or is damaged.
    """
    return _decode(_uncompressed(value, path), value.codec, codec, path)


def decode_state(values: Mapping[str, pb.Value], codec: Codec = JSON) -> dict[str, Any]:
    """Return the Python values of all entries, sorted by key: the wire has no order of its own."""
    return {key: decode_value(values[key], codec, child_path("$", key)) for key in sorted(values)}


def plan_increment(encoded: EncodedState, base_digests: Mapping[str, bytes] | None) -> Increment | None:
    """Return what differs from the base, or `None` where nothing is shared and a Save in full is as short."""
    if not base_digests:
        return None
    digests = encoded.digests
    changed = [key for key, digest in digests.items() if base_digests.get(key) != digest]
    removed = tuple(sorted(base_digests.keys() - digests.keys()))
    if len(changed) == len(digests):
        return None
    return Increment(encoded.values_of(changed), removed)


class KnownState(NamedTuple):
    """What is remembered of one checkpoint."""

    digests: Mapping[str, bytes]
    content_digest: bytes
    """The server's digest of the checkpoint that the others were taken of: it tells whether that was replaced since."""


class DigestMemory:
    """Digests of the states this client saved or loaded last. Safe for threads, bounded, oldest use first out."""

    def __init__(self, digests_max: int = DIGESTS_MAX) -> None:
        self._digests_max = digests_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str, str], KnownState] = OrderedDict()
        self._count = 0

    def remember(
        self,
        namespace: str,
        workflow_id: str,
        scope: str,
        checkpoint_id: str,
        *,
        digests: Mapping[str, bytes],
        content_digest: bytes,
    ) -> None:
        """Keep the digests of one checkpoint. More than the whole memory holds are not kept."""
        key = (namespace, workflow_id, scope, checkpoint_id)
        # An empty state has a place too, or any number of them could be kept.
        with self._lock:
            self._drop(key)
            if len(digests) + 1 > self._digests_max:
                return
            self._kept[key] = KnownState(MappingProxyType(dict(digests)), content_digest)
            self._count += len(digests) + 1
            while self._count > self._digests_max:
                _, dropped = self._kept.popitem(last=False)
                self._count -= len(dropped.digests) + 1

    def recall(self, namespace: str, workflow_id: str, scope: str, checkpoint_id: str) -> KnownState | None:
        """Return what is remembered of one checkpoint, or `None`."""
        key = (namespace, workflow_id, scope, checkpoint_id)
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
            return known

    def forget(self, namespace: str, workflow_id: str, scope: str, checkpoint_id: str) -> None:
        """Drop one checkpoint, because the server no longer has it as a base."""
        with self._lock:
            self._drop((namespace, workflow_id, scope, checkpoint_id))

    def _drop(self, key: tuple[str, str, str, str]) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self._count -= len(dropped.digests) + 1

    @override
    def __repr__(self) -> str:
        with self._lock:
            return f"DigestMemory(checkpoints={len(self._kept)}, digests_max={self._digests_max})"


def _key_bytes(key: object) -> int:
    if type(key) is not str:
        raise InvalidRequestError(f"entry keys are str; there is one of type {type_name(type(key))}")
    if key.isascii() and 0 < len(key) <= ENTRY_KEY_BYTES_MAX and "\0" not in key:
        return len(key)
    return check_text(f"state[{shown(key)}]", key, limit="workflow_id_bytes_max", bytes_max=ENTRY_KEY_BYTES_MAX)


def _encode(value: object, codec: Codec, path: str) -> _Content:
    content = codec.encode(value, path)
    if isinstance(content, bytes):
        return _Content(content, is_json=codec.name == "json")
    if codec.name != "json":
        raise CodecError(
            f"codec {codec.name!r} answered text for {path}: only the codec 'json' may, others answer bytes",
            path=path,
            type=type_name(type(value)),
        )
    return _Content(content.encode("utf-8"), is_json=True)


def _value(encoded: _Content, codec_name: str, compress_over_bytes: int | None) -> pb.Value:
    frame = _compression.compress(encoded.content, compress_over_bytes)
    if frame is not None:
        return pb.Value(data=frame, codec=codec_name, compression=pb.COMPRESSION_ZSTD)
    if encoded.is_json:
        # Without the codec's name, as a person would send it: the same content, so a replay of it is one.
        return pb.Value(json=encoded.content.decode("utf-8"))
    return pb.Value(data=encoded.content, codec=codec_name)


def _uncompressed(value: pb.Value, path: str) -> _Content:
    match value.WhichOneof("content"):
        case "json":
            return _Content(value.json.encode("utf-8"), is_json=True)
        case "data":
            content = value.data
        case _:
            raise CodecError(f"{path} has no content", path=path, type="")
    if value.compression == pb.COMPRESSION_ZSTD:
        content = _compression.decompress(content, path)
    elif value.compression != pb.COMPRESSION_UNSPECIFIED:
        raise CodecError(
            f"{path} is compressed in a way this client does not know ({value.compression})",
            path=path,
            type="",
        )
    return _Content(content, is_json=value.codec == "json")


def _decode(encoded: _Content, codec_name: str, codec: Codec, path: str) -> Any:
    if encoded.is_json:
        return (codec if codec.name == "json" else JSON).decode(encoded.content, path)
    if codec_name == codec.name:
        return codec.decode(encoded.content, path)
    raise CodecError(
        f"{path} was encoded by the codec {codec_name!r}; this client has {codec.name!r}",
        path=path,
        type=codec_name,
    )


def _digest(encoded: _Content, codec_name: str) -> bytes:
    kind = b"json" if encoded.is_json else codec_name.encode()
    return blake2b(encoded.content, digest_size=DIGEST_BYTES, key=kind).digest()
