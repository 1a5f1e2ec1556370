"""
Stage `layout`: the AR model learns to write the codes of the poster that a prompt asks for, or of what an edit makes of a source.

Teacher forcing on exactly the ids and positions of the real processor and of cached generation: prompt, a draft of about 256 codes
(the poster's own, resized by nearest neighbour), the poster's codes. Everything is fixed by the prompt, so the best loss is zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import GlmImagePipeline
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, GlmImageForConditionalGeneration, PreTrainedTokenizerFast

from checkpoints.train import tokens
from checkpoints.train.factors import FactoredTable
from checkpoints.train.networks import VISION_VOCAB_SIZE, processor, tokenizer, vision_language_encoder
from checkpoints.train.posters import (
    CELL_PX,
    CODEBOOK_SIZE,
    NUM_CODES,
    Grid,
    Poster,
    all_sizes,
    code_factors,
    codes,
    sample_edit,
    sample_poster,
)
from checkpoints.train.run import Run, load_weights
from checkpoints.train.wordings import prompt_for, worn

_START, _END = CODEBOOK_SIZE, CODEBOOK_SIZE + 1
_STEP_TOKENS = 5000
"""Tokens of a training step; a batch holds rows of one size."""

_WARM_UP = 0.12
"""Share of the run whose drafts are as small as their targets: many times more prompts a second while the words are learned."""

_EDITS = 0.22
_SOURCE_NOISE = 0.03
_QUIET_SHARE = 0.1
"""Share of the positions whose code repeats the one before that the loss looks at; each stands for all of them."""

_TARGET_WEIGHT = 2.0
"""Of a code of the picture against one of the draft, which nothing but the model itself ever reads."""

_CHECK_SECONDS = 300.0
Size = tuple[int, int]


# ---------------------------------------------------------------- what is trained


class LayoutNet:
    """
    The AR model, its embedding and head as sums over what codes share.

    Attributes:
        model: the layers are trained; the tables in it are filled by `fold`.
    """

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model: GlmImageForConditionalGeneration = vision_language_encoder()
        self.language: nn.Module = self.model.model.language_model
        vocabulary, hidden = self.language.embed_tokens.weight.shape
        # Every block adds outputs of norm one, beside which smaller embeddings would be inaudible.
        self.embedding = FactoredTable(vocabulary, hidden, std=0.4)
        nn.init.normal_(self.embedding.own[NUM_CODES:], std=0.5)
        self.head = FactoredTable(VISION_VOCAB_SIZE, hidden, std=0.02)

    @property
    def trained(self) -> dict[str, nn.Module]:
        return {"layers": self.language.layers, "norm": self.language.norm, "embedding": self.embedding, "head": self.head}

    @torch.no_grad()
    def fold(self) -> GlmImageForConditionalGeneration:
        """The model with whole tables."""
        self.language.embed_tokens.weight.copy_(self.embedding.folded())
        self.model.lm_head.weight.copy_(self.head.folded())
        return self.model.eval()


def finished(folder: Path) -> GlmImageForConditionalGeneration:
    """
    The whole `vision_language_encoder` of the training folder `folder`: this stage's layers and tables, the tower and codebook of `tokens`.

    Raises:
        FileNotFoundError: one of the two stages has no snapshot.
    """
    net = LayoutNet()
    load_weights(folder / "layout", net.trained)
    tokens.install(folder, net.model)
    return net.fold()


# ---------------------------------------------------------------- rows


@dataclass
class Batch:
    """
    Attributes:
        ids: (B, S) right-padded.
        positions: (3, B, S) time, row, column.
        starts: (B,) index of the first code that is written.
        written: (B, N) what is written from there on: draft, picture, end.
        draft: how many of the N are the draft's.
        posters: what each row shows.
        prompts: what it says.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    written: torch.Tensor
    draft: int
    posters: list[Poster]
    prompts: list[str]


def draft_size(rows: int, columns: int) -> Size:
    """The processor's rule."""
    ratio = rows / columns
    return int(math.sqrt(ratio) * 16), int(math.sqrt(1 / ratio) * 16)


