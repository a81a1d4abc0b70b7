"""The report: a small run written through the contracts, whole, in parts and damaged."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.contracts import layout
from pipeline.contracts.batches import EXCLUDED, FAILED, OK, VOID, BatchRow, write_batch
from pipeline.contracts.cohort import batches, read_slides
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.features import BagRecord, write_index
from pipeline.contracts.files import read_table, write_table, write_text
from pipeline.contracts.genes import GeneSelection, write_genes
from pipeline.contracts.predictions import (
    ENSEMBLE,
    ClassPrediction,
    LeftOut,
    SurvivalPrediction,
    left_out_path,
    write_left_out,
    write_predictions,
)
from pipeline.contracts.slides import SlideFacts, write_slide_facts
from pipeline.contracts.splits import SplitRow, write_splits
from pipeline.contracts.stains import StainFit, write_stain
from pipeline.contracts.tiles import TileGrid, TileSet, write_tiles
from pipeline.contracts.training import FoldRow, write_folds
from pipeline.report.build import ReportContext, build_report
from pipeline.report.classification_figures import fold_curves
from pipeline.report.slides_section import outline_tiles, spread
from pipeline.report.survival_figures import split_by_risk
from pipeline.stain_transfer import BUILTIN_TARGET

WIDTH, HEIGHT = 600, 448
CASES = [f"c{i}" for i in range(8)]
CONFIG = {
    "inputs": {"slides": "slides.tsv", "cases": "cases.tsv", "expression": "rna.tsv", "simulated": True},
    "tiles": {"size_px": 100, "magnifications": [20, 10]},
    "stain": {"method": "vahadane"},
    "encoders": [{"slug": "tiny", "name": "test_resnet", "weights": "random", "seed": 3}],
    "tasks": [
        {"name": "survival", "kind": "survival", "time": "days", "event": "event"},
        {"name": "grade", "kind": "classification", "label": "grade"},
    ],
    "experiments": [{"name": "snn", "model": "snn"}, {"name": "fuse", "model": "concat", "tasks": ["grade"]}],
}


class Page(HTMLParser):
    """Every start tag with its attributes, the text outside the style, and table rows as lists of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(html)
        self.text = " ".join(self.text.split())
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += data
            if self.in_cell:
                self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False


