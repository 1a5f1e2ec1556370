"""Normalised source images in S3, as both stages read them back. Knows keys, hashes and PNG."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

from shared.errors import PermanentWorkError
from shared.ids import new_id
from shared.lifecycle.claims import Source
from shared.storage import Storage, StorageMissingError


def source_key(tenant_id: str, sha256: str) -> str:
    """
    Where a tenant's source image will lie: an object for each time that it is stored.

    By its hash alone it would lie where an erased one lay, which is still to be deleted.
    """
    return f"t/{tenant_id}/sources/{sha256}/{new_id('src')}.png"


def load_source(storage: Storage, source: Source) -> Image.Image:
    """
    Read a source image, RGB.

    Raises:
        PermanentWorkError: it is gone, or not the bytes that were stored.
        StorageDownError
    """
    try:
        data = storage.get(source.storage_key)
    except StorageMissingError as error:
        raise PermanentWorkError("input_fetch_failed", "a source image is no longer stored") from error
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise PermanentWorkError("input_fetch_failed", "a source image is not what was stored")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return image.convert("RGB")