def draft_codes(grid: Grid, size: Size) -> Grid:
    """The picture's codes resized by nearest neighbour to the draft's size."""
    rows, columns = np.arange(size[0]) * grid.shape[0] // size[0], np.arange(size[1]) * grid.shape[1] // size[1]
    return grid[np.ix_(rows, columns)]


def _cells(grid_size: Size, start: int) -> npt.NDArray[np.int64]:
    """Positions (3, cells) of a grid that starts at `start`."""
    row, column = np.divmod(np.arange(grid_size[0] * grid_size[1]), grid_size[1])
    return np.stack([np.full(len(row), start), start + row, start + column])


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer()


def _assemble(prompts: list[str], sources: list[Grid] | None, targets: list[Grid], draft: Size | None, posters: list[Poster]) -> Batch:
    """
    Rows as the processor and cached generation would have them.

    Args:
        sources: codes of the source of each row, for edits.
        draft: size of the draft; None for edits.
    """
    size = (targets[0].shape[0], targets[0].shape[1])
    sizes = [size] if draft is None else [size, draft]
    suffix = "".join(f"<sop>{rows} {columns}<eop>" for rows, columns in sizes) + f"<|dit_token_{_START}|>"
    texts = _tokenizer()([prompt + suffix for prompt in prompts])["input_ids"]
    ids, positions = [], []
    for i, text in enumerate(texts):
        head: list[int] = []
        place = np.zeros((3, 0), np.int64)
        position = 0
        if sources is not None:
            source = sources[i]
            head = [_START, *source.ravel().tolist(), _END]
            place = np.concatenate([np.zeros((3, 1), np.int64), _cells(size, 1)], axis=1)
            position = 1 + max(size)
            text = [_END, *text]  # the end of a source takes its position among the text
            head.pop()
        place = np.concatenate([place, np.tile(np.arange(len(text)) + position, (3, 1))], axis=1)
        position += len(text)
        written = [] if draft is None else draft_codes(targets[i], draft).ravel().tolist()
        if draft is not None:
            place = np.concatenate([place, _cells(draft, position)], axis=1)
            position += max(draft)
        written += [*targets[i].ravel().tolist(), _END]
        ids.append((head + text, written))
        positions.append(np.concatenate([place, _cells(size, position), np.full((3, 1), position + max(size))], axis=1))
    longest = max(len(given) + len(written) for given, written in ids)
    padded = torch.full((len(ids), longest), _tokenizer().pad_token_id)
    places = torch.zeros(3, len(ids), longest, dtype=torch.long)
    for i, (given, written) in enumerate(ids):
        padded[i, : len(given) + len(written)] = torch.tensor(given + written)
        places[:, i, : len(given) + len(written)] = torch.from_numpy(positions[i])
    return Batch(
        padded,
        places,
        torch.tensor([len(given) for given, _ in ids]),
        torch.tensor([written for _, written in ids]),
        0 if draft is None else draft[0] * draft[1],
        posters,
        prompts,
    )


def make_batch(rng: random.Random, size: Size, count: int, draft: Size | None = None) -> Batch:
    """Posters of one size. `draft` defaults to the processor's size."""
    posters = [sample_poster(rng, *size) for _ in range(count)]
    return _assemble(
        [prompt_for(rng, poster) for poster in posters], None, [codes(p) for p in posters], draft or draft_size(*size), posters
    )


def make_edit_batch(rng: random.Random, size: Size, count: int) -> Batch:
    """Edits of sources of one size, whose codes the tower may have misread here and there."""
    edits = [sample_edit(rng, *size) for _ in range(count)]
    noise = np.random.default_rng(rng.randrange(2**32))
    sources = []
    for edit in edits:
        grid = codes(edit.source)
        misread = noise.random(grid.shape) < (_SOURCE_NOISE if rng.random() < 0.5 else 0.0)
        others = np.where(noise.random(grid.shape) < 0.5, noise.integers(0, NUM_CODES, grid.shape), noise.permuted(grid))
        sources.append(np.where(misread, others, grid))
    targets = [edit.target for edit in edits]
    return _assemble([worn(rng, edit.instruction) for edit in edits], sources, [codes(t) for t in targets], None, targets)


# ---------------------------------------------------------------- the loss


