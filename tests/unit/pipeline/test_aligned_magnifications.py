"""Whatever the mask, the um/px and the magnifications: one origin, whole families of tiles, one decode for all."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.check import check_slide
from pipeline.contracts.cohort import Slide
from pipeline.contracts.tiles import TileGrid
from pipeline.jpeg_tiles import JpegTilesBackend
from pipeline.tiling import TilingParams
from tests.slide_files import noise, write_tiff
from tests.tile_grids import batches, grids_over

any_case = settings(max_examples=80, deadline=None, database=None)


@st.composite
def dividing_sets(draw: st.DrawFn) -> tuple[float, ...]:
    """One to four magnifications of which each divides the next finer one."""
    found = [draw(st.sampled_from([1.25, 2.5, 5, 7.5, 10]))]
    for ratio in draw(st.lists(st.sampled_from([2, 3, 4, 5, 8]), max_size=3)):
        if found[-1] * ratio <= 60:
            found.append(found[-1] * ratio)
    return tuple(reversed(found))


um_per_px = st.floats(0.2, 0.6).flatmap(lambda x: st.tuples(st.just(x), st.floats(x / 1.05, x * 1.05)))
bounds = st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(20, 1700), st.integers(20, 1300))


def grids_of(mask: np.ndarray, um: tuple[float, float], scanned: tuple[int, int, int, int], params: TilingParams):
    return grids_over(mask, um, scanned, dict.fromkeys(params.magnifications, (0, um)), params)


def random_mask(seed: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random(tuple(rng.integers(1, 60, 2))) < share


def by_cell(grid: TileGrid) -> dict[tuple[int, int], int]:
    return {(int(column), int(row)): at for at, (column, row) in enumerate(grid.cell)}


@any_case
@given(
    dividing_sets(), um_per_px, bounds, st.integers(0, 2**32), st.floats(0, 1), st.floats(0.05, 1), st.floats(0.05, 1),
    st.integers(16, 100),
)  # fmt: skip
@example((40, 20, 10, 5), (0.25, 0.25), (0, 0, 1024, 640), 1, 0.5, 0.5, 0.5, 16)
@example((20, 5), (0.2527, 0.2501), (17, 40, 1200, 1000), 2, 0.3, 0.6, 0.2, 32)
@example((40, 10), (0.31, 0.31), (3, 0, 900, 1300), 3, 0.2, 0.9, 1.0, 24)
def test_every_tile_has_its_parent_on_a_common_lattice(
    magnifications, um, scanned, seed, share, min_tissue, min_inside, size_px
):
    params = TilingParams(size_px, magnifications, min_tissue, min_inside)
    grids = grids_of(random_mask(seed, share), um, scanned, params)
    assert tuple(grids) == tuple(params.magnifications)
    kept_below: set[tuple[int, int]] = set()
    for index, (magnification, grid) in enumerate(grids.items()):
        assert grid.um_per_px == 10 / magnification
        np.testing.assert_array_equal(grid.origin, scanned[:2])
        np.testing.assert_allclose(grid.pitch, size_px * 10 / magnification / np.asarray(um), rtol=1e-15)
        np.testing.assert_allclose(grid.achieved_um_per_px, 10 / magnification, rtol=1e-15)
        np.testing.assert_array_equal(grid.coords, np.rint(np.asarray(scanned[:2]) + grid.cell * grid.pitch))
        cells = [tuple(cell) for cell in grid.cell[:, ::-1].tolist()]
        assert cells == sorted(set(cells)), "each once, row by row"
        passes = (grid.tissue_fraction >= min_tissue - 1e-6) & (grid.inside_fraction >= min_inside - 1e-6)
        kept = set(by_cell(grid))
        assert kept_below <= kept
        assert all(ok or cell in kept_below for ok, cell in zip(passes, by_cell(grid), strict=True))
        if index + 1 == len(grids):
            assert (grid.parent == -1).all()
            continue
        coarser = params.magnifications[index + 1]
        ratio = round(magnification / coarser)
        np.testing.assert_array_equal(grids[coarser].cell[grid.parent], grid.cell // ratio)
        kept_below = {(column // ratio, row // ratio) for column, row in kept}


@any_case
@given(dividing_sets(), st.data(), um_per_px, bounds, st.integers(0, 2**32), st.floats(0, 1))
def test_adding_magnifications_moves_no_grid(magnifications, data, um, scanned, seed, share):
    few = sorted(data.draw(st.sets(st.sampled_from(magnifications), min_size=1)), reverse=True)
    mask = random_mask(seed, share)
    alone = grids_of(mask, um, scanned, TilingParams(48, few))
    among = grids_of(mask, um, scanned, TilingParams(48, magnifications))
    for magnification, grid in alone.items():
        other = among[magnification]
        np.testing.assert_array_equal(grid.origin, other.origin)
        np.testing.assert_array_equal(grid.pitch, other.pitch)
        place = by_cell(other)
        rows = [place[cell] for cell in by_cell(grid)]  # all of them, and parents of tiles now added
        for column in ("cell", "coords", "tissue_fraction", "inside_fraction"):
            np.testing.assert_array_equal(getattr(grid, column), getattr(other, column)[rows])
        added = set(by_cell(other)) - set(by_cell(grid))
        assert added <= parents_of(among, magnification)


def parents_of(grids: dict[float, TileGrid], magnification: float) -> set[tuple[int, int]]:
    """Cells of a magnification that hold a tile of the next finer one."""
    for finer, coarser in pairwise(grids):
        if coarser == magnification:
            return {tuple(cell) for cell in (grids[finer].cell // round(finer / coarser)).tolist()}
    return set()


# ---- one decode for all


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[int, int]]:
    """(level, index) of every tile that is decoded from here on."""
    found: list[tuple[int, int]] = []
    decode = JpegTilesBackend._decode

    def counted(self, level, tiled, index):
        found.append((level, index))
        return decode(self, level, tiled, index)

    monkeypatch.setattr(JpegTilesBackend, "_decode", counted)
    return found


@pytest.mark.parametrize(("um", "readers", "again"), [(0.25, 1, 0), (0.25, 3, 0.2), (0.2527, 1, 0.2), (0.29, 2, 0.2)])
@pytest.mark.parametrize("magnifications", [(40, 20, 10, 5), (20, 5), (40, 10)])
def test_each_stored_tile_is_decoded_once_for_all_magnifications(
    tmp_path, decoded, magnifications, um: float, readers: int, again: float
):
    """Threads may meet at a tile now and then, and a line through a tile's last pixels makes two cells need them."""
    pixels = cv2.GaussianBlur(noise(700, 500, np.random.default_rng()), (0, 0), 2)
    facts = check_slide(Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [pixels], (um, um), compression="jpeg"))))
    params = TilingParams(32, magnifications, min_inside=0.001)
    grids = grids_of(np.ones((3, 4), bool), facts.um_per_px, facts.bounds, params)
    decoded.clear()
    assert sum(len(batch.rows) for batch in batches(facts, grids, readers)) == sum(map(len, grids.values()))
    assert sorted(set(decoded)) == [(0, index) for index in range(11 * 8)]
    assert len(decoded) <= 11 * 8 * (1 + again)
