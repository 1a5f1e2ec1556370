"""
One request on its way through the engine: checked, prepared piece by piece, then denoising.

Knows what a picture is made of and what of it pictures can share; not whose turn it is.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from services.decoder_worker import dit
from services.decoder_worker.denoise import Denoising
from services.decoder_worker.dit import Conditioning
from services.decoder_worker.fast import FastParams, FastState
from services.decoder_worker.glyph import glyph_embeds, glyph_token_rows
from services.decoder_worker.interim import LatentsSoFar
from services.decoder_worker.latents import check_token_ids, starting_noise, upsample_prior_tokens
from services.decoder_worker.policy import Candidate
from services.decoder_worker.references import Reference, encode_reference
from services.decoder_worker.request import ImageRequest, SourceInput
from services.decoder_worker.schedule import Schedule, make_schedule
from services.decoder_worker.sharing import Expectation, SharedResults
from services.decoder_worker.vae import vae_encode
from services.decoder_worker.weights import DecoderModel
from shared.cost import DitSize
from shared.errors import TokenGridError
from shared.grid import TOKEN_PX, TokenGrid
from shared.lora import Lora
from shared.quoting.reference import glyph_texts


@dataclass(frozen=True)
class Source:
    """A source that was checked: its image, its ids [1, N], one per DiT patch, and what tells it from others."""

    image: Image.Image
    prior_token_ids: Tensor
    identity: str


@dataclass(frozen=True)
class Showing:
    """
    What is shown of pictures before their end.

    Attributes:
        checkpoint_steps: so many steps may be computed twice, and so the latents are shown as often; 0 for never.
        num_previews: of a picture that asks for them, evenly spaced.
        refresh_steps: fast pictures show their latents only where so many steps divide the number done.
    """

    checkpoint_steps: int
    num_previews: int
    refresh_steps: int

    def checkpoint_at(self, request: ImageRequest) -> range:
        """After which steps the latents are shown. Never of a draft, which is drawn sooner than stored."""
        if self.checkpoint_steps == 0 or request.is_preview:
            return range(0)
        # One less: while they are being stored, the next step is taken.
        steps = max(1, self.checkpoint_steps - 1)
        if request.fast:
            steps = self.refresh_steps * max(1, steps // self.refresh_steps)
        return range(steps, request.steps, steps)

    def preview_at(self, request: ImageRequest) -> frozenset[int]:
        """After which steps a preview is shown; never where fewer than three steps lie between two."""
        if not request.show_previews or request.steps < 3 * (self.num_previews + 1):
            return frozenset()
        return frozenset(round(request.steps * part / (self.num_previews + 1)) for part in range(1, self.num_previews + 1))


@dataclass(eq=False)
class Drawing:
    """
    A picture that was asked for. Until `denoising` is there, it holds no memory of the device but its references.

    Attributes:
        texts: its glyph texts; `num_glyph_tokens` decides with whom it can share a batch.
        prior_token_ids: [1, N], on the CPU.
        checkpoint_at, preview_at: after which steps what is shown of it.
        step_work: of each step, in FLOPs.
        moved_at: the engine's count of work when the picture last moved, or when it came.
        num_encoded: of its references, those that were not there when it came to them.
        expected: its references, encoded or not: one that another picture had encoded stays until this one has read it, too.
    """

    request: ImageRequest
    digest: str
    texts: tuple[str, ...]
    num_glyph_tokens: int
    prior_token_ids: Tensor
    sources: tuple[Source, ...]
    schedule: Schedule
    checkpoint_at: range
    preview_at: frozenset[int]
    step_work: float
    moved_at: float
    expected: list[Expectation] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    num_encoded: int = 0
    denoising: Denoising | None = None

    @property
    def is_guided(self) -> bool:
        return self.request.guidance_scale > 1

    @property
    def shape(self) -> Hashable:
        """Pictures whose shapes are equal can take a step together."""
        sizes = tuple(source.image.size for source in self.sources)
        return self.request.grid, self.num_glyph_tokens, sizes, self.is_guided, self.request.lora

    @property
    def reference_keys(self) -> list[Hashable]:
        """By which its references are known, source by source: adapters change what a source is to the DiT."""
        return [(source.identity, self.request.lora) for source in self.sources]

    def release_references(self) -> None:
        """After its last step it reads none."""
        self.expected.clear()
        self.references.clear()
        if self.denoising is not None:
            self.denoising.references = ()

    def candidate(self, work_done: float) -> Candidate:
        """The picture as the policy sees it, when the engine has done so much work in all."""
        num_left = self.schedule.num_steps - (self.denoising.num_done if self.denoising else 0)
        return Candidate(
            shape=self.shape,
            num_patches=self.prior_token_ids.shape[1],
            work_left=num_left * self.step_work,
            step_work=self.step_work,
            passed_over=work_done - self.moved_at,
            is_preview=self.request.is_preview,
            is_alone=self.request.fast,
        )


def check(model: DecoderModel, request: ImageRequest, showing: Showing, work_done: float) -> Drawing:
    """
    Turn a request into a drawing; no net runs, and nothing reaches the device.

    Raises:
        TokenGridError: ids or sizes do not fit.
    """
    prior_token_ids = _prior_token_ids(request.token_ids, request.grid, model.codebook_size)
    sources = tuple(_checked_source(source, model.codebook_size) for source in request.sources)
    texts = tuple(glyph_texts(request.prompt)) if request.glyph_texts is None else request.glyph_texts
    num_glyph_tokens = sum(map(len, glyph_token_rows(model.tokenizer, texts)))
    num_patches = prior_token_ids.shape[1]
    return Drawing(
        request=request,
        digest=request.digest(),
        texts=texts,
        num_glyph_tokens=num_glyph_tokens,
        prior_token_ids=prior_token_ids,
        sources=sources,
        schedule=make_schedule(model.schedule_params, num_patches, request.steps),
        checkpoint_at=showing.checkpoint_at(request),
        preview_at=showing.preview_at(request),
        step_work=DitSize.from_config(model.transformer.config).step_flops(
            num_patches, num_glyph_tokens, sum(source.prior_token_ids.shape[1] for source in sources), is_guided=request.guidance_scale > 1
        ),
        moved_at=work_done,
    )


def prepare_some(model: DecoderModel, shared: SharedResults, drawing: Drawing, fast_params: FastParams) -> Denoising | None:
    """
    Encode the next of its sources that nobody encoded yet; where all are, begin denoising.

    One source at a time, because others may want their step in between.

    Returns:
        its denoising, as soon as it has one.
    """
    num_there = len(drawing.references)
    for source, key in zip(drawing.sources[num_there:], drawing.reference_keys[num_there:], strict=True):
        was_there = shared.has("reference", key)
        drawing.references.append(shared.get("reference", key, functools.partial(_encode_source, model, shared, source)))
        if not was_there:
            drawing.num_encoded += 1
            return None
    drawing.denoising = _begin(model, shared, drawing, fast_params)
    return drawing.denoising


def _encode_source(model: DecoderModel, shared: SharedResults, source: Source) -> Reference:
    latents = shared.get("reference_latents", source.identity, lambda: vae_encode(model.vae, source.image))
    ids = source.prior_token_ids.to(model.device)
    return encode_reference(model.transformer, latents, ids, source.image.height, source.image.width)


def _begin(model: DecoderModel, shared: SharedResults, drawing: Drawing, fast_params: FastParams) -> Denoising:
    """Compute what all steps of a drawing share, its references apart, and place it where it begins or goes on."""
    request = drawing.request
    ids = drawing.prior_token_ids.to(model.device)
    latents, num_done = _beginning(model, drawing, fast_params)
    prior_key = (hashlib.sha256(drawing.prior_token_ids.numpy().tobytes()).digest(), request.grid, request.lora)
    prior = shared.get("prior", prior_key, lambda: dit.project_prior(model.transformer, ids))
    uncond = None
    if drawing.is_guided:
        no_prior = shared.get("no_prior", (ids.shape[1], request.lora), lambda: dit.project_no_prior(model.transformer, ids))
        uncond = Conditioning(_glyphs(model, shared, (), request.lora), no_prior)
    return Denoising(
        latents=latents,
        cond=Conditioning(_glyphs(model, shared, drawing.texts, request.lora), prior),
        uncond=uncond,
        target_size=torch.tensor([[request.grid.height_px, request.grid.width_px]], dtype=model.dtype, device=model.device),
        rotary=shared.get("rotary", request.grid, lambda: dit.rotary(model.transformer, latents)),
        references=tuple(drawing.references),
        schedule=drawing.schedule,
        guidance_scale=request.guidance_scale,
        fast=FastState(fast_params) if request.fast else None,
        num_done=num_done,
    )


def _beginning(model: DecoderModel, drawing: Drawing, fast_params: FastParams) -> tuple[Tensor, int]:
    """The latents to go on from, or noise, and how many steps are done."""
    request, resume = drawing.request, drawing.request.resume
    noise = starting_noise(request.seed, request.grid, model.latent_channels, model.vae_scale_factor, model.dtype, model.device)
    if resume is None or not _fits(resume, drawing, noise.shape, fast_params):
        return noise, 0
    return torch.from_numpy(resume.latents.copy()).unsqueeze(0).to(model.device), resume.num_done


def _fits(resume: LatentsSoFar, drawing: Drawing, shape: torch.Size, fast_params: FastParams) -> bool:
    return (
        resume.made_for == drawing.digest
        and resume.latents.shape == tuple(shape[1:])
        and 0 < resume.num_done < drawing.schedule.num_steps
        and not (drawing.request.fast and resume.num_done % fast_params.refresh_steps)
    )


def _glyphs(model: DecoderModel, shared: SharedResults, texts: tuple[str, ...], lora: Lora) -> Tensor:
    """The projected glyphs of these texts; none stand for the empty text."""

    def embed() -> Tensor:
        return glyph_embeds(model.tokenizer, model.text_encoder, texts).to(model.dtype)

    return shared.get("glyphs", (texts, lora), lambda: dit.project_glyphs(model.transformer, shared.get("glyph_embeds", texts, embed)))


def _checked_source(source: SourceInput, codebook_size: int) -> Source:
    grid = TokenGrid(source.image.height // TOKEN_PX, source.image.width // TOKEN_PX)
    if source.image.mode != "RGB" or (grid.height_px, grid.width_px) != (source.image.height, source.image.width):
        found = f"{source.image.height}x{source.image.width} {source.image.mode}"
        raise TokenGridError("artifact_mismatch", f"a source image must be RGB with sides of whole tokens (32 pixels), not {found}")
    return Source(source.image, _prior_token_ids(source.token_ids, grid, codebook_size), source.identity())


def _prior_token_ids(rows: list[list[int]], grid: TokenGrid, codebook_size: int) -> Tensor:
    return upsample_prior_tokens(check_token_ids(rows, grid, codebook_size), grid)
