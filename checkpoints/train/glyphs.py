"""
Stage `glyphs`: the glyph encoder learns where each letter stands, alone, and is frozen from then on.

The DiT's glyph tokens have no positions of their own; the order of letters exists only in T5's relative bias. Trained together with
the DiT from nothing, T5 falls back to a bag of letters and no DiT can spell. So T5 first learns to say, for each byte, which letter
it is and where it stands in each of the ways in which `posters.lines` may break the text.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import T5EncoderModel

from checkpoints.train.networks import GLYPH_DIM, glyph_encoder
from checkpoints.train.prompts import sample_text
from checkpoints.train.run import Run, load_weights

_BATCH = 64
_IGNORED = -100

_HEADS = {"letter": 384, "line": 96, "word": 7, "in word": 48, "pair": 4, "in pair": 48}
"""Classes of what each byte must tell: its id; place in the whole text, counted from its middle; word and place in it; pair and place."""


def byte_ids(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """ByT5's ids with the end token, and the mask of what is no padding, both (B, longest)."""
    rows = [[byte + 3 for byte in text.encode()] + [1] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def embed(encoder: T5EncoderModel, texts: list[str]) -> torch.Tensor:
    """Glyph embeddings (B, longest, 128), zero where a text is shorter, as the pipeline pads a batch."""
    ids, mask = byte_ids(texts)
    embeddings: torch.Tensor = encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None]
    return embeddings


def _places(text: str) -> dict[str, list[int]]:
    """The class of every byte for every head but `letter`; the end token and spaces between lines have none."""
    words = text.split(" ")
    pairs = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    places = {"line": [i - (len(text) + 1) // 2 + 48 for i in range(len(text))]}
    for name, parts in (("word", words), ("pair", pairs)):
        numbers, columns = [], []
        for number, part in enumerate(parts):
            gap = [_IGNORED] if number else []
            numbers += gap + [number] * len(part)
            columns += gap + [i - (len(part) + 1) // 2 + 24 for i in range(len(part))]
        places[name], places[f"in {name}"] = numbers, columns
    return {name: [*values, _IGNORED] for name, values in places.items()}


def train(folder: Path, *, minutes: float = 6, max_steps: int | None = None, seed: int = 0) -> None:
    torch.manual_seed(seed)
    encoder = glyph_encoder()
    heads = nn.ModuleDict({name: nn.Linear(GLYPH_DIM, classes) for name, classes in _HEADS.items()})
    run = Run(
        folder / "glyphs", {"encoder": encoder, "heads": heads}, minutes=minutes, lr=2e-3, ema_decay=0.995, max_steps=max_steps, seed=seed
    )
    rng = random.Random(f"glyphs {seed} {run.step}")
    for step in run.steps():
        texts = [sample_text(rng, 8, 8) for _ in range(_BATCH)]
        ids, mask = byte_ids(texts)
        features = encoder(ids, attention_mask=mask).last_hidden_state
        places = [_places(text) for text in texts]
        loss = torch.zeros(())
        for name, head in heads.items():
            if name == "letter":
                targets = ids.masked_fill(mask == 0, _IGNORED)
            else:
                targets = torch.tensor([row[name] + [_IGNORED] * (ids.shape[1] - len(row[name])) for row in places])
            logits = head(features)
            loss = loss + F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)
            if step % 20 == 0:
                counted = targets != _IGNORED
                run.note(**{f"{name} accuracy": (logits.argmax(-1) == targets)[counted].float().mean().item()})
        run.note(loss=loss.item())
        run.update(loss, _BATCH)


def finished(folder: Path) -> T5EncoderModel:
    """The trained encoder, frozen."""
    encoder = glyph_encoder()
    load_weights(folder / "glyphs", {"encoder": encoder})
    encoder.requires_grad_(False)
    return encoder.eval()
