"""
The decoder engine beside diffusers' own pipeline: same weights, same seed, same prior tokens, same pixels.

Each case prints its largest difference (`pytest -s`) and records it as the property `max_abs_diff` of the JUnit report.
"""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline
from PIL import Image

from services.decoder_worker.engine import DecoderEngine, ImageRequest, SourceInput
from services.decoder_worker.rendition import render
from services.decoder_worker.weights import load_decoder_model
from shared.errors import TokenGridError, WorkStoppedError
from shared.grid import TokenGrid

_TOLERANCE = 1e-4
_TIMEOUT_S = 120


@dataclasses.dataclass(frozen=True)
class Case:
    """One request; `source_sizes` are heights and widths."""

    name: str
    height: int
    width: int
    prompt: str = "a lighthouse at dusk"
    steps: int = 3
    guidance_scale: float = 1.5
    seed: int = 11
    source_sizes: tuple[tuple[int, int], ...] = ()


_CASES = (
    Case("square", 128, 128),
    Case("wide", 64, 256),
    Case("tall", 256, 96),
    Case("smallest", 32, 32),
    Case("largest", 512, 512, steps=2),
    Case("one text", 128, 96, prompt='a shop sign that says "OPEN"'),
    Case("two texts", 128, 96, prompt='a poster with "SPRING" above "fair"'),
    Case("several texts", 96, 128, prompt='it\'s "one", then “two” and \'three\' and 「四」 and ""'),
    Case("CJK", 128, 128, prompt="海报，标题「春の音楽会」，副标题“四月十二日”"),
    Case("empty prompt", 64, 64, prompt=""),
    Case("one step", 128, 64, prompt='"now"', steps=1),
    Case("twelve steps", 64, 96, prompt='"slow"', steps=12),
    Case("guidance exactly 1", 128, 128, prompt='"plain"', guidance_scale=1.0),
    Case("guidance 0", 64, 64, prompt='"plain"', guidance_scale=0.0),
    Case("guidance 7.5", 128, 128, prompt='"loud"', guidance_scale=7.5),
    Case("largest seed", 64, 64, seed=2**63 - 1),
    Case("one source", 128, 128, source_sizes=((96, 128),)),
    Case("one source with text", 96, 160, prompt='add "SALE" to it', source_sizes=((128, 64),)),
    Case("two sources", 128, 96, source_sizes=((64, 128), (128, 96))),
    Case("two sources, text, guidance 1", 64, 128, prompt="join 「左」 and 「右」", guidance_scale=1.0, source_sizes=((64, 64), (96, 224))),
    Case("two sources, one step", 64, 64, steps=1, source_sizes=((160, 64), (64, 64))),
)

_BY_NAME = {case.name: case for case in _CASES}


@dataclasses.dataclass(frozen=True)
class Pair:
    """The engine and the reference on the same weights in the same dtype."""

    engine: DecoderEngine
    pipeline: Any

    def request(self, case: Case, *, written: bool = False) -> tuple[ImageRequest, dict[str, Any]]:
        """
        The case for the engine, and the same for the pipeline.

        Args:
            written: the prior tokens are the ones that the reference's AR model writes; else they are random ones where there is no
                source, which takes a tenth of the time.
        """
        grid = TokenGrid.covering(case.height, case.width)
        images = [_photo(height, width, seed) for seed, (height, width) in enumerate(case.source_sizes)]
        if images or written:
            with torch.no_grad():
                target, per_sample, grids = self.pipeline.generate_prior_tokens(
                    case.prompt, case.height, case.width, image=[images] if images else None, generator=_generator(case.seed)
                )
        else:
            num_codes = self.pipeline.transformer.config.prior_vq_quantizer_codebook_size
            ids = torch.randint(num_codes, (grid.token_h, grid.token_w), generator=_generator(case.seed))
            target = ids.repeat_interleave(2, 0).repeat_interleave(2, 1).view(1, -1)
        arguments = {"prior_token_ids": target}
        sources: list[SourceInput] = []
        if images:
            arguments |= {"image": images, "prior_token_image_ids": per_sample, "source_image_grid_thw": grids}
            ids = torch.split(per_sample[0], grids[0].prod(dim=-1).tolist())
            sources = [
                SourceInput(image, _rows(part, *shape)) for image, part, (_, *shape) in zip(images, ids, grids[0].tolist(), strict=True)
            ]
        request = ImageRequest(
            prompt=case.prompt,
            grid=grid,
            token_ids=_rows(target, 2 * grid.token_h, 2 * grid.token_w),
            seed=case.seed,
            steps=case.steps,
            guidance_scale=case.guidance_scale,
            sources=tuple(sources),
        )
        return request, arguments

    def reference(self, case: Case, arguments: dict[str, Any], output_type: str = "pt") -> Any:
        return self.pipeline(
            prompt=case.prompt,
            height=case.height,
            width=case.width,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance_scale,
            generator=_generator(case.seed),
            output_type=output_type,
            **arguments,
        ).images[0]

    def draw(self, request: ImageRequest) -> Any:
        return self.engine.submit(request, lambda *_: None, lambda: False).result(_TIMEOUT_S)


def _rows(upsampled: torch.Tensor, height: int, width: int) -> list[list[int]]:
    """Undo the reference's upsampling: every second id of every second row."""
    rows: list[list[int]] = upsampled.view(height, width)[::2, ::2].tolist()
    return rows


