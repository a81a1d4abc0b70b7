"""The cohort's median as the stain target, through the workflow: made once, kept, made again on demand."""

import shutil

import pytest

from pipeline.contracts.stain_targets import read_target_file
from workflow.cli.main import main

BATCH = "auto0000of0001"
FEATURES = "features/*/*x/*.h5"


def fitted(cohort) -> set[str]:
    return {path.stem for path in (cohort.results / "stain").glob("*.json")}


def add_slide(cohort, slide_id: str) -> None:
    """A copy of the first usable slide, as one more slide of its case."""
    sheet = cohort.path / "data/slides.tsv"
    header, *rows = sheet.read_text().splitlines()
    columns = header.split("\t")
    first = next(row for row in (dict(zip(columns, r.split("\t"), strict=True)) for r in rows)
                 if row["slide_id"] in fitted(cohort))  # fmt: skip
    source = cohort.path / first["path"]
    copy = source.with_name(f"{slide_id}{source.suffix}")
    shutil.copy(source, copy)
    new = first | {"slide_id": slide_id, "path": str(copy.relative_to(cohort.path))}
    sheet.write_text("\n".join([header, *rows, "\t".join(new[c] for c in columns)]) + "\n")


@pytest.mark.workflow
def test_the_cohort_as_target(cohort):
    builtin = cohort.contents(FEATURES)
    cohort.edit_config(lambda c: c.update(stain={"target": "cohort"}))
    cohort.snakemake("features")
    target = cohort.results / "stain/_target/cohort.json"
    made, whole = read_target_file(target), target.read_bytes()
    assert set(made.slides) | set(made.left_out) == fitted(cohort) and len(made.slides) > 3
    first = cohort.contents(FEATURES)
    assert first.keys() == builtin.keys() and all(first[name] != builtin[name] for name in first)

    add_slide(cohort, "late")
    assert cohort.planned("features") == sorted(
        ["join_cohort", f"check_slides {BATCH}", f"detect_tissue {BATCH}", f"tile_slides {BATCH}",
         f"fit_stains {BATCH}", f"embed_tiles {BATCH}", "index_features tiny", "features"]
    ), "the target is not made again"  # fmt: skip
    before = cohort.stamps(FEATURES)
    cohort.snakemake("features")
    after = cohort.stamps(FEATURES)
    assert {name.rpartition("/")[2] for name in after if after[name] != before.get(name)} == {"late.h5"}
    assert target.read_bytes() == whole

    assert main(["clean", "--stage", "target", "--results", str(cohort.results)]) == 0
    again = ("--forcerun", "choose_stain_target")
    planned = ["choose_stain_target", f"embed_tiles {BATCH}", "index_features tiny", "features"]
    assert cohort.planned("features", *again) == sorted(planned)
    cohort.snakemake("results/stain/_target/target.json")
    assert read_target_file(target).slides == tuple(sorted({*made.slides, "late"}))
