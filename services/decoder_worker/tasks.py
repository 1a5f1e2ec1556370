"""One image: claim, read the grid and the sources, run the engine, encode, store, finish. Knows jobs' rows and no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from services.decoder_worker.engine import DecoderEngine, ImageRequest, SourceInput
from services.decoder_worker.rendition import CONTENT_TYPES, ImageFormat, render
from shared.artifacts import TokenGridArtifact
from shared.db import Database
from shared.errors import TokenGridError, TransientWorkError
from shared.grid import TokenGrid
from shared.lease import HeldWork
from shared.lifecycle import claims, finish
from shared.progress import LiveState
from shared.source_store import load_source
from shared.storage import Storage, StorageMissingError


@dataclass(frozen=True)
class ImageTasks:
    """
    What a decoder worker does with an image.

    `keep_whole`: nothing of a drawn picture may be cut when it is resized (`rendition.render`).
    """

    db: Database
    storage: Storage
    live: LiveState
    engine: DecoderEngine
    codebook_size: int
    model_revision: str
    keep_whole: bool
    lease_s: float

    def claim(self, worker_id: str, image_id: str | None) -> claims.ClaimedImage | None:
        """Claim this image, or any that is released."""
        return claims.claim_image(self.db, worker_id, self.lease_s, image_id)

    def render_image(self, claim: claims.ClaimedImage, held: HeldWork) -> Callable[[], None]:
        """
        Draw, encode and store; returns the write that finishes the image.

        Raises:
            WorkError, StorageDownError: the attempt failed.
            WorkStoppedError: `held` was told to stop.
        """
        if claim.model_revision != self.model_revision:
            # Retried: while workers are being replaced, another one may have the right checkpoint.
            raise TransientWorkError("model_mismatch", f"drawn for model {claim.model_revision}, this worker has {self.model_revision}")
        try:
            grid = self._read_grid(claim)
        except (TokenGridError, StorageMissingError) as error:
            # Gone, broken, or not what the row says. Another AR run makes a new one.
            reason = str(error)
            return lambda: finish.redraw_grid(self.db, claim.id, claim.attempt, claim.grid_artifact.sha256, reason)
        request = ImageRequest(
            prompt=claim.prompt,
            grid=TokenGrid(claim.token_h, claim.token_w),
            token_ids=grid.token_ids,
            seed=claim.seed,
            steps=claim.steps,
            guidance_scale=claim.guidance_scale,
            sources=tuple(
                SourceInput(load_source(self.storage, source), token_ids)
                for source, token_ids in zip(claim.sources, grid.source_token_ids, strict=True)
            ),
        )
        result = self.engine.submit(request, held.on_progress, held.should_stop).result()
        held.on_progress("upload", 0, 1)
        # A check of the table allows these formats only.
        image_format = cast(ImageFormat, claim.format)
        data = render(result.to_pil(), claim.height_px, claim.width_px, image_format, claim.quality, keep_whole=self.keep_whole)
        artifact = claims.StoredArtifact(
            storage_key=f"t/{claim.tenant_id}/images/{claim.id}/{claim.attempt}.{claim.format}",
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
        )
        self.storage.put(artifact.storage_key, data, CONTENT_TYPES[image_format])
        return lambda: finish.finish_image(self.db, claim.id, claim.attempt, artifact)

    def _read_grid(self, claim: claims.ClaimedImage) -> TokenGridArtifact:
        """The grid from Redis while it is hot, else from S3; believed only if every byte and every number fits."""
        wanted = claim.grid_artifact
        data = self.live.get_grid(wanted.sha256)
        if data is None or hashlib.sha256(data).hexdigest() != wanted.sha256:
            data = self.storage.get(wanted.storage_key)
        if hashlib.sha256(data).hexdigest() != wanted.sha256:
            raise TokenGridError("artifact_broken", f"{wanted.storage_key} is not what was stored")
        grid = TokenGridArtifact.from_bytes(data)
        grid.check(claim.token_h, claim.token_w, len(claim.sources), self.codebook_size, self.model_revision)
        return grid
