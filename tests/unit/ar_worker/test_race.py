"""Many draws at once are, id for id, the draws of each request's own sampler, and leave its generator in the same state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from services.ar_worker.noise import ExponentialNoise, UniformNoise
from services.ar_worker.race import Race
from services.ar_worker.sampling import SamplingRules, TokenSampler
from shared.errors import PermanentWorkError

CPU = torch.device("cpu")
VOCAB = 700
NUM_IDS = 650
"""Not whole blocks, and more blocks than are looked at."""


def make_rules(top_k: int = 0, suppress: list[int] | None = None) -> SamplingRules:
    return SamplingRules.read(GenerationConfig(do_sample=True, top_k=top_k, suppress_tokens=suppress), NUM_IDS, VOCAB, CPU)


def shape_logits(kind: str, seed: int, num_rows: int) -> torch.Tensor:
    """[num_rows, NUM_IDS]."""
    random = torch.randn(num_rows, NUM_IDS, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "flat":
            return random * 1e-3
        case "ordinary":
            return random
        case "peaked":
            return random * 8
        case "ties":
            return random.round()
        case "all equal":
            return torch.zeros_like(random)
        case "few":
            return random.masked_fill(random < 2, -math.inf)
        case _:  # two equals far above the rest
            random[:, 7] = random[:, 600] = 30.0
            return random


KINDS = ["flat", "ordinary", "peaked", "ties", "all equal", "few", "two"]

samplings = st.tuples(
    st.one_of(st.sampled_from([0.0, 1e-7, 1.0, 0.2, 2.0]), st.floats(0.05, 3)),
    st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.75, 1e-5, 1 - 1e-6]), st.floats(0, 1)),
    st.integers(0, 2**63 - 1),
)


@given(
    rows=st.lists(st.tuples(samplings, st.sampled_from(KINDS)), min_size=1, max_size=6),
    seed=st.integers(0, 2**20),
    top_k=st.sampled_from([0, 0, 1, 50, NUM_IDS, VOCAB]),
    suppress=st.sampled_from([None, [0, 7, 649], list(range(NUM_IDS, VOCAB))]),
)
def test_a_race_draws_what_samplers_draw(rows: list[Any], seed: int, top_k: int, suppress: list[int] | None) -> None:
    """Flat, peaked, tied and impossible logits, any temperature, top_p and top_k, neighbours of every kind: equal ids, three times on."""
    rules = make_rules(top_k, suppress)
    samplers, alone = ([TokenSampler(rules, *sampling) for sampling, _ in rows] for _ in range(2))
    race = Race(rules, NUM_IDS, slots=8)
    race.enter(samplers)
    for step in range(3):
        logits = torch.cat([shape_logits(kind, seed + 7 * step + i, 1) for i, (_, kind) in enumerate(rows)])

        drawn = race.draw(logits)

        assert drawn.tolist() == [int(sampler.draw(logits[i : i + 1])) for i, sampler in enumerate(alone)]
    for sampler, other in zip(samplers, alone, strict=True):
        assert torch.equal(sampler.generator.get_state(), other.generator.get_state())


def test_looking_ahead_changes_no_draw() -> None:
    """Numbers taken before they are wanted are those that would have been, and go back when the rows change."""
    rules = make_rules()
    samplers, alone = ([TokenSampler(rules, 0.9, 0.75, seed) for seed in range(3)] for _ in range(2))
    race = Race(rules, NUM_IDS, slots=4)
    for step, present in enumerate(([0, 1, 2], [0, 1, 2], [2, 0], [2, 0])):
        race.enter([samplers[i] for i in present])
        race.look_ahead()
        race.look_ahead()
        logits = shape_logits("ordinary", step, len(present))

        assert race.draw(logits).tolist() == [int(alone[i].draw(logits[row : row + 1])) for row, i in enumerate(present)]
        race.look_ahead()


@pytest.mark.parametrize("fails", ["div", "softmax"])
def test_a_draw_that_fails_takes_no_numbers(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Wherever it fails, looked ahead or not, the next one draws what it would have."""
    rules = make_rules()
    sampler, alone = (TokenSampler(rules, 0.9, 0.75, 1) for _ in range(2))
    race = Race(rules, NUM_IDS, slots=1)
    race.enter([sampler])

    def lack_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory for a draw")

    for step in range(3):
        logits = shape_logits("ordinary", step, 1)
        race.look_ahead()
        with monkeypatch.context() as patch:
            patch.setattr(torch, fails, lack_memory)
            with pytest.raises(torch.OutOfMemoryError):
                race.draw(logits)
        assert race.draw(logits).tolist() == alone.draw(logits).tolist()


