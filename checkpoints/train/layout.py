"""
Stage `layout`: the AR model learns to write the codes of the poster that a prompt asks for, or of what an edit makes of a source.

Teacher forcing on exactly the ids and positions of the real processor and of cached generation: prompt, a draft of about 256 codes,
the poster's codes. Everything is fixed by the prompt, so the best loss is zero.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import ClassVar, get_args

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, GlmImageForConditionalGeneration

from checkpoints.train import tokens
from checkpoints.train.codes import CODEBOOK_SIZE, CODES
from checkpoints.train.factors import FactoredTable
from checkpoints.train.networks import VISION_VOCAB_SIZE, vision_language_encoder
from checkpoints.train.posters import COLOURS, Decoration, Position, Poster, all_sizes, placed_lines
from checkpoints.train.rows import NOTHING, Size, View, look, make_batch, make_edit_batch, together
from checkpoints.train.run import Run, load_weights, mixed_precision
from checkpoints.train.sampled import check

_STEPS = {"prompts": (24, 5), "some": (9, 5), "whole": (7, 2)}
"""Kinds of steps, see `look`: sizes of pictures, rows of each size."""


def _step_shares(progress: float) -> list[float]:
    """How often each kind of step comes."""
    return [0.5 if progress < 0.3 else 0.3 if progress < 0.7 else 0.15, 0.5, 0.05 if progress < 0.4 else 0.3]


_EDITS = 0.22
_HINTS_WEIGHT = 0.5

_CHECK_SECONDS = 300.0


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


# ---------------------------------------------------------------- the loss


def _plain_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **settings: object
) -> tuple[torch.Tensor, None]:
    """Causal attention by two matrix products, (B, heads, S, D) each -> (B, S, heads, D): on a CPU four times as fast as torch's own."""
    batch, heads, length, width = query.shape
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
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
                losses.append(F.cross_entropy(answer.flatten(0, 1), truth.flatten(), ignore_index=NOTHING) / len(self.PLACE))
                right[name] = float((answer.detach().argmax(-1) == truth)[truth != NOTHING].float().mean())
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


def loss_of(net: LayoutNet, view: View) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss of a code in nats with what the hints add, and metrics."""
    states: list[torch.Tensor] = []
    hooks = [net.language.layers[layer].register_forward_hook(lambda _, __, state: states.append(state)) for layer in Hints.LAYERS]
    try:
        with mixed_precision():
            hidden = net.language(inputs_embeds=net.embedding(view.ids), position_ids=view.positions, use_cache=False).last_hidden_state
            row, at = (view.wanted != NOTHING).nonzero(as_tuple=True)
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
