"""
Reference images as the dialects send them -> as a native request has them: URLs and files by name, the bytes of data URLs as uploads.

Each dialect says what an entry means and where it stood; errors name that place. Pure.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.api.field_errors import FieldError, InvalidFieldsError, Path
from services.api.request_body import Upload

# What picture it is, is found out from its bytes; Replicate's clients name no type but bytes.
_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+|application/octet-stream)?(?:;[\w.=-]+)*;base64,", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class SentImage:
    """A reference image: the path of its place in the request, and either a URL, which may be a data URL, or the id of a file."""

    path: Path
    url: str = ""
    file_id: str | None = None


@dataclass(frozen=True)
class PlacedImages:
    """
    What a native request has of them.

    Attributes:
        order: for each image as it was sent, its number among `images` and then `uploads`.
    """

    images: list[dict[str, str]]
    uploads: tuple[Upload, ...]
    order: tuple[int, ...]


def place_images(sent: Sequence[SentImage]) -> PlacedImages:
    """
    Part the images by how they come, and keep their order.

    Raises:
        InvalidFieldsError: names the data URL that cannot be read.
    """
    images: list[dict[str, str]] = []
    uploads: list[Upload] = []
    places: list[tuple[bool, int]] = []
    for image in sent:
        is_upload = image.file_id is None and is_data_url(image.url)
        places.append((is_upload, len(uploads) if is_upload else len(images)))
        if is_upload:
            uploads.append(Upload(".".join(map(str, image.path)), _data_of(image)))
        else:
            images.append({"url": image.url} if image.file_id is None else {"file_id": image.file_id})
    return PlacedImages(images, tuple(uploads), tuple(len(images) + number if is_upload else number for is_upload, number in places))


def is_data_url(url: str) -> bool:
    """Does the URL hold the picture itself?"""
    return url[:5].lower() == "data:"


def _data_of(image: SentImage) -> bytes:
    found = _DATA_URL.match(image.url)
    try:
        if found is None:
            raise ValueError("not base64")
        return base64.b64decode(image.url[found.end() :], validate=True)
    except ValueError:
        name = ".".join(map(str, image.path))
        detail = f"{name}: a data URL should be data:image/png;base64, and the bytes in base 64"
        raise InvalidFieldsError([FieldError(image.path, "data_url", detail, "invalid_image")]) from None
