"""
`python -m services.api.batch_clerk`: reads the lines of batches, makes jobs of them, and writes their results into files.

A process of its own, of the API's code: what a line means is a matter of the interface, and 50,000 of them would hold up every other
request of an API process. One clerk works, others stand by. It keeps nothing in memory that a crash could lose: each step begins with
what the ledger says and may be done again.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
import time
from datetime import UTC, datetime

import structlog

from services.api.batch_submitter import Submitter
from services.api.loaded_model import NoModelError
from services.api.openai.batch_files import shown_bytes
from services.api.openai.batch_lines import read_lines
from services.api.openai.batch_results import Results
from services.api.parts import Parts, make_parts
from services.api.settings import ApiSettings
from services.api.sources import BusyError
from shared.db import DatabaseDownError, LeaderLock
from shared.errors import StartupError
from shared.ids import new_id
from shared.lifecycle import batch_control, batch_items, batch_reads, batch_retry, batch_steps, batches, files
from shared.lifecycle.batch_values import BatchDocument
from shared.lifecycle.files import NewFile
from shared.logs import configure_logs
from shared.settings import read_settings
from shared.states import BatchStatus
from shared.storage import StorageDownError, StorageMissingError

_LOCK = 0x676C6D71_62617463
"""Advisory lock of the one clerk at work ("glmqbatc")."""
_STANDBY_S = 1.0
_PAUSE_S = 0.5
"""Between two looks while nothing is to be done: batches are bulk work."""
_HOLD_AGAIN_S = 5.0
"""Between two looks at the work of a paused batch, each of which costs two tenths of a second where there is much of it."""
_RETRIES_AT_ONCE = 50
"""Each has a transaction of its own."""
_RESULTS_AT_ONCE = 500

log = structlog.get_logger()


class Clerk:
    """Works on batches, a little at each of them in turn."""

    def __init__(self, parts: Parts, stopping: threading.Event) -> None:
        self._parts = parts
        self._stopping = stopping
        self._submitter = Submitter(parts, stopping)
        self._hold_again: dict[str, float] = {}

    def work(self) -> bool:
        """
        Take every live batch one step further. False: there was nothing to do.

        Raises:
            DatabaseDownError, StorageDownError
        """
        has_worked = False
        live = batches.live_batches(self._parts.db)
        self._hold_again = {batch.id: self._hold_again[batch.id] for batch in live if batch.paused_at and batch.id in self._hold_again}
        for batch in live:
            if self._stopping.is_set():
                break
            try:
                has_worked |= self._step(batch)
            except (NoModelError, BusyError) as error:
                log.info("batch_waits", batch_id=batch.id, why=str(error))
            except (DatabaseDownError, StorageDownError):
                raise
            except Exception:  # whatever is wrong with one batch, the others go on, and the next look may find it mended
                log.exception("batch_stumbled", batch_id=batch.id)
        return has_worked

    def _step(self, batch: BatchDocument) -> bool:
        match batch.status:
            case BatchStatus.VALIDATING:
                return self._validate(batch)
            case BatchStatus.RUNNING:
                return self._run(batch)
            case BatchStatus.CANCELING:
                num_dropped = batch_items.drop_pending(self._parts.db, batch.id, batch_reads.CANCELED)
                count, stopped = batch_items.cancel_jobs(self._parts.db, batch.id)
                # After commit, or a worker could be told to drop work that is still wanted.
                self._parts.live.flag_stop(stopped)
                return bool(num_dropped or count) or self._settle(batch)
            case _:
                return self._finalize(batch)

    def _validate(self, batch: BatchDocument) -> bool:
        db = self._parts.db
        info = self._parts.model.get()
        file = files.get_file(db, batch.tenant_id, batch.input_file_id or "")
        try:
            data = None if file is None else self._parts.storage.get(file.storage_key)
        except StorageMissingError:
            data = None
        if data is None:
            error = {"code": "input_file_missing", "line": None, "message": "the input file was deleted", "param": "input_file_id"}
            batch_steps.refuse_batch(db, batch.id, [error])
            return True
        found = read_lines(data, batch.endpoint, info, self._stopping.is_set)
        if found is None:
            return False
        if found.errors:
            batch_steps.refuse_batch(db, batch.id, found.errors)
        else:
            batch_steps.start_batch(db, batch.id, found.items)
        return True

    def _run(self, batch: BatchDocument) -> bool:
        """Let a batch go on: what has no job gets one, what failed another run; or nothing of that, while it is paused."""
        db = self._parts.db
        is_over = _is_over(batch)
        if is_over and batch_items.drop_pending(db, batch.id, batch_reads.EXPIRED):
            return True
        if batch.max_failures is not None and not is_over and batch_control.pause_failing(db, batch.id):
            log.info("batch_paused", batch_id=batch.id, why="max_failures")
            return True
        failed: list[str] = []
        if batch.retried_at is not None and not is_over:
            if batch_retry.reopen_lines(db, batch):
                return True
            failed = batch_retry.jobs_to_retry(db, batch, _RETRIES_AT_ONCE)
        if batch.paused_at is not None and not is_over:
            if self._hold(batch):
                return True
        elif batch.holds_work and batch_control.let_work_go(db, batch.id):
            self._parts.ring_for_work()
            return True
        elif self._submitter.go_on(batch, failed):
            return True
        return not failed and self._settle(batch)

    def _hold(self, batch: BatchDocument) -> bool:
        """Hold back the work of a paused batch. False: all of it is held, as far as was looked for lately."""
        if time.monotonic() < self._hold_again.get(batch.id, 0.0):
            return False
        if batch_control.hold_work(self._parts.db, batch.id):
            # Some of it was let go, perhaps, because others want it.
            self._parts.ring_for_work()
            return True
        self._hold_again[batch.id] = time.monotonic() + _HOLD_AGAIN_S
        return False

    def _settle(self, batch: BatchDocument) -> bool:
        # More may come, until its time is up.
        if batch.status == BatchStatus.RUNNING and not batch.is_sealed and not _is_over(batch):
            return False
        if not batch_items.is_settled(self._parts.db, batch.id):
            return False
        return batch_steps.start_finalizing(self._parts.db, batch)

    def _finalize(self, batch: BatchDocument) -> bool:
        results = Results()
        # Native batches are handed out as they are (`batch_downloads.py`), and have no files.
        add = results.count if batch.input_file_id is None else results.add
        line = 0
        while page := batch_reads.outcomes(self._parts.db, batch.id, line, _RESULTS_AT_ONCE):
            for outcome in page:
                add(outcome, batch.expires_at)
            line = page[-1].line
            if self._stopping.is_set():
                return False
        status = BatchStatus.COMPLETED
        if batch.canceling_at is not None:
            status = BatchStatus.CANCELED
        elif results.has_expired or not batch.is_sealed:
            status = BatchStatus.EXPIRED
        output, error = self._store(batch, "output", bytes(results.output)), self._store(batch, "error", bytes(results.error))
        batch_steps.end_batch(self._parts.db, batch.id, status, output, error, results.usage())
        log.info("batch_ended", batch_id=batch.id, status=status)
        return True

    def _store(self, batch: BatchDocument, kind: str, data: bytes) -> NewFile | None:
        if not data:
            return None
        # The files of before a retry stay what they were.
        run = "" if batch.retried_at is None else f"-{batch.retried_at.timestamp():.6f}"
        key = f"t/{batch.tenant_id}/batches/{batch.id}/{kind}{run}.jsonl"
        self._parts.storage.put(key, data, "application/jsonl")
        return NewFile(
            id=new_id("file"),
            tenant_id=batch.tenant_id,
            purpose="batch_output",
            filename=f"{batch.id}_{kind}.jsonl",
            storage_key=key,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=shown_bytes(self._parts, data),
            content_type="application/jsonl",
            expires_s=batch.output_expires_s,
        )


def _is_over(batch: BatchDocument) -> bool:
    return batch.expires_at <= datetime.now(UTC)


def run(settings: ApiSettings, stopping: threading.Event) -> None:
    """Work while we are the one clerk, until `stopping` is set."""
    parts = make_parts(settings)
    lock = LeaderLock(parts.db, _LOCK)
    clerk = Clerk(parts, stopping)
    while not stopping.is_set():
        try:
            if not lock.is_held():
                stopping.wait(_STANDBY_S)
                continue
            if not clerk.work():
                stopping.wait(_PAUSE_S)
        except (DatabaseDownError, StorageDownError) as error:
            log.warning("store_away", error=type(error).__name__, why=str(error))
            stopping.wait(_STANDBY_S)
        except Exception:  # whatever is wrong with one batch, the next look may find it mended
            log.exception("clerk_stumbled")
            stopping.wait(_STANDBY_S)
    lock.drop()
    parts.close()


def main() -> None:
    """Run until SIGTERM."""
    try:
        settings = read_settings(ApiSettings)
    except StartupError as error:
        sys.exit(f"batch clerk: {error}")
    configure_logs(settings, "batch_clerk")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    run(settings, stopping)


if __name__ == "__main__":
    main()
