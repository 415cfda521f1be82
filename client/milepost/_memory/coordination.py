"""What hosts that share work ask of the in-memory store: leases, signals, watching, definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from milepost._failures import locating
from milepost._memory.base import MemoryBase, names_call
from milepost._memory.checks import SHORT_BYTES_MAX, check_count, check_texts, check_token, limit_metadata
from milepost._memory.signals import PENDING_SIGNALS_MAX, SIGNAL_BYTES_MAX, StoredSignal
from milepost._state import decode_value, encode_value
from milepost._texts import check_text
from milepost.errors import DefinitionNotFoundError, QuotaExceededError, SignalExistsError
from milepost.types import LeaseInfo, LeaseRenewal, Signal, SignalSent, WatchEvent, WatchEventKind


class Coordination(MemoryBase):
    """Leases, signals, watchers and definitions of one namespace."""

    # Leases.

    def time_s(self) -> float:
        """Return the store's time, in seconds since some moment: what leases run out by."""
        return self._clock().timestamp()

    @names_call
    def acquire_lease(self, workflow_id: str, *, holder: str, ttl_s: float, request_id: str) -> LeaseInfo:
        """Grant the lease, or refuse it at once."""
        check_texts(workflow_id=workflow_id, holder=holder, request_id=request_id)
        with self._lock:
            info, replayed = self._leases.acquire(workflow_id, holder=holder, ttl_s=ttl_s, request_id=request_id)
            if not replayed:
                self._lease_changed(workflow_id, WatchEventKind.LEASE_GRANTED, holder)
            return info

    @names_call
    def renew_lease(self, workflow_id: str, token: int) -> LeaseRenewal:
        """Let the lease run its full ttl from now."""
        check_texts(workflow_id=workflow_id)
        check_token(token, is_needed=True)
        with self._lock:
            lease = self._leases.renew(workflow_id, token)
            workflow = self._workflows.get(workflow_id)
            if workflow is None:
                return LeaseRenewal(lease=lease)
            return LeaseRenewal(
                lease=lease,
                pending_signals=workflow.signals.shown(),
                pending_signal_count=len(workflow.signals),
            )

    @names_call
    def release_lease(self, workflow_id: str, token: int) -> bool:
        """End the lease, if that token has it; tell whether it had."""
        check_token(token, is_needed=True)
        return self._end_lease(workflow_id, lambda: self._leases.release(workflow_id, token))

    @names_call
    def break_lease(self, workflow_id: str) -> bool:
        """End whatever lease there is; tell whether there was one."""
        return self._end_lease(workflow_id, lambda: self._leases.clear(workflow_id))

    def _end_lease(self, workflow_id: str, end: Callable[[], bool]) -> bool:
        check_texts(workflow_id=workflow_id)
        with self._lock:
            ended = end()
            if ended:
                self._lease_changed(workflow_id, WatchEventKind.LEASE_RELEASED)
            return ended

    @names_call
    def get_lease(self, workflow_id: str) -> LeaseInfo | None:
        """Return the lease without its token."""
        check_texts(workflow_id=workflow_id)
        with self._lock:
            return self._leases.find(workflow_id)

    def _lease_changed(self, workflow_id: str, kind: WatchEventKind, holder: str = "") -> None:
        workflow = self._workflows.get(workflow_id)
        if workflow is not None:
            self._changed(workflow, kind, holder=holder)
        else:
            self._log.append(WatchEvent(kind=kind, workflow_id=workflow_id, holder=holder))

    # Signals.

    @names_call
    def send_signal(self, workflow_id: str, name: str, value: object, *, signal_id: str) -> SignalSent:
        """Let a signal wait for a save that consumes it, once."""
        check_texts(workflow_id=workflow_id, signal_id=signal_id, name=name)
        encoded = None
        if value is not None:
            encoded = encode_value(value, self.codec, compress_over_bytes=None, path="value")
            size_bytes = len(encoded.data or encoded.json.encode())
            limit, allowed = "signal_value_bytes_max", SIGNAL_BYTES_MAX
            check_count("value", size_bytes, limit=limit, allowed=allowed, unit="bytes")
        with self._lock:
            workflow = self._require(workflow_id)
            now = self._clock()
            known, consumed = workflow.signals.find(signal_id, now)
            if known is not None:
                if (known.name, known.value) != (name, encoded):
                    raise SignalExistsError(
                        f"signal {signal_id!r} exists with another name or value",
                        reason="SIGNAL_EXISTS",
                        metadata={"signal_id": signal_id},
                    )
                return SignalSent(signal_id=signal_id, replayed=True, consumed=consumed, revision=workflow.revision)
            if len(workflow.signals) >= PENDING_SIGNALS_MAX:
                raise QuotaExceededError(
                    f"{len(workflow.signals)} signals of workflow {workflow_id!r} wait already; at most "
                    f"{PENDING_SIGNALS_MAX} may",
                    reason="QUOTA_EXCEEDED",
                    metadata=limit_metadata(
                        "pending_signals_max", PENDING_SIGNALS_MAX, len(workflow.signals) + 1, "signals"
                    ),
                )
            workflow.signals.put(StoredSignal(signal_id, name, encoded, now))
            self._changed(workflow, WatchEventKind.SIGNAL_SENT, signal_name=name, signal_id=signal_id)
            return SignalSent(signal_id=signal_id, revision=workflow.revision)

    @names_call
    def signals(self, workflow_id: str, *, name: str | None) -> Iterator[Signal]:
        """Return the signals that wait, in the order they came."""
        check_texts(workflow_id=workflow_id, name=name or None)
        with self._lock:
            stored = self._require(workflow_id).signals.pending(name)
        return (self._signal(workflow_id, one) for one in stored)

    def _signal(self, workflow_id: str, one: StoredSignal) -> Signal:
        # It is read when it is taken, outside of the call.
        with locating(self.namespace, workflow_id):
            return Signal(
                signal_id=one.signal_id,
                name=one.name,
                value=None if one.value is None else decode_value(one.value, self.codec, f"signal({one.signal_id!r})"),
                create_time=one.create_time,
            )

    # Watching.

    def subscribe(self, ring: Callable[[], None]) -> None:
        """Call this after each event."""
        with self._lock:
            self._log.subscribe(ring)

    def unsubscribe(self, ring: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._log.unsubscribe(ring)

    @names_call
    def start_watch(
        self, workflow_id: str, after: tuple[str, int] | None, definition: str | None
    ) -> tuple[WatchEvent, list[WatchEvent], int]:
        """Return the first event, those since `after`, and where to read on."""
        check_texts(workflow_id=workflow_id or None, definition=definition)
        with self._lock:
            workflow = self._workflows.get(workflow_id)
            if workflow is not None and not workflow.is_visible:
                workflow = None
            events: list[WatchEvent] = []
            if after is not None:
                incarnation, revision = after
                is_same = workflow is not None and workflow.incarnation == incarnation
                newest = workflow.revision if workflow is not None and is_same else None
                events = self._log.since(workflow_id, incarnation, revision, newest=newest)
            started = WatchEvent(kind=WatchEventKind.STARTED, workflow_id=workflow_id)
            if events and after is not None:
                # Names the place it goes on from: who is cut off again right now has skipped nothing.
                started = dataclasses.replace(started, incarnation=after[0], revision=after[1])
            elif workflow is not None:
                started = self._event(workflow, WatchEventKind.STARTED, row=workflow.head(""))
            return started, events, self._log.end

    def read_events(self, position: int) -> tuple[list[WatchEvent], int]:
        """Return the events from a position on, and where to read on."""
        with self._lock:
            return self._log.read(position), self._log.end

    # Definitions.

    @names_call
    def definition_manifest(self, fingerprint: str) -> str:
        """Return the JSON text that was first saved under a fingerprint."""
        check_text(
            "fingerprint",
            fingerprint,
            limit="checkpoint_id_bytes_max",
            bytes_max=SHORT_BYTES_MAX,
        )
        with self._lock:
            manifest = self._manifests.get(fingerprint)
        if manifest is None:
            raise DefinitionNotFoundError(
                f"no manifest was stored under fingerprint {fingerprint!r} in namespace {self.namespace!r}",
                reason="DEFINITION_NOT_FOUND",
                metadata={"fingerprint": fingerprint},
            )
        return manifest
