"""Decoding a file's own JPEG tiles: equal to OpenSlide where that may be, refused where not, never silent."""

from __future__ import annotations

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from pipeline import jpeg_tiles
from pipeline.check import check_slide
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import SlideError
from pipeline.contracts.slides import read_slide_facts, write_slide_facts
from pipeline.jpeg_tiles import JpegTilesBackend
from pipeline.slide import open_checked, open_slide
from tests.slide_files import half, noise, real_file, write_svs, write_tiff

TILE = 64


@pytest.fixture
def rng():
    return np.random.default_rng()


def smooth(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(noise(width, height, rng), (0, 0), 2)


def write_jpeg(path: Path, pixels: np.ndarray, colours: str, subsampling: str, tables: bool) -> Path:
    """A generic TIFF of JPEG tiles; `tables` moves those of the streams into the directory, as scanners do."""
    rows, columns = (-(-side // TILE) for side in pixels.shape[:2])
    padded = np.pad(pixels, ((0, rows * TILE - len(pixels)), (0, columns * TILE - pixels.shape[1]), (0, 0)), "edge")
    blocks = [padded[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] for y in range(rows) for x in range(columns)]
    streams = [
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(block), 85, colorspace="RGB", outcolorspace=colours, subsampling=subsampling
        )
        for block in blocks
    ]
    shared, extra = b"", []
    if tables:
        split = [without_tables(stream) for stream in streams]
        shared, streams = split[0][0], [rest for _, rest in split]
        assert all(table == shared for table, _ in split)
        extra = [(347, 7, len(shared), shared, True)]
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(streams), shape=pixels.shape, dtype=np.uint8, tile=(TILE, TILE), compression="jpeg",
            photometric="rgb" if colours == "RGB" else "ycbcr", subsampling=None if colours == "RGB" else (1, 1),
            compressionargs={"outcolorspace": colours.lower()},  # else the tag says YCbCr whatever the streams are
            metadata=None, extratags=extra, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
        )  # fmt: skip
    return path


def without_tables(stream: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into one of its tables alone and one of everything else."""
    tables, rest, at = b"", b"", 2
    while stream[at + 1] != 0xDA:  # start of scan
        length = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = stream[at : at + length]
        if stream[at + 1] in (0xDB, 0xC4):  # quantisation and Huffman tables
            tables += segment
        else:
            rest += segment
        at += length
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


def change_tile(path: Path, index: int, *, offset: int | None = None, count: int | None = None) -> tuple[int, int]:
    """Change where the directory says that a tile of level 0 lies; its former offset and count."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        former = page.dataoffsets[index], page.databytecounts[index]
        for name, value in (("TileOffsets", offset), ("TileByteCounts", count)):
            if value is not None:
                values = list(page.tags[name].value)
                values[index] = value
                page.tags[name].overwrite(values)
    return former


def assert_equal_everywhere(path: Path, rng: np.random.Generator) -> None:
    with open_slide(path, 0.5) as ours, open_slide(path, 0.5, backend="openslide") as theirs:
        assert (ours.backend, ours.backend_reason, theirs.backend) == ("jpeg-tiles", "", "openslide")
        for level, (width, height) in enumerate((v.width, v.height) for v in ours.levels):
            np.testing.assert_array_equal(
                ours.read(level, 0, 0, width, height), theirs.read(level, 0, 0, width, height)
            )
            for x, y in rng.integers(-40, (width, height), (8, 2)):
                got, want = (slide.read(level, int(x), int(y), 75, 90) for slide in (ours, theirs))
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize(
    ("colours", "subsampling"), [("RGB", "444"), ("YCBCR", "444"), ("YCBCR", "422"), ("YCBCR", "420")]
)
def test_equal_to_openslide(tmp_path, rng, colours, subsampling, tables):
    path = write_jpeg(tmp_path / "a.tif", smooth(301, 205, rng), colours, subsampling, tables)
    with tifffile.TiffFile(path) as tiff:
        assert bool(tiff.pages[0].jpegtables) == tables
        assert tiff.pages[0].photometric.name == colours
    assert_equal_everywhere(path, rng)


def test_levels_of_an_svs(tmp_path, rng):
    base = smooth(512, 384, rng)
    assert_equal_everywhere(write_svs(tmp_path / "a.svs", [base, half(base, 4)]), rng)


def test_regions_of_a_level_at_a_broken_ratio_are_not_blended(tmp_path, rng):
    """OpenSlide interpolates there: it takes corners in whole level-0 pixels only."""
    base = smooth(803, 602, rng)
    path = write_tiff(tmp_path / "a.tif", [base, cv2.resize(base, (267, 201))], compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        whole = tiff.pages[1].asarray()
    with open_slide(path) as slide:
        assert slide.backend == "jpeg-tiles"
        for x, y in rng.integers(0, 120, (20, 2)):
            np.testing.assert_array_equal(slide.read(1, x, y, 80, 70), whole[y : y + 70, x : x + 80])


@pytest.mark.parametrize("kind", ["svs", "tif"])
def test_tiles_that_are_not_stored_are_as_the_library_shows_them(tmp_path, rng, kind):
    base = smooth(301, 205, rng)
    path = tmp_path / f"a.{kind}"
    write_svs(path, [base]) if kind == "svs" else write_tiff(path, [base], compression="jpeg")
    change_tile(path, 6, offset=0, count=0)
    assert_equal_everywhere(path, rng)
    with open_slide(path) as slide:
        assert (slide.read(0, 64, 64, 64, 64) == 255).all() and not (slide.read(0, 0, 64, 64, 64) == 255).all()


def damage(path: Path, kind: str) -> None:
    offset, count = change_tile(path, 0)
    if kind == "short":
        change_tile(path, 0, count=count // 2)
        return
    content = bytearray(path.read_bytes())
    if kind == "another size":
        frame = content.index(b"\xff\xc0", offset) + 5
        content[frame : frame + 4] = b"\xff\x00\xff\x00"
        path.write_bytes(bytes(content))
        return
    start = {"zeros": 0, "zeros from the middle": count // 2}[kind]
    content[offset + start : offset + count] = bytes(count - start)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", ["zeros", "zeros from the middle", "short", "another size"])
def test_damaged_tiles_are_errors_and_the_others_stay(tmp_path, rng, kind):
    base = noise(301, 205, rng)
    path = write_tiff(tmp_path / "a.tif", [base], compression="jpeg")
    with open_slide(path) as slide:
        sound = slide.read(0, 64, 0, 128, 64)
    damage(path, kind)
    with open_slide(path) as slide:
        assert slide.backend == "jpeg-tiles", "damage is no difference between decoders"
        for _ in range(2):
            with pytest.raises(SlideError, match=r"a\.tif: level 0 cannot be decoded at x 0, y 0.*Fix:"):
                slide.read(0, 10, 10, 100, 9)
        np.testing.assert_array_equal(slide.read(0, 64, 0, 128, 64), sound)


def test_a_file_whose_tiles_are_all_damaged_is_left_to_the_library(tmp_path, rng):
    path = write_tiff(tmp_path / "a.tif", [noise(60, 60, rng)], compression="jpeg")
    damage(path, "short")
    with open_slide(path) as slide:
        assert slide.backend == "openslide" and "could be decoded" in slide.backend_reason


def test_a_difference_gives_the_slide_to_openslide_and_says_so(tmp_path, rng, monkeypatch):
    base = smooth(301, 205, rng)
    path = write_svs(tmp_path / "a.svs", [base, half(base, 4)])
    decode = JpegTilesBackend._decode

    def off_by_one(self, level, tiled, index):
        pixels = decode(self, level, tiled, index)
        return pixels ^ 1 if level == 1 else pixels

    monkeypatch.setattr(JpegTilesBackend, "_decode", off_by_one)
    facts = check_slide(Slide("s", "c", str(path)))
    assert facts.backend == "openslide" and "1 grey levels at level 1" in facts.backend_reason
    assert any("more slowly" in warning for warning in facts.warnings)
    write_slide_facts(tmp_path / "s.json", facts)
    assert read_slide_facts(tmp_path / "s.json") == facts
    with open_checked(facts) as slide:
        assert slide.backend == "openslide"


def test_checked_slides_open_as_recorded_without_comparing(tmp_path, rng, monkeypatch):
    facts = check_slide(Slide("s", "c", str(write_svs(tmp_path / "a.svs", [smooth(301, 205, rng)]))))
    assert (facts.backend, facts.backend_reason, facts.warnings) == ("jpeg-tiles", "", ())
    monkeypatch.setattr("pipeline.pixel_source.compare", lambda *_: pytest.fail("compared again"))
    with open_checked(facts) as slide:
        assert slide.backend == "jpeg-tiles"


@pytest.mark.parametrize(("compression", "reason"), [("lzw", "LZW"), ("deflate", "DEFLATE"), ("jpeg2000", "tiffslide")])
def test_other_compressions_stay_with_the_library(tmp_path, rng, compression, reason):
    with open_slide(write_tiff(tmp_path / "a.tif", [noise(130, 90, rng)], compression=compression)) as slide:
        assert slide.backend != "jpeg-tiles" and reason in slide.backend_reason and slide.warnings == ()


def test_kept_tiles_are_bounded_and_decoded_once(tmp_path, rng, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", [smooth(640, 640, rng)], compression="jpeg")
    one = TILE * TILE * 3
    monkeypatch.setattr(jpeg_tiles, "CACHE_BYTES", 7 * one)
    with open_slide(path, backend="jpeg-tiles") as slide:
        backend, decoded = slide._backend, []
        decode = backend._decode
        monkeypatch.setattr(backend, "_decode", lambda *args: (decoded.append(args[2]), decode(*args))[1])
        slide.read(0, 0, 0, 640, 640)
        assert len(decoded) == 100 and not backend._cache, "tiles that were used whole are not wanted again"
        slide.read(0, 5, 5, 630, 630)
        assert sum(tile.nbytes for tile in backend._cache.values()) == 7 * one
        decoded.clear()
        for x in range(0, 128, 16):
            slide.read(0, x, 8, 64, 64)
        assert sorted(decoded) == [0, 1, 2, 10, 11, 12]


def test_real_files_are_equal_to_openslide():
    for name in ("CMU-1-Small-Region.svs", "C3L-00601-26_5x_pyramid.tif"):
        path = real_file(f"slides/{name}")
        with open_slide(path) as ours, open_slide(path, backend="openslide") as theirs:
            assert ours.backend == "jpeg-tiles"
            np.testing.assert_array_equal(ours.read(0, 700, 900, 1500, 1200), theirs.read(0, 700, 900, 1500, 1200))
    with open_slide(real_file("slides/test3-DAPI.ndpi")) as slide:
        assert slide.backend == "openslide" and "hamamatsu" in slide.backend_reason
