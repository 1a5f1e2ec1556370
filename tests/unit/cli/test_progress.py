"""How progress is shown."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from cli.client import Job
from cli.progress import JobProgress

STEPS: list[Job] = [
    {"status": "queued", "progress": None},
    {"status": "running", "progress": {"phase": "grid", "done": 1, "total": 64}},
    {"status": "running", "progress": {"phase": "grid", "done": 40, "total": 64}},
    {"status": "running", "progress": {"phase": "denoise", "done": 2, "total": 8}},
]


def shown(*, terminal: bool) -> str:
    screen = StringIO()
    with JobProgress(Console(file=screen, force_terminal=terminal, width=100), "cat") as progress:
        for job in STEPS:
            progress.show(job)
    return screen.getvalue()


def test_a_line_per_phase_in_a_log() -> None:
    """Where nobody watches a terminal, each phase is one line."""
    assert shown(terminal=False).splitlines() == ["  cat: queued", "  cat: tokens (of 64)", "  cat: denoising steps (of 8)"]


def test_a_bar_in_a_terminal() -> None:
    """In a terminal the bar shows the phase and how far it is."""
    assert "denoising steps" in shown(terminal=True)
    assert "2/8" in shown(terminal=True)
