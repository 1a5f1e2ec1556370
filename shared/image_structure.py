"""
The outside of an image file: which format it is, and whether its chain of segments is one that a decoder may safely walk. Pure.

Knows the containers' framing, never a pixel. It is here because Pillow reads metadata segment by segment before any limit of
ours applies: 20 MB of empty JPEG segments become a list of five million entries, and a progressive JPEG can ask for a full pass
over the picture with every dozen bytes.
"""

from __future__ import annotations

import re

from shared.errors import SourceImageError

_PNG = b"\x89PNG\r\n\x1a\n"

_ALLOWED = "Allowed are PNG, JPEG and WebP, not animated."

_OTHER_FORMATS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "TIFF"),
    (re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb".{4}ftyp(avif|avis)", re.DOTALL), "AVIF"),
    (re.compile(rb".{4}ftyp(hei[cxms]|hev[cmx]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"\0\0\x01\0"), "ICO"),
    (re.compile(rb"\xef\xbb\xbf?\s*<|\s*<(\?xml|svg|!DOCTYPE svg)", re.IGNORECASE), "SVG"),
)
"""What people try most, so that the error can say what they sent."""

_MAX_SEGMENTS = 20_000
"""A 20 MB PNG of libpng's usual 8 KiB chunks has 2,500."""

_MAX_SCANS = 100
"""libjpeg's progressive script has 10 scans. At 50 megapixels one scan takes about 20 ms however few bytes it has."""

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""A marker with a meaning: not a stuffed 0xFF of the entropy-coded data, not a restart marker."""

_JPEG_END, _JPEG_SCAN, _JPEG_NO_LENGTH = 0xD9, 0xDA, frozenset({0x01, 0xD8, 0xD9})


def describe_format(data: bytes) -> str:
    """
    "PNG", "JPEG" or "WebP", by the first bytes; a file name or a content type is never asked.

    Raises:
        SourceImageError: `unsupported_media` for every other format, `invalid_image` for no bytes at all.
    """
    if not data:
        raise SourceImageError("invalid_image", "The image is empty (0 bytes).")
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    for pattern, name in _OTHER_FORMATS:
        if pattern.match(data):
            raise SourceImageError("unsupported_media", f"The image is a {name} file. {_ALLOWED}")
    raise SourceImageError("unsupported_media", f"The file is not an image of a known format. {_ALLOWED}")


def check_structure(data: bytes, file_format: str) -> None:
    """
    Refuse files whose framing costs more to read than any real picture's.

    Raises:
        SourceImageError: `invalid_image`.
    """
    if file_format == "PNG":
        _check_png_chunks(data)
    elif file_format == "JPEG":
        _check_jpeg_segments(data)
    # WebP's chunks are walked in C, without an object each.


def _check_png_chunks(data: bytes) -> None:
    position = len(_PNG)
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(data) or data[position + 4 : position + 8] == b"IEND":
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise SourceImageError("invalid_image", f"The PNG has more than {_MAX_SEGMENTS} chunks.")


def _check_jpeg_segments(data: bytes) -> None:
    """Walks the first picture only: phones append further pictures, and videos, after its end."""
    position, num_segments, num_scans = 2, 0, 0
    while found := _JPEG_MARKER.search(data, position):
        marker = found.group(1)[0]
        # Pillow walks past an end that comes before any scan.
        if marker == _JPEG_END and num_scans:
            return
        num_segments += 1
        num_scans += marker == _JPEG_SCAN
        if num_segments > _MAX_SEGMENTS or num_scans > _MAX_SCANS:
            raise SourceImageError("invalid_image", f"The JPEG has more than {_MAX_SEGMENTS} segments or {_MAX_SCANS} scans.")
        position = found.end()
        if marker not in _JPEG_NO_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2]))
