"""Small file systems in memory, mounted for one test: full disks and read-only disks that are real."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

MS_RDONLY = 1
MS_REMOUNT = 32
MNT_DETACH = 2


class SmallDisk:
    """A mounted file system."""

    def __init__(self, path: Path, options: str) -> None:
        self.path = path
        self._options = options

    @property
    def free_bytes(self) -> int:
        """What is left."""
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave_bytes: int) -> Path:
        """Write a file that leaves only so much free; return it, to be removed for room."""
        ballast = self.path / "ballast"
        size = max(0, self.free_bytes - leave_bytes)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        return ballast

    def remount_read_only(self) -> None:
        """Refuse writes from now on."""
        _mount(self.path, MS_REMOUNT | MS_RDONLY, self._options)


@contextmanager
def mounted_tmpfs(path: Path, *, size_mib: int) -> Iterator[SmallDisk]:
    """Mount a file system of a size, and unmount it at the end."""
    path.mkdir()
    options = f"size={size_mib}m"
    _mount(path, 0, options)
    try:
        yield SmallDisk(path, options)
    finally:
        _libc().umount2(os.fsencode(path), MNT_DETACH)
        path.rmdir()


def require_mounts() -> None:
    """Skip the test where file systems cannot be mounted."""
    if not _can_mount():
        pytest.skip("mounting a file system in memory needs root (CAP_SYS_ADMIN)")


@cache
def _can_mount() -> bool:
    with TemporaryDirectory() as directory:
        try:
            with mounted_tmpfs(Path(directory) / "disk", size_mib=1):
                return True
        except OSError:
            return False


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(path: Path, flags: int, options: str) -> None:
    result = _libc().mount(b"tmpfs", os.fsencode(path), b"tmpfs", ctypes.c_ulong(flags), options.encode())
    if result != 0:
        number = ctypes.get_errno()
        if not flags:
            path.rmdir()
        raise OSError(number, os.strerror(number), str(path))
