"""The commands that reach a running workflow: signal, cancel; and what waits for it: signals."""

from __future__ import annotations

import click

from milepost.cli import json_text
from milepost.cli.documents import sent_document, signal_document
from milepost.cli.reading import PAGE_SIZE
from milepost.cli.rendering import clipped, moment, printable
from milepost.cli.session import TEXT, Session, pass_session, setting_options
from milepost.cli.store import Store, StoredValue
from milepost.cli.writing import yes_option
from milepost.types import CANCEL_SIGNAL

id_option = click.option(
    "--id", "signal_id", type=TEXT, help="Its id; makes the same command repeatable. Default: a new one."
)


def _read_value(ctx: click.Context, param: click.Parameter, text: str | None) -> StoredValue | None:
    if text is None:
        return None
    try:
        json_text.parse(text)
    except ValueError as error:
        raise click.BadParameter(printable(f"no JSON ({error})"), ctx, param) from None
    return StoredValue(json_text.compact(text).encode("utf-8"))


@click.command()
@click.argument("workflow", type=TEXT)
@click.argument("name", type=TEXT)
@click.option("--value", type=TEXT, callback=_read_value, metavar="JSON", help="Its content; default: none.")
@id_option
@setting_options(hidden=True)
@pass_session
def signal(session: Session, *, workflow: str, name: str, value: StoredValue | None, signal_id: str | None) -> None:
    """Send the signal NAME to WORKFLOW, which finds it when it looks. It is kept until then."""
    with session.store() as store:
        _send(session, store, workflow, name, value=value, signal_id=signal_id)


@click.command()
@click.argument("workflow", type=TEXT)
@id_option
@yes_option
@setting_options(hidden=True)
@pass_session
def cancel(session: Session, *, workflow: str, signal_id: str | None, yes: bool) -> None:
    """Ask WORKFLOW to stop: send it the signal that its runner obeys."""
    with session.store() as store:
        info = store.workflow(workflow)
        if not yes:
            status = "(none)" if info.status is None else info.status.value
            session.confirm(
                f"Cancel workflow {printable(workflow)!r}, which is {status}?", otherwise="nothing was sent"
            )
        _send(session, store, workflow, CANCEL_SIGNAL, value=None, signal_id=signal_id)


def _send(
    session: Session, store: Store, workflow: str, name: str, *, value: StoredValue | None, signal_id: str | None
) -> None:
    output = session.output()
    sent = store.send_signal(workflow, name, value, signal_id=signal_id)
    if session.as_json:
        output.document(sent_document(workflow, name, sent))
        return
    again = ""
    if sent.replayed:
        again = " (it was taken in already)" if sent.consumed else " (it was there already)"
    output.line(f"sent {printable(name)} to {printable(workflow)}: signal {printable(sent.signal_id)}{again}")


@click.command()
@click.argument("workflow", type=TEXT)
@click.option("--name", type=TEXT, help="Only signals of this name.")
@setting_options(hidden=True)
@pass_session
def signals(session: Session, *, workflow: str, name: str | None) -> None:
    """List the signals that wait for WORKFLOW, in the order they came."""
    output = session.output()
    found = 0
    with session.store() as store:
        for one in store.signals(workflow, name=name, page_size=PAGE_SIZE):
            found += 1
            if session.as_json:
                output.document(signal_document(one))
                continue
            content = ""
            if isinstance(one.value, StoredValue):
                text = json_text.compact(one.value.text) if one.value.is_json else f"({one.value.codec})"
                content = f"  {clipped(printable(text))}"
            output.line(
                (printable(one.name), "cyan"),
                f"  {printable(one.signal_id)}  {moment(one.create_time, session.now())}{content}",
            )
    if not found:
        session.note("no signals wait")
