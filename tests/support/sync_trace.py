"""A server's system calls in the order they began and ended, and whether a commit was flushed before it was
acknowledged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TRACED: Final = "openat,fdatasync,fsync,msync,pwrite64,pwritev,writev,write,sendmsg,sendto,read,recvmsg,recvfrom"

_CALL = re.compile(r"^(?P<pid>\d+)\s+(?P<name>\w+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?P<pid>\d+)\s+<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$")
_UNFINISHED = " <unfinished ...>"


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: where in the log it began and ended, and its text."""

    name: str
    began: int
    ended: int
    text: str

    @property
    def fd(self) -> int:
        """Its first argument, where that is a file descriptor."""
        found = re.match(r"(\d+)", self.text)
        return int(found.group(1)) if found else -1

    @property
    def result(self) -> int:
        """What it returned; -1 for an error."""
        found = re.search(r"\)\s+= (-?\d+)", self.text)
        return int(found.group(1)) if found else -1


def wrapper(log: Path) -> tuple[str, ...]:
    """Return what a server is started under to be traced."""
    return ("strace", "-f", "-qq", "-s", "8192", "-o", str(log), "-e", f"trace={TRACED}", "-e", "signal=none")


def calls_of(log: Path) -> Iterator[Call]:
    """Yield the finished calls in the order they ended."""
    unfinished: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(log.read_text(errors="replace").splitlines()):
        if match := _RESUMED.match(line):
            began, start = unfinished.pop(match["pid"], (number, ""))
            yield Call(match["name"], began, number, start + match["rest"])
        elif match := _CALL.match(line):
            if match["rest"].endswith(_UNFINISHED):
                unfinished[match["pid"]] = (number, match["rest"].removesuffix(_UNFINISHED))
            else:
                yield Call(match["name"], number, number, match["rest"])


def why_not_durable(log: Path, marker: str) -> str:
    """Return what is missing between a request that has `marker` and the answer that has it; "" if nothing is.

    A durable commit flushes the data pages (fdatasync on `data.mdb`), then writes the meta page through a descriptor
    that flushes by itself (O_DSYNC), and only then is anything sent.
    """
    calls = list(calls_of(log))
    opened = [call for call in calls if call.name == "openat" and "store/data.mdb" in call.text and call.result >= 0]
    data_fds = {call.result for call in opened}
    flushing_fds = {call.result for call in opened if "O_DSYNC" in call.text}
    asked = [call for call in calls if call.name == "recvmsg" and marker in call.text]
    # On the connection that the request came by: the engine may be another process, which hears of it and answers too.
    answered = [
        call for call in calls if asked and call.name == "sendmsg" and marker in call.text and call.fd == asked[0].fd
    ]
    if not answered:
        return "the request or its answer is not in the trace"
    begin, end = asked[0].ended, answered[0].began
    between = [call for call in calls if begin < call.began and call.ended < end]
    flushed = [
        call for call in between if call.name == "fdatasync" and call.fd in data_fds - flushing_fds and call.result == 0
    ]
    if not flushed:
        return "no data page was flushed before the answer"
    meta = [
        call
        for call in between
        if call.name == "pwrite64" and call.fd in flushing_fds and call.result > 0 and call.began > flushed[0].ended
    ]
    if not meta:
        return "no meta page was flushed before the answer"
    return ""
