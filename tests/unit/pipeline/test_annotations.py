"""The user's own outlines: every shape that QuPath exports, bad files, and what the tissue stage makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.annotations import annotated
from pipeline.batches import run_batch
from pipeline.check import CheckStage
from pipeline.contracts.annotations import read_annotations
from pipeline.contracts.batches import FAILED, OK, VOID, BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import SlideError
from pipeline.contracts.tissue import read_tissue
from pipeline.outlines import fill, trace, without_diagonals
from pipeline.slide import open_slide
from pipeline.tissue import TissueParams, TissueStage, find_tissue
from tests.slide_files import TISSUE, image, write_tiff

SQUARE = [[10, 20], [110, 20], [110, 90], [10, 90], [10, 20]]
HOLE = [[30, 40], [30, 60], [60, 60], [60, 40], [30, 40]]
OTHER = [[200, 100], [260, 100], [230, 150], [200, 100]]


def feature(geometry, name=None, kind="annotation"):
    properties = {"objectType": kind} | ({"classification": {"name": name, "color": [1, 2, 3]}} if name else {})
    return {"type": "Feature", "id": "7c-1", "geometry": geometry, "properties": properties}


POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
TRIANGLE = {"type": "Polygon", "coordinates": [OTHER]}
BOTH = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [OTHER]]}


def write(path, body):
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


@pytest.mark.parametrize(
    "body",
    [
        {"type": "FeatureCollection", "features": [feature(POLYGON, "Tumor"), feature(TRIANGLE, "Tumor")]},
        [feature(POLYGON, "Tumor"), feature(TRIANGLE, "Tumor")],
        feature(BOTH, "Tumor"),
        [feature({"type": "GeometryCollection", "geometries": [POLYGON, TRIANGLE]}, "Tumor")],
        {"type": "GeometryCollection", "geometries": [POLYGON, TRIANGLE]},
        BOTH,
        [POLYGON, {"type": "FeatureCollection", "features": [feature(TRIANGLE)]}],
        [feature({"type": "Point", "coordinates": [1, 2]}), feature(POLYGON, kind="cell"), feature(BOTH)],
    ],
)  # fmt: skip
def test_all_shapes_of_geojson_give_the_same_mask(tmp_path, body):
    path = write(tmp_path / "a.geojson", body)
    outlines = read_annotations(path)
    assert [len(o.rings) for o in outlines] == [2, 1] and all(len(r) in (3, 4) for o in outlines for r in o.rings)
    mask, remark = annotated(path, None, (300, 200), (300, 200))
    want = np.zeros((200, 300), bool)
    want[20:90, 10:110] = True
    want[40:60, 30:60] = False
    assert (mask[:, :150] == want[:, :150]).all() and mask[105, 230] and not mask[145, 205]
    assert mask[:, 150:].sum() == pytest.approx(60 * 50 / 2, abs=30) and not remark


def test_classes_choose_and_absent_ones_are_said(tmp_path):
    path = write(tmp_path / "a.geojson", [feature(POLYGON, "Tumor"), feature(TRIANGLE, "Stroma")])
    tumour, remark = annotated(path, ["Tumor"], (300, 200), (300, 200))
    assert tumour[:, :150].any() and not tumour[:, 150:].any() and not remark
    none, remark = annotated(path, ["Tumour"], (300, 200), (300, 200))
    assert (
        not none.any() and "no outline of class Tumour; did you mean 'Tumor'?; its classes are Stroma, Tumor" in remark
    )
    some, remark = annotated(path, ["Stroma", "Necrosis", "Fat"], (300, 200), (300, 200))
    assert some.any() and "no outline of class Necrosis, Fat" in remark
    names = {"type": "Feature", "geometry": POLYGON, "properties": {"classification": {"names": ["Tumor", "Positive"]}}}
    assert read_annotations(write(path, names))[0].name == "Tumor: Positive"


def test_overlapping_outlines_and_those_across_the_edge(tmp_path):
    across = {"type": "Polygon", "coordinates": [[[-50, -50], [60, -50], [60, 60], [-50, 60]]]}  # not closed either
    path = write(tmp_path / "a.geojson", [feature(across), feature(POLYGON)])
    mask, _ = annotated(path, None, (300, 200), (150, 50))  # pixels of 2 x 4
    want = np.zeros((200, 300), bool)
    want[20:90, 10:110] = True
    want[40:60, 30:60] = False
    want[:60, :60] = True
    centres = want[2::4, 1::2]
    assert mask.shape == (50, 150) and (mask == centres).mean() > 0.995


@pytest.mark.parametrize("trial", range(10))
def test_random_masks_come_back_as_they_went(tmp_path, trial):
    """Our own GeoJSON, which a user may edit and give back, describes exactly the mask that it was traced from."""
    rng = np.random.default_rng()
    mask = without_diagonals(rng.random((int(rng.integers(1, 60)), int(rng.integers(1, 60)))) < rng.uniform(0, 1))
    scale = rng.uniform(1, 9, 2)
    rings = [[(r * scale).tolist() for r in polygon] for polygon in trace(mask)]
    body = [feature({"type": "Polygon", "coordinates": [[*r, r[0]] for r in polygon]}, "Tissue") for polygon in rings]
    size = (mask.shape[1], mask.shape[0])
    got, _ = annotated(write(tmp_path / "a.geojson", body), ["Tissue"] if body else None, tuple(scale * size), size)
    assert (got == mask).all()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", "not readable as JSON"),
        ('{"type": "FeatureCollection", "features": [', "not readable as JSON"),
        ([feature(POLYGON), {"a": 1}], "feature 2: neither a GeoJSON feature nor a geometry"),
        ([3], "feature 1: neither"),
        ([feature({"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [1, 2]]]})], "feature 1: a ring has 2 corners"),
        ([feature({"type": "Polygon", "coordinates": [[[1, 2], [3, None], [5, 6]]]})], "feature 1"),
        ([feature({"type": "Polygon", "coordinates": [[[1, 2], [3, float("nan")], [5, 6]]]})], "finite x, y"),
        ([feature({"type": "Polygon", "coordinates": 7})], "feature 1"),
        ([feature({"type": "Polygon"})], "member 'coordinates' is missing"),
        ([feature({"type": "Circle", "coordinates": []})], "unknown geometry 'Circle'"),
        ([{"type": "Feature", "properties": {}}], "member 'geometry' is missing"),
    ],
)
def test_bad_files_are_refused_by_feature(tmp_path, body, expected):
    path = write(tmp_path / "bad.geojson", body)
    with pytest.raises(SlideError, match=r"bad\.geojson") as caught:
        read_annotations(path)
    assert expected in str(caught.value) and "Fix: " in str(caught.value)


def test_outlines_of_another_slide_are_refused(tmp_path):
    path = write(tmp_path / "a.geojson", [feature(POLYGON), feature(TRIANGLE)])
    with pytest.raises(SlideError, match=r"feature 2: lies at x 200 to 260.*beyond the slide of 150 x 120 pixels"):
        annotated(path, None, (150, 120), (15, 12))


# ---- the stage


def through_tissue(results, slide, params):
    rows = {"s": BatchRow("s", "c", OK, "sheet")}
    for stage in (CheckStage({"s": slide}, results), TissueStage(results, params)):
        rows = {row.slide_id: row for row in run_batch(stage, rows, results / f"{stage.name}.tsv")}
    return rows["s"]


@pytest.fixture
def slide(tmp_path):
    rgb = image(500, 400)
    rgb[100:300, 50:350] = TISSUE
    return Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [rgb], mpp=(8.0, 8.0))))


def outline(tmp_path, corners, name="Tumor"):
    ring = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    return write(tmp_path / "s.geojson", {"type": "FeatureCollection", "features": [feature(ring, name)]})


def mask_of(tmp_path):
    tissue = read_tissue(tmp_path / "out/tissue/s.geojson")
    return fill(tissue.in_mask_px(tissue.tissue), *tissue.mask_size), tissue


def test_restrict_and_replace(tmp_path, slide):
    outline(tmp_path, [[200, 50], [450, 50], [450, 200], [200, 200]])
    pattern = str(tmp_path / "{slide_id}.geojson")
    assert through_tissue(tmp_path / "out", slide, TissueParams(annotations=pattern)).status == OK
    mask, tissue = mask_of(tmp_path)
    want = np.zeros((400, 500), bool)
    want[100:200, 200:350] = True
    height, width = mask.shape
    want = want[:: 400 // height, :: 500 // width] if height != 400 else want
    assert (mask & want).sum() / (mask | want).sum() > 0.97 and tissue.source.endswith("s.geojson (restrict)")
    assert tissue.tissue_mm2 == pytest.approx(100 * 150 * 64e-6, rel=0.03)
    replaced = TissueParams(annotations=pattern, annotation_mode="replace", annotation_classes=["Tumor"])
    assert through_tissue(tmp_path / "out", slide, replaced).status == OK
    _, tissue = mask_of(tmp_path)
    assert tissue.tissue_mm2 == pytest.approx(250 * 150 * 64e-6, rel=1e-6)


def test_an_edited_file_is_noticed_and_an_equal_one_is_not(tmp_path, slide, monkeypatch):
    outline(tmp_path, [[60, 110], [200, 110], [200, 200], [60, 200]])
    params = TissueParams(annotations=str(tmp_path / "{slide_id}.geojson"))
    first = through_tissue(tmp_path / "out", slide, params)
    outline(tmp_path, [[60, 110], [240, 110], [240, 200], [60, 200]])
    second = through_tissue(tmp_path / "out", slide, params)
    assert second.digest != first.digest
    outline(tmp_path, [[60, 110], [240, 110], [240, 200], [60, 200]])
    monkeypatch.setattr("pipeline.tissue.find_tissue", lambda *_: pytest.fail("worked again"))
    assert through_tissue(tmp_path / "out", slide, params).digest == second.digest


def test_a_slide_without_a_file(tmp_path, slide):
    pattern = str(tmp_path / "none/{slide_id}.geojson")
    row = through_tissue(tmp_path / "out", slide, TissueParams(annotations=pattern))
    assert row.status == FAILED and "none/s.geojson: no annotations for this slide" in row.reason
    assert "annotation_missing: detect" in row.reason
    row = through_tissue(tmp_path / "out", slide, TissueParams(annotations=pattern, annotation_missing="detect"))
    assert row.status == OK and "no annotations for this slide: all detected tissue is used" in row.reason
    assert mask_of(tmp_path)[1].tissue_mm2 == pytest.approx(300 * 200 * 64e-6, rel=0.03)


def test_no_tissue_inside_and_no_such_class_are_said(tmp_path, slide):
    outline(tmp_path, [[400, 320], [480, 320], [480, 380], [400, 380]])
    params = TissueParams(annotations=str(tmp_path / "{slide_id}.geojson"))
    row = through_tissue(tmp_path / "out", slide, params)
    assert row.status == VOID and "no tissue inside the outlines" in row.reason
    wrong = TissueParams(annotations=params.annotations, annotation_classes=["Tumour"])
    row = through_tissue(tmp_path / "out", slide, wrong)
    assert row.status == VOID and "no outline of class Tumour; did you mean 'Tumor'?" in row.reason
    write(tmp_path / "s.geojson", "{")
    row = through_tissue(tmp_path / "out", slide, params)
    assert row.status == FAILED and "not readable as JSON" in row.reason


def test_outlines_do_not_overrule_what_is_not_he(tmp_path):
    slide = Slide("s", "c", str(write_tiff(tmp_path / "a.tif", [image(300, 200, (0, 0, 9))], mpp=(8.0, 8.0))))
    outline(tmp_path, [[60, 50], [200, 50], [200, 150], [60, 150]])
    params = TissueParams(annotations=str(tmp_path / "{slide_id}.geojson"), annotation_mode="replace")
    row = through_tissue(tmp_path / "out", slide, params)
    assert row.status == VOID and row.reason.startswith("not H&E")


def test_dropped_pieces_are_listed_with_place_and_area(tmp_path):
    rgb = image(600, 400)
    rgb[100:300, 50:350] = TISSUE
    rgb[350:358, 500:510] = TISSUE  # 80 pixels of 8 um: 0.005 mm2
    rgb[20:24, 400:404] = TISSUE
    path = write_tiff(tmp_path / "a.tif", [rgb], mpp=(8.0, 8.0))
    with open_slide(path) as reader:
        tissue, _, _ = find_tissue(reader, "s", TissueParams(), "")
    assert len(tissue.tissue) == 1 and len(tissue.dropped) == 2
    (x, y, area), (x2, y2, area2) = tissue.dropped
    assert (x, y) == pytest.approx((505, 354), abs=1.5) and area == pytest.approx(0.005, rel=0.5) and area > area2
    assert (x2, y2) == pytest.approx((402, 22), abs=1.5)
    slide = Slide("s", "c", str(write_tiff(tmp_path / "b.tif", [rgb[330:]], mpp=(8.0, 8.0))))
    row = through_tissue(tmp_path / "out", slide, TissueParams())
    assert row.status == VOID and "1 smaller ones, the largest of 0.00" in row.reason
    body = json.loads((tmp_path / "out/tissue/s.geojson").read_text())
    assert len(body["histoweave"]["dropped"]) == 1 and not body["features"]
