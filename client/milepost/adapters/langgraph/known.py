"""What the server is known to hold: channels by version and digest, of the checkpoints that were saved or loaded last.

An optimisation alone. A put that finds its parent here sends only what the parent has not; one that finds nothing sends
everything. Losing it costs bytes, never correctness.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

Version: TypeAlias = str | int | float

CHANNELS_MAX: Final = 65_536
"""Channels remembered over all threads."""
CHECKPOINTS_PER_SCOPE_MAX: Final = 4
"""Checkpoints remembered of one thread and namespace: the head, and what forks and time travel start from."""


class KnownChannel(NamedTuple):
    """One stored value."""

    version: Version | None
    digest: bytes
    """Empty where it was not worth computing: then the version is the only proof."""


class KnownCheckpoint(NamedTuple):
    """One stored checkpoint."""

    checkpoint_id: str
    content_digest: bytes
    """The server's digest: a base that has another one by now is refused."""
    channels: Mapping[str, KnownChannel]
    """Those that have a value there."""
    versions_seen: Mapping[str, Mapping[str, Version]]
    """What each node had seen, by which the next checkpoint tells who ran."""
    sequence: int
    """Its position in the thread."""
    parent_id: str
    """The checkpoint before it; "" for none that is there."""


Scope: TypeAlias = tuple[str, str]
"""Thread and checkpoint namespace."""


class KnownCheckpoints:
    """The checkpoints that were saved or loaded last. Safe for threads; bounded, oldest use first out."""

    def __init__(self, channels_max: int = CHANNELS_MAX) -> None:
        self._channels_max = channels_max
        self._lock = threading.Lock()
        self._scopes: OrderedDict[Scope, OrderedDict[str, KnownCheckpoint]] = OrderedDict()
        self._count = 0

    def remember(self, scope: Scope, known: KnownCheckpoint) -> None:
        """Keep one checkpoint as the newest of its scope."""
        with self._lock:
            kept = self._scopes.setdefault(scope, OrderedDict())
            self._scopes.move_to_end(scope)
            self._drop(kept, known.checkpoint_id)
            kept[known.checkpoint_id] = known
            self._count += _weight(known)
            while len(kept) > CHECKPOINTS_PER_SCOPE_MAX:
                self._drop(kept, next(iter(kept)))
            while self._count > self._channels_max:
                _, dropped = self._scopes.popitem(last=False)
                self._count -= sum(map(_weight, dropped.values()))

    def recall(self, scope: Scope, checkpoint_id: str) -> KnownCheckpoint | None:
        """Return what is known of a checkpoint; where nothing is, the newest of the scope that is known, or `None`.

        `__copy__` and time travel save on a parent that this process may never have seen, with values of a checkpoint
        that it just loaded.
        """
        with self._lock:
            kept = self._scopes.get(scope)
            if not kept:
                return None
            self._scopes.move_to_end(scope)
            return kept.get(checkpoint_id) or kept[next(reversed(kept))]

    def exactly(self, scope: Scope, checkpoint_id: str) -> KnownCheckpoint | None:
        """Return what is known of a checkpoint, and of no other."""
        found = self.recall(scope, checkpoint_id)
        return found if found is not None and found.checkpoint_id == checkpoint_id else None

    def forget(self, scope: Scope, checkpoint_id: str) -> None:
        """Drop one checkpoint, because the server no longer has it so."""
        with self._lock:
            kept = self._scopes.get(scope)
            if kept is not None:
                self._drop(kept, checkpoint_id)
                if not kept:
                    del self._scopes[scope]

    def forget_thread(self, thread_id: str) -> None:
        """Drop a thread that was deleted."""
        with self._lock:
            for scope in [scope for scope in self._scopes if scope[0] == thread_id]:
                self._count -= sum(map(_weight, self._scopes.pop(scope).values()))

    def _drop(self, kept: OrderedDict[str, KnownCheckpoint], checkpoint_id: str) -> None:
        dropped = kept.pop(checkpoint_id, None)
        if dropped is not None:
            self._count -= _weight(dropped)


def _weight(known: KnownCheckpoint) -> int:
    # One without channels has a weight too, or any number of them could be kept.
    return len(known.channels) + len(known.versions_seen) + 1
