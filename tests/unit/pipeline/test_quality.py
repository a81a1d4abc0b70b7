"""A page per slide and their list: the figures and pictures are the artefacts', and nothing is fetched to show them."""

import base64
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.batches import run_batch
from pipeline.contracts import layout
from pipeline.contracts.batches import EXCLUDED, FAILED, OK, VOID, BatchRow, read_batch, write_batch
from pipeline.contracts.quality import read_quality
from pipeline.contracts.tiles import read_tiles
from pipeline.contracts.timings import SlideTimings, write_timings
from pipeline.contracts.tissue import Tissue, write_tissue
from pipeline.report import slide_page
from pipeline.report.quality import QualityStage, read_stages, to_describe, write_slide_list
from pipeline.report.slide_pictures import SAMPLES, cell_layer, sampled_rows
from pipeline.stain import StainParams
from tests.unit.pipeline.embedding_cohort import make_cohort, stub_stage

STAGES = ("check", "tissue", "tiles", "stain")


@pytest.fixture
def results(tmp_path):
    """Slides s0 and s1 embedded, s2 lost at the check, s3 excluded, s4 without tissue."""
    make_cohort(tmp_path, slides=2, columns=9, rows=5, stain="vahadane")
    lost = [
        BatchRow("s2", "c2", FAILED, "check", "<b>torn</b>"), BatchRow("s3", "c3", EXCLUDED, "cohort", "blurred"),
        BatchRow("s4", "c4", VOID, "tissue", "no tissue"),
    ]  # fmt: skip
    for stage in STAGES:
        rows = [BatchRow(f"s{i}", f"c{i}", OK, stage, digest=f"{stage}-s{i}", seconds=1.5) for i in (0, 1)]
        if stage == "check":
            early = [*lost[:2], BatchRow("s4", "c4", OK, "check", digest="check-s4")]
        write_batch(layout.batch_index(tmp_path, stage, "b"), [*rows, *(early if stage == "check" else lost)])
    for slide_id in ("s0", "s1", "s4"):
        size = read_tiles(layout.tiles(tmp_path, "s0")).dimensions
        void = "no tissue" if slide_id == "s4" else ""
        square = [np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], float)]
        shape = Tissue(
            slide_id, [] if void else [square], [], np.empty((0, 3)), size, (1, 1), (0.4, 0.4), 0.1, 2.5, 0.0,
            "detected", "d", void=void,
        )  # fmt: skip
        write_tissue(layout.tissue_shape(tmp_path, slide_id), shape)
        cv2.imwrite(layout.tissue_overlay(tmp_path, slide_id), np.full((size[1], size[0], 3), 200, np.uint8))
    upstream = {f"s{i}": BatchRow(f"s{i}", f"c{i}", OK, "stain", digest=f"stain-s{i}") for i in (0, 1)}
    run_batch(
        stub_stage(tmp_path, "vahadane"),
        {**upstream, **{row.slide_id: row for row in lost}},
        index(tmp_path, "features/tiny"),
    )
    write_timings(
        layout.slide_timings(tmp_path, "tiny", "s0"), SlideTimings("s0", "tiny", 1.0, 0.5, 2.0, 0.5, 2.5, 50, "cpu")
    )
    return tmp_path


def index(results, stage):
    return layout.batch_index(results, stage, "b")


def describe(results, **more):
    slides = read_stages({stage: index(results, stage) for stage in (*STAGES, "features/tiny")})
    stage = QualityStage(results, slides, ["tiny"], StainParams(method="vahadane"), **more)
    run_batch(stage, to_describe(slides), index(results, "quality"))
    return read_batch(index(results, "quality"))


def page(results, slide_id):
    return Path(layout.slide_page(results, slide_id)).read_text()


def pictures(html, kind):
    codes = re.findall(rf'src="data:image/{kind};base64,([^"]+)"', html)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(c), np.uint8), cv2.IMREAD_UNCHANGED) for c in codes]


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.S))


def test_a_page_shows_the_slide_its_tiles_its_stain_and_its_time(results):
    rows = describe(results)
    assert {i: row.status for i, row in rows.items()} == {"s0": OK, "s1": OK, "s2": OK, "s3": EXCLUDED, "s4": OK}
    html = page(results, "s0")
    tiles = read_tiles(layout.tiles(results, "s0"))
    jpegs, layers = pictures(html, "jpeg"), pictures(html, "png")
    assert len(jpegs) == 1 + 2 * SAMPLES, "the overview, and each sampled tile before and after"
    assert len(layers) == 2 and all(layer.shape[2] == 4 for layer in layers)
    text = text_of(html)
    told = (
        f"20x tiles {len(tiles.magnifications[20])}", "0.4 x 0.4, from sheet", "vahadane, fitted at 0.5",
        "tiny on cpu: 50 tiles in 2.5 s, 20 tiles/s", "encode 2.00 s", "2.50 mm2 in 1 piece",
    )  # fmt: skip
    for expected in told:
        assert expected in text, expected
    assert "flex-basis:50.0%" in html, "two of four seconds are the encoder's"
    assert not re.search(r"""(?:src|href)=["'](?!data:|#|\.\./(?:report|quality)\.html)""", html), "it opens offline"
    assert "<script" not in html


