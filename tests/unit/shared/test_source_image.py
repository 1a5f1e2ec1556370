"""Any upload becomes one PNG that both stages read alike, or an error that says what is wrong with it."""

from __future__ import annotations

import io
import random
import struct
import threading
import warnings
import zlib

import pytest
from PIL import Image, ImageCms, ImageDraw

from shared.errors import SourceImageError
from shared.source_image import NormalisedImage, SourceLimits, normalise

MINIATURE = SourceLimits(min_px=64, max_px=512)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, row: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * height, 9)
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + b"".join(extra) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def picture(result: NormalisedImage) -> Image.Image:
    image = Image.open(io.BytesIO(result.png))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (result.width_px, result.height_px))
    return image


def middle(data: bytes, limits: SourceLimits = MINIATURE) -> tuple[int, ...]:
    """The colour in the middle of the normalised picture."""
    result = normalise(data, limits)
    colour = picture(result).getpixel((result.width_px // 2, result.height_px // 2))
    assert isinstance(colour, tuple)
    return colour


def refusal(data: bytes, limits: SourceLimits = MINIATURE) -> SourceImageError:
    with pytest.raises(SourceImageError) as caught:
        normalise(data, limits, param="images.0")
    assert caught.value.param == "images.0"
    return caught.value


def near(colour: tuple[int, ...], expected: tuple[int, ...], by: int = 3) -> bool:
    return all(abs(a - b) <= by for a, b in zip(colour, expected, strict=True))


def quadrants(width: int = 128, height: int = 64) -> Image.Image:
    """Red, green over blue, white: every turn of it looks different."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), "red")
    draw.rectangle((width // 2, 0, width - 1, height // 2 - 1), "lime")
    draw.rectangle((0, height // 2, width // 2 - 1, height - 1), "blue")
    return image


def swapped_red_and_blue() -> bytes:
    """An sRGB profile whose red and blue primaries have changed places: what it calls red looks blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


# --- modes and colours

GREEN = Image.new("RGB", (70, 90), (20, 200, 60))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(GREEN), (20, 200, 60)),
        (encoded(GREEN, "JPEG", quality=95), (20, 200, 60)),
        (encoded(GREEN, "JPEG", quality=95, progressive=True), (20, 200, 60)),
        (encoded(GREEN, "WEBP", lossless=True), (20, 200, 60)),
        (encoded(GREEN.quantize(4)), (20, 200, 60)),
        (encoded(Image.new("1", (70, 90), 1)), (255, 255, 255)),
        (encoded(Image.new("L", (70, 90), 77)), (77, 77, 77)),
        (encoded(Image.new("L", (70, 90), 77), "JPEG"), (77, 77, 77)),
        (encoded(Image.new("LA", (70, 90), (0, 127))), (128, 128, 128)),
        (encoded(Image.new("RGBA", (70, 90), (255, 0, 0, 51))), (255, 204, 204)),
        (encoded(Image.new("RGBA", (70, 90), (255, 0, 0, 0)), "WEBP", lossless=True), (255, 255, 255)),
        (encoded(Image.new("CMYK", (70, 90), (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0)),
    ],
    ids=["rgb", "jpeg", "progressive", "webp", "palette", "1", "L", "L-jpeg", "LA", "RGBA", "RGBA-webp", "CMYK"],
)
def test_every_mode_becomes_rgb(data: bytes, expected: tuple[int, ...]) -> None:
    """Each mode of each format arrives in its own colour, transparency laid over white."""
    assert near(middle(data), expected)


@pytest.mark.parametrize("level", [0, 257, 300, 32768, 65535])
def test_16_bit_grey_is_scaled(level: int) -> None:
    """A 16-bit scan keeps its greys; clipping would turn everything above 255 of 65,535 white."""
    data = raw_png(70, 90, 16, 0, struct.pack(">H", level) * 70)
    assert middle(data) == (round(level / 257),) * 3


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent"),
    [
        (1, 0, b"\0" * 8, struct.pack(">H", 0)),
        (2, 0, b"\xaa" * 16, struct.pack(">H", 2)),
        (4, 0, b"\x33" * 32, struct.pack(">H", 3)),
        (8, 0, b"\x07" * 64, struct.pack(">H", 7)),
        (16, 0, b"\x12\x34" * 64, struct.pack(">H", 0x1234)),
        (8, 2, b"\x01\x02\x03" * 64, struct.pack(">3H", 1, 2, 3)),
        (16, 2, b"\x11\x12\x21\x22\x31\x32" * 64, struct.pack(">3H", 0x1112, 0x2122, 0x3132)),
        (8, 3, b"\0" * 64, b"\0"),
    ],
    ids=["grey1", "grey2", "grey4", "grey8", "grey16", "rgb8", "rgb16", "palette"],
)
def test_a_transparent_colour_is_white(depth: int, colour: int, row: bytes, transparent: bytes) -> None:
    """PNG's other transparency, one colour that counts as clear, works at every bit depth."""
    palette = [png_chunk(b"PLTE", b"\x01\x02\x03")] if colour == 3 else []
    clear = raw_png(64, 64, depth, colour, row, *palette, png_chunk(b"tRNS", transparent))
    assert middle(clear) == (255, 255, 255)
    assert middle(raw_png(64, 64, depth, colour, row, *palette)) != (255, 255, 255)


