"""Process entry of the decoder worker: settings, weights, engine, and the worker process around them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import NoReturn

import structlog
import torch

from services.decoder_worker.engine import DecoderEngine, ImageRequest
from services.decoder_worker.fast import FastParams
from services.decoder_worker.settings import DecoderWorkerSettings
from services.decoder_worker.tasks import ImageTasks
from services.decoder_worker.weights import load_decoder_model
from shared.attempts import Handler
from shared.checkpoint import max_generate_px, read_revision, resolve_checkpoint
from shared.cost import DitSize
from shared.db import Database
from shared.errors import StartupError
from shared.grid import TokenGrid
from shared.logs import configure_logs
from shared.lora_store import lora_digest
from shared.net_loading import NetOptions
from shared.progress import LiveState
from shared.settings import read_settings
from shared.states import Stage
from shared.storage import Storage
from shared.worker import WorkerProcess

log = structlog.get_logger()


def main() -> None:
    """Run until SIGTERM. A wrong version, setting or checkpoint ends the process with one clear line."""
    try:
        serve(read_settings(DecoderWorkerSettings))
    except StartupError as error:
        sys.exit(f"decoder worker: {error}")


def warm_up(engine: DecoderEngine) -> None:
    """
    Draw a small picture: what is made at first use is made before the first customer, and predictions know how fast this worker is.

    Raises:
        StartupError: the engine cannot do even that.
    """
    request = ImageRequest('a "warm-up"', TokenGrid(4, 4), [[0] * 4] * 4, seed=0, steps=2, guidance_scale=1.5)
    try:
        engine.submit(request, lambda *_: None, lambda: False).result()
    except Exception as error:
        raise StartupError(f"the decoder engine cannot draw: {error!r}") from error


def fast_params(settings: DecoderWorkerSettings) -> FastParams:
    """How much a picture of `quality: fast` skips here."""
    return FastParams(
        threshold=settings.fast_cache_threshold,
        guidance_from=settings.fast_guidance_from,
        guidance_to=settings.fast_guidance_to,
    )


def serve(settings: DecoderWorkerSettings) -> NoReturn:
    """Load the decoder half and work."""
    configure_logs(settings, "decoder_worker")
    torch.set_num_threads(settings.torch_threads)
    path = resolve_checkpoint(settings.checkpoint, "decoder")
    revision = read_revision(path, settings.model_revision, lora_digest(settings.lora_dir))
    model = load_decoder_model(path, settings.device, settings.dtype, NetOptions.read(settings))
    for name, reason in model.adapters.broken.items():
        log.warning("lora_broken", name=name, reason=reason)
    engine = DecoderEngine(
        model,
        token_budget=settings.decoder_token_budget,
        checkpoint_steps=settings.decoder_checkpoint_steps,
        tile_above_pixels=settings.vae_tiling,
        reference_cache_bytes=settings.reference_cache_bytes,
        num_previews=settings.decoder_previews,
        preview_max_px=settings.preview_max_px,
        fast=fast_params(settings),
    )
    engine.start()
    warm_up(engine)
    live = LiveState(settings.redis_url.get_secret_value())
    db = Database(settings.database_url.get_secret_value(), settings.db_pool_size, live.tell_changes)
    max_px = max_generate_px(path)
    tasks = ImageTasks(
        db,
        Storage(settings),
        live,
        engine,
        model.codebook_size,
        revision,
        keep_whole=max_px is not None,
        lease_s=settings.lease_s,
        preview_max_px=min(settings.preview_max_px, max_px or settings.preview_max_px),
    )
    handler = Handler(Stage.DECODER, tasks.claim, tasks.render_image, tasks.draw_preview if settings.decoder_previews else None)
    loaded = {"revision": revision, "dit": asdict(DitSize.from_config(model.transformer.config))}
    WorkerProcess(settings, db, live, handler, loaded, settings.decoder_slots, engine.speed).serve()