def test_sampled_tiles_are_those_of_the_slide(results):
    """The first sample, decoded, is the pixels of its cell in the file; its partner is not."""
    from PIL import Image

    describe(results)
    before, after = pictures(page(results, "s0"), "jpeg")[1:3]
    grid = read_tiles(layout.tiles(results, "s0")).magnifications[20]
    row = sampled_rows(grid, "s0")[0]
    x, y = grid.upper_left[row]
    pixels = np.asarray(Image.open(results / "s0.png"))[
        round(y) : round(y + grid.pitch[1]), round(x) : round(x + grid.pitch[0])
    ]
    mean = pixels.reshape(-1, 3).mean(axis=0)
    assert np.abs(before[..., ::-1].reshape(-1, 3).mean(axis=0) - mean).max() < 6, "JPEG of noise"
    assert np.abs(after[..., ::-1].reshape(-1, 3).mean(axis=0) - mean).max() > 6
    caption = f"{grid.cell[row][0]}, {grid.cell[row][1]}"
    assert caption in page(results, "s0")


def test_the_sample_depends_on_the_slide_alone(results):
    grid = read_tiles(layout.tiles(results, "s0")).magnifications[20]
    rows = sampled_rows(grid, "s0")
    assert len(set(rows.tolist())) == SAMPLES and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sampled_rows(grid, "s0"))
    assert rows.tolist() != sampled_rows(grid, "s1").tolist()
    few = replace(grid, cell=grid.cell[:3])
    assert sampled_rows(few, "s0").tolist() == [0, 1, 2]


@pytest.mark.parametrize("width", [300, 37])
def test_a_layer_covers_its_cells_and_nothing_else(results, width):
    """Unequal sides; at 37 px a cell is a few pixels wide and has no outline."""
    tiles = read_tiles(layout.tiles(results, "s0"))
    grid = tiles.magnifications[20]
    size = (width, round(width * tiles.dimensions[1] / tiles.dimensions[0]))
    shown = cell_layer(grid.cell, grid, tiles.dimensions, size, (10, 20, 30))
    layer = cv2.imdecode(np.frombuffer(base64.b64decode(shown.uri.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert layer.shape[:2] == size[::-1]
    kept = {tuple(cell) for cell in grid.cell.tolist()}
    scale = np.array(size) / np.array(tiles.dimensions)
    for column in range(9):
        for row in range(5):
            x, y = ((np.array([column, row]) + 0.5) * grid.pitch * scale).astype(int)
            assert (layer[y, x, 3] > 0) == ((column, row) in kept), (column, row)


def test_excluded_tiles_by_reason(results, monkeypatch):
    def with_excluded(path):
        tiles = read_tiles(path)
        for grid in tiles.magnifications.values():
            object.__setattr__(grid, "excluded", {"pen": grid.cell[:2], "focus": grid.cell[:0]})
        return tiles

    monkeypatch.setattr(slide_page, "read_tiles", with_excluded)
    describe(results)
    html = page(results, "s1")
    assert len(pictures(html, "png")) == 3, "no layer for a reason without cells"
    assert "excluded at 20x: pen 2" in text_of(html)
    assert read_quality(layout.slide_page(results, "s1", "json")).excluded == 4


def test_a_lost_slide_has_a_page_that_says_why(results):
    describe(results)
    lost = page(results, "s2")
    assert "&lt;b&gt;torn&lt;/b&gt;" in lost and "<b>torn" not in lost
    assert "the slide was lost before tissue was looked for" in lost and pictures(lost, "jpeg") == []
    assert text_of(lost).count("torn") == 2, "on top, and at the stage that lost it"
    assert len(pictures(page(results, "s4"), "jpeg")) == 1, "the overview shows that there is no tissue"
    assert not Path(layout.slide_page(results, "s3")).exists(), "the user excluded it"


def test_a_slide_that_is_gone_still_has_its_page(results):
    (results / "s0.png").unlink()
    rows = describe(results)
    assert rows["s0"].status == OK
    assert "no tiles are shown" in page(results, "s0") and len(pictures(page(results, "s0"), "jpeg")) == 1


def test_pages_are_drawn_again_only_where_something_changed(results):
    describe(results)
    files = [Path(layout.slide_page(results, f"s{i}", suffix)) for i in (0, 1) for suffix in ("html", "jpg", "json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert all(row.seconds == 0 for row in describe(results).values())
    assert {path: path.stat().st_mtime_ns for path in files} == before
    Path(layout.slide_page(results, "s1", "json")).write_text("{")
    write_timings(
        layout.slide_timings(results, "tiny", "s0"), SlideTimings("s0", "tiny", 1.0, 0.5, 2.0, 0.5, 3.5, 50, "cpu")
    )
    rows = describe(results)
    assert {i for i, row in rows.items() if row.seconds} == {"s0", "s1"}
    assert "50 tiles in 3.5 s" in page(results, "s0")


def test_the_list_has_a_row_for_every_slide_and_embeds_no_picture(results):
    describe(results)
    out = Path(layout.slide_pages(results))
    write_slide_list(results, [index(results, "quality")], out, is_simulated=True)
    html = out.read_text()
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    rows = body.split("<tr>")[1:]
    assert [re.search(r'<th scope="row">(?:<a [^>]*>)?(\w+)', row)[1] for row in rows] == ["s0", "s1", "s2", "s3", "s4"]
    for link in re.findall(r'(?:href|src)="(quality/[^"]+)"', body):
        assert (out.parent / link).is_file()
    assert len(re.findall("<img", body)) == 3 and "data:image" not in html and "https://" not in html
    heads = len(re.findall("<th[ >]", html.split("<thead>")[1].split("</thead>")[0]))
    assert {len(re.findall("<t[dh][ >]", row)) for row in rows} == {heads}, "every row has every column"
    counts = {m: len(grid) for m, grid in read_tiles(layout.tiles(results, "s0")).magnifications.items()}
    assert all(f'data-v="{n}"' in rows[0] for n in counts.values())
    assert "check: &lt;b&gt;torn" in rows[2] and "cohort: blurred" in rows[3]
    assert "2 ok, 1 excluded, 1 void, 1 failed" in text_of(html) and "Simulated" in html
