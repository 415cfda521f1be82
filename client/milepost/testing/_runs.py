"""Run workflows on a clock that only moves where they wait."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, overload

from typing_extensions import Unpack

from milepost.protocols import AsyncCheckpointStore, CheckpointStore
from milepost.runner.options import BindOptions
from milepost.runner.runner import AsyncRunner, Runner
from milepost.runner.settings import Environment, Settings
from milepost.runner.workflow import Workflow
from milepost.testing._clock import FakeClock

__all__ = ["bind_to_clock"]

S = TypeVar("S")


@overload
def bind_to_clock(
    workflow: Workflow[S], store: CheckpointStore, clock: FakeClock, **options: Unpack[BindOptions]
) -> Runner[S]: ...


@overload
def bind_to_clock(
    workflow: Workflow[S], store: AsyncCheckpointStore, clock: FakeClock, **options: Unpack[BindOptions]
) -> AsyncRunner[S]: ...


def bind_to_clock(
    workflow: Workflow[S],
    store: CheckpointStore | AsyncCheckpointStore,
    clock: FakeClock,
    **options: Unpack[BindOptions],
) -> Runner[S] | AsyncRunner[S]:
    """Bind a workflow as `Workflow.bind` does, to a clock of the test: pauses between attempts take no time.

    Deadlines and timeouts are those of the clock too. It moves where a run waits and nothing else runs, by what the
    test advances it, and by what its steps do. Pauses have no jitter. Give the leases a long `lease_ttl_s` where the
    clock jumps far: they are renewed by real time.

    Args:
        workflow: The definition.
        store: As for `bind`.
        clock: The clock.
        options: As for `bind`.
    """
    settings = Settings(**options)
    environment = Environment(
        clock=clock.monotonic,
        wall_clock=lambda: clock.now().timestamp(),
        sleep=clock.sleep,
        random=lambda: 0.5,
    )
    made: Any = AsyncRunner if inspect.iscoroutinefunction(getattr(store, "save", None)) else Runner
    runner: Runner[S] | AsyncRunner[S] = made(workflow, store, settings, environment)
    return runner
