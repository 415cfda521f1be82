"""Hosts that race for the leases of a few workflows, save under them, and come back with tokens that are long lost.

Every checkpoint says in its metadata which token it was saved with. So the store itself tells whether the fence held:
along the sequences of a workflow tokens never decrease. What is asked of a server that is gone is asked again.
"""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from milepost.v1 import checkpoint_store_pb2 as pb
from tests.support.raw_calls import open_channel, open_stub, read_error, save_request

WORKFLOWS = ("a", "b")
TTL_MS = 50
RETRY_PAUSE_S = 0.02
CALL_DEADLINE_S = 30.0
WAIT_MAX_S = 120.0
OLD_TOKENS_MAX = 8


class RacingHosts:
    """Threads that race until the block ends. Fails the block if one of them met what it did not expect."""

    def __init__(self, target: str, count: int, seed: int) -> None:
        self._target = target
        self._stopping = threading.Event()
        self._noted = threading.Condition()
        self.outcomes: Counter[str] = Counter()
        self.grants: list[tuple[str, int]] = []
        """Workflow and token of each grant that was new."""
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}-{number}"),)) for number in range(count)
        ]

    def __enter__(self) -> RacingHosts:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert self._errors == []

    def wait(self, seconds: float) -> None:
        """Let them race for a while."""
        self._stopping.wait(seconds)

    def wait_for(self, counts: Mapping[str, int]) -> None:
        """Let them race until these outcomes have come so often, however slow the machine is."""

        def have_come() -> bool:
            return self._stopping.is_set() or all(self.outcomes[outcome] >= count for outcome, count in counts.items())

        with self._noted:
            assert self._noted.wait_for(have_come, WAIT_MAX_S), self.outcomes

    def _run(self, rng: random.Random) -> None:
        try:
            with open_channel(self._target) as channel:
                host = _Host(open_stub(channel), rng, self._stopping, self._note)
                while not self._stopping.is_set():
                    host.take_turn()
        except BaseException as error:  # noqa: BLE001 - the edge of the thread: told when the block ends
            self._errors.append(error)
            self._stopping.set()
            with self._noted:
                self._noted.notify_all()

    def _note(self, outcome: str, grant: tuple[str, int] | None = None) -> None:
        with self._noted:
            self.outcomes[outcome] += 1
            if grant is not None:
                self.grants.append(grant)
            self._noted.notify_all()


class _Host:
    def __init__(
        self,
        stub: Any,
        rng: random.Random,
        stopping: threading.Event,
        note: Callable[..., None],
    ) -> None:
        self._stub = stub
        self._rng = rng
        self._stopping = stopping
        self._note = note
        self._old: list[tuple[str, int]] = []

    def take_turn(self) -> None:
        """Take a lease, save a few times, let go of it in one way or another; now and then save with an old token."""
        workflow_id = self._rng.choice(WORKFLOWS)
        granted = self._call(
            "AcquireLease",
            pb.AcquireLeaseRequest(
                workflow_id=workflow_id, holder="host", ttl_ms=TTL_MS, wait_ms=1_000, request_id=str(uuid.uuid4())
            ),
        )
        if isinstance(granted, str):
            self._note(f"acquire: {granted}")
            return
        token = granted.lease.token
        self._note("granted", None if granted.replayed else (workflow_id, token))
        last = self._rng.randrange(1, 4)
        is_released = self._rng.random() < 0.3
        for number in range(last + 1):
            self._save(workflow_id, token, release_lease=is_released and number == last)
        if self._rng.random() < 0.3:
            self._call("ReleaseLease", pb.ReleaseLeaseRequest(workflow_id=workflow_id, lease_token=token))
        self._old = [*self._old, (workflow_id, token)][-OLD_TOKENS_MAX:]
        self._save(*self._rng.choice(self._old))

    def _save(self, workflow_id: str, token: int, *, release_lease: bool = False) -> None:
        request = save_request(
            workflow_id,
            checkpoint_id=str(uuid.uuid4()),
            metadata=json.dumps({"token": token}),
            lease_token=token,
            release_lease=release_lease,
        )
        saved = self._call("Save", request)
        self._note(f"save: {saved}" if isinstance(saved, str) else "saved")

    def _call(self, method: str, request: Any) -> Any:
        """Return the answer, or the reason of the refusal; ask again while nobody answers."""
        while True:
            try:
                return getattr(self._stub, method)(request, timeout=CALL_DEADLINE_S, wait_for_ready=True)
            except grpc.RpcError as error:
                found = read_error(error)
                if found.reason in {"LEASE_HELD", "LEASE_LOST"}:
                    return found.reason
                if found.code not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN}:
                    raise
                if self._stopping.wait(RETRY_PAUSE_S):
                    return "stopped"


def fence_breaches(stub: Any) -> list[str]:
    """Return where a workflow was changed with a token older than one that it had been changed with before."""
    found: list[str] = []
    for workflow_id in WORKFLOWS:
        newest = 0
        request = pb.ListRequest(workflow_id=workflow_id, order=pb.ORDER_OLDEST_FIRST, page_size=1_000)
        while True:
            page = stub.List(request, timeout=CALL_DEADLINE_S)
            for checkpoint in page.checkpoints:
                token = json.loads(checkpoint.metadata)["token"]
                if token < newest:
                    found.append(f"{workflow_id}/{checkpoint.sequence}: token {token} after {newest}")
                newest = max(newest, token)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    return found
