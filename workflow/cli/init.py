"""Write slides.tsv and cases.tsv from a folder of slides. TCGA barcodes are understood: the case is the patient."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.contracts.cohort import Slide, check_unique
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import write_table
from pipeline.contracts.slide_types import count_types, describe_types, mixes_preparations, slide_type

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
    for line in type_advice([Slide(row["slide_id"], row["case_id"], row["path"]) for row in rows]):
        print(line)
    print("Next: add the label columns to cases.tsv, name them under `tasks` in config.yaml, then `histoweave doctor`.")
    return 0


def type_advice(slides: Sequence[Slide]) -> list[str]:
    """What TCGA barcodes say about the slides and the config should decide, a line each."""
    counts = count_types(slides)
    lines = [f"TCGA slide types: {describe_types(counts)}."] if counts else []
    if mixes_preparations(counts):
        lines.append(
            "  Paraffin (DX) and frozen (TS, BS, MS) sections look different: keep one kind, e.g. with"
            " `slide_types: [DX]` under `inputs` in config.yaml."
        )
    normal = [slide.slide_id for slide in slides if (found := slide_type(slide)) and not found.is_tumour]
    if normal:
        lines.append(
            f"  {len(normal)} slides are not of a tumour ({', '.join(normal[:3])}{', ...' if normal[3:] else ''}):"
            " the workflow leaves them out, unless `keep_normal: true` under `inputs`."
        )
    return lines


def slide_files(folder: Path) -> list[Path]:
    """Slide files below `folder`, sorted. Raises InputError when there is none."""
    if not folder.is_dir():
        raise InputError(str(folder), "is not a folder.", "give the folder that holds the slides.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file())
    if not paths:
        raise InputError(str(folder), f"no slide found; known endings: {' '.join(sorted(SLIDE_SUFFIXES))}.")
    return paths


def sheet_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """A row per slide. The case of a TCGA barcode is the patient; any other slide is a case of its own.

    Raises InputError where ids are still equal (but for upper and lower case) with all their folder names.
    """
    paths = list(paths)
    rows = []
    for path, slide_id in zip(paths, slide_ids(paths), strict=True):
        patient = TCGA_PATIENT.match(path.stem)
        rows.append({"slide_id": slide_id, "case_id": patient[1] if patient else slide_id, "path": str(path)})
    check_unique([row["slide_id"] for row in rows], "the slide files", "slide_id")
    check_unique(sorted({row["case_id"] for row in rows}), "the slide files", "case_id")
    return rows


def slide_ids(paths: Sequence[Path]) -> list[str]:
    """File stems made legal, behind as many parent folders as tell them apart without regard to case.

    Slides of one folder that differ in their ending alone get it as part of the id.
    """
    stems = [_legal(path.stem) for path in paths]
    beside = Counter((path.parent, stem.casefold()) for path, stem in zip(paths, stems, strict=True))
    names = [
        stem + path.suffix.replace(".", "_") if beside[path.parent, stem.casefold()] > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
    folders = [[part for part in path.parent.parts if part not in (path.anchor, "..")] for path in paths]
    depths = [0] * len(paths)
    while True:
        ids = [
            _legal("_".join([*parts[len(parts) - depth :], name]))
            for parts, depth, name in zip(folders, depths, names, strict=True)
        ]
        number = Counter(slide_id.casefold() for slide_id in ids)
        deeper = [
            i for i, slide_id in enumerate(ids) if number[slide_id.casefold()] > 1 and depths[i] < len(folders[i])
        ]
        if not deeper:
            return ids
        for i in deeper:
            depths[i] += 1


def _legal(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip("._-") or "slide"
