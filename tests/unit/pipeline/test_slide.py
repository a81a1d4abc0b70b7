"""Reading slides: um per pixel and its bounds, levels, regions, areas averaged at any resolution."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.contracts.errors import SlideError
from pipeline.resampling import area_average
from pipeline.resolution import resolve
from pipeline.slide import Window, _downsample, open_slide
from tests.bad_slides.corpus import sound_bytes
from tests.bad_slides.tiff_bytes import TiffBytes
from tests.slide_files import half, image, noise, real_file, write_svs, write_tiff


@pytest.fixture
def rng():
    return np.random.default_rng()


def boxes(pixels: np.ndarray, x0, x1, y0, y1, width, height) -> np.ndarray:
    """The slow, plain definition: every box's mean as a sum over pixels of overlap times value."""
    out = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            a, b = x0 + (x1 - x0) * column / width, x0 + (x1 - x0) * (column + 1) / width
            c, d = y0 + (y1 - y0) * row / height, y0 + (y1 - y0) * (row + 1) / height
            for y in range(int(c), int(np.ceil(d))):
                for x in range(int(a), int(np.ceil(b))):
                    overlap = (min(b, x + 1) - max(a, x)) * (min(d, y + 1) - max(c, y))
                    out[row, column] += overlap * pixels[y, x]
            out[row, column] /= (b - a) * (d - c)
    return out


# ---- area averages


@pytest.mark.parametrize("scale", [0.93, 1.0, 1.002, 1.7, 3.4])
def test_area_average_is_the_exact_mean_of_each_box(rng, scale):
    pixels = noise(40, 31, rng)
    x0, y0 = rng.uniform(0, 3, 2)
    got = area_average(pixels, x0 + np.arange(8) * scale, y0 + np.arange(6) * scale)
    want = boxes(pixels, x0, x0 + 7 * scale, y0, y0 + 5 * scale, 7, 5)
    assert got.shape == (5, 7, 3) and got.dtype == np.uint8
    assert np.abs(got - want).max() <= 0.501


def test_area_average_on_whole_pixels_equals_the_exact_path(rng):
    pixels = noise(40, 31, rng)
    got = area_average(pixels, np.linspace(3, 33, 16), np.linspace(1, 25, 13))
    assert np.abs(got - boxes(pixels, 3, 33, 1, 25, 15, 12)).max() <= 0.501
    assert (area_average(pixels, np.arange(4.0, 12), np.arange(2.0, 9)) == pixels[2:8, 4:11]).all()


@pytest.mark.parametrize("scale", [0.93, 1.0, 1.7, 2.0, 3.97, 4.0])
def test_a_piece_of_an_average_is_the_average_of_the_piece(rng, scale):
    pixels, start = noise(300, 300, rng), 0.0 if scale.is_integer() else rng.uniform(0, 3)
    lines = start + np.arange(73) * scale
    whole = area_average(pixels, lines, lines)
    for _ in range(10):
        (left, right), (top, bottom) = (np.sort(rng.choice(73, 2, replace=False)) for _ in range(2))
        x, y = int(lines[left]), int(lines[top])
        piece = area_average(pixels[y:, x:], lines[left : right + 1] - x, lines[top : bottom + 1] - y)
        np.testing.assert_array_equal(piece, whole[top:bottom, left:right])


def test_averages_need_no_place_for_machine_code(monkeypatch):
    """Where neither the package's folder nor the user's can be written, code is compiled for the process alone."""
    from pipeline import compiled

    compiler, asked = compiled.numba.njit, []

    def nowhere(**options):
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(**options)

    monkeypatch.setattr(compiled.numba, "njit", nowhere)
    assert compiled.compiled(lambda x: x + 1)(2) == 3 and asked == [True, False]


# ---- um per pixel


def properties(x=None, y=None, unit="centimeter", text=""):
    found = {"tiff.ImageDescription": text}
    if x:
        found |= {"tiff.XResolution": str(x), "tiff.YResolution": str(y or x), "tiff.ResolutionUnit": unit}
    return found


