"""
Logits of many requests -> one id each: the draws of `sampling.TokenSampler`, for all rows at once and without sorting a vocabulary.

A draw is a race: id j arrives at time e_j / p_j, where e_j is exponential noise, and the first of those that top_p keeps wins. top_p
keeps an id if the ids likelier than it have less than top_p of the mass. So the winner among all is looked for first; if top_p keeps
it, it is the winner, and if not, nothing less likely is kept either, and the race is run again among those likelier. The winner among
all is kept with a probability of top_p, so few rows need a second run, and no run sorts.

Rounding differs from the reference's. Whenever a comparison is closer than all rounding together, the row's sampler draws by the
reference's own steps, from the generator as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.logits_process import TopKLogitsWarper

from services.ar_worker.noise import choose_noise
from services.ar_worker.sampling import SamplingRules, TokenSampler

_BLOCK = 64
"""Ids per block. Only the blocks whose bounds are highest are looked at id by id."""

_NUM_BLOCKS = 8
"""
Blocks looked at. Those that may hold the winner number 1 + T on average, where T is the winner's time, exponential with mean 1:
eight are too few once in hundreds of draws.
"""

_MOST_RUNS = 8
"""Runs after which a row is sorted after all: with a tiny top_p the winner among all is hardly ever kept."""

_MASS_MARGIN = 3e-4
"""
More than all rounding in a cumulated probability. float32 sums of 16,512 terms in eight lanes are off by at most 2,064 * 2**-24 = 1.3e-4;
the reference's are, and so are ours.
"""

_TIME_MARGIN = 1e-5
"""More than all rounding in the ratio of two times: some 2**-24 each for two probabilities, two noises and their quotients."""


@dataclass(frozen=True)
class _Runners:
    """
    Rows that have no id yet.

    Attributes:
        rows: index of each in the batch.
        scores, chances: [n, num_ids]: what top_p compares, and the probabilities; 0 for ids that are out.
        raw: [n, num_ids], see `Noise.raw`.
        top_p: [n], infinite for no limit.
    """

    rows: list[int]
    scores: Tensor
    chances: Tensor
    raw: Tensor
    top_p: Tensor


@dataclass(frozen=True)
class _Winners:
    """
    Of each row, the first to arrive.

    Attributes:
        ids: [n] int64.
        scores, chances: [n, 1], of that id.
        are_sure: [n] bool; false where another id may have been first.
    """

    ids: Tensor
    scores: Tensor
    chances: Tensor
    are_sure: Tensor


class Race:
    """
    Draws for up to `slots` rows at a time.

    Args:
        num_ids: columns of the logits: the codebook.
    Attributes:
        broken: rows for which the last draw has no id, because some of their logits are no numbers.
    """

    def __init__(self, rules: SamplingRules, num_ids: int, slots: int) -> None:
        device = rules.forbidden.device
        self.noise = choose_noise(slots, rules.forbidden.shape[0], device)
        forbidden = rules.forbidden[:num_ids]
        self._forbidden = forbidden if forbidden.any() else None
        self._top_k = TopKLogitsWarper(rules.top_k) if 0 < rules.top_k < num_ids else None
        self._num_ids = num_ids
        self._num_blocks = math.ceil(num_ids / _BLOCK)
        self._scores, self._chances, self._lower = (torch.empty(slots, num_ids, device=device) for _ in range(3))
        # Zero behind the last id: nothing is drawn there.
        self._bounds = torch.zeros(slots, self._num_blocks * _BLOCK, device=device)
        self._in_block = torch.arange(_BLOCK, device=device)
        self._samplers: list[TokenSampler] = []
        self._before: dict[int, Tensor] = {}  # of each row whose next numbers were taken: the state of its generator until then
        self.broken: list[int] = []

    def enter(self, samplers: Sequence[TokenSampler]) -> None:
        """Say whose rows the next logits hold; again whenever they change."""
        self._take_back()
        self._samplers = list(samplers)
        self._sampled = [row for row, sampler in enumerate(samplers) if not sampler.is_greedy]
        device = self._scores.device
        temperatures = [1.0 if sampler.is_greedy else sampler.temperature for sampler in samplers]
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]
        self._are_warmed = any(temperature != 1 for temperature in temperatures)
        self._top_p = torch.tensor([math.inf if sampler.top_p >= 1 else sampler.top_p for sampler in samplers], device=device)

    def look_ahead(self) -> None:
        """Take the random numbers of the next draw, if nobody did: the host asks a GPU for them while that computes the logits."""
        if not self._before:
            self._before = {row: self._samplers[row].generator.get_state() for row in self._sampled}
            for row in self._sampled:
                self.noise.fill(row, self._samplers[row].generator)

    def _take_back(self) -> None:
        for row, state in self._before.items():
            self._samplers[row].generator.set_state(state)
        self._before = {}

    def draw(self, logits: Tensor) -> Tensor:
        """
        Draw the next id of every row.

        Args:
            logits: [n, num_ids], any float dtype; row i belongs to the i-th sampler.
        Returns:
            [n] int64; 0 for rows that are `broken`. Should this raise, the generators are as before.
        """
        try:
            ids = self._draw(logits)
        except Exception:
            self._take_back()
            raise
        self._before = {}
        return ids

    def _draw(self, logits: Tensor) -> Tensor:
        n = len(self._samplers)
        scores = self._scores[:n]
        if self._are_warmed:
            torch.div(logits, self._temperatures, out=scores)
        else:
            scores.copy_(logits)
        if self._forbidden is not None:
            scores.masked_fill_(self._forbidden, -math.inf)
        has_greedy = len(self._sampled) < n
        ids = scores.argmax(dim=-1) if has_greedy else torch.zeros(n, dtype=torch.int64, device=scores.device)
        self.broken = []
        # Before the scores are cut, and read after the draw: the host waits for the device once.
        best = scores.gather(1, ids[:, None]) if has_greedy else None
        if self._sampled:
            self.look_ahead()
            self._draw_sampled(scores, logits, ids)
        if best is not None:
            are_finite = best.isfinite()[:, 0].tolist()
            self.broken += [row for row, finite in enumerate(are_finite) if not finite and self._samplers[row].is_greedy]
        if self.broken:
            ids[self.broken] = 0
        return ids

    def _draw_sampled(self, scores: Tensor, logits: Tensor, ids: Tensor) -> None:
        n = len(self._samplers)
        if self._top_k is not None:
            scores = self._top_k(None, scores)
        chances = torch.softmax(scores, dim=-1, out=self._chances[:n])
        runners = _Runners(list(range(n)), scores, chances, self.noise.raw[:n, : self._num_ids], self._top_p)
        if len(self._sampled) < n:
            runners = self._pick(runners, self._sampled)
        for run in range(_MOST_RUNS):
            winners = self._run(runners)
            kept, out, broken = self._judge(runners, winners)
            self.broken += [runners.rows[i] for i in broken]
            if run == _MOST_RUNS - 1:
                out = []
            if len(kept) == n:  # in the first run, then, and with the rows in order
                ids.copy_(winners.ids)
            elif kept:
                ids[[runners.rows[i] for i in kept]] = winners.ids[kept]
            for i in set(range(len(runners.rows))).difference(kept, out, broken):
                row = runners.rows[i]
                self._samplers[row].generator.set_state(self._before[row])
                ids[row] = self._samplers[row].draw(logits[row : row + 1])[0]
            if not out:
                break
            losers = winners.scores[out]
            runners = self._pick(runners, out)
            runners.chances.mul_(runners.scores > losers)

    def _pick(self, runners: _Runners, which: list[int]) -> _Runners:
        """Copies of some rows."""
        rows = [runners.rows[i] for i in which]
        return _Runners(rows, runners.scores[which], runners.chances[which], runners.raw[which], runners.top_p[which])

    def _run(self, runners: _Runners) -> _Winners:
        """Who arrives first? No id arrives before raw / chance, so a few blocks of ids are enough to look at."""
        n = len(runners.rows)
        raw = runners.raw
        lower = raw if raw.dtype == torch.float32 else self._lower[:n].copy_(raw)
        torch.div(runners.chances, lower, out=self._bounds[:n, : self._num_ids])
        blocks = self._bounds[:n].view(n, self._num_blocks, _BLOCK).amax(dim=-1)
        bounds, which = blocks.topk(min(_NUM_BLOCKS, self._num_blocks), dim=-1)
        candidates = (which[:, :, None] * _BLOCK + self._in_block).view(n, -1)
        # Beyond the last id stands the last id again, with no chance.
        is_id = candidates < self._num_ids
        candidates.clamp_(max=self._num_ids - 1)
        chances = runners.chances.gather(1, candidates) * is_id
        speeds = chances.double().div_(self.noise.exponentials(raw.gather(1, candidates)))
        fastest, places = speeds.topk(min(2, speeds.shape[1]), dim=-1)
        others = torch.maximum(fastest[:, 1], bounds[:, -1].double()) if self._num_blocks > bounds.shape[1] else fastest[:, 1]
        ids = candidates.gather(1, places[:, :1])
        return _Winners(
            ids=ids[:, 0],
            scores=runners.scores.gather(1, ids),
            chances=runners.chances.gather(1, ids),
            are_sure=others < fastest[:, 0] * (1 - _TIME_MARGIN),
        )

    def _judge(self, runners: _Runners, winners: _Winners) -> tuple[list[int], list[int], list[int]]:
        """
        Does top_p keep them?

        Returns:
            those it keeps, those it does not, and those without chances, by their place in `runners`; the rest is too close to tell.
        """
        chances = winners.chances[:, 0]
        # All others together have less than top_p of the mass, whoever of them is likelier.
        are_kept = 1 - chances < runners.top_p - _MASS_MARGIN
        # The one thing per draw that the host must know: which rows are ready.
        verdicts = torch.stack([winners.are_sure, are_kept, chances.isnan()]).tolist()
        kept = [i for i, (sure, keep, _) in enumerate(zip(*verdicts, strict=True)) if sure and keep]
        undecided = [i for i, (sure, keep, _) in enumerate(zip(*verdicts, strict=True)) if sure and not keep]
        # softmax makes no number of a whole row that holds one which is none, or an infinite one.
        broken = [i for i, is_none in enumerate(verdicts[2]) if is_none]
        if not undecided:
            return kept, [], broken
        whole = len(undecided) == len(runners.rows)
        scores, masses = (runners.scores, runners.chances) if whole else (runners.scores[undecided], runners.chances[undecided])
        thresholds, top_p = winners.scores[undecided], runners.top_p[undecided]
        likelier = torch.linalg.vecdot(self._compare(torch.gt, scores, thresholds), masses)
        at_least = torch.linalg.vecdot(self._compare(torch.ge, scores, thresholds), masses) - chances[undecided]
        # The likeliest of all is kept, however small top_p is. Those as likely as the winner may stand before or behind it.
        keep = (at_least < top_p - _MASS_MARGIN) | (at_least == 0)
        verdicts = torch.stack([keep, likelier > top_p + _MASS_MARGIN]).tolist()
        kept += [i for i, keep in zip(undecided, verdicts[0], strict=True) if keep]
        out = [i for i, keep, drop in zip(undecided, *verdicts, strict=True) if drop and not keep]
        return kept, out, broken

    def _compare(self, comparison: Callable[..., Tensor], scores: Tensor, thresholds: Tensor) -> Tensor:
        """1 where true, else 0, in float32 at once: torch multiplies by booleans far more slowly."""
        return comparison(scores, thresholds, out=self._lower[: scores.shape[0]])
