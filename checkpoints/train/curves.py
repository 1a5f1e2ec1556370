"""
Draws the curves of finished or running stages: `python -m checkpoints.train.curves [--folder build/train] [--out FOLDER]`.

One PNG for each `log.jsonl`, one panel for each thing measured: the last word of a metric's name says what that is. What a stage finds
in samples of its own, `sampled_...`, shares one panel. Knows nothing of the stages but their logs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

_CLOCK = ("step", "samples", "seconds")
_PANELS_A_ROW = 3

Line = dict[str, float]


def read_log(path: Path) -> list[Line]:
    """The numbers of each line. Lines that a resumed run has written again stand for those it had not yet saved."""
    lines: list[Line] = []
    for text in path.read_text().splitlines():
        line = {name: float(value) for name, value in json.loads(text).items() if isinstance(value, int | float)}
        while lines and lines[-1]["seconds"] >= line["seconds"]:
            lines.pop()
        lines.append(line)
    return lines


def panels(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Names of metrics by the panel that shows them, in the order of the log."""
    by_panel: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(name for line in lines for name in line if name not in _CLOCK):
        words = name.replace("_", " ").split()
        by_panel["sampled" if words[0] == "sampled" else words[-1]].append(name)
    return dict(by_panel)


def plot(lines: Sequence[Line], title: str) -> Figure:
    """One run over its minutes. What falls stands on a logarithmic scale, for its end is what matters."""
    shown = panels(lines)
    columns = max(1, min(_PANELS_A_ROW, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
    figure.suptitle(f"{title}: {lines[-1]['step']:,.0f} steps, {lines[-1]['samples']:,.0f} samples, {lines[-1]['seconds'] / 60:.0f} min")
    for number, (panel, names) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for name in names:
            points = [(line["seconds"] / 60, line[name]) for line in lines if name in line]
            axes.plot([minutes for minutes, _ in points], [value for _, value in points], label=name, linewidth=1)
        values = [[line[name] for line in lines if name in line] for name in names]
        if all(min(series) > 0 and series[-1] < series[0] for series in values):
            axes.set_yscale("log")
        axes.set_title(panel, fontsize="medium")
        axes.set_xlabel("minutes")
        axes.grid(visible=True, which="both", alpha=0.25)
        if len(names) > 1:
            axes.legend(fontsize="x-small")
    return figure


def write(folder: Path, out: Path) -> list[Path]:
    """
    A PNG for each run under `folder`, named as its folder is.

    Raises:
        FileNotFoundError: there is no log.
    """
    logs = sorted(folder.rglob("log.jsonl"))
    if not logs:
        raise FileNotFoundError(f"no log.jsonl under {folder}")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for log in logs:
        name = " ".join(log.parent.relative_to(folder).parts) or folder.name
        written.append(out / f"{name.replace(' ', '-')}.png")
        # No software version inside: the same log gives the same bytes.
        plot(read_log(log), name).savefig(written[-1], dpi=80, metadata={"Software": None})
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the curves of the training.")
    parser.add_argument("--folder", type=Path, default=Path("build/train"), help="where the stages' runs are")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "curves")
    arguments = parser.parse_args()
    for path in write(arguments.folder, arguments.out):
        print(path)


if __name__ == "__main__":
    main()
