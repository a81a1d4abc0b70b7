"""Features that another tool made train a model through the real Snakefile, with no slide there to be read."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline.contracts.batches import EXCLUDED, FAILED, OK, read_batch
from pipeline.contracts.features import read_bag, read_index
from pipeline.contracts.files import read_table
from tests.workflow.conftest import ROOT, Cohort

pytestmark = pytest.mark.workflow


def histoweave(cohort: Cohort, *arguments: str) -> str:
    command = [sys.executable, "-m", "workflow.cli.main", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cohort.path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def imported(finished, tmp_path):
    """What a user of TRIDENT has: sheets and a job folder of features, but no slide."""
    said = histoweave(finished, "export", "--layout", "trident", "--out", str(tmp_path / "job"))
    assert "exported" in said
    cohort = Cohort(tmp_path / "cohort")
    cohort.path.mkdir()
    shutil.copytree(finished.path / "data", cohort.path / "data", ignore=shutil.ignore_patterns("slides"))
    config = finished.config()
    said = histoweave(
        cohort, "import", str(tmp_path / "job"), "--layout", "trident", "--encoder", "tiny", "--slides",
        "data/slides.tsv",
    )  # fmt: skip
    assert "weights: imported, path: imported/tiny" in said
    config["encoders"] = [{"slug": "tiny", "weights": "imported", "path": "imported/tiny"}]
    config["experiments"] = [{"name": "pooled", "model": "meanpool", "tasks": ["grade"], "epochs": 2}]
    cohort.write_config(config)
    return cohort


def test_a_model_trains_on_imported_features_without_slides(imported, finished):
    planned = imported.planned()
    assert not {job.split()[0] for job in planned} & {"check_slides", "tile_slides", "embed_tiles", "prepare_encoder"}
    imported.snakemake()
    assert "slide_file_missing" not in (imported.results / "cohort/report.tsv").read_text()
    before = {(r.slide_id, r.magnification): r for r in read_index(finished.results / "features/tiny/index.tsv")}
    records = read_index(imported.results / "features/tiny/index.tsv")
    assert {(r.slide_id, r.magnification) for r in records} == set(before)
    for record in records:
        bag, own = read_bag(record.path), read_bag(before[record.slide_id, record.magnification].path)
        for name in ("features", "coords", "cell", "parent"):
            np.testing.assert_array_equal(getattr(bag, name), getattr(own, name))
    rows = {i: r for p in imported.results.glob("features/tiny/_batches/*.tsv") for i, r in read_batch(p).items()}
    usable = {record.slide_id for record in records}
    assert {i for i, r in rows.items() if r.status == OK} == usable
    assert any(row.status == EXCLUDED for row in rows.values())
    lost = [row.reason for row in rows.values() if row.status == FAILED]
    assert lost and all("no imported features" in reason for reason in lost)
    assert len(read_table(imported.results / "predictions/grade/pooled.tsv")) > 0
    page = (imported.results / "report.html").read_text()
    assert "imported" in page
    assert imported.planned() == []


def test_frozen_sections_are_left_out_by_the_config_and_listed(finished, tmp_path):
    """Renaming two slides by barcode: one is frozen, and the run says so where slides are listed."""
    cohort = finished.copy(tmp_path / "types")
    sheet = cohort.path / "data/slides.tsv"
    lines = sheet.read_text().splitlines()
    target = cohort.path / lines[1].split("\t")[2]
    renamed = target.with_name(f"TCGA-06-0174-01A-01-TS1{target.suffix}")
    target.rename(renamed)
    lines[1] = lines[1].replace(target.name, renamed.name)
    sheet.write_text("\n".join(lines) + "\n")
    cohort.edit_config(lambda c: c["inputs"].update(slide_types=["DX"]))
    cohort.snakemake("check")
    slide_id = lines[1].split("\t")[0]
    rows = {i: r for p in cohort.results.glob("check/_batches/*.tsv") for i, r in read_batch(p).items()}
    assert rows[slide_id].status == EXCLUDED and "slide type TS not among DX" in rows[slide_id].reason
    listed = {row["id"]: row["problem"] for row in read_table(cohort.results / "cohort/report.tsv")}
    assert "TS not among DX" in listed[slide_id]
    assert sum(row.status == OK for row in rows.values()) > 1, "slides without a barcode are kept"
