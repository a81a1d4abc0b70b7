"""``histoweave explain`` on a toy cohort: every case by the fold that held it out, nothing lost unsaid."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.attribution import class_margin, integrated_gradients
from models.checkpoint import read_checkpoint
from models.data import Cohort, Collator, Sample
from models.experiment import Experiment
from models.explain import explain_cases
from models.model import restored
from models.train import train_folds
from pipeline.contracts import layout
from pipeline.contracts.errors import InputError
from pipeline.contracts.explanations import read_index
from pipeline.contracts.files import read_table
from pipeline.contracts.genes import read_genes, write_genes
from pipeline.contracts.training import FAILED, FoldRow, read_folds, write_folds
from pipeline.overlays import draw_values
from tests.toy_cohort import GRADE, SMALL_PARAMS, SURVIVAL, SYMBOLS, Toy, make_toy
from workflow.cli.main import main


def finished_run(
    folder: Path, model: str, task=GRADE, toy: Toy | None = None, families: dict | None = None, **changes
) -> tuple[Path, Path]:
    """Models and results of a run of one experiment."""
    toy = toy or make_toy(n=9)
    inputs = toy.write(folder / "data")
    for path in Path(inputs.genes_dir).glob("*.json") if families else ():
        write_genes(path, replace(read_genes(path), families=families))
    made = Experiment("x", model, encoder="toy", epochs=1, **{"params": SMALL_PARAMS.get(model, {}), **changes})
    models, results = folder / "models", folder / "results"
    train_folds(made, task, inputs, models, models / "index.tsv", device="cpu")
    for source, target in ((inputs.expression, layout.expression(results)), (inputs.splits, layout.splits(results))):
        Path(target).parent.mkdir(parents=True)
        shutil.copy(source, target)
    shutil.copytree(Path(inputs.features_index).parent, Path(layout.features_index(results, "toy")).parent)
    return models, results


def explain(models: Path, results: Path, *more: str) -> int:
    return main(
        ["explain", "--models", str(models), "--results", str(results), "--out", str(models.parent / "e"), *more]
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_case_by_the_fold_that_held_it_out(tmp_path, capsys):
    toy = make_toy(n=9)
    gone = "C03-S0"
    toy.slides.pop(gone)
    models, results = finished_run(tmp_path, "concat", toy=toy)
    assert explain(models, results) == 0
    assert "C03: not explained: no usable slide at 10x" in capsys.readouterr().out
    rows = {row.case_id: row for row in read_index(tmp_path / "e/index.tsv")}
    assert {c: row.fold for c, row in rows.items()} == {r.case_id: r.fold for r in toy.splits if r.role == "test"}
    lost = rows.pop("C03")
    assert lost.reason == "no usable slide at 10x" and not lost.files and lost.value is None
    assert {"index.tsv", *(name for row in rows.values() for name in row.files)} == set(contents(tmp_path / "e"))
    for case_id, row in rows.items():
        assert "no picture of" in row.reason, "the toy cohort has no slide files"
        genes = read_table(tmp_path / "e" / case_id / "genes.tsv")
        assert {gene["gene"] for gene in genes} == set(SYMBOLS) and {gene["groups"] for gene in genes} == {"all"}
        sizes = [abs(float(gene["attribution"])) for gene in genes]
        assert sizes == sorted(sizes, reverse=True)
        tables = [read_table(tmp_path / "e" / name) for name in row.files if "10x" in name]
        tiles = [tile for table in tables for tile in table]
        assert sum(float(tile["attention_pool"]) for tile in tiles) == pytest.approx(1)
        shares = sum(float(each["attribution"]) for each in (*genes, *tiles))
        assert row.residual == pytest.approx(shares - (row.value - row.baseline), abs=1e-9) and abs(row.residual) < 0.02
        for name, table in zip([f for f in row.files if "10x" in f], tables, strict=True):
            cell = toy.slides[Path(name).name.removesuffix("_10x.tsv")][2]
            found = np.array([[int(tile["column"]), int(tile["row"])] for tile in table])
            assert found.tolist() == cell[np.lexsort((cell[:, 0], cell[:, 1]))].tolist()
            assert all(int(t["x"]) == 448 * int(t["column"]) and int(t["y"]) == 448 * int(t["row"]) for t in table)
    first = contents(tmp_path / "e")
    assert explain(models, results) == 0 and contents(tmp_path / "e") == first


def test_a_row_is_of_its_own_tile_and_genes_add_up_over_groups(tmp_path):
    models, results = finished_run(tmp_path, "subspace-tokens", toy=make_toy(n=9))
    (row,) = explain_cases(models, results, tmp_path / "e", ["C04"], steps=4, device="cpu")
    checkpoint = read_checkpoint(models / f"fold{row.fold}/checkpoint.pt")
    model = restored(checkpoint, torch.device("cpu"))
    cohort = Cohort(layout.features_index(results, "toy"), 10.0, layout.expression(results))
    batch = Collator(cohort, model.needs, checkpoint.selection, model.gene_groups)([Sample("C04")])
    label = checkpoint.classes.index(row.output.removeprefix("margin of "))
    found = integrated_gradients(model, [batch], class_margin(label), 4)
    share, maps = found.tiles[0][0], model.attention_maps(batch)
    told = {}
    for slide, name in enumerate(("C04-S0", "C04-S1")):
        for tile in read_table(tmp_path / "e" / f"C04/{name}_10x.tsv"):
            told[slide, int(tile["x"]), int(tile["y"])] = tile
    assert len(told) == len(share) > 5
    for k, (slide, (x, y)) in enumerate(zip(batch.slide[0].tolist(), batch.coords[0].tolist(), strict=True)):
        assert float(told[slide, x, y]["attribution"]) == pytest.approx(float(share[k]))
        assert float(told[slide, x, y]["attention_tme"]) == pytest.approx(float(maps["tme"][0, k]))
    genes = {gene["gene"]: gene for gene in read_table(tmp_path / "e/C04/genes.tsv")}
    assert genes["G01"]["groups"] == "tumour,all" and genes["G06"]["groups"] == "tme,all"
    both = found.genes["tumour"][1] + found.genes["all"][1]
    assert float(genes["G01"]["attribution"]) == pytest.approx(float(both))
    assert float(genes["G01"]["value"]) == pytest.approx(float(batch.genes["all"][0, 1]))


def test_single_slides_and_two_magnifications(tmp_path):
    models, results = finished_run(tmp_path / "a", "abmil", reference=True, params={"fixed_length": 36})
    (row,) = explain_cases(models, results, tmp_path / "a/e", ["C04"], device="cpu")
    tables = [read_table(tmp_path / "a/e" / name) for name in row.files]
    assert len(tables) == 2, "both slides of the case; repeats of a tile are one row"
    assert [sum(float(tile["attention_pool"]) for tile in table) for table in tables] == pytest.approx([0.5, 0.5])
    models, results = finished_run(tmp_path / "b", "disentangled-histology", SURVIVAL, make_toy(n=9, pair=True))
    (row,) = explain_cases(models, results, tmp_path / "b/e", ["C01"], steps=2, device="cpu")
    assert row.output == "risk" and row.files == ("C01/C01-S0_20x.tsv", "C01/C01-S0_10x.tsv")
    assert all("attention" not in key for key in read_table(tmp_path / "b/e" / row.files[0])[0])


def test_maps_of_gene_families_bear_their_names(tmp_path):
    families = {"cell cycle": SYMBOLS[2:5], "hypoxia": SYMBOLS[:3]}
    models, results = finished_run(tmp_path, "mcat", params={"width": 8, "cut": "families"}, families=families)
    (row,) = explain_cases(models, results, tmp_path / "e", ["C01"], steps=2, device="cpu")
    (tile, *_) = read_table(tmp_path / "e" / row.files[1])
    assert list(tile) == ["x", "y", "column", "row", "attention_cell cycle", "attention_hypoxia", "attribution"]


def test_what_cannot_be_explained_is_said(tmp_path, capsys):
    toy = make_toy(n=9)
    toy.rna.pop("C00")
    models, results = finished_run(tmp_path, "linear", toy=toy)
    assert explain(models, results, "--case", "C00", "C01", "nobody") == 1
    reasons = {row.case_id: row.reason for row in read_index(tmp_path / "e/index.tsv")}
    assert reasons == {"C00": "no RNA", "C01": "", "nobody": "no fold holds it out"}
    assert explain(models, results, "--case", "C01") == 0
    lost = [FoldRow(0, FAILED, "no event") if row.fold == 0 else row for row in read_folds(models / "index.tsv")]
    write_folds(models / "index.tsv", lost)
    assert explain(models, results, "--case", "C01") == 1
    assert "C01: not explained: fold 0 was not trained: no event" in capsys.readouterr().out
    splits = Path(layout.splits(results))
    splits.write_text(splits.read_text().replace("C08\t1\ttrain", "C08\t1\tval"))
    assert explain(models, results, "--case", "C04") == 1
    assert "fold 1 was trained on other cases than the splits" in capsys.readouterr().err
    assert explain(models, tmp_path / "nowhere") == 1 and "does not exist" in capsys.readouterr().err


def test_a_model_of_clinical_columns_is_refused(tmp_path):
    models, results = finished_run(tmp_path, "clinical")
    with pytest.raises(InputError, match="reads neither genes nor tiles"):
        explain_cases(models, results, tmp_path / "e")


def test_tiles_are_coloured_where_they_lie():
    rgb = np.full((40, 60, 3), 200, np.uint8)
    coords = np.array([[0, 0], [400, 200], [200, 0]])
    weights = np.array([0.0, 0.9, 0.1])
    picture = draw_values(rgb, (600, 400), coords, (100.0, 100.0), weights, "attention: pool", False)
    assert picture.shape[1] == 60 and picture.shape[0] > 40
    assert (picture[25:29, 55:] == 200).all(), "no tile, no tint"
    strong, weak = picture[25, 45].astype(int), picture[5, 5].astype(int)
    assert strong[0] > strong[1] + 60 and weak[0] > 220 and weak[1] > 220 and weak[2] < weak[1]
    signed = draw_values(rgb, (600, 400), coords, (100.0, 100.0), np.array([-1.0, 1.0, 0.0]), "attribution", True)
    blue, red = signed[5, 5].astype(int), signed[25, 45].astype(int)
    assert blue[2] > blue[0] + 60 and red[0] > red[2] + 60 and np.ptp(signed[5, 25].astype(int)) == 0
    assert (draw_values(rgb, (600, 400), coords[:0], (100.0, 100.0), weights[:0], "attention", False)[:40] == 200).all()
