"""Ids are drawn as transformers draws them, but from a generator of one's own and only from the codebook."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GenerationConfig

from services.ar_worker.sampling import SamplingRules, TokenSampler
from shared.errors import PermanentWorkError, StartupError

CPU = torch.device("cpu")


def rules(top_k: int = 0, codebook_size: int = 6, vocab_size: int = 8) -> SamplingRules:
    return SamplingRules.read(GenerationConfig(top_k=top_k), codebook_size, vocab_size, CPU)


def draw_many(sampler: TokenSampler, logits: torch.Tensor, count: int = 300) -> list[int]:
    return [int(sampler.draw(logits)) for _ in range(count)]


LOGITS = torch.tensor([[0.0, 1.0, 2.0, 1.5, -1.0, 0.5, 9.0, 9.0]])


def test_ids_beyond_the_codebook_are_never_drawn() -> None:
    """Not even when they are by far the likeliest."""
    assert set(draw_many(TokenSampler(rules(), 2.0, 1.0, seed=1), LOGITS)) == set(range(6))


def test_suppressed_ids_are_never_drawn() -> None:
    """The checkpoint's own list is obeyed as well."""
    config = GenerationConfig(top_k=0, suppress_tokens=[2, 3])
    drawn = draw_many(TokenSampler(SamplingRules.read(config, 6, 8, CPU), 2.0, 1.0, seed=1), LOGITS)

    assert set(drawn) == {0, 1, 4, 5}


def test_same_seed_same_ids() -> None:
    """A request repeated gives the same ids; another seed gives others."""
    first, again, other = (draw_many(TokenSampler(rules(), 1.0, 1.0, seed=seed), LOGITS) for seed in (5, 5, 6))

    assert first == again
    assert first != other


def test_two_requests_do_not_share_a_generator() -> None:
    """Drawing in turns gives each what it gets alone."""
    alone = draw_many(TokenSampler(rules(), 1.0, 1.0, seed=5), LOGITS, 50)
    one, two = TokenSampler(rules(), 1.0, 1.0, seed=5), TokenSampler(rules(), 1.0, 1.0, seed=6)

    in_turns = [(int(one.draw(LOGITS)), int(two.draw(LOGITS))) for _ in range(50)]

    assert [first for first, _ in in_turns] == alone


def test_temperature_zero_takes_the_likeliest_code() -> None:
    """Greedy, whatever the seed; so does a temperature too small to divide by."""
    assert set(draw_many(TokenSampler(rules(), 0, 1.0, seed=1), LOGITS)) == {2}
    assert set(draw_many(TokenSampler(rules(), 1e-30, 1.0, seed=1), LOGITS)) == {2}
    assert set(draw_many(TokenSampler(rules(), 1e-5, 1.0, seed=1), LOGITS)) == {2}


def test_top_p_keeps_the_likeliest() -> None:
    """A small top_p leaves one id, a larger one a few."""
    assert set(draw_many(TokenSampler(rules(), 1.0, 0.0, seed=1), LOGITS)) == {2}
    assert set(draw_many(TokenSampler(rules(), 1.0, 0.7, seed=1), LOGITS)) == {1, 2, 3}


def test_top_k_of_the_checkpoint_is_obeyed() -> None:
    """It is no parameter of a request, but it is one of the reference."""
    assert set(draw_many(TokenSampler(rules(top_k=2), 2.0, 1.0, seed=1), LOGITS)) == {2, 3}


def test_a_checkpoint_without_top_k_means_fifty() -> None:
    """As transformers' generate() fills it in."""
    assert SamplingRules.read(GenerationConfig(), 6, 8, CPU).top_k == 50


def test_half_precision_logits_are_drawn_in_float32() -> None:
    """bfloat16 logits give what the same numbers in float32 give."""
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = rules(codebook_size=64, vocab_size=64)

    half = draw_many(TokenSampler(wide, 0.9, 0.75, seed=3), logits)

    assert half == draw_many(TokenSampler(wide, 0.9, 0.75, seed=3), logits.float())


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(-0.1, 0.5), (math.inf, 0.5), (math.nan, 0.5), (1.0, -0.1), (1.0, 1.1), (1.0, math.nan)]
)
def test_parameters_out_of_range_are_refused(temperature: float, top_p: float) -> None:
    """The engine does not rely on the API for it."""
    with pytest.raises(PermanentWorkError, match="out of range"):
        TokenSampler(rules(), temperature, top_p, seed=0)


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.2}, {"min_p": 0.1}, {"num_beams": 4}, {"bad_words_ids": [[1]]}])
def test_a_checkpoint_with_unknown_sampling_steps_is_refused(setting: dict[str, object]) -> None:
    """Left out silently, they would make other tokens than the reference's."""
    with pytest.raises(StartupError, match=next(iter(setting))):
        SamplingRules.read(GenerationConfig(**setting), 6, 8, CPU)
