"""Decoding a file's own JPEG tiles: equal to OpenSlide where that may be, refused where not, never silent."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline import decoded_tiles
from pipeline.check import check_slide
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import SlideError
from pipeline.contracts.slides import read_slide_facts, write_slide_facts
from pipeline.decoded_tiles import DecodedTiles
from pipeline.jpeg_tiles import JpegTilesBackend, NotJpegTiles
from pipeline.slide import open_checked, open_slide
from pipeline.slide_backends import OpenSlideBackend
from tests.slide_files import half, noise, real_file, write_svs, write_tiff

TILE = 64


@pytest.fixture
def rng():
    return np.random.default_rng()


def smooth(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(noise(width, height, rng), (0, 0), 2)


def encoder(colours: str, subsampling: str) -> Callable[[np.ndarray], bytes]:
    return lambda block: imagecodecs.jpeg8_encode(
        block, 85, colorspace="RGB", outcolorspace=colours, subsampling=subsampling
    )


def pillow_encoder(**options: object) -> Callable[[np.ndarray], bytes]:
    def encode(block: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(block).save(stream, "JPEG", quality=85, **options)
        return stream.getvalue()

    return encode


def write_tiles(
    path: Path, pixels: np.ndarray, encode: Callable[[np.ndarray], bytes], *, tile: int = TILE, tables: bool = False,
    photometric: str = "ycbcr", compression: str | int = "jpeg", description: str | None = None, **file: object,
) -> Path:  # fmt: skip
    """A tiled TIFF of what `encode` makes of each tile; `tables` moves JPEG tables to the directory, as scanners do."""
    rows, columns = (-(-side // tile) for side in pixels.shape[:2])
    padded = np.pad(pixels, ((0, rows * tile - len(pixels)), (0, columns * tile - pixels.shape[1]), (0, 0)), "edge")
    blocks = [padded[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y in range(rows) for x in range(columns)]
    streams = [encode(np.ascontiguousarray(block)) for block in blocks]
    shared, extra = b"", []
    if tables:
        split = [without_tables(stream) for stream in streams]
        shared, streams = split[0][0], [rest for _, rest in split]
        assert all(table == shared for table, _ in split)
        extra = [(347, 7, len(shared), shared, True)]
    whole = -(-tile // 16) * 16  # what the writer allows
    with tifffile.TiffWriter(path, **file) as writer:
        writer.write(
            iter(streams), shape=pixels.shape, dtype=np.uint8, tile=(whole, whole), compression=compression,
            photometric=photometric, subsampling=(1, 1) if photometric == "ycbcr" else None,
            # else the tag says YCbCr whatever the streams are
            compressionargs={"outcolorspace": photometric} if compression == "jpeg" else None,
            metadata=None, extratags=extra, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
            description=description,
        )  # fmt: skip
    for name in ("TileWidth", "TileLength") if tile != whole else ():
        change_tag(path, name, tile)
    return path


def change_tag(path: Path, name: str, value: object) -> None:
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[name].overwrite(value)


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
    path = write_tiles(
        tmp_path / "a.tif", smooth(301, 205, rng), encoder(colours, subsampling), tables=tables,
        photometric="rgb" if colours == "RGB" else "ycbcr",
    )  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        assert bool(tiff.pages[0].jpegtables) == tables
        assert tiff.pages[0].photometric.name == colours
    assert_equal_everywhere(path, rng)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("option", [{"restart_marker_blocks": 3}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_restart_markers_and_progressive_streams(tmp_path, rng, subsampling, option):
    encode = pillow_encoder(subsampling=subsampling, **option)
    marker = b"\xff\xc2" if "progressive" in option else b"\xff\xd0"
    assert marker in encode(smooth(TILE, TILE, rng))
    assert_equal_everywhere(write_tiles(tmp_path / "a.tif", smooth(301, 205, rng), encode), rng)


@pytest.mark.parametrize("subsampling", ["444", "420"])
@pytest.mark.parametrize("tile", [16, 48, 60, 72, 80, 240])
def test_tiles_of_any_size(tmp_path, rng, tile, subsampling):
    """Multiples of neither 16 nor 8 among them, which the TIFF standard forbids."""
    pixels = smooth(4 * tile - 5, 2 * tile - 3, rng)
    assert_equal_everywhere(write_tiles(tmp_path / "a.tif", pixels, encoder("YCBCR", subsampling), tile=tile), rng)


@pytest.mark.parametrize("file", [{"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}])
def test_large_and_big_endian_files(tmp_path, rng, file):
    path = write_tiles(tmp_path / "a.tif", smooth(301, 205, rng), encoder("YCBCR", "420"), **file)
    assert_equal_everywhere(path, rng)


def test_what_openslide_does_not_read_is_left_to_the_library_that_does(tmp_path, rng):
    """There is nothing to prove its tiles equal to: this big-endian file is none that OpenSlide takes."""
    path = write_tiles(tmp_path / "a.tif", smooth(301, 205, rng), encoder("YCBCR", "444"), byteorder=">")
    with open_slide(path) as slide, tifffile.TiffFile(path) as tiff:
        assert (slide.backend, slide.backend_reason) == ("tiffslide", "a generic-tiff file opened with tiffslide")
        np.testing.assert_array_equal(slide.read(0, 0, 0, 301, 205), tiff.pages[0].asarray())


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


@pytest.mark.parametrize(("code", "name"), [(33003, "APERIO_JP2000_YCBC"), (33005, "APERIO_JP2000_RGB")])
def test_jpeg_2000_of_aperio_goes_through_openslide(tmp_path, rng, code, name):
    head = "Aperio Image Library v11.2.1 \r\n200x150 [0,0 200x150] (64x64) J2K/KDU Q=30|AppMag = 20|MPP = 0.5"
    pixels = smooth(200, 150, rng)

    def encode(block: np.ndarray) -> bytes:
        return imagecodecs.jpeg2k_encode(block, codecformat="j2k", reversible=True, mct=False)

    path = write_tiles(tmp_path / "a.svs", pixels, encode, compression=code, photometric="rgb", description=head)
    with open_slide(path) as slide:
        assert (slide.vendor, slide.backend, slide.warnings) == ("aperio", "openslide", ())
        assert slide.backend_reason == f"tiles are compressed with {name}, not JPEG"
        if name.endswith("RGB"):
            np.testing.assert_array_equal(slide.read(0, 0, 0, 200, 150), pixels)


def test_colours_apart_deep_or_grey_are_refused_with_the_reason(tmp_path, rng):
    pixels = smooth(200, 150, rng)
    kw = {"tile": (64, 64), "compression": "jpeg", "metadata": None}
    apart, grey = tmp_path / "apart.tif", tmp_path / "grey.tif"
    tifffile.imwrite(apart, np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate", **kw)
    tifffile.imwrite(grey, pixels[..., 0], photometric="minisblack", **kw)
    deep = write_tiles(tmp_path / "deep.tif", pixels, encoder("YCBCR", "444"))
    change_tag(deep, "BitsPerSample", (16, 16, 16))
    for path, reason in (
        (apart, "do not hold their pixels' colours together"), (grey, "not of three 8-bit colours"),
        (deep, "not of three 8-bit colours"),
    ):  # fmt: skip
        with open_slide(path, 0.5) as slide:
            assert slide.backend == "openslide" and reason in slide.backend_reason


def test_lists_of_tiles_that_are_too_short_are_refused_with_the_reason(tmp_path, rng):
    path = write_tiles(tmp_path / "a.tif", smooth(301, 205, rng), encoder("YCBCR", "420"))
    change_tag(path, "ImageLength", 300)
    with open_slide(path) as slide:
        assert slide.backend == "openslide" and "20 tiles are listed, the size needs 25" in slide.backend_reason


@pytest.mark.parametrize("vendor", ["hamamatsu", "mirax", "dicom", "philips-tiff", "ventana", "leica", "trestle"])
def test_vendors_whose_tiles_may_overlap_are_left_to_openslide(tmp_path, rng, vendor):
    """Real files of most of them are not at hand: a JPEG TIFF that OpenSlide would take for theirs."""
    path = write_tiles(tmp_path / "a.tif", smooth(301, 205, rng), encoder("YCBCR", "420"))
    library = OpenSlideBackend(path)
    library.vendor = vendor
    with pytest.raises(NotJpegTiles, match=f"a {vendor} file opened with openslide"):
        JpegTilesBackend(path, library)
    library.close()


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Indices of the tiles that any reader decodes from here on."""
    found: list[int] = []
    decode = JpegTilesBackend._decode
    monkeypatch.setattr(
        JpegTilesBackend, "_decode", lambda self, *args: (found.append(args[2]), decode(self, *args))[1]
    )
    return found


