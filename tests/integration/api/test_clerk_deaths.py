"""A clerk of batches that is really killed, again and again in the middle of its work: no line is lost, none doubled, all counted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr

from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.db import Database
from tests.integration.api.conftest import png, report_model
from tests.integration.api.openai import draw
from tests.integration.api.test_openai_batches import content, line, make, read
from tests.ledger import query
from tests.nursery import Child, Nursery
from tests.stack import wait_until

_LINES = 200
_LOOK_S = 0.002
"""Shorter than any step of the clerk, so that it dies within it."""


@pytest.fixture
def start(nursery: Nursery, settings: ApiSettings, tmp_path: Path) -> Iterator[Callable[[], Child]]:
    """Starts a clerk process on the stores of the test."""
    given = {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in settings}
    ours = {f"GLMQ_{name.upper()}": str(given[name]) for name in settings.model_fields_set}
    clerks: list[Child] = []

    def run() -> Child:
        clerks.append(nursery.start("services.api.batch_clerk", {**os.environ, **ours}, tmp_path / "clerk.log"))
        return clerks[-1]

    yield run
    for clerk in clerks:
        clerk.kill()
        clerk.wait()


def test_killed_clerks(client: FlaskClient, db: Database, parts: Parts, start: Callable[[], Child]) -> None:
    """
    Killed while lines become jobs (by one statement, and one by one), and while results are written.

    Each time a successor goes on at once, and in the end there is one result for each line.
    """

    def kill_when(condition: Callable[[], bool]) -> None:
        clerk = start()
        wait_until(condition, 60, _LOOK_S)
        assert clerk.poll() is None
        clerk.kill()
        assert clerk.wait() == -signal.SIGKILL

    def count(of: str) -> int:
        return int(query(db, f"SELECT count(*) FROM {of}")[0][0])

    # Given: of each 100 lines 20 are new, the others share one picture, but for ten, which have none.
    failing = {"prompt": "doomed", "seed": 0}

    def fields(index: int) -> dict[str, Any]:
        place = index % 100
        return {} if place < 20 else failing if place >= 90 else {"prompt": "Shared", "seed": 1 + index // 100}

    of_index = [fields(index) for index in range(_LINES)]
    batch = make(client, [line(f"c{index}", **of_index[index]) for index in range(_LINES)])
    # When
    kill_when(lambda: count("job") > 0)
    kill_when(lambda: count("job") > 40)
    clerk = start()
    wait_until(lambda: count("job") == _LINES)
    report_model(db)
    draw(db, parts.storage, png(64, 64))
    wait_until(lambda: count("batch WHERE status <> 'running'") == 1, 60, _LOOK_S)
    clerk.kill()
    clerk.wait()
    start()
    wait_until(lambda: count("batch WHERE status = 'completed'") == 1)
    # Then
    assert query(db, "SELECT count(*), count(DISTINCT custom_id) FROM job") == [(_LINES, _LINES)]
    assert query(db, "SELECT count(*), count(DISTINCT job_id) FROM batch_item") == [(_LINES, _LINES)]
    done = read(client, batch)
    lost = [f"c{index}" for index in range(_LINES) if of_index[index] is failing]
    assert done["request_counts"] == {"total": _LINES, "completed": _LINES - len(lost), "failed": len(lost)}
    kept = [record["custom_id"] for record in content(client, done["output_file_id"])]
    assert kept == [f"c{index}" for index in range(_LINES) if of_index[index] is not failing]
    assert [record["custom_id"] for record in content(client, done["error_file_id"])] == lost
    assert count("file WHERE purpose = 'batch_output'") == 2
    assert count("event WHERE type = 'batch.completed'") == 1
    assert count("grid") == 2 * 20 + 2 + 1
    seqs = [seq for (seq,) in query(db, "SELECT seq FROM event ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))
