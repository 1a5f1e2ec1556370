"""One grid: claim, read the sources, run the engine, store the artifact, finish. Knows jobs' rows and no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from services.ar_worker.engine import ArEngine, GridRequest
from shared.artifacts import TokenGridArtifact
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.errors import TransientWorkError
from shared.grid import TokenGrid
from shared.lease import HeldWork
from shared.lifecycle import claims, finish
from shared.progress import LiveState
from shared.source_store import load_source
from shared.storage import Storage


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
        """Claim this grid, or any that is released."""
        return claims.claim_grid(self.db, worker_id, self.lease_s, grid_id)

    def generate_grid(self, claim: claims.ClaimedGrid, held: HeldWork) -> Callable[[], None]:
        """
        Write the tokens and store them; returns the write that finishes the grid.

        Raises:
            WorkError, StorageDownError: the attempt failed.
            WorkStoppedError: `held` was told to stop.
        """
        if claim.model_revision != self.model.revision:
            # Retried: while workers are being replaced, another one may have the right checkpoint.
            raise TransientWorkError("model_mismatch", f"accepted for model {claim.model_revision}, this worker has {self.model.revision}")
        shape = TokenGrid(claim.token_h, claim.token_w)
        request = GridRequest(
            prompt=claim.prompt,
            grid=shape,
            seed=claim.seed,
            temperature=claim.temperature,
            top_p=claim.top_p,
            sources=tuple(load_source(self.storage, source) for source in claim.sources),
        )
        result = self.engine.submit(request, held.on_progress, held.should_stop).result()
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
        num_tokens = shape.num_draft_tokens(len(claim.sources)) + shape.num_tokens
        return lambda: finish.finish_grid(self.db, claim.id, claim.attempt, artifact, num_tokens)
