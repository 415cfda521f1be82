"""Keys of the LMDB engine: fixed-width, ordered, one function for each table.

A key is the number of what owns the row (8 bytes, big-endian), the letter of its table, and the rest. Numbers come from
one counter for all that has one, so no two owners share a prefix. 0 owns what belongs to the whole store.

| owner | tables |
|---|---|
| 0 | `m` meta · `a` namespaces by name · `t` trash · `d` what is due at a time · `b` forks under construction |
| namespace | `w` names by workflow_id (see `long_keys`) · `u` checkpoints by run |
| namespace | `f`, `F` manifests by fingerprint and their pieces |
| namespace | `k` workflow_ids by status (see `status_index`) |
| name | `s` scopes by name · `S` scopes by number · `i` checkpoint ids · `l` the lease |
| incarnation | `W` the workflow · `q` checkpoints by sequence · `o` order within a scope |
| incarnation | `g` record groups · `r`, `R` records and their pieces |
| incarnation | `x`, `X` pending signals by number and their pieces · `y` signal ids |
| itself | `c` a checkpoint · `N`, `n` a state node and its pieces · `V`, `v` a value and its pieces |

What a Save adds in bulk (its values, its node, its checkpoint) owns itself and has just been given its number, so it
always goes to the end of the tree, written in the order of its keys: LMDB then fills its pages, and a batch of Saves to
many workflows shares them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from milepost_server.digests import blake2b

STORE = 0
"""Owner of what belongs to the whole store."""

_OWNER = struct.Struct(">Qc")
_ONE = struct.Struct(">QcQ")
_TWO = struct.Struct(">QcQQ")
_PIECE = struct.Struct(">H")
_INDEX = struct.Struct(">I")

SCOPE_KEY_BYTES_MAX = 448
"""A scope longer than this is keyed by its start and a digest."""
DIGEST_BYTES = 16
"""Length of the digests that stand for long texts in keys; the row has the text itself and is compared."""
PREFIX_BYTES = 9
"""Length of owner and table."""

META = b"m"
NAMESPACE = b"a"
TRASH = b"t"
DUE = b"d"
BUILDING = b"b"
NAME = b"w"
STATUS = b"k"
RUN = b"u"
SCOPE = b"s"
SCOPE_NUMBER = b"S"
ID = b"i"
LEASE = b"l"
WORKFLOW = b"W"
CHECKPOINT = b"c"
SEQUENCE = b"q"
ORDER = b"o"
GROUP = b"g"
RECORD = b"r"
RECORD_PIECE = b"R"
SIGNAL = b"x"
SIGNAL_PIECE = b"X"
SIGNAL_ID = b"y"
MANIFEST = b"f"
MANIFEST_PIECE = b"F"
NODE = b"N"
NODE_PIECE = b"n"
VALUE = b"V"
VALUE_PIECE = b"v"

TABLE_NAMES = {
    META: "meta",
    NAMESPACE: "namespaces",
    TRASH: "trash",
    DUE: "due",
    BUILDING: "building",
    NAME: "names",
    STATUS: "statuses",
    RUN: "runs",
    SCOPE: "scopes",
    SCOPE_NUMBER: "scope_numbers",
    ID: "ids",
    LEASE: "leases",
    WORKFLOW: "workflows",
    CHECKPOINT: "checkpoints",
    SEQUENCE: "sequences",
    ORDER: "order",
    GROUP: "record_groups",
    RECORD: "records",
    RECORD_PIECE: "record_pieces",
    SIGNAL: "signals",
    SIGNAL_PIECE: "signal_pieces",
    SIGNAL_ID: "signal_ids",
    MANIFEST: "manifests",
    MANIFEST_PIECE: "manifest_pieces",
    NODE: "nodes",
    NODE_PIECE: "node_pieces",
    VALUE: "values",
    VALUE_PIECE: "value_pieces",
}
"""What a table is called in errors and reports."""


def digest_text(text: str) -> bytes:
    """Return the bytes that stand for a text in a key."""
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def prefix(owner: int, table: bytes) -> bytes:
    """Return what all rows of an owner's table start with."""
    return _OWNER.pack(owner, table)


def numbered(owner: int, table: bytes, number: int) -> bytes:
    """Return the key of a row with a number: sequences, scope numbers, forks, trash."""
    return _ONE.pack(owner, table, number)


