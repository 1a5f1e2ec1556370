"""A slot can be copied."""

from __future__ import annotations

import torch

from services.ar_worker.kv_cache import SlotCache

CPU = torch.device("cpu")


def slot_cache(slots: int = 3, capacity: int = 9) -> SlotCache:
    return SlotCache(slots, capacity, num_layers=2, kv_heads=2, head_dim=4, rotary_dim=2, device=CPU, dtype=torch.float32)


def test_a_moved_slot_is_the_same() -> None:
    """Keys, values, positions, ids and length arrive, as far as they are filled."""
    cache = slot_cache()
    for table in (cache.kv, cache.rotary):
        table.normal_()
    cache.ids.random_(0, 100)
    cache.lengths[:] = torch.tensor([4, 5, 6])

    cache.move(2, 0, length=6, total=8)

    assert torch.equal(cache.kv[:, :, 0, :, :6], cache.kv[:, :, 2, :, :6])
    assert torch.equal(cache.rotary[0, :8], cache.rotary[2, :8])
    assert torch.equal(cache.ids[0, :8], cache.ids[2, :8])
    assert cache.lengths.tolist() == [6, 5, 6]


def test_nothing_of_the_last_request_lies_behind_the_next_one_s() -> None:
    """Neither in a slot that is taken nor in one that another is moved into: masked or not, what is no number would spread."""
    cache = slot_cache()
    for slot, total in ((0, 9), (1, 7), (2, 4)):
        cache.take(slot, total)
        cache.kv[:, :, slot, :, :total] = torch.nan

    cache.take(0, 5)
    cache.kv[:, :, 2, :, :3] = 1.0
    cache.move(2, 1, length=3, total=4)

    assert not cache.kv[:, :, 0].any()
    assert cache.kv[:, :, 1].sum() == cache.kv[:, :, 1, :, :3].numel()