def _photo(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _pair(checkpoint: Path, dtype: str) -> Iterator[Pair]:
    pipeline = GlmImagePipeline.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    engine = DecoderEngine(load_decoder_model(checkpoint, device="cpu", dtype=dtype))
    engine.start()
    yield Pair(engine, pipeline)
    engine.close()


@pytest.fixture(scope="module")
def pair(miniature: Path) -> Iterator[Pair]:
    yield from _pair(miniature, "float32")


@pytest.fixture(scope="module")
def bfloat16_pair(miniature: Path) -> Iterator[Pair]:
    yield from _pair(miniature, "bfloat16")


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.02, "a flat picture would prove nothing"
    return float((ours - theirs.float()).abs().max())


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_pixels_equal_the_reference(pair: Pair, case: Case, record_property: Callable[[str, object], None]) -> None:
    """Every size, kind of prompt, guidance, number of steps and number of sources gives the reference's pixels within 1e-4."""
    request, arguments = pair.request(case)
    difference = _difference(pair.draw(request).pixels, pair.reference(case, arguments))
    record_property("max_abs_diff", difference)
    print(f"\n| {case.name} | {case.height}x{case.width} | {case.steps} | {case.guidance_scale:g} | {difference:.1e} |")  # noqa: T201 - the table is a result
    assert difference <= _TOLERANCE


@pytest.mark.parametrize("case", [_BY_NAME["several texts"], _BY_NAME["two sources"]], ids=lambda case: case.name.replace(" ", "_"))
def test_pixels_equal_one_whole_call_of_the_reference(pair: Pair, case: Case) -> None:
    """The reference run from prompt to pixels in one call, its AR model included, gives the same pixels."""
    request, arguments = pair.request(case, written=True)
    whole = {name: value for name, value in arguments.items() if name == "image"}
    assert _difference(pair.draw(request).pixels, pair.reference(case, whole)) <= _TOLERANCE


@pytest.mark.parametrize("case", [_BY_NAME["two texts"], _BY_NAME["two sources"]], ids=lambda case: case.name.replace(" ", "_"))
def test_pixels_equal_the_reference_in_bfloat16(bfloat16_pair: Pair, case: Case) -> None:
    """In bfloat16, where the order of every rounding shows, the pixels are the reference's too."""
    request, arguments = bfloat16_pair.request(case)
    assert _difference(bfloat16_pair.draw(request).pixels, bfloat16_pair.reference(case, arguments)) <= _TOLERANCE


@pytest.mark.parametrize("case", [_BY_NAME["one text"], _BY_NAME["one source"]], ids=lambda case: case.name.replace(" ", "_"))
def test_the_png_holds_the_reference_s_own_levels(pair: Pair, case: Case) -> None:
    """The 8-bit picture and the PNG made of it hold exactly the levels of the reference's PIL image."""
    request, arguments = pair.request(case)
    ours = pair.draw(request).to_pil()
    theirs = np.array(pair.reference(case, arguments, output_type="pil"))
    assert np.array_equal(np.array(ours), theirs)
    parsed = Image.open(io.BytesIO(render(ours, case.height, case.width, "png", None)))
    assert np.array_equal(np.array(parsed), theirs)


def test_everything_counts(pair: Pair) -> None:
    """Prior tokens, glyph texts, each source, guidance and seed all change the picture, so the equalities above prove each of them."""
    request, _ = pair.request(_BY_NAME["two sources, text, guidance 1"])
    pixels = pair.draw(request).pixels
    first, second = request.sources
    for change in (
        {"token_ids": [row[::-1] for row in request.token_ids]},
        {"prompt": "join 「左」 and 「上」"},
        {"sources": (first,)},
        {"sources": (second, dataclasses.replace(first, image=first.image.rotate(180)))},
        {"sources": (first, dataclasses.replace(second, token_ids=second.token_ids[::-1]))},
        {"guidance_scale": 2.0},
        {"seed": 12},
    ):
        assert (pair.draw(dataclasses.replace(request, **change)).pixels - pixels).abs().max() > 1e-3, change


def test_neighbours_of_a_stopped_and_a_broken_request_are_exact(pair: Pair) -> None:
    """With a request canceled in its second step before it and one with wrong ids behind it, a picture is still the reference's."""
    case = _BY_NAME["one source with text"]
    request, arguments = pair.request(case)
    stop, steps = threading.Event(), []

    def on_progress(phase: str, done: int, total: int) -> None:
        steps.append((phase, done))
        if done == 2:
            stop.set()

    canceled = pair.engine.submit(dataclasses.replace(request, steps=500), on_progress, stop.is_set)
    drawn = pair.engine.submit(request, lambda *_: None, lambda: False)
    broken = pair.engine.submit(dataclasses.replace(request, token_ids=[[0]]), lambda *_: None, lambda: False)

    with pytest.raises(WorkStoppedError):
        canceled.result(_TIMEOUT_S)
    assert steps == [("denoise", 0), ("denoise", 1), ("denoise", 2)]
    with pytest.raises(TokenGridError):
        broken.result(_TIMEOUT_S)
    assert _difference(drawn.result(_TIMEOUT_S).pixels, pair.reference(case, arguments)) <= _TOLERANCE
