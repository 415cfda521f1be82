"""Every bound that a request can meet, with its default and unit. `docs/limits.md` is this page for users."""

from __future__ import annotations

import msgspec

KIB = 1024
MIB = 1024 * KIB

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of inputs and answers. Byte counts are of UTF-8."""

    namespace_bytes_max: int = 128
    """Length of a namespace."""
    workflow_id_bytes_max: int = KIB
    """Length of a workflow_id; also of a scope and of an entry key."""
    checkpoint_id_bytes_max: int = 256
    """Length of a checkpoint_id; also of a step, a definition, a fingerprint, a run_id and a fork_id."""
    entries_max: int = 10_000
    """Entries of one state, after the base is applied."""
    request_bytes_max: int = 16 * MIB
    """Size of one request message."""
    state_bytes_max: int = 16 * MIB - 64 * KIB
    """State, metadata and completed steps of one checkpoint together, so that one Load can answer it."""
    value_decompressed_bytes_max: int = 64 * MIB
    """Size of one compressed value when decompressed."""
    json_depth_max: int = 512
    """Nesting of one JSON value."""
    metadata_bytes_max: int = 64 * KIB
    """Size of a checkpoint's metadata."""
    metadata_depth_max: int = 32
    """Nesting of a checkpoint's metadata."""
    metadata_filter_items_max: int = 100
    """Arrays and objects that are elements of arrays in one metadata_contains: each is held against every element."""
    completed_steps_max: int = 100_000
    """Completed steps of one checkpoint."""
    completed_steps_bytes_max: int = 4 * MIB
    """Size of the completed steps of one checkpoint."""
    records_max: int = 10_000
    """Records of one checkpoint."""
    records_bytes_max: int = 16 * MIB - 64 * KIB
    """Size of the records of one checkpoint: as much as a state, which they often become."""
    record_key_bytes_max: int = KIB
    """Length of a record's task_id, path and name, each."""
    waiting_records_max: int = 1_000
    """Records of one workflow whose checkpoint does not exist yet."""
    waiting_records_ttl_ms: int = DAY_MS
    """How long such records wait for their checkpoint, in milliseconds."""
    history_entries_max: int = 1_000
    """Entries of one checkpoint that are named as needing ancestors."""
    history_entries_bytes_max: int = 64 * KIB
    """Their size together."""
    labels_max: int = 16
    """Labels of a workflow."""
    label_key_bytes_max: int = 64
    """Length of a label's key."""
    label_value_bytes_max: int = 256
    """Length of a label's value."""
    codec_bytes_max: int = 64
    """Length of a codec name."""
    batch_items_max: int = 1_000
    """Items of one BatchSave."""
    page_size_default: int = 50
    """Items of a page where the caller names no number."""
    page_size_max: int = 1_000
    """Items of a page at most; a larger number asked for means this one."""
    page_bytes_max: int = 3 * MIB
    """Size of a page; a page ends before the item that would pass it, but has one item at least."""
    page_rows_examined_max: int = 10_000
    """Rows that one filtered call looks at before it answers what it has."""
    delete_ids_max: int = 1_000
    """Checkpoint ids of one DeleteCheckpoints."""
    delete_runs_max: int = 100
    """Executions of one DeleteCheckpoints."""
    history_keys_max: int = 100
    """Entries of one GetEntryHistory."""
    lease_ttl_default_ms: int = 30_000
    """How long a lease runs without a renewal where the caller names no time, in milliseconds."""
    lease_ttl_min_ms: int = 1_000
    """The least that a caller may name."""
    lease_ttl_max_ms: int = HOUR_MS
    """The most that a caller may name."""
    lease_wait_max_ms: int = 60_000
    """How long one AcquireLease may wait, in milliseconds."""
    lease_holder_bytes_max: int = 256
    """Length of a lease's holder and of its request_id, each."""
    unused_lease_ttl_ms: int = DAY_MS
    """How long after its grant the expired lease of a workflow that never came is forgotten, in milliseconds."""
    pending_signals_max: int = 1_000
    """Signals of one workflow that no Save has consumed yet."""
    signal_value_bytes_max: int = 64 * KIB
    """Size of a signal's value."""
    consumed_signals_max: int = 1_000
    """Signals that one Save consumes."""
    pending_signals_shown_max: int = 100
    """Pending signals that Save, Load and RenewLease name; ListSignals has all."""
    manifest_bytes_max: int = MIB
    """Size of a definition's manifest."""
    manifests_max: int = 10_000
    """Manifests of one namespace."""
    namespaces_max: int = 1_000
    """Namespaces of the store."""
    slice_rows_max: int = 1_000
    """Rows that one background or bulk transaction touches before it lets saves through."""
    replay_window_ms: int = 7 * DAY_MS
    """How long a deleted checkpoint's id is remembered, in milliseconds, so that a late retry cannot bring it back."""


DEFAULT_LIMITS = Limits()

CEILING = 1 << 40
"""No limit can be set higher; as a time it is 34 years."""
MESSAGE_BYTES_CEILING = 512 * MIB
"""gRPC counts the bytes of a message, state and records together, in 31 bits."""
CEILINGS = {
    "request_bytes_max": MESSAGE_BYTES_CEILING,
    "records_bytes_max": MESSAGE_BYTES_CEILING,
    # Keys of the database have at most 511 bytes.
    "namespace_bytes_max": 256,
    "checkpoint_id_bytes_max": 480,
    # What a page token has room for.
    "workflow_id_bytes_max": KIB,
    # Deeper texts would come near the interpreter's own bound on recursion.
    "json_depth_max": 512,
}
"""Limits that rest on something that cannot be set."""
