"""Text for people. Data goes through `printable` first, and reaches rich as `Text`, never as markup.

A workflow id, a step or a value may hold anything, also what moves a cursor or renames a window. `printable` shows
such characters as their escapes; nothing else may put data on a terminal (`show --raw` has its own check).
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from milepost.cli import json_text
from milepost.types import LeaseInfo

ROWS_AT_ONCE: Final = 200
"""A table is laid out and printed this many rows at a time, so that its first rows do not wait for its last."""
ID_CHARACTERS: Final = 16
"""Shorter ids are shown whole; of a UUIDv7 these are the time to the millisecond and the first of the rest."""
SHRUNK_WIDTH_MIN: Final = 12
"""A column that gives way to others keeps at least this."""
COLUMN_GAP: Final = "  "
HEX_BYTES: Final = 32
"""How much of an opaque value is shown."""

_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
STATUS_STYLES: Final = {
    "running": "blue",
    "waiting": "yellow",
    "suspended": "yellow",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
}


def printable(text: str, keep: str = "") -> str:
    r"""Return the text with everything that could drive a terminal or reorder a line as `\uXXXX`.

    Inside a JSON string the escape means the same character, so a shown JSON value stays a JSON value.

    Args:
        text: Any text.
        keep: Characters that stay, "\n" for example.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in _UNSAFE else _escape(c) for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def age(moment: datetime | None, now: datetime) -> str:
    """Return how long ago it was, in one unit: `12s`, `5m`, `3h`, `4d`; "" where the moment is not known."""
    if moment is None:
        return ""
    # A server whose clock is ahead has saved "now".
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(count_bytes: int) -> str:
    """Return a number of bytes for people: `512 B`, `1.5 KiB`."""
    amount = float(count_bytes)
    if amount < 1024:
        return f"{count_bytes} B"
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1023.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def moment(time: datetime | None, now: datetime) -> str:
    """Return a time and how long ago it was."""
    return "" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({age(time, now)} ago)"


def lease_text(lease: LeaseInfo) -> str:
    """Return who holds a lease and how long it still runs."""
    holder = lease.holder or "(no name)"
    if lease.remaining_s <= 0:
        return f"{holder}, expired; goes on until anyone else acts"
    return f"{holder}, for another {lease.remaining_s:.1f} s of {lease.ttl_s:g} s"


def count(number: int, noun: str) -> str:
    """Return `1 checkpoint`, `2 checkpoints`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def hexadecimal(content: bytes) -> str:
    """Return the first bytes in hexadecimal."""
    shown = content[:HEX_BYTES].hex(" ")
    return f"{shown} …" if len(content) > HEX_BYTES else shown


def clipped(text: str, characters_max: int = 120) -> str:
    """Return a text for one line, its end cut off where it is long."""
    return text if len(text) <= characters_max else f"{text[: characters_max - 1]}…"


def json_value(text: str) -> str:
    """Return a JSON text for people, on one line or indented."""
    return printable(json_text.readable(text), keep="\n")


def shortened(ids: Iterable[str]) -> dict[str, str]:
    """Return a short form of each id: a beginning that fits no other of them, and `…`."""
    ordered = sorted(set(ids))
    short: dict[str, str] = {}
    for position, one in enumerate(ordered):
        neighbours = ordered[max(0, position - 1) : position] + ordered[position + 1 : position + 2]
        # In sorted order whoever shares the longest beginning is next to it.
        shared = max((_shared_characters(one, other) for other in neighbours), default=0)
        length = max(ID_CHARACTERS, shared + 1)
        short[one] = one if len(one) <= length + 1 else f"{one[:length]}…"
    return short


def _shared_characters(one: str, other: str) -> int:
    """Return how many characters at the beginning are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    is_number: bool = False
    shrinks: bool = False
    """Where the terminal is narrow, this column gives way before others are left out."""
    is_optional: bool = False
    """Where the terminal is narrower still, this column is left out, the last of these first."""


