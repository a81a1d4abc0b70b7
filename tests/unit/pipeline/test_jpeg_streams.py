"""Streams whose data end before their picture does."""

from __future__ import annotations

import os

import cv2
import imagecodecs
import numpy as np
import pytest

from pipeline.contracts.errors import SlideError
from pipeline.jpeg_streams import BLOCK_ROWS, ran_out, taller
from pipeline.slide import open_slide
from tests.slide_files import noise
from tests.unit.pipeline.test_jpeg_tiles import TILE, change_tile, encoder, write_tiles


@pytest.fixture
def rng():
    return np.random.default_rng()


def picture(rng: np.random.Generator, width: int = 96, height: int = 64) -> np.ndarray:
    return cv2.GaussianBlur(noise(width, height, rng), (0, 0), 1.5)


def encoded(pixels: np.ndarray, colours: str, subsampling: str) -> bytes:
    return imagecodecs.jpeg8_encode(pixels, 85, colorspace="RGB", outcolorspace=colours, subsampling=subsampling)


def decoded(stream: bytes, colours: str) -> np.ndarray:
    return imagecodecs.jpeg8_decode(stream, colorspace=colours, outcolorspace="RGB")


@pytest.mark.parametrize(("colours", "subsampling"), [("RGB", "444"), ("YCBCR", "444"), ("YCBCR", "422")])
def test_the_picture_stays_and_an_early_end_shows(rng, colours, subsampling):
    for _ in range(10):
        stream = encoded(picture(rng), colours, subsampling)
        more = taller(stream, 64)
        pixels = decoded(more.stream, colours)
        assert pixels.shape == (64 + BLOCK_ROWS, 96, 3) and more.width == (16 if subsampling == "422" else 8)
        np.testing.assert_array_equal(pixels[:64], decoded(stream, colours))
        assert not ran_out(pixels, 64, more.width)
        start = stream.index(b"\xff\xda") + 14
        for share in (0.3, 0.8):
            cut = stream[: start + int((len(stream) - start) * share)].rstrip(b"\xff") + b"\xff\xd9"
            assert ran_out(decoded(taller(cut, 64).stream, colours), 64, more.width)


def test_what_is_left_alone(rng):
    assert taller(encoded(picture(rng), "YCBCR", "420"), 64) is None  # the row more would colour the last one
    stream = encoded(picture(rng), "RGB", "444")
    assert taller(stream, 72) is None and taller(encoded(picture(rng, height=60), "RGB", "444"), 60) is None
    progressive = cv2.imencode(".jpg", picture(rng), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    for other in (progressive, b"", b"\xff\xd8", stream[:30], b"\xff\xd8" + bytes(50)):
        assert taller(other, 64) is None


def test_a_sound_tile_that_ends_in_plain_grey_is_read(tmp_path):
    """It raises the suspicion, which the library dispels."""
    grey = np.full((TILE, 2 * TILE, 3), 128, np.uint8)
    path = write_tiles(tmp_path / "a.tif", grey, encoder("RGB", "444"), photometric="rgb")
    with open_slide(path, backend="jpeg-tiles") as slide:
        assert slide.backend == "jpeg-tiles" and (slide.read(0, 0, 0, 2 * TILE, TILE) == 128).all()


@pytest.mark.parametrize("subsampling", ["444", "422"])
def test_flipped_bits_are_noticed_where_openslide_notices_them(tmp_path, subsampling):
    """OpenSlide also minds codes that no table has, which are rare: none of the flips of these seeds makes one."""
    rng = np.random.default_rng(3)
    colours = "RGB" if subsampling == "444" else "YCBCR"
    path = write_tiles(
        tmp_path / "a.tif", picture(rng, 2 * TILE, TILE), encoder(colours, subsampling), photometric=colours.lower()
    )
    offset, count = change_tile(path, 0)
    sound, noticed = path.read_bytes(), 0
    start = sound.index(b"\xff\xda", offset) + 14
    file = os.open(path, os.O_RDWR)
    for at in rng.integers(start, offset + count - 2, 60):
        os.pwrite(file, bytes([sound[at] ^ 1 << int(rng.integers(8))]), at)
        verdicts = []
        for backend in ("jpeg-tiles", "openslide"):
            with open_slide(path, backend=backend) as slide:
                try:
                    slide.read(0, 0, 0, TILE, TILE)
                    verdicts.append("read")
                except SlideError:
                    verdicts.append("refused")
        assert verdicts != ["read", "refused"], at
        noticed += verdicts[0] == "refused"
        os.pwrite(file, sound[at : at + 1], at)
    os.close(file)
    assert noticed > 0 or subsampling == "422"
