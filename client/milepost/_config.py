"""Where a client connects and as whom: arguments first, then the environment, then defaults. Opens no connection."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc

from milepost.errors import AuthError

TARGET_DEFAULT: Final = "127.0.0.1:7450"
NAMESPACE_DEFAULT: Final = "default"
PORT_MAX: Final = 65_535
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest request; larger ones are refused before they are sent."""
RECEIVE_BYTES_MAX: Final = 33 * 1024 * 1024
"""Largest answer: the server's 16 MiB of state, as much of records, and room for what surrounds them."""

ChannelOptions: TypeAlias = tuple[tuple[str, Any], ...]
CallMetadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
CHANNEL_OPTIONS: Final[ChannelOptions] = (
    # Retries are the client's own: gRPC's stop at 256 KiB of request and know nothing of our reasons.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    # A server that restarts is found again within the pauses of the retry policy, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # While a call waits (a watch, a lease that is held), a server that is gone without a word is noticed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.primary_user_agent", "milepost-python"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """How to trust the server, and what to show it. `TLS()` trusts the well-known authorities."""

    ca_file: str | Path | None = None
    """PEM file of the authorities to trust; None: those that gRPC ships."""
    cert_file: str | Path | None = None
    """PEM file of the client's own certificate chain, for mutual TLS; together with `key_file`."""
    key_file: str | Path | None = None
    """PEM file of the client's private key."""
    server_name: str | None = None
    """Name that the server's certificate must have; None: the host of the target."""

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return what gRPC wants of them."""

        def read(path: str | Path | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca_file), read(self.key_file), read(self.cert_file))

    def channel_options(self) -> ChannelOptions:
        """Return the channel options this asks for."""
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token: a fixed one, or a file that is read again whenever it has changed."""

    text: str | None = field(default=None, repr=False)
    file: Path | None = None
    _seen: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.text is not None:
            self._seen["metadata"] = _authorization(self.text, "token")

    @property
    def is_set(self) -> bool:
        """There is a token to send."""
        return self.text is not None or self.file is not None

    def metadata(self) -> CallMetadata | None:
        """Return the call metadata that carries the token, or None.

        Raises:
            AuthError: The token file cannot be read, or holds no token.
        """
        if self.file is None:
            metadata: CallMetadata | None = self._seen.get("metadata")
            return metadata
        try:
            found = self.file.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            with self._lock:
                if self._seen.get("stamp") != stamp:
                    text = self.file.read_text(encoding="utf-8").strip()
                    self._seen["metadata"] = _authorization(text, f"the token in {self.file}")
                    self._seen["stamp"] = stamp
                current: CallMetadata = self._seen["metadata"]
        except (OSError, ValueError) as error:
            raise AuthError(f"MILEPOST_TOKEN_FILE names {self.file}, which cannot be used: {error}") from error
        return current


def _authorization(token: str, what: str) -> CallMetadata:
    # The text itself stays out of the message: it is a secret even when it is malformed.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{what} is not printable ASCII without spaces ({len(token)} characters)")
    return (("authorization", f"Bearer {token}"),)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a channel is opened with."""

    target: str
    namespace: str
    tls: TLS | None
    token: Token


def resolve(
    target: str | None,
    namespace: str | None,
    token: str | None,
    tls: TLS | None,
    *,
    insecure: bool,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """Combine arguments, environment and defaults.

    Raises:
        ValueError: A token would travel in clear text to another machine, or is malformed; the target is no address, or
            target or namespace are empty: what was meant to name another must not become the default.
    """
    if target is None:
        target = environ.get("MILEPOST_TARGET") or TARGET_DEFAULT
    if namespace is None:
        namespace = environ.get("MILEPOST_NAMESPACE") or NAMESPACE_DEFAULT
    if not namespace:
        raise ValueError('the namespace is empty: name one, or give None for MILEPOST_NAMESPACE, else "default"')
    _check_target(target)
    token_file = environ.get("MILEPOST_TOKEN_FILE") if token is None else None
    found = Token(token, Path(token_file) if token_file else None)
    if found.is_set and tls is None and not insecure and not is_local(target):
        raise ValueError(
            f"the token would travel in clear text to {target}: give tls=TLS(…), or insecure=True where something else "
            "encrypts the connection"
        )
    return Endpoint(target, namespace, tls, found)


def _check_target(target: str) -> None:
    """Refuse what gRPC would look for without end, or at port 443."""
    scheme, is_url, _ = target.partition("://")
    if is_url and scheme.lower() in {"http", "https", "grpc", "grpcs", "tcp"}:
        raise ValueError(f"the target {target!r} is a URL: write host:port, without {scheme}://")
    host, has_port, port = target.rpartition(":")
    if not has_port or port.endswith("]") or not host or not port:
        raise ValueError(f"the target {target!r} is no address: write host:port or unix:PATH")
    if host not in {"unix", "unix-abstract"} and port.isdecimal() and not 1 <= int(port) <= PORT_MAX:
        raise ValueError(f"the target {target!r} has no port of 1 to {PORT_MAX}")


def is_local(target: str) -> bool:
    """Tell whether a target is surely on this machine: a unix socket or a loopback address."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    address = target.rpartition("/")[2]
    host = address.rpartition(":")[0] if ":" in address and not address.endswith("]") else address
    return host in {"localhost", "[::1]", "::1"} or host.startswith("127.")
