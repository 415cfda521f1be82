"""Random histories: what an engine answers and shows is compared, step by step, with `engine_model`.

A subclass says how to open, restart and prove its engine; a test runs it:

    class MyMachine(EngineMachine):
        def open_engine(self) -> Engine: ...

    def test_random_histories_are_those_of_the_model() -> None:
        run_state_machine_as_test(MyMachine, settings=DEFAULT_PROFILE)
"""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milepost_server.errors import StoreError
from milepost_server.limits import DEFAULT_LIMITS, HOUR_MS
from milepost_server.model import (
    Answer,
    AppendRecordsAnswer,
    BulkAnswer,
    DeleteWorkflowAnswer,
    ForkMode,
    LeaseAnswer,
    ReleaseLeaseAnswer,
    ReleaseLeaseCommand,
    RenewLeaseCommand,
    SaveAnswer,
    SaveCommand,
    Selection,
    SendSignalAnswer,
    Status,
    SweepAnswer,
    SweepCommand,
)
from milepost_server.storage.port import Engine
from milepost_server.testing.builders import (
    ManualClock,
    Store,
    acquire_lease,
    append,
    delete_ids,
    delete_workflow,
    is_found,
    json_value,
    record,
    release_lease,
    renew_lease,
    save,
    send_signal,
)
from milepost_server.testing.engine_model import (
    Appended,
    Deleted,
    Granted,
    ModelWorkflow,
    Outcome,
    Refused,
    Released,
    Saved,
    Sent,
    SingleCommand,
    StoreModel,
)

LIMITS = msgspec.structs.replace(DEFAULT_LIMITS, slice_rows_max=20)
"""Small slices, so that bulk commands and sweeps take several."""

