"""The command line `milepost-server`: serve, verify, version. The one place that puts the parts together.

`serve` prints `milepost-server listening on ADDR` for each address on stdout once it serves, and logs to stderr.
SIGTERM and SIGINT drain it: what was accepted is committed and answered, then it exits with 0. A second signal ends
it at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from milepost_server import __version__, malloc, telemetry
from milepost_server.config import ENVIRONMENT_PREFIX, ConfigError, ServerConfig, Setting, read_config, settings
from milepost_server.grpc_api.addresses import Address, ListenError, parse_address
from milepost_server.grpc_api.call_codec import PbCallCodec
from milepost_server.grpc_api.server import GrpcFront
from milepost_server.service import CheckpointService
from milepost_server.storage.committer import Committer
from milepost_server.storage.lmdb_engine import LmdbEngine
from milepost_server.storage.lmdb_env import DataDirError
from milepost_server.storage.memory_engine import MemoryEngine
from milepost_server.storage.port import Engine
from milepost_server.storage.process_engine import ProcessEngine
from milepost_server.storage.verify import VerifyReport, verify_store

_logger = logging.getLogger("milepost_server")


EXIT_PROBLEMS: Final = 1
EXIT_CANNOT: Final = 2
"""The command could not be carried out: wrong settings, no such store, an address that is taken."""
PROBLEMS_SHOWN_MAX: Final = 100


class OutputError(Exception):
    """What was to be told on stdout could not be. The message is one line for the operator."""


STORAGE_GRACE_S: Final = 35.0
"""How long the storage may take to end after calls in progress were given up; its process is given 30 s of that."""


def main() -> None:
    """Run the command line."""
    _fill_standard_streams()
    cli(prog_name="milepost-server")


def _fill_standard_streams() -> None:
    """See to it that the first three file numbers are taken.

    Where one was closed by whoever started this, the next file that is opened would get it, the database say, and what
    is written as a last word to stderr would go there.
    """
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        os.set_inheritable(number, True)
        number = os.dup(number)
    os.close(number)
    # The interpreter has none for a number that was closed when it started.
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s", help="Show the version and exit.")
def cli() -> None:
    """One durable authority for workflow checkpoints."""


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add a flag for every setting, with its description and default from `ServerConfig`."""
    for setting in reversed(list(settings())):
        command = _option(setting)(command)
    return command


def _option(setting: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = "--" + setting.name.replace("_", "-")
    help_text = f"{setting.description}  [default: {_shown_default(setting)}]"
    if setting.kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", setting.name, default=None, help=help_text)
    if setting.kind is tuple:
        return click.option(flag, setting.name, multiple=True, metavar="ADDR", help=help_text)
    if setting.choices:
        return click.option(flag, setting.name, type=click.Choice(setting.choices), help=help_text)
    if setting.name == "data_dir":
        return click.option(flag, setting.name, metavar="DIR", help=help_text)
    return click.option(flag, setting.name, type=setting.kind, help=help_text)


def _shown_default(setting: Setting) -> str:
    if isinstance(setting.default, tuple):
        return ", ".join(str(each) for each in setting.default)
    if isinstance(setting.default, bool):
        return "on" if setting.default else "off"
    return str(setting.default)


@cli.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings in TOML. Flags and the environment win over it.",
)
@_setting_options
def serve(config_file: Path | None, **flags: Any) -> None:
    """Serve the store of a data directory.

    Every setting can also be given as MILEPOST_SERVER__NAME in the environment, or in the file named by --config,
    which has the sections [queue] and [limits] besides.
    """
    named = {name: value for name, value in flags.items() if value is not None and value != ()}
    try:
        config = read_config(named, environment=os.environ, file=config_file)
        telemetry.set_up_logging(config.log_level, config.log_format)
        addresses = [parse_address(text) for text in config.listen]
        _check_different(addresses)
        _run(config, addresses)
    except (ConfigError, ListenError, DataDirError, OutputError) as error:
        _fail(str(error))


@cli.command()
@click.argument("data_dir", metavar="DIR", type=click.Path(path_type=Path))
def verify(data_dir: Path) -> None:
    """Check the store in DIR, offline: every checksum, every reference.

    Exits with 0 if it is sound, 1 if it has problems, 2 if it could not be checked.
    """
    try:
        report = verify_store(data_dir)
        _tell(*_report_lines(data_dir, report))
    except (DataDirError, OutputError, OSError) as error:
        _fail(str(error))
    if report.problems:
        sys.exit(EXIT_PROBLEMS)


def _report_lines(data_dir: Path, report: VerifyReport) -> Iterator[str]:
    for name, count in sorted(report.counts.items()):
        yield f"{name}: {count}"
    for problem in report.problems[:PROBLEMS_SHOWN_MAX]:
        yield f"problem: {problem}"
    hidden = len(report.problems) - PROBLEMS_SHOWN_MAX
    if hidden > 0:
        yield f"and {hidden} more problems"
    count = len(report.problems)
    yield f"{data_dir}: {count} problem{'s' if count > 1 else ''}" if count else f"{data_dir}: sound"


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"milepost-server {__version__}")


