"""histoweave init, doctor and clean."""

from pathlib import Path

import pytest
import yaml

from pipeline.contracts.batches import BatchRow, write_batch
from pipeline.contracts.cohort import read_cases, read_slides
from pipeline.contracts.errors import InputError
from workflow.cli.clean import RULES, SLIDE_STAGES, WHOLE_STAGES, targets
from workflow.cli.init import sheet_rows, slide_files
from workflow.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def slides_in(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_init_writes_sheets_that_the_workflow_reads(tmp_path, capsys):
    folder = slides_in(
        tmp_path / "in",
        "TCGA-06-0174-01Z-00-DX1.AB.svs",
        "TCGA-06-0174-01Z-00-DX2.CD.svs",
        "b c.ndpi",
        "x.txt",
    )
    assert main(["init", str(folder), "--out", str(tmp_path)]) == 0
    slides = read_slides(tmp_path / "slides.tsv")
    assert [(s.slide_id, s.case_id) for s in slides] == [
        ("TCGA-06-0174-01Z-00-DX1.AB", "TCGA-06-0174"), ("TCGA-06-0174-01Z-00-DX2.CD", "TCGA-06-0174"), ("b_c", "b_c")
    ]  # fmt: skip
    assert set(read_cases(tmp_path / "cases.tsv").rows) == {"TCGA-06-0174", "b_c"}
    assert "b_c" in capsys.readouterr().out
    assert main(["init", str(folder), "--out", str(tmp_path)]) == 1, "sheets are never overwritten"
    assert "exists already" in capsys.readouterr().err


def test_equal_names_in_two_folders_get_different_ids(tmp_path):
    folder = slides_in(tmp_path, "a/s.svs", "b/S.svs", "b/t.svs")
    ids = [row["slide_id"] for row in sheet_rows(slide_files(folder))]
    assert len({i.casefold() for i in ids}) == 3


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["x/slides/1.svs", "y/slides/1.svs", "z/2.svs"], ["x_slides_1", "y_slides_1", "2"]),
        (["a/S.svs", "b/s.svs"], ["a_S", "b_s"]),
        (["a/1.svs", "a/1.tif"], ["1_svs", "1_tif"]),
        (["a/1.svs", "b/1.svs", "b/a_1.svs"], ["in_a_1", "b_1", "b_a_1"]),
        (["1.svs", "a/1.svs", "a/b/1.svs"], ["in_1", "a_1", "b_1"]),
    ],
)
def test_init_repeated_stems_stay_apart_as_slides_and_cases(tmp_path, names, ids):
    folder = slides_in(tmp_path / "in", *names)
    assert main(["init", str(folder), "--out", str(tmp_path)]) == 0
    slides = {s.path: s for s in read_slides(tmp_path / "slides.tsv")}
    assert [slides[str(folder / name)].slide_id for name in names] == ids
    assert [slides[str(folder / name)].case_id for name in names] == ids
    assert set(read_cases(tmp_path / "cases.tsv").rows) == set(ids)


def test_init_keeps_the_patient_as_case_where_barcodes_repeat(tmp_path):
    folder = slides_in(tmp_path / "in", "a/TCGA-06-0174-01Z.svs", "b/TCGA-06-0174-01Z.svs")
    rows = sheet_rows(slide_files(folder))
    assert [row["slide_id"] for row in rows] == ["a_TCGA-06-0174-01Z", "b_TCGA-06-0174-01Z"]
    assert {row["case_id"] for row in rows} == {"TCGA-06-0174"}


def test_init_writes_nothing_where_ids_cannot_be_told_apart(tmp_path, capsys):
    folder = slides_in(tmp_path / "in", "a b/1.svs", "a_b/1.svs")
    assert main(["init", str(folder), "--out", str(tmp_path)]) == 1
    assert "occurs twice" in capsys.readouterr().err
    assert not (tmp_path / "slides.tsv").exists() and not (tmp_path / "cases.tsv").exists()


@pytest.mark.parametrize("name", [None, "x.txt"])
def test_init_without_slides(tmp_path, name):
    if name:
        slides_in(tmp_path / "in", name)
    with pytest.raises(InputError):
        slide_files(tmp_path / "in")


