"""What a log says of an exception."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

PROGRAM = """
import structlog
from psycopg.errors import CheckViolation
from shared.logs import configure_logs
from shared.settings import CoreSettings
configure_logs(CoreSettings.model_construct(log_level="INFO", log_format="json"), "api")
try:
    try:
        raise CheckViolation("Failing row contains (ZEBRA)")
    except CheckViolation as error:
        raise RuntimeError("no more room") from error
except RuntimeError:
    structlog.get_logger().exception("stumbled")
"""


def test_errors_of_the_database_are_not_quoted() -> None:
    """An exception is logged with its frames and its causes, but not with a text that may hold a row."""
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stderr
    line = json.loads(told)
    assert line["level"] == logging.getLevelName(logging.ERROR).lower()
    assert "CheckViolation" in line["exception"]
    assert line["exception"].endswith("RuntimeError: no more room")
    assert "ZEBRA" not in told
