"""Write the bags of one encoder in the layout of another tool, and say what became of every slide."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from pipeline.contracts.batches import OK, BatchRow
from pipeline.contracts.cohort import CaseSheet
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.features import Bag, BagRecord, BagSource, read_bag, read_summary
from pipeline.contracts.files import read_table, write_table
from pipeline.contracts.tasks import Task

TABLE = "histoweave_export.tsv"  #: lies in every folder that was exported to, and marks it as ours
EXPORTED, EMPTY, ABSENT, DAMAGED, LEFT = "exported", "empty", "absent", "damaged", "left"


@dataclass(frozen=True)
class ExportRow:
    """What became of one slide at one magnification. `path` is relative to the folder, `reason` empty if exported.

    `status`: exported; empty (no tile, no file); absent (no features, with the verdict of the stage that lost it);
    damaged; left (a file of an earlier export that this one did not write).
    """

    slide_id: str
    case_id: str
    magnification: str
    status: str
    reason: str = ""
    n_tiles: int = 0
    path: str = ""


@dataclass(frozen=True)
class CohortTables:
    """What a layout may need beside the bags; None where it is not known.

    `task` is the survival task, `expression` the prepared table (h5ad), `splits` the fold table.
    """

    cases: CaseSheet | None = None
    task: Task | None = None
    expression: Path | None = None
    splits: Path | None = None
    study: str = "cohort"


class Layout(Protocol):
    """Where one tool looks for features and what it expects there."""

    name: str
    keeps_magnifications_apart: bool  #: whether bags of several magnifications fit into one folder

    def paths(self, source: BagSource) -> tuple[str, ...]:
        """Files of one bag, relative to the folder, the one with the features first."""

    def write(self, bag: Bag, folder: Path) -> None:
        """Write the files of one bag, whole."""

    def write_tables(self, exported: Sequence[ExportRow], folder: Path, tables: CohortTables) -> list[str]:
        """Write what belongs to the whole cohort; remarks for the user."""


def export_bags(
    records: Iterable[BagRecord],
    batches: Iterable[BatchRow],
    magnifications: Sequence[float],
    layout: Layout,
    folder: Path,
    tables: CohortTables,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[ExportRow]:
    """Export every bag of `records` at `magnifications`; slides of `batches` without one are listed with the reason.

    Writes `TABLE` last.

    Raises
    ------
    InputError : the folder holds files of somebody else (unless `overwrite`), two bags would get one file name, or the
        layout keeps one magnification per folder and several are asked for
    """
    chosen = [record for record in records if record.magnification in magnifications]
    if len(magnifications) > 1 and not layout.keeps_magnifications_apart:
        asked = ", ".join(f"{m:g}" for m in magnifications)
        raise InputError(
            f"--layout {layout.name}", f"it holds one magnification per folder, but {asked} are there.",
            "choose one with --magnification, and export the others to folders of their own.",
        )  # fmt: skip
    earlier = _earlier(folder, overwrite)
    files = _unique_files(chosen, layout)
    rows = list(_absent(chosen, batches, magnifications))
    for number, record in enumerate(chosen, start=1):
        rows.append(_export(record, files, layout, folder))
        say(f"{number} of {len(chosen)}: {record.slide_id} {record.magnification:g}x {rows[-1].status}")
    exported = [row for row in rows if row.status == EXPORTED]
    for remark in layout.write_tables(exported, folder, tables):
        say(remark)
    written = {row.path for row in exported}
    rows += [_left(row) for row in earlier if row["path"] not in written and (folder / row["path"]).exists()]
    rows.sort(key=lambda row: (row.slide_id, row.magnification, row.status))
    write_table(folder / TABLE, [field.name for field in fields(ExportRow)], map(asdict, rows))
    return rows


def _earlier(folder: Path, overwrite: bool) -> list[dict[str, str]]:
    """Files of an earlier export to this folder."""
    if (folder / TABLE).exists():
        columns = [field.name for field in fields(ExportRow)]
        return [row for row in read_table(folder / TABLE, columns) if row["path"]]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}", "is a file.", "name a folder.")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InputError(
            f"--out {folder}", f"holds files and no {TABLE}: it is not an export of ours.",
            "name a new folder, or say --overwrite to write beside them and replace files of the same name.",
        )  # fmt: skip
    return []


def _left(row: Mapping[str, str]) -> ExportRow:
    return ExportRow(
        row["slide_id"], row["case_id"], row["magnification"], LEFT,
        "written by an earlier export, not by this one", int(row["n_tiles"] or 0), row["path"],
    )  # fmt: skip


def _unique_files(records: Sequence[BagRecord], layout: Layout) -> dict[Path, tuple[str, ...]]:
    """Export files of every readable bag. Raises InputError for a name that two of them would share."""
    files: dict[Path, tuple[str, ...]] = {}
    owners: dict[str, str] = {}
    for record in records:
        try:
            files[record.path] = layout.paths(read_summary(record.path).source)
        except FormatError:
            continue
        for name in files[record.path]:
            other = owners.setdefault(name.casefold(), record.slide_id)
            if other != record.slide_id:
                raise InputError(
                    f"slides '{other}' and '{record.slide_id}'", f"{layout.name} would look for both in {name}.",
                    "rename one of them in slides.tsv.",
                )  # fmt: skip
    return files


def _export(record: BagRecord, files: Mapping[Path, tuple[str, ...]], layout: Layout, folder: Path) -> ExportRow:
    row = ExportRow(record.slide_id, record.case_id, f"{record.magnification:g}", EXPORTED)
    try:
        bag = read_bag(record.path)
    except FormatError as error:
        return ExportRow(row.slide_id, row.case_id, row.magnification, DAMAGED, str(error))
    if not len(bag.features):
        return ExportRow(row.slide_id, row.case_id, row.magnification, EMPTY, "no tile could be read")
    try:
        layout.write(bag, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"--out {folder}", "the disk is full.", "free space and run again.") from error
        raise
    return ExportRow(
        row.slide_id, row.case_id, row.magnification, EXPORTED, "", len(bag.features), files[record.path][0]
    )  # fmt: skip


def _absent(
    records: Iterable[BagRecord], batches: Iterable[BatchRow], magnifications: Sequence[float]
) -> Iterator[ExportRow]:
    """Slides without a bag: lost by a stage, or refused at that magnification."""
    there = {(record.slide_id, record.magnification) for record in records}
    for row in batches:
        for magnification in magnifications:
            if (row.slide_id, magnification) not in there:
                reason = f"{row.status} at {row.stage}: {row.reason}"
                if row.status == OK:
                    reason = f"no features at this magnification ({row.reason})" if row.reason else "not indexed"
                yield ExportRow(row.slide_id, row.case_id, f"{magnification:g}", ABSENT, reason)
