"""What requests are told that have waited for a job in vain."""

from __future__ import annotations

from shared.errors import RequestError


class UnfinishedError(RequestError):
    """A request waited for a job that gave it nothing. The same request would make another job: whoever asks again asks for this one."""

    def __init__(self, code: str, detail: str, job_id: str) -> None:
        super().__init__(code, detail)
        self.job_id = job_id
