"""Structured logs on standard error: one line per event, JSON for machines, colours for people."""

from __future__ import annotations

import logging
import sys

import structlog

from shared.settings import CoreSettings


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
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared_steps, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
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