@pytest.mark.parametrize(
    ("given", "vendor", "override", "value", "source"),
    [
        (properties(20000, text="MPP = 0.25"), (0.26, 0.26), 0.24, (0.24, 0.24), "sheet"),
        (properties(20000, text="MPP = 0.25"), (0.26, 0.27), None, (0.26, 0.27), "vendor"),
        (properties(20000, 20100, text="MPP = 0.25"), None, None, (0.5, 1e4 / 20100), "TIFF tags"),
        (properties(50800, unit="inch"), None, None, (0.5, 0.5), "TIFF tags"),
        (properties(text="scanned|AppMag = 40|MPP = 0.2527"), None, None, (0.2527, 0.2527), "text"),
        (
            properties(text='<Pixels PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.26"/>'),
            None,
            None,
            (0.25, 0.26),
            "text",
        ),
        (properties(4, 4, unit="none", text="ImageJ=1.53\nunit=micron\n"), None, None, (0.25, 0.25), "text"),
    ],
)
def test_um_per_px_comes_from_the_first_source_in_order(given, vendor, override, value, source):
    found = resolve(given, vendor, None, override, "a.svs")
    assert found.um_per_px == pytest.approx(value, rel=1e-12)
    assert found.source == source


def test_sources_that_disagree_are_reported():
    found = resolve(properties(20000), (0.25, 0.25), None, 0.3, "a.svs")
    assert any("vendor" in w for w in found.warnings) and any("TIFF tags" in w for w in found.warnings)
    assert not resolve(properties(40000), (0.25, 0.25), None, 0.25, "a.svs").warnings


def test_print_resolution_gives_way_to_text_and_stops_the_slide_alone():
    found = resolve(properties(72, unit="inch", text="MPP = 0.25"), None, None, None, "a.tif")
    assert found.source == "text" and "ignored" in found.warnings[0]
    with pytest.raises(SlideError, match=r"a\.tif.*352.*um_per_px.*slides\.tsv"):
        resolve(properties(72, unit="inch"), None, None, None, "a.tif")


def test_no_um_per_px_names_the_fix():
    with pytest.raises(SlideError, match=r"a\.tif.*um_per_px for this slide in slides\.tsv"):
        resolve(properties(), None, None, None, "a.tif")


@pytest.mark.parametrize(
    ("mpp", "objective", "verdict"),
    [
        (0.25, 40, "fine"),
        (0.2, 40, "fine"),  # 8
        (0.3125, 40, "fine"),  # 12.5
        (0.195, 40, "warn"),
        (0.32, 40, "warn"),
        (0.4, 40, "warn"),  # 16
        (0.15, 40, "warn"),  # 6
        (0.1499, 40, "stop"),
        (0.5, 40, "stop"),
        (0.25, 20, "stop"),
    ],
)
def test_um_per_px_times_objective_has_bounds(mpp, objective, verdict):
    if verdict == "stop":
        with pytest.raises(SlideError, match="objective"):
            resolve({}, (mpp, mpp), objective, None, "a.svs")
        assert resolve({}, None, objective, mpp, "a.svs").warnings  # the sheet's word counts, with a warning
    else:
        assert bool(resolve({}, (mpp, mpp), objective, None, "a.svs").warnings) == (verdict == "warn")


def test_x_and_y_may_differ_by_five_per_cent():
    assert resolve({}, (0.5, 0.524), None, None, "a").um_per_px == (0.5, 0.524)
    with pytest.raises(SlideError, match="5 %"):
        resolve({}, (0.5, 0.526), None, None, "a")


@pytest.mark.parametrize("mpp", [0.049, 40.1])
def test_um_per_px_outside_its_bounds_stops_the_slide(mpp):
    for vendor, sheet in (((mpp, mpp), None), ((0.5, 0.5), mpp)):
        with pytest.raises(SlideError, match=r"outside 0\.05-40"):
            resolve({}, vendor, None, sheet, "a")
    limit = 0.05 if mpp < 1 else 40.0
    assert resolve({}, (limit, limit), None, None, "a").um_per_px == (limit, limit)


# ---- opening


def test_aperio_facts(tmp_path, rng):
    base = cv2.GaussianBlur(noise(400, 300, rng), (0, 0), 3)
    with open_slide(write_svs(tmp_path / "a.svs", [base, half(base, 4)])) as slide:
        assert (slide.vendor, slide.backend, slide.dimensions) == ("aperio", "jpeg-tiles", (400, 300))
        assert slide.um_per_px == (0.25, 0.25) and slide.um_per_px_source == "vendor"
        assert slide.objective == 40 and slide.warnings == ()
        assert [(v.downsample_x, v.downsample_y) for v in slide.levels] == [(1, 1), (4, 4)]


