"""
W3C Trace Context: which trace of a customer's a request belongs to. Pure.

glmq makes no spans. It accepts a context, keeps it with the job and hands it on unchanged, as the specification allows to whoever takes
no part.
Source: W3C Trace Context, level 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?", re.ASCII)
_KEY = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
_STATE_MEMBER = re.compile(rf"{_KEY}=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]", re.ASCII)
_MAX_STATE_CHARS = 512
_MAX_STATE_MEMBERS = 32


@dataclass(frozen=True)
class TraceContext:
    """`traceparent` and, if there is one, `tracestate`, as they are sent."""

    traceparent: str
    tracestate: str | None = None

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    def headers(self) -> dict[str, str]:
        """What hands it on."""
        return {"traceparent": self.traceparent} | ({} if self.tracestate is None else {"tracestate": self.tracestate})

    @classmethod
    def from_headers(cls, headers: dict[str, str] | None) -> TraceContext | None:
        """What `headers` gave."""
        return None if headers is None else cls(**headers)


def parse_trace(traceparent: str | None, tracestate: str | None) -> TraceContext | None:
    """
    The context of a request. A wrong one is none, and a wrong state is left out: what a trace is for must not make a request fail.
    """
    found = None if traceparent is None else _PARENT.fullmatch(traceparent.strip())
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    # A later version is handed on as the one that is understood here, with the one flag that it knows.
    flags = flags if version == "00" else f"{int(flags, 16) & 1:02x}"
    return TraceContext(f"00-{trace_id}-{parent_id}-{flags}", _parse_state(tracestate))


def _parse_state(text: str | None) -> str | None:
    members = [member.strip(" \t") for member in (text or "").split(",")]
    members = [member for member in members if member]
    if not members or len(members) > _MAX_STATE_MEMBERS or not all(map(_STATE_MEMBER.fullmatch, members)):
        return None
    if len({member.partition("=")[0] for member in members}) < len(members):
        return None
    joined = ",".join(members)
    return joined if len(joined) <= _MAX_STATE_CHARS else None
