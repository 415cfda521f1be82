"""Values of one piece that JSON has no word for, such as times and decimals, as the payload of a tag and back."""

from __future__ import annotations

import base64
import datetime as dt
import math
import re
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from milepost._refusals import RefusedError

_ZONED: Final = re.compile(r"(?P<moment>[^\[\]]+)\[(?P<zone>[^\[\]]+)\]\Z")

_SECOND: Final = "[fold=1]"
"""Behind a local time: the second of the two that it can be when clocks are set back."""


class Scalar(NamedTuple):
    """How a type is tagged."""

    tag: str
    write: Callable[[Any], object]


def _write_moment(moment: dt.datetime | dt.time) -> str:
    text = moment.isoformat()
    if isinstance(moment.tzinfo, zoneinfo.ZoneInfo):
        if moment.tzinfo.key is None:
            raise RefusedError("has a time zone without a key", moment)
        text += f"[{moment.tzinfo.key}]"
        if isinstance(moment, dt.datetime):
            # Its offset tells which of two equal hours it is.
            return text
    return text + _SECOND if moment.fold else text


def _read_datetime(text: str) -> dt.datetime:
    if text.endswith(_SECOND):
        return _read_datetime(text.removesuffix(_SECOND)).replace(fold=1)
    zoned = _ZONED.match(text)
    if zoned is None:
        return dt.datetime.fromisoformat(text)
    fixed = dt.datetime.fromisoformat(zoned["moment"])
    zone = _zone(zoned["zone"])
    offset = fixed.utcoffset()
    if offset is None:
        raise ValueError("a zone needs an offset")
    # Twice a year an hour comes twice, or not at all: the offset says which one was meant.
    for fold in (0, 1):
        local = fixed.replace(tzinfo=zone, fold=fold)
        if local.utcoffset() == offset:
            return local
    # The rules of the zone have changed since: the instant stays.
    return fixed.astimezone(zone)


def _read_time(text: str) -> dt.time:
    if text.endswith(_SECOND):
        return _read_time(text.removesuffix(_SECOND)).replace(fold=1)
    zoned = _ZONED.match(text)
    if zoned is None:
        return dt.time.fromisoformat(text)
    return dt.time.fromisoformat(zoned["moment"]).replace(tzinfo=_zone(zoned["zone"]))


def _zone(key: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(key)
    except (KeyError, OSError, ValueError):
        raise RefusedError(
            f"has the time zone {key!r}, which this host does not know", None, found="datetime"
        ) from None


def _read_timedelta(payload: Any) -> dt.timedelta:
    days, seconds, microseconds = payload
    if not type(days) is type(seconds) is type(microseconds) is int:
        raise TypeError("three integers make a timedelta")
    return dt.timedelta(days, seconds, microseconds)


def _read_float(payload: Any) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[_text(payload)]


def _text(payload: Any) -> str:
    if type(payload) is not str:
        raise TypeError("text is needed")
    return payload


SCALARS: Final[Mapping[type, Scalar]] = {
    dt.datetime: Scalar("datetime", _write_moment),
    dt.date: Scalar("date", dt.date.isoformat),
    dt.time: Scalar("time", _write_moment),
    dt.timedelta: Scalar("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: Scalar("decimal", str),
    uuid.UUID: Scalar("uuid", str),
}

READERS: Final[Mapping[str, Callable[[Any], object]]] = {
    "bytes": lambda payload: base64.b64decode(_text(payload), validate=True),
    "int": lambda payload: int(_text(payload), 16),
    "float": _read_float,
    "datetime": lambda payload: _read_datetime(_text(payload)),
    "date": lambda payload: dt.date.fromisoformat(_text(payload)),
    "time": lambda payload: _read_time(_text(payload)),
    "timedelta": _read_timedelta,
    "decimal": lambda payload: Decimal(_text(payload)),
    "uuid": lambda payload: uuid.UUID(_text(payload)),
}
