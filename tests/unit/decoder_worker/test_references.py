"""Reference images and what layers read of them."""

from __future__ import annotations

import torch

from services.decoder_worker.references import LayerReferences, Reference, encode_reference
from services.decoder_worker.weights import DecoderModel


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _reference(seed: int, num_tokens: int) -> Reference:
    return Reference((_noise(seed, 1, num_tokens, 2, 4),), (_noise(seed + 100, 1, num_tokens, 2, 4),))


@torch.inference_mode()
def test_every_layer_leaves_keys_and_values(model: DecoderModel) -> None:
    """An image of 64x96 pixels leaves the keys and values of its 24 patches in each layer, and knows how many bytes they are."""
    ids = torch.zeros((1, 24), dtype=torch.int64)
    reference = encode_reference(model.transformer, _noise(1, 1, 16, 8, 12), ids, 64, 96)
    config = model.transformer.config
    shape = (1, 24, config.num_attention_heads, config.attention_head_dim)
    assert {tensor.shape for tensor in (*reference.keys, *reference.values)} == {shape}
    assert len(reference.keys) == len(reference.values) == config.num_layers
    assert reference.nbytes == 2 * config.num_layers * 24 * config.num_attention_heads * config.attention_head_dim * 4


def test_each_row_reads_its_own_references_first() -> None:
    """In a batch, a row's references stand in their order in front of the row's own keys, and likewise its values."""
    first, second = _reference(1, 3), _reference(2, 5)
    key, value = _noise(3, 2, 7, 2, 4), _noise(4, 2, 7, 2, 4)
    keys, values = LayerReferences([(first, second), (second, first)], 0).get(key, value)
    assert torch.equal(keys[0], torch.cat([first.keys[0][0], second.keys[0][0], key[0]]))
    assert torch.equal(keys[1], torch.cat([second.keys[0][0], first.keys[0][0], key[1]]))
    assert torch.equal(values[1], torch.cat([second.values[0][0], first.values[0][0], value[1]]))
