"""The LMDB engine: a batch of commands is one transaction and one flush; each command is a child transaction of it.

`execute` is the only writer and is called by one thread at a time; LMDB wants a write transaction to stay in its
thread. When it returns, the batch is on disk (`sync`, `metasync`), and its answers may be given. A command that fails
is undone alone, by aborting its child.

What a failure means:

| what happened | what is told | what is stored |
|---|---|---|
| a command was refused, or its map space ran out | its own error | nothing of it |
| the commit failed and a new transaction can begin | NOT_COMMITTED, for the whole batch | nothing of the batch |
| the commit failed and none can begin (meta page not written) | unknown: `StorageFailedError` | all or nothing |
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import msgspec

from milepost_server.errors import ResourceError, StorageFailedError, StoreError, UnavailableError, internal_error
from milepost_server.limits import DEFAULT_LIMITS, MIB, Limits
from milepost_server.model import (
    AbandonForkCommand,
    AcquireLeaseCommand,
    Answer,
    AppendRecordsCommand,
    BatchSaveCommand,
    Command,
    DefinitionAnswer,
    EntryHistoryAnswer,
    EntryHistoryQuery,
    ForkCommand,
    LeaseQueryAnswer,
    ListAnswer,
    ListQuery,
    ListSignalsAnswer,
    ListSignalsQuery,
    ListWorkflowsAnswer,
    ListWorkflowsQuery,
    LoadAnswer,
    LoadQuery,
    LongLoad,
    ProbeAnswer,
    ProbeCommand,
    SaveCommand,
    SendSignalCommand,
    WorkflowAnswer,
)
from milepost_server.storage import commands, keys, lmdb_env, queries, read_slices, records, status_index
from milepost_server.storage.lease_timers import LeaseTimers, boot_clock_ms
from milepost_server.storage.lmdb_env import META_KEY, DataDirError, LmdbEnv, MetaRow
from milepost_server.storage.lmdb_read_transaction import LmdbReadTransaction
from milepost_server.storage.lmdb_write_transaction import LmdbWriteTransaction
from milepost_server.storage.port import CommandLane, LoadLane
from milepost_server.storage.resolved_states import ResolvedStates
from milepost_server.storage.row_cache import RowCache

if TYPE_CHECKING:
    # Not imported at run time: the storage process does without an event loop, and it is large.
    from asyncio import AbstractEventLoop

    from milepost_server.shared_bounds import SharedBound


_logger = logging.getLogger(__name__)
_replace = msgspec.structs.replace

_P = ParamSpec("_P")
_V = TypeVar("_V")

LOW_DISK_DEFAULT_BYTES = 256 * MIB
UPGRADE_ROWS = 1_000
"""Rows that one commit brings to the present format."""

_GROWING = (SaveCommand, AppendRecordsCommand, ForkCommand, AcquireLeaseCommand, SendSignalCommand)
"""Commands that are refused while the disk is nearly full; deletes are not among them."""


def system_clock_ms() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class LmdbEngine:
    """A store in a data directory. Implements `Engine`."""

    def __init__(
        self,
        env: LmdbEnv,
        *,
        limits: Limits,
        clock_ms: Callable[[], int],
        lease_clock_ms: Callable[[], int],
        low_disk_bytes: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._env = env
        self._timers = LeaseTimers(lease_clock_ms)
        self._limits = limits
        self._clock_ms = clock_ms
        self._low_disk_bytes = low_disk_bytes
        self._random_bytes = random_bytes
        self._resolved = ResolvedStates()
        self._rows = RowCache()
        self._is_in_reserve = False
        meta = self._read_meta()
        self._next_id = meta.next_id
        self._lease_epoch = meta.lease_epoch
        if meta.format < lmdb_env.STORE_FORMAT:
            self._upgrade(meta)
        self._abandon_forks()

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        limits: Limits = DEFAULT_LIMITS,
        clock_ms: Callable[[], int] = system_clock_ms,
        lease_clock_ms: Callable[[], int] = boot_clock_ms,
        map_size_bytes: int = lmdb_env.MAP_SIZE_DEFAULT_BYTES,
        map_size_max_bytes: int = lmdb_env.MAP_SIZE_MAX_BYTES,
        low_disk_bytes: int = LOW_DISK_DEFAULT_BYTES,
        lmdb_format: int = 0,
        server_pid: int | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> LmdbEngine:
        """Open the store of a data directory, or create it in an empty one.

        Args:
            data_dir: The directory; made if missing.
            limits: Bounds that commands are held to.
            clock_ms: Time of commits, in milliseconds since the epoch.
            lease_clock_ms: The time in which leases run, in milliseconds that only grow.
            map_size_bytes: Address space to begin with; doubled when it is full.
            map_size_max_bytes: Address space at most: past it, saves are refused with STORE_FULL.
            low_disk_bytes: Free disk space below which saves are refused with DISK_LOW.
            lmdb_format: For a new store: 0 for LMDB 0.9's file format, 1 for that of LMDB 1.0.
            server_pid: The process to name to whoever finds the directory in use; this one, if not given.
            random_bytes: Draws so many bytes, for what must differ between copies of a store.

        Raises:
            DataDirError: The directory is in use, not writable, foreign, damaged or of another format.
        """
        env = LmdbEnv.open(
            data_dir,
            map_size_bytes=map_size_bytes,
            map_size_max_bytes=map_size_max_bytes,
            lmdb_format=lmdb_format,
            server_pid=server_pid,
        )
        try:
            return cls(
                env,
                limits=limits,
                clock_ms=clock_ms,
                lease_clock_ms=lease_clock_ms,
                low_disk_bytes=low_disk_bytes,
                random_bytes=random_bytes,
            )
        except StoreError as error:
            env.close()
            raise DataDirError(
                f"the database in {data_dir / 'store'} is damaged: {error.message}; restore it from a backup"
            ) from error
        except BaseException:
            env.close()
            raise

    # Writing.

    def execute(self, commands_: Sequence[Command]) -> Sequence[Answer | StoreError]:
        """See `Engine`."""
        while True:
            try:
                return self._execute_once(commands_)
            except lmdb_env.MapFullError:
                # Nothing of the batch is stored. With a larger map it is run again from the start. Where there is no
                # larger one, `_execute_once` refuses single saves, and this is reached by a delete or a commit that
                # does not fit.
                if not self._env.grow():
                    return self._execute_in_reserve(commands_)
            except UnavailableError as error:
                return [error for _ in commands_]

    def _execute_in_reserve(self, commands_: Sequence[Command]) -> Sequence[Answer | StoreError]:
        """Run what frees pages on a few that are kept for it, and refuse what would only need more."""
        try:
            with self._env.reserve():
                self._is_in_reserve = True
                return self._execute_once(commands_)
        except lmdb_env.MapFullError:
            return [self._store_full() for _ in commands_]
        except UnavailableError as error:
            return [error for _ in commands_]
        finally:
            self._is_in_reserve = False

    def _execute_once(self, commands_: Sequence[Command]) -> Sequence[Answer | StoreError]:
        is_disk_low = self._env.free_disk_bytes() < self._low_disk_bytes
        next_id = self._next_id
        parent = self._begin()
        txn = self._write_transaction(parent)
        try:
            run = partial(self._run, parent, txn, is_disk_low)
            results = [
                commands.save_items(command, run) if isinstance(command, BatchSaveCommand) else run(command)
                for command in commands_
            ]
            if txn.next_id != next_id:
                txn.enter(parent)
                txn.write(META_KEY, self._meta_row(txn.next_id))
        except BaseException:
            parent.abort()
            self._rows.clear()
            raise
        finally:
            # Whether the batch is stored or not, no number that it gave is given again in this process.
            self._next_id = txn.next_id
        self._commit(parent)
        self._timers.apply(txn.timer_changes)
        return results

    def _write_transaction(self, parent: lmdb_env.Transaction) -> LmdbWriteTransaction:
        return LmdbWriteTransaction(
            parent,
            next_id=self._next_id,
            now_ms=self._clock_ms(),
            limits=self._limits,
            resolved=self._resolved,
            rows=self._rows,
            timers=self._timers,
            lease_epoch=self._lease_epoch,
            random_bytes=self._random_bytes,
        )

    def _begin(self) -> lmdb_env.Transaction:
        try:
            return self._env.begin_write()
        except lmdb_env.EngineError as error:
            raise StorageFailedError(f"no transaction can be begun: {error}") from error

    def _run(
        self, parent: lmdb_env.Transaction, txn: LmdbWriteTransaction, is_disk_low: bool, command: Command
    ) -> Answer | StoreError:
        if isinstance(command, _GROWING):
            if is_disk_low:
                return self._disk_low()
            if self._is_in_reserve:
                return self._store_full()
        return self._run_in_child(parent, txn, command)

    def _run_in_child(
        self, parent: lmdb_env.Transaction, txn: LmdbWriteTransaction, command: Command
    ) -> Answer | StoreError:
        child = self._env.begin_write(parent)
        txn.enter(child)
        try:
            answer = commands.run(txn, command, self._limits)
        except BaseException as error:  # noqa: BLE001 - whatever it is, nothing of the command may stay
            child.abort()
            txn.undo()
            return self._told_of(command, error)
        child.commit()
        txn.keep_timers()
        return answer

    def _told_of(self, command: Command, error: BaseException) -> StoreError:
        """Return what is told of a command that has been undone, or raise what ends the whole batch."""
        match error:
            case StoreError():
                return error
            case lmdb_env.MapFullError():
                if self._env.can_grow or not (self._is_in_reserve or isinstance(command, _GROWING)):
                    raise error
                return self._store_full()
            case _ if isinstance(error, lmdb_env.DamageErrors):
                # Commands that do not need that page go on.
                return records.damaged(META_KEY, f"LMDB cannot read on: {error}")
            case lmdb_env.EngineError():
                raise _not_committed(error) from error
            case Exception():
                # A defect: it must not take the other commands of the batch along.
                what = f"{type(command).__name__} ended in an unexpected error; nothing of it is stored"
                return internal_error(_logger, what, error)
            case _:
                raise error

    def _commit(self, parent: lmdb_env.Transaction) -> None:
        try:
            parent.commit()
        except BaseException as error:
            self._rows.clear()
            if isinstance(error, lmdb_env.MapFullError) or not isinstance(error, lmdb_env.EngineError):
                raise
            if not self._env.is_usable():
                raise StorageFailedError(f"the commit failed and its outcome is unknown: {error}") from error
            raise _not_committed(error) from error

    def reopen(self) -> None:
        """See `Engine`."""
        self._env.reopen()
        self._resolved = ResolvedStates()
        self._rows.clear()
        self._timers.restart()
        meta = self._read_meta()
        self._next_id = max(self._next_id, meta.next_id)
        self._lease_epoch = meta.lease_epoch
        results = self.execute([ProbeCommand()])
        for result in results:
            if isinstance(result, StoreError):
                raise StorageFailedError(f"the store was reopened, but a commit fails: {result}") from result

    def _upgrade(self, meta: MetaRow) -> None:
        """Bring the rows of an earlier format to the present one, so many in a commit; each says how far it is."""
        _logger.info("bringing the store from format %d to format %d", meta.format, lmdb_env.STORE_FORMAT)
        self._env.raise_format()
        try:
            while meta.format < lmdb_env.STORE_FORMAT:
                meta = self._upgrade_slice(meta)
        except (StoreError, StorageFailedError, lmdb_env.EngineError) as error:
            raise DataDirError(
                f"the store in {self._env.data_dir} is on its way to format {lmdb_env.STORE_FORMAT} and cannot get on: "
                f"{error}; it goes on from there at the next start"
            ) from error
        _logger.info("the store has format %d", meta.format)

    def _upgrade_slice(self, meta: MetaRow) -> MetaRow:
        parent = self._begin()
        txn = self._write_transaction(parent)
        try:
            position = status_index.build_slice(txn, meta.upgraded_to, UPGRADE_ROWS)
            done = self._meta_row(txn.next_id)
            done = done if position is None else _replace(done, format=meta.format, upgraded_to=position)
            txn.write(META_KEY, done)
        except lmdb_env.MapFullError:
            parent.abort()
            return self._grown(meta)
        except BaseException:
            parent.abort()
            raise
        try:
            self._commit(parent)
        except lmdb_env.MapFullError:
            return self._grown(meta)
        self._next_id = done.next_id
        return done

    def _grown(self, meta: MetaRow) -> MetaRow:
        """Make the map larger, so that a slice of which nothing is stored may be tried again."""
        self._rows.clear()
        if not self._env.grow():
            raise self._store_full()
        return meta

    def _read_meta(self) -> MetaRow:
        with self._reading() as txn:
            return txn.read_required(META_KEY, MetaRow)

    def _meta_row(self, next_id: int) -> MetaRow:
        return MetaRow(lmdb_env.STORE_FORMAT, self._env.identity.store_id, next_id, self._lease_epoch)

    def _abandon_forks(self) -> None:
        """Throw away targets of forks that a crash cut short: nobody has seen them."""
        with self._reading() as txn:
            prefix = keys.prefix(keys.STORE, keys.BUILDING)
            unfinished = [next(keys.numbers_of(key, 1)) for key, _ in txn.scan(prefix, prefix)]
        if unfinished:
            self.execute([AbandonForkCommand(target_internal_id=number) for number in unfinished])

    def _disk_low(self) -> StoreError:
        found = self._env.free_disk_bytes()
        return ResourceError(
            "DISK_LOW",
            f"{found} bytes of disk are free, saves need {self._low_disk_bytes} (low_disk_bytes); delete or prune, "
            "or give the data directory more disk",
            {"limit": "low_disk_bytes", "allowed": self._low_disk_bytes, "found": found, "unit": "bytes"},
        )

    def _store_full(self) -> StoreError:
        return ResourceError(
            "STORE_FULL",
            f"the database has reached its largest size of {self._env.map_size_bytes} bytes; delete or prune, or raise "
            "map_size_max_bytes",
            {"limit": "map_size_max_bytes", "allowed": self._env.map_size_bytes, "unit": "bytes"},
        )

    # Reading.

    @contextlib.contextmanager
    def _reading(self) -> Iterator[LmdbReadTransaction]:
        with self._env.gate:
            try:
                raw = self._env.begin_read()
            except lmdb_env.EngineError as error:
                raise UnavailableError("NOT_SERVING", f"the storage is not readable at the moment: {error}") from error
            try:
                yield LmdbReadTransaction(raw, self._timers)
            except lmdb_env.EngineError as error:
                raise records.damaged(META_KEY, f"LMDB cannot read on: {error}") from error
            finally:
                raw.abort()

    def _read(
        self, read: Callable[Concatenate[LmdbReadTransaction, _P], _V], *args: _P.args, **kwargs: _P.kwargs
    ) -> _V:
        with self._reading() as txn:
            return read(txn, *args, **kwargs)

    def load(self, query: LoadQuery) -> LoadAnswer | LongLoad:
        """See `Engine`."""
        return read_slices.load(lambda part: self._read(queries.load, part, self._limits), query, self._limits)

    def command_lane(self, loop: AbstractEventLoop) -> CommandLane | None:
        """See `Engine`."""
        return None

    def load_lane(
        self, loop: AbstractEventLoop, *, bound: SharedBound, on_failure: Callable[[], None]
    ) -> LoadLane | None:
        """See `Engine`."""
        return None

    def list_checkpoints(self, query: ListQuery) -> ListAnswer:
        """See `Engine`."""
        return read_slices.list_checkpoints(lambda part: self._read(queries.list_checkpoints, part), query)

    def get_workflow(self, namespace: str, workflow_id: str) -> WorkflowAnswer:
        """See `Engine`."""
        return self._read(queries.get_workflow, namespace, workflow_id)

    def list_signals(self, query: ListSignalsQuery) -> ListSignalsAnswer:
        """See `Engine`."""
        return self._read(queries.list_signals, query)

    def get_definition(self, namespace: str, fingerprint: str) -> DefinitionAnswer:
        """See `Engine`."""
        return self._read(queries.get_definition, namespace, fingerprint)

    def get_lease(self, namespace: str, workflow_id: str) -> LeaseQueryAnswer:
        """See `Engine`."""
        return self._read(queries.get_lease, namespace, workflow_id)

    def list_workflows(self, query: ListWorkflowsQuery) -> ListWorkflowsAnswer:
        """See `Engine`."""
        return read_slices.list_workflows(lambda part: self._read(queries.list_workflows, part), query)

    def entry_history(self, query: EntryHistoryQuery) -> EntryHistoryAnswer:
        """See `Engine`."""
        return read_slices.entry_history(lambda part: self._read(queries.entry_history, part), query)

    def probe(self) -> ProbeAnswer:
        """See `Engine`."""
        self._read_meta()
        self._env.read_disk()
        return ProbeAnswer()

    def statistics(self) -> Mapping[str, int]:
        """See `Engine`."""
        self._env.reader_check()
        return {**self._env.statistics(), "next_id": self._next_id, "disk_free_bytes": self._env.free_disk_bytes()}

    def close(self) -> None:
        """See `Engine`."""
        self._env.close()


def _not_committed(error: Exception) -> UnavailableError:
    return UnavailableError(
        "NOT_COMMITTED",
        f"the commit failed ({error}); nothing of it was stored, and the same call may be sent again",
    )
