"""The `milepost` command: look at workflows and their checkpoints, compare them, save, fork and delete.

Talks to a server through `milepost.Client` alone. Needs the extra `cli`; nothing else of the package imports this.

    session      options common to all commands, and what a command gets: a store, an output, a clock
    app          the group of commands, and the one place where failures become exit codes
    reading      workflows, history, show, diff, stats
    writing      save, fork, prune, delete
    checking     check: what a build could not go on with
    resolving    resolve: a person decides about a step
    imports      the user's definitions and codecs, by MODULE:NAME
    store        the client, handing out values as they are stored instead of decoded
    references   `head`, `head~1`, a sequence, an id or the beginning of one -> a checkpoint
    diff         two checkpoints -> what differs
    documents    the shapes of --json
    rendering    text for people: tables, ages, sizes, nothing that could drive a terminal
    json_text    JSON text as text: indented, compact, taken apart, without touching a number
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

__all__ = ["main"]

EXTRA_PACKAGES = frozenset({"click", "rich"})


def main() -> None:
    """Run the command line and exit with its code."""
    # gRPC's own log lines would stand between the lines of a command that explains its failure itself.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from milepost.cli.app import cli  # noqa: PLC0415 - its packages are an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA_PACKAGES:
            raise
        print(f'error: the command line needs {error.name}: pip install "milepost[cli]"', file=sys.stderr)
        sys.exit(2)
    # The interpreter has none where one was closed by whoever started it.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(prog_name="milepost")
    except OSError as error:
        # Commands tell their failures themselves: this is the help or the version, on a disk that is full.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(5)


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
