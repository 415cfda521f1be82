"""Every setting of the server, with its default, unit and range, and where a value comes from.

A flag wins over the environment (`MILEPOST_SERVER__NAME`, for a section `MILEPOST_SERVER__SECTION__NAME`), and that
over a TOML file (`--config FILE`). What none of them names has its default. A name that is no setting is an error
in the file and in the environment, with the name that was probably meant: a typo must not run with a default.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from milepost_server.limits import CEILING, CEILINGS, DEFAULT_LIMITS, MIB, Limits

ENVIRONMENT_PREFIX: Final = "MILEPOST_SERVER__"
DEFAULT_LISTEN: Final = "127.0.0.1:7450"
GIB: Final = 1024 * MIB


class ConfigError(Exception):
    """A setting is unknown, malformed or out of range. The message is one line for the operator."""


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of what waits for the storage, and of one commit."""

    calls_max: Annotated[int, Meta(ge=1, le=1_000_000, description="Writing calls that may be queued.")] = 2048
    bytes_max: Annotated[int, Meta(ge=MIB, description="Bytes of the writing calls that may be queued.")] = 64 * MIB
    batch_commands_max: Annotated[int, Meta(ge=1, le=100_000, description="Commands of one commit.")] = 256
    batch_bytes_max: Annotated[int, Meta(ge=1, description="Bytes of the commands of one commit.")] = 16 * MIB
    alone_bytes: Annotated[int, Meta(ge=1, description="A larger command has a commit of its own.")] = MIB
    large_bytes_max: Annotated[
        int, Meta(ge=1, description="Bytes of requests over 1 MiB that may be in progress; one is always let in.")
    ] = 16 * MIB
    large_answers_bytes_max: Annotated[
        int, Meta(ge=1, description="Bytes of answers over 1 MiB on their way to callers; one is always let out.")
    ] = 256 * MIB
    read_calls_max: Annotated[int, Meta(ge=1, le=1_000_000, description="Short reads that may be queued.")] = 2048
    scan_calls_max: Annotated[int, Meta(ge=1, le=1_000_000, description="Long reads that may be queued.")] = 512
    scan_threads: Annotated[int, Meta(ge=1, le=64, description="Long reads that run at once.")] = 2
    lease_waits_max: Annotated[int, Meta(ge=0, le=1_000_000, description="Calls that may wait for leases.")] = 512
    watches_max: Annotated[int, Meta(ge=0, le=1_000_000, description="Calls that may watch at the same time.")] = 1_000
    watch_events_kept_max: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Events that are kept for watches that go on after a break.")
    ] = 10_000
    watch_events_waiting_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Events that may wait to be read by one watch.")
    ] = 1_000
    sweep_interval_s: Annotated[
        float, Meta(gt=0, le=86_400, description="How often outlived rows are looked for, in seconds.")
    ] = 60.0
    sweep_rows_max: Annotated[int, Meta(ge=1, le=100_000, description="Rows that one slice of sweeping frees.")] = 1_000
    commit_wait_max_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="Wait for an answer of the storage until health says NOT_SERVING."),
    ] = 10.0
    probe_interval_s: Annotated[
        float, Meta(gt=0, le=86_400, description="How often storage that answers no reads is read from, in seconds.")
    ] = 5.0
    reopen_wait_min_s: Annotated[
        float, Meta(ge=0, le=3600, description="Wait before the second try to reopen failed storage, in seconds.")
    ] = 0.1
    reopen_wait_max_s: Annotated[
        float, Meta(ge=0, le=3600, description="Longest wait between two tries to reopen failed storage, in seconds.")
    ] = 5.0


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    data_dir: Annotated[str, Meta(min_length=1, description="Directory of the store; made if there is none.")] = (
        "./milepost-data"
    )
    listen: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Address to serve on: host:port or unix:PATH. Repeatable.")
    ] = (DEFAULT_LISTEN,)
    insecure: Annotated[
        bool, Meta(description="Serve without TLS and authentication beyond loopback and unix sockets.")
    ] = False
    engine: Annotated[
        Literal["lmdb", "memory"], Meta(description="Where checkpoints are kept. 'memory' is not durable.")
    ] = "lmdb"
    engine_process: Annotated[
        bool, Meta(description="Keep the lmdb engine in a process of its own; turned off, it shares the server's.")
    ] = True
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least level logged.")] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="Shape of a log line.")] = "text"
    uvloop: Annotated[bool, Meta(description="Run on uvloop where it is installed.")] = True
    concurrent_calls_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Calls in progress; one more is refused at once.")
    ] = 2048
    drain_delay_s: Annotated[
        float,
        Meta(ge=0, le=300, description="How long health says NOT_SERVING before calls are refused, in seconds."),
    ] = 0.0
    drain_grace_s: Annotated[
        float, Meta(ge=0, le=3600, description="How long calls in progress may take to end, in seconds.")
    ] = 10.0
    map_size_bytes: Annotated[
        int, Meta(ge=MIB, description="Address space of the database at first; doubled when it is full.")
    ] = 16 * GIB
    map_size_max_bytes: Annotated[
        int, Meta(ge=MIB, description="Largest address space of the database; past it, saves are refused.")
    ] = 8192 * GIB
    low_disk_bytes: Annotated[int, Meta(ge=0, description="Free disk space below which saves are refused.")] = 256 * MIB
    gc_threshold: Annotated[
        int, Meta(ge=100, le=1_000_000_000, description="New objects after which Python collects garbage.")
    ] = 50_000
    queue: QueueConfig = QueueConfig()
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        """Check what two settings mean together."""
        limits = self.limits
        for name in Limits.__struct_fields__:
            ceiling = CEILINGS.get(name, CEILING)
            if not 1 <= getattr(limits, name) <= ceiling:
                raise ValueError(f"limits.{name}: must be 1 to {ceiling}")
        for smaller, larger in (
            ("state_bytes_max", "request_bytes_max"),
            ("metadata_bytes_max", "state_bytes_max"),
            ("metadata_depth_max", "json_depth_max"),
            ("page_size_default", "page_size_max"),
            ("lease_ttl_min_ms", "lease_ttl_default_ms"),
            ("lease_ttl_default_ms", "lease_ttl_max_ms"),
        ):
            if getattr(limits, smaller) > getattr(limits, larger):
                raise ValueError(f"limits.{smaller}: must not be above limits.{larger}")
        if self.map_size_bytes > self.map_size_max_bytes:
            raise ValueError("map_size_bytes: must not be above map_size_max_bytes")
        if self.queue.bytes_max < limits.request_bytes_max:
            raise ValueError("queue.bytes_max: must not be below limits.request_bytes_max")


