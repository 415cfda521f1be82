"""The commands that only look: workflows, history, show, diff, stats, health."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final

import click
from rich.text import Text

from milepost.cli import json_text
from milepost.cli.diff import Change, CheckpointDiff, EntryChange, compare
from milepost.cli.documents import (
    checkpoint_document,
    diff_document,
    stored_document,
    workflow_document,
)
from milepost.cli.failures import ExitCode
from milepost.cli.references import find_checkpoint, load_checkpoint
from milepost.cli.rendering import (
    ROWS_AT_ONCE,
    Column,
    Output,
    age,
    clipped,
    count,
    hexadecimal,
    indented_lines,
    json_value,
    lease_text,
    moment,
    printable,
    shortened,
    size,
    status_text,
)
from milepost.cli.session import TEXT, CommandError, Session, pass_session, setting_options
from milepost.cli.store import Store, StoredCheckpoint, StoredRecord, StoredValue
from milepost.types import Checkpoint, Status, WorkflowInfo

PAGE_SIZE: Final = 1_000
STATUSES: Final = click.Choice([status.value for status in Status])
KINDS: Final = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}

_COUNTS: Final = ("workflow_count", "checkpoint_count", "stored_bytes")

scope_option = click.option("--scope", type=TEXT, default="", help="The nested run; default: the root.")
limit_option = click.option("--limit", type=click.IntRange(min=1), help="At most this many.")


def parse_labels(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    """Read `key=value` options."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{printable(pair)!r} is not KEY=VALUE", ctx, param)
        labels[key] = value
    return labels


def _statuses(names: Iterable[str]) -> list[Status] | None:
    return [Status(name) for name in names] or None


@click.command()
@click.argument("prefix", type=TEXT, default="")
@click.option("--status", "statuses", type=STATUSES, multiple=True, help="Only with this status; repeatable.")
@click.option(
    "--label",
    "labels",
    type=TEXT,
    multiple=True,
    callback=parse_labels,
    metavar="KEY=VALUE",
    help="Only with this label; repeatable.",
)
@click.option("--definition", type=TEXT, help="Only of this definition.")
@click.option("--fingerprint", type=TEXT, help="Only those whose root head was saved under this fingerprint.")
@click.option("--leased/--unleased", "is_leased", default=None, help="Only those whose lease is live, or is not.")
@click.option(
    "--pending/--no-pending",
    "has_pending_signals",
    default=None,
    help="Only those that have signals waiting, or have none.",
)
@limit_option
@setting_options(hidden=True)
@pass_session
def workflows(
    session: Session,
    *,
    prefix: str,
    statuses: tuple[str, ...],
    labels: dict[str, str],
    definition: str | None,
    fingerprint: str | None,
    is_leased: bool | None,
    has_pending_signals: bool | None,
    limit: int | None,
) -> None:
    """List the workflows of the namespace whose id begins with PREFIX, by id."""
    output = session.output()
    with session.store() as store:
        found = store.workflows(
            prefix=prefix,
            status=_statuses(statuses),
            labels=labels or None,
            definition=definition,
            is_leased=is_leased,
            has_pending_signals=has_pending_signals,
            fingerprint=fingerprint,
            limit=limit,
            page_size=PAGE_SIZE,
        )
        if session.as_json:
            for info in found:
                output.document(workflow_document(info))
            return
        columns = [
            Column("workflow"),
            Column("status"),
            Column("step", shrinks=True),
            Column("checkpoints", is_number=True, is_optional=True),
            Column("head", is_optional=True),
            Column("size", is_number=True, is_optional=True),
            Column("lease", shrinks=True),
            Column("signals", is_number=True),
            Column("updated", is_number=True),
        ]
        if not output.table(columns, _workflow_rows(found, output, session.now())):
            filters = (prefix, statuses, labels, definition, fingerprint)
            is_filtered = any(filters) or is_leased is not None or has_pending_signals is not None
            what = "no such workflows" if is_filtered else "no workflows"
            session.note(f"{what} in namespace {printable(store.namespace)!r}")


def _workflow_rows(found: Iterator[WorkflowInfo], output: Output, now: datetime) -> Iterator[Sequence[Text | str]]:
    while batch := list(islice(found, ROWS_AT_ONCE)):
        # Two workflows may have heads of the same id: only what is distinct needs telling apart.
        short = _short_ids(output, (info.head_checkpoint_id for info in batch))
        for info in batch:
            yield (
                printable(info.workflow_id),
                status_text("" if info.status is None else info.status.value),
                printable(info.current_step),
                str(info.checkpoint_count),
                short[info.head_checkpoint_id],
                size(info.stored_bytes),
                "" if info.lease is None else printable(info.lease.holder or "(no name)"),
                str(info.pending_signal_count),
                age(info.update_time, now),
            )


