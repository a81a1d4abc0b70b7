"""Tissue: found by colour, without ink and borders; its file; real slides and fields."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from pipeline.batches import Void, run_batch
from pipeline.check import CheckStage
from pipeline.contracts.batches import OK, VOID, BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.tissue import Tissue, read_tissue, write_tissue
from pipeline.outlines import fill
from pipeline.slide import open_slide
from pipeline.tissue import TissueParams, TissueStage, detect, find_tissue
from tests.slide_files import GLASS, SHARED, TISSUE, half, image, real_file, write_tiff

PARAMS = TissueParams()
GREEN_PEN, BLUE_PEN, RED_PEN, BLACK_PEN = (60, 170, 140), (40, 80, 190), (215, 30, 45), (35, 35, 38)


def section(height=300, width=400, seed=0) -> np.ndarray:
    """Pink tissue with purple nuclei on glass: rows 50-250, columns 60-300; slight noise everywhere."""
    rng = np.random.default_rng(seed)
    rgb = image(width, height).astype(np.int16)
    rgb[50:250, 60:300] = TISSUE
    nuclei = rng.random((height, width)) < 0.1
    nuclei[:50] = nuclei[250:] = nuclei[:, :60] = nuclei[:, 300:] = False
    rgb[nuclei] = (100, 60, 140)
    return np.clip(rgb + rng.integers(-4, 5, rgb.shape), 0, 255).astype(np.uint8)


def overlap(got: np.ndarray, want: np.ndarray) -> float:
    return float((got & want).sum() / (got | want).sum())


def planted() -> np.ndarray:
    mask = np.zeros((300, 400), bool)
    mask[50:250, 60:300] = True
    return mask


def test_planted_tissue_is_found():
    found = detect(section(), 8.0, PARAMS)
    assert overlap(found.tissue, planted()) > 0.97
    assert not found.ink.any() and not found.not_he


@pytest.mark.parametrize("um_per_px", [4.0, 8.0, 16.0])
def test_resolution_hardly_matters(um_per_px):
    rgb = cv2.resize(
        section(1200, 1600)[:300, :400], None, fx=8 / um_per_px, fy=8 / um_per_px, interpolation=cv2.INTER_AREA
    )
    share = detect(rgb, um_per_px, PARAMS).tissue.mean()
    assert share == pytest.approx(planted().mean(), rel=0.03)


@pytest.mark.parametrize("pen", [GREEN_PEN, BLUE_PEN, RED_PEN, BLACK_PEN])
def test_ink_on_glass_is_not_tissue(pen):
    rgb = section()
    cv2.line(rgb, (330, 20), (370, 280), pen, 14)
    found = detect(rgb, 8.0, PARAMS)
    assert overlap(found.tissue, planted()) > 0.97
    stroke = np.all(rgb == pen, axis=2)
    assert found.ink[stroke].all() and found.ink.sum() < 2.5 * stroke.sum()


#: optical density of red, green and blue of markers, as they look on glass at full strength
MARKERS = {
    "blue": (0.95, 0.55, 0.08), "dark blue": (1.1, 0.8, 0.25), "green": (0.75, 0.2, 0.45), "teal": (0.9, 0.25, 0.3),
    "red": (0.03, 0.85, 0.75), "dark red": (0.12, 0.95, 0.85), "orange": (0.02, 0.3, 0.8), "yellow": (0.01, 0.05, 0.8),
    "black": (1.0, 1.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("strength", [0.75, 1.0, 1.3])
@pytest.mark.parametrize("marker", MARKERS)
def test_transparent_ink_is_found_on_glass_and_over_tissue(marker, strength):
    rgb = section(seed=int(strength * 100)).astype(float)
    rows = slice(135, 165)
    rgb[rows] *= 10 ** (-strength * np.array(MARKERS[marker]))
    found = detect(rgb.round().astype(np.uint8), 8.0, PARAMS)
    inner = found.ink[140:160]
    over_tissue, on_glass = inner[:, 70:290], np.delete(inner, np.s_[50:310], axis=1)
    assert on_glass.mean() > 0.97
    if (marker, strength) != ("dark blue", 0.75):  # over tissue that is what dense nuclei look like
        assert over_tissue.mean() > 0.97 and not (found.tissue[140:160]).any()
    assert not found.ink[:120].any() and not found.ink[180:].any() and not found.not_he


@pytest.mark.parametrize("pen", [GREEN_PEN, BLUE_PEN, RED_PEN, BLACK_PEN])
def test_opaque_ink_over_tissue_is_taken_out(pen):
    rgb = section()
    cv2.line(rgb, (0, 150), (399, 150), pen, 20)
    found = detect(rgb, 8.0, PARAMS)
    assert not found.tissue[141:159].any() and found.ink[145:155].all()
    assert overlap(found.tissue, planted() & ~found.ink) > 0.97


def test_dark_border_is_neither_tissue_nor_pen():
    rgb = section()
    rgb[:, :20] = 0
    rgb[-15:] = (8, 2, 7)  # nearly black: its hue is noise
    found = detect(rgb, 8.0, PARAMS)
    assert overlap(found.tissue, planted()) > 0.97 and not found.ink.any()


def test_grey_debris_is_not_tissue():
    rgb = section()
    rgb[100:180, 320:380] = (170, 168, 166)
    assert overlap(detect(rgb, 8.0, PARAMS).tissue, planted()) > 0.97


def test_small_pieces_and_holes_obey_their_areas():
    rgb = section()
    rgb[20:34, 340:354] = TISSUE  # 14 px of 8 um: 0.0125 mm2
    rgb[100:120, 100:120] = GLASS  # 0.0256 mm2
    found = detect(rgb, 8.0, PARAMS).tissue
    assert found[27, 347] and not found[110, 110]
    assert not detect(rgb, 8.0, TissueParams(min_area_mm2=0.02)).tissue[27, 347]
    assert detect(rgb, 8.0, TissueParams(min_hole_mm2=0.03)).tissue[110, 110]
    dropped = detect(rgb, 4.0, PARAMS)  # half the um per pixel: a quarter of the area
    assert not dropped.tissue[27, 347] and dropped.dropped[27, 347] and not dropped.dropped[150, 150]


def test_a_field_full_of_tissue_is_all_tissue_and_glass_is_none():
    full = section()[60:240, 70:290]
    assert detect(full, 0.5, PARAMS).tissue.all()
    assert not detect(image(100, 80), 0.5, PARAMS).tissue.any()
    assert not detect(image(1, 1), 0.5, PARAMS).tissue.any()


def test_threshold_limits_matter():
    rgb = section()
    rgb[50:250, 60:180] = (236, 224, 232)  # faint: density about 0.035
    assert detect(rgb, 8.0, PARAMS).tissue[150, 120] == False  # noqa: E712
    assert detect(rgb, 8.0, TissueParams(min_density=0.02, max_density=0.03)).tissue[150, 120]


def test_fluorescence_is_not_he_unless_accepted():
    rgb = image(300, 200, (0, 0, 5))
    rgb[50:100, 80:200] = (10, 10, 240)
    found = detect(rgb, 8.0, PARAMS)
    assert found.not_he.startswith("not H&E") and not found.tissue.any()
    assert overlap(detect(rgb, 8.0, TissueParams(accept_not_he=True)).tissue, rgb[..., 2] > 100) > 0.9


# ---- not H&E


DAB, HAEMATOXYLIN, EOSIN = np.array([(0.27, 0.57, 0.78), (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)])  # Ruifrok 2001


def stained(rng, positive=0.2, brown=0.6, eosin=0.0, pigment=0.0, blood=0.0, paleness=1.0) -> np.ndarray:
    """A section at 2 um/px: nuclei blue, a share of them brown; stroma, melanin-like pieces and lakes of blood."""
    size = 440
    h, d, e = (np.full((size, size), v, np.float32) for v in (0.06, 0.02 if brown else 0.0, eosin))
    for x, y in rng.integers(0, size, (size * size // 60, 2)):
        is_brown = rng.random() < positive
        cv2.circle(h, (int(x), int(y)), 2, 0.3 if is_brown else 0.45, -1)
        if is_brown:
            cv2.circle(d, (int(x), int(y)), 2, float(brown), -1)
    extra = np.zeros((size, size, 3), np.float32)
    for share, density, radius in ((pigment, (0.45, 0.62, 0.72), 9), (blood, (0.05, 0.55, 0.36), 30)):
        for x, y in rng.integers(100, size - 100, (int(share * size * size / (3.14 * radius**2)), 2)):
            cv2.circle(extra, (int(x), int(y)), radius, density, -1)
    density = h[..., None] * HAEMATOXYLIN + d[..., None] * DAB + e[..., None] * EOSIN + extra
    density[:60] = density[-60:] = 0
    density[:, :60] = density[:, -60:] = 0
    rgb = 243 * 10 ** (-paleness * density) + rng.normal(0, 2, density.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("um_per_px", [2.0, 8.0])
@pytest.mark.parametrize(
    "kind", [{"positive": 0.05}, {"positive": 0.3}, {"positive": 0.95, "brown": 1.0}, {"paleness": 0.6}]
)
def test_immunohistochemistry_is_not_he_unless_accepted(kind, um_per_px):
    rgb = half(stained(np.random.default_rng(), **kind), round(um_per_px / 2)) if um_per_px > 2 else stained(
        np.random.default_rng(), **kind)  # fmt: skip
    if um_per_px > 2:
        rgb = np.tile(rgb, (3, 3, 1))
    found = detect(rgb, um_per_px, PARAMS)
    assert found.not_he.startswith("not H&E") and "brown" in found.not_he and not found.tissue.any()
    forced = detect(rgb, um_per_px, TissueParams(accept_not_he=True))
    assert forced.tissue.mean() > 0.4 and forced.not_he == found.not_he


@pytest.mark.parametrize(
    "kind",
    [
        {"eosin": 0.25},
        {"eosin": 0.1, "paleness": 0.4},
        {"eosin": 0.25, "pigment": 0.15},
        {"eosin": 0.12, "pigment": 0.3},
        {"eosin": 0.25, "blood": 0.4},
        {"eosin": 0.0},
    ],
)
def test_he_stays_he(kind):
    """Also when pale, full of melanin or blood, and with haematoxylin alone, of which there is a remark."""
    rgb = stained(np.random.default_rng(), positive=0, brown=0, **kind)
    found = detect(rgb, 2.0, PARAMS)
    assert not found.not_he and found.tissue.mean() > 0.4
    assert bool(found.doubt) == (kind == {"eosin": 0.0})


def test_pen_does_not_make_it_immunohistochemistry():
    rgb = stained(np.random.default_rng(), positive=0, brown=0, eosin=0.25)
    for marker in MARKERS.values():
        inked = rgb.astype(float)
        inked[150:250] *= 10 ** (-np.array(marker))
        assert not detect(inked.round().astype(np.uint8), 2.0, PARAMS).not_he


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("um_per_px", 0.0),
        ("min_area_mm2", -1),
        ("min_hole_mm2", 1e4),
        ("min_density", 0),
        ("max_density", 0.01),
        ("accept_not_he", "yes"),
        ("annotations", "annotations/"),
        ("annotation_mode", "and"),
        ("annotation_classes", []),
        ("annotation_missing", "skip"),
    ],
)
def test_params_name_the_key(key, value):
    with pytest.raises(InputError, match=rf"config\.yaml tissue\.{key}"):
        TissueParams(**{key: value})


# ---- the file


def some_tissue() -> Tissue:
    ring = np.array([[0.0, 0.0], [10.5, 0.0], [10.5, 7.25], [0.0, 7.25]])
    hole = np.array([[2.0, 2.0], [2.0, 3.5], [4.0, 3.5], [4.0, 2.0]])
    return Tissue(
        slide_id="s",
        tissue=[[ring, hole], [ring + 20]],
        ink=[[ring + 50]],
        dropped=np.array([[12.5, 3.0, 0.004], [1.0, 2.0, 0.0005]]),
        mask_size=(30, 20),
        px_per_mask_px=(3.5, 3.625),
        um_per_px=(8.0, 8.1),
        threshold=0.07,
        tissue_mm2=1.5,
        ink_mm2=0.25,
        source="detected",
        digest="d",
    )


def test_round_trip_and_geojson_shape(tmp_path):
    path = tmp_path / "s.geojson"
    write_tissue(path, some_tissue())
    got = read_tissue(path)
    assert (got.slide_id, got.mask_size, got.px_per_mask_px, got.digest, got.void) == (
        "s",
        (30, 20),
        (3.5, 3.625),
        "d",
        "",
    )
    for mine, theirs in zip(got.tissue + got.ink, some_tissue().tissue + some_tissue().ink, strict=True):
        assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))
    assert (got.dropped == some_tissue().dropped).all() and got.source == "detected"
    body = json.loads(path.read_text())
    assert body["type"] == "FeatureCollection" and len(body["features"]) == 3
    for feature in body["features"]:
        assert feature["geometry"]["type"] == "Polygon"
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])


def test_reader_refuses_damage_and_other_versions(tmp_path):
    path = tmp_path / "s.geojson"
    write_tissue(path, some_tissue())
    text = path.read_text()
    for damage in (text[:-40], "", "[]", '{"a": 1}', text.replace('"format_version":2', '"format_version":1'),
                   text.replace("[10.5,0.0]", "[10.5]"), text.replace('"Ink"', '"Else"')):  # fmt: skip
        path.write_text(damage)
        with pytest.raises(FormatError, match="geojson"):
            read_tissue(path)


# ---- the stage


def through_stages(results, slides, params=PARAMS):
    rows = {s.slide_id: BatchRow(s.slide_id, s.case_id, OK, "sheet") for s in slides}
    for stage in (CheckStage({s.slide_id: s for s in slides}, results), TissueStage(results, params)):
        rows = {row.slide_id: row for row in run_batch(stage, rows, results / f"{stage.name}.tsv")}
    return rows


def test_stage_writes_polygons_in_level_0_pixels(tmp_path):
    big = cv2.resize(section(), (1600, 1200), interpolation=cv2.INTER_NEAREST)
    slide = Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [big], mpp=(2.0, 2.06))))
    assert through_stages(tmp_path / "out", [slide])["s"].status == OK
    tissue = read_tissue(tmp_path / "out/tissue/s.geojson")
    assert len(tissue.tissue) == 1
    (x0, y0), (x1, y1) = tissue.tissue[0][0].min(axis=0), tissue.tissue[0][0].max(axis=0)
    assert (x0, y0, x1, y1) == pytest.approx((240, 200, 1200, 1000), abs=12)
    assert tissue.tissue_mm2 == pytest.approx(960 * 800 * 2.0 * 2.06e-6, rel=0.03)
    width, height = tissue.mask_size
    assert tissue.px_per_mask_px == (1600 / width, 1200 / height)
    assert tissue.um_per_px == pytest.approx((2.0 * 1600 / width, 2.06 * 1200 / height), rel=1e-9)
    mask = fill(tissue.in_mask_px(tissue.tissue), width, height)
    with open_slide(slide.path) as reader:
        assert (mask == find_tissue(reader, "s", PARAMS, "")[2].tissue).all()
    assert cv2.imread(str(tmp_path / "out/tissue/s.png")) is not None


def test_stage_skips_repeats_and_notices_changes(tmp_path):
    slide = Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [section()], mpp=(8.0, 8.0))))
    first = through_stages(tmp_path / "out", [slide])["s"]
    path = tmp_path / "out/tissue/s.geojson"
    want, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert through_stages(tmp_path / "out", [slide])["s"].digest == first.digest
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(want[:100])
    through_stages(tmp_path / "out", [slide])
    assert path.read_bytes() == want
    (tmp_path / "out/tissue/s.png").unlink()
    through_stages(tmp_path / "out", [slide])
    assert (tmp_path / "out/tissue/s.png").exists()
    other = through_stages(tmp_path / "out", [slide], TissueParams(min_area_mm2=0.5))["s"]
    assert other.digest != first.digest and read_tissue(path).digest == other.digest


def test_void_slides_are_recorded_and_not_worked_again(tmp_path, monkeypatch):
    slides = [
        Slide("glass", "c", str(write_tiff(tmp_path / "a.tif", [image(200, 150)], mpp=(8.0, 8.0)))),
        Slide("dark", "c", str(write_tiff(tmp_path / "b.tif", [image(200, 150, (0, 0, 9))], mpp=(8.0, 8.0)))),
    ]
    first = through_stages(tmp_path / "out", slides)
    assert {row.status for row in first.values()} == {VOID}
    assert "no tissue" in first["glass"].reason and "not H&E" in first["dark"].reason
    monkeypatch.setattr("pipeline.tissue.find_tissue", lambda *_: pytest.fail("worked again"))
    again = through_stages(tmp_path / "out", slides)
    assert {k: r.reason for k, r in again.items()} == {k: r.reason for k, r in first.items()}
    with pytest.raises(Void):
        TissueStage(tmp_path / "out", PARAMS).find("glass", read_tissue(tmp_path / "out/tissue/glass.geojson").digest)


# ---- real files


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("CMU-1-Small-Region.svs", 0.28, 0.45),
        ("C3L-00601-26_5x_pyramid.tif", 0.29, 0.34),
        ("camelyon_lowres.dcm", 0.18, 0.25),
    ],
)
def test_real_slides_have_their_share_of_tissue(name, low, high):
    with open_slide(real_file(f"slides/{name}")) as reader:
        tissue, rgb, found = find_tissue(reader, "s", PARAMS, "")
    assert low < found.tissue.mean() < high and not tissue.void and not found.ink.any()
    assert max(rgb.shape) >= 512


def test_real_fluorescence_is_not_he():
    with open_slide(real_file("slides/test3-DAPI.ndpi")) as reader:
        tissue, _, _ = find_tissue(reader, "s", PARAMS, "")
        assert tissue.void.startswith("not H&E")
        accepted, _, _ = find_tissue(reader, "s", TissueParams(accept_not_he=True), "")
        assert accepted.tissue and not accepted.void


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("glioma_TCGA-06-0174_GBM.png", 0.95, 1),
        ("glioma_TCGA-HT-7470_LGG.png", 0.95, 1),
        ("tiatoolbox_target.png", 0.95, 1),
        ("histolab_high_nuclei.png", 0.95, 1),
        ("histolab_medium_nuclei.png", 0.95, 1),
        ("torchstain_source.png", 0.95, 1),
        ("torchstain_target.png", 0.75, 1),
        ("nct_crc_LYM-AATTSRNN.tif", 0.99, 1),
        ("nct_crc_MUS-AACVWIEK.tif", 0.99, 1),
        ("nct_crc_TUM-AACHEHDV.tif", 0.4, 0.8),
        ("nct_crc_BACK-AAQSHYMA.tif", 0, 0),
        ("histoprep_slide_region.jpeg", 0.7, 0.85),
        ("histolab_green_pen_no_tissue.png", 0, 0),
        ("histolab_green_pen.png", 0.2, 0.45),
        ("histolab_red_pen.png", 0.6, 0.8),
    ],
)
def test_real_fields(name, low, high):
    with open_slide(real_file(f"he-patches/{name}"), 0.5) as reader:
        _, _, found = find_tissue(reader, "s", PARAMS, "")
    assert low <= found.tissue.mean() <= high
    assert found.ink.any() == ("_pen" in name)


@pytest.mark.parametrize("name", sorted(p.name for p in SHARED.glob("he-patches/*") if p.suffix != ".md") or ["*.png"])
def test_every_real_field_is_he(name):
    with open_slide(real_file(f"he-patches/{name}"), 0.5) as reader:
        tissue, _, found = find_tissue(reader, "s", PARAMS, "")
    assert not found.not_he and "not H&E" not in tissue.void
