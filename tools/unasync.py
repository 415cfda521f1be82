"""Derive the blocking half of the client from the async half, token by token, or check that it is current.

`client/milepost/_async/*.py` is written, `client/milepost/_sync/*.py` is made; the unit tests in
`tests/unit/client/_async/test_*.py` follow the same way. Comments and strings stay as they are (a string
that is nothing but a name in the table is renamed), so a docstring has to fit both halves. What cannot be
derived lives in a `_compat.py`, written by hand once for each half. A rule that no source needs is an
error: the table cannot rot.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Generated from {source} by tools/unasync.py. Do not edit.\n"
WRITTEN_BY_HAND = "_compat.py"
DROPPED = frozenset({"async", "await"})
# These have no blocking twin of the same shape; a source that needs one puts it behind a name in
# `_compat.py`.
REFUSED = frozenset({"asyncio", "anyio"})

NAMES = {
    "AsyncClient": "Client",
    "AsyncInMemoryStore": "InMemoryStore",
    "AsyncIterator": "Iterator",
    "AsyncLease": "Lease",
    "AsyncLeaseStore": "LeaseStore",
    "AsyncMemoryWatch": "MemoryWatch",
    "AsyncWatch": "Watch",
    "StopAsyncIteration": "StopIteration",
    "anext": "next",
    "aclose": "close",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "_async": "_sync",
}
AIO = "grpc.aio"
RULES = frozenset({*NAMES, AIO})


class Pair(NamedTuple):
    """A folder of sources and the folder made from it."""

    source: Path
    target: Path
    pattern: str


PAIRS = (
    Pair(ROOT / "client/milepost/_async", ROOT / "client/milepost/_sync", "*.py"),
    Pair(ROOT / "tests/unit/client/_async", ROOT / "tests/unit/client/_sync", "test_*.py"),
)


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace `source[start:end]` by `text`."""

    start: int
    end: int
    text: str


class ConversionError(Exception):
    """A source cannot be converted; the message names the place."""


def convert(source: str, used: set[str]) -> str:
    """Return `source` with everything async replaced by its blocking twin.

    Args:
        used: Receives the rules that applied.

    Raises:
        ConversionError: The source uses a name that has no blocking twin.
    """
    line_starts = [0]
    for line in source.splitlines(keepends=True):
        line_starts.append(line_starts[-1] + len(line))
    tokens = without_fstrings(list(tokenize.generate_tokens(io.StringIO(source).readline)))
    edits: list[Edit] = []

    def replace(first: tokenize.TokenInfo, last: tokenize.TokenInfo, text: str) -> None:
        start = line_starts[first.start[0] - 1] + first.start[1]
        edits.append(Edit(start, line_starts[last.end[0] - 1] + last.end[1], text))

    for index, token in enumerate(tokens):
        text = token.string
        if token.type == tokenize.STRING and text[0] in "\"'" and text[1:-1] in NAMES:
            used.add(text[1:-1])
            replace(token, token, text[0] + NAMES[text[1:-1]] + text[0])
        if token.type != tokenize.NAME:
            continue
        if text in DROPPED:
            start = line_starts[token.start[0] - 1] + token.start[1]
            end = start + len(text)
            while source[end] in " \t":
                end += 1
            edits.append(Edit(start, end, ""))
        elif text in REFUSED:
            raise ConversionError(f"line {token.start[0]}: {text} has no blocking twin; put it into {WRITTEN_BY_HAND}")
        elif text == "grpc" and [t.string for t in tokens[index + 1 : index + 3]] == [".", "aio"]:
            used.add(AIO)
            replace(token, tokens[index + 2], "grpc")
        elif text in NAMES:
            used.add(text)
            replace(token, token, NAMES[text])
            if text == "AsyncGenerator" and tokens[index + 1].string == "[":
                close, commas = subscript(tokens, index + 1)
                # AsyncGenerator[Yield, Send] has no return type, Generator[Yield, Send, Return] has.
                replace(tokens[close], tokens[close], ", None" * (2 - commas) + "]")

    for edit in sorted(edits, key=lambda e: e.start, reverse=True):
        source = source[: edit.start] + edit.text + source[edit.end :]
    return source