def _tell(*lines: str) -> None:
    """Write lines to stdout."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        # What could not be written would be tried again at the end of the process, and fail it then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise OutputError(f"stdout cannot be written: {error.strerror}") from error


def _fail(message: str) -> NoReturn:
    click.echo(f"milepost-server: {message}", err=True)
    sys.exit(EXIT_CANNOT)


def _check_different(addresses: list[Address]) -> None:
    for number, address in enumerate(addresses):
        if address in addresses[:number] and (address.port or address.path):
            raise ListenError(f"--listen {address}: it is given twice")


def _run(config: ServerConfig, addresses: list[Address]) -> None:
    with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
        runner.run(_serve(config, addresses))


def _loop_factory(config: ServerConfig) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not config.uvloop:
        return None
    try:
        import uvloop  # noqa: PLC0415  (absent on some platforms, and can be switched off)
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _open_engine(config: ServerConfig) -> Engine:
    if config.engine == "memory":
        _logger.warning("THE MEMORY ENGINE IS NOT DURABLE: every checkpoint is gone when this process ends")
        return MemoryEngine(limits=config.limits)
    open_engine = (
        partial(ProcessEngine.open, log_format=config.log_format) if config.engine_process else LmdbEngine.open
    )
    return open_engine(
        Path(config.data_dir),
        limits=config.limits,
        map_size_bytes=config.map_size_bytes,
        map_size_max_bytes=config.map_size_max_bytes,
        low_disk_bytes=config.low_disk_bytes,
    )


async def _serve(config: ServerConfig, addresses: list[Address]) -> None:
    malloc.share_arena()
    stop = asyncio.Event()
    _install_signal_handlers(stop)
    # The engine comes first: its lock on the data directory keeps a second server away from everything that follows.
    engine = _open_engine(config)
    try:
        await _serve_engine(config, addresses, engine, stop)
    finally:
        engine.close()
    _logger.info("stopped")


async def _serve_engine(config: ServerConfig, addresses: list[Address], engine: Engine, stop: asyncio.Event) -> None:
    tracing = telemetry.make_tracing()
    fronts: list[GrpcFront] = []

    def tell_health(is_serving: bool) -> None:
        for front in fronts:
            front.set_serving(is_serving)

    committer = Committer(
        engine, config=config.queue, codec=PbCallCodec(config.limits), on_health=tell_health, observer=tracing
    )
    service = CheckpointService(committer, engine, limits=config.limits, config=config.queue)
    try:
        front = GrpcFront(
            service,
            limits=config.limits,
            concurrent_calls_max=config.concurrent_calls_max,
            large_bytes_max=config.queue.large_bytes_max,
            large_answers_bytes_max=config.queue.large_answers_bytes_max,
            interceptors=tracing.interceptors if tracing is not None else (),
            mark_span=tracing.mark_span if tracing is not None else None,
        )
        try:
            bound = [front.listen(address, insecure=config.insecure) for address in addresses]
            await front.start()
            fronts.append(front)
            _announce(config, bound)
            # What lives now lives until the end; it need not be looked at by every collection.
            gc.collect()
            gc.freeze()
            malloc.give_back()
            gc.set_threshold(config.gc_threshold, *gc.get_threshold()[1:])
            await stop.wait()
            _logger.info("draining, for %g s at most", config.drain_delay_s + config.drain_grace_s)
            _limit_drain(config.drain_delay_s + config.drain_grace_s + STORAGE_GRACE_S)
        finally:
            await front.drain(
                delay_s=config.drain_delay_s if fronts else 0.0, grace_s=config.drain_grace_s if fronts else 0.0
            )
    finally:
        await service.close()
        await committer.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


def _install_signal_handlers(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            # Without any cleaning up: what is committed is safe, and whoever asks twice does not want to wait.
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _limit_drain(seconds: float) -> None:
    """End the process if storage that does not answer (a disk that hangs, say) keeps it from ending by itself."""

    def give_up() -> None:
        _logger.error("the storage does not answer; ending without it. What was acknowledged is on disk")
        os._exit(EXIT_PROBLEMS)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()


def _announce(config: ServerConfig, bound: list[Address]) -> None:
    for address in bound:
        _tell(f"milepost-server listening on {address}")
    where = "memory, NOT durable" if config.engine == "memory" else str(Path(config.data_dir).absolute())
    if not sys.stderr.isatty():
        addresses = ", ".join(str(each) for each in bound)
        _logger.info("milepost-server %s serves, data in %s, listening on %s", __version__, where, addresses)
        return
    target = next(f"{'-unix ' if each.path else ''}{each.path or each}" for each in bound)
    request = '{"workflow_id":"w1","current_step":"a","state":{"x":{"json":"1"}}}'
    print(
        f"milepost-server {__version__}, data in {where}\n"
        f"try:  grpcurl -plaintext -d '{request}' {target} milepost.v1.CheckpointStore/Save\n"
        f"Ctrl-C stops.  Settings: milepost-server serve --help, or {ENVIRONMENT_PREFIX}NAME",
        file=sys.stderr,
        flush=True,
    )
