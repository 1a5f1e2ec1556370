"""Structured logs on standard error: one line per event, JSON for machines, colours for people."""

from __future__ import annotations

import logging
import sys
import traceback

import structlog

from shared.settings import CoreSettings

_QUOTING = ("psycopg", "sqlalchemy", "pydantic")
"""Libraries whose errors' texts may quote a row or a request, and so a prompt or a secret."""


def _frames(exc_info: structlog.typing.ExcInfo) -> str:
    """Where an exception and its causes came from, and their texts unless they may quote what is nobody's business."""
    lines: list[str] = []
    error: BaseException | None = exc_info[1]
    while error is not None:
        quotes = type(error).__module__.startswith(_QUOTING)
        told = [type(error).__name__ + "\n"] if quotes else traceback.format_exception_only(error)
        lines[:0] = [*traceback.format_tb(error.__traceback__), *told]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(lines).rstrip()


def configure_logs(settings: CoreSettings, service: str) -> None:
    """Set up structlog and the standard library's logging alike; every line names the service."""
    level = logging.getLevelNamesMapping()[settings.log_level]

    def name_service(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        # Not a bound context variable: threads begin with an empty context.
        return {**line, "service": service}

    shared_steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        name_service,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_frames),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    # Our own lines go straight to standard error: through the standard library's logging each costs twice as much.
    structlog.configure(
        processors=[*shared_steps, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_steps, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # Libraries speak at INFO about every request or migration step; their warnings are enough.
    for noisy in ("botocore", "boto3", "urllib3", "celery", "kombu", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