def _short_ids(output: Output, ids: Iterable[str]) -> dict[str, str]:
    """Return ids as they are shown: whole where a program may read them."""
    every = set(ids)
    short = shortened(every) if output.is_terminal else {one: one for one in every}
    return {one: printable(text) for one, text in short.items()}


@click.command()
@click.argument("workflow", type=TEXT)
@scope_option
@click.option("--all-scopes", is_flag=True, help="Nested runs too.")
@limit_option
@click.option("--oldest-first", is_flag=True, help="By rising sequence; else by falling sequence.")
@click.option("--status", "statuses", type=STATUSES, multiple=True, help="Only with this status; repeatable.")
@click.option("--step", type=TEXT, help="Only of this step.")
@click.option(
    "--metadata",
    "metadata_keys",
    type=TEXT,
    multiple=True,
    metavar="KEY",
    help="A column more, with what the metadata has under KEY; repeatable.",
)
@setting_options(hidden=True)
@pass_session
def history(
    session: Session,
    *,
    workflow: str,
    scope: str,
    all_scopes: bool,
    limit: int | None,
    oldest_first: bool,
    statuses: tuple[str, ...],
    step: str | None,
    metadata_keys: tuple[str, ...],
) -> None:
    """List the checkpoints of WORKFLOW, newest first."""
    if all_scopes and scope:
        raise click.UsageError("--scope and --all-scopes exclude each other")
    output = session.output()
    with session.store() as store:
        found = store.list(
            workflow,
            scope=None if all_scopes else scope,
            newest_first=not oldest_first,
            limit=limit,
            status=_statuses(statuses),
            current_step=step,
            # A terminal is read from the top: its first rows need not wait for a large page.
            page_size=ROWS_AT_ONCE if output.is_terminal else PAGE_SIZE,
        )
        heads = _Heads(store, workflow, sees_all=not (oldest_first or statuses or step is not None))
        if session.as_json:
            for checkpoint in found:
                output.document(checkpoint_document(checkpoint, is_head=heads.includes(checkpoint)))
            return
        columns = [
            Column("seq", is_number=True),
            Column("checkpoint"),
            Column("parent", shrinks=True, is_optional=True),
            Column("step", shrinks=True),
            Column("status"),
            Column("steps", is_number=True, is_optional=True),
            Column("entries", is_number=True, is_optional=True),
            Column("size", is_number=True, is_optional=True),
            Column("records", is_number=True, is_optional=True),
            Column("age", is_number=True),
        ]
        columns[4:4] = [Column(printable(key), shrinks=True) for key in metadata_keys]
        if all_scopes:
            columns.insert(1, Column("scope"))
        rows = _history_rows(found, heads, output, session.now(), with_scope=all_scopes, metadata_keys=metadata_keys)
        if not output.table(columns, rows):
            session.note("no such checkpoints" if statuses or step is not None else "no checkpoints in this scope")


