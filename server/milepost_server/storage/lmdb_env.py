"""The LMDB environment in its data directory: opening, guarding, growing. The only module that imports `lmdb`.

    DATA_DIR/LOCK                 held by flock while a server runs; has its process id
    DATA_DIR/store/IDENTITY       which store this is, in which format
    DATA_DIR/store/data.mdb       the database
    DATA_DIR/store/lock.mdb       LMDB's reader table

`store` is made under another name, synced and renamed, so it is there whole or not at all. After that nothing ever
creates a database: one that is gone, cut or foreign is an error at start, never a fresh empty store, and a second
server on the directory is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import lmdb
import msgspec

from milepost_server.errors import RecordDamagedError
from milepost_server.storage import keys, records

STORE_FORMAT = 2
"""Version of the data directory; a server refuses any that it does not know."""
FORMATS_READ = (1, STORE_FORMAT)
"""Versions that are opened; an earlier one is brought to the present one."""
MIB = 1024 * 1024
GIB = 1024 * MIB

MAP_SIZE_DEFAULT_BYTES = 16 * GIB
MAP_SIZE_MAX_BYTES = 8 * 1024 * GIB
"""Address space, not disk: the file grows as it is written."""
RESERVE_BYTES = 16 * MIB
"""What a full store may be exceeded by while something is freed."""
READERS_MAX = 1024
DYING_SERVER_WAIT_S = 10.0
"""How long the storage process of a server that died may take to end."""
LIVING_SERVER_WAIT_S = 0.5
DYING_SERVER_POLL_S = 0.01

MapFullError = lmdb.MapFullError
EngineError = lmdb.Error
DamageErrors = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)
"""What LMDB raises when it meets a page that makes no sense; everything else is told of the system, not of the data."""


class Cursor(Protocol):
    """What the engine uses of an LMDB cursor: keys and rows are copies, never views into the map."""

    def __enter__(self) -> Cursor:
        """Use the cursor and close it."""

    def __exit__(self, *details: object) -> None:
        """Close the cursor."""

    def set_range(self, key: bytes) -> bool:
        """Go to the first key that is not before `key`."""

    def last(self) -> bool:
        """Go to the last key."""

    def prev(self) -> bool:
        """Go one key back."""

    def key(self) -> bytes:
        """Return the key."""

    def putmulti(self, items: Sequence[tuple[bytes, bytes]], *, append: bool) -> tuple[int, int]:
        """Store rows; return how many there were and how many were stored: with `append` only at the very end."""

    def iternext(self, *, keys: bool, values: bool) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and rows from here on."""


class Transaction(Protocol):
    """What the engine uses of an LMDB transaction."""

    def get(self, key: bytes) -> bytes | None:
        """Return a row."""

    def put(self, key: bytes, value: bytes, *, append: bool = False) -> bool:
        """Store a row; with `append`, only if its key comes after all others. Tell whether it was stored."""

    def delete(self, key: bytes) -> bool:
        """Remove a row; tell whether there was one."""

    def cursor(self) -> Cursor:
        """Open a cursor."""

    def commit(self) -> None:
        """Make what was written durable; of a child, part of its parent."""

    def abort(self) -> None:
        """Undo what was written, or let go of a snapshot."""


class DataDirError(Exception):
    """The data directory cannot be served; the message is one line that tells why and what to do."""


class Identity(msgspec.Struct, frozen=True):
    """What `IDENTITY` says."""

    format: int
    store_id: str
    lmdb_format: int
    """0 for LMDB 0.9, 1 for LMDB 1.0; their files are not readable by one another."""


class MetaRow(msgspec.Struct, frozen=True, array_like=True):
    """The store's own row, inside the database."""

    format: int
    store_id: str
    next_id: int = 1
    lease_epoch: int = 0
    """The upper half of every lease token. A restored store has a higher one, so that it repeats none of those that
    were granted after the backup was made."""
    upgraded_to: tuple[str, str] = ("", "")
    """How far the rows have been brought to the present format, while `format` is an earlier one."""


