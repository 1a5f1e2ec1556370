"""Slots and their length follow from settings, memory and the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from services.ar_worker.room import Room, bytes_per_token, choose_room
from services.ar_worker.weights import ArModel
from shared.errors import StartupError


def free_for(model: ArModel, tokens: int) -> int:
    """Bytes of which a CPU worker takes a quarter, for `tokens` ids."""
    return 4 * tokens * bytes_per_token(model)


def test_a_token_takes_keys_values_positions_and_its_id(ar_model: ArModel) -> None:
    """Of the miniature: two layers, two key heads of 16 numbers, twice; 8 cosines and sines; 8 bytes of id."""
    assert bytes_per_token(ar_model) == 4 * (2 * 2 * 2 * 16) + 4 * (2 * 8) + 8


def test_what_is_set_is_taken(ar_model: ArModel) -> None:
    """Both settings together may take all there is; a byte more refuses the start, with one line that names both."""
    enough = 5 * 700 * bytes_per_token(ar_model)
    assert choose_room(ar_model, slots=5, cache_tokens=700, free_bytes=enough) == Room(5, 700)
    with pytest.raises(StartupError, match=r"^no room for 5 requests of 700 tokens: .* GLMQ_AR_SLOTS or GLMQ_AR_CACHE_TOKENS lower$"):
        choose_room(ar_model, slots=5, cache_tokens=700, free_bytes=enough - 1)


def test_plenty_of_memory_gives_every_slot_the_longest_request(ar_model: ArModel) -> None:
    """As many slots as do a CPU good, each as long as the model's positions."""
    assert choose_room(ar_model, free_bytes=1 << 50) == Room(32, ar_model.max_positions)


def test_less_memory_first_shortens_then_removes_slots(ar_model: ArModel) -> None:
    """Down to 8192 ids for each; below that there are fewer slots."""
    assert choose_room(ar_model, free_bytes=free_for(ar_model, 32 * 10_000)) == Room(32, 10_000)
    assert choose_room(ar_model, free_bytes=free_for(ar_model, 5 * 8192 + 1)) == Room(5, 8192)


def test_one_setting_leaves_the_other_to_memory(ar_model: ArModel) -> None:
    """Given slots share what there is; given lengths are served as often as they fit."""
    free = free_for(ar_model, 6000)
    assert choose_room(ar_model, slots=6, free_bytes=free) == Room(6, 1000)
    assert choose_room(ar_model, cache_tokens=500, free_bytes=free) == Room(12, 500)


def test_a_model_with_few_positions_needs_no_longer_slots(ar_model: ArModel) -> None:
    """Slots are never longer than the model's longest request."""
    assert choose_room(replace(ar_model, max_positions=300), free_bytes=free_for(ar_model, 900)) == Room(3, 300)


def test_no_room_at_all_refuses_the_start(ar_model: ArModel) -> None:
    """With the setting that may help."""
    with pytest.raises(StartupError, match="GLMQ_AR_CACHE_TOKENS"):
        choose_room(ar_model, free_bytes=free_for(ar_model, 8191))


def test_half_precision_takes_half(ar_model: ArModel) -> None:
    """The id alone keeps its eight bytes."""
    whole, half = bytes_per_token(ar_model), bytes_per_token(replace(ar_model, dtype=torch.bfloat16))
    assert 2 * (half - 8) == whole - 8
