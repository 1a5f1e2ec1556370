"""The step of a group of pictures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from services.decoder_worker import dit
from services.decoder_worker.denoise import Denoising, clean_latents, step
from services.decoder_worker.dit import Conditioning
from services.decoder_worker.schedule import Schedule
from services.decoder_worker.weights import DecoderModel

_SCHEDULE = Schedule(mu=1.0, timesteps=(1000.0, 500.0), sigmas=(1.0, 0.5, 0.0))


def _picture(model: DecoderModel, seed: int = 1) -> Denoising:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (1, 24), generator=generator)
    latents = torch.randn((1, 16, 8, 12), generator=generator)
    net = model.transformer
    with torch.inference_mode():
        return Denoising(
            latents=latents,
            cond=Conditioning(dit.project_glyphs(net, torch.randn((1, 5, 64), generator=generator)), dit.project_prior(net, ids)),
            uncond=Conditioning(dit.project_glyphs(net, torch.randn((1, 1, 64), generator=generator)), dit.project_no_prior(net, ids)),
            target_size=torch.tensor([[64.0, 96.0]]),
            rotary=dit.rotary(net, latents),
            references=(),
            schedule=_SCHEDULE,
            guidance_scale=2.0,
        )


@pytest.fixture
def picture(model: DecoderModel) -> Denoising:
    return _picture(model)


def _stepped(model: DecoderModel, *pictures: Denoising) -> torch.Tensor:
    with torch.inference_mode():
        return step(model.transformer, model.dtype, pictures)


def test_a_picture_is_done_after_its_last_step(model: DecoderModel, picture: Denoising) -> None:
    """A schedule of two steps is done after two."""
    _stepped(model, picture)
    assert not picture.is_done
    _stepped(model, picture)
    assert picture.is_done


def test_guidance_leads_away_from_uncond(model: DecoderModel, picture: Denoising) -> None:
    """A guidance scale of g moves the latents g times as far from the unguided picture as a scale of one does."""
    pictures = [dataclasses.replace(picture, guidance_scale=scale) for scale in (0.0, 1.0, 3.0)]
    for each in pictures:
        _stepped(model, each)
    none, once, thrice = (each.latents for each in pictures)
    assert torch.allclose(thrice - none, 3 * (once - none), atol=1e-5)
    assert (once - none).abs().max() > 1e-3


def test_without_guidance_the_net_is_asked_once(model: DecoderModel, picture: Denoising) -> None:
    """A picture without uncond costs one pass of the DiT per step, one with it two."""
    calls: list[int] = []
    hook = model.transformer.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        _stepped(model, dataclasses.replace(picture, uncond=None))
        assert len(calls) == 1
        _stepped(model, picture)
        assert len(calls) == 3
    finally:
        hook.remove()


def test_latents_are_float32_after_a_step(model: DecoderModel, picture: Denoising) -> None:
    """Whatever dtype the noise had, the latents are float32 from the first step on."""
    half = dataclasses.replace(picture, latents=picture.latents.bfloat16())
    _stepped(model, half)
    assert half.latents.dtype == torch.float32


def test_pictures_at_unlike_steps_go_together(model: DecoderModel, picture: Denoising) -> None:
    """A picture at its first step and one at its last, of unlike guidance, move in one call as each does alone."""
    late = dataclasses.replace(_picture(model, seed=2), num_done=1, guidance_scale=5.0)
    alone = [dataclasses.replace(picture), dataclasses.replace(late)]
    for each in alone:
        _stepped(model, each)
    _stepped(model, picture, late)
    for together, single in zip((picture, late), alone, strict=True):
        assert together.num_done == single.num_done
        assert torch.allclose(together.latents, single.latents, atol=1e-5)


def test_a_straight_line_leads_to_the_clean_latents(model: DecoderModel, picture: Denoising) -> None:
    """Clean latents are where one step to sigma 0 with the same velocity would have led."""
    before = picture.latents
    velocity = _stepped(model, picture)
    assert torch.allclose(clean_latents(picture, velocity), before - _SCHEDULE.sigmas[0] * velocity, atol=1e-5)