class _Heads:
    """Knows which checkpoints are heads of their scope, asking the server only where the list does not tell."""

    def __init__(self, store: Store, workflow_id: str, *, sees_all: bool) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._sees_all = sees_all
        self._head_by_scope: dict[str, str] = {}

    def includes(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a checkpoint, met in the order of the list, is the head of its scope."""
        scope = checkpoint.scope
        if scope not in self._head_by_scope:
            # Newest first and unfiltered, the first of a scope is its head.
            self._head_by_scope[scope] = (
                checkpoint.checkpoint_id
                if self._sees_all
                else find_checkpoint(self._store, self._workflow_id, "head", scope=scope).checkpoint_id
            )
        return self._head_by_scope[scope] == checkpoint.checkpoint_id


def _history_rows(
    found: Iterator[Checkpoint],
    heads: _Heads,
    output: Output,
    now: datetime,
    *,
    with_scope: bool,
    metadata_keys: Sequence[str],
) -> Iterator[Sequence[Text | str]]:
    while batch := list(islice(found, ROWS_AT_ONCE)):
        short = _short_ids(output, (one for c in batch for one in (c.checkpoint_id, c.parent_id)))
        for checkpoint in batch:
            name = Text(short[checkpoint.checkpoint_id])
            if heads.includes(checkpoint):
                name.append(" (head)", style="bold")
            parent = Text(short[checkpoint.parent_id])
            if checkpoint.parent_pruned:
                parent.append(" (pruned)", style="dim")
            yield (
                str(checkpoint.sequence),
                *([printable(checkpoint.scope)] if with_scope else []),
                name,
                parent,
                printable(checkpoint.current_step),
                *(_metadata_text(checkpoint, key) for key in metadata_keys),
                status_text(checkpoint.status.value),
                str(checkpoint.completed_step_count),
                str(checkpoint.entry_count),
                size(checkpoint.size_bytes),
                str(checkpoint.record_count),
                age(checkpoint.create_time, now),
            )


def _metadata_text(checkpoint: Checkpoint, key: str) -> str:
    """Return what the metadata has under a key, on one line: text as it is, all else as JSON; "" for nothing."""
    if key not in checkpoint.metadata:
        return ""
    value = checkpoint.metadata[key]
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


@click.command()
@click.argument("workflow", type=TEXT)
@click.argument("checkpoint", type=TEXT, required=False)
@scope_option
@click.option("--sequence", type=click.IntRange(1, 2**63 - 1), help="The checkpoint with this sequence.")
@click.option("--entry", "keys", type=TEXT, multiple=True, metavar="KEY", help="Only this entry; repeatable.")
@click.option("--raw", is_flag=True, help="With one --entry: write its bytes as they are stored, nothing else.")
@setting_options(hidden=True)
@pass_session
def show(
    session: Session,
    *,
    workflow: str,
    checkpoint: str | None,
    scope: str,
    sequence: int | None,
    keys: tuple[str, ...],
    raw: bool,
) -> None:
    """Show one checkpoint of WORKFLOW, the head unless told otherwise: its state, metadata, steps and records."""
    if checkpoint is not None and sequence is not None:
        raise click.UsageError("CHECKPOINT and --sequence exclude each other")
    if raw and (len(keys) != 1 or session.as_json):
        raise click.UsageError("--raw goes with exactly one --entry, and without --json")
    output = session.output()
    with session.store() as store:
        if sequence is not None:
            found = store.load_stored(workflow, sequence=sequence, scope=scope, entries=keys or None)
        else:
            found = load_checkpoint(store, workflow, checkpoint or "head", scope=scope, entries=keys)
    for key in keys:
        if key not in found.entries:
            raise CommandError(
                ExitCode.NEGATIVE,
                f"checkpoint {found.header.checkpoint_id!r} of workflow {workflow!r} has no entry {key!r}",
                "`milepost show` without --entry lists them",
            )
    if raw:
        _write_raw(output, found.entries[keys[0]])
    elif session.as_json:
        output.document(stored_document(found))
    elif keys:
        _write_entries(output, found, title=False)
    else:
        _write_checkpoint(output, found, session.now())


def _write_raw(output: Output, value: StoredValue) -> None:
    if output.is_terminal:
        text = value.content.decode("utf-8", "replace")
        if "\ufffd" in text or printable(text, keep="\n\t") != text:
            raise CommandError(
                ExitCode.USAGE,
                f"the value ({size(len(value.content))}) has bytes that a terminal would obey",
                "send it to a file or a program: milepost show … --raw > FILE",
            )
    output.data(value.content)


def _write_checkpoint(output: Output, found: StoredCheckpoint, now: datetime) -> None:
    header = found.header
    fields: list[tuple[str, str]] = [
        ("workflow", header.workflow_id),
        ("namespace", header.namespace),
        ("scope", header.scope or "(root)"),
        (
            "checkpoint",
            f"{header.checkpoint_id} (head)"
            if header.checkpoint_id == header.head_checkpoint_id
            else f"{header.checkpoint_id} (the head is {header.head_checkpoint_id})",
        ),
        ("sequence", str(header.sequence)),
        ("parent", f"{header.parent_id or '(none)'}{' (pruned)' if header.parent_pruned else ''}"),
        ("step", header.current_step or "(none)"),
        ("status", header.status.value),
        ("created", moment(header.create_time, now)),
        ("size", size(header.size_bytes)),
        ("digest", header.digest.hex()),
    ]
    optional = [
        ("definition", header.definition),
        ("fingerprint", header.fingerprint),
        ("run", header.run_id),
        ("needs history", ", ".join(header.history_entries)),
    ]
    for name, text in fields + [field for field in optional if field[1]]:
        output.line((f"{name:<14}", "bold"), printable(text))
    if found.metadata:
        output.line()
        output.line(("metadata", "bold"))
        _write_lines(output, json_value(found.metadata), 2)
    if header.completed_steps:
        output.line()
        output.line(("completed steps", "bold"), f" ({header.completed_step_count})")
        for number, step in enumerate(header.completed_steps, start=1):
            output.line(f"{number:>6}  {printable(step)}")
    _write_entries(output, found, title=True)
    if found.records:
        output.line()
        output.line(("records", "bold"), f" ({header.record_count})")
        for record in found.records:
            _write_record(output, record)


def _write_entries(output: Output, found: StoredCheckpoint, *, title: bool) -> None:
    if title:
        output.line()
        output.line(("entries", "bold"), f" ({found.header.entry_count})")
    for key, value in found.entries.items():
        output.line("  ", (printable(key), "cyan"), f"  {_kind(value)}")
        _write_value(output, value, 4)


def _write_record(output: Output, record: StoredRecord) -> None:
    what = [f"task {record.task_id!r}", f"index {record.index}"]
    what += [f"{name} {text!r}" for name, text in (("name", record.name), ("path", record.path)) if text]
    output.line("  ", (printable(", ".join(what)), "cyan"), f"  {_kind(record.value)}")
    _write_value(output, record.value, 4)


def _kind(value: StoredValue) -> str:
    codec = "json" if value.is_json else printable(value.codec) or "no codec"
    return f"{codec}, {size(len(value.content))}"


def _write_value(output: Output, value: StoredValue, spaces: int) -> None:
    _write_lines(output, json_value(value.text) if value.is_json else hexadecimal(value.content), spaces)


def _write_lines(output: Output, text: str, spaces: int) -> None:
    for line in indented_lines(text, spaces):
        output.line(line)


@click.command()
@click.argument("workflow", type=TEXT)
@click.argument("a", type=TEXT, default="head~1")
@click.argument("b", type=TEXT, default="head")
@scope_option
@click.option("--other-workflow", type=TEXT, metavar="WORKFLOW", help="The workflow that B is of; default: the same.")
@setting_options(hidden=True)
@pass_session
def diff(session: Session, *, workflow: str, a: str, b: str, scope: str, other_workflow: str | None) -> None:
    """Compare the checkpoints A and B of WORKFLOW; without them, the head and the one before it.

    State, status, step, completed steps and metadata are compared; ids, times and positions are not.
    Exits with 0 where they are equal and with 1 where they differ.
    """
    output = session.output()
    with session.store() as store:
        before = load_checkpoint(store, workflow, a, scope=scope)
        after = load_checkpoint(store, workflow if other_workflow is None else other_workflow, b, scope=scope)
    found = compare(before, after)
    if session.as_json:
        output.document(diff_document(found))
    elif not found.is_equal:
        _write_diff(output, found)
    if not found.is_equal:
        output.flush()
        click.get_current_context().exit(ExitCode.NEGATIVE)


def _write_diff(output: Output, found: CheckpointDiff) -> None:
    for mark, style, stored in (("---", "red", found.before), ("+++", "green", found.after)):
        header = stored.header
        where = f"{header.workflow_id} {header.sequence} {header.checkpoint_id}"
        output.line((f"{mark} {printable(where)}", style))
    for name, pair in (("step", found.current_step), ("status", found.status)):
        if pair is not None:
            before, after = (printable(text) or "(none)" for text in pair)
            output.line(("~ ", "yellow"), (name, "bold"), f"  {before} → {after}")
    if found.steps is not None:
        output.line(("completed steps", "bold"))
        for step in found.steps.removed:
            output.line((f"  - {printable(step)}", "red"))
        for step in found.steps.added:
            output.line((f"  + {printable(step)}", "green"))
    if found.metadata:
        output.line(("metadata", "bold"))
        for change in found.metadata:
            _write_change(output, change)
    if found.entries:
        output.line(("entries", "bold"))
        for entry in found.entries:
            _write_entry_change(output, entry)


def _write_entry_change(output: Output, entry: EntryChange) -> None:
    mark, style = KINDS[entry.kind]
    line: list[str | tuple[str, str]] = [(f"  {mark} ", style), (printable(entry.entry_key), "cyan")]
    if entry.before is not None and entry.after is not None:
        if not entry.places:
            line.append(f"  {_brief(entry.before)} → {_brief(entry.after)}")
            line.append(f"  {_first_difference(entry.before.content, entry.after.content)}")
        elif entry.places[0].path == "$":
            line.append(f"  {_brief(entry.before)} → {_brief(entry.after)}")
    else:
        value = entry.after if entry.before is None else entry.before
        line.append(f"  {'' if value is None else _brief(value)}")
    output.line(*line)
    for place in entry.places:
        if place.path != "$":
            _write_change(output, place, spaces=6)


def _write_change(output: Output, change: Change, spaces: int = 2) -> None:
    mark, style = KINDS[change.kind]
    before, after = (clipped(printable(json_text.dumps(side))) for side in (change.before, change.after))
    shown = {"added": after, "removed": before}.get(change.kind, f"{before} → {after}")
    output.line((f"{' ' * spaces}{mark} {printable(change.path)}", style), f"  {shown}")


def _brief(value: StoredValue) -> str:
    return clipped(printable(json_text.compact(value.text))) if value.is_json else f"({_kind(value)})"


def _first_difference(before: bytes, after: bytes) -> str:
    for position, (one, other) in enumerate(zip(before, after, strict=False)):
        if one != other:
            return f"from byte {position} on"
    return f"from byte {min(len(before), len(after))} on" if before != after else "in its codec"


@click.command()
@click.argument("workflow", type=TEXT, required=False)
@setting_options(hidden=True)
@pass_session
def stats(session: Session, *, workflow: str | None) -> None:
    """Count checkpoints and bytes of WORKFLOW, or of all workflows of the namespace."""
    output = session.output()
    with session.store() as store:
        if workflow is not None:
            info = store.workflow(workflow)
            if session.as_json:
                output.document(workflow_document(info))
            else:
                _write_workflow(output, info, session.now())
            return
        totals = _totals(store)
    if session.as_json:
        output.document(totals)
        return
    rows = [
        (status_text(name), str(of["workflow_count"]), str(of["checkpoint_count"]), size(of["stored_bytes"]))
        for name, of in totals["by_status"].items()
    ]
    rows.append(
        (
            Text("all", style="bold"),
            str(totals["workflow_count"]),
            str(totals["checkpoint_count"]),
            size(totals["stored_bytes"]),
        )
    )
    numbers = [Column(name, is_number=True) for name in ("workflows", "checkpoints", "size")]
    output.table([Column("status"), *numbers], rows)


@click.command()
@setting_options(hidden=True)
@pass_session
def health(session: Session) -> None:
    """Tell whether the server serves; for probes and scripts. Exits with 3 where it does not or cannot be reached."""
    output = session.output()
    with session.store() as store:
        store.ping()
    if session.as_json:
        output.document({"target": session.target, "serving": True})
    else:
        output.line(f"the server at {printable(session.target)} serves")


def _totals(store: Store) -> dict[str, Any]:
    by_status: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_COUNTS, 0))
    total = dict.fromkeys(_COUNTS, 0)
    for info in store.workflows(page_size=PAGE_SIZE):
        # A workflow whose root scope is empty has no status of its own.
        for counts in (total, by_status["none" if info.status is None else info.status.value]):
            counts["workflow_count"] += 1
            counts["checkpoint_count"] += info.checkpoint_count
            counts["stored_bytes"] += info.stored_bytes
    order = [*(status.value for status in Status), "none"]
    return {
        "namespace": store.namespace,
        **total,
        "by_status": {name: by_status[name] for name in order if name in by_status},
    }


def _write_workflow(output: Output, info: WorkflowInfo, now: datetime) -> None:
    labels = ", ".join(f"{key}={value}" for key, value in sorted(info.labels.items()))
    fields = [
        ("workflow", info.workflow_id),
        ("namespace", info.namespace),
        ("status", "(the root scope is empty)" if info.status is None else info.status.value),
        ("step", info.current_step or "(none)"),
        ("definition", info.definition),
        ("fingerprint", info.fingerprint),
        ("labels", labels),
        ("forked from", info.forked_from_workflow_id),
        ("head", f"{info.head_checkpoint_id} (sequence {info.head_sequence})" if info.head_checkpoint_id else ""),
        ("checkpoints", f"{info.checkpoint_count} in {count(info.scope_count, 'scope')}"),
        ("last sequence", str(info.last_sequence)),
        ("size", size(info.stored_bytes)),
        ("lease", "" if info.lease is None else lease_text(info.lease)),
        ("signals", f"{info.pending_signal_count} pending" if info.pending_signal_count else ""),
        ("created", moment(info.create_time, now)),
        ("updated", moment(info.update_time, now)),
        ("revision", str(info.revision)),
    ]
    for name, text in fields:
        if text:
            output.line((f"{name:<14}", "bold"), printable(text))
