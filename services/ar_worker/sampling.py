"""
Logits -> one id: transformers' own warpers in transformers' order, drawn with the request's own generator.

Knows nothing about prompts or grids. An id that is no code is never drawn: an early end token would leave the grid unfinished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from shared.errors import PermanentWorkError, StartupError

_GREEDY_BELOW = 1e-5
"""Logits divided by less overflow float32 and leave no probabilities. Such a temperature means: take the likeliest id."""

_DEFAULT_TOP_K = 50
"""transformers' own, where generation_config.json names none."""

# What generate() would also obey: setting -> the values that do nothing.
_UNKNOWN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "guidance_scale": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "min_p": (None,),
    "top_h": (None,),
    "sequence_bias": (None,),
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
}


@dataclass(frozen=True)
class SamplingRules:
    """
    What a checkpoint says about sampling, for every request.

    Attributes:
        forbidden: [vision_vocab_size] bool, true where an id is never drawn.
        top_k: 0 for no limit.
    """

    forbidden: Tensor
    top_k: int

    @classmethod
    def read(cls, generation_config: Any, codebook_size: int, vision_vocab_size: int, device: torch.device) -> SamplingRules:
        """
        Read generation_config.json, in which temperature and top_p are only defaults for requests.

        Raises:
            StartupError: it asks for something that the engine would silently leave out.
        """
        for name, harmless in _UNKNOWN_SETTINGS.items():
            if (value := getattr(generation_config, name, None)) not in harmless:
                raise StartupError(f"generation_config.json sets {name} to {value}; the AR engine has no such sampling step")
        forbidden = torch.zeros(vision_vocab_size, dtype=torch.bool, device=device)
        forbidden[codebook_size:] = True
        forbidden[generation_config.suppress_tokens or []] = True
        top_k = generation_config.top_k
        return cls(forbidden, _DEFAULT_TOP_K if top_k is None else top_k)


class TokenSampler:
    """
    Draws the ids of one request as transformers does: the measure of `race.Race`, which draws for many and asks this one when in doubt.

    The generator belongs to the request, so neither its neighbours nor the process's global one change what it draws; seeded
    alike, it draws what the reference draws from the global one.

    Args:
        temperature: 0 takes the likeliest id every time.
        top_p: 1 for no limit.
        seed: 0..2**63-1.
    Raises:
        PermanentWorkError: a parameter is out of range.
    """

    def __init__(self, rules: SamplingRules, temperature: float, top_p: float, seed: int) -> None:
        if not (0 <= temperature < math.inf and 0 <= top_p <= 1):
            raise PermanentWorkError("invalid_request", f"temperature {temperature} or top_p {top_p} is out of range")
        self._forbidden = rules.forbidden
        self.temperature = float(temperature)
        self.top_p = float(top_p)
        self.is_greedy = temperature < _GREEDY_BELOW
        self.generator = torch.Generator(rules.forbidden.device).manual_seed(seed)
        self._warpers: list[Any] = []
        # In the order of transformers' generate(); another order draws other ids.
        if not self.is_greedy and temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(self.temperature))
        if rules.top_k:
            self._warpers.append(TopKLogitsWarper(rules.top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(self.top_p))

    def draw(self, logits: Tensor) -> Tensor:
        """
        Draw the next id.

        Args:
            logits: [B, vision_vocab_size] or its first columns up to the codebook's end, any float dtype.
        Returns:
            [B] int64.
        Raises:
            PermanentWorkError: see `no_numbers`.
        """
        # float32, as the reference: bf16 would merge neighbouring probabilities.
        scores = logits.float().masked_fill(self._forbidden[: logits.shape[1]], -math.inf)
        if self.is_greedy:
            best, ids = scores.max(dim=-1)
            if not best.isfinite().all():
                raise no_numbers()
            return ids
        # What the net's head left out is never drawn, but the generator must move on as if it could be.
        scores = torch.nn.functional.pad(scores, (0, self._forbidden.shape[0] - scores.shape[1]), value=-math.inf)
        for warp in self._warpers:
            scores = warp(None, scores)
        chances = scores.softmax(dim=-1)
        if chances.isnan().any():
            # A GPU that is told to draw from these is lost to the process.
            raise no_numbers()
        return torch.multinomial(chances, num_samples=1, generator=self.generator).squeeze(1)


def no_numbers() -> PermanentWorkError:
    """The error of a request whose logits hold what is no number, or an infinite one: it would again."""
    return PermanentWorkError("ar_overflow", "the AR model's numbers overflowed; where adapters act, their scales may be too large")
