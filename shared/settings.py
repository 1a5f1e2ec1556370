"""
Settings that more than one service reads: one typed class, every field an environment variable `GLMQ_…`.

Each service extends a class of this module in its own `settings.py`. A value is read once, at start; a wrong one
refuses the start with the variable's name. docs/settings.md is written from these classes.
"""

from __future__ import annotations

from typing import Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import StartupError

Settings = TypeVar("Settings", bound=BaseSettings)
Url = TypeVar("Url", str, SecretStr)

_SCHEMES = {
    "database_url": ("postgresql://", "postgres://", "postgresql+"),
    "redis_url": ("redis://", "rediss://", "unix://"),
    "s3_endpoint": ("http://", "https://"),
    "s3_public_endpoint": ("http://", "https://"),
}
"""What the libraries take. Each would end the process with a traceback of its own, and none names the variable."""


class CoreSettings(BaseSettings):
    """What every process needs: the ledger, the broker, the store, and how to log."""

    model_config = SettingsConfigDict(env_prefix="GLMQ_", frozen=True)

    database_url: SecretStr = Field(description="Postgres, as `postgresql://user:password@host:port/database`.")
    redis_url: SecretStr = Field(description="Redis or Valkey, as `redis://:password@host:port/0`. May be flushed at any moment.")
    s3_endpoint: str = Field(description="S3 API, as `http://host:port`.")
    s3_public_endpoint: str = Field(
        default="", description="S3 API as customers reach it; presigned URLs name it. Empty: the same as `GLMQ_S3_ENDPOINT`."
    )
    s3_access_key: str = Field(description="S3 access key id.")
    s3_secret_key: SecretStr = Field(description="S3 secret access key.")
    s3_bucket: str = Field(default="glmq", description="Bucket of token grids, source images and results.")
    s3_region: str = Field(default="us-east-1", description="S3 region name.")
    secret_key: SecretStr = Field(description="32 random bytes in base64; encrypts webhook secrets at rest.")
    public_url: str = Field(
        default="",
        description="Base of the links in answers and webhooks. Empty: answers name the host that was asked, webhooks hold paths.",
    )
    egress_allow: str = Field(
        default="",
        description="Comma-separated addresses and CIDR ranges that webhooks and source-image URLs may reach although they are not public.",
    )
    db_pool_size: int = Field(default=8, ge=1, le=200, description="Database connections kept open per process.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least severe line that is written.")
    log_format: Literal["json", "console"] = Field(default="json", description="`json` for machines, `console` for people.")

    @field_validator(*_SCHEMES)
    @classmethod
    def _has_scheme(cls, url: Url, info: ValidationInfo) -> Url:
        text = url.get_secret_value() if isinstance(url, SecretStr) else url
        schemes = _SCHEMES[str(info.field_name)]
        may_be_empty = info.field_name == "s3_public_endpoint"
        if not (text.startswith(schemes) or (may_be_empty and not text)):
            raise ValueError(f"it should begin with {schemes[0]}")
        return url


class QuotaSettings(CoreSettings):
    """What a tenant may use that has no limits of its own (`glmq tenants limit`)."""

    quota_max_queued: int = Field(
        default=1_000_000, ge=0, description="Jobs of a tenant that were accepted and have not begun. 0: no limit, here and below."
    )
    quota_max_running: int = Field(
        default=0, ge=0, description="Layouts and images of a tenant that workers may have in hand at once; more of them wait."
    )
    quota_requests_per_minute: int = Field(default=0, ge=0, description="Requests of a tenant that make jobs, accepted or not.")
    quota_gpu_seconds_per_day: float = Field(
        default=0, ge=0, description="Seconds of workers, of either kind, that a tenant may use from midnight to midnight UTC."
    )
    quota_live_batches: int = Field(default=50, ge=0, description="Batches of a tenant that have not ended.")
    results_kept_s: int = Field(
        default=0,
        ge=0,
        description="Seconds after its end until a job is erased that names no `expires_in` itself. 0: it is kept until it is deleted.",
    )


