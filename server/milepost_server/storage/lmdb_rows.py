"""Rows that only the LMDB engine has: nodes, values, and what waits to be freed or looked at."""

from __future__ import annotations

import enum

import msgspec

from milepost_server.model import EntryRef


class NamespaceRow(msgspec.Struct, frozen=True, array_like=True):
    """A namespace's number, and what it has counted; the row stays whatever is deleted."""

    namespace_id: int
    name: str
    lease_count: int = 0
    """Leases that were ever granted: the lower half of the newest token."""
    manifest_count: int = 0


class NodeHead(msgspec.Struct, frozen=True, array_like=True):
    """The head of a state node: a keyframe (`prior_id` 0), or a delta on the node before it."""

    holder_count: int
    """Checkpoints that have this state, and nodes that build on it."""
    prior_id: int
    weight: int
    """Entries, removals and steps of this node; of its keyframe, for a delta."""
    chain_weight: int
    """Entries, removals and steps of all deltas from the keyframe up to this node."""
    size_bytes: int
    tail: bytes
    """The end of the body, a `NodeBody`; the rest is in pieces."""
    family_id: int
    """The family that it belongs to, and everything that leads to it."""


class NodeBody(msgspec.Struct, frozen=True, array_like=True):
    """What a node says: everything (keyframe), or what differs (delta)."""

    entries: dict[str, EntryRef]
    removed: tuple[str, ...]
    steps: tuple[str, ...]


class ValueHead(msgspec.Struct, frozen=True, array_like=True):
    """The head of a stored value."""

    holder_count: int
    """Nodes that name this value."""
    kind: int
    codec: str
    compression: int
    size_bytes: int
    tail: bytes
    family_id: int
    """The family that it belongs to, and every node that names it."""


class RecordHead(msgspec.Struct, frozen=True, array_like=True):
    """The head of a record."""

    checkpoint_id: str
    task_id: str
    index: int
    path: str
    name: str
    kind: int
    codec: str
    compression: int
    size_bytes: int
    tail: bytes


class SignalHead(msgspec.Struct, frozen=True, array_like=True):
    """The head of a pending signal."""

    signal_id: str
    name: str
    create_time_ms: int
    kind: int
    """0 where it has no value."""
    codec: str
    compression: int
    size_bytes: int
    tail: bytes


class ManifestHead(msgspec.Struct, frozen=True, array_like=True):
    """The head of a definition's manifest."""

    size_bytes: int
    tail: bytes


class NameBranch(msgspec.Struct, frozen=True, array_like=True):
    """Where names go on that are longer than one key."""

    branch_id: int


class TrashKind(enum.IntEnum):
    """What a trash row frees."""

    NODE = 1
    RECORDS = 2
    WORKFLOW = 3


class TrashRow(msgspec.Struct, frozen=True, array_like=True):
    """Something that nobody reaches any more, to be freed at leisure."""

    kind: int
    owner_id: int
    """A node; the incarnation of records and of a workflow."""
    number: int = 0
    """The scope of records."""
    digest: bytes = b""
    """The checkpoint id of records."""
    position: int = 0
    """How many of a node's entries have been let go of."""
    forget_ids: bool = False
    """Of a workflow: leave no stubs."""


class DueKind(enum.IntEnum):
    """What is to be looked at when its time has come."""

    STUBS = 1
    WAITING_RECORDS = 2
    LEASE = 3
    SIGNAL_STUB = 4


class DueRow(msgspec.Struct, frozen=True, array_like=True):
    """Something to be looked at when its time has come."""

    kind: int
    name_id: int
    namespace_id: int
    workflow_id: str
    internal_id: int = 0
    """Stubs: of this whole incarnation; 0 for those of single checkpoints. Records: their incarnation."""
    scope_ordinal: int = 0
    digest: bytes = b""
    """The checkpoint id of records."""
    position: bytes = b""
    """Stubs: the key at which the next slice goes on; empty at the start. Signals: the key of the id."""
    next_due_ms: int = 0
    """Stubs: when the first of those that were kept so far is due."""
    lease_token: int = 0
    """The lease of a workflow that had not come when it was granted."""
