"""
A figure and how it is shown: medians and spread of repeated ratios beside what is asked, and the machine they were taken on.

Knows nothing of what is measured. Every benchmark measures both sides of its ratio in one run, interleaved, and checks that their
outputs are equal before it counts.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """
    One measured figure.

    Attributes:
        name: what is measured, against what.
        samples: the figure of each repeat.
        target: what DESIGN.md section 8 or the issue asks; None for a figure that is only told.
        at_least: is more better?
        unit: `x` for a ratio.
        note: what was equal, what bounds it, how many.
    """

    name: str
    samples: Sequence[float]
    target: float | None = None
    at_least: bool = True
    unit: str = "x"
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def is_reached(self) -> bool:
        if self.target is None:
            return True
        return self.median >= self.target if self.at_least else self.median <= self.target


def show(figures: Sequence[Figure]) -> None:
    """Print the table, and the machine below it."""
    table = Table("figure", "median", "spread", "asked", "", "note", title="glmq benchmarks")
    for figure in figures:
        sign = "≥" if figure.at_least else "≤"
        table.add_row(
            figure.name,
            f"{figure.median:.3g} {figure.unit}",
            f"{min(figure.samples):.3g} - {max(figure.samples):.3g} (n={len(figure.samples)})",
            "" if figure.target is None else f"{sign} {figure.target:g}",
            "" if figure.target is None else "reached" if figure.is_reached else "MISSED",
            figure.note,
        )
    # Wide, so that a table written to a file is as a terminal shows it.
    console = Console(width=200)
    console.print(table)
    console.print(describe_machine())


def describe_machine() -> str:
    """Processor, cores, load and versions: a ratio means little without them."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}"
