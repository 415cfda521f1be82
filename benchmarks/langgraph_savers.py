"""MilepostSaver beside LangGraph's own savers: `make bench-langgraph`.

Every saver gets the same checkpoints, as a graph makes them: `put` behind the one before with one channel changed,
`put_writes` of what changes, `get_tuple` of the newest; a cycle is the three in turn. Workers are threads of one
process, each on a thread of checkpoints of its own. PostgresSaver has a connection for each of them, and beside that,
as it is mostly used, a pool for all. Then a real graph runs on each saver, in threads and in the tasks of one event
loop. PostgreSQL is the system's, with its defaults, on a free port and a store of its own; without it those rows are
left out. Beside them stands a bare gRPC call that does nothing: less than that no saver on grpcio costs.

Values are made before, so that it is the calls that are measured. The savers take turns, and each figure is the median
of its rounds. Processor time is that of the process with the workers, and of the server with all its processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import json
import os
import platform
import pwd
import random
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict, cast

import grpc
import lmdb
import psutil
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import override

from benchmarks.noop_server import READY_PREFIX
from milepost import _calls, _config
from milepost.adapters.langgraph import MilepostSaver
from milepost.testing import local_server
from milepost.v1 import checkpoint_store_pb2 as pb

WORDS = [f"{random.Random(n).getrandbits(40):x}"[: 3 + n % 7] for n in range(4_000)]
STATES = {"2 KB": (1, 2_000), "100 KB": (1, 100_000), "10 x 10 KB": (10, 10_000)}
"""Name, channels, bytes of each. One channel changes at each step."""
WORKERS = (1, 8)
HISTORY = 20
"""Checkpoints a thread has before anything is measured."""
SIZE_CHECKPOINTS = 200
"""Checkpoints over which growth on disk is measured."""
GRAPH_STEPS = 20
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One measurement."""

    saver: str
    state: str
    workers: int
    what: str
    per_s: float
    p50_ms: float
    p99_ms: float
    client_us: float = 0.0
    """Processor time of one operation in this process."""
    server_us: float = 0.0
    """And in the server's; 0 where there is none."""


# The savers.


@dataclass(frozen=True)
class Contender:
    """A saver with its store: how a worker gets one, and what the store has on disk."""

    name: str
    connect: Callable[[], contextlib.AbstractContextManager[BaseCheckpointSaver[Any]]]
    disk_bytes: Callable[[], int] | None
    connect_async: Callable[[], contextlib.AbstractAsyncContextManager[BaseCheckpointSaver[Any]]] | None = None
    """The saver for all tasks of an event loop."""
    server_pid: int | None = None
    only: str = ""
    """The one operation that it can do."""

    def does(self, what: str) -> bool:
        """Tell whether it is measured doing that."""
        return self.connect_async is not None if what in ON_LOOP else self.only in {"", what}

    def server_s(self) -> float:
        """Processor time that the server and its processes, those that are gone too, have used so far."""
        if self.server_pid is None:
            return 0.0
        server, total_s = psutil.Process(self.server_pid), 0.0
        for process in (*server.children(recursive=True), server):
            # One that ends meanwhile is in the times of its parent, which comes last.
            with contextlib.suppress(psutil.NoSuchProcess):
                total_s += sum(process.cpu_times()[:4])
        return total_s


@contextlib.contextmanager
def milepost(scratch: Path) -> Iterator[list[Contender]]:
    """A server on LMDB, and one saver that all workers share."""
    data_dir = scratch / "milepost"
    before = set(psutil.Process().children())
    with local_server(data_dir=data_dir) as server, MilepostSaver(server.target) as saver:
        [process] = set(psutil.Process().children()) - before
        yield [
            Contender(
                "milepost",
                lambda: contextlib.nullcontext(saver),
                lambda: _used_pages(data_dir),
                lambda: MilepostSaver(server.target),
                process.pid,
            )
        ]