def test_tiles_are_kept_until_they_are_used_up(tmp_path, rng, decoded):
    base = smooth(630, 610, rng)
    path = write_tiff(tmp_path / "a.tif", [base], compression="jpeg")
    tiles = DecodedTiles()
    with open_slide(path, backend="jpeg-tiles", tiles=tiles) as slide:
        whole = slide.read(0, 0, 0, 630, 610)
        assert sorted(decoded) == list(range(100)) and not tiles._kept, "tiles used whole are not wanted again"
        for side in (17, 50, 64, 70, 131):  # cells larger and smaller than tiles, row by row
            decoded.clear()
            for y in range(0, 610, side):
                for x in range(0, 630, side):
                    width, height = min(side, 630 - x), min(side, 610 - y)
                    piece = slide.read(0, x, y, width, height)
                    np.testing.assert_array_equal(piece, whole[y : y + height, x : x + width])
            assert len(decoded) == len(set(decoded)), "each tile was decoded once at most"
            assert not tiles._kept


def test_kept_tiles_are_bounded(tmp_path, rng, decoded, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", [smooth(640, 640, rng)], compression="jpeg")
    tiles, one = DecodedTiles(), TILE * TILE * 3
    monkeypatch.setattr(decoded_tiles, "KEPT_BYTES", 7 * one)
    with open_slide(path, backend="jpeg-tiles", tiles=tiles) as slide:
        slide.read(0, 5, 5, 630, 630)
        assert sum(pixels.nbytes for pixels, _ in tiles._kept.values()) == 7 * one == tiles._kept_bytes
        assert len(tiles._spare) <= decoded_tiles._SPARE_TILES
        decoded.clear()
        for x in range(0, 128, 16):
            slide.read(0, x, 8, 64, 64)
        assert sorted(decoded) == [0, 1, 2, 10, 11, 12]


def test_readers_of_one_slide_share_their_tiles(tmp_path, rng, decoded):
    """Pieces of each tile go to different readers in any order: one decodes it, nobody's pixels are overwritten."""
    base = smooth(640, 512, rng)
    path, side = write_tiff(tmp_path / "a.tif", [base], compression="jpeg"), 48
    with open_slide(path, backend="jpeg-tiles") as slide:
        whole = slide.read(0, 0, 0, 640, 512)
    decoded.clear()
    tiles = DecodedTiles()
    readers = [open_slide(path, backend="jpeg-tiles", tiles=tiles) for _ in range(4)]

    def read(which: int) -> list[tuple[int, int, np.ndarray]]:
        order = np.random.default_rng(which).permutation(np.arange(which, len(corners), 4))
        return [(x, y, readers[which].read(0, x, y, side, side)) for x, y in (corners[k] for k in order)]

    corners = [(x, y) for y in range(0, 512 - side + 1, side) for x in range(0, 640 - side + 1, side)]
    with ThreadPoolExecutor(4) as pool:
        for pieces in pool.map(read, range(4)):
            for x, y, piece in pieces:
                np.testing.assert_array_equal(piece, whole[y : y + side, x : x + side])
    print("N", len(decoded))
    assert len(decoded) < 80 * 1.5, "80 tiles under the cells; two threads may meet at one now and then"
    for slide in readers:
        slide.close()


def test_memory_for_tiles_is_not_written_past_the_cache():
    for shape in ((240, 240, 3), (256, 256, 3), (16, 48, 3)):
        room = DecodedTiles().room(shape)
        assert room.shape == shape and room.flags.c_contiguous and room.flags.writeable
        assert all(row.ctypes.data % 16 for row in room)


def test_real_files_are_equal_to_openslide():
    for name in ("CMU-1-Small-Region.svs", "C3L-00601-26_5x_pyramid.tif"):
        path = real_file(f"slides/{name}")
        with open_slide(path) as ours, open_slide(path, backend="openslide") as theirs:
            assert ours.backend == "jpeg-tiles"
            np.testing.assert_array_equal(ours.read(0, 700, 900, 1500, 1200), theirs.read(0, 700, 900, 1500, 1200))
    for name, vendor in (("test3-DAPI.ndpi", "hamamatsu"), ("camelyon_lowres.dcm", "dicom")):
        with open_slide(real_file(f"slides/{name}")) as slide:
            assert slide.backend == "openslide" and vendor in slide.backend_reason
