"""Tile grids: alignment, parents, exact fractions, refusals; their file; the stage."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from pipeline.batches import run_batch
from pipeline.check import CheckStage
from pipeline.contracts.batches import FAILED, OK, VOID, BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.tiles import read_tiles, write_tiles
from pipeline.contracts.tissue import read_tissue
from pipeline.rasters import Raster, cell_means
from pipeline.slide import open_slide
from pipeline.tiling import TilingParams, TilingStage, allowed_magnifications, lattice, make_grids
from pipeline.tissue import TissueParams, TissueStage
from tests.slide_files import GLASS, TISSUE, image, real_file, write_tiff


@pytest.fixture(params=range(25))
def trial(request):
    """A random slide with random tissue and its grids at 40x, 20x, 10x and 5x."""
    rng = np.random.default_rng(request.param)
    um = tuple(rng.uniform(0.24, 0.262, 2))
    width, height = (int(v) for v in rng.integers(900, 5000, 2))
    x, y = (int(v) for v in rng.integers(0, 200, 2)) if rng.random() < 0.5 else (0, 0)
    bounds = (x, y, width - x, height - y)
    rows, columns = (int(v) for v in rng.integers(20, 90, 2))
    mask = rng.random((rows, columns)) < rng.uniform(0.02, 0.9)
    scale = (width / columns, height / rows)
    params = TilingParams(
        size_px=int(rng.integers(30, 230)),
        magnifications=[5, 40, 10, 20],
        min_tissue=float(rng.uniform(0.1, 0.9)),
        min_inside=float(rng.uniform(0.2, 1)),
    )
    sources = dict.fromkeys(params.magnifications, (0, um))
    grids = make_grids(um, bounds, Raster(mask, scale), sources, params)
    return um, bounds, mask, scale, params, grids


def test_every_kept_tile_has_its_parent(trial):
    *_, grids = trial
    assert list(grids) == [40, 20, 10, 5]
    for finer, coarser in ((40, 20), (20, 10), (10, 5)):
        fine, coarse = grids[finer], grids[coarser]
        assert (coarse.cell[fine.parent] == fine.cell // 2).all()
    assert (grids[5].parent == -1).all()


def test_grids_share_their_origin_and_nothing_is_derived_from_rounded_pixels(trial):
    um, bounds, _, _, params, grids = trial
    for magnification, grid in grids.items():
        pitch = params.size_px * 10 / magnification / np.asarray(um)
        assert (grid.origin == bounds[:2]).all()
        assert np.allclose(grid.pitch, pitch, rtol=1e-12)
        assert np.allclose(grid.pitch, grids[40].pitch * 40 / magnification, rtol=1e-12)
        assert (grid.coords == np.rint(bounds[:2] + grid.cell * pitch)).all()
        assert np.allclose(grid.achieved_um_per_px, 10 / magnification, rtol=1e-12)
        assert grid.um_per_px == 10 / magnification


def test_a_cell_is_kept_if_it_passes_or_holds_a_kept_one_and_not_otherwise(trial):
    *_, params, grids = trial
    below: set[tuple[int, int]] = set()
    for grid in grids.values():
        own = {
            tuple(cell)
            for cell, t, i in zip(grid.cell.tolist(), grid.tissue_fraction, grid.inside_fraction, strict=True)
            if t >= params.min_tissue - 1e-6 and i >= params.min_inside - 1e-6
        }
        kept = set(map(tuple, grid.cell.tolist()))
        assert kept == own | below and len(kept) == len(grid)
        assert grid.cell.tolist() == sorted(grid.cell.tolist(), key=lambda c: (c[1], c[0]))
        below = {(c // 2, r // 2) for c, r in kept}


def brute_fraction(mask, x0, x1, y0, y1):
    """Overlap of a rectangle with the mask's pixels, pixel by pixel."""
    total = 0.0
    for r, c in zip(*np.nonzero(mask), strict=True):
        total += max(0, min(x1, c + 1) - max(x0, c)) * max(0, min(y1, r + 1) - max(y0, r))
    return total / ((x1 - x0) * (y1 - y0))


