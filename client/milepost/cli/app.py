"""The `milepost` group: its commands, and the one place where failures become a line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import metadata
from typing import Any, NoReturn

import click
from typing_extensions import override

from milepost.cli import checking, leases, reading, resolving, signals, watching, writing
from milepost.cli.failures import EXIT_CODES_HELP, ExitCode, Failure, explain
from milepost.cli.rendering import printable
from milepost.cli.session import CommandError, CommandGroup, Session, setting_options
from milepost.errors import MilepostError

EPILOG = f"""\b
A CHECKPOINT is named by
  head, head~1    the newest of its scope, the one before that
  7               its sequence
  0199c2f4-5d3a   its id, or a beginning that fits no other
  id:7            its id, where that looks like one of the above

{EXIT_CODES_HELP}
The token, where the server wants one, is read from the file that
MILEPOST_TOKEN_FILE names."""


class _Group(CommandGroup):
    """A group whose commands never end in a traceback."""

    @override
    def invoke(self, ctx: click.Context) -> Any:
        session = ctx.ensure_object(Session)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (click.ClickException, click.exceptions.Exit):
            raise
        except CommandError as error:
            _fail(ctx, error.failure)
        except MilepostError as error:
            _fail(ctx, explain(error, session.target))
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(ExitCode.INTERRUPTED)
        except BrokenPipeError:
            _discard_output()
            ctx.exit(ExitCode.READER_GONE)
        except OSError as error:
            # A certificate that cannot be read is the caller's affair; a full disk behind the output is not.
            _fail(ctx, Failure(ExitCode.USAGE if error.filename else ExitCode.BROKEN, str(error)))
        except Exception as error:  # noqa: BLE001 - the edge of the process
            if session.settings.traceback:
                traceback.print_exc()
            failure = Failure(
                ExitCode.BROKEN,
                f"a defect of this tool: {type(error).__name__}: {error}",
                "" if session.settings.traceback else "--traceback shows where it comes from",
            )
            _fail(ctx, failure)


def _fail(ctx: click.Context, failure: Failure) -> NoReturn:
    click.echo(f"error: {printable(failure.message)}", err=True)
    if failure.hint:
        click.echo(f"hint: {printable(failure.hint)}", err=True)
    ctx.exit(failure.exit_code)


def _discard_output() -> None:
    """Keep the interpreter from writing what is left to a closed pipe when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@click.group(
    cls=_Group,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@setting_options(hidden=False)
@click.version_option(metadata.version("milepost"), message="milepost %(version)s")
def cli() -> None:
    """Look at durable workflows and their checkpoints; compare, save, fork and delete them; watch and signal them."""


for _command in (
    reading.workflows,
    reading.history,
    reading.show,
    reading.diff,
    reading.stats,
    reading.health,
    watching.watch,
    checking.check,
    resolving.resolve,
    writing.save,
    writing.fork,
    writing.prune,
    writing.delete,
    signals.signal,
    signals.cancel,
    signals.signals,
    leases.lease,
):
    cli.add_command(_command)
