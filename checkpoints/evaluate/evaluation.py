"""
The whole measurement: cases drawn by one or more processes, then table, rows and pictures in a folder.

A module of its own, for a process of the pool cannot import a `__main__`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from checkpoints.evaluate.cases import FOUR_TO_SIX_WORDS, EditCase, PromptCase, edit_cases, prompt_cases, spread
from checkpoints.evaluate.painter import Painter
from checkpoints.evaluate.reading import Reader
from checkpoints.evaluate.report import (
    EditRow,
    PromptRow,
    as_json,
    condition_measures,
    edit_measures,
    prompt_measures,
    sheet,
    table,
    times_table,
)
from checkpoints.evaluate.results import Examiner, Result

_CONDITION_PROMPTS = 20
_TIMED_PROMPT = "A teal poster with the words 'GRAND OPENING' in white"
_TIMED_PX, _TIMED_STEPS = 256, 20

_examiner: Examiner | None = None
"""Of this process; a pool's processes make theirs once, for nets cannot be sent to them."""


def evaluate(checkpoint: Path, out: Path, only: int | None, processes: int) -> str:
    """
    Measure a checkpoint.

    Args:
        only: this many prompts, and a quarter as many edits; by default all.
        processes: that draw at once; each uses one core.

    Returns:
        The tables, as Markdown.
    """
    prompts, edits = prompt_cases(), edit_cases()
    if only is not None:
        prompts, edits = spread(prompts, only), spread(edits, max(1, only // 4))
    counted = [case for case in prompts if case.group != FOUR_TO_SIX_WORDS]
    with_conditions = set(spread(counted, max(1, _CONDITION_PROMPTS if only is None else only // 10)))
    tasks: list[tuple[PromptCase | EditCase, bool]] = [(case, case in with_conditions) for case in prompts]
    tasks += [(case, False) for case in edits]

    torch.set_num_threads(1)
    # First and alone, so that nothing else of this run is on the machine.
    painter = Painter(checkpoint)
    times = painter.time_parts(_TIMED_PROMPT, _TIMED_PX, _TIMED_PX, _TIMED_STEPS)
    title = f"{painter.name}: {len(prompts)} prompts and {len(edits)} edits, {painter.steps} steps, guidance {painter.guidance_scale:g}"
    results = []
    with _examined(checkpoint, tasks, processes) as stream:
        for (case, _), result in zip(tasks, stream, strict=True):
            results.append((case, result))
            print(f"{len(results)}/{len(tasks)} {case.prompt} -> {result.found.text}", file=sys.stderr, flush=True)

    prompt_rows: list[PromptRow] = [(case, result) for case, result in results if isinstance(case, PromptCase)]
    edit_rows: list[EditRow] = [(case, result) for case, result in results if isinstance(case, EditCase)]
    measures = prompt_measures(prompt_rows) + condition_measures(prompt_rows) + edit_measures(edit_rows)
    text = f"{title}\n\n{table(measures)}\n\n{times_table(times)}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text)
    _write_json(
        out / "results.json",
        {
            "measures": [asdict(measure) | {"ratio": measure.ratio} for measure in measures],
            "times": asdict(times),
            "prompts": [as_json(*row) for row in prompt_rows],
            "edits": [as_json(*row) for row in edit_rows],
        },
    )
    sheet(prompt_rows).save(out / "prompts.png")
    sheet(edit_rows).save(out / "edits.png")
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    for case, result in results:
        Image.fromarray(result.picture).save(pictures / f"{case.seed}.png")
    return text


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def _examined(checkpoint: Path, tasks: list[tuple[PromptCase | EditCase, bool]], processes: int) -> Iterator[Iterator[Result]]:
    """Results in the order of the tasks, whoever worked on them."""
    if processes == 1:
        _start(checkpoint)
        yield map(_examine, tasks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start, initargs=(checkpoint,)) as pool:
        yield pool.map(_examine, tasks)


def _start(checkpoint: Path) -> None:
    global _examiner
    torch.set_num_threads(1)
    _examiner = Examiner(Painter(checkpoint), Reader())


def _examine(task: tuple[PromptCase | EditCase, bool]) -> Result:
    case, conditions = task
    assert _examiner is not None  # noqa: S101 - the initializer has run
    return _examiner.edit(case) if isinstance(case, EditCase) else _examiner.prompt(case, conditions=conditions)
