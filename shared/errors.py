"""
Every error glmq raises on purpose. The type says who is told and whether trying again can help.

GlmqError
├── RequestError              the caller's input is wrong: 4xx, nothing stored, never retried
│   ├── QuotaError            the tenant has used up what it may use, for now
│   │   ├── QueueFullError    so many of its jobs are queued that another one may not be
│   │   └── TooManyBatchesError  the same of its batches that have not ended
│   ├── SourceImageError      an upload, a fetched URL or an earlier result is not a usable picture
│   └── ForbiddenAddressError a URL leads to an address that glmq must not talk to
├── WorkError                 one stage of one job failed
│   ├── PermanentWorkError    the same input fails again: the job fails now
│   │   └── TokenGridError    ids, shape or revision of a token grid do not fit
│   └── TransientWorkError    another try may succeed: back to the queue, with back-off
├── EngineBrokenError         the device is lost to this process: it must end and be started anew
├── WorkStoppedError          the work was told to stop: cancel, shutdown or a lost lease
├── StaleAttemptError         a newer attempt owns the row: drop the result, write nothing
└── StartupError              this process must not run: wrong versions, settings or weights
"""

from __future__ import annotations


class GlmqError(Exception):
    """Base of the tree; never raised itself."""


class RequestError(GlmqError):
    """
    The caller's input is wrong.

    Args:
        code: entry of the problem catalogue (`services/api/problems.py`), such as `invalid_request`.
        detail: a sentence for a person; names the value that offended.
        param: dotted path of the field, such as `images.0.url`; None when no field is at fault.
    """

    def __init__(self, code: str, detail: str, param: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.param = param


class QuotaError(RequestError):
    """
    The tenant has used up what it may use.

    Args:
        policy: the limit, as `RateLimit-Policy` names it.
        retry_after_s: when there may be room again.
    """

    def __init__(self, code: str, detail: str, policy: str, retry_after_s: float) -> None:
        super().__init__(code, detail)
        self.policy = policy
        self.retry_after_s = retry_after_s


class QueueFullError(QuotaError):
    """So many jobs of the tenant are queued that another one may not be."""

    def __init__(self, max_queued: int) -> None:
        # When a place gets free depends on what is queued and on the workers; a guess, long enough to matter and short enough to obey.
        super().__init__("queue_full", f"{max_queued} jobs of this tenant are queued, and no more may be", "queued", 10)


class TooManyBatchesError(QuotaError):
    """So many batches of the tenant have not ended that another one may not be made."""

    def __init__(self, live_batches: int) -> None:
        # Batches take minutes to hours: a guess, as long as OpenAI's clients wait by themselves.
        super().__init__("too_many_batches", f"{live_batches} batches of this tenant have not ended, and no more may be", "batches", 60)


class SourceImageError(RequestError):
    """A source image cannot be used; `code` tells broken, too large and unsupported apart."""


class ForbiddenAddressError(RequestError):
    """A URL resolves to, or names, an address outside the public internet and the allow-list."""


class WorkError(GlmqError):
    """
    One stage of one job failed.

    Args:
        code: error code of a job, one of docs/problems.md, such as `ar_incomplete_grid`.
        detail: a sentence for the customer, without secrets.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class PermanentWorkError(WorkError):
    """Not retried: the same seed and input fail again."""


class TokenGridError(PermanentWorkError):
    """A token grid does not fit its size, codebook or model revision."""


class TransientWorkError(WorkError):
    """Retried with back-off: a store was away, memory was short, a download was cut."""


class EngineBrokenError(GlmqError):
    """The device failed in a way that every later call of this process would fail too, such as a CUDA fault."""


class WorkStoppedError(GlmqError):
    """`should_stop` turned true; the engine dropped the work and kept nothing."""


class StaleAttemptError(GlmqError):
    """The row's attempt moved on: this worker was thought dead, or the work was canceled."""


class StartupError(GlmqError):
    """The process must not run; the message says what to change."""
