"""One grid: claim, read the sources, run the engine, store the artifact, finish. Knows jobs' rows and no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from services.ar_worker.engine import ArEngine, GridRequest, WrittenTokens
from shared.artifacts import TokenGridArtifact, pack_written, unpack_written
from shared.checkpoint import ModelInfo
from shared.db import Database, DatabaseDownError
from shared.errors import StaleAttemptError, TokenGridError, TransientWorkError
from shared.grid import TokenGrid
from shared.lease import HeldWork
from shared.lifecycle import claims, drafts, finish
from shared.progress import LiveState
from shared.source_store import load_source
from shared.storage import Storage
from shared.wakeup import Topic

log = structlog.get_logger()


@dataclass(frozen=True)
class GridTasks:
    """What an AR worker does with a grid."""

    db: Database
    storage: Storage
    live: LiveState
    engine: ArEngine
    model: ModelInfo
    lease_s: float

    def claim(self, worker_id: str, grid_id: str | None) -> claims.ClaimedGrid | None:
        """Claim this grid, or any that is released, unless it is for a worker with another checkpoint."""
        return claims.claim_grid(self.db, worker_id, self.lease_s, grid_id, model_revision=self.model.revision, begin_later=True)

    def generate_grid(self, claim: claims.ClaimedGrid, held: HeldWork) -> Callable[[], None]:
        """
        Write the tokens and store them; returns the write that finishes the grid, or holds it where its draft needs approval.

        Raises:
            WorkError, StorageDownError: the attempt failed.
            WorkStoppedError: `held` was told to stop.
        """
        if claim.model_revision != self.model.revision:
            # No live worker had the right checkpoint. Retried: while workers are being replaced, one may come.
            raise TransientWorkError("model_mismatch", f"accepted for model {claim.model_revision}, this worker has {self.model.revision}")
        shape = TokenGrid(claim.token_h, claim.token_w)
        num_draft = shape.num_draft_tokens(len(claim.sources))
        num_tokens = num_draft + shape.num_tokens
        written = self._written(claim, num_draft if claim.draft_only else num_tokens)
        draft = written[:num_draft] if len(written) >= num_draft else ()
        if draft:
            self._tell_draft(claim, draft)

        def keep(so_far: WrittenTokens) -> None:
            nonlocal draft
            self.live.put_checkpoint(claim.id, pack_written(so_far.token_ids, claim.seed))
            if not draft and num_draft and len(so_far.token_ids) >= num_draft:
                draft = so_far.token_ids[:num_draft]
                self._tell_draft(claim, draft)

        request = GridRequest(
            prompt=claim.prompt,
            grid=shape,
            seed=claim.seed,
            temperature=claim.temperature,
            top_p=claim.top_p,
            sources=tuple(load_source(self.storage, source) for source in claim.sources),
            lora=claim.lora,
            written=written,
            draft_only=claim.draft_only,
        )
        result = self.engine.run(request, held.on_progress, held.should_stop, keep, lambda: claims.begin(self.db, claim.new_job_ids))
        if not claim.draft_only:
            self._check_complete(result.token_ids, shape)
        if claim.draft_only:

            def hold() -> None:
                drafts.hold_grid(self.db, claim.id, claim.attempt, draft)
                self.live.ring(Topic.SPARE_WORK)

            return hold
        data = TokenGridArtifact(
            token_ids=result.token_ids,
            source_token_ids=result.source_token_ids,
            prompt_sha256=hashlib.sha256(claim.prompt.encode()).hexdigest(),
            seed=claim.seed,
            temperature=claim.temperature,
            top_p=claim.top_p,
            codebook_size=self.model.codebook_size,
            model_revision=self.model.revision,
        ).to_bytes()
        artifact = claims.StoredArtifact(
            # The attempt is in the key: a late writer can never overwrite the winner's bytes.
            storage_key=f"t/{claim.tenant_id}/grids/{claim.id}/{claim.attempt}.safetensors",
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
        )
        self.storage.put(artifact.storage_key, data, "application/octet-stream")
        self.live.put_grid(artifact.sha256, data)

        def end() -> None:
            num_source = result.num_source_tokens
            read = finish.PromptTokens(result.num_prompt_tokens - num_source, num_source)
            num_written = num_tokens - len(written)
            is_released = finish.finish_grid(self.db, claim.id, claim.attempt, artifact, num_written, read, tell_later=True)
            # The decoder's work begins while its customer is told that it may.
            self.live.ring(Topic.IMAGES_RELEASED if is_released else Topic.IMAGES_READY)
            finish.tell_tokens(self.db, claim.id)
            # Not before the finish is on disk, which it is with what was told after it.
            self.live.drop_checkpoint(claim.id)

        return end

    def _written(self, claim: claims.ClaimedGrid, num_tokens: int) -> tuple[int, ...]:
        """What earlier attempts wrote: the checkpoint while Redis has it, else the draft that stands in the row."""
        data = self.live.get_checkpoint(claim.id)
        if data is not None:
            try:
                written = unpack_written(data, claim.seed, self.model.codebook_size, num_tokens)
            except TokenGridError as error:
                log.warning("checkpoint_refused", error=str(error))
            else:
                return max(written, claim.draft_token_ids, key=len)
        return claim.draft_token_ids

    def _check_complete(self, rows: Sequence[Sequence[int]], shape: TokenGrid) -> None:
        """
        Raises:
            TransientWorkError: the engine left something out or wrote what is no token of a picture; another try may go well.
        """
        lengths = [len(row) for row in rows]
        if lengths != [shape.token_w] * shape.token_h:
            raise TransientWorkError("ar_incomplete_grid", f"{sum(lengths)} of {shape.num_tokens} tokens in {len(lengths)} rows")
        if not all(0 <= token_id < self.model.codebook_size for row in rows for token_id in row):
            raise TransientWorkError("ar_incomplete_grid", f"a token is outside of the codebook of {self.model.codebook_size}")

    def _tell_draft(self, claim: claims.ClaimedGrid, draft: tuple[int, ...]) -> None:
        """Let a picture of the draft be drawn. It is not worth an attempt: what goes wrong here is only logged."""
        if not claim.wants_preview or claim.draft_only:
            return
        try:
            drafts.record_draft(self.db, claim.id, claim.attempt, draft)
            self.live.ring(Topic.SPARE_WORK)
        except (DatabaseDownError, StaleAttemptError) as error:
            log.warning("draft_not_recorded", error=str(error))
