"""
`python -m infra.bench [NAME…]`: run the named benchmarks, or all, and show one table.

A figure that was not reached says MISSED and is no failure: benchmarks measure, tests judge. A benchmark that could not be run is one.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

from infra.bench.figures import Figure, show

NAMES = ("ar", "decoder", "service", "queue", "fairness", "submit", "webhooks")
"""Modules of this folder with a `measure()`, in the order in which they run."""


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 if one of them could not be run, 2 if there is none of that name."""
    unknown = [name for name in arguments if name not in NAMES]
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    failed: list[str] = []
    for name in arguments or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            # By name and only now: each brings libraries that the others do not need.
            figures += importlib.import_module(f"infra.bench.{name}").measure()
        except Exception:  # one that cannot run must not take the figures of the others with it
            traceback.print_exc()
            failed.append(name)
    show(figures)
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