def test_adobe_ycck_jpeg_is_read_as_ycck() -> None:
    """Photoshop's CMYK JPEGs store YCCK; read as plain CMYK this neutral grey would come out coloured."""
    data = encoded(Image.new("CMYK", (64, 64), (155, 127, 127, 0)), "JPEG", quality=95)
    adobe = data.index(b"Adobe")
    ycck = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]
    red, green, blue = middle(ycck)
    assert max(red, green, blue) - min(red, green, blue) <= 3
    assert not near(middle(data), (red, green, blue), by=20)


def test_an_embedded_profile_is_converted_to_srgb() -> None:
    """What the profile calls red and shows as blue arrives as blue, also under transparency and in a palette."""
    profile = swapped_red_and_blue()
    for image in (Image.new("RGB", (64, 64), "red"), Image.new("RGBA", (64, 64), "red"), Image.new("RGB", (64, 64), "red").quantize(2)):
        assert near(middle(encoded(image, icc_profile=profile)), (0, 0, 255))
    assert near(middle(encoded(Image.new("RGB", (64, 64), "red"), "JPEG", quality=95, icc_profile=profile)), (0, 0, 255))


@pytest.mark.parametrize("profile", [b"junk", swapped_red_and_blue()[:200], b"\0" * 600], ids=["junk", "cut", "zeros"])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    """A picture with a broken or unfitting profile is still usable, by its plain colours."""
    assert near(middle(encoded(GREEN, icc_profile=profile)), (20, 200, 60))
    grey_with_colour_profile = encoded(Image.new("L", (64, 64), 77), icc_profile=swapped_red_and_blue())
    assert near(middle(grey_with_colour_profile), (77, 77, 77))


