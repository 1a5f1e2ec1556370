"""The outside of a file says which format it is and whether it is safe to walk."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from shared.errors import SourceImageError
from shared.image_structure import check_structure, describe_format

PICTURE = Image.linear_gradient("L").convert("RGB")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EMPTY_PNG_CHUNK = struct.pack(">I", 0) + b"teST" + struct.pack(">I", zlib.crc32(b"teST"))
EMPTY_JPEG_SEGMENT = b"\xff\xe5\0\x02"


def encoded(file_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    PICTURE.save(out, file_format, **options)
    return out.getvalue()


@pytest.mark.parametrize(("file_format", "named"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WebP"), ("MPO", "JPEG")])
def test_allowed_formats_are_known_by_their_bytes(file_format: str, named: str) -> None:
    """PNG, JPEG (the kind phones write too) and WebP pass, by their first bytes alone."""
    data = encoded(file_format)
    assert describe_format(data) == named
    check_structure(data, named)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (encoded("GIF"), "GIF"),
        (encoded("TIFF"), "TIFF"),
        (encoded("BMP"), "BMP"),
        (encoded("AVIF"), "AVIF"),
        (encoded("ICO"), "ICO"),
        (encoded("PDF"), "PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\n  <svg/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"<html>", "not an image"),
        (b"PK\x03\x04", "not an image"),
    ],
    ids=["gif", "tiff", "bmp", "avif", "ico", "pdf", "svg", "svg-bare", "heic", "jxl", "html", "zip"],
)
def test_other_formats_are_unsupported(data: bytes, named: str) -> None:
    """The error says what was sent and what is allowed."""
    with pytest.raises(SourceImageError, match=named) as caught:
        describe_format(data)
    assert caught.value.code == "unsupported_media"
    assert "PNG, JPEG and WebP" in caught.value.detail


def test_an_empty_file_is_broken() -> None:
    """No bytes are not an unknown format but an empty file."""
    with pytest.raises(SourceImageError, match="0 bytes") as caught:
        describe_format(b"")
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize(
    ("data", "file_format"),
    [
        (PNG_SIGNATURE + EMPTY_PNG_CHUNK * 30_000, "PNG"),
        (b"\xff\xd8" + EMPTY_JPEG_SEGMENT * 30_000, "JPEG"),
        (b"\xff\xd8\xff\xd9" + EMPTY_JPEG_SEGMENT * 30_000, "JPEG"),
    ],
    ids=["png", "jpeg", "jpeg-early-end"],
)
def test_endless_segments_are_refused(data: bytes, file_format: str) -> None:
    """Millions of empty segments would become millions of objects, also behind an end that Pillow walks past."""
    with pytest.raises(SourceImageError, match="more than") as caught:
        check_structure(data, file_format)
    assert caught.value.code == "invalid_image"


def test_endless_scans_are_refused() -> None:
    """A progressive JPEG may not ask for a pass over all pixels with every few bytes."""
    progressive = encoded("JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    check_structure(progressive[:-2] + last_scan * 10 + b"\xff\xd9", "JPEG")
    with pytest.raises(SourceImageError, match="100 scans"):
        check_structure(progressive[:-2] + last_scan * 100 + b"\xff\xd9", "JPEG")


def test_what_follows_the_picture_is_not_counted() -> None:
    """A motion photo's video behind the picture may hold anything."""
    check_structure(encoded("JPEG") + b"\xff\xda\0\x02" * 1000, "JPEG")
