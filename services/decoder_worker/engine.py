"""
The decoder engine: token grids in, pixels out, on a thread of its own.

Knows tensors and no jobs: no database, no queue, no store, no logs. What surrounds it hands in callables for progress and for
stopping, and gets a Future back. One picture at a time for now; `denoise.Denoising` holds everything a picture needs
between two steps, so that the loop can come to serve several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from services.decoder_worker import vae
from services.decoder_worker.denoise import Denoising, step
from services.decoder_worker.glyph import glyph_embeds
from services.decoder_worker.latents import check_token_ids, starting_noise, upsample_prior_tokens
from services.decoder_worker.references import encode_references
from services.decoder_worker.schedule import make_schedule
from services.decoder_worker.weights import DecoderModel
from shared.engine import CheckStop, Progress, SerialEngine
from shared.errors import TokenGridError
from shared.grid import TOKEN_PX, TokenGrid
from shared.quoting import glyph_texts


@dataclass(frozen=True)
class SourceInput:
    """A source image as both stages saw it (RGB, sides multiples of 32 pixels) and its token ids, one row per 32 pixels."""

    image: Image.Image
    token_ids: list[list[int]]


@dataclass(frozen=True)
class ImageRequest:
    """
    Everything that decides a picture.

    `token_ids` are the rows of `grid`; `seed` (0..2**63-1) makes the noise; guidance happens only where `guidance_scale` is above 1.
    """

    prompt: str
    grid: TokenGrid
    token_ids: list[list[int]]
    seed: int
    steps: int
    guidance_scale: float
    sources: tuple[SourceInput, ...] = ()


@dataclass(frozen=True)
class ImageResult:
    """`pixels`: [3, height_px, width_px] float32 on the CPU, 0..1, not yet rounded to 8 bits."""

    pixels: Tensor

    def to_pil(self) -> Image.Image:
        """The 8-bit RGB picture, rounded as the reference rounds."""
        return vae.to_pil(self.pixels)


class DecoderEngine(SerialEngine[ImageRequest, ImageResult]):
    """
    Draws pictures. Phases of progress are `denoise`, told after every step, and `vae`; stopping is asked before every step, source
    image and the VAE.

    A request fails with TokenGridError when its ids or sizes do not fit.
    """

    def __init__(self, model: DecoderModel) -> None:
        super().__init__("decoder engine", "decoder_oom")
        self._model = model

    def run(self, request: ImageRequest, on_progress: Progress, check_stop: CheckStop) -> ImageResult:
        """Draw one picture."""
        return draw(self._model, request, on_progress, check_stop)


def draw(model: DecoderModel, request: ImageRequest, on_progress: Progress, check_stop: CheckStop) -> ImageResult:
    """
    Draw one picture on the calling thread.

    Args:
        check_stop: raises when the work is to stop.
    """
    with torch.inference_mode():
        check_stop()
        picture = prepare(model, request, check_stop)
        on_progress("denoise", 0, request.steps)
        while not picture.is_done:
            check_stop()
            step(model.transformer, picture)
            on_progress("denoise", picture.num_done, request.steps)
        # Gone before the VAE, whose decode is the other peak of memory.
        picture.references = None
        check_stop()
        on_progress("vae", 0, 1)
        pixels = vae.vae_decode(model.vae, picture.latents)
        on_progress("vae", 1, 1)
        return ImageResult(pixels)


def prepare(model: DecoderModel, request: ImageRequest, check_stop: CheckStop) -> Denoising:
    """
    Check a request and compute what all its steps share.

    Raises:
        TokenGridError: before any tensor reaches the device.
    """
    prior_token_ids = _prior_token_ids(model, request.token_ids, request.grid)
    references = [(source.image, _source_prior_token_ids(model, source)) for source in request.sources]
    schedule = make_schedule(model.schedule_params, prior_token_ids.shape[1], request.steps)

    return Denoising(
        latents=starting_noise(request.seed, request.grid, model.latent_channels, model.vae_scale_factor, model.dtype, model.device),
        prompt_embeds=_glyph_embeds(model, glyph_texts(request.prompt)),
        negative_prompt_embeds=_glyph_embeds(model, []) if request.guidance_scale > 1 else None,
        prior_token_ids=prior_token_ids,
        target_size=torch.tensor([[request.grid.height_px, request.grid.width_px]], dtype=model.dtype, device=model.device),
        references=encode_references(model.transformer, model.vae, references, check_stop) if references else None,
        schedule=schedule,
        guidance_scale=request.guidance_scale,
    )


def _glyph_embeds(model: DecoderModel, texts: list[str]) -> Tensor:
    return glyph_embeds(model.tokenizer, model.text_encoder, texts).to(model.dtype)


def _prior_token_ids(model: DecoderModel, rows: list[list[int]], grid: TokenGrid) -> Tensor:
    return upsample_prior_tokens(check_token_ids(rows, grid, model.codebook_size), grid).to(model.device)


def _source_prior_token_ids(model: DecoderModel, source: SourceInput) -> Tensor:
    grid = TokenGrid(source.image.height // TOKEN_PX, source.image.width // TOKEN_PX)
    if source.image.mode != "RGB" or (grid.height_px, grid.width_px) != (source.image.height, source.image.width):
        found = f"{source.image.height}x{source.image.width} {source.image.mode}"
        raise TokenGridError("artifact_mismatch", f"a source image must be RGB with sides of whole tokens (32 pixels), not {found}")
    return _prior_token_ids(model, source.token_ids, grid)