def test_fractions_are_exact(trial):
    _, bounds, mask, scale, _, grids = trial
    rng = np.random.default_rng()
    for grid in grids.values():
        for index in rng.permutation(len(grid))[:3]:
            x0, y0 = grid.upper_left[index]
            x1, y1 = grid.upper_left[index] + grid.pitch
            want = brute_fraction(mask, x0 / scale[0], x1 / scale[0], y0 / scale[1], y1 / scale[1])
            assert grid.tissue_fraction[index] == pytest.approx(want, abs=1e-6)
            across = max(0, min(x1, bounds[0] + bounds[2]) - x0) * max(0, min(y1, bounds[1] + bounds[3]) - y0)
            assert grid.inside_fraction[index] == pytest.approx(across / (x1 - x0) / (y1 - y0), abs=1e-6)


def test_the_lattice_covers_the_scanned_area_and_no_more(trial):
    um, bounds, _, _, params, _ = trial
    for magnification in params.magnifications:
        cells = lattice(magnification, params.size_px, um, bounds)
        x, y = cells.edges()
        assert x[-2] < bounds[0] + bounds[2] <= x[-1] + 1e-6 and y[-2] < bounds[1] + bounds[3] <= y[-1] + 1e-6
    exact = lattice(20, 200, (0.5, 0.25), (0, 0, 1000, 1200))
    assert (exact.columns, exact.rows, exact.pitch) == (5, 3, (200, 400))


def test_adding_a_magnification_moves_no_grid():
    mask = np.random.default_rng(3).random((50, 60)) < 0.4
    tissue = Raster(mask, (40.0, 41.0))
    few, more = TilingParams(magnifications=[20]), TilingParams(magnifications=[40, 20, 5])
    sources = dict.fromkeys((40, 20, 5), (0, (0.25, 0.25)))
    args = ((0.25, 0.25), (0, 0, 2400, 2050), tissue)
    a = make_grids(*args, {20: sources[20]}, few)[20]
    b = make_grids(*args, sources, more)[20]
    rows = {tuple(cell): row for row, cell in enumerate(b.cell.tolist())}
    index = [rows[tuple(cell)] for cell in a.cell.tolist()]  # all of them, and perhaps parents of 40x tiles
    assert (a.coords == b.coords[index]).all() and (a.tissue_fraction == b.tissue_fraction[index]).all()


def test_cell_means_beyond_the_raster_count_as_nothing():
    values = np.ones((2, 3))
    means = cell_means(values, np.array([-1.0, 1.0, 2.5, 6.5]), np.array([0.5, 4.5]))
    assert means == pytest.approx(np.array([[1.5 / 8, 1.5 * 1.5 / 6, 0.5 * 1.5 / 16]]))


# ---- which magnifications


@pytest.mark.parametrize(
    ("um", "expected"),
    [
        ((0.499, 0.499), [20, 10, 5]),
        ((1.977, 1.977), [5]),
        ((28.969, 28.968), []),
        ((0.25, 0.25), [40, 20, 10, 5]),
        ((0.275, 0.275), [40, 20, 10, 5]),  # exactly 1.1 times coarser
        ((0.2751, 0.27), [20, 10, 5]),
        ((0.27, 0.2751), [20, 10, 5]),
    ],
)
def test_magnifications_finer_than_the_slide_are_refused_with_a_reason(um, expected):
    allowed, refused = allowed_magnifications(um, TilingParams(magnifications=[40, 20, 10, 5]))
    assert allowed == expected and set(allowed) | set(refused) == {40, 20, 10, 5}
    for magnification, reason in refused.items():
        assert f"{magnification}x needs {10 / magnification:g} um/px" in reason and "max_upsampling" in reason


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size_px", 8),
        ("min_tissue", 0),
        ("min_tissue", 1.01),
        ("min_inside", -0.1),
        ("max_upsampling", 0.9),
        ("magnifications", []),
        ("magnifications", [20, 20]),
        ("magnifications", [20, 8]),
        ("magnifications", [40, 20, 15]),
        ("magnifications", [0]),
    ],
)
def test_params_name_the_key(key, value):
    with pytest.raises(InputError, match=rf"config\.yaml tiles\.{key}"):
        TilingParams(**{key: value})


def test_magnifications_may_be_fractions_in_any_order():
    assert TilingParams(magnifications=[2.5, 20.0, 5]).magnifications == (20, 5, 2.5)


# ---- the stage


def through_stages(results, slides, params):
    rows = {s.slide_id: BatchRow(s.slide_id, s.case_id, OK, "sheet") for s in slides}
    for stage in (
        CheckStage({s.slide_id: s for s in slides}, results),
        TissueStage(results, TissueParams()),
        TilingStage(results, params),
    ):
        rows = {row.slide_id: row for row in run_batch(stage, rows, results / f"{stage.name}.tsv")}
    return rows


