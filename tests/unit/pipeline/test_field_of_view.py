"""Stripes of a known width in um: tiles show the field they promise at any um/px of the slide, or are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.check import check_slide
from pipeline.contracts import layout
from pipeline.contracts.cohort import Slide
from pipeline.contracts.encoders import write_facts
from pipeline.contracts.errors import SlideError
from pipeline.contracts.features import read_bag
from pipeline.contracts.slides import SlideFacts, write_slide_facts
from pipeline.contracts.stains import StainFit, write_stain
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles, write_tiles
from pipeline.slide import open_checked
from pipeline.tiling import UM_PER_PX_AT_1X, TilingParams, allowed_magnifications
from tests.slide_files import write_svs, write_tiff
from tests.tile_grids import batches, grids_over
from tests.unit.pipeline.embedding_cohort import FACTS, stub_stage

SIZE_PX = 64
PERIOD_UM = 16.0  # whole numbers of periods in a tile at 20x (32 um) and 10x (64 um)
WIDTH, HEIGHT = 7998, 303


@dataclass(frozen=True)
class Pyramid:
    """What a slide file holds: true um/px (x, y), and the size and true downsample (x, y) of each level."""

    um_per_px: tuple[float, float]
    levels: tuple[tuple[int, int, float, float], ...] = ((WIDTH, HEIGHT, 1.0, 1.0),)

    def draw(self) -> list[np.ndarray]:
        return [stripes(w, h, self.um_per_px[0] * x, self.um_per_px[1] * y) for w, h, x, y in self.levels]


def stripes(width: int, height: int, um_x: float, um_y: float) -> np.ndarray:
    """Exact means over pixels of a wave along x (red) and one along y (green), uint8 [height, width, 3]."""
    out = np.full((height, width, 3), 128, np.uint8)
    out[..., 0] = np.rint(128 + 100 * _wave(width, um_x))[None, :]
    out[..., 1] = np.rint(128 + 100 * _wave(height, um_y))[:, None]
    return out


def _wave(count: int, um: float) -> np.ndarray:
    """Mean of cos(2 pi u / PERIOD_UM) over each pixel of `um`."""
    integral = np.sin(2 * np.pi * np.arange(count + 1) * um / PERIOD_UM) * PERIOD_UM / (2 * np.pi)
    return np.diff(integral) / um


def displacement_px(tile: np.ndarray, corner_um: np.ndarray, um_per_px: float) -> np.ndarray:
    """How far (x, y) the waves in a tile lie from where they are on the glass, in its pixels."""
    found = []
    for channel, axis in ((0, 0), (1, 1)):
        values = tile[..., channel].astype(float).mean(axis=axis)
        um = corner_um[axis] + (np.arange(len(values)) + 0.5) * um_per_px
        turned = np.sum(values * np.exp(-2j * np.pi * um / PERIOD_UM))
        found.append(np.angle(turned) * PERIOD_UM / (2 * np.pi) / um_per_px)
    return np.array(found)


def check(path: Path, **sheet: float) -> SlideFacts:
    return check_slide(Slide("s", "c", str(path), **sheet))


def grids_of(facts: SlideFacts, magnifications: tuple[float, ...] = (20, 10)) -> dict[float, TileGrid]:
    """Every tile of the slide at the magnifications that it allows."""
    params = TilingParams(SIZE_PX, magnifications, min_inside=0.999)
    allowed, _ = allowed_magnifications(facts.um_per_px, params)
    with open_checked(facts) as slide:
        levels = {m: slide.source_level(UM_PER_PX_AT_1X / m) for m in allowed}
        sources = {m: (level, slide.level_um_per_px(level)) for m, level in levels.items()}
    return grids_over(np.ones((8, 8), bool), facts.um_per_px, facts.bounds, sources, params)


def worst(facts: SlideFacts, pyramid: Pyramid, grid: TileGrid) -> float:
    """The largest displacement, in tile pixels, of any tile of a grid."""
    found = 0.0
    for batch in batches(facts, {10 / grid.um_per_px: grid}):
        for row, tile in zip(batch.rows, batch.pixels, strict=True):
            corner_um = grid.upper_left[row] * pyramid.um_per_px
            found = max(found, float(np.abs(displacement_px(tile, corner_um, grid.um_per_px)).max()))
    assert (grid.cell[:, 0] + 1).max() * SIZE_PX * grid.um_per_px > (WIDTH - 600) * pyramid.um_per_px[0]
    return found


def reduced(factor: float, *, squeezed: bool, width: int = WIDTH, height: int = HEIGHT) -> tuple:
    """A second level: the whole slide squeezed into it, or whole blocks averaged and the rest dropped."""
    w, h = (
        (round(width / factor), round(height / factor)) if squeezed else (int(width // factor), int(height // factor))
    )
    return (w, h, width / w, height / h) if squeezed else (w, h, factor, factor)


FULL = (WIDTH, HEIGHT, 1.0, 1.0)
PYRAMIDS = {
    "0.25": Pyramid((0.25, 0.25)),
    "0.29": Pyramid((0.29, 0.29)),
    "0.31": Pyramid((0.31, 0.31)),
    "0.59": Pyramid((0.59, 0.59)),
    "unequal": Pyramid((0.49, 0.511)),  # 4.3 %
    "level at 3.999": Pyramid((0.25, 0.25), (FULL, reduced(3.999, squeezed=True))),
    "level at 1.999": Pyramid((0.251, 0.251), (FULL, reduced(1.999, squeezed=True), reduced(3.998, squeezed=True))),
    "blocks of 4, rest dropped": Pyramid((0.25, 0.25), ((7999, 303, 1, 1), reduced(4, squeezed=False, width=7999))),
    "about 4, all squeezed": Pyramid((0.25, 0.25), ((7999, 303, 1, 1), (1999, 75, 7999 / 1999, 303 / 75))),
}


@pytest.mark.parametrize("compression", ["lzw", "jpeg"])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_tiles_show_the_field_they_promise(tmp_path, name, compression):
    pyramid = PYRAMIDS[name]
    path = write_tiff(tmp_path / "a.tif", pyramid.draw(), mpp=pyramid.um_per_px, compression=compression)
    facts = check(path)
    assert facts.backend == ("jpeg-tiles" if compression == "jpeg" else "openslide")
    assert facts.um_per_px == pytest.approx(pyramid.um_per_px, rel=1e-6)  # tags are fractions of 32-bit numbers
    grids = grids_of(facts)
    assert list(grids) == ([10] if name == "0.59" else [20, 10])
    for grid in grids.values():
        assert worst(facts, pyramid, grid) < 0.5


def test_a_tile_moved_by_half_a_pixel_is_noticed():
    """The measure itself: shifts are found to a fiftieth of a pixel."""
    for um in (0.5, 1.0):
        tile = stripes(SIZE_PX, SIZE_PX, um, um)
        assert np.abs(displacement_px(tile, np.zeros(2), um)).max() < 0.02
        moved = displacement_px(tile, np.array([0.5, -0.75]) * um, um)
        assert moved == pytest.approx([-0.5, 0.75], abs=0.02)


def test_stored_metadata_are_exact(tmp_path):
    """Requested, source and achieved um/px, in the files of tiles and of features."""
    pyramid = Pyramid((0.25, 0.25), (FULL, reduced(3.999, squeezed=True)))
    facts = check(write_tiff(tmp_path / "a.tif", pyramid.draw(), mpp=pyramid.um_per_px))
    write_slide_facts(layout.slide_facts(tmp_path, "s"), facts)
    write_facts(layout.encoder_facts(tmp_path, "tiny"), FACTS)
    write_stain(layout.stain_fit(tmp_path, "s"), StainFit("s", "none", "none", "", None, "", None, {}, "stain"))
    write_tiles(
        layout.tiles(tmp_path, "s"), TileSet("s", grids_of(facts), {}, facts.dimensions, facts.um_per_px, "tiles")
    )
    stub_stage(tmp_path).make("s", "d")
    tiles = read_tiles(layout.tiles(tmp_path, "s"))
    level = tuple(facts.levels[1][2:])
    sources = {20: (0, (0.25, 0.25)), 10: (1, (0.25 * level[0], 0.25 * level[1]))}
    for magnification, grid in tiles.magnifications.items():
        asked = 10 / magnification
        source = read_bag(layout.features(tmp_path, "tiny", magnification, "s")).source
        assert grid.um_per_px == source.um_per_px == asked
        assert (grid.source_level, grid.source_um_per_px) == sources[magnification]
        assert source.source_um_per_px == grid.source_um_per_px
        assert grid.achieved_um_per_px == source.achieved_um_per_px == pytest.approx((asked, asked), rel=1e-15)
        assert source.size_level0_px == (SIZE_PX * asked / 0.25,) * 2 == tuple(grid.pitch)
        assert source.level0_um_per_px == tiles.um_per_px == facts.um_per_px == (0.25, 0.25)


# ---- refusals


def test_59_hundredths_are_not_20x(tmp_path):
    facts = check(write_tiff(tmp_path / "a.tif", [stripes(640, 300, 0.59, 0.59)], mpp=(0.59, 0.59)))
    allowed, refused = allowed_magnifications(facts.um_per_px, TilingParams(SIZE_PX, (20, 10)))
    assert allowed == [10] and "20x needs 0.5 um/px, the slide has 0.59" in refused[20]


def test_axes_more_than_five_per_cent_apart_stop_the_slide(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [stripes(640, 300, 0.5, 0.53)], mpp=(0.5, 0.53))
    with pytest.raises(
        SlideError, match=r"a\.tif.*differs by more than 5 % in x and y \(0\.5 x 0\.53, from TIFF tags\)"
    ):
        check(path)


@pytest.mark.parametrize("tag", [2.9, 0.029])
def test_a_tag_ten_times_off_stops_the_slide_and_the_sheet_mends_it(tmp_path, tag):
    pyramid = PYRAMIDS["0.29"]
    svs = write_svs(tmp_path / "a.svs", pyramid.draw(), mpp=tag, objective=40)
    tif = write_tiff(tmp_path / "a.tif", pyramid.draw(), mpp=(tag, tag), description="scanner|AppMag = 40")
    for path in (svs, tif):
        with pytest.raises(SlideError, match=r"does not fit the objective 40x|outside 0\.05-40.*slides\.tsv"):
            check(path)
        facts = check(path, um_per_px=0.29)
        assert facts.um_per_px == (0.29, 0.29) and facts.um_per_px_source == "sheet"
        assert any("(used)" in warning or "ignored" in warning for warning in facts.warnings), "the conflict is said"
        grid = grids_of(facts)[20]
        assert worst(facts, pyramid, grid) < 0.5


def test_a_tag_ten_times_off_without_an_objective_gives_way_to_no_text_but_is_said(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [stripes(640, 300, 0.29, 0.29)], mpp=(2.9, 2.9), description="MPP = 0.29")
    facts = check(path)
    assert facts.um_per_px == pytest.approx((2.9, 2.9), rel=1e-6)
    assert "TIFF tags says 2.9 (used), text says 0.29" in facts.warnings[0]


@pytest.mark.parametrize(("unit", "per_um"), [("CENTIMETER", 1e4), ("INCH", 25400.0)])
def test_units_of_resolution_tags(tmp_path, unit, per_um):
    for name, tiled in (("tiled.tif", {"tile": (64, 64)}), ("strips.tif", {})):
        tifffile.imwrite(
            tmp_path / name, stripes(200, 90, 0.29, 0.3), photometric="rgb", metadata=None,
            resolution=(per_um / 0.29, per_um / 0.3), resolutionunit=unit, **tiled,
        )  # fmt: skip
        assert check(tmp_path / name).um_per_px == pytest.approx((0.29, 0.3), rel=1e-6)


def test_resolution_tags_without_a_unit(tmp_path):
    """None means that the numbers are no lengths; where the tag is left out the TIFF standard says inch."""
    for name, tiled in (("tiled.tif", {"tile": (64, 64)}), ("strips.tif", {})):
        path = tmp_path / name
        tifffile.imwrite(
            path, stripes(200, 90, 0.29, 0.29), photometric="rgb", metadata=None,
            resolution=(25400 / 0.29, 25400 / 0.29), resolutionunit="NONE", **tiled,
        )  # fmt: skip
        with pytest.raises(SlideError, match="no um per pixel in the file"):
            check(path)
        with tifffile.TiffFile(path) as tiff:
            tag = tiff.pages[0].tags["ResolutionUnit"]
        content = bytearray(path.read_bytes())
        content[tag.offset : tag.offset + 2] = (60000).to_bytes(2, "little")  # a private tag in its place
        path.write_bytes(bytes(content))
        assert check(path).um_per_px == pytest.approx((0.29, 0.29), rel=1e-6)
