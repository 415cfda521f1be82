"""BLAKE2b, by which everything here is told apart, without `hashlib`.

That module loads OpenSSL whatever is asked of it: 3.4 MiB resident in the storage process, which has no other use for
it. What it hands out as `blake2b` is the interpreter's own, and that is imported from where it is.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:
    # An interpreter that was built to take all its hashes from OpenSSL.
    from hashlib import blake2b

__all__ = ["blake2b"]
