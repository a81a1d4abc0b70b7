"""Bring features that TRIDENT or CLAM made into a folder that the workflow trains from."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from pipeline.contracts.cohort import read_slides
from pipeline.contracts.errors import InputError
from pipeline.interop import clam, trident
from pipeline.interop.importing import OK, TABLE, ImportParams, import_bags

HELP = "bring in features of TRIDENT or CLAM"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="TRIDENT's job folder, or the folder with CLAM's h5_files")
    parser.add_argument("--layout", required=True, choices=["trident", "clam"], help="the tool that wrote them")
    parser.add_argument("--encoder", required=True, help="encoder, as in TRIDENT's features_{encoder}; the slug here")
    parser.add_argument("--out", type=Path, help="folder to write (default: imported/{encoder})")
    parser.add_argument("--slides", type=Path, help="slide sheet (default: slides.tsv where it exists)")
    parser.add_argument("--magnification", type=float, nargs="+", help="which to take; CLAM: what they were made at")
    parser.add_argument("--tolerance", type=float, default=0.05, help="share of um/px that may be off (default: 0.05)")
    parser.add_argument("--off-lattice", default="refuse", choices=["refuse", "nearest"], help="tiles on no lattice")
    parser.add_argument("--patches", type=Path, help="CLAM: folder of its coordinate files (default: FOLDER/patches)")
    parser.add_argument("--size-px", type=int, help="CLAM: side of a patch as it was read")
    parser.add_argument("--size-level0-px", type=float, help="CLAM: side of a patch in level-0 pixels")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds other files")


def run(options: argparse.Namespace) -> int:
    params = ImportParams(options.encoder, options.layout.upper(), options.tolerance, options.off_lattice)
    if options.layout == "trident":
        found = trident.find_bags(options.folder, options.encoder, options.magnification or [])
        read = trident.read_bag
    else:
        if len(options.magnification or []) != 1:
            raise InputError("--magnification", "CLAM stores none.", "say what they were made at, such as 20.")
        found = clam.find_bags(options.folder, options.magnification[0])
        beside = options.folder / "patches"
        patches = options.patches or (beside if beside.is_dir() else None)
        read = clam.ClamReader(patches, options.size_px, options.size_level0_px)
    out = options.out or Path("imported") / options.encoder
    sheet = options.slides or Path("slides.tsv")
    slides = read_slides(sheet) if options.slides or sheet.exists() else None
    rows = import_bags(found, read, slides, out, params, options.overwrite)
    counts = Counter(row.status for row in rows)
    print(f"{', '.join(f'{n} {status}' for status, n in sorted(counts.items()))}; {out / TABLE} lists them.")
    if not counts[OK]:
        return 1
    taken = ", ".join(sorted({row.magnification for row in rows if row.status == OK}, key=float, reverse=True))
    print(
        f"Next, in config.yaml: tiles: {{magnifications: [{taken}]}} and"
        f" encoders: [{{slug: {options.encoder}, weights: imported, path: {out}}}]"
    )
    return 0
