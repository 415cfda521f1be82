"""Addresses to listen on: what they may be, who can reach them, and whether somebody is there already.

gRPC would share a TCP port with another server and take a unix socket away from one; both would look like success.
So every address is tried here first.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

UNIX_PREFIX: Final = "unix:"
UNIX_PATH_BYTES_MAX: Final = 107
"""What `sun_path` of Linux holds, without its final NUL."""
PORT_MAX: Final = 65_535
CONNECT_TIMEOUT_S: Final = 1.0


class ListenError(Exception):
    """The server cannot listen there. The message is one line for the operator and names the flag."""


class Address(msgspec.Struct, frozen=True):
    """Where to listen: a unix socket, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return UNIX_PREFIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read `host:port`, `[ipv6]:port` or `unix:PATH`."""
    if text.startswith(UNIX_PREFIX):
        path = text[len(UNIX_PREFIX) :]
        path = path[2:] if path.startswith("///") else path
        if not path or "\0" in path:
            raise ListenError(f"--listen {text}: write unix:PATH")
        if "%" in path:
            # The socket would be another file than the one that is checked and told.
            raise ListenError(f"--listen {text}: the path of a socket must have no %, which gRPC takes for an escape")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise ListenError(f"--listen {text}: the path of a socket has at most {UNIX_PATH_BYTES_MAX} bytes")
        return Address(path=path)
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ListenError(f"--listen {text}: write an IPv6 address as [::1]:{port}")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > PORT_MAX:
        raise ListenError(f"--listen {text}: write host:port, with a port of 0 to {PORT_MAX}, or unix:PATH")
    return Address(host=host, port=int(port))


def is_private(address: Address) -> bool:
    """Tell whether only this machine can reach an address."""
    return bool(address.path) or all(ipaddress.ip_address(each).is_loopback for each in _resolve(address))


def check_free(address: Address) -> None:
    """Raise `ListenError` if the address cannot be had; remove a socket file that a dead server left behind."""
    if address.path:
        _check_unix(address)
    elif address.port:
        _check_tcp(address)
    else:
        _resolve(address)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """See to it that files made in this block are their owner's only."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _resolve(address: Address) -> list[str]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"--listen {address}: no such host ({error})") from None
    return [str(each[4][0]).partition("%")[0] for each in found]


def _check_tcp(address: Address) -> None:
    for family, kind, protocol, _, target in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections of an earlier server that are still winding down do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(target)
                probe.listen(1)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ListenError(
                        f"--listen {address}: the port is in use by another process; choose another with --listen"
                    ) from None
                raise ListenError(f"--listen {address}: {error.strerror}") from None


def _check_unix(address: Address) -> None:
    path = Path(address.path)
    try:
        directory = path.absolute().parent.stat()
    except OSError as error:
        raise ListenError(f"--listen {address}: {path.absolute().parent}: {error.strerror}") from None
    is_open_to_others = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not directory.st_mode & stat.S_ISVTX
    if is_open_to_others or directory.st_uid not in {0, os.geteuid()}:
        raise ListenError(
            f"--listen {address}: others may replace files in {path.absolute().parent}; "
            "use a directory that only its owner can write to"
        )
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"--listen {address}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"--listen {address}: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            # Nobody is behind it: a server was killed.
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise ListenError(f"--listen {address}: {error.strerror or error}") from None
    raise ListenError(f"--listen {address}: another server is serving on this socket; choose another with --listen")
