"""
Stage `layout`: the AR model learns to write the codes of the poster that a prompt asks for, or of what an edit makes of a source.

Teacher forcing on exactly the ids and positions of the real processor and of cached generation: prompt, a draft of about 256 codes,
the poster's codes. Everything is fixed by the prompt, so the best loss is zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from diffusers import GlmImagePipeline
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, GlmImageForConditionalGeneration, PreTrainedTokenizerFast

from checkpoints.train import tokens
from checkpoints.train.codes import CODEBOOK_SIZE, CODES, codes, draft_codes
from checkpoints.train.factors import FactoredTable
from checkpoints.train.networks import VISION_VOCAB_SIZE, processor, tokenizer, vision_language_encoder
from checkpoints.train.posters import CELL_PX, COLOURS, Decoration, Grid, Position, Poster, all_sizes, placed_lines
from checkpoints.train.prompts import sample_edit, sample_poster
from checkpoints.train.run import Run, load_weights
from checkpoints.train.wordings import prompt_for, worn

_START, _END = CODEBOOK_SIZE, CODEBOOK_SIZE + 1
_DRAFT_SHARE = 0.08
"""Of the codes inside a draft's rows that a usual step shows; where its rows end it shows all."""

_QUIET_SHARE = 0.25

_STEPS = {"prompts": (24, 5), "some": (9, 5), "whole": (7, 2)}
"""Kinds of steps, see `look`: sizes of pictures, rows of each size."""


def _step_shares(progress: float) -> list[float]:
    """How often each kind of step comes."""
    return [0.5 if progress < 0.3 else 0.3 if progress < 0.7 else 0.15, 0.5, 0.05 if progress < 0.4 else 0.3]


_EDITS = 0.22
_SOURCE_NOISE = 0.03
_HINTS_WEIGHT = 0.5

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
        nn.init.normal_(self.embedding.own[len(CODES) :], std=0.5)
        self.head = FactoredTable(VISION_VOCAB_SIZE, hidden, std=0.02)
        self.hints = Hints(hidden)

    @property
    def trained(self) -> dict[str, nn.Module]:
        return {"layers": self.language.layers, "norm": self.language.norm, "embedding": self.embedding, "head": self.head}

    def fold(self) -> GlmImageForConditionalGeneration:
        """The model with whole tables."""
        with torch.no_grad():
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

    @property
    def size(self) -> Size:
        """Rows and columns of the pictures."""
        return self.posters[0].rows, self.posters[0].columns


def draft_size(rows: int, columns: int) -> Size:
    """The processor's rule."""
    ratio = rows / columns
    return int(math.sqrt(ratio) * 16), int(math.sqrt(1 / ratio) * 16)


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
        written = [] if draft is None else draft_codes(posters[i], *draft).ravel().tolist()
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
        others = np.where(noise.random(grid.shape) < 0.5, noise.integers(0, len(CODES), grid.shape), noise.permuted(grid))
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


