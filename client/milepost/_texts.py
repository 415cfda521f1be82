"""Texts of a call: each has a form in UTF-8, or the call is refused with the name of the field.

A `str` may hold half of a surrogate pair, as the name of a file does that was no UTF-8. The wire has no form for that,
and gRPC's own error would name neither the field nor the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from google.protobuf.descriptor import FieldDescriptor

from milepost._refusals import type_name
from milepost.errors import InvalidRequestError, LimitExceededError

__all__ = ["IDS", "build", "build_part", "check_text", "list_of_texts", "not_unicode", "require_unicode", "shown"]

P = ParamSpec("P")
MessageT = TypeVar("MessageT")

IDS: Final = ("namespace", "workflow_id", "scope", "checkpoint_id")
"""What errors name of a call, as far as it has it."""
_SHOWN_MAX: Final = 64
"""Characters of a text that a message shows."""


def build(message: Callable[P, MessageT], /, *args: P.args, **fields: P.kwargs) -> MessageT:
    """Return a message of these fields.

    Raises:
        InvalidRequestError: A text of them has a lone surrogate.
        TypeError: A text of them is none.
    """
    try:
        return message(*args, **fields)
    except ValueError:
        _refuse_malformed("", fields)
        raise
    except TypeError:
        _refuse_no_text(message, fields)
        raise


def build_part(path: str, message: Callable[P, MessageT], /, *args: P.args, **fields: P.kwargs) -> MessageT:
    """Return a message that is a part of another, at this path: its fields are named behind that."""
    try:
        return message(*args, **fields)
    except ValueError:
        _refuse_malformed(path, fields)
        raise


def _refuse_malformed(path: str, fields: Mapping[str, Any]) -> None:
    for name, text in _texts(fields):
        if not _is_unicode(text):
            ids = {one: fields.get(one) or "" for one in IDS}
            raise not_unicode(path + name, text, **ids) from None


def _refuse_no_text(message: Any, fields: Mapping[str, Any]) -> None:
    """Refuse a number or a UUID for an id, say, by name: what protobuf says of it names neither field nor type."""
    known = message.DESCRIPTOR.fields_by_name
    for name, value in fields.items():
        if known[name].type == FieldDescriptor.TYPE_STRING and not isinstance(value, str | list | tuple | None):
            raise TypeError(_no_text(name, value)) from None


def _no_text(name: str, value: object) -> str:
    return f"{name} is a str, not {type_name(type(value))}"


def check_text(field: str, text: str, *, limit: str, bytes_max: int, may_be_empty: bool = False, **ids: str) -> int:
    """Return the bytes of a text that a server would take.

    Raises:
        InvalidRequestError: It is empty, has a NUL or a lone surrogate.
        LimitExceededError: It is too long.
    """
    if not isinstance(text, str):
        raise TypeError(_no_text(field, text))
    if text.isascii() and 0 < len(text) <= bytes_max and "\0" not in text:
        return len(text)
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise not_unicode(field, text, **ids) from None
    if size_bytes > bytes_max:
        raise LimitExceededError(
            f"{field}: {size_bytes} bytes, at most {bytes_max} are allowed ({limit})",
            reason="LIMIT_EXCEEDED",
            metadata={
                "field": field,
                "limit": limit,
                "allowed": str(bytes_max),
                "found": str(size_bytes),
                "unit": "bytes",
            },
            **ids,
        )
    rule = "must not contain NUL" if "\0" in text else ""
    if not text and not may_be_empty:
        rule = f"must be 1 to {bytes_max} bytes"
    if rule:
        raise InvalidRequestError(
            f"{field}: {rule}; found {shown(text)}", reason="INVALID_FIELD", metadata={"field": field}, **ids
        )
    return size_bytes


def require_unicode(field: str, text: str, **ids: str) -> None:
    """Refuse a text that has no form on the wire.

    Raises:
        InvalidRequestError: It has a lone surrogate.
    """
    if not _is_unicode(text):
        raise not_unicode(field, text, **ids)


def list_of_texts(texts: Iterable[str], name: str) -> list[str]:
    """Return texts as a list; one text is none: each of its letters would be taken for one."""
    if isinstance(texts, str):
        raise TypeError(f"{name} is a list of strings, not one string")
    return list(texts)


def not_unicode(field: str, text: str, **ids: str) -> InvalidRequestError:
    """Return the error for a text with a lone surrogate."""
    return InvalidRequestError(
        f"{field}: {shown(text)} has a lone surrogate, which is no Unicode text",
        reason="INVALID_FIELD",
        metadata={"field": field},
        **ids,
    )


def shown(text: str) -> str:
    """Return a text as a message shows it."""
    return ascii(text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every text with its path, as the server names it."""
    for name, value in fields.items():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield f"{name} key", key
                yield f"{name}[{shown(key)}]", item
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                if isinstance(item, str):
                    yield f"{name}[{number}]", item
