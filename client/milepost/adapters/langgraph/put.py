"""One checkpoint to store: what is sent of it, and what is known of it once it is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from milepost._texts import build, require_unicode
from milepost.adapters.langgraph import encoding
from milepost.adapters.langgraph.addresses import Address
from milepost.adapters.langgraph.encoding import HEADER_KEY, Encoded
from milepost.adapters.langgraph.known import KnownChannel, KnownCheckpoint, Version
from milepost.v1 import checkpoint_store_pb2 as pb

DEFINITION: Final = "langgraph"
"""What every thread is saved under, so that other workflows of a namespace are not taken for threads."""
RUN_ID_BYTES_MAX: Final = 256


class Fence(NamedTuple):
    """What a put presents, and what is checked in its commit."""

    lease_token: int = 0
    """The thread's lease; 0: none."""
    is_linear: bool = False
    """Only the newest checkpoint may be followed."""


NO_FENCE: Final = Fence()


class PutDraft:
    """The Save of one checkpoint: incremental where its base is known, and how to turn it into one in full."""

    def __init__(
        self,
        address: Address,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        *,
        namespace: str,
        serde: SerializerProtocol,
        compress_over_bytes: int | None,
        base: KnownCheckpoint | None,
        fence: Fence,
    ) -> None:
        """Plan a put.

        Args:
            address: The parent.
            config: What names it, and more that is kept with the metadata.
            checkpoint: What to store.
            metadata: Stored beside it.
            new_versions: Channels that were written, as far as LangGraph says so.
            namespace: Tenant boundary.
            serde: Turns values into bytes.
            compress_over_bytes: Values larger than this may be compressed.
            base: A stored checkpoint of the same thread and namespace, if one is known.
            fence: What the Save presents.

        Raises:
            CodecError: A channel's value cannot be serialised; names the channel.
            InvalidRequestError: The name of a channel has a lone surrogate.
        """
        for channel in checkpoint["channel_values"]:
            require_unicode(
                "channel",
                channel,
                namespace=namespace,
                workflow_id=address.thread_id,
                scope=address.scope,
                checkpoint_id=checkpoint["id"],
            )
        self._where = f"thread {address.thread_id!r}, checkpoint {checkpoint['id']!r}"
        self._checkpoint = checkpoint
        self._values: Mapping[str, Any] = checkpoint["channel_values"]
        self._versions: Mapping[str, Version] = checkpoint["channel_versions"]
        self._serde = serde
        self._compress_over_bytes = compress_over_bytes
        self._encoded: dict[str, Encoded] = {}
        self._digests: dict[str, bytes] = {}
        parent_id = address.checkpoint_id
        all_metadata = get_serializable_checkpoint_metadata(config, metadata)
        metadata_json, is_exact = encoding.metadata_to_json(all_metadata)
        header: dict[str, Any] = {"checkpoint": {k: v for k, v in checkpoint.items() if k != "channel_values"}}
        if not is_exact:
            header["metadata"] = all_metadata
        self._header = self._encode(header, HEADER_KEY)
        run_id = all_metadata.get("run_id")
        self.request = build(
            pb.SaveRequest,
            namespace=namespace,
            workflow_id=address.thread_id,
            scope=address.scope,
            checkpoint_id=checkpoint["id"],
            parent_id=parent_id,
            current_step=_step(parent_id, checkpoint, base),
            metadata=metadata_json,
            definition=DEFINITION,
            run_id=run_id
            if isinstance(run_id, str) and len(run_id.encode("utf-8", "surrogatepass")) <= RUN_ID_BYTES_MAX
            else "",
            # LangGraph's put replaces what the id holds.
            on_conflict=pb.ON_CONFLICT_REPLACE,
            history_entries=sorted(map(encoding.entry_key, _channels_told_by_ancestors(all_metadata, checkpoint))),
            lease_token=fence.lease_token,
            expected_head=parent_id if fence.is_linear else None,
        )
        self._kept: dict[str, KnownChannel] = {}
        if base is not None and base.checkpoint_id != checkpoint["id"]:
            for channel in self._values:
                stored = base.channels.get(channel)
                if stored is not None and self._is_unchanged(channel, stored, new_versions):
                    self._kept[channel] = stored
            if self._kept:
                self.request.base_checkpoint_id = base.checkpoint_id
                self.request.base_digest = base.content_digest
                gone = base.channels.keys() - self._values.keys()
                self.request.removed_keys.extend(sorted(map(encoding.entry_key, gone)))
        self._put_state(channel for channel in self._values if channel not in self._kept)

    @property
    def is_incremental(self) -> bool:
        """Channels that the base holds are left out."""
        return bool(self._kept)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of what was serialised, by channel."""
        return {channel: encoded.size_bytes for channel, encoded in self._encoded.items()}

    def in_full(self) -> pb.SaveRequest:
        """Turn the request into one that needs no base, because its base is gone or was replaced."""
        request = self.request
        request.ClearField("base_checkpoint_id")
        request.ClearField("base_digest")
        request.ClearField("removed_keys")
        request.ClearField("state")
        self._kept = {}
        self._put_state(self._values)
        return request

    def known(self, response: pb.SaveResponse) -> KnownCheckpoint:
        """Return what is known once it is stored."""
        channels = {
            channel: KnownChannel(
                self._versions.get(channel),
                self._kept[channel].digest if channel in self._kept else self._digest(channel),
            )
            for channel in self._values
        }
        seen = {node: dict(versions) for node, versions in self._checkpoint["versions_seen"].items()}
        return KnownCheckpoint(
            self._checkpoint["id"], response.digest, channels, seen, response.sequence, response.parent_id
        )

    def _is_unchanged(self, channel: str, stored: KnownChannel, new_versions: ChannelVersions) -> bool:
        """Tell whether the base is proven to hold a channel's value.

        By its version, where that was given once and so to one value; else by its bytes. Never by `new_versions` alone,
        which is a difference against another checkpoint than the config's where a checkpoint is copied.
        """
        version = self._versions.get(channel)
        if channel not in new_versions and version == stored.version and is_given_once(version):
            return True
        return self._digest(channel) == stored.digest

    def _put_state(self, channels: Iterable[str]) -> None:
        state = self.request.state
        for channel in channels:
            self._channel(channel).write_to(state[encoding.entry_key(channel)])
        self._header.write_to(state[HEADER_KEY])

    def _digest(self, channel: str) -> bytes:
        digest = self._digests.get(channel)
        if digest is None:
            digest = self._digests[channel] = self._channel(channel).digest
        return digest

    def _channel(self, channel: str) -> Encoded:
        encoded = self._encoded.get(channel)
        if encoded is None:
            encoded = self._encoded[channel] = self._encode(self._values[channel], channel)
        return encoded

    def _encode(self, value: object, channel: str) -> Encoded:
        return encoding.encode(self._serde, value, self._where, channel, self._compress_over_bytes)


def _step(parent_id: str, checkpoint: Checkpoint, base: KnownCheckpoint | None) -> str:
    """Return who ran: the nodes that have seen what they had not at the parent; "" where that is not known."""
    before: Mapping[str, Mapping[str, Version]] = {}
    if parent_id:
        if base is None or base.checkpoint_id != parent_id:
            return ""
        before = base.versions_seen
    seen = checkpoint["versions_seen"]
    return encoding.step_name(
        node for node, versions in seen.items() if _is_node(node) and before.get(node) != versions
    )


def _channels_told_by_ancestors(metadata: Mapping[str, Any], checkpoint: Checkpoint) -> list[str]:
    """Return the channels whose value is what an ancestor stores and what was written since.

    LangGraph counts them in its metadata. One without a version was never written, and needs nobody.
    """
    counters = metadata.get("counters_since_delta_snapshot")
    if not isinstance(counters, Mapping):
        return []
    versions, values = checkpoint["channel_versions"], checkpoint["channel_values"]
    return [channel for channel in counters if channel in versions and channel not in values]


def _is_node(name: str) -> bool:
    """Tell whether what has seen versions runs: LangGraph keeps marks of its own in the same place."""
    return not name.startswith("__") or name in {"__input__", "__start__"}


def is_given_once(version: Version | None) -> bool:
    """Tell whether a version stands for one value: `get_next_version` ends each in random digits, a number has none."""
    return isinstance(version, str) and "." in version
