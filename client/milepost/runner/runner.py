"""A workflow bound to a store: start, resume, cancel, signal, look. `Runner` blocks; `AsyncRunner` is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from typing_extensions import override

from milepost._async.client import AsyncClient
from milepost._sync.client import Client
from milepost.codecs import JSON, Codec
from milepost.errors import LeaseHeldError
from milepost.memory import AsyncInMemoryStore, InMemoryStore
from milepost.runner import tracing
from milepost.runner.async_driver import AsyncDriver
from milepost.runner.context import AsyncContext, BaseContext, ChildOutageError
from milepost.runner.engine import ENDED, Engine
from milepost.runner.events import Flow, SuspendRequested
from milepost.runner.heartbeats import heartbeats_for
from milepost.runner.journal import PASSING
from milepost.runner.lease_keeper import LeaseKeeper
from milepost.runner.order import Order
from milepost.runner.progress import shown, view_for
from milepost.runner.resolving import Resolution
from milepost.runner.run import Run
from milepost.runner.serve import Served, ServeOptions, serve, serve_async
from milepost.runner.settings import Environment, Settings
from milepost.runner.sync_driver import SyncDriver
from milepost.runner.threads import DaemonThreads
from milepost.runner.workflow import Workflow
from milepost.types import CANCEL_SIGNAL, Checkpoint, SignalSent, WorkflowInfo

__all__ = ["AsyncRunner", "Runner"]

S = TypeVar("S")
T = TypeVar("T")


class _BaseRunner(Generic[S]):
    """What both kinds have: the store's abilities, the runs in progress, and what they share."""

    def __init__(
        self, workflow: Workflow[S], store: Any, settings: Settings, environment: Environment | None = None
    ) -> None:
        self._workflow = workflow
        self._store = store
        self._settings = settings
        self._environment = environment or Environment()
        self._codec: Codec = getattr(store, "codec", None) or getattr(store, "_codec", None) or JSON
        self._namespace: str = getattr(store, "namespace", "default")
        self._keeps_records = hasattr(store, "append_records")
        has_leases = all(hasattr(store, name) for name in ("acquire_lease", "renew_lease", "release_lease"))
        self._uses_lease = not settings.unfenced
        self._check_store(has_leases=has_leases)
        self._threads = DaemonThreads(f"milepost-{workflow.name}")
        self._keeper = (
            LeaseKeeper(heartbeats_for(store), settings, self._environment.clock) if self._uses_lease else None
        )
        # Reentrant: a signal handler may suspend while its own thread enlists a run.
        self._lock = threading.RLock()
        self._drivers: set[SyncDriver | AsyncDriver] = set()
        self._suspended: SuspendRequested | None = None
        self._stop_listeners: list[Callable[[], None]] = []

    def _check_store(self, *, has_leases: bool) -> None:
        where = f"workflow {self._workflow.name!r}: {type(self._store).__name__}"
        if self._uses_lease and not (has_leases and self._keeps_records):
            lacks = " and ".join(
                name for name, has in (("leases", has_leases), ("records", self._keeps_records)) if not has
            )
            raise TypeError(
                f"{where} has no {lacks}, so nothing keeps two hosts from running one workflow at once; "
                "bind(store, unfenced=True) accepts that"
            )
        for step in self._workflow.definition.steps.values():
            if step.at_most_once and not self._keeps_records:
                raise TypeError(f"{where} has no records, which step {step.id!r} needs for at_most_once")
            if step.waits_for is not None and not hasattr(self._store, "signals"):
                raise TypeError(f"{where} has no signals, which step {step.id!r} needs for waits_for")

    @property
    def workflow(self) -> Workflow[S]:
        """The definition."""
        return self._workflow

    @property
    def settings(self) -> Settings:
        """How it runs."""
        return self._settings

    def suspend(self, *, grace_s: float | None = None) -> None:
        """Have every run of this runner stop at its next step boundary, for good. Returns at once.

        What is finished is saved, leases are given back, and `run` returns with the status "suspended"; somebody else
        may go on from there. Steps that are still running after the grace time are cancelled. May be called from any
        thread and from signal handlers of Python.

        Args:
            grace_s: Time for steps to end by themselves, in seconds; default: the runner's.
        """
        self._suspended = SuspendRequested()
        self._tell_all(self._suspended)
        for listener in [*self._stop_listeners]:
            listener()
        overdue = threading.Timer(self._settings.grace_s if grace_s is None else grace_s, self._suspend_now)
        overdue.daemon = True
        overdue.start()

    def _suspend_now(self) -> None:
        self._suspended = SuspendRequested(is_overdue=True)
        self._tell_all(self._suspended)

    def _tell_all(self, event: SuspendRequested) -> None:
        with self._lock:
            drivers = [*self._drivers]
        for driver in drivers:
            driver.post(event)

    @contextlib.contextmanager
    def _on_stop(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have a function called when the runner is told to stop, or at once where it was."""
        self._stop_listeners.append(listener)
        try:
            if self._suspended is not None:
                listener()
            yield
        finally:
            self._stop_listeners.remove(listener)

    def _served(self) -> Served:
        return Served(
            definition=self._workflow.name,
            store=self._store,
            resume=self._resume_unleased,
            spawn=self._threads.run,
            on_stop=self._on_stop,
            suspend=self.suspend,
            grace_s=self._settings.grace_s,
            clock=self._environment.clock,
            random=self._environment.random,
        )

    def _serve_options(self, max_concurrency: int, poll_s: float | None, *, handle_signals: bool) -> ServeOptions:
        if not hasattr(self._store, "workflows") or not self._uses_lease:
            lacks = "no workflows to query" if self._uses_lease else "no leases"
            raise TypeError(
                f"workflow {self._workflow.name!r}: {type(self._store).__name__} has {lacks}, which serving needs"
            )
        return ServeOptions(
            max_concurrency=max_concurrency,
            poll_s=self._settings.lease_ttl_s if poll_s is None else poll_s,
            handle_signals=handle_signals,
        )

    def _resume_unleased(self, workflow_id: str) -> Any:
        raise NotImplementedError

    def _of_store(self, method: str, what: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self._store, method, None)
        if found is None:
            raise TypeError(
                f"workflow {self._workflow.name!r}: {type(self._store).__name__} has no {what}: it lacks {method}()"
            )
        return found

    def _enlist(self, driver: SyncDriver | AsyncDriver) -> None:
        with self._lock:
            self._drivers.add(driver)
            suspended = self._suspended
        if suspended is not None:
            driver.begin_with(suspended)

    def _dismiss(self, driver: SyncDriver | AsyncDriver) -> None:
        with self._lock:
            self._drivers.discard(driver)

    def _engine(self, workflow: Workflow[T], order: Order[T]) -> Engine[T]:
        return Engine(
            workflow,
            order,
            settings=self._settings,
            environment=self._environment,
            codec=self._codec,
            namespace=self._namespace,
            keeps_records=self._keeps_records,
            uses_lease=self._uses_lease,
            takes_encoded=isinstance(self._store, Client | AsyncClient | InMemoryStore | AsyncInMemoryStore),
        )

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._workflow!r}, {self._store!r})"


def _child_order(context: BaseContext, state: T, scope: str) -> Order[T]:
    return Order(
        workflow_id=context.workflow_id,
        state=state,
        scope=scope,
        is_nested=True,
        lease_token=context.lease_token,
        deadline=context.deadline,
    )


class Runner(_BaseRunner[S]):
    """Runs a workflow on a blocking store. Make it with `Workflow.bind`. Safe for threads: each call is a run.

    Sync steps that run alone and have no timeout are called in the caller's thread; others in daemon threads.
    """

    def run(
        self,
        workflow_id: str,
        state: S | None = None,
        *,
        deadline_s: float | None = None,
        lease_wait_s: float | None = None,
        progress: bool = False,
    ) -> Run[S]:
        """Start the workflow, or resume it where it stands, and run it to its end or until it waits for a signal.

        Everything the result says is durable. A workflow that is finished returns its stored result.

        Args:
            workflow_id: Its name in the store.
            state: The input. An existing workflow must have been started with the same; omit it to resume.
            deadline_s: Time for the whole workflow from now on, in seconds, kept across resumes; None: as it was.
            lease_wait_s: Longest wait for a host that holds the workflow, in seconds; default: as long as its lease
                can live without a renewal.
            progress: Show on stderr how far it has come.

        Raises:
            WorkflowNotFoundError: It does not exist, and there is no input.
            InputMismatchError: It was started with another input.
            LeaseHeldError: Another host is running it.
            LeaseLostError: Another host took over; nothing was saved since.
            StepFailedError: A step failed, from what it raised; a group where several did.
            StepTimeoutError: A step took too long.
            StepOutcomeUnknownError: A step that may run once was started and nobody knows how it ended.
            DefinitionChangedError: It was started under another definition.
            WorkflowCancelledError: It is cancelled.
            WorkflowDeadlineError: Its time is over.
            MilepostError: The store does not take or give what it should; nothing is lost that was saved before.
        """
        return self._run(
            Order(workflow_id=workflow_id, state=state, deadline_s=deadline_s, lease_wait_s=lease_wait_s),
            progress=progress,
        )

    def start(
        self, workflow_id: str, state: S, *, deadline_s: float | None = None, lease_wait_s: float | None = None
    ) -> Run[S]:
        """Start a workflow that does not exist yet. See `run`.

        Raises:
            WorkflowExistsError: It exists.
        """
        return self._run(
            Order(workflow_id=workflow_id, kind="start", state=state, deadline_s=deadline_s, lease_wait_s=lease_wait_s)
        )

    def resume(self, workflow_id: str, *, deadline_s: float | None = None, lease_wait_s: float | None = None) -> Run[S]:
        """Go on with a workflow that exists. See `run`.

        Raises:
            WorkflowNotFoundError: It does not exist.
        """
        return self._run(
            Order(workflow_id=workflow_id, kind="resume", deadline_s=deadline_s, lease_wait_s=lease_wait_s)
        )

    def submit(self, workflow_id: str, state: S, *, deadline_s: float | None = None) -> bool:
        """Store the input of a workflow for somebody else to run, a runner that serves or resumes it. Runs no step.

        May be repeated: a workflow that was started with the same input stays as it is, wherever it has come to.

        Args:
            workflow_id: Its name in the store.
            state: The input.
            deadline_s: Time for the whole workflow from now on, in seconds, where this call starts it; None: no limit.

        Returns:
            Whether the workflow is new. Either way its input is stored durably.

        Raises:
            InputMismatchError: It was started with another input.
            DefinitionMismatchError: It belongs to another definition.
            LeaseHeldError: Another host has held it for as long as a lease lives, and has stored nothing.
        """
        engine = self._engine(self._workflow, Order(workflow_id=workflow_id, state=state, deadline_s=deadline_s))
        return self._driver(engine).run(engine.submit())

    def fork(self, workflow_id: str, new_workflow_id: str, *, checkpoint_id: str | None = None) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint; `resume` it to go on from there.

        Its idempotency keys are others, and nothing that happened after the checkpoint is taken along.

        Args:
            workflow_id: The workflow to fork.
            new_workflow_id: The name of the new one.
            checkpoint_id: Where it begins; default: the head.

        Raises:
            WorkflowExistsError: The new one exists already.
            CheckpointNotFoundError: There is no such checkpoint.
            TypeError: The store lacks what it takes.
        """
        info: WorkflowInfo = self._of_store("fork", "forks")(workflow_id, new_workflow_id, checkpoint_id=checkpoint_id)
        return info

    def cancel(self, workflow_id: str) -> None:
        """Ask a workflow to stop, wherever it runs. One that nobody runs is saved as cancelled at once.

        One that has ended stays as it is.

        Raises:
            WorkflowNotFoundError: It does not exist.
        """
        if hasattr(self._store, "send_signal"):
            if hasattr(self._store, "workflow") and self.status(workflow_id).status in ENDED:
                return  # Nobody would take the signal in.
            self._store.send_signal(workflow_id, CANCEL_SIGNAL)
        engine = self._engine(self._workflow, Order(workflow_id=workflow_id, kind="resume", lease_wait_s=0.0))
        try:
            self._driver(engine).run(engine.cancel())
        except LeaseHeldError:
            return  # Whoever runs it has the signal, or will with its next save or heartbeat.

    def signal(self, workflow_id: str, name: str, value: object = None, *, signal_id: str | None = None) -> SignalSent:
        """Send a signal, durably and once. A step with `waits_for=name` takes it in once the workflow is resumed.

        Args:
            workflow_id: The workflow.
            name: What the step waits for.
            value: Becomes `ctx.signal`.
            signal_id: Makes the call repeatable; default: a new one.

        Raises:
            WorkflowNotFoundError: It does not exist.
            TypeError: The store lacks what it takes.
        """
        sent: SignalSent = self._of_store("send_signal", "signals")(workflow_id, name, value, signal_id=signal_id)
        return sent

    def resolve(
        self,
        workflow_id: str,
        step: str,
        resolution: Resolution,
        left: Any = None,
        *,
        item_key: str | None = None,
        scope: str = "",
    ) -> None:
        """Say how an unfinished step goes on that a resume refuses to run, for example one that may run once.

        Args:
            workflow_id: The workflow.
            step: The step's id.
            resolution: "retry": it may run again. "done": it is finished. "fail": the workflow stays failed until it is
                resolved otherwise.
            left: With "done": a mapping of the entries that the step changed; for an item, its result.
            item_key: Of a step that runs for each: the item, where not all of them are meant.
            scope: Scope of a child workflow that the step belongs to; call it on a runner of the child then.

        Raises:
            ValueError: The workflow has no such unfinished step or item, or has ended.
            LeaseHeldError: Somebody is running it.
        """
        engine = self._engine(
            self._workflow, Order(workflow_id=workflow_id, kind="resume", lease_wait_s=0.0, scope=scope)
        )
        self._driver(engine).run(engine.resolve(step, resolution, left, item_key))

    def status(self, workflow_id: str) -> WorkflowInfo:
        """Read where a workflow stands, and who holds it, without its state.

        Raises:
            WorkflowNotFoundError: It does not exist.
            TypeError: The store lacks what it takes.
        """
        info: WorkflowInfo = self._of_store("workflow", "status of workflows")(workflow_id)
        return info

    def history(
        self,
        workflow_id: str,
        *,
        scope: str | None = "",
        newest_first: bool = True,
        limit: int | None = None,
        with_state: bool = False,
    ) -> Iterator[Checkpoint]:
        """Read the checkpoints of a workflow, a page at a time.

        Args:
            workflow_id: The workflow.
            scope: That of a child workflow; "" is the workflow itself, None all of them.
            newest_first: By falling sequence, else by rising sequence.
            limit: Most checkpoints in all; None: no end.
            with_state: Read the states too.

        Raises:
            WorkflowNotFoundError: It does not exist.
            TypeError: The store lacks what it takes.
        """
        found: Iterator[Checkpoint] = self._of_store("list", "history")(
            workflow_id, scope=scope, newest_first=newest_first, limit=limit, with_state=with_state
        )
        return found

    def serve(self, *, max_concurrency: int = 4, poll_s: float | None = None, handle_signals: bool = False) -> None:
        """Find workflows of this definition that nobody runs, and run them, until `suspend` is called.

        Taken up are those that are running without a live lease, because their host has ended, and those that wait and
        have a signal. Any number of hosts may serve one definition. A workflow that fails for a reason of its own is
        saved as failed and not taken up again; one that makes no progress is tried again less and less often.

        Args:
            max_concurrency: Most workflows at once; each has a thread.
            poll_s: Time between queries of the store, 0.1 to 3,600 s; default: the lease's ttl. A watch tells of most
                changes at once; the query finds leases that have run out.
            handle_signals: The first SIGINT or SIGTERM suspends the runner; the next one does what it did before.

        Raises:
            ValueError: An argument is out of range, or signals are asked for outside the main thread.
            TypeError: The store has no workflows to query, or a step is async.
            MilepostError: The store refuses the query, and would again.
        """
        _refuse_async(self._workflow)
        serve(self._served(), self._serve_options(max_concurrency, poll_s, handle_signals=handle_signals))

    def _resume_unleased(self, workflow_id: str) -> Run[S]:
        return self.resume(workflow_id, lease_wait_s=0.0)

    def _run(self, order: Order[S], *, progress: bool = False) -> Run[S]:
        _refuse_async(self._workflow)
        engine = self._engine(self._workflow, order)
        return self._drive(engine, self._driver(engine), progress=progress)

    def _driver(self, engine: Engine[Any], parent: SyncDriver | None = None) -> SyncDriver:
        driver = SyncDriver(
            engine,
            self._store,
            settings=self._settings,
            environment=self._environment,
            threads=self._threads,
            keeper=self._keeper,
            parent=parent,
        )

        def run_child(context: BaseContext, child: Workflow[T], state: T, scope: str) -> Run[T]:
            _refuse_async(child)
            nested = self._engine(child, _child_order(context, state, scope))
            nested_driver = self._driver(nested, driver)
            context._on_cancel(nested_driver.stop)  # noqa: SLF001  the driver's side of a context
            driver.adopt(nested_driver)
            try:
                with _traced(nested) as traced:
                    run = nested_driver.run(nested.run())
                    traced.ended(run)
                return run
            except PASSING as error:
                raise ChildOutageError(error) from error
            finally:
                driver.disown(nested_driver)

        engine.frame.run_child = run_child
        return driver

    def _drive(self, engine: Engine[T], driver: SyncDriver, *, progress: bool) -> Run[T]:
        # Nested runs are told by the one they belong to: it must know first.
        self._enlist(driver)
        try:
            with _traced(engine) as traced:
                run = driver.run(_flow(engine, progress=progress))
                traced.ended(run)
            return run
        finally:
            self._dismiss(driver)


class AsyncRunner(_BaseRunner[S]):
    """Runs a workflow on an async store. Make it with `Workflow.bind`. Each call is a run; they may be concurrent.

    Async steps are tasks; sync steps are called in daemon threads, with the context variables of the run.
    """

    async def run(
        self,
        workflow_id: str,
        state: S | None = None,
        *,
        deadline_s: float | None = None,
        lease_wait_s: float | None = None,
        progress: bool = False,
    ) -> Run[S]:
        """Start the workflow, or resume it where it stands. See `Runner.run`."""
        return await self._run(
            Order(workflow_id=workflow_id, state=state, deadline_s=deadline_s, lease_wait_s=lease_wait_s),
            progress=progress,
        )

    async def start(
        self, workflow_id: str, state: S, *, deadline_s: float | None = None, lease_wait_s: float | None = None
    ) -> Run[S]:
        """Start a workflow that does not exist yet. See `Runner.start`."""
        return await self._run(
            Order(workflow_id=workflow_id, kind="start", state=state, deadline_s=deadline_s, lease_wait_s=lease_wait_s)
        )

    async def resume(
        self, workflow_id: str, *, deadline_s: float | None = None, lease_wait_s: float | None = None
    ) -> Run[S]:
        """Go on with a workflow that exists. See `Runner.resume`."""
        return await self._run(
            Order(workflow_id=workflow_id, kind="resume", deadline_s=deadline_s, lease_wait_s=lease_wait_s)
        )

    async def submit(self, workflow_id: str, state: S, *, deadline_s: float | None = None) -> bool:
        """Store the input of a workflow for somebody else to run; tell whether it is new. See `Runner.submit`."""
        engine = self._engine(self._workflow, Order(workflow_id=workflow_id, state=state, deadline_s=deadline_s))
        return await self._driver(engine).run(engine.submit())

    async def fork(self, workflow_id: str, new_workflow_id: str, *, checkpoint_id: str | None = None) -> WorkflowInfo:
        """Make a new workflow whose history is another's up to a checkpoint. See `Runner.fork`."""
        info: WorkflowInfo = await self._of_store("fork", "forks")(
            workflow_id, new_workflow_id, checkpoint_id=checkpoint_id
        )
        return info

    async def cancel(self, workflow_id: str) -> None:
        """Ask a workflow to stop, wherever it runs. See `Runner.cancel`."""
        if hasattr(self._store, "send_signal"):
            if hasattr(self._store, "workflow") and (await self.status(workflow_id)).status in ENDED:
                return  # Nobody would take the signal in.
            await self._store.send_signal(workflow_id, CANCEL_SIGNAL)
        engine = self._engine(self._workflow, Order(workflow_id=workflow_id, kind="resume", lease_wait_s=0.0))
        try:
            await self._driver(engine).run(engine.cancel())
        except LeaseHeldError:
            return  # Whoever runs it has the signal, or will with its next save or heartbeat.

    async def signal(
        self, workflow_id: str, name: str, value: object = None, *, signal_id: str | None = None
    ) -> SignalSent:
        """Send a signal, durably and once. See `Runner.signal`."""
        sent: SignalSent = await self._of_store("send_signal", "signals")(workflow_id, name, value, signal_id=signal_id)
        return sent

    async def resolve(
        self,
        workflow_id: str,
        step: str,
        resolution: Resolution,
        left: Any = None,
        *,
        item_key: str | None = None,
        scope: str = "",
    ) -> None:
        """Say how an unfinished step goes on that a resume refuses to run. See `Runner.resolve`."""
        engine = self._engine(
            self._workflow, Order(workflow_id=workflow_id, kind="resume", lease_wait_s=0.0, scope=scope)
        )
        await self._driver(engine).run(engine.resolve(step, resolution, left, item_key))

    async def status(self, workflow_id: str) -> WorkflowInfo:
        """Read where a workflow stands, and who holds it. See `Runner.status`."""
        info: WorkflowInfo = await self._of_store("workflow", "status of workflows")(workflow_id)
        return info

    def history(
        self,
        workflow_id: str,
        *,
        scope: str | None = "",
        newest_first: bool = True,
        limit: int | None = None,
        with_state: bool = False,
    ) -> AsyncIterator[Checkpoint]:
        """Read the checkpoints of a workflow, a page at a time. See `Runner.history`."""
        found: AsyncIterator[Checkpoint] = self._of_store("list", "history")(
            workflow_id, scope=scope, newest_first=newest_first, limit=limit, with_state=with_state
        )
        return found

    async def serve(
        self, *, max_concurrency: int = 4, poll_s: float | None = None, handle_signals: bool = False
    ) -> None:
        """Find workflows of this definition that nobody runs, and run them, until `suspend` is called.

        Cancelling it gives back the leases of its runs at once. See `Runner.serve`.
        """
        await serve_async(self._served(), self._serve_options(max_concurrency, poll_s, handle_signals=handle_signals))

    def _resume_unleased(self, workflow_id: str) -> Coroutine[Any, Any, Run[S]]:
        return self.resume(workflow_id, lease_wait_s=0.0)

    async def _run(self, order: Order[S], *, progress: bool = False) -> Run[S]:
        engine = self._engine(self._workflow, order)
        return await self._drive(engine, self._driver(engine), progress=progress)

    def _driver(self, engine: Engine[Any], parent: AsyncDriver | None = None) -> AsyncDriver:
        loop = asyncio.get_running_loop()
        driver = AsyncDriver(
            engine,
            self._store,
            settings=self._settings,
            environment=self._environment,
            threads=self._threads,
            keeper=self._keeper,
            parent=parent,
            loop=loop,
        )

        def run_child(
            context: BaseContext, child: Workflow[T], state: T, scope: str
        ) -> Run[T] | Coroutine[Any, Any, Run[T]]:
            async def run_nested() -> Run[T]:
                nested = self._engine(child, _child_order(context, state, scope))
                nested_driver = self._driver(nested, driver)
                context._on_cancel(nested_driver.stop)  # noqa: SLF001  the driver's side of a context
                driver.adopt(nested_driver)
                try:
                    with _traced(nested) as traced:
                        run = await nested_driver.run(nested.run())
                        traced.ended(run)
                    return run
                except PASSING as error:
                    raise ChildOutageError(error) from error
                finally:
                    driver.disown(nested_driver)

            if isinstance(context, AsyncContext):
                return run_nested()
            # A sync step, in its thread: the child's steps and saves belong to the loop.
            return asyncio.run_coroutine_threadsafe(run_nested(), loop).result()

        engine.frame.run_child = run_child
        return driver

    async def _drive(self, engine: Engine[T], driver: AsyncDriver, *, progress: bool) -> Run[T]:
        self._enlist(driver)
        try:
            with _traced(engine) as traced:
                run = await driver.run(_flow(engine, progress=progress))
                traced.ended(run)
            return run
        finally:
            self._dismiss(driver)


def _flow(engine: Engine[T], *, progress: bool) -> Flow[Run[T]]:
    if not progress:
        return engine.run()
    definition = engine.workflow.definition
    return shown(engine.run(), view_for(engine.frame.workflow_id, definition), definition)


def _traced(engine: Engine[Any]) -> AbstractContextManager[tracing.RunSpan]:
    frame = engine.frame
    return tracing.run_span(engine.workflow.name, frame.workflow_id, frame.scope, engine.run_id)


def _refuse_async(workflow: Workflow[Any]) -> None:
    if names := workflow.definition.async_steps:
        raise TypeError(
            f"workflow {workflow.name!r} has async steps ({', '.join(names)}): bind it to an AsyncClient or "
            "AsyncInMemoryStore"
        )