META_KEY = keys.meta(b"store")


class DirectoryLock:
    """An flock on the data directory: one server at a time, let go by the kernel whatever happens to the process.

    The file has the process id of the server. The lock may be held by a storage process of it, which dies with the
    server but a moment later; who finds the server dead waits for that.
    """

    def __init__(self, data_dir: Path, *, server_pid: int | None = None) -> None:
        self._file = os.open(data_dir / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        start_s = time.monotonic()
        while not self._try():
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip()
            # A number may have been given to another process since, so the living get a moment too.
            wait_s = LIVING_SERVER_WAIT_S if _is_running(holder) else DYING_SERVER_WAIT_S
            if time.monotonic() - start_s > wait_s:
                os.close(self._file)
                raise DataDirError(
                    f"data directory {data_dir} is in use by process {holder or 'unknown'}; "
                    "stop that server or name another --data-dir"
                )
            # The kernel tells nobody that a lock has become free, other than by taking it without a deadline.
            time.sleep(DYING_SERVER_POLL_S)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{server_pid or os.getpid()}\n".encode(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let another server in."""
        os.close(self._file)


def _is_running(pid_text: str) -> bool:
    """Tell whether a process lives; one whose id cannot be read is taken to."""
    if not pid_text.isdigit():
        return True
    try:
        os.kill(int(pid_text), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class ReaderGate:
    """Lets many readers through, and closes while the map is moved under them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._reader_count = 0
        self._is_closed = False

    def __enter__(self) -> None:
        with self._condition:
            while self._is_closed:
                self._condition.wait()
            self._reader_count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._condition:
            self._reader_count -= 1
            if self._is_closed and self._reader_count == 0:
                self._condition.notify_all()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Wait for the readers inside to leave and keep others out. Reads are bounded, so the wait is."""
        with self._condition:
            self._is_closed = True
            while self._reader_count:
                self._condition.wait()
        try:
            yield
        finally:
            with self._condition:
                self._is_closed = False
                self._condition.notify_all()


class LmdbEnv:
    """An open environment. Write transactions, growth and closing belong to one thread at a time; reads to any."""

    def __init__(
        self, data_dir: Path, lock: DirectoryLock, identity: Identity, *, map_size_bytes: int, map_size_max_bytes: int
    ) -> None:
        self.data_dir = data_dir
        self.identity = identity
        self.gate = ReaderGate()
        self._lock = lock
        self._map_size_bytes = map_size_bytes
        self._map_size_max_bytes = map_size_max_bytes
        self._env = self._open()

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        map_size_bytes: int = MAP_SIZE_DEFAULT_BYTES,
        map_size_max_bytes: int = MAP_SIZE_MAX_BYTES,
        lmdb_format: int = 0,
        server_pid: int | None = None,
    ) -> LmdbEnv:
        """Open the store of a data directory, or create it in an empty one.

        Raises:
            DataDirError: In use, not writable, foreign, damaged, or of another format.
        """
        _refuse_foreign(data_dir)
        lock = _lock_directory(data_dir, server_pid)
        try:
            if not (data_dir / "store").exists():
                _create_store(data_dir, map_size_bytes, lmdb_format)
            identity = check_store(data_dir)
            map_size_bytes = max(map_size_bytes, (data_dir / "store" / "data.mdb").stat().st_size)
            return cls(
                data_dir,
                lock,
                identity,
                map_size_bytes=map_size_bytes,
                map_size_max_bytes=max(map_size_bytes, map_size_max_bytes),
            )
        except BaseException:
            lock.release()
            raise

    def _open(self) -> lmdb.Environment:
        path = self.data_dir / "store"
        try:
            env = _open_lmdb(path, self._map_size_bytes, self.identity.lmdb_format)
        except (lmdb.Error, OSError) as error:
            raise DataDirError(f"the database in {path} cannot be opened: {error}; restore it from a backup") from error
        try:
            env.reader_check()
            with env.begin() as txn:
                row = txn.get(META_KEY)
            if row is None:
                raise DataDirError(
                    f"the database in {path} is empty though IDENTITY says otherwise; restore it from a backup"
                )
            try:
                meta = records.decode(META_KEY, row, MetaRow)
            except RecordDamagedError as error:
                raise DataDirError(f"the database in {path} is damaged: {error}; restore it from a backup") from error
            # An upgrade raises what IDENTITY says first, so that no earlier server comes near the rows from then on.
            if meta.store_id != self.identity.store_id or meta.format > self.identity.format:
                raise DataDirError(
                    f"the database in {path} is not the one that its IDENTITY names; restore both from one backup"
                )
        except lmdb.Error as error:
            env.close()
            raise DataDirError(f"the database in {path} is damaged: {error}; restore it from a backup") from error
        except BaseException:
            env.close()
            raise
        return env

    def raise_format(self) -> None:
        """Have IDENTITY name the present format; the database follows when its rows are in it.

        Raises:
            DataDirError: The file cannot be written.
        """
        if self.identity.format == STORE_FORMAT:
            return
        path = self.data_dir / "store"
        identity = msgspec.structs.replace(self.identity, format=STORE_FORMAT)
        try:
            _write_identity(path / "IDENTITY.new", identity)
            (path / "IDENTITY.new").rename(path / "IDENTITY")
            _sync(path)
        except OSError as error:
            raise DataDirError(
                f"{path} cannot be brought to format {STORE_FORMAT}: {error}; nothing of it was changed"
            ) from error
        self.identity = identity

    def reopen(self) -> None:
        """Close and open again, after the environment has failed."""
        with self.gate.closed():
            self._env.close()
            self._env = self._open()

    def close(self) -> None:
        """Close the environment and let another server in."""
        with self.gate.closed():
            self._env.close()
        self._lock.release()

    def begin_write(self, parent: Transaction | None = None) -> Transaction:
        """Begin a write transaction, or a child of one."""
        return cast("Transaction", self._env.begin(write=True, parent=cast("lmdb.Transaction | None", parent)))

    def begin_read(self) -> Transaction:
        """Begin a read transaction. Hold `gate` as long as it lives."""
        return cast("Transaction", self._env.begin())

    def grow(self) -> bool:
        """Double the map; tell whether that was possible. No write transaction may be open."""
        if not self.can_grow:
            return False
        size_bytes = min(2 * self._map_size_bytes, self._map_size_max_bytes)
        with self.gate.closed():
            self._env.set_mapsize(size_bytes)
        self._map_size_bytes = size_bytes
        return True

    @contextlib.contextmanager
    def reserve(self) -> Iterator[None]:
        """Lend address space beyond the largest size to what frees pages: it needs a few of its own to do so."""
        with self.gate.closed():
            self._env.set_mapsize(self._map_size_bytes + RESERVE_BYTES)
        try:
            yield
        finally:
            # LMDB keeps what is used by now, however little more it is. If it fails, the next transaction tells.
            with self.gate.closed(), contextlib.suppress(lmdb.Error):
                self._env.set_mapsize(self._map_size_bytes)

    @property
    def can_grow(self) -> bool:
        """The map may still be doubled."""
        return self._map_size_bytes < self._map_size_max_bytes

    def is_usable(self) -> bool:
        """Tell whether transactions can still be begun: not after a meta page failed to be written."""
        try:
            with self.gate, self._env.begin():
                return True
        except lmdb.Error:
            return False

    def free_disk_bytes(self) -> int:
        """Return what the file system has left for this process."""
        stat = os.statvfs(self.data_dir)
        return stat.f_bavail * stat.f_frsize

    def read_disk(self) -> None:
        """Read a little from the disk itself: return when it has answered.

        What the database reads lies in memory on an idle server, so that would not tell. Not `data.mdb`: to close a
        second descriptor of it may cost LMDB its locks. File systems in memory know no such reading, and need none.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0)
        with contextlib.suppress(OSError):
            # An error is an answer too; what reads and writes meet they tell themselves.
            file = os.open(self.data_dir / "store" / "IDENTITY", flags)
            try:
                with mmap.mmap(-1, mmap.PAGESIZE) as aligned:
                    os.readv(file, [aligned])
            finally:
                os.close(file)

    def reader_check(self) -> int:
        """Free the reader slots of processes that died."""
        return int(self._env.reader_check())

    @property
    def map_size_bytes(self) -> int:
        """The largest size the file may have before the map grows."""
        return self._map_size_bytes

    def statistics(self) -> dict[str, int]:
        """Return sizes of the file."""
        stat, info = self._env.stat(), self._env.info()
        return {
            "file_bytes": (self.data_dir / "store" / "data.mdb").stat().st_size,
            "used_bytes": (info["last_pgno"] + 1) * stat["psize"],
            "map_bytes": self._map_size_bytes,
            "rows": stat["entries"],
            "readers": info["num_readers"],
        }


def _open_lmdb(path: Path, map_size_bytes: int, lmdb_format: int) -> lmdb.Environment:
    return lmdb.open(
        str(path),
        map_size=map_size_bytes,
        max_readers=READERS_MAX,
        # The three that durability rests on: data and meta page are flushed at every commit, and never through the map.
        sync=True,
        metasync=True,
        writemap=False,
        readahead=False,
        meminit=False,
        mode=0o600,
        create=False,
        lib_version=lmdb_format,
    )


@contextlib.contextmanager
def reading_offline(data_dir: Path) -> Iterator[Transaction]:
    """Open a store's database for reading only, while no server has it open."""
    identity = check_store(data_dir)
    path = data_dir / "store"
    try:
        env = lmdb.open(str(path), readonly=True, lock=False, create=False, lib_version=identity.lmdb_format)
    except (lmdb.Error, OSError) as error:
        raise DataDirError(f"the database in {path} cannot be opened: {error}") from error
    try:
        with env.begin() as txn:
            yield cast("Transaction", txn)
    finally:
        env.close()


def _lock_directory(data_dir: Path, server_pid: int | None) -> DirectoryLock:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not data_dir.is_dir():
            raise DataDirError(f"data directory {data_dir} is not a directory; name another --data-dir")
        return DirectoryLock(data_dir, server_pid=server_pid)
    except FileExistsError as error:
        raise DataDirError(f"data directory {data_dir} is not a directory; name another --data-dir") from error
    except OSError as error:
        raise DataDirError(
            f"data directory {data_dir} cannot be written ({error.strerror}); check its owner and its file system"
        ) from error


def _refuse_foreign(data_dir: Path) -> None:
    """Refuse a directory that is used for something else, before anything is made in it."""
    if not data_dir.is_dir() or (data_dir / "store").exists():
        return
    foreign = sorted(
        path.name for path in data_dir.iterdir() if path.name != "LOCK" and not path.name.startswith("creating-")
    )
    # Another server may just have made the store.
    if foreign and not (data_dir / "store").exists():
        raise DataDirError(
            f"data directory {data_dir} has no store but other files ({', '.join(foreign[:3])}); name an empty "
            f"one, or one that is not there yet: {data_dir / 'milepost'}"
        )


def _create_store(data_dir: Path, map_size_bytes: int, lmdb_format: int) -> None:
    """Make an empty store, whole or not at all."""
    identity = Identity(format=STORE_FORMAT, store_id=str(uuid.uuid4()), lmdb_format=lmdb_format)
    temporary = data_dir / f"creating-{identity.store_id}"
    try:
        for path in data_dir.glob("creating-*"):
            # A start that was cut short: nothing in it was ever acknowledged.
            _remove_flat(path)
        temporary.mkdir(mode=0o700)
        env = lmdb.open(
            str(temporary), map_size=map_size_bytes, mode=0o600, sync=True, metasync=True, lib_version=lmdb_format
        )
        with env.begin(write=True) as txn:
            meta = MetaRow(format=STORE_FORMAT, store_id=identity.store_id)
            txn.put(META_KEY, records.encode(META_KEY, meta))
        env.close()
        _write_identity(temporary / "IDENTITY", identity)
        _sync(temporary / "data.mdb")
        _sync(temporary)
        temporary.rename(data_dir / "store")
        _sync(data_dir)
        _sync(data_dir.parent)
    except (OSError, lmdb.Error) as error:
        with contextlib.suppress(OSError):
            _remove_flat(temporary)
        raise DataDirError(f"no store can be created in {data_dir}: {error}") from error


def _remove_flat(directory: Path) -> None:
    """Remove a directory of files."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def check_store(data_dir: Path) -> Identity:
    """Check what can be checked of a store without opening its database; return its identity.

    Raises:
        DataDirError: The identity is missing or unknown, or the database is missing or cut.
    """
    path = data_dir / "store"
    try:
        identity = msgspec.json.decode((path / "IDENTITY").read_bytes(), type=Identity)
    except FileNotFoundError as error:
        if not path.exists():
            raise DataDirError(f"{data_dir} has no store of milepost") from error
        raise DataDirError(f"{path} has no IDENTITY: it is no store of milepost, or has lost it") from error
    except OSError as error:
        raise DataDirError(f"{path / 'IDENTITY'} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise DataDirError(f"{path / 'IDENTITY'} cannot be read: {error}") from error
    if identity.format not in FORMATS_READ:
        raise DataDirError(
            f"{data_dir} has store format {identity.format}, this server knows {STORE_FORMAT}; use the version that "
            "wrote it"
        )
    database = path / "data.mdb"
    if not database.exists():
        raise DataDirError(f"{database} is gone though IDENTITY is there; restore it from a backup")
    found, needed = database.stat().st_size, _needed_bytes(database, identity.lmdb_format)
    # A commit does not write pages that it took from the end of the file and gave back itself, so a whole file may be
    # shorter than its last page says. Whether a page that is reached lies beyond the end can then only be told by
    # walking to all of them.
    if found < needed and verify_file(data_dir):
        raise DataDirError(
            f"{database} is cut: {found} bytes, its last commit needs {needed}; restore it from a backup"
        )
    return identity


def _needed_bytes(database: Path, lmdb_format: int) -> int:
    """Return how long a file must be for its newest commit. LMDB 0.9 opens a shorter one and dies reading the rest.

    A meta page is: page header (16 bytes; 24 in LMDB 1.0), magic, version, address, map size, two tree descriptors of
    48 bytes (the first starts with the page size), last page, transaction number. Source: `MDB_meta` in LMDB's mdb.c.
    """
    header_bytes = 24 if lmdb_format else 16
    layout = struct.Struct("=IIQQI92xQQ")
    newest: tuple[int, int] | None = None
    with database.open("rb") as file:
        page_bytes = 4096
        for number in (0, 1):
            file.seek(number * page_bytes + header_bytes)
            raw = file.read(layout.size)
            if len(raw) < layout.size:
                continue
            magic, _, _, _, size, last_page, txn_number = layout.unpack(raw)
            if magic != 0xBEEFC0DE:
                continue
            page_bytes = size or page_bytes
            if newest is None or txn_number > newest[0]:
                newest = (txn_number, (last_page + 1) * page_bytes)
    if newest is None:
        raise DataDirError(
            f"{database} is not an LMDB database: neither of its first pages is intact; restore it from a backup"
        )
    return newest[1]


def _write_identity(path: Path, identity: Identity) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify_file(data_dir: Path) -> list[str]:
    """Return what is wrong with the structure of the database file, without LMDB's own code touching it."""
    from lmdb import verify  # noqa: PLC0415 - only the offline check needs it

    check: Callable[..., Any] = verify.verify
    try:
        findings = check(str(data_dir / "store"))
    except verify.VerifyError as error:
        return [str(error)]
    return [str(finding) for finding in findings or ()]
