"""The DiT without what is the same in every step, beside the model's own forward."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

from services.decoder_worker import dit
from services.decoder_worker.dit import Conditioning
from services.decoder_worker.references import Reference, encode_reference
from services.decoder_worker.weights import DecoderModel

_HEIGHT, _WIDTH = 8, 12
_NUM_PATCHES = _HEIGHT * _WIDTH // 4


def _ids(seed: int, num_rows: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (num_rows, _NUM_PATCHES), generator=torch.Generator().manual_seed(seed))


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _reference(model: DecoderModel, seed: int) -> Reference:
    return encode_reference(model.transformer, _noise(seed, 1, 16, _HEIGHT, _WIDTH), _ids(seed), 64, 96)


def _own_forward(
    model: DecoderModel, row: int, latents: torch.Tensor, times: torch.Tensor, cache: object, *, dropped: bool
) -> torch.Tensor:
    """The model's own forward of one row of a batch made by `_noise` and `_ids`."""
    velocity: torch.Tensor = model.transformer(
        hidden_states=latents[row : row + 1],
        encoder_hidden_states=_noise(50 + row, 1, 5, 64),
        prior_token_id=_ids(60 + row),
        prior_token_drop=torch.full((1, _NUM_PATCHES), dropped),
        timestep=times[row : row + 1],
        target_size=torch.tensor([[64.0, 96.0]]),
        crop_coords=torch.zeros((1, 2)),
        kv_caches=cache,
        return_dict=False,
    )[0]
    return velocity


def _ours(
    model: DecoderModel, rows: list[int], latents: torch.Tensor, times: torch.Tensor, references: list[list[Reference]], *, dropped: bool
) -> torch.Tensor:
    net = model.transformer
    priors = [(dit.project_no_prior if dropped else dit.project_prior)(net, _ids(60 + row)) for row in rows]
    conditioning = Conditioning(torch.cat([dit.project_glyphs(net, _noise(50 + row, 1, 5, 64)) for row in rows]), torch.cat(priors))
    sizes = torch.tensor([[64.0, 96.0]]).expand(len(rows), 2)
    embedded = dit.embed_times(net, times[rows], sizes, torch.float32)
    read = dit.read_references([references[row] for row in rows], len(net.transformer_blocks))
    return dit.predict(net, latents[rows], conditioning, embedded, dit.rotary(net, latents), read)


@pytest.mark.parametrize("dropped", [False, True], ids=["cond", "uncond"])
@torch.inference_mode()
def test_alone_it_equals_the_model_s_own_forward(model: DecoderModel, dropped: bool) -> None:
    """One picture's velocity, with its prior tokens or without, is that of the model itself, bit for bit."""
    latents, times = _noise(1, 1, 16, _HEIGHT, _WIDTH), torch.tensor([480.0])
    ours = _ours(model, [0], latents, times, [[]], dropped=dropped)
    assert torch.equal(ours, _own_forward(model, 0, latents, times, None, dropped=dropped))


@torch.inference_mode()
def test_rows_have_their_own_times_and_references(model: DecoderModel) -> None:
    """Three rows at unlike times with unlike references in one call give what the model gives each alone."""
    latents, times = _noise(1, 3, 16, _HEIGHT, _WIDTH), torch.tensor([999.0, 500.0, 3.0])
    first, second = _reference(model, 7), _reference(model, 8)
    references = [[first, second], [second, first], [first, first]]
    ours = _ours(model, [0, 1, 2], latents, times, references, dropped=False)
    for row in range(3):
        cache = GlmImageKVCache(len(model.transformer.transformer_blocks))
        for layer, own in enumerate(cache.caches):
            own.k_caches = [torch.cat([reference.keys[layer] for reference in references[row]], dim=1)]
            own.v_caches = [torch.cat([reference.values[layer] for reference in references[row]], dim=1)]
        cache.set_mode("read")
        theirs = _own_forward(model, row, latents, times, cache, dropped=False)
        assert torch.allclose(ours[row : row + 1], theirs, atol=1e-5)


@torch.inference_mode()
def test_modules_are_called_and_not_copied(model: DecoderModel) -> None:
    """Whatever wraps a module of the DiT, as adapters and quantisation do, takes part: each is called by its own forward."""
    called: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in model.transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        _ours(model, [0], _noise(1, 1, 16, _HEIGHT, _WIDTH), torch.tensor([480.0]), [[]], dropped=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert called == {name for name, module in model.transformer.named_modules() if isinstance(module, torch.nn.Linear)}
