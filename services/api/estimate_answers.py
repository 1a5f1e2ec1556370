"""What estimates of jobs and of batches have in common: seconds as they are told, and warnings that are not about a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.api.fleet import Fleet


def answer_seconds(ar_s: float | None, decoder_s: float | None, queue_s: float | None, run_s: float | None) -> dict[str, Any]:
    """The members of an estimate that are seconds; None where workers have not told how fast they are."""
    return {
        "gpu_seconds": None if ar_s is None or decoder_s is None else round(ar_s + decoder_s, 3),
        "gpu_seconds_by_stage": {"ar": _rounded(ar_s), "decoder": _rounded(decoder_s)},
        "queue_seconds": _rounded(queue_s),
        "run_seconds": _rounded(run_s),
    }


def fleet_warnings(fleet: Fleet, *, is_known: bool) -> Iterator[dict[str, Any]]:
    """Why nothing would be drawn now, or `is_known` is false: nobody can tell how long it takes."""
    if not (fleet.ar.num_workers and fleet.decoder.num_workers):
        yield warning("no_workers", "No worker of one stage is alive now; the work would wait until there is one.")
    elif not is_known:
        yield warning("unknown_speed", "The workers have not told yet how fast they are; seconds are null.")


def warning(code: str, message: str) -> dict[str, Any]:
    """One that is not about the texts of a prompt."""
    return {"code": code, "message": message, "text": None, "position": None, "fixed": False}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
