"""The command by which a person decides what a run cannot: how a step goes on whose outcome nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

import click

from milepost.cli import json_text
from milepost.cli.failures import ExitCode
from milepost.cli.imports import find_codec, find_workflow
from milepost.cli.rendering import printable
from milepost.cli.session import TEXT, CommandError, Session, pass_session, setting_options
from milepost.cli.writing import yes_option
from milepost.codecs import JSON, Codec, JsonCodec
from milepost.errors import MilepostError
from milepost.runner.engine import ENDED
from milepost.runner.resolving import Resolution
from milepost.runner.settings import ChangePolicy

_QUESTIONS: Final[Mapping[str, str]] = {
    "retry": "Let {what} run again?",
    "done": "Count {what} as finished, {left}?",
    "fail": "Count {what} as failed, so that no run goes on until it is resolved otherwise?",
}


@click.command()
@click.argument("workflow", type=TEXT)
@click.argument("step", type=TEXT)
@click.argument("resolution", type=click.Choice(get_args(Resolution)))
@click.option(
    "--workflow",
    "definition",
    type=TEXT,
    required=True,
    metavar="MODULE:WORKFLOW",
    help="The definition, as for `milepost check`. The module is imported: its code runs, its steps do not.",
)
@click.option(
    "--value",
    type=TEXT,
    metavar="JSON",
    help="With done: a JSON object, the entries of the state that the step changed; with --item, the item's result. "
    "Default: none.",
)
@click.option("--item", "item_key", type=TEXT, metavar="KEY", help="Of a step that runs for each: only this item.")
@click.option(
    "--codec",
    type=TEXT,
    metavar="MODULE:CODEC",
    help="The codec of the program's client, where it has one of its own; imported, too.",
)
@click.option(
    "--on-change",
    type=click.Choice(get_args(ChangePolicy)),
    default="fail",
    help="What bind(on_change=…) is in the build; default: fail.",
)
@click.option(
    "--scope",
    type=TEXT,
    default="",
    help="Of a nested run, in which the step is; --workflow is the definition of the child then.",
)
@yes_option
@setting_options(hidden=True)
@pass_session
def resolve(
    session: Session,
    *,
    workflow: str,
    step: str,
    resolution: str,
    definition: str,
    value: str | None,
    item_key: str | None,
    codec: str | None,
    on_change: str,
    scope: str,
    yes: bool,
) -> None:
    """Decide how STEP of WORKFLOW goes on, where a run refuses to.

    With retry it may run again. With done it is finished, and --value says what it changed. With fail the workflow
    stays failed until the step is resolved otherwise.

    This is for a step that may run once and whose outcome nobody knows, and for one that was given up after too many
    crashes. Look first at what really happened; `milepost show WORKFLOW` has the failure. Nothing is run here: the next
    run goes on from what is decided.

    The module of --workflow is imported, from the current directory before any other place, and so is that of --codec,
    which runs their code: use this with code that you trust.
    """
    if value is not None and resolution != "done":
        raise click.UsageError("--value goes with done alone")
    found = find_workflow(session, definition)
    if step not in found.steps:
        raise CommandError(
            ExitCode.USAGE,
            f"workflow {found.name!r} has no step {step!r}",
            f"its steps are {', '.join(map(repr, found.steps))}",
        )
    used = JSON if codec is None else find_codec(session, codec)
    left: Any = None
    if value is not None:
        left = _read_entries(value, used) if item_key is None else _read_value(value, used)
    session.settings.codec = used
    output = session.output()
    with session.store() as store:
        info = store.workflow(workflow)
        if info.status in ENDED:
            raise CommandError(ExitCode.CONFLICT, f"workflow {workflow!r} is {info.status.value}: it has ended")
        if not yes:
            what = _what(workflow, step, item_key, scope) + ("" if info.status is None else f" ({info.status.value})")
            question = _QUESTIONS[resolution].format(what=what, left=_named(left, item_key))
            session.confirm(question, otherwise="nothing was changed")
        # The commands' own store is a client with one more way to read.
        runner = found.bind(cast("Any", store), on_change=cast("ChangePolicy", on_change))
        try:
            runner.resolve(workflow, step, cast("Resolution", resolution), left, item_key=item_key, scope=scope)
        except MilepostError:
            raise
        except ValueError as error:
            raise CommandError(ExitCode.CONFLICT, str(error)) from error
        head = store.load_stored(workflow, scope=scope, with_state=False, with_records=False).header
    if session.as_json:
        output.document(
            {
                "workflow_id": workflow,
                "scope": scope,
                "step": step,
                "item_key": item_key,
                "resolution": resolution,
                "status": head.status.value,
                "checkpoint_id": head.checkpoint_id,
                "sequence": head.sequence,
            }
        )
        return
    output.line(
        f"resolved {_what(workflow, step, item_key, scope)} as {resolution}: it is {head.status.value}, "
        f"checkpoint {printable(head.checkpoint_id)}"
    )


def _what(workflow_id: str, step: str, item_key: str | None, scope: str) -> str:
    item = "" if item_key is None else f"item {printable(item_key)!r} of "
    nested = f", scope {printable(scope)!r}," if scope else ""
    return f"{item}step {printable(step)!r} of workflow {printable(workflow_id)!r}{nested}"


def _named(left: Any, item_key: str | None) -> str:
    if left is None:
        return "with the state as it is" if item_key is None else "with null as its result"
    if item_key is not None:
        return "with this result"
    names = [printable(repr(name)) for name in left]
    named = ", ".join([*names[:10], f"{len(names) - 10} more"] if len(names) > 10 else names)
    return f"with {named or 'no entry'} changed"


def _read_entries(text: str, codec: Codec) -> dict[str, Any]:
    try:
        return {key: _reader(codec).decode(one, key) for key, one in json_text.split_object(text).items()}
    except ValueError as error:
        raise click.BadParameter(printable(f"no JSON object ({error})"), param_hint="--value") from None


def _read_value(text: str, codec: Codec) -> Any:
    try:
        json_text.parse(text)
    except ValueError as error:
        raise click.BadParameter(printable(f"no JSON ({error})"), param_hint="--value") from None
    return _reader(codec).decode(text)


def _reader(codec: Codec) -> Codec:
    # What a person writes is JSON, whatever the program stores; its registered types can be written as they are shown.
    return codec if isinstance(codec, JsonCodec) else JSON
