"""What the tests of OpenAI's interface share: workers that draw at once, and streams as their clients read them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shared.db import Database
from shared.errors import PermanentWorkError
from shared.lifecycle import claims, drafts, finish, previews, work
from shared.states import Stage
from shared.storage import Storage

READ = finish.PromptTokens(text=21, image=6)
"""What every layout is said to have read."""


@contextmanager
def drawing(step: Callable[[], object]) -> Iterator[None]:
    """Workers that do `step` again and again meanwhile."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            step()
            stopping.wait(0.02)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def draw(db: Database, storage: Storage, picture: bytes, num_previews: int = 0) -> None:
    """Do all that waits, as the workers would, with pictures on the way for who wants them. Prompts with "doomed" or "cursed" fail."""
    artifact = claims.StoredArtifact("t/preview.webp", "ab" * 32, 100)
    if num_previews:
        storage.put(artifact.storage_key, b"preview", "image/webp")
    work.release(db, Stage.AR, 100)
    while grid := claims.claim_grid(db, "w", 30):
        if "doomed" in grid.prompt or "cursed" in grid.prompt:
            code = "unprocessable_prompt" if "doomed" in grid.prompt else "ar_overflow"
            finish.fail(db, Stage.AR, grid.id, grid.attempt, PermanentWorkError(code, "too long"), retryable=False)
            continue
        if num_previews and grid.wants_preview:
            drafts.record_draft(db, grid.id, grid.attempt, [1, 2, 3])
            if claim := previews.claim_preview(db, "w", 30, grid.model_revision):
                storage.put("t/draft.webp", b"draft", "image/webp")
                drafted = claims.StoredArtifact("t/draft.webp", "ab" * 32, 100)
                previews.finish_draft_preview(db, claim, drafted, 32, 32)
        finish.finish_grid(db, grid.id, grid.attempt, claims.StoredArtifact(f"t/{grid.id}", "ab" * 32, 100), 16, READ)
    work.release(db, Stage.DECODER, 100)
    while image := claims.claim_image(db, "w", 30):
        for step in range(1, num_previews):
            key = f"t/{image.id}-{step}.webp"
            storage.put(key, b"x0", "image/webp")
            previews.add_preview(db, image.id, image.attempt, claims.StoredArtifact(key, "ab" * 32, 2), 64, 64, step)
        key = f"t/{image.id}.png"
        storage.put(key, picture, "image/png")
        stored = claims.StoredArtifact(key, hashlib.sha256(picture).hexdigest(), len(picture))
        finish.finish_image(db, image.id, image.attempt, stored)


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream. Fails on whatever the official clients stumble over."""
    assert b"\nid:" not in b"\n" + data
    assert b"\nretry:" not in b"\n" + data
    events = []
    for frame in data.decode().split("\n\n")[:-1]:
        lines = frame.split("\n")
        if all(line.startswith(":") for line in lines):
            continue
        found = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert len(found) == 1, frame
        value = json.loads(found[0])
        assert lines[0] == f"event: {value['type']}" if "type" in value else len(lines) == 1
        events.append(value)
    return events
