"""What the service is measured with: a checkpoint, and the pictures that are asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cli.checkpoint import TRAINED_MINIATURE


@dataclass(frozen=True)
class Workload:
    """
    Pictures of one size on one checkpoint.

    Attributes:
        name: for the table.
        is_random: made of random weights in a folder of the benchmark's, and not the trained miniature.
    """

    name: str
    side_px: int
    steps: int
    is_random: bool = False

    def checkpoint(self, folder: Path) -> Path:
        """The checkpoint; a random one is built in `folder` unless it is there."""
        if not self.is_random:
            return TRAINED_MINIATURE
        # Here, because whoever only names a workload needs no torch.
        from checkpoints.random_miniature import Widths, build

        widths = Widths(codebook=16384, ar_hidden=256, ar_layers=6, ar_head_dim=64, ar_ff=1024, dit_layers=4, dit_head_dim=32)
        return build(folder / "random", widths)


MINIATURE = Workload("miniature, 256x256, 20 steps", 256, 20)
"""What `glmq up` runs by default. Its AR model takes about half of the reference's time."""

PUBLISHED_SHARES = Workload("AR share as published, 512x512, 10 steps", 512, 10, is_random=True)
"""AR takes three quarters of the reference's time, as with the published model on an H100 (77 %). Random weights: only times count."""
