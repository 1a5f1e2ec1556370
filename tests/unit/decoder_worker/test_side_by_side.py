"""Both passes in one call, beside two calls of the DiT."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from services.decoder_worker import dit
from services.decoder_worker.denoise import SIDE_BY_SIDE_TOKENS, Denoising, step
from services.decoder_worker.dit import Conditioning
from services.decoder_worker.references import encode_reference
from services.decoder_worker.schedule import Schedule
from services.decoder_worker.weights import DecoderModel
from shared.net_loading import NetOptions

_HEIGHT, _WIDTH = 8, 12
_NUM_PATCHES = _HEIGHT * _WIDTH // 4


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pictures(model: DecoderModel, num: int, num_glyphs: int, num_references: int) -> list[Denoising]:
    """Pictures of one shape with unlike prompts, layouts, references, guidance and steps done."""
    net = model.transformer
    ids = torch.randint(0, 256, (num, _NUM_PATCHES), generator=torch.Generator().manual_seed(1))
    seeds = range(num_references and num_references + num - 1)
    references = [encode_reference(net, _noise(20 + seed, 1, 16, _HEIGHT, _WIDTH), ids[:1], 64, 96) for seed in seeds]
    return [
        Denoising(
            latents=_noise(row, 1, 16, _HEIGHT, _WIDTH),
            cond=Conditioning(dit.project_glyphs(net, _noise(40 + row, 1, num_glyphs, 64)), dit.project_prior(net, ids[row : row + 1])),
            uncond=Conditioning(dit.project_glyphs(net, _noise(60, 1, 1, 64)), dit.project_no_prior(net, ids[:1])),
            target_size=torch.tensor([[64.0, 96.0]]),
            rotary=dit.rotary(net, _noise(0, 1, 16, _HEIGHT, _WIDTH)),
            references=tuple(references[row : row + num_references]),
            schedule=Schedule(mu=1.0, timesteps=(1000.0, 700.0, 300.0), sigmas=(1.0, 0.7, 0.3, 0.0)),
            guidance_scale=1.5 + row,
            num_done=row,
        )
        for row in range(num)
    ]


@pytest.mark.parametrize(
    ("num", "num_glyphs", "num_references"),
    [(1, 1, 0), (1, 7, 0), (1, 7, 2), (2, 1, 1), (3, 7, 0), (3, 7, 2)],
    ids=lambda value: str(value),
)
@torch.inference_mode()
def test_both_passes_together_are_what_they_are_in_turn(model: DecoderModel, num: int, num_glyphs: int, num_references: int) -> None:
    """For one picture and several, glyph sequences of equal and unlike lengths, with references and without."""
    pictures = _pictures(model, num, num_glyphs, num_references)
    in_turn = step(model.transformer, model.dtype, [dataclasses.replace(picture) for picture in pictures])
    together = step(model.transformer, model.dtype, pictures, side_by_side=True)
    assert torch.allclose(together, in_turn, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_every_layer_is_called_and_only_once(model: DecoderModel) -> None:
    """Whatever wraps a linear layer of the blocks takes part; only the feed-forward is called twice more, for the glyphs of each pass."""
    pictures = _pictures(model, 1, 7, 0)
    calls: Counter[str] = Counter()
    linears = {name: module for name, module in model.transformer.transformer_blocks.named_modules() if isinstance(module, torch.nn.Linear)}
    hooks = [module.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, module in linears.items()]
    try:
        step(model.transformer, model.dtype, pictures, side_by_side=True)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == {name: 3 if ".ff." in name else 1 for name in linears}


@torch.inference_mode()
def test_above_a_number_of_tokens_the_passes_go_in_turn(model: DecoderModel) -> None:
    """Patches and glyphs of both passes count."""
    most = SIDE_BY_SIDE_TOKENS - 2 * _NUM_PATCHES - 1
    calls: list[int] = []
    hook = model.transformer.transformer_blocks[0].norm1.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[1]))
    try:
        for num_glyphs in (most, most + 1):
            step(model.transformer, model.dtype, _pictures(model, 1, num_glyphs, 0), side_by_side=True)
    finally:
        hook.remove()
    assert calls == [2 * _NUM_PATCHES, _NUM_PATCHES, _NUM_PATCHES]


def test_only_where_it_was_proved(model: DecoderModel) -> None:
    """In float32 on a CPU with blocks as they are; not in bfloat16, not on a GPU, not where blocks were compiled."""
    assert model.goes_side_by_side
    for changes in ({"dtype": torch.bfloat16}, {"device": torch.device("cuda")}, {"options": NetOptions(compile="default")}):
        assert not dataclasses.replace(model, **changes).goes_side_by_side