def sections() -> dict[str, type[msgspec.Struct]]:
    """Return the settings that are tables of settings."""
    return {
        name: kind
        for name, kind in typing.get_type_hints(ServerConfig).items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    }


class Setting(msgspec.Struct, frozen=True):
    """What a command line needs to know of a setting."""

    name: str
    description: str
    kind: type
    default: object
    choices: tuple[str, ...] = ()


def settings() -> Iterator[Setting]:
    """Yield the settings outside of sections, in the order of `ServerConfig`."""
    hints = typing.get_type_hints(ServerConfig, include_extras=True)
    defaults = dict(zip(ServerConfig.__struct_fields__, ServerConfig.__struct_defaults__, strict=True))
    for name, hint in hints.items():
        if name in sections():
            continue
        kind, meta = typing.get_args(hint)[:2]
        choices: tuple[str, ...] = ()
        origin = typing.get_origin(kind)
        if origin is Literal:
            kind, choices = str, typing.get_args(kind)
        elif isinstance(kind, types.GenericAlias):
            kind = tuple
        yield Setting(name, meta.description, kind, defaults[name], choices)


def read_config(
    flags: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> ServerConfig:
    """Return the settings that apply.

    Args:
        flags: What the command line named, by the names of `ServerConfig`.
        environment: Only names that start with `MILEPOST_SERVER__` are looked at.
        file: A TOML file.

    Raises:
        ConfigError: A name is unknown, a value malformed or out of range, or the file cannot be read.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        _merge(merged, _read_file(file))
    _merge(merged, _read_environment(environment or {}))
    _merge(merged, dict(flags or {}))
    try:
        return msgspec.convert(merged, ServerConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from error


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            values = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: {error}") from error
    tables = sections()
    for name, value in values.items():
        _check_name(f"--config {file}", name, ServerConfig.__struct_fields__, name)
        if name in tables:
            if not isinstance(value, dict):
                raise ConfigError(f"--config {file}: {name} is a section; write [{name}]")
            for inner in value:
                _check_name(f"--config {file}", inner, tables[name].__struct_fields__, f"{name}.{inner}")
    return values


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    tables = sections()
    known = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in ServerConfig.__struct_fields__ if name not in tables}
    known |= {
        f"{ENVIRONMENT_PREFIX}{section.upper()}__{name.upper()}"
        for section, table in tables.items()
        for name in table.__struct_fields__
    }
    mistaken = {name.replace("__", "_"): name for name in known}
    for variable, text in environment.items():
        if variable in mistaken:
            raise ConfigError(f"environment: {variable} is not a setting; did you mean {mistaken[variable]}?")
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        _check_name("environment", variable, known, variable)
        *path, name = variable[len(ENVIRONMENT_PREFIX) :].lower().split("__")
        table = values
        for section in path:
            table = table.setdefault(section, {})
        table[name] = tuple(part.strip() for part in text.split(",")) if variable.endswith("__LISTEN") else text
    return values


def _check_name(source: str, name: str, known: object, shown: str) -> None:
    names = sorted(typing.cast("set[str]", known))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{source}: {shown} is not a setting{hint}")


def _explain(message: str) -> str:
    """Turn "Expected `int` >= 1 - at `$.queue.calls_max`" into "queue.calls_max: expected `int` >= 1"."""
    words = message.replace("`bool`", "true or false").replace("`array`", 'a list in brackets, ["…", "…"]')
    text, separator, path = words.partition(" - at `$.")
    if not separator:
        return message
    name = path.rstrip("`")
    choices = next((each.choices for each in settings() if each.name == name), ())
    either = f"; it is one of {', '.join(choices)}" if choices else ""
    return f"{name}: {text[0].lower()}{text[1:]}{either}"
