"""Shows a job's progress: a moving bar in a terminal, a line per phase elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cli.client import Job

_PHASES = {
    "draft": "draft tokens",
    "awaiting_approval": "waits for approval",
    "grid": "tokens",
    "denoise": "denoising steps",
    "vae": "pixels",
    "upload": "upload",
}


class JobProgress:
    """Progress of one job after another under a common title."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._bar = Progress(
            TextColumn("  {task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True
        )
        self._task: TaskID | None = None
        self._last = ""

    def __enter__(self) -> JobProgress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, job: Job) -> None:
        """Tell where the job is now."""
        progress = job.get("progress") or {}
        phase = progress.get("phase")
        words = f"{self._title}: {_PHASES.get(phase, phase) if phase else job['status']}"
        done, total = progress.get("done") or 0, progress.get("total") or None
        if self._console.is_terminal:
            self._move_bar(words, done, total)
        elif words != self._last:
            self._console.print(f"  {words}{f' (of {total})' if total else ''}", highlight=False)
        self._last = words

    def _move_bar(self, words: str, done: int, total: int | None) -> None:
        if words != self._last:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(words, total=total)
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