@pytest.mark.parametrize(
    ("full", "side", "downsample"),
    [
        (46000, 11500, 4.0),
        (46000, 11499, 46000 / 11499),  # a whole pixel away from a factor of 4
        (46000, 11503, 46000 / 11503),  # 3.999
        (46003, 11500, 4 + 1.5 / 11500),  # blocks of 4 px of which the last was dropped, or all squeezed into 11500 px?
        (46001, 11501, 4 - 1.5 / 11501),  # the last one padded, or all squeezed?
        (1000, 251, 1000 / 251),
        (130, 130, 1.0),
        (130, 1, 130.0),
    ],
)
def test_downsample_is_exact_or_between_what_it_may_be(full, side, downsample):
    assert _downsample(full, side) == pytest.approx(downsample, rel=1e-14)
    for possible in (full / side, 4):
        if abs(full / possible - side) < 1:
            assert abs(_downsample(full, side) - possible) * side / possible <= 0.5


def test_levels_are_not_truncated_and_axes_stay_apart(tmp_path, rng):
    base = noise(1000, 622, rng)
    levels = [base, cv2.resize(base, (251, 155))]  # 3.98 and 4.01: an int would make it 3
    with open_slide(write_tiff(tmp_path / "a.tif", levels, mpp=(0.25, 0.25))) as slide:
        assert (slide.levels[1].downsample_x, slide.levels[1].downsample_y) == (1000 / 251, (622 / 155 + 4) / 2)
        assert slide.level_um_per_px(1) == pytest.approx((0.25 * 1000 / 251, 0.25 * (622 / 155 + 4) / 2))
        assert slide.source_level(1.0) == 1  # 1.0016 um/px serves 1
        assert slide.source_level(0.99) == 1
        assert slide.source_level(0.9) == 0
        assert slide.source_level(8) == 1
        assert slide.source_level(0.1) == 0


def test_regions_are_exact_and_white_outside(tmp_path, rng):
    base = noise(200, 132, rng)
    low = half(base)
    with open_slide(write_tiff(tmp_path / "a.tif", [base, low])) as slide:
        assert (slide.read(0, 17, 29, 50, 40) == base[29:69, 17:67]).all()
        assert (slide.read(1, 3, 7, 64, 30) == low[7:37, 3:67]).all()
        out = slide.read(0, -5, 121, 20, 30)
        assert (out[:11, 5:] == base[121:, :15]).all()
        assert (out[11:] == 255).all() and (out[:, :5] == 255).all()
        assert (slide.read(0, 500, 500, 4, 3) == 255).all()


def test_unequal_um_per_px(tmp_path, rng):
    base = noise(210, 200, rng)
    with open_slide(write_tiff(tmp_path / "a.tif", [base], mpp=(0.5, 0.52))) as slide:
        assert slide.um_per_px == pytest.approx((0.5, 0.52))
        got = slide.read_field(10.3, 20.6, 1.0, 16)
        want = boxes(base, 10.3, 10.3 + 16 / 0.5, 20.6, 20.6 + 16 / 0.52, 16, 16)
        assert np.abs(got - want).max() <= 0.51


def test_field_comes_from_the_level_that_fits(tmp_path, rng):
    base = noise(256, 192, rng)
    low = image(64, 48, (10, 20, 30))
    with open_slide(write_tiff(tmp_path / "a.tif", [base, low])) as slide:
        assert (slide.read_field(16, 16, 2.0, 8) == (10, 20, 30)).all()
        assert np.abs(slide.read_field(16, 8, 1.0, 8) - boxes(base, 16, 32, 8, 24, 8, 8)).max() <= 0.51


def test_thumbnail_covers_the_slide_exactly_and_has_no_seams(tmp_path, rng, monkeypatch):
    base = noise(301, 205, rng)
    with open_slide(write_tiff(tmp_path / "a.tif", [base])) as slide:
        whole, scale = slide.thumbnail(3.1)
        assert whole.shape == (33, 49, 3)
        assert scale == (301 / 49, 205 / 33)
        assert np.abs(whole - boxes(base, 0, 301, 0, 205, 49, 33)).max() <= 0.51
        monkeypatch.setattr("pipeline.slide._BLOCK_PX", 50)
        assert (slide.thumbnail(3.1)[0] == whole).all()
        one, _ = slide.thumbnail(1e4)
        assert one.shape == (1, 1, 3)


