"""The commands about leases: who holds one, and taking it from who is gone."""

from __future__ import annotations

import click

from milepost.cli.documents import lease_document
from milepost.cli.failures import ExitCode
from milepost.cli.rendering import lease_text, moment, printable
from milepost.cli.session import TEXT, CommandError, CommandGroup, Session, pass_session, setting_options
from milepost.cli.store import Store
from milepost.cli.writing import yes_option
from milepost.types import LeaseInfo


@click.group(cls=CommandGroup)
@setting_options(hidden=True)
def lease() -> None:
    """Look at the lease of a workflow, or take it from its holder."""


@lease.command()
@click.argument("workflow", type=TEXT)
@setting_options(hidden=True)
@pass_session
def show(session: Session, *, workflow: str) -> None:
    """Show who holds the lease of WORKFLOW and how long it still runs. Exits with 1 where there is none."""
    output = session.output()
    with session.store() as store:
        found = _find(store, workflow)
    if session.as_json:
        output.document(lease_document(found))
        return
    fields = [
        ("workflow", workflow),
        ("held by", lease_text(found)),
        ("granted", moment(found.grant_time, session.now())),
    ]
    for name, text in fields:
        output.line((f"{name:<14}", "bold"), printable(text))


@lease.command(name="break")
@click.argument("workflow", type=TEXT)
@yes_option
@setting_options(hidden=True)
@pass_session
def break_lease(session: Session, *, workflow: str, yes: bool) -> None:
    """Take the lease of WORKFLOW from its holder, whose saves are refused from then on."""
    output = session.output()
    with session.store() as store:
        found = _find(store, workflow)
        if not yes:
            session.confirm(
                f"Take the lease of workflow {printable(workflow)!r} from {printable(lease_text(found))}?",
                otherwise="the lease was left alone",
            )
        broken = store.break_lease(workflow)
    if session.as_json:
        output.document({"workflow_id": workflow, "holder": found.holder, "broken": broken})
        return
    gone = "" if broken else " (it was gone already)"
    output.line(f"broke the lease of {printable(workflow)}, held by {printable(found.holder or '(no name)')}{gone}")


def _find(store: Store, workflow_id: str) -> LeaseInfo:
    found = store.get_lease(workflow_id)
    if found is None:
        raise CommandError(ExitCode.NEGATIVE, f"workflow {printable(workflow_id)!r} is not leased")
    return found