def ordered(owner: int, table: bytes, first: int, second: int) -> bytes:
    """Return the key of a row with two numbers: order within a scope, what is due."""
    return _TWO.pack(owner, table, first, second)


def meta(name: bytes) -> bytes:
    """Return the key of a fact about the store."""
    return _OWNER.pack(STORE, META) + name


def namespace(name: str) -> bytes:
    """Return the key of a namespace."""
    return _OWNER.pack(STORE, NAMESPACE) + name.encode()


def workflow(internal_id: int) -> bytes:
    """Return the key of an incarnation."""
    return _OWNER.pack(internal_id, WORKFLOW)


def scope(name_id: int, name: str) -> bytes:
    """Return the key of a scope by its name."""
    text = name.encode()
    if len(text) > SCOPE_KEY_BYTES_MAX:
        # One byte longer than any short key, so that the two kinds never meet.
        text = text[: SCOPE_KEY_BYTES_MAX + 1 - DIGEST_BYTES] + digest_text(name)
    return _OWNER.pack(name_id, SCOPE) + text


def checkpoint_id(name_id: int, scope_ordinal: int, text: str) -> bytes:
    """Return the key of a checkpoint id."""
    return _ONE.pack(name_id, ID, scope_ordinal) + text.encode()


def signal_id(internal_id: int, text: str) -> bytes:
    """Return the key of a signal id."""
    return _OWNER.pack(internal_id, SIGNAL_ID) + text.encode()


def manifest(namespace_id: int, fingerprint: str) -> bytes:
    """Return the key of a definition's manifest."""
    return _OWNER.pack(namespace_id, MANIFEST) + fingerprint.encode()


def run_prefix(namespace_id: int, run_id: str) -> bytes:
    """Return what all checkpoints of a run start with."""
    return _OWNER.pack(namespace_id, RUN) + digest_text(run_id)


def run(namespace_id: int, run_id: str, internal_id: int, sequence: int) -> bytes:
    """Return the key of a checkpoint in its run."""
    return run_prefix(namespace_id, run_id) + struct.pack(">QQ", internal_id, sequence)


def group(internal_id: int, scope_ordinal: int, checkpoint_digest: bytes) -> bytes:
    """Return the key of the count of a checkpoint id's records."""
    return _ONE.pack(internal_id, GROUP, scope_ordinal) + checkpoint_digest


def records_prefix(internal_id: int, table: bytes, scope_ordinal: int, checkpoint_digest: bytes) -> bytes:
    """Return what all records (or pieces of them) of a checkpoint id start with."""
    return _ONE.pack(internal_id, table, scope_ordinal) + checkpoint_digest


def record(internal_id: int, scope_ordinal: int, checkpoint_digest: bytes, task_id: str, index: int) -> bytes:
    """Return the key of a record."""
    start = records_prefix(internal_id, RECORD, scope_ordinal, checkpoint_digest)
    return start + digest_text(task_id) + _INDEX.pack(index + (1 << 31))


def piece(head_key: bytes, table: bytes, number: int) -> bytes:
    """Return the key of a piece of what starts at `head_key`."""
    return head_key[:8] + table + head_key[PREFIX_BYTES:] + _PIECE.pack(number)


def pieces(head_key: bytes, table: bytes, count: int) -> list[bytes]:
    """Return the keys of the pieces of what starts at `head_key`."""
    start = head_key[:8] + table + head_key[PREFIX_BYTES:]
    return [start + _PIECE.pack(number) for number in range(count)]


def following(start: bytes) -> bytes:
    """Return the first key after all that start with `start`."""
    number = int.from_bytes(start, "big") + 1
    return number.to_bytes(len(start), "big")


def table_of(key: bytes) -> bytes:
    """Return the letter of a key's table."""
    return key[8:PREFIX_BYTES]


def owner_of(key: bytes) -> int:
    """Return the number of a key's owner."""
    return int.from_bytes(key[:8], "big")


def numbers_of(key: bytes, count: int) -> Iterator[int]:
    """Yield the first numbers after a key's table."""
    for position in range(count):
        start = PREFIX_BYTES + 8 * position
        yield int.from_bytes(key[start : start + 8], "big")
