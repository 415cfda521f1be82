"""JSON text as text: indented, made compact, taken apart, without ever changing a number or the order of keys.

The store keeps JSON byte for byte; a tool that shows or copies it must not turn 1.10 into 1.1 or lose a digit of a
long integer. So text is re-spaced by its tokens, and where structure is needed numbers stay the text they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

ONE_LINE_CHARACTERS: Final = 88
"""Values that fit in this are shown on one line."""

_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_SPACE: Final = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a JSON text, as it is written there. Equal to nothing but a number written the same."""

    text: str


@dataclass(frozen=True, slots=True)
class JsonText:
    """A JSON text that stands for its value where a document is written."""

    text: str


def parse(text: str) -> Any:
    """Return the value with every number as `Number`.

    Raises:
        ValueError: It is no JSON (RFC 8259), or nested too deep to be read.
    """
    try:
        return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def split_object(text: str) -> dict[str, str]:
    """Return the members of a JSON object, each value as its own text.

    Raises:
        ValueError: It is no JSON object, or has a key twice.
    """
    if not isinstance(parse(text), dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - it is the text that has the wrong value
    # From here on the text is known to be well formed, so that only positions have to be found.
    decoder = json.JSONDecoder(parse_int=Number, parse_float=Number)
    members: dict[str, str] = {}
    at = _skip_space(text, _skip_space(text, 0) + 1)
    while text[at] != "}":
        if text[at] == ",":
            at = _skip_space(text, at + 1)
        key, at = decoder.raw_decode(text, at)
        start = _skip_space(text, _skip_space(text, at) + 1)
        _, end = decoder.raw_decode(text, start)
        if key in members:
            raise ValueError(f"it has the key {key!r} twice")
        members[key] = compact(text[start:end])
        at = _skip_space(text, end)
    return members


def compact(text: str) -> str:
    """Return the same JSON without space between its tokens."""
    return "".join(_TOKEN.findall(text))


def readable(text: str) -> str:
    """Return the same JSON for people: on one line where that is short, else indented."""
    line = "".join(f"{piece} " if piece in ",:" else piece for piece in _pieces(text, ONE_LINE_CHARACTERS))
    return line if len(line) <= ONE_LINE_CHARACTERS else indented(text)


def indented(text: str) -> str:
    """Return the same JSON with one member or item a line."""
    parts: list[str] = []
    depth = 0
    is_open = False
    for piece in _pieces(text):
        if piece in "}]":
            depth -= 1
            parts.append(piece if is_open else f"\n{'  ' * depth}{piece}")
            is_open = False
            continue
        if is_open:
            parts.append(f"\n{'  ' * depth}")
            is_open = False
        if piece in "{[":
            depth += 1
            is_open = True
            parts.append(piece)
        elif piece == ",":
            parts.append(f",\n{'  ' * depth}")
        else:
            parts.append(": " if piece == ":" else piece)
    return "".join(parts)


def dumps(value: object) -> str:
    """Return a document as one line of ASCII: no terminal, pipe or locale can stumble over it.

    Takes what JSON has words for, besides `Number` and `JsonText`, which are written as they are.
    """
    parts: list[str] = []
    _dump(value, parts)
    return "".join(parts)


def _dump(value: object, parts: list[str]) -> None:
    # One frame a level: values of the store are nested up to 512 deep.
    if isinstance(value, Number):
        parts.append(value.text)
    elif isinstance(value, JsonText):
        # Outside its strings JSON text is ASCII, and there a line break is only space.
        parts.append(_NOT_ASCII.sub(_escape, compact(value.text)))
    elif isinstance(value, Mapping):
        separator = "{"
        for key, item in value.items():
            parts.append(f"{separator}{json.dumps(str(key))}: ")
            _dump(item, parts)
            separator = ", "
        parts.append("{}" if separator == "{" else "}")
    elif isinstance(value, (list, tuple)):
        separator = "["
        for item in value:
            parts.append(separator)
            _dump(item, parts)
            separator = ", "
        parts.append("[]" if separator == "[" else "]")
    elif isinstance(value, float) and math.isinf(value):
        # A number too large for a float was read; it is written as one again.
        parts.append("1e999" if value > 0 else "-1e999")
    else:
        parts.append(json.dumps(value, allow_nan=False))


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]


def _pieces(text: str, characters_max: int | None = None) -> Iterator[str]:
    """Yield the tokens; past `characters_max` no more of them than show that it is too long."""
    seen = 0
    for match in _TOKEN.finditer(text):
        yield match.group()
        seen += len(match.group())
        if characters_max is not None and seen > characters_max:
            return


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")
