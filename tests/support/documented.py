"""What the pages under docs/ and the comments of the protos say, as data that tests hold against what is."""

from __future__ import annotations

import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def read(name: str) -> str:
    """Return the text of a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def rows_of(page: str, *header: str) -> list[list[str]]:
    """Return the cells of the tables that have just this header, without backticks and commas in numbers."""
    rows: list[list[str]] = []
    is_inside = False
    for line in read(page).splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if cells == list(header):
            is_inside = True
        elif not line.startswith("|"):
            is_inside = False
        elif is_inside and not set(cells[0]) <= set("-:"):
            rows.append(cells)
    assert rows, f"{page} has no table with the header {header}"
    return rows


@functools.cache
def reason_comments() -> dict[str, str]:
    """Return the comment of each reason in the proto, as one line."""
    source = read("protos/milepost/v1/error_reason.proto")
    found = re.findall(r"((?: +// .*\n)+) +(\w+) = [1-9]\d*;", source)
    return {reason: re.sub(r"\s*// ", " ", comment).strip() for comment, reason in found}


@functools.cache
def metadata_keys() -> dict[str, list[str]]:
    """Return the keys that the comment of each reason names."""
    return {
        reason: re.findall(r"\b(?!or\b)[a-z_]+", re.sub(r"\(.*?\)", "", _named_in(comment)))
        for reason, comment in reason_comments().items()
    }


@functools.cache
def certain_metadata_keys() -> dict[str, set[str]]:
    """Return those that every error of the reason has: not "one or the other", nor what comes after a semicolon."""
    certain: dict[str, set[str]] = {}
    for reason, keys in metadata_keys().items():
        always, _, sometimes = _named_in(reason_comments()[reason]).partition(";")
        either = {key for pair in re.findall(r"(\w+) or (\w+)", always) for key in pair}
        certain[reason] = set(keys) - either - set(re.findall(r"\w+", sometimes))
    return certain


def _named_in(comment: str) -> str:
    named = re.search(r"Metadata: ([^.]*)\.", comment)
    return named[1] if named else ""
