"""
What the two engines reach alone on this machine: the bound of the service, with no queue, no store and no database.

`python -m infra.bench.engines CHECKPOINT SLOTS COUNT SIDE_PX STEPS` loads both halves in one process with one thread, says `ready`, waits
for a line, then writes a grid in each of its SLOTS at once, draws COUNT of them, and prints its seconds. `bound` runs one such process per
core at the same time, because that is how the service uses the cores: two that share a cache or a floating-point unit are slower together
than one alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class EngineTimes:
    """Of one process, per picture."""

    ar_s: float
    decoder_s: float


@dataclass(frozen=True)
class Bound:
    """What engines alone reach, one process per core at the same time."""

    per_process: tuple[EngineTimes, ...]

    @property
    def images_per_s(self) -> float:
        return sum(1 / (times.ar_s + times.decoder_s) for times in self.per_process)


def bound(checkpoint: Path, slots: int, count: int, side_px: int, steps: int) -> Bound:
    """
    Args:
        slots: of each AR engine; all of them are filled, because that is when it writes most.
        count: of those grids, how many are drawn; a decoder draws one picture or a few at once, so a sample tells.
    """
    command = (sys.executable, "-m", "infra.bench.engines", str(checkpoint), *map(str, (slots, count, side_px, steps)))
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        for _ in range(len(os.sched_getaffinity(0)))
    ]
    try:
        for process in processes:
            _read(process)
        for process in processes:
            if process.stdin is None:
                raise AssertionError("opened as a pipe above")
            process.stdin.write("go\n")
            process.stdin.flush()
        return Bound(tuple(EngineTimes(**json.loads(_read(process))) for process in processes))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _read(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise RuntimeError(f"the engines' process ended with {process.wait()}")
    return line


def _run(checkpoint: Path, slots: int, count: int, side_px: int, steps: int) -> EngineTimes:
    # Here, because whoever measures the service alone needs no torch.
    import torch

    from services.ar_worker.engine import ArEngine, GridRequest
    from services.ar_worker.weights import load_ar_model
    from services.decoder_worker.engine import DecoderEngine, ImageRequest
    from services.decoder_worker.weights import load_decoder_model
    from shared.grid import TokenGrid

    torch.set_num_threads(1)
    ar, decoder = (
        ArEngine(load_ar_model(checkpoint, "cpu", "float32"), slots),
        DecoderEngine(load_decoder_model(checkpoint, "cpu", "float32")),
    )
    ar.start()
    decoder.start()
    shape = TokenGrid.covering(side_px, side_px)

    def times(num_grids: int, num_drawn: int) -> EngineTimes:
        started = time.perf_counter()
        prompts = [f'a poster with the words "NUMBER {index}"' for index in range(num_grids)]
        requests = [GridRequest(prompt, shape, seed, 0.9, 0.75) for seed, prompt in enumerate(prompts)]
        grids = [ar.submit(request, lambda *_: None, lambda: False) for request in requests]
        ids = [grid.result().token_ids for grid in grids]
        written = time.perf_counter()
        pictures = [
            decoder.submit(ImageRequest(prompt, shape, ids[seed], seed, steps, 1.5), lambda *_: None, lambda: False)
            for seed, prompt in enumerate(prompts[:num_drawn])
        ]
        for picture in pictures:
            picture.result()
        return EngineTimes((written - started) / num_grids, (time.perf_counter() - written) / num_drawn)

    times(1, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    told = times(slots, count)
    # Or the interpreter would end under their threads.
    ar.close()
    decoder.close()
    return told


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), *map(int, sys.argv[2:])).__dict__), flush=True)