class Hints(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """
    Extra questions while training, thrown away after it, to the hidden states in the middle of the model.

    The start of a picture must know what the prompt asks for, so that every cell can look it up there, and each cell which cell it is.
    The words of the prompt are asked as well, whether they can know or not: that "in white" is the text's colour is learned beside
    "white", and without this the model takes the first colour for the background for an hour.
    """

    SUMMARY: ClassVar = {
        "background": 12,
        "colour": 12,
        "decoration": 4,
        "position": 3,
        "gradient": 2,
        "words": 7,
        "rows": 9,
        "columns": 9,
        "line": 9,
        "part": 9,
    }
    PLACE: ClassVar = {"row": 8, "column": 8}
    LAYERS = (1, 2)

    def __init__(self, hidden: int) -> None:
        super().__init__()
        widths = [sum(self.SUMMARY.values()), sum(self.PLACE.values())]
        self.summary = nn.ModuleList(nn.Linear(hidden, widths[0]) for _ in self.LAYERS)
        self.place = nn.ModuleList(nn.Linear(hidden, widths[1]) for _ in self.LAYERS)

    def loss(self, states: list[torch.Tensor], view: View) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean loss over questions and layers, and how many of the deepest layer's answers are right."""
        wanted, start = _summaries(view.posters), view.columns[:, 0]
        in_prompt = (torch.arange(view.ids.shape[1]) < start[:, None]) & (view.ids > CODEBOOK_SIZE)
        losses, right = [], {}
        for layer, state in enumerate(states):
            told = self.summary[layer](state[in_prompt].float()).split(list(self.SUMMARY.values()), dim=-1)
            answers = self.summary[layer](state[torch.arange(len(state)), start].float()).split(list(self.SUMMARY.values()), dim=-1)
            for name, early, answer, truth in zip(self.SUMMARY, told, answers, wanted.T, strict=True):
                losses.append(F.cross_entropy(early, truth.repeat_interleave(in_prompt.sum(1))) / len(self.SUMMARY))
                losses.append(F.cross_entropy(answer, truth) * (4.0 if name == "line" else 1.0) / len(self.SUMMARY))
                right[name] = float((answer.detach().argmax(-1) == truth).float().mean())
            at_cells = state.gather(1, view.columns[..., None].expand(-1, -1, state.shape[-1])).float()
            answers = self.place[layer](at_cells).split(list(self.PLACE.values()), dim=-1)
            for name, answer, truth in zip(self.PLACE, answers, view.places, strict=True):
                losses.append(F.cross_entropy(answer.flatten(0, 1), truth.flatten(), ignore_index=_NOTHING) / len(self.PLACE))
                right[name] = float((answer.detach().argmax(-1) == truth)[truth != _NOTHING].float().mean())
        return torch.stack(losses).sum() / len(states), {f"knows_{name}": value for name, value in right.items()}


def _summaries(posters: list[Poster]) -> torch.Tensor:
    """The answers to `Hints.SUMMARY`, (B, 10): `line` is the row of the first line of text, and `part` how it is marked."""
    colours, decorations, positions = list(COLOURS), get_args(Decoration), get_args(Position)
    return torch.tensor(
        [
            [
                colours.index(poster.background),
                colours.index(poster.colour),
                decorations.index(poster.decoration),
                positions.index(poster.position),
                int(poster.gradient),
                len(poster.text.split()),
                poster.rows,
                poster.columns,
                *next(((row, part) for row, part, _ in placed_lines(poster)), (8, 8)),
            ]
            for poster in posters
        ]
    )


@dataclass
class View:
    """
    What a training step looks at: some of the codes of each row, with what was written before them wholly or in part unreadable.

    Attributes:
        ids: (B, S) of prompts and the codes that are left.
        positions: (3, B, S).
        columns: (B, K) where in S the code before each wanted one stands; the first is the picture's start.
        wanted: (B, K) codes, or `_NOTHING`.
        places: (2, B, K) row and column of the picture that each wanted code shows, or `_NOTHING`.
        of_draft: (B, K) whether it is a code of the draft.
        spoilt: (B,) share of codes that cannot be read.
        posters: what each row shows.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    columns: torch.Tensor
    wanted: torch.Tensor
    places: torch.Tensor
    of_draft: torch.Tensor
    spoilt: torch.Tensor
    posters: list[Poster]


_NOTHING = -100


def look(batch: Batch, kind: str) -> View:
    """
    Some of the codes of each row and what stands before them.

    A model that may read its own past learns first to repeat it, and one slip while sampling then goes through the whole picture.
    So some rows spoil a part of the past.

    Args:
        kind: "prompts": the first code, for it is the prompts that are hard; "some": the edges of the draft's rows and the whole picture;
            "whole": every code.
    """
    count, length = batch.written.shape[0], batch.written.shape[1] - 1  # the end is known
    if kind == "prompts":
        chosen = torch.zeros(1, dtype=torch.long)
    elif kind == "whole" or not batch.draft:
        chosen = torch.arange(length)
    else:
        index, columns = torch.arange(length), draft_size(*batch.size)[1]
        edge = (index + 1) % columns <= 2  # the last two codes of a row and the first of the next
        chosen = index[edge | (index >= batch.draft - 1) | (torch.rand(length) < _DRAFT_SHARE)]
    index = chosen.unique().expand(count, -1)
    starts = batch.starts - 1
    ids = torch.full((count, int(starts.max()) + index.shape[1]), _tokenizer().pad_token_id)
    positions = torch.zeros(3, *ids.shape, dtype=torch.long)
    for row, start in enumerate(starts.tolist()):
        source = torch.cat([torch.arange(start), start + index[row]])
        ids[row, : len(source)], positions[:, row, : len(source)] = batch.ids[row, source], batch.positions[:, row, source]
    columns = starts[:, None] + torch.arange(index.shape[1])
    spoilt = torch.where(torch.rand(count) < 0.6, 0.0, 0.3 * torch.rand(count))
    bad = (torch.rand(columns.shape) < spoilt[:, None]) & (index > 0)
    past = ids.gather(1, columns)
    strange = past.flatten()[torch.randint(past.numel(), past.shape)]
    strange = torch.where((torch.rand(past.shape) < 0.3) | (strange >= CODEBOOK_SIZE), _tokenizer().pad_token_id, strange)
    ids.scatter_(1, columns, torch.where(bad, strange, past))
    wanted, places = batch.written.gather(1, index), _places(batch)[:, index]
    # A code within a row follows from the one before; the loss looks at one in three of these.
    starts_row = (places[1] == 0) | ((index < batch.draft) & (index % draft_size(*batch.size)[1] == 0))
    decided = starts_row | (index == 1) | (torch.rand(wanted.shape) < _QUIET_SHARE)
    wanted = torch.where(decided, wanted, _NOTHING)
    return View(ids, positions, columns, wanted, places, index < batch.draft, spoilt, batch.posters)


def together(views: list[View]) -> View:
    """One view of rows of several sizes: a step that saw one size alone would push the model towards it."""

    def stacked(tensors: list[torch.Tensor], filler: int) -> torch.Tensor:
        width = max(tensor.shape[-1] for tensor in tensors)
        return torch.cat([F.pad(tensor, (0, width - tensor.shape[-1]), value=filler) for tensor in tensors], dim=-2)

    return View(
        stacked([view.ids for view in views], _tokenizer().pad_token_id),
        stacked([view.positions for view in views], 0),
        stacked([view.columns for view in views], 0),
        stacked([view.wanted for view in views], _NOTHING),
        stacked([view.places for view in views], _NOTHING),
        stacked([view.of_draft for view in views], False),
        torch.cat([view.spoilt for view in views]),
        [poster for view in views for poster in view.posters],
    )


def _places(batch: Batch) -> torch.Tensor:
    """Row and column of the picture that each written code shows, (2, N); the draft's codes show no place."""
    row, column = np.divmod(np.arange(batch.size[0] * batch.size[1]), batch.size[1])
    return F.pad(torch.from_numpy(np.stack([row, column])), (batch.draft, 0), value=_NOTHING)


def loss_of(net: LayoutNet, view: View) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss of a code in nats with what the hints add, and metrics."""
    states: list[torch.Tensor] = []
    hooks = [net.language.layers[layer].register_forward_hook(lambda _, __, state: states.append(state)) for layer in Hints.LAYERS]
    try:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = net.language(inputs_embeds=net.embedding(view.ids), position_ids=view.positions, use_cache=False).last_hidden_state
            row, at = (view.wanted != _NOTHING).nonzero(as_tuple=True)
            logits = F.linear(hidden[row, view.columns[row, at]], net.head.folded()).float()
    finally:
        for hook in hooks:
            hook.remove()
    wanted = view.wanted[row, at]
    starts_row = view.places[1][row, at] == 0
    # At the start of a row of the picture it is decided what the row will be.
    weights = torch.where(starts_row, 3.0, 1.0)
    loss = (F.cross_entropy(logits, wanted, reduction="none") * weights).sum() / weights.sum()
    hints, knowledge = net.hints.loss(states, view)
    right = (logits.detach().argmax(-1) == wanted).float()
    of_draft, of_edit = view.of_draft[row, at], ~view.of_draft.any(1)[row]

    def mean(chosen: torch.Tensor) -> float:
        return float(right[chosen].mean()) if bool(chosen.any()) else math.nan

    metrics = {
        "loss": float(loss.detach()),
        "hints": float(hints.detach()),
        "first_right": mean((at == 0) & ~of_edit),
        "draft_right": mean(of_draft & (at > 0)),
        "target_right": mean(~of_draft & ~of_edit),
        "row_starts_right": mean(~of_draft & ~of_edit & starts_row),
        "edit_right": mean(of_edit),
    }
    return loss + _HINTS_WEIGHT * hints, metrics | knowledge


# ---------------------------------------------------------------- sampled checks


def judge(grid: Grid, poster: Poster) -> dict[str, float]:
    """
    What of the poster is right in a grid of codes, 0 or 1 each.

    `rows` is which part of the text marks which row; `exact` is every cell.
    """
    said, truth = ([[dict(CODES[code]) if code < len(CODES) else {} for code in row] for row in g.tolist()] for g in (grid, codes(poster)))

    def told(cells: list[list[dict[str, str | int | bool]]], feature: str) -> set[str | int | bool]:
        return {cell[feature] for row in cells for cell in row if feature in cell}

    def decorated(cells: list[list[dict[str, str | int | bool]]]) -> list[object]:
        return [cell.get("kind") if cell.get("kind") not in ("plain", "text") else "" for row in cells for cell in row]

    def rows(cells: list[list[dict[str, str | int | bool]]]) -> set[tuple[int, object]]:
        return {(i, cell["part"]) for i, row in enumerate(cells) for cell in row if "part" in cell}

    return {
        "background": float(told(said, "background") == {poster.background}),
        "colour": float(told(said, "colour") == told(truth, "colour")),
        "decoration": float(decorated(said) == decorated(truth)),
        "gradient": float(told(said, "gradient") == told(truth, "gradient")),
        "rows": float(rows(said) == rows(truth)),
        "exact": float((grid == codes(poster)).all()),
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
    """How often each trained size comes: the larger, with more to go wrong, and the usual ones more often."""
    weights = {(rows, columns): 0.4 + rows * columns / 24 for rows, columns in all_sizes()}
    for size in ((4, 4), (6, 6), (4, 8), (8, 4)):
        weights[size] *= 2
    weights[8, 8] *= 4
    return weights


def train(folder: Path, *, minutes: float = 45, max_steps: int | None = None, seed: int = 0) -> None:
    net = LayoutNet(seed)
    run = Run(
        folder / "layout",
        net.trained | {"hints": net.hints},
        minutes=minutes,
        lr=2e-3,
        muon_lr=0.02,
        muon_names=("layers.",),
        ema_decay=0.998,
        constant_share=0.45,
        seed=seed,
        max_steps=max_steps,
    )
    weights = size_weights()
    rng = random.Random(f"layout {seed} {run.step}")
    net.model.train()
    net.language.config._attn_implementation = "plain"
    next_check = run.seconds + _CHECK_SECONDS
    for _ in run.steps():
        [kind] = rng.choices(list(_STEPS), _step_shares(run.progress))
        sizes, count = _STEPS[kind]
        views = []
        for size in rng.choices(list(weights), list(weights.values()), k=sizes):
            batch = make_edit_batch(rng, size, count) if rng.random() < _EDITS else make_batch(rng, size, count)
            views.append(look(batch, kind))
        view = together(views)
        loss, metrics = loss_of(net, view)
        run.update(loss, len(view.posters))
        run.note(**metrics)
        if run.seconds >= next_check:
            next_check = run.seconds + _CHECK_SECONDS
            average = LayoutNet()
            with torch.no_grad():
                for name, part in average.trained.items():
                    for key, parameter in part.named_parameters():
                        parameter.copy_(run.average[f"{name}.{key}"])
            results = check(average.fold(), [(8, 8), (4, 4), (4, 8), (5, 7)], 12, run.step)
            run.note(**{f"sampled_{name}": value for name, value in results.items()})
