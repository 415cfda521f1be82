"""Concurrent clients that save without pause, survive a server that is killed under them, and note all they were told.

Each client has workflows of its own (a chain: each Save names the head it expects and sends only what changed),
appends to workflows that all share without expecting any head, and contends for the head of others. Some Saves are
sent once and given up when no answer comes.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from milepost import (
    Client,
    HeadMovedError,
    MilepostError,
    OutcomeUnknownError,
    Record,
    RetryPolicy,
    Saved,
    SaveItem,
    UnavailableError,
    WorkflowNotFoundError,
)
from tests.support.save_history import SaveHistory, Sent

OWN_WORKFLOWS = 2
SHARED_WORKFLOWS = ("shared-0", "shared-1", "shared-2")
CONTENDED_WORKFLOWS = ("contended-0", "contended-1")
CALL_TIMEOUT_S = 30.0
END_DEADLINE_S = 120.0
PATIENT = RetryPolicy(attempts_max=10_000, backoff_max_s=0.1)
ONCE = RetryPolicy(attempts_max=1)


class SavingClients:
    """Client threads. Use as a context: they run inside it, and a failure of any of them is raised at its end."""

    def __init__(self, target: str, count: int, seed: int) -> None:
        self.history = SaveHistory()
        self.stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._clients: list[Client] = []
        self._threads = [
            threading.Thread(target=self._run, args=(target, number, seed), name=f"client-{number}")
            for number in range(count)
        ]

    def _run(self, target: str, number: int, seed: int) -> None:
        try:
            with (
                Client(target, timeout_s=CALL_TIMEOUT_S, retry=PATIENT) as patient,
                Client(target, timeout_s=CALL_TIMEOUT_S, retry=ONCE) as once,
            ):
                self._clients += [patient, once]
                worker = _Worker(number, random.Random(f"{seed}-{number}"), self.history, patient, once)
                while not self.stopping.is_set():
                    worker.act()
        except BaseException as error:  # noqa: BLE001  (the edge of the thread: the test raises it)
            self._errors.append(error)
            self.stopping.set()

    def __enter__(self) -> SavingClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        if error is not None:
            # There may be no server any more: what is waiting for one ends now.
            for client in self._clients:
                client.close()
        for thread in self._threads:
            thread.join(END_DEADLINE_S)
        assert not any(thread.is_alive() for thread in self._threads), "a client did not end"
        # Without a server the clients fail as they must: what the test found comes first.
        if self._errors and error is None:
            raise self._errors[0]


class _Chain:
    """A workflow that only one client saves to, and what that client knows of its head."""

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self.after: Any = "start"
        self.state: dict[str, Any] = {f"entry-{number}": number for number in range(8)}
        self.steps: tuple[str, ...] = ()
        self.last: Sent | None = None

    @property
    def head_id(self) -> str:
        return "" if self.after == "start" else str(self.after.checkpoint_id)


class _Worker:
    def __init__(self, number: int, rng: random.Random, history: SaveHistory, patient: Client, once: Client) -> None:
        self._number = number
        self._rng = rng
        self._history = history
        self._patient = patient
        self._once = once
        self._saved_count = 0
        self._chains = [_Chain(f"own-{number}-{index}") for index in range(OWN_WORKFLOWS)]

    def act(self) -> None:
        """Do one thing."""
        draw = self._rng.random()
        if draw < 0.45:
            self._extend(self._rng.choice(self._chains))
        elif draw < 0.65:
            self._append_to_shared()
        elif draw < 0.75:
            self._contend()
        elif draw < 0.9:
            self._save_batch()
        else:
            self._append_records(self._rng.choice(self._chains))

    def _client(self) -> Client:
        return self._once if self._rng.random() < 0.15 else self._patient

    def _new_id(self) -> str:
        self._saved_count += 1
        return f"{self._number:02d}-{self._saved_count:06d}"

    def _next_of(self, chain: _Chain, after: Any, parent_id: str) -> tuple[SaveItem, Sent]:
        """Move a chain on by one; the caller says what became of it."""
        checkpoint_id = self._new_id()
        state = {**chain.state, f"entry-{self._rng.randrange(8)}": checkpoint_id}
        if self._rng.random() < 0.1:
            state["large"] = checkpoint_id + "x" * self._rng.choice((900, 5_000, 70_000))
        elif self._rng.random() < 0.1:
            state.pop("large", None)
        step = f"step-{len(chain.steps)}"
        records = {(f"task-{self._number}", 0): checkpoint_id} if self._rng.random() < 0.3 else {}
        chain.state, chain.steps = state, (*chain.steps, step)
        item = SaveItem(
            workflow_id=chain.workflow_id,
            state=state,
            current_step=step,
            after=after,
            checkpoint_id=checkpoint_id,
            completed_steps=(step,),
            records=[Record(task_id=task_id, index=index, value=value) for (task_id, index), value in records.items()],
        )
        sent = self._history.send(
            chain.workflow_id, checkpoint_id, state, parent_id=parent_id, steps=chain.steps, records=records
        )
        return item, sent

    def _extend(self, chain: _Chain) -> None:
        before = (chain.state, chain.steps)
        item, sent = self._next_of(chain, chain.after, chain.head_id)
        outcome = _save(self._client(), item)
        self._note(sent, outcome)
        if isinstance(outcome, Saved):
            chain.after, chain.last = outcome, sent
            return
        chain.state, chain.steps = before
        self._find_head(chain)

    def _find_head(self, chain: _Chain) -> None:
        """After an outcome that is not known, go on from where the workflow stands."""
        try:
            chain.after = self._patient.load(chain.workflow_id)
        except WorkflowNotFoundError:
            chain.after = "start"
            return
        chain.state, chain.steps = dict(chain.after.state), chain.after.completed_steps
        chain.last = None

    def _append_to_shared(self) -> None:
        workflow_id = self._rng.choice(SHARED_WORKFLOWS)
        item, sent = self._unconditional(workflow_id)
        self._note(sent, _save(self._client(), item))

    def _unconditional(self, workflow_id: str) -> tuple[SaveItem, Sent]:
        checkpoint_id = self._new_id()
        state = {"from": self._number, "id": checkpoint_id, "constant": "c" * 40}
        item = SaveItem(workflow_id=workflow_id, state=state, current_step="append", checkpoint_id=checkpoint_id)
        return item, self._history.send(workflow_id, checkpoint_id, state)

    def _contend(self) -> None:
        workflow_id = self._rng.choice(CONTENDED_WORKFLOWS)
        after: Any
        try:
            after = self._patient.load(workflow_id)
            state, parent_id = dict(after.state), after.checkpoint_id
        except WorkflowNotFoundError:
            after, state, parent_id = "start", {}, ""
        checkpoint_id = self._new_id()
        state[f"slot-{self._rng.randrange(20)}"] = checkpoint_id
        item = SaveItem(workflow_id=workflow_id, state=state, after=after, checkpoint_id=checkpoint_id)
        sent = self._history.send(workflow_id, checkpoint_id, state, parent_id=parent_id)
        self._note(sent, _save(self._client(), item))

    def _save_batch(self) -> None:
        """A chain moved on by two or three, each after the one before, and an append to a shared workflow."""
        chain = self._rng.choice(self._chains)
        before = (chain.state, chain.steps)
        pairs: list[tuple[SaveItem, Sent]] = []
        after, parent_id = chain.after, chain.head_id
        for _ in range(self._rng.randint(2, 3)):
            item, sent = self._next_of(chain, after, parent_id)
            pairs.append((item, sent))
            after, parent_id = item, item.checkpoint_id
        chain_length = len(pairs)
        pairs.append(self._unconditional(self._rng.choice(SHARED_WORKFLOWS)))
        outcomes = self._client().save_all([item for item, _ in pairs])
        for (_, sent), outcome in zip(pairs, outcomes, strict=True):
            self._note(sent, outcome)
        if all(isinstance(outcome, Saved) for outcome in outcomes[:chain_length]):
            chain.after, chain.last = outcomes[chain_length - 1], pairs[chain_length - 1][1]
            return
        chain.state, chain.steps = before
        self._find_head(chain)

    def _append_records(self, chain: _Chain) -> None:
        if chain.last is None:
            return
        count = len(chain.last.appended) + len(chain.last.maybe_appended)
        key = (f"appended-{self._number}", count)
        records = {key: f"record-{count}"}
        record = Record(task_id=key[0], index=key[1], value=records[key])
        self._history.append(chain.last, records, is_acknowledged=False)
        try:
            self._client().append_records(
                chain.workflow_id, chain.last.checkpoint_id, [record], require_checkpoint=True
            )
        except (OutcomeUnknownError, UnavailableError):
            return
        self._history.append(chain.last, records, is_acknowledged=True)

    def _note(self, sent: Sent, outcome: Saved | MilepostError) -> None:
        if isinstance(outcome, Saved):
            self._history.acknowledge(sent, outcome.sequence, is_replayed=outcome.replayed)
        elif isinstance(outcome, OutcomeUnknownError):
            return
        elif _is_expected(outcome):
            self._history.refuse(sent)
        else:
            raise outcome


def _is_expected(error: MilepostError) -> bool:
    """Tell whether a refusal is one that a killed server or another client explains."""
    from milepost import PredecessorFailedError

    return isinstance(error, (HeadMovedError, UnavailableError, PredecessorFailedError))


def _save(client: Client, item: SaveItem) -> Saved | MilepostError:
    """Save one item as a call of its own."""
    try:
        return client.save(
            item.workflow_id,
            state=item.state,
            current_step=item.current_step,
            after=item.after if not isinstance(item.after, SaveItem) else None,
            checkpoint_id=item.checkpoint_id,
            completed_steps=item.completed_steps,
            records=item.records,
        )
    except MilepostError as error:
        return error


__all__: Sequence[str] = ("SavingClients",)
