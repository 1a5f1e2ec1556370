"""
The AR engine: prompts in, token grids out, on a thread of its own.

Knows tensors and no jobs: no database, no queue, no store, no logs. What surrounds it hands in callables for progress and for
stopping, and gets a Future back. One grid at a time for now; what a grid needs between two tokens (`kv_cache.GridCache`,
`sampling.TokenSampler`, positions) belongs to the grid alone, so that the loop can come to serve several.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from services.ar_worker.kv_cache import GridCache
from services.ar_worker.prompt import ArPrompt, build_prompt
from services.ar_worker.sampling import TokenSampler
from services.ar_worker.weights import ArModel
from shared.errors import TransientWorkError, WorkStoppedError
from shared.grid import TokenGrid

Progress = Callable[[str, int, int], None]
"""Called with phase (`draft` or `grid`), done and total after every token, on the engine's thread: it must be quick."""

ShouldStop = Callable[[], bool]
"""Asked on the engine's thread before the source images, the prefill and every token: it must be quick."""


@dataclass(frozen=True)
class GridRequest:
    """
    Everything that decides a token grid.

    `sources` are RGB images with sides of whole tokens (32 pixels), in the checkpoint's range; with any of them no draft is written.
    """

    prompt: str
    grid: TokenGrid
    seed: int
    temperature: float
    top_p: float
    sources: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class GridResult:
    """`token_ids`: token_h rows of token_w ids; `source_token_ids`: the same of each source image, one id per 32x32 pixels."""

    token_ids: list[list[int]]
    source_token_ids: tuple[list[list[int]], ...]


@dataclass(frozen=True)
class _Ticket:
    request: GridRequest
    on_progress: Progress
    should_stop: ShouldStop
    future: Future[GridResult]


class ArEngine:
    """Serves requests in the order they came. A request that fails, fails alone."""

    def __init__(self, model: ArModel) -> None:
        self._model = model
        self._tickets: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        # A daemon: a process that was told to exit must not wait for a grid of four minutes.
        self._thread = threading.Thread(target=self._run, name="ar-engine", daemon=True)
        self._closing = threading.Event()
        self._submit_lock = threading.Lock()

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def submit(self, request: GridRequest, on_progress: Progress, should_stop: ShouldStop) -> Future[GridResult]:
        """
        Queue a request.

        The future fails with WorkStoppedError once `should_stop` is true or the engine closes, PermanentWorkError when prompt or sources
        cannot be used, TransientWorkError `ar_oom` when memory ran out; any other exception is a fault of this program or of the machine.
        """
        ticket = _Ticket(request, on_progress, should_stop, Future())
        # Under the lock, or a ticket could land behind the last one that close() ever looks at.
        with self._submit_lock:
            if self._closing.is_set():
                ticket.future.set_exception(WorkStoppedError("the AR engine is closed"))
            else:
                self._tickets.put(ticket)
        return ticket.future

    def close(self) -> None:
        """Stop the running request at its next token, fail the waiting ones, and end the thread."""
        with self._submit_lock:
            self._closing.set()
            self._tickets.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (ticket := self._tickets.get()) is not None:
            if ticket.future.set_running_or_notify_cancel():
                self._serve(ticket)

    def _serve(self, ticket: _Ticket) -> None:
        def check_stop() -> None:
            if self._closing.is_set() or ticket.should_stop():
                raise WorkStoppedError("the grid was told to stop")

        error: Exception | None = None
        try:
            result = write_grid(self._model, ticket.request, ticket.on_progress, check_stop)
        except Exception as caught:  # whatever it is, it belongs to this request and must not end the thread
            # The frames hold the KV cache, and the future would keep it alive with the traceback.
            traceback.clear_frames(caught.__traceback__)
            error = caught
        if error is None:
            ticket.future.set_result(result)
        elif _is_out_of_memory(error):
            torch.cuda.empty_cache()  # does nothing where there is no GPU
            ticket.future.set_exception(TransientWorkError("ar_oom", "the AR model ran out of memory"))
        else:
            ticket.future.set_exception(error)


def write_grid(model: ArModel, request: GridRequest, on_progress: Progress, check_stop: Callable[[], None]) -> GridResult:
    """
    Write one token grid on the calling thread.

    Args:
        check_stop: raises when the work is to stop.
    """
    grid, num_draft = request.grid, request.grid.num_draft_tokens(len(request.sources))
    num_tokens = num_draft + grid.num_tokens
    with torch.inference_mode():
        check_stop()
        sampler = TokenSampler(model.rules, request.temperature, request.top_p, request.seed)
        prompt = build_prompt(model, request.prompt, grid, request.sources)
        check_stop()
        source_ids = tokenize_sources(model, prompt)
        check_stop()
        cache = GridCache(model.num_layers, prompt.input_ids.shape[1] + num_tokens)
        logits = forward(model, fill_placeholders(model, prompt.input_ids, source_ids), prompt.prefill_positions, cache)
        # On the device until the end: reading each id would make the host wait for it.
        token_ids = torch.empty(num_tokens, dtype=torch.int64, device=model.device)
        for i in range(num_tokens):
            check_stop()
            # The reference also writes an end token, which nobody reads; here the last id of the grid is the last.
            if i:
                logits = forward(model, token_ids[None, i - 1 : i], prompt.decode_positions[:, :, i - 1 : i], cache)
            token_ids[i : i + 1] = sampler.draw(logits)
            if i < num_draft:
                on_progress("draft", i + 1, num_draft)
            else:
                on_progress("grid", i + 1 - num_draft, grid.num_tokens)
        return GridResult(
            token_ids=token_ids[num_draft:].view(grid.token_h, grid.token_w).tolist(),
            source_token_ids=tuple(ids.tolist() for ids in source_ids),
        )


def tokenize_sources(model: ArModel, prompt: ArPrompt) -> list[Tensor]:
    """
    The codes of the source images, from one pass of the vision tower for all of them.

    Returns:
        per source [token_h, token_w] int64. They are both a result and, in the prompt, what the model sees of the source.
    """
    if prompt.pixel_values is None:
        return []
    # By the tower itself: what get_image_features() wraps its result in changes between versions.
    features = model.net.model.visual(prompt.pixel_values.to(model.dtype), grid_thw=prompt.source_grids).pooler_output
    ids = model.net.get_image_tokens(features, prompt.source_grids)
    shapes = prompt.source_grids[:, 1:].tolist()
    return [part.view(h, w) for part, (h, w) in zip(ids.split([h * w for h, w in shapes]), shapes, strict=True)]


def fill_placeholders(model: ArModel, input_ids: Tensor, source_ids: list[Tensor]) -> Tensor:
    """[1, N] int64: the prompt, with the sources' codes where the processor left room for them."""
    if not source_ids:
        return input_ids
    return input_ids.masked_scatter(input_ids == model.image_token_id, torch.cat([ids.flatten() for ids in source_ids]))


def forward(model: ArModel, input_ids: Tensor, positions: Tensor, cache: GridCache) -> Tensor:
    """
    Run ids [1, N] at positions [3, 1, N] after what is cached.

    Returns:
        [1, vision_vocab_size]: the logits of what follows the last of them.
    """
    # Past GlmImageModel.forward, which keeps positions of "the" running generation on the module.
    language_model = model.net.model.language_model
    hidden = language_model(
        inputs_embeds=language_model.embed_tokens(input_ids), position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    logits: Tensor = model.net.lm_head(hidden[:, -1:])[:, -1]
    return logits


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError, which only its words tell from a programming fault.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
