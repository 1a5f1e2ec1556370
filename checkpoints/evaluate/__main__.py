"""
`python -m checkpoints.evaluate`: how well a checkpoint draws what held-out prompts and edits ask for.

Prints a table; writes it with every row and every picture into --out. The same checkpoint gives the same figures, times apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from checkpoints.evaluate.evaluation import evaluate


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m checkpoints.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/miniature"))
    parser.add_argument("--out", type=Path, default=Path("build/evaluation"), help="folder for table, rows and pictures")
    parser.add_argument("--only", type=int, help="measure this many prompts, evenly spread, and a quarter as many edits")
    parser.add_argument("--processes", type=int, default=1, help="that draw at once, each on one core")
    options = parser.parse_args(arguments)
    print(evaluate(options.checkpoint, options.out, options.only, options.processes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