class WorkerSettings(CoreSettings):
    """What both GPU workers need."""

    checkpoint: str = Field(description="Folder in the published layout, or a hub id such as `zai-org/GLM-Image`.")
    model_revision: str = Field(
        default="", description="Name of the checkpoint's content; both kinds of worker must agree on it. Empty: read from its files."
    )
    device: str = Field(default="auto", description="`auto` (cuda if there is one, else cpu) or a torch device.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="`auto`: bfloat16 on cuda, float32 on cpu.")
    cpu_offload: Literal["off", "idle", "all"] = Field(
        default="off",
        description="What leaves the GPU while it is not used, cuda only. `idle`: glyph encoder and VAE, or the AR model's vision tower."
        " `all`, decoder only: the transformer too, layer by layer; slow.",
    )
    attention: Literal["auto", "native", "flash", "flash_3", "sage", "xformers"] = Field(
        default="auto",
        description="Attention kernels. `auto`, `native`: torch's own; the others need their package. `sage` changes pictures a little;"
        " the AR worker has neither it nor `xformers`, and only reads source images with the others.",
    )
    compile: Literal["off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        default="off",
        description="Decoder only (the AR worker has `GLMQ_AR_DECODE`): mode of `torch.compile` for the transformer's blocks. The first"
        " picture of each size waits for it.",
    )
    quantization: Literal["none", "int8", "fp8"] = Field(
        default="none",
        description="Weights of the large linear layers in 8 bits; needs torchao, `fp8` a GPU of compute capability 8.9. Changes pictures.",
    )
    lora_dir: str = Field(
        default="",
        description="Folder of LoRA adapters, `<name>/ar` and `<name>/decoder`; both kinds of worker need all of it. Read at the start.",
    )
    lora_memory_gib: float = Field(
        default=4, gt=0, le=1024, description="GiB that all adapters of a worker may take together; more refuse the start."
    )
    torch_threads: int = Field(default=1, ge=1, le=256, description="CPU threads of one torch operation; more than 1 slows small models.")
    lease_s: float = Field(
        default=30, ge=2, le=3600, description="Seconds after the last heartbeat until the work is given to another worker."
    )
    heartbeat_s: float = Field(default=5, gt=0, le=600, description="Seconds between two heartbeats of a lease; at most a third of it.")
    stall_s: float = Field(
        default=600, gt=0, description="Seconds without one token or step until the process ends itself, taking its engine for hung."
    )
    attempt_s: float = Field(
        default=0,
        ge=0,
        description="Seconds after which an attempt at a layout or picture is given up and made again, from its last checkpoint. 0: never.",
    )
    poll_s: float = Field(default=2, gt=0, le=60, description="Seconds between two looks for released work whose message was lost.")
    shutdown_s: float = Field(default=8, gt=0, le=600, description="Seconds from SIGTERM until the process ends in any case.")

    @model_validator(mode="after")
    def _several_beats_per_lease(self) -> Self:
        if self.heartbeat_s > self.lease_s / 3:
            raise ValueError(f"GLMQ_HEARTBEAT_S may be at most a third of GLMQ_LEASE_S, {self.lease_s / 3:g}")
        return self


def read_settings(kind: type[Settings]) -> Settings:
    """
    Read one class of settings from the environment.

    Raises:
        StartupError: a variable is missing or wrong; names it, never its value (it may be a secret).
    """
    try:
        return kind()
    except ValidationError as error:
        found = [(".".join(map(str, item["loc"])).upper(), item["msg"]) for item in error.errors(include_input=False)]
        # A rule about several variables names them itself.
        problems = "; ".join(f"GLMQ_{name}: {message}" if name else message for name, message in found)
        # From None: the original names the rejected values, which may be secrets.
        raise StartupError(f"settings refused: {problems}") from None
