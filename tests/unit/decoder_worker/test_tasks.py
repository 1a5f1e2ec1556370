"""What a decoder worker does with what its engine shows it."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from services.decoder_worker.interim import PreviewLost
from services.decoder_worker.tasks import ImageTasks

NOTHING: Any = None


def test_a_preview_that_could_not_be_made_is_logged() -> None:
    """The engine has no log: the task writes that a preview is missing, and why, and touches neither ledger nor stores."""
    tasks = ImageTasks(
        db=NOTHING,
        storage=NOTHING,
        live=NOTHING,
        engine=NOTHING,
        codebook_size=256,
        model_revision="r1",
        keep_whole=False,
        lease_s=30,
        preview_max_px=256,
    )
    with capture_logs() as lines:
        tasks._keep(NOTHING, PreviewLost(3, "OutOfMemoryError('CUDA out of memory')"))
    assert [(line["event"], line["num_done"], line["error"]) for line in lines] == [
        ("preview_lost", 3, "OutOfMemoryError('CUDA out of memory')")
    ]
