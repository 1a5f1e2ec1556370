"""
Any upload -> the one normalised picture both stages use: a PNG, sRGB, RGB, sides a multiple of 32.

Knows pictures and limits; knows no job, no storage and no HTTP. What it decides for the customer:

- PNG, JPEG and WebP only, one frame. Of the multi-picture JPEGs that phones write, the first picture is used.
- EXIF orientation is applied, an embedded ICC profile is converted to sRGB (a broken one is ignored), transparency is laid over
  white, 16-bit channels are scaled to 8. Everything else in the file (GPS position, thumbnails, comments) is dropped.
- One Lanczos resize to a size both stages read alike (`source_size.py`).

Peak memory of one call is about 12 bytes per source pixel, at most two calls decode at a time.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import ExifTags, Image, ImageCms, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from shared.errors import SourceImageError
from shared.image_structure import check_structure, describe_format
from shared.source_size import SourceLimits, legal_size

__all__ = ["NormalisedImage", "SourceLimits", "normalise"]

_Result = TypeVar("_Result")

_DECODES = threading.BoundedSemaphore(2)
"""At most two pictures are in memory as pixels: 50 megapixels of RGBA being resized take 0.6 GB each."""

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    # Not `jpeg_factory`, which turns an MPO into a sequence: this class stops at the first picture, which is the photo.
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the turn that undoes it. Source: PIL ImageOps.exif_transpose."""

_MAX_PROFILE_BYTES = 4 << 20
"""The largest printer profiles in use have about 3 MB."""


@dataclass(frozen=True)
class NormalisedImage:
    """The picture both stages use. `sha256` is the hash of `png`, in hex."""

    png: bytes
    height_px: int
    width_px: int
    sha256: str


def normalise(data: bytes, limits: SourceLimits, param: str | None = None) -> NormalisedImage:
    """
    Check, decode, straighten and resize one upload.

    Args:
        param: the field that brought the picture, for the error, such as `images.0`.
    Raises:
        SourceImageError: `unsupported_media`, `payload_too_large` or `invalid_image`.
    """
    try:
        if len(data) > limits.max_bytes:
            raise SourceImageError("payload_too_large", f"The image has {len(data)} bytes; at most {limits.max_bytes} are allowed.")
        file_format = describe_format(data)
        check_structure(data, file_format)
        with _DECODES:
            return _normalise(data, file_format, limits)
    except SourceImageError as error:
        error.param = param
        raise


def _normalise(data: bytes, file_format: str, limits: SourceLimits) -> NormalisedImage:
    image = _hostile(lambda: _open(data, file_format))
    _check_header(image, file_format, limits)
    # As stored: a quarter turn of a legal size is a legal size.
    height_px, width_px = legal_size(image.height, image.width, limits)
    pixels = _hostile(lambda: _continuous_tone(image))
    # Before the rest: profile, transparency and turning then cost four megapixels at most.
    if pixels.size != (width_px, height_px):
        pixels = pixels.resize((width_px, height_px), Image.Resampling.LANCZOS)
    pixels = _over_white(pixels, image.info.get("icc_profile"))
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        pixels = pixels.transpose(turn)
    # Or Pillow writes the source's profile and transparent colour into the new file.
    pixels.info.clear()
    out = io.BytesIO()
    pixels.save(out, "PNG", compress_level=4)
    png = out.getvalue()
    return NormalisedImage(png, pixels.height, pixels.width, hashlib.sha256(png).hexdigest())


def _open(data: bytes, file_format: str) -> ImageFile.ImageFile:
    """Read the header. Not by `Image.open`, which knows 43 formats and warns of bombs where we refuse them."""
    image = _PLUGINS[file_format](io.BytesIO(data))
    _correct_transparent_colour(image)
    return image


def _hostile(read: Callable[[], _Result]) -> _Result:
    """Run Pillow on bytes from outside; whatever it raises means that the file is broken."""
    try:
        return read()
    except MemoryError as error:
        raise SourceImageError("payload_too_large", "The image needs more memory than there is to decode.") from error
    except Image.DecompressionBombError as error:
        raise SourceImageError("payload_too_large", "The image has too many pixels.") from error
    # Everything: Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, zlib.error, KeyError and more,
    # and its own warnings where those are errors.
    except Exception as error:
        raise SourceImageError("invalid_image", "The image is broken or cut short and cannot be decoded.") from error


