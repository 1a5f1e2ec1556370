"""A table of embeddings whose rows share features: a code's row is a part of its own plus the sum of its features' rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from checkpoints.train.codes import code_factors


class FactoredTable(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """
    Stands in for an embedding or head over the semantic codes while it is trained; `folded` is what the checkpoint gets.

    Args:
        rows: of the whole table, codes first; rows without a code have only a part of their own.
        dim: width of a row.
    """

    def __init__(self, rows: int, dim: int, std: float) -> None:
        super().__init__()
        factors = code_factors()
        num_features = 1 + max(map(max, factors))
        longest = max(map(len, factors))
        # The last feature is none; its row stays zero.
        index = torch.full((rows, longest), num_features)
        for code, features in enumerate(factors):
            index[code, : len(features)] = torch.tensor(features)
        self.register_buffer("index", index, persistent=False)
        self.own = nn.Parameter(torch.zeros(rows, dim))
        self.features = nn.Parameter(torch.randn(num_features, dim) * std)

    def folded(self) -> torch.Tensor:
        """The plain table, (rows, dim)."""
        return self.own + F.pad(self.features, (0, 0, 0, 1))[self.index].sum(1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        features = F.pad(self.features, (0, 0, 0, 1))
        return F.embedding(ids, self.own) + F.embedding(self.index[ids], features).sum(-2)
