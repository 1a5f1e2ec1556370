"""
How many AR and decoder workers a stack runs on one machine. Loads nothing.

A worker does the arithmetic of one core (several threads slow small nets down), or of one GPU. On a CPU both stages share the cores, so
there is a worker of either kind for each core: in a burst all cores write grids, then all draw, and none waits for another's first batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.supervisor import StackError

AR_VARIABLE = "GLMQ_AR_WORKERS"
DECODER_VARIABLE = "GLMQ_DECODER_WORKERS"

MAX_WORKERS = 64
"""Of either kind."""

_MOST_BY_DEFAULT = 4
"""Of either kind. Each worker holds half a gigabyte: torch and the libraries around it."""

_SMALL_BYTES = 256 << 20
"""Weights of a miniature. Of a real model no second copy is loaded unasked."""


@dataclass(frozen=True)
class WorkerCounts:
    """Of each stage."""

    ar: int
    decoder: int


def worker_counts(checkpoint: str, environ: Mapping[str, str] = os.environ, gpu: Path = Path("/dev/nvidiactl")) -> WorkerCounts:
    """
    What `GLMQ_AR_WORKERS` and `GLMQ_DECODER_WORKERS` say; by default one per core for a miniature on a CPU, at most four, and one for
    everything else.

    Args:
        checkpoint: a folder, there or still to be made, or a hub id.
        gpu: there where a GPU's driver is.
    Raises:
        StackError: a variable holds something else than a whole number from 1 to `MAX_WORKERS`.
    """
    folder = Path(checkpoint)
    is_small = folder.is_absolute() and sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= _SMALL_BYTES
    on_cpu = environ.get("GLMQ_DEVICE", "auto") == "cpu" or not gpu.exists()
    by_default = min(_num_cores(), _MOST_BY_DEFAULT) if is_small and on_cpu else 1
    return WorkerCounts(_named(AR_VARIABLE, environ, by_default), _named(DECODER_VARIABLE, environ, by_default))


def _named(variable: str, environ: Mapping[str, str], by_default: int) -> int:
    named = environ.get(variable)
    if named is None:
        return by_default
    if not (named.isascii() and named.isdigit() and 1 <= int(named) <= MAX_WORKERS):
        raise StackError(f"{variable} must be a whole number from 1 to {MAX_WORKERS}, not {named!r}")
    return int(named)


def _num_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
