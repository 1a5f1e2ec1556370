"""
A figure and how it is shown: medians and spread of repeated ratios beside what is asked, and the machine they were taken on.

Each is shown when it has been measured, so that a run which is cut off has told what it knew, and all of them in one table at the end.

Knows nothing of what is measured. Every benchmark measures both sides of its ratio in one run, interleaved, and checks that their
outputs are equal before it counts.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
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
        target: what is asked (docs/benchmarks.md); None for a figure that is only told.
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

    @property
    def told_median(self) -> str:
        return f"{self.median:.3g} {self.unit}".rstrip()

    @property
    def told_spread(self) -> str:
        return f"{min(self.samples):.3g} - {max(self.samples):.3g} (n={len(self.samples)})"

    @property
    def told_target(self) -> str:
        return "" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:g}"

    @property
    def verdict(self) -> str:
        return "" if self.target is None else "reached" if self.is_reached else "MISSED"


Measurement = Callable[[], Iterable[Figure]]
"""What a benchmark is made of: figures that are measured together, handed out as soon as they are."""


def each_alone(measurements: Iterable[Measurement]) -> Iterator[Figure]:
    """
    The figures of all measurements; one that fails takes no other with it.

    Raises:
        ExceptionGroup: at the end, of those that failed.
    """
    errors: list[Exception] = []
    for measurement in measurements:
        try:
            yield from measurement()
        except Exception as error:  # whatever it is, it is this measurement's
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"{len(errors)} measurements failed", errors)


class Report:
    """Tells the machine at once, each figure when it comes, and all of them in a table at the end."""

    def __init__(self) -> None:
        # Wide, so that what is written to a file is as a terminal shows it.
        self._console = Console(width=200, highlight=False, markup=False)
        self._figures: list[Figure] = []
        self.tell(describe_machine())

    def tell(self, text: str) -> None:
        """A line, unwrapped and at once."""
        self._console.print(text, soft_wrap=True)
        self._console.file.flush()

    def add(self, figure: Figure) -> None:
        asked = f", asked {figure.told_target}: {figure.verdict}" if figure.target is not None else ""
        note = f" [{figure.note}]" if figure.note else ""
        self.tell(f"  {figure.name}: {figure.told_median}, {figure.told_spread}{asked}{note}")
        self._figures.append(figure)

    def end(self) -> None:
        """Print the table of what was added, and the machine below it."""
        table = Table("figure", "median", "spread", "asked", "", "note", title="glmq benchmarks")
        for each in self._figures:
            table.add_row(each.name, each.told_median, each.told_spread, each.told_target, each.verdict, each.note)
        self._console.print(table)
        self.tell(describe_machine())


def show(figures: Iterable[Figure]) -> None:
    """Report the figures of one benchmark."""
    report = Report()
    for figure in figures:
        report.add(figure)
    report.end()


def describe_machine() -> str:
    """Processor, cores, load and versions: a ratio means little without them."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}"