DEFAULT_PROFILE = settings(
    max_examples=60,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""The same histories in every run."""
LONG_PROFILE = settings(
    max_examples=300,
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
"""Other histories in every run; a failure prints how to repeat it."""

WORKFLOW_IDS = ["w", "v", "f" * 600]
SCOPES = ["", "s"]
CHECKPOINT_IDS = list("abcdef")
KEYS = ["x", "y", "z"]
STEPS = ["s0", "s1", "s2", "s3"]
RUN_IDS = ["", "r0", "r1"]
SIGNAL_IDS = ["g0", "g1"]
LEASE_TTL_MS = 10_000
NEWEST_TOKEN = -1
"""Stands for the newest token of the workflow until the command is run."""
OLDER_TOKEN = -2
"""Stands for the one before it."""
TOKENS = [0, NEWEST_TOKEN, NEWEST_TOKEN, OLDER_TOKEN]
SAVE_TOKENS = [(0, False), (NEWEST_TOKEN, False), (NEWEST_TOKEN, False), (NEWEST_TOKEN, True), (OLDER_TOKEN, False)]
"""What a Save says of its lease: token, and whether it is released."""

workflow_ids = st.sampled_from(WORKFLOW_IDS)
scopes = st.sampled_from(SCOPES)
checkpoint_ids = st.sampled_from(CHECKPOINT_IDS)
states = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 2) | st.just("v" * 5_000), max_size=3)


def seldom(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str | None]:
    """Draw nothing, mostly."""
    return st.one_of(st.none(), st.none(), st.none(), strategy)


records = st.builds(
    record,
    st.sampled_from(["t", "u"]),
    st.integers(-1, 1),
    st.integers(0, 2),
    path=st.sampled_from(["", "p"]),
    overwrite=st.booleans(),
)
record_lists = st.lists(records, max_size=2).map(tuple)


@st.composite
def saves(draw: st.DrawFn) -> SaveCommand:
    """Draw a Save: every option now and then, few of them at once."""
    base_id = draw(st.none() | checkpoint_ids)
    state = draw(states)
    lease_token, is_released = draw(st.sampled_from(SAVE_TOKENS))
    removed = draw(st.lists(st.sampled_from(KEYS), max_size=1)) if base_id is not None else []
    return save(
        draw(workflow_ids),
        draw(checkpoint_ids),
        state,
        scope=draw(scopes),
        parent_id=draw(seldom(st.just("") | checkpoint_ids)),
        base_checkpoint_id=base_id,
        removed_keys=tuple(key for key in removed if key not in state),
        current_step=draw(st.sampled_from(["", "one"])),
        steps_added=tuple(draw(st.lists(st.sampled_from(STEPS), max_size=2))),
        status=draw(st.sampled_from([Status.RUNNING, Status.COMPLETED])),
        labels=draw(st.none() | st.just({"l": "1"})),
        definition=draw(st.sampled_from(["", "", "", "d", "e"])),
        run_id=draw(st.sampled_from(RUN_IDS)),
        records=draw(record_lists),
        history_entries=tuple(draw(st.lists(st.sampled_from(KEYS), max_size=1))),
        expected_head=draw(seldom(st.just("") | checkpoint_ids)),
        is_replace=draw(st.sampled_from([False, False, True])),
        consumed_signals=tuple(draw(st.lists(st.sampled_from(SIGNAL_IDS), max_size=2))),
        lease_token=lease_token,
        release_lease=is_released,
    )


appends = st.builds(
    lambda workflow_id, checkpoint_id, found, scope, is_required, token: append(
        workflow_id, checkpoint_id, *found, scope=scope, require_checkpoint=is_required, lease_token=token
    ),
    workflow_ids,
    checkpoint_ids,
    st.lists(records, min_size=1, max_size=3),
    scopes,
    st.booleans(),
    st.sampled_from(TOKENS),
)
id_deletes = st.builds(
    lambda workflow_id, found, scope, token: delete_ids(workflow_id, *found, scope=scope, lease_token=token),
    workflow_ids,
    st.lists(checkpoint_ids, min_size=1, max_size=3),
    scopes,
    st.sampled_from(TOKENS),
)
workflow_deletes = st.builds(
    lambda workflow_id, token: delete_workflow(workflow_id, lease_token=token), workflow_ids, st.sampled_from(TOKENS)
)
acquires = st.builds(
    lambda workflow_id, request_id: acquire_lease(workflow_id, ttl_ms=LEASE_TTL_MS, request_id=request_id),
    workflow_ids,
    st.sampled_from(["", "q"]),
)
renewals = st.builds(renew_lease, workflow_ids, st.sampled_from([NEWEST_TOKEN, OLDER_TOKEN]))
releases = st.builds(release_lease, workflow_ids, st.sampled_from([NEWEST_TOKEN, OLDER_TOKEN])) | st.builds(
    lambda workflow_id: release_lease(workflow_id, force=True), workflow_ids
)
signals = st.builds(
    send_signal,
    workflow_ids,
    st.sampled_from(SIGNAL_IDS),
    st.sampled_from(["n", "m"]),
    st.sampled_from([None, json_value(1), json_value("v" * 5_000)]),
)
coordination = st.one_of(acquires, renewals, releases, signals)
batches = st.lists(
    st.one_of(saves(), saves(), saves(), appends, id_deletes, workflow_deletes, coordination), max_size=6
)


def told(answer: Answer | StoreError) -> Outcome:
    """Return an engine's answer as the model gives it."""
    if isinstance(answer, StoreError):
        return Refused(answer.reason)
    if isinstance(answer, SaveAnswer):
        return Saved(
            answer.sequence,
            answer.parent_id,
            answer.head_checkpoint_id,
            answer.is_replayed,
            answer.lease_remaining_ms,
            tuple(each.signal_id for each in answer.pending_signals),
        )
    if isinstance(answer, LeaseAnswer):
        return Granted(answer.lease.token, answer.lease.remaining_ms, answer.is_replayed)
    if isinstance(answer, ReleaseLeaseAnswer):
        return Released(answer.released)
    if isinstance(answer, SendSignalAnswer):
        return Sent(answer.is_replayed, answer.is_consumed)
    if isinstance(answer, AppendRecordsAnswer):
        return Appended(answer.outcomes)
    if isinstance(answer, DeleteWorkflowAnswer):
        return Deleted(answer.checkpoint_count)
    assert isinstance(answer, BulkAnswer)
    return Deleted(answer.deleted)


class EngineMachine(RuleBasedStateMachine):
    """One engine, one model, the same commands."""

    persists = False
    """The engine keeps its store when it is closed: `restart_engine` is called now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.lease_clock = ManualClock(now_ms=1_000)
        self.model = StoreModel(LIMITS)
        self.sent: list[SaveCommand] = []

    def open_engine(self) -> Engine:
        """Open an empty engine with `LIMITS` and `self.clock`."""
        raise NotImplementedError

    def restart_engine(self, engine: Engine) -> Engine:
        """Close an engine and open its store again."""
        raise NotImplementedError

    def count_rows(self, engine: Engine, what: str) -> int:
        """Count an engine's values, nodes, checkpoints, records, workflows, names or ids."""
        return engine.statistics()[what]

    def verify(self, engine: Engine) -> None:
        """Prove the engine's store whole, and let go of it."""
        engine.close()

    @initialize()
    def open_store(self) -> None:
        """Start with an empty store."""
        self.store = Store(self.open_engine(), self.count_rows)

    # Commands.

    def _run(self, commands: list[SingleCommand]) -> None:
        commands = [self._with_token(command) for command in commands]
        answers = self.store.engine.execute(commands)
        expected = [self.model.run(command, self.clock.now_ms, self.lease_clock.now_ms) for command in commands]
        assert [told(answer) for answer in answers] == expected
        self.sent += [command for command in commands if isinstance(command, SaveCommand)]

    def _with_token(self, command: SingleCommand) -> SingleCommand:
        """Return a command with the token that it is meant to have."""
        token = getattr(command, "lease_token", 0)
        if token >= 0:
            return command
        lease = self.model.leases.get(command.workflow_id)
        if lease is None and token == NEWEST_TOKEN and not isinstance(command, RenewLeaseCommand | ReleaseLeaseCommand):
            # Without a lease nearly every command would only be refused.
            fields = (
                {"lease_token": 0, "release_lease": False} if isinstance(command, SaveCommand) else {"lease_token": 0}
            )
            return msgspec.structs.replace(command, **fields)
        newest = lease.token if lease is not None else self.model.lease_count + 1
        return msgspec.structs.replace(command, lease_token=max(1, newest + token + 1))

    @rule(command=saves())
    def save(self, command: SaveCommand) -> None:
        """Save something."""
        self._run([command])

    @rule(command=saves())
    def save_another(self, command: SaveCommand) -> None:
        """Save something: twice as often as anything else."""
        self._run([command])

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), is_replace=st.booleans())
    def save_again(self, data: st.DataObject, is_replace: bool) -> None:
        """Retry a Save, perhaps as a replace."""
        command = data.draw(st.sampled_from(self.sent[-12:]))
        self._run([msgspec.structs.replace(command, is_replace=is_replace)])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def save_again_in_full(self, data: st.DataObject) -> None:
        """Retry a Save with the whole state that its checkpoint has, as a client does whose base has gone."""
        command = data.draw(st.sampled_from(self.sent[-12:]))
        workflow = self.model.workflows.get(command.workflow_id, ModelWorkflow())
        stored = workflow.checkpoints.get((command.scope, command.checkpoint_id))
        if stored is not None:
            full = save(
                command.workflow_id,
                command.checkpoint_id,
                stored.state,
                scope=command.scope,
                parent_id=command.parent_id,
                current_step=command.current_step,
                steps_added=command.steps_added,
                status=command.status,
                definition=command.definition,
            )
            self._run([full])

    @rule(command=appends | id_deletes)
    def append_or_delete(self, command: SingleCommand) -> None:
        """Append records, or delete checkpoints by id."""
        self._run([command])

    @rule(command=coordination)
    def coordinate(self, command: SingleCommand) -> None:
        """Take, keep or end a lease, or send a signal."""
        self._run([command])

    @rule(command=acquires)
    def acquire(self, command: SingleCommand) -> None:
        """Take a lease: more often than the rest of it."""
        self._run([command])

    @rule(commands=batches)
    def run_batch(self, commands: list[SingleCommand]) -> None:
        """Run several commands in one transaction."""
        self._run(commands)

    @rule(workflow_id=workflow_ids)
    def delete_workflow(self, workflow_id: str) -> None:
        """Delete a workflow."""
        self._run([delete_workflow(workflow_id, lease_token=NEWEST_TOKEN)])

    @rule(workflow_id=workflow_ids | st.just(""), run_id=st.sampled_from(RUN_IDS[1:]))
    def delete_run(self, workflow_id: str, run_id: str) -> None:
        """Delete a run."""
        expected = self.model.delete_run(workflow_id, run_id, self.clock.now_ms, self.lease_clock.now_ms)
        try:
            deleted = self.store.delete_run(run_id, workflow_id=workflow_id)
        except StoreError as error:
            assert Refused(error.reason) == expected  # noqa: PT017 - which one is right, the model says
        else:
            assert Deleted(deleted) == expected

    @rule(workflow_id=workflow_ids, keep_last=st.integers(1, 3))
    def prune(self, workflow_id: str, keep_last: int) -> None:
        """Prune a workflow."""
        expected = self.model.prune(workflow_id, keep_last, self.clock.now_ms)
        try:
            deleted = self.store.prune(workflow_id, keep_last)
        except StoreError as error:
            assert Refused(error.reason) == expected  # noqa: PT017 - which one is right, the model says
        else:
            assert Deleted(deleted) == expected

    @rule(
        workflow_id=workflow_ids,
        target_id=workflow_ids,
        scope=scopes,
        checkpoint_id=st.none() | checkpoint_ids,
        mode=st.sampled_from(ForkMode),
        fork_id=st.sampled_from(["", "k"]),
    )
    def fork(
        self,
        *,
        workflow_id: str,
        target_id: str,
        scope: str,
        checkpoint_id: str | None,
        mode: ForkMode,
        fork_id: str,
    ) -> None:
        """Fork a workflow."""
        expected = self.model.fork(
            workflow_id,
            target_id,
            scope=scope,
            checkpoint_id=checkpoint_id,
            mode=mode,
            fork_id=fork_id,
            lease_now_ms=self.lease_clock.now_ms,
        )
        try:
            answer = self.store.fork(
                workflow_id, target_id, scope=scope, checkpoint_id=checkpoint_id, mode=mode, fork_id=fork_id
            )
        except StoreError as error:
            assert Refused(error.reason) == expected  # noqa: PT017 - which one is right, the model says
        else:
            assert answer.is_replayed == expected
            if not answer.is_replayed:
                self.model.workflows[target_id].update_time_ms = (
                    self.clock.now_ms if self.model.workflows[target_id].head("") is not None else 0
                )

    @rule(rows_max=st.sampled_from([1, 7, 1_000]))
    def sweep(self, rows_max: int) -> None:
        """Sweep to the end, in small slices or large ones."""
        self.store.sweep(rows_max)
        self.model.sweep(self.clock.now_ms, self.lease_clock.now_ms)

    @precondition(lambda self: not self.model.has_due(self.clock.now_ms))
    @rule(rows_max=st.sampled_from([1, 3, 10]))
    def sweep_a_little(self, rows_max: int) -> None:
        """Free one slice of what was deleted, of which nothing is seen."""
        self.store.run(SweepCommand(rows_max=rows_max), SweepAnswer)

    @rule(step_ms=st.sampled_from([1, HOUR_MS, LIMITS.waiting_records_ttl_ms, LIMITS.replay_window_ms]))
    def wait(self, step_ms: int) -> None:
        """Let time pass."""
        self.clock.advance(step_ms)
        self.lease_clock.advance(step_ms)

    @precondition(lambda self: self.persists)
    @rule()
    def restart(self) -> None:
        """Close the store and open it again."""
        self.store.engine = self.restart_engine(self.store.engine)
        self.model.restart(self.lease_clock.now_ms)

    # Reads.

    @rule(workflow_id=workflow_ids, scope=scopes, checkpoint_id=st.none() | checkpoint_ids)
    def load(self, workflow_id: str, scope: str, checkpoint_id: str | None) -> None:
        """Load a checkpoint."""
        workflow = self.model.visible(workflow_id)
        wanted = None
        if workflow is not None:
            place = (scope, workflow.head_id(scope) if checkpoint_id is None else checkpoint_id)
            wanted = workflow.checkpoints.get(place)
        try:
            found = self.store.load(workflow_id, checkpoint_id, scope=scope)
        except StoreError as error:
            assert wanted is None
            reason = "WORKFLOW_NOT_FOUND" if workflow is None else "CHECKPOINT_NOT_FOUND"
            assert error.reason == reason  # noqa: PT017 - the model says which one
        else:
            assert wanted is not None
            assert (found.row.sequence, found.entries, found.steps) == (wanted.sequence, wanted.state, wanted.steps)

    @rule(workflow_id=workflow_ids, scope=scopes, page_size=st.integers(1, 3), newest_first=st.booleans())
    def list_pages(self, workflow_id: str, scope: str, page_size: int, newest_first: bool) -> None:
        """List one scope, page by page."""
        workflow = self.model.visible(workflow_id)
        if workflow is None:
            return
        found: list[int] = []
        position: int | None = None
        while True:
            page = self.store.page(
                workflow_id, scope=scope, page_size=page_size, newest_first=newest_first, position=position
            )
            assert len(page.checkpoints) <= page_size
            found += [loaded.row.sequence for loaded in page.checkpoints]
            position = page.position
            if position is None:
                break
        expected = [row.sequence for row in workflow.in_order(scope)]
        assert found == (expected if newest_first else expected[::-1])

    @rule(workflow_id=workflow_ids, scope=scopes, key=st.sampled_from(KEYS), page_size=st.integers(1, 4))
    def entry_history(self, workflow_id: str, scope: str, key: str, page_size: int) -> None:
        """Follow an entry back from a head."""
        workflow = self.model.visible(workflow_id)
        head = workflow.head(scope) if workflow is not None else None
        if workflow is None or head is None:
            return
        line = list(workflow.line(head))
        before = [*(row.state.get(key) for row in line[1:]), None]
        expected = [
            (row.sequence, row.state.get(key))
            for row, earlier in zip(line, before, strict=True)
            if row.state.get(key) != earlier
        ]
        found = []
        position: int | None = None
        while True:
            page = self.store.history(workflow_id, key, scope=scope, page_size=page_size, position=position)
            found += [(version.sequence, version.value) for version in page.versions]
            position = page.position
            if position is None:
                break
        assert found == expected
        assert page.ancestors_pruned == bool(line[-1].parent_id)

    # What always holds.

    @invariant()
    def shows_what_the_model_has(self) -> None:
        """Every workflow shows just its checkpoints, whole, and what is said of them in sum."""
        if not hasattr(self, "store"):
            return
        visible = sorted(name for name, workflow in self.model.workflows.items() if workflow.is_visible)
        assert self.store.workflow_ids() == sorted(visible, key=str.encode)
        for status in (Status.RUNNING, Status.COMPLETED):
            for has_signals in (None, False, True):
                found = self.store.workflow_ids(statuses=frozenset({status}), has_pending_signals=has_signals)
                assert found == self._listed(status, has_signals)
        for workflow_id in WORKFLOW_IDS:
            workflow = self.model.visible(workflow_id)
            assert is_found(self.store, workflow_id) == (workflow is not None)
            lease = self.store.get_lease(workflow_id)
            left_ms = lease.remaining_ms if lease is not None else None
            assert left_ms == self.model.remaining_ms(workflow_id, self.lease_clock.now_ms)
            if workflow is not None:
                self._compare(workflow_id, workflow)

    def _listed(self, status: Status, has_signals: bool | None) -> list[str]:
        """Return the workflows that have a status, and signals pending or none, in their order."""
        found = []
        for workflow_id, workflow in self.model.workflows.items():
            head = workflow.head("") if workflow.is_visible else None
            if head is not None and head.content[2] == status and has_signals in (None, bool(workflow.pending)):
                found.append(workflow_id)
        return sorted(found, key=str.encode)

    def _compare(self, workflow_id: str, workflow: ModelWorkflow) -> None:
        head = workflow.head("")
        shown = self.store.get_workflow(workflow_id)
        assert (shown.head_checkpoint_id, shown.head_sequence) == (
            (head.checkpoint_id, head.sequence) if head is not None else ("", 0)
        )
        assert (shown.current_step, shown.status) == (head.content[1:3] if head is not None else ("", 0))
        assert (shown.last_sequence, shown.definition) == (workflow.last_sequence, workflow.definition)
        assert (shown.labels, shown.update_time_ms) == (workflow.labels, workflow.update_time_ms)
        assert shown.checkpoint_count == len(workflow.checkpoints)
        assert shown.scope_count == len({row.scope for row in workflow.checkpoints.values()})
        waiting = [group for place, group in workflow.records.items() if place not in workflow.checkpoints]
        assert shown.waiting_record_count == sum(len(group.items) for group in waiting)
        is_leased = bool(self.model.remaining_ms(workflow_id, self.lease_clock.now_ms))
        assert (self.store.shown_lease(workflow_id) is not None) == is_leased
        assert shown.pending_signal_count == len(workflow.pending)
        sent = [(signal.signal_id, (signal.name, signal.value)) for signal in self.store.signals(workflow_id)]
        assert sent == [(signal_id, workflow.signals[signal_id].content) for signal_id in workflow.pending]
        listed = self.store.page(workflow_id, selection=Selection()).checkpoints
        expected = workflow.in_order()
        assert [loaded.row.sequence for loaded in listed] == [row.sequence for row in expected]
        for loaded, row in zip(listed, expected, strict=True):
            assert (loaded.row.scope, loaded.row.checkpoint_id) == row.place
            assert (loaded.entries, loaded.steps) == (row.state, row.steps)
            assert (loaded.row.create_time_ms, loaded.row.run_id) == (row.create_time_ms, row.run_id)
            assert (
                loaded.row.parent_id,
                loaded.row.current_step,
                loaded.row.status,
                loaded.row.definition,
                loaded.row.fingerprint,
                loaded.row.metadata,
            ) == row.content
            is_pruned = bool(row.parent_id) and workflow.parent_of(row) is None
            assert loaded.parent_pruned == is_pruned
            group = workflow.records.get(row.place)
            kept = list(group.items.values()) if group is not None else []
            assert list(loaded.records) == sorted(kept, key=lambda each: (each.path, each.task_id, each.index))

    def teardown(self) -> None:
        """Prove the store whole; then delete everything and see that nothing is left."""
        if not hasattr(self, "store"):
            return
        for workflow_id in WORKFLOW_IDS:
            self.store.release(workflow_id, force=True)
            self.store.delete_workflow(workflow_id)
        self.clock.advance(LIMITS.replay_window_ms)
        self.store.sweep()
        counted = (
            "workflows",
            "checkpoints",
            "nodes",
            "values",
            "records",
            "ids",
            "names",
            "leases",
            "signals",
            "signal_ids",
        )
        left = {what: self.store.count(what) for what in counted}
        self.verify(self.store.engine)
        assert left == dict.fromkeys(counted, 0)
