"""What clients sent and were told, and the check of a store against it.

Every Save is noted before it is sent and when its outcome is known. The check then holds a store against the promises:
what was acknowledged is there, whole, once and in order; what was refused is not there; what nobody knows is there
whole or not at all; nothing else is there.
"""

from __future__ import annotations

import enum
import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

State = Mapping[str, Any]
RecordValues = dict[tuple[str, int], Any]
ANY_PARENT = None


class Outcome(enum.Enum):
    """What a client knows of a Save."""

    OPEN = "open"
    """Not answered, or given up: it may be stored or not."""
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """The store said that it is not stored."""


@dataclass(slots=True)
class Sent:
    """One Save, as its client sees it."""

    workflow_id: str
    checkpoint_id: str
    state: State
    parent_id: str | None
    """What must be its parent; `ANY_PARENT` for an unconditional append."""
    steps: tuple[str, ...] | None
    """All completed steps that it must answer; `None` where that depends on its parent."""
    records: RecordValues
    """Saved with it."""
    sent_at: int
    outcome: Outcome = Outcome.OPEN
    answered_at: int = 0
    sequence: int = 0
    appended: RecordValues = field(default_factory=dict)
    """Records appended to it later, acknowledged."""
    maybe_appended: RecordValues = field(default_factory=dict)
    """Records appended to it later whose outcome is open."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store has a checkpoint."""

    sequence: int
    checkpoint_id: str
    parent_id: str


@dataclass(frozen=True, slots=True)
class Content:
    """What a store has in a checkpoint."""

    state: State
    steps: tuple[str, ...]
    records: RecordValues


class StoreView(Protocol):
    """A store as the check reads it."""

    def places(self, workflow_id: str) -> list[Place]:
        """Return all checkpoints of a workflow by rising sequence; none where there is no such workflow."""

    def head(self, workflow_id: str) -> str:
        """Return the id of the head; "" where there is none."""

    def content(self, workflow_id: str, checkpoint_id: str) -> Content:
        """Read one checkpoint."""


