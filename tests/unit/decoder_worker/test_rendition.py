"""Files for customers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from services.decoder_worker.rendition import ImageFormat, render
from shared.errors import PermanentWorkError

_FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")


def _picture(height: int, width: int) -> Image.Image:
    """A red left half, a blue right half, and some noise so that no codec has it easy."""
    pixels = np.random.default_rng(1).integers(0, 40, (height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] += 200
    pixels[:, width // 2 :, 2] += 200
    return Image.fromarray(pixels)


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_png_keeps_every_pixel() -> None:
    """A PNG of unchanged size decodes to exactly the 8-bit pixels of the engine."""
    picture = _picture(96, 128)
    assert np.array_equal(np.array(_opened(render(picture, 96, 128, "png", None))), np.array(picture))


@pytest.mark.parametrize("format", _FORMATS)
@pytest.mark.parametrize("keep_whole", [False, True])
@pytest.mark.parametrize(("height", "width"), [(96, 128), (90, 128), (96, 100), (65, 97), (1, 1), (200, 40), (300, 400), (32, 512)])
def test_size_is_exactly_as_asked(format: ImageFormat, height: int, width: int, keep_whole: bool) -> None:
    """Smaller, larger, other aspect, a single pixel: the file has the size that was asked, in the format that was asked."""
    image = _opened(render(_picture(96, 128), height, width, format, None, keep_whole=keep_whole))
    assert (image.height, image.width, image.format, image.mode) == (height, width, format.upper(), "RGB")


@pytest.mark.parametrize(("height", "width"), [(96, 40), (40, 128)])
def test_the_crop_is_centred(height: int, width: int) -> None:
    """Cut to either aspect, the border between red and blue stays in the middle."""
    image = np.array(_opened(render(_picture(96, 128), height, width, "png", None))).astype(int)
    is_red = image[..., 0] > image[..., 2]
    assert is_red[:, : width // 2 - 1].all()
    assert not is_red[:, width // 2 + 1 :].any()


def _framed(height: int, width: int) -> Image.Image:
    """A yellow page with a black frame that starts 4 pixels from the edge."""
    pixels = np.full((height, width, 3), (240, 205, 60), np.uint8)
    pixels[4:-4, 4:-4] = 20
    pixels[12:-12, 12:-12] = (240, 205, 60)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("height", "width"), [(64, 128), (512, 1024), (69, 128), (550, 1024), (128, 128), (64, 512), (2048, 64), (48, 100)]
)
def test_a_whole_picture_loses_nothing(height: int, width: int) -> None:
    """Kept whole, a picture shows all four sides of its frame, hardly stretched, and its page goes on around it."""
    image = np.array(_opened(render(_framed(64, 128), height, width, "png", keep_whole=True))).astype(int)
    # Across the middle: page, frame, page, frame, page.
    for line, side in ((image[height // 2], width), (image[:, width // 2], height)):
        dark = line.sum(axis=1) < 250
        assert not dark[0]
        assert not dark[-1]
        assert not dark[side // 2]
        assert np.count_nonzero(np.diff(dark.astype(int)) == 1) == 2
    rows, columns = (np.flatnonzero((image.sum(axis=2) < 250).any(axis=axis)) for axis in (1, 0))
    drawn = (rows[-1] - rows[0] + 1) / 56 * 120 / (columns[-1] - columns[0] + 1)
    assert 1 / 1.25 < drawn < 1.25


def test_a_whole_picture_comes_back_as_it_was() -> None:
    """Enlarged to a size of slightly another aspect and reduced again, every part is where it was: edits find letters on their tokens."""
    squares = np.random.default_rng(2).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(np.kron(squares, np.ones((8, 8, 1), np.uint8)))
    enlarged = _opened(render(picture, 550, 1024, "png", keep_whole=True))
    back = np.array(enlarged.resize(picture.size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(back[4::8, 4::8] - squares).max() <= 8


@pytest.mark.parametrize("format", _FORMATS)
def test_srgb_and_nothing_else_is_embedded(format: ImageFormat) -> None:
    """The file carries an sRGB profile; comments, EXIF and foreign profiles of the picture do not get into it."""
    picture = _picture(64, 64)
    picture.info = {"comment": b"secret", "exif": b"Exif\x00\x00secret", "icc_profile": b"secret", "dpi": (11, 11), "xmp": b"secret"}
    data = render(picture, 64, 64, format, None)
    assert b"secret" not in data
    image = _opened(data)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    assert not image.getexif()
    if isinstance(image, PngImagePlugin.PngImageFile):
        assert set(image.info) == {"icc_profile"}
    assert picture.info["comment"] == b"secret", "the engine's picture is left alone"


@pytest.mark.parametrize("format", _FORMATS)
def test_equal_pixels_give_equal_files(format: ImageFormat) -> None:
    """The same picture encoded twice gives the same bytes, so hashes can be compared."""
    first, second = (render(_picture(64, 64), 60, 64, format, None) for _ in range(2))
    assert first == second
    profile = _opened(first).info["icc_profile"]
    assert profile[24:36] == bytes(12), "the profile names no time of creation"


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_buys_bytes(format: ImageFormat) -> None:
    """A higher quality gives a larger file, and none given means a high one."""
    sizes = [len(render(_picture(128, 128), 128, 128, format, quality)) for quality in (1, 50, None, 100)]
    assert sizes == sorted(sizes)


def test_jpeg_keeps_colour_at_full_resolution() -> None:
    """Chroma is not subsampled: coloured letters keep their edges."""
    image = _opened(render(_picture(64, 64), 64, 64, "jpeg", None))
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_bytes_are_bounded(format: ImageFormat) -> None:
    """The quality is lowered as far as it must be, and no further."""
    picture = _picture(256, 256)
    whole = render(picture, 256, 256, format)
    small = render(picture, 256, 256, format, max_bytes=len(whole) // 2)
    assert 0.9 * len(whole) // 2 < len(small) <= len(whole) // 2
    assert render(picture, 256, 256, format, max_bytes=len(whole)) == whole


def test_bytes_that_no_quality_reaches() -> None:
    """Too few bytes are a fault of the request, which another attempt would not mend."""
    with pytest.raises(PermanentWorkError) as caught:
        render(_picture(256, 256), 256, 256, "jpeg", max_bytes=100)
    assert caught.value.code == "file_too_large"


def test_contain_puts_the_whole_picture_on_white() -> None:
    """Nothing is cut or stretched, and what is left over is white."""
    pixels = np.array(_opened(render(_picture(100, 100), 100, 200, "png", fit="contain")))
    assert (pixels[:, :50] == 255).all()
    assert (pixels[:, 150:] == 255).all()
    assert np.array_equal(pixels[:, 50:150], np.array(_picture(100, 100)))


def test_fill_stretches() -> None:
    """Both halves are still there, each half as wide as the file."""
    pixels = np.array(_opened(render(_picture(100, 100), 50, 300, "png", fit="fill")))
    assert (pixels[:, :140, 0] > 150).all()
    assert (pixels[:, 160:, 2] > 150).all()
