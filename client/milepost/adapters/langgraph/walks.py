"""Reads of more than one page: a list of checkpoints, and a line of ancestors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.base import DeltaChannelHistory, PendingWrite

from milepost.adapters.langgraph import encoding
from milepost.v1 import checkpoint_pb2


class DeltaWalk:
    """A walk from a checkpoint towards its first ancestor, collecting writes until each channel is found stored."""

    def __init__(self, channels: Sequence[str]) -> None:
        self._channels = channels
        self._writes: dict[str, list[PendingWrite]] = {channel: [] for channel in channels}
        self._seeds: dict[str, Any] = {}
        self._skipped: dict[str, str | None] = {}
        self._next_id = ""
        self.remaining = set(channels)

    def goes_on(self) -> bool:
        """Tell whether there is an ancestor to visit, and a channel to find."""
        return bool(self.remaining and self._next_id)

    def start(self, checkpoint_id: str) -> None:
        """Begin at a checkpoint; "" for none."""
        self._next_id = checkpoint_id

    def ancestors(self, page: Sequence[checkpoint_pb2.Checkpoint]) -> Iterator[checkpoint_pb2.Checkpoint]:
        """Pick what is on the line from a page, newest first; visit each before taking the next."""
        for found in page:
            if found.checkpoint_id == self._next_id:
                yield found

    def maybe_stored(self, ancestor: checkpoint_pb2.Checkpoint) -> list[str]:
        """Return the channels that an ancestor may store: those it does not say that it needs ancestors for."""
        needed = {encoding.channel_name(key) for key in ancestor.history_entries}
        return sorted(self.remaining - needed - self._skipped.keys())

    def skip_until(self, channels: Sequence[str], removals: Mapping[str, str]) -> None:
        """Expect no value of a channel before the ancestor where it was removed; where it never was, none at all."""
        self._skipped.update((channel, removals.get(channel)) for channel in channels)

    def visit(
        self,
        ancestor: checkpoint_pb2.Checkpoint,
        stored: Mapping[str, Any],
        writes: Sequence[PendingWrite],
    ) -> None:
        """Take an ancestor's writes, its values where it has any, and go on behind it.

        A value is what the channel was before the ancestor's own writes, so these count in any case.
        """
        for write in reversed(writes):
            if write[1] in self.remaining:
                self._writes[write[1]].append(write)
        for channel, value in stored.items():
            self._seeds[channel] = value
            self.remaining.discard(channel)
        self._skipped = {channel: at for channel, at in self._skipped.items() if at != ancestor.checkpoint_id}
        self._next_id = "" if ancestor.parent_pruned else ancestor.parent_id

    def result(self) -> Mapping[str, DeltaChannelHistory]:
        """Return what was collected, oldest write first."""
        history: dict[str, DeltaChannelHistory] = {}
        for channel in self._channels:
            history[channel] = {"writes": self._writes[channel][::-1]}
            if channel in self._seeds:
                history[channel]["seed"] = self._seeds[channel]
        return history
