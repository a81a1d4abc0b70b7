"""What a change makes again: exactly the listed jobs and slides, nothing more."""

import json

import pytest

from pipeline.contracts.batches import read_batch

SLIDE_FILES = ("slides/*.json", "tissue/*.geojson", "tiles/*.h5", "stain/*.json", "features/*/*x/*.h5")
AFTER_FEATURES = [
    "build_report", "conclude", "evaluate_task grade", "evaluate_task survival",
    "predict_cases grade slides", "predict_cases survival fusion",
    "train_model grade slides", "train_model survival fusion",
]  # fmt: skip
BATCH = "auto0000of0001"
PAGES = [f"describe_slides {BATCH}", "list_slides"]


def touched(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in after if after[name] != before.get(name)}


def checked_rows(cohort):
    return read_batch(cohort.results / f"check/_batches/{BATCH}.tsv")


@pytest.mark.workflow
def test_nothing_changed_runs_nothing(cohort):
    before = cohort.stamps("**/*")
    done = cohort.snakemake()
    assert "Nothing to be done" in done.stdout + done.stderr
    assert cohort.stamps("**/*") == before


@pytest.mark.workflow
def test_touching_one_slide(cohort):
    good = [p.stem for p in (cohort.results / "stain").glob("*.json")]
    slide = next(p for p in sorted((cohort.path / "data/slides").glob("*.tif")) if p.stem in good)
    slide.touch()
    assert cohort.planned() == sorted(
        [f"check_slides {BATCH}", f"detect_tissue {BATCH}", f"tile_slides {BATCH}", f"fit_stains {BATCH}",
         f"embed_tiles {BATCH}", "index_features tiny", *PAGES, *AFTER_FEATURES, "all"]
    )  # fmt: skip
    before = cohort.stamps(*SLIDE_FILES)
    cohort.snakemake("features")
    changed = touched(before, cohort.stamps(*SLIDE_FILES))
    failed = {f"slides/{row.slide_id}.json" for row in checked_rows(cohort).values() if row.status == "failed"}
    assert {name.rpartition("/")[2].rpartition(".")[0] for name in changed - failed} == {slide.stem}
    assert len(changed - failed) == 4 + 2, "failed slides are tried again, nothing else is"


@pytest.mark.workflow
def test_changing_one_label(cohort):
    before = cohort.stamps("**/*.h5", "**/*.h5ad", "slides/*", "models/survival/**/*", "splits/*")
    rows = (cohort.path / "data/cases.tsv").read_text().splitlines()
    column = rows[0].split("\t").index("grade")
    first = rows[1].split("\t")
    other = {row.split("\t")[column] for row in rows[1:]} - {first[column]}
    first[column] = sorted(other)[0]
    (cohort.path / "data/cases.tsv").write_text("\n".join([rows[0], "\t".join(first), *rows[2:]]) + "\n")
    planned = cohort.planned()
    assert planned == sorted(
        ["join_cohort", "make_splits", "select_genes grade", "select_genes survival", *AFTER_FEATURES,
         "train_model grade genes", "train_model survival genes", "predict_cases grade genes",
         "predict_cases survival genes", "all"]
    )  # fmt: skip
    cohort.snakemake("trained")
    after = cohort.stamps("**/*.h5", "**/*.h5ad", "slides/*", "models/survival/*/fold*/*")
    assert touched({k: v for k, v in before.items() if k in after}, after) == set(), "other tasks and slides stay"


@pytest.mark.workflow
def test_changing_one_gene_list(cohort):
    path = cohort.path / "data/tumour.gmt"
    path.write_text(path.read_text().rsplit("\t", 1)[0] + "\n")
    assert cohort.planned() == sorted(
        ["prepare_expression", "score_gene_sets", "select_genes grade", "select_genes survival",
         "train_model grade genes",
         "train_model survival genes", "train_model survival fusion", "predict_cases grade genes",
         "predict_cases survival genes",
         "predict_cases survival fusion", "evaluate_task grade", "evaluate_task survival", "build_report", "conclude",
         "all"]
    )  # fmt: skip


@pytest.mark.workflow
def test_changing_encoders(cohort):
    cohort.edit_config(lambda c: c["encoders"].append(dict(c["encoders"][0], slug="other", seed=1)))
    cohort.edit_config(lambda c: c["experiments"][1].update(encoder="other"))
    assert cohort.planned() == sorted(
        ["fetch_weights other", f"embed_tiles {BATCH}", "index_features other", "train_model grade slides",
         "predict_cases grade slides", "evaluate_task grade", "build_report", "conclude", *PAGES, "all"]
    )  # fmt: skip
    kept = (
        "features/tiny/*x/*",
        "features/tiny/index.tsv",
        "models/survival/**/*",
        "tiles/*",
        "models/grade/genes/**/*",
    )
    before = cohort.stamps(*kept)
    cohort.snakemake("trained")
    assert cohort.stamps(*kept) == before


@pytest.mark.workflow
def test_clean_makes_one_slide_again(cohort, monkeypatch):
    from workflow.cli.main import main

    slide = sorted(p.stem for p in (cohort.results / "features/tiny/20x").glob("*.h5"))[0]
    before = cohort.stamps(*SLIDE_FILES)
    bytes_before = cohort.contents("tiles/*.h5")
    assert main(["clean", "--stage", "tiles", "--slides", slide, "--results", str(cohort.results)]) == 0
    cohort.snakemake("tiles")
    assert touched(before, cohort.stamps(*SLIDE_FILES)) == {f"tiles/{slide}.h5"}
    assert cohort.contents("tiles/*.h5") == bytes_before


@pytest.mark.workflow
def test_editing_one_file_of_outlines(cohort):
    slide = next(p.stem for p in sorted((cohort.results / "stain").glob("*.json")))
    corners = [[0, 0], [500, 0], [500, 400], [0, 400], [0, 0]]
    file = cohort.path / f"annotations/{slide}.geojson"
    file.parent.mkdir()
    file.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    outlines = {"annotations": "annotations/{slide_id}.geojson", "annotation_missing": "detect"}
    cohort.edit_config(lambda config: config.update(tissue=outlines))
    cohort.snakemake("tissue")
    assert cohort.planned("tissue") == []
    before = cohort.stamps("tissue/*.geojson")
    corners[2] = [500, 500]
    file.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    assert cohort.planned("tissue") == [f"detect_tissue {BATCH}", "tissue"]
    cohort.snakemake("tissue")
    assert touched(before, cohort.stamps("tissue/*.geojson")) == {f"tissue/{slide}.geojson"}
