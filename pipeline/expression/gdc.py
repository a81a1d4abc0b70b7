"""Download folders of the Genomic Data Commons: which files are tables, and whose sample each one is.

A download holds a folder per file, all named by UUIDs; the portal's "Sample Sheet" tells them apart. Reference:
https://docs.gdc.cancer.gov/Data_Portal/Users_Guide/Repository/.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table
from pipeline.expression.barcodes import barcode

SHEET = "gdc_sample_sheet*.tsv"
SIDE_FILES = (SHEET, "gdc_manifest*.txt", "manifest.txt", "annotations.txt")  #: beside the tables, lower case
TABLE_ENDINGS = (".tsv", ".csv", ".txt", ".tsv.gz", ".csv.gz", ".txt.gz", ".counts", ".counts.gz")
STAR_COLUMNS = (
    "unstranded", "stranded_first", "stranded_second", "tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded",
)  # fmt: skip
STAR_UNITS = {"tpm_unstranded": "tpm", "fpkm_unstranded": "fpkm", "fpkm_uq_unstranded": "fpkm_uq"}
_NOT_TUMOUR = re.compile(r"\b(normal|peritumoral|control)\b", re.IGNORECASE)


def folder_files(folder: Path, endings: Sequence[str] = ("",)) -> list[Path]:
    """Files below `folder` with one of `endings`, sorted by path, without hidden ones and GDC's side files."""
    found = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        side = any(fnmatch(path.name.lower(), pattern) for pattern in SIDE_FILES)
        if path.name.endswith(tuple(endings)) and not hidden and not side and path.is_file():
            found.append(path)
    return sorted(found)


def sheet_samples(folder: Path, files: Sequence[Path]) -> list[str] | None:
    """Sample of each file by the sample sheets in `folder` (columns ``File Name``, ``Sample ID``, ``Case ID``).

    A TCGA sample goes by its barcode. Other programmes' sample ids do not contain the case, so a tumour sample goes by
    its case, and normal tissue (columns ``Sample Type``, ``Tissue Type``) by its own id, which makes it no case's
    tumour. None where there is no sheet.

    Raises InputError for a sheet without these columns, and for a file that is not listed, listed for two samples, or
    pooled from several.
    """
    sheets = sorted(path for path in folder.rglob("*") if fnmatch(path.name.lower(), SHEET) and path.is_file())
    if not sheets:
        return None
    listed: dict[str, set[str]] = {}
    for sheet in sheets:
        for row in read_table(sheet, ["File Name"]):
            if not {"Sample ID", "Case ID"} & row.keys():
                raise InputError(str(sheet), "it has neither column Sample ID nor Case ID.", "add one of them.")
            listed.setdefault(row["File Name"].removesuffix(".gz"), set()).add(_sample(row))
    return [_only(listed.get(file.name.removesuffix(".gz"), set()), file, sheets[0].name) for file in files]


def _sample(row: dict[str, str]) -> str:
    sample, case = row.get("Sample ID", ""), row.get("Case ID", "")
    tissue = f"{row.get('Sample Type', '')} {row.get('Tissue Type', '')}"
    if _NOT_TUMOUR.search(tissue):
        return sample or (case and f"{case}-normal")  # never the bare case
    return sample if not case or "," in sample or barcode(sample) else case


def _only(samples: set[str], file: Path, sheet: str) -> str:
    names = sorted({name.strip() for sample in samples for name in sample.split(",") if name.strip()})
    if len(names) != 1:
        how = f"names {len(names)} samples for it ({', '.join(names)})" if names else "names no sample for it"
        raise InputError(str(file), f"{sheet} {how}.", "correct the sample sheet, or move the file out of the folder.")
    return names[0]
