"""Workflows whose progress is in a store: definitions, and the runner that starts and resumes them."""

from milepost.runner.context import AsyncContext, Context, StepCancelledError
from milepost.runner.reducers import Reducer, add, append, last, union
from milepost.runner.retry import Retry
from milepost.runner.run import Run
from milepost.runner.runner import AsyncRunner, Runner
from milepost.runner.state_type import DELETE, Replace
from milepost.runner.step import Step
from milepost.runner.workflow import Workflow

__all__ = [
    "DELETE",
    "AsyncContext",
    "AsyncRunner",
    "Context",
    "Reducer",
    "Replace",
    "Retry",
    "Run",
    "Runner",
    "Step",
    "StepCancelledError",
    "Workflow",
    "add",
    "append",
    "last",
    "union",
]
