"""Why jobs fail, by the codes of the catalogue that no other test provokes."""

from __future__ import annotations

from typing import cast

import pytest

from services.ar_worker.tasks import GridTasks
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.errors import TransientWorkError
from shared.lifecycle import finish
from shared.lifecycle.submit import NewJob, submit
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


def test_worker_with_another_model(db: Database, new_job: NewJob) -> None:
    """Work that was accepted for one model is not done by a worker with another; a worker that has it may come."""
    submit(db, new_job)
    claimed = claim_grid(db)
    # The model is looked at before anything else is touched.
    tasks = GridTasks(db, *cast("tuple[None, None, None]", (None,) * 3), model=cast(ModelInfo, MODEL), lease_s=30)  # type: ignore[arg-type]
    with pytest.raises(TransientWorkError) as caught:
        tasks.generate_grid(claimed, None)  # type: ignore[arg-type]
    assert caught.value.code == "model_mismatch"
