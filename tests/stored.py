"""What is stored of jobs in a real S3, as workers store it and as tests look at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from infra.embedded.s3 import S3Server
from shared.db import Database
from shared.lifecycle import finish, previews
from shared.settings import CoreSettings
from shared.storage import Storage
from tests.ledger import ARTIFACT, claim_grid, claim_image

_BUCKET = "stored"


def make_storage(s3: S3Server, endpoint: str, bucket: str = _BUCKET) -> Storage:
    """A storage at this endpoint, which may be another one than the server's: nobody answers there."""
    return Storage(
        CoreSettings(
            database_url=SecretStr("postgresql://unused"),
            redis_url=SecretStr("redis://unused"),
            s3_endpoint=endpoint,
            s3_access_key=s3.access_key,
            s3_secret_key=SecretStr(s3.secret_key),
            s3_bucket=bucket,
            secret_key=SecretStr("unused"),
        )
    )


def keys(storage: Storage) -> set[str]:
    """All keys of all tenants."""
    found: Any = storage._client.list_objects_v2(Bucket=_BUCKET, Prefix="t/")
    return {one["Key"] for one in found.get("Contents", [])}


def draw(db: Database, storage: Storage, tenant_id: str) -> None:
    """One grid and one image, stored where workers store them."""
    grid = claim_grid(db)
    key = f"t/{tenant_id}/grids/{grid.id}/{grid.attempt}.safetensors"
    storage.put(key, b"grid", "application/octet-stream")
    finish.finish_grid(db, grid.id, grid.attempt, replace(ARTIFACT, storage_key=key), 10)
    image = claim_image(db)
    preview = f"t/{tenant_id}/previews/{image.id}/{image.attempt}-2.webp"
    storage.put(preview, b"preview", "image/webp")
    assert previews.add_preview(db, image.id, image.attempt, replace(ARTIFACT, storage_key=preview), 8, 8, 2)
    key = f"t/{tenant_id}/images/{image.id}/{image.attempt}.png"
    storage.put(key, b"image", "image/png")
    finish.finish_image(db, image.id, image.attempt, replace(ARTIFACT, storage_key=key))