def test_clean_takes_the_files_of_the_named_slides_and_their_batch(tmp_path):
    for batch, slides in (("b1", "xy"), ("b2", "z")):
        write_batch(
            tmp_path / f"features/enc/_batches/{batch}.tsv",
            [BatchRow(s, "c", "ok", "features") for s in slides],
        )
    slides_in(tmp_path, *(f"features/enc/{m}x/{s}.h5" for m in (20, 10) for s in "xyz"))
    found = {str(p.relative_to(tmp_path)) for p in targets(tmp_path, "features", ["x"])}
    assert found == {"features/enc/20x/x.h5", "features/enc/10x/x.h5", "features/enc/_batches/b1.tsv"}
    assert len(targets(tmp_path, "features")) == 6 + 2
    slides_in(tmp_path, "features/enc/index.tsv", "features/enc/_timings/x.json", "features/enc/_timings/y.json")
    more = {str(p.relative_to(tmp_path)) for p in targets(tmp_path, "features", ["x"])} - found
    assert more == {"features/enc/index.tsv", "features/enc/_timings/x.json"}, "the list of bags is made anew too"
    with pytest.raises(InputError, match="knows no slide 'w'"):
        targets(tmp_path, "features", ["w"])
    with pytest.raises(InputError, match="did you mean 'features'"):
        targets(tmp_path, "feature")
    with pytest.raises(InputError, match="not per slide"):
        targets(tmp_path, "models", ["x"])


def test_clean_finds_what_a_killed_run_left_without_an_index(tmp_path):
    slides_in(tmp_path, "tiles/x.h5", "tiles/y.h5", "tissue/x.png", "tissue/x.geojson")
    write_batch(tmp_path / "tiles/_batches/b.tsv", [BatchRow("z", "c", "failed", "tiles", "no disk")])
    assert targets(tmp_path, "tiles", ["x"]) == [tmp_path / "tiles/x.h5"]
    assert targets(tmp_path, "tiles", ["x", "x"]) == [tmp_path / "tiles/x.h5"]
    assert targets(tmp_path, "tiles", ["z"]) == [tmp_path / "tiles/_batches/b.tsv"], "listed, without a file"
    assert {p.name for p in targets(tmp_path, "tiles")} == {"x.h5", "y.h5", "b.tsv"}
    assert {p.name for p in targets(tmp_path, "tissue")} == {"x.png", "x.geojson"}
    assert targets(tmp_path, "stain") == []
    with pytest.raises(InputError, match="knows no slide 'w'"):
        targets(tmp_path, "tiles", ["x", "w"])


@pytest.mark.parametrize("slide", ["*", "[xy]", "?", "../tissue/x", ""])
def test_clean_takes_no_pattern_for_a_slide(tmp_path, slide):
    slides_in(tmp_path, "tiles/x.h5", "tiles/y.h5", "tissue/x.h5")
    with pytest.raises(InputError, match="is not allowed"):
        targets(tmp_path, "tiles", [slide])


def test_clean_dry_run_deletes_nothing(tmp_path, capsys):
    (tmp_path / "models").mkdir()
    assert main(["clean", "--stage", "models", "--results", str(tmp_path), "--dry-run"]) == 0
    assert (tmp_path / "models").exists()
    assert main(["clean", "--stage", "models", "--results", str(tmp_path)]) == 0
    assert not (tmp_path / "models").exists()
    assert "snakemake --cores 8 --forcerun train_model" in capsys.readouterr().out


def test_clean_names_rules_that_exist():
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert RULES.keys() == {**SLIDE_STAGES, **WHOLE_STAGES}.keys()
    for rules in RULES.values():
        assert all(f"rule {rule}:" in text for rule in rules.split())


def test_doctor_names_what_is_missing_and_its_fix(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 1
    assert "config.yaml does not exist. Fix:" in capsys.readouterr().out
    (tmp_path / "slides.tsv").write_text("slide_id\tcase_id\tpath\na\tA\tnowhere.svs\n")
    (tmp_path / "cases.tsv").write_text("case_id\nA\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"inputs": {"slides": "slides.tsv", "cases": "cases.tsv"}}))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "1 of 1 slide files missing: a (nowhere.svs)" in out
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "cases.tsv").write_text("case_id\tgrade\nA\tG2\n")
    tasks = {"tasks": [{"name": "grade", "kind": "classification", "label": "grade"}]}
    experiments = {"experiments": [{"name": "mil", "model": "abmil", "params": {"hiden": 3}}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | tasks | experiments))
    assert main(["doctor"]) == 1
    assert "'hiden'; did you mean 'hidden'?" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "nowhere.svs").write_bytes(b"x" * 1000)
    assert main(["doctor"]) == 0
    assert "rough estimate" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"encoders": [{"preset": "uni"}]}))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "encoder 'uni' sees 1 um/px at 10x (tiles of 224 px), and is meant for 0.5" in out
    assert (
        "'uni' (CC-BY-NC-ND-4.0) needs a login: accept its conditions on https://huggingface.co/MahmoodLab/UNI" in out
    )
    (tmp_path / "nowhere.svs").unlink()
    (tmp_path / "imported/uni").mkdir(parents=True)
    (tmp_path / "imported/uni/index.tsv").touch()
    encoders = {"encoders": [{"slug": "uni", "weights": "imported", "path": "imported/uni"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | encoders))
    assert main(["doctor"]) == 0, "no slide is read"
    assert "features are imported: 1 slides" in capsys.readouterr().out
