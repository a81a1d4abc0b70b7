"""Quality of tiles: focus falls with blur and nothing else, folds and dark things are found, exclusions are listed."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from pipeline import focus
from pipeline.artefacts import find_dark, find_folds, find_ink
from pipeline.batches import run_batch
from pipeline.check import CheckStage
from pipeline.contracts.batches import OK, VOID, BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import SlideError
from pipeline.contracts.tiles import read_tiles
from pipeline.focus import measure_focus, sharpness
from pipeline.overlays import REASONS, draw_tiles
from pipeline.rasters import Raster
from pipeline.slide import open_slide
from pipeline.tile_quality import QualityMaps, measure_quality
from pipeline.tiling import TilingParams, TilingStage, make_grids
from pipeline.tissue import TissueParams, TissueStage, detect, find_tissue, optical_density, smoothed
from tests.slide_files import GLASS, half, image, real_file, write_tiff


def cells_and_fibres(width: int, height: int, rng: np.random.Generator, um=0.5, contrast=1.0) -> np.ndarray:
    """Pink ground with purple nuclei of 8 um and fine grain: what a sharp tile looks like."""
    rgb = image(width, height, (214, 150, 190)).astype(np.float32)
    for x, y in rng.integers(0, (width, height), (int(width * height * um**2 / 180), 2)):
        colour = tuple(float(v) for v in rng.normal((100, 65, 145), 12))
        cv2.circle(rgb, (int(x), int(y)), max(1, round(3.5 / um + rng.normal(0, 0.6))), colour, -1, cv2.LINE_AA)
    rgb += cv2.GaussianBlur(rng.normal(0, 30, rgb.shape[:2]).astype(np.float32), (0, 0), 0.6 / um)[..., None]
    mean = rgb.mean(axis=(0, 1))
    return np.clip(mean + contrast * (rgb - mean), 0, 255).round().astype(np.uint8)


def focus_of(path, um=None) -> np.ndarray:
    """Sharpness of squares of 112 um, float [rows, columns], those that lie inside the slide."""
    with open_slide(path, um) as reader:
        everywhere = Raster(np.ones((1, 1), bool), (float(reader.dimensions[0]), float(reader.dimensions[1])))
        maps = measure_focus(reader, everywhere)
        edges = [
            np.arange(0, side + 1e-9, 112 / own) for side, own in zip(reader.dimensions, reader.um_per_px, strict=True)
        ]
        return sharpness(maps.detail.means(*edges), maps.structure.means(*edges))


# ---- focus


def test_focus_falls_with_every_step_of_blur(tmp_path):
    rgb = cells_and_fibres(1000, 700, np.random.default_rng())
    values = []
    for sigma_um in (0, 0.5, 1, 1.5, 2, 3, 4):
        blurred = cv2.GaussianBlur(rgb, (0, 0), sigma_um / 0.5) if sigma_um else rgb
        values.append(focus_of(write_tiff(tmp_path / "a.tif", [blurred])))
    medians = [float(np.median(v)) for v in values]
    assert medians == sorted(medians, reverse=True) and all(a > 1.08 * b for a, b in pairwise(medians[:-1]))
    assert values[0].min() > 0.2 and values[2].min() > 0.12 > values[5].max() and values[6].max() < 0.12


@pytest.mark.parametrize("contrast", [0.5, 1.5])
def test_focus_does_not_depend_on_contrast(tmp_path, contrast):
    seed = np.random.default_rng().integers(2**32)
    plain, other = (
        focus_of(write_tiff(tmp_path / "a.tif", [cells_and_fibres(500, 500, np.random.default_rng(seed), contrast=c)]))
        for c in (1.0, contrast)
    )
    assert np.abs(other / plain - 1).max() < 0.12


def test_focus_is_comparable_between_resolutions_and_pyramids(tmp_path):
    """The same field at 0.25 and at 0.5 um/px, with and without a level at 1 um/px."""
    fine = cells_and_fibres(1792, 1344, np.random.default_rng(), um=0.25)
    values = [
        focus_of(write_tiff(tmp_path / "a.tif", levels, mpp=(um, um)))
        for levels, um in (
            ([fine], 0.25),
            ([fine, half(fine, 4)], 0.25),
            ([half(fine)], 0.5),
            ([half(fine), half(fine, 4)], 0.5),
        )
    ]
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=0.02)


def test_featureless_tissue_is_not_called_blurred(tmp_path):
    rng = np.random.default_rng()
    flat = image(600, 500, (210, 140, 185)).astype(np.int16) + rng.integers(-1, 2, (500, 600, 1))
    assert focus_of(write_tiff(tmp_path / "a.tif", [flat.astype(np.uint8)])).min() > 0.5
    assert focus_of(write_tiff(tmp_path / "b.tif", [image(600, 500, (210, 140, 185))])).min() > 0.9


def test_blocks_hardly_matter_and_far_blocks_are_not_read(tmp_path, monkeypatch):
    slide = write_tiff(tmp_path / "a.tif", [cells_and_fibres(1600, 1300, np.random.default_rng())])
    with open_slide(slide) as reader:
        everywhere = Raster(np.ones((1, 1), bool), (1600.0, 1300.0))
        edges = np.arange(0, 1600, 224.0), np.arange(0, 1300, 224.0)
        whole = measure_focus(reader, everywhere)
        monkeypatch.setattr(focus, "BLOCK_PX", 128)
        pieces = measure_focus(reader, everywhere)
        one, many = (sharpness(m.detail.means(*edges), m.structure.means(*edges)) for m in (whole, pieces))
        assert many == pytest.approx(one, rel=0.12)
        corner = np.zeros((13, 16), bool)
        corner[-1, -1] = True
        found = measure_focus(reader, Raster(corner, (100.0, 100.0)))
        detail, structure = found.detail, found.structure
        assert detail.values.shape == whole.detail.values.shape and (detail.values > 0).sum() == 90  # 2 x 2 blocks, cut
        assert ((detail.values > 0) == (structure.values > 0)).all()


def test_cost_is_bounded_and_unread_blocks_take_their_neighbours_values(tmp_path, monkeypatch):
    rng = np.random.default_rng()
    sharp = cells_and_fibres(1600, 800, rng)
    sharp[:, 800:] = cv2.GaussianBlur(sharp, (0, 0), 8)[:, 800:]
    monkeypatch.setattr(focus, "BLOCK_PX", 64)
    slide = write_tiff(tmp_path / "a.tif", [sharp])
    monkeypatch.setattr(focus, "MAX_SOURCE_PX", 1600 * 800 // 3)
    read = []
    measured = focus._measured
    monkeypatch.setattr(focus, "_measured", lambda *args: (read.append(args[-2:]), measured(*args))[1])
    thinned = focus_of(slide)
    assert len(read) == 23  # of 13 x 7 blocks, four source pixels each: every fourth
    assert thinned[:, :3].min() > 0.2 and thinned[:, -2:].max() < 0.12


def test_a_block_that_cannot_be_read_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(focus, "BLOCK_PX", 128)
    slide = write_tiff(tmp_path / "a.tif", [cells_and_fibres(1200, 900, np.random.default_rng())])
    measured = focus._measured

    def damaged(reader, lattice, size, row, column):
        if (row, column) == (1, 2):
            raise SlideError("damaged")
        return measured(reader, lattice, size, row, column)

    monkeypatch.setattr(focus, "_measured", damaged)
    assert focus_of(slide).min() > 0.2
    monkeypatch.setattr(focus, "_measured", lambda *_: (_ for _ in ()).throw(SlideError("all of it")))
    assert (focus_of(slide) == 1).all()


# ---- folds and dark things


def section(rng, um=8.0) -> tuple[np.ndarray, np.ndarray]:
    """Optical density of mottled tissue on glass, 2.4 x 2 mm, and where the tissue is."""
    rows, columns = round(2000 / um), round(2400 / um)
    tissue = np.zeros((rows, columns), bool)
    tissue[rows // 8 : -rows // 8, columns // 8 : -columns // 8] = True
    mottle = cv2.GaussianBlur(rng.normal(0, 1, (rows, columns)).astype(np.float32), (0, 0), 20 / um)
    density = np.array([0.17, 0.38, 0.20]) * (1 + 0.08 * mottle / mottle.std())[..., None]
    density[~tissue] = 0
    return density.astype(np.float32), tissue


@pytest.mark.parametrize("um", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("width_um", [40, 80])
def test_a_ridge_of_doubled_density_is_a_fold(um, width_um):
    rng = np.random.default_rng()
    density, tissue = section(rng, um)
    line = np.zeros(tissue.shape, np.uint8)
    ends = [
        (round(x / um), round(y / um))
        for x, y in ((500, 500 + rng.uniform(0, 300)), (1900, 1500 - rng.uniform(0, 300)))
    ]
    cv2.line(line, *ends, 1, max(1, round(width_um / um)))
    truth = (line > 0) & tissue
    density[truth] *= 2
    found = find_folds(smoothed(density, um), tissue, um)
    assert (found & truth).sum() > 0.7 * truth.sum()
    assert not (found & ~(cv2.dilate(line, np.ones((3, 3)), iterations=round(24 / um)) > 0)).any()


@pytest.mark.parametrize("kind", ["mottled", "round", "another hue", "half as dense", "glass edge", "coarse", "empty"])
def test_what_is_no_fold(kind):
    um = 16.0 if kind == "coarse" else 8.0
    density, tissue = section(np.random.default_rng(), um)
    centre = tissue.shape[1] // 2, tissue.shape[0] // 2
    mark = np.zeros(tissue.shape, np.uint8)
    if kind == "round":
        cv2.circle(mark, centre, round(130 / um), 1, -1)
        density[mark > 0] *= 2.3
    if kind in ("another hue", "half as dense", "coarse"):
        cv2.line(mark, (centre[0] - 60, centre[1]), (centre[0] + 60, centre[1] + 9), 1, 8)
        density[mark > 0] *= {"another hue": (1.0, 2.6, 3.0), "half as dense": 1.4, "coarse": 2.0}[kind]
    if kind == "glass edge":
        density[:, : centre[0]], tissue[:, : centre[0]] = 0, False
    if kind == "empty":
        tissue[:] = False
    assert not find_folds(smoothed(density, um), tissue, um).any()


def test_a_real_fold_is_found_and_dense_epithelium_is_none():
    with open_slide(real_file("he-patches/histolab_red_pen.png"), 1.0) as reader:
        rgb, _ = reader.thumbnail(1.0)
    density = smoothed(optical_density(rgb), 1.0)
    found = find_folds(density, np.ones(rgb.shape[:2], bool), 1.0)
    assert found[245:265, 40:60].all() and 0.05 < found.mean() < 0.12 and not found[:180].any()
    for um in (2.9, 4.0, 8.0):
        with open_slide(real_file("slides/CMU-1-Small-Region.svs")) as reader:
            rgb, _ = reader.thumbnail(um)
        tissue = detect(rgb, um, TissueParams()).tissue
        assert not find_folds(smoothed(optical_density(rgb), um), tissue, um).any()


def test_dark_without_a_hue_is_dark_and_tissue_or_ink_is_not():
    rgb = image(200, 160)
    rgb[:, 120:] = (200, 120, 170)
    rgb[:20] = (25, 25, 27)  # a border
    rgb[60:80, :120] = (110, 108, 106)  # the shadow of a coverslip's edge
    rgb[100:, 150:] = (60, 30, 90)  # dense nuclei
    rgb[100:140, 20:60] = (20, 20, 20)
    density = smoothed(optical_density(rgb), 8.0)
    found = find_dark(density, find_ink(density, 8.0))
    assert found[:17].all() and found[63:77, :110].all()
    assert not found[25:55].any() and not found[85:, 20:110].any() and not found[95:, 125:].any()


# ---- purple ink


def purple_ink_of(path, um=None) -> np.ndarray:
    """Share of squares of 112 um under pen, float [rows, columns], those that lie inside the slide."""
    with open_slide(path, um) as reader:
        tissue, rgb, found = find_tissue(reader, "s", TissueParams(), "d")
        assert not found.ink.any() and found.tissue.any()
        pen = measure_quality(reader, tissue, rgb).pen
        edges = [
            np.arange(0, side + 1e-9, 112 / own) for side, own in zip(reader.dimensions, reader.um_per_px, strict=True)
        ]
        return pen.shares(*edges)


@pytest.mark.parametrize("um", [0.25, 0.5, 2.0])
def test_purple_ink_is_told_from_nuclei_by_having_none(tmp_path, um):
    """A stroke on glass and over the rim of the tissue, as dense as haematoxylin; the nuclei beside it stay tissue."""
    rng = np.random.default_rng()
    rgb = image(2400, 1600, GLASS)
    rgb[:, 1200:] = cells_and_fibres(1200, 1600, rng)
    cv2.line(rgb, (800, -100), (900 + int(rng.integers(200)), 1700), (105, 60, 150), 600)
    rgb = np.clip(rgb + rng.normal(0, 1.5, rgb.shape), 0, 255).astype(np.uint8)
    size = (int(2400 * 0.5 / um), int(1600 * 0.5 / um))
    found = purple_ink_of(
        write_tiff(tmp_path / "a.tif", [cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)], mpp=(um, um))
    )
    assert found[:, 4:5].min() > 0.8 and found[:, 6:].max() < 0.5 and max(found[:, 7:].max(), found[:, 0].max()) < 1e-9


def test_a_real_stroke_in_purple(tmp_path):
    """The texture of a real green stroke on glass, its density turned to purple: found in the same place."""
    with open_slide(real_file("he-patches/histolab_green_pen_no_tissue.png"), 1.0) as reader:
        rgb, _ = reader.thumbnail(1.0)
    green = Raster(find_ink(smoothed(optical_density(rgb), 1.0), 1.0), (1.0, 1.0))
    density = -np.log10(np.maximum(rgb, 1) / 255) * (0.9, 4.0, 1.5)
    path = write_tiff(tmp_path / "a.tif", [np.clip(255 * 10**-density, 0, 255).astype(np.uint8)], mpp=(1.0, 1.0))
    found, truth = purple_ink_of(path), green.shares(np.arange(0, 512, 112), np.arange(0, 512, 112))
    assert np.abs(found - truth).max() < 0.3 and np.abs(found - truth).mean() < 0.06


@pytest.mark.parametrize("name", ["slides/CMU-1-Small-Region.svs", "slides/C3L-00601-26_5x_pyramid.tif"])
def test_real_tissue_is_no_purple_ink(name):
    assert not purple_ink_of(real_file(name)).any()


def test_real_fields_are_no_purple_ink():
    names = ("histolab_high_nuclei.png", "histolab_tcga_lung.png", "nct_crc_LYM-AATTSRNN.tif", "tiatoolbox_target.png")
    for name in names:
        assert not purple_ink_of(real_file(f"he-patches/{name}"), 0.5).any()


def test_plain_eosin_is_no_purple_ink(tmp_path):
    """Colloid, oedema, necrosis: dense and featureless, but without haematoxylin's red density."""
    rgb = image(1200, 1200, (226, 95, 140))
    assert not purple_ink_of(write_tiff(tmp_path / "a.tif", [rgb])).any()