class BareCalls(InMemorySaver):
    """What gRPC itself costs: `put` is one blocking call, of the size of a Save, to a server without work."""

    def __init__(self, target: str) -> None:
        super().__init__()
        channel = grpc.insecure_channel(target, options=_config.CHANNEL_OPTIONS)
        self._call: grpc.UnaryUnaryMultiCallable[bytes, pb.SaveResponse]
        self._call = channel.unary_unary(_calls.SAVE.path, None, _calls.SAVE.read)

    @override
    def put(self, config: RunnableConfig, checkpoint: Checkpoint, metadata: Any, new_versions: Any) -> RunnableConfig:
        request = pb.SaveRequest(workflow_id=config["configurable"]["thread_id"], checkpoint_id=checkpoint["id"])
        for channel in new_versions:
            request.state[channel].data = _noise(sum(map(len, checkpoint["channel_values"][channel]["items"])) // 2)
        self._call(request.SerializeToString(), timeout=30.0)
        return config


@contextlib.contextmanager
def bare_calls(scratch: Path) -> Iterator[list[Contender]]:
    """A server that answers each Save at once."""
    response = pb.SaveResponse(digest=bytes(32), sequence=1, parent_id=str(uuid.uuid4())).SerializeToString()
    command = [sys.executable, "-m", "benchmarks.noop_server", "--save-response", response.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline().strip()
            if not line.startswith(READY_PREFIX):
                raise RuntimeError(f"the no-op server did not start: {line!r}")
            saver = BareCalls(line.removeprefix(READY_PREFIX))
            yield [Contender(BARE_CALL, lambda: contextlib.nullcontext(saver), None, server_pid=server.pid, only="put")]
        finally:
            server.terminate()


@contextlib.contextmanager
def sqlite(scratch: Path) -> Iterator[list[Contender]]:
    """A file, and one saver that all workers share."""
    from langgraph.checkpoint.sqlite import SqliteSaver  # noqa: PLC0415 - left out where it is not installed

    path = scratch / "saver.sqlite"
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        saver = SqliteSaver(connection)
        saver.setup()

        def disk_bytes() -> int:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return path.stat().st_size

        yield [Contender("SqliteSaver", lambda: contextlib.nullcontext(saver), disk_bytes)]


@contextlib.contextmanager
def memory(scratch: Path) -> Iterator[list[Contender]]:
    """Nothing durable: what LangGraph and the serializer cost by themselves."""
    saver = InMemorySaver()
    yield [Contender("InMemorySaver", lambda: contextlib.nullcontext(saver), None)]


@contextlib.contextmanager
def postgres(scratch: Path) -> Iterator[list[Contender]]:
    """A PostgreSQL of its own with its defaults, and a connection for each worker."""
    import psycopg  # noqa: PLC0415 - left out where it is not installed
    from langgraph.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - as above
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415 - as above
    from psycopg.rows import dict_row  # noqa: PLC0415 - as above
    from psycopg_pool import AsyncConnectionPool, ConnectionPool  # noqa: PLC0415 - as above

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_postgres_server(scratch))
        with PostgresSaver.from_conn_string(url) as saver:
            saver.setup()

        pool_options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        pool = stack.enter_context(ConnectionPool(url, min_size=8, max_size=8, kwargs=pool_options))
        pooled = PostgresSaver(cast("Any", pool))  # its rows are dicts, by the options

        @contextlib.asynccontextmanager
        async def connect_async() -> AsyncIterator[BaseCheckpointSaver[Any]]:
            async with AsyncConnectionPool(url, min_size=8, max_size=8, kwargs=pool_options, open=False) as shared:
                yield AsyncPostgresSaver(cast("Any", shared))  # as above

        def disk_bytes() -> int:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CHECKPOINT")
                tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
                sizes = [
                    connection.execute("SELECT pg_total_relation_size(%s)", (table,)).fetchone() for table in tables
                ]
                return sum(int(row[0]) for row in sizes if row is not None)

        # Its first line, as root and as its owner can read.
        pid = int((scratch / "postgres/data/postmaster.pid").read_text().split()[0])
        yield [
            Contender("PostgresSaver", lambda: PostgresSaver.from_conn_string(url), disk_bytes, None, pid),
            # How it is mostly used: one saver for the process, on a pool.
            Contender("PostgresSaver, pool", lambda: contextlib.nullcontext(pooled), None, connect_async, pid),
        ]


@contextlib.contextmanager
def _postgres_server(scratch: Path) -> Iterator[str]:
    # Debian keeps each version's programs apart and out of the path.
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not binaries and (found := shutil.which("initdb")):
        binaries = [Path(found).parent]
    if not binaries:
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
    home = scratch / "postgres"
    home.mkdir()
    prefix: list[str] = []
    if os.geteuid() == 0:
        # It refuses to run as root.
        prefix = ["runuser", "-u", "postgres", "--"]
        scratch.chmod(0o755)
        try:
            os.chown(home, pwd.getpwnam("postgres").pw_uid, -1)
        except KeyError:
            raise FileNotFoundError("PostgreSQL does not run as root, and there is no user postgres") from None
    data, user = home / "data", "postgres"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        # Not captured by a pipe: the server that pg_ctl starts would keep it open.
        with (scratch / "postgres.log").open("ab") as log:
            done = subprocess.run([*prefix, *command], stdout=log, stderr=log, cwd="/", timeout=120, check=False)
        if done.returncode:
            told = (scratch / "postgres.log").read_text(errors="replace").strip()
            raise FileNotFoundError(f"PostgreSQL cannot be started; {command[0]} says: {told}")

    run(str(binaries[-1] / "initdb"), "-A", "trust", "-U", user, "-D", str(data))
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"
    control = [str(binaries[-1] / "pg_ctl"), "-D", str(data), "-l", str(home / "log"), "-w"]
    run(*control, "-o", options, "start")
    try:
        yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    finally:
        run(*control, "-m", "immediate", "stop")


def _used_pages(data_dir: Path) -> int:
    # The file grows by steps: what is in use ends at its last page.
    [path] = data_dir.rglob("data.mdb")
    with lmdb.open(str(path.parent), readonly=True, lock=False, max_dbs=64) as env:
        return int(env.info()["last_pgno"] + 1) * int(env.stat()["psize"])


BARE_CALL = "gRPC, no-op call"
CONTENDERS = (milepost, postgres, sqlite, memory, bare_calls)


# The work.


class Thread:
    """One thread of checkpoints, each with one channel changed."""

    def __init__(self, saver: BaseCheckpointSaver[Any], state: str, seed: int) -> None:
        channels, size = STATES[state]
        self._saver = saver
        self._random = random.Random(seed)
        self._size = size
        self._names = [f"channel_{number}" for number in range(channels)]
        self._texts = [self._text() for _ in range(16)]
        self.config: Any = {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": ""}}
        self._values: dict[str, Any] = {name: self._value() for name in self._names}
        self._versions: dict[str, Any] = {name: saver.get_next_version(None, None) for name in self._names}
        self._step = 0
        self._new = dict(self._versions)
        for _ in range(HISTORY):
            self.prepare()
            self.put()

    def prepare(self) -> None:
        """Change one channel: not a part of what is measured."""
        name = self._names[self._step % len(self._names)]
        self._values = {**self._values, name: self._value()}
        version = self._saver.get_next_version(self._versions[name], None)
        self._versions = {**self._versions, name: version}
        self._new = self._new if self._step == 0 else {name: version}
        self._new |= {name: version}
        self._step += 1

    def put(self) -> None:
        self.config = self._saver.put(*self._arguments())

    async def aput(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.config = await saver.aput(*self._arguments())

    def _arguments(self) -> tuple[RunnableConfig, Checkpoint, Any, dict[str, Any]]:
        checkpoint: Checkpoint = {
            "v": 4,
            "id": str(uuid6(clock_seq=self._step)),
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": dict(self._values),
            "channel_versions": dict(self._versions),
            "versions_seen": {"node": dict(self._versions)},
            "updated_channels": list(self._new),
        }
        metadata: Any = {"source": "loop", "step": self._step, "parents": {}}
        return self.config, checkpoint, metadata, dict(self._new)

    def put_writes(self) -> None:
        name = next(iter(self._new))
        self._saver.put_writes(self.config, [(name, self._values[name]), ("branch:to:node", None)], str(uuid.uuid4()))

    def get_tuple(self) -> None:
        assert self._saver.get_tuple({"configurable": {**self.config["configurable"], "checkpoint_id": None}})

    def _text(self) -> list[str]:
        texts, size = [], 0
        while size < self._size:
            texts.append(" ".join(self._random.choices(WORDS, k=8)))
            size += len(texts[-1]) + 2
        return texts

    def _value(self) -> Any:
        # No two values are the same, so none is stored already.
        return {"items": self._texts[self._random.randrange(len(self._texts))], "step": self._random.random()}


@functools.cache
def _noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def build_graph(saver: BaseCheckpointSaver[Any], state: str) -> Any:
    """A loop of one node; each channel is a field, so that what does not change need not be saved again."""
    channels, size = STATES[state]
    fields: dict[str, Any] = {"step": int} | {f"channel_{number}": str for number in range(channels)}
    kind: Any = TypedDict("Fields", fields, total=False)  # type: ignore[misc]  # made for each state
    words = random.Random(1)

    def node(state: Any) -> dict[str, Any]:
        step = state["step"]
        return {"step": step + 1, f"channel_{step % channels}": " ".join(words.choices(WORDS, k=size // 7))}

    builder = StateGraph(kind)
    builder.add_node("node", node, input_schema=kind)
    builder.add_edge(START, "node")
    builder.add_conditional_edges("node", lambda found: "node" if found["step"] % GRAPH_STEPS else END, ["node", END])
    return builder.compile(checkpointer=saver)


# Measuring.

OPERATIONS: dict[str, tuple[str, ...]] = {
    "put": ("put",),
    "get_tuple": ("get_tuple",),
    "cycle": ("put", "put_writes", "get_tuple"),
    "graph step": (),
}
ASYNC_PUT = "async put"
ASYNC_STEP = "async step"
"""The same, and the same graph, in tasks of one event loop on one saver, as a web service has it."""
ON_LOOP = (ASYNC_PUT, ASYNC_STEP)


def measure(contender: Contender, state: str, workers: int, what: str, seconds: float) -> Row:
    """Run one kind of work in all workers for some seconds."""
    # The workers, and who reads the clocks.
    barrier = threading.Barrier(workers + 1)
    latencies: list[list[float]] = [[] for _ in range(workers)]
    elapsed_s = [1.0] * workers
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with contender.connect() as saver:
                if what == "graph step":
                    once = graph_run(saver, state)
                else:
                    once = operations(saver, state, number, OPERATIONS[what])
                once()
                barrier.wait(60)
                started = time.perf_counter()
                while time.perf_counter() < started + seconds:
                    latencies[number].append(once())
                elapsed_s[number] = time.perf_counter() - started
                barrier.wait(60)
        except BaseException as failure:  # noqa: BLE001 - told by the caller's thread
            failures.append(failure)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    gc.collect()
    for thread in threads:
        thread.start()
    clocks: list[tuple[float, float]] = []
    with contextlib.suppress(threading.BrokenBarrierError):
        for _ in range(2):
            barrier.wait(60 + seconds)
            clocks.append((time.process_time(), contender.server_s()))
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    every = sorted(latency for each in latencies for latency in each)
    scale = GRAPH_STEPS if what == "graph step" else 1
    rate = sum(len(each) * scale / spent for each, spent in zip(latencies, elapsed_s, strict=True))
    p99 = every[min(len(every) - 1, int(len(every) * 0.99))]
    client_us, server_us = (
        (after - before) * 1e6 / (len(every) * scale) for before, after in zip(*clocks, strict=True)
    )
    p50 = statistics.median(every)
    return Row(contender.name, state, workers, what, rate, p50 * 1000, p99 * 1000, client_us, server_us)


def operations(saver: BaseCheckpointSaver[Any], state: str, seed: int, names: tuple[str, ...]) -> Callable[[], float]:
    """Return what runs some operations once and returns the time they took."""
    thread = Thread(saver, state, seed)

    def once() -> float:
        if "put" in names:
            thread.prepare()
        started = time.perf_counter()
        for name in names:
            getattr(thread, name)()
        return time.perf_counter() - started

    return once


def graph_run(saver: BaseCheckpointSaver[Any], state: str) -> Callable[[], float]:
    """Return what runs the graph once on a new thread and returns the time of one superstep."""
    graph = build_graph(saver, state)

    def once() -> float:
        config = {"configurable": {"thread_id": str(uuid.uuid4())}}
        started = time.perf_counter()
        graph.invoke({"step": 0}, config, durability="sync")
        return (time.perf_counter() - started) / GRAPH_STEPS

    return once


async def measure_async(contender: Contender, state: str, tasks: int, what: str, seconds: float) -> Row:
    """Run one kind of work in so many tasks of one event loop, all on one saver."""
    assert contender.connect_async is not None
    latencies: list[float] = []
    scale = GRAPH_STEPS if what == ASYNC_STEP else 1
    async with contender.connect_async() as saver:
        with contender.connect() as blocking:
            threads = [Thread(blocking, state, number) for number in range(tasks)]
        graph = build_graph(saver, state)

        async def once(thread: Thread) -> float:
            if what == ASYNC_PUT:
                thread.prepare()
                started = time.perf_counter()
                await thread.aput(saver)
            else:
                started = time.perf_counter()
                config = {"configurable": {"thread_id": str(uuid.uuid4())}}
                await graph.ainvoke({"step": 0}, config, durability="sync")
            return (time.perf_counter() - started) / scale

        async def work(thread: Thread, deadline: float) -> None:
            while time.perf_counter() < deadline:
                latencies.append(await once(thread))

        await asyncio.gather(*(once(thread) for thread in threads))
        started, client_s, server_s = time.perf_counter(), time.process_time(), contender.server_s()
        await asyncio.gather(*(work(thread, started + seconds) for thread in threads))
        elapsed = time.perf_counter() - started
        done = len(latencies) * scale
        client_us, server_us = (
            (after - before) * 1e6 / done
            for after, before in ((time.process_time(), client_s), (contender.server_s(), server_s))
        )
    every = sorted(latencies)
    p50, p99 = statistics.median(every), every[min(len(every) - 1, int(len(every) * 0.99))]
    return Row(contender.name, state, tasks, what, done / elapsed, p50 * 1000, p99 * 1000, client_us, server_us)


def measure_disk(contender: Contender, disk_bytes: Callable[[], int], state: str) -> float:
    """Return the bytes that a checkpoint adds to the store."""
    with contender.connect() as saver:
        thread = Thread(saver, state, 99)
        before = disk_bytes()
        for _ in range(SIZE_CHECKPOINTS):
            thread.prepare()
            thread.put()
        return (disk_bytes() - before) / SIZE_CHECKPOINTS


def median_of(rows: list[Row]) -> Row:
    """Return the median of repeated measurements, by rate."""
    return sorted(rows, key=lambda row: row.per_s)[len(rows) // 2]


def main() -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description="MilepostSaver beside LangGraph's own savers")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many, taken in turns")
    parser.add_argument("--dir", type=Path, help="where the stores are made; their disk is what is measured")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/langgraph.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/langgraph-bench.png")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="langgraph-bench-", dir=options.dir))
    rows: list[Row] = []
    disk: dict[str, dict[str, float]] = {}
    try:
        with contextlib.ExitStack() as stack:
            contenders: list[Contender] = []
            for make in CONTENDERS:
                try:
                    contenders += stack.enter_context(make(scratch))
                except (ImportError, FileNotFoundError) as error:
                    print(f"left out: {error}", file=sys.stderr)
            for state in STATES:
                for contender in contenders:
                    if contender.disk_bytes is not None:
                        disk.setdefault(contender.name, {})[state] = measure_disk(
                            contender, contender.disk_bytes, state
                        )
                for workers in WORKERS:
                    for what in (*OPERATIONS, *ON_LOOP):
                        found: dict[str, list[Row]] = {}
                        for _ in range(options.rounds):
                            for contender in contenders:
                                if not contender.does(what):
                                    continue
                                if what in ON_LOOP:
                                    row = asyncio.run(measure_async(contender, state, workers, what, options.seconds))
                                else:
                                    row = measure(contender, state, workers, what, options.seconds)
                                found.setdefault(contender.name, []).append(row)
                        rows += [median_of(each) for each in found.values()]
                        for row in rows[-len(found) :]:
                            print(
                                f"{row.saver:19} {state:>10} {workers} {row.what:11} {row.per_s:8.0f}/s "
                                f"p50 {row.p50_ms:7.2f} ms  p99 {row.p99_ms:7.2f} ms",
                                flush=True,
                            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    tell(rows, disk)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"rows": [asdict(row) for row in rows], "disk": disk}, indent=1), encoding="utf-8"
    )
    draw(rows, disk, options.plot)
    return 0


VERSIONS = (
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-sqlite",
    "psycopg",
    "grpcio",
)
LABELS = {"graph step": "supersteps of a graph", "put": "put alone", "get_tuple": "get_tuple alone"}


def tell(rows: list[Row], disk: dict[str, dict[str, float]]) -> None:
    """Print what stands in docs/langgraph.md under "Performance", as it stands there."""
    found = {(row.saver, row.state, row.what): row for row in rows if row.workers == WORKERS[-1]}

    def ratio(other: str, state: str, what: str) -> str:
        ours, theirs = found.get(("milepost", state, what)), found.get((other, state, what))
        return f"{ours.per_s / theirs.per_s:.2f}" if ours and theirs else "-"

    loops = {"graph step": ASYNC_STEP, "put": ASYNC_PUT}
    print("\n| what | state | a connection for each thread | one pool, in threads | one pool, tasks of an event loop |")
    print("|---|---|---|---|---|")
    for what, label in LABELS.items():
        for state in STATES:
            on_loop = ratio("PostgresSaver, pool", state, loops[what]) if what in loops else "-"
            apart, pooled = (ratio(other, state, what) for other in ("PostgresSaver", "PostgresSaver, pool"))
            print(f"| {label} | {state} | {apart} | {pooled} | {on_loop} |")
    if "PostgresSaver" in disk:
        for state in STATES:
            share = disk["milepost"][state] / disk["PostgresSaver"][state]
            print(f"| bytes on disk of a checkpoint | {state} | {share:.2f} | | |")

    print(
        "\n| put, by eight at once | state | a second | p50 | p99 | processor time, client + server | bytes on disk |"
    )
    print("|---|---|---|---|---|---|---|")
    for state in STATES:
        for (saver, at, what), row in found.items():
            if at == state and what in {"put", ASYNC_PUT}:
                size = disk.get(saver, {}).get(state) if what == "put" else None
                label = saver if what == "put" else f"{saver}, tasks"
                print(
                    f"| {label} | {state} | {row.per_s:,.0f} | {row.p50_ms:.1f} ms | {row.p99_ms:.1f} ms "
                    f"| {row.client_us:,.0f} + {row.server_us:,.0f} µs | {f'{size:,.0f}' if size else '-'} |"
                )
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS if _is_installed(name))
    print(f"\n{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {os.cpu_count()} cores; {versions}")


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def draw(rows: list[Row], disk: dict[str, dict[str, float]], path: Path) -> None:
    """Draw rates with 8 workers, and bytes on disk."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of what draws

    names = list(dict.fromkeys(row.saver for row in rows))
    width = 0.8 / len(names)
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), layout="constrained")
    panels = [("put", "put, 8 threads (per s)"), ("graph step", "graph supersteps, 8 threads (per s)")]
    panels.append((ASYNC_STEP, "graph supersteps, 8 tasks of one event loop (per s)"))
    for axis, (what, title) in zip(axes, panels, strict=False):
        for offset, name in enumerate(names):
            rates = {r.state: r.per_s for r in rows if (r.saver, r.workers, r.what) == (name, WORKERS[-1], what)}
            values = [rates.get(state, 0.0) for state in STATES]
            axis.bar([x + offset * width for x in range(len(STATES))], values, width * 0.94, label=name)
        if what == "put":
            axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([x + 0.35 for x in range(len(STATES))], list(STATES))
    for offset, name in enumerate(names):
        if name in disk:
            values = [disk[name][state] / 1000 for state in STATES]
            places = [x + offset * width for x in range(len(STATES))]
            axes[3].bar(places, values, width * 0.94, label=name, color=f"C{offset}")
    axes[3].set_title("on disk for each checkpoint (KB)", fontsize=10)
    axes[3].set_xticks([x + 0.35 for x in range(len(STATES))], list(STATES))
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
