"""
One image: claim, read the grid and the sources, run the engine, encode, store, finish. And one preview of a draft.

Knows jobs' rows and no tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import structlog
from PIL.Image import Image

from services.decoder_worker.engine import DecoderEngine, ImageRequest, SourceInput
from services.decoder_worker.interim import Interim, LatentsSoFar, Preview, PreviewLost
from services.decoder_worker.preview import draft_request
from services.decoder_worker.rendition import CONTENT_TYPES, ImageFormat, render
from shared.artifacts import TokenGridArtifact
from shared.db import Database, DatabaseDownError
from shared.errors import EngineBrokenError, GlmqError, TokenGridError, TransientWorkError
from shared.grid import TokenGrid
from shared.lease import HeldWork
from shared.lifecycle import claims, finish, previews
from shared.progress import LiveState
from shared.rendition import Rendition
from shared.source_store import load_source
from shared.storage import Storage, StorageDownError, StorageMissingError

_PREVIEW_FORMAT: ImageFormat = "webp"
"""A preview is looked at once: a tenth of a PNG's bytes."""

log = structlog.get_logger()


@dataclass(frozen=True)
class ImageTasks:
    """
    What a decoder worker does with an image.

    Attributes:
        keep_whole: nothing of a drawn picture may be cut when it is resized (`rendition.render`).
        preview_max_px: longest side of a draft's preview.
    """

    db: Database
    storage: Storage
    live: LiveState
    engine: DecoderEngine
    codebook_size: int
    model_revision: str
    keep_whole: bool
    lease_s: float
    preview_max_px: int

    def claim(self, worker_id: str, image_id: str | None) -> claims.ClaimedImage | None:
        """Claim this image, or any that is released."""
        return claims.claim_image(self.db, worker_id, self.lease_s, image_id, model_revision=self.model_revision, begin_later=True)

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
            glyph_texts=claim.glyph_texts,
            grid=TokenGrid(claim.token_h, claim.token_w),
            token_ids=grid.token_ids,
            seed=claim.seed,
            steps=claim.steps,
            guidance_scale=claim.guidance_scale,
            sources=tuple(
                SourceInput(load_source(self.storage, source), token_ids, key=source.sha256)
                for source, token_ids in zip(claim.sources, grid.source_token_ids, strict=True)
            ),
            lora=claim.lora,
            fast=claim.fast,
            show_previews=claim.wants_previews,
            resume=self._latents(claim),
        )
        result = self.engine.run(
            request,
            held.on_progress,
            held.should_stop,
            lambda interim: self._keep(claim, interim),
            lambda: claims.begin(self.db, claim.new_job_ids),
        )
        if result.num_encoded:
            # Half a step's work each, once for all pictures of a source that come to this worker together.
            log.info("sources_encoded", sources=result.num_encoded)
        held.on_progress("upload", 0, 1)
        # A check of the table allows these formats only.
        image_format = cast(ImageFormat, claim.format)
        picture = result.to_pil()
        data = render(
            picture,
            claim.height_px,
            claim.width_px,
            image_format,
            claim.quality,
            keep_whole=self.keep_whole,
            max_bytes=claim.max_bytes,
        )
        key = f"t/{claim.tenant_id}/images/{claim.id}/{claim.attempt}"
        artifact = self._store(f"{key}.{claim.format}", data, image_format)
        renditions = {rendition.name: self._store_rendition(picture, rendition, key) for rendition in claim.renditions}

        def end() -> None:
            finish.finish_image(self.db, claim.id, claim.attempt, artifact, result.num_steps, renditions)
            self.live.drop_checkpoint(claim.id)

        return end

    def _store_rendition(self, picture: Image, rendition: Rendition, key: str) -> claims.StoredArtifact:
        image_format = cast(ImageFormat, rendition.format)
        data = render(
            picture,
            rendition.height_px,
            rendition.width_px,
            image_format,
            rendition.quality,
            keep_whole=self.keep_whole,
            fit=rendition.fit,
            max_bytes=rendition.max_bytes,
        )
        return self._store(f"{key}-{rendition.name}.{rendition.format}", data, image_format)

    def draw_preview(self, worker_id: str) -> bool:
        """
        Draw the draft of some grid that a customer wants to see early. False: none waits.

        It may be lost at any point: nothing else depends on it.

        Raises:
            EngineBrokenError: the device is lost, to whatever comes next as well.
        """
        try:
            claim = previews.claim_preview(self.db, worker_id, self.lease_s, self.model_revision)
            if claim is None:
                return False
            ids = claim.draft_token_ids
            rows = [list(ids[start : start + claim.draft_w]) for start in range(0, len(ids), claim.draft_w)]
            request = replace(draft_request(claim.prompt, rows, self.preview_max_px), glyph_texts=claim.glyph_texts, lora=claim.lora)
            image = self.engine.submit(request, lambda *_: None, lambda: False).result().to_pil()
            key = f"t/{claim.tenant_id}/previews/{claim.grid_id}/draft-{claim.attempt}.{_PREVIEW_FORMAT}"
            artifact = self._store(key, render(image, image.height, image.width, _PREVIEW_FORMAT), _PREVIEW_FORMAT)
            return previews.finish_draft_preview(self.db, claim, artifact, image.height, image.width)
        except EngineBrokenError:
            raise
        except GlmqError as error:
            log.warning("preview_lost", error=str(error))
            return False

    def _keep(self, claim: claims.ClaimedImage, interim: Interim) -> None:
        """Store what exists before the end. Nothing that goes wrong here is worth an attempt."""
        match interim:
            case LatentsSoFar():
                self.live.put_checkpoint(claim.id, interim.to_bytes())
            case Preview():
                image = interim.to_pil()
                key = f"t/{claim.tenant_id}/previews/{claim.id}/{claim.attempt}-{interim.num_done}.{_PREVIEW_FORMAT}"
                try:
                    artifact = self._store(key, render(image, image.height, image.width, _PREVIEW_FORMAT), _PREVIEW_FORMAT)
                    previews.add_preview(self.db, claim.id, claim.attempt, artifact, image.height, image.width, interim.num_done)
                except (StorageDownError, DatabaseDownError) as error:
                    log.warning("preview_lost", num_done=interim.num_done, error=str(error))
            case PreviewLost():
                log.warning("preview_lost", num_done=interim.num_done, error=interim.error)

    def _latents(self, claim: claims.ClaimedImage) -> LatentsSoFar | None:
        """How far an earlier attempt came, while Redis has it. The engine refuses what was made for another request."""
        data = self.live.get_checkpoint(claim.id)
        if data is None:
            return None
        try:
            return LatentsSoFar.from_bytes(data)
        except TokenGridError as error:
            log.warning("checkpoint_refused", error=str(error))
            return None

    def _store(self, key: str, data: bytes, image_format: ImageFormat) -> claims.StoredArtifact:
        self.storage.put(key, data, CONTENT_TYPES[image_format])
        return claims.StoredArtifact(storage_key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

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
