"""Workflows whose progress is in a store: definitions, and the runner that starts and resumes them."""

from milepost.runner.reducers import Reducer, add, append, last, union
from milepost.runner.retry import Retry
from milepost.runner.state_type import DELETE, Replace
from milepost.runner.step import CANCEL_SIGNAL, Step
from milepost.runner.workflow import Workflow

__all__ = [
    "CANCEL_SIGNAL",
    "DELETE",
    "Reducer",
    "Replace",
    "Retry",
    "Step",
    "Workflow",
    "add",
    "append",
    "last",
    "union",
]
