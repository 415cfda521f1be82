"""How a long body is cut into rows that fill LMDB's pages.

LMDB keeps a row of more than about 2 KB in whole pages of its own: 2.1 KB cost 4, and a run of pages that lie together
is hard to find in an old file. So a body is cut into chunks of up to 16 whole pages, then into small pieces of which
eight fill one page, and the rest stays in the row that leads to it, its head.
"""

from __future__ import annotations

from functools import lru_cache

from milepost_server.storage.records import HEADER_BYTES

PAGE_BYTES = 4096
PAGE_HEADER_BYTES = 24
"""Of the first page of a run, on either of LMDB's file formats."""
CHUNK_PAGES_MAX = 16
SMALL_PIECE_BYTES = 480
"""Body of a small piece: with its key and headers, eight fill a page on either file format; smaller ones cost
more headers, larger ones leave more of a page empty."""
TAIL_BYTES_MAX = SMALL_PIECE_BYTES
"""The most that stays in the head."""
SMALL_PIECES_MAX = 6
"""What needs more would fill most of a page, which is then taken whole."""


@lru_cache(maxsize=4096)
def plan(size_bytes: int) -> tuple[int, ...]:
    """Return the lengths of the pieces that a body of `size_bytes` is cut into, in order; what remains is its tail."""
    lengths: list[int] = []
    left = size_bytes
    while True:
        pages = min(CHUNK_PAGES_MAX, (left + PAGE_HEADER_BYTES + HEADER_BYTES) // PAGE_BYTES)
        if pages == 0:
            break
        lengths.append(pages * PAGE_BYTES - PAGE_HEADER_BYTES - HEADER_BYTES)
        left -= lengths[-1]
    if left > SMALL_PIECES_MAX * SMALL_PIECE_BYTES + TAIL_BYTES_MAX:
        lengths.append(left)
        left = 0
    while left > TAIL_BYTES_MAX:
        lengths.append(SMALL_PIECE_BYTES)
        left -= SMALL_PIECE_BYTES
    return tuple(lengths)


def tail(body: bytes) -> bytes:
    """Return what of a body stays in its head: all that its pieces leave."""
    return body[sum(plan(len(body))) :]