def _plain_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **settings: object
) -> tuple[torch.Tensor, None]:
    """Causal attention by two matrix products, (B, heads, S, D) each -> (B, S, heads, D): on a CPU four times as fast as torch's own."""
    batch, heads, length, width = query.shape
    dtype = torch.get_autocast_dtype("cpu")
    q, k, v = (tensor.to(dtype).flatten(0, 1) for tensor in (query, key, value))
    later = torch.full((length, length), -math.inf, dtype=dtype).triu(1).expand(batch * heads, length, length)
    shares = torch.baddbmm(later, q, k.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    return torch.bmm(shares, v).view(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register("plain", _plain_attention)


def _look_at(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (B, N) of the loss, zero where it does not look, and where the code differs from the one before (B, N)."""
    changes = torch.ones_like(batch.written, dtype=torch.bool)
    changes[:, 1:] = batch.written[:, 1:] != batch.written[:, :-1]
    weights = torch.where(changes, 1.0, (torch.rand(changes.shape) < _QUIET_SHARE).float() / _QUIET_SHARE)
    weights[:, batch.draft :] *= _TARGET_WEIGHT
    return weights, changes


def loss_of(net: LayoutNet, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss of a code in nats, and metrics."""
    weights, changes = _look_at(batch)
    row, at = weights.nonzero(as_tuple=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = net.language(inputs_embeds=net.embedding(batch.ids), position_ids=batch.positions, use_cache=False).last_hidden_state
        logits = F.linear(hidden[row, batch.starts[row] + at - 1], net.head.folded()).float()
    target, weight = batch.written[row, at], weights[row, at]
    nats = F.cross_entropy(logits, target, reduction="none")
    share = batch.draft + _TARGET_WEIGHT * (batch.written.shape[1] - batch.draft)
    loss = (nats * weight).sum() / (share * len(batch.ids))
    right = (logits.detach().argmax(-1) == target).float()
    in_draft, at_change, count = at < batch.draft, changes[row, at], len(batch.ids)
    spoken = nats.detach() * torch.where(in_draft, weight, weight / _TARGET_WEIGHT)

    def mean(values: torch.Tensor) -> float:
        return float(values.mean()) if len(values) else math.nan

    picture = "draft" if batch.draft else "edit"
    metrics = {
        "loss": float(loss.detach()),
        f"{'target' if batch.draft else 'edit'}_nats": float(spoken[~in_draft].sum()) / count,
        f"{'target' if batch.draft else 'edit'}_changes_right": mean(right[~in_draft & at_change]),
    }
    if batch.draft:
        metrics |= {f"{picture}_nats": float(spoken[in_draft].sum()) / count, f"{picture}_changes_right": mean(right[in_draft & at_change])}
    return loss, metrics


# ---------------------------------------------------------------- sampled checks


@dataclass(frozen=True)
class _Meanings:
    """Number of each feature of every code, -1 where it has none; see `posters.code_factors`."""

    background: npt.NDArray[np.int64]
    shade: npt.NDArray[np.int64]
    colour: npt.NDArray[np.int64]
    part: npt.NDArray[np.int64]
    decoration: npt.NDArray[np.int64]


@cache
def _meanings() -> _Meanings:
    table = np.full((CODEBOOK_SIZE, 5), -1)
    all_factors = code_factors()
    plain = all_factors[0][2]
    for code, factors in enumerate(all_factors):
        table[code, 0] = factors[0]
        if len(factors) == 3:
            table[code, 1] = factors[2] if factors[2] != plain else -1
        elif len(factors) == 5:
            table[code, [2, 3]] = factors[1], factors[3]
        else:
            table[code, [2, 4]] = factors[1], factors[3]
    return _Meanings(*(column.copy() for column in table.T))


def judge(grid: Grid, poster: Poster) -> dict[str, float]:
    """
    What of the poster is right in a grid of codes, 0 or 1 each.

    `rows` is which part of the text marks which row; `exact` is every cell.
    """
    truth, meanings = codes(poster), _meanings()

    def same(values: npt.NDArray[np.int64]) -> float:
        return float((values[grid] == values[truth]).all())

    colours = meanings.colour[grid]
    wanted = meanings.colour[truth].max()
    parts = [{(int(row), int(part)) for row, part in zip(*np.nonzero(meanings.part[g] >= 0), strict=True)} for g in (grid, truth)]
    rows = [{(row, int(meanings.part[g][row, column])) for row, column in cells} for g, cells in zip((grid, truth), parts, strict=True)]
    return {
        "background": same(meanings.background),
        "colour": float((colours[colours >= 0] == wanted).all() and (colours >= 0).any()),
        "decoration": same(meanings.decoration),
        "gradient": float((meanings.shade[grid] >= 0).any() == (meanings.shade[truth] >= 0).any()),
        "rows": float(rows[0] == rows[1]),
        "exact": float((grid == truth).all()),
    }


def write_grids(net: GlmImageForConditionalGeneration, prompts: list[str], size: Size, seed: int) -> Grid:
    """Codes (B, rows, columns) as the pipeline samples them."""
    pipeline = GlmImagePipeline(
        tokenizer=None, processor=processor(), text_encoder=None, vision_language_encoder=net, vae=None, transformer=None, scheduler=None
    )
    state = torch.get_rng_state()
    try:
        with torch.inference_mode():
            ids, _, _ = pipeline.generate_prior_tokens(
                prompt=prompts,
                height=CELL_PX * size[0],
                width=CELL_PX * size[1],
                device=torch.device("cpu"),
                generator=torch.Generator().manual_seed(seed),
            )
    finally:
        torch.set_rng_state(state)
    grids: Grid = ids.view(len(prompts), 2 * size[0], 2 * size[1])[:, ::2, ::2].numpy()
    return grids


def check(net: GlmImageForConditionalGeneration, sizes: Iterable[Size], count: int, seed: int) -> dict[str, float]:
    """Mean of `judge` over `count` posters of each size, sampled."""
    rng = random.Random(f"check {seed}")
    results = []
    for size in sizes:
        posters = [sample_poster(rng, *size) for _ in range(count)]
        grids = write_grids(net, [prompt_for(rng, poster) for poster in posters], size, rng.randrange(2**31))
        results += [judge(grid, poster) for grid, poster in zip(grids, posters, strict=True)]
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}


# ---------------------------------------------------------------- the stage


def size_weights() -> dict[Size, float]:
    """How often each trained size comes: all of them, squares and the largest more often."""
    weights = dict.fromkeys(all_sizes(), 1.0)
    for size in ((4, 4), (6, 6), (4, 8), (8, 4)):
        weights[size] = 3.0
    weights[8, 8] = 8.0
    return weights


def train(folder: Path, *, minutes: float = 78, max_steps: int | None = None, seed: int = 0) -> None:
    net = LayoutNet(seed)
    run = Run(
        folder / "layout",
        net.trained,
        minutes=minutes,
        lr=2e-3,
        muon_lr=0.02,
        muon_names=("layers.",),
        constant_share=0.4,
        seed=seed,
        max_steps=max_steps,
    )
    weights = size_weights()
    rng = random.Random(f"layout {seed} {run.step}")
    net.model.train()
    net.language.config._attn_implementation = "plain"
    next_check = run.seconds + _CHECK_SECONDS
    for _ in run.steps():
        [size] = rng.choices(list(weights), list(weights.values()))
        cells, warm = size[0] * size[1], run.progress < _WARM_UP
        if rng.random() < _EDITS:
            batch = make_edit_batch(rng, size, min(48, _STEP_TOKENS // (2 * cells + 35)))
        elif warm:
            batch = make_batch(rng, size, min(48, _STEP_TOKENS // (2 * cells + 50)), draft=size)
        else:
            batch = make_batch(rng, size, _STEP_TOKENS // (256 + cells + 50))
        loss, metrics = loss_of(net, batch)
        run.update(loss, len(batch.ids))
        run.note(**metrics)
        if run.seconds >= next_check and not warm:
            next_check = run.seconds + _CHECK_SECONDS
            average = LayoutNet()
            with torch.no_grad():
                for name, part in average.trained.items():
                    for key, parameter in part.named_parameters():
                        parameter.copy_(run.average[f"{name}.{key}"])
            results = check(average.fold(), [(8, 8), (4, 4), (4, 8), (5, 7)], 12, run.step)
            run.note(**{f"sampled_{name}": value for name, value in results.items()})
