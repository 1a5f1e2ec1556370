"""Settings of the API."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.settings import QuotaSettings


class ApiSettings(QuotaSettings):
    """Where the API listens, how much it does at once, and what it refuses for size or slowness."""

    api_host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    api_port: int = Field(default=8080, ge=1, le=65535, description="Port the API listens on.")
    api_workers: int = Field(default=1, ge=1, le=64, description="API processes.")
    api_threads: int = Field(default=16, ge=2, le=512, description="Requests that one API process works on at once.")
    api_max_waiting: int = Field(
        default=256,
        ge=2,
        le=4096,
        description="Requests of one API process that may wait for a job besides: long polls and event streams. Each holds a thread.",
    )
    api_read_timeout_s: int = Field(
        default=20, ge=1, le=600, description="Seconds of silence in the middle of a request after which its connection is closed."
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1024, le=1 << 30, description="Largest request body, in bytes.")
    stream_heartbeat_s: float = Field(
        default=10, gt=0, le=50, description="Seconds of silence after which an event stream sends a comment, so that no proxy hangs up."
    )
    stream_s: float = Field(
        default=900,
        ge=1,
        le=86_400,
        description="Seconds until an event stream ends; its client comes back, and its key is checked anew.",
    )
    approval_s: float = Field(
        default=86_400, ge=1, le=30 * 86_400, description="Seconds that a draft waits for its approval before the job expires."
    )
    sync_max_s: float = Field(
        default=300, gt=0, le=3600, description="Seconds that an OpenAI request is held for its images; then it is told where they will be."
    )
    sync_keep_alive_s: float = Field(
        default=0,
        ge=0,
        le=60,
        description="Seconds of silence after which an OpenAI request that is held is sent a space, which JSON may begin with, so that no "
        "client or proxy hangs up. The first one commits status 200: what goes wrong later is told in the body alone. 0: never.",
    )
    metrics: Literal["operators", "everybody"] = Field(
        default="operators", description="Who may read `/metrics`: whoever has a key of an operator, or everybody who reaches the API."
    )
    blocked_terms: str = Field(
        default="",
        description="Text file of words and phrases, one a line, that no prompt and no text may contain; `#` begins a comment. Read at "
        "the start.",
    )
    source_fetch_s: float = Field(
        default=15, gt=0, le=120, description="Seconds in which all source images that one request names by URL must have arrived."
    )
