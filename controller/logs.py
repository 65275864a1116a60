"""How does a process of Pleach log? One event a line on stderr, as JSON or as text.

Fields go into `extra={"datapath": …}`; what is in `extra` is in the line.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


def fields(record: logging.LogRecord) -> dict[str, object]:
    """What an event came with in `extra`, by name."""
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def _instant(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """A line is one JSON object: time, level, logger, event, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _instant(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A line is time, level, event, then field=value; for eyes."""

    def format(self, record: logging.LogRecord) -> str:
        more = "".join(f" {name}={value}" for name, value in fields(record).items())
        text = f"{_instant(record)} {record.levelname.lower():7} {record.getMessage()}{more}"
        text = text.replace("\r", "\\r").replace("\n", "\\n")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure(level: str, form: Literal["json", "text"]) -> None:
    """Send the logs of this process to stderr from `level` on, replacing what was set up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What these tell at INFO is said by lines of our own, or says nothing.
    for talker in ("httpx", "uvicorn.error", "alembic.runtime.plugins"):
        logging.getLogger(talker).setLevel(logging.WARNING)
