"""
The random numbers of a draw: one exponential per id of the vocabulary, from the request's own generator.

torch.multinomial takes the id with the largest probability / exponential. It computes an exponential for every id; which id
wins depends on a few of them. Knows nothing of logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Noise(ABC):
    """
    `raw`: [slots, vocab_size], what the generators gave, each number at most the exponential that it stands for.
    """

    raw: Tensor

    def fill(self, row: int, generator: torch.Generator) -> None:
        """Take the next draw's numbers from `generator` into `raw[row]`, and move it on as torch.multinomial does."""
        self._draw(self.raw[row], generator)

    def skip(self, count: int, generator: torch.Generator) -> None:
        """Move `generator` on as `count` draws do."""
        # Not a row of `raw`: another request's numbers may lie there.
        unread = torch.empty_like(self.raw[0])
        for _ in range(count):
            self._draw(unread, generator)

    @abstractmethod
    def exponentials(self, raw: Tensor) -> Tensor:
        """The exponentials, in float64, that some numbers of `raw` stand for."""

    @abstractmethod
    def _draw(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill one row."""


class ExponentialNoise(Noise):
    """The exponentials themselves, as torch makes them."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self.raw = torch.ones(slots, vocab_size, device=device)

    def exponentials(self, raw: Tensor) -> Tensor:
        return raw.double()

    def _draw(self, out: Tensor, generator: torch.Generator) -> None:
        out.exponential_(generator=generator)


class UniformNoise(Noise):
    """
    The uniform numbers from which a CPU makes its exponentials, `-log1p(-uniform)`; the logarithms are two thirds of the time.

    A uniform number is at most its exponential, so it bounds what an id can reach.
    """

    def __init__(self, slots: int, vocab_size: int) -> None:
        self.raw = torch.ones(slots, vocab_size, dtype=torch.float64)

    def exponentials(self, raw: Tensor) -> Tensor:
        return torch.log1p(-raw).neg_()

    def _draw(self, out: Tensor, generator: torch.Generator) -> None:
        out.uniform_(generator=generator)

    @staticmethod
    def fits(vocab_size: int) -> bool:
        """
        Does this torch make its exponentials so, and from as many random numbers?

        Builds for other processors may take theirs from a vector library.
        """
        uniform, exponential = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
        from_uniform = torch.empty(vocab_size, dtype=torch.float64).uniform_(generator=uniform).neg_().log1p_().neg_()
        as_made = torch.empty(vocab_size).exponential_(generator=exponential)
        moved_on_alike = torch.equal(uniform.get_state(), exponential.get_state())
        return moved_on_alike and bool(torch.allclose(from_uniform.float(), as_made, rtol=1e-6, atol=0))


def choose_noise(slots: int, vocab_size: int, device: torch.device) -> Noise:
    """The cheaper kind where it is proved on this machine."""
    if device.type == "cpu" and UniformNoise.fits(vocab_size):
        return UniformNoise(slots, vocab_size)
    return ExponentialNoise(slots, vocab_size, device)
