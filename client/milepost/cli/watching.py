"""The command that follows what changes."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading

import click

from milepost.cli.documents import event_document
from milepost.cli.failures import ExitCode
from milepost.cli.rendering import STATUS_STYLES, Output, printable
from milepost.cli.session import TEXT, Session, pass_session, setting_options
from milepost.types import WatchEvent, WatchEventKind


@click.command()
@click.argument("workflow", type=TEXT, default="")
@click.option("--definition", type=TEXT, help="Only workflows of this definition.")
@setting_options(hidden=True)
@pass_session
def watch(session: Session, *, workflow: str, definition: str | None) -> None:
    """Follow WORKFLOW, or all of the namespace: one line for each change, until Ctrl-C, which exits with 0.

    The first line tells where the watch begins. It goes on when the server restarts; what a watch of all workflows
    missed meanwhile is not told, and a new first line says so.
    """
    output = session.output()
    _end_with_the_reader()
    with session.store() as store, store.watch(workflow, definition=definition) as events:
        try:
            for event in events:
                if session.as_json:
                    output.document(event_document(event))
                else:
                    _write(output, event, f"{session.now():%H:%M:%S}")
                # Somebody waits for each line.
                output.flush()
        except KeyboardInterrupt:
            # The only way to end it, so it is no failure.
            return


def _end_with_the_reader() -> None:
    """End this process when nobody reads the pipe any more that it writes to, which no event may tell for long."""
    try:
        number = sys.stdout.fileno()
    except io.UnsupportedOperation:
        return
    if not stat.S_ISFIFO(os.fstat(number).st_mode):
        return

    def wait() -> None:
        poller = select.poll()
        poller.register(number, 0)
        poller.poll()
        # There is nothing to clean up, and nobody to tell.
        os._exit(ExitCode.READER_GONE)

    threading.Thread(target=wait, daemon=True, name="milepost-watch-reader").start()


def _write(output: Output, event: WatchEvent, time: str) -> None:
    name = printable(event.workflow_id) if event.workflow_id else "(all)"
    details = [printable(text) for text in _details(event) if text]
    parts: list[str | tuple[str, str]] = []
    if event.status is not None:
        parts += ["  ", (event.status.value, STATUS_STYLES.get(event.status.value, ""))]
    output.line(
        (time, "dim"),
        f"  {name}  ",
        (event.kind.value.replace("_", " "), "bold"),
        "".join(f"  {text}" for text in details),
        *parts,
        "  (lease released)" if event.lease_released else "",
    )


def _details(event: WatchEvent) -> list[str]:
    """Return what an event says beside its kind and status, most telling first."""
    checkpoint = []
    if event.checkpoint_id:
        scope = f"{event.scope}/" if event.scope else ""
        checkpoint = [f"{scope}{event.checkpoint_id}", f"sequence {event.sequence}" if event.sequence else ""]
    match event.kind:
        case WatchEventKind.STARTED if event.workflow_id and not event.incarnation:
            return ["does not exist yet"]
        case WatchEventKind.SIGNAL_SENT:
            return [event.signal_name, event.signal_id]
        case WatchEventKind.LEASE_GRANTED:
            return [event.holder]
        case _:
            return [*checkpoint, event.current_step]