# ---- what tiles become of it


def maps(shape, scale, **values) -> QualityMaps:
    """Perfect everywhere but where told."""
    plain = {"pen": 0.0, "dark": 0.0, "fold": 0.0, "detail": 1.0, "structure": 1.0}
    rasters = {name: np.full(shape, value, np.float32) for name, value in plain.items()} | values
    return QualityMaps(**{name: Raster(raster, scale) for name, raster in rasters.items()})


@pytest.mark.parametrize("seed", range(12))
def test_exclusions_by_thresholds_over_random_masks(seed):
    """Against a plain loop: who is kept, who is listed under which reason, at two magnifications."""
    rng = np.random.default_rng(seed)
    rows, columns, px = 24, 30, 8.0

    def blobs(share):
        noise = cv2.GaussianBlur(rng.normal(size=(rows, columns)), (0, 0), 1.5)
        return noise > np.quantile(noise, 1 - share)

    pen, dark, fold = blobs(0.2), blobs(0.1), blobs(0.2)
    dark &= ~pen
    tissue = blobs(0.7) & ~pen & ~dark
    detail = np.where(blobs(0.3), 0.0, 0.1).astype(np.float32)
    quality = maps((rows, columns), (px, px), pen=pen, dark=dark, fold=fold, detail=detail)
    limits = {"max_pen": 0.2, "max_dark": 0.3, "max_fold": 0.4, "min_focus": 0.25}
    limits |= {name: None for name in limits if rng.random() < 0.25}
    params = TilingParams(size_px=16, magnifications=[40, 20], min_tissue=0.5, min_inside=0.5, **limits)
    sources = dict.fromkeys(params.magnifications, (0, (0.25, 0.25)))
    bounds = (0, 0, int(columns * px), int(rows * px))
    grids = make_grids((0.25, 0.25), bounds, Raster(tissue, (px, px)), sources, params, quality)
    below: set[tuple[int, int]] = set()
    for magnification, side in ((40, 2), (20, 4)):
        grid = grids[magnification]
        kept, excluded = set(below), {}
        for row in range(rows // side):
            for column in range(columns // side if columns % side == 0 else columns // side + 1):
                here = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
                area = side * side
                values = {
                    name: raster[here].sum() / area for name, raster in (("pen", pen), ("dark", dark), ("fold", fold))
                }
                ratio = np.sqrt((detail[here].sum() / area + focus.FLOOR) / (tissue[here].size / area + focus.FLOOR))
                share, inside = tissue[here].sum() / area, tissue[here].size / area
                reasons = [
                    n
                    for n in ("pen", "dark", "fold")
                    if limits[f"max_{n}"] is not None and values[n] > limits[f"max_{n}"]
                ]
                reasons += ["focus"] if limits["min_focus"] is not None and ratio < limits["min_focus"] else []
                if inside < 0.5:
                    continue
                if share >= 0.5 and not reasons:
                    kept.add((column, row))
                elif reasons and share > 0 and share >= 0.5 * (1 - values["pen"] - values["dark"]) - 1e-9:
                    excluded.setdefault(reasons[0], set()).add((column, row))
        assert set(map(tuple, grid.cell.tolist())) == kept
        active = [
            n for n in ("pen", "dark", "fold", "focus") if limits[f"{'min' if n == 'focus' else 'max'}_{n}"] is not None
        ]
        assert list(grid.excluded) == active
        for reason, cells in grid.excluded.items():
            assert cells.dtype == np.int32 and cells.shape == (len(cells), 2)
            assert set(map(tuple, cells.tolist())) == excluded.get(reason, set()) - kept
        assert (grid.parent >= 0).all() == (magnification == 40)
        below = {(c // 2, r // 2) for c, r in kept}


def through_stages(results, slides, params):
    rows = {s.slide_id: BatchRow(s.slide_id, s.case_id, OK, "sheet") for s in slides}
    stages = (
        CheckStage({s.slide_id: s for s in slides}, results),
        TissueStage(results, TissueParams()),
        TilingStage(results, params),
    )
    for stage in stages:
        rows = {row.slide_id: row for row in run_batch(stage, rows, results / f"{stage.name}.tsv")}
    return rows


@pytest.fixture
def slide(tmp_path):
    """1.2 x 0.8 mm: tissue blurred in the right third, a blue pen over its left rim and on glass."""
    rgb = image(2400, 1600, GLASS)
    rgb[200:1400, 400:2200] = cells_and_fibres(1800, 1200, np.random.default_rng(5))
    rgb[:, 1600:] = cv2.GaussianBlur(rgb, (0, 0), 8)[:, 1600:]
    cv2.line(rgb, (380, 100), (480, 1300), (40, 70, 200), 160)
    return Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [rgb, half(rgb, 4)])))


def test_stage_lists_what_it_leaves_out(tmp_path, slide):
    params = TilingParams(size_px=128, magnifications=[20, 10])
    row = through_stages(tmp_path / "out", [slide], params)["s"]
    tiles = read_tiles(tmp_path / "out/tiles/s.h5")
    fine, coarse = tiles.magnifications.values()
    columns = {reason: set(cells[:, 0].tolist()) for reason, cells in fine.excluded.items()}
    assert columns["focus"] and min(columns["focus"]) >= 12 and columns["pen"] and max(columns["pen"]) <= 4
    assert not columns["fold"] and not columns["dark"]
    assert 8 <= fine.cell[:, 0].max() <= 13
    count = sum(map(len, fine.excluded.values()))
    assert f"{count} of {count + len(fine)} tiles at 20x left out (pen " in row.reason and "focus" in row.reason
    assert (coarse.cell[fine.parent] == fine.cell // 2).all()
    assert fine.qc["focus"].min() >= 0.12 and fine.qc["pen"].max() <= 0.2 + 1e-6
    assert set(fine.qc) == {"pen", "dark", "fold", "focus"}

    off = TilingParams(size_px=128, magnifications=[20, 10], max_pen=None, max_dark=None, max_fold=None, min_focus=None)
    row = through_stages(tmp_path / "out", [slide], off)["s"]
    everything = read_tiles(tmp_path / "out/tiles/s.h5").magnifications[20]
    assert not everything.excluded and "left out" not in row.reason.replace("ink left out", "")
    assert set(map(tuple, fine.cell.tolist())) < set(map(tuple, everything.cell.tolist()))


def test_a_slide_that_is_blurred_throughout_says_so(tmp_path):
    rgb = cv2.GaussianBlur(cells_and_fibres(1200, 900, np.random.default_rng()), (0, 0), 9)
    slide = Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [rgb])))
    row = through_stages(tmp_path / "out", [slide], TilingParams(size_px=128, magnifications=[20, 10]))["s"]
    assert row.status == VOID and "tiles at 20x left out (focus" in row.reason
    assert (tmp_path / "out/tiles/s.png").exists()


