"""
What the AR model is shown while it learns: rows of ids and positions as the processor and cached generation have them, and the part of
them that one training step looks at.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from checkpoints.train.codes import CODEBOOK_SIZE, CODES, codes, draft_codes
from checkpoints.train.networks import tokenizer
from checkpoints.train.posters import Grid, Poster
from checkpoints.train.prompts import sample_edit, sample_poster
from checkpoints.train.wear import worn
from checkpoints.train.wordings import prompt_for

_START, _END = CODEBOOK_SIZE, CODEBOOK_SIZE + 1

_DRAFT_SHARE = 0.08
"""Of the codes inside a draft's rows that a usual step shows; where its rows end it shows all."""

_QUIET_SHARE = 0.25

_SOURCE_NOISE = 0.03

Size = tuple[int, int]

NOTHING = -100
"""Target of a position that no loss looks at."""


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


@dataclass
class View:
    """
    What a training step looks at: some of the codes of each row, with what was written before them wholly or in part unreadable.

    Attributes:
        ids: (B, S) of prompts and the codes that are left.
        positions: (3, B, S).
        columns: (B, K) where in S the code before each wanted one stands; the first is the picture's start.
        wanted: (B, K) codes, or `NOTHING`.
        places: (2, B, K) row and column of the picture that each wanted code shows, or `NOTHING`.
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
    wanted = torch.where(decided, wanted, NOTHING)
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
        stacked([view.wanted for view in views], NOTHING),
        stacked([view.places for view in views], NOTHING),
        stacked([view.of_draft for view in views], False),
        torch.cat([view.spoilt for view in views]),
        [poster for view in views for poster in view.posters],
    )


def _places(batch: Batch) -> torch.Tensor:
    """Row and column of the picture that each written code shows, (2, N); the draft's codes show no place."""
    row, column = np.divmod(np.arange(batch.size[0] * batch.size[1]), batch.size[1])
    return F.pad(torch.from_numpy(np.stack([row, column])), (batch.draft, 0), value=NOTHING)
