"""Structured logs on stderr: one JSON object a line for machines, readable lines on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor


def configure_logging(service: str, level: str = "info", format_: Literal["auto", "json", "console"] = "auto") -> None:
    """Sets up structlog and routes the standard library's logging through it. Call it once, first in the process.

    Args:
        service: name of the service; on every line.
        level: least severe level that is written.
        format_: `auto` is `console` on a terminal and else `json`.
    """
    console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # Tracebacks are plain on purpose: the rich ones print local variables, prompts among them.
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[_naming(service), structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _naming(service: str) -> Processor:
    """Returns a processor that puts the service's name on every line, whichever task or thread wrote it."""

    def name(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return name
