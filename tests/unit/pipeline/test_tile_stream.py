"""One decode for all magnifications: every tile as if its magnification had been read alone, every cell read once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.check import check_slide
from pipeline.contracts.cohort import Slide
from pipeline.contracts.stains import colours_from
from pipeline.contracts.tiles import TileGrid
from pipeline.rasters import Raster
from pipeline.shared_cells import SharedCells, groups
from pipeline.slide import SlideReader, open_checked
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer
from pipeline.tile_stream import Reading, TileReader
from pipeline.tiling import TilingParams, make_grids
from tests.slide_files import noise, write_tiff

SIZE_PX = 32
PLAIN = StainTransfer(None, BUILTIN_TARGET)


@pytest.fixture
def rng():
    return np.random.default_rng()


def slide_and_grids(tmp_path, rng, um_per_px, magnifications=(40, 20, 10, 5)):
    """A slide of noise and aligned grids over a random mask, some cells sticking out of the slide."""
    path = write_tiff(tmp_path / "a.tif", [noise(710, 530, rng)], mpp=(um_per_px, um_per_px * 1.01))
    facts = check_slide(Slide("s", "c", str(path)))
    mask = np.kron(rng.random((9, 12)) < 0.25, np.ones((4, 4))) > 0
    scale = facts.dimensions[0] / mask.shape[1], facts.dimensions[1] / mask.shape[0]
    params = TilingParams(SIZE_PX, magnifications, min_tissue=0.3, min_inside=0.2, max_upsampling=2)
    sources = dict.fromkeys(params.magnifications, (0, facts.um_per_px))
    return facts, make_grids(facts.um_per_px, facts.bounds, Raster(mask, scale), sources, params)


def read(facts, transfer, grids, batch_size=5, **settings) -> dict[float, list]:
    found: dict[float, list] = {m: [] for m in grids}
    with TileReader(batch_size=batch_size, **settings) as reader:
        events = [event for _, event in reader.batches([Reading(facts, transfer, [grids])])]
    assert events.pop() is None
    for batch in events:
        found[batch.magnification].append(batch)
    return found


def stains() -> StainTransfer:
    matrix = np.array([[0.65, 0.70, 0.29], [0.2, 0.9, 0.3]])
    matrix /= np.sqrt((matrix**2).sum(axis=1, keepdims=True))
    return StainTransfer(colours_from(matrix, np.array([1.4, 0.9]), np.full(3, 245.0)), BUILTIN_TARGET)


@pytest.mark.parametrize("um_per_px", [0.25, 0.2527, 0.29])
@pytest.mark.parametrize("transfer", [PLAIN, stains()])
def test_other_magnifications_move_nothing(tmp_path, rng, um_per_px, transfer):
    facts, grids = slide_and_grids(tmp_path, rng, um_per_px)
    together = read(facts, transfer, grids, readers=2)
    for magnification, grid in grids.items():
        alone = read(facts, transfer, {magnification: grid})[magnification]
        assert [len(b.rows) for b in alone] == [len(b.rows) for b in together[magnification]]
        for one, other in zip(alone, together[magnification], strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.pixels, other.pixels)
        rows = np.concatenate([b.rows for b in together[magnification]])
        np.testing.assert_array_equal(rows, np.arange(len(grid)))
        pixels = np.concatenate([b.pixels for b in together[magnification]])
        with open_checked(facts) as slide:
            for row in range(0, len(grid), 3) if transfer is PLAIN else ():
                field = slide.read_field(*map(float, grid.upper_left[row]), grid.um_per_px, SIZE_PX)
                assert np.abs(field.astype(int) - pixels[row]).max() <= 1


def test_each_cell_is_read_once(tmp_path, rng, monkeypatch):
    facts, grids = slide_and_grids(tmp_path, rng, 0.25)
    regions = []
    one = SlideReader.read
    monkeypatch.setattr(SlideReader, "read", lambda self, *args: (regions.append(args), one(self, *args))[1])
    read(facts, PLAIN, grids)
    assert len(regions) == len(set(regions)) == 64 * len(grids[5]), "the coarsest tiles' own pixels, each once"


def cells_of(cells: list, **changes) -> TileGrid:
    pitch = changes.pop("pitch", 8.0)
    base = TileGrid(
        cell=np.array(cells, np.int32).reshape(-1, 2), coords=np.zeros((len(cells), 2), np.int64), origin=np.zeros(2),
        pitch=np.full(2, pitch), size_px=16, um_per_px=0.5, achieved_um_per_px=(0.5, 0.5), source_level=0,
        source_um_per_px=(0.5, 0.5), tissue_fraction=np.ones(len(cells)), inside_fraction=np.ones(len(cells)),
        parent=np.full(len(cells), -1),
    )  # fmt: skip
    return replace(base, **changes)


def test_cells_of_no_finer_tile_are_read_for_the_coarser():
    shared = SharedCells([cells_of([(2, 1), (0, 3)]), cells_of([(1, 0), (0, 1)], pitch=16.0)])
    np.testing.assert_array_equal(shared.cell, [(2, 0), (3, 0), (2, 1), (3, 1), (0, 2), (1, 2), (0, 3), (1, 3)])
    np.testing.assert_array_equal(shared.rows[0], [-1, -1, 0, -1, -1, -1, 1, -1])
    np.testing.assert_array_equal(shared.rows[1], [0, 0, 0, 0, 1, 1, 1, 1])
    assert shared.ratios == [1, 2]


def test_grids_are_read_together_where_their_pixels_are_the_same():
    a, b = cells_of([(0, 0)]), cells_of([(0, 0)], pitch=16.0)
    assert [list(g) for g in groups({20: a, 10: b})] == [[20, 10]]
    assert [list(g) for g in groups({20: a, 10: replace(b, source_level=1), 5: replace(b, source_level=1)})] == [
        [20],
        [10, 5],
    ]
    assert [list(g) for g in groups({20: replace(a, size_px=15), 10: replace(b, size_px=15)})] == [[20], [10]]
    assert groups({}) == []
