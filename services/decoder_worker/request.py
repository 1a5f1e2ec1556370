"""
What the decoder engine is asked for, and what it gives back. Knows no nets.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from services.decoder_worker import vae
from services.decoder_worker.interim import LatentsSoFar
from shared.grid import TokenGrid
from shared.lora import Lora, lora_to_json


@dataclass(frozen=True)
class SourceInput:
    """
    A source image as both stages saw it (RGB, sides multiples of 32 pixels) and its token ids, one row per 32 pixels.

    `key` is the SHA-256 of the stored source: pictures with equal keys share what is computed of it. Empty: made from the pixels.
    """

    image: Image.Image
    token_ids: list[list[int]]
    key: str = ""

    def identity(self) -> str:
        """Equal for equal sources: the image's key or pixels, and the ids."""
        pixels = self.key or hashlib.sha256(self.image.tobytes()).hexdigest()
        return hashlib.sha256(json.dumps([pixels, self.image.size, self.token_ids]).encode()).hexdigest()


@dataclass(frozen=True)
class ImageRequest:
    """
    Everything that decides a picture, and how it is served.

    Attributes:
        token_ids: the rows of `grid`.
        seed: 0..2**63-1, makes the noise.
        guidance_scale: guidance happens only where it is above 1.
        lora: adapters of the DiT; pictures share a batch only if theirs are equal.
        fast: skip work where that changes the picture a little (`fast.py`); otherwise the picture is the reference's.
        resume: latents of an earlier attempt. Such as do not belong to this request are ignored, and it starts anew.
        is_preview: a draft that runs when nothing else wants the engine.
        show_previews: hand out previews of this picture on its way.
        glyph_texts: what the picture is to say; None: what the reference's parser finds in the prompt.
    """

    prompt: str
    grid: TokenGrid
    token_ids: list[list[int]]
    seed: int
    steps: int
    guidance_scale: float
    sources: tuple[SourceInput, ...] = ()
    lora: Lora = ()
    fast: bool = False
    resume: LatentsSoFar | None = field(default=None, repr=False)
    is_preview: bool = False
    show_previews: bool = False
    glyph_texts: tuple[str, ...] | None = None

    def digest(self) -> str:
        """Equal for requests whose pictures are equal on the same checkpoint."""
        decides = [
            self.prompt,
            self.glyph_texts,
            [self.grid.token_h, self.grid.token_w],
            self.token_ids,
            self.seed,
            self.steps,
            self.guidance_scale,
            [source.identity() for source in self.sources],
            lora_to_json(self.lora),
            self.fast,
        ]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


@dataclass(frozen=True)
class ImageResult:
    """
    Attributes:
        pixels: [3, height_px, width_px] float32 on the CPU, 0..1, not yet rounded to 8 bits.
        num_steps: that were taken for it; fewer than all where it went on from `ImageRequest.resume`.
        num_encoded: sources that were encoded for it; the others had been for other pictures.
    """

    pixels: Tensor
    num_steps: int
    num_encoded: int

    def to_pil(self) -> Image.Image:
        """The 8-bit RGB picture, rounded as the reference rounds."""
        return vae.to_pil(self.pixels)
