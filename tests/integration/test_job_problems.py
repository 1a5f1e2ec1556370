"""Why jobs fail, by the codes of the catalogue that no other test provokes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.ar_worker.engine import GridResult
from services.ar_worker.tasks import GridTasks
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.errors import TransientWorkError
from shared.lease import HeldWork
from shared.lifecycle import finish
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.submit import submit
from tests.integration.api.conftest import MODEL
from tests.ledger import ARTIFACT, claim_grid, claim_image, document, execute, finish_one_grid


def test_layout_that_is_lost_again_and_again(db: Database, new_job: NewJob) -> None:
    """A picture whose layout cannot be kept fails after so many redraws, and says so."""
    job_id, _ = submit(db, new_job)
    for _ in range(finish.MAX_ERRORS):
        execute(db, "UPDATE grid SET not_before = now()")
        finish_one_grid(db)
        execute(db, "UPDATE image SET not_before = now()")
        image = claim_image(db)
        finish.redraw_grid(db, image.id, image.attempt, ARTIFACT.sha256, "gone")
    job = document(db, new_job, job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "artifact_lost")


@pytest.mark.parametrize(
    "rows", [[[1] * 4] * 3, [[1] * 4] * 3 + [[1] * 3], [[1] * 4] * 3 + [[1, 1, 1, 512]], [[1] * 4] * 3 + [[1, 1, 1, -1]]]
)
def test_layout_that_is_not_complete(db: Database, new_job: NewJob, rows: list[list[int]]) -> None:
    """An engine that leaves tokens out, or writes some that are none, has failed; nothing is stored, and another try may go well."""
    submit(db, new_job)
    claimed = replace(claim_grid(db), token_h=4, token_w=4, wants_preview=False, model_revision=MODEL.revision)
    result = GridResult(rows, (), 20)
    engine = SimpleNamespace(run=lambda *_: result)
    live = SimpleNamespace(get_checkpoint=lambda _: None)
    tasks = GridTasks(db, cast(Any, None), cast(Any, live), cast(Any, engine), cast(ModelInfo, MODEL), lease_s=30)
    with pytest.raises(TransientWorkError) as caught:
        tasks.generate_grid(claimed, HeldWork(claimed.id, claimed.attempt))
    assert caught.value.code == "ar_incomplete_grid"


def test_worker_with_another_model(db: Database, new_job: NewJob) -> None:
    """Work that was accepted for one model is not done by a worker with another; a worker that has it may come."""
    submit(db, new_job)
    claimed = claim_grid(db)
    # The model is looked at before anything else is touched.
    tasks = GridTasks(db, *cast("tuple[None, None, None]", (None,) * 3), model=cast(ModelInfo, MODEL), lease_s=30)
    with pytest.raises(TransientWorkError) as caught:
        tasks.generate_grid(claimed, None)
    assert caught.value.code == "model_mismatch"
