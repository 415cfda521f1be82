"""What commands import from the user's code: definitions and codecs, by `MODULE:NAME`. Importing runs that code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, TypeVar

from milepost.cli.failures import ExitCode
from milepost.cli.rendering import printable
from milepost.cli.session import CommandError, Session
from milepost.codecs import Codec
from milepost.runner.workflow import Workflow

T = TypeVar("T")


def find_workflow(session: Session, text: str) -> Workflow[Any]:
    """Import the definition that `module:name` names, and say so.

    Raises:
        CommandError: There is no such module or name, importing it fails, or the definition has a fault.
    """
    found = _find(session, text, "MODULE:WORKFLOW", Workflow)
    try:
        _ = found.definition
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from error
    return found


def find_codec(session: Session, text: str) -> Codec:
    """Import the codec that `module:name` names, and say so.

    Raises:
        CommandError: There is no such module or name, or importing it fails.
    """
    found: Codec = _find(session, text, "MODULE:CODEC", Codec)  # type: ignore[type-abstract] # of its instances
    return found


def _find(session: Session, text: str, form: str, kind: type[T]) -> T:
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise CommandError(ExitCode.USAGE, f"{text!r} is not {form}", "for example: shop.orders:order")
    here = str(Path.cwd())
    # First, as it is for `python -m`: the build at hand, not one that is installed.
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    session.note(f"importing {printable(module_name)}, which runs its code")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise CommandError(ExitCode.USAGE, f"there is no module {error.name!r}") from error
    except (Exception, SystemExit) as error:
        raise CommandError(
            ExitCode.USAGE, f"{module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise CommandError(ExitCode.USAGE, f"{module_name!r} has no {name!r}: {error}") from error
    if not isinstance(found, kind):
        raise CommandError(ExitCode.USAGE, f"{text!r} is {type(found).__name__}, not a {kind.__name__}")
    return found
