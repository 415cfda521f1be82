"""Long reads in as many transactions as their rows need: each goes on where the one before it ended.

`run` reads one slice in one transaction, by the function of the same name in `queries`. An engine says how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from milepost_server.limits import Limits
from milepost_server.model import (
    EntryHistoryAnswer,
    EntryHistoryQuery,
    ListAnswer,
    ListQuery,
    ListWorkflowsAnswer,
    ListWorkflowsQuery,
    LoadAnswer,
    LoadQuery,
    LongLoad,
)
from milepost_server.storage.queries import SLICE_ROWS_MAX

Query = TypeVar("Query", ListQuery, ListWorkflowsQuery, EntryHistoryQuery)
PageAnswer = TypeVar("PageAnswer", ListAnswer, ListWorkflowsAnswer, EntryHistoryAnswer)
_replace = msgspec.structs.replace


def load(run: Callable[[LoadQuery], LoadAnswer | LongLoad], query: LoadQuery, limits: Limits) -> LoadAnswer | LongLoad:
    """Read one checkpoint, unless it needs so many rows that it must go on later."""
    answer = run(query)
    for _ in range(SLICE_ROWS_MAX, limits.page_rows_examined_max, SLICE_ROWS_MAX):
        if not isinstance(answer, LongLoad):
            break
        answer = run(_replace(query, position=answer.position))
    return answer


def list_checkpoints(run: Callable[[ListQuery], ListAnswer], query: ListQuery) -> ListAnswer:
    """Read one page."""

    def rest_of(query: ListQuery, answer: ListAnswer) -> ListQuery | None:
        if answer.position is None:
            return None
        return _replace(
            query,
            position=answer.position,
            sequence_max=answer.sequence_max,
            incarnation=answer.workflow.incarnation,
            page_size=query.page_size - len(answer.checkpoints),
            is_page_started=bool(answer.checkpoints),
        )

    def join(first: ListAnswer, second: ListAnswer) -> ListAnswer:
        return _replace(second, checkpoints=first.checkpoints + second.checkpoints)

    return _in_slices(run, query, rest_of, join)


def list_workflows(
    run: Callable[[ListWorkflowsQuery], ListWorkflowsAnswer], query: ListWorkflowsQuery
) -> ListWorkflowsAnswer:
    """Read one page."""

    def rest_of(query: ListWorkflowsQuery, answer: ListWorkflowsAnswer) -> ListWorkflowsQuery | None:
        if answer.after_workflow_id is None:
            return None
        return _replace(
            query,
            after_workflow_id=answer.after_workflow_id,
            page_size=query.page_size - len(answer.workflows),
            is_page_started=bool(answer.workflows),
        )

    def join(first: ListWorkflowsAnswer, second: ListWorkflowsAnswer) -> ListWorkflowsAnswer:
        return _replace(second, workflows=first.workflows + second.workflows)

    return _in_slices(run, query, rest_of, join)


def entry_history(
    run: Callable[[EntryHistoryQuery], EntryHistoryAnswer], query: EntryHistoryQuery
) -> EntryHistoryAnswer:
    """Read one page."""

    def rest_of(query: EntryHistoryQuery, answer: EntryHistoryAnswer) -> EntryHistoryQuery | None:
        if answer.position is None:
            return None
        return _replace(
            query,
            position=answer.position,
            incarnation=answer.workflow.incarnation,
            page_size=query.page_size - len(answer.versions),
            is_page_started=bool(answer.versions),
        )

    def join(first: EntryHistoryAnswer, second: EntryHistoryAnswer) -> EntryHistoryAnswer:
        return _replace(second, versions=first.versions + second.versions)

    return _in_slices(run, query, rest_of, join)


def _in_slices(
    run: Callable[[Query], PageAnswer],
    query: Query,
    rest_of: Callable[[Query, PageAnswer], Query | None],
    join: Callable[[PageAnswer, PageAnswer], PageAnswer],
) -> PageAnswer:
    answer = run(_replace(query, rows_examined_max=min(SLICE_ROWS_MAX, query.rows_examined_max)))
    examined = answer.rows_examined
    while not answer.is_full and examined < query.rows_examined_max:
        rest = rest_of(query, answer)
        if rest is None:
            break
        rows_max = min(SLICE_ROWS_MAX, query.rows_examined_max - examined)
        following = run(_replace(rest, bytes_max=answer.bytes_left, rows_examined_max=rows_max))
        examined += following.rows_examined
        answer = join(answer, following)
    return answer
