"""What the stream of a prediction says: `logs` while it is drawn, an `output` for each image, and `done`. Every event has an id."""

from __future__ import annotations

import time
from typing import ClassVar

from services.api.job_access import find_job
from services.api.job_events import ProgressWatch
from services.api.parts import Parts
from services.api.sse import Frames, event_bytes
from services.api.waiting import Watch, has_ended
from shared.job_document import finish_document
from shared.lifecycle.tenants import Caller
from shared.prediction import logs
from shared.states import JobStatus


class PredictionEvents:
    """
    The stream of one prediction, from its beginning: a client that comes again hears all of it again.

    An event without an id is dropped by Python's client, and so is whatever it does not know the name of.
    """

    LOOK_S: ClassVar[float] = 0.5

    def __init__(self, parts: Parts, caller: Caller, job_id: str, base_url: str) -> None:
        self._parts = parts
        self._caller = caller
        self._job_id = job_id
        self._base_url = base_url
        self._number = 0
        self._told: set[int] = set()
        self._logs = ""

    def frames(self, watch: Watch) -> Frames:
        """What there is to send, and None whenever there is nothing more."""
        progress = ProgressWatch(self._parts, self._caller, self._job_id)
        looked_at = float("-inf")
        while True:
            document = None
            if watch.take() or time.monotonic() - looked_at >= self._parts.waiting.look_s():
                looked_at = time.monotonic()
                progress.renew()
                document = find_job(self._parts, self._caller, self._job_id)
            elif progress.has_moved():
                document = find_job(self._parts, self._caller, self._job_id)
            if document is not None:
                if (told := logs(document)) not in ("", self._logs):
                    self._logs = told
                    yield self._event("logs", told.rstrip("\n"))
                for output in document["outputs"]:
                    if output["storage_key"] is not None and output["index"] not in self._told:
                        self._told.add(output["index"])
                        shown = finish_document({**document, "outputs": [output]}, self._base_url, self._parts.storage.presign)
                        yield self._event("output", str(shown["outputs"][0]["url"]))
                if has_ended(document):
                    match document["status"]:
                        case JobStatus.SUCCEEDED:
                            yield self._event("done", "{}")
                        case JobStatus.FAILED:
                            error = document["error"] or {}
                            # This ends the stream of either client by an exception, as a failure should.
                            yield self._event("error", f"{error.get('code')}: {error.get('message')}")
                            yield self._event("done", '{"reason":"error"}')
                        case _:
                            yield self._event("done", '{"reason":"canceled"}')
                    return
            yield None

    def _event(self, kind: str, data: str) -> bytes:
        self._number += 1
        return event_bytes(kind, data, f"{int(time.time() * 1000)}:{self._number}")
