"""The layout of SurvPath, whose tensors MCAT and PORPOISE read too.

===============================================  ====================================================================
``pt_files/{slide}.pt``                          float32 tensor [N, D]; SurvPath gets this folder as its data root,
                                                 MCAT and PORPOISE the folder above it
``datasets_csv/metadata/{study}.csv``            a row per slide: case_id, slide_id (with ``.svs``), survival_months,
                                                 censorship (1 = censored), oncotree_code
``datasets_csv/clinical_data/{study}_clinical.csv``  case_id, stage, grade, subtype; N/A where the sheet has none
``datasets_csv/raw_rna_data/{study}/rna_clean.csv``  cases x genes, on the scale of our table (natural log(1 + x),
                                                 or as it came); SurvPath scales it per fold
``splits/{study}/splits_{k}.csv``                columns train and val: it has no third role, so that our training and
                                                 validation cases are its train, and our test cases its val
===============================================  ====================================================================

Its readers take ``.svs`` off a slide id by stripping the letters ``.``, ``s`` and ``v`` from the end, so that an id
ending in one of them loses it: files are named as they will be looked for. Their bins are cut over all cases of the
sheet, held-out ones included; that is theirs, not ours. MCAT's single sheet of clinical and genomic columns is not
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import read_expression
from pipeline.contracts.features import Bag, BagSource
from pipeline.contracts.splits import TEST, TRAIN, VAL, read_splits
from pipeline.contracts.tasks import Task, read_labels
from pipeline.interop.csv_tables import write_csv
from pipeline.interop.exporting import CohortTables, ExportRow
from pipeline.interop.tensors import write_tensor

DAYS_PER_MONTH = 365.25 / 12
CLINICAL = ("stage", "grade", "subtype")


class SurvPath:
    """See the module. A `Layout`."""

    name = "survpath"
    keeps_magnifications_apart = False

    def paths(self, source: BagSource) -> tuple[str, ...]:
        return (f"pt_files/{looked_for(source.slide_id)}.pt",)

    def write(self, bag: Bag, folder: Path) -> None:
        write_tensor(folder / self.paths(bag.source)[0], bag.features)

    def write_tables(self, exported: Sequence[ExportRow], folder: Path, tables: CohortTables) -> list[str]:
        if tables.cases is None or tables.task is None:
            raise InputError(
                "--layout survpath", "it needs the clinical sheet and a survival task.",
                "run where config.yaml lies, or name it with --configfile.",
            )  # fmt: skip
        months = survival_months(tables)
        rows = [row for row in exported if row.case_id in months]
        sheets = folder / "datasets_csv"
        _write_metadata(sheets / "metadata" / f"{tables.study}.csv", rows, months, tables)
        cases = sorted({row.case_id for row in rows})
        _write_clinical(sheets / "clinical_data" / f"{tables.study}_clinical.csv", cases, tables)
        remarks = [f"survpath: {len(rows)} slides of {len(cases)} cases with a survival time"]
        lacking = sorted({row.case_id for row in exported} - set(months))
        if lacking:
            remarks.append(f"survpath: left out of its sheet, without time or event: {', '.join(lacking)}")
        if tables.expression is None or not tables.expression.exists():
            remarks.append("survpath: no expression table, so no rna_clean.csv; its loader needs one")
        else:
            _write_expression(sheets / "raw_rna_data" / tables.study / "rna_clean.csv", tables.expression)
        if tables.splits is not None and tables.splits.exists():
            _write_splits(folder / "splits" / tables.study, tables.splits, set(cases))
        return remarks


def looked_for(slide_id: str) -> str:
    """Stem of the file that its reader opens for a slide id."""
    name = f"{slide_id}.svs"
    while name[-1:] in ("s", "v", "."):  # letters, not an ending: as that reader does
        name = name[:-1]
    return name


def survival_months(tables: CohortTables) -> dict[str, tuple[float, int]]:
    """Months to event or censoring, and 1 for censored, of every case with both."""
    assert tables.cases is not None and isinstance(tables.task, Task)
    labels = read_labels(tables.cases, tables.task)
    divisor = DAYS_PER_MONTH if tables.task.time_unit == "days" else 1.0
    return {case: (labels.time[case] / divisor, 1 - labels.event[case]) for case in labels.cases}


def _write_metadata(
    path: Path, rows: Sequence[ExportRow], months: dict[str, tuple[float, int]], tables: CohortTables
) -> None:
    assert tables.cases is not None
    code = [tables.cases.rows[row.case_id].get("oncotree_code") or tables.study.upper() for row in rows]
    write_csv(
        path,
        ["", "case_id", "slide_id", "survival_months", "censorship", "oncotree_code"],
        ([i, r.case_id, f"{r.slide_id}.svs", *months[r.case_id], code[i]] for i, r in enumerate(rows)),
    )


def _write_clinical(path: Path, cases: Sequence[str], tables: CohortTables) -> None:
    assert tables.cases is not None
    known = tables.cases.rows
    rows = ([i, case, *(known[case].get(column) or "N/A" for column in CLINICAL)] for i, case in enumerate(cases))
    write_csv(path, ["", "case_id", *CLINICAL], rows)


def _write_expression(path: Path, expression: Path) -> None:
    table = read_expression(expression)
    rows = ([case, *values] for case, values in zip(table.cases, table.values.tolist(), strict=True))
    write_csv(path, ["case_id", *table.symbols], rows)


def _write_splits(folder: Path, splits: Path, cases: set[str]) -> None:
    table = read_splits(splits)
    for fold in range(table.n_folds):
        held_out = sorted(set(table.cases(fold, TEST)) & cases)
        train = sorted({case for role in (TRAIN, VAL) for case in table.cases(fold, role)} & cases)
        longest = max(len(train), len(held_out))
        columns = [ids + [""] * (longest - len(ids)) for ids in (train, held_out)]
        rows = ([i, *pair] for i, pair in enumerate(zip(*columns, strict=True)))
        write_csv(folder / f"splits_{fold}.csv", ["", "train", "val"], rows)
