"""What every command shares: where to connect, how to write, and the options that say so.

The options may stand before the command or after it; what stands last wins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import click
from typing_extensions import override

from milepost import TLS
from milepost._config import TARGET_DEFAULT
from milepost.cli.failures import ExitCode, Failure, unreachable
from milepost.cli.rendering import Output
from milepost.cli.store import Store, StoreClient, StoredCodec
from milepost.codecs import Codec
from milepost.errors import UnavailableError

TIMEOUT_S: Final = 30.0
TIMEOUT_MAX_S: Final = 86_400.0
SUMMARY_CHARACTERS_MAX: Final = 300

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator: TypeAlias = Callable[[Function], Function]


class CommandGroup(click.Group):
    """A group whose help has the first sentence of each command whole, over several lines where it needs them."""

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of the commands."""
        rows = [
            (name, self.commands[name].get_short_help_str(SUMMARY_CHARACTERS_MAX)) for name in sorted(self.commands)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class CommandError(Exception):
    """A command ends with this failure."""

    def __init__(self, exit_code: ExitCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.failure = Failure(exit_code, message, hint)


def text(value: str) -> str:
    """Take text that can be sent: the stray bytes of a file name, for example, cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise click.BadParameter("it is not UTF-8") from None
    return value


TEXT: Final = text


@dataclass(slots=True, kw_only=True)
class Settings:
    """What the options say; None is the client's own default, which looks at the environment."""

    target: str | None = None
    namespace: str | None = None
    timeout_s: float = TIMEOUT_S
    as_json: bool = False
    no_color: bool = False
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool = False
    traceback: bool = False
    codec: Codec | None = None
    """How values are read and written; None: as they are stored."""


def connect(settings: Settings) -> Store:
    """Return a client whose server answers.

    Raises:
        CommandError: Nothing answers, or the settings contradict each other.
    """
    try:
        uses_tls = settings.tls or settings.ca_file or settings.cert_file or settings.key_file
        tls = TLS(ca_file=settings.ca_file, cert_file=settings.cert_file, key_file=settings.key_file)
        client = StoreClient(
            settings.target,
            namespace=settings.namespace,
            tls=tls if uses_tls else None,
            timeout_s=settings.timeout_s,
            codec=settings.codec or StoredCodec(),
            insecure=settings.insecure,
        )
    except ValueError as error:
        hint = "on the command line these are --tls or --ca-file, and --insecure" if "clear text" in str(error) else ""
        raise CommandError(ExitCode.USAGE, str(error), hint) from error
    settings.target = client.target
    try:
        client.require_reachable()
    except UnavailableError as error:
        client.close()
        raise _command_error(unreachable(error, client.target)) from error
    except BaseException:
        client.close()
        raise
    return client


def _command_error(failure: Failure) -> CommandError:
    return CommandError(failure.exit_code, failure.message, failure.hint)


def _now() -> datetime:
    return datetime.now(UTC)


def _can_ask() -> bool:
    return sys.stdin.isatty()


@dataclass(slots=True, kw_only=True)
class Session:
    """One run of the command line. Tests make it with a store, a clock and an answer of their own."""

    connect: Callable[[Settings], Store] = connect
    now: Callable[[], datetime] = _now
    can_ask: Callable[[], bool] = _can_ask
    """Somebody is there to answer a question."""
    settings: Settings = field(default_factory=Settings)

    @property
    def as_json(self) -> bool:
        """Documents are wanted, not text."""
        return self.settings.as_json

    @property
    def target(self) -> str:
        """The server, for messages."""
        return self.settings.target or TARGET_DEFAULT

    def output(self) -> Output:
        """Return where to write."""
        return Output(color=not self.settings.no_color)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Connect for as long as the block lasts."""
        store = self.connect(self.settings)
        try:
            yield store
        finally:
            store.close()

    def note(self, text: str) -> None:
        """Say something that is not the answer; a program does not need it."""
        if not self.as_json:
            click.echo(text, err=True)

    def confirm(self, question: str, *, otherwise: str = "nothing was deleted") -> None:
        """Return if the answer is yes.

        Args:
            question: What is about to be done.
            otherwise: What is said to have become of it if the answer is no.

        Raises:
            CommandError: It is no, or nobody is there to ask.
        """
        if not self.can_ask():
            raise CommandError(
                ExitCode.USAGE,
                f"not asked, since there is no terminal: {question}",
                f"{otherwise}; say --yes to go ahead without a question",
            )
        try:
            is_confirmed = click.confirm(question, err=True)
        except click.Abort:
            # Ctrl-C and Ctrl-D alike, which leave the cursor behind the question.
            click.echo(err=True)
            raise CommandError(ExitCode.INTERRUPTED, f"not confirmed: {otherwise}") from None
        if not is_confirmed:
            raise CommandError(ExitCode.NEGATIVE, f"not confirmed: {otherwise}")


pass_session = click.make_pass_decorator(Session, ensure=True)


def _setting(*names: str, hidden: bool, help: str, **options: Any) -> Decorator[Any]:  # noqa: A002 - click's word
    """Return an option that fills the setting of its last name."""

    def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        # Not given here, it keeps what was said before the command.
        if param.name and value is not None and value is not False:
            setattr(ctx.ensure_object(Session).settings, param.name, value)

    return click.option(*names, callback=remember, expose_value=False, hidden=hidden, help=help, **options)


def setting_options(*, hidden: bool) -> Decorator[Any]:
    """Add the options common to all commands.

    Args:
        hidden: Leave all but --json out of the command's help: the group's has them.
    """
    existing = click.Path(exists=True, dir_okay=False, path_type=Path)
    options = [
        _setting(
            "-t",
            "--target",
            type=TEXT,
            metavar="ADDRESS",
            hidden=hidden,
            help=f"The server: host:port or unix:PATH. Default: MILEPOST_TARGET, else {TARGET_DEFAULT}.",
        ),
        _setting(
            "-n",
            "--namespace",
            type=TEXT,
            metavar="NAME",
            hidden=hidden,
            help='Tenant boundary. Default: MILEPOST_NAMESPACE, else "default".',
        ),
        _setting(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(0, TIMEOUT_MAX_S, min_open=True),
            metavar="SECONDS",
            hidden=hidden,
            help=f"For each call, its retries included. Default: {TIMEOUT_S:g}.",
        ),
        _setting(
            "--json",
            "as_json",
            is_flag=True,
            hidden=False,
            help="Write JSON: one document, or one on each line for workflows, history, signals and watch.",
        ),
        _setting("--no-color", is_flag=True, hidden=hidden, help="No colours, as with NO_COLOR in the environment."),
        _setting("--tls", is_flag=True, hidden=hidden, help="Encrypt; trust the well-known authorities."),
        _setting("--ca-file", type=existing, hidden=hidden, help="Encrypt; trust the authorities of this PEM file."),
        _setting("--cert-file", type=existing, hidden=hidden, help="The client's own certificate, for mutual TLS."),
        _setting("--key-file", type=existing, hidden=hidden, help="Its private key."),
        _setting(
            "--insecure",
            is_flag=True,
            hidden=hidden,
            help="Send a token without --tls to another machine, because something else encrypts the connection.",
        ),
        _setting("--traceback", is_flag=True, hidden=hidden, help="Show where a defect of this tool comes from."),
    ]

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
