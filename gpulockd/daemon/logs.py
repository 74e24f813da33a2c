"""The daemon's log: `event` is a dotted name, `message` the text, the rest are fields.

JSON lines for machines (systemd's journal, a file, a pipe), coloured text on a terminal; what libraries say through
`logging` takes the same way.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def set_up(level: str = "info", *, json: bool | None = None, stream: TextIO | None = None) -> None:
    """Start logging to `stream` (standard error), as JSON lines unless it is a terminal; once per process.

    :param level: "debug", "info", "warning" or "error"
    :param json: True or False for one of the two forms whatever the stream is
    """
    out = sys.stderr if stream is None else stream
    as_json = not out.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _name_foreign],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(as_json, out)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A log that nobody reads any more (a closed terminal) must not end the daemon.
    logging.raiseExceptions = False


def _renderers(as_json: bool, out: TextIO) -> list[Processor]:
    if as_json:
        return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(ensure_ascii=False)]
    colors = out.isatty() and not os.environ.get("NO_COLOR")
    return [
        _message_first,
        _printable,
        structlog.dev.ConsoleRenderer(event_key="message", timestamp_key="time", colors=colors),
    ]


def _name_foreign(_logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    """Give a library's record our shape: its logger is the event, its text the message."""
    record["message"] = record.get("event", "")
    found = record.get("_record")
    record["event"] = found.name if isinstance(found, logging.LogRecord) else "log"
    return record


def _printable(_logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    """Let no name that a user chose move the cursor or begin a line of its own."""
    return {name: _shown(value) if isinstance(value, str) else value for name, value in record.items()}


def _shown(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _message_first(_logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    """Let a person read the sentence; where an event has none, its name."""
    if "message" not in record:
        record["message"] = record.pop("event", "")
    if "time" in record:
        record["time"] = str(record["time"])[11:19]
    return record