@pytest.mark.parametrize("um_per_px", [1.0, 1.87])
def test_fields_are_read_a_block_at_a_time(tmp_path, rng, monkeypatch, um_per_px):
    """A tile of few pixels may span a great part of a slide that has no pyramid."""
    with open_slide(write_tiff(tmp_path / "a.tif", [noise(301, 205, rng)])) as slide:
        lattice = slide.lattice(-3.5, 2.25, um_per_px)
        windows = [Window(lattice, 0, 0, 60), Window(lattice, 30, 15, 30)]
        whole = slide.read_windows(windows)
        read, sizes = slide.read, []
        monkeypatch.setattr(slide, "read", lambda *args: (sizes.append(args[3:]), read(*args))[1])
        monkeypatch.setattr("pipeline.slide._BLOCK_PX", 30)
        for part, expected in zip(slide.read_windows(windows), whole, strict=True):
            np.testing.assert_array_equal(part, expected)
        assert len(sizes) > 8 and max(max(size) for size in sizes) <= 31


def test_fields_need_um_per_px_and_lose_alpha_over_white(tmp_path, rng):
    pixels = np.dstack([noise(30, 20, rng), np.full((20, 30), 255, np.uint8)])
    pixels[:5, :, 3] = 0
    pixels[5, :, 3] = 51
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match=r"um_per_px"):
        open_slide(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        got = slide.read(0, 0, 0, 30, 20)
        assert slide.vendor == "field" and slide.um_per_px == (0.5, 0.5)
    assert (got[:5] == 255).all() and (got[6:] == pixels[6:, :, :3]).all()
    assert np.abs(got[5] - (0.2 * pixels[5, :, :3] + 0.8 * 255)).max() <= 0.51


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_other_8_bit_images_become_rgb(tmp_path, mode):
    Image.new("RGB", (9, 7), (0, 0, 0)).convert(mode).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        assert (slide.read(0, 0, 0, 9, 7) == 0).all()


def test_16_bit_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match="8-bit"):
        open_slide(tmp_path / "a.png", 0.5)


def test_untiled_tiff_goes_through_tiffslide(tmp_path, rng):
    import tifffile

    base = noise(50, 40, rng)
    tifffile.imwrite(tmp_path / "a.tif", base, photometric="rgb", metadata=None)
    with open_slide(tmp_path / "a.tif", 0.5) as slide:
        assert slide.backend == "tiffslide"
        assert (slide.read(0, 3, 4, 10, 9) == base[4:13, 3:13]).all()


def test_pyramid_in_subifds_is_seen(tmp_path, rng):
    import tifffile

    base = noise(803, 606, rng)
    low = cv2.resize(base, (201, 151))  # the two axes differ in their ratio, and neither is whole
    kw = {"tile": (64, 64), "photometric": "rgb", "compression": "lzw", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(base, subifds=1, **kw)
        writer.write(low, subfiletype=1, **kw)
    with open_slide(tmp_path / "a.tif", 0.5) as slide:
        assert len(slide.levels) == 2
        for x, y in rng.integers(0, 130, (50, 2)):
            assert (slide.read(1, int(x), int(y), 20, 10) == low[y : y + 10, x : x + 20]).all()


@pytest.mark.parametrize("name", ["a.svs", "a.png", "a.tif"])
def test_unusable_files_are_named(tmp_path, name):
    with pytest.raises(SlideError, match=rf"{name}.*does not exist.*slides\.tsv"):
        open_slide(tmp_path / name, 0.5)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SlideError, match=rf"{name}.*0 bytes"):
        open_slide(tmp_path / name, 0.5)
    (tmp_path / name).write_bytes(b"no image at all" * 9)
    with pytest.raises(SlideError, match=rf"{name}.*not readable"):
        open_slide(tmp_path / name, 0.5)
    with pytest.raises(SlideError, match="folder"):
        open_slide(tmp_path, 0.5)


