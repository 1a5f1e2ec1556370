"""Parked parts give the same results; where they go cannot be seen without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.offload import park


class _Witness(nn.Linear):
    """A layer that remembers where its weights were when it ran."""

    seen: torch.device | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.seen = self.weight.device
        return super().forward(input)


def test_a_parked_part_computes_the_same() -> None:
    """Positional and named inputs arrive, and the part is back on the CPU afterwards."""
    part = _Witness(4, 4).eval().requires_grad_(False)
    sample = torch.randn(2, 4)
    exact = part(sample)

    park(part, torch.device("cpu"))

    assert torch.equal(part(sample), exact)
    assert torch.equal(part(input=sample), exact)
    assert part.weight.device.type == "cpu"


def test_a_part_visits_the_device_with_its_inputs() -> None:
    """While it runs, weights and inputs are on the device. The meta device stands for one: it keeps shapes and no numbers."""
    part = _Witness(4, 4).eval().requires_grad_(False)
    park(part, torch.device("meta"))

    # The way back from meta, which has no numbers to bring.
    with pytest.raises(NotImplementedError, match="meta"):
        part(torch.randn(2, 4))

    assert part.seen == torch.device("meta")
