"""`python -m checkpoints.train STAGE`: run one stage of the training, or all; each goes on from its last snapshot."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from checkpoints.train import assemble, glyphs, layout, pixels, tokens, vae

# In this order each finds what it starts from: the DiT needs the latents and the frozen glyph encoder.
_STAGES = {"vae": vae.train, "glyphs": glyphs.train, "tokens": tokens.train, "layout": layout.train, "pixels": pixels.train}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m checkpoints.train", description=__doc__)
    parser.add_argument("stage", choices=[*_STAGES, "assemble", "all"])
    parser.add_argument("--folder", type=Path, default=Path("build/train"), help="runs and their snapshots (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/miniature"), help="the checkpoint (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="length of the stage; by default what the README's recipe says")
    parser.add_argument("--max-steps", type=int, help="end each stage after so many steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # Two threads on nets this small are slower than one; run two stages side by side instead.
    torch.set_num_threads(1)
    length = {} if arguments.minutes is None else {"minutes": arguments.minutes}
    for name, train in _STAGES.items():
        if arguments.stage in (name, "all"):
            train(arguments.folder, max_steps=arguments.max_steps, seed=arguments.seed, **length)
    if arguments.stage in ("assemble", "all"):
        assemble.write(arguments.folder, arguments.out)


if __name__ == "__main__":
    main()
