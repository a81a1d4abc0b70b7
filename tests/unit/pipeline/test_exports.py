"""Exports, read the way each tool's own loader reads: names, dtypes, attributes and units are those it asks for."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.contracts import layout
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.files import read_table
from pipeline.contracts.splits import SplitRow, write_splits
from tests.imported_bags import LEVEL0_UM, SIZE_PX, SLIDES, SLUG, make_run
from workflow.cli.main import main

CONFIG = """
inputs: {cases: cases.tsv, slides: slides.tsv}
tasks: [{name: os, kind: survival, time: time_days, event: event}]
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides.tsv").write_text(
        "slide_id\tcase_id\tpath\n" + "".join(f"{s}\t{c}\tx\n" for s, c in SLIDES.items())
    )
    (tmp_path / "cases.tsv").write_text(
        "case_id\ttime_days\tevent\tstage\tage\nc1\t365.25\t1\tII\t60\nc2\t730.5\t0\t\t\nc3\t90\t1\tI\t50\n"
    )
    (tmp_path / "config.yaml").write_text(CONFIG)
    return make_run(tmp_path / "results")


def export(name, *more):
    return main(["export", "--layout", name, "--out", name, *map(str, more)])


def statuses(folder):
    rows = read_table(f"{folder}/histoweave_export.tsv")
    return {(row["slide_id"], row["magnification"]): row["status"] for row in rows}


@pytest.mark.parametrize(("magnification", "label"), [(20.0, "20x_224px_0px_overlap"), (10.0, "10x_224px_0px_overlap")])
def test_trident(run, magnification, label):
    """Its patch file gives the tiles to embed, its feature file what slide encoders and training read."""
    assert export("trident") == 0
    for slide_id in SLIDES:
        bag = run[slide_id, magnification]
        for path in (f"features_{SLUG}/{slide_id}.h5", f"patches/{slide_id}_patches.h5"):
            with h5py.File(Path("trident") / label / path) as file:
                attrs, coords = dict(file["coords"].attrs), file["coords"][:]
                assert coords.dtype == np.int64
                np.testing.assert_array_equal(coords, bag.coords)
                side = attrs["patch_size_level0"]
                assert (attrs["patch_size"], attrs["overlap"], attrs["name"]) == (SIZE_PX, 0, slide_id)
                assert (attrs["level0_magnification"], attrs["target_magnification"]) == (40, magnification)
                assert isinstance(side, np.integer) and abs(side - SIZE_PX * 10 / magnification / 0.25175) < 1
                assert (attrs["level0_width"], attrs["level0_height"]) == (40_000, 30_000)
                assert attrs["savetodir"]
                if "features" in path:
                    features = torch.from_numpy(file["features"][:]).float()
                    assert set(file["features"].attrs) == {"name", "savetodir", "encoder"}
                    np.testing.assert_array_equal(features.numpy(), bag.features)


def test_clam(run):
    """Training reads pt_files by slide_id of its sheet, heat maps h5_files; coordinates are level-0 pixels."""
    assert export("clam", "--magnification", 10) == 0
    sheet = pd.read_csv("clam/dataset.csv")
    assert dict(zip(sheet["slide_id"], sheet["case_id"], strict=True)) == SLIDES
    for slide_id in sheet["slide_id"]:
        bag = run[slide_id, 10.0]
        features = torch.load(f"clam/pt_files/{slide_id}.pt", weights_only=True)
        assert features.dtype == torch.float32 and tuple(features.shape) == bag.features.shape
        with h5py.File(f"clam/h5_files/{slide_id}.h5") as file:
            assert file["features"].dtype == np.float32 and file["coords"].dtype == np.int32
            np.testing.assert_array_equal(file["features"][:], features.numpy())
            np.testing.assert_array_equal(file["coords"][:], bag.coords)


