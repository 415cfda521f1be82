"""The commands that change something: save, fork, prune, delete. What destroys says first what, and asks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, TextIO

import click

from milepost.cli import json_text
from milepost.cli.documents import saved_document, workflow_document
from milepost.cli.failures import ExitCode
from milepost.cli.reading import STATUSES, parse_labels, scope_option
from milepost.cli.references import find_checkpoint
from milepost.cli.rendering import count, printable
from milepost.cli.session import TEXT, CommandError, Session, pass_session, setting_options
from milepost.cli.store import Store, StoredValue
from milepost.types import After, Status

COUNTED_MAX: Final = 10_000
"""More checkpoints than this are not counted before a question."""

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def _read_entries(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    """Read `KEY=JSON` options."""
    entries: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{printable(pair)!r} is not KEY=JSON", ctx, param)
        try:
            json_text.parse(text)
        except ValueError as error:
            quoted = json.dumps(text, ensure_ascii=False)
            hint = f"; a text is given in quotes: --entry '{key}={quoted}'" if text[:1] not in {"{", "["} else ""
            raise click.BadParameter(
                printable(f"the value of {key!r} is no JSON ({error}){hint}"), ctx, param
            ) from None
        if key in entries:
            raise click.BadParameter(f"{printable(key)!r} is given twice", ctx, param)
        entries[key] = json_text.compact(text)
    return entries


def _read_metadata(ctx: click.Context, param: click.Parameter, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        json_text.parse(text)
        metadata = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(printable(f"no JSON ({error})"), ctx, param) from None
    if not isinstance(metadata, dict):
        raise click.BadParameter("not a JSON object", ctx, param)
    return metadata


def _read_state(file: TextIO) -> dict[str, str]:
    try:
        return json_text.split_object(file.read())
    except ValueError as error:
        raise CommandError(
            ExitCode.USAGE,
            f"the state in {file.name}: {error}",
            'the state is one JSON object, each member an entry: {"total": 42, "items": []}',
        ) from None


@click.command()
@click.argument("workflow", type=TEXT)
@click.option(
    "--state", "file", type=click.File(encoding="utf-8"), help="The state: a file with one JSON object; - for stdin."
)
@click.option(
    "--entry",
    "entries",
    type=TEXT,
    multiple=True,
    callback=_read_entries,
    metavar="KEY=JSON",
    help="One entry of the state, in addition to --state; repeatable.",
)
@click.option("--step", type=TEXT, default="", help="The step that is finished with this checkpoint.")
@click.option("--completed-step", "completed_steps", type=TEXT, multiple=True, help="Add it to the completed steps.")
@click.option("--status", type=STATUSES, default=Status.RUNNING.value, show_default=True)
@click.option("--metadata", type=TEXT, callback=_read_metadata, metavar="JSON", help="A small JSON object.")
@click.option(
    "--after",
    type=TEXT,
    metavar="CHECKPOINT|start",
    help="Save only if this is the head, or (start) if there is none. Without it: an unconditional append.",
)
@click.option("--id", "checkpoint_id", type=TEXT, help="Its id; makes the same command repeatable. Default: a new one.")
@click.option(
    "--label",
    "labels",
    type=TEXT,
    multiple=True,
    callback=parse_labels,
    metavar="KEY=VALUE",
    help="Replaces the workflow's labels; repeatable.",
)
@click.option("--definition", type=TEXT, default="", help="Name of the workflow's definition.")
@click.option("--run", "run_id", type=TEXT, default="", help="The execution that saves.")
@scope_option
@setting_options(hidden=True)
@pass_session
def save(
    session: Session,
    *,
    workflow: str,
    file: TextIO | None,
    entries: dict[str, str],
    step: str,
    completed_steps: tuple[str, ...],
    status: str,
    metadata: dict[str, Any] | None,
    after: str | None,
    checkpoint_id: str | None,
    labels: dict[str, str],
    definition: str,
    run_id: str,
    scope: str,
) -> None:
    """Save a checkpoint of WORKFLOW with this state, whole: entries that are not given are not in it."""
    if file is None and not entries:
        raise click.UsageError("no state: give --state FILE or --entry KEY=JSON (an empty one is {} in --state)")
    texts = (_read_state(file) if file is not None else {}) | entries
    output = session.output()
    with session.store() as store:
        saved = store.save(
            workflow,
            state={key: StoredValue(text.encode("utf-8")) for key, text in texts.items()},
            current_step=step,
            after=_after(store, workflow, after, scope),
            checkpoint_id=checkpoint_id,
            status=Status(status),
            metadata=metadata,
            scope=scope,
            completed_steps=completed_steps,
            labels=labels or None,
            definition=definition,
            run_id=run_id,
        )
    if session.as_json:
        output.document(saved_document(saved))
        return
    again = " (it was there already)" if saved.replayed else ""
    output.line(
        f"saved {printable(saved.workflow_id)}: checkpoint {printable(saved.checkpoint_id)}, "
        f"sequence {saved.sequence}{again}"
    )


def _after(store: Store, workflow_id: str, reference: str | None, scope: str) -> After:
    if reference is None:
        return None
    return "start" if reference == "start" else find_checkpoint(store, workflow_id, reference, scope=scope)


@click.command()
@click.argument("workflow", type=TEXT)
@click.argument("new", type=TEXT)
@click.option("--at", type=TEXT, default="head", metavar="CHECKPOINT", help="The last one the new workflow has.")
@scope_option
@click.option("--all-scopes", is_flag=True, help="Take every scope along, up to that one's sequence.")
@setting_options(hidden=True)
@pass_session
def fork(session: Session, *, workflow: str, new: str, at: str, scope: str, all_scopes: bool) -> None:
    """Make the workflow NEW with the history of WORKFLOW. What is stored is shared, not copied."""
    output = session.output()
    with session.store() as store:
        # The head of this moment is the server's to know; any other is found first.
        checkpoint_id = None if at == "head" else find_checkpoint(store, workflow, at, scope=scope).checkpoint_id
        info = store.fork(workflow, new, checkpoint_id=checkpoint_id, scope=scope, all_scopes=all_scopes)
    if session.as_json:
        output.document(workflow_document(info))
        return
    output.line(
        f"forked {printable(workflow)} to {printable(info.workflow_id)}: {count(info.checkpoint_count, 'checkpoint')}"
    )


@click.command()
@click.argument("workflow", type=TEXT)
@click.option(
    "--keep", type=click.IntRange(1, 2**31 - 1), required=True, metavar="N", help="How many to keep in every scope."
)
@click.option("--dry-run", is_flag=True, help="Count what would be deleted, delete nothing.")
@yes_option
@setting_options(hidden=True)
@pass_session
def prune(session: Session, *, workflow: str, keep: int, dry_run: bool, yes: bool) -> None:
    """Delete all but the last N checkpoints of every scope of WORKFLOW, and what these need."""
    output = session.output()
    with session.store() as store:
        if dry_run:
            deleted = store.prune(workflow, keep_last=keep, dry_run=True)
        else:
            found = 0 if yes else store.prune(workflow, keep_last=keep, dry_run=True)
            if found:
                what = count(found, "checkpoint")
                session.confirm(f"Delete {what} of workflow {printable(workflow)!r}, keeping {keep} of every scope?")
            deleted = store.prune(workflow, keep_last=keep) if found or yes else 0
    if session.as_json:
        output.document({"workflow_id": workflow, "keep_last": keep, "dry_run": dry_run, "deleted": deleted})
        return
    would = "would delete" if dry_run else "deleted"
    output.line(f"{would} {count(deleted, 'checkpoint')} of {printable(workflow)}")


@click.command()
@click.argument("workflow", type=TEXT)
@click.option(
    "--checkpoint", "references", type=TEXT, multiple=True, help="Delete only this checkpoint of --scope; repeatable."
)
@click.option(
    "--run", "run_ids", type=TEXT, multiple=True, help="Delete only what this execution saved, in every scope."
)
@scope_option
@yes_option
@setting_options(hidden=True)
@pass_session
def delete(
    session: Session, *, workflow: str, references: tuple[str, ...], run_ids: tuple[str, ...], scope: str, yes: bool
) -> None:
    """Delete WORKFLOW with all its scopes; or only some of its checkpoints."""
    if scope and not references:
        raise click.UsageError("--scope goes with --checkpoint: without it, all scopes of the workflow are deleted")
    with session.store() as store:
        if references or run_ids:
            _delete_checkpoints(session, store, workflow, references=references, run_ids=run_ids, scope=scope, yes=yes)
        else:
            _delete_workflow(session, store, workflow, yes=yes)


def _delete_workflow(session: Session, store: Store, workflow: str, *, yes: bool) -> None:
    output = session.output()
    info = store.workflow(workflow)
    what = f"{count(info.checkpoint_count, 'checkpoint')} in {count(info.scope_count, 'scope')}"
    if not yes:
        session.confirm(f"Delete workflow {printable(workflow)!r} with {what}?")
    existed = store.delete(workflow)
    if session.as_json:
        output.document({"workflow_id": workflow, "existed": existed, "checkpoint_count": info.checkpoint_count})
        return
    gone = "" if existed else " (it was gone already)"
    output.line(f"deleted {printable(workflow)}: {what}{gone}")


def _delete_checkpoints(
    session: Session,
    store: Store,
    workflow: str,
    *,
    references: tuple[str, ...],
    run_ids: tuple[str, ...],
    scope: str,
    yes: bool,
) -> None:
    output = session.output()
    # Every one is looked up before any is deleted, so that a misspelt one deletes nothing.
    found = [find_checkpoint(store, workflow, reference, scope=scope) for reference in references]
    ids = list(dict.fromkeys(checkpoint.checkpoint_id for checkpoint in found))
    if not yes:
        what = [printable(one) for one in ids[:10]] + ([f"{len(ids) - 10} more"] if len(ids) > 10 else [])
        what += [_of_run(store, workflow, run_id) for run_id in run_ids]
        session.confirm(f"Delete of workflow {printable(workflow)!r}: {', '.join(what)}?")
    deleted = store.delete_checkpoints(workflow, ids, run_ids=run_ids, scope=scope)
    if session.as_json:
        output.document({"workflow_id": workflow, "deleted": deleted})
    else:
        output.line(f"deleted {count(deleted, 'checkpoint')} of {printable(workflow)}")
    if deleted == 0:
        sys.stdout.flush()
        raise CommandError(ExitCode.NEGATIVE, "there was nothing to delete")


def _of_run(store: Store, workflow: str, run_id: str) -> str:
    listed = store.list(workflow, scope=None, run_id=run_id, page_size=1_000)
    number = sum(1 for _ in islice(listed, COUNTED_MAX + 1))
    what = f"more than {COUNTED_MAX} checkpoints" if number > COUNTED_MAX else count(number, "checkpoint")
    return f"{what} of run {printable(run_id)!r}"
