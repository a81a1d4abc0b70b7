"""Delete the results of one stage, for all slides or some, so that the next run makes them again."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.contracts.batches import read_batch
from pipeline.contracts.cohort import check_id
from pipeline.contracts.errors import InputError, nearest

HELP = "force a stage to be made again"

#: stage -> (folder with batch indexes, patterns of per-slide files), below results/
SLIDE_STAGES = {
    "check": ("check", ["slides/{slide}.json"]),
    "tissue": ("tissue", ["tissue/{slide}.geojson", "tissue/{slide}.png"]),
    "tiles": ("tiles", ["tiles/{slide}.h5", "tiles/{slide}.png"]),
    "stain": ("stain", ["stain/{slide}.json"]),
    "features": ("features/*", ["features/*/*x/{slide}.h5", "features/*/_timings/{slide}.json"]),
    "quality": ("quality", ["quality/{slide}.html", "quality/{slide}.jpg", "quality/{slide}.json"]),
}
WHOLE_STAGES = {
    "cohort": ["cohort"],
    "target": ["stain/_target"],
    "expression": ["expression"],
    "splits": ["splits"],
    "genes": ["genes"],
    "models": ["models"],
    "predictions": ["predictions"],
    "evaluation": ["evaluation"],
    "report": ["report.html", "verdict.tsv"],
}
#: stage -> the rule that makes it. Snakemake does not make a missing file again while what was made from it stands.
RULES = {
    "check": "check_slides",
    "tissue": "detect_tissue",
    "tiles": "tile_slides",
    "stain": "fit_stains",
    "features": "embed_tiles index_features",
    "quality": "describe_slides",
    "cohort": "join_cohort",
    "target": "choose_stain_target",
    "expression": "prepare_expression",
    "splits": "make_splits",
    "genes": "select_genes",
    "models": "train_model",
    "predictions": "predict_cases",
    "evaluation": "evaluate_task",
    "report": "build_report",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", required=True, help=f"one of {', '.join([*SLIDE_STAGES, *WHOLE_STAGES])}")
    parser.add_argument("--slides", nargs="+", default=[], metavar="ID", help="only these slides (slide stages)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted, delete nothing")


def run(options: argparse.Namespace) -> int:
    doomed = targets(options.results, options.stage, options.slides)
    for path in doomed:
        print(f"{'would delete' if options.dry_run else 'deleted'} {path}")
        if not options.dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{len(doomed)} deleted." if not options.dry_run else f"{len(doomed)} would be deleted.")
    if doomed:
        print(f"Then run: snakemake --cores 8 --forcerun {RULES[options.stage]}")
    return 0


def targets(results: Path, stage: str, slides: Sequence[str] = ()) -> list[Path]:
    """Existing files and folders to delete. The batch indexes that list the slides go too: they make the stage rerun.

    Without `slides` every file and index of the stage goes. Raises InputError for an unknown stage, for slides with a
    stage that is not per slide, and for a slide that no index lists and no file belongs to.
    """
    if stage not in {**SLIDE_STAGES, **WHOLE_STAGES}:
        known = [*SLIDE_STAGES, *WHOLE_STAGES]
        raise InputError(
            "--stage", f"unknown stage '{stage}'{nearest(stage, known)}.", f"use one of {', '.join(known)}."
        )
    if stage in WHOLE_STAGES:
        if slides:
            raise InputError("--slides", f"stage '{stage}' is not per slide.", "leave --slides away.")
        return [results / name for name in WHOLE_STAGES[stage] if (results / name).exists()]
    folder, patterns = SLIDE_STAGES[stage]
    indexes = sorted(results.glob(f"{folder}/_batches/*.tsv"))
    lists = sorted(results.glob(f"{folder}/index.tsv"))  # of features: made anew with them
    if not slides:
        return _files(results, patterns, "*") + indexes + lists
    listed = {path: set(read_batch(path)) for path in indexes}
    files = {slide: _files(results, patterns, check_id(slide, "--slides", "slide")) for slide in slides}
    known_slides: set[str] = set().union(*listed.values())
    for slide, found in files.items():
        if not found and slide not in known_slides:
            known_slides |= {path.stem for path in _files(results, patterns, "*")}
            raise InputError("--slides", f"stage '{stage}' knows no slide '{slide}'{nearest(slide, known_slides)}.")
    chosen = [path for found in files.values() for path in found]
    return sorted(chosen) + [path for path, ids in listed.items() if ids & set(slides)] + lists


def _files(results: Path, patterns: Sequence[str], slide: str) -> list[Path]:
    """Files of one slide, or of all for ``*``; a killed run leaves files that no index lists."""
    return sorted(path for pattern in patterns for path in results.glob(pattern.format(slide=slide)))