def test_stamp(run):
    """Bags of a patient are the files that the slide table names; coordinates are micrometres."""
    assert export("stamp", "--magnification", 20) == 0
    slides = pd.read_csv("stamp/slides.csv", usecols=["PATIENT", "FILENAME"], dtype=str)
    clini = pd.read_csv("stamp/clini.csv", dtype=str)
    assert set(clini["PATIENT"]) == {"c1", "c2"} and "time_days" in clini
    files = {Path("stamp") / SLUG / name: patient for name, patient in slides.set_index("FILENAME")["PATIENT"].items()}
    assert {path.stem: patient for path, patient in files.items()} == SLIDES
    for path in files:
        with h5py.File(path) as file:
            bag = run[path.stem, 20.0]
            np.testing.assert_array_equal(torch.from_numpy(file["feats"][:]).float().numpy(), bag.features)
            assert file.attrs["feat_type"] == "tile" and file.attrs["unit"] == "um"
            assert "tile_size" not in file.attrs, "the name of its version 2.0, with other rules"
            assert tuple(map(int, file.attrs["stamp_version"].split("."))) <= (2, 1, 0), "newer ones are refused"
            um_per_px = file.attrs["tile_size_um"] / int(file.attrs["tile_size_px"])
            assert um_per_px == pytest.approx(0.5)
            step = np.diff(np.unique(file["coords"][:, 0])).min()
            assert step == pytest.approx(SIZE_PX * 0.5, abs=0.3), "tiles side by side, one tile size apart"
            np.testing.assert_allclose(file["coords"][:], bag.coords * np.array(LEVEL0_UM), rtol=1e-6)


