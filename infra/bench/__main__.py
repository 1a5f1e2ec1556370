"""
`python -m infra.bench [NAME…]`: run the named benchmarks, or all; show each figure when it is measured, and one table at the end.

A figure that was not reached says MISSED and is no failure: benchmarks measure, tests judge. A benchmark that could not be run is one.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from infra.bench.figures import Report

NAMES = ("ar", "decoder", "service", "queue", "fairness", "submit", "webhooks")
"""Modules of this folder with a `measure()`, in the order in which they run."""

BY_NAME_ALONE = ("gpu",)
"""More of them, which want what most machines lack."""


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 if one of them could not be run whole, 2 if there is none of that name."""
    known = (*NAMES, *BY_NAME_ALONE)
    unknown = [name for name in arguments if name not in known]
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    report = Report()
    took_s: dict[str, float] = {}
    failed: list[str] = []
    try:
        for name in arguments or NAMES:
            report.tell(f"{name} …")
            started = time.monotonic()
            try:
                # By name and only now: each brings libraries that the others do not need.
                for figure in importlib.import_module(f"infra.bench.{name}").measure():
                    report.add(figure)
            except Exception:  # one that cannot run must not take the figures of the others with it
                traceback.print_exc()
                report.tell(f"  {name} was not measured, or not whole")
                failed.append(name)
            finally:
                took_s[name] = time.monotonic() - started
                report.tell(f"  {name} took {took_s[name]:.0f} s")
    finally:  # also of a run that is cut off
        report.end()
        report.tell(f"took {sum(took_s.values()):.0f} s: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took_s.items()))
        if failed:
            print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _stop(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    # As Ctrl-C does: the table of what is known, and no server left behind.
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main(sys.argv[1:]))