@pytest.mark.parametrize("top_p", [0.75, 0.9, 1.0])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_thousands_of_draws_from_a_real_vocabulary(top_p: float, spread: float) -> None:
    """At the published sizes, 1,600 draws in a row are those of the samplers; nearly all without their help."""
    rules = SamplingRules.read(GenerationConfig(do_sample=True, top_k=0), 16384, 16512, CPU)
    samplers, alone = ([CountingSampler(rules, 0.9, top_p, seed) for seed in range(16)] for _ in range(2))
    race = Race(rules, 16384, slots=16)
    race.enter(samplers)
    random = torch.Generator().manual_seed(1)
    for _ in range(20):
        logits = torch.randn(16, 16384, generator=random) * spread
        assert race.draw(logits).tolist() == [int(sampler.draw(logits[i : i + 1])) for i, sampler in enumerate(alone)]

    assert sum(sampler.num_draws for sampler in samplers) <= 6


class CountingSampler(TokenSampler):
    """A sampler that counts how often it draws itself."""

    num_draws = 0

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        self.num_draws += 1
        return super().draw(logits)


def test_half_precision_logits_are_drawn_in_float32() -> None:
    """bfloat16 logits give what the same numbers in float32 give."""
    logits = shape_logits("ordinary", 1, 2).bfloat16()
    ids = []
    for given_logits in (logits, logits.float()):
        race = Race(make_rules(), NUM_IDS, slots=2)
        race.enter([TokenSampler(make_rules(), 0.9, 0.75, seed) for seed in range(2)])
        ids.append(race.draw(given_logits).tolist())

    assert ids[0] == ids[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.9, 0.0])
@pytest.mark.parametrize("top_k", [0, 50])
def test_rows_without_numbers_get_no_id(value: float, temperature: float, top_k: int) -> None:
    """One such number is enough; the rows beside it are drawn, and the sampler refuses what the race does."""
    rules = make_rules(top_k)
    race = Race(rules, NUM_IDS, slots=4)
    samplers, alone = ([TokenSampler(rules, t, 0.75, 1) for t in (0.9, temperature, 0.0, 0.5)] for _ in range(2))
    race.enter(samplers)
    logits = shape_logits("ordinary", 1, 4)
    logits[1, 5] = value

    ids = race.draw(logits)

    assert race.broken == [1]
    assert [int(ids[i]) for i in (0, 2, 3)] == [int(alone[i].draw(logits[i : i + 1])) for i in (0, 2, 3)]
    with pytest.raises(PermanentWorkError, match="overflowed"):
        alone[1].draw(logits[1:2])
    race.draw(shape_logits("ordinary", 1, 4))
    assert race.broken == []


def test_uniform_noise_is_torch_s_own() -> None:
    """The cheap numbers stand for the exponentials that torch.multinomial draws, and bound them from below."""
    assert UniformNoise.fits(VOCAB)
    cheap, plain = UniformNoise(2, VOCAB), ExponentialNoise(2, VOCAB, CPU)
    for noise in (cheap, plain):
        noise.fill(1, torch.Generator().manual_seed(5))

    assert torch.allclose(cheap.exponentials(cheap.raw[1]).float(), plain.raw[1], rtol=1e-6, atol=0)
    assert (cheap.raw[1].float() <= plain.raw[1]).all()


@pytest.mark.parametrize("noise", [UniformNoise(1, VOCAB), ExponentialNoise(1, VOCAB, CPU)])
def test_skipping_is_drawing_unseen(noise: UniformNoise | ExponentialNoise) -> None:
    """A generator moved on by five draws is where torch.multinomial leaves it after five."""
    skipped, drawn = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)

    noise.skip(5, skipped)

    for _ in range(5):
        torch.multinomial(torch.ones(1, VOCAB), 1, generator=drawn)
    assert torch.equal(skipped.get_state(), drawn.get_state())
