"""How many requests an AR worker serves at once, and how long one may be: from settings, or from the memory that is free."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from services.ar_worker.weights import ArModel
from shared.errors import StartupError

_SLOTS = {"cuda": 64, "cpu": 32}
"""Requests at once where memory allows: on a GPU a step of 64 rows takes as long as one of a single row; a CPU gains little beyond 32."""

_ENOUGH_TOKENS = 8192
"""A prompt of some 3,000 ids and a 2048x2048 picture, 4,353. With less room for each, fewer requests are served at once instead."""

_SHARE = {"cuda": 0.8, "cpu": 0.25}
"""
Of the free memory: the rest is for activations, of the vision tower above all. A CPU's is shared with others, and only touched pages
of it are taken.
"""


@dataclass(frozen=True)
class Room:
    """`slots` requests, each of up to `cache_tokens` ids, prompt and written ids together."""

    slots: int
    cache_tokens: int


def choose_room(model: ArModel, slots: int = 0, cache_tokens: int = 0, free_bytes: int | None = None) -> Room:
    """
    Settle what was left open, and refuse what cannot be.

    Args:
        slots: 0: as many as do a worker good and fit.
        cache_tokens: 0: as many as the model takes, if they fit.
        free_bytes: None: ask the device.
    Raises:
        StartupError: memory does not even hold one request, or not all that was set.
    """
    kind = "cuda" if model.device.type == "cuda" else "cpu"
    free = _free_bytes(model.device) if free_bytes is None else free_bytes
    if slots and cache_tokens:
        # Against all that is free: who sets both may know better what the rest needs.
        if (wanted := slots * cache_tokens * bytes_per_token(model)) > free:
            raise StartupError(
                f"no room for {slots} requests of {cache_tokens} tokens: they take {wanted >> 20} MiB, and {free >> 20} MiB are free;"
                " set GLMQ_AR_SLOTS or GLMQ_AR_CACHE_TOKENS lower"
            )
        return Room(slots, cache_tokens)
    room_tokens = int(free * _SHARE[kind]) // bytes_per_token(model)
    if not cache_tokens:
        cache_tokens = min(model.max_positions, max(room_tokens // (slots or _SLOTS[kind]), 0 if slots else _ENOUGH_TOKENS))
    if not slots:
        slots = min(_SLOTS[kind], room_tokens // cache_tokens)
    if not (slots and cache_tokens):
        raise StartupError(
            f"no room for one request: {free >> 20} MiB are free, of which {room_tokens} tokens may be kept; set GLMQ_AR_CACHE_TOKENS lower"
        )
    return Room(slots, cache_tokens)


def cache_shape(model: ArModel) -> tuple[int, int, int, int]:
    """num_layers, kv_heads, head_dim and rotary_dim, as `SlotCache` takes them."""
    attention = model.net.model.language_model.layers[0].self_attn
    head_dim: int = attention.head_dim
    # Asked, not computed: how many of a head's numbers are rotated is the rotary module's own affair.
    positions = torch.zeros(3, 1, 1, dtype=torch.int64, device=model.device)
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    rotary_dim: int = model.net.model.language_model.rotary_emb(like, positions)[0].shape[-1]
    return model.num_layers, model.net.config.text_config.num_key_value_heads, head_dim, rotary_dim


def bytes_per_token(model: ArModel) -> int:
    """What one id takes of a slot: keys and values in all layers, rotary table and the id."""
    num_layers, kv_heads, head_dim, rotary_dim = cache_shape(model)
    return int((2 * num_layers * kv_heads * head_dim + 2 * rotary_dim) * model.dtype.itemsize + torch.int64.itemsize)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    # All of it, not what is free this moment: page caches come and go.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