@pytest.fixture
def slide(tmp_path):
    rgb = image(1200, 900)
    rgb[100:700, 200:1000] = TISSUE
    levels = [rgb, rgb[::2, ::2].copy()]
    return Slide("s", "c", str(write_tiff(tmp_path / "a.tif", levels, mpp=(0.5, 0.51))))


PARAMS = TilingParams(size_px=64, magnifications=[40, 20, 10], min_tissue=0.6)


def test_tiles_of_a_planted_slide(tmp_path, slide):
    row = through_stages(tmp_path / "out", [slide], PARAMS)["s"]
    assert row.status == OK and "40x needs 0.25 um/px" in row.reason
    tiles = read_tiles(tmp_path / "out/tiles/s.h5")
    assert list(tiles.magnifications) == [20, 10] and list(tiles.refused) == [40]
    assert tiles.digest == row.digest and tiles.dimensions == (1200, 900)
    fine, coarse = tiles.magnifications.values()
    assert (fine.source_level, coarse.source_level) == (0, 1)
    assert coarse.source_um_per_px == pytest.approx((1.0, 1.02))
    assert fine.pitch == pytest.approx([64, 64 * 0.5 / 0.51])
    columns, rows = fine.cell.T
    # Tissue spans columns 3.125..15.625 and rows 1.59..11.16 of the 20x lattice; 60 % of the cell must be covered.
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (3, 15, 2, 10)
    assert (coarse.cell[fine.parent] == fine.cell // 2).all()
    assert fine.tissue_fraction.min() >= 0.6
    with open_slide(slide.path) as reader:
        field = reader.read_field(*fine.upper_left[40], fine.um_per_px, fine.size_px)
    assert field.shape == (64, 64, 3) and np.abs(field.astype(int) - TISSUE).max() <= 1


def test_fraction_agrees_with_an_independent_rasteriser(tmp_path, slide):
    through_stages(tmp_path / "out", [slide], PARAMS)
    polygons = read_tissue(tmp_path / "out/tissue/s.geojson").tissue
    import cv2

    mask = np.zeros((900, 1200), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.rint(ring).astype(np.int32) for ring in polygon], 1)
    grid = read_tiles(tmp_path / "out/tiles/s.h5").magnifications[20]
    for corner, fraction in zip(grid.coords, grid.tissue_fraction, strict=True):
        x, y = corner
        assert mask[y : y + 63, x : x + 64].mean() == pytest.approx(fraction, abs=0.03)


