"""Process entry of the AR worker: settings, weights, engine, and the worker process around them."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import NoReturn

import structlog
import torch

from services.ar_worker.engine import ArEngine, GridRequest
from services.ar_worker.room import choose_room
from services.ar_worker.settings import ArWorkerSettings, CompileMode, DecodeChoice
from services.ar_worker.tasks import GridTasks
from services.ar_worker.token_bytes import token_bytes
from services.ar_worker.weights import load_ar_model
from shared.attempts import Handler
from shared.checkpoint import ModelInfo, read_model_info, read_revision, resolve_checkpoint
from shared.db import Database
from shared.errors import StartupError
from shared.grid import TokenGrid
from shared.logs import configure_logs
from shared.lora_store import list_loras, lora_digest
from shared.net_loading import NetOptions, choose_device, choose_dtype
from shared.progress import LiveState
from shared.settings import read_settings
from shared.states import Stage
from shared.storage import Storage
from shared.worker import WorkerProcess

log = structlog.get_logger()


def main() -> None:
    """Run until SIGTERM. A wrong version, setting or checkpoint ends the process with one clear line."""
    try:
        serve(read_settings(ArWorkerSettings))
    except StartupError as error:
        sys.exit(f"ar worker: {error}")


def warm_up(engine: ArEngine, info: ModelInfo) -> None:
    """
    Write the smallest grid: what is made at first use is made before the first customer, and predictions know how fast this worker is.

    Not the recordings of longer grids (`GLMQ_AR_DECODE`), which are made with the first that is so long.

    Raises:
        StartupError: the engine cannot do even that.
    """
    request = GridRequest("warm-up", TokenGrid(1, 1), seed=0, temperature=info.temperature, top_p=info.top_p)
    try:
        engine.submit(request, lambda *_: None, lambda: False).result()
    except Exception as error:
        raise StartupError(f"the AR engine cannot write: {error!r}") from error


def choose_decode(choice: DecodeChoice, device: torch.device, dtype: torch.dtype) -> CompileMode:
    """
    How a step is run on this device, settled or refused before minutes are spent on loading.

    Raises:
        StartupError: the device cannot run it so; names the variable.
    """
    if choice == "cuda_graphs" and device.type != "cuda":
        raise StartupError(f"GLMQ_AR_DECODE={choice} is for cuda devices; this worker runs on {device}")
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "cuda_graphs"
    return "off" if dtype == torch.float32 else "static"


def serve(settings: ArWorkerSettings) -> NoReturn:
    """Load the AR half and work."""
    configure_logs(settings, "ar_worker")
    device = choose_device(settings.device)
    compile_mode = choose_decode(settings.ar_decode, device, choose_dtype(settings.dtype, device))
    torch.set_num_threads(settings.torch_threads)
    path = resolve_checkpoint(settings.checkpoint, "ar")
    revision = read_revision(path, settings.model_revision, lora_digest(settings.lora_dir))
    info = read_model_info(path, revision, list_loras(settings.lora_dir))
    model = load_ar_model(path, settings.device, settings.dtype, NetOptions.read(settings))
    for name, reason in model.adapters.broken.items():
        log.warning("lora_broken", name=name, reason=reason)
    room = choose_room(model, settings.ar_slots, settings.ar_cache_tokens)
    engine = ArEngine(
        model,
        room.slots,
        room.cache_tokens,
        compile_mode=compile_mode,
        show_every=settings.ar_checkpoint_tokens,
        prefill_tokens_per_turn=settings.ar_prefill_tokens,
    )
    engine.start()
    info = replace(info, max_tokens=room.cache_tokens, token_bytes=token_bytes(model.processor.tokenizer))
    warm_up(engine, info)
    live = LiveState(settings.redis_url.get_secret_value())
    db = Database(settings.database_url.get_secret_value(), settings.db_pool_size, live.tell_changes)
    tasks = GridTasks(db, Storage(settings), live, engine, info, settings.lease_s)
    WorkerProcess(settings, db, live, Handler(Stage.AR, tasks.claim, tasks.generate_grid), asdict(info), room.slots, engine.speed).serve()
