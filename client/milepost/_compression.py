"""zstd, on the client's side: one frame for each value that is worth it, and a bounded way back.

Called by `_state` for each value that is sent or read. The package `zstandard` is an extra: without it
nothing is compressed, and `accepted()` tells the server to answer nothing compressed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from milepost._refusals import child_path
from milepost.errors import CodecError
from milepost.v1 import checkpoint_pb2 as pb

try:
    import zstandard
except ImportError:  # an extra
    _IS_AVAILABLE = False
else:
    _IS_AVAILABLE = True

COMPRESS_OVER_BYTES: Final = 1_024
"""Default size above which a value is compressed.

Measured on JSON of chat messages, records, prose and vectors of floats (zstandard 0.25, level 3, one core): at 1 KiB a
frame saves 52 to 68 % for 6 µs here and 3 µs at the reader; at 256 bytes 33 to 48 %, which is some 100 bytes for 5 µs
in all, less than their share of one call is worth. At 16 KiB it is 55 to 82 % for 34 to 92 µs.
"""
LEVEL: Final = 1
"""Against level 3, on 100 KB of random words and of prose: 30 to 45 % less time for frames 6 to 10 % larger; on 2 KB
the frames are no larger."""
WORTH_RATIO: Final = 0.9
"""A frame is kept only when it has at most this share of the bytes: at least a tenth is saved."""
DECOMPRESSED_BYTES_MAX: Final = 64 * 1024 * 1024
"""The server's own bound for one value; a frame that states more is never begun."""
CHECKPOINT_DECOMPRESSED_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Bound for what one checkpoint is decompressed to, with its records: it is handed over as a whole.

One Save may bring a quarter of it. The server counts stored bytes, so whoever may write could otherwise have 10,000
short frames, saved one after the other, become 64 MiB each at every reader.
"""


def accepted() -> Sequence[pb.Compression.ValueType]:
    """Return the compressions this process can undo, for `accept_compression` of a request."""
    return (pb.COMPRESSION_ZSTD,) if _IS_AVAILABLE else ()


def compress(content: bytes, over_bytes: int | None) -> bytes | None:
    """Return one zstd frame that states its content size, or `None` where it is not worth it.

    The same content gives the same frame for as long as the installed zstd stays the same.

    Args:
        content: What to compress.
        over_bytes: Contents up to this size stay as they are; `None`: all do.
    """
    if over_bytes is None or not over_bytes < len(content) <= DECOMPRESSED_BYTES_MAX or not _IS_AVAILABLE:
        return None
    frame = _local.compress(content)
    return frame if len(frame) <= WORTH_RATIO * len(content) else None


def decompress(frame: bytes, path: str = "$") -> bytes:
    """Return the content of one frame, having looked at its stated size before any work.

    Raises:
        CodecError: The frame is damaged, states no size or more than `DECOMPRESSED_BYTES_MAX`, or `zstandard` is not
            installed.
    """
    size = _stated_size(frame, path)
    try:
        content = _local.decompress(frame, size)
    except zstandard.ZstdError:
        raise _error(path, "its zstd frame is damaged") from None
    if len(content) != size:
        raise _error(path, f"its zstd frame states {size} bytes and has {len(content)}")
    return content


def require_bounded(found: pb.Checkpoint) -> None:
    """Refuse a checkpoint whose values state that they are too large together; called before any is decompressed.

    Raises:
        CodecError: They state more than `CHECKPOINT_DECOMPRESSED_BYTES_MAX`; or one is no frame.
    """
    total = 0
    for key, value in found.state.items():
        if value.compression == pb.COMPRESSION_ZSTD:
            total = _add(total, value, child_path("$", key), found)
    for record in found.records:
        if record.value.compression == pb.COMPRESSION_ZSTD:
            total = _add(total, record.value, f"record({record.task_id!r}, {record.index})", found)


def _add(total: int, value: pb.Value, path: str, found: pb.Checkpoint) -> int:
    total += _stated_size(value.data, path)
    if total > CHECKPOINT_DECOMPRESSED_BYTES_MAX:
        raise _error(
            path,
            f"with it, checkpoint {found.checkpoint_id!r} of workflow {found.workflow_id!r} has {total} bytes "
            f"decompressed or more; at most {CHECKPOINT_DECOMPRESSED_BYTES_MAX} are allowed. Load only some entries.",
        )
    return total


def _stated_size(frame: bytes, path: str) -> int:
    if not _IS_AVAILABLE:
        raise _error(path, 'it is compressed with zstd: pip install "milepost[zstd]"')
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError:
        raise _error(path, "its zstd frame is damaged") from None
    if size < 0:
        raise _error(path, "its zstd frame does not state its content size")
    if size > DECOMPRESSED_BYTES_MAX:
        raise _error(path, f"it has {size} bytes decompressed; at most {DECOMPRESSED_BYTES_MAX} are allowed")
    return size


def _error(path: str, reason: str) -> CodecError:
    return CodecError(f"cannot decompress {path}: {reason}", path=path, type="zstd")


class _PerThread(threading.local):
    """Contexts of zstd: costly to make, and not to be used by two threads at once."""

    compress: Callable[[bytes], bytes]

    def __init__(self) -> None:
        if _IS_AVAILABLE:
            # One thread and a fixed level, so that equal content gives equal frames.
            self.compress = zstandard.ZstdCompressor(
                level=LEVEL, write_content_size=True, write_checksum=False, threads=0
            ).compress
            self._decompressor = zstandard.ZstdDecompressor()

    def decompress(self, frame: bytes, size: int) -> bytes:
        return self._decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)


_local = _PerThread()