def test_survpath(run, tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    flags = np.zeros(2, bool)
    write_expression(
        layout.expression("results"),
        Expression(("c1", "c2", "c3"), ("EGFR", "TP53"), values, "counts", values, ("", ""), flags, flags),
    )
    roles = {
        ("c1", 0): "train",
        ("c2", 0): "test",
        ("c3", 0): "val",
        ("c1", 1): "test",
        ("c2", 1): "val",
        ("c3", 1): "train",
    }
    write_splits(layout.splits("results"), [SplitRow(case, fold, role) for (case, fold), role in roles.items()])
    assert export("survpath", "--magnification", 10, "--study", "tcga_x") == 0
    root = Path("survpath")
    label_data = pd.read_csv(root / "datasets_csv/metadata/tcga_x.csv", low_memory=False)
    assert "IDC" not in label_data["oncotree_code"]
    patients = label_data.drop_duplicates(["case_id"]).copy()
    assert dict(zip(patients["case_id"], patients["survival_months"], strict=True)) == pytest.approx(
        {"c1": 12, "c2": 24}
    )
    assert dict(zip(patients["case_id"], patients["censorship"], strict=True)) == {"c1": 0, "c2": 1}
    patients.insert(2, "label", 0)  # as it does: a column of that name would stop it
    by_case = label_data.set_index("case_id")
    for case in patients["case_id"]:
        ids = by_case.loc[case, "slide_id"]
        for slide_id in [ids] if isinstance(ids, str) else ids.values:
            stem = slide_id.rstrip(".svs")  # noqa: B005  its own way
            bag = torch.load(root / "pt_files" / f"{stem}.pt", weights_only=True)
            np.testing.assert_array_equal(bag.numpy(), run[slide_id.removesuffix(".svs"), 10.0].features)
    rna = pd.read_csv(root / "datasets_csv/raw_rna_data/tcga_x/rna_clean.csv", engine="python", index_col=0)
    assert list(rna.index) == ["c1", "c2", "c3"] and rna.loc["c2", "TP53"] == 3
    clinical = pd.read_csv(root / "datasets_csv/clinical_data/tcga_x_clinical.csv", index_col=0)
    assert clinical.set_index("case_id").loc["c1", "stage"] == "II" and set(clinical) == {
        "case_id",
        "stage",
        "grade",
        "subtype",
    }
    folds = [pd.read_csv(root / f"splits/tcga_x/splits_{fold}.csv") for fold in (0, 1)]
    assert [list(f["train"].dropna()) for f in folds] == [["c1"], ["c2"]], "cases without a slide are in no fold"
    assert [list(f["val"].dropna()) for f in folds] == [["c2"], ["c1"]]
    roles |= {("c2", fold): "external" for fold in (0, 1)}
    write_splits(layout.splits("results"), [SplitRow(case, fold, role) for (case, fold), role in roles.items()])
    assert export("survpath", "--magnification", 10, "--study", "tcga_x") == 0
    folds = [pd.read_csv(root / f"splits/tcga_x/splits_{fold}.csv") for fold in (0, 1)]
    assert [list(f["train"].dropna()) for f in folds] == [["c1"], []], "an external case is in no fold"


def test_survpath_needs_outcomes(run, capsys):
    Path("config.yaml").unlink()
    assert export("survpath", "--magnification", 10) == 1
    assert "survival task" in capsys.readouterr().err


def test_slides_without_features_and_damaged_ones_are_listed(run, capsys):
    Path(layout.features("results", SLUG, 20, "c1-b")).write_bytes(b"\x89HDF truncated")
    assert export("trident", "--magnification", 20) == 1, "a damaged bag is no success"
    assert statuses("trident") == {
        ("c1-a", "20"): "exported", ("c1-b", "20"): "damaged", ("c2-vs", "20"): "exported", ("c3-a", "20"): "absent",
    }  # fmt: skip
    text = capsys.readouterr().out
    assert "c3-a 20x absent: failed at check: truncated: 3 of 9 bytes" in text and "2 exported" in text
    assert not list(Path("trident").rglob("c1-b*"))


def test_a_foreign_folder_is_not_touched(run, capsys):
    other = Path("clam/pt_files/c1-a.pt")
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody's")
    assert export("clam", "--magnification", 20) == 1
    assert "is not an export of ours" in capsys.readouterr().err
    assert other.read_bytes() == b"somebody's" and len(list(Path("clam").rglob("*"))) == 2
    assert export("clam", "--magnification", 20, "--overwrite") == 0
    assert other.read_bytes() != b"somebody's"


def test_an_earlier_export_is_replaced_and_what_it_leaves_is_said(run, capsys):
    assert export("clam", "--magnification", 20) == 0
    assert export("trident") == 0
    assert main(["export", "--layout", "clam", "--out", "trident", "--magnification", "20"]) == 0
    left = [key for key, status in statuses("trident").items() if status == "left"]
    assert len(left) > 0 and "left: written by an earlier export" in capsys.readouterr().out
    before = {p: p.read_bytes() for p in Path("clam").rglob("*") if p.is_file()}
    assert export("clam", "--magnification", 20) == 0
    assert {p: p.read_bytes() for p in Path("clam").rglob("*") if p.is_file()} == before, "same input, same bytes"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), "one magnification per folder, but 20, 10 are there"),
        (("--magnification", 5), "no bag at 5x; it has 20, 10"),
        (("--encoder", "encc"), "did you mean 'enc'?"),
        (("--magnification", 20, "--task", "oss"), "did you mean 'os'?"),
    ],
)
def test_refusals(run, capsys, more, expected):
    assert export("clam", *more) == 1
    assert expected in capsys.readouterr().err
    assert not Path("clam").exists()


def test_two_slides_that_would_share_a_file(tmp_path, monkeypatch, capsys, run):
    """SurvPath strips letters, so c2-vs is looked for as c2-: a slide c2-s would be too."""
    monkeypatch.setitem(SLIDES, "c2-s", "c2")
    make_run(tmp_path / "results")
    assert export("survpath", "--magnification", 10) == 1
    assert "slides 'c2-s' and 'c2-vs'" in capsys.readouterr().err
    assert export("clam", "--magnification", 10) == 0


def test_the_table_of_an_export_is_plain(run):
    export("trident")
    with open("trident/histoweave_export.tsv", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert len(rows) == 2 * 4 and {row["path"].count("\\") for row in rows} == {0}
    assert all(Path("trident", row["path"]).is_file() == (row["status"] == "exported") for row in rows if row["path"])
