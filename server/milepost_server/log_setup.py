"""How log lines look. Used by the server and by its storage process, which must stay small: imports nothing large."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


def set_up_logging(level: int, log_format: str) -> None:
    """Send logs of this process to stderr, as text or one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    handler.addFilter(_is_worth_logging)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Tell whether to log a record: all but what gRPC says when a caller goes away while it is being answered.

    That is no fault of anybody's, and would put a traceback into the log of a healthy server.
    """
    is_vanished_peer = bool(
        record.name.startswith("grpc.")
        and record.exc_info
        and record.exc_info[0] is not None
        and record.exc_info[0].__name__ == "ExecuteBatchError"
    )
    return not is_vanished_peer


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  (its base's name)
        return _time(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
