"""The preallocated cache holds what transformers' growing cache holds."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

from services.ar_worker.kv_cache import GridCache


def states(num_tokens: int) -> torch.Tensor:
    return torch.randn(1, 2, num_tokens, 4)


def test_it_returns_what_a_growing_cache_returns() -> None:
    """After a prefill and some tokens, keys, values, lengths and mask sizes are equal in every layer."""
    ours, theirs = GridCache(num_layers=2, capacity=9), DynamicCache()
    for num_tokens in (6, 1, 1, 1):
        for layer in range(2):
            assert ours.get_mask_sizes(num_tokens, layer) == theirs.get_mask_sizes(num_tokens, layer)
            keys, values = states(num_tokens), states(num_tokens)
            for mine, other in zip(ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True):
                assert torch.equal(mine, other)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_nothing_is_copied_as_it_grows() -> None:
    """The tokens of the first call stay where they are in memory."""
    cache = GridCache(num_layers=1, capacity=5)
    first, _ = cache.update(states(3), states(3), 0)
    second, _ = cache.update(states(1), states(1), 0)

    assert first.data_ptr() == second.data_ptr()
    assert second.shape == (1, 2, 4, 4)
