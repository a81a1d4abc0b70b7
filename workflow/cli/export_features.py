"""Write the features of a finished run in the layout of another tool."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import yaml

from pipeline.contracts import layout
from pipeline.contracts.batches import read_batch
from pipeline.contracts.cohort import read_cases
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.features import read_index
from pipeline.contracts.tasks import SURVIVAL, Task
from pipeline.interop.clam import Clam
from pipeline.interop.exporting import DAMAGED, EXPORTED, TABLE, CohortTables, Layout, export_bags
from pipeline.interop.stamp import Stamp
from pipeline.interop.survpath import SurvPath
from pipeline.interop.trident import Trident
from workflow.configuration import checked

HELP = "write features in the layout of another tool"
LAYOUTS: dict[str, type[Layout]] = {x.name: x for x in (Trident, Clam, Stamp, SurvPath)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layout", required=True, choices=list(LAYOUTS), help="the tool that will read them")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; a new one, or an earlier export")
    parser.add_argument("--encoder", help="slug of the features (default: the only one)")
    parser.add_argument("--magnification", type=float, nargs="+", help="default: all of the encoder's")
    parser.add_argument("--task", help="the survival task (survpath; default: the first)")
    parser.add_argument("--study", default="cohort", help="name of the study in file names (survpath)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="for sheets and tasks")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds other files")


def run(options: argparse.Namespace) -> int:
    slug = _encoder(options.results, options.encoder)
    index = Path(layout.features_index(options.results, slug))
    records = read_index(index)
    known = sorted({record.magnification for record in records}, reverse=True)
    magnifications = options.magnification or known
    for magnification in magnifications:
        if magnification not in known:
            listed = ", ".join(f"{m:g}" for m in known) or "none"
            raise InputError("--magnification", f"{index} has no bag at {magnification:g}x; it has {listed}.")
    batches = {}
    for path in sorted(index.parent.glob("_batches/*.tsv")):
        batches |= read_batch(path)
    rows = export_bags(
        records, batches.values(), magnifications, LAYOUTS[options.layout](), options.out, _tables(options),
        options.overwrite,
    )  # fmt: skip
    for row in rows:
        if row.status != EXPORTED:
            print(f"  {row.slide_id} {row.magnification}x {row.status}: {row.reason}")
    counts = Counter(row.status for row in rows)
    summary = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    print(f"{options.layout}: {summary or 'nothing'}; {options.out / TABLE} lists them.")
    return 1 if counts[DAMAGED] or not counts[EXPORTED] else 0


def _encoder(results: Path, slug: str | None) -> str:
    known = sorted(path.parent.name for path in results.glob("features/*/index.tsv"))
    if slug is None and len(known) == 1:
        return known[0]
    if slug in known:
        return slug
    if not known:
        raise InputError(str(results), "no features are indexed.", "run `snakemake --cores 8 features` first.")
    asked = f"'{slug}' is unknown{nearest(slug, known)}" if slug else "several are there"
    raise InputError("--encoder", f"{asked}.", f"name one of {', '.join(known)}.")


def _tables(options: argparse.Namespace) -> CohortTables:
    results = options.results
    found = CohortTables(None, None, Path(layout.expression(results)), Path(layout.splits(results)), options.study)
    if not options.configfile.exists():
        return found
    config = checked(yaml.safe_load(options.configfile.read_text(encoding="utf-8")) or {})
    tasks = [Task(**task) for task in config["tasks"] if task["kind"] == SURVIVAL]
    chosen = [task for task in tasks if options.task in (None, task.name)]
    if options.task and not chosen:
        names = [task.name for task in tasks]
        raise InputError("--task", f"no survival task '{options.task}'{nearest(options.task, names)}.")
    task = chosen[0] if chosen else None
    return CohortTables(read_cases(config["inputs"]["cases"]), task, found.expression, found.splits, options.study)
