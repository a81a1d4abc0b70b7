"""Bad input: one clear error before any work, or a listed failure with the rest kept."""

import gzip
import zipfile

import cv2
import numpy as np
import pytest

from pipeline.contracts.batches import read_batch
from pipeline.contracts.files import read_table
from tests.workflow.conftest import CONFIG


def add_slide(cohort, slide_id, case_id, content, um_per_px="", suffix="tif", path=""):
    path = path or f"data/slides/{slide_id}.{suffix}"
    if content is not None:
        (cohort.path / path).write_bytes(content)
    header = (cohort.path / "data/slides.tsv").read_text().splitlines()[0].split("\t")
    row = {"slide_id": slide_id, "case_id": case_id, "path": path, "um_per_px": um_per_px}
    with open(cohort.path / "data/slides.tsv", "a") as sheet:
        sheet.write("\t".join(row.get(name, "") for name in header) + "\n")


def png(colour: int, side: int = 600) -> bytes:
    return cv2.imencode(".png", np.full((side, side + 40, 3), colour, np.uint8))[1].tobytes()


@pytest.mark.workflow
def test_bad_slides_are_listed_and_the_rest_is_kept(cohort):
    good = next(p for p in sorted((cohort.path / "data/slides").glob("*.tif")) if p.stem in
                {q.stem for q in (cohort.results / "stain").glob("*.json")}).read_bytes()  # fmt: skip
    finished = cohort.stamps("features/tiny/*x/*.h5")
    add_slide(cohort, "zero", "SIM-001", b"")
    add_slide(cohort, "text", "SIM-001", b"this is no slide" * 100)
    add_slide(cohort, "cut", "SIM-001", good[: len(good) // 2])
    add_slide(cohort, "gone", "SIM-001", None)
    add_slide(cohort, "stranger", "NOBODY", good)
    add_slide(cohort, "nompp", "SIM-001", png(200), suffix="png")
    add_slide(cohort, "white", "SIM-001", png(245), um_per_px="0.5", suffix="png")
    add_slide(cohort, "away", "SIM-001", None, path="memory://nowhere/away.tif")
    with zipfile.ZipFile(cohort.path / "data/slides/a.zip", "w") as archive:
        archive.writestr("zipped.tif", good)
    add_slide(cohort, "zipped", "SIM-001", None, path="zip://zipped.tif::data/slides/a.zip")
    cohort.edit_config(lambda c: c["inputs"].update(allow_failed=False))
    done = cohort.snakemake("--keep-going", check=False)
    assert done.returncode != 0
    rows = {}
    for path in (cohort.results / "features/tiny/_batches").glob("*.tsv"):
        rows |= read_batch(path)
    expected = {
        "zero": ("failed", "empty"), "text": ("failed", ""), "cut": ("failed", "truncated"),
        "gone": ("failed", "No such file"), "stranger": ("failed", "NOBODY"), "nompp": ("failed", "um_per_px"),
        "white": ("void", "tissue"), "away": ("failed", "memory://nowhere/away.tif"),
    }  # fmt: skip
    for slide, (status, word) in expected.items():
        assert rows[slide].status == status, rows[slide]
        assert word in rows[slide].reason, rows[slide]
        assert rows[slide].reason
        if status == "failed":
            assert f"slide {slide} at" in done.stderr + done.stdout
    assert rows["zipped"].status == "ok" and (cohort.results / "features/tiny/20x/zipped.h5").exists()
    assert {k: v for k, v in cohort.stamps("features/tiny/*x/*.h5").items() if k in finished} == finished
    assert (cohort.results / "report.html").exists()
    assert not (cohort.results / "verdict.tsv").exists()
    joined = {(row["kind"], row["id"]) for row in read_table(cohort.results / "cohort/report.tsv")}
    assert ("slide_of_unknown_case", "stranger") in joined
    assert ("slide_file_missing", "gone") in joined
    cohort.edit_config(lambda c: c["inputs"].update(allow_failed=True))
    cohort.snakemake()
    assert {row["id"] for row in read_table(cohort.results / "verdict.tsv")} >= set(expected) - {"white"}


@pytest.mark.workflow
def test_case_without_rna_is_reported_and_left_out_of_gene_models_only(cohort):
    with gzip.open(cohort.path / "data/rna.tsv.gz", "rt") as handle:
        lines = [line.rstrip("\n").split("\t") for line in handle]
    column = lines[0].index("SIM-002")
    with gzip.open(cohort.path / "data/rna.tsv.gz", "wt") as handle:
        handle.writelines("\t".join(v for i, v in enumerate(line) if i != column) + "\n" for line in lines)
    predictions = [f"results/predictions/grade/{name}.tsv" for name in ("genes", "slides")]
    cohort.snakemake("results/cohort/report.tsv", *predictions)
    joined = {(row["kind"], row["id"]) for row in read_table(cohort.results / "cohort/report.tsv")}
    assert ("case_without_rna", "SIM-002") in joined
    cases = {name: {row["case_id"] for row in read_table(cohort.results / f"predictions/grade/{name}.tsv")}
             for name in ("genes", "slides")}  # fmt: skip
    assert "SIM-002" not in cases["genes"]
    assert "SIM-002" in cases["slides"]


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["tasks"][0].update(label="gradde"), "did you mean 'grade'?"),
        (lambda c: c["tasks"][0].update(label="cohort"), "needs two classes or more"),
        (lambda c: c["splits"].update(folds=60), "folds"),
    ],
)
def test_one_error_before_compute(unrun, tmp_path, change, expected):
    cohort = unrun.copy(tmp_path / "cohort")
    cohort.edit_config(change)
    done = cohort.snakemake("splits", check=False)
    assert done.returncode != 0
    assert expected in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (cohort.results / "slides").exists()


@pytest.mark.workflow
def test_no_event_in_a_fold_is_a_listed_failure(cohort):
    """Fold 0 trains on censored cases only: listed with its reason; the other fold and task are kept."""
    from pipeline.contracts.splits import TEST, read_splits

    held_out = set(read_splits(cohort.results / "splits/splits.tsv").cases(0, TEST))
    rows = [line.split("\t") for line in (cohort.path / "data/cases.tsv").read_text().splitlines()]
    event = rows[0].index("event")
    for row in rows[1:]:
        row[event] = "1" if row[0] in held_out else "0"
    (cohort.path / "data/cases.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    cohort.edit_config(lambda c: c.update(tasks=CONFIG["tasks"][1:], experiments=CONFIG["experiments"][2:]))
    cohort.snakemake()
    index = {row["fold"]: row for row in read_table(cohort.results / "models/survival/fusion/index.tsv")}
    assert index["0"]["status"] == "failed"
    assert "event" in index["0"]["reason"]
    assert index["1"]["status"] == "ok"
    listed = {row["id"] for row in read_table(cohort.results / "verdict.tsv")}
    assert "survival/fusion/fold0" in listed