def _check_header(image: Image.Image, file_format: str, limits: SourceLimits) -> None:
    """Refuse by what the header says, before any pixel is decoded: 20 KiB of PNG can hold 169 megapixels."""
    width_px, height_px = image.size
    if getattr(image, "n_frames", 1) > 1:
        raise SourceImageError("unsupported_media", f"The image is an animated {file_format}; only still images are allowed.")
    if max(width_px, height_px) > limits.max_side_px:
        raise SourceImageError(
            "payload_too_large", f"The image is {width_px}x{height_px} pixels; at most {limits.max_side_px} per side are allowed."
        )
    if width_px * height_px > limits.max_pixels:
        raise SourceImageError(
            "payload_too_large", f"The image is {width_px}x{height_px} pixels; at most {limits.max_pixels} in all are allowed."
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation; 1, upright, when there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # A picture with broken metadata is still a picture.
        return 1


def _continuous_tone(image: Image.Image) -> Image.Image:
    """
    The decoded picture in a mode that can be resized and colour-managed: L, LA, RGB, RGBA or CMYK.

    Palettes and 1-bit pictures must go first, since Pillow resizes them by nearest neighbour, whatever filter is asked for.
    """
    image.load()
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _eight_bit_grey(image, transparent)
    if image.mode in ("1", "L"):
        return image.convert("L" if transparent is None else "LA")
    if image.mode in ("P", "RGB", "PA"):
        return image.convert("RGB" if transparent is None and image.mode != "PA" else "RGBA")
    if image.mode in ("LA", "RGBA", "CMYK"):
        return image
    return image.convert("RGB")


def _eight_bit_grey(image: Image.Image, transparent: int | None) -> Image.Image:
    """16-bit grey scaled to L or LA; Pillow's own conversion clips at 255, which turns most of a scan white."""
    wide = image.convert("I")
    grey = wide.point([(level + 128) // 257 for level in range(1 << 16)], "L")
    if transparent is None:
        return grey
    alpha = wide.point([0 if level == transparent else 255 for level in range(1 << 16)], "L")
    return Image.merge("LA", (grey, alpha))


def _correct_transparent_colour(image: ImageFile.ImageFile) -> None:
    """
    Bring a PNG's transparent colour to the 8 bits of the pixels as they will be decoded.

    Pillow 13 scales the pixels of 2-bit, 4-bit and 48-bit PNGs but leaves this colour as the file gives it. Called before
    `load`, which drops the tiles and with them the depth.
    """
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(level >> 8 for level in transparent)
    elif isinstance(transparent, int) and image.mode == "L" and image.tile:
        image.info["transparency"] = transparent * {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1)


def _over_white(pixels: Image.Image, profile: bytes | None) -> Image.Image:
    """
    sRGB without transparency.

    White, as on a page: neither model knows transparency, and most cut-out pictures were made to lie on white.
    """
    if pixels.mode not in ("LA", "RGBA"):
        return _srgb(pixels, profile)
    alpha = pixels.getchannel("A")
    colours = _srgb(pixels.convert(pixels.mode[:-1]), profile)
    page = Image.new("RGB", pixels.size, "white")
    page.paste(colours, mask=alpha)
    return page


def _srgb(pixels: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the embedded profile, or by Pillow's plain rules where there is none or it does not work."""
    plain = pixels.convert("RGB")
    if not profile or len(profile) > _MAX_PROFILE_BYTES:
        return plain
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            pixels.mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if pixels.mode == "RGB" and _is_srgb(transform):
            return plain
        return ImageCms.applyTransform(pixels, transform) or plain
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return plain


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    """
    Does the transform move no colour by more than one level?

    Then it is rounding, not a change of colour, and skipping it keeps our own results exact when they come back as sources.
    """
    levels = [*range(0, 256, 17)]
    colours = bytes(itertools.chain.from_iterable(itertools.product(levels, repeat=3)))
    probe = Image.frombytes("RGB", (len(levels), len(levels) ** 2), colours)
    moved = ImageCms.applyTransform(probe, transform)
    return moved is not None and all(abs(before - after) <= 1 for before, after in zip(colours, moved.tobytes(), strict=True))
