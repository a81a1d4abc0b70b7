"""config.yaml: closed, with defaults equal to the stages' own, and errors that name the key and the fix."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from models.evaluate import EvaluationParams
from models.experiment import Experiment
from models.registry import MODELS, entry
from pipeline.contracts.cohort import Slide, read_cases, read_slides
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


def pair(config: dict, magnification, magnifications=(20, 10, 5)) -> None:
    """Let the experiment read two magnifications."""
    encoder = {"slug": "tiny", "name": "test_resnet.r160_in1k", "weights": "random"}
    config.update(tiles={"magnifications": list(magnifications)}, encoders=[encoder])
    config["experiments"][0].update(model="disentangled-teacher", magnification=magnification)


def test_two_magnifications_and_sources_are_written_out(config):
    pair(config, [5, 10])
    config["experiments"].append({"name": "student", "model": "disentangled-student", "init_from": "snn"})
    with pytest.raises(InputError, match="magnification"):
        checked(config)
    config["experiments"][1]["magnification"] = [10, 5]
    first, second = checked(config)["experiments"]
    assert first["magnification"] == second["magnification"] == [10, 5]
    assert second["init_from"] == ["snn"] and second["needs"] == ["slides"]
    pair(config, None)
    del config["experiments"][1]
    assert checked(config)["experiments"][0]["magnification"] == [20, 10]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_asked_for_with_both_tasks_of_the_demo(config, name):
    demo = yaml.safe_load((ROOT / "demo/config.yaml").read_text())
    kinds = {task["name"]: task["kind"] for task in demo["tasks"]}
    assert set(kinds.values()) == {"classification", "survival"}
    found = entry(name)
    before = [*sorted(found.starts_from - {name})[:1], *sorted(found.taught_by)[:1]]
    asked = [{"name": f"for-{source}", "model": source} for source in before]
    asked.append({"name": "asked", "model": name, "init_from": [x["name"] for x in asked] or None})
    sections = {key: demo[key] for key in ("tiles", "encoders", "tasks", "splits")} | {"genes": {"families": "builtin"}}
    filled = checked({**config, **sections, "experiments": asked})["experiments"][-1]
    assert filled["tasks"] == (["_pretrain"] if found.task_free else None)
    for kind in ["pretraining"] if found.task_free else kinds.values():
        assert Experiment(**filled).resolved(kind).epochs != 0


@pytest.mark.parametrize(
    ("model", "params", "fits"),
    [("survpath", {}, False), ("survpath", {"cut": "equal"}, True), ("mcat", {"cut": "families"}, False)],
)
def test_tokens_of_gene_sets_need_gene_sets(config, model, params, fits):
    config["encoders"] = [{"slug": "tiny", "name": "test_resnet.r160_in1k", "weights": "random"}]
    config["experiments"] = [{"name": "asked", "model": model, "params": params}]
    if not fits:
        with pytest.raises(InputError, match=rf"'asked'.*'{model}'.*genes\.families is not given.*GMT"):
            checked(config)
        config["genes"] = {"families": "builtin"}
    assert checked(config)["experiments"][0]["params"] == params


def test_a_name_of_another_experiments_table_is_refused(config):
    config["experiments"] = [{"name": name, "model": "snn"} for name in ("a", "a_Slides", "b_slides")]
    with pytest.raises(InputError, match="'a_slides': a table of experiment 'a' has this name"):
        checked(config)


def test_pretraining_has_no_task_of_the_users(config):
    encoder = {"slug": "tiny", "name": "test_resnet.r160_in1k", "weights": "random"}
    probe = {"name": "probe", "model": "mirror", "init_from": "pre", "tasks": ["grade"]}
    config.update(encoders=[encoder], experiments=[{"name": "pre", "model": "mirror-pretraining"}, probe])
    filled = checked(config)
    assert [x["tasks"] for x in filled["experiments"]] == [["_pretrain"], ["grade"]]
    config["experiments"][0]["tasks"] = ["grade"]
    with pytest.raises(InputError, match="learns without a task, once for all"):
        checked(config)
    config["experiments"] = [{**probe, "init_from": None}]
    with pytest.raises(InputError, match="needs trained encoders"):
        checked(config)
    config["experiments"] = [{**probe, "tasks": ["_pretrain"]}]
    with pytest.raises(InputError, match="unknown task '_pretrain'"):
        checked(config)


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
        (lambda c: c["experiments"][0].update(init_from="sn"), "unknown experiment 'sn'; did you mean 'snn'?"),
        (lambda c: c["experiments"][0].update(init_from="snn"), "'snn' would have to be trained before itself"),
        (lambda c: pair(c, [20, 5]), "[20, 5] are not two that follow each other. Fix: use [20, 10] or [10, 5]."),
        (lambda c: pair(c, 20), "20 are not two that follow each other"),
        (lambda c: pair(c, None, [20]), "the model reads two magnifications"),
        (lambda c: c.update(tiles={"magnifications": [20, 7]}), "20 / 7 is not a whole number"),
        (lambda c: c["tasks"][0].pop("label"), "key 'label' is missing"),
        (lambda c: c.update(encoders=[{"preset": "un"}]), "unknown preset 'un'; did you mean 'uni'?"),
        (lambda c: c.update(encoders=[{"slug": "a", "name": "b", "weights": "file"}]), "path and weights: file go"),
        (lambda c: c.update(encoders=[{"slug": "a"}]), "encoders 'a': neither name nor preset is given"),
        (lambda c: c.update(encoders=[{"slug": "a", "weights": "imported"}]), "path and weights: file go"),
        (
            lambda c: c.update(encoders=[{"slug": "a", "weights": "imported", "path": "gone"}]),
            "'gone' holds no imported features",
        ),
        (lambda c: c["inputs"].update(slide_types=["XX"]), "config.yaml inputs.slide_types.0"),
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


@pytest.mark.parametrize("entry", [{"preset": "papers-resnet50-l3"}, {"slug": "papers-resnet50-l3"}])
def test_a_preset_is_enough_to_name_an_encoder(config, entry):
    config["encoders"] = [entry]
    (encoder,) = checked(config)["encoders"]
    assert (encoder["slug"], encoder["name"]) == ("papers-resnet50-l3", "resnet50.tv_in1k")
    assert encoder["layer"] == "layer3" and encoder["weights"] == "pretrained"
    EncoderSpec(**encoder)


@pytest.mark.parametrize(
    ("slides", "cases", "expected"),
    [
        ("slide_id\tcase_id\tpath\n", "case_id\tgrade\nA\tG2\nB\tG3\n", "the slide sheet has no row"),
        ("slide_id\tcase_id\tpath\ns\tX\ts\n", "case_id\tgrade\nA\tG2\nB\tG3\n", "no slide belongs to any case"),
        ("slide_id\tcase_id\tpath\ns\tA\ts\n", "case_id\tgrad\nA\tG2\n", "did you mean 'grad'?"),
        (
            "slide_id\tcase_id\tpath\texclude\ns\tA\ts\ttorn\n",
            "case_id\tgrade\nA\tG2\nB\tG3\n",
            "every slide is excluded; the first: torn",
        ),
    ],
)
def test_sheets_that_do_not_fit_each_other(config, slides, cases, expected):
    Path("slides.tsv").write_text(slides)
    Path("cases.tsv").write_text(cases)
    with pytest.raises(InputError) as caught:
        check_cohort(checked(config), read_slides("slides.tsv"), read_cases("cases.tsv"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("external", "genes", "expected"),
    [
        ("C", {}, "no case of cases.tsv has cohort 'C'"),
        (["B"], {"centre": "cohort"}, "config.yaml genes.unseen_cohort"),
        ([], {}, "splits.external"),
        (["A"], {"centre": "cohort", "unseen_cohort": "itself"}, ""),
    ],
)
def test_external_cohorts_are_checked_before_any_job(config, external, genes, expected):
    Path("slides.tsv").write_text("slide_id\tcase_id\tpath\ns\tX\ts\n")
    Path("cases.tsv").write_text("case_id\tgrade\tcohort\nX\tG2\tA\nY\tG3\tB\n")
    config.update(splits={"external": external}, genes=genes)
    if not expected:
        return check_cohort(checked(config), read_slides("slides.tsv"), read_cases("cases.tsv"))
    with pytest.raises(InputError) as caught:
        check_cohort(checked(config), read_slides("slides.tsv"), read_cases("cases.tsv"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("nowhere.png", "'nowhere.png' is neither builtin, cohort, a slide of the sheet nor a file"),
        ("slide-2", "did you mean 'slide-1'?"),
        ("results/stain/a.json", "is a result of this very workflow"),
    ],
)
def test_stain_targets_that_nothing_stands_for(config, target, expected):
    slides = [Slide("slide-1", "A", "a.svs")]
    Path("cases.tsv").write_text("case_id\tgrade\nA\tG2\nB\tG3\n")
    config.update(stain={"target": target})
    with pytest.raises(InputError) as caught:
        check_cohort(checked(config), slides, read_cases("cases.tsv"))
    assert expected in str(caught.value) and "config.yaml stain.target" in str(caught.value)


@pytest.mark.parametrize("target", ["builtin", "cohort", "slide-1", "cases.tsv"])
def test_stain_targets_that_can_be(config, target):
    Path("cases.tsv").write_text("case_id\tgrade\nA\tG2\nB\tG3\n")
    config.update(stain={"target": target})
    check_cohort(checked(config), [Slide("slide-1", "A", "a.svs")], read_cases("cases.tsv"))


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
    write_splits(splits, [dataclasses.replace(row, role="external") for row in rows[:2]])
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
