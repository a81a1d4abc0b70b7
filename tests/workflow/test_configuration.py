"""config.yaml: closed, with defaults equal to the stages' own, and errors that name the key and the fix."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from models.evaluate import EvaluationParams
from models.experiment import Experiment
from pipeline.contracts.cohort import read_cases, read_slides
from pipeline.contracts.errors import InputError
from pipeline.contracts.splits import SplitRow, write_splits
from pipeline.contracts.tasks import Task
from pipeline.embedding import EmbeddingParams
from pipeline.encoders import EncoderSpec
from pipeline.expression import ExpressionParams
from pipeline.genes import GeneParams
from pipeline.splits import SplitParams
from pipeline.stain import StainParams
from pipeline.tiling import TilingParams
from pipeline.tissue import TissueParams
from workflow.configuration import check_cohort, checked, schema
from workflow.ledger import check_ledger

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "tissue": TissueParams, "tiles": TilingParams, "stain": StainParams, "embedding": EmbeddingParams,
    "expression": ExpressionParams, "genes": GeneParams, "splits": SplitParams, "evaluation": EvaluationParams,
}  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("slides.tsv", "cases.tsv", "rna.tsv"):
        (tmp_path / name).write_text("case_id\n")
    return {
        "inputs": {"slides": "slides.tsv", "cases": "cases.tsv", "expression": "rna.tsv"},
        "tasks": [{"name": "grade", "kind": "classification", "label": "grade"}],
        "experiments": [{"name": "snn", "model": "snn"}],
    }


@pytest.mark.parametrize(("section", "params"), SECTIONS.items(), ids=SECTIONS)
def test_schema_and_parameter_class_agree(config, section, params):
    filled = checked(config)[section]
    own = dataclasses.asdict(params())
    assert {key: _plain(value) for key, value in own.items()} == filled


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("section", "params"), [("encoders", EncoderSpec), ("tasks", Task), ("experiments", Experiment)]
)
def test_entries_have_the_fields_of_their_class(section, params):
    keys = set(schema()["properties"][section]["items"]["properties"])
    fields = {field.name for field in dataclasses.fields(params)}
    assert keys == fields - {"needs"}


def test_every_key_of_the_shipped_config_is_known_and_has_a_comment():
    text = (ROOT / "config.yaml").read_text()
    shipped = yaml.safe_load(text)
    assert set(shipped) == set(schema()["properties"])
    for key in shipped:
        assert text.split(f"\n{key}:", 1)[0].rpartition("\n")[2].startswith("# "), f"no comment above {key}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(tisue={}), "config.yaml tisue: unknown key; did you mean 'tissue'?"),
        (
            lambda c: c["inputs"].update(slide="x"),
            "config.yaml inputs.slide: unknown key; did you mean 'slides'?",
        ),
        (lambda c: c["inputs"].update(cases="nowhere.tsv"), "'nowhere.tsv' does not exist"),
        (lambda c: c["inputs"].update(slides=None, expression=None), "neither slides nor expression"),
        (lambda c: c["experiments"][0].update(model="sn"), "unknown model 'sn'; did you mean 'snn'?"),
        (lambda c: c["experiments"][0].update(model="concat", encoder="x"), "'x' is not configured"),
        (lambda c: c["experiments"][0].update(model="concat", magnification=7), "'7' is not configured"),
        (lambda c: c["experiments"][0].update(tasks=["grad"]), "unknown task 'grad'; did you mean 'grade'?"),
        (
            lambda c: c["experiments"].append({"name": "SNN", "model": "snn"}),
            "differs from 'snn' in upper and lower",
        ),
        (lambda c: c["experiments"][0].update(name="../x"), "config.yaml experiments.0.name"),
        (lambda c: c["inputs"].update(expression=None), "needs genes, but inputs.expression is not given"),
        (lambda c: c.update(expression={"unit": "zscore"}), "'hvg' is meaningless on z-scores"),
        (
            lambda c: c["inputs"].update(expression={"a": "rna.tsv", "b": {"path": "cases.tsv", "unit": "zscore"}}),
            "'hvg' is meaningless on z-scores",
        ),
        (
            lambda c: c["inputs"].update(expression={"a": "nowhere.tsv"}),
            "inputs.expression: 'nowhere.tsv' does not exist",
        ),
        (lambda c: c["inputs"].update(expression={"a": {"path": "rna.tsv", "unti": "tpm"}}), "inputs.expression: "),
        (lambda c: c["inputs"].update(expression=["rna.tsv", "rna.tsv"]), "'rna.tsv' is named twice"),
        (lambda c: c.update(expression={"aliases": "hgnc.txt"}), "expression.aliases: 'hgnc.txt' does not exist"),
        (lambda c: c["experiments"][0].update(init_from="x"), "init_from is not supported yet"),
        (lambda c: c.update(tiles={"magnifications": [20, 7]}), "20 / 7 is not a whole number"),
        (lambda c: c["tasks"][0].pop("label"), "key 'label' is missing"),
        (lambda c: c.update(encoders=[{"slug": "a", "name": "b", "weights": "file"}]), "path and weights: file go"),
        (lambda c: c.update(stain={"target": "nowhere.png"}), "'nowhere.png' is neither builtin nor a file"),
        (lambda c: c.update(stain={"target": "results/stain/a.json"}), "is a result of this very workflow"),
        (lambda c: (c.update(encoders=[]), c["experiments"][0].update(model="abmil")), "nothing is configured"),
        (
            lambda c: c.update(splits={"folds": "five"}),
            "config.yaml splits.folds: 'five' is not of type 'integer'",
        ),
    ],
)
def test_one_error_that_names_the_key(config, change, expected):
    change(config)
    with pytest.raises(InputError) as caught:
        checked(config)
    assert expected in str(caught.value)


def test_several_expression_tables(config):
    tables = {"one": "rna.tsv", "two": {"path": "cases.tsv", "unit": "tpm"}}
    for value in (tables, list(tables.values())):
        config["inputs"]["expression"] = value
        assert checked(config)["inputs"]["expression"] == value


@pytest.mark.parametrize(
    ("slides", "cases", "expected"),
    [
        ("slide_id\tcase_id\tpath\n", "case_id\tgrade\nA\tG2\nB\tG3\n", "the slide sheet has no row"),
        ("slide_id\tcase_id\tpath\ns\tX\ts\n", "case_id\tgrade\nA\tG2\nB\tG3\n", "no slide belongs to any case"),
        ("slide_id\tcase_id\tpath\ns\tA\ts\n", "case_id\tgrad\nA\tG2\n", "did you mean 'grad'?"),
    ],
)
def test_sheets_that_do_not_fit_each_other(config, slides, cases, expected):
    Path("slides.tsv").write_text(slides)
    Path("cases.tsv").write_text(cases)
    with pytest.raises(InputError) as caught:
        check_cohort(checked(config), read_slides("slides.tsv"), read_cases("cases.tsv"))
    assert expected in str(caught.value)


def test_a_ledger_that_was_edited_after_the_folds_were_made(tmp_path):
    ledger, splits = tmp_path / "splits.tsv", tmp_path / "results.tsv"
    rows = [SplitRow(case, fold, "test" if fold == i else "train") for i, case in enumerate("AB") for fold in (0, 1)]
    check_ledger(ledger, splits)
    write_splits(splits, rows[:2])
    with pytest.raises(InputError, match="the ledger is gone"):
        check_ledger(ledger, splits)
    write_splits(ledger, rows)
    check_ledger(ledger, splits)
    write_splits(ledger, [dataclasses.replace(row, fold=1 - row.fold) for row in rows])
    with pytest.raises(InputError, match=r"1 cases have other folds.*clean --stage splits"):
        check_ledger(ledger, splits)


def test_the_unedited_config_names_the_next_step(tmp_path):
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--cores",
        "1",
        "-n",
    ]
    done = subprocess.run([*command, "--directory", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "histoweave init" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
