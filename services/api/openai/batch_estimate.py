"""What all lines of a batch would cost, and when they would be done. Stores nothing, and fetches none of the pictures that lines name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import Field

from services.api.estimate_answers import answer_seconds, fleet_warnings, warning
from services.api.field_errors import FieldError, InvalidFieldsError, validated
from services.api.new_batch import native_batch
from services.api.new_job import new_job, requested_size
from services.api.openai.batch_input import BatchRequest, find_input
from services.api.openai.batch_lines import read_lines, translate_line
from services.api.openai.translate import without_nulls
from services.api.parts import Parts
from services.api.request_body import RequestBody
from services.api.schemas import JobRequest
from shared.cost import num_ar_tokens
from shared.errors import RequestError
from shared.job_document import timestamp
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.tenants import Caller
from shared.states import Priority, Stage
from shared.storage import StorageMissingError

_DAY_S = 86_400
MAX_COUNTED = 5_000
"""Lines that are read: a second's work. Of a longer file they stand for the rest."""
_SHOWN_ERRORS = 20


class BatchEstimateRequest(BatchRequest):
    """Requests that could be run as one."""

    completion_window: Literal["24h"] = Field(default="24h", description="As of a batch.")


@dataclass
class _Sums:
    """What lines take; seconds are None once those of one line are not known."""

    ar_tokens: int = 0
    decoder_steps: int = 0
    images: int = 0
    ar_s: float | None = 0.0
    decoder_s: float | None = 0.0

    def add(self, job: NewJob, num_sources: int) -> None:
        num_grids = 1 if job.same_layout else job.num_images
        self.ar_tokens += num_grids * num_ar_tokens(job.grid, num_sources)
        self.decoder_steps += job.num_images * job.steps
        self.images += job.num_images
        self.ar_s = None if self.ar_s is None or job.grid_cost_s is None else self.ar_s + num_grids * job.grid_cost_s
        self.decoder_s = None if self.decoder_s is None or job.image_cost_s is None else self.decoder_s + job.num_images * job.image_cost_s

    def scaled(self, factor: float) -> _Sums:
        counts = (round(factor * count) for count in (self.ar_tokens, self.decoder_steps, self.images))
        return _Sums(*counts, *(None if seconds is None else factor * seconds for seconds in (self.ar_s, self.decoder_s)))


def estimate_batch(parts: Parts, caller: Caller, sent: dict[str, Any]) -> dict[str, Any]:
    """
    The answer for a batch.

    Raises:
        RequestError: names the wrong fields, or lines.
        NoModelError, DatabaseDownError, StorageDownError
    """
    if "items" in sent:
        new = native_batch(parts, caller, sent)
        return _estimate(parts, caller, [RequestBody(item.request) for item in new.items], len(new.items), new.window_s)
    sent = without_nulls(sent)
    asked = validated(BatchEstimateRequest, sent)
    file = find_input(parts, caller, asked.input_file_id)
    info = parts.model.get()
    try:
        data = parts.storage.get(file.storage_key)
    except StorageMissingError:
        raise RequestError("invalid_request", "input_file_id: the file was deleted", "input_file_id") from None
    lines = [line for line in data.split(b"\n") if line.strip()]
    found = read_lines(b"\n".join(lines[:MAX_COUNTED]), asked.endpoint, info)
    if found is None or found.errors:
        raise InvalidFieldsError([_line_error(error) for error in (found.errors if found else [])[:_SHOWN_ERRORS]])
    read = [translate_line(item.request, asked.endpoint, info) for item in found.items]
    return _estimate(parts, caller, read, len(lines), _DAY_S)


def _estimate(parts: Parts, caller: Caller, read: Sequence[RequestBody], num_lines: int, window_s: int) -> dict[str, Any]:
    """
    The answer for so many lines, of which these were read.

    Args:
        window_s: seconds in which they are to be done.
    """
    info, fleet = parts.model.get(), parts.fleet.get()
    sums = _Sums()
    for native in read:
        wanted = JobRequest.model_validate(native.fields)
        # How large the pictures are that it names is not known here: as large as what is drawn, perhaps.
        size = requested_size(wanted, info, ())
        num_sources = len(wanted.images) + len(native.uploads)
        job = new_job(wanted, info, caller.tenant_id, native.fields, size, (), None, 0, parts.settings.approval_s)
        sums.add(fleet.priced(job, [size] * num_sources), num_sources)
    sums = sums.scaled(num_lines / max(1, len(read)))
    queue_s = parts.outlook.seconds_ahead(Stage.AR, Priority.BULK, datetime.now(UTC))
    stages = ((sums.ar_s, fleet.ar.num_workers), (sums.decoder_s, fleet.decoder.num_workers))
    # Both stages work at once, each as long as all its workers take for all of it.
    run_s = max(seconds / workers for seconds, workers in stages if seconds is not None and workers) if _is_known(stages) else None
    eta = None if queue_s is None or run_s is None else datetime.now(UTC) + timedelta(seconds=queue_s + run_s)
    notices = list(fleet_warnings(fleet, is_known=eta is not None))
    if num_lines > len(read):
        notices.append(warning("sampled", f"The file has {num_lines} requests; the sums are those of the first {MAX_COUNTED}, scaled."))
    if run_s is not None and queue_s is not None and queue_s + run_s > window_s:
        notices.append(warning("deadline_unmeetable", "Some requests would probably expire before they are done."))
    return {
        "object": "estimate",
        "requests": num_lines,
        "cost": {"ar_tokens": sums.ar_tokens, "decoder_steps": sums.decoder_steps, "images": sums.images},
        **answer_seconds(sums.ar_s, sums.decoder_s, queue_s, run_s),
        "eta": timestamp(eta),
        "warnings": notices,
    }


def _is_known(stages: tuple[tuple[float | None, int], ...]) -> bool:
    return all(seconds is not None and workers for seconds, workers in stages)


def _line_error(error: dict[str, Any]) -> FieldError:
    where = "" if error["line"] is None else f"line {error['line']}: "
    return FieldError(("input_file_id",), error["code"], f"input_file_id: {where}{error['message']}")
