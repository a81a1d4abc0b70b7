"""The user's sheets, the rules for ids, and the batches that slides are worked in (standard library only)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.files import read_table
from pipeline.contracts.slide_files import local_path

ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
BATCH_SLIDES = 32
COHORT = "cohort"  #: optional column of the case sheet: where a case comes from
PATIENT = "patient_id"  #: optional column of the case sheet: rows of one patient stay together


@dataclass(frozen=True)
class Slide:
    """One row of the slide sheet. `path` may be remote, see `slide_files.is_remote`; `um_per_px` overrides the file's
    own value; `exclude` is a reason or empty."""

    slide_id: str
    case_id: str
    path: str
    um_per_px: float | None = None
    exclude: str = ""
    batch: str = ""


@dataclass(frozen=True)
class CaseSheet:
    """The clinical sheet: `rows` maps case_id to its columns (strings, empty where unknown)."""

    path: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]


def check_id(value: str, where: str, what: str) -> str:
    """Return `value` if it may be used in a file name on every system, else raise InputError."""
    if not re.fullmatch(ID_PATTERN, value):
        raise InputError(
            where,
            f"{what} '{value}' is not allowed.",
            "use letters, digits, dot, underscore and hyphen, beginning with a letter or digit.",
        )
    return value


def check_unique(values: Iterable[str], where: str, what: str) -> None:
    """Raise InputError for ids that are equal, or equal but for case: file systems may not tell them apart."""
    seen: dict[str, str] = {}
    for value in values:
        other = seen.get(value.casefold())
        if other is not None:
            how = "occurs twice" if other == value else f"differs from '{other}' in upper and lower case only"
            raise InputError(where, f"{what} '{value}' {how}.", f"give each {what} a name of its own.")
        seen[value.casefold()] = value


def read_slides(path: str | Path) -> list[Slide]:
    """Read the slide sheet in its own order. Slide paths are taken relative to the working directory.

    Raises InputError naming the sheet, row and id for a missing column or path, a bad or repeated id or um/px.
    """
    slides = []
    for number, row in enumerate(read_table(path, ["slide_id", "case_id", "path"]), start=2):
        where = f"{path} row {number} (slide_id '{row['slide_id']}')"
        check_id(row["slide_id"], where, "slide_id")
        check_id(row["case_id"], where, "case_id")
        if not row["path"]:
            raise InputError(where, "path is empty.", "give the slide file's path.")
        batch = row.get("batch", "")
        slides.append(
            Slide(
                slide_id=row["slide_id"],
                case_id=row["case_id"],
                path=local_path(row["path"]),
                um_per_px=_um_per_px(row.get("um_per_px", ""), where),
                exclude=row.get("exclude", ""),
                batch=check_id(batch, where, "batch") if batch else "",
            )
        )
    check_unique([s.slide_id for s in slides], str(path), "slide_id")
    check_unique(dict.fromkeys(s.batch for s in slides), str(path), "batch")
    return slides


def _um_per_px(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.05 <= value <= 40:
        raise InputError(where, f"um_per_px '{text}' is not a number from 0.05 to 40.", "give um per pixel, e.g. 0.25.")
    return value


def read_cases(path: str | Path) -> CaseSheet:
    """Read the clinical sheet. Raises InputError for a missing column and for bad or repeated case ids."""
    table = read_table(path, ["case_id"])
    for number, row in enumerate(table, start=2):
        check_id(row["case_id"], f"{path} row {number}", "case_id")
    check_unique([row["case_id"] for row in table], str(path), "case_id")
    columns = tuple(table[0]) if table else ("case_id",)
    return CaseSheet(str(path), columns, {row["case_id"]: row for row in table})


def patients_of(sheet: CaseSheet) -> dict[str, str]:
    """Patient of each case: the column patient_id, else the case itself."""
    return {case: row.get(PATIENT) or case for case, row in sheet.rows.items()}


def patients_of_several(sheet: CaseSheet) -> dict[str, str]:
    """case_id -> patient, of the cases that share a patient with another case."""
    patient = patients_of(sheet)
    count = Counter(patient.values())
    return {case: name for case, name in patient.items() if count[name] > 1}


def external_cases(sheet: CaseSheet, cohorts: Sequence[str]) -> dict[str, str]:
    """case_id -> cohort of the cases in `cohorts`, in sheet order.

    Raises InputError for a sheet without the column, a cohort without a case, a sheet with no other case, and a patient
    who is in such a cohort and outside: she would be trained and tested on.
    """
    where = "config.yaml splits.external"
    if cohorts and COHORT not in sheet.columns:
        raise InputError(sheet.path, f"splits.external needs column '{COHORT}', which is missing.", "add it.")
    found = {case: row[COHORT] for case, row in sheet.rows.items() if cohorts and row[COHORT] in cohorts}
    known = {row.get(COHORT, "") for row in sheet.rows.values()} - {""}
    for cohort in cohorts:
        if cohort not in known:
            problem = f"no case of {sheet.path} has cohort '{cohort}'{nearest(cohort, known)}."
            raise InputError(where, problem, f"choose from {', '.join(sorted(known)) or 'a column that is filled'}.")
    if cohorts and len(found) == len(sheet.rows):
        raise InputError(where, "every case is of an external cohort.", "leave one cohort to train on.")
    side: dict[str, str] = {}
    for case, patient in patients_of(sheet).items():
        other = side.setdefault(patient, case)
        if (other in found) != (case in found):
            raise InputError(
                f"{sheet.path} patient {patient}",
                f"case {other if other in found else case} is of an external cohort,"
                f" case {case if other in found else other} is not.",
                "give all cases of a patient the same cohort, or delete those of one.",
            )
    return found


def batches(slides: Sequence[Slide]) -> dict[str, list[Slide]]:
    """Group slides into units of cluster work, sorted by name, slides in sheet order.

    The sheet's `batch` column decides; slides without one go by a stable hash of their id into a number of buckets
    that is a power of two (about 32 slides each). A new slide therefore changes one batch; when the number doubles,
    finished slides are still found, because their files carry the slide's name and not the batch's.
    """
    unnamed = sum(not s.batch for s in slides)
    buckets = 1
    while buckets * BATCH_SLIDES < unnamed:
        buckets *= 2
    grouped: dict[str, list[Slide]] = {}
    for slide in slides:
        name = slide.batch or f"auto{_bucket(slide.slide_id, buckets):04d}of{buckets:04d}"
        grouped.setdefault(name, []).append(slide)
    return dict(sorted(grouped.items()))


def _bucket(slide_id: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(slide_id.encode()).digest()[:8], "big") % buckets