def test_reader_survives_a_damaged_region(tmp_path, rng):
    """OpenSlide refuses everything after one failure; our reader must not."""
    import tifffile

    base = cv2.GaussianBlur(noise(256, 128, rng), (0, 0), 3)
    path = write_tiff(tmp_path / "a.tif", [base], compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = b"\0" * count
    path.write_bytes(bytes(content))
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match=r"a\.tif: level 0 cannot be decoded at x 0, y 0"):
            slide.read(0, 0, 0, 64, 64)
        far = slide.read(0, 128, 64, 64, 64).astype(int)
        assert np.abs(far - base[64:, 128:192]).mean() < 10
        with pytest.raises(SlideError):
            slide.read(0, 10, 10, 5, 5)


# ---- real files


def test_real_slides_open_as_their_vendors_say():
    with open_slide(real_file("slides/CMU-1-Small-Region.svs")) as slide:
        assert (slide.vendor, slide.dimensions, slide.objective) == ("aperio", (2220, 2967), 20)
        assert slide.um_per_px == (0.499, 0.499) and slide.um_per_px_source == "vendor"
        assert slide.source_level(1.0) == 0 and slide.warnings == ()
    with open_slide(real_file("slides/C3L-00601-26_5x_pyramid.tif")) as slide:
        assert slide.um_per_px == pytest.approx((1.977, 1.977)) and slide.um_per_px_source == "TIFF tags"
        assert [slide.source_level(um) for um in (0.5, 2, 4, 8, 16, 32)] == [0, 0, 1, 2, 3, 4]
    with open_slide(real_file("slides/camelyon_lowres.dcm")) as slide:
        assert slide.vendor == "dicom" and slide.um_per_px == (28.969, 28.968)
    with open_slide(real_file("slides/test3-DAPI.ndpi")) as slide:
        assert slide.vendor == "hamamatsu" and len(slide.levels) == 7 and slide.objective == 40


@pytest.mark.parametrize("kind", ["generic-420", "deflate", "jpeg2000", "subifds"])
def test_tiles_that_the_file_does_not_hold_are_white_with_every_library(tmp_path, kind):
    """TiffSlide, which reads the last two, shows them black."""
    tiff = TiffBytes(sound_bytes(kind))
    tiff.set_value(324, 0, 8)
    tiff.set_value(325, 0, 8)
    (tmp_path / "a.tif").write_bytes(bytes(tiff.content))
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.read(0, 128, 64, 64, 64) == 255).all() and (slide.read(0, 64, 64, 64, 64) < 255).any()


def test_colours_that_would_be_shown_as_stored_are_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((64, 64), np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
    )
    with pytest.raises(SlideError, match="PALETTE"):
        open_slide(tmp_path / "a.tif", 0.5)


def test_an_unreadable_part_of_a_coarse_level_comes_from_a_finer_one(tmp_path):
    """Level 1 has lost a tile: the thumbnail is nearly as before and says nothing. Then level 0 too: it does."""
    tiff = TiffBytes(sound_bytes("deflate"))
    (tmp_path / "sound.tif").write_bytes(bytes(tiff.content))
    wipe(tiff, 4, page=1)
    (tmp_path / "a.tif").write_bytes(bytes(tiff.content))
    for index in (8, 9, 14, 15):
        wipe(tiff, index, page=0)
    (tmp_path / "b.tif").write_bytes(bytes(tiff.content))
    seen = {}
    for name in ("sound", "a", "b"):
        with open_slide(tmp_path / f"{name}.tif") as slide:
            seen[name] = slide.thumbnail(2.0)[0].astype(int), slide.remark
    assert np.abs(seen["a"][0] - seen["sound"][0]).mean() < 1 and seen["a"][1] == seen["sound"][1] == ""
    assert "could not be read and is coloured like its surroundings" in seen["b"][1]
    assert np.abs(seen["b"][0] - seen["sound"][0]).max() < 200  # neither black nor white was put into the tissue


def wipe(tiff: TiffBytes, index: int, page: int) -> None:
    offset, count = tiff.tile(index, page)
    tiff.set_bytes(offset, bytes(count))


def test_an_overview_that_is_mostly_unreadable_fails(tmp_path):
    tiff = TiffBytes(sound_bytes("strips"))
    for index in range(1, 9):
        wipe(tiff, index, page=0)
    (tmp_path / "a.tif").write_bytes(bytes(tiff.content))
    with open_slide(tmp_path / "a.tif") as slide, pytest.raises(SlideError, match="More than 50% of the slide"):
        slide.thumbnail(2.0)
