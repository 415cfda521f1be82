"""Pages whose values grow when they are answered, cut so that they still have no more than the bytes of a page.

Storage counts values as they are stored. To a caller that cannot undo their compression they are answered
decompressed: what fitted a page then may not, and gRPC would refuse to receive it. What is cut off comes with the next
page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from operator import attrgetter

import msgspec

from milepost_server import rules
from milepost_server.model import (
    EntryHistoryAnswer,
    ListAnswer,
    ListSignalsAnswer,
    LoadedCheckpoint,
    Value,
    WorkflowRow,
)

Growth = Callable[[Value], int]
"""Returns by how many bytes a value is larger in an answer than it is stored."""

_replace = msgspec.structs.replace


def cut_list(answer: ListAnswer, growth: Growth, bytes_max: int) -> ListAnswer:
    """Return a page of checkpoints that fits."""
    count = _fitting((_checkpoint_bytes(answer.workflow, each, growth) for each in answer.checkpoints), bytes_max)
    kept = answer.checkpoints[:count]
    if len(kept) == len(answer.checkpoints):
        return answer
    return _replace(answer, checkpoints=kept, position=kept[-1].row.sequence)


def cut_entry_history(answer: EntryHistoryAnswer, growth: Growth, bytes_max: int) -> EntryHistoryAnswer:
    """Return a page of versions that fits. Those that one checkpoint brought stay together."""
    by_checkpoint = [tuple(versions) for _, versions in groupby(answer.versions, key=attrgetter("sequence"))]
    sizes = (sum(_value_bytes(each.value, growth) for each in versions) for versions in by_checkpoint)
    count = _fitting(sizes, bytes_max)
    if count == len(by_checkpoint):
        return answer
    kept = tuple(version for versions in by_checkpoint[:count] for version in versions)
    return _replace(answer, versions=kept, position=by_checkpoint[count][0].sequence, ancestors_pruned=False)


def cut_signals(answer: ListSignalsAnswer, growth: Growth, bytes_max: int) -> ListSignalsAnswer:
    """Return a page of signals that fits."""
    count = _fitting((_value_bytes(each.value, growth) for each in answer.signals), bytes_max)
    kept = answer.signals[:count]
    if len(kept) == len(answer.signals):
        return answer
    return _replace(answer, signals=kept, position=kept[-1].number)


def _fitting(sizes: Iterable[int], bytes_max: int) -> int:
    """Return how many items fit; the first one does always."""
    count = total = 0
    for size_bytes in sizes:
        total += size_bytes
        if count and total > bytes_max:
            break
        count += 1
    return count


def _checkpoint_bytes(workflow: WorkflowRow, loaded: LoadedCheckpoint, growth: Growth) -> int:
    entries = loaded.entries or {}
    return (
        rules.listed_bytes(workflow, loaded.row)
        + (loaded.row.entries_bytes if entries else 0)
        + sum(growth(value) for value in entries.values())
        + sum(record.size_bytes + growth(record.value) for record in loaded.records)
    )


def _value_bytes(value: Value | None, growth: Growth) -> int:
    return len(value.payload) + growth(value) if value is not None else 0
