"""Where a job stands in the line and when to ask again, by what live workers report."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from services.api.parts import Parts
from shared.db import Database
from shared.lifecycle import work
from shared.states import Stage
from tests.integration.api.conftest import AR_SPEED
from tests.ledger import claim_grid, execute

GRID_S = 272 * AR_SPEED.seconds_per_unit


def forget(parts: Parts) -> None:
    """What was known of the line and the workers is old."""
    parts.outlook.forget()
    parts.fleet.forget()


@pytest.mark.usefixtures("workers")
def test_place_in_the_line(client: FlaskClient, parts: Parts, db: Database) -> None:
    """What came before in one's own lane and in those before it counts; what is done, begun or behind does not."""
    jobs = [client.post("/v1/jobs", json={"prompt": "a fox", "seed": seed}).get_json()["id"] for seed in range(3)]
    urgent = client.post("/v1/jobs", json={"prompt": "a fox", "seed": 9, "priority": "interactive"}).get_json()["id"]

    def ahead() -> list[float | None]:
        forget(parts)
        places = [client.get(f"/v1/jobs/{job_id}").get_json()["queue"] for job_id in (*jobs, urgent)]
        return [place and place["seconds_ahead"] for place in places]

    assert ahead() == [pytest.approx(count * GRID_S, abs=0.1) for count in (1, 2, 3, 0)]
    assert client.get(f"/v1/jobs/{urgent}").get_json()["queue"]["lane"] == "interactive"
    listed = client.get("/v1/jobs?order=asc").get_json()["data"]
    assert [job["queue"]["seconds_ahead"] for job in listed] == ahead()
    assert all(event["data"]["queue"] is None for event in client.get("/v1/events").get_json()["data"])
    claim_grid(db)
    assert ahead()[3] is None
    client.post(f"/v1/jobs/{jobs[0]}/cancel")
    assert ahead() == [None, pytest.approx(0, abs=0.1), pytest.approx(GRID_S, abs=0.1), None]
    work.release(db, Stage.AR, 100)
    assert ahead()[2] == pytest.approx(GRID_S, abs=0.1)


@pytest.mark.usefixtures("workers")
def test_when_to_ask_again(client: FlaskClient, parts: Parts, db: Database) -> None:
    """A quarter of what is left: of a short job the shortest time, of one behind a long queue the longest."""
    [first] = [client.post("/v1/jobs", json={"prompt": "a fox", "seed": seed}) for seed in range(1)]
    assert first.headers["Retry-After"] == "1"
    for seed in range(1, 30):
        client.post("/v1/jobs", json={"prompt": "a fox", "seed": seed})
    forget(parts)
    last = client.post("/v1/jobs", json={"prompt": "a fox", "seed": 99})
    assert last.headers["Retry-After"] == "15"
    execute(db, "UPDATE grid SET cost_s = NULL")
    forget(parts)
    answer = client.get(last.headers["Location"])
    assert answer.get_json()["queue"] == {"lane": "standard", "seconds_ahead": None}
    assert answer.headers["Retry-After"] == "1"


def test_without_workers_nothing_is_told(client: FlaskClient) -> None:
    """Nobody knows how long it takes; the lane is known."""
    assert client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["queue"] == {"lane": "standard", "seconds_ahead": None}
