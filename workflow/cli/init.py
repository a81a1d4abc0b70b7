"""Write slides.tsv and cases.tsv from a folder of slides. TCGA barcodes are understood: the case is the patient."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.contracts.errors import InputError
from pipeline.contracts.files import write_table

HELP = "write the sheets from a folder of slides"
SLIDE_SUFFIXES = frozenset(".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .dcm .czi .svslide .png .jpg .jpeg".split())
TCGA_PATIENT = re.compile(r"(TCGA-[A-Za-z0-9]{2}-[A-Za-z0-9]{4})(?:-|$)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder that holds the slides, searched with its subfolders")
    parser.add_argument("--out", type=Path, default=Path("."), help="where the sheets are written (default: here)")


def run(options: argparse.Namespace) -> int:
    paths = slide_files(options.folder)
    rows = sheet_rows(paths)
    for name in ("slides.tsv", "cases.tsv"):
        if (options.out / name).exists():
            raise InputError(str(options.out / name), "exists already.", "move it away, or use --out.")
    cases = sorted({row["case_id"] for row in rows})
    write_table(options.out / "slides.tsv", ["slide_id", "case_id", "path", "um_per_px", "exclude"], rows)
    write_table(options.out / "cases.tsv", ["case_id"], [{"case_id": case} for case in cases])
    print(f"slides.tsv: {len(rows)} slides; cases.tsv: {len(cases)} cases.")
    for row, path in zip(rows, paths, strict=True):
        if row["slide_id"] != path.stem:
            print(f"  {path} is called {row['slide_id']} (ids must be unique and usable in file names)")
    print("Next: add the label columns to cases.tsv, name them under `tasks` in config.yaml, then `histoweave doctor`.")
    return 0


def slide_files(folder: Path) -> list[Path]:
    """Slide files below `folder`, sorted. Raises InputError when there is none."""
    if not folder.is_dir():
        raise InputError(str(folder), "is not a folder.", "give the folder that holds the slides.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file())
    if not paths:
        raise InputError(str(folder), f"no slide found; known endings: {' '.join(sorted(SLIDE_SUFFIXES))}.")
    return paths


def sheet_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """A row per slide. Ids are file stems, made legal, and prefixed with their folder where stems repeat."""
    paths = list(paths)
    stems = Counter(_legal(path.stem).casefold() for path in paths)
    rows = []
    for path in paths:
        stem = _legal(path.stem)
        repeated = stems[stem.casefold()] > 1
        slide_id = _legal(f"{path.parent.name}_{path.stem}{path.suffix.replace('.', '_')}") if repeated else stem
        patient = TCGA_PATIENT.match(path.stem)
        rows.append({"slide_id": slide_id, "case_id": patient[1] if patient else stem, "path": str(path)})
    return rows


def _legal(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip("._-") or "slide"
