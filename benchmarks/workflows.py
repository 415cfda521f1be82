"""What the runner costs beside the steps and the saves: for a step, in a long workflow, and over a server.

The state has 10 entries and 2 KB; each step changes two of them. "Beside" means less the time of as many bare saves of
the same states, made in turns with the runs.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import grpc
import pydantic

from benchmarks.options import Options
from benchmarks.processes import real_server, scratch
from benchmarks.report import Figure, ratio
from milepost import Client, InMemoryStore, Saved, Workflow
from milepost.runner.settings import Durability
from milepost.types import After

NAME = "workflows"
STEP_TARGET_US: Final = 60.0
LONG_STEPS: Final = 10_000
EDGE_STEPS: Final = 200
"""Steps at the beginning and the end of a long workflow that are compared."""


@dataclass
class Order:
    count: int = 0
    note: str = ""
    customer: str = "c" * 180
    street: str = "s" * 180
    lines: list[dict[str, Any]] = field(default_factory=lambda: [{"product": f"p{n}", "n": n} for n in range(30)])
    tags: list[str] = field(default_factory=lambda: [f"tag {n}" for n in range(20)])
    total: float = 12.5
    text: str = "t" * 200
    flags: dict[str, bool] = field(default_factory=lambda: {f"flag {n}": True for n in range(10)})
    rest: str = "r" * 100


class OrderModel(pydantic.BaseModel):
    count: int = 0
    note: str = ""
    customer: str = "c" * 180
    street: str = "s" * 180
    lines: list[dict[str, Any]] = Order().lines
    tags: list[str] = Order().tags
    total: float = 12.5
    text: str = "t" * 200
    flags: dict[str, bool] = Order().flags
    rest: str = "r" * 100


KINDS: Final[dict[str, tuple[Any, Callable[[], Any]]]] = {
    "dict": (dict[str, Any], lambda: vars(Order())),
    "dataclass": (Order, Order),
    "pydantic": (OrderModel, OrderModel),
}


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    yield from _beside_the_saves(options)
    yield from _long_workflow(options)
    yield from _over_a_server(options)


def chain(count: int, kind: Any, at_step: Callable[[int], object] = lambda number: None) -> Workflow[Any]:
    """Return a workflow of steps in a row that each change two entries."""
    wf: Workflow[Any] = Workflow("bench", kind)

    def made(number: int) -> Callable[[Any], dict[str, object]]:
        def step(state: Any) -> dict[str, object]:
            at_step(number)
            return {"count": number, "note": f"after step {number}"}

        return step

    for number in range(count):
        wf.step(id=f"step-{number}")(made(number))
    _ = wf.definition
    return wf


def bare_saves(store: Any, workflow_id: str, count: int) -> None:
    """Save what `chain` saves, under a lease and with as much beside the state, as a program without runner would."""
    state = vars(Order())
    lease = store.acquire_lease(workflow_id, ttl_s=60)
    common: dict[str, Any] = {
        "definition": "bench",
        "run_id": "r" * 36,
        "metadata": {"milepost": {"v": 1, "first": "c" * 36, "input": "d" * 64, "schema": 1}},
        "lease_token": lease.token,
    }
    after: After = "start"
    saved: Saved = store.save(workflow_id, state=state, after=after, **common)
    for number in range(count):
        state = {**state, "count": number, "note": f"after step {number}"}
        step = f"step-{number}"
        saved = store.save(workflow_id, state=state, after=saved, current_step=step, completed_steps=[step], **common)


def _beside_the_saves(options: Options) -> Iterator[Figure]:
    steps = options.amount(500, 200)
    turns = options.amount(9, 5)
    for name, (kind, state) in KINDS.items():
        wf = chain(steps, kind)
        runs: list[float] = []
        for turn in range(turns + 1):
            # Processor time: neighbours on the machine would be counted otherwise, and nothing here waits.
            started = time.thread_time()
            wf.bind(InMemoryStore()).run("w", state())
            between = time.thread_time()
            bare_saves(InMemoryStore(), "w", steps)
            ended = time.thread_time()
            if turn:  # The first one warms up.
                runs.append(((between - started) - (ended - between)) / steps * 1e6)
        yield Figure(
            NAME,
            f"a step beside its save, {name}",
            statistics.median(runs),
            "us",
            STEP_TARGET_US,
            "at most",
            min(runs),
            max(runs),
            f"{steps} steps in memory",
        )


def _long_workflow(options: Options) -> Iterator[Figure]:
    count = options.amount(LONG_STEPS, 3_000)
    moments: list[float] = []
    wf = chain(count, dict[str, Any], lambda number: moments.append(time.thread_time()))
    firsts: list[float] = []
    lasts: list[float] = []
    for _ in range(options.amount(3, 1)):
        moments.clear()
        wf.bind(InMemoryStore()).run("w", vars(Order()))
        times = [after - before for before, after in itertools.pairwise(moments)]
        firsts.append(statistics.median(times[20 : 20 + EDGE_STEPS]))
        lasts.append(statistics.median(times[-EDGE_STEPS:]))
    detail = f"{firsts[0] * 1e6:.0f} us for the first ones"
    yield ratio(NAME, f"the last of {count:,} steps", lasts, firsts, target=1.2, sense="at most", detail=detail)


def _over_a_server(options: Options) -> Iterator[Figure]:
    steps = options.amount(200, 60)
    turns = options.amount(9, 3)
    wf = chain(steps, dict[str, Any])
    with scratch(options.directory) as directory, real_server(directory / "data") as server:
        sizes = _Sizes()
        with Client(server.address, interceptors=[sizes]) as counted:
            wf.bind(counted).run("sizes", vars(Order()))
        saves = sizes.saves[2:-1]  # Neither the input nor the first increment, nor the outcome.
        yield ratio(
            NAME,
            f"bytes of the last of {steps} saves",
            [float(statistics.median(saves[-20:]))],
            [float(statistics.median(saves[:20]))],
            target=1.2,
            sense="at most",
            detail=f"{saves[0]} bytes each",
        )
        series: dict[Durability | Literal["bare"], list[float]] = {"bare": [], "sync": [], "pipelined": []}
        with Client(server.address) as client:
            for turn in range(turns + 1):
                for name, times in series.items():
                    workflow_id = f"{name}-{turn}"
                    started = time.perf_counter()
                    if name == "bare":
                        bare_saves(client, workflow_id, steps)
                    else:
                        wf.bind(client, durability=name).run(workflow_id, vars(Order()))
                    if turn:
                        times.append((time.perf_counter() - started) / steps)
    detail = f"{statistics.median(series['bare']) * 1000:.2f} ms for a bare save"
    targets: dict[Durability, float] = {"sync": 1.25, "pipelined": 0.5}
    for name, target in targets.items():
        yield ratio(
            NAME,
            f"a step over a server, {name}",
            series[name],
            series["bare"],
            target=target,
            sense="at most",
            detail=detail,
        )


class _Sizes(grpc.UnaryUnaryClientInterceptor):
    """Notes the sizes of Save requests."""

    def __init__(self) -> None:
        self.saves: list[int] = []

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if client_call_details.method.endswith("/Save"):
            self.saves.append(len(request) if isinstance(request, bytes) else request.ByteSize())
        return continuation(client_call_details, request)