def build(config: dict = CONFIG) -> Page:
    build_report("results", "results/report.html", ReportContext(config, {"tiles": 1, "report": 7}))
    return Page(Path("results/report.html").read_text())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of 8 cases and 5 slides in the working folder; its results folder."""
    monkeypatch.chdir(tmp_path)
    # Pictures of genes have tests of their own (test_report_genes.py) and take half a second for every page.
    without = {"tasks": [], "applied": [], "sets": []}
    monkeypatch.setattr("pipeline.report.molecular_section.genes_section", lambda *given: without)
    results = Path("results")
    rng = np.random.default_rng(5)
    write_sheets()
    write_slides(results, rng)
    write_molecular(results, rng)
    write_models(results, rng)
    return results


def write_sheets() -> None:
    rows = [
        {"case_id": c, "days": 100 + 50 * i, "event": i % 2, "grade": "" if i == 7 else "hl"[i % 2], "site": "x<y>"}
        for i, c in enumerate(CASES)
    ]
    write_table("cases.tsv", list(rows[0]), rows)
    slides = [(f"s{i}", f"c{i}", f"s{i}.png") for i in range(5)]
    write_table(
        "slides.tsv",
        ["slide_id", "case_id", "path"],
        [dict(zip(("slide_id", "case_id", "path"), s, strict=True)) for s in slides],
    )


def write_slides(results: Path, rng: np.random.Generator) -> None:
    (batch,) = batches(read_slides("slides.tsv"))
    lost = {
        "s2": BatchRow("s2", "c2", FAILED, "check", "truncated <file>"),
        "s3": BatchRow("s3", "c3", VOID, "tissue", "no tissue found"),
        "s4": BatchRow("s4", "c4", EXCLUDED, "cohort", "torn section"),
    }
    for stage, seconds in (("check", 0.25), ("tissue", 1.5), ("tiles", 0.5), ("stain", 2.0), ("features/tiny", 8.0)):
        name = stage.partition("/")[0]
        rows = [BatchRow(s, f"c{s[1]}", OK, name, "", "d", seconds) for s in ("s0", "s1")]
        early = {**lost, "s3": BatchRow("s3", "c3", OK, "check")} if stage == "check" else lost
        write_batch(layout.batch_index(results, stage, batch), [*rows, *early.values()])
    for slide_id in ("s0", "s1"):
        write_slide(results, slide_id, rng)
    bags = [
        BagRecord(s, f"c{s[1]}", m, Path(layout.features(results, "tiny", m, s)), n, 10 / m, f"{s}{m}", "random")
        for s in ("s0", "s1")
        for m, n in ((20, 12), (10, 5))
    ]
    write_index(layout.features_index(results, "tiny"), bags)


def write_slide(results: Path, slide_id: str, rng: np.random.Generator) -> None:
    image = rng.integers(90, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    cv2.imwrite(f"{slide_id}.png", image)
    facts = SlideFacts(
        slide_id, f"{slide_id}.png", {"size": 1}, "field", "image", (WIDTH, HEIGHT), ((WIDTH, HEIGHT, 1.0, 1.0),),
        (0.5, 0.5), "sheet", 0.5, None, (0, 0, WIDTH, HEIGHT), (255, 255, 255), (), "d",
    )  # fmt: skip
    write_slide_facts(layout.slide_facts(results, slide_id), facts)
    Path(results, "tissue").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(layout.tissue_overlay(results, slide_id), cv2.resize(image, (150, 112)))
    write_tiles(
        layout.tiles(results, slide_id),
        TileSet(slide_id, {20: grid()}, {10: "too coarse here"}, (WIDTH, HEIGHT), (0.5, 0.5), "d"),
    )
    fit = StainFit(
        slide_id, "vahadane", "macenko", "few pixels", BUILTIN_TARGET, "slide", 0.5, {"angle_degrees": 31.0}, "d"
    )
    write_stain(layout.stain_fit(results, slide_id), fit)


def grid() -> TileGrid:
    cell = np.array([[0, 0], [3, 1], [2, 3]], np.int32)
    ones = np.ones(3, np.float32)
    return TileGrid(
        cell, cell.astype(np.int64) * 100, np.zeros(2), np.array([100.0, 100.0]), 100, 0.5, (0.5, 0.5), 0, (0.5, 0.5),
        ones, ones, np.full(3, -1, np.int64),
    )  # fmt: skip


def write_molecular(results: Path, rng: np.random.Generator) -> None:
    write_table(
        layout.cohort_report(results),
        ["severity", "kind", "id", "problem"],
        [{"severity": "warning", "kind": "case_without_rna", "id": "c7", "problem": "no sample <b>"}],
    )
    write_splits(
        layout.splits(results),
        [SplitRow(c, k, "test" if i % 2 == k else "train") for i, c in enumerate(CASES) for k in range(2)],
    )
    note = {"fold": 1, "role": "val", "task": "survival", "problem": "no event"}
    write_table(layout.split_notes(results), list(note), [note])
    genes = ("A1", "B2", "C3")
    values = rng.random((6, 3)).astype(np.float32)
    flags = np.array([True, False, False])
    write_expression(
        layout.expression(results),
        Expression(
            tuple(CASES[:6]), genes, values, "counts", values, ("", "", ""), flags, ~flags, {"clipped": 4}, 1, "e"
        ),
    )
    groups = {"tumour": ("A1",), "tme": ("B2",), "all": ("A1", "B2")}
    for task in ("survival", "grade"):
        for fold in range(2):
            selection = GeneSelection(
                task, fold, ("A1", "B2"), groups, np.zeros(2), np.ones(2), 10, "counts", "log1p", 4, {}, 1, "g"
            )
            write_genes(layout.genes(results, task, fold), selection)


def write_models(results: Path, rng: np.random.Generator) -> None:
    survival = [
        SurvivalPrediction(c, i % 2, float(rng.random()), (0.8, 0.5), (200.0, 400.0), 100.0 + 50 * i, i % 2)
        for i, c in enumerate(CASES)
    ]
    write_predictions(layout.predictions(results, "survival", "snn"), (), survival)
    for experiment in ("snn", "fuse"):
        rows = [
            ClassPrediction(c, i // 2 % 2, (0.4, 0.6), "hl"[i % 2], "l", lacking="no RNA" if i < 2 else "")
            for i, c in enumerate(CASES[:6])
        ]
        path = layout.predictions(results, "grade", experiment)
        write_predictions(path, ("h", "l"), rows)
        write_left_out(left_out_path(path), [LeftOut("c6", 0, "no usable slide at 20x")])
    for task, experiment in (("survival", "snn"), ("grade", "snn"), ("grade", "fuse")):
        rows = [FoldRow(0, "ok", "", "d", 4, 1, 3, 2, 1.25)]
        rows += (
            [FoldRow(1, "failed", "loss is nan")] if experiment == "fuse" else [FoldRow(1, "ok", "", "d", 4, 1, 3, 1)]
        )
        write_folds(layout.models_index(results, task, experiment), rows)
        history = [{"epoch": e, "loss": 1 / e, "val_loss": 1.2 / e if e > 1 else None} for e in (1, 2, 3)]
        write_table(Path(layout.models(results, task, experiment)) / "fold0" / "history.tsv", list(history[0]), history)
    metric = {
        "experiment": "snn",
        "value": 0.71234,
        "low": 0.6,
        "high": 0.8,
        "confidence": 0.9,
        "n_cases": 8,
        "note": "",
    }
    columns = [*metric, "metric"]
    write_table(layout.evaluation(results, "survival"), columns, [metric | {"metric": "c_index"}])
    rows = [
        metric | {"metric": "auc", "value": None, "low": None, "high": None, "note": "no such case"},
        metric | {"metric": "accuracy"},
    ]
    write_table(layout.evaluation(results, "grade"), columns, rows)
    difference = {"experiment": "snn", "other": "fuse", "metric": "auc", "difference": -0.0456, "low": -0.2,
                  "high": 0.1, "confidence": 0.9, "n_cases": 6, "note": ""}  # fmt: skip
    for task, rows in (("survival", []), ("grade", [difference])):
        write_table(layout.evaluation(results, task, "differences"), list(difference), rows)


def test_is_self_contained(run: Path) -> None:
    page = build()
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object"}
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) >= 8
    for source in sources:
        kind, _, content = source.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None and decoded.std() > 0
    assert "http" not in re.sub(r"base64,[^\"]*", "", Path("results/report.html").read_text())


def test_links_of_the_contents_exist(run: Path) -> None:
    page = build()
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    links = [attrs["href"][1:] for tag, attrs in page.tags if tag == "a"]
    assert len(links) >= 7 and set(links) <= ids


def test_the_list_of_slide_pages_is_linked_where_it_was_written(run: Path) -> None:
    def links() -> set[str | None]:
        return {attrs["href"] for tag, attrs in build().tags if tag == "a"}

    assert "quality.html" not in links()
    (run / "quality.html").touch()
    assert "quality.html" in links()


def test_features_of_another_tool_need_no_slide_stage(run: Path) -> None:
    """No thumbnail, stain or stage is missed; the table of encoders says where the features are from."""
    encoder = {"slug": "tiny", "name": "", "weights": "imported", "path": "imported/tiny"}
    page = build(CONFIG | {"encoders": [encoder]})
    assert not any(row[0].startswith(("stage tissue", "thumbnail of")) for row in page.rows if row)
    assert "Thumbnails" not in page.text
    assert "Thumbnails" in build().text


def test_every_lost_slide_is_listed_with_stage_and_reason(run: Path) -> None:
    page = build()
    lost = [
        ["s2", "c2", "failed", "check", "truncated <file>"],
        ["s3", "c3", "void", "tissue", "no tissue found"],
        ["s4", "c4", "excluded", "cohort", "torn section"],
    ]
    assert all(row in page.rows for row in lost)
    assert "2 of 5" in page.text


def test_verdicts_and_seconds_are_summed_per_stage(run: Path) -> None:
    rows = build().rows
    assert ["check", "3", "1", "", "1", "2", "0.5", "0.25"] in rows  # ok, excluded, void, failed; worked on; seconds
    assert ["tissue", "2", "", "1", "", "2", "3.0", "1.50"] in rows
    assert ["features (tiny)", "2", "", "", "", "2", "16.0", "8.00"] in rows
    assert ["tiny", "20x", "0.5", "2", "24", "12", "12\u201312"] in rows


def test_says_what_data_are(run: Path) -> None:
    page = build()
    assert (
        "Simulated data." in page.text and "no statistical claim" in page.text and "Random encoder weights" in page.text
    )
    encoders = [{**CONFIG["encoders"][0], "weights": "pretrained"}]
    index = layout.features_index(run, "tiny")
    real = {**CONFIG, "inputs": {**CONFIG["inputs"], "simulated": False}, "encoders": encoders}
    assert "Random encoder weights" in build(real).text  # the bags say so, whatever the config does
    write_text(index, Path(index).read_text().replace("random", "pretrained"))
    text = build(real).text
    assert (
        "Simulated" not in text
        and "Random encoder weights" not in text
        and "simulated" not in text.split("Provenance", 2)[1]
    )


def test_says_what_an_encoder_is_meant_for(run: Path) -> None:
    known = {**CONFIG["encoders"][0], "preset": "uni", "input_px": 224}
    tiles = {**CONFIG.get("tiles", {}), "size_px": 224, "magnifications": [20, 10]}
    text = build({**CONFIG, "tiles": tiles, "encoders": [known]}).text
    assert "licence CC-BY-NC-ND-4.0" in text and "sees 1 um/px at 10x" in text and "is meant for 0.5" in text
    assert "licence" not in build().text


def test_results_are_there(run: Path) -> None:
    page = build()
    assert ["snn", "8", "0.712 0.600 to 0.800"] in page.rows
    assert ["snn", "8", "\u2013 \u2013 to \u2013", "0.712 0.600 to 0.800", "no such case"] in page.rows
    assert ["snn", "fuse", "AUC", "-0.046", "-0.200 to 0.100", "6"] in page.rows
    assert any(row[0] == "fuse" and "6, 2 with no RNA" in row for row in page.rows if row)
    assert "90 % bootstrap" in page.text


def test_external_cohorts_are_shown_apart(run: Path) -> None:
    path = layout.evaluation(run, "survival")
    rows = read_table(path)
    rows += [{**rows[0], "value": value} for value in ("0.66", "0.55")]
    for row, part in zip(rows, ("out-of-fold", "external-mean", "external-folds"), strict=True):
        row |= {"evaluation": part, "cohort": "" if part == "out-of-fold" else "CGGA"}
    write_table(path, list(rows[0]), rows)
    lost = left_out_path(layout.predictions(run, "survival", "snn", "external"))
    write_left_out(lost, [LeftOut("far", ENSEMBLE, "no RNA there")])
    page = build({**CONFIG, "splits": {"external": "CGGA"}})
    assert [row[0] for row in page.rows if row[1:2] == ["8"] and row[0].startswith("snn")][:3] == [
        "snn", "snn, cohort CGGA", "snn, cohort CGGA, single models",
    ]  # fmt: skip
    assert "Cases of CGGA took part in no training" in page.text and "no RNA there" in page.text
    text = build().text
    assert "no RNA there" not in text, "left over from an earlier run"


def test_pretraining_has_a_table_and_its_loss_terms(run: Path) -> None:
    """Presets and sources of an experiment are told; a run without pre-training has no such section."""
    assert "Pre-training" not in build().text
    made = {"name": "pre", "model": "mirror-pretraining", "tasks": ["_pretrain"], "params": {"preset": "no-clusters"}}
    probe = {"name": "fuse", "model": "mirror", "tasks": ["grade"], "init_from": ["pre"], "reference": True}
    write_folds(layout.models_index(run, "_pretrain", "pre"), [FoldRow(0, "ok", "", "d", 4, 1, 2, 2, 1.5)])
    rows = [
        {"epoch": e, "lr": 1, "loss": 2 / e, "align": 1 / e, "style": 0.0, "val_loss": 3 / e, "val_score": None}
        for e in (1, 2)
    ]
    write_table(Path(layout.models(run, "_pretrain", "pre")) / "fold0" / "history.tsv", list(rows[0]), rows)
    page = build(CONFIG | {"experiments": [made, probe]})
    assert ["pre", "mirror-pretraining", "default, preset no-clusters", "", "1", "", "2/2", "1.5", ""] in page.rows
    assert any(row[:3] == ["fuse", "mirror", "reference, from pre"] for row in page.rows)
    (curves,) = [a for tag, a in page.tags if tag == "img" and a["alt"] == "training curves, pre"]
    (others,) = [a for tag, a in page.tags if tag == "img" and a["alt"] == "training curves, fuse"]
    assert int(curves["width"]) > 1.5 * int(others["width"])


def test_folds_that_lack_something_are_shown(run: Path) -> None:
    assert ["1", "val", "survival", "no event"] in build().rows


def test_skipped_says_why(run: Path) -> None:
    text = build().text.split("Skipped, and why")[-1]
    for expected in ("few pixels", "too coarse here", "loss is nan", "no usable slide at 20x", "no grade"):
        assert expected in text


def test_text_from_data_is_escaped(run: Path) -> None:
    html = (build(), Path("results/report.html").read_text())[1]
    assert "no sample &lt;b&gt;" in html and "x&lt;y&gt;: 8" in html and "no sample <b>" not in html


def test_damaged_artefacts_are_remarks(run: Path) -> None:
    for path in (layout.tiles(run, "s0"), layout.stain_fit(run, "s1"), layout.predictions(run, "grade", "snn")):
        Path(path).write_bytes(Path(path).read_bytes()[:40])
    text = build().text.split("Skipped, and why")[-1]
    assert "tiles of s0" in text and "stain of s1" in text and "predictions of grade/snn" in text


def test_nothing_but_a_clinical_sheet(run: Path, tmp_path: Path) -> None:
    inputs = {"cases": "cases.tsv", "slides": None, "expression": None}
    build_report("empty", "page.html", ReportContext({"inputs": inputs, "tasks": CONFIG["tasks"][:1]}))
    text = Page(Path("page.html").read_text()).text
    assert "without images" in text and "without RNA" in text and "No metric was written" in text
    assert "Simulated" not in text


def test_without_tasks(run: Path) -> None:
    page = build({**CONFIG, "tasks": [], "experiments": []})
    assert "no task was asked for" in page.text


def test_genes_only_cohort(run: Path) -> None:
    page = build({**CONFIG, "inputs": {"cases": "cases.tsv", "expression": "rna.tsv"}})
    assert not [attrs for _, attrs in page.tags if attrs.get("id") in ("slides", "stains")]
    assert "Results: survival" in page.text and "Random encoder" not in page.text


def test_same_run_same_page(run: Path) -> None:
    build()
    first = Path("results/report.html").read_bytes()
    build()
    assert Path("results/report.html").read_bytes() == first


@pytest.mark.parametrize("n", [0, 1, 24, 25, 10_000])
def test_spread_takes_both_ends_and_no_more_than_asked(n: int) -> None:
    items = [f"{i:05d}" for i in range(n)]
    chosen = spread(items, 24)
    assert len(chosen) == min(n, 24) == len(set(chosen)) and chosen == sorted(chosen)
    if n:
        assert (chosen[0], chosen[-1]) == (items[0], items[-1])


def test_tiles_are_drawn_where_they_lie() -> None:
    white = np.full((224, 300, 3), 255, np.uint8)  # half the slide's size, unequal sides
    picture = outline_tiles(white, TileSet("s", {20: grid()}, {}, (WIDTH, HEIGHT), (0.5, 0.5), "d"))
    changed = (picture != 255).any(axis=2)
    assert picture.shape == white.shape
    assert changed[50, 150:200].all() and changed[50:101, 150].all()  # cell (3, 1): x 300-400, y 100-200 of the slide
    assert not changed[20:40, 120:].any() and not changed[110:140].any()


def test_risk_groups_are_split_within_folds() -> None:
    risk = np.array([1.0, 2.0, 3.0, 4.0, 101.0, 102.0, 103.0, 104.0])
    fold = np.repeat([0, 1], 4)
    groups = split_by_risk(np.arange(1.0, 9.0), np.ones(8), risk, fold)
    assert groups.higher.tolist() == [False, False, True, True] * 2
    assert 0 < groups.p_value <= 1


def test_risk_groups_of_equal_risk_have_no_p_value() -> None:
    groups = split_by_risk(np.arange(1.0, 5.0), np.ones(4), np.zeros(4), np.zeros(4))
    assert not groups.higher.any() and np.isnan(groups.p_value)


def test_roc_curves_are_averaged_by_pairs_within_folds() -> None:
    positive = np.array([True, False, True, True, False])
    score = np.array([0.9, 0.1, 0.2, 0.3, 0.8])  # fold 0 perfect, fold 1 all wrong, on another scale
    curves, pairs = fold_curves(positive, score, np.array([0, 0, 1, 1, 1]))
    areas = np.trapezoid(curves, np.linspace(0, 1, curves.shape[1]), axis=1)
    assert areas == pytest.approx([1, 0], abs=0.01) and pairs.tolist() == [1, 2]
    only_positive, _ = fold_curves(np.array([True, True]), np.array([0.1, 0.2]), np.zeros(2))
    assert len(only_positive) == 0


def test_a_batch_left_over_from_an_older_sheet_is_ignored(run: Path) -> None:
    stale = BatchRow("old", "c0", FAILED, "check", "gone long ago")
    write_batch(layout.batch_index(run, "check", "auto0001of0002"), [stale])
    assert "gone long ago" not in build().text
