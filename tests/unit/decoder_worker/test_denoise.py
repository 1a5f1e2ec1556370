"""One denoising step."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from services.decoder_worker.denoise import Denoising, step
from services.decoder_worker.schedule import Schedule
from services.decoder_worker.weights import DecoderModel

_SCHEDULE = Schedule(mu=1.0, timesteps=(1000.0, 500.0), sigmas=(1.0, 0.5, 0.0))


@pytest.fixture
def picture() -> Denoising:
    generator = torch.Generator().manual_seed(1)
    return Denoising(
        latents=torch.randn((1, 16, 8, 12), generator=generator),
        prompt_embeds=torch.randn((1, 5, 64), generator=generator),
        negative_prompt_embeds=torch.randn((1, 1, 64), generator=generator),
        prior_token_ids=torch.randint(0, 256, (1, 24), generator=generator),
        target_size=torch.tensor([[64.0, 96.0]]),
        references=None,
        schedule=_SCHEDULE,
        guidance_scale=2.0,
    )


def _stepped(model: DecoderModel, picture: Denoising) -> Denoising:
    with torch.inference_mode():
        step(model.transformer, picture)
    return picture


def test_a_picture_is_done_after_its_last_step(model: DecoderModel, picture: Denoising) -> None:
    """A schedule of two steps is done after two."""
    assert not _stepped(model, picture).is_done
    assert _stepped(model, picture).is_done


def test_guidance_leads_away_from_uncond(model: DecoderModel, picture: Denoising) -> None:
    """A guidance scale of g moves the latents g times as far from the unguided picture as a scale of one does."""
    at = {scale: _stepped(model, dataclasses.replace(picture, guidance_scale=scale)).latents for scale in (0.0, 1.0, 3.0)}
    assert torch.allclose(at[3.0] - at[0.0], 3 * (at[1.0] - at[0.0]), atol=1e-5)
    assert (at[1.0] - at[0.0]).abs().max() > 1e-3


def test_uncond_knows_nothing_of_the_prior_tokens(model: DecoderModel, picture: Denoising) -> None:
    """With a guidance scale of zero, which leaves uncond alone, other prior tokens change nothing."""
    other = dataclasses.replace(picture, prior_token_ids=picture.prior_token_ids.flip(1), guidance_scale=0.0)
    mine = dataclasses.replace(picture, guidance_scale=0.0)
    assert torch.equal(_stepped(model, other).latents, _stepped(model, mine).latents)


def test_without_guidance_the_net_is_asked_once(model: DecoderModel, picture: Denoising) -> None:
    """A picture without negative embeddings costs one call of the DiT per step, one with them two."""
    calls: list[int] = []
    hook = model.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        _stepped(model, dataclasses.replace(picture, negative_prompt_embeds=None))
        assert len(calls) == 1
        _stepped(model, picture)
        assert len(calls) == 3
    finally:
        hook.remove()


def test_latents_are_float32_after_a_step(model: DecoderModel, picture: Denoising) -> None:
    """Whatever dtype the noise had, the latents are float32 from the first step on."""
    half = dataclasses.replace(picture, latents=picture.latents.bfloat16())
    assert _stepped(model, half).latents.dtype == torch.float32