class Output:
    """Where a command writes: tables and lines for people, documents for programs, bytes for either."""

    def __init__(self, *, color: bool) -> None:
        self._stream = sys.stdout
        self.is_terminal = self._stream.isatty()
        self._console = Console(
            file=self._stream,
            no_color=not color or None,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Write one line of text and (text, style) parts. The caller has made data printable."""
        self._write(Text.assemble(*parts))

    def document(self, document: object) -> None:
        """Write one JSON document on one line."""
        self._stream.write(json_text.dumps(document) + "\n")

    def data(self, content: bytes) -> None:
        """Write bytes as they are."""
        self._stream.flush()
        self._stream.buffer.write(content)
        self._stream.buffer.flush()

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Text | str]]) -> int:
        """Write rows under their column names, some rows at a time; return how many there were."""
        waiting = iter(rows)
        written = 0
        needed = [cell_len(column.name) for column in columns]
        shown = list(range(len(columns)))
        while batch := [[_text(cell) for cell in row] for row in islice(waiting, ROWS_AT_ONCE)]:
            # Later rows keep the widths of the first, so that their columns stand below each other.
            needed = [max(width, *(row[at].cell_len for row in batch)) for at, width in enumerate(needed)]
            if written == 0:
                shown = self._shown(columns, needed)
            chosen = [columns[at] for at in shown]
            widths = self._fitting(chosen, [needed[at] for at in shown])
            if written == 0:
                self._write(_row(chosen, widths, [Text(column.name) for column in chosen], style="bold"))
            for row in batch:
                self._write(_row(chosen, widths, [row[at] for at in shown]))
            self.flush()
            written += len(batch)
        return written

    def flush(self) -> None:
        """Hand over everything that was written."""
        self._stream.flush()

    def _shown(self, columns: Sequence[Column], needed: Sequence[int]) -> list[int]:
        """Return which columns the terminal has room for, their numbers."""
        shown = list(range(len(columns)))
        for at in reversed(shown[:]):
            widths = self._fitting([columns[one] for one in shown], [needed[one] for one in shown])
            if self.is_terminal and columns[at].is_optional and self._excess(widths) > 0:
                shown.remove(at)
        return shown

    def _excess(self, widths: Sequence[int]) -> int:
        """Return how many cells of a row the terminal has no room for."""
        return sum(widths) + len(COLUMN_GAP) * (len(widths) - 1) - self._console.width

    def _fitting(self, columns: Sequence[Column], needed: Sequence[int]) -> list[int]:
        """Return the widths of columns: what they need, less where the terminal has no room for it."""
        widths = list(needed)
        if self.is_terminal:
            excess = self._excess(widths)
            for at, column in enumerate(columns):
                if column.shrinks and excess > 0:
                    given = min(excess, max(0, widths[at] - SHRUNK_WIDTH_MIN))
                    widths[at] -= given
                    excess -= given
        return widths

    def _write(self, text: Text) -> None:
        if not self.is_terminal:
            self._stream.write(f"{text.plain}\n")
            return
        with self._console.capture() as captured:
            self._console.print(text)
        self._stream.write(captured.get())


def _text(cell: Text | str) -> Text:
    return Text(cell) if isinstance(cell, str) else cell


def _row(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[Text], style: str = "") -> Text:
    line = Text(style=style)
    for column, width, cell in zip(columns, widths, cells, strict=True):
        if cell.cell_len > width:
            cell.truncate(width, overflow="ellipsis")
        space = " " * (width - cell.cell_len)
        if column.is_number:
            line.append(space)
        line.append_text(cell)
        if not column.is_number:
            line.append(space)
        line.append(COLUMN_GAP)
    line.rstrip()
    return line


def status_text(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, style=STATUS_STYLES.get(status, ""))


def indented_lines(text: str, spaces: int) -> Iterator[str]:
    """Yield the lines of a text, moved to the right."""
    for line in text.split("\n"):
        yield f"{' ' * spaces}{line}"