class SaveHistory:
    """Everything that was sent, by all clients. Safe to share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[tuple[str, str], Sent] = {}
        self._clock = itertools.count(1)
        self.replayed_count = 0

    def send(
        self,
        workflow_id: str,
        checkpoint_id: str,
        state: State,
        *,
        parent_id: str | None = ANY_PARENT,
        steps: tuple[str, ...] | None = None,
        records: RecordValues | None = None,
    ) -> Sent:
        """Note a Save, before it is sent."""
        with self._lock:
            sent = Sent(workflow_id, checkpoint_id, state, parent_id, steps, records or {}, next(self._clock))
            assert (workflow_id, checkpoint_id) not in self._sent
            self._sent[workflow_id, checkpoint_id] = sent
        return sent

    def acknowledge(self, sent: Sent, sequence: int, *, is_replayed: bool) -> None:
        """Note that a Save was answered."""
        with self._lock:
            sent.outcome, sent.sequence, sent.answered_at = Outcome.ACKNOWLEDGED, sequence, next(self._clock)
            self.replayed_count += is_replayed

    def refuse(self, sent: Sent) -> None:
        """Note that a Save was refused."""
        with self._lock:
            sent.outcome = Outcome.REFUSED

    def append(self, sent: Sent, records: RecordValues, *, is_acknowledged: bool) -> None:
        """Note records that are about to be appended, or that were."""
        with self._lock:
            if is_acknowledged:
                for key in records:
                    del sent.maybe_appended[key]
            (sent.appended if is_acknowledged else sent.maybe_appended).update(records)

    def counts(self) -> Counter[Outcome]:
        """Return how many Saves have which outcome."""
        with self._lock:
            return Counter(sent.outcome for sent in self._sent.values())

    def now(self) -> int:
        """Return a moment to compare `answered_at` with."""
        with self._lock:
            return next(self._clock)

    def snapshot(self) -> list[Sent]:
        """Return what was sent up to now, as it stands now."""
        with self._lock:
            return [
                replace(sent, appended=dict(sent.appended), maybe_appended=dict(sent.maybe_appended))
                for sent in self._sent.values()
            ]


def check(all_sent: Iterable[Sent], view: StoreView, *, contents_since: int = 0) -> list[str]:
    """Return what a store has otherwise than it was acknowledged.

    Args:
        all_sent: A snapshot that was taken while no server was running, or after all clients had ended.
        view: The store.
        contents_since: Read the content only of what was answered from this moment on, or not at all.
    """
    problems: list[str] = []
    by_workflow: defaultdict[str, dict[str, Sent]] = defaultdict(dict)
    for sent in all_sent:
        by_workflow[sent.workflow_id][sent.checkpoint_id] = sent
    for workflow_id, by_id in by_workflow.items():
        places = view.places(workflow_id)
        problems += [f"{workflow_id}: {problem}" for problem in _check_places(by_id, places)]
        problems += [f"{workflow_id}: {problem}" for problem in _check_order(by_id, places)]
        head = places[-1].checkpoint_id if places else ""
        if view.head(workflow_id) != head:
            problems.append(f"{workflow_id}: its head is {view.head(workflow_id)!r}, its newest is {head!r}")
        for place in places:
            known = by_id.get(place.checkpoint_id)
            if known is not None and (known.outcome is not Outcome.ACKNOWLEDGED or known.answered_at >= contents_since):
                problems += [
                    f"{workflow_id}: {problem}"
                    for problem in _check_content(known, view.content(workflow_id, place.checkpoint_id))
                ]
    return problems


def _check_places(by_id: dict[str, Sent], places: list[Place]) -> list[str]:
    problems: list[str] = []
    stored = {place.checkpoint_id: place for place in places}
    if len(stored) != len(places):
        problems.append("a checkpoint is stored twice")
    if [place.sequence for place in places] != list(range(1, len(places) + 1)):
        problems.append(f"sequences are not 1 to {len(places)}")
    for sent in by_id.values():
        place = stored.pop(sent.checkpoint_id, None)
        if sent.outcome is Outcome.ACKNOWLEDGED and place is None:
            problems.append(f"LOST: {sent.checkpoint_id} was acknowledged as {sent.sequence}")
        elif sent.outcome is Outcome.ACKNOWLEDGED and place is not None and place.sequence != sent.sequence:
            problems.append(f"{sent.checkpoint_id} was acknowledged as {sent.sequence}, is {place.sequence}")
        elif sent.outcome is Outcome.REFUSED and place is not None:
            problems.append(f"{sent.checkpoint_id} was refused, and is stored")
        if place is not None and sent.parent_id is not ANY_PARENT and place.parent_id != sent.parent_id:
            problems.append(f"{sent.checkpoint_id} has parent {place.parent_id!r}, was sent with {sent.parent_id!r}")
    problems += [f"{checkpoint_id} is stored and was never sent" for checkpoint_id in stored]
    return problems


def _check_order(by_id: dict[str, Sent], places: list[Place]) -> list[str]:
    """What was acknowledged before another was sent comes before it; what had an expected head follows just that."""
    problems: list[str] = []
    latest_sent_at = 0
    before = ""
    for place in places:
        sent = by_id.get(place.checkpoint_id)
        if place.parent_id != before:
            problems.append(f"{place.checkpoint_id} follows {before!r} and has parent {place.parent_id!r}")
        before = place.checkpoint_id
        if sent is None:
            continue
        if sent.outcome is Outcome.ACKNOWLEDGED and sent.answered_at < latest_sent_at:
            problems.append(f"{place.checkpoint_id} was acknowledged before one was sent that comes before it")
        latest_sent_at = max(latest_sent_at, sent.sent_at)
    return problems


def _check_content(sent: Sent, content: Content) -> list[str]:
    problems: list[str] = []
    if dict(content.state) != dict(sent.state):
        problems.append(f"{sent.checkpoint_id} has another state than was sent")
    if sent.steps is not None and content.steps != sent.steps:
        problems.append(f"{sent.checkpoint_id} has other completed steps than were sent")
    needed = {**sent.records, **sent.appended}
    allowed = {**needed, **sent.maybe_appended}
    if not needed.items() <= content.records.items() <= allowed.items():
        problems.append(f"{sent.checkpoint_id} has other records than were sent")
    return problems