def test_same_bytes_again_and_a_skip_verifies(tmp_path, slide):
    through_stages(tmp_path / "out", [slide], PARAMS)
    path = tmp_path / "out/tiles/s.h5"
    want, stamp = path.read_bytes(), path.stat().st_mtime_ns
    through_stages(tmp_path / "out", [slide], PARAMS)
    assert path.stat().st_mtime_ns == stamp
    for damage in (want[: len(want) // 2], b"", b"x" * 99):
        path.write_bytes(damage)
        with pytest.raises(FormatError, match=r"s\.h5"):
            read_tiles(path)
        assert through_stages(tmp_path / "out", [slide], PARAMS)["s"].status == OK
        assert path.read_bytes() == want


def test_changed_thresholds_make_new_tiles(tmp_path, slide):
    first = through_stages(tmp_path / "out", [slide], PARAMS)["s"]
    count = len(read_tiles(tmp_path / "out/tiles/s.h5").magnifications[20])
    other = TilingParams(size_px=64, magnifications=[40, 20, 10], min_tissue=0.95)
    assert through_stages(tmp_path / "out", [slide], other)["s"].digest != first.digest
    assert len(read_tiles(tmp_path / "out/tiles/s.h5").magnifications[20]) < count


def test_void_slides(tmp_path, slide):
    only_fine = TilingParams(size_px=64, magnifications=[40])
    row = through_stages(tmp_path / "out", [slide], only_fine)["s"]
    assert row.status == VOID and "no magnification that the slide allows" in row.reason and "0.25" in row.reason
    assert read_tiles(tmp_path / "out/tiles/s.h5").void == row.reason
    assert through_stages(tmp_path / "out", [slide], only_fine)["s"].reason == row.reason
    huge = TilingParams(size_px=2048, magnifications=[10], min_tissue=1.0)
    row = through_stages(tmp_path / "out", [slide], huge)["s"]
    assert row.status == VOID and "no tile" in row.reason


def test_a_slide_that_fails_leaves_the_others_alone(tmp_path, slide):
    rows = through_stages(tmp_path / "out", [slide, Slide("gone", "c", str(tmp_path / "no.tif"))], PARAMS)
    assert rows["s"].status == OK and rows["gone"].status == FAILED and rows["gone"].stage == "check"


def test_reader_refuses_other_versions_and_wrong_content(tmp_path, slide):
    through_stages(tmp_path / "out", [slide], PARAMS)
    path = tmp_path / "out/tiles/s.h5"
    tiles = read_tiles(path)
    write_tiles(tmp_path / "copy.h5", tiles)
    assert (tmp_path / "copy.h5").read_bytes() == path.read_bytes()

    def damaged(change):
        write_tiles(tmp_path / "bad.h5", tiles)
        with h5py.File(tmp_path / "bad.h5", "r+") as file:
            change(file)
        with pytest.raises(FormatError, match=r"bad\.h5"):
            read_tiles(tmp_path / "bad.h5")

    def shorten(file):
        values = file["20x/parent"][()]
        del file["20x/parent"]
        file["20x/parent"] = values[:-1]

    damaged(lambda file: file.attrs.modify("format_version", 1))
    damaged(lambda file: file["20x/tissue_fraction"].write_direct(np.full(len(tiles.magnifications[20]), np.nan, "f4")))
    damaged(lambda file: file["20x/parent"].write_direct(np.full(len(tiles.magnifications[20]), 10**6)))
    damaged(lambda file: file["10x/parent"].write_direct(np.zeros(len(tiles.magnifications[10]), np.int64)))
    damaged(shorten)
    damaged(lambda file: file.pop("20x"))
    with pytest.raises(FileNotFoundError):
        read_tiles(tmp_path / "none.h5")


def test_tissue_in_two_corners_only(tmp_path):
    """Empty rows and columns between pieces, and cells at the far edges, unequal sides."""
    rgb = image(700, 460, GLASS)
    rgb[:130, :150] = TISSUE
    rgb[-160:, -130:] = TISSUE
    slide = Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [rgb], mpp=(0.5, 0.5))))
    params = TilingParams(size_px=100, magnifications=[20, 5], min_tissue=0.5)
    assert through_stages(tmp_path / "out", [slide], params)["s"].status == OK
    fine, coarse = read_tiles(tmp_path / "out/tiles/s.h5").magnifications.values()
    # 570..700 x 300..460: column 5 by 30 %, column 6 whole; row 3 whole, row 4 by 60 % (and inside by 60 %).
    assert {(0, 0), (6, 3), (6, 4)} <= set(map(tuple, fine.cell.tolist()))
    assert not {(5, 3), (5, 4)} & set(map(tuple, fine.cell.tolist()))
    assert set(map(tuple, coarse.cell.tolist())) == {(0, 0), (1, 0), (1, 1)}
    assert (coarse.cell[fine.parent] == fine.cell // 4).all()


# ---- real files


@pytest.mark.parametrize(
    ("name", "expected"),
    [("CMU-1-Small-Region.svs", [20, 10, 5]), ("C3L-00601-26_5x_pyramid.tif", [5]), ("camelyon_lowres.dcm", [])],
)
def test_real_slides_allow_the_magnifications_of_the_design(tmp_path, name, expected):
    slide = Slide("s", "c", real_file(f"slides/{name}"))
    row = through_stages(tmp_path, [slide], TilingParams(magnifications=[40, 20, 10, 5]))["s"]
    tiles = read_tiles(tmp_path / "tiles/s.h5")
    assert list(tiles.magnifications) == expected
    assert row.status == (OK if expected else VOID)
    assert all(len(grid) for grid in tiles.magnifications.values())


def test_real_fluorescence_never_gets_tiles(tmp_path):
    slide = Slide("s", "c", real_file("slides/test3-DAPI.ndpi"))
    row = through_stages(tmp_path, [slide], TilingParams())["s"]
    assert (row.status, row.stage) == (VOID, "tissue") and row.reason.startswith("not H&E")
    assert not (tmp_path / "tiles").exists()