def without_fstrings(tokens: list[tokenize.TokenInfo]) -> list[tokenize.TokenInfo]:
    """Drop the parts of f-strings, which Python 3.12 began to report one by one: 3.11 sees one string."""
    kept: list[tokenize.TokenInfo] = []
    depth = 0
    for token in tokens:
        kind = tokenize.tok_name[token.type]
        depth += kind in {"FSTRING_START", "TSTRING_START"}
        if not depth:
            kept.append(token)
        depth -= kind in {"FSTRING_END", "TSTRING_END"}
    return kept


def subscript(tokens: list[tokenize.TokenInfo], opening: int) -> tuple[int, int]:
    """Find the bracket that closes the one at `opening`, and count the commas directly inside."""
    depth = commas = 0
    for index in range(opening, len(tokens)):
        text = tokens[index].string
        depth += (text in {"[", "(", "{"}) - (text in {"]", ")", "}"})
        commas += depth == 1 and text == ","
        if not depth:
            return index, commas
    raise ConversionError(f"line {tokens[opening].start[0]}: bracket is never closed")


def formatted(source: str, path: Path) -> str:
    """Return `source` as `ruff format` writes it for a file at `path`."""
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(path), "-"]
    result = subprocess.run(command, input=source, capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode:
        raise ConversionError(f"the result is not Python: {result.stderr.strip()}")
    return result.stdout


def build(pair: Pair, used: set[str]) -> dict[Path, str]:
    """Return the files that `pair.target` should hold, by path."""
    made: dict[Path, str] = {}
    for source in sorted(pair.source.rglob(pair.pattern)):
        if source.name == WRITTEN_BY_HAND:
            continue
        target = pair.target / source.relative_to(pair.source)
        try:
            body = convert(source.read_text(encoding="utf-8"), used)
            made[target] = formatted(HEADER.format(source=relative(source)) + body, target)
        except (ConversionError, tokenize.TokenError) as error:
            raise ConversionError(f"{relative(source)}: {error}") from error
    return made


def relative(path: Path) -> str:
    """Return `path` as seen from the top of the project, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def main() -> int:
    """Write the blocking half, or compare it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not current")
    check: bool = parser.parse_args().check

    used: set[str] = set()
    wanted: dict[Path, str] = {}
    found: dict[Path, str] = {}
    try:
        for pair in PAIRS:
            wanted |= build(pair, used)
            made = (p for p in pair.target.rglob(pair.pattern) if p.name != WRITTEN_BY_HAND)
            found |= {path: path.read_text(encoding="utf-8") for path in made}
    except ConversionError as error:
        sys.exit(str(error))
    if wanted and (unused := RULES - used):
        sys.exit(f"tools/unasync.py: no source needs the rule for {', '.join(sorted(unused))}: remove it")

    if not check:
        apply(wanted, found)
        return 0
    problems = [f"{relative(path)}: missing" for path in wanted.keys() - found.keys()]
    problems += [f"{relative(path)}: extra, no source makes it" for path in found.keys() - wanted.keys()]
    problems += [f"{relative(p)}: not current" for p in wanted.keys() & found.keys() if wanted[p] != found[p]]
    for problem in sorted(problems):
        print(problem, file=sys.stderr)
    if problems:
        print("The blocking half does not match the async half. Run: make gen", file=sys.stderr)
    return 1 if problems else 0


def apply(wanted: dict[Path, str], found: dict[Path, str]) -> None:
    """Make the targets hold exactly `wanted`; refuse to remove a file that this tool did not write."""
    for path, content in wanted.items():
        if found.get(path) != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(f"wrote {relative(path)}")
    for path in found.keys() - wanted.keys():
        if not found[path].startswith(HEADER.partition("{")[0]):
            sys.exit(f"{relative(path)}: is not made from a source and not generated; move it elsewhere")
        path.unlink()
        print(f"removed {relative(path)}")


if __name__ == "__main__":
    sys.exit(main())
