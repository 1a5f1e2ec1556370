"""
The interfaces besides the native one, as far as their jobs are told of in other words: by webhooks, and by events of other names.

One entry of `DIALECTS` for each; its routes are a folder of `services/api`. Whoever tells of jobs asks here and knows no dialect by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from shared.prediction import DIALECT, STREAM_S, prediction, prediction_body, stream_token
from shared.states import JobStatus


@dataclass(frozen=True)
class Mailing:
    """
    What a webhook to a job's own URL can be made of.

    Attributes:
        document: of the job, with URLs.
        kept: what the job's row keeps of the request.
        tag: signs a text, as `Sealer.tag` does.
    """

    document: Mapping[str, Any]
    kept: Mapping[str, Any]
    tenant_id: str
    base_url: str
    now: datetime
    tag: Callable[[str], str]


@dataclass(frozen=True)
class Dialect:
    """
    An interface.

    Attributes:
        name: how a job's row says that it came so.
        webhook_body: of a webhook to a job's own URL; None: that of the native event.
        object: what a job is called as the subject of events of its own, and `id_prefix` what its id then begins with.
        ends: how it ends by those events, by the job's status; empty: it has none.
    """

    name: str
    webhook_body: Callable[[Mailing], bytes] | None = None
    object: str = ""
    id_prefix: str = ""
    ends: Mapping[JobStatus, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def end_events(self) -> tuple[str, ...]:
        """The types of the events by which its jobs end."""
        return tuple(f"{self.object}.{end}" for end in self.ends.values())

    def end_event(self, job_id: str, status: JobStatus) -> tuple[str, dict[str, Any]] | None:
        """Type and data of the event that the end of a job is besides; ids only, so that nothing is left of a job that is erased."""
        if status not in self.ends:
            return None
        end = self.ends[status]
        own_id = self.id_prefix + job_id.partition("_")[2]
        return f"{self.object}.{end}", {"id": own_id, "object": self.object, "status": end}


def dialect_of(kept: Mapping[str, Any] | None) -> Dialect:
    """The dialect of a job, by what its row keeps of it; the native one for None and for a name that is not known any more."""
    return NATIVE if kept is None else DIALECTS.get(kept.get("name", ""), NATIVE)


def _prediction_body(mailing: Mailing) -> bytes:
    expires_at = int(mailing.now.timestamp()) + STREAM_S
    token = stream_token(mailing.tag, mailing.tenant_id, mailing.document["id"], expires_at)
    return prediction_body(prediction(mailing.document, mailing.kept, mailing.base_url, token))


NATIVE = Dialect("")
OPENAI_RESPONSES = Dialect(
    "openai.responses",
    object="response",
    id_prefix="resp_",
    ends=MappingProxyType(
        {
            JobStatus.SUCCEEDED: "completed",
            JobStatus.FAILED: "failed",
            JobStatus.CANCELED: "cancelled",
            JobStatus.EXPIRED: "incomplete",
        }
    ),
)
REPLICATE = Dialect(DIALECT, webhook_body=_prediction_body)

DIALECTS = {dialect.name: dialect for dialect in (OPENAI_RESPONSES, REPLICATE)}