def test_our_own_results_come_back_unchanged() -> None:
    """A legal sRGB picture keeps every pixel, with an sRGB profile embedded or not, and its bytes are always the same."""
    noise = Image.frombytes("RGB", (96, 64), random.Random(1).randbytes(96 * 64 * 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    first = normalise(encoded(noise, icc_profile=profile), MINIATURE)
    assert picture(first).tobytes() == noise.tobytes()
    assert normalise(first.png, MINIATURE) == first


HOW_HELD = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how the sensor saw an upright scene."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    """A phone held any way gives an upright picture, at the upright size."""
    upright, exif = quadrants(), Image.Exif()
    exif[0x0112] = orientation
    held = upright.transpose(HOW_HELD[orientation]) if orientation in HOW_HELD else upright
    shown = picture(normalise(encoded(held, file_format, quality=95, exif=exif.tobytes()), MINIATURE))
    assert shown.size == upright.size
    for corner in ((5, 5), (120, 5), (5, 60), (120, 60)):
        expected = upright.getpixel(corner)
        assert isinstance(expected, tuple)
        assert near(shown.getpixel(corner), expected, by=12)


def test_nothing_but_pixels_is_left() -> None:
    """GPS position, comments and profiles of the upload do not reach storage: the PNG has no ancillary chunk."""
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 0.0)
    data = encoded(quadrants(), "JPEG", exif=exif.tobytes(), comment=b"secret place", icc_profile=swapped_red_and_blue())
    png = normalise(data, MINIATURE).png
    kinds, position = set(), len(PNG_SIGNATURE)
    while position < len(png):
        kinds.add(png[position + 4 : position + 8])
        position += 12 + int.from_bytes(png[position : position + 4])
    assert kinds == {b"IHDR", b"IDAT", b"IEND"}


def test_a_phones_multi_picture_jpeg_gives_its_first_picture() -> None:
    """iPhone and Samsung photos are JPEGs with more pictures behind; the photo is the first, and junk after it is no fault."""
    data = encoded(GREEN, "MPO", save_all=True, append_images=[Image.new("RGB", (70, 90), "red")], quality=95)
    assert b"MPF\0" in data
    assert near(middle(data), (20, 200, 60))
    assert near(middle(data + random.Random(2).randbytes(10_000)), (20, 200, 60))


# --- refusals


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_animations_are_unsupported(file_format: str) -> None:
    """A moving PNG or WebP is refused as such rather than reduced to a frame nobody chose."""
    data = encoded(GREEN, file_format, save_all=True, append_images=[Image.new("RGB", (70, 90))])
    error = refusal(data)
    assert error.code == "unsupported_media"
    assert "animated" in error.detail


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_cut_file_is_broken_wherever_it_is_cut(file_format: str) -> None:
    """No prefix of a picture passes, and none gets past the errors of this tree."""
    noise = Image.frombytes("RGB", (64, 64), random.Random(3).randbytes(64 * 64 * 3))
    data = encoded(noise, file_format)
    assert refusal(b"").code == "invalid_image"
    for length in range(16, len(data) - 64, max(1, len(data) // 60)):
        assert refusal(data[:length]).code == "invalid_image"


@pytest.mark.parametrize("start", [PNG_SIGNATURE, b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 "])
def test_a_signature_before_garbage_is_broken(start: bytes) -> None:
    """A file that only begins like a picture is invalid, not unsupported."""
    assert refusal(start + random.Random(4).randbytes(5000)).code == "invalid_image"
    assert refusal(start + encoded(GREEN, "PDF")).code == "invalid_image"


def test_bombs_are_refused_before_decoding() -> None:
    """Too many bytes, pixels, or pixels per side: told by the header, without Pillow's warning and without the memory."""
    row = b"\0" * 1250
    square = raw_png(10_000, 10_000, 1, 0, row)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        error = refusal(square)
    assert not seen
    assert error.code == "payload_too_large"
    assert "10000x10000" in error.detail
    assert refusal(raw_png(20_000, 1, 1, 0, b"\0" * 2500)).code == "payload_too_large"
    assert refusal(raw_png(50_000, 50_000, 8, 0, b"\0")).code == "payload_too_large"
    assert refusal(encoded(GREEN), SourceLimits(max_bytes=50)).code == "payload_too_large"


def test_inflating_text_is_refused() -> None:
    """Compressed comments that inflate to 100 MB are not inflated."""
    text = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(b"a" * 1_000_000))
    assert refusal(raw_png(64, 64, 8, 0, b"\0" * 64, *[text] * 100)).code == "invalid_image"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_mutated_files_end_in_a_picture_or_in_our_error(file_format: str) -> None:
    """Some hundred damaged files of each format find no exception but SourceImageError."""
    rng = random.Random(f"fuzz {file_format}")
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(quadrants(), file_format, exif=exif.tobytes(), icc_profile=swapped_red_and_blue())
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            kind, place = rng.randrange(4), rng.randrange(len(data))
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                del data[place : place + rng.randint(1, 30)]
            elif kind == 2:
                data[place:place] = rng.randbytes(rng.randint(1, 30))
            else:
                data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
        if file_format == "PNG":
            data = bytearray(with_valid_checksums(bytes(data)))
        try:
            result = normalise(bytes(data), MINIATURE)
        except SourceImageError:
            continue
        picture(result)


def with_valid_checksums(data: bytes) -> bytes:
    """The same PNG with each chunk's checksum corrected, so that damage reaches the parsers behind it."""
    out, position = data[:8], 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        out += data[position : position + 8] + body + struct.pack(">I", zlib.crc32(kind + body))
        position += 12 + length
    return out + data[position:]


def test_many_threads_get_the_same_picture() -> None:
    """Calls beyond the two that may decode at once wait and then succeed."""
    data, results = encoded(quadrants(700, 500)), []
    threads = [threading.Thread(target=lambda: results.append(normalise(data, MINIATURE).sha256)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 6
    assert len(set(results)) == 1
