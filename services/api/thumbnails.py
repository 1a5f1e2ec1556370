"""Small pictures of finished images, made when they are first asked for. Knows Pillow and the store."""

from __future__ import annotations

import io

from PIL import Image

from shared.storage import Storage

THUMBNAIL = "thumb256"
"""The variant that every finished image has, whatever renditions it was asked with."""

THUMBNAIL_FORMAT = "webp"
_SIDE_PX = 256


def thumbnail_key(storage: Storage, image_key: str) -> str:
    """
    The key of an image's thumbnail, which is stored beside it.

    Two requests that make it at once store equal bytes.

    Raises:
        StorageMissingError: the image is no longer stored.
        StorageDownError
    """
    key = f"{image_key}.{THUMBNAIL}.{THUMBNAIL_FORMAT}"
    if not storage.exists(key):
        storage.put(key, _shrink(storage.get(image_key)), "image/webp")
    return key


def _shrink(data: bytes) -> bytes:
    file = io.BytesIO()
    # Our own file, of a size that we chose.
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
        image.convert("RGB").save(file, "WEBP", icc_profile=image.info.get("icc_profile"), quality=80)
    return file.getvalue()