def test_the_picture_shows_reasons_in_their_colours_and_is_made_again(tmp_path, slide):
    params = TilingParams(size_px=128, magnifications=[20, 10])
    through_stages(tmp_path / "out", [slide], params)
    picture = cv2.imread(str(tmp_path / "out/tiles/s.png"))[..., ::-1]
    assert picture.shape[1] == 512 and picture.shape[0] > 341
    legend = picture[341:]
    for reason in ("pen", "focus"):
        assert (legend == REASONS[reason]).all(axis=2).any()
    assert not (legend == REASONS["fold"]).all(axis=2).any()
    grid = read_tiles(tmp_path / "out/tiles/s.h5").magnifications[20]
    plain = draw_tiles(np.full((320, 480, 3), 200, np.uint8), (2400, 1600), {20: grid})
    for reason, cells in grid.excluded.items():
        for column, row in cells:
            x, y = (grid.origin + (np.array([column, row]) + 0.5) * grid.pitch) / 5
            colour = 0.45 * np.array(REASONS[reason]) + 0.55 * 200
            assert np.abs(plain[int(y), int(x)] - colour).max() <= 1
    bytes_before = (tmp_path / "out/tiles/s.h5").read_bytes()
    (tmp_path / "out/tiles/s.png").unlink()
    through_stages(tmp_path / "out", [slide], params)
    assert (tmp_path / "out/tiles/s.png").exists() and (tmp_path / "out/tiles/s.h5").read_bytes() == bytes_before


@pytest.mark.parametrize(
    ("um", "name"), [(None, "slides/CMU-1-Small-Region.svs"), (0.5, "he-patches/histoprep_slide_region.jpeg")]
)
def test_good_real_tissue_is_not_left_out(tmp_path, um, name):
    slide = Slide("s", "c", real_file(name), um_per_px=um)
    row = through_stages(tmp_path, [slide], TilingParams())["s"]
    grid = read_tiles(tmp_path / "tiles/s.h5").magnifications[20]
    assert "left out" not in row.reason and sum(map(len, grid.excluded.values())) == 0
    assert grid.qc["focus"].min() > 0.3
