"""Which values are so large that an event loop should not wait while they are turned into bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

LARGE_BYTES: Final = 64 * 1024
"""Above this, serialising and compressing take some tenths of a millisecond, which is what a thread costs."""
PARTS_MAX: Final = 1_000
"""A value of more parts is large, whatever their size. It is also what a look at a value may cost: 0.1 ms at most."""


def is_large(values: Iterable[object]) -> bool:
    """Tell from a short look whether values are large together. A guess: objects of extensions may hold anything."""
    stack = list(values)
    left_bytes, left_parts = LARGE_BYTES, PARTS_MAX - len(stack)
    while stack:
        value = stack.pop()
        if isinstance(value, (str, bytes, bytearray, memoryview)):
            left_bytes -= len(value)
        elif isinstance(value, Mapping):
            left_parts -= len(value)
            if left_parts >= 0:
                stack += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            left_parts -= len(value)
            if left_parts >= 0:
                stack += value
        elif isinstance(fields := getattr(value, "__dict__", None), dict):
            left_parts -= len(fields)
            if left_parts >= 0:
                stack += fields.values()
        elif isinstance(size_bytes := getattr(value, "nbytes", 0), int):
            left_bytes -= size_bytes
        if left_bytes < 0 or left_parts < 0:
            return True
    return False
