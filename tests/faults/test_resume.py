"""A worker dies late in its work: the successor goes on from the last checkpoint, and the picture is the undisturbed one."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import redis

from tests.stack import Stack, wait_until

LONG = {"prompt": "a long way", "size": "512x512", "steps": 2, "seed": 31, "cache": "off", "previews": False}
"""Long to lay out."""
SLOW = {**LONG, "size": "256x256", "steps": 60}
"""Slow to draw."""
NUM_TOKENS = 256 + 256
"""Of a square picture of 512 pixels: draft and grid."""
CHECKPOINT_TOKENS = 256
CHECKPOINT_STEPS = 10
"""What GLMQ_DECODER_CHECKPOINT_STEPS is by default."""


def wait_for_progress(stack: Stack, job: dict[str, Any], phase: str, done: int) -> int:
    """Wait until a job is in this phase and at least so far; how far it is."""

    def reached() -> int | None:
        now = stack.job(job["id"])["progress"]
        return now["done"] if now["phase"] == phase and now["done"] >= done else None

    return int(wait_until(reached, 60, 0.005))


def units_of_winner(stack: Stack, job: dict[str, Any], stage: str) -> int:
    """Tokens or steps that the attempt which finished the work did itself."""
    query = """
        SELECT usage.units FROM usage JOIN image ON usage.work_id IN (image.id, image.grid_id)
        JOIN output ON output.image_id = image.id WHERE output.job_id = %s AND usage.stage = %s
    """
    with psycopg.connect(stack.environment["GLMQ_DATABASE_URL"]) as connection:
        ((units,),) = connection.execute(query, (job["id"], stage)).fetchall()
    return int(units)


def picture(stack: Stack, request: dict[str, Any]) -> str:
    """Hash of the picture when nothing dies."""
    return str(stack.wait(stack.submit(**request))["outputs"][0]["sha256"])


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> str:
    """Hash of the slow picture."""
    return picture(stack, SLOW)


def test_a_grid_goes_on_from_its_last_checkpoint(stack: Stack) -> None:
    """At most 256 tokens are computed twice, and all tokens are the same."""
    undisturbed = picture(stack, LONG)
    job = stack.submit(**LONG)
    written = 256 + wait_for_progress(stack, job, "grid", 60)
    stack.kill("ar_worker")
    stack.start("ar_worker")

    done = stack.wait(job, 90)

    assert done["outputs"][0]["sha256"] == undisturbed
    assert units_of_winner(stack, job, "ar") <= NUM_TOKENS - written + CHECKPOINT_TOKENS


def test_a_picture_goes_on_from_its_last_checkpoint(stack: Stack, undisturbed: str) -> None:
    """At most k steps are computed twice, and the picture is the same."""
    job = stack.submit(**SLOW)
    finished = wait_for_progress(stack, job, "denoise", 25)
    stack.kill("decoder_worker")
    stack.start("decoder_worker")

    done = stack.wait(job, 90)

    assert done["outputs"][0]["sha256"] == undisturbed
    assert units_of_winner(stack, job, "decoder") <= SLOW["steps"] - finished + CHECKPOINT_STEPS


@pytest.mark.parametrize("damage", ["lost", "broken"])
def test_without_its_checkpoint_work_begins_anew(stack: Stack, undisturbed: str, damage: str) -> None:
    """Redis was flushed, or holds something else: the same picture, for more work."""
    client = redis.Redis.from_url(stack.environment["GLMQ_REDIS_URL"])
    job = stack.submit(**SLOW)
    wait_for_progress(stack, job, "denoise", 25)
    stack.kill("decoder_worker")
    for key in list(client.scan_iter("glmq:checkpoint:*")):
        if damage == "broken":
            client.set(key, b"\x00damaged")
        else:
            client.delete(key)
    client.close()
    stack.start("decoder_worker")

    done = stack.wait(job, 90)

    assert done["outputs"][0]["sha256"] == undisturbed
    assert units_of_winner(stack, job, "decoder") == SLOW["steps"]
