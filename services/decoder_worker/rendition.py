"""
A drawn picture -> the file that the customer asked for: exact size, format, colour profile.

Knows Pillow and arrays; no tensors, no jobs, no store. Slow enough (a tenth of a second per megapixel) to be kept out of the
engine's thread.
"""

from __future__ import annotations

import functools
import io
import math
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from shared.errors import PermanentWorkError
from shared.rendition import Fit

ImageFormat = Literal["png", "jpeg", "webp"]

CONTENT_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_MAX_STRETCH = 1.12
"""
How much more one axis of a picture is scaled than the other before its edges are repeated.

It takes up all rounding to whole tokens (`shared/grid.py`), goes unnoticed in lettering, and is undone when the result comes back as
a source: its letters then lie on the tokens again. Only sizes longer than the model draws are left with room to fill.
"""

_DEFAULT_QUALITY = {"jpeg": 95, "webp": 90}
"""High: the model's subject is lettering, and rings around letters are the first thing compression shows."""


def render(
    image: Image.Image,
    height: int,
    width: int,
    format: ImageFormat,
    quality: int | None = None,
    *,
    keep_whole: bool = False,
    fit: Fit = "cover",
    max_bytes: int | None = None,
) -> bytes:
    """
    Encode the picture at exactly `height x width`, with an sRGB profile and no other metadata.

    One that has the size already keeps every pixel. A picture of another size is scaled until it covers the size and cropped around its
    centre, in one resampling. With `keep_whole` nothing is cut: it is stretched a little, or repeats its edges where that does not do.
    That suits a small model's pictures, where half a token is half a letter and the edge is background.

    Args:
        format: `png` (lossless), `jpeg` or `webp`.
        quality: 1..100 of jpeg and webp; None for 95 and 90. PNG has none.
        fit: how a picture of another aspect is treated; `contain` puts it on white, `fill` stretches it.
        max_bytes: lower the quality until the file is no larger.
    Raises:
        PermanentWorkError: `file_too_large`, it has more than `max_bytes` at any quality.
    """
    if image.size != (width, height):
        image = _fitted(image, height, width, fit, keep_whole=keep_whole)
    # A copy without `info`: Pillow's writers take comments and profiles from there unasked.
    image = image.convert("RGB")
    image.info = {}
    chosen = _DEFAULT_QUALITY.get(format) if quality is None else quality
    data = _encode(image, format, chosen)
    if max_bytes is None or len(data) <= max_bytes:
        return data
    return _encode_within(image, format, chosen or 0, max_bytes)


def _encode_within(image: Image.Image, format: ImageFormat, quality: int, max_bytes: int) -> bytes:
    """The file of the best quality below `quality` that has at most `max_bytes`: sizes grow with quality, so halve the range."""
    best: bytes | None = None
    low, high = 1, quality - 1
    while low <= high:
        middle = (low + high) // 2
        data = _encode(image, format, middle)
        if len(data) <= max_bytes:
            best, low = data, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise PermanentWorkError("file_too_large", f"the {format} of {image.width}x{image.height} pixels has more than {max_bytes} bytes")
    return best


def _fitted(image: Image.Image, height: int, width: int, fit: Fit, *, keep_whole: bool) -> Image.Image:
    if fit == "fill":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if fit == "contain":
        return ImageOps.pad(image.convert("RGB"), (width, height), method=Image.Resampling.LANCZOS, color="white")
    return _fit_whole(image, height, width) if keep_whole else ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def _encode(image: Image.Image, format: ImageFormat, quality: int | None) -> bytes:
    file = io.BytesIO()
    profile = srgb_profile()
    match format:
        case "png":
            # On a noisy 1024x1024 poster: level 6 0.38 s; level 4 0.18 s and as small; level 1 0.11 s and 15 % larger.
            image.save(file, "PNG", icc_profile=profile, compress_level=4)
        case "jpeg":
            # 4:4:4, or coloured letters get fringes two pixels wide.
            image.save(file, "JPEG", icc_profile=profile, quality=quality, subsampling="4:4:4")
        case "webp":
            image.save(file, "WEBP", icc_profile=profile, quality=quality, method=4)
    return file.getvalue()


def _fit_whole(image: Image.Image, height: int, width: int) -> Image.Image:
    """The whole picture in the middle of `height x width`, as large on one axis and nearly so on the other; its edges fill the rest."""
    scale = _MAX_STRETCH * min(height / image.height, width / image.width)
    spare_h, spare_w = max(0.0, height / scale - image.height), max(0.0, width / scale - image.width)
    pad_h, pad_w = math.ceil(spare_h / 2), math.ceil(spare_w / 2)
    page = Image.fromarray(np.pad(np.asarray(image.convert("RGB")), ((pad_h, pad_h), (pad_w, pad_w), (0, 0)), "edge"))
    # Pixels come whole and the spare room does not.
    left, top = pad_w - spare_w / 2, pad_h - spare_h / 2
    return page.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, page.width - left, page.height - top))


@functools.cache
def srgb_profile() -> bytes:
    """The sRGB profile of Little CMS, with its date of creation blanked so that equal pixels give equal files."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)
    return bytes(profile)
